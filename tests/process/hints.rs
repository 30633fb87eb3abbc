//! What a node missed while it was dead comes home, without a read and without its help.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::client::{self, bytes, for_each, get_r, kv, put, values};
use crate::cluster::{Cluster, alone, cli, eventually, http_get, said};

const KEYS: usize = 300;

fn json(at: SocketAddr, arguments: &[&str]) -> Value {
    let (output, _) = cli(&[at], &[arguments, &["-o", "json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {}", said(&output)))
}

fn hints_for(at: SocketAddr, target: &str) -> u64 {
    let list = json(at, &["hints", "list"]);
    let logs = list["hints"].as_array().expect("a list");
    logs.iter().filter(|log| log["target"] == target).filter_map(|log| log["hints"].as_u64()).sum()
}

#[tokio::test]
async fn what_a_dead_node_missed_comes_home() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    let away = cluster.nodes[2].id.clone();
    cluster.nodes[2].kill();
    let coordinators = [clients[0], clients[1]];
    for_each((0..KEYS).collect(), 16, |turn| async move {
        let put = put(format!("k{turn}"), format!("v{turn}"));
        kv(coordinators[turn % 2]).put(put).await.expect("two of three are there");
    })
    .await;
    // A hint is written after the answer.
    eventually(Duration::from_secs(10), || match hints_for(clients[0], &away) {
        kept if kept >= KEYS as u64 => Ok(()),
        kept => Err(format!("{kept} hints")),
    });
    let status = json(clients[0], &["status"]);
    let node =
        status["nodes"].as_array().expect("nodes").iter().find(|node| node["node_id"] == away.as_str());
    assert_eq!(node.expect("listed")["hints"].as_u64(), Some(hints_for(clients[1], &away)));
    let (waited, _) = cli(&[clients[0]], &["hints", "wait", "--timeout", "2s"]);
    assert_eq!(waited.status.code(), Some(5), "{}", said(&waited));
    assert!(said(&waited).contains("hints for n3 on n"), "{}", said(&waited));

    // Hints are durable.
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.nodes[0].wait_ready();
    client::wait_for_all(&coordinators, 2).await;
    assert!(hints_for(clients[0], &away) >= KEYS as u64);

    cluster.nodes[2].start();
    cluster.nodes[2].wait_ready();
    let (waited, _) = cli(&[clients[0]], &["hints", "wait", "--timeout", "15s"]);
    assert_eq!(waited.status.code(), Some(0), "{}", said(&waited));
    assert_eq!(hints_for(clients[1], &away), 0);
    // Alone it has all of it.
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    for turn in 0..KEYS {
        let answer =
            kv(clients[2]).get(get_r(format!("k{turn}"), 1)).await.expect("its own copy").into_inner();
        assert_eq!(values(&answer), [bytes(format!("v{turn}"))]);
    }
    cluster.nodes.iter().for_each(crate::cluster::Node::check_log);
}

/// A full log refuses hints, not writes; it is said where operators look, and so is the way home of the others.
#[tokio::test]
async fn f26_a_full_hint_log_refuses_politely() {
    let _alone = alone();
    let mut cluster = Cluster::made(3);
    let bootstrap = cluster.bootstrap();
    let hints = "[hints]\ntarget_bytes = 20000\nrate_bytes = 50000\n";
    cluster.nodes.iter().for_each(|node| node.configure("", &format!("{bootstrap}\n{hints}")));
    cluster.start_all();
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    let (away, first) = (cluster.nodes[2].id.clone(), clients[0]);
    cluster.nodes[2].kill();
    for_each((0..2 * KEYS).collect(), 16, |turn| async move {
        kv(first).put(put(format!("k{turn}"), format!("v{turn}"))).await.expect("two of three are there");
    })
    .await;
    let refused = || {
        let list = json(first, &["hints", "list"]);
        let logs = list["hints"].as_array().expect("a list").clone();
        logs.iter()
            .filter(|log| log["target"] == away.as_str())
            .filter_map(|log| log["refused"].as_u64())
            .sum()
    };
    let kept = eventually(Duration::from_secs(10), || match (hints_for(first, &away), refused()) {
        (kept, refused) if kept + refused == 2 * KEYS as u64 && refused > 0 => Ok(kept),
        (kept, refused) => Err(format!("{kept} kept, {refused} refused")),
    });
    assert!(kept > 100, "{kept}");
    let (status, _) = cli(&[clients[1]], &["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    for said in
        [&format!("hints for n3: 0 of {kept} are home (0%)")[..], "hints.target_bytes", "anti-entropy"]
    {
        assert!(text.contains(said), "{said:?} is not in {text}");
    }
    let (_, metrics) = http_get(cluster.nodes[0].http, "/metrics").expect("metrics");
    assert!(metrics.contains("quoral_hints_refused_total{reason=\"TargetBytes\"}"), "{metrics}");
    let told = cluster.nodes[0].log_text().matches("hints are not kept any more").count();
    assert_eq!(told, 1, "told once");

    cluster.nodes[2].start();
    cluster.nodes[2].wait_ready();
    eventually(Duration::from_secs(10), || {
        let status = json(first, &["status"]);
        let nodes = status["nodes"].as_array().expect("nodes").clone();
        let n3 = nodes.into_iter().find(|node| node["node_id"] == away.as_str()).expect("listed");
        let number = |field: &str| n3[field].as_u64().expect("a number");
        let (wait, home) = (number("hints"), number("hints_delivered"));
        let on_the_way = wait > 0 && home > 0 && wait + home <= kept + 1 && number("hints_per_second") > 0;
        if on_the_way { Ok(()) } else { Err(n3.to_string()) }
    });
    let (waited, _) = cli(&[first], &["hints", "wait", "--timeout", "20s"]);
    assert_eq!(waited.status.code(), Some(0), "{}", said(&waited));
    assert_eq!((hints_for(first, &away), refused()), (0, 2 * KEYS as u64 - kept));
    cluster.check();
}
