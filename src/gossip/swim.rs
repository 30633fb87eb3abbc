//! foca, held so that the machine can steer it: its settings, its output, and two things that it lacks.
//!
//! - *A suspect is told so* (Lifeguard's buddy system). foca passes a suspicion on a few times to whoever
//!   comes next; if the suspect was cut off just then, it never hears of it and dies of it. Here the accuser
//!   tells it in each round, and the others now and then: the accuser may be gone.
//! - *Verdicts can be forgotten.* A node that was cut off holds everyone for dead, and says so to everyone as
//!   soon as it is back. [`Swim::begin_anew`] makes a new foca that holds nobody and has nothing left to say.
//!   (foca's own advice: making one is cheap.)
//!
//! Invariants:
//! 1. Nothing is sent to the own node id: earlier lives of this node are nobody to talk to.
//! 2. After [`Swim::begin_anew`] no timer of the foca before it is delivered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::mpsc;
use std::time::Duration;

use foca::{
    AccumulatingRuntime, Codec, Config, Foca, Header, Incarnation, Member, Message, OwnedNotification,
    PeriodicParams, PostcardCodec, State, Timer,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::digest::{Digests, NodeState};
use super::identity::Identity;
use super::packet::FOCA_BYTES;
use super::timers::{Due, Timers};
use crate::types::ids::NodeId;
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

const _: () = assert!(PROBE_RTT.as_millis() * 2 < PROBE_PERIOD.as_millis());

fn config() -> Config {
    let size = |n| NonZeroUsize::new(n).expect("a constant above zero");
    let every = |frequency, members| Some(PeriodicParams { frequency, num_members: size(members) });
    Config {
        probe_period: PROBE_PERIOD,
        probe_rtt: PROBE_RTT,
        num_indirect_probes: size(3),
        max_transmissions: NonZeroU8::new(10).expect("a constant above zero"),
        suspect_to_down_after: SUSPICION,
        // The dead are forgotten when they are removed from the cluster, so that a partition of any
        // length heals.
        remove_down_after: None,
        max_packet_size: size(FOCA_BYTES),
        notify_down_members: true,
        periodic_announce: every(ANNOUNCE_PERIOD, 1),
        periodic_announce_to_down_members: every(CALL_DOWN_PERIOD, 3),
        periodic_gossip: every(GOSSIP_PERIOD, 3),
    }
}

type Inner = Foca<Identity, PostcardCodec, StdRng, Digests>;

/// What foca left behind after a call.
#[derive(Debug, Default)]
pub struct Output {
    /// Packets, without their envelope.
    pub sends: Vec<(SocketAddr, Vec<u8>)>,
    /// The identity under which it came back after the cluster held it for dead.
    pub rejoined: Option<Identity>,
    /// It can't come back.
    pub defunct: bool,
    /// New states of others.
    pub states: Vec<NodeState>,
}

/// foca and what belongs to it.
pub struct Swim {
    foca: Inner,
    runtime: AccumulatingRuntime<Identity>,
    news: mpsc::Receiver<NodeState>,
    chance: StdRng,
    /// The own incarnation, as the last packet said it.
    incarnation: Incarnation,
    /// Members that this node accuses.
    accused: BTreeSet<NodeId>,
    faults: u64,
}

impl Swim {
    /// foca for `identity`; `chance` is its only source of chance.
    pub fn new(identity: Identity, mut chance: StdRng) -> Swim {
        let (foca, news) = make(identity, &mut chance, std::iter::empty());
        let (runtime, accused) = (AccumulatingRuntime::new(), BTreeSet::new());
        Swim { foca, runtime, news, chance, incarnation: 0, accused, faults: 0 }
    }

    /// The own identity.
    pub fn identity(&self) -> &Identity {
        self.foca.identity()
    }

    /// Times that foca complained about a call that should not fail.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// Live members by foca's own count.
    pub fn live(&self) -> usize {
        self.foca.num_members()
    }

    /// The members that foca holds, without earlier lives of the own node.
    pub fn held(&self) -> BTreeMap<NodeId, (Identity, State)> {
        let own = self.identity().node;
        let others = self.foca.iter_membership_state().filter(|m| m.id().node != own);
        others.map(|m| (m.id().node, (*m.id(), m.state()))).collect()
    }

    /// Takes a packet; says whether foca did.
    pub fn packet(&mut self, body: &[u8]) -> bool {
        self.foca.handle_data(body, &mut self.runtime).is_ok()
    }

    /// Takes a timer.
    pub fn timer(&mut self, timer: Timer<Identity>) {
        let handled = self.foca.handle_timer(timer, &mut self.runtime);
        self.note(handled);
    }

    /// Asks a member to be taken in.
    pub fn announce(&mut self, to: Identity) {
        let announced = self.foca.announce(to, &mut self.runtime);
        self.note(announced);
    }

    /// Goes on under another identity.
    pub fn change_identity(&mut self, identity: Identity) {
        let changed = self.foca.change_identity(identity, &mut self.runtime);
        self.note(changed);
    }

    /// Forgets a member that is held for dead.
    pub fn forget(&mut self, identity: Identity) {
        self.timer(Timer::RemoveDown(identity));
    }

    /// Passes on the own state.
    pub fn say(&mut self, state: &[u8]) {
        let added = self.foca.add_broadcast(state).map(|_| ());
        self.note(added);
    }

    /// Says farewell, three times over: datagrams get lost, and there is no other chance.
    pub fn leave(&mut self) {
        let left = self.foca.leave_cluster(&mut self.runtime);
        self.note(left);
        for _ in 0..2 {
            let said = self.foca.gossip(&mut self.runtime);
            self.note(said);
        }
    }

    /// Tells suspects that they are: those that this node accuses, or `all` that it knows of.
    pub fn tell_suspects(&mut self, all: bool) -> Vec<(SocketAddr, Vec<u8>)> {
        let suspects = self.foca.iter_members().filter(|m| m.state() == State::Suspect);
        let suspects: BTreeMap<NodeId, &Member<Identity>> = suspects.map(|m| (m.id().node, m)).collect();
        self.accused.retain(|node| suspects.contains_key(node));
        let told = suspects.values().filter(|m| all || self.accused.contains(&m.id().node));
        told.filter_map(|suspect| Some((suspect.id().address, self.suspicion(suspect)?))).collect()
    }

    /// A packet that tells a suspect so.
    fn suspicion(&self, suspect: &Member<Identity>) -> Option<Vec<u8>> {
        let header = Header {
            src: *self.foca.identity(),
            src_incarnation: self.incarnation,
            dst: *suspect.id(),
            message: Message::Gossip,
        };
        let mut body = Vec::new();
        PostcardCodec.encode_header(&header, &mut body).ok()?;
        body.extend(1u16.to_be_bytes());
        PostcardCodec.encode_member(suspect, &mut body).ok()?;
        Some(body)
    }

    /// Forgets all members and all that was still to be said: it begins anew. `states` are those known of
    /// others: they are not news again. foca's timers are taken out of `timers`.
    pub fn begin_anew<'a>(&mut self, states: impl Iterator<Item = &'a NodeState>, timers: &mut Timers) {
        (self.foca, self.news) = make(*self.identity(), &mut self.chance, states);
        self.incarnation = 0;
        self.accused.clear();
        timers.drop_foca();
    }

    /// Takes what foca left behind; its timers go to `timers`.
    pub fn output(&mut self, now: Mono, timers: &mut Timers) -> Output {
        let mut output = Output::default();
        let own = self.identity().node;
        while let Some((to, body)) = self.runtime.to_send() {
            if let Ok(header) = PostcardCodec.decode_header(&body[..]) {
                let header: Header<Identity> = header;
                self.incarnation = header.src_incarnation;
            }
            if to.node != own {
                output.sends.push((to.address, body.to_vec()));
            }
        }
        self.schedule(now, timers);
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::Rejoin(identity) => output.rejoined = Some(identity),
                OwnedNotification::Defunct => output.defunct = true,
                _ => {}
            }
        }
        output.states.extend(self.news.try_iter());
        output
    }

    fn schedule(&mut self, now: Mono, timers: &mut Timers) {
        while let Some((after, timer)) = self.runtime.to_schedule() {
            if let Timer::ChangeSuspectToDown { member_id, .. } = &timer {
                self.accused.insert(member_id.node);
            }
            timers.push(now + after, Due::Foca(timer));
        }
    }

    fn note(&mut self, outcome: Result<(), foca::Error>) {
        self.faults += u64::from(outcome.is_err());
    }
}

fn make<'a>(
    identity: Identity,
    chance: &mut StdRng,
    states: impl Iterator<Item = &'a NodeState>,
) -> (Inner, mpsc::Receiver<NodeState>) {
    let (digests, news) = Digests::new(identity.node, states);
    let rng = StdRng::seed_from_u64(chance.random());
    (Foca::with_custom_broadcast(identity, config(), rng, PostcardCodec, digests), news)
}
