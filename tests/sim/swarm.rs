//! One scenario of the swarm: chaos drawn from a seed, then calm, then the checks.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quoral::canary::Canary;
use quoral::ring::layout::ClusterMap;
use quoral::ring::preflist::homes;
use quoral::types::ids::NodeId;
use quoral::types::key::Position;
use quoral::types::time::WallMs;

use crate::check::honest::Gauge;
use crate::check::state::{f23_one_map, g5_purged, g7_converges, holding};
use crate::check::{Finding, READER, check_with, g5_expired_stays_expired, honest, lives};
use crate::client::{Ask, Client};
use crate::clock::{EPOCH_MS, now_ms};
use crate::cluster::Cluster;
use crate::draw::{Draw, default_space, draw, reborn_space};
use crate::history::{Op, Outcome, Space, digest};
use crate::nemesis::Plan;
use crate::story::story;
use crate::upkeep::{APART_MS, BRIEF, Purge};
use crate::workload::{BATCH_MOST, add_client, cold_keys, keys};

/// The bar for the time from the repair to the first write that all replicas take, through every node.
pub const RECOVERY_MS: u64 = 3_000;
/// How long after the repair all hints must be home: a refused one waits for a second, a few may be refused twice.
const HINTS_HOME_MS: u64 = 10_000;
/// How long after the repair a node that lost its disk must have everything back, at the latest.
const REFILLED_MS: u64 = 20_000;

/// What came of it.
pub struct Report {
    /// Everything that is wrong.
    pub wrong: Vec<Finding>,
    /// The story of the first thing that is wrong.
    pub story: String,
    /// The events.
    pub trace: Vec<String>,
    /// From the repair until every node's writes reach all replicas.
    pub recovery_ms: u64,
    /// Simulated time in all.
    pub simulated_ms: u64,
    /// How many nodes there were.
    pub nodes: usize,
    /// A line for people.
    pub summary: String,
}

/// Plays the scenario of a seed.
pub fn run(seed: u64, canary: Option<Canary>) -> Report {
    let draw = draw(seed, canary);
    let nodes = draw.setup.zones.len();
    let mut cluster = Cluster::new(draw.setup.clone());
    if draw.more.batches {
        cluster.answer_bytes *= BATCH_MOST;
    }
    cluster.until_ready(10_000);
    let begin = cluster.now_ms();
    let mut plan = Plan::draw(seed, draw.mix, nodes, draw.clients, begin + 200, begin + draw.chaos_ms);
    let spans = plan.spans(nodes);
    let patience = Duration::from_millis(4 * draw.setup.weather.latency_max + 100);
    for number in 0..draw.clients {
        add_client(&mut cluster, &draw, number, patience);
    }
    loop {
        let done = cluster.step();
        plan.act(&mut cluster);
        if done && plan.is_over() {
            break;
        }
    }
    let in_chaos = cluster.purged();
    cluster.heal();
    let recovery_ms = recover(&mut cluster, patience);
    let mut wrong = Vec::new();
    if recovery_ms > RECOVERY_MS {
        wrong.push(Finding::new("recovery", format!("took {recovery_ms} ms, over {RECOVERY_MS} ms")));
    }
    wrong.extend(calm(&mut cluster, &draw, patience));
    let (ops, maps) = (cluster.recorder.ops(), cluster.maps());
    let newest = maps.iter().map(|(_, map)| map).max_by_key(|map| map.version);
    let newest = &newest.unwrap_or(&cluster.first_map).clone();
    let upkeep = &draw.setup.upkeep;
    let (reborn, others): (Vec<Op>, Vec<Op>) =
        ops.iter().cloned().partition(|op| op.space.name == lives::NAME);
    let (brief, others): (Vec<Op>, Vec<Op>) = others.into_iter().partition(|op| op.space.name == BRIEF);
    wrong.extend(check_with(&others, upkeep));
    wrong.extend(g5_expired_stays_expired(&brief));
    wrong.extend(cluster.life_watch.check(&reborn, upkeep));
    wrong.extend(lives::f23_changes(newest, &cluster.recorder.changes(), &reborn_space(seed, nodes)));
    wrong.extend(honest::g8_deadlines(&ops, &spans, draw.clients));
    let has_hints = upkeep.window_ms.is_none();
    if has_hints
        && draw.mix.is_of_the_network_only()
        && draw.setup.sync_ms < 50
        && draw.setup.requests_limit > 100
    {
        wrong.extend(honest::g6_writable(&ops, &spans, &plan.cuts(nodes), nodes));
    }
    wrong.extend(honest::f13_stamps_grow(&ops, |op| coordinator(&cluster, newest, op)));
    wrong.extend(cluster.missing().into_iter().map(|text| Finding::new("recovery", text)));
    wrong.extend(honest::g9_bounded(&at_rest(&mut cluster)));
    wrong.append(&mut cluster.seen_wrong);
    wrong.extend(f23_one_map(&maps, &cluster.recorder.creations()));
    wrong.extend(differences(&cluster));
    let trace = cluster.recorder.trace();
    let (many, placed) = cluster.life_watch.count(&reborn);
    let (before, all) = (in_chaos, cluster.purged());
    let lives =
        format!("{many} lives with {placed} of {} ops; {all} purged, {before} in the chaos", reborn.len());
    let summary = summary(seed, &draw, &ops, recovery_ms, cluster.now_ms(), &digest(&trace), &lives);
    let story = story(&wrong, &ops, &cluster.recorder.notes());
    Report { wrong, story, recovery_ms, simulated_ms: cluster.now_ms(), nodes, trace, summary }
}

/// All gauges, when nothing is under way. Anti-entropy has its own rhythm: what it counts is back at zero now and then.
fn at_rest(cluster: &mut Cluster) -> Vec<Gauge> {
    let mut gauges = cluster.gauges();
    let until = cluster.now_ms() + 3_000;
    let repairs = cluster.setup.upkeep.interval_ms > 0;
    while repairs && cluster.now_ms() < until && gauges.iter().any(|gauge| gauge.left > 0) {
        cluster.step();
        for (gauge, now) in gauges.iter_mut().zip(cluster.gauges()) {
            gauge.left = gauge.left.min(now.left);
        }
    }
    gauges
}

/// What the nodes' stores differ in, by the newest map.
fn differences(cluster: &Cluster) -> Vec<Finding> {
    let maps = cluster.maps();
    let newest = maps.iter().map(|(_, map)| map).max_by_key(|map| map.version).unwrap_or(&cluster.first_map);
    let holdings: Vec<_> = cluster.hosts.iter().map(|host| (host.id, holding(&*host.storage))).collect();
    g7_converges(newest, &holdings)
}

/// How often it is looked whether what is to come is there.
const LOOK_MS: u64 = 250;
/// By when anti-entropy has made all replicas equal: what is younger than 5 s is left out, and then each pair of nodes
/// has its turn, tree by tree.
const EQUAL_MS: u64 = 60_000;
/// By when each tombstone is gone, beyond the time that it has to wait.
const PURGED_MS: u64 = 30_000;

/// Goes on until a check finds nothing, or for so long: what it finds then.
fn wait_for(cluster: &mut Cluster, most_ms: u64, check: impl Fn(&Cluster) -> Vec<Finding>) -> Vec<Finding> {
    let until = cluster.now_ms() + most_ms;
    loop {
        let found = check(cluster);
        if found.is_empty() || cluster.now_ms() >= until {
            return found;
        }
        let next = cluster.now_ms() + LOOK_MS;
        while cluster.now_ms() < next {
            cluster.step();
        }
    }
}

/// With anti-entropy all replicas are equal by themselves; and what is dead goes, where it does after a while.
fn healed(cluster: &mut Cluster, draw: &Draw) -> Vec<Finding> {
    let mut wrong = Vec::new();
    if draw.setup.upkeep.interval_ms > 0 {
        wrong.extend(wait_for(cluster, EQUAL_MS, differences));
    }
    if let Some(Purge { grace_ms, age_ms }) = draw.setup.upkeep.purge {
        let dead = |cluster: &Cluster| {
            let now = WallMs(EPOCH_MS + cluster.now_ms());
            cluster.hosts.iter().flat_map(|host| g5_purged(host.id, &*host.storage, now)).collect()
        };
        wrong.extend(wait_for(cluster, grace_ms + age_ms + APART_MS + PURGED_MS, dead));
        wrong.extend(wait_for(cluster, EQUAL_MS, differences));
    }
    wrong
}

fn summary(
    seed: u64,
    draw: &Draw,
    ops: &[Op],
    recovery_ms: u64,
    simulated_ms: u64,
    trace: &str,
    lives: &str,
) -> String {
    let count = |which: fn(&Outcome) -> bool| ops.iter().filter(|op| which(&op.outcome)).count();
    let spaces: Vec<String> = draw.setup.spaces[1..].iter().map(|space| space.to_string()).collect();
    format!(
        "seed {seed}: {} nodes, {} clients, {} ops: {} written, {} read, {} refused, {} unknown, {} late; \
         recovered in {recovery_ms} ms; {simulated_ms} ms simulated; {}; {}; {lives}; trace {trace}",
        draw.setup.zones.len(),
        draw.clients,
        ops.len(),
        count(|o| matches!(o, Outcome::Wrote(_))),
        count(|o| matches!(o, Outcome::Read(..))),
        count(|o| matches!(o, Outcome::Refused(_))),
        count(|o| matches!(o, Outcome::Unknown(_))),
        count(|o| matches!(o, Outcome::Late)),
        spaces.join(", "),
        draw.setup.upkeep,
    )
}

/// The coordinator of a write: the node that its context names, or the one that was asked, if that is the key's one
/// home replica. Of several homes one may hand a write on to another. One that has lost its disk is none: it knows of its
/// stamps what the other homes of a key know.
fn coordinator(cluster: &Cluster, map: &ClusterMap, op: &Op) -> Option<NodeId> {
    let has_lost = |id: &NodeId| {
        (0..cluster.hosts.len()).any(|at| cluster.hosts[at].id == *id && cluster.has_lost_disk(at))
    };
    if op.made_by.is_some() {
        return op.made_by.filter(|id| !has_lost(id));
    }
    let keyspace = map.keyspace(&op.space.name)?;
    let partition = map.partitions.of(Position::of(&keyspace.name, op.key.as_bytes()));
    let asked = cluster.hosts[op.node].id;
    (homes(map, keyspace, partition) == [asked]).then_some(asked).filter(|id| !has_lost(id))
}

/// Writes through every node until all replicas have taken one; how long that took.
pub fn recover(cluster: &mut Cluster, patience: Duration) -> u64 {
    let healed = cluster.now_ms();
    let slowest = Arc::new(Mutex::new(0));
    let space = Arc::new(default_space(cluster.hosts.len()));
    for node in 0..cluster.hosts.len() {
        let (names, recorder, slowest) = (cluster.node_names(), cluster.recorder.clone(), slowest.clone());
        let space = space.clone();
        cluster.client(&format!("probe{}", node + 1), async move {
            let mut probe = Client::new(100 + node, &names, patience, recorder);
            for number in 0..4 {
                let key = format!("probe-{node}-{number}");
                let ask = Ask { node, space: space.clone(), key, timeout_ms: 5_000, level: Some(space.n) };
                while !probe.put(&ask).await {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            let mut slowest = slowest.lock().expect("no panic while it is held");
            *slowest = now_ms().saturating_sub(healed).max(*slowest);
        });
    }
    cluster.run_clients();
    *slowest.lock().expect("no panic while it is held")
}

/// The keys of keyspaces made on the way that may have been written, and a node to read each through.
fn written_elsewhere(cluster: &Cluster, draw: &Draw) -> Vec<(usize, Arc<Space>, String)> {
    let ops = cluster.recorder.ops();
    let (drawn, maps) = (&draw.setup.spaces, cluster.maps());
    let exists = |space: &Space| maps.iter().any(|(_, map)| map.keyspace(&space.name).is_some());
    let made = |op: &&Op| !drawn.contains(&op.space) && exists(&op.space);
    let written = ops.iter().filter(|op| op.may_have_written()).filter(made);
    let places: BTreeSet<(Arc<Space>, String)> =
        written.map(|op| (op.space.clone(), op.key.clone())).collect();
    let nodes = cluster.hosts.len();
    places.into_iter().enumerate().map(|(turn, (space, key))| (turn % nodes, space, key)).collect()
}

/// With nothing wrong any more: every key is read through every node from all replicas.
fn calm(cluster: &mut Cluster, draw: &Draw, patience: Duration) -> Vec<Finding> {
    // What is under way from before the repair ends at its deadline, at the latest.
    let repaired = cluster.now_ms();
    while cluster.now_ms() < repaired + 2_000 {
        cluster.step();
    }
    // What was lost with a disk comes back by itself.
    while !cluster.refilled().is_empty() && cluster.now_ms() < repaired + REFILLED_MS {
        cluster.step();
    }
    let refilled = cluster.refilled();
    let is_late =
        |name: &String| Finding::new("G7", format!("{name} is refilled after {REFILLED_MS} ms yet"));
    let late: Vec<Finding> = refilled.iter().map(is_late).collect();
    // Hints come home by themselves; G9's check finds what is left of them.
    while cluster.hints() > 0 && cluster.now_ms() < repaired + HINTS_HOME_MS {
        cluster.step();
    }
    let wrong = Arc::new(Mutex::new([late, healed(cluster, draw)].concat()));
    let (recorder, names, spaces) =
        (cluster.recorder.clone(), cluster.node_names(), draw.setup.spaces.clone());
    let (found, mut keys, made) = (wrong.clone(), keys(draw.keys), written_elsewhere(cluster, draw));
    let cold = cold_keys(draw);
    keys.extend(cold.iter().cloned());
    cluster.client("reader", async move {
        let mut reader = Client::new(READER, &names, patience, recorder);
        let find =
            |text: String| found.lock().expect("no panic while it is held").push(Finding::new("G7", text));
        for space in spaces {
            let level = Some(space.n);
            // What was purged is written anew, and found.
            for (turn, key) in
                cold.iter().enumerate().filter(|(turn, _)| turn % 2 == 0 && space.name != BRIEF)
            {
                let (node, space, key) = (turn % names.len(), space.clone(), key.clone());
                let ask = Ask { node, space, key, timeout_ms: 2_000, level };
                if !reader.put(&ask).await {
                    find(format!("in the calm, {}/{} could not be written", ask.space.name, ask.key));
                }
            }
            for node in 0..names.len() {
                for key in keys.clone() {
                    let ask = Ask { node, space: space.clone(), key, timeout_ms: 2_000, level };
                    if !reader.get(&ask).await {
                        find(format!(
                            "in the calm, {}/{} could not be read through n{}",
                            space.name,
                            ask.key,
                            node + 1
                        ));
                    }
                }
            }
            let ask = Ask { node: 0, space, key: String::new(), timeout_ms: 2_000, level };
            if !reader.scan(&ask, &keys).await {
                find(format!("in the calm, {} could not be scanned", ask.space.name));
            }
        }
        for (node, space, key) in made {
            let ask = Ask { node, level: Some(space.n), space, key, timeout_ms: 2_000 };
            if !reader.get(&ask).await {
                find(format!("in the calm, {}/{} could not be read", ask.space.name, ask.key));
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    });
    cluster.run_clients();
    let found = wrong.lock().expect("no panic while it is held");
    found.clone()
}
