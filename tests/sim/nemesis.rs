//! What goes wrong in a scenario: drawn from the seed before it begins, done at fixed simulated times.
//!
//! Two lanes: the network's faults follow one another in one, the hosts' in the other, so that the two
//! kinds overlap and faults of the network end before the next begins (turmoil can't hold and cut one
//! direction of a link at once). A pause is one of the network's: turmoil has none, so a host stands still in
//! that nothing reaches it or leaves it, and its disk does nothing; all of it goes on at the end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::check::honest::{Cut, Span};
use crate::cluster::{Cluster, mix};
use crate::draw::Mix;

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
    /// A node stands still; the pairs are all of its.
    Pause(usize, Vec<(usize, usize)>),
    /// So many of 100 datagrams are lost.
    Datagrams(u32),
}

impl NetFault {
    fn pairs(&self) -> &[(usize, usize)] {
        match self {
            NetFault::Cut(pairs) | NetFault::OneWay(pairs) | NetFault::Hold(pairs) => pairs,
            NetFault::Slow(pairs, _) | NetFault::Pause(_, pairs) => pairs,
            NetFault::Datagrams(_) => &[],
        }
    }
}

/// A fault of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostFault {
    /// Its power is cut, or its process killed.
    Crash { silent: bool },
    /// The same, and its disk is lost: it starts on an empty one.
    LostDisk { silent: bool },
    /// Its next sync fails; its power is cut so many milliseconds later.
    Disk { crash_after: u64 },
    /// A sync takes so many milliseconds, until it is mended.
    SlowDisk { sync_ms: u64 },
    /// Its disk takes no more than so many bytes, until it is mended.
    FullDisk { spare: u64 },
    /// Its wall clock is off by so many milliseconds from now on.
    Clock { offset: u64 },
    /// The other nodes don't hear it, nor it them, until it is started again; clients do.
    Alone,
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
    /// Its disk and clock are in order again.
    Mend(usize),
}

/// All of it, in order of time.
#[derive(Debug, Clone)]
pub struct Plan {
    deeds: Vec<(u64, Deed)>,
    next: usize,
    seed: u64,
}

impl Plan {
    /// Faults of the kinds in `kinds` among `nodes` nodes and `clients` clients, from `from` to `to` milliseconds.
    pub fn draw(seed: u64, kinds: Mix, nodes: usize, clients: usize, from: u64, to: u64) -> Plan {
        let mut rng = StdRng::seed_from_u64(mix(seed, 2, 0));
        let mut deeds = Vec::new();
        let mut at = from + rng.random_range(0..500);
        while at < to {
            let length = rng.random_range(20..=3_000_u64);
            if let Some(fault) = net_fault(&mut rng, kinds, nodes, clients) {
                deeds.push((at, Deed::Begin(fault.clone())));
                deeds.push(((at + length).min(to), Deed::End(fault)));
            }
            at += length + rng.random_range(0..2_000_u64);
        }
        let mut at = from + rng.random_range(0..1_500);
        while at < to {
            let length = rng.random_range(20..=2_500_u64);
            host_fault(&mut rng, kinds, nodes, at, length, &mut deeds);
            // Sometimes the next fault begins before this one ends.
            at += rng.random_range(length / 2..=length + 1_500);
        }
        if kinds.lost_disk {
            // One of all, once: what two replicas have acknowledged is on another then.
            let rng = &mut StdRng::seed_from_u64(mix(seed, 22, 0));
            let (host, at) = (rng.random_range(0..nodes), rng.random_range(from..to));
            deeds.push((at, Deed::Fail(host, HostFault::LostDisk { silent: rng.random_bool(0.5) })));
            deeds.push((at + rng.random_range(20..=2_500), Deed::Start(host)));
        }
        Plan::new(seed, deeds)
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
            match deed {
                Deed::Begin(fault) => begin(cluster, &fault),
                Deed::End(fault) => end(cluster, &fault),
                Deed::Fail(host, fault) => fail(cluster, host, &fault, mix(self.seed, now, 3 + host as u64)),
                Deed::Start(host) => cluster.bounce(host),
                Deed::Mend(host) => {
                    cluster.recorder.note(now, &format!("n{} is mended", host + 1));
                    cluster.mend(host);
                }
            }
        }
    }

    /// The names of what it does.
    #[cfg(test)]
    pub fn kinds(&self) -> Vec<String> {
        let name = |value: &dyn std::fmt::Debug| {
            let text = format!("{value:?}");
            text.split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
        };
        let kind = |(_, deed): &(u64, Deed)| match deed {
            Deed::Begin(fault) => format!("Begin({}", name(fault)),
            Deed::End(fault) => format!("End({}", name(fault)),
            Deed::Fail(_, fault) => format!("Fail({}", name(fault)),
            Deed::Start(_) | Deed::Mend(_) => name(deed),
        };
        self.deeds.iter().map(kind).collect()
    }

    /// Whether nothing is left to do.
    pub fn is_over(&self) -> bool {
        self.next == self.deeds.len()
    }

    /// When what two nodes send each other is disturbed.
    pub fn cuts(&self, nodes: usize) -> Vec<Cut> {
        let mut cuts = Vec::new();
        let mut open: Vec<(u64, &NetFault)> = Vec::new();
        for (at, deed) in &self.deeds {
            match deed {
                Deed::Begin(fault) => open.push((*at, fault)),
                Deed::End(fault) => {
                    let found = open.iter().position(|(_, begun)| *begun == fault).expect("it has begun");
                    let (from, fault) = open.remove(found);
                    let between = fault.pairs().iter().filter(|(a, b)| *a.max(b) < nodes).copied();
                    cuts.extend(between.map(|nodes| Cut { nodes, from, to: *at }));
                }
                _ => {}
            }
        }
        cuts
    }

    /// When which node or client's link was disturbed: only then may a request go without an answer.
    pub fn spans(&self, nodes: usize) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut open: Vec<(u64, &NetFault)> = Vec::new();
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
                Deed::Fail(node, fault) => {
                    let down = match fault {
                        HostFault::Crash { .. } | HostFault::LostDisk { .. } => *at,
                        HostFault::Disk { crash_after } => at + crash_after,
                        _ => continue,
                    };
                    let up = self.deeds.iter().find(|(t, deed)| *t >= down && *deed == Deed::Start(*node));
                    let to = up.map_or(u64::MAX - down, |(to, _)| *to);
                    spans.push(Span { node: *node, client: None, from: *at, to });
                }
                Deed::Start(_) | Deed::Mend(_) => {}
            }
        }
        spans
    }
}

fn begin(cluster: &mut Cluster, fault: &NetFault) {
    let (now, names) = (cluster.now_ms(), cluster.names.clone());
    let name = |index: usize| names[index].as_str();
    cluster.recorder.note(now, &format!("begin {fault:?}"));
    match fault {
        NetFault::Cut(pairs) => pairs.iter().for_each(|(a, b)| cluster.sim.partition(name(*a), name(*b))),
        NetFault::OneWay(pairs) => {
            pairs.iter().for_each(|(a, b)| cluster.sim.partition_oneway(name(*a), name(*b)));
        }
        NetFault::Hold(pairs) => pairs.iter().for_each(|(a, b)| cluster.sim.hold(name(*a), name(*b))),
        NetFault::Slow(pairs, ms) => {
            for (a, b) in pairs {
                cluster.sim.set_link_latency(name(*a), name(*b), Duration::from_millis(*ms));
            }
        }
        NetFault::Pause(host, pairs) => {
            cluster.hosts[*host].storage.set_sync_takes(Duration::from_secs(3));
            pairs.iter().for_each(|(a, b)| cluster.sim.hold(name(*a), name(*b)));
        }
        NetFault::Datagrams(loss) => cluster.loss.store(*loss, Ordering::Relaxed),
    }
}

fn end(cluster: &mut Cluster, fault: &NetFault) {
    let (now, names) = (cluster.now_ms(), cluster.names.clone());
    let name = |index: usize| names[index].as_str();
    cluster.recorder.note(now, &format!("end {fault:?}"));
    match fault {
        NetFault::Slow(pairs, _) => {
            pairs.iter().for_each(|(a, b)| cluster.usual_latency(name(*a), name(*b)));
            return;
        }
        NetFault::Pause(host, _) => cluster.mend(*host),
        NetFault::Datagrams(_) => cluster.loss.store(0, Ordering::Relaxed),
        NetFault::Cut(_) | NetFault::OneWay(_) | NetFault::Hold(_) => {}
    }
    // The links of a host without power stay cut.
    let dead = |host: usize| host < cluster.hosts.len() && !cluster.is_up(host);
    for (a, b) in fault.pairs().iter().filter(|(a, b)| !dead(*a) && !dead(*b)) {
        cluster.sim.release(name(*a), name(*b));
    }
}

fn fail(cluster: &mut Cluster, host: usize, fault: &HostFault, seed: u64) {
    let now = cluster.now_ms();
    let storage = cluster.hosts[host].storage.clone();
    let note = |cluster: &Cluster, text: String| cluster.recorder.note(now, &format!("n{} {text}", host + 1));
    match fault {
        HostFault::Clock { offset } => {
            note(cluster, format!("clock +{offset}"));
            cluster.hosts[host].offset.store(*offset, Ordering::Relaxed);
        }
        HostFault::SlowDisk { sync_ms } => {
            note(cluster, format!("a sync takes {sync_ms} ms"));
            storage.set_sync_takes(Duration::from_millis(*sync_ms));
        }
        HostFault::FullDisk { spare } => {
            note(cluster, format!("the disk has room for {spare} bytes"));
            storage.set_capacity(Some(quoral::storage::Storage::disk_bytes(&*storage) + spare));
        }
        HostFault::Alone => {
            note(cluster, "is alone".into());
            cluster.cut_off(host);
        }
        HostFault::Crash { silent } if cluster.is_up(host) => cluster.crash(host, seed, *silent),
        HostFault::LostDisk { silent } => {
            if cluster.is_up(host) {
                cluster.crash(host, seed, *silent);
            }
            cluster.lose_disk(host);
        }
        HostFault::Disk { .. } if cluster.is_up(host) => {
            note(cluster, "disk fails".into());
            storage.fail_next_sync("the simulated disk is gone");
        }
        HostFault::Crash { .. } | HostFault::Disk { .. } => {}
    }
}

/// One of `kinds` that are on, evenly.
fn one_kind<const N: usize>(rng: &mut StdRng, kinds: [bool; N]) -> Option<usize> {
    let on: Vec<usize> = (0..N).filter(|kind| kinds[*kind]).collect();
    let drawn = rng.random_range(0..on.len().max(1));
    on.get(drawn).copied()
}

/// Which links a fault hits: one node's to the others, one node's to all, one pair, a client's to a node,
/// two halves, or a ring in which each node misses one other.
fn pairs(rng: &mut StdRng, nodes: usize, clients: usize) -> Vec<(usize, usize)> {
    let node = rng.random_range(0..nodes);
    let other = (node + rng.random_range(1..nodes)) % nodes;
    let mut pairs: Vec<(usize, usize)> = match rng.random_range(0..9) {
        0 | 1 => (0..nodes).filter(|n| *n != node).map(|n| (node, n)).collect(),
        2 => (0..nodes + clients).filter(|n| *n != node).map(|n| (node, n)).collect(),
        3..=5 => vec![(node, other)],
        6 => vec![(node, nodes + rng.random_range(0..clients))],
        7 => {
            let half = rng.random_range(1..nodes);
            (0..half).flat_map(|a| (half..nodes).map(move |b| (a, b))).collect()
        }
        _ => (0..nodes).map(|n| (n, (n + 1) % nodes)).collect(),
    };
    if rng.random_bool(0.5) {
        pairs.iter_mut().for_each(|(a, b)| std::mem::swap(a, b));
    }
    pairs
}

fn net_fault(rng: &mut StdRng, kinds: Mix, nodes: usize, clients: usize) -> Option<NetFault> {
    let pairs = pairs(rng, nodes, clients);
    let Mix { cuts, holds, slow_links, pauses, datagrams, .. } = kinds;
    let kind = one_kind(rng, [cuts, cuts, holds, slow_links, pauses, datagrams])?;
    Some(match kind {
        0 => NetFault::Cut(pairs),
        1 => NetFault::OneWay(pairs),
        2 => NetFault::Hold(pairs),
        3 => NetFault::Slow(pairs, rng.random_range(50..=600)),
        4 => {
            let node = rng.random_range(0..nodes);
            let all = (0..nodes + clients).filter(|n| *n != node).map(|n| (node, n));
            NetFault::Pause(node, all.collect())
        }
        _ => NetFault::Datagrams(rng.random_range(10..=100)),
    })
}

fn host_fault(
    rng: &mut StdRng,
    kinds: Mix,
    nodes: usize,
    at: u64,
    length: u64,
    deeds: &mut Vec<(u64, Deed)>,
) {
    let Mix { crashes, blackouts, disk_errors, slow_disks, full_disks, clocks, wild_clocks, .. } = kinds;
    let Mix { clocks_back, torn, full_cluster, .. } = kinds;
    let host = rng.random_range(0..nodes);
    let on = [
        crashes,
        blackouts,
        disk_errors,
        slow_disks,
        full_disks,
        clocks,
        wild_clocks,
        clocks_back,
        torn,
        full_cluster,
    ];
    let Some(kind) = one_kind(rng, on) else { return };
    match kind {
        0 => {
            deeds.push((at, Deed::Fail(host, HostFault::Crash { silent: rng.random_bool(0.5) })));
            deeds.push((at + length, Deed::Start(host)));
        }
        1 => {
            let many = rng.random_range(2..=nodes);
            let silent = rng.random_bool(0.5);
            // What is acknowledged too early is lost if it was written shortly before.
            let slow = rng.random_bool(0.5).then(|| rng.random_range(50..=400));
            for host in (host..host + many).map(|host| host % nodes) {
                if let Some(sync_ms) = slow {
                    deeds.push((at.saturating_sub(500), Deed::Fail(host, HostFault::SlowDisk { sync_ms })));
                    deeds.push((at, Deed::Mend(host)));
                }
                deeds.push((at, Deed::Fail(host, HostFault::Crash { silent })));
                deeds.push((at + rng.random_range(20..=length), Deed::Start(host)));
            }
        }
        2 => {
            let crash_after = rng.random_range(0..600);
            deeds.push((at, Deed::Fail(host, HostFault::Disk { crash_after })));
            deeds.push((at + crash_after, Deed::Fail(host, HostFault::Crash { silent: true })));
            deeds.push((at + crash_after + length, Deed::Start(host)));
        }
        3 => {
            let sync_ms = rng.random_range(20..=400);
            deeds.push((at, Deed::Fail(host, HostFault::SlowDisk { sync_ms })));
            if rng.random_bool(0.6) {
                deeds.push((at + length, Deed::Fail(host, HostFault::Crash { silent: true })));
                deeds.push((at + length + 100, Deed::Start(host)));
            }
            deeds.push((at + length + 100, Deed::Mend(host)));
        }
        4 => {
            let spare = rng.random_range(0..400);
            deeds.push((at, Deed::Fail(host, HostFault::FullDisk { spare })));
            deeds.push((at + length, Deed::Mend(host)));
        }
        5 => {
            let offset = rng.random_range(0..=200);
            deeds.push((at, Deed::Fail(host, HostFault::Clock { offset })));
        }
        6 => {
            let offset = rng.random_range(600..=1_500);
            deeds.push((at, Deed::Fail(host, HostFault::Clock { offset })));
            if rng.random_bool(0.5) {
                // It comes back with its clock in order: behind what it stamped before.
                let crash = at + length / 2;
                if rng.random_bool(0.5) {
                    // And nobody has heard of those.
                    deeds.push((crash - length / 4, Deed::Fail(host, HostFault::Alone)));
                }
                deeds.push((crash, Deed::Fail(host, HostFault::Crash { silent: false })));
                deeds.push((crash + 20, Deed::Mend(host)));
                deeds.push((crash + 20, Deed::Start(host)));
            }
            deeds.push((at + length, Deed::Mend(host)));
        }
        7 => set_clocks_right(rng, nodes, at, length, deeds),
        8 => {
            // What it took meanwhile is on its disk alone, and no hint tells of the last of it.
            deeds.push((at, Deed::Fail(host, HostFault::Alone)));
            let crash = at + rng.random_range(20..=length.min(800));
            deeds.push((crash, Deed::Fail(host, HostFault::Crash { silent: rng.random_bool(0.5) })));
            deeds.push((crash + rng.random_range(20..=500), Deed::Start(host)));
        }
        _ => {
            for host in (host..host + rng.random_range(2..=nodes)).map(|host| host % nodes) {
                let spare = rng.random_range(0..200);
                deeds.push((at, Deed::Fail(host, HostFault::FullDisk { spare })));
                deeds.push((at + length, Deed::Mend(host)));
            }
        }
    }
}

/// A wrong source of time leads all clocks astray together. Somebody sees it, stops all nodes, sets the clocks right,
/// and starts the nodes: nobody is left who knows how far the stamps were.
fn set_clocks_right(rng: &mut StdRng, nodes: usize, at: u64, length: u64, deeds: &mut Vec<(u64, Deed)>) {
    let offset = rng.random_range(600..=1_500);
    for host in 0..nodes {
        deeds.push((at, Deed::Fail(host, HostFault::Clock { offset })));
        deeds.push((at + length, Deed::Fail(host, HostFault::Crash { silent: false })));
        deeds.push((at + length + 10, Deed::Mend(host)));
        deeds.push((at + length + rng.random_range(20..=100), Deed::Start(host)));
    }
}
