//! A data directory that no process uses, opened to look into it.
//!
//! Why the storage engine is opened as a node opens it, and not only read: what a crash left has to be
//! recovered before it can be read, in the way in which the next start would do it.
//!
//! Invariants:
//! 1. While it is open, no node starts on the directory; while a node runs, it can't be opened.
//! 2. Nothing is made in a directory that is not a node's, and no record is written, but by `give-up`.
//!
//! It does not say what the other nodes hold, and knows the cluster map only as this node last stored it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;

use crate::cli::output::{CliError, Exit};
use crate::node::datadir::{DataDir, DataDirError, Identity};
use crate::node::maps::stored_map;
use crate::replica::stored::{self, LoadError, Stored};
use crate::ring::layout::ClusterMap;
use crate::ring::preflist::{PreferenceList, preference_list};
use crate::storage::sled::SledStorage;
use crate::storage::{Storage, StorageError, schema};
use crate::types::ids::{KeyspaceId, PartitionId};
use crate::types::key::{Key, Position};
use crate::types::limits::CACHE_BYTES_DEFAULT;
use crate::types::policy::Keyspace;
use crate::types::time::WallMs;
use crate::version::record::{Payload, Record};

/// Damaged records of a partition that are told by key; the others are only counted.
const DAMAGED_TOLD: usize = 20;

/// An open data directory.
pub struct Offline {
    /// Whose it is.
    pub identity: Identity,
    /// The cluster map that the node stored last.
    pub map: ClusterMap,
    /// Its records. Closed before the lock of the directory is released.
    pub storage: Box<dyn Storage>,
    _dir: DataDir,
}

/// Where a key of a keyspace is.
pub struct Place {
    /// The keyspace.
    pub keyspace: Keyspace,
    /// Position on the ring.
    pub position: Position,
    /// The partition there.
    pub partition: PartitionId,
    /// Homes and fallbacks.
    pub list: PreferenceList,
}

impl Offline {
    /// Opens and locks the directory.
    pub fn open(path: &Path) -> Result<Offline, CliError> {
        let dir = DataDir::open_existing(path).map_err(|error| match error {
            DataDirError::InUse(_) => CliError::error(format!(
                "--data-dir: {error}: stop that node, or leave --data-dir out to ask the cluster"
            )),
            other => CliError::error(format!("--data-dir: {other}")),
        })?;
        let at = dir.storage_path();
        let failed = |error: &dyn std::fmt::Display| CliError::error(format!("{}: {error}", at.display()));
        if !SledStorage::exists(&at) {
            return Err(failed(&"nothing is stored yet"));
        }
        let storage = SledStorage::open(&at, CACHE_BYTES_DEFAULT).map_err(|error| failed(&error))?;
        let map = stored_map(&storage).map_err(|error| failed(&error))?;
        let map = map.ok_or_else(|| failed(&"no cluster map is stored yet"))?;
        Ok(Offline { identity: dir.identity(), map, storage: Box::new(storage), _dir: dir })
    }

    /// The place of a key; an error if there is no such keyspace.
    pub fn place(&self, keyspace: &str, key: &Key) -> Result<Place, CliError> {
        let Some(keyspace) = self.map.keyspace(keyspace) else {
            // As a running node says it.
            let mut error = CliError::error(format!("keyspace: there is no keyspace {keyspace:?}"));
            error.code = "NOT_FOUND";
            return Err(error);
        };
        let position = Position::of(&keyspace.name, key.partition_key());
        let partition = self.map.partitions.of(position);
        let list = preference_list(&self.map, keyspace, partition);
        Ok(Place { keyspace: keyspace.clone(), position, partition, list })
    }

    /// What is stored of a key.
    pub fn found(&self, place: &Place, key: &Key) -> Result<Option<Found>, CliError> {
        let storage_key = schema::record_key(place.partition, place.keyspace.id, key);
        let value = self.storage.get(&storage_key).map_err(|error| storage_error(&error))?;
        Ok(value.map(|value| Found::of(&storage_key, value)))
    }

    /// What is stored of a partition.
    pub fn census(&self, partition: PartitionId, now: WallMs) -> Result<Census, CliError> {
        Census::of(&*self.storage, partition, now).map_err(|error| storage_error(&error))
    }
}

/// What the storage engine said.
pub fn storage_error(error: &StorageError) -> CliError {
    CliError::new(Exit::Error, format!("storage: {error}"))
}

/// A stored value, as far as it can be read.
pub struct Found {
    /// The bytes that are stored.
    pub raw: Vec<u8>,
    /// Whether marker, format and checksum are right; else what is wrong.
    pub seal: Result<(), String>,
    /// The record, or why it can't be read.
    pub stored: Result<Stored, String>,
}

impl Found {
    fn of(storage_key: &[u8], raw: Vec<u8>) -> Found {
        let seal = schema::open(storage_key, &raw).map(|_| ()).map_err(|damaged| damaged.to_string());
        let stored = stored::decode(storage_key, &raw).map_err(|error| match error {
            LoadError::Damaged(why) => why,
            LoadError::Storage(error) => error.to_string(),
        });
        Found { raw, seal, stored }
    }
}

/// How much of a keyspace is stored in one partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records, damaged ones included.
    pub records: u64,
    /// Versions in the records that can be read.
    pub versions: u64,
    /// Versions that have others beside them: those of records with more than one.
    pub siblings: u64,
    /// Versions that say "deleted".
    pub tombstones: u64,
    /// Values whose time has passed.
    pub expired: u64,
    /// Bytes of keys and values as they are stored.
    pub bytes: u64,
    /// Records that can't be read.
    pub damaged: u64,
}

/// A record that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRecord {
    /// Its keyspace.
    pub keyspace: KeyspaceId,
    /// Its key.
    pub key: Key,
    /// What is wrong.
    pub why: String,
}

/// How much of a partition is stored.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// By keyspace; those of which nothing is stored are left out.
    pub keyspaces: BTreeMap<KeyspaceId, Counts>,
    /// The first damaged records, at most [`DAMAGED_TOLD`].
    pub damaged: Vec<DamagedRecord>,
    /// Entries whose key is that of no record.
    pub strays: u64,
}

impl Census {
    fn of(storage: &dyn Storage, partition: PartitionId, now: WallMs) -> Result<Census, StorageError> {
        let mut census = Census::default();
        let prefix = schema::partition_prefix(partition);
        let end = schema::prefix_end(&prefix);
        let to = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        storage.scan(Bound::Included(&prefix), to, false, &mut |storage_key, value| {
            census.add(storage_key, value, now);
            true
        })?;
        Ok(census)
    }

    fn add(&mut self, storage_key: &[u8], value: &[u8], now: WallMs) {
        let Some((_, keyspace, key)) = schema::split_record_key(storage_key) else {
            self.strays += 1;
            return;
        };
        let counts = self.keyspaces.entry(keyspace).or_default();
        counts.records += 1;
        counts.bytes += (storage_key.len() + value.len()) as u64;
        match stored::decode(storage_key, value) {
            Ok(Stored { record, .. }) => counts.add(&record, now),
            Err(error) => {
                counts.damaged += 1;
                if self.damaged.len() < DAMAGED_TOLD {
                    self.damaged.push(DamagedRecord { keyspace, key, why: error.to_string() });
                }
            }
        }
    }

    /// Whether everything can be read.
    pub fn is_sound(&self) -> bool {
        self.strays == 0 && self.keyspaces.values().all(|counts| counts.damaged == 0)
    }
}

impl Counts {
    fn add(&mut self, record: &Record, now: WallMs) {
        let versions = record.versions() as u64;
        self.versions += versions;
        self.siblings += if versions > 1 { versions } else { 0 };
        let mut count = |payload: &Payload, expires_at: Option<WallMs>| match payload {
            Payload::Tombstone => self.tombstones += 1,
            Payload::Value(_) if expires_at.is_some_and(|at| at <= now) => self.expired += 1,
            Payload::Value(_) => {}
        };
        match record {
            Record::Lww(version) => count(&version.payload, version.expires_at),
            Record::Siblings(set) => set.iter().for_each(|s| count(&s.payload, s.expires_at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Batch;
    use crate::storage::memory::MemoryStorage;
    use crate::types::ids::{Birth, Incarnation, NodeId};
    use crate::version::codec::encode_record;
    use crate::version::dvv::{Actor, Context, Dot};
    use crate::version::hlc::Stamp;
    use crate::version::record::{LwwVersion, Sibling};

    const PARTITION: PartitionId = PartitionId(7);

    fn lww(payload: Payload, expires_at: Option<u64>) -> Record {
        let expires_at = expires_at.map(WallMs);
        Record::Lww(LwwVersion { stamp: Stamp(1), node: NodeId(1), payload, expires_at, request: None })
    }

    fn sibling(counter: u64, payload: Payload) -> Sibling {
        let actor = Actor { node: NodeId(1), incarnation: Incarnation(1), birth: Birth(1) };
        let dot = Dot { actor, counter };
        Sibling { dot, past: Context::new(), request: None, stamp: Stamp(1), payload, expires_at: None }
    }

    fn value() -> Payload {
        Payload::Value("v".into())
    }

    fn place(name: &str, keyspace: u32, partition: u16) -> (Key, Vec<u8>) {
        let key = Key::new(name.to_string(), "").expect("within the limits");
        let storage_key = schema::record_key(PartitionId(partition), KeyspaceId(keyspace), &key);
        (key, storage_key)
    }

    #[test]
    fn a_census_counts_one_partition_by_keyspace() {
        let (storage, mut batch, mut bytes) = (MemoryStorage::new(), Batch::new(), [0; 3]);
        for (name, keyspace, partition, record) in [
            ("a", 1, 7, lww(value(), None)),
            ("b", 1, 7, lww(Payload::Tombstone, Some(5))),
            ("c", 1, 7, lww(value(), Some(10))),
            ("d", 1, 7, lww(value(), Some(11))),
            ("e", 2, 7, Record::Siblings(vec![sibling(1, value()), sibling(2, Payload::Tombstone)])),
            ("f", 2, 7, Record::Siblings(vec![sibling(1, value())])),
            ("before", 1, 6, lww(value(), None)),
            ("behind", 1, 8, lww(value(), None)),
        ] {
            let (_, storage_key) = place(name, keyspace, partition);
            let sealed = stored::encode(&storage_key, None, &encode_record(&record));
            if partition == 7 {
                bytes[keyspace as usize] += (storage_key.len() + sealed.len()) as u64;
            }
            batch.put(storage_key, sealed);
        }
        storage.write(&batch).expect("written");
        let census = Census::of(&storage, PARTITION, WallMs(10)).expect("counted");
        let one = Counts {
            records: 4,
            versions: 4,
            tombstones: 1,
            expired: 1,
            bytes: bytes[1],
            ..Counts::default()
        };
        let two = Counts {
            records: 2,
            versions: 3,
            siblings: 2,
            tombstones: 1,
            bytes: bytes[2],
            ..Counts::default()
        };
        assert_eq!(census.keyspaces, [(KeyspaceId(1), one), (KeyspaceId(2), two)].into());
        assert!(census.is_sound());
    }

    #[test]
    fn what_can_not_be_read_is_told() {
        let (storage, mut batch) = (MemoryStorage::new(), Batch::new());
        for index in 0..30 {
            let (_, storage_key) = place(&format!("k{index:02}"), 1, 7);
            // Sealed for another key.
            batch.put(storage_key, stored::encode(b"other", None, &encode_record(&lww(value(), None))));
        }
        batch.put(&b"d\0\x07\0"[..], &b"junk"[..]);
        storage.write(&batch).expect("written");
        let census = Census::of(&storage, PARTITION, WallMs(0)).expect("counted");
        let counts = census.keyspaces[&KeyspaceId(1)];
        assert_eq!((counts.records, counts.damaged, counts.versions, census.strays), (30, 30, 0, 1));
        assert_eq!(census.damaged.len(), DAMAGED_TOLD);
        let first = (0..30).map(|index| place(&format!("k{index:02}"), 1, 7)).min_by(|a, b| a.1.cmp(&b.1));
        assert_eq!(census.damaged[0].key, first.expect("one of 30").0);
        assert!(census.damaged[0].why.contains("checksum"), "{}", census.damaged[0].why);
        assert!(!census.is_sound());
    }

    #[test]
    fn a_found_value_tells_a_bad_seal_from_a_bad_record() {
        let (_, storage_key) = place("k", 1, 7);
        let good = stored::encode(&storage_key, None, &encode_record(&lww(value(), None)));
        let found = Found::of(&storage_key, good.clone());
        assert_eq!(found.stored.expect("good").record, lww(value(), None));
        let mut flipped = good;
        *flipped.last_mut().expect("not empty") ^= 1;
        let found = Found::of(&storage_key, flipped.clone());
        assert!(found.seal.expect_err("flipped").contains("checksum"));
        assert!(found.stored.is_err());
        assert_eq!(found.raw, flipped);
        let found = Found::of(&storage_key, stored::encode(&storage_key, None, b"no record"));
        assert_eq!(found.seal, Ok(()));
        assert!(found.stored.expect_err("no record").contains("wrong marker"));
    }
}
