//! What goes wrong in a scenario: drawn from the seed before it begins, done at fixed simulated times.
//!
//! Two lanes: the network's faults follow one another in one, the hosts' in the other, so that the two
//! kinds overlap and faults of one kind end before the next begins (turmoil can't hold and cut one
//! direction of a link at once).

use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::cluster::{Cluster, mix};

/// A fault of the network. Hosts are indexes into the cluster's names: nodes first, then clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetFault {
    /// Nothing passes between these pairs.
    Cut(Vec<(usize, usize)>),
    /// Nothing passes from the first to the second of each pair.
    OneWay(Vec<(usize, usize)>),
    /// What is sent between these pairs is delivered when the fault ends.
    Hold(Vec<(usize, usize)>),
    /// Each message between these pairs takes so many milliseconds.
    Slow(Vec<(usize, usize)>, u64),
}

impl NetFault {
    fn pairs(&self) -> &[(usize, usize)] {
        match self {
            NetFault::Cut(pairs) | NetFault::OneWay(pairs) | NetFault::Hold(pairs) => pairs,
            NetFault::Slow(pairs, _) => pairs,
        }
    }
}

/// A fault of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostFault {
    /// Its power is cut, or its process killed.
    Crash { silent: bool },
    /// Its next sync fails; its power is cut so many milliseconds later.
    Disk { crash_after: u64 },
    /// Its wall clock is off by so many milliseconds from now on.
    Clock { offset: u64 },
}

/// What is done at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// A fault of the network begins.
    Begin(NetFault),
    /// It ends.
    End(NetFault),
    /// A host fails.
    Fail(usize, HostFault),
    /// It starts again.
    Start(usize),
}

/// All of it, in order of time.
#[derive(Debug, Clone)]
pub struct Plan {
    deeds: Vec<(u64, Deed)>,
    next: usize,
    seed: u64,
}

/// When a node, or the link of a client to it, was disturbed.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// The node.
    pub node: usize,
    /// The client; all, if none.
    pub client: Option<usize>,
    /// From when.
    pub from: u64,
    /// Until when.
    pub to: u64,
}

impl Plan {
    /// Faults among `nodes` nodes and `clients` clients, from `from` to `to` milliseconds.
    pub fn draw(seed: u64, nodes: usize, clients: usize, from: u64, to: u64) -> Plan {
        let mut rng = StdRng::seed_from_u64(mix(seed, 2, 0));
        let mut deeds = Vec::new();
        let mut at = from + rng.random_range(0..500);
        while at < to {
            let length = rng.random_range(20..=3_000_u64);
            let fault = net_fault(&mut rng, nodes, clients);
            deeds.push((at, Deed::Begin(fault.clone())));
            deeds.push(((at + length).min(to), Deed::End(fault)));
            at += length + rng.random_range(0..2_000_u64);
        }
        let mut at = from + rng.random_range(0..1_500);
        while at < to {
            let host = rng.random_range(0..nodes);
            let length = rng.random_range(20..=2_500_u64);
            match rng.random_range(0..6) {
                0 | 1 => {
                    let offset = rng.random_range(0..=200);
                    deeds.push((at, Deed::Fail(host, HostFault::Clock { offset })));
                }
                2 => {
                    let crash_after = rng.random_range(0..600);
                    deeds.push((at, Deed::Fail(host, HostFault::Disk { crash_after })));
                    deeds.push((at + crash_after, Deed::Fail(host, HostFault::Crash { silent: true })));
                    deeds.push((at + crash_after + length, Deed::Start(host)));
                }
                kind => {
                    deeds.push((at, Deed::Fail(host, HostFault::Crash { silent: kind == 3 })));
                    deeds.push((at + length, Deed::Start(host)));
                }
            }
            // Sometimes the next fault begins before this one ends.
            at += rng.random_range(length / 2..=length + 1_500);
        }
        deeds.sort_by_key(|(at, _)| *at);
        Plan { deeds, next: 0, seed }
    }

    /// A plan made by hand.
    pub fn new(seed: u64, mut deeds: Vec<(u64, Deed)>) -> Plan {
        deeds.sort_by_key(|(at, _)| *at);
        Plan { deeds, next: 0, seed }
    }

    /// Does what is due.
    pub fn act(&mut self, cluster: &mut Cluster) {
        let now = cluster.now_ms();
        while let Some((_, deed)) = self.deeds.get(self.next).filter(|(at, _)| *at <= now) {
            let deed = deed.clone();
            self.next += 1;
            self.do_one(cluster, &deed);
        }
    }

    /// Whether nothing is left to do.
    pub fn is_over(&self) -> bool {
        self.next == self.deeds.len()
    }

    fn do_one(&self, cluster: &mut Cluster, deed: &Deed) {
        let now = cluster.now_ms();
        let names = cluster.names.clone();
        let name = |index: usize| names[index].as_str();
        let note = |cluster: &Cluster, text: String| cluster.recorder.note(now, &text);
        match deed {
            Deed::Begin(fault) => {
                note(cluster, format!("begin {fault:?}"));
                match fault {
                    NetFault::Cut(pairs) => {
                        pairs.iter().for_each(|(a, b)| cluster.sim.partition(name(*a), name(*b)));
                    }
                    NetFault::OneWay(pairs) => {
                        pairs.iter().for_each(|(a, b)| cluster.sim.partition_oneway(name(*a), name(*b)));
                    }
                    NetFault::Hold(pairs) => {
                        pairs.iter().for_each(|(a, b)| cluster.sim.hold(name(*a), name(*b)));
                    }
                    NetFault::Slow(pairs, ms) => {
                        for (a, b) in pairs {
                            cluster.sim.set_link_latency(name(*a), name(*b), Duration::from_millis(*ms));
                        }
                    }
                }
            }
            Deed::End(fault) => {
                note(cluster, format!("end {fault:?}"));
                if let NetFault::Slow(pairs, _) = fault {
                    pairs.iter().for_each(|(a, b)| cluster.usual_latency(name(*a), name(*b)));
                    return;
                }
                // The links of a host without power stay cut.
                let dead = |host: usize| host < cluster.hosts.len() && !cluster.is_up(host);
                for (a, b) in fault.pairs().iter().filter(|(a, b)| !dead(*a) && !dead(*b)) {
                    cluster.sim.release(name(*a), name(*b));
                }
            }
            Deed::Fail(host, HostFault::Crash { silent }) if cluster.is_up(*host) => {
                cluster.crash(*host, mix(self.seed, now, 3), *silent);
            }
            Deed::Fail(host, HostFault::Disk { .. }) if cluster.is_up(*host) => {
                note(cluster, format!("n{} disk fails", host + 1));
                cluster.hosts[*host].storage.fail_next_sync("the simulated disk is gone");
            }
            Deed::Fail(host, HostFault::Clock { offset }) => {
                note(cluster, format!("n{} clock +{offset}", host + 1));
                cluster.hosts[*host].offset.store(*offset, Ordering::Relaxed);
            }
            Deed::Fail(..) => {}
            Deed::Start(host) => cluster.bounce(*host),
        }
    }

    /// When which node or client's link was disturbed: only then may a request go without an answer.
    pub fn spans(&self, nodes: usize) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut open: Vec<(u64, &NetFault)> = Vec::new();
        let mut down: Vec<Option<u64>> = vec![None; nodes];
        for (at, deed) in &self.deeds {
            match deed {
                Deed::Begin(fault) => open.push((*at, fault)),
                Deed::End(fault) => {
                    let found = open.iter().position(|(_, begun)| *begun == fault).expect("it has begun");
                    let (from, fault) = open.remove(found);
                    for (a, b) in fault.pairs() {
                        let (low, high) = ((*a).min(*b), (*a).max(*b));
                        if low < nodes && high >= nodes {
                            let client = Some(high - nodes);
                            spans.push(Span { node: low, client, from, to: *at });
                        }
                    }
                }
                Deed::Fail(_, HostFault::Clock { .. }) => {}
                Deed::Fail(host, _) => down[*host] = down[*host].or(Some(*at)),
                Deed::Start(host) => {
                    if let Some(from) = down[*host].take() {
                        spans.push(Span { node: *host, client: None, from, to: *at });
                    }
                }
            }
        }
        spans
    }
}

/// Which links a fault hits: one node's to the others, one node's to all, one pair, a client's to a node,
/// two halves, or a ring in which each node misses one other.
fn net_fault(rng: &mut StdRng, nodes: usize, clients: usize) -> NetFault {
    let node = rng.random_range(0..nodes);
    let other = (node + rng.random_range(1..nodes)) % nodes;
    let mut pairs: Vec<(usize, usize)> = match rng.random_range(0..7) {
        0 | 1 => (0..nodes).filter(|n| *n != node).map(|n| (node, n)).collect(),
        2 => (0..nodes + clients).filter(|n| *n != node).map(|n| (node, n)).collect(),
        3 => vec![(node, other)],
        4 => vec![(node, nodes + rng.random_range(0..clients))],
        5 => {
            let half = rng.random_range(1..nodes);
            (0..half).flat_map(|a| (half..nodes).map(move |b| (a, b))).collect()
        }
        _ => (0..nodes).map(|n| (n, (n + 1) % nodes)).collect(),
    };
    if rng.random_bool(0.5) {
        pairs.iter_mut().for_each(|(a, b)| std::mem::swap(a, b));
    }
    match rng.random_range(0..6) {
        0 => NetFault::OneWay(pairs),
        1 => NetFault::Hold(pairs),
        2 | 3 => NetFault::Slow(pairs, rng.random_range(50..=600)),
        _ => NetFault::Cut(pairs),
    }
}
