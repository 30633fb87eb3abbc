//! One scenario of the swarm: chaos drawn from a seed, then calm, then the checks.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quoral::canary::Canary;
use quoral::ring::layout::ClusterMap;
use quoral::ring::preflist::homes;
use quoral::types::ids::NodeId;
use quoral::types::key::Position;

use crate::check::state::{f23_one_map, g7_converges, holding};
use crate::check::{Finding, READER, check, honest, lives};
use crate::client::{Ask, Client};
use crate::clock::now_ms;
use crate::cluster::Cluster;
use crate::draw::{Draw, default_space, draw, reborn_space};
use crate::history::{Op, Outcome, Space, digest};
use crate::nemesis::Plan;
use crate::story::story;
use crate::workload::{BATCH_MOST, add_client, keys};

/// The bar for the time from the repair to the first write that all replicas take, through every node.
pub const RECOVERY_MS: u64 = 3_000;
/// How long after the repair all hints must be home: a refused one waits for a second, a few may be refused twice.
const HINTS_HOME_MS: u64 = 10_000;

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
    let (reborn, others): (Vec<Op>, Vec<Op>) =
        ops.iter().cloned().partition(|op| op.space.name == lives::NAME);
    wrong.extend(check(&others));
    wrong.extend(cluster.life_watch.check(&reborn));
    wrong.extend(lives::f23_changes(newest, &cluster.recorder.changes(), &reborn_space(seed, nodes)));
    wrong.extend(honest::g8_deadlines(&ops, &spans, draw.clients));
    if draw.mix.is_of_the_network_only() && draw.setup.sync_ms < 50 && draw.setup.requests_limit > 100 {
        wrong.extend(honest::g6_writable(&ops, &spans, &plan.cuts(nodes), nodes));
    }
    wrong.extend(honest::f13_stamps_grow(&ops, |op| coordinator(&cluster, newest, op)));
    wrong.extend(cluster.missing().into_iter().map(|text| Finding::new("recovery", text)));
    wrong.extend(honest::g9_bounded(&cluster.gauges()));
    wrong.append(&mut cluster.seen_wrong);
    wrong.extend(f23_one_map(&maps, &cluster.recorder.creations()));
    let holdings: Vec<_> = cluster.hosts.iter().map(|host| (host.id, holding(&*host.storage))).collect();
    wrong.extend(g7_converges(newest, &holdings));
    let trace = cluster.recorder.trace();
    let (many, placed) = cluster.life_watch.count(&reborn);
    let lives = format!("{many} lives with {placed} of {} ops", reborn.len());
    let summary = summary(seed, &draw, &ops, recovery_ms, cluster.now_ms(), &digest(&trace), &lives);
    let story = story(&wrong, &ops, &cluster.recorder.notes());
    Report { wrong, story, recovery_ms, simulated_ms: cluster.now_ms(), nodes, trace, summary }
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
         recovered in {recovery_ms} ms; {simulated_ms} ms simulated; {}; {lives}; trace {trace}",
        draw.setup.zones.len(),
        draw.clients,
        ops.len(),
        count(|o| matches!(o, Outcome::Wrote(_))),
        count(|o| matches!(o, Outcome::Read(..))),
        count(|o| matches!(o, Outcome::Refused(_))),
        count(|o| matches!(o, Outcome::Unknown(_))),
        count(|o| matches!(o, Outcome::Late)),
        spaces.join(", "),
    )
}

/// The coordinator of a write: the node that its context names, or the one that was asked, if that is the key's one
/// home replica. Of several homes one may hand a write on to another.
fn coordinator(cluster: &Cluster, map: &ClusterMap, op: &Op) -> Option<NodeId> {
    if op.made_by.is_some() {
        return op.made_by;
    }
    let keyspace = map.keyspace(&op.space.name)?;
    let partition = map.partitions.of(Position::of(&keyspace.name, op.key.as_bytes()));
    let asked = cluster.hosts[op.node].id;
    (homes(map, keyspace, partition) == [asked]).then_some(asked)
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
    // Hints come home by themselves; G9's check finds what is left of them.
    while cluster.hints() > 0 && cluster.now_ms() < repaired + HINTS_HOME_MS {
        cluster.step();
    }
    let wrong = Arc::new(Mutex::new(Vec::new()));
    let (recorder, names, spaces) =
        (cluster.recorder.clone(), cluster.node_names(), draw.setup.spaces.clone());
    let (found, keys, made) = (wrong.clone(), keys(draw.keys), written_elsewhere(cluster, draw));
    cluster.client("reader", async move {
        let mut reader = Client::new(READER, &names, patience, recorder);
        let find =
            |text: String| found.lock().expect("no panic while it is held").push(Finding::new("G7", text));
        for space in spaces {
            let level = Some(space.n);
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
