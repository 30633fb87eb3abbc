//! Retries, failover, budgets and deadlines, against nodes that fail as they are told.

#[allow(dead_code, reason = "it is the command line's too")]
#[path = "../../tests/cli_kv/fake.rs"]
mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fake::{Fault, Node, Shared, lock, set_faults, shared, unavailable, unsure};
use futures_util::TryStreamExt as _;
use quoral_client::{
    Applied, Builder, Client, Code, Conflict, Entry, Error, Found, Keyspace, Reached, RetryPolicy, Scan,
};
use tonic::Status;
use tonic_types::StatusExt as _;

async fn nodes(count: usize) -> (Shared, Vec<Node>) {
    let shared = shared();
    let mut nodes = Vec::new();
    for _ in 0..count {
        nodes.push(Node::start(&shared).await);
    }
    (shared, nodes)
}

fn builder(nodes: &[Node]) -> Builder {
    let endpoints = nodes.iter().map(|node| node.address.to_string());
    Client::builder().endpoints(endpoints).timeout(Duration::from_secs(5))
}

fn keys(builder: Builder) -> Keyspace {
    builder.connect_lazy().expect("addresses").keyspace("default")
}

/// Fails the first `count` requests of `verb`.
fn fail_first(
    shared: &Shared,
    verb: &'static str,
    count: u32,
    mut fault: impl FnMut() -> Fault + Send + 'static,
) {
    let mut left = count;
    set_faults(shared, move |op| {
        let fails = op == verb && left > 0;
        left -= u32::from(fails);
        fails.then(&mut fault)
    });
}

fn sent(shared: &Shared, verb: &str) -> usize {
    lock(shared).log.iter().filter(|(op, _)| op == verb).count()
}

#[tokio::test]
async fn a_write_that_was_surely_not_applied_is_sent_again() {
    let (shared, nodes) = nodes(2).await;
    fail_first(&shared, "put", 2, || Fault::Before(unavailable()));
    let done = keys(builder(&nodes)).put("k", "v").unnamed().await.expect("the third is taken");
    assert_eq!((done.attempts, sent(&shared, "put")), (3, 3));
}

#[tokio::test]
async fn a_write_in_doubt_is_sent_again_only_under_its_name() {
    let (shared, nodes) = nodes(2).await;
    let keys = keys(builder(&nodes));
    fail_first(&shared, "put", 1, || Fault::After(unsure()));
    let done = keys.put("k", "v").await.expect("the second is answered");
    assert_eq!(done.attempts, 2);
    let id = lock(&shared).last_put.clone().expect("a put").request_id;
    assert_eq!(id.len(), 16);

    fail_first(&shared, "put", 1, || Fault::After(unsure()));
    let error = keys.put("k", "v").unnamed().await.expect_err("in doubt");
    assert_eq!((error.applied, error.code, error.attempts), (Applied::Maybe, Code::DeadlineExceeded, 1));
    assert_eq!((error.required, error.received), (2, 1));
    assert!(lock(&shared).last_put.clone().expect("a put").request_id.is_empty());

    fail_first(&shared, "del", 1, || Fault::After(Status::unavailable("the connection broke")));
    assert_eq!(keys.delete("k").await.expect("named").attempts, 2);
}

#[tokio::test]
async fn a_doubt_is_not_forgotten_over_later_refusals() {
    let (shared, nodes) = nodes(1).await;
    let mut puts = 0;
    set_faults(&shared, move |op| {
        puts += u32::from(op == "put");
        let fault = || if puts == 1 { Fault::After(unsure()) } else { Fault::Before(unavailable()) };
        (op == "put").then(fault)
    });
    let policy = RetryPolicy { attempts: 3, backoff: Duration::from_millis(1), ..RetryPolicy::default() };
    let error = keys(builder(&nodes).retries(policy)).put("k", "v").await.expect_err("refused in the end");
    assert_eq!((error.applied, error.attempts), (Applied::Maybe, 3));
}

#[tokio::test]
async fn what_is_wrong_is_sent_once() {
    let (shared, nodes) = nodes(2).await;
    let client = builder(&nodes).connect_lazy().expect("addresses");
    let error = client.keyspace("nowhere").put("k", "v").await.expect_err("unknown");
    assert_eq!((error.code, error.applied, error.reached), (Code::NotFound, Applied::No, Reached::Node));
    assert_eq!(sent(&shared, "put"), 1);
}

#[tokio::test]
async fn a_client_that_never_retries_sends_once() {
    let (shared, nodes) = nodes(2).await;
    let keys = keys(builder(&nodes).retries(RetryPolicy::NEVER).routing(false));
    fail_first(&shared, "get", 1, || Fault::Before(unavailable()));
    let error = keys.get("k").await.expect_err("refused");
    assert_eq!((error.attempts, sent(&shared, "get")), (1, 1));
}

#[tokio::test]
async fn an_overloaded_node_gets_the_time_that_it_asks_for() {
    let (shared, nodes) = nodes(1).await;
    let busy = || {
        let delay = tonic_types::ErrorDetails::with_retry_info(Some(Duration::from_millis(300)));
        Status::with_error_details(Code::ResourceExhausted, "busy", delay)
    };
    fail_first(&shared, "put", 1, move || Fault::Before(busy()));
    let began = Instant::now();
    let done = keys(builder(&nodes)).put("k", "v").unnamed().await.expect("then taken");
    assert_eq!(done.attempts, 2);
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn retries_can_not_make_a_storm() {
    let (shared, nodes) = nodes(3).await;
    set_faults(&shared, |op| (op == "get").then(|| Fault::Before(unavailable())));
    let policy = RetryPolicy { backoff: Duration::from_micros(1), ..RetryPolicy::default() };
    let keys = keys(builder(&nodes).retries(policy).retry_budget(0.1, 10));
    for _ in 0..200 {
        keys.get("k").await.expect_err("refused");
    }
    let all = sent(&shared, "get");
    // What the client asks for its own use earns a little too.
    assert!((200..=200 + 10 + 20 + 2).contains(&all), "{all} for 200 requests");
}

#[tokio::test]
async fn the_deadline_ends_it() {
    let (shared, nodes) = nodes(2).await;
    set_faults(&shared, |op| (op == "get").then(|| Fault::Before(unavailable())));
    let policy = RetryPolicy { attempts: 1_000, ..RetryPolicy::default() };
    let keys = keys(builder(&nodes).retries(policy));
    let began = Instant::now();
    let error = keys.get("k").timeout(Duration::from_millis(500)).await.expect_err("refused");
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
    assert!(error.attempts > 1, "{error:?}");
    assert_eq!((error.code, error.required), (Code::Unavailable, 2), "the node's own words are told");
}

#[tokio::test]
async fn a_silent_node_ends_a_request_at_its_deadline_in_doubt() {
    // It takes connections, and never says anything.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("bound").to_string();
    let builder = Client::builder().endpoints([address]).routing(false);
    let began = Instant::now();
    let put = keys(builder).put("k", "v").unnamed().timeout(Duration::from_millis(300));
    let error = put.await.expect_err("silence");
    assert!(began.elapsed() < Duration::from_millis(700), "{:?}", began.elapsed());
    assert_eq!((error.applied, error.reached), (Applied::Maybe, Reached::Connection));
}

#[tokio::test]
async fn a_dead_endpoint_costs_nothing() {
    let (shared, mut nodes) = nodes(3).await;
    let keys = keys(builder(&nodes).retry_budget(0.0, 2));
    keys.put("k", "v").await.expect("all are there");
    nodes[0].kill();
    nodes[1].kill();
    for _ in 0..20 {
        // One connection each may break under a request, which is paid for. After that they are refused.
        keys.get("k").await.expect("one is there");
    }
    assert_eq!(sent(&shared, "get"), 20);
    nodes[2].kill();
    let began = Instant::now();
    let error = keys.get("k").timeout(Duration::from_secs(1)).await.expect_err("nobody is there");
    assert_eq!((error.code, error.applied), (Code::Unavailable, Applied::No));
    assert!(began.elapsed() < Duration::from_secs(2));
    nodes[1].restart().await;
    keys.get("k").await.expect("one is back");
}

#[tokio::test]
async fn an_update_merges_what_is_there() {
    let (shared, nodes) = nodes(2).await;
    let carts = builder(&nodes).connect_lazy().expect("addresses").keyspace("carts");
    carts.put("cart", "milk").await.expect("put");
    carts.put("cart", "eggs").await.expect("put");
    let found = carts.get("cart").await.expect("get");
    assert_eq!(found.one(), Err(Conflict { siblings: 2 }));
    fail_first(&shared, "put", 1, || Fault::Before(unavailable()));
    let join = |found: &Found| {
        let mut items: Vec<&[u8]> = found.values().map(|value| &value[..]).collect();
        items.sort_unstable();
        items.join(&b' ')
    };
    carts.update("cart", join).await.expect("update");
    let found = carts.get("cart").await.expect("get");
    assert_eq!(found.one().expect("merged").map(|value| &value[..]), Some(b"eggs milk".as_slice()));
}

#[tokio::test]
async fn a_scan_goes_on_behind_a_broken_page() {
    let (shared, nodes) = nodes(2).await;
    let keys = keys(builder(&nodes));
    for n in 0..40 {
        keys.put(("room", format!("{n:02}")), format!("{n}")).await.expect("put");
    }
    let pages = Arc::new(AtomicU32::new(0));
    let count = pages.clone();
    set_faults(&shared, move |op| {
        let breaks = op == "page" && count.fetch_add(1, Ordering::Relaxed) % 3 == 1;
        breaks.then(|| Fault::Before(Status::unavailable("broken")))
    });
    let sorts = async |scan: Scan| -> Result<Vec<u32>, Error> {
        let number =
            |entry: Entry| String::from_utf8_lossy(&entry.key.sort).parse::<u32>().expect("a number");
        scan.entries().map_ok(number).try_collect().await
    };
    assert_eq!(sorts(keys.scan_key("room")).await, Ok((0..40).collect()));
    assert_eq!(sorts(keys.scan_key("room").limit(20)).await, Ok((0..20).collect()));
    assert_eq!(sorts(keys.scan_key("room").reverse().limit(10)).await, Ok((30..40).rev().collect()));
    assert_eq!(sorts(keys.scan()).await.expect("all").len(), 40);
    assert!(pages.load(Ordering::Relaxed) > 9, "pages were broken");
    let mut first = keys.scan_key("room").limit(7).pages();
    let page = first.next().await.expect("a page").expect("one");
    assert_eq!(first.next().await, Ok(None), "the limit is met");
    assert_eq!(sorts(keys.scan_key("room").cursor(page.cursor)).await, Ok((7..40).collect()));
}

#[tokio::test]
async fn errors_of_endpoints_are_told_before_anything_is_sent() {
    for bad in [vec![], vec!["nowhere"]] {
        let error = Client::builder().endpoints(bad).connect_lazy().map(|_| ()).expect_err("refused");
        assert_eq!((error.code, error.applied), (Code::InvalidArgument, Applied::No));
    }
}
