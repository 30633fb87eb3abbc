//! Deleted keys go away for good on real nodes: with the consent of all replicas, and never without.

use std::time::Duration;

use quoral::rpc::proto;

use crate::client::{self, bytes, get_r, kv, put, values};
use crate::cluster::{Cluster, Node, alone, cli, eventually, http_get, run, said};
use crate::repair::metric;

/// Nodes that purge tombstones after three seconds.
fn impatient(count: u16, more: &str) -> Cluster {
    let cluster = Cluster::made(count);
    let bootstrap = cluster.bootstrap();
    let repair = "[repair]\ntombstone_grace_ms = 3000\nmessage_age_ms = 2000\ninterval_ms = 300\n";
    cluster
        .nodes
        .iter()
        .for_each(|node| node.configure("", &format!("{bootstrap}[hints]\nwindow_ms = 0\n{repair}{more}")));
    cluster
}

async fn write(at: std::net::SocketAddr, range: std::ops::Range<u32>, value: &'static str) {
    let results = client::for_each(range.collect(), 16, move |n| async move {
        kv(at).put(put(format!("key {n}"), value)).await.map(drop)
    });
    for result in results.await {
        result.expect("put");
    }
}

async fn delete(at: std::net::SocketAddr, range: std::ops::Range<u32>) {
    let results = client::for_each(range.collect(), 16, move |n| async move {
        let request = proto::DeleteRequest { key: bytes(format!("key {n}")), ..Default::default() };
        kv(at).delete(request).await.map(drop)
    });
    for result in results.await {
        result.expect("delete");
    }
}

/// Waits until each node's trees count so many records.
fn wait_for_items(cluster: &Cluster, expected: u64) {
    eventually(Duration::from_secs(60), || {
        for node in &cluster.nodes {
            let items = metric(node, "quoral_repair_tree_items")?;
            if items != expected {
                return Err(format!("{} holds {items} records", node.name));
            }
        }
        Ok(())
    });
}

fn purged(cluster: &Cluster) -> u64 {
    let of = |node: &Node| metric(node, "quoral_repair_tombstones_purged_total").expect("a metric");
    cluster.nodes.iter().map(of).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_and_expired_keys_are_purged_everywhere_and_can_be_written_again() {
    let _alone = alone();
    let mut cluster = impatient(3, "");
    cluster.start_all();
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    write(clients[0], 0..100, "first").await;
    delete(clients[1], 0..60).await;
    for n in 0..20 {
        let request = proto::PutRequest { ttl_ms: 200, ..put(format!("short {n}"), "gone soon") };
        kv(clients[2]).put(request).await.expect("put");
    }
    wait_for_items(&cluster, 40);
    assert_eq!(purged(&cluster), 80);
    for n in (0..60).chain(100..101) {
        let found = kv(clients[2]).get(get_r(format!("key {n}"), 3)).await.expect("get").into_inner();
        assert!(!found.found && found.context.is_empty(), "key {n}: nothing is left of it: {found:?}");
    }
    // Nothing of the old tombstone swallows what is written anew.
    write(clients[0], 0..60, "second").await;
    for n in 0..60 {
        let found = kv(clients[1]).get(get_r(format!("key {n}"), 3)).await.expect("get").into_inner();
        assert_eq!(values(&found), ["second"]);
    }
    // Not over a restart either (F06, F09).
    cluster.kill_all();
    cluster.start_all();
    client::wait_for_all(&clients, 3).await;
    wait_for_items(&cluster, 100);
    cluster.check();
}

/// A replica that is away longer than the grace, with live copies: its tombstones wait for it (F01, F02).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_a_replica_that_was_away_longer_than_the_grace_brings_nothing_back() {
    let _alone = alone();
    let mut cluster = impatient(3, "read_repair = false\n");
    cluster.start_all();
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    write(clients[0], 0..50, "first").await;
    cluster.nodes[2].kill();
    eventually(Duration::from_secs(10), || {
        let (_, body) = http_get(cluster.nodes[0].http, "/metrics")?;
        let links = body.lines().find_map(|line| line.strip_prefix("quoral_peer_links "));
        if links == Some("1") { Ok(()) } else { Err(format!("{links:?}")) }
    });
    delete(clients[0], 0..50).await;
    // They are due, and wait for the one that is away. Each is led by its first home replica; a third of those are
    // the dead node's.
    eventually(Duration::from_secs(30), || {
        let waiting = |at: usize| metric(&cluster.nodes[at], "quoral_repair_tombstones_waiting");
        match (waiting(0)?, waiting(1)?) {
            (one, two) if one > 0 && two > 0 && (20..=50).contains(&(one + two)) => Ok(()),
            other => Err(format!("{other:?} wait")),
        }
    });
    let (output, _) = cli(&clients[..1], &["status", "-o", "json"]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an object");
    let nodes = || told["nodes"].as_array().expect("nodes").iter();
    let away =
        nodes().find(|node| node["name"] == "n3").and_then(|node| node["node_id"].as_str()).expect("n3");
    for due in nodes().filter(|node| node["name"] != "n3").map(|node| &node["tombstones"]) {
        // All that they lead wait for the one that is away.
        assert!(due["waiting"].as_u64() > Some(0), "{told}");
        assert_eq!(due["waits_for"], serde_json::json!({away: due["waiting"]}), "{told}");
    }
    for node in &cluster.nodes[..2] {
        assert_eq!(metric(node, "quoral_repair_tombstones_purged_total"), Ok(0));
        assert_eq!(metric(node, "quoral_repair_tree_items"), Ok(50));
    }
    cluster.nodes[2].start();
    cluster.wait_ready();
    wait_for_items(&cluster, 0);
    assert_eq!(purged(&cluster), 50);
    for at in &clients {
        for n in 0..50 {
            let found = kv(*at).get(get_r(format!("key {n}"), 1)).await.expect("get").into_inner();
            assert!(!found.found, "key {n} is back");
        }
    }
    cluster.check();
}

#[test]
fn a_grace_that_is_too_short_is_refused() {
    let cluster = Cluster::made(1);
    let bootstrap = cluster.bootstrap();
    let node = &cluster.nodes[0];
    node.configure("", &format!("{bootstrap}[repair]\ntombstone_grace_ms = 11400500\n"));
    let config = node.config.to_str().expect("UTF-8");
    let (output, _) = run(&["config", "check", config], Duration::from_secs(10));
    let text = said(&output);
    assert!(!output.status.success(), "{text}");
    for part in ["repair.tombstone_grace_ms", "11400500", "hints.window_ms (10800000)", "600000", "500"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    node.configure("", &format!("{bootstrap}[repair]\ntombstone_grace_ms = 11400501\n"));
    let (output, _) = run(&["config", "check", config], Duration::from_secs(10));
    assert!(output.status.success(), "{}", said(&output));
}
