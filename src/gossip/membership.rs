//! The machine around foca: packets and timers in; packets, an alarm and news of members out.
//!
//! What it adds to foca's SWIM (`swim`): an envelope that keeps strangers out (`packet`), finding seeds of
//! which only the address is known, each node's state (`digest`), forgiveness of lost time (`timers`), a
//! member that left told from one that died (`view`), and two processes with one node id told from a
//! restart (`rival`).
//!
//! Invariants:
//! 1. The own node is not among its members, whatever others say of it.
//! 2. After each step the live members are those of foca, and each change was told by one `Changed`.
//! 3. The alarm that was asked for last is the time of the first timer.
//! 4. A packet is taken whole or not at all, and each one dropped is counted once, by reason.
//! 5. A stopped machine sends nothing more, arms nothing and changes nothing.
//! 6. A node that lost everyone lets none of its verdicts of death out: it is the one that was cut off, as
//!    far as it can know.
//!
//! Not here: what membership means for data. A verdict on a node never moves ownership.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use foca::{Identity as _, State};
use rand::rngs::StdRng;

use super::digest::{NodeReport, NodeState};
pub use super::event::{Effect, Event};
use super::identity::Identity;
use super::packet::{self, Drops, Hello, Packet, Reason, Welcome};
use super::rival::Rivals;
use super::swim::Swim;
use super::timers::{Due, Timers};
use super::view::View;
pub use super::view::{Liveness, MemberEvent, Peer};
use crate::machine::Machine;
use crate::types::ids::{ClusterId, NodeId};
use crate::types::limits;
use crate::types::time::Mono;

/// The machine's own regular round.
pub const ROUND: Duration = Duration::from_millis(200);
/// How often seeds are tried while there is no live peer.
pub const SEED_PERIOD: Duration = Duration::from_secs(1);
/// How often seeds that no live member has are tried otherwise.
pub const SEED_PERIOD_JOINED: Duration = Duration::from_secs(10);
/// How often a node that has no live peer says so.
pub const SILENCE_PERIOD: Duration = Duration::from_secs(5);
/// How often a node repeats its own state, and how much longer for each member: keeps the load even.
pub const REPEAT_PERIOD: Duration = Duration::from_secs(2);
const REPEAT_PER_MEMBER: Duration = Duration::from_millis(10);
/// Timers later than this mean that the process stood still.
pub const LATENESS: Duration = Duration::from_millis(250);
/// Time to read the socket after it stood still.
const CATCH_UP: Duration = Duration::from_millis(50);
/// Least time between two identities taken because peers say that we are down.
const REJOIN_PACE: Duration = Duration::from_millis(500);
/// Rounds between two in which suspects are told by all who know of it, not by their accuser alone.
const TELL_ALL_ROUNDS: u64 = 5;
/// Dead members called in one round by a node that has no live peer.
const CALLS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    Running,
    Stopped,
}

/// The machine.
pub struct Membership {
    swim: Swim,
    view: View,
    rivals: Rivals,
    timers: Timers,
    cluster: ClusterId,
    phase: Phase,
    started: Mono,
    armed: Option<Mono>,
    seeds: Vec<SocketAddr>,
    /// Addresses under which this very process answered.
    own_seeds: BTreeSet<SocketAddr>,
    seeds_due: Mono,
    alone_since: Option<Mono>,
    silence_due: Mono,
    report: Option<NodeReport>,
    sequence: u64,
    repeat_due: Mono,
    rejoined: Option<Mono>,
    rounds: u64,
    drops: Drops,
}

impl Membership {
    /// A machine for `identity` in `cluster`; `rng` is its only source of chance.
    pub fn new(identity: Identity, cluster: ClusterId, rng: StdRng) -> Membership {
        Membership {
            swim: Swim::new(identity, rng),
            view: View::default(),
            rivals: Rivals::default(),
            timers: Timers::default(),
            cluster,
            phase: Phase::New,
            started: Mono(0),
            armed: None,
            seeds: Vec::new(),
            own_seeds: BTreeSet::new(),
            seeds_due: Mono(0),
            alone_since: None,
            silence_due: Mono(0),
            report: None,
            sequence: 0,
            repeat_due: Mono(u64::MAX),
            rejoined: None,
            rounds: 0,
            drops: Drops::new(),
        }
    }

    /// The members, without the own node.
    pub fn members(&self) -> &BTreeMap<NodeId, Peer> {
        self.view.peers()
    }

    /// The own identity now.
    pub fn identity(&self) -> &Identity {
        self.swim.identity()
    }

    /// Dropped datagrams by reason.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Times that foca complained about a timer or a message of ours. Stays zero.
    pub fn faults(&self) -> u64 {
        self.swim.faults()
    }

    /// Since when there has been no live peer.
    pub fn alone_since(&self) -> Option<Mono> {
        self.alone_since
    }

    fn start(&mut self, now: Mono, seeds: Vec<SocketAddr>, effects: &mut Vec<Effect>) {
        self.phase = Phase::Running;
        self.started = now;
        self.alone_since = Some(now);
        self.silence_due = now + SILENCE_PERIOD;
        self.seeds = seeds;
        self.timers.push(now + ROUND, Due::Round);
        self.call_seeds(now, effects);
    }

    fn take_seeds(&mut self, now: Mono, seeds: Vec<SocketAddr>, effects: &mut Vec<Effect>) {
        let old = std::mem::replace(&mut self.seeds, seeds);
        let new: BTreeSet<SocketAddr> = self.other_seeds().filter(|seed| !old.contains(seed)).collect();
        for seed in new {
            self.hello(now, seed, effects);
        }
    }

    /// The seeds that may be others.
    fn other_seeds(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let own = self.identity().address;
        self.seeds.iter().copied().filter(move |seed| *seed != own && !self.own_seeds.contains(seed))
    }

    /// Says hello to the seeds that no live member has, and to a few of the dead that foca doesn't call.
    fn call_seeds(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        effects.push(Effect::Resolve);
        let live = self.members().values().filter(|p| p.liveness.is_live());
        let live: BTreeSet<SocketAddr> = live.map(|p| p.identity.address).collect();
        let mut called: BTreeSet<SocketAddr> = self.other_seeds().collect();
        called.extend(self.view.ghosts_to_call(CALLS));
        for to in called.difference(&live) {
            self.hello(now, *to, effects);
        }
        self.seeds_due = now + if live.is_empty() { SEED_PERIOD } else { SEED_PERIOD_JOINED };
    }

    fn hello(&self, now: Mono, to: SocketAddr, effects: &mut Vec<Effect>) {
        let hello = Hello { from: *self.identity(), age_us: now.micros_since(self.started), to };
        effects.push(Effect::Send { to, bytes: packet::seal(self.cluster, &Packet::Hello(hello)) });
    }

    fn packet(&mut self, now: Mono, from: SocketAddr, bytes: &[u8], effects: &mut Vec<Effect>) {
        let taken = match packet::open(self.cluster, bytes) {
            Ok(Packet::Hello(hello)) => {
                self.on_hello(now, from, &hello, effects);
                Ok(())
            }
            Ok(Packet::Welcome(welcome)) => self.on_welcome(now, &welcome, effects),
            Ok(Packet::Foca(body)) => self.on_foca(now, body, effects),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = taken {
            *self.drops.entry(reason).or_insert(0) += 1;
            effects.push(Effect::Dropped { from, reason });
        }
    }

    fn on_hello(&mut self, now: Mono, source: SocketAddr, hello: &Hello, effects: &mut Vec<Effect>) {
        let own = *self.identity();
        if hello.from.node == own.node && hello.from.nonce == own.nonce {
            self.own_seeds.insert(hello.to);
            return;
        }
        let is_rival = own.is_rival(&hello.from);
        let age_us = now.micros_since(self.started);
        let is_elder = is_rival && (age_us, own.nonce) > (hello.age_us, hello.from.nonce);
        let held = self.members().get(&hello.from.node).map(|p| (p.identity, p.liveness.is_live()));
        let holds = held.filter(|(identity, _)| identity.nonce != hello.from.nonce);
        let welcome = Packet::Welcome(Welcome { from: own, is_elder, holds });
        effects.push(Effect::Send { to: source, bytes: packet::seal(self.cluster, &welcome) });
        if is_rival {
            self.meet_rival(now, &hello.from, !is_elder, effects);
        }
    }

    fn on_welcome(&mut self, now: Mono, welcome: &Welcome, effects: &mut Vec<Effect>) -> Result<(), Reason> {
        let own = *self.identity();
        if own.is_rival(&welcome.from) {
            self.meet_rival(now, &welcome.from, welcome.is_elder, effects);
            return Ok(());
        }
        if welcome.from.node == own.node {
            return Err(Reason::Echo);
        }
        self.check_crowd(std::iter::once(welcome.from.node))?;
        if let Some((held, live)) = welcome.holds {
            self.suspect_rival(now, held, live, effects);
        }
        let known = self.members().get(&welcome.from.node);
        let is_live = known.is_some_and(|p| p.identity == welcome.from && p.liveness.is_live());
        if !is_live && !self.rivals.is_waiting() {
            self.swim.announce(welcome.from);
        }
        Ok(())
    }

    fn on_foca(&mut self, now: Mono, body: &[u8], effects: &mut Vec<Effect>) -> Result<(), Reason> {
        let contents = packet::inspect(body)?;
        let own = *self.identity();
        if own.is_rival(&contents.from) {
            self.suspect_rival(now, contents.from, true, effects);
            return Err(Reason::Rival);
        }
        if contents.from.node == own.node {
            return Err(Reason::Echo);
        }
        let named = contents.members.iter().map(|m| m.id().node).filter(|node| *node != own.node);
        self.check_crowd(named.chain([contents.from.node]))?;
        for member in &contents.members {
            if own.is_rival(member.id()) {
                self.suspect_rival(now, *member.id(), member.state() != State::Down, effects);
            }
        }
        if contents.turn_undead && contents.to == *self.identity() {
            if self.rejoined.is_some_and(|at| at + REJOIN_PACE > now) {
                return Err(Reason::Paced);
            }
            // If a new identity doesn't help, the sender holds one that wins over ours: ask which.
            self.hello(now, contents.from.address, effects);
        }
        if self.swim.packet(body) { Ok(()) } else { Err(Reason::Refused) }
    }

    /// Refuses a packet that names more unknown nodes than there is room for.
    fn check_crowd(&self, named: impl Iterator<Item = NodeId>) -> Result<(), Reason> {
        let unknown: BTreeSet<NodeId> = named.filter(|node| !self.members().contains_key(node)).collect();
        if !unknown.is_empty() && self.members().len() + unknown.len() > limits::GOSSIP_MEMBERS_MAX {
            return Err(Reason::Crowded);
        }
        Ok(())
    }

    /// Another process with the own node id spoke to us: the younger of the two stops.
    fn meet_rival(&mut self, now: Mono, rival: &Identity, is_elder: bool, effects: &mut Vec<Effect>) {
        if is_elder {
            self.stop(Effect::Duplicate(*rival), effects);
            return;
        }
        effects.push(Effect::Rival(*rival));
        self.outrank(now, rival);
    }

    /// Someone holds another process for our node. An earlier life, or a second one that lives?
    fn suspect_rival(&mut self, now: Mono, rival: Identity, live: bool, effects: &mut Vec<Effect>) {
        let own = *self.identity();
        if !own.is_rival(&rival) {
            return;
        }
        let wins = rival.win_addr_conflict(&own);
        let age = Duration::from_micros(now.micros_since(self.started));
        if rival.address == own.address || !live {
            // Nobody else can be at our own address, and nobody speaks for one who is held for dead.
            if wins {
                self.outrank(now, &rival);
            }
        } else if self.rivals.is_worth_a_call(&rival, wins, age) {
            self.rivals.call(rival, now);
            self.call_rival(now, effects);
        }
    }

    /// Calls the rival again, or takes its silence for an answer.
    fn call_rival(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        if let Some(to) = self.rivals.next_call(now) {
            self.hello(now, to, effects);
        } else if let Some(silent) = self.rivals.silent(now) {
            self.outrank(now, &silent);
            self.call_seeds(now, effects);
        }
    }

    /// Takes an identity that wins over the rival's.
    fn outrank(&mut self, now: Mono, rival: &Identity) {
        self.rivals.settle(rival);
        let own = *self.identity();
        if rival.win_addr_conflict(&own) {
            self.rejoined = Some(now);
            self.swim.change_identity(own.above(rival));
        }
    }

    fn timer(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        self.armed = None;
        if self.timers.forgive(now, LATENESS, CATCH_UP) {
            return;
        }
        while let Some(due) = self.timers.pop(now) {
            match due {
                Due::Foca(timer) => self.swim.timer(timer),
                Due::Round => {
                    self.timers.push(now + ROUND, Due::Round);
                    self.round(now, effects);
                }
            }
            self.settle(now, effects);
        }
    }

    fn round(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        if now >= self.seeds_due {
            self.call_seeds(now, effects);
        }
        self.call_rival(now, effects);
        self.rounds += 1;
        let notes = self.swim.tell_suspects(self.rounds.is_multiple_of(TELL_ALL_ROUNDS));
        self.send_all(notes, effects);
        if now >= self.repeat_due {
            self.say_state(now, false, effects);
        }
        if let Some(since) = self.alone_since
            && now >= self.silence_due
            && self.other_seeds().next().is_some()
        {
            self.silence_due = now + SILENCE_PERIOD;
            effects.push(Effect::SeedsSilent { since });
        }
    }

    fn say_state(&mut self, now: Mono, leaving: bool, effects: &mut Vec<Effect>) {
        let members = u32::try_from(self.members().len()).unwrap_or(u32::MAX);
        self.repeat_due = now + REPEAT_PERIOD + REPEAT_PER_MEMBER * members;
        if self.report.is_none() && !leaving {
            return;
        }
        self.sequence += 1;
        let own = self.identity();
        let state = NodeState {
            node: own.node,
            nonce: own.nonce,
            generation: own.generation,
            sequence: self.sequence,
            leaving,
            report: self.report.clone().unwrap_or_default(),
        };
        match state.encode() {
            Ok(bytes) => self.swim.say(&bytes),
            Err(invalid) => effects.push(Effect::Refused(invalid)),
        }
    }

    fn publish(&mut self, now: Mono, report: NodeReport, effects: &mut Vec<Effect>) {
        match report.validate() {
            Ok(()) => {
                self.report = Some(report);
                // Said in the next round, so that a driver that publishes often does not flood the cluster.
                self.repeat_due = now;
            }
            Err(invalid) => effects.push(Effect::Refused(invalid)),
        }
    }

    fn leave(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        self.say_state(now, true, effects);
        self.swim.leave();
        self.stop(Effect::Left, effects);
    }

    fn stop(&mut self, why: Effect, effects: &mut Vec<Effect>) {
        let output = self.swim.output(self.started, &mut self.timers);
        self.send_all(output.sends, effects);
        self.phase = Phase::Stopped;
        self.timers.clear();
        self.armed = None;
        effects.push(why);
    }

    fn send_all(&self, sends: Vec<(SocketAddr, Vec<u8>)>, effects: &mut Vec<Effect>) {
        for (to, body) in sends {
            effects.push(Effect::Send { to, bytes: packet::seal(self.cluster, &Packet::Foca(&body)) });
        }
    }

    /// Turns what foca left behind into effects, and brings the view up to date.
    fn settle(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        let output = self.swim.output(now, &mut self.timers);
        for state in output.states {
            effects.push(Effect::State(state.clone()));
            self.view.hear(state);
        }
        self.send_all(output.sends, effects);
        if let Some(identity) = output.rejoined {
            self.rejoined = Some(now);
            effects.push(Effect::Rejoined(identity));
        }
        self.refresh(now, effects);
        if output.defunct {
            self.stop(Effect::Defunct, effects);
        }
    }

    /// Compares the view with what foca holds now; foca has no notification for suspicion.
    fn refresh(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        let mut held = self.swim.held();
        for identity in self.view.to_forget(&held) {
            self.swim.forget(identity);
            held.remove(&identity.node);
        }
        for event in self.view.refresh(now, &held) {
            if event.is_newcomer() {
                self.repeat_due = self.repeat_due.min(now);
            }
            effects.push(Effect::Changed(event));
        }
        if self.view.live() > 0 {
            self.alone_since = None;
        } else if self.alone_since.is_none() {
            self.alone_since = Some(now);
            self.silence_due = now + SILENCE_PERIOD;
            self.seeds_due = now;
            self.view.keep_ghosts();
            self.swim.begin_anew(self.view.states(), &mut self.timers);
        }
    }

    fn rearm(&mut self, effects: &mut Vec<Effect>) {
        let next = self.timers.next();
        if next != self.armed {
            self.armed = next;
            effects.extend(next.map(|at| Effect::Arm { at }));
        }
    }
}

impl Machine for Membership {
    type Event = Event;
    type Effect = Effect;

    fn step(&mut self, now: Mono, event: Event, effects: &mut Vec<Effect>) {
        match (self.phase, event) {
            (Phase::New, Event::Start { seeds }) => self.start(now, seeds, effects),
            (Phase::New | Phase::Running, Event::Publish(report)) => self.publish(now, report, effects),
            (Phase::Running, Event::Seeds(seeds)) => self.take_seeds(now, seeds, effects),
            (Phase::Running, Event::Packet { from, bytes }) => self.packet(now, from, &bytes, effects),
            (Phase::Running, Event::Timer) => self.timer(now, effects),
            (Phase::Running, Event::Forget(node)) => self.view.forget(node),
            (Phase::Running, Event::Leave) => self.leave(now, effects),
            _ => {}
        }
        if self.phase == Phase::Running {
            self.settle(now, effects);
        }
        if self.phase == Phase::Running {
            self.rearm(effects);
        }
    }

    fn check_invariants(&self) {
        self.view.check_invariants();
        assert!(!self.members().contains_key(&self.identity().node), "1: the own node is among its members");
        assert!(self.members().len() <= limits::GOSSIP_MEMBERS_MAX);
        match self.phase {
            Phase::Running => {
                assert_eq!(self.view.live(), self.swim.live(), "2: the view is not what foca holds");
                assert_eq!(self.view.live() == 0, self.alone_since.is_some());
                assert_eq!(self.armed, self.timers.next(), "3: the alarm is not the first timer");
            }
            Phase::New | Phase::Stopped => assert_eq!(self.timers.next(), None, "5: a timer without a run"),
        }
    }
}
