//! Who is there, as this node sees it.
//!
//! foca knows alive, suspect and down. The view adds: *left* (down, after a farewell), what each process
//! said of itself, and members that foca was made to forget, which stay *down* until they are heard of.
//!
//! Invariants:
//! 1. A peer's state is of its present process, never of an earlier life.
//! 2. Each difference between two views is told by one [`MemberEvent`], in order of node id. (Being forgotten
//!    is not told: it was ordered.)
//! 3. A ghost is not live, and foca does not hold it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Bound;

use foca::State;

use super::digest::NodeState;
use super::identity::Identity;
use crate::types::ids::NodeId;
use crate::types::limits;
use crate::types::time::Mono;

/// How a member fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Liveness {
    /// It answers.
    Alive,
    /// It did not answer someone; it has a moment to speak up. Still counts as live.
    Suspect,
    /// It was silent too long.
    Down,
    /// It said that it leaves.
    Left,
}

impl Liveness {
    /// Whether it counts as reachable: alive or suspect.
    pub fn is_live(self) -> bool {
        matches!(self, Liveness::Alive | Liveness::Suspect)
    }
}

/// A member as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its newest identity.
    pub identity: Identity,
    /// How it fares.
    pub liveness: Liveness,
    /// Since when.
    pub since: Mono,
    /// What this very process last said of itself; nothing of an earlier life.
    pub last_state: Option<NodeState>,
}

/// A member changed: it is new, fares differently, restarted or moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberEvent {
    /// The node.
    pub node: NodeId,
    /// Its identity now. Another nonce than before: it restarted.
    pub identity: Identity,
    /// How it fares now.
    pub liveness: Liveness,
    /// Both before, unless it is new.
    pub before: Option<(Identity, Liveness)>,
}

impl MemberEvent {
    /// Whether a process is live that was not before, so that it has not heard what was said before.
    pub fn is_newcomer(&self) -> bool {
        let known = |(was, fared): (Identity, Liveness)| was.nonce == self.identity.nonce && fared.is_live();
        self.liveness.is_live() && !self.before.is_some_and(known)
    }
}

/// The view.
#[derive(Debug, Default)]
pub struct View {
    peers: BTreeMap<NodeId, Peer>,
    ghosts: BTreeSet<NodeId>,
    forgotten: BTreeSet<NodeId>,
    states: BTreeMap<NodeId, NodeState>,
    last_called: Option<NodeId>,
}

impl View {
    /// The members.
    pub fn peers(&self) -> &BTreeMap<NodeId, Peer> {
        &self.peers
    }

    /// What is known of what nodes said.
    pub fn states(&self) -> impl Iterator<Item = &NodeState> {
        self.states.values()
    }

    /// How many are live.
    pub fn live(&self) -> usize {
        self.peers.values().filter(|p| p.liveness.is_live()).count()
    }

    /// A node said something new.
    pub fn hear(&mut self, state: NodeState) {
        self.states.insert(state.node, state);
    }

    /// Takes what foca holds now; what changed.
    pub fn refresh(&mut self, now: Mono, held: &BTreeMap<NodeId, (Identity, State)>) -> Vec<MemberEvent> {
        self.ghosts.retain(|node| !held.contains_key(node));
        let ghosts = &self.ghosts;
        self.peers.retain(|node, _| held.contains_key(node) || ghosts.contains(node));
        let mut events = Vec::new();
        for (node, (identity, state)) in held {
            let said = self.states.get(node).filter(|s| s.nonce == identity.nonce);
            let liveness = match state {
                State::Alive => Liveness::Alive,
                State::Suspect => Liveness::Suspect,
                State::Down if said.is_some_and(|s| s.leaving) => Liveness::Left,
                State::Down => Liveness::Down,
            };
            let known = self.peers.get(node);
            let before = known.map(|p| (p.identity, p.liveness));
            let is_same = before == Some((*identity, liveness));
            if is_same && known.is_some_and(|p| p.last_state.as_ref() == said) {
                continue;
            }
            let since = known.filter(|p| p.liveness == liveness).map_or(now, |p| p.since);
            let peer = Peer { identity: *identity, liveness, since, last_state: said.cloned() };
            self.peers.insert(*node, peer);
            if !is_same {
                events.push(MemberEvent { node: *node, identity: *identity, liveness, before });
            }
        }
        events
    }

    /// foca was made to forget the dead: they stay in the view until they are heard of.
    pub fn keep_ghosts(&mut self) {
        self.ghosts =
            self.peers.iter().filter(|(_, p)| !p.liveness.is_live()).map(|(node, _)| *node).collect();
    }

    /// Addresses of a few ghosts, in turn: foca does not call them. Who left on purpose is not called.
    pub fn ghosts_to_call(&mut self, count: usize) -> Vec<SocketAddr> {
        let after = self.last_called.take().map_or(Bound::Unbounded, Bound::Excluded);
        let next: Vec<NodeId> = self.ghosts.range((after, Bound::Unbounded)).take(count).copied().collect();
        self.last_called = next.last().copied().filter(|_| next.len() == count);
        let peers = next.iter().filter_map(|node| self.peers.get(node));
        peers.filter(|p| p.liveness == Liveness::Down).map(|p| p.identity.address).collect()
    }

    /// Removes a member that is not live, and lets it not come back as a dead one: others may still talk of it.
    pub fn forget(&mut self, node: NodeId) {
        if self.peers.get(&node).is_some_and(|p| p.liveness.is_live()) {
            return;
        }
        self.ghosts.remove(&node);
        self.states.remove(&node);
        if self.forgotten.len() >= limits::GOSSIP_MEMBERS_MAX {
            self.forgotten.clear();
        }
        self.forgotten.insert(node);
    }

    /// Those of `held` that are dead and were forgotten. Who is live again is no longer forgotten.
    pub fn to_forget(&mut self, held: &BTreeMap<NodeId, (Identity, State)>) -> Vec<Identity> {
        self.forgotten.retain(|node| held.get(node).is_none_or(|(_, state)| *state == State::Down));
        self.forgotten.iter().filter_map(|node| held.get(node)).map(|(identity, _)| *identity).collect()
    }

    /// Panics if an invariant does not hold.
    pub fn check_invariants(&self) {
        for (node, peer) in &self.peers {
            let said = peer.last_state.as_ref();
            assert!(
                said.is_none_or(|s| s.nonce == peer.identity.nonce),
                "1: {node} has a state of another life"
            );
            assert!(!(self.ghosts.contains(node) && peer.liveness.is_live()), "3: the ghost {node} is live");
        }
    }
}
