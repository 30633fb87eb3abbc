//! Keys: a partition key, which decides the place on the ring, and a sort key within it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::Invalid;
use super::limits;

/// A validated key. The partition key has 1 to 1 024 bytes, the sort key 0 to 1 024.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    partition_key: Bytes,
    sort_key: Bytes,
}

impl Key {
    /// Validates both parts; the error names the field, the limit and the length.
    pub fn new(partition_key: impl Into<Bytes>, sort_key: impl Into<Bytes>) -> Result<Key, Invalid> {
        let (partition_key, sort_key) = (partition_key.into(), sort_key.into());
        check_partition_key(&partition_key)?;
        Invalid::check_max("sort", sort_key.len(), limits::SORT_KEY_BYTES, "bytes")?;
        Ok(Key { partition_key, sort_key })
    }

    /// The part that decides the partition.
    pub fn partition_key(&self) -> &Bytes {
        &self.partition_key
    }

    /// The part that orders keys of one partition key; may be empty.
    pub fn sort_key(&self) -> &Bytes {
        &self.sort_key
    }

    /// Bytes of both parts.
    pub fn bytes(&self) -> usize {
        self.partition_key.len() + self.sort_key.len()
    }
}

/// Refuses an empty partition key and one over the limit.
pub fn check_partition_key(partition_key: &[u8]) -> Result<(), Invalid> {
    if partition_key.is_empty() {
        return Err(Invalid::new("key", "must have at least 1 byte"));
    }
    Invalid::check_max("key", partition_key.len(), limits::PARTITION_KEY_BYTES, "bytes")
}

/// A place on the ring of 2^64 positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl Position {
    /// First 8 bytes, big endian, of blake3 over keyspace name, a zero byte, and the partition key.
    pub fn of(keyspace: &str, partition_key: &[u8]) -> Position {
        let mut hasher = blake3::Hasher::new();
        hasher.update(keyspace.as_bytes()).update(&[0]).update(partition_key);
        let hash = hasher.finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        Position(u64::from_be_bytes(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_limits_are_exact() {
        assert!(Key::new(vec![0; 1], vec![]).is_ok());
        assert!(Key::new(vec![0; 1_024], vec![0; 1_024]).is_ok());
        assert!(Key::new(vec![], vec![]).is_err());
        let e = Key::new(vec![0; 1_025], vec![]).expect_err("too long").to_string();
        assert!(e.contains("key") && e.contains("1024") && e.contains("1025"), "{e}");
        let e = Key::new(vec![0; 1], vec![0; 1_025]).expect_err("too long").to_string();
        assert!(e.contains("sort") && e.contains("1024") && e.contains("1025"), "{e}");
    }

    /// The position is part of the contract: any client can compute it.
    #[test]
    fn position_hashes_name_zero_key() {
        let direct = blake3::hash(b"default\0cart:42");
        let mut first = [0; 8];
        first.copy_from_slice(&direct.as_bytes()[..8]);
        assert_eq!(Position::of("default", b"cart:42").0, u64::from_be_bytes(first));
        assert_ne!(Position::of("a", b"b"), Position::of("ab", b""));
    }
}
