//! The Rust client, `quoral-client`, against real nodes: it finds them, goes where keys live, and comes through deaths
//! without losing a write or doing one twice. And its example, the shopping cart, plays as it says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use quoral_client::{Applied, Client, Code, Error, Keyspace, Level, NewKeyspace, Outcome};

use crate::client::{for_each, wait_for_all};
use crate::cluster::{BINARY, Cluster, alone, free_ports, http_get};

#[path = "../../client/examples/cart/main.rs"]
mod cart;

async fn three() -> (Cluster, Vec<SocketAddr>) {
    let cluster = Cluster::start(3);
    let clients = cluster.all_clients();
    wait_for_all(&clients, 3).await;
    (cluster, clients)
}

async fn connect(endpoints: &[SocketAddr]) -> Client {
    let endpoints = endpoints.iter().map(ToString::to_string);
    let client = Client::builder().endpoints(endpoints).timeout(Duration::from_secs(10));
    client.connect().await.expect("a cluster")
}

/// Requests that nodes have handed on to a home replica.
fn forwarded(cluster: &Cluster) -> f64 {
    let of = |node: &crate::cluster::Node| {
        let (_, page) = http_get(node.http, "/metrics").expect("metrics");
        let line = page.lines().find(|line| line.starts_with("quoral_requests_forwarded_total"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).expect("the metric")
    };
    cluster.nodes.iter().map(of).sum()
}

async fn put_all(keys: &Keyspace, prefix: &str, count: usize) -> Vec<Result<quoral_client::Written, Error>> {
    let puts = (0..count).map(|n| keys.put(format!("{prefix}{n}"), format!("{n}")).into_future());
    for_each(puts.collect(), 16, |put| put).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_finds_the_nodes_and_goes_where_keys_live() {
    let _alone = alone();
    let (mut cluster, clients) = three().await;
    let client = connect(&clients[..1]).await;
    let all: BTreeSet<String> = clients.iter().map(ToString::to_string).collect();
    let end = Instant::now() + Duration::from_secs(20);
    // A node's address comes by gossip, a little after the node itself.
    while client.endpoints().into_iter().collect::<BTreeSet<_>>() != all {
        assert!(Instant::now() < end, "it knows {:?}", client.endpoints());
        client.refresh().await.expect("the cluster answers");
    }
    let (keys, mut round) = (client.keyspace("default"), 0);
    loop {
        let before = forwarded(&cluster);
        for done in put_all(&keys, &format!("{round}-"), 100).await {
            assert_eq!(done.expect("put").attempts, 1);
        }
        // At first it has one connection; a node that isn't a key's first home hands a named write on.
        if forwarded(&cluster) == before {
            break;
        }
        assert!(Instant::now() < end, "writes are still handed on");
        round += 1;
    }
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_come_through_the_deaths_of_nodes_and_are_done_once() {
    let _alone = alone();
    let (mut cluster, clients) = three().await;
    let client = connect(&clients).await;
    let info = client.ensure_keyspace(NewKeyspace::siblings("carts")).await.expect("a keyspace");
    assert_eq!(client.ensure_keyspace(NewKeyspace::siblings("carts")).await, Ok(info));
    let other = client.ensure_keyspace(NewKeyspace::lww("carts")).await.expect_err("of another policy");
    assert!(other.message.contains("conflicts"), "{other}");
    let carts = client.keyspace("carts");
    let mut retried = 0;
    for round in 0..3 {
        let (carts, prefix) = (carts.clone(), format!("{round}-"));
        let puts = tokio::spawn(async move { put_all(&carts, &prefix, 400).await });
        // In the middle of them; when there is no middle left, the next round has one.
        cluster.nodes[round].kill();
        for done in puts.await.expect("no panic") {
            retried += u32::from(done.expect("two are there").attempts > 1);
        }
        cluster.nodes[round].start();
        cluster.wait_ready();
        wait_for_all(&clients, 3).await;
    }
    assert!(retried > 0, "no write was under way when a node died");
    let entries: Vec<_> = carts.scan().entries().try_collect().await.expect("a scan");
    assert_eq!(entries.len(), 1_200);
    for entry in entries {
        assert_eq!(entry.siblings.len(), 1, "a blind write that was done twice is two siblings: {entry:?}");
    }
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_through_another_client() {
    let _alone = alone();
    let mut cluster = Cluster::made(3);
    // Without hints a node stays behind until it is repaired.
    let bootstrap = format!("{}\n[hints]\nwindow_ms = 0\n", cluster.bootstrap());
    cluster.nodes.iter().for_each(|node| node.configure("", &bootstrap));
    cluster.start_all();
    let clients = cluster.all_clients();
    wait_for_all(&clients, 3).await;
    cluster.nodes[2].kill();
    let session = connect(&clients[..2]).await.session();
    let mine = session.keyspace("default");
    for n in 0..20 {
        mine.put(format!("k{n}"), "mine").w(Level::One).await.expect("two are there");
    }
    assert_eq!(mine.scan().pages().next().await.expect_err("no session").code, Code::InvalidArgument);
    assert_eq!(mine.batch().get("k").await.expect_err("no session").code, Code::InvalidArgument);
    cluster.nodes[2].start();
    cluster.wait_ready();
    wait_for_all(&clients, 3).await;
    let late = Client::builder().endpoints([clients[2].to_string()]).routing(false);
    let late = late.connect().await.expect("it is back");
    let (session, plain) = (late.session_from(session.token().await), late.keyspace("default"));
    let mut behind = 0;
    for n in 0..20 {
        let key = format!("k{n}");
        behind += u32::from(plain.get(&key).r(Level::One).await.expect("get").is_empty());
        let found = session.keyspace("default").get(&key).r(Level::One).await.expect("get");
        assert_eq!(found.one().expect("lww").map(|value| &value[..]), Some(b"mine".as_slice()), "{key}");
    }
    assert!(behind > 0, "the node that was away had all there was: this test shows nothing");
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_has_an_outcome_for_each_and_errors_say_what_they_know() {
    let _alone = alone();
    let (mut cluster, clients) = three().await;
    let client = connect(&clients).await;
    let keys = client.keyspace("default");
    let batch =
        keys.batch().put("a", "1").put(("b", "x"), "2").item(keys.get("a").r(Level::All)).put("", "3");
    let outcomes = batch.delete("c").await.expect("a batch");
    let kinds: Vec<&str> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Ok(Outcome::Written(_)) => "written",
            Ok(Outcome::Found(_)) => "found",
            Err(error) if error.code == Code::InvalidArgument && error.applied == Applied::No => "refused",
            Err(error) => panic!("{error:?}"),
        })
        .collect();
    assert_eq!(kinds, ["written", "written", "found", "refused", "written"]);
    let mut all = BTreeMap::new();
    let mut entries = std::pin::pin!(keys.scan().entries());
    while let Some(entry) = entries.try_next().await.expect("a scan") {
        all.insert((entry.key.partition, entry.key.sort), entry.siblings[0].value.clone());
    }
    assert_eq!(all[&("b".into(), "x".into())], "2");
    // What is wrong is asked once. (With a node away another attempt may come to nobody.)
    let wrong = keys.put("a", "3").w(4).await.expect_err("more than there are");
    assert_eq!((wrong.code, wrong.applied, wrong.attempts), (Code::InvalidArgument, Applied::No, 1));

    cluster.nodes[2].kill();
    let error = keys.put("a", "3").w(Level::All).timeout(Duration::from_secs(4)).await;
    let error = error.expect_err("one is away");
    assert_eq!(error.required, 3, "{error:?}");
    cluster.nodes[2].start();
    cluster.wait_ready();
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cart_of_the_dynamo_paper_has_what_both_devices_added() {
    let _alone = alone();
    let items = cart::run(Path::new(BINARY), free_ports(40)).await.expect("it plays");
    assert_eq!(items, ["bread", "eggs", "milk"].map(String::from).into());
}
