//! A node that lost its disk, on real nodes: it is refilled, and serves no lie meanwhile.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quoral::rpc::proto;
use serde_json::Value;
use tonic::Code;

use crate::client::{self, assert_refused, bytes, get_r, kv, put, values};
use crate::cluster::{Cluster, alone, cli, eventually, http_get, said};
use crate::repair::metric;
use crate::repair_now::{links, number, repair};

/// Nodes that nothing but refilling makes equal (F29), so slowly that it can be watched.
fn slowly_refilled(rate: u64) -> Cluster {
    let cluster = Cluster::made(3);
    cluster.nodes.iter().for_each(|node| node.configure("", &slow(&cluster, rate)));
    cluster
}

fn slow(cluster: &Cluster, rate: u64) -> String {
    let more = format!("interval_ms = 0\nread_repair = false\nrate_bytes = {rate}\n");
    format!("{}[hints]\nwindow_ms = 0\n[repair]\n{more}", cluster.bootstrap())
}

async fn puts(at: SocketAddr, keys: Range<u32>, value: &'static str) {
    let done = client::for_each(keys.collect(), 16, move |n| async move {
        let value = format!("{value} {n} {}", "x".repeat(100));
        kv(at).put(put(format!("key {n}"), value)).await.map(drop)
    });
    for result in done.await {
        result.expect("put");
    }
}

/// Keys whose value is not the one that was acknowledged, or that could not be read, through a node.
async fn wrong(at: SocketAddr, keys: Range<u32>, value: &'static str) -> Vec<String> {
    let found = client::for_each(keys.collect(), 16, move |n| async move {
        let expected = [Bytes::from(format!("{value} {n} {}", "x".repeat(100)))];
        match kv(at).get(get_r(format!("key {n}"), 2)).await {
            Ok(found) if values(found.get_ref()) == expected => None,
            Ok(found) => Some(format!("key {n}: {:?}", values(found.get_ref()))),
            Err(status) => Some(format!("key {n}: {status:?}")),
        }
    });
    found.await.into_iter().flatten().collect()
}

/// What `status` of one node says of how far another is refilled; null if it is not.
fn refill(at: SocketAddr, node: usize) -> Value {
    let (output, _) = cli(&[at], &["status", "-o", "json"]);
    let status: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    status["nodes"][node]["refill"].clone()
}

pub fn wait_until_whole(cluster: &Cluster, node: usize) {
    eventually(Duration::from_secs(120), || {
        let (_, page) = http_get(cluster.nodes[node].http, "/readyz")?;
        if page == "ready\n" {
            Ok(())
        } else {
            Err(format!("{page}: {}", refill(cluster.nodes[node].client, node)))
        }
    });
}

pub fn lose_disk(cluster: &mut Cluster, node: usize) {
    cluster.nodes[node].kill();
    std::fs::remove_dir_all(cluster.nodes[node].data()).expect("removed");
}

/// Of two that hold a write one loses its disk, and is asked together with the third, which never had it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f18_a_lost_disk_is_refilled_while_every_read_is_right() {
    const KEYS: u32 = 2_000;
    let _alone = alone();
    let mut cluster = slowly_refilled(60_000);
    cluster.start_all();
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    cluster.nodes[1].kill();
    links(&cluster, 0, 1);
    puts(clients[0], 0..KEYS, "value").await;
    let lost = cluster.nodes[2].data();
    cluster.nodes[2].kill();
    let old = cluster.dir.path().join("old");
    std::fs::rename(&lost, &old).expect("moved");
    cluster.nodes[1].start();
    cluster.nodes[2].start();
    cluster.wait_ready();
    (0..3).for_each(|at| links(&cluster, at, 2));

    // While it is refilled, every read through every node is right, and writes are taken.
    let (_, page) = http_get(cluster.nodes[2].http, "/readyz").expect("an answer");
    assert_eq!(page, "ready, but it is refilled\n");
    for at in &clients {
        assert_eq!(wrong(*at, 0..KEYS, "value").await, [""; 0]);
        assert!(refill(*at, 2)["trees"] == 32, "refilled too fast for this test: {}", refill(*at, 2));
    }
    for at in &clients {
        puts(*at, 0..200, "later").await;
        assert_eq!(wrong(clients[1], 0..200, "later").await, [""; 0]);
    }
    let progress = eventually(Duration::from_secs(60), || {
        let told = refill(clients[0], 2);
        if number(&told, "done") > 0 { Ok(told) } else { Err(told.to_string()) }
    });
    assert!(number(&progress, "records") > 0 && number(&progress, "done") < 32, "{progress}");

    // Without the one that has all, reads fail rather than lie.
    cluster.nodes[0].kill();
    links(&cluster, 1, 1);
    eventually(Duration::from_secs(20), || {
        let text = said(&cli(&clients[1..2], &["status"]).0);
        let is_told = text.contains("n3 lost its disk and is refilled") && text.contains("n1 (down)");
        if is_told { Ok(()) } else { Err(text) }
    });
    let mut refused = 0;
    for at in &clients[1..] {
        for n in 200..260 {
            match kv(*at).get(get_r(format!("key {n}"), 2)).await {
                Ok(found) => assert!(found.get_ref().found, "key {n}: what was acknowledged is not found"),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 0, "all was back already");

    // It goes on where it was, over a kill too.
    let before = number(&refill(clients[2], 2), "done");
    cluster.nodes[2].kill();
    cluster.nodes[2].start();
    cluster.nodes[2].wait_ready();
    assert!(number(&refill(clients[2], 2), "done") >= before && before > 0);
    cluster.nodes[0].start();
    cluster.nodes[0].wait_ready();
    wait_until_whole(&cluster, 2);
    assert!(refill(clients[0], 2).is_null());
    assert_eq!(metric(&cluster.nodes[2], "quoral_repair_refill_trees_left"), Ok(0));

    // It has everything now: with the third, which has little, it answers for all.
    cluster.nodes[0].kill();
    links(&cluster, 1, 1);
    for at in &clients[1..] {
        assert_eq!(wrong(*at, 200..KEYS, "value").await, [""; 0]);
        assert_eq!(wrong(*at, 0..200, "later").await, [""; 0]);
    }
    // And it votes on cluster maps.
    let (output, _) = cli(&clients[1..], &["keyspace", "create", "after"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    cluster.nodes[0].start();
    cluster.nodes[0].wait_ready();
    (0..3).for_each(|at| links(&cluster, at, 2));
    repair(clients[0], &[]);
    let again = repair(clients[2], &[]);
    assert_eq!((number(&again, "sent"), &again["equal"]), (0, &again["trees"]), "{again}");

    // The old disk, found again, is refused.
    cluster.nodes[2].kill();
    std::fs::rename(&lost, cluster.dir.path().join("new")).expect("moved");
    std::fs::rename(&old, &lost).expect("moved");
    cluster.nodes[2].start();
    let status = cluster.nodes[2].ended(Duration::from_secs(40));
    let log = cluster.nodes[2].log_tail(3);
    assert_eq!(status.and_then(|status| status.code()), Some(1), "{log}");
    assert!(log.contains("took the place of this one") && log.contains("it is retired"), "{log}");
    cluster.nodes.iter().for_each(crate::cluster::Node::check_log);
}

/// Clients go on reading and writing at quorum all the while: no read is older than what its client has seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_at_quorum_see_nothing_of_a_lost_disk() {
    let _alone = alone();
    let mut cluster = slowly_refilled(300_000);
    cluster.start_all();
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    puts(clients[0], 0..1_000, "value").await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers = (0..6usize).map(|own| {
        let (stop, clients) = (stop.clone(), clients.clone());
        tokio::spawn(async move {
            let (mut acknowledged, mut round, mut wrong) = (0u64, 0u64, Vec::new());
            let key = format!("key {}", 1_000 + own);
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let round_of = |value: &Bytes| -> u64 {
                    std::str::from_utf8(value).expect("a number").parse().expect("a number")
                };
                let [to, from] = [round, round + 1].map(|n| clients[usize::try_from(n).expect("small") % 3]);
                if kv(to).put(put(&key[..], round.to_string())).await.is_ok() {
                    acknowledged = round;
                }
                if let Ok(found) = kv(from).get(get_r(&key[..], 2)).await {
                    let found = values(found.get_ref()).first().map_or(0, round_of);
                    if found < acknowledged {
                        wrong.push(format!("{key}: {found} after {acknowledged} was acknowledged"));
                    }
                }
            }
            (acknowledged, wrong)
        })
    });
    let writers: Vec<_> = writers.collect();
    lose_disk(&mut cluster, 2);
    cluster.nodes[2].start();
    cluster.nodes[2].wait_ready();
    wait_until_whole(&cluster, 2);
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        let (acknowledged, wrong) = writer.await.expect("no panic");
        assert_eq!(wrong, [""; 0]);
        assert!(acknowledged > 10, "{acknowledged} rounds");
    }
    for at in &clients {
        assert_eq!(wrong(*at, 0..1_000, "value").await, [""; 0]);
    }
    cluster.check();
}

/// F05: a tombstone is not purged while one of its replicas is refilled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f05_nothing_is_purged_while_a_replica_is_refilled() {
    let _alone = alone();
    let mut cluster = Cluster::made(3);
    let impatient = |rate: u64| {
        let more = "tombstone_grace_ms = 3000\nmessage_age_ms = 2000\ninterval_ms = 300\n";
        format!("{}[repair]\n{more}rate_bytes = {rate}\n[hints]\nwindow_ms = 200\n", cluster.bootstrap())
    };
    let (fast, slow) = (impatient(8 << 20), impatient(1_024));
    cluster.nodes.iter().for_each(|node| node.configure("", &fast));
    cluster.start_all();
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    puts(clients[0], 0..400, "value").await;
    lose_disk(&mut cluster, 2);
    links(&cluster, 0, 1);
    let at = clients[0];
    let deleted = client::for_each((0..100).collect(), 16, move |n: u32| async move {
        let request = proto::DeleteRequest { key: bytes(format!("key {n}")), ..Default::default() };
        kv(at).delete(request).await.map(drop)
    });
    assert!(deleted.await.iter().all(Result::is_ok));
    cluster.nodes[2].configure("", &slow);
    cluster.nodes[2].start();
    cluster.nodes[2].wait_ready();
    let clients = cluster.all_clients();
    let of_all =
        |name: &str| cluster.nodes.iter().map(|node| metric(node, name)).sum::<Result<u64, String>>();
    eventually(Duration::from_secs(60), || match of_all("quoral_repair_tombstones_waiting")? {
        // Those that the refilled node would lead wait for it to be whole.
        30.. => Ok(()),
        waiting => Err(format!("{waiting} wait")),
    });
    assert!(refill(clients[0], 2)["trees"] == 32, "{}", refill(clients[0], 2));
    let purged = of_all("quoral_repair_tombstones_purged_total").expect("metrics");
    let done = number(&refill(clients[0], 2), "done");
    assert!(purged == 0 || done > 0, "{purged} purged, {done} trees are back");
    cluster.nodes[2].kill();
    cluster.nodes[2].configure("", &fast);
    cluster.nodes[2].start();
    cluster.nodes[2].wait_ready();
    wait_until_whole(&cluster, 2);
    eventually(Duration::from_secs(60), || {
        for node in &cluster.nodes {
            match metric(node, "quoral_repair_tree_items")? {
                300 => {}
                items => return Err(format!("{} holds {items} records", node.name)),
            }
        }
        Ok(())
    });
    for at in &clients {
        for n in 0..100 {
            let found = kv(*at).get(get_r(format!("key {n}"), 2)).await.expect("get").into_inner();
            assert!(!found.found, "key {n} is back");
        }
    }
    cluster.check();
}

/// Of two that remember a write one has lost its disk: what it does not know says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_request_is_not_applied_twice() {
    let _alone = alone();
    let mut cluster = slowly_refilled(8 << 20);
    cluster.start_all();
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    cluster.nodes[1].kill();
    links(&cluster, 0, 1);
    let named = proto::PutRequest { request_id: Bytes::from_static(&[7; 16]), ..put("k", "first") };
    kv(clients[0]).put(named.clone()).await.expect("put");
    // Nothing in the record tells of it any more.
    kv(clients[0]).put(put("k", "second")).await.expect("put");
    lose_disk(&mut cluster, 2);
    cluster.nodes[1].start();
    cluster.nodes[2].start();
    cluster.wait_ready();
    wait_until_whole(&cluster, 2);
    cluster.nodes[0].kill();
    (1..3).for_each(|at| links(&cluster, at, 1));
    for at in &clients[1..] {
        let refused = kv(*at).put(named.clone()).await.expect_err("nobody is left who could know");
        assert_refused(&refused, Code::Unavailable, &[]);
        let found = kv(*at).get(get_r("k", 2)).await.expect("get").into_inner();
        assert_eq!(values(&found), ["second"]);
    }
    cluster.nodes[0].start();
    cluster.nodes[0].wait_ready();
    client::wait_for_all(&clients, 3).await;
    for at in &clients {
        kv(*at).put(named.clone()).await.expect("it is remembered");
        let found = kv(*at).get(get_r("k", 2)).await.expect("get").into_inner();
        assert_eq!(values(&found), ["second"]);
    }
    cluster.check();
}
