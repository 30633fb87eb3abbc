//! The healing of one place whose record was set aside (`replica::quarantine`).
//!
//! Rules, each with a script in `scripts/heal_*.txt`:
//! 1. Every other home replica is asked what it holds: with fewer, one that has alone what this place had acknowledged
//!    beside it could be missed, since each request chooses its own `r` and `w`.
//! 2. A version, nothing, and "damaged here, too" are answers. Of one that is damaged there is nothing more to be had
//!    than what has come to it since.
//! 3. When all have answered, and any of them has a version, the place is restored from all of them.
//! 4. One that does not answer is waited for: the place stays as it is until another attempt.
//! 5. If none has a version there is nothing to restore it from: it stays damaged, rather than to say "not found".

use std::collections::BTreeSet;

use crate::machine::Machine;
use crate::types::ids::NodeId;
use crate::types::time::Mono;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Begin.
    Start,
    /// A node answered; whether it has a version.
    Answered(NodeId, bool),
    /// A node did not answer, or refused.
    Failed(NodeId),
}

/// What it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask a node what it holds.
    Ask(NodeId),
    /// Merge all that was answered into the place. It is over.
    Restore,
    /// It is over: another attempt may find these.
    WaitFor(BTreeSet<NodeId>),
    /// It is over: no other replica has a version.
    NoVersion,
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Heal {
    others: BTreeSet<NodeId>,
    answered: BTreeSet<NodeId>,
    failed: BTreeSet<NodeId>,
    /// Whether there is a version to restore it from.
    has_version: bool,
    over: bool,
}

impl Heal {
    /// For a place with these other home replicas.
    pub fn new(others: impl IntoIterator<Item = NodeId>) -> Heal {
        Heal {
            others: others.into_iter().collect(),
            answered: BTreeSet::new(),
            failed: BTreeSet::new(),
            has_version: false,
            over: false,
        }
    }

    fn finish(&mut self, effects: &mut Vec<Effect>) {
        if self.answered.len() + self.failed.len() < self.others.len() {
            return;
        }
        self.over = true;
        effects.push(match (self.failed.is_empty(), self.has_version) {
            (false, _) => Effect::WaitFor(self.failed.clone()),
            (true, true) => Effect::Restore,
            (true, false) => Effect::NoVersion,
        });
    }
}

impl Machine for Heal {
    type Event = Event;
    type Effect = Effect;

    fn step(&mut self, _: Mono, event: Event, effects: &mut Vec<Effect>) {
        let (Event::Answered(node, _) | Event::Failed(node)) = event else {
            effects.extend(self.others.iter().copied().map(Effect::Ask));
            return self.finish(effects);
        };
        let is_news = !self.answered.contains(&node) && !self.failed.contains(&node);
        if self.over || !is_news || !self.others.contains(&node) {
            return;
        }
        match event {
            Event::Answered(_, has_version) => {
                self.answered.insert(node);
                self.has_version |= has_version;
            }
            _ => drop(self.failed.insert(node)),
        }
        self.finish(effects);
    }

    fn check_invariants(&self) {
        assert!(self.answered.is_disjoint(&self.failed), "a node has answered and failed");
        assert!(self.answered.is_subset(&self.others) && self.failed.is_subset(&self.others));
    }
}
