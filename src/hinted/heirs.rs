//! What becomes of a hint whose target is no member of the cluster any more: it goes to the homes that its key has now.
//!
//! Which of them are new is not known, nor does it matter: records only merge. Such a hint keeps its age, and whether
//! it stands in for a home.
//!
//! Invariants:
//! 1. A hint is handed on to all its heirs, or stays: one batch deletes it and writes theirs.
//! 2. Heirs have the limits that others have; past them it stays, and is tried again.

use crate::ring::layout::ClusterMap;
use crate::ring::preflist::homes;
use crate::storage::{Batch, schema};
use crate::types::ids::NodeId;
use crate::types::time::WallMs;

use super::queue::{Book, Hint, NoHint, forget};

/// What becomes of a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Nobody wants it: its keyspace was dropped.
    Dropped,
    /// Its keyspace is not known yet.
    Wait,
    /// It goes to these nodes; and into the own records, if this node is a home.
    Heirs {
        /// Others.
        others: Vec<NodeId>,
        /// This node.
        own: bool,
    },
}

/// What a map makes of the hint of a node that it does not name.
pub fn fate(map: &ClusterMap, me: NodeId, storage_key: &[u8]) -> Fate {
    let Some((partition, keyspace)) = schema::split_range(storage_key) else { return Fate::Dropped };
    if map.has_dropped(keyspace) {
        return Fate::Dropped;
    }
    let Some(keyspace) = map.keyspace_by_id(keyspace) else { return Fate::Wait };
    let mut others = homes(map, keyspace, partition);
    let own = others.contains(&me);
    others.retain(|node| *node != me);
    Fate::Heirs { others, own }
}

/// A hint in its heirs' logs, counted and not yet written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandedOn {
    /// Deletes it, and writes theirs.
    pub batch: Batch,
    /// Their bytes: to be struck out if the batch can't be written.
    pub counted: Vec<(NodeId, u64)>,
}

impl Book {
    /// Counts a hint of `from` for each of its heirs, or says why they can't have it.
    pub fn hand_on(
        &mut self,
        now: WallMs,
        from: NodeId,
        hint: &Hint,
        heirs: &[NodeId],
    ) -> Result<HandedOn, NoHint> {
        let mut handed_on = HandedOn { batch: forget(from, hint), counted: Vec::new() };
        for heir in heirs {
            let at = hint.at;
            match self.add_of(now, at, *heir, &hint.storage_key, &hint.record, hint.stands_in) {
                Ok(new) => {
                    handed_on.batch.writes.extend(new.batch.writes);
                    handed_on.counted.push((*heir, new.bytes));
                }
                Err(why) => {
                    handed_on.counted.iter().for_each(|(heir, bytes)| self.strike(*heir, 1, *bytes));
                    return Err(why);
                }
            }
        }
        Ok(handed_on)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::hinted::queue::{Limits, kept_for_key, page};
    use crate::ring::keyspaces::{Edit, KeyspaceChange, Next};
    use crate::ring::layout::{Member, NewKeyspace};
    use crate::ring::partition::Partitions;
    use crate::storage::Storage;
    use crate::storage::memory::MemoryStorage;
    use crate::types::ids::{KeyspaceId, PartitionId};
    use crate::types::key::Key;
    use crate::types::policy::Conflicts;

    const NOW: WallMs = WallMs(1_700_000_000_000);
    const GONE: NodeId = NodeId(9);

    fn map(nodes: u64) -> ClusterMap {
        let member = |id: u64| Member {
            id: NodeId(id),
            name: format!("n{id}"),
            zone: "z".into(),
            weight: 1,
            address: format!("n{id}:7401"),
        };
        let partitions = Partitions::new(16).expect("a power of two");
        ClusterMap::bootstrap("c", partitions, (1..=nodes).map(member).collect()).expect("valid")
    }

    fn changed(map: &ClusterMap, change: KeyspaceChange) -> ClusterMap {
        match Edit::new(change, None).next(map) {
            Ok(Next::Propose(map, _)) => map,
            other => panic!("{other:?}"),
        }
    }

    fn storage_key(partition: u16, keyspace: u32) -> Vec<u8> {
        let key = Key::new(&b"k"[..], &b""[..]).expect("a valid key");
        schema::record_key(PartitionId(partition), KeyspaceId(keyspace), &key)
    }

    #[test]
    fn a_departed_nodes_hints_go_to_the_homes_of_now() {
        let map = map(4);
        let mut own = 0;
        for partition in 0..16 {
            let keyspace = map.keyspace("default").expect("there");
            let homes = homes(&map, keyspace, PartitionId(partition));
            let Fate::Heirs { others, own: mine } = fate(&map, NodeId(1), &storage_key(partition, 1)) else {
                panic!("it has heirs");
            };
            assert_eq!(mine, homes.contains(&NodeId(1)));
            assert_eq!(others.len() + usize::from(mine), homes.len());
            assert!(others.iter().all(|node| homes.contains(node) && *node != NodeId(1)));
            own += usize::from(mine);
        }
        assert!((1..16).contains(&own), "{own} of 16");
        assert_eq!(fate(&map, NodeId(1), &storage_key(3, 2)), Fate::Wait, "not known yet");
        let carts = NewKeyspace::with_defaults("carts", Conflicts::Lww);
        let map = changed(&map, KeyspaceChange::Create(carts));
        assert!(matches!(fate(&map, NodeId(1), &storage_key(3, 2)), Fate::Heirs { .. }));
        let map = changed(&map, KeyspaceChange::Drop("carts".into()));
        assert_eq!(fate(&map, NodeId(1), &storage_key(3, 2)), Fate::Dropped);
        assert_eq!(fate(&map, NodeId(1), b"junk"), Fate::Dropped);
    }

    /// All heirs have it, or none, and whoever looks for what a fallback keeps finds it before and after.
    #[test]
    fn a_hint_is_handed_on_whole_or_stays() {
        let storage = MemoryStorage::default();
        let window = Duration::from_secs(60);
        let limits = Limits { window, target_bytes: 300, total_bytes: 10_000, disk_percent: 10 };
        let mut book = Book::load(&storage, limits).expect("readable");
        let new = book.add(NOW, GONE, b"dkey", b"record", true).expect("kept");
        storage.write(&new.batch).expect("written");
        let pages = |target| page(&storage, target, 0, 10, u64::MAX).expect("readable").hints;
        let hint = pages(GONE).remove(0);
        let later = WallMs(NOW.0 + 30_000);
        // One heir's log is full: nothing is counted for the other.
        while book.add(later, NodeId(3), b"dkey", b"other", true).is_ok() {}
        let before = book.clone();
        assert_eq!(book.hand_on(later, GONE, &hint, &[NodeId(2), NodeId(3)]), Err(NoHint::TargetBytes));
        assert_eq!((book.bytes(), pages(GONE).len()), (before.bytes(), 1));

        let handed_on = book.hand_on(later, GONE, &hint, &[NodeId(2), NodeId(4)]).expect("there is room");
        storage.write(&handed_on.batch).expect("written");
        book.strike(GONE, 1, hint.bytes);
        assert_eq!((pages(GONE), book.accounts()[&GONE].bytes), (vec![], 0));
        for heir in [NodeId(2), NodeId(4)] {
            let theirs = pages(heir);
            assert_eq!((theirs.len(), theirs[0].at, theirs[0].stands_in), (1, NOW, true), "as old as it was");
            assert_eq!(theirs[0].record, hint.record);
            assert_eq!(book.accounts()[&heir].bytes, theirs[0].bytes);
        }
        assert_eq!(kept_for_key(&storage, b"dkey", &|_| false).expect("readable").len(), 2);
    }
}
