//! What comes out of a frozen process's buffers is not carried out once its senders have given it up.

use std::time::Duration;

use quoral::rpc::proto;
use rustix::process::Signal;
use tonic::Code;

use crate::client::{self, bytes, get_r, kv, put, values};
use crate::cluster::{Cluster, Node, alone, eventually, http_get};
use crate::sloppy::{homes, json};

fn late_operations(node: &Node) -> u64 {
    let (_, metrics) = http_get(node.http, "/metrics").expect("metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix("quoral_late_operations_total "));
    line.and_then(|number| number.parse().ok()).expect("a number")
}

/// A write that was sent on to a home replica which is stopped, and given up: it must not come after what was
/// written since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_was_given_up_is_not_minted_by_who_wakes_up() {
    let _alone = alone();
    let mut cluster = Cluster::start(4);
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    for round in 0..4 {
        let key = format!("cart {round}");
        let (home, others) = homes(&cluster, &key);
        let (asleep, awake, stranger) = (&cluster.nodes[home[0]], clients[home[1]], clients[others[0]]);
        kv(stranger).put(put(&*key, "before")).await.expect("all are there");
        let before: Vec<u64> = cluster.nodes.iter().map(late_operations).collect();
        asleep.signal(Signal::STOP);
        let old = proto::PutRequest { timeout_ms: 300, ..put(&*key, "given up") };
        let given_up = kv(stranger).put(old).await.expect_err("it is asleep");
        assert_eq!(given_up.code(), Code::DeadlineExceeded, "{given_up:?}");
        kv(awake).put(put(&*key, "after")).await.expect("two of three");
        if round % 2 == 1 {
            // Its link is given up, too.
            eventually(Duration::from_secs(20), || {
                let status = json(awake, &["status"]);
                let nodes = status["nodes"].as_array().expect("nodes").clone();
                let state = |node: &serde_json::Value| node["state"].as_str().map(str::to_owned);
                let one = nodes.iter().find(|node| node["node_id"] == asleep.id.as_str());
                match one.and_then(state).as_deref() {
                    Some("down") => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        }
        asleep.signal(Signal::CONT);
        if round % 2 == 0 {
            eventually(Duration::from_secs(10), || match late_operations(asleep) {
                late if late > before[home[0]] => Ok(()),
                late => Err(format!("{late} late operations")),
            });
        }
        client::wait_for_all(&clients, 3).await;
        let found = kv(stranger).get(get_r(&*key, 3)).await.expect("get").into_inner();
        assert_eq!(values(&found), [bytes("after")], "round {round}");
    }
    cluster.check();
}
