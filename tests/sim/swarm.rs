//! One scenario of the swarm: chaos drawn from a seed, then calm, then the checks.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quoral::rpc::peer_link;
use quoral::rpc::proto::{self, cluster_client::ClusterClient};
use quoral::types::policy::Conflicts;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::check::check;
use crate::client::{Ask, Client, keyspace};
use crate::clock::now_ms;
use crate::cluster::{Cluster, Weather, mix};
use crate::history::{Op, Outcome, digest};
use crate::nemesis::{Plan, Span};
use crate::net::SimNetwork;

/// How long a disturbed connection may go unnoticed: a keep-alive of 400 ms, 900 ms for its answer, and the
/// way to a new connection.
const AFTERMATH_MS: u64 = 2_500;
/// The bar for the time from the repair to the first write that all replicas take, through every node.
pub const RECOVERY_MS: u64 = 3_000;

/// What a scenario is drawn to be.
struct Draw {
    nodes: usize,
    clients: usize,
    keys: usize,
    /// Longest pause of a client between two requests.
    pause_ms: u64,
    /// How often a client goes to another node.
    hop: f64,
    chaos_ms: u64,
    weather: Weather,
    offsets: Vec<u64>,
}

/// What came of it.
pub struct Report {
    /// Everything that is wrong.
    pub wrong: Vec<String>,
    /// The events.
    pub trace: Vec<String>,
    /// From the repair until every node's writes reach all replicas.
    pub recovery_ms: u64,
    /// Simulated time in all.
    pub simulated_ms: u64,
    /// A line for people.
    pub summary: String,
}

/// Draws extremes rather than means: a mean of everything is what never goes wrong.
fn draw(seed: u64) -> Draw {
    let mut rng = StdRng::seed_from_u64(mix(seed, 1, 0));
    let nodes = if rng.random_bool(0.25) { 5 } else { 3 };
    let latency_min = rng.random_range(0..=3);
    let weather = Weather {
        latency_min,
        latency_max: latency_min + one_of(&mut rng, [2, 20, 80]),
        random_order: rng.random_bool(0.5),
    };
    let offset = |rng: &mut StdRng| match rng.random_range(0..3) {
        0 => 0,
        1 => 200,
        _ => rng.random_range(0..=200),
    };
    Draw {
        nodes,
        clients: rng.random_range(1..=5),
        keys: rng.random_range(1..=3),
        pause_ms: one_of(&mut rng, [2, 30, 150]),
        hop: one_of(&mut rng, [0.1, 0.5, 1.0]),
        chaos_ms: rng.random_range(6_000..=10_000),
        weather,
        offsets: (0..nodes).map(|_| offset(&mut rng)).collect(),
    }
}

fn one_of<T: Copy>(rng: &mut StdRng, choices: [T; 3]) -> T {
    choices[rng.random_range(0..3)]
}

/// Plays the scenario of a seed.
pub fn run(seed: u64) -> Report {
    let draw = draw(seed);
    let mut cluster = Cluster::new(seed, &draw.offsets, draw.weather);
    cluster.until_ready(10_000);
    let begin = cluster.now_ms();
    let mut plan = Plan::draw(seed, draw.nodes, draw.clients, begin + 200, begin + draw.chaos_ms);
    let spans = plan.spans(draw.nodes);
    let patience = Duration::from_millis(4 * draw.weather.latency_max + 100);
    for number in 0..draw.clients {
        add_client(&mut cluster, &draw, seed, number, patience);
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
        wrong.push(format!("recovery took {recovery_ms} ms, over {RECOVERY_MS} ms"));
    }
    wrong.extend(calm(&mut cluster, &draw, patience));
    let ops = cluster.recorder.ops();
    wrong.extend(check(&ops));
    wrong.extend(deadlines(&ops, &spans, draw.clients));
    wrong.extend(cluster.leaks());
    let trace = cluster.recorder.trace();
    let count = |which: fn(&Outcome) -> bool| ops.iter().filter(|op| which(&op.outcome)).count();
    let summary = format!(
        "seed {seed}: {} nodes, {} clients, {} ops: {} written, {} read, {} refused, {} unknown, {} late; \
         recovered in {recovery_ms} ms; {} ms simulated; trace {}",
        draw.nodes,
        draw.clients,
        ops.len(),
        count(|o| matches!(o, Outcome::Wrote(_))),
        count(|o| matches!(o, Outcome::Read(..))),
        count(|o| matches!(o, Outcome::Refused(_))),
        count(|o| matches!(o, Outcome::Unknown(_))),
        count(|o| matches!(o, Outcome::Late)),
        cluster.now_ms(),
        digest(&trace),
    );
    Report { wrong, recovery_ms, simulated_ms: cluster.now_ms(), trace, summary }
}

fn key(conflicts: Conflicts, number: usize) -> String {
    match conflicts {
        Conflicts::Lww => format!("lww-{number}"),
        Conflicts::Siblings => format!("cart-{number}"),
    }
}

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.hosts.iter().map(|host| host.name.clone()).collect()
}

/// A client that reads and writes a few keys of both keyspaces through all nodes.
fn add_client(cluster: &mut Cluster, draw: &Draw, seed: u64, number: usize, patience: Duration) {
    let (nodes, keys, pause_ms, hop) = (draw.nodes, draw.keys, draw.pause_ms, draw.hop);
    let until = cluster.now_ms() + draw.chaos_ms + 500;
    let (names, recorder) = (names(cluster), cluster.recorder.clone());
    let mut rng = StdRng::seed_from_u64(mix(seed, 3, number as u64));
    cluster.client(&format!("c{}", number + 1), async move {
        let mut client = Client::new(number, &names, patience, recorder);
        let mut node = rng.random_range(0..nodes);
        while now_ms() < until {
            if rng.random_bool(hop) {
                node = rng.random_range(0..nodes);
            }
            let conflicts = if rng.random_bool(0.5) { Conflicts::Lww } else { Conflicts::Siblings };
            let key = key(conflicts, rng.random_range(0..keys));
            let ask = Ask { node, conflicts, key, timeout_ms: rng.random_range(100..=1_500), level: None };
            match rng.random_range(0..20) {
                0..9 => drop(client.get(&ask).await),
                9..11 => drop(client.delete(&ask).await),
                11 => {
                    client.forget(&ask);
                    client.put(&ask).await;
                }
                12..15 if conflicts == Conflicts::Siblings => {
                    client.get(&ask).await;
                    client.put(&ask).await;
                }
                _ => drop(client.put(&ask).await),
            }
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..=pause_ms))).await;
        }
    });
}

/// Writes through every node until all replicas have taken one; how long that took.
pub fn recover(cluster: &mut Cluster, patience: Duration) -> u64 {
    let healed = cluster.now_ms();
    let slowest = Arc::new(Mutex::new(0));
    for node in 0..cluster.hosts.len() {
        let (names, recorder, slowest) = (names(cluster), cluster.recorder.clone(), slowest.clone());
        cluster.client(&format!("probe{}", node + 1), async move {
            let mut probe = Client::new(100 + node, &names, patience, recorder);
            let level = Some(proto::Level::All);
            for number in 0..4 {
                let key = format!("probe-{node}-{number}");
                let ask = Ask { node, conflicts: Conflicts::Lww, key, timeout_ms: 5_000, level };
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

/// With nothing wrong any more: every key is read through every node from all replicas, then all replicas
/// of each key must be equal.
fn calm(cluster: &mut Cluster, draw: &Draw, patience: Duration) -> Vec<String> {
    // What is under way from before the repair ends at its deadline, at the latest.
    for _ in 0..2_000 {
        cluster.step();
    }
    let wrong = Arc::new(Mutex::new(Vec::new()));
    let recorder = cluster.recorder.clone();
    let (found, nodes, keys, names) = (wrong.clone(), draw.nodes, draw.keys, names(cluster));
    cluster.client("reader", async move {
        let mut reader = Client::new(200, &names, patience, recorder);
        for conflicts in [Conflicts::Lww, Conflicts::Siblings] {
            for number in 0..keys {
                let key = key(conflicts, number);
                for node in 0..nodes {
                    let level = Some(proto::Level::All);
                    let ask = Ask { node, conflicts, key: key.clone(), timeout_ms: 2_000, level };
                    if !reader.get(&ask).await {
                        let problem = format!("in the calm, {key} could not be read through n{}", node + 1);
                        found.lock().expect("no panic while it is held").push(problem);
                    }
                }
                let versions = replicas(&names[0], conflicts, &key).await;
                if versions.len() != 1 {
                    let problem = format!("G7: the replicas of {key} differ: {versions:?}");
                    found.lock().expect("no panic while it is held").push(problem);
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    });
    cluster.run_clients();
    let found = wrong.lock().expect("no panic while it is held");
    found.clone()
}

/// The distinct versions that the home replicas of a key hold.
async fn replicas(node: &str, conflicts: Conflicts, key: &str) -> BTreeSet<String> {
    let channel = peer_link::channel(Arc::new(SimNetwork), &format!("{node}:7400")).expect("a valid address");
    let request = proto::ExplainRequest {
        keyspace: keyspace(conflicts).into(),
        key: key.to_owned().into(),
        sort: Default::default(),
    };
    let answer = ClusterClient::new(channel).explain(request).await.expect("the node is well").into_inner();
    answer.replicas.into_iter().filter(|r| r.role == "home").map(|r| r.version).collect()
}

/// G8: every request had its answer in time, but for what the network or a crash may have kept from it.
fn deadlines(ops: &[Op], spans: &[Span], clients: usize) -> Vec<String> {
    let disturbed = |op: &Op| {
        op.client < clients
            && spans.iter().any(|span| {
                span.node == op.node
                    && span.client.is_none_or(|client| client == op.client)
                    && span.from <= op.ended_ms
                    && op.began_ms <= span.to + AFTERMATH_MS
            })
    };
    ops.iter()
        .filter(|op| matches!(op.outcome, Outcome::Late | Outcome::Waiting) && !disturbed(op))
        .map(|op| format!("G8: no answer by the deadline of {} ms: {op}", op.timeout_ms))
        .collect()
}
