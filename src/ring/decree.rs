//! The decree: how one value becomes the next cluster map, and no second one.
//!
//! For each map version there is one single-decree Paxos (Lamport, "Paxos made simple"). Its voters are the
//! members of the map before; a majority of them decides. A proposer first asks for promises under a
//! ballot; if any voter in a majority has accepted a value already, it carries the one of the greatest
//! ballot on, and its own value has lost. One decree per version is enough for a map that changes a few
//! times a day: no log, no leader, nothing that a request ever waits for.
//!
//! Here are the two pure machines. The driver sends what they ask for, and stores the [`Acceptor`].
//!
//! Invariants:
//! 1. An acceptor accepts nothing below the greatest ballot that it promised.
//! 2. What an acceptor answers is durable before the answer leaves ([`Answer::persist`]).
//! 3. A ballot is promised once by each acceptor, even to its own node. So a proposer that starts anew
//!    after a crash needs no memory: it can't get a majority for a ballot that it used before.
//! 4. Hence a value accepted by a majority under one ballot is the only one that any later ballot carries.
//!
//! Caveats:
//! - Only the proposer learns at once that a value is decided; voters learn it with the map, by gossip.
//! - A proposer that ends with [`Effect::Unreachable`] may have left its value with a minority. A later
//!   proposer may carry it on, so the outcome is unknown, unless `Applied::No` says otherwise.
//! - A voter answers only for the version after its own map's: see [`gate`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::canary::{self, Canary};
use crate::machine::Machine;
use crate::types::error::Applied;
use crate::types::ids::{MapVersion, NodeId};
use crate::types::limits::{DECREE_BACKOFF, DECREE_BALLOTS, DECREE_FAILURES, DECREE_WAIT};
use crate::types::time::Mono;

/// First byte of an encoded acceptor.
pub const DECREE_MARKER: u8 = b'D';
/// Version written, and the newest that is read.
pub const DECREE_FORMAT: u8 = 1;

/// The name of one attempt; greater ones win.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// From 1 upwards.
    pub round: u64,
    /// Who proposes.
    pub node: NodeId,
}

/// What a voter answers. The ballot it answers stands with it in [`Event::Reply`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reply {
    /// Nothing below the ballot will be accepted; and what was accepted before, if anything.
    Promise(Option<(Ballot, Bytes)>),
    /// The value is accepted.
    Accepted,
    /// A ballot of this round was promised before.
    Rejected(u64),
    /// That version is decided already; the voter's newest map.
    Decided(Bytes),
    /// The voter's own map is of this version, too old to vote.
    Behind(MapVersion),
}

/// Whether a voter whose map is `current` votes on version `asked`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// It votes.
    Open,
    /// It answers [`Reply::Decided`] with its map.
    Decided,
    /// It answers [`Reply::Behind`].
    Behind,
}

/// See [`Gate`].
pub fn gate(current: MapVersion, asked: MapVersion) -> Gate {
    match asked.0.checked_sub(current.0) {
        None | Some(0) => Gate::Decided,
        Some(1) => Gate::Open,
        Some(_) => Gate::Behind,
    }
}

/// A voter's state for one map version. Kept until that version is decided and stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Acceptor {
    version: MapVersion,
    promised: Option<Ballot>,
    accepted: Option<(Ballot, Bytes)>,
}

/// What to answer, and whether the acceptor must be on stable storage before that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// To the proposer.
    pub reply: Reply,
    /// If so and it can't be stored, nothing may be answered, and the acceptor in memory is void.
    pub persist: bool,
}

/// Bytes that are no acceptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAcceptor {
    /// The first byte is another.
    #[error("not a decree: wrong marker")]
    Marker,
    /// Written by a newer release.
    #[error("a decree of format {0}, this release reads up to {DECREE_FORMAT}")]
    Version(u8),
    /// The body does not parse, or breaks an invariant.
    #[error("a damaged decree")]
    Body,
}

impl Acceptor {
    /// The state of a voter that was asked nothing yet.
    pub fn new(version: MapVersion) -> Acceptor {
        Acceptor { version, promised: None, accepted: None }
    }

    /// The map version that is voted on.
    pub fn version(&self) -> MapVersion {
        self.version
    }

    /// Answers a prepare: only a ballot above all promised before is promised.
    pub fn handle_prepare(&mut self, ballot: Ballot) -> Answer {
        match self.promised {
            Some(promised) if ballot <= promised => {
                Answer { reply: Reply::Rejected(promised.round), persist: false }
            }
            _ => {
                self.promised = Some(ballot);
                Answer { reply: Reply::Promise(self.accepted.clone()), persist: true }
            }
        }
    }

    /// Answers an accept: refused if a greater ballot was promised.
    pub fn handle_accept(&mut self, ballot: Ballot, value: Bytes) -> Answer {
        match self.promised {
            Some(promised) if ballot < promised => {
                Answer { reply: Reply::Rejected(promised.round), persist: false }
            }
            _ => {
                let accepted = Some((ballot, value));
                let persist = self.accepted != accepted;
                self.promised = Some(ballot);
                self.accepted = accepted;
                Answer { reply: Reply::Accepted, persist }
            }
        }
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        // A Vec grows as needed and these types have no fallible Serialize, so this can't fail.
        postcard::to_extend(self, vec![DECREE_MARKER, DECREE_FORMAT]).expect("a Vec takes any body")
    }

    /// Decodes and checks the stored form.
    pub fn decode(bytes: &[u8]) -> Result<Acceptor, BadAcceptor> {
        let [DECREE_MARKER, format, body @ ..] = bytes else { return Err(BadAcceptor::Marker) };
        if *format != DECREE_FORMAT {
            return Err(BadAcceptor::Version(*format));
        }
        match postcard::take_from_bytes::<Acceptor>(body) {
            Ok((acceptor, [])) if acceptor.is_sound() => Ok(acceptor),
            _ => Err(BadAcceptor::Body),
        }
    }

    /// Nothing was accepted above what was promised.
    fn is_sound(&self) -> bool {
        self.accepted.as_ref().is_none_or(|(ballot, _)| Some(*ballot) <= self.promised)
    }
}

/// What happens to a proposer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Begin. Once.
    Start,
    /// A voter answered what it was sent under `ballot`.
    Reply {
        /// The voter.
        from: NodeId,
        /// Of the prepare or accept that is answered.
        ballot: Ballot,
        /// Its answer.
        reply: Reply,
    },
    /// What was sent under `ballot` failed; whether the voter got it is unknown.
    Failed {
        /// The voter.
        from: NodeId,
        /// Of the prepare or accept that failed.
        ballot: Ballot,
    },
    /// The delay last armed is over.
    Timeout,
}

/// What a proposer asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask a voter for a promise.
    Prepare {
        /// The voter; may be the own node.
        to: NodeId,
        /// To be promised.
        ballot: Ballot,
    },
    /// Ask a voter to accept.
    Accept {
        /// The voter; may be the own node.
        to: NodeId,
        /// Promised by a majority.
        ballot: Ballot,
        /// To be accepted.
        value: Bytes,
    },
    /// Send [`Event::Timeout`] after this delay; replaces the delay armed before.
    Arm(Duration),
    /// The end: the own value is decided.
    Decided(Bytes),
    /// The end: another value, this one, is decided. The own surely is not.
    Lost(Bytes),
    /// The end: the version was decided while this proposer was at it, and here is a voter's newest map.
    /// It may be newer than the version proposed and hold the own change or not: look into it.
    Overtaken(Bytes),
    /// The end: no majority answered, or others were always faster. `Maybe` if the own value may yet be
    /// carried on by another proposer.
    Unreachable(Applied),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    Preparing { promises: BTreeMap<NodeId, Option<(Ballot, Bytes)>> },
    Accepting { value: Bytes, accepted: BTreeSet<NodeId> },
    Waiting,
    Done,
}

/// Tries to get one value decided for one map version. It keeps nothing on disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Proposer {
    voters: BTreeSet<NodeId>,
    own: Bytes,
    phase: Phase,
    ballot: Ballot,
    /// Voters that won't answer the current ballot with a yes.
    lost: BTreeSet<NodeId>,
    /// Whether one of them promised a greater ballot.
    rejected: bool,
    greatest_round: u64,
    ballots: u32,
    /// Ballots in a row that failed with no greater ballot seen.
    failures: u32,
    own_sent: bool,
    random: u64,
}

impl Proposer {
    /// A proposer at node `me` of `value`, to the `voters`. `jitter` is any random number: it keeps two
    /// proposers from meeting again and again.
    pub fn new(me: NodeId, voters: impl IntoIterator<Item = NodeId>, value: Bytes, jitter: u64) -> Proposer {
        Proposer {
            voters: voters.into_iter().collect(),
            own: value,
            phase: Phase::Idle,
            ballot: Ballot { round: 0, node: me },
            lost: BTreeSet::new(),
            rejected: false,
            greatest_round: 0,
            ballots: 0,
            failures: 0,
            own_sent: false,
            random: jitter,
        }
    }

    /// Whether it has ended.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    fn majority(&self) -> usize {
        if canary::sings(Canary::VotesIgnored) {
            return 1;
        }
        self.voters.len() / 2 + 1
    }

    fn prepare(&mut self, effects: &mut Vec<Effect>) {
        let round = self.ballot.round.max(self.greatest_round).checked_add(1);
        let tried_out = self.ballots >= DECREE_BALLOTS || self.failures >= DECREE_FAILURES;
        let Some(round) = round.filter(|_| !tried_out) else {
            let applied = if self.own_sent { Applied::Maybe } else { Applied::No };
            return self.end(Effect::Unreachable(applied), effects);
        };
        self.ballot.round = round;
        self.ballots += 1;
        self.phase = Phase::Preparing { promises: BTreeMap::new() };
        self.forget_losses();
        let ballot = self.ballot;
        effects.extend(self.voters.iter().map(|to| Effect::Prepare { to: *to, ballot }));
        effects.push(Effect::Arm(DECREE_WAIT));
    }

    fn forget_losses(&mut self) {
        self.lost.clear();
        self.rejected = false;
    }

    fn end(&mut self, effect: Effect, effects: &mut Vec<Effect>) {
        self.phase = Phase::Done;
        effects.push(effect);
    }

    fn promised(&mut self, from: NodeId, before: Option<(Ballot, Bytes)>, effects: &mut Vec<Effect>) {
        let majority = self.majority();
        let Phase::Preparing { promises } = &mut self.phase else { return };
        promises.insert(from, before);
        if promises.len() < majority {
            return;
        }
        let before = promises.values().flatten().max_by_key(|(ballot, _)| *ballot);
        let value = before.map_or_else(|| self.own.clone(), |(_, value)| value.clone());
        self.own_sent |= value == self.own;
        let ballot = self.ballot;
        let accept = |to: &NodeId| Effect::Accept { to: *to, ballot, value: value.clone() };
        effects.extend(self.voters.iter().map(accept));
        effects.push(Effect::Arm(DECREE_WAIT));
        self.phase = Phase::Accepting { value, accepted: BTreeSet::new() };
        self.forget_losses();
    }

    fn accepted(&mut self, from: NodeId, effects: &mut Vec<Effect>) {
        let majority = self.majority();
        let Phase::Accepting { value, accepted } = &mut self.phase else { return };
        accepted.insert(from);
        if accepted.len() < majority {
            return;
        }
        let value = value.clone();
        let effect = if value == self.own { Effect::Decided(value) } else { Effect::Lost(value) };
        self.end(effect, effects);
    }

    fn decided(&mut self, map: Bytes, effects: &mut Vec<Effect>) {
        let effect = match () {
            () if map == self.own => Effect::Decided(map),
            () if self.own_sent => Effect::Overtaken(map),
            // Nobody else can have proposed it.
            () => Effect::Lost(map),
        };
        self.end(effect, effects);
    }

    /// `from` won't say yes to the current ballot.
    fn lose(&mut self, from: NodeId, effects: &mut Vec<Effect>) {
        // A voter's lost answer can't take back the yes that came.
        let said_yes = match &self.phase {
            Phase::Preparing { promises } => promises.contains_key(&from),
            Phase::Accepting { accepted, .. } => accepted.contains(&from),
            _ => return,
        };
        if !said_yes {
            self.lost.insert(from);
        }
        if self.voters.len() - self.lost.len() < self.majority() {
            self.back_off(effects);
        }
    }

    fn back_off(&mut self, effects: &mut Vec<Effect>) {
        self.failures = if self.rejected { 0 } else { self.failures + 1 };
        self.phase = Phase::Waiting;
        // At most 128 times the first delay. Half to one and a half of it, by splitmix64.
        let delay = DECREE_BACKOFF * (1 << self.ballots.saturating_sub(1).min(7));
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let part = 512 + ((z ^ (z >> 31)) % 1024) as u32;
        effects.push(Effect::Arm(delay * part / 1024));
    }
}

impl Machine for Proposer {
    type Event = Event;
    type Effect = Effect;

    fn step(&mut self, _now: Mono, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Start if self.phase == Phase::Idle => self.prepare(effects),
            Event::Start => {}
            Event::Timeout => match self.phase {
                Phase::Waiting => self.prepare(effects),
                Phase::Preparing { .. } | Phase::Accepting { .. } => self.back_off(effects),
                Phase::Idle | Phase::Done => {}
            },
            // Decided is decided, whatever was asked.
            Event::Reply { reply: Reply::Decided(map), .. }
                if !matches!(self.phase, Phase::Idle | Phase::Done) =>
            {
                self.decided(map, effects);
            }
            Event::Reply { from, ballot, reply } => {
                if let Reply::Rejected(round) = reply {
                    self.greatest_round = self.greatest_round.max(round);
                }
                if ballot != self.ballot || !self.voters.contains(&from) {
                    return;
                }
                match reply {
                    Reply::Promise(before) => self.promised(from, before, effects),
                    Reply::Accepted => self.accepted(from, effects),
                    Reply::Rejected(_) => {
                        self.rejected = true;
                        self.lose(from, effects);
                    }
                    Reply::Decided(_) => {}
                    Reply::Behind(_) => self.lose(from, effects),
                }
            }
            Event::Failed { from, ballot } => {
                if ballot == self.ballot && self.voters.contains(&from) {
                    self.lose(from, effects);
                }
            }
        }
    }

    fn check_invariants(&self) {
        assert!(self.lost.is_subset(&self.voters), "only voters are counted");
        match &self.phase {
            Phase::Idle => assert_eq!(self.ballot.round, 0, "no ballot before the start"),
            Phase::Preparing { promises } => {
                assert!(promises.keys().all(|from| self.voters.contains(from)));
                assert!(promises.len() < self.majority(), "a majority goes on at once");
                assert!(promises.values().flatten().all(|(ballot, _)| *ballot < self.ballot));
            }
            Phase::Accepting { value, accepted } => {
                assert!(accepted.is_subset(&self.voters) && accepted.len() < self.majority());
                assert!(self.own_sent || *value != self.own);
            }
            Phase::Waiting | Phase::Done => {}
        }
    }
}

#[cfg(test)]
#[path = "decree_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "decree_model.rs"]
mod model;
