//! Anti-entropy on real nodes, with hints and read repair switched off (F29): what it heals, it has healed alone.

use std::time::Duration;

use crate::client::{self, get_r, kv, put, values};
use crate::cluster::{Cluster, Node, alone, eventually, http_get};

/// Nodes on which anti-entropy alone repairs, as often as can be.
fn alone_repairing(count: u16) -> Cluster {
    let cluster = Cluster::made(count);
    let bootstrap = cluster.bootstrap();
    let more = "[hints]\nwindow_ms = 0\n[repair]\nread_repair = false\ninterval_ms = 300\n";
    cluster.nodes.iter().for_each(|node| node.configure("", &format!("{bootstrap}{more}")));
    cluster
}

/// The value of a metric of a node.
pub fn metric(node: &Node, name: &str) -> Result<u64, String> {
    let (_, text) = http_get(node.http, "/metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).ok_or_else(|| format!("{name} is not in {text}"))
}

fn sum(cluster: &Cluster, name: &str) -> u64 {
    cluster.nodes.iter().map(|node| metric(node, name).expect("a metric")).sum()
}

/// What one replica alone says of a key: with the others stopped nobody else can answer.
async fn held_by(node: &Node, key: &str) -> Option<Vec<bytes::Bytes>> {
    let found = kv(node.client).get(get_r(key, 1)).await.ok()?.into_inner();
    Some(values(&found))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f29_a_node_that_was_away_gets_what_it_missed_from_anti_entropy_alone() {
    let _alone = alone();
    let mut cluster = alone_repairing(3);
    cluster.start_all();
    client::wait_for_all(&cluster.all_clients(), 3).await;
    let at = cluster.nodes[0].client;
    let puts = |range: std::ops::Range<u32>, value: &'static str| {
        client::for_each(range.collect(), 16, move |n| async move {
            kv(at).put(put(format!("key {n}"), value)).await.map(drop)
        })
    };
    assert!(puts(0..300, "first").await.iter().all(Result::is_ok));
    cluster.nodes[2].kill();
    // Until its death is known a write may fail; then two take it.
    eventually(Duration::from_secs(10), || {
        let (status, body) = http_get(cluster.nodes[0].http, "/metrics")?;
        let links = body.lines().find_map(|line| line.strip_prefix("quoral_peer_links "));
        if status == 200 && links == Some("1") { Ok(()) } else { Err(format!("{links:?}")) }
    });
    assert!(puts(200..400, "second").await.iter().all(Result::is_ok));
    let deleted = client::for_each((0..20).collect(), 8, |n| async move {
        let key = client::bytes(format!("key {n}"));
        kv(at).delete(quoral::rpc::proto::DeleteRequest { key, ..Default::default() }).await.map(drop)
    });
    assert!(deleted.await.iter().all(Result::is_ok));
    cluster.nodes[2].start();
    cluster.wait_ready();
    // 200 written and 20 deleted while it was away.
    eventually(Duration::from_secs(60), || {
        let healed = metric(&cluster.nodes[2], "quoral_repair_records_received_total")?;
        if healed >= 220 { Ok(()) } else { Err(format!("{healed} records are healed")) }
    });
    eventually(Duration::from_secs(20), || {
        let items = |at: usize| metric(&cluster.nodes[at], "quoral_repair_tree_items");
        match (items(0)?, items(1)?, items(2)?) {
            (400, 400, 400) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // Two peers may bring the same record at the same time.
    let in_vain = sum(&cluster, "quoral_repair_records_received_in_vain_total");
    assert!(in_vain <= 220, "{in_vain} of 220 records came in vain");
    assert_eq!(sum(&cluster, "quoral_hints_delivered_total"), 0);
    // It alone answers.
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    for n in [0, 19, 20, 150, 200, 299, 300, 399] {
        let expected: &[&str] = match n {
            0..20 => &[],
            20..200 => &["first"],
            _ => &["second"],
        };
        let found = held_by(&cluster.nodes[2], &format!("key {n}")).await.expect("it is there");
        assert_eq!(found, expected, "key {n}");
    }
}
