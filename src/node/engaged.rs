//! Which trees this node is exchanging, and with whom: one exchange of a tree at a time, or two peers would bring it the
//! same records.
//!
//! Of two nodes one asks and the other answers. The answerer knows of an exchange by its questions and by the records that
//! it brings: a peer that asks of another tree, or compares roots, has done with the one before, and so has one that is
//! silent for [`IDLE`]. Who finds a tree taken tries again a little later. Nobody waits while it holds a tree, so nobody
//! waits in a circle.
//!
//! It saves work and proves nothing: two exchanges of one tree at the same time do no harm.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::antientropy::forest::Place;
use crate::types::ids::NodeId;
use crate::types::time::Mono;

/// How long a peer may be silent between two questions of an exchange: it stores what came.
const IDLE: Duration = Duration::from_secs(1);

/// The exchanges under way, by who asks: a node has one at a time.
#[derive(Debug, Default)]
pub struct Engaged {
    all: Mutex<BTreeMap<NodeId, (Place, Mono)>>,
}

impl Engaged {
    fn all(&self) -> MutexGuard<'_, BTreeMap<NodeId, (Place, Mono)>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody asks of a tree. False if somebody else is at it.
    pub fn enter(&self, now: Mono, asker: NodeId, place: Place) -> bool {
        let mut all = self.all();
        let is_taken = |(other, (at, last)): (&NodeId, &(Place, Mono))| {
            *other != asker && *at == place && now < *last + IDLE
        };
        if all.iter().any(is_taken) {
            return false;
        }
        all.insert(asker, (place, now));
        true
    }

    /// The exchange of a tree that somebody asked for goes on.
    pub fn stay(&self, now: Mono, asker: NodeId, place: Place) {
        if let Some((at, last)) = self.all().get_mut(&asker)
            && *at == place
        {
            *last = now;
        }
    }

    /// The exchange that somebody asked for is over.
    pub fn leave(&self, asker: NodeId) {
        self.all().remove(&asker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ids::{KeyspaceId, PartitionId};

    #[test]
    fn a_tree_is_for_one_at_a_time() {
        let engaged = Engaged::default();
        let place = |partition| Place { partition: PartitionId(partition), keyspace: KeyspaceId(1) };
        let at = |ms: u64| Mono(ms * 1_000);
        let enter = |ms, node, partition| engaged.enter(at(ms), NodeId(node), place(partition));
        assert!(enter(0, 1, 7) && enter(0, 2, 8));
        assert!(!enter(100, 2, 7), "taken, and so it keeps what it had");
        assert!(enter(900, 1, 7) && !enter(1_800, 3, 7) && !enter(900, 3, 8));
        assert!(enter(1_800, 1, 9), "goes on to another");
        assert!(enter(1_800, 3, 7));
        engaged.leave(NodeId(1));
        assert!(enter(1_800, 2, 9));
        assert!(enter(2_800, 1, 7), "silent for long");
        // What it brings is as good as a question; of another tree it says nothing, nor where there was none.
        engaged.stay(at(3_700), NodeId(1), place(7));
        engaged.stay(at(3_700), NodeId(2), place(9));
        assert!(!enter(4_000, 2, 7) && !enter(4_600, 2, 7) && enter(4_700, 3, 9));
        engaged.stay(at(4_650), NodeId(1), place(8));
        engaged.stay(at(4_650), NodeId(4), place(8));
        assert!(enter(4_700, 2, 7) && enter(4_700, 5, 8));
    }
}
