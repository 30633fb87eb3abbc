//! The machine around foca: packets and timers in; packets, an alarm and news of members out.
//!
//! What it adds to foca's SWIM: an envelope that keeps strangers out (`packet`), finding seeds of which only
//! the address is known, each node's state (`digest`), forgiveness of lost time (`timers`), a member that
//! left on purpose told from one that died, and two processes with one node id told from a restart (`rival`).
//!
//! Invariants:
//! 1. The own node is not among its members, whatever others say of it.
//! 2. Members are what foca holds, after each step; each difference was told by one `Changed`.
//! 3. The alarm that was asked for last is the time of the first timer.
//! 4. A packet is taken whole or not at all, and each one dropped is counted once, by reason.
//! 5. A stopped machine sends nothing more, arms nothing and changes nothing.
//!
//! Not here: what membership means for data. A verdict on a node never moves ownership.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::mpsc;
use std::time::Duration;

use foca::{AccumulatingRuntime, Config, Foca, OwnedNotification, PeriodicParams, PostcardCodec, State};
use rand::rngs::StdRng;

use super::digest::{Digests, NodeReport, NodeState};
use super::identity::Identity;
use super::packet::{self, Drops, Hello, Packet, Reason, Welcome};
use super::rival::Rivals;
use super::timers::{Due, Timers};
use crate::machine::Machine;
use crate::types::error::Invalid;
use crate::types::ids::{ClusterId, NodeId};
use crate::types::limits;
use crate::types::time::Mono;

/// One member is probed this often by each node: a dead node fails its first probe within about this long,
/// and the probe ends after this long again.
pub const PROBE_PERIOD: Duration = Duration::from_millis(500);
/// An answer on a LAN takes a few milliseconds; past this, others are asked to try.
pub const PROBE_RTT: Duration = Duration::from_millis(200);
/// Time for a suspect to speak up: three probes.
pub const SUSPICION: Duration = Duration::from_millis(1_500);
/// How often news is passed on.
pub const GOSSIP_PERIOD: Duration = Duration::from_millis(200);
/// How often live members are asked whom they know: fills gaps that lost packets left.
pub const ANNOUNCE_PERIOD: Duration = Duration::from_secs(5);
/// How often members held for dead are called: heals partitions.
pub const CALL_DOWN_PERIOD: Duration = Duration::from_secs(2);
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
/// Dead members called in one round by a node that has no live peer.
const CALLS: usize = 16;

const _: () = assert!(PROBE_RTT.as_millis() * 2 < PROBE_PERIOD.as_millis());

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

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Begin. Known seed addresses, perhaps none yet.
    Start {
        /// Addresses.
        seeds: Vec<SocketAddr>,
    },
    /// The seeds were looked up (again); replaces the addresses, calls those that are new.
    Seeds(Vec<SocketAddr>),
    /// A datagram came.
    Packet {
        /// From there.
        from: SocketAddr,
        /// All of it.
        bytes: Vec<u8>,
    },
    /// The alarm went off. One that comes early or twice does no harm.
    Timer,
    /// Say this of the own node from now on.
    Publish(NodeReport),
    /// Forget a member that is down or left: it was removed from the cluster.
    Forget(NodeId),
    /// Say farewell and stop.
    Leave,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send a datagram.
    Send {
        /// Where to.
        to: SocketAddr,
        /// All of it.
        bytes: Vec<u8>,
    },
    /// Send `Event::Timer` at this time; replaces the alarm asked for before.
    Arm {
        /// When.
        at: Mono,
    },
    /// Look up the seeds' names and send `Event::Seeds`.
    Resolve,
    /// A member changed.
    Changed(MemberEvent),
    /// A member said something new of itself.
    State(NodeState),
    /// The cluster had held this process for dead; it is back under this identity.
    Rejoined(Identity),
    /// There has been no live peer since then, though there are seeds. Said every few seconds.
    SeedsSilent {
        /// Since when.
        since: Mono,
    },
    /// A younger process uses the own node id; it was told to stop.
    Rival(Identity),
    /// An older live process has the own node id. This one has stopped.
    Duplicate(Identity),
    /// What was to be published breaks a limit.
    Refused(Invalid),
    /// A datagram was dropped.
    Dropped {
        /// Its sender.
        from: SocketAddr,
        /// Why.
        reason: Reason,
    },
    /// The farewell is sent. The machine has stopped.
    Left,
    /// foca can't take a new identity any more. The machine has stopped.
    Defunct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    Running,
    Stopped,
}

/// The machine.
pub struct Membership {
    foca: Foca<Identity, PostcardCodec, StdRng, Digests>,
    runtime: AccumulatingRuntime<Identity>,
    news: mpsc::Receiver<NodeState>,
    cluster: ClusterId,
    phase: Phase,
    started: Mono,
    timers: Timers,
    armed: Option<Mono>,

    seeds: Vec<SocketAddr>,
    own_seeds: BTreeSet<SocketAddr>,
    seeds_due: Mono,
    last_called: Option<NodeId>,
    alone_since: Option<Mono>,
    silence_due: Mono,

    report: Option<NodeReport>,
    sequence: u64,
    repeat_due: Mono,

    rivals: Rivals,
    rejoined: Option<Mono>,
    view: BTreeMap<NodeId, Peer>,
    states: BTreeMap<NodeId, NodeState>,
    drops: Drops,
    faults: u64,
}

impl Membership {
    /// A machine for `identity` in `cluster`; `rng` is its only source of chance.
    pub fn new(identity: Identity, cluster: ClusterId, rng: StdRng) -> Membership {
        let (digests, news) = Digests::new(identity.node);
        Membership {
            foca: Foca::with_custom_broadcast(identity, config(), rng, PostcardCodec, digests),
            runtime: AccumulatingRuntime::new(),
            news,
            cluster,
            phase: Phase::New,
            started: Mono(0),
            timers: Timers::default(),
            armed: None,
            seeds: Vec::new(),
            own_seeds: BTreeSet::new(),
            seeds_due: Mono(0),
            last_called: None,
            alone_since: None,
            silence_due: Mono(0),
            report: None,
            sequence: 0,
            repeat_due: Mono(u64::MAX),
            rivals: Rivals::default(),
            rejoined: None,
            view: BTreeMap::new(),
            states: BTreeMap::new(),
            drops: Drops::new(),
            faults: 0,
        }
    }

    /// The members, without the own node.
    pub fn members(&self) -> &BTreeMap<NodeId, Peer> {
        &self.view
    }

    /// The own identity now.
    pub fn identity(&self) -> &Identity {
        self.foca.identity()
    }

    /// Dropped datagrams by reason.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Times that foca complained about a timer or a message of ours. Stays zero.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// Since when there has been no live peer.
    pub fn alone_since(&self) -> Option<Mono> {
        self.alone_since
    }

    fn age_ms(&self, now: Mono) -> u64 {
        now.micros_since(self.started) / 1_000
    }

    fn start(&mut self, now: Mono, seeds: Vec<SocketAddr>, effects: &mut Vec<Effect>) {
        if self.phase != Phase::New {
            return;
        }
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
        for seed in self.seeds.clone() {
            if !old.contains(&seed) {
                self.hello(now, seed, effects);
            }
        }
    }

    /// The seeds that may be others.
    fn other_seeds(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let own = self.identity().address;
        self.seeds.iter().copied().filter(move |seed| *seed != own && !self.own_seeds.contains(seed))
    }

    /// Says hello to the seeds that no live member has, and, if there is none, to members held for dead.
    fn call_seeds(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        effects.push(Effect::Resolve);
        let live: BTreeSet<SocketAddr> =
            self.view.values().filter(|p| p.liveness.is_live()).map(|p| p.identity.address).collect();
        let mut called: BTreeSet<SocketAddr> = self.other_seeds().filter(|s| !live.contains(s)).collect();
        if live.is_empty() {
            // A few each time, in turn.
            let after = self.last_called.take();
            let next: Vec<(NodeId, SocketAddr)> = self
                .view
                .range((
                    after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded),
                    std::ops::Bound::Unbounded,
                ))
                .take(CALLS)
                .map(|(node, peer)| (*node, peer.identity.address))
                .collect();
            self.last_called = if next.len() < CALLS { None } else { next.last().map(|(node, _)| *node) };
            called.extend(next.into_iter().map(|(_, address)| address));
        }
        for to in called {
            self.hello(now, to, effects);
        }
        self.seeds_due = now + if live.is_empty() { SEED_PERIOD } else { SEED_PERIOD_JOINED };
    }

    fn hello(&self, now: Mono, to: SocketAddr, effects: &mut Vec<Effect>) {
        let hello = Hello { from: *self.identity(), age_ms: self.age_ms(now), to };
        effects.push(Effect::Send { to, bytes: packet::seal(self.cluster, &Packet::Hello(hello)) });
    }

    fn packet(&mut self, now: Mono, from: SocketAddr, bytes: &[u8], effects: &mut Vec<Effect>) {
        let taken = match packet::open(self.cluster, bytes) {
            Ok(Packet::Hello(hello)) => self.on_hello(now, from, &hello, effects),
            Ok(Packet::Welcome(welcome)) => self.on_welcome(now, &welcome, effects),
            Ok(Packet::Foca(body)) => self.on_foca(now, body, effects),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = taken {
            *self.drops.entry(reason).or_insert(0) += 1;
            effects.push(Effect::Dropped { from, reason });
        }
    }

    fn on_hello(
        &mut self,
        now: Mono,
        source: SocketAddr,
        hello: &Hello,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Reason> {
        let own = *self.identity();
        if hello.from.nonce == own.nonce && hello.from.node == own.node {
            self.own_seeds.insert(hello.to);
            return Ok(());
        }
        let held = self.view.get(&hello.from.node).map(|p| (p.identity, p.liveness.is_live()));
        let holds = held.filter(|(identity, _)| identity.nonce != hello.from.nonce);
        let welcome = Welcome { from: own, age_ms: self.age_ms(now), holds };
        let bytes = packet::seal(self.cluster, &Packet::Welcome(welcome));
        effects.push(Effect::Send { to: source, bytes });
        if own.is_rival(&hello.from) {
            self.meet_rival(now, &hello.from, hello.age_ms, effects);
        }
        Ok(())
    }

    fn on_welcome(&mut self, now: Mono, welcome: &Welcome, effects: &mut Vec<Effect>) -> Result<(), Reason> {
        let own = *self.identity();
        if own.is_rival(&welcome.from) {
            self.meet_rival(now, &welcome.from, welcome.age_ms, effects);
            return Ok(());
        }
        if welcome.from.node == own.node {
            return Err(Reason::Echo);
        }
        self.check_crowd(std::iter::once(welcome.from.node))?;
        if let Some((held, live)) = welcome.holds {
            self.suspect_rival(now, held, live, effects);
        }
        let known = self.view.get(&welcome.from.node);
        let is_live = known.is_some_and(|p| p.identity == welcome.from && p.liveness.is_live());
        if is_live || self.rivals.is_waiting() {
            return Ok(());
        }
        let announced = self.foca.announce(welcome.from, &mut self.runtime);
        self.note_fault(announced);
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
        self.foca.handle_data(body, &mut self.runtime).map_err(|_| Reason::Refused)
    }

    /// Refuses a packet that names more unknown nodes than there is room for.
    fn check_crowd(&self, named: impl Iterator<Item = NodeId>) -> Result<(), Reason> {
        let unknown: BTreeSet<NodeId> = named.filter(|node| !self.view.contains_key(node)).collect();
        if self.view.len() + unknown.len() > limits::GOSSIP_MEMBERS_MAX && !unknown.is_empty() {
            return Err(Reason::Crowded);
        }
        Ok(())
    }

    /// Another process with the own node id spoke to us: the younger of the two stops.
    fn meet_rival(&mut self, now: Mono, rival: &Identity, rival_age_ms: u64, effects: &mut Vec<Effect>) {
        let own = *self.identity();
        if (rival_age_ms, rival.nonce) > (self.age_ms(now), own.nonce) {
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
        let wins = foca::Identity::win_addr_conflict(&rival, &own);
        if rival.address == own.address || !live {
            // Nobody else can be at our own address, and nobody speaks for one who is held for dead.
            if wins {
                self.outrank(now, &rival);
            }
        } else if self.rivals.is_worth_a_call(&rival, wins, self.age_ms(now)) {
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
        if foca::Identity::win_addr_conflict(rival, &own) {
            self.rejoined = Some(now);
            let changed = self.foca.change_identity(own.above(rival), &mut self.runtime);
            self.note_fault(changed);
        }
    }

    fn timer(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        self.armed = None;
        if self.timers.forgive(now, LATENESS, CATCH_UP) {
            return;
        }
        while let Some(due) = self.timers.pop(now) {
            match due {
                Due::Foca(timer) => {
                    let handled = self.foca.handle_timer(timer, &mut self.runtime);
                    self.note_fault(handled);
                }
                Due::Round => {
                    self.timers.push(now + ROUND, Due::Round);
                    self.round(now, effects);
                }
            }
            self.schedule(now);
        }
    }

    fn round(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        if now >= self.seeds_due {
            self.call_seeds(now, effects);
        }
        self.call_rival(now, effects);
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
        self.repeat_due =
            now + REPEAT_PERIOD + REPEAT_PER_MEMBER * u32::try_from(self.view.len()).unwrap_or(0);
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
            Ok(bytes) => {
                let added = self.foca.add_broadcast(&bytes).map(|_| ());
                self.note_fault(added);
            }
            Err(invalid) => effects.push(Effect::Refused(invalid)),
        }
    }

    fn publish(&mut self, now: Mono, report: NodeReport, effects: &mut Vec<Effect>) {
        if let Err(invalid) = report.validate() {
            effects.push(Effect::Refused(invalid));
            return;
        }
        self.report = Some(report);
        // Said in the next round, so that a driver that publishes often does not flood the cluster.
        self.repeat_due = now;
    }

    fn forget(&mut self, node: NodeId) {
        let Some(peer) = self.view.get(&node).filter(|p| !p.liveness.is_live()) else { return };
        let handled = self.foca.handle_timer(foca::Timer::RemoveDown(peer.identity), &mut self.runtime);
        self.note_fault(handled);
        self.states.remove(&node);
    }

    fn leave(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        self.say_state(now, true, effects);
        let left = self.foca.leave_cluster(&mut self.runtime);
        self.note_fault(left);
        // Said three times: datagrams get lost, and there will be no other chance.
        for _ in 0..2 {
            let said = self.foca.gossip(&mut self.runtime);
            self.note_fault(said);
        }
        self.stop(Effect::Left, effects);
    }

    fn stop(&mut self, why: Effect, effects: &mut Vec<Effect>) {
        self.flush_sends(effects);
        while self.runtime.to_notify().is_some() || self.runtime.to_schedule().is_some() {}
        self.phase = Phase::Stopped;
        self.timers.clear();
        self.armed = None;
        effects.push(why);
    }

    fn note_fault(&mut self, outcome: Result<(), foca::Error>) {
        if outcome.is_err() {
            self.faults += 1;
        }
    }

    fn flush_sends(&mut self, effects: &mut Vec<Effect>) {
        let own = self.identity().node;
        while let Some((to, body)) = self.runtime.to_send() {
            // foca calls the dead now and then, and earlier lives of this node are among them.
            if to.node != own {
                let bytes = packet::seal(self.cluster, &Packet::Foca(&body));
                effects.push(Effect::Send { to: to.address, bytes });
            }
        }
    }

    fn schedule(&mut self, now: Mono) {
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timers.push(now + after, Due::Foca(timer));
        }
    }

    /// Turns what foca left behind into effects, and brings the view up to date.
    fn settle(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        self.flush_sends(effects);
        self.schedule(now);
        let mut defunct = false;
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::Rejoin(identity) => {
                    self.rejoined = Some(now);
                    effects.push(Effect::Rejoined(identity));
                }
                OwnedNotification::Defunct => defunct = true,
                _ => {}
            }
        }
        while let Ok(state) = self.news.try_recv() {
            effects.push(Effect::State(state.clone()));
            self.states.insert(state.node, state);
        }
        self.refresh(now, effects);
        if defunct {
            self.stop(Effect::Defunct, effects);
        }
    }

    /// Compares the view with what foca holds now; foca has no notification for suspicion.
    fn refresh(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        let own = self.identity().node;
        let mut held = BTreeMap::new();
        for member in self.foca.iter_membership_state() {
            if member.id().node != own {
                held.insert(member.id().node, (*member.id(), member.state()));
            }
        }
        self.view.retain(|node, _| held.contains_key(node));
        for (node, (identity, state)) in held {
            let said = self.states.get(&node).filter(|s| s.nonce == identity.nonce);
            let liveness = match state {
                State::Alive => Liveness::Alive,
                State::Suspect => Liveness::Suspect,
                State::Down if said.is_some_and(|s| s.leaving) => Liveness::Left,
                State::Down => Liveness::Down,
            };
            let known = self.view.get(&node);
            let before = known.map(|p| (p.identity, p.liveness));
            if known.is_some_and(|p| p.last_state.as_ref() == said) && before == Some((identity, liveness)) {
                continue;
            }
            let changed = before != Some((identity, liveness));
            let since = known.filter(|p| p.liveness == liveness).map_or(now, |p| p.since);
            let is_news_to_it = liveness.is_live()
                && before.is_none_or(|(was, fared)| was.nonce != identity.nonce || !fared.is_live());
            if is_news_to_it {
                // It has not heard our state, or forgot it.
                self.repeat_due = self.repeat_due.min(now);
            }
            self.view.insert(node, Peer { identity, liveness, since, last_state: said.cloned() });
            if changed {
                effects.push(Effect::Changed(MemberEvent { node, identity, liveness, before }));
            }
        }
        let alone = !self.view.values().any(|p| p.liveness.is_live());
        if !alone {
            self.alone_since = None;
        } else if self.alone_since.is_none() {
            self.alone_since = Some(now);
            self.silence_due = now + SILENCE_PERIOD;
            self.seeds_due = now;
        }
    }

    fn rearm(&mut self, effects: &mut Vec<Effect>) {
        let next = self.timers.next();
        if self.phase == Phase::Running && next != self.armed {
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
            (_, Event::Publish(report)) if self.phase != Phase::Stopped => self.publish(now, report, effects),
            (Phase::Running, Event::Seeds(seeds)) => self.take_seeds(now, seeds, effects),
            (Phase::Running, Event::Packet { from, bytes }) => self.packet(now, from, &bytes, effects),
            (Phase::Running, Event::Timer) => self.timer(now, effects),
            (Phase::Running, Event::Forget(node)) => self.forget(node),
            (Phase::Running, Event::Leave) => self.leave(now, effects),
            _ => {}
        }
        if self.phase == Phase::Running {
            self.settle(now, effects);
            self.rearm(effects);
        }
    }

    fn check_invariants(&self) {
        let own = self.identity();
        assert!(!self.view.contains_key(&own.node), "1: the own node is among its members");
        assert!(self.view.len() <= limits::GOSSIP_MEMBERS_MAX);
        match self.phase {
            Phase::Running => {
                let live = self.view.values().filter(|p| p.liveness.is_live()).count();
                assert_eq!(live, self.foca.num_members(), "2: the view is not what foca holds");
                assert_eq!(live == 0, self.alone_since.is_some());
                assert_eq!(self.armed, self.timers.next(), "3: the alarm is not the first timer");
            }
            Phase::New | Phase::Stopped => assert_eq!(self.timers.next(), None, "5: a timer without a run"),
        }
        for peer in self.view.values() {
            let said = peer.last_state.as_ref();
            assert!(said.is_none_or(|s| s.nonce == peer.identity.nonce), "a state of another life");
        }
    }
}

fn config() -> Config {
    let every = |frequency, members| {
        Some(PeriodicParams { frequency, num_members: NonZeroUsize::new(members).expect("not zero") })
    };
    Config {
        probe_period: PROBE_PERIOD,
        probe_rtt: PROBE_RTT,
        num_indirect_probes: NonZeroUsize::new(3).expect("not zero"),
        max_transmissions: NonZeroU8::new(10).expect("not zero"),
        suspect_to_down_after: SUSPICION,
        // The dead are forgotten when they are removed from the cluster (`Event::Forget`), so that
        // a partition of any length heals.
        remove_down_after: None,
        max_packet_size: NonZeroUsize::new(packet::FOCA_BYTES).expect("not zero"),
        notify_down_members: true,
        periodic_announce: every(ANNOUNCE_PERIOD, 1),
        periodic_announce_to_down_members: every(CALL_DOWN_PERIOD, 3),
        periodic_gossip: every(GOSSIP_PERIOD, 3),
    }
}
