//! A node of which too much is asked refuses at once, leaves each client its share, and holds little for those that do
//! not read.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tonic::Code;

use crate::client::{self, get, kv, put, surely_not_applied};
use crate::cluster::{Cluster, alone, http_get};

/// Three nodes with these limits.
fn limited(limits: &str) -> Cluster {
    let mut cluster = Cluster::made(3);
    let bootstrap = cluster.bootstrap();
    cluster.nodes.iter().for_each(|node| node.configure("", &format!("{bootstrap}[limits]\n{limits}")));
    cluster.start_all();
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_its_limit_a_node_refuses_at_once_and_leaves_others_a_share() {
    let _alone = alone();
    let mut cluster = limited("requests_in_flight = 8\n");
    let at = cluster.nodes[0].client;
    client::wait_for_all(&cluster.all_clients(), 3).await;
    // With both others stopped each put hangs until its silence is noticed.
    for node in &cluster.nodes[1..] {
        node.signal(Signal::STOP);
    }
    let flood = kv(at);
    let began = Instant::now();
    let put_of = |number: usize| put(format!("k{number}"), "v");
    let mut hanging = tokio::task::JoinSet::new();
    for number in 0..60 {
        let (mut kv, put) = (flood.clone(), put_of(number));
        hanging.spawn(async move { (kv.put(put).await, began.elapsed()) });
    }
    let mut refused = 0;
    while refused < 52 {
        let (answer, after) = hanging.join_next().await.expect("one of many").expect("no panic");
        let status = answer.expect_err("no put can be acknowledged");
        if status.code() != Code::ResourceExhausted {
            break;
        }
        assert!(surely_not_applied(&status), "{status:?}");
        assert!(tonic_types::StatusExt::get_details_retry_info(&status).is_some(), "{status:?}");
        assert!(after < Duration::from_secs(1), "refused after {after:?}");
        refused += 1;
    }
    assert_eq!(refused, 52, "8 of 60 are let in");
    // Another client has its share, though the limit is reached: it is not refused at the door.
    let other = kv(at).put(put_of(100)).await.expect_err("no put can be acknowledged");
    assert_ne!(other.code(), Code::ResourceExhausted, "{other:?}");
    let (_, metrics) = http_get(cluster.nodes[0].http, "/metrics").expect("metrics");
    assert!(metrics.contains("quoral_requests_limit"), "{metrics}");
    for node in &cluster.nodes[1..] {
        node.signal(Signal::CONT);
    }
    while hanging.join_next().await.is_some() {}
    client::wait_for_all(&[at], 3).await;
    kv(at).put(put("after", "v")).await.expect("nothing counts any more");
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_little_and_stops_nobody() {
    const VALUE: usize = 1 << 20;
    let _alone = alone();
    let mut cluster = limited("bytes_in_flight = 16777216\n");
    let at = cluster.nodes[0].client;
    client::wait_for_all(&cluster.all_clients(), 3).await;
    kv(at).put(put("large", vec![7; VALUE])).await.expect("put");
    kv(at).get(get("large")).await.expect("it is learnt how large gets are");
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Its thread stands still once all requests are out, so nothing reads what comes.
    let (sent, all_sent) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let slow = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let channel = tonic::transport::Endpoint::from_shared(format!("http://{at}"))
                .expect("an address")
                .initial_stream_window_size(65_535)
                .initial_connection_window_size(65_535)
                .connect()
                .await
                .expect("connected");
            let large =
                quoral::rpc::proto::kv_client::KvClient::new(channel).max_decoding_message_size(2 * VALUE);
            let mut gets = tokio::task::JoinSet::new();
            for _ in 0..40 {
                let mut large = large.clone();
                gets.spawn(async move { large.get(get("large")).await });
            }
            // Long enough for all to be sent, and for the first refusals.
            let mut refused = 0;
            while let Ok(Some(answer)) =
                tokio::time::timeout(Duration::from_millis(500), gets.join_next()).await
            {
                if let Err(status) = answer.expect("no panic") {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                    refused += 1;
                }
                if refused >= 30 {
                    break;
                }
            }
            sent.send(refused).expect("somebody waits");
            wait.recv().expect("to be let go");
        });
    });
    let refused = all_sent.recv().expect("it lives");
    assert!(refused >= 30, "only {refused} of 40 were refused");
    // Others are not held up.
    for _ in 0..20 {
        let found = kv(at).get(get("large")).await.expect("another client").into_inner();
        assert_eq!(found.siblings[0].value.len(), VALUE);
        kv(at).put(put("small", "v")).await.expect("another client");
    }
    go_on.send(()).expect("it waits");
    slow.join().expect("no panic");
    cluster.check();
}
