//! Who speaks: one process of one node, as gossip names it.
//!
//! Why this way: foca keeps one member for each *address key* ([`foca::Identity::Addr`]) and lets the
//! identities that share it fight. The key is the node id, not the socket address, so a node that restarts
//! or moves to another host is the same member with a newer identity, and a host that is given to another
//! node is another member. The price: a process that knows only socket addresses (its seeds) can't name
//! them in foca's words, which is why [`super::packet`] has `Hello` and `Welcome`.
//!
//! Invariants:
//! 1. [`foca::Identity::win_addr_conflict`] is a strict total order: of two identities of one node exactly
//!    one wins, wherever they meet.
//! 2. A renewed identity wins over the one that it renews.
//! 3. The nonce never changes within a process; generation and bump only grow.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::types::ids::{NodeId, Nonce};

/// One process of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// Its peer port (UDP for gossip, TCP for the rest), as others reach it.
    pub address: SocketAddr,
    /// This start of the process.
    pub nonce: Nonce,
    /// When the process started, in milliseconds, or later: a process that finds an older life of its node
    /// ahead of it (a clock was set back) goes above that. The later one wins.
    pub generation: u64,
    /// Times that the process had to take a new identity because the cluster held it for dead.
    pub bump: u32,
}

impl Identity {
    /// A process that started at `generation` (wall-clock milliseconds).
    pub fn new(node: NodeId, address: SocketAddr, nonce: Nonce, generation: u64) -> Identity {
        Identity { node, address, nonce, generation, bump: 0 }
    }

    /// Whether another process could be reached there at all.
    pub fn is_sane(&self) -> bool {
        let ip = self.address.ip();
        self.address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
    }

    /// Whether `other` is another process of the same node.
    pub fn is_rival(&self, other: &Identity) -> bool {
        self.node == other.node && self.nonce != other.nonce
    }

    /// This process under an identity that wins over `rival`.
    pub fn above(&self, rival: &Identity) -> Identity {
        let generation = self.generation.max(rival.generation).saturating_add(1);
        Identity { generation, bump: 0, ..*self }
    }

    fn rank(&self) -> (u64, u32, Nonce, SocketAddr) {
        (self.generation, self.bump, self.nonce, self.address)
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Identity> {
        Some(Identity { bump: self.bump.checked_add(1)?, ..*self })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Identity) -> bool {
        self.rank() > adversary.rank()
    }
}

#[cfg(test)]
mod tests {
    use foca::Identity as _;

    use super::*;

    fn identity(nonce: u64, generation: u64, bump: u32) -> Identity {
        let address = SocketAddr::from(([10, 0, 0, 1], 7401));
        Identity { bump, ..Identity::new(NodeId(1), address, Nonce(nonce), generation) }
    }

    #[test]
    fn of_two_identities_exactly_one_wins() {
        let all: Vec<Identity> = (0..27).map(|i| identity(i % 3, i / 3 % 3, (i / 9) as u32)).collect();
        for a in &all {
            for b in &all {
                let wins = usize::from(a.win_addr_conflict(b)) + usize::from(b.win_addr_conflict(a));
                assert_eq!(wins, usize::from(a != b), "{a:?} against {b:?}");
            }
        }
    }

    #[test]
    fn a_renewed_and_a_raised_identity_win() {
        let old = identity(9, 5, 3);
        assert!(old.renew().expect("not at the end").win_addr_conflict(&old));
        assert_eq!(identity(9, 5, u32::MAX).renew(), None);
        let restarted_with_clock_set_back = identity(1, 2, 0);
        assert!(old.win_addr_conflict(&restarted_with_clock_set_back));
        let raised = restarted_with_clock_set_back.above(&old);
        assert!(raised.win_addr_conflict(&old) && raised.nonce == Nonce(1));
    }

    #[test]
    fn unreachable_addresses_are_not_sane() {
        assert!(identity(1, 1, 0).is_sane());
        for bad in ["0.0.0.0:7401", "[::]:7401", "10.0.0.1:0", "224.0.0.1:7401"] {
            let address = bad.parse().expect("an address");
            assert!(!Identity { address, ..identity(1, 1, 0) }.is_sane(), "{bad}");
        }
    }
}
