//! The scrub: reads everything on a node, slowly, and finds what is damaged before somebody needs it.
//!
//! A pass goes through all keys in order, some at a time. What is found is dealt with elsewhere: a record is set aside
//! and healed (`replica::quarantine`); hints, outcomes of requests and regions of trees are dealt with by who reads
//! them; the node's own state is checked at its start.
//!
//! Invariants:
//! 1. A step reads a bounded number of bytes and entries, and goes on behind the last.
//! 2. Where the engine can't read its files the pass leaps to the next region of a tree, or the next kind of key, so a
//!    pass always ends.
//!
//! Caveat: what the engine has in its cache is not read from the disk.

use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::stored;
use crate::storage::schema;
use crate::storage::{Batch, Storage, StorageError};
use crate::types::limits::{SCRUB_BYTES, SCRUB_ENTRIES};
use crate::types::time::WallMs;

/// How far the scrub is, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Where the pass under way goes on; none if none is.
    pub next: Option<Vec<u8>>,
    /// When the last pass ended.
    pub ended_at: Option<WallMs>,
}

impl Position {
    /// What is stored; a position that can't be read is none.
    pub fn load(storage: &dyn Storage) -> Result<Position, StorageError> {
        let key = schema::meta_key(schema::META_SCRUB);
        let value = storage.get(&key)?;
        let body = value.as_deref().and_then(|value| schema::open(&key, value).ok());
        Ok(body.and_then(|body| postcard::from_bytes(body).ok()).unwrap_or_default())
    }

    /// What stores it.
    pub fn batch(&self) -> Batch {
        let key = schema::meta_key(schema::META_SCRUB);
        // A Vec grows as needed, and a position has no fallible Serialize.
        let body = postcard::to_extend(self, Vec::new()).expect("a Vec takes any position");
        let mut batch = Batch::new();
        batch.put(key.clone(), schema::seal(&key, &body));
        batch
    }
}

/// What a step has looked at, and found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Looked {
    /// Keys and values.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Where the next step begins; none at the end of the pass.
    pub next: Option<Vec<u8>>,
    /// Storage keys of records that can't be read.
    pub damaged: Vec<Vec<u8>>,
    /// Keys of other values that can't be read, and what is wrong with them.
    pub others: Vec<(Vec<u8>, String)>,
    /// What the engine said where it could not read its own files.
    pub unreadable: Option<String>,
}

/// One step of a pass from `from` on; a pass begins with an empty key.
pub fn step(storage: &dyn Storage, from: &[u8]) -> Result<Looked, StorageError> {
    let mut looked = Looked::default();
    let mut last = from.to_vec();
    let read = storage.scan(Bound::Included(from), Bound::Unbounded, false, &mut |key, value| {
        if looked.entries >= SCRUB_ENTRIES || looked.bytes >= SCRUB_BYTES {
            looked.next = Some(key.to_vec());
            return false;
        }
        looked.entries += 1;
        looked.bytes += (key.len() + value.len()) as u64;
        look(key, value, &mut looked);
        last = key.to_vec();
        true
    });
    match read {
        Ok(()) => {}
        Err(StorageError::Corrupt(why)) => {
            looked.next = leap(&last);
            looked.unreadable = Some(why);
        }
        Err(error) => return Err(error),
    }
    Ok(looked)
}

fn look(key: &[u8], value: &[u8], looked: &mut Looked) {
    match key.first() {
        Some(&schema::RECORD_TAG) if stored::decode(key, value).is_err() => {
            looked.damaged.push(key.to_vec());
        }
        Some(
            &(schema::HINT_TAG
            | schema::REQUEST_TAG
            | schema::REGION_TAG
            | schema::QUARANTINE_TAG
            | schema::META_TAG),
        ) => {
            if let Err(damaged) = schema::open(key, value) {
                looked.others.push((key.to_vec(), damaged.to_string()));
            }
        }
        // The rest has no value.
        _ => {}
    }
}

/// Slots of a region of a tree.
const REGION_SLOTS: u16 = 1 << 10;

/// The first key behind the region of a tree that `at` lies in, or behind its kind.
fn leap(at: &[u8]) -> Option<Vec<u8>> {
    if let Some((partition, keyspace, slot)) = schema::split_slot(at) {
        let prefix = schema::range_prefix(partition, keyspace);
        return match (slot / REGION_SLOTS + 1).checked_mul(REGION_SLOTS) {
            Some(slot) => Some([&prefix[..], &slot.to_be_bytes()].concat()),
            None => schema::prefix_end(&prefix),
        };
    }
    at.first().map_or(Some(vec![1]), |tag| tag.checked_add(1).map(|tag| vec![tag]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryStorage;
    use crate::types::ids::{KeyspaceId, NodeId, PartitionId};
    use crate::types::key::Key;
    use crate::version::codec;
    use crate::version::hlc::Stamp;
    use crate::version::record::{LwwVersion, Payload, Record};

    fn record(storage: &MemoryStorage, name: &str, is_flipped: bool) -> Vec<u8> {
        let key = Key::new(name.to_string(), "").expect("a valid key");
        let storage_key = schema::record_key(PartitionId(1), KeyspaceId(1), &key);
        let payload = Payload::Value(vec![7; 1_000].into());
        let record = Record::Lww(LwwVersion {
            stamp: Stamp(5),
            node: NodeId(1),
            payload,
            expires_at: None,
            request: None,
        });
        let mut value = stored::encode(&storage_key, None, &codec::encode_record(&record));
        value[500] ^= u8::from(is_flipped);
        put(storage, &storage_key, &value);
        storage_key
    }

    fn put(storage: &MemoryStorage, key: &[u8], value: &[u8]) {
        let mut batch = Batch::new();
        batch.put(key, value);
        storage.write(&batch).expect("written");
    }

    fn pass(storage: &dyn Storage) -> (Looked, usize) {
        let (mut all, mut from, mut steps) = (Looked::default(), Some(Vec::new()), 0);
        while let Some(at) = from {
            let looked = step(storage, &at).expect("readable");
            assert!(looked.entries <= SCRUB_ENTRIES && looked.bytes < SCRUB_BYTES + (1 << 20));
            all.entries += looked.entries;
            all.bytes += looked.bytes;
            all.damaged.extend(looked.damaged);
            all.others.extend(looked.others);
            all.unreadable = looked.unreadable.or(all.unreadable);
            assert!(looked.next.as_ref().is_none_or(|next| *next > at), "it goes on");
            from = looked.next;
            steps += 1;
        }
        (all, steps)
    }

    #[test]
    fn a_pass_looks_at_everything_and_finds_what_is_damaged() {
        let storage = MemoryStorage::default();
        let mut damaged: Vec<_> = (0..2_000)
            .map(|n| (n, record(&storage, &format!("k{n}"), n % 500 == 3)))
            .filter_map(|(n, key)| (n % 500 == 3).then_some(key))
            .collect();
        damaged.sort();
        let hint = schema::hint_key(NodeId(2), 9);
        put(&storage, &hint, b"junk");
        put(&storage, &schema::dead_key(WallMs(5), &damaged[0]), b"");
        let sound = schema::meta_key(schema::META_MAP);
        put(&storage, &sound, &schema::seal(&sound, b"anything"));
        let (all, steps) = pass(&storage);
        assert_eq!((all.entries, all.damaged), (2_003, damaged));
        assert_eq!(all.others.len(), 1);
        assert_eq!(all.others[0].0, hint);
        assert!(steps > 2, "in steps: {steps}");
    }

    /// A storage that can't read from one key to another.
    struct Torn(MemoryStorage, Vec<u8>, Vec<u8>);

    impl Storage for Torn {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
            self.0.get(key)
        }

        fn scan(
            &self,
            from: Bound<&[u8]>,
            to: Bound<&[u8]>,
            reverse: bool,
            visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
        ) -> Result<(), StorageError> {
            let mut torn = false;
            self.0.scan(from, to, reverse, &mut |key, value| {
                torn = key >= &self.1[..] && key < &self.2[..];
                !torn && visit(key, value)
            })?;
            if torn { Err(StorageError::Corrupt("torn".into())) } else { Ok(()) }
        }

        fn write(&self, batch: &Batch) -> Result<(), StorageError> {
            self.0.write(batch)
        }

        fn sync(&self) -> Result<(), StorageError> {
            self.0.sync()
        }

        fn disk_bytes(&self) -> u64 {
            0
        }
    }

    #[test]
    fn what_the_engine_can_not_read_is_leapt_over() {
        let storage = MemoryStorage::default();
        let mut keys: Vec<_> = (0..2_000).map(|n| record(&storage, &format!("k{n}"), false)).collect();
        keys.sort();
        let (from, to) = (keys[1_000].clone(), keys[1_020].clone());
        let (all, _) = pass(&Torn(storage, from, to));
        assert_eq!(all.unreadable.as_deref(), Some("torn"));
        // At most the rest of two regions, of 64.
        assert!((1_900..1_980).contains(&all.entries), "{} of 2 000", all.entries);
        let everything = Torn(MemoryStorage::default(), Vec::new(), vec![0xff; 8]);
        record(&everything.0, "k", false);
        assert_eq!(pass(&everything).0.entries, 0);
    }

    #[test]
    fn a_position_that_can_not_be_read_is_none() {
        let storage = MemoryStorage::default();
        assert_eq!(Position::load(&storage), Ok(Position::default()));
        let position = Position { next: Some(b"dx".to_vec()), ended_at: Some(WallMs(5)) };
        storage.write(&position.batch()).expect("written");
        assert_eq!(Position::load(&storage), Ok(position));
        put(&storage, &schema::meta_key(schema::META_SCRUB), b"junk");
        assert_eq!(Position::load(&storage), Ok(Position::default()));
    }
}
