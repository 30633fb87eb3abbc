//! Dots and causal contexts.
//!
//! A dot names one write: `(node, incarnation, birth, counter)`; the first three are the actor. A
//! [`Context`] is an exact set of dots: per actor, all up to a counter, plus single dots beyond it. Exact,
//! because a context that covered a dot which its client never saw would delete that write (G4).
//!
//! A write that a client named with a request id has that as a second name: sent twice, it may have been minted
//! twice, and what replaced one of the two has replaced the write. So a context has the request ids of late writes too.
//!
//! Invariants of a [`Context`]:
//! 1. No single dot is at or below, or directly above, its actor's counter in the vector.
//! 2. No counter is 0: the dots of an actor begin at 1.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::types::ids::{Birth, Incarnation, NodeId, RequestId};
use crate::types::time::WallMs;

/// One line of dots: minted by one node, in one life of its data directory, for one life of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Actor {
    /// The node that mints.
    pub node: NodeId,
    /// The life of its data directory.
    pub incarnation: Incarnation,
    /// The start of this line, unique within node and incarnation.
    pub birth: Birth,
}

/// The name of one write. Never issued twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dot {
    /// Who minted it.
    pub actor: Actor,
    /// From 1 upwards.
    pub counter: u64,
}

/// A set of dots: what a client has seen, or what a version replaced.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Context {
    vector: BTreeMap<Actor, u64>,
    dots: BTreeSet<Dot>,
    /// Request ids of writes in the set, with the time of each: only late ones are of use, the rest is dropped.
    requests: BTreeMap<RequestId, WallMs>,
}

impl Context {
    /// The empty context: covers nothing.
    pub fn new() -> Context {
        Context::default()
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.vector.is_empty() && self.dots.is_empty() && self.requests.is_empty()
    }

    /// Per actor, the counter up to which all its dots are in the set.
    pub fn vector(&self) -> &BTreeMap<Actor, u64> {
        &self.vector
    }

    /// The single dots beyond the vector.
    pub fn dots(&self) -> &BTreeSet<Dot> {
        &self.dots
    }

    /// Whether `dot` is in the set.
    pub fn covers(&self, dot: &Dot) -> bool {
        self.vector.get(&dot.actor).is_some_and(|top| dot.counter <= *top) || self.dots.contains(dot)
    }

    /// The greatest counter of `actor` in the set; 0 if there is none.
    pub fn top(&self, actor: &Actor) -> u64 {
        let in_vector = self.vector.get(actor).copied().unwrap_or(0);
        let beyond = self.dots.iter().filter(|d| d.actor == *actor).map(|d| d.counter).max();
        in_vector.max(beyond.unwrap_or(0))
    }

    /// Adds one dot.
    pub fn insert(&mut self, dot: Dot) {
        if !self.covers(&dot) {
            self.dots.insert(dot);
            self.compact();
        }
    }

    /// Whether a write with this request id is in the set.
    pub fn has_request(&self, request: RequestId) -> bool {
        self.requests.contains_key(&request)
    }

    /// The request ids in the set, with the time of each write.
    pub fn requests(&self) -> &BTreeMap<RequestId, WallMs> {
        &self.requests
    }

    /// Adds the request id of a write of this time.
    pub fn insert_request(&mut self, request: RequestId, at: WallMs) {
        let known = self.requests.entry(request).or_insert(at);
        *known = at.max(*known);
    }

    /// Takes one request id out.
    pub fn forget_request(&mut self, request: RequestId) {
        self.requests.remove(&request);
    }

    /// Keeps the request ids of writes since `since`, at most `most` of them, the latest.
    pub fn keep_late_requests(&mut self, since: WallMs, most: usize) {
        self.requests.retain(|_, at| *at >= since);
        if self.requests.len() > most {
            let mut latest: Vec<_> = self.requests.iter().map(|(id, at)| (*at, *id)).collect();
            latest.sort_unstable_by(|a, b| b.cmp(a));
            self.requests = latest.into_iter().take(most).map(|(at, id)| (id, at)).collect();
        }
    }

    /// Adds all dots of `other`.
    pub fn join(&mut self, other: &Context) {
        for (actor, top) in &other.vector {
            let mine = self.vector.entry(*actor).or_insert(0);
            *mine = (*mine).max(*top);
        }
        self.dots.extend(other.dots.iter().copied());
        self.compact();
        other.requests.iter().for_each(|(id, at)| self.insert_request(*id, *at));
    }

    /// Whether both invariants hold; false for some contexts that a hostile client can encode.
    pub fn is_canonical(&self) -> bool {
        self.vector.values().all(|top| *top > 0)
            && self.dots.iter().all(|d| {
                // Saturating: a hostile vector may hold the greatest number there is.
                d.counter > self.vector.get(&d.actor).copied().unwrap_or(0).saturating_add(1)
            })
    }

    /// Single dots at or below the vector go; those directly above it extend it. In order of counter, so
    /// one pass is enough.
    fn compact(&mut self) {
        let (vector, dots) = (&mut self.vector, &mut self.dots);
        dots.retain(|dot| {
            let top = vector.get(&dot.actor).copied().unwrap_or(0);
            let next = top.saturating_add(1);
            if dot.counter == next {
                vector.insert(dot.actor, dot.counter);
            }
            dot.counter > next
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dot(node: u64, counter: u64) -> Dot {
        let actor = Actor { node: NodeId(node), incarnation: Incarnation(1), birth: Birth(1) };
        Dot { actor, counter }
    }

    #[test]
    fn a_context_is_exact() {
        let mut c = Context::new();
        c.insert(dot(1, 2));
        assert!(c.covers(&dot(1, 2)) && !c.covers(&dot(1, 1)), "a later dot does not cover an earlier");
        c.insert(dot(1, 1));
        assert!(c.covers(&dot(1, 1)));
        assert!(c.dots.is_empty(), "what is contiguous moves into the vector");
        assert_eq!(c.top(&dot(1, 1).actor), 2);
    }

    /// The greatest counters, as a hostile client may send them, overflow nothing.
    #[test]
    fn the_greatest_counter_overflows_nothing() {
        let mut c = Context { vector: [(dot(1, 1).actor, u64::MAX)].into(), ..Context::new() };
        assert!(c.is_canonical());
        c.insert(dot(1, 7));
        assert!(c.dots.is_empty(), "it covers every dot of the actor already");
        let broken = Context { dots: [dot(1, u64::MAX)].into(), ..c.clone() };
        assert!(!broken.is_canonical(), "a dot that the vector covers");
        c.join(&broken);
        assert!(c.is_canonical());
        assert_eq!(c.top(&dot(1, 1).actor), u64::MAX);
        let mut sparse = Context::new();
        sparse.insert(dot(2, u64::MAX));
        assert!(sparse.is_canonical() && !sparse.covers(&dot(2, u64::MAX - 1)));
    }

    /// A counter of 0 breaks invariant 2, in the vector and beyond it.
    #[test]
    fn a_counter_of_0_is_not_canonical() {
        assert!(!Context { vector: [(dot(1, 1).actor, 0)].into(), ..Context::new() }.is_canonical());
        assert!(!Context { dots: [dot(1, 0)].into(), ..Context::new() }.is_canonical());
        assert!(!Context { dots: [dot(1, 1)].into(), ..Context::new() }.is_canonical());
        assert!(Context { dots: [dot(1, 2)].into(), ..Context::new() }.is_canonical());
    }

    #[test]
    fn of_request_ids_the_latest_are_kept() {
        let mut c = Context::new();
        for n in 0..10u64 {
            c.insert_request(RequestId(n.into()), WallMs(100 - n));
        }
        c.insert_request(RequestId(9), WallMs(50));
        assert!(!c.is_empty() && c.requests()[&RequestId(9)] == WallMs(91), "a time never goes back");
        c.keep_late_requests(WallMs(93), 4);
        assert_eq!(c.requests().keys().map(|id| id.0).collect::<Vec<_>>(), [0, 1, 2, 3]);
        c.forget_request(RequestId(0));
        assert!(!c.has_request(RequestId(0)) && c.has_request(RequestId(3)));
    }

    fn any_dots() -> impl Strategy<Value = Vec<Dot>> {
        proptest::collection::vec((1u64..4, 1u64..8).prop_map(|(n, c)| dot(n, c)), 0..20)
    }

    proptest! {
        /// Against the plain set that a context stands for.
        #[test]
        fn join_and_insert_are_those_of_a_set(left in any_dots(), right in any_dots()) {
            let (mut a, mut b) = (Context::new(), Context::new());
            left.iter().for_each(|d| a.insert(*d));
            right.iter().for_each(|d| b.insert(*d));
            a.join(&b);
            prop_assert!(a.is_canonical());
            let all: BTreeSet<Dot> = left.iter().chain(&right).copied().collect();
            for n in 1..4 {
                for c in 1..9 {
                    prop_assert_eq!(a.covers(&dot(n, c)), all.contains(&dot(n, c)));
                }
            }
        }
    }
}
