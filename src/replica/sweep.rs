//! Finds the records of dropped keyspaces, batch by batch, for the node to delete.
//!
//! A keyspace is dropped when its id was given and is not in the map (`ClusterMap::has_dropped`). Nothing else is
//! remembered: a pass over all ranges finds what is left, also after a restart in the middle. It looks at the
//! first key of each range of a partition and a keyspace, and leaps over those that are alive.
//!
//! Invariants:
//! 1. Only records are deleted, and only of keyspaces that the map has dropped: never of one that it does not know
//!    yet, since the map here may be the older one.
//! 2. A step reads a bounded number of ranges, records and bytes.
//! 3. A pass that is begun after the last write of a dropped keyspace, and that finds nothing, says that nothing is
//!    left.

use std::ops::Bound;
use std::time::Duration;

use crate::ring::layout::ClusterMap;
use crate::storage::{Batch, Storage, StorageError, schema};
use crate::types::ids::{KeyspaceId, PartitionId};
use crate::types::limits::{SWEEP_BYTES, SWEEP_RANGES, SWEEP_RECORDS, SWEEP_REST, SWEEP_REST_MAX};

/// What one step of a pass found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Deletes some records; may be empty.
    pub batch: Batch,
    /// Where the next step begins; none at the end of the pass.
    pub next: Option<Vec<u8>>,
}

/// Where a pass begins.
pub fn begin() -> Vec<u8> {
    vec![schema::RECORD_TAG]
}

/// One step of a pass from `from` on, by the newest map.
pub fn step(storage: &dyn Storage, map: &ClusterMap, from: &[u8]) -> Result<Found, StorageError> {
    let mut found = Found { batch: Batch::new(), next: Some(from.to_vec()) };
    for _ in 0..SWEEP_RANGES {
        let Some(at) = found.next.take() else { return Ok(found) };
        let Some((first, range)) = first_from(storage, &at)? else { return Ok(found) };
        match range {
            Some((partition, keyspace)) if map.has_dropped(keyspace) => {
                found.next = collect(storage, partition, keyspace, first, &mut found.batch)?;
                return Ok(found);
            }
            Some((partition, keyspace)) => {
                found.next = schema::prefix_end(&schema::range_prefix(partition, keyspace));
            }
            // Too short for a record: the least key above it.
            None => found.next = Some([&first[..], &[0]].concat()),
        }
    }
    Ok(found)
}

type Range = Option<(PartitionId, KeyspaceId)>;

/// The first key of a record from here on.
fn first_from(storage: &dyn Storage, from: &[u8]) -> Result<Option<(Vec<u8>, Range)>, StorageError> {
    let end = [schema::RECORD_TAG + 1];
    let mut first = None;
    storage.scan(Bound::Included(from), Bound::Excluded(&end), false, &mut |key, _| {
        first = Some((key.to_vec(), schema::split_range(key)));
        false
    })?;
    Ok(first)
}

/// Puts a batch's worth of a range's keys from `from` on into the batch; where to go on.
fn collect(
    storage: &dyn Storage,
    partition: PartitionId,
    keyspace: KeyspaceId,
    from: Vec<u8>,
    batch: &mut Batch,
) -> Result<Option<Vec<u8>>, StorageError> {
    let end = schema::prefix_end(&schema::range_prefix(partition, keyspace));
    let to = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    let (mut bytes, mut next) = (0, None);
    storage.scan(Bound::Included(&from), to, false, &mut |key, value| {
        if batch.writes.len() >= SWEEP_RECORDS || bytes >= SWEEP_BYTES {
            next = Some(key.to_vec());
            return false;
        }
        bytes += key.len() + value.len();
        batch.delete(key);
        true
    })?;
    Ok(next.or(end))
}

/// How long to rest after a step that took so long: `busy` if the node serves clients.
pub fn rest(took: Duration, busy: bool) -> Duration {
    let times = if busy { SWEEP_REST.1 } else { SWEEP_REST.0 };
    (took * times).min(SWEEP_REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::keyspaces::{Edit, KeyspaceChange, Next};
    use crate::ring::layout::{Member, NewKeyspace};
    use crate::ring::partition::Partitions;
    use crate::storage::memory::MemoryStorage;
    use crate::types::ids::NodeId;
    use crate::types::key::Key;
    use crate::types::policy::Conflicts;

    fn change(map: &ClusterMap, change: KeyspaceChange) -> ClusterMap {
        match Edit::new(change, None).next(map) {
            Ok(Next::Propose(map, _)) => map,
            other => panic!("{other:?}"),
        }
    }

    /// A map with the keyspaces 1 (`default`), 3 and 4; 2 is dropped, 5 is the next.
    fn map() -> ClusterMap {
        let (name, zone, address) = ("n1".into(), "z".into(), "n1:7401".into());
        let member = Member { id: NodeId(1), name, zone, weight: 1, address };
        let partitions = Partitions::new(16).expect("a power of two");
        let mut map = ClusterMap::bootstrap("c", partitions, vec![member]).expect("valid");
        for name in ["b", "c", "d"] {
            let spec = NewKeyspace::with_defaults(name, Conflicts::Lww);
            map = change(&map, KeyspaceChange::Create(spec));
        }
        change(&map, KeyspaceChange::Drop("b".into()))
    }

    fn put(storage: &MemoryStorage, partition: u16, keyspace: u32, key: &str, bytes: usize) {
        let key = Key::new(key.as_bytes().to_vec(), &b""[..]).expect("a valid key");
        let mut batch = Batch::new();
        batch.put(schema::record_key(PartitionId(partition), KeyspaceId(keyspace), &key), vec![7; bytes]);
        storage.write(&batch).expect("written");
    }

    fn keys(storage: &MemoryStorage) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        let all = (Bound::Unbounded, Bound::Unbounded);
        let visit = &mut |key: &[u8], _: &[u8]| {
            keys.push(key.to_vec());
            true
        };
        storage.scan(all.0, all.1, false, visit).expect("scanned");
        keys
    }

    /// A whole pass: how many records it deleted, and in how many steps.
    fn pass(storage: &MemoryStorage, map: &ClusterMap) -> (usize, usize) {
        let (mut from, mut deleted, mut steps) = (Some(begin()), 0, 0);
        while let Some(at) = from {
            let found = step(storage, map, &at).expect("readable");
            assert!(found.batch.writes.len() <= SWEEP_RECORDS);
            deleted += found.batch.writes.len();
            storage.write(&found.batch).expect("written");
            from = found.next;
            steps += 1;
            assert!(steps < 10_000, "it goes round in circles");
        }
        (deleted, steps)
    }

    #[test]
    fn all_of_the_dropped_and_nothing_else_is_deleted() {
        let (storage, map) = (MemoryStorage::default(), map());
        let others: [&[u8]; 5] = [b"a", b"d", b"d\0\x01", b"h12345678abcdefgh", b"mmap"];
        for key in others {
            let mut batch = Batch::new();
            batch.put(key, *b"kept");
            storage.write(&batch).expect("written");
        }
        for partition in [0, 1, 7, 15, u16::MAX] {
            // 5 and what follows are of a newer map than this one.
            for keyspace in [1, 3, 4, 5, 6, u32::MAX] {
                put(&storage, partition, keyspace, "kept", 3);
            }
        }
        let before = keys(&storage);
        for partition in [0, 2, 7, 15, u16::MAX] {
            for turn in 0..300 {
                put(&storage, partition, 2, &format!("k{turn}"), 10);
            }
        }
        let (deleted, steps) = pass(&storage, &map);
        assert_eq!(deleted, 1_500);
        assert!(steps >= 15, "in batches: {steps}");
        assert_eq!(keys(&storage), before);
        assert_eq!(pass(&storage, &map).0, 0, "a second pass finds nothing");
        // A map that knows of the drop, and one that does not.
        put(&storage, 3, 4, "k", 1);
        assert_eq!(pass(&storage, &map).0, 0);
        assert_eq!(pass(&storage, &change(&map, KeyspaceChange::Drop("d".into()))).0, 6);
    }

    #[test]
    fn a_step_is_bounded_by_bytes_and_by_ranges() {
        let (storage, map) = (MemoryStorage::default(), map());
        for turn in 0..4 {
            put(&storage, 0, 2, &format!("k{turn}"), SWEEP_BYTES - 100);
        }
        let found = step(&storage, &map, &begin()).expect("readable");
        assert_eq!(
            found.batch.writes.len(),
            2,
            "one more than fits, since its size is known when it is read"
        );
        assert_eq!(pass(&storage, &map), (4, 3));
        for partition in 0..300 {
            put(&storage, partition, 1, "alive", 1);
        }
        let (deleted, steps) = pass(&storage, &map);
        assert_eq!((deleted, steps), (0, 300 / SWEEP_RANGES + 1));
    }

    #[test]
    fn it_rests_longer_when_clients_are_served() {
        let took = Duration::from_millis(10);
        assert_eq!(rest(took, false), took);
        assert_eq!(rest(took, true), took * 9);
        assert_eq!(rest(Duration::from_secs(10), true), SWEEP_REST_MAX);
    }
}
