//! A real node's disk space comes back while it serves, and nothing is lost by it.

use std::time::Duration;

use quoral::rpc::proto;

use crate::client::{self, bytes, get_r, kv, put, values};
use crate::cluster::{Cluster, Node, alone, eventually};
use crate::repair::metric;

const KEYS: u32 = 1_500;
/// Those that stay.
const LEFT: u32 = 100;

async fn write(at: std::net::SocketAddr, round: u32, keys: u32) {
    let results = client::for_each((0..keys).collect(), 16, move |n| async move {
        kv(at).put(put(format!("key {n}"), value(round, n))).await.map(drop)
    });
    for result in results.await {
        result.expect("put");
    }
}

fn value(round: u32, n: u32) -> String {
    format!("round {round} of {n} ").repeat(500)
}

async fn check(at: std::net::SocketAddr, round: u32) {
    for n in (0..KEYS).filter(|n| *n < 2 * LEFT || n % 10 == 0) {
        let found = kv(at).get(get_r(format!("key {n}"), 3)).await.expect("get").into_inner();
        let expected = if n < LEFT { vec![value(round, n)] } else { Vec::new() };
        assert_eq!(values(&found), expected, "key {n} after round {round}");
    }
}

fn compactions(node: &Node) -> u64 {
    metric(node, "quoral_compactions_total").expect("a metric")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_compacted_while_it_is_written_to() {
    let _alone = alone();
    let mut cluster = Cluster::made(3);
    let bootstrap = cluster.bootstrap();
    for node in &cluster.nodes {
        node.configure("", &format!("{bootstrap}[storage]\ncompact_bytes = 1048576\n"));
    }
    cluster.start_all();
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    write(clients[0], 0, KEYS).await;
    let deleted = client::for_each((LEFT..KEYS).collect(), 16, {
        let at = clients[1];
        move |n| async move {
            let request = proto::DeleteRequest { key: bytes(format!("key {n}")), ..Default::default() };
            kv(at).delete(request).await.map(drop)
        }
    });
    for result in deleted.await {
        result.expect("delete");
    }
    let mut round = 0;
    while cluster.nodes.iter().any(|node| compactions(node) == 0) {
        round += 1;
        assert!(round <= 400, "a node does not find its log too long");
        write(clients[round as usize % 3], round, LEFT).await;
    }
    check(clients[0], round).await;
    // What it was copied from is gone, and the gauge knows.
    for node in &cluster.nodes {
        let storage = node.data().join("storage");
        eventually(Duration::from_secs(60), || match storage.join("db").exists() {
            true => Err(format!("{} still has its first log", node.name)),
            false => Ok(()),
        });
        assert!(metric(node, "quoral_compacted_bytes_total").expect("a metric") > 0);
        assert!(metric(node, "quoral_live_bytes").expect("a metric") > 0);
    }
    cluster.kill_all();
    cluster.start_all();
    client::wait_for_all(&clients, 3).await;
    check(clients[2], round).await;
    cluster.check();
}
