//! `quoral repair` on real nodes that repair in no other way (F29): no schedule, no hints, no read repair.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use quoral::rpc::proto;
use rustix::process::Signal;
use serde_json::Value;

use crate::client::{self, kv, put};
use crate::cluster::{Cluster, alone, cli, eventually, http_get, said};
use crate::refill::{lose_disk, wait_until_whole};
use crate::repair::metric;

const PARTITIONS: usize = 32;

/// Four nodes, so that of each partition one has no replica.
fn unrepaired() -> Cluster {
    let mut cluster = Cluster::made(4);
    let bootstrap = cluster.bootstrap();
    let more = "[hints]\nwindow_ms = 0\n[repair]\nread_repair = false\ninterval_ms = 0\n";
    cluster.nodes.iter().for_each(|node| node.configure("", &format!("{bootstrap}{more}")));
    cluster.start_all();
    cluster
}

/// Exit code, JSON and both streams.
fn ask(at: SocketAddr, arguments: &[&str]) -> (i32, Value, String) {
    let (output, _) = cli(&[at], &[arguments, &["-o", "json"]].concat());
    let value = serde_json::from_slice(&output.stdout);
    let value = value.unwrap_or_else(|_| panic!("no JSON: {}", said(&output)));
    (output.status.code().expect("not killed"), value, said(&output))
}

/// What a repair did, that must succeed.
pub fn repair(at: SocketAddr, arguments: &[&str]) -> Value {
    let (code, value, text) = ask(at, &[&["repair"], arguments].concat());
    assert_eq!(code, 0, "{text}");
    assert_eq!((&value["done"], &value["too_new"]), (&value["trees"], &0.into()), "{text}");
    value
}

pub fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name}: {value}"))
}

pub fn links(cluster: &Cluster, at: usize, count: u64) {
    eventually(Duration::from_secs(20), || {
        let up = metric(&cluster.nodes[at], "quoral_peer_links")?;
        if up == count { Ok(()) } else { Err(format!("{up} links")) }
    });
}

async fn puts(at: SocketAddr, keyspace: &'static str, keys: Range<u32>, value: &'static str) {
    let done = client::for_each(keys.collect(), 16, move |n| async move {
        let request = proto::PutRequest { keyspace: keyspace.into(), ..put(format!("key {n}"), value) };
        kv(at).put(request).await.map(drop)
    });
    assert!(done.await.iter().all(Result::is_ok));
}

/// A key's partition, and the versions that its homes hold, by node id.
fn explained(at: SocketAddr, keyspace: &str, key: &str) -> (u64, Vec<(String, String)>) {
    let (_, value, text) = ask(at, &["explain", key, "--keyspace", keyspace]);
    let of =
        |replica: &Value, name: &str| replica[name].as_str().unwrap_or_else(|| panic!("{text}")).to_owned();
    let replicas = value["replicas"].as_array().expect("a list").iter();
    let homes = replicas.filter(|replica| replica["role"] == "home");
    (number(&value, "partition"), homes.map(|home| (of(home, "node"), of(home, "version"))).collect())
}

fn is_equal(homes: &[(String, String)]) -> bool {
    homes.iter().all(|(_, version)| *version == homes[0].1)
}

fn proved(at: SocketAddr) -> Vec<Option<u64>> {
    let (_, status, _) = ask(at, &["status", "--partitions"]);
    let all = status["partitions_proved_ms"].as_array().expect("a list");
    all.iter().map(Value::as_u64).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repair_heals_what_it_is_asked_for_and_nothing_else() {
    let _alone = alone();
    let mut cluster = unrepaired();
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    let (output, _) = cli(&clients[..1], &["keyspace", "create", "other"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    puts(clients[0], "default", 0..120, "first").await;
    puts(clients[0], "other", 0..40, "first").await;
    cluster.nodes[3].kill();
    links(&cluster, 0, 2);
    puts(clients[0], "default", 60..180, "second").await;
    puts(clients[0], "other", 20..60, "second").await;
    cluster.nodes[3].start();
    cluster.nodes[3].wait_ready();
    (0..4).for_each(|at| links(&cluster, at, 3));
    assert_eq!(proved(clients[2]), [None; PARTITIONS]);
    let away = cluster.nodes[3].id.clone();
    let differ = |keyspace: &str, keys: Range<u32>| -> Vec<u64> {
        let all = keys.map(|n| explained(clients[0], keyspace, &format!("key {n}")));
        all.filter(|(_, homes)| !is_equal(homes)).map(|(partition, _)| partition).collect()
    };
    let (default, other) = (differ("default", 60..180), differ("other", 20..60));
    assert!(default.len() > 20 && other.len() > 5, "{default:?} {other:?}");

    // One partition, asked of the node that has no replica of it. What is too new is waited for.
    let partition = default[0];
    let mut all = (60..180).map(|n| explained(clients[0], "default", &format!("key {n}")));
    let (_, homes) = all.find(|(of, _)| *of == partition).expect("it has a key");
    let outsider = cluster
        .nodes
        .iter()
        .find(|node| homes.iter().all(|(home, _)| *home != node.id))
        .expect("one of four");
    let of_partition = |all: &[u64]| all.iter().filter(|p| **p == partition).count() as u64;
    let done = repair(outsider.client, &["--partition", &partition.to_string()]);
    assert_eq!(number(&done, "healed"), of_partition(&default) + of_partition(&other), "{done}");
    assert_eq!(number(&done, "trees"), 6, "two keyspaces, three pairs");
    let at = usize::try_from(partition).expect("small");
    assert_eq!(proved(clients[0]).iter().filter(|at| at.is_some()).count(), 1);
    assert!(proved(clients[1])[at].is_some());

    // One keyspace.
    let done = repair(clients[1], &["--keyspace", "other"]);
    assert_eq!(number(&done, "healed"), other.len() as u64 - of_partition(&other), "{done}");
    assert_eq!(differ("other", 20..60), [0; 0]);
    assert_eq!(differ("default", 60..180).len() as u64, default.len() as u64 - of_partition(&default));

    // All of the rest, at what the metrics say; then there is nothing to do.
    let done = repair(clients[0], &[]);
    assert_eq!(number(&done, "healed"), default.len() as u64 - of_partition(&default), "{done}");
    assert_eq!(differ("default", 0..180), [0; 0]);
    let received = "quoral_repair_records_received_total";
    let vain = "quoral_repair_records_received_in_vain_total";
    let came: u64 = cluster.nodes.iter().map(|node| metric(node, received).expect("a metric")).sum();
    let in_vain: u64 = cluster.nodes.iter().map(|node| metric(node, vain).expect("a metric")).sum();
    assert_eq!(came - in_vain, (default.len() + other.len()) as u64);
    let again = repair(clients[2], &[]);
    assert_eq!((number(&again, "sent"), &again["equal"]), (0, &again["trees"]), "{again}");
    assert_eq!(number(&again, "records"), 240 * 3, "each pair compares what it has: three pairs of each key");
    assert!(proved(clients[3]).iter().all(Option::is_some));
    let (_, status, text) = ask(clients[0], &["status"]);
    let nodes = status["nodes"].as_array().expect("nodes");
    assert!(nodes.iter().all(|node| node["proved_ms"].is_u64()), "{text}");
    let (_, page) = http_get(cluster.nodes[0].http, "/metrics").expect("metrics");
    assert!(page.contains("quoral_hints_delivered_total 0"), "{away} got no hints");
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repair_says_who_can_not_be_compared() {
    let _alone = alone();
    let mut cluster = unrepaired();
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    puts(clients[0], "default", 0..60, "value").await;
    let code = |arguments: &[&str]| {
        let (output, _) = cli(&clients[1..2], &[&["repair"], arguments].concat());
        (output.status.code().expect("not killed"), said(&output))
    };
    let (unknown, text) = code(&["--keyspace", "nowhere"]);
    assert!(unknown == 1 && text.contains("nowhere"), "{unknown}: {text}");
    let (too_large, text) = code(&["--partition", "32"]);
    assert!(too_large == 2 && text.contains("is 32, must be below 32"), "{too_large}: {text}");

    // The node that would be compared with, then one that would compare.
    for (away, other) in [(3, 0), (0, 3)] {
        cluster.nodes[away].kill();
        let (code, text) = code(&[]);
        assert_eq!(code, 5, "{text}");
        let silent = text.lines().filter(|line| line.contains("not answer")).collect::<Vec<_>>();
        assert!(silent.iter().all(|line| line.contains(&cluster.nodes[away].id)), "{text}");
        assert!(!silent.is_empty(), "{text}");
        let (code, json, text) = ask(clients[1], &["repair"]);
        assert_eq!((code, json["problems"].as_array().map(Vec::is_empty)), (5, Some(false)), "{text}");
        // What needs nobody that is away is done.
        assert!(number(&json, "done") > 0, "{text}");
        assert!(!proved(clients[1]).iter().all(Option::is_some));
        cluster.nodes[away].start();
        cluster.nodes[away].wait_ready();
        links(&cluster, other, 3);
        links(&cluster, 1, 3);
        links(&cluster, 2, 3);
        links(&cluster, away, 3);
        repair(clients[1], &[]);
        assert!(proved(clients[1]).iter().all(Option::is_some));
    }
    cluster.check();
}

/// Nobody compares anything after the restart; what was proved before is still known. A node that has lost its disk has lost
/// what was proved with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_proved_survives_a_restart() {
    let _alone = alone();
    let mut cluster = unrepaired();
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    puts(clients[0], "default", 0..60, "value").await;
    repair(clients[0], &[]);
    let before = proved(clients[0]);
    assert!(before.iter().all(Option::is_some));
    for is_clean in [true, false] {
        match is_clean {
            true => {
                cluster.nodes.iter().for_each(|node| node.signal(Signal::TERM));
                for node in &mut cluster.nodes {
                    let status = node.ended(Duration::from_secs(20));
                    assert!(status.is_some_and(|status| status.success()), "{status:?}");
                }
            }
            false => cluster.kill_all(),
        }
        cluster.start_all();
        (0..4).for_each(|at| links(&cluster, at, 3));
        assert_eq!(proved(clients[1]), before, "clean: {is_clean}");
        let (_, status, text) = ask(clients[2], &["status"]);
        let nodes = status["nodes"].as_array().expect("nodes");
        assert!(nodes.iter().all(|node| node["proved_ms"].is_u64()), "{text}");
    }

    lose_disk(&mut cluster, 3);
    cluster.nodes[3].start();
    wait_until_whole(&cluster, 3);
    (0..4).for_each(|at| links(&cluster, at, 3));
    let after = proved(clients[0]);
    let lost = after.iter().filter(|at| at.is_none()).count();
    assert!((23..=25).contains(&lost), "it has three of four: {after:?}");
    assert!(after.iter().zip(&before).all(|(after, before)| after.is_none() || after == before));
    cluster.kill_all();
    cluster.start_all();
    (0..4).for_each(|at| links(&cluster, at, 3));
    assert_eq!(proved(clients[0]), after);
    cluster.check();
}
