//! Whole small clusters in memory: a queue of packets with seeded delays and losses, virtual time, and the
//! invariants of every machine after every step.

mod reports;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::digest::NodeReport;
use super::identity::Identity;
use super::membership::{Effect, Event, Liveness, Membership};
use super::packet::{Packet, Reason, Welcome, seal};
use crate::machine::Machine;
use crate::types::ids::{ClusterId, MapVersion, NodeId, Nonce};
use crate::types::limits;
use crate::types::time::Mono;

const CLUSTER: ClusterId = ClusterId(0xc1);

fn address(host: u64) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, u8::try_from(host).expect("few hosts")], 7401))
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// One process.
struct Host {
    machine: Membership,
    alarm: Option<Mono>,
    frozen: bool,
    inbox: Vec<(SocketAddr, Vec<u8>)>,
    seen: Vec<Effect>,
}

struct Sim {
    now: Mono,
    rng: StdRng,
    /// By host number, which makes the address. A host without a process is down.
    hosts: BTreeMap<u64, Host>,
    wire: BTreeMap<(Mono, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sent: u64,
    loss: f64,
    cut: BTreeSet<(SocketAddr, SocketAddr)>,
    trace: String,
}

impl Sim {
    fn new(seed: u64) -> Sim {
        Sim {
            now: Mono(0),
            rng: StdRng::seed_from_u64(seed),
            hosts: BTreeMap::new(),
            wire: BTreeMap::new(),
            sent: 0,
            loss: 0.0,
            cut: BTreeSet::new(),
            trace: String::new(),
        }
    }

    /// A cluster of hosts 1 to `n`, node i on host i, everyone with everyone as a seed, joined.
    fn cluster(seed: u64, n: u64) -> Sim {
        let mut sim = Sim::new(seed);
        for host in 1..=n {
            sim.boot(host, host, 1_000, &(1..=n).collect::<Vec<_>>());
        }
        sim.until("all joined", ms(3_000), |sim| sim.all_see_all());
        sim
    }

    /// Starts node `node` on `host`, with a new nonce and the seeds on those hosts.
    fn boot(&mut self, host: u64, node: u64, generation: u64, seeds: &[u64]) {
        let nonce = Nonce(self.rng.random());
        let identity = Identity::new(NodeId(node), address(host), nonce, generation);
        let machine = Membership::new(identity, CLUSTER, StdRng::seed_from_u64(self.rng.random()));
        let fresh = Host { machine, alarm: None, frozen: false, inbox: Vec::new(), seen: Vec::new() };
        self.hosts.insert(host, fresh);
        self.step(host, Event::Start { seeds: seeds.iter().map(|h| address(*h)).collect() });
    }

    fn kill(&mut self, host: u64) {
        self.hosts.remove(&host);
    }

    fn machine(&self, host: u64) -> &Membership {
        &self.hosts[&host].machine
    }

    fn step(&mut self, host: u64, event: Event) {
        let now = self.now;
        let Some(process) = self.hosts.get_mut(&host) else { return };
        let mut effects = Vec::new();
        process.machine.step(now, event, &mut effects);
        process.machine.check_invariants();
        assert_eq!(process.machine.faults(), 0, "foca complained");
        for effect in effects {
            match effect {
                Effect::Send { to, bytes } => {
                    assert!(bytes.len() <= limits::GOSSIP_PACKET_BYTES);
                    self.sent += 1;
                    let lost = self.loss > 0.0 && self.rng.random_bool(self.loss);
                    let at = now + Duration::from_micros(self.rng.random_range(200..8_000));
                    if !lost {
                        self.wire.insert((at, self.sent), (address(host), to, bytes));
                    }
                }
                Effect::Arm { at } => process.alarm = Some(at),
                other => {
                    writeln!(self.trace, "{now} host {host}: {other:?}").expect("a string takes it");
                    process.seen.push(other);
                }
            }
        }
    }

    /// One packet or alarm: whichever is first. Returns its time.
    fn advance(&mut self) {
        let alarm = self
            .hosts
            .iter()
            .filter(|(_, p)| !p.frozen)
            .filter_map(|(host, p)| p.alarm.map(|at| (at.max(self.now), *host)))
            .min();
        let packet = self.wire.first_key_value().map(|((at, _), _)| *at);
        match (alarm, packet) {
            (Some((at, host)), packet) if packet.is_none_or(|p| at < p) => {
                self.now = at;
                self.hosts.get_mut(&host).expect("it has an alarm").alarm = None;
                self.step(host, Event::Timer);
            }
            (_, Some(at)) => {
                self.now = self.now.max(at);
                let (_, (from, to, bytes)) = self.wire.pop_first().expect("there is one");
                let host = u64::from(match to.ip() {
                    std::net::IpAddr::V4(ip) => ip.octets()[3],
                    std::net::IpAddr::V6(_) => unreachable!("no such addresses here"),
                });
                let Some(process) = self.hosts.get_mut(&host) else { return };
                if self.cut.contains(&(from, to)) {
                } else if process.frozen {
                    process.inbox.push((from, bytes));
                } else {
                    self.step(host, Event::Packet { from, bytes });
                }
            }
            // Nobody is left: time goes on all the same.
            _ => self.now = self.now + ms(1_000),
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.advance();
        }
    }

    /// Runs until `done`, which must be within `limit`; says how long it took.
    fn until(&mut self, what: &str, limit: Duration, done: impl Fn(&Sim) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            assert!(self.now <= start + limit, "not within {limit:?}: {what}\n{}", self.trace);
            self.advance();
        }
        Duration::from_micros(self.now.micros_since(start))
    }

    /// Cuts the hosts apart from all others.
    fn partition(&mut self, side: &[u64]) {
        for a in 1..=9 {
            for b in 1..=9 {
                if side.contains(&a) != side.contains(&b) {
                    self.cut.insert((address(a), address(b)));
                }
            }
        }
    }

    fn thaw(&mut self, host: u64) {
        let process = self.hosts.get_mut(&host).expect("frozen");
        process.frozen = false;
        process.alarm = None;
        let inbox = std::mem::take(&mut process.inbox);
        // The alarm is long due and comes first; a driver may well do it so.
        self.step(host, Event::Timer);
        for (from, bytes) in inbox {
            self.step(host, Event::Packet { from, bytes });
        }
    }

    fn liveness(&self, host: u64, node: u64) -> Option<Liveness> {
        self.machine(host).members().get(&NodeId(node)).map(|p| p.liveness)
    }

    /// Whether all processes see `node` so (but itself).
    fn all_see(&self, node: u64, liveness: Liveness) -> bool {
        self.hosts.iter().all(|(host, p)| {
            p.machine.identity().node == NodeId(node) || self.liveness(*host, node) == Some(liveness)
        })
    }

    fn all_see_all(&self) -> bool {
        let nodes: Vec<u64> = self.hosts.values().map(|p| p.machine.identity().node.0).collect();
        nodes.iter().all(|node| {
            let identity = self.hosts.values().map(|p| p.machine.identity()).find(|i| i.node.0 == *node);
            self.all_see(*node, Liveness::Alive)
                && self.hosts.values().all(|p| {
                    p.machine.members().get(&NodeId(*node)).is_none_or(|m| Some(&m.identity) == identity)
                })
        })
    }

    fn has_seen(&self, host: u64, what: impl Fn(&Effect) -> bool) -> bool {
        self.hosts[&host].seen.iter().any(what)
    }

    fn never_down(&self) -> bool {
        !self.trace.contains("liveness: Down")
    }
}

/// A packet by which `from` asks `to` to take it in.
fn announcement(from: Identity, to: Identity) -> Vec<u8> {
    let message = foca::Message::Announce;
    let header = foca::Header { src: from, src_incarnation: 0, dst: to, message };
    let mut body = Vec::new();
    foca::Codec::encode_header(&mut foca::PostcardCodec, &header, &mut body).expect("encodes");
    seal(CLUSTER, &Packet::Foca(&body))
}

fn rejoins(sim: &Sim) -> usize {
    let of = |p: &Host| p.seen.iter().filter(|e| matches!(e, Effect::Rejoined(_))).count();
    sim.hosts.values().map(of).sum()
}

fn report(load: u32) -> NodeReport {
    NodeReport {
        map_version: MapVersion(1),
        client_address: "db:7400".into(),
        durability: "always".into(),
        load,
        ..NodeReport::default()
    }
}

fn load(sim: &Sim, host: u64, node: u64) -> Option<u32> {
    Some(sim.machine(host).members().get(&NodeId(node))?.last_state.as_ref()?.report.load)
}

#[test]
fn nodes_join_by_the_address_of_one_seed() {
    let mut sim = Sim::new(1);
    for host in 1..=5 {
        sim.boot(host, host + 100, 1, &[1]);
    }
    let took = sim.until("joined", ms(3_000), |sim| sim.all_see_all());
    assert!(took < ms(1_500), "{took:?}");
    assert!(sim.never_down());
}

#[test]
fn a_killed_node_is_down_for_all_within_four_seconds() {
    for seed in 0..8 {
        let mut sim = Sim::cluster(seed, 5);
        sim.run(ms(500 + seed * 37));
        sim.kill(3);
        let took = sim.until("down", ms(4_000), |sim| sim.all_see(3, Liveness::Down));
        assert!(took > ms(1_500), "no time to speak up: {took:?}");
        assert!((1..=5).filter(|h| *h != 3).any(|h| {
            sim.has_seen(h, |e| matches!(e, Effect::Changed(c) if c.liveness == Liveness::Suspect))
        }));
    }
}

#[test]
fn a_restart_is_back_at_once_though_its_last_life_is_held_for_live() {
    // Also with the clock set back, and on another host.
    for (generation, host) in [(2_000, 3), (10, 3), (2_000, 7), (10, 7)] {
        let mut sim = Sim::cluster(5, 4);
        sim.run(ms(300));
        sim.kill(3);
        sim.run(ms(50));
        assert!(sim.all_see(3, Liveness::Alive));
        sim.boot(host, 3, generation, &[1, 2]);
        let took = sim.until("back", ms(4_000), |sim| sim.all_see_all());
        assert!(host == 7 || took < ms(1_500), "{took:?}");
        sim.run(ms(10_000));
        assert!(sim.all_see_all());
        assert!(!sim.has_seen(host, |e| matches!(e, Effect::Duplicate(_))));
    }
}

#[test]
fn a_restart_after_it_was_declared_down_comes_back() {
    for generation in [2_000, 10] {
        let mut sim = Sim::cluster(6, 4);
        sim.kill(3);
        sim.until("down", ms(4_000), |sim| sim.all_see(3, Liveness::Down));
        sim.boot(3, 3, generation, &[1]);
        sim.until("back", ms(2_000), |sim| sim.all_see_all());
        sim.run(ms(5_000));
        assert!(sim.all_see_all());
    }
}

#[test]
fn of_two_live_processes_with_one_node_id_the_later_one_stops() {
    for generation in [10, 5_000] {
        let mut sim = Sim::cluster(7, 4);
        sim.run(ms(1_000));
        sim.boot(8, 3, generation, &[1, 2]);
        let found = |e: &Effect| matches!(e, Effect::Duplicate(_));
        sim.until("found", ms(2_000), |sim| sim.has_seen(8, found));
        sim.kill(8);
        sim.run(ms(6_000));
        assert!(!sim.has_seen(3, found), "the elder goes on");
        assert!(sim.has_seen(3, |e| matches!(e, Effect::Rival(_))));
        assert!(sim.all_see_all(), "and is still a member");
        let taken = |e: &Effect| matches!(e, Effect::Changed(c) if c.identity.address == address(8));
        assert!([1, 2, 4].iter().all(|h| !sim.has_seen(*h, taken)), "nobody took the twin in");
    }
}

#[test]
fn twins_that_a_partition_kept_apart_are_found_when_it_heals() {
    for generation in [10, 5_000] {
        let mut sim = Sim::cluster(8, 4);
        sim.partition(&[1, 3]);
        sim.run(ms(5_000));
        sim.boot(8, 3, generation, &[2, 4]);
        sim.until("twin joined", ms(4_000), |sim| sim.liveness(2, 3) == Some(Liveness::Alive));
        sim.run(ms(6_000));
        sim.cut.clear();
        let found = |e: &Effect| matches!(e, Effect::Duplicate(_));
        sim.until("found", ms(20_000), |sim| sim.has_seen(8, found));
        sim.kill(8);
        sim.until("healed", ms(10_000), |sim| sim.all_see_all());
        assert!(!sim.has_seen(3, found));
    }
}

/// Its identity loses against one that others hold for live, until it has found out that nobody is there.
#[test]
fn a_node_that_loses_to_a_dead_twin_does_not_flood_the_cluster() {
    let mut sim = Sim::cluster(8, 4);
    sim.run(ms(6_000));
    let twin = Identity::new(NodeId(3), address(8), Nonce(1), 5_000);
    for host in [1, 2, 4] {
        let bytes = announcement(twin, *sim.machine(host).identity());
        sim.step(host, Event::Packet { from: address(8), bytes });
    }
    let (sent, rejoined) = (sim.sent, rejoins(&sim));
    sim.run(ms(3_000));
    let (sent, rejoined) = (sim.sent - sent, rejoins(&sim) - rejoined);
    assert!(rejoined <= 5 && sent < 1_000, "{rejoined} identities, {sent} packets");
    sim.until("healed", ms(5_000), |sim| sim.all_see_all());
    sim.run(ms(5_000));
    assert!(sim.all_see_all());
}

#[test]
fn partitions_heal_by_themselves() {
    // Halves, and everyone alone.
    let sides: [&[&[u64]]; 2] = [&[&[1, 2]], &[&[1], &[2], &[3], &[4], &[5]]];
    for (seed, sides) in sides.iter().enumerate() {
        let mut sim = Sim::cluster(seed as u64, 5);
        for side in *sides {
            sim.partition(side);
        }
        sim.until("split", ms(5_000), |sim| {
            sim.liveness(1, 3) == Some(Liveness::Down) && sim.liveness(3, 1) == Some(Liveness::Down)
        });
        for host in 1..=5 {
            // Also without seeds.
            sim.step(host, Event::Seeds(Vec::new()));
        }
        sim.run(ms(60_000));
        sim.cut.clear();
        let before = rejoins(&sim);
        sim.until("healed", ms(10_000), |sim| sim.all_see_all());
        sim.run(ms(20_000));
        assert!(sim.all_see_all(), "it stays healed");
        // Who was all alone has no verdicts that others would have to refute.
        let most = if sides.len() == 1 { 5 } else { 0 };
        assert!(rejoins(&sim) - before <= most, "{}", rejoins(&sim) - before);
    }
}

/// Also when the suspicion was passed on while the suspect could not hear it: the accuser tells it again.
#[test]
fn a_short_silence_is_refuted() {
    for seed in 0..8 {
        let mut sim = Sim::cluster(seed, 5);
        sim.run(ms(seed * 53));
        sim.partition(&[2]);
        sim.run(ms(1_100));
        sim.cut.clear();
        sim.until("refuted", ms(3_000), |sim| sim.all_see_all());
        sim.run(ms(5_000));
        assert!(sim.trace.contains("liveness: Suspect"), "seed {seed}: nobody was suspected");
        assert!(sim.never_down(), "seed {seed}\n{}", sim.trace);
    }
}

#[test]
fn loss_kills_nobody_for_long() {
    let mut sim = Sim::cluster(10, 5);
    sim.loss = 0.2;
    sim.run(ms(60_000));
    sim.loss = 0.0;
    sim.until("calm", ms(10_000), |sim| sim.all_see_all());
}

/// A node that stood still finds its timers long due, and the answers to its probes unread.
#[test]
fn a_node_that_stood_still_accuses_nobody() {
    for seed in 0..8 {
        let mut sim = Sim::cluster(seed, 4);
        let ping =
            |sim: &Sim| sim.wire.values().any(|(from, to, _)| *from == address(2) && *to != address(2));
        sim.run(ms(1_000));
        sim.until("it asks someone", ms(2_000), ping);
        sim.hosts.get_mut(&2).expect("there").frozen = true;
        sim.run(ms(if seed % 2 == 0 { 900 } else { 9_000 }));
        sim.thaw(2);
        sim.until("back", ms(5_000), |sim| sim.all_see_all());
        sim.run(ms(5_000));
        for host in 1..=4 {
            let accused = |e: &Effect| matches!(e, Effect::Changed(c) if c.node != NodeId(2) && c.liveness != Liveness::Alive);
            assert!(!sim.has_seen(host, accused), "seed {seed}, host {host}\n{}", sim.trace);
        }
    }
}

#[test]
fn who_leaves_is_left_not_down() {
    let mut sim = Sim::cluster(12, 5);
    sim.step(4, Event::Leave);
    assert_eq!(sim.hosts[&4].seen.last(), Some(&Effect::Left));
    sim.kill(4);
    let took = sim.until("left", ms(2_000), |sim| sim.all_see(4, Liveness::Left));
    assert!(took < ms(1_000), "{took:?}");
    sim.run(ms(5_000));
    assert!(sim.all_see(4, Liveness::Left));
    sim.boot(4, 4, 2_000, &[1]);
    sim.until("back", ms(2_000), |sim| sim.all_see_all());
    sim.step(4, Event::Leave);
    sim.kill(4);
    sim.until("left again", ms(2_000), |sim| sim.all_see(4, Liveness::Left));
    for host in [1, 2, 3, 5] {
        sim.step(host, Event::Forget(NodeId(4)));
    }
    sim.run(ms(10_000));
    assert!([1, 2, 3, 5].iter().all(|h| sim.liveness(*h, 4).is_none()), "forgotten");
}
