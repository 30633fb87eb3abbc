//! One read at its coordinator: a get of a key, or a page of a scan.
//!
//! Rules, each with a script in `scripts/read_*.txt`:
//! 1. With fewer than `r` reachable replicas the read fails at once.
//! 2. Exactly `r` replicas are asked at first, in the order given; one that fails is replaced at once.
//! 3. One that is silent for `hedge_after` gets a stand-in, while there are any.
//! 4. "Not found" is an answer like any other, and never outvotes a version (F18).
//! 5. If the answers differ, the merged version is stored on the stale replicas, and the reply waits until as
//!    many hold it as meet every later read of `r` or of a majority (`n − r + 1`, and at least half of `n`, as
//!    far as they were asked): no later read goes back (G3).
//! 6. A write-back that fails is replaced by asking another replica, if there is one.
//! 7. An answer that comes after the reply and is stale, or newer, is repaired in the background.
//! 8. The machine lives until each replica asked has answered or the deadline is there; then `Finished`.
//! 9. A read of a keyspace that takes sloppy writes has fallbacks behind the homes among its candidates. They answer,
//!    with the hints that they keep, for homes that fail, not for those that are slow. What they lack is not stored there, and once one has answered the reply waits for
//!    no write-back: until the hints are home there is no quorum to speak of.
//! 10. With the floor of a client's session, an answer that is behind it is no answer: the next replica is asked, and if
//!     none is left the read fails.
//! 11. A plan may ask for more holders: so a write that is sent again is brought to its `w`.
//!
//! Invariants: one `Reply`, one `Finished`; a version that is replied is held by so many replicas at
//! that moment.

use std::collections::{BTreeMap, BTreeSet};

use crate::canary::{self, Canary};
use crate::machine::Machine;
use crate::types::error::{Applied, Cause, Failure};
use crate::types::ids::{LayoutVersion, NodeId};
use crate::types::time::Mono;

/// What replicas answer a read with, and how answers become one.
pub trait Readable: Clone + PartialEq + std::fmt::Debug {
    /// What is stored on a replica that is stale.
    type Repair: Clone + PartialEq + std::fmt::Debug + Send;

    /// The merge of all answers; `None` if they can't be merged (one is damaged).
    fn merge(answers: &[&Self]) -> Option<Self>;

    /// What a client's session has seen of it.
    type Floor: Clone + std::fmt::Debug + Send;

    /// Whether it holds what a session has seen, or what replaced that.
    fn reaches(&self, floor: &Self::Floor) -> bool;

    /// What a replica that gave `answer` lacks of the merged answer `self`; `None` if nothing.
    fn missing(&self, answer: &Self) -> Option<Self::Repair>;
}

/// What a read needs to know at its start.
#[derive(Debug, Clone)]
pub struct Plan<F> {
    /// Reachable home replicas, the ones to ask first in front; then fallbacks, if the read is sloppy.
    pub candidates: Vec<NodeId>,
    /// All home replicas, reachable or not.
    pub homes: Vec<NodeId>,
    /// Answers needed.
    pub r: u8,
    /// Replicas that must hold what is replied, if more than the rule asks; at most `r`.
    pub holders: u8,
    /// What the client's session has seen: less than that is no answer.
    pub floor: Option<F>,
    /// When the answer must go out.
    pub deadline: Mono,
    /// How long an asked replica may be silent before another is asked too.
    pub hedge_after: std::time::Duration,
    /// The layout version that `homes` comes from.
    pub layout_version: LayoutVersion,
}

/// What can happen to a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<A> {
    /// Begin.
    Start,
    /// A replica answered.
    Answered(NodeId, A),
    /// A replica refused, its record is damaged, or its link broke.
    Failed(NodeId),
    /// A replica has stored all that the `Repair` of this number sent it.
    Repaired(NodeId, u32),
    /// It has not, and will not.
    RepairFailed(NodeId, u32),
    /// The hedge timer rang.
    HedgeDue,
    /// The deadline passed.
    Deadline,
}

/// A finished read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done<A> {
    /// The merged answer.
    pub answer: A,
    /// How many replicas answered.
    pub replies: u32,
    /// How many are known to hold it.
    pub holders: u32,
    /// Whether fallbacks answered.
    pub sloppy: bool,
    /// Whether the answers differed.
    pub repaired: bool,
}

/// What a read asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<A: Readable> {
    /// Wake with `Deadline` at this time.
    ArmDeadline(Mono),
    /// Wake with `HedgeDue` at this time.
    ArmHedge(Mono),
    /// Ask a replica.
    Fetch(NodeId),
    /// Store on a stale replica what it lacks. The number tells the repairs of one merged answer from those
    /// of an earlier one, whose acknowledgement proves too little.
    Repair(NodeId, u32, A::Repair),
    /// Answer the client.
    Reply(Result<Done<A>, Failure>),
    /// Nothing more will come.
    Finished,
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Read<A: Readable> {
    plan: Plan<A::Floor>,
    asked: Vec<NodeId>,
    answers: BTreeMap<NodeId, A>,
    failed: BTreeSet<NodeId>,
    /// The merged answer so far, and who is known to hold it.
    merged: Option<A>,
    holders: BTreeSet<NodeId>,
    repairing: BTreeSet<NodeId>,
    generation: u32,
    repair_failed: BTreeSet<NodeId>,
    differed: bool,
    replied: bool,
    finished: bool,
}

impl<A: Readable> Read<A> {
    /// A read that has not begun.
    pub fn new(plan: Plan<A::Floor>) -> Read<A> {
        assert!(usize::from(plan.r) <= plan.homes.len(), "a quorum larger than its set");
        Read {
            plan,
            asked: Vec::new(),
            answers: BTreeMap::new(),
            failed: BTreeSet::new(),
            merged: None,
            holders: BTreeSet::new(),
            repairing: BTreeSet::new(),
            generation: 0,
            repair_failed: BTreeSet::new(),
            differed: false,
            replied: false,
            finished: false,
        }
    }

    fn failure(&self, cause: Cause) -> Failure {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Failure {
            cause,
            applied: Applied::No,
            required: self.plan.r.into(),
            received: count(self.answers.len()),
            alive: count(self.plan.candidates.len()),
            layout_version: self.plan.layout_version,
            silent: self.plan.homes.iter().copied().filter(|n| !self.answers.contains_key(n)).collect(),
        }
    }

    fn reply(&mut self, result: Result<Done<A>, Failure>, effects: &mut Vec<Effect<A>>) {
        if !self.replied {
            self.replied = true;
            effects.push(Effect::Reply(result));
        }
    }

    fn fail(&mut self, cause: Cause, effects: &mut Vec<Effect<A>>) {
        let failure = self.failure(cause);
        self.reply(Err(failure), effects);
        self.finished = true;
        effects.push(Effect::Finished);
    }

    /// Asks the next replica that was not asked. False if there is none.
    fn ask_next(&mut self, effects: &mut Vec<Effect<A>>) -> bool {
        let Some(next) = self.plan.candidates.iter().copied().find(|n| !self.asked.contains(n)) else {
            return false;
        };
        self.asked.push(next);
        effects.push(Effect::Fetch(next));
        true
    }

    fn has_unasked_home(&self) -> bool {
        let unasked = |node: &&NodeId| !self.asked.contains(node) && self.is_home(**node);
        self.plan.candidates.iter().any(|node| unasked(&node))
    }

    fn outstanding(&self) -> usize {
        self.asked.iter().filter(|n| !self.answers.contains_key(n) && !self.failed.contains(n)).count()
    }

    fn is_home(&self, node: NodeId) -> bool {
        self.plan.homes.contains(&node)
    }

    fn is_sloppy(&self) -> bool {
        self.answers.keys().any(|node| !self.is_home(*node))
    }

    /// How many replicas must hold the merged answer before it may be replied: enough to meet every later
    /// read of `r` replicas, and of a bare majority too, since each request chooses its own `r`.
    fn holders_needed(&self) -> usize {
        if self.is_sloppy() {
            return 0;
        }
        let (n, r) = (self.plan.homes.len(), usize::from(self.plan.r));
        (n - r + 1).max(n - n / 2).max(self.plan.holders.into()).min(r)
    }

    /// Merges what has come, and sends what each stale replica lacks.
    fn merge(&mut self, effects: &mut Vec<Effect<A>>) -> bool {
        let answers: Vec<&A> = self.answers.values().collect();
        let Some(merged) = A::merge(&answers) else { return false };
        if self.merged.as_ref() != Some(&merged) {
            self.generation += 1;
            self.holders.clear();
            self.repairing.clear();
        }
        for (node, answer) in &self.answers {
            if self.holders.contains(node)
                || self.repairing.contains(node)
                || self.repair_failed.contains(node)
            {
                continue;
            }
            match merged.missing(answer) {
                None => drop(self.holders.insert(*node)),
                Some(_) if !self.plan.homes.contains(node) => {}
                Some(repair) if canary::sings(Canary::WriteBackOff) => {
                    self.holders.insert(*node);
                    effects.push(Effect::Repair(*node, self.generation, repair));
                }
                Some(repair) => {
                    self.differed = true;
                    self.repairing.insert(*node);
                    effects.push(Effect::Repair(*node, self.generation, repair));
                }
            }
        }
        self.merged = Some(merged);
        true
    }

    /// Does what the state calls for. Called after each event that may change it.
    fn advance(&mut self, effects: &mut Vec<Effect<A>>) {
        let r = usize::from(self.plan.r);
        while self.answers.len() + self.outstanding() < r {
            if !self.ask_next(effects) {
                if !self.replied {
                    let cause = if self.asked.len() < r { Cause::Unavailable } else { Cause::TooFewAcks };
                    self.fail(cause, effects);
                }
                return;
            }
        }
        if self.answers.len() >= r {
            if !self.merge(effects) {
                return self
                    .fail(Cause::Storage("replicas hold records that can't be merged".into()), effects);
            }
            self.reply_or_widen(effects);
        }
        let answered_all = self.outstanding() == 0 && self.repairing.is_empty();
        if self.replied && answered_all && !self.finished {
            self.finished = true;
            effects.push(Effect::Finished);
        }
    }

    fn reply_or_widen(&mut self, effects: &mut Vec<Effect<A>>) {
        if self.replied {
            return;
        }
        let is_behind = |merged: &A| self.plan.floor.as_ref().is_some_and(|floor| !merged.reaches(floor));
        if self.merged.as_ref().is_some_and(is_behind) {
            if self.outstanding() == 0 && !self.ask_next(effects) {
                self.fail(Cause::BehindSession, effects);
            }
            return;
        }
        if self.holders.len() >= self.holders_needed() {
            let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let (replies, holders) = (count(self.answers.len()), count(self.holders.len()));
            let answer = self.merged.clone().expect("merge() has just set it");
            self.reply(
                Ok(Done { answer, replies, holders, sloppy: self.is_sloppy(), repaired: self.differed }),
                effects,
            );
            return;
        }
        while self.holders.len() + self.repairing.len() + self.outstanding() < self.holders_needed() {
            if !self.ask_next(effects) {
                return self.fail(Cause::TooFewAcks, effects);
            }
        }
    }
}

impl<A: Readable> Machine for Read<A> {
    type Event = Event<A>;
    type Effect = Effect<A>;

    fn step(&mut self, now: Mono, event: Event<A>, effects: &mut Vec<Effect<A>>) {
        if self.finished {
            return;
        }
        match event {
            Event::Start => {
                if self.plan.candidates.len() < usize::from(self.plan.r) {
                    return self.fail(Cause::Unavailable, effects);
                }
                if !canary::sings(Canary::DeadlineIgnored) {
                    effects.push(Effect::ArmDeadline(self.plan.deadline));
                }
                self.advance(effects);
                if self.has_unasked_home() {
                    effects.push(Effect::ArmHedge(now + self.plan.hedge_after));
                }
            }
            Event::Answered(from, answer) => {
                if !self.asked.contains(&from) || self.answers.contains_key(&from) {
                    return;
                }
                self.failed.remove(&from);
                self.answers.insert(from, answer);
                self.advance(effects);
            }
            Event::Failed(from) => {
                if self.asked.contains(&from) && !self.answers.contains_key(&from) {
                    self.failed.insert(from);
                    self.advance(effects);
                }
            }
            Event::Repaired(from, generation) => {
                if generation == self.generation && self.repairing.remove(&from) {
                    self.holders.insert(from);
                    self.advance(effects);
                }
            }
            Event::RepairFailed(from, generation) => {
                if generation == self.generation && self.repairing.remove(&from) {
                    self.repair_failed.insert(from);
                    self.advance(effects);
                }
            }
            Event::HedgeDue => {
                // A fallback knows of what it keeps only, so it is asked when homes fail, not when they are slow.
                if !self.replied
                    && self.has_unasked_home()
                    && self.ask_next(effects)
                    && self.has_unasked_home()
                {
                    effects.push(Effect::ArmHedge(now + self.plan.hedge_after));
                }
            }
            Event::Deadline => self.fail(Cause::TooFewAcks, effects),
        }
    }

    fn check_invariants(&self) {
        assert!(self.answers.keys().all(|n| self.asked.contains(n)), "an answer that was not asked for");
        assert!(self.holders.is_disjoint(&self.repairing));
        assert!(self.holders.iter().all(|n| self.answers.contains_key(n)));
        assert!(!self.finished || self.replied, "finished without an answer");
        let distinct: BTreeSet<_> = self.asked.iter().collect();
        assert_eq!(distinct.len(), self.asked.len(), "asked twice");
    }
}
