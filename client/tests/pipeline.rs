//! Requests over streams, against nodes that fail as they are told.

#[allow(dead_code, reason = "it is the command line's too")]
#[path = "../../tests/cli_kv/fake.rs"]
mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fake::{Fault, Node, Shared, lock, set_faults, shared, unavailable, unsure};
use futures_util::future::join_all;
use quoral_client::{Applied, Client, Code, Keyspace, Pipeline};

async fn nodes(count: usize) -> (Shared, Vec<Node>) {
    let shared = shared();
    let mut nodes = Vec::new();
    for _ in 0..count {
        nodes.push(Node::start(&shared).await);
    }
    (shared, nodes)
}

fn keys(nodes: &[Node]) -> (Pipeline, Keyspace) {
    let endpoints = nodes.iter().map(|node| node.address.to_string());
    let client = Client::builder().endpoints(endpoints).timeout(Duration::from_secs(10));
    let client = client.retry_budget(1.0, 1_000).connect_lazy().expect("addresses");
    (client.pipeline(), client.keyspace("default"))
}

/// Fails the first request of `verb`.
fn fail_first(shared: &Shared, verb: &'static str, fault: fn() -> Fault) {
    let mut is_first = true;
    set_faults(shared, move |op| {
        let fails = op == verb && is_first;
        is_first &= !fails;
        fails.then(fault)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_requests_has_its_own_answer() {
    let (_shared, nodes) = nodes(2).await;
    let (pipeline, keys) = keys(&nodes);
    let put = |number: u32| pipeline.put(keys.put(format!("k{number}"), format!("v{number}")));
    for done in join_all((0..3_000).map(put)).await {
        assert_eq!(done.expect("taken").attempts, 1);
    }
    let get = |number: u32| pipeline.get(keys.get(format!("k{number}")));
    for (number, found) in join_all((0..3_000).map(get)).await.into_iter().enumerate() {
        let found = found.expect("answered");
        assert_eq!(found.one().expect("one"), Some(&format!("v{number}").into()));
    }
    pipeline.delete(keys.delete("k7")).await.expect("deleted");
    assert!(pipeline.get(keys.get("k7")).await.expect("answered").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_again_is_as_for_calls() {
    let (shared, nodes) = nodes(2).await;
    let (pipeline, keys) = keys(&nodes);
    fail_first(&shared, "put", || Fault::Before(unavailable()));
    let done = pipeline.put(keys.put("k", "v").unnamed()).await.expect("surely not applied the first time");
    assert_eq!(done.attempts, 2);
    fail_first(&shared, "put", || Fault::After(unsure()));
    let error = pipeline.put(keys.put("k", "v").unnamed()).await.expect_err("in doubt");
    assert_eq!((error.applied, error.code, error.attempts), (Applied::Maybe, Code::DeadlineExceeded, 1));
    fail_first(&shared, "put", || Fault::After(unsure()));
    assert_eq!(pipeline.put(keys.put("k", "v")).await.expect("it has a name").attempts, 2);
    fail_first(&shared, "put", || Fault::After(unsure()));
    assert_eq!(pipeline.put(keys.put("k", "v").repeatable()).await.expect("as often as needed").attempts, 2);
    fail_first(&shared, "get", || Fault::Before(unavailable()));
    assert_eq!(pipeline.get(keys.get("k")).await.expect("a read").attempts, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_loses_nothing_that_may_be_sent_again() {
    let (shared, mut nodes) = nodes(2).await;
    let (pipeline, keys) = keys(&nodes);
    let seen = Arc::new(AtomicU64::new(0));
    let half = Arc::new(tokio::sync::Notify::new());
    let reached = half.clone();
    set_faults(&shared, move |_| {
        if seen.fetch_add(1, Ordering::Relaxed) == 500 {
            reached.notify_one();
        }
        None
    });
    let load = tokio::spawn(async move {
        let put = |number: u32| pipeline.put(keys.put(format!("k{number}"), "v"));
        let done = join_all((0..2_000).map(put)).await;
        let unnamed = pipeline.put(keys.put("last", "v").unnamed()).await;
        (done, unnamed)
    });
    half.notified().await;
    nodes[0].kill();
    let (done, unnamed) = load.await.expect("no panic");
    let failed: Vec<_> = done.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} failed, as {:?}", failed.len(), failed[0]);
    unnamed.expect("the other node has a stream");
    assert_eq!(lock(&shared).rows.len(), 2_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_a_session_is_refused() {
    let (shared, nodes) = nodes(1).await;
    let (pipeline, _) = keys(&nodes);
    let endpoint = nodes[0].address.to_string();
    let client = Client::builder().endpoints([endpoint]).connect_lazy().expect("an address");
    let put = client.session().keyspace("default").put("k", "v");
    let error = pipeline.put(put).await.expect_err("one by one");
    assert_eq!((error.code, error.attempts), (Code::InvalidArgument, 0));
    assert!(lock(&shared).log.iter().all(|(op, _)| op != "put"));
}
