//! The keys and values of a data directory.
//!
//! | first byte | key | value |
//! | --- | --- | --- |
//! | `d` | partition (2), keyspace (4), escaped partition key, sort key | checksummed record |
//! | `m` | name of a piece of the node's own state | checksummed `postcard` |
//!
//! A partition is one range to scan, hand over and drop; within a partition key, sort keys stay in byte
//! order. Numbers are big endian. In a partition key the byte 0 is written `00 ff`, and `00 01` ends it, so
//! no key is a prefix of another's and the order of partition keys is that of their bytes.
//!
//! A value is `Q`, a format version, 8 bytes of blake3 over version, key and body, then the body. The
//! storage key is part of the checksum, so a value that lands under another key is found out too.
