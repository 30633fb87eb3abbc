//! When this node and its peers were last known to have equal trees.
//!
//! What is proved is stored now and then, for each peer and keyspace in one value, and only what changed: a proof is of
//! a time that was, so it stays true over a restart. Not over a loss of what was proved equal: a peer that comes with
//! another disk or incarnation is forgotten with all its proofs, and those that this node stored in another incarnation
//! are not read. Half a proof (`exchanged`) is not stored, nor is a value that can't be read missed: the next pass
//! proves anew.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::repairs::{Selection, Shared, shared};
use crate::antientropy::forest::Place;
use crate::ring::layout::ClusterMap;
use crate::storage::{Batch, Storage, StorageError, schema};
use crate::types::ids::{Incarnation, KeyspaceId, NodeId, PartitionId};
use crate::types::time::WallMs;

/// Nothing to prove: there is one replica.
pub const ALONE: WallMs = WallMs(0);
/// Not proved, or the node that would know can't be asked.
pub const UNPROVED: WallMs = WallMs(1);

/// What is known of a tree and a peer.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// The last proof.
    proved: Option<WallMs>,
    /// Since then: an exchange that was whole, and may have missed something by chance.
    exchanged: Option<WallMs>,
}

/// The proofs with a peer of a keyspace, as they are stored. Most trees are proved together with others: so by time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    incarnation: Incarnation,
    proved: BTreeMap<WallMs, BTreeSet<PartitionId>>,
}

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<(NodeId, Place), Known>,
    /// What is not stored as it is.
    changed: BTreeSet<(NodeId, KeyspaceId)>,
}

/// The last proof of each tree with each peer.
#[derive(Debug)]
pub struct Proofs {
    incarnation: Incarnation,
    state: Mutex<State>,
}

fn key_of((peer, keyspace): (NodeId, KeyspaceId)) -> Vec<u8> {
    schema::meta_key(&format!("{}{peer}/{keyspace}", schema::META_PROOFS))
}

fn split_key(key: &[u8]) -> Option<(NodeId, KeyspaceId)> {
    let rest = key.strip_prefix(&schema::meta_key(schema::META_PROOFS)[..])?;
    let (peer, keyspace) = std::str::from_utf8(rest).ok()?.split_once('/')?;
    Some((peer.parse().ok()?, KeyspaceId(keyspace.parse().ok()?)))
}

/// Of a stored value what is true in this incarnation; none if it can't be read.
fn decode(key: &[u8], value: &[u8], incarnation: Incarnation) -> Option<Stored> {
    let stored: Stored = postcard::from_bytes(schema::open(key, value).ok()?).ok()?;
    (stored.incarnation == incarnation).then_some(stored)
}

impl Proofs {
    /// As they are stored. What is of a later time than now is left out: the clock was wrong, then or now.
    pub fn load(
        storage: &dyn Storage,
        incarnation: Incarnation,
        now: WallMs,
    ) -> Result<Proofs, StorageError> {
        let (from, mut state) = (schema::meta_key(schema::META_PROOFS), State::default());
        let to = schema::prefix_end(&from);
        let to = to.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        storage.scan(Bound::Included(&from), to, false, &mut |key, value| {
            let Some((peer, keyspace)) = split_key(key) else { return true };
            let Some(stored) = decode(key, value, incarnation) else {
                // It is written over, or deleted.
                state.changed.insert((peer, keyspace));
                return true;
            };
            for (at, partitions) in stored.proved.into_iter().filter(|(at, _)| *at <= now) {
                let place = |partition| (peer, Place { partition, keyspace });
                let known = Known { proved: Some(at), exchanged: None };
                state.known.extend(partitions.into_iter().map(|partition| (place(partition), known)));
            }
            true
        })?;
        Ok(Proofs { incarnation, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, peer: NodeId, place: Place, change: impl FnOnce(&mut Known)) {
        let mut state = self.state();
        let known = state.known.entry((peer, place)).or_default();
        let before = known.proved;
        change(known);
        if known.proved != before {
            state.changed.insert((peer, place.keyspace));
        }
    }

    /// A peer agrees on a tree, as it was at this time.
    pub fn prove(&self, peer: NodeId, place: Place, at: WallMs) {
        self.change(peer, place, |known| {
            known.proved = known.proved.max(Some(at));
            known.exchanged = None;
        });
    }

    /// An exchange has made a tree equal to a peer's as of this time, unless it missed something by chance. What the one
    /// before had missed it has found: so that one is proved.
    pub fn exchanged(&self, peer: NodeId, place: Place, at: WallMs) {
        self.change(peer, place, |known| {
            known.proved = known.proved.max(known.exchanged);
            known.exchanged = Some(at);
        });
    }

    /// Forgets a peer that may have lost what was proved. Returns what deletes its proofs.
    pub fn forget(&self, peer: NodeId) -> Batch {
        let mut state = self.state();
        let State { known, changed } = &mut *state;
        let of_peer = known.keys().filter(|(node, _)| *node == peer);
        changed.extend(of_peer.map(|(node, place)| (*node, place.keyspace)));
        known.retain(|(node, _), _| *node != peer);
        let mut batch = Batch::new();
        changed.iter().filter(|(node, _)| *node == peer).for_each(|which| batch.delete(key_of(*which)));
        batch
    }

    /// What stores all that has changed, and of what that is; none if nothing has.
    pub fn changes(&self) -> Option<(Batch, BTreeSet<(NodeId, KeyspaceId)>)> {
        let mut state = self.state();
        let changed = std::mem::take(&mut state.changed);
        if changed.is_empty() {
            return None;
        }
        let mut all: BTreeMap<(NodeId, KeyspaceId), Stored> = BTreeMap::new();
        for ((peer, place), known) in &state.known {
            let which = (*peer, place.keyspace);
            if let Some(at) = known.proved.filter(|_| changed.contains(&which)) {
                let none = || Stored { incarnation: self.incarnation, proved: BTreeMap::new() };
                let stored = all.entry(which).or_insert_with(none);
                stored.proved.entry(at).or_default().insert(place.partition);
            }
        }
        let mut batch = Batch::new();
        for which in &changed {
            let key = key_of(*which);
            match all.get(which) {
                Some(stored) => {
                    // A Vec grows as needed, and it has no fallible Serialize.
                    let body = postcard::to_extend(stored, Vec::new()).expect("a Vec takes it");
                    batch.put(key.clone(), schema::seal(&key, &body));
                }
                None => batch.delete(key),
            }
        }
        Some((batch, changed))
    }

    /// What [`Proofs::changes`] gave is not stored.
    pub fn not_stored(&self, changes: BTreeSet<(NodeId, KeyspaceId)>) {
        self.state().changed.extend(changes);
    }

    /// The oldest proof of each partition, of those that this node is to seek: with peers of higher ids. What the map
    /// does not name any more is forgotten.
    pub fn by_partition(&self, map: &ClusterMap, me: NodeId) -> Vec<WallMs> {
        let mut oldest = vec![ALONE; map.layout.owners.len()];
        let mut state = self.state();
        let State { known, changed } = &mut *state;
        let mut wanted = BTreeMap::new();
        for peer in map.layout.members.iter().map(|member| member.id).filter(|id| *id > me) {
            for Shared { place, .. } in shared(map, me, peer, Selection::default()) {
                let last = known.remove(&(peer, place));
                wanted.extend(last.map(|at| ((peer, place), at)));
                if let Some(all) = oldest.get_mut(usize::from(place.partition.0)) {
                    add(all, last.and_then(|last| last.proved).unwrap_or(UNPROVED));
                }
            }
        }
        changed.extend(known.keys().map(|(peer, place)| (*peer, place.keyspace)));
        *known = wanted;
        oldest
    }
}

/// Takes one more proof in: the oldest counts.
pub fn add(all: &mut WallMs, one: WallMs) {
    *all = if *all == ALONE || one == ALONE { one.max(*all) } else { one.min(*all) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::layout::Member;
    use crate::ring::partition::Partitions;
    use crate::storage::memory::MemoryStorage;

    fn loaded(storage: &MemoryStorage, incarnation: u64, now: u64) -> Proofs {
        Proofs::load(storage, Incarnation(incarnation), WallMs(now)).expect("readable")
    }

    fn store(proofs: &Proofs, storage: &MemoryStorage) -> usize {
        let Some((batch, _)) = proofs.changes() else { return 0 };
        storage.write(&batch).expect("written");
        batch.writes.len()
    }

    fn map() -> ClusterMap {
        let member = |id: u64| Member {
            id: NodeId(id),
            name: format!("n{id}"),
            zone: "z".into(),
            weight: 1,
            address: format!("127.0.0.1:{id}"),
        };
        let partitions = Partitions::new(16).expect("a power of two");
        ClusterMap::bootstrap("c", partitions, [1, 2, 3].map(member).to_vec()).expect("a map")
    }

    #[test]
    fn the_oldest_proof_counts_and_what_was_never_proved_is_oldest() {
        let mut all = ALONE;
        for (one, expected) in
            [(ALONE, ALONE), (WallMs(70), WallMs(70)), (ALONE, WallMs(70)), (WallMs(60), WallMs(60))]
        {
            add(&mut all, one);
            assert_eq!(all, expected);
        }
        add(&mut all, UNPROVED);
        assert_eq!(all, UNPROVED);
    }

    #[test]
    fn a_partition_is_proved_when_all_pairs_are() {
        let map = map();
        let proofs = loaded(&MemoryStorage::default(), 1, 1_000);
        let place = Place { partition: PartitionId(5), keyspace: KeyspaceId(map.keyspaces[0].id.0) };
        let of = |me: u64| proofs.by_partition(&map, NodeId(me))[5];
        assert_eq!((of(1), of(2), of(3)), (UNPROVED, UNPROVED, ALONE));
        proofs.prove(NodeId(2), place, WallMs(80));
        assert_eq!(of(1), UNPROVED, "not yet with the third");
        proofs.prove(NodeId(3), place, WallMs(90));
        proofs.prove(NodeId(3), place, WallMs(40));
        assert_eq!(of(1), WallMs(80));
        // By exchanges: each proves the one before.
        for (at, proved) in [(100, 80), (120, 100), (110, 120)] {
            [2, 3].into_iter().for_each(|peer| proofs.exchanged(NodeId(peer), place, WallMs(at)));
            assert_eq!(of(1), WallMs(proved));
        }
        let of_keyspace_gone = Place { keyspace: KeyspaceId(77), ..place };
        proofs.prove(NodeId(3), of_keyspace_gone, WallMs(10));
        assert_eq!((of(1), proofs.state().known.len()), (WallMs(120), 2));
    }

    /// The proofs of node 1, of partition 0 on.
    fn of_first(proofs: &Proofs) -> Vec<u64> {
        proofs.by_partition(&map(), NodeId(1)).iter().take(4).map(|at| at.0).collect()
    }

    #[test]
    fn what_is_proved_survives_a_restart_and_nothing_else_does() {
        let (storage, keyspace) = (MemoryStorage::default(), map().keyspaces[0].id);
        let proofs = loaded(&storage, 7, 1_000);
        assert_eq!(store(&proofs, &storage), 0);
        let prove = |proofs: &Proofs, peer: u64, partition: u16, at: u64| {
            proofs.prove(NodeId(peer), Place { partition: PartitionId(partition), keyspace }, WallMs(at));
        };
        for (partition, at) in [(0, 500), (1, 500), (2, 600), (3, 2_000)] {
            prove(&proofs, 2, partition, at);
            prove(&proofs, 3, partition, at);
        }
        let half = Place { partition: PartitionId(4), keyspace };
        proofs.exchanged(NodeId(2), half, WallMs(600));
        assert_eq!(of_first(&proofs), [500, 500, 600, 2_000]);
        assert_eq!((store(&proofs, &storage), store(&proofs, &storage)), (2, 0), "one value for each peer");
        prove(&proofs, 3, 0, 400);
        assert_eq!(store(&proofs, &storage), 0, "it was proved later");
        prove(&proofs, 3, 0, 700);
        assert_eq!(store(&proofs, &storage), 1);

        // What is of the future is not believed, and half a proof is none.
        let again = loaded(&storage, 7, 1_000);
        assert_eq!(of_first(&again), [500, 500, 600, UNPROVED.0]);
        again.exchanged(NodeId(2), half, WallMs(800));
        assert_eq!(again.state().known[&(NodeId(2), half)].proved, None);
        // Another incarnation may have lost what was proved; what it stores replaces what there was.
        let other = loaded(&storage, 8, 1_000);
        assert_eq!(of_first(&other), [UNPROVED.0; 4]);
        prove(&other, 3, 0, 900);
        assert_eq!(store(&other, &storage), 2);
        assert_eq!(loaded(&storage, 8, 1_000).state().known.len(), 1);
    }

    #[test]
    fn a_peer_that_may_have_lost_what_was_proved_is_forgotten() {
        let (storage, keyspace) = (MemoryStorage::default(), map().keyspaces[0].id);
        let place = Place { partition: PartitionId(0), keyspace };
        let proofs = loaded(&storage, 7, 1_000);
        [2, 3].iter().for_each(|peer| proofs.prove(NodeId(*peer), place, WallMs(500)));
        store(&proofs, &storage);
        storage.write(&proofs.forget(NodeId(3))).expect("written");
        assert_eq!(of_first(&proofs)[0], UNPROVED.0);
        let again = loaded(&storage, 7, 1_000);
        assert_eq!(again.state().known.keys().collect::<Vec<_>>(), [&(NodeId(2), place)]);

        // One that the map does not name any more is deleted with the next change.
        proofs.prove(NodeId(9), place, WallMs(500));
        store(&proofs, &storage);
        of_first(&proofs);
        store(&proofs, &storage);
        assert_eq!(loaded(&storage, 7, 1_000).state().known.len(), 1);
        // A value that can't be read is as none, and goes away.
        let key = key_of((NodeId(2), keyspace));
        let mut batch = Batch::new();
        batch.put(key.clone(), b"junk");
        storage.write(&batch).expect("written");
        let again = loaded(&storage, 7, 1_000);
        assert_eq!(again.state().known.len(), 0);
        assert_eq!(store(&again, &storage), 1);
        assert_eq!(storage.get(&key), Ok(None));
    }

    #[test]
    fn what_was_not_stored_is_stored_later() {
        let proofs = loaded(&MemoryStorage::default(), 7, 1_000);
        let place = Place { partition: PartitionId(0), keyspace: KeyspaceId(1) };
        proofs.prove(NodeId(2), place, WallMs(500));
        let (batch, changed) = proofs.changes().expect("a change");
        assert!(proofs.changes().is_none());
        proofs.not_stored(changed);
        assert_eq!(proofs.changes().map(|(batch, _)| batch), Some(batch));
    }
}
