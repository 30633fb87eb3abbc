//! Every limit of the product, in one place, with the reason above each and their relations asserted.

use std::time::Duration;

/// Longest partition key, in bytes. Keeps a storage key (escaped, at worst twice as long) under 4 KiB.
pub const PARTITION_KEY_BYTES: usize = 1_024;
/// Longest sort key, in bytes.
pub const SORT_KEY_BYTES: usize = 1_024;
/// Largest value, in bytes, unless the node's configuration says otherwise.
pub const VALUE_BYTES_DEFAULT: usize = 1 << 20;
/// The most that the value limit can be configured to.
pub const VALUE_BYTES_MAX: usize = 16 << 20;
/// Longest context that a client may send, in bytes. A context of a record with 100 siblings by 100
/// actors is under 4 KiB.
pub const CONTEXT_BYTES: usize = 64 << 10;
/// Siblings of one key past which a warning is counted.
pub const SIBLINGS_WARN: usize = 25;
/// Siblings of one key past which a client's write that would add one more is refused. Replication and
/// repair ignore it, or they would never converge (riak_kv#1156).
pub const SIBLINGS_MAX: usize = 100;
/// Largest encoded record that a client's write may make: a few siblings of the largest value.
pub const RECORD_BYTES_MAX: usize = 48 << 20;
/// Largest message between nodes, and from a client.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Longest name of a keyspace, node or zone, in bytes.
pub const NAME_BYTES: usize = 64;
/// Most keyspaces in a cluster map: the map travels whole.
pub const KEYSPACES_MAX: usize = 1_000;
/// Most nodes in a cluster map.
pub const NODES_MAX: usize = 1_000;

/// Fewest and most partitions; a power of two between them.
pub const PARTITIONS_MIN: u32 = 16;
/// Most partitions.
pub const PARTITIONS_MAX: u32 = 65_536;
/// Partitions of a cluster that does not say.
pub const PARTITIONS_DEFAULT: u32 = 256;
/// Most replicas of a key.
pub const N_MAX: u8 = 15;

/// Deadline of a request that names none.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// Longest deadline that a request may ask for; a longer one is cut to it.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// A read asks one more replica when an asked one has been silent this long.
pub const HEDGE_AFTER: Duration = Duration::from_millis(100);
/// Times that a put stamps again after `Superseded` before it counts what is greater as concurrent.
pub const RESTAMPS_MAX: u8 = 2;

/// How far ahead of the own clock a stamp of another node may be, unless configured.
pub const CLOCK_SKEW_DEFAULT: Duration = Duration::from_millis(500);
/// How far ahead of the issued stamps the persisted clock bound runs. Below half the skew allowed, so that
/// a node which starts again above its bound is not refused by its peers.
pub const CLOCK_LEASE: Duration = Duration::from_millis(200);
/// Births taken by one durable lease: 1 write of the lease per so many new keys.
pub const BIRTH_LEASE: u64 = 4_096;

/// Operations in flight on one peer link, past which more are refused at once.
pub const LINK_OPS: usize = 8_192;
/// Bytes in flight on one peer link, likewise.
pub const LINK_BYTES: usize = 256 << 20;
/// Operations in one peer message.
pub const ENVELOPE_OPS: usize = 256;
/// Bytes after which a peer message is closed.
pub const ENVELOPE_BYTES: usize = 256 << 10;
/// Jobs that wait for the commit thread, past which writes are refused.
pub const COMMIT_QUEUE: usize = 8_192;
/// Jobs that share one sync at the most.
pub const COMMIT_GROUP: usize = 1_024;
/// Requests of clients in flight at one node, past which more are refused with a retry delay.
pub const REQUESTS_IN_FLIGHT: usize = 8_192;
/// The retry delay that a refused client is told.
pub const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Most entries in one page of a scan.
pub const SCAN_PAGE_ITEMS: usize = 1_000;
/// Bytes of records after which a page of a scan is closed.
pub const SCAN_PAGE_BYTES: usize = 1 << 20;

/// Pages of the storage engine that a node keeps in memory, in bytes as stored. With it the storage of
/// 1 000 000 keys of 100-byte values takes about 220 MiB, of the 300 MiB that such a node may have.
pub const STORAGE_CACHE_BYTES: u64 = 24 << 20;

/// Largest gossip datagram: fits one Ethernet frame.
pub const GOSSIP_PACKET_BYTES: usize = 1_400;

const _: () = assert!(VALUE_BYTES_DEFAULT <= VALUE_BYTES_MAX);
const _: () = assert!(VALUE_BYTES_MAX * 2 < RECORD_BYTES_MAX);
const _: () = assert!(RECORD_BYTES_MAX + (1 << 20) < MESSAGE_BYTES_MAX);
const _: () = assert!(MESSAGE_BYTES_MAX < LINK_BYTES);
const _: () = assert!(SIBLINGS_WARN < SIBLINGS_MAX);
const _: () = assert!(PARTITIONS_MIN.is_power_of_two() && PARTITIONS_MAX.is_power_of_two());
const _: () = assert!(PARTITIONS_MAX - 1 <= u16::MAX as u32);
const _: () = assert!(CLOCK_LEASE.as_millis() * 2 < CLOCK_SKEW_DEFAULT.as_millis());
const _: () = assert!(HEDGE_AFTER.as_millis() * 10 < TIMEOUT_DEFAULT.as_millis());
const _: () = assert!(ENVELOPE_BYTES < MESSAGE_BYTES_MAX && SCAN_PAGE_BYTES < MESSAGE_BYTES_MAX);
