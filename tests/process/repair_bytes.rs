//! What each path of repair costs in bytes, when it is the only one: anti-entropy, hints, reads.
//!
//! Five nodes; both sides of a partition, two nodes and three, write one key in a hundred. While one side writes, the
//! processes of the other are dead, and the side that wrote is killed before the other comes back alone: so nothing
//! passes between them, and each keeps only what was durable.
//!
//! `QUORAL_REPAIR_KEYS` sets the keys (6,000; the bar is 100,000), `QUORAL_EQUAL_KEYS` those of the test of equal
//! replicas (2,000; the bar is 1,000,000).

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quoral::antientropy::exchange::SETTLE;
use quoral::rpc::proto::{self, batch_item, batch_status};
use quoral::types::ids::NodeId;
use quoral::version::codec::encode_record;
use quoral::version::hlc::Stamp;
use quoral::version::record::{LwwVersion, Payload, Record};
use serde_json::Value;

use crate::client::{self, kv};
use crate::cluster::{Cluster, Node, alone, cli, eventually, run, said};
use crate::repair::metric;
use crate::repair_now::{links, number};

const NODES: u16 = 5;
/// Keys of a tree: as many as when 100,000 keys are in 256 partitions.
const TREE: u32 = 390;
const VALUE: usize = 100;
/// Requests to a batch.
const BATCH: u32 = 500;

const NO_HINTS: &str = "[hints]\nwindow_ms = 0\n";
const NO_READ_REPAIR: &str = "[repair]\nread_repair = false\ninterval_ms = 0\n";
const NO_SCHEDULE: &str = "[repair]\ninterval_ms = 0\n";

fn keys_of(variable: &str, usual: u32) -> u32 {
    std::env::var(variable).ok().map_or(usual, |keys| keys.parse().expect("a number"))
}

fn key(n: u32) -> String {
    format!("key {n:07}")
}

/// 100 bytes that say nothing of each other.
fn value(seed: &str, n: u32) -> Bytes {
    let words =
        [0, 1, 2, 3].map(|part: u8| *blake3::hash(format!("{seed} {n} {part}").as_bytes()).as_bytes());
    words.concat()[..VALUE].to_vec().into()
}

/// What one differing record amounts to: its key, and the record as it is stored.
fn record_bytes() -> u64 {
    let payload = Payload::Value(value("x", 1));
    let version = LwwVersion {
        stamp: Stamp(u64::MAX >> 1),
        node: NodeId(0xa1),
        payload,
        expires_at: None,
        request: None,
    };
    let record = encode_record(&Record::Lww(version));
    u64::try_from(key(1).len() + record.len()).expect("small")
}

/// Runs a request for each key, in batches that are spread over some nodes; all must succeed. What a busy node refuses is
/// sent again when it says.
async fn batches(
    at: &[SocketAddr],
    keys: Range<u32>,
    request: impl Fn(u32) -> batch_item::Request + Clone + Send + 'static,
) {
    let batches: Vec<(SocketAddr, Vec<u32>)> = (at.iter().copied().cycle())
        .zip(keys.clone().step_by(BATCH as usize))
        .map(|(at, from)| (at, (from..(from + BATCH).min(keys.end)).collect()))
        .collect();
    let done = client::for_each(batches, 4, move |(at, mut keys)| {
        let request = request.clone();
        async move {
            while !keys.is_empty() {
                let item = |n: &u32| proto::BatchItem { request: Some(request(*n)) };
                let items = keys.iter().map(item).collect();
                let batch = proto::BatchRequest { items, timeout_ms: 20_000, ..Default::default() };
                let answer = match kv(at).batch(batch).await {
                    Ok(answer) => answer.into_inner(),
                    Err(status) if status.code() == tonic::Code::ResourceExhausted => {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                    Err(status) => panic!("a batch: {status:?}"),
                };
                let (mut again, mut wait) = (Vec::new(), 0);
                for (n, status) in keys.into_iter().zip(answer.statuses) {
                    match status.outcome {
                        Some(batch_status::Outcome::Error(error)) if error.retry_delay_ms > 0 => {
                            again.push(n);
                            wait = error.retry_delay_ms.max(wait);
                        }
                        Some(batch_status::Outcome::Error(error)) => panic!("{}: {error:?}", key(n)),
                        _ => {}
                    }
                }
                keys = again;
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
        }
    });
    done.await;
}

/// Puts, each to be taken by `w` replicas.
async fn puts(at: &[SocketAddr], keyspace: &'static str, keys: Range<u32>, seed: &'static str, w: u32) {
    let put = move |n| {
        batch_item::Request::Put(proto::PutRequest {
            key: client::bytes(key(n)),
            value: value(seed, n),
            keyspace: keyspace.into(),
            acks: Some(proto::put_request::Acks::W(w)),
            ..Default::default()
        })
    };
    batches(at, keys, put).await;
}

/// `quoral repair` of one keyspace, that must do all it can.
fn repair(at: SocketAddr, keyspace: &str) -> Value {
    let arguments =
        ["--endpoints", &at.to_string(), "repair", "--keyspace", keyspace, "--timeout", "280s", "-o", "json"];
    let (output, _) = run(&arguments, Duration::from_secs(300));
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {text}"));
    assert_eq!((&value["done"], &value["too_new"]), (&value["trees"], &0.into()), "{text}");
    value
}

/// All replicas are equal by their roots, and so nothing was left for this to do.
fn assert_equal(at: SocketAddr, keyspace: &str) -> Value {
    let told = repair(at, keyspace);
    assert_eq!((number(&told, "sent"), &told["equal"]), (0, &told["trees"]), "{told}");
    told
}

fn sum(cluster: &Cluster, name: &str) -> u64 {
    cluster.nodes.iter().map(|node| metric(node, name).expect("a metric")).sum()
}

/// A cluster whose sides have written apart, and meet again.
struct Parted {
    cluster: Cluster,
    clients: Vec<SocketAddr>,
    keys: u32,
    /// Records that replicas lack: two nodes lack what three wrote, and three what two wrote.
    differ: u64,
}

impl Parted {
    /// Five nodes that were equal, configured by `more`, of which one side runs: each has written apart. With `hints` it
    /// has kept some for the other.
    async fn new(more: &str, hints: bool) -> Parted {
        let keys = keys_of("QUORAL_REPAIR_KEYS", 6_000);
        let mut cluster = Cluster::made(NODES);
        let partitions = (keys / TREE).next_power_of_two().clamp(16, 256);
        let bootstrap = cluster.bootstrap().replace("partitions = 32", &format!("partitions = {partitions}"));
        cluster.nodes.iter().for_each(|node| node.configure("", &format!("{bootstrap}{more}")));
        cluster.start_all();
        let clients = cluster.all_clients();
        client::wait_for_all(&clients, 3).await;
        (0..5).for_each(|at| links(&cluster, at, 4));
        let (output, _) = cli(&clients[..1], &["keyspace", "create", "five", "--n", "5"]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        puts(&clients, "five", 0..keys, "both", 5).await;
        assert_equal(clients[0], "five");
        let each = keys / 100;
        for (away, here, from, seed) in [(0..2, 2..5, 0, "right"), (2..5, 0..2, keys / 2, "left")] {
            cluster.nodes[away.clone()].iter_mut().for_each(Node::kill);
            cluster.nodes[here.clone()].iter_mut().for_each(|node| {
                if !node.is_running() {
                    node.start();
                }
            });
            cluster.nodes[here.clone()].iter_mut().for_each(Node::wait_ready);
            here.clone().for_each(|at| links(&cluster, at, here.len() as u64 - 1));
            let stored = || -> u64 {
                let nodes = cluster.nodes[here.clone()].iter();
                nodes.map(|node| metric(node, "quoral_hints_stored_total").expect("a metric")).sum()
            };
            let (before, w) = (stored(), u32::try_from(here.len()).expect("small"));
            puts(&clients[here.clone()], "five", from..from + each, seed, w).await;
            // A hint is written after the answer.
            let wanted = if hints { u64::from(each) * away.len() as u64 } else { 0 };
            eventually(Duration::from_secs(20), || match stored() - before {
                kept if kept == wanted => Ok(()),
                kept => Err(format!("{kept} of {wanted} hints")),
            });
        }
        Parted { cluster, clients, keys, differ: u64::from(each) * 5 }
    }

    /// The side that was killed last comes back. All processes have been started anew since the partition began, so their
    /// metrics begin with it.
    fn meet(&mut self) {
        self.cluster.nodes[2..].iter_mut().for_each(Node::start);
        self.cluster.wait_ready();
        (0..5).for_each(|at| links(&self.cluster, at, 4));
        // After SIGKILL some regions of trees are in doubt.
        eventually(Duration::from_secs(120), || match sum(&self.cluster, "quoral_repair_tree_rebuilds") {
            0 => Ok(()),
            left => Err(format!("{left} regions")),
        });
    }

    /// The bar: three times the records that differed, with their keys. Then all are equal, and no other path has helped.
    fn judge(mut self, path: &str, bytes: u64) {
        let least = self.differ * record_bytes();
        println!(
            "{path}: {} keys, {} records differ at {} bytes each: {bytes} bytes sent, {:.2} times",
            self.keys,
            self.differ,
            record_bytes(),
            bytes as f64 / least as f64
        );
        assert!(bytes <= 3 * least, "{bytes} bytes, the bar is {}", 3 * least);
        assert!(bytes > 0, "nothing was counted");
        let counters = [
            ("hints", "quoral_hints_delivered_total"),
            ("reads", "quoral_read_repair_records_total"),
            ("anti-entropy", "quoral_repair_records_received_total"),
        ];
        for (_, counter) in counters.into_iter().filter(|(of, _)| *of != path) {
            assert_eq!(sum(&self.cluster, counter), 0, "{counter}");
        }
        assert_equal(self.clients[1], "five");
        self.cluster.check();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anti_entropy_alone_sends_no_more_than_three_times_what_differs() {
    let _alone = alone();
    let mut parted = Parted::new(&format!("{NO_HINTS}{NO_READ_REPAIR}"), false).await;
    parted.meet();
    // What is too new would be left for a second pass.
    let settled = Instant::now() + SETTLE;
    eventually(SETTLE * 2, || if Instant::now() > settled { Ok(()) } else { Err("not settled".into()) });
    let done = repair(parted.clients[0], "five");
    println!("{done}");
    assert_eq!(number(&done, "healed"), parted.differ, "{done}");
    parted.judge("anti-entropy", number(&done, "bytes"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_alone_send_no_more_than_three_times_what_differs() {
    let _alone = alone();
    let mut parted = Parted::new(NO_READ_REPAIR, true).await;
    parted.meet();
    eventually(Duration::from_secs(120), || match sum(&parted.cluster, "quoral_hints_waiting") {
        0 => Ok(()),
        waiting => Err(format!("{waiting} hints")),
    });
    assert_eq!(sum(&parted.cluster, "quoral_hints_delivered_total"), parted.differ);
    let bytes = sum(&parted.cluster, "quoral_hints_sent_bytes_total");
    parted.judge("hints", bytes);
}

/// Every key is read once, from all replicas. What the reading itself costs is not repair's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_alone_send_no_more_than_three_times_what_differs() {
    let _alone = alone();
    let mut parted = Parted::new(&format!("{NO_HINTS}{NO_SCHEDULE}"), false).await;
    parted.meet();
    let get = |n| {
        batch_item::Request::Get(proto::GetRequest {
            keyspace: "five".into(),
            answers: Some(proto::get_request::Answers::R(5)),
            ..client::get(key(n))
        })
    };
    batches(&parted.clients, 0..parted.keys, get).await;
    // A reply does not wait for all replicas.
    eventually(Duration::from_secs(20), || match sum(&parted.cluster, "quoral_read_repair_records_total") {
        stored if stored == parted.differ => Ok(()),
        stored => Err(format!("{stored} of {} records", parted.differ)),
    });
    let bytes = sum(&parted.cluster, "quoral_read_repair_bytes_total");
    parted.judge("reads", bytes);
}

/// However many keys there are, two equal replicas need one message each way to know it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_equal_replicas_prove_it_in_less_than_50_kib() {
    let _alone = alone();
    let keys = keys_of("QUORAL_EQUAL_KEYS", 2_000);
    let mut cluster = Cluster::made(2);
    let bootstrap = cluster.bootstrap().replace("partitions = 32", "partitions = 256");
    let more = format!("{NO_HINTS}{NO_READ_REPAIR}");
    cluster.nodes.iter().for_each(|node| node.configure("", &format!("{bootstrap}{more}")));
    cluster.start_all();
    let clients = cluster.all_clients();
    (0..2).for_each(|at| links(&cluster, at, 1));
    let (output, _) = cli(&clients[..1], &["keyspace", "create", "two", "--n", "2"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    puts(&clients, "two", 0..keys, "both", 2).await;
    let told = assert_equal(clients[0], "two");
    println!("two equal replicas: {told}");
    assert_eq!((number(&told, "records"), number(&told, "trees")), (keys.into(), 256), "{told}");
    assert!(number(&told, "bytes") < 50 << 10, "{told}");
    cluster.check();
}
