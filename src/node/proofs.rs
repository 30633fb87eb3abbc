//! When this node and its peers were last known to have equal trees.
//!
//! In memory: a restart forgets it, the next pass proves it anew.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::repairs::{Selection, Shared, shared};
use crate::antientropy::forest::Place;
use crate::ring::layout::ClusterMap;
use crate::types::ids::NodeId;
use crate::types::time::WallMs;

/// Nothing to prove: there is one replica.
pub const ALONE: WallMs = WallMs(0);
/// Not proved since a node was started, or that node can't be asked.
pub const UNPROVED: WallMs = WallMs(1);

/// What is known of a tree and a peer.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// The last proof.
    proved: Option<WallMs>,
    /// Since then: an exchange that was whole, and may have missed something by chance.
    exchanged: Option<WallMs>,
}

/// The last proof of each tree with each peer.
#[derive(Debug, Default)]
pub struct Proofs {
    known: Mutex<BTreeMap<(NodeId, Place), Known>>,
}

impl Proofs {
    /// A peer agrees on a tree, as it was at this time.
    pub fn prove(&self, peer: NodeId, place: Place, at: WallMs) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.entry((peer, place)).or_default();
        known.proved = known.proved.max(Some(at));
        known.exchanged = None;
    }

    /// An exchange has made a tree equal to a peer's as of this time, unless it missed something by chance. What the one
    /// before had missed it has found: so that one is proved.
    pub fn exchanged(&self, peer: NodeId, place: Place, at: WallMs) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.entry((peer, place)).or_default();
        known.proved = known.proved.max(known.exchanged);
        known.exchanged = Some(at);
    }

    /// The oldest proof of each partition, of those that this node is to seek: with peers of higher ids. What the map
    /// does not name any more is forgotten.
    pub fn by_partition(&self, map: &ClusterMap, me: NodeId) -> Vec<WallMs> {
        let mut oldest = vec![ALONE; map.layout.owners.len()];
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = BTreeMap::new();
        for peer in map.layout.members.iter().map(|member| member.id).filter(|id| *id > me) {
            for Shared { place, .. } in shared(map, me, peer, Selection::default()) {
                let last = known.get(&(peer, place)).copied();
                wanted.extend(last.map(|at| ((peer, place), at)));
                if let Some(all) = oldest.get_mut(usize::from(place.partition.0)) {
                    add(all, last.and_then(|last| last.proved).unwrap_or(UNPROVED));
                }
            }
        }
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
    use crate::types::ids::{KeyspaceId, PartitionId};

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
        let member = |id: u64| Member {
            id: NodeId(id),
            name: format!("n{id}"),
            zone: "z".into(),
            weight: 1,
            address: format!("127.0.0.1:{id}"),
        };
        let partitions = Partitions::new(16).expect("a power of two");
        let map = ClusterMap::bootstrap("c", partitions, [1, 2, 3].map(member).to_vec()).expect("a map");
        let proofs = Proofs::default();
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
        assert_eq!((of(1), proofs.known.lock().expect("alone").len()), (WallMs(120), 2));
    }
}
