//! One put (or delete) at its coordinator, which is a home replica, or a fallback when no home can be reached.
//!
//! Rules, each with a script in `scripts/put_*.txt`:
//! 1. A put that can't reach `w` is refused before anything is stored: `applied = NO`.
//! 2. The own copy is durable before anything is sent, and is the first acknowledgement.
//! 3. The answer goes out at `w` acknowledgements, not later.
//! 4. A replica that holds a greater stamp says `Superseded`; before the answer, the coordinator stamps again
//!    above it, stores that and sends it. Acknowledgements of the earlier stamp no longer count.
//! 5. The first `Superseded` of each replica is heeded: if a write was finished there before this put began,
//!    that answer names its stamp or a greater one. What a replica reports after that is concurrent, and counts
//!    as an acknowledgement. So a put stamps at most `n` times. (Two new stamps in all, however many replicas
//!    there are, do for `n = 3`; with five, one replica that keeps receiving older unfinished writes could
//!    use both up. `tests/model/lww.rs` finds that.)
//! 6. A failure once the own copy may be stored is `applied = MAYBE`; if the own store surely failed and
//!    nothing was sent, `NO`.
//! 7. When `w` can't be reached any more the answer does not wait for the deadline.
//! 8. The machine lives until each replica has answered or the deadline is there; then `Finished`, once.
//! 9. A replica that has not acknowledged by then gets a hint, whatever the client was told, if the own copy was
//!    stored, unless a fallback keeps it.
//! 10. A sloppy put has fallbacks. While fewer than `w` homes are left, one stands in for a home that can't be
//!     reached, fails, or is silent for `stand_in_after`: it keeps a hint for that home, and its acknowledgement
//!     counts. A fallback that fails is followed by the next. The answer says `sloppy` if fewer than `w` homes
//!     had acknowledged.
//! 11. A fallback that coordinates stores nothing but a hint for the first home.
//!
//! Invariants: one `Reply`, one `Finished`; no `Send` before `Stored` of the same round.
//! Source: the coordinator of Dynamo (DeCandia et al. 2007), and Riak's `put_fsm`; rule 4 is Quoral's.

use std::time::Duration;

use super::tally::{Tally, Verdict};
use crate::canary::{self, Canary};
use crate::machine::Machine;
use crate::types::error::{Applied, Cause, Failure};
use crate::types::ids::{LayoutVersion, NodeId};
use crate::types::time::Mono;
use crate::version::hlc::Stamp;

/// What a put needs to know at its start.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The coordinator; one of `homes`, or else the first of `fallbacks`.
    pub me: NodeId,
    /// The home replicas, in order, each with whether it looks reachable.
    pub homes: Vec<(NodeId, bool)>,
    /// Those that may stand in, in order, if the put is sloppy: reachable ones only.
    pub fallbacks: Vec<NodeId>,
    /// How long a home may be silent before one stands in for it.
    pub stand_in_after: Duration,
    /// Acknowledgements needed.
    pub w: u8,
    /// When the answer must go out.
    pub deadline: Mono,
    /// The layout version that `homes` comes from.
    pub layout_version: LayoutVersion,
}

/// What a replica said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is durable there.
    Acked,
    /// A greater stamp is there; what was sent was not stored.
    Superseded(Stamp),
    /// It surely was not stored there.
    Refused,
    /// The link broke: unknown.
    Lost,
}

/// What can happen to a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Begin.
    Start,
    /// The own copy of this round is durable.
    Stored,
    /// The own copy was not stored; surely so unless the cause is `InDoubt`.
    StoreFailed(Cause),
    /// A replica answered what was sent in `round`.
    Answered {
        /// The replica.
        from: NodeId,
        /// The round.
        round: u8,
        /// The answer.
        answer: Answer,
    },
    /// The timer of `ArmStandIn` rang.
    StandInDue,
    /// The deadline passed.
    Deadline,
}

/// A finished put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Acknowledgements at the time of the answer.
    pub acks: u32,
    /// The round whose version was acknowledged.
    pub round: u8,
    /// Whether fallbacks counted.
    pub sloppy: bool,
}

/// What a put asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Wake with `Deadline` at this time.
    Arm(Mono),
    /// Wake with `StandInDue` at this time.
    ArmStandIn(Mono),
    /// Stamp and store the own copy, above a stamp if there is one.
    Mint {
        /// The round that this begins.
        round: u8,
        /// A stamp to be above.
        above: Option<Stamp>,
    },
    /// Send the record minted in `round`.
    Send {
        /// The replica.
        to: NodeId,
        /// The round.
        round: u8,
    },
    /// Have a fallback keep the record minted in `round` for a home replica.
    StandIn {
        /// The fallback.
        to: NodeId,
        /// The home.
        home: NodeId,
        /// The round.
        round: u8,
    },
    /// Keep what was minted last for this replica.
    Hint(NodeId),
    /// Answer the client.
    Reply(Result<Done, Failure>),
    /// Nothing more will come.
    Finished,
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Put {
    plan: Plan,
    tally: Tally,
    round: u8,
    /// Replicas whose first `Superseded` has been heeded.
    heeded: Vec<NodeId>,
    /// Fallbacks of this round, each with the home for which it keeps a hint.
    stand_ins: Vec<(NodeId, NodeId)>,
    /// Whether silent homes are taken for away.
    impatient: bool,
    stored: bool,
    ever_stored: bool,
    replied: bool,
    finished: bool,
}

impl Put {
    /// A put that has not begun.
    pub fn new(plan: Plan) -> Put {
        let is_home = plan.homes.iter().any(|(node, _)| *node == plan.me);
        assert!(
            is_home || plan.fallbacks.first() == Some(&plan.me),
            "the coordinator is a home, or stands in"
        );
        let homes = plan.homes.iter().map(|(node, _)| *node);
        let members = homes.chain(plan.fallbacks.iter().copied()).collect();
        let tally = Tally::new(members, plan.w);
        Put {
            plan,
            tally,
            round: 0,
            heeded: Vec::new(),
            stand_ins: Vec::new(),
            impatient: false,
            stored: false,
            ever_stored: false,
            replied: false,
            finished: false,
        }
    }

    fn reachable(&self) -> impl Iterator<Item = NodeId> {
        let me = self.plan.me;
        self.plan.homes.iter().filter(move |(node, alive)| *alive || *node == me).map(|(node, _)| *node)
    }

    fn failure(&self, cause: Cause, applied: Applied) -> Failure {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let applied = if canary::sings(Canary::FailureSaidNo) { Applied::No } else { applied };
        Failure {
            cause,
            applied,
            required: self.plan.w.into(),
            received: count(self.tally.acks()),
            alive: count(self.reachable().count() + self.plan.fallbacks.len()),
            layout_version: self.plan.layout_version,
            silent: self.plan.homes.iter().map(|h| h.0).filter(|n| !self.tally.has_acked(*n)).collect(),
        }
    }

    fn reply(&mut self, result: Result<Done, Failure>, effects: &mut Vec<Effect>) {
        if !self.replied {
            self.replied = true;
            effects.push(Effect::Reply(result));
        }
    }

    fn finish(&mut self, effects: &mut Vec<Effect>) {
        if !self.finished {
            self.finished = true;
            let kept = |home: &NodeId| {
                self.stand_ins.iter().any(|(node, for_home)| for_home == home && self.tally.has_acked(*node))
            };
            let missed =
                self.plan.homes.iter().map(|h| h.0).filter(|n| !self.tally.has_acked(*n) && !kept(n));
            if self.ever_stored {
                effects.extend(missed.filter(|n| *n != self.plan.me).map(Effect::Hint));
            }
            effects.push(Effect::Finished);
        }
    }

    fn unreachable(&self) -> Vec<NodeId> {
        let reachable: Vec<NodeId> = self.reachable().collect();
        self.plan.homes.iter().map(|h| h.0).filter(|n| !reachable.contains(n)).collect()
    }

    /// Rule 10: fallbacks for homes that failed, or are silent for too long, until `w` can be reached.
    fn stand_in(&mut self, effects: &mut Vec<Effect>) {
        let tally = &self.tally;
        let may_ack = |node: NodeId| tally.has_acked(node) || !tally.has_answered(node);
        let counts = |home: NodeId| tally.has_acked(home) || (!self.impatient && !tally.has_answered(home));
        let homes = self.plan.homes.iter().filter(|(home, _)| counts(*home)).count();
        let standing = self.stand_ins.iter().filter(|(node, _)| may_ack(*node)).count();
        let missing = usize::from(self.plan.w).saturating_sub(homes + standing);
        let is_kept =
            |home: NodeId| self.stand_ins.iter().any(|(node, kept)| *kept == home && may_ack(*node));
        let away = self.plan.homes.iter().map(|h| h.0).filter(|home| !counts(*home) && !is_kept(*home));
        let used = |node: &NodeId| self.stand_ins.iter().any(|(stand_in, _)| stand_in == node);
        let free = self.plan.fallbacks.iter().copied().filter(|node| !used(node));
        let new: Vec<(NodeId, NodeId)> =
            free.zip(away).take(if self.replied { 0 } else { missing }).collect();
        for (to, home) in new {
            self.stand_ins.push((to, home));
            effects.push(Effect::StandIn { to, home, round: self.round });
        }
    }

    fn start(&mut self, effects: &mut Vec<Effect>) {
        self.unreachable().into_iter().for_each(|node| self.tally.fail(node));
        if self.tally.verdict() == Verdict::Impossible {
            let failure = self.failure(Cause::Unavailable, Applied::No);
            self.reply(Err(failure), effects);
            self.finish(effects);
            return;
        }
        if !canary::sings(Canary::DeadlineIgnored) {
            effects.push(Effect::Arm(self.plan.deadline));
        }
        effects.push(Effect::Mint { round: 0, above: None });
    }

    fn stored(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        self.stored = true;
        self.ever_stored = true;
        self.tally.ack(self.plan.me);
        let round = self.round;
        for to in self.reachable().filter(|n| *n != self.plan.me).collect::<Vec<_>>() {
            effects.push(Effect::Send { to, round });
        }
        if self.plan.fallbacks.first() == Some(&self.plan.me) {
            self.stand_ins.extend(self.plan.homes.first().map(|(home, _)| (self.plan.me, *home)));
        }
        self.judge(effects);
        self.stand_in(effects);
        if !self.plan.fallbacks.is_empty() && !self.replied {
            effects.push(Effect::ArmStandIn(now + self.plan.stand_in_after));
        }
    }

    fn store_failed(&mut self, cause: Cause, effects: &mut Vec<Effect>) {
        let in_doubt = self.ever_stored || matches!(cause, Cause::InDoubt(_));
        let applied = if in_doubt { Applied::Maybe } else { Applied::No };
        let failure = self.failure(cause, applied);
        self.reply(Err(failure), effects);
        self.finish(effects);
    }

    fn answered(&mut self, from: NodeId, round: u8, answer: Answer, effects: &mut Vec<Effect>) {
        if round != self.round || !self.stored {
            return;
        }
        match answer {
            Answer::Superseded(above) if !self.replied && !self.heeded.contains(&from) => {
                self.heeded.push(from);
                self.round += 1;
                self.stored = false;
                self.tally.reset();
                self.stand_ins.clear();
                self.unreachable().into_iter().for_each(|node| self.tally.fail(node));
                effects.push(Effect::Mint { round: self.round, above: Some(above) });
                return;
            }
            Answer::Acked | Answer::Superseded(_) => self.tally.ack(from),
            Answer::Refused | Answer::Lost => {
                self.tally.fail(from);
                self.stand_in(effects);
            }
        }
        self.judge(effects);
    }

    fn judge(&mut self, effects: &mut Vec<Effect>) {
        match self.tally.verdict() {
            Verdict::Pending => {}
            Verdict::Met => {
                let acks = u32::try_from(self.tally.acks()).unwrap_or(u32::MAX);
                let homes = self.plan.homes.iter().filter(|(node, _)| self.tally.has_acked(*node)).count();
                let done = Done { acks, round: self.round, sloppy: homes < usize::from(self.plan.w) };
                self.reply(Ok(done), effects);
            }
            Verdict::Impossible => {
                let failure = self.failure(Cause::TooFewAcks, Applied::Maybe);
                self.reply(Err(failure), effects);
            }
        }
        let homes = self.plan.homes.iter().map(|(node, _)| node);
        let mut asked = homes.chain(self.stand_ins.iter().map(|(node, _)| node));
        if self.replied && asked.all(|node| self.tally.has_answered(*node)) {
            self.finish(effects);
        }
    }
}

impl Machine for Put {
    type Event = Event;
    type Effect = Effect;

    fn step(&mut self, now: Mono, event: Event, effects: &mut Vec<Effect>) {
        if self.finished {
            return;
        }
        match event {
            Event::Start => self.start(effects),
            Event::Stored => self.stored(now, effects),
            Event::StoreFailed(cause) => self.store_failed(cause, effects),
            Event::Answered { from, round, answer } => self.answered(from, round, answer, effects),
            Event::StandInDue => {
                self.impatient = true;
                if self.stored {
                    self.stand_in(effects);
                }
            }
            Event::Deadline => {
                // The mint may still be waiting for the commit thread, so even without `Stored`: maybe.
                let failure = self.failure(Cause::TooFewAcks, Applied::Maybe);
                self.reply(Err(failure), effects);
                self.finish(effects);
            }
        }
    }

    fn check_invariants(&self) {
        self.tally.check_invariants();
        assert!(
            self.heeded.len() == usize::from(self.round) && self.heeded.len() <= self.plan.homes.len(),
            "one new stamp for each other replica at most"
        );
        assert!(!self.stored || self.ever_stored);
        assert!(!self.finished || self.replied, "finished without an answer");
    }
}
