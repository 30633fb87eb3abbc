//! A node of which too much is asked refuses at once, leaves each client its share, and holds little for those that do
//! not read.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quoral::rpc::proto::{self, batch_item, batch_status};
use rustix::process::Signal;
use tonic::Code;

use crate::client::{self, Kv, get, kv, put, surely_not_applied};
use crate::cluster::{Cluster, alone, http_get};

/// Bytes of a large value.
const VALUE: usize = 1 << 20;

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

/// What a client that does not read asks for.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Gets,
    Batches,
    Scans,
}

impl Asked {
    /// Asks once; the bytes that were found, if it was not refused.
    async fn ask(self, mut kv: Kv) -> Result<usize, tonic::Status> {
        let bytes =
            |siblings: &[proto::Sibling]| siblings.iter().map(|sibling| sibling.value.len()).sum::<usize>();
        match self {
            Asked::Gets => Ok(bytes(&kv.get(get("large")).await?.into_inner().siblings)),
            Asked::Batches => {
                let item = proto::BatchItem { request: Some(batch_item::Request::Get(get("large"))) };
                let batch = proto::BatchRequest { items: vec![item], ..Default::default() };
                match kv.batch(batch).await?.into_inner().statuses.remove(0).outcome.expect("an outcome") {
                    batch_status::Outcome::Get(found) => Ok(bytes(&found.siblings)),
                    batch_status::Outcome::Error(error) => {
                        Err(tonic::Status::new(Code::from(error.code as i32), error.message))
                    }
                    other => panic!("{other:?}"),
                }
            }
            Asked::Scans => {
                let scan = proto::ScanRequest { key: "large".into(), ..Default::default() };
                let (mut pages, mut found) = (kv.scan(scan).await?.into_inner(), 0);
                while let Some(page) = pages.message().await? {
                    found += page.entries.iter().map(|entry| bytes(&entry.siblings)).sum::<usize>();
                }
                Ok(found)
            }
        }
    }
}

/// Asks 40 times at once over small windows and reads nothing until 30 were refused: its thread stands still then,
/// until `go_on`. Says how many were refused, and after that how many of the others were answered in full.
fn slow_client(
    at: SocketAddr,
    asked: Asked,
    refused_now: std::sync::mpsc::Sender<usize>,
    go_on: std::sync::mpsc::Receiver<()>,
) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{at}"))
            .expect("an address")
            .initial_stream_window_size(65_535)
            .initial_connection_window_size(65_535);
        let channel = endpoint.connect().await.expect("connected");
        let kv = Kv::new(channel).max_decoding_message_size(2 * VALUE);
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..40 {
            asking.spawn(asked.ask(kv.clone()));
        }
        let (mut refused, mut full) = (0, 0);
        let mut waiting = true;
        while let Some(answer) = asking.join_next().await {
            match answer.expect("no panic") {
                Ok(found) => {
                    assert_eq!(found, VALUE);
                    full += 1;
                }
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{asked:?}: {status:?}");
                    refused += 1;
                }
            }
            if waiting && refused == 30 {
                waiting = false;
                refused_now.send(full).expect("somebody waits");
                go_on.recv().expect("to be let go");
            }
        }
        assert!(!waiting, "{asked:?}: only {refused} of 40 were refused, {full} were answered");
        full
    })
}

/// A client that asks for much and reads none of it: it is refused, others are not.
async fn does_not_read(asked: Asked) {
    let _alone = alone();
    let mut cluster = limited("bytes_in_flight = 16777216\n");
    let at = cluster.nodes[0].client;
    client::wait_for_all(&cluster.all_clients(), 3).await;
    kv(at).put(put("large", vec![7; VALUE])).await.expect("put");
    assert_eq!(asked.ask(kv(at)).await.expect("nothing else is asked"), VALUE);
    let (refused_now, refused) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel();
    let slow = std::thread::spawn(move || slow_client(at, asked, refused_now, wait));
    let full = tokio::task::spawn_blocking(move || refused.recv()).await.expect("no panic");
    assert!(full.expect("it lives") <= 8, "what it may hold and what its window lets through");
    // Others are not held up.
    for _ in 0..20 {
        assert_eq!(asked.ask(kv(at)).await.expect("another client"), VALUE);
        kv(at).put(put("small", "v")).await.expect("another client");
    }
    go_on.send(()).expect("it waits");
    let full = tokio::task::spawn_blocking(move || slow.join()).await.expect("no panic").expect("no panic");
    assert!(full > 0, "what was let in is answered");
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_its_gets_stops_nobody() {
    does_not_read(Asked::Gets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_its_batches_stops_nobody() {
    does_not_read(Asked::Batches).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_its_scans_stops_nobody() {
    does_not_read(Asked::Scans).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_everybody_wants_leaves_room_for_others() {
    let _alone = alone();
    let mut cluster = limited("requests_in_flight = 32\n");
    let at = cluster.nodes[0].client;
    client::wait_for_all(&cluster.all_clients(), 3).await;
    // With both others stopped each put hangs until its silence is noticed.
    for node in &cluster.nodes[1..] {
        node.signal(Signal::STOP);
    }
    // All of one client: as a client it may have all there is.
    let client = kv(at);
    let mut hot = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let mut kv = client.clone();
        hot.spawn(async move { kv.put(put("hot", "v")).await });
    }
    // Half of the limit are let in.
    for _ in 0..16 {
        let answer = hot.join_next().await.expect("one of many").expect("no panic");
        let status = answer.expect_err("no put can be acknowledged");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(surely_not_applied(&status), "{status:?}");
    }
    // Another key finds room, though the hot one is asked for more.
    let mut others = tokio::task::JoinSet::new();
    for number in 0..8 {
        let mut kv = client.clone();
        others.spawn(async move { kv.put(put(format!("other{number}"), "v")).await });
        let mut kv = client.clone();
        hot.spawn(async move { kv.put(put("hot", "v")).await });
    }
    while let Some(answer) = others.join_next().await {
        let status = answer.expect("no panic").expect_err("no put can be acknowledged");
        assert_ne!(status.code(), Code::ResourceExhausted, "{status:?}");
    }
    for node in &cluster.nodes[1..] {
        node.signal(Signal::CONT);
    }
    while hot.join_next().await.is_some() {}
    client::wait_for_all(&[at], 3).await;
    kv(at).put(put("hot", "v")).await.expect("nothing counts any more");
    cluster.check();
}
