//! Damaged records on real nodes: never served, and healed by nothing but what is tested (F29).

use std::net::SocketAddr;
use std::ops::Bound;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use quoral::replica::stored;
use quoral::rpc::proto;
use quoral::storage::sled::SledStorage;
use quoral::storage::{Batch, Storage, schema};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::{self, get_r, kv, put, values};
use crate::cluster::{BINARY, Cluster, Node, alone, cli, copy_dir, eventually, said};
use crate::repair::metric;
use crate::repair_now::links;
use crate::semantics::siblings_keyspace;

/// Nodes of which none heals by hints, reads or trees; the scrub reads everything again as often as can be.
fn scrubbing() -> Cluster {
    let cluster = Cluster::made(3);
    let bootstrap = cluster.bootstrap();
    let more = "[hints]\nwindow_ms = 0\n[repair]\nread_repair = false\ninterval_ms = 0\nscrub_interval_ms = 200\n\
                scrub_rate_bytes = 100000000\n";
    cluster.nodes.iter().for_each(|node| node.configure("", &format!("{bootstrap}{more}")));
    cluster
}

/// Large enough for a file of its own, now and then.
fn value_of(n: u32) -> Vec<u8> {
    format!("value {n} ").into_bytes().repeat(if n.is_multiple_of(10) { 3_000 } else { 1 })
}

pub async fn put_all(at: SocketAddr, keyspace: &'static str, count: u32) {
    let done = client::for_each((0..count).collect(), 16, move |n| async move {
        let request = proto::PutRequest { keyspace: keyspace.into(), ..put(format!("key {n}"), value_of(n)) };
        kv(at).put(request).await.map(drop)
    });
    for result in done.await {
        result.expect("put");
    }
}

/// Reads all keys from one replica's answer; an error is no wrong answer, and is counted.
pub async fn read_all(at: SocketAddr, keyspace: &'static str, count: u32) -> usize {
    let done = client::for_each((0..count).collect(), 16, move |n| async move {
        let request = proto::GetRequest { keyspace: keyspace.into(), ..get_r(format!("key {n}"), 1) };
        (n, kv(at).get(request).await)
    });
    let mut failed = 0;
    for (n, answer) in done.await {
        match answer {
            Ok(answer) => assert_eq!(values(answer.get_ref()), [value_of(n)], "{keyspace} key {n} at {at}"),
            Err(_) => failed += 1,
        }
    }
    failed
}

/// Waits until the tree of each node counts so many records.
fn all_hold(cluster: &Cluster, count: u32) {
    eventually(Duration::from_secs(30), || {
        let items = cluster.nodes.iter().map(|node| metric(node, "quoral_repair_tree_items"));
        let items: Vec<u64> = items.collect::<Result<_, _>>()?;
        if items.iter().all(|items| *items == u64::from(count)) { Ok(()) } else { Err(format!("{items:?}")) }
    });
}

fn stop(node: &mut Node) {
    node.signal(Signal::TERM);
    let status = node.ended(Duration::from_secs(20)).expect("it stops");
    assert!(status.success(), "{status}");
}

/// Flips a bit of each `every`th record of a stopped node. How many can't be read now.
fn flip_records(data: &Path, every: usize) -> u64 {
    let storage = SledStorage::open(&data.join("storage"), 1 << 20).expect("opened");
    let (mut batch, mut at, mut damaged) = (Batch::new(), 0, 0);
    let (from, to) = ([schema::RECORD_TAG], [schema::RECORD_TAG + 1]);
    let visit = &mut |key: &[u8], value: &[u8]| {
        at += 1;
        let mut value = value.to_vec();
        if at % every == 0 {
            let bit = (at * 7_919) % (value.len() * 8);
            value[bit / 8] ^= 1 << (bit % 8);
            batch.put(key, value.clone());
        }
        damaged += u64::from(stored::decode(key, &value).is_err());
        true
    };
    storage.scan(Bound::Included(&from), Bound::Excluded(&to), false, visit).expect("scanned");
    storage.write(&batch).expect("written");
    storage.sync().expect("synced");
    damaged
}

/// Flips the last bit of each record of a stopped node.
fn spoil_records(data: &Path) {
    let storage = SledStorage::open(&data.join("storage"), 1 << 20).expect("opened");
    let (mut batch, from, to) = (Batch::new(), [schema::RECORD_TAG], [schema::RECORD_TAG + 1]);
    let visit = &mut |key: &[u8], value: &[u8]| {
        let mut value = value.to_vec();
        *value.last_mut().expect("not empty") ^= 1;
        batch.put(key, value);
        true
    };
    storage.scan(Bound::Included(&from), Bound::Excluded(&to), false, visit).expect("scanned");
    storage.write(&batch).expect("written");
    storage.sync().expect("synced");
}

/// Flips a bit in the file of each large value; how many.
fn flip_large_values(data: &Path) -> u64 {
    let mut flipped = 0;
    for entry in std::fs::read_dir(data.join("storage").join("large")).expect("large values") {
        let path = entry.expect("an entry").path();
        let mut bytes = std::fs::read(&path).expect("read");
        let at = bytes.len() / 2;
        bytes[at] ^= 16;
        std::fs::write(&path, bytes).expect("written");
        flipped += 1;
    }
    flipped
}

fn scrubbed(node: &Node, name: &str) -> Result<u64, String> {
    metric(node, &format!("quoral_scrub_{name}"))
}

/// What `status` of the first node says of what another has found damaged.
fn shown_by_status(cluster: &Cluster, node: usize) -> Value {
    let (output, _) = cli(&cluster.clients(&[0]), &["status", "-o", "json"]);
    let status: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    status["nodes"][node]["damage"].clone()
}

fn quarantine(node: &Node) -> (i32, Value) {
    offline(node, &["inspect", "quarantine"])
}

fn give_up(node: &Node, arguments: &[&str]) -> (i32, Value) {
    offline(node, &[&["give-up"], arguments].concat())
}

/// Exit code and JSON of what looks into a stopped node's directory.
fn offline(node: &Node, arguments: &[&str]) -> (i32, Value) {
    let data = node.data();
    let output = Command::new(BINARY)
        .args(arguments)
        .args(["--data-dir", data.to_str().expect("UTF-8"), "-o", "json"])
        .env_clear()
        .output()
        .expect("quoral starts");
    let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    (output.status.code().expect("not killed"), value)
}

/// A tree with damaged records is not proved equal, and `repair` says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_is_not_said_to_be_repaired() {
    let _alone = alone();
    let mut cluster = scrubbing();
    cluster.start_all();
    client::wait_for_all(&cluster.all_clients(), 3).await;
    put_all(cluster.nodes[0].client, "default", 60).await;
    all_hold(&cluster, 60);
    stop(&mut cluster.nodes[2]);
    let damaged = flip_records(&cluster.nodes[2].data(), 20);
    stop(&mut cluster.nodes[1]);
    cluster.nodes[2].start();
    cluster.nodes[2].wait_ready();
    links(&cluster, 2, 1);
    links(&cluster, 0, 1);
    eventually(Duration::from_secs(60), || {
        let found = scrubbed(&cluster.nodes[2], "records_damaged")?;
        if found == damaged { Ok(()) } else { Err(format!("{found} of {damaged} are found")) }
    });
    let output = cli(&cluster.clients(&[0]), &["repair", "-o", "json"]).0;
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    assert!(said(&output).contains("trees have damaged records that wait to be healed"), "{}", said(&output));
    cluster.nodes[1].start();
    cluster.wait_ready();
    eventually(Duration::from_secs(60), || match scrubbed(&cluster.nodes[2], "records_damaged")? {
        0 => Ok(()),
        left => Err(format!("{left} wait")),
    });
    (0..3).for_each(|at| links(&cluster, at, 2));
    let repair = cli(&cluster.clients(&[0]), &["repair", "-o", "json"]).0;
    assert_eq!(repair.status.code(), Some(0), "{}", said(&repair));
}

/// The places that are damaged wait until all of their replicas are there, and are never answered for meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f29_damaged_records_are_never_served_and_are_healed_by_the_scrub_alone() {
    const COUNT: u32 = 400;
    let _alone = alone();
    let mut cluster = scrubbing();
    cluster.start_all();
    client::wait_for_all(&cluster.all_clients(), 3).await;
    siblings_keyspace(&cluster).await;
    for keyspace in ["default", "carts"] {
        put_all(cluster.nodes[0].client, keyspace, COUNT).await;
    }
    all_hold(&cluster, 2 * COUNT);
    stop(&mut cluster.nodes[2]);
    let large = flip_large_values(&cluster.nodes[2].data());
    let damaged = flip_records(&cluster.nodes[2].data(), 5);
    assert!(large == 80 && damaged > 200, "{large} and {damaged}");
    stop(&mut cluster.nodes[1]);
    cluster.nodes[2].start();
    cluster.nodes[2].wait_ready();
    links(&cluster, 2, 1);
    eventually(Duration::from_secs(60), || {
        let found = scrubbed(&cluster.nodes[2], "records_damaged")?;
        if found == damaged { Ok(()) } else { Err(format!("{found} of {damaged} are found")) }
    });
    assert_eq!(scrubbed(&cluster.nodes[2], "records_healed_total"), Ok(0), "a replica is away");
    links(&cluster, 0, 1);
    assert_eq!(
        shown_by_status(&cluster, 2),
        json!({"waiting": damaged, "quarantined": damaged, "unreadable": false})
    );
    for keyspace in ["default", "carts"] {
        for at in [0, 2] {
            read_all(cluster.nodes[at].client, keyspace, COUNT).await;
        }
    }
    let (code, shown) = {
        stop(&mut cluster.nodes[2]);
        quarantine(&cluster.nodes[2])
    };
    let (given_up, told) = give_up(&cluster.nodes[2], &["--all", "--yes"]);
    let refused = told["refused"].as_array().expect("a list");
    assert_eq!((given_up, refused.len() as u64, &told["given_up"]), (1, damaged, &json!(false)), "{told}");
    assert!(refused[0]["why"].as_str().expect("text").contains("it has other replicas, on n"), "{told}");
    let entries = shown["quarantine"].as_array().expect("a list");
    assert_eq!((code, u64::try_from(entries.len()).expect("few")), (1, damaged));
    assert!(entries.iter().all(|entry| entry["healed_at"].is_null() && entry["raw_hex"] != ""), "{shown}");
    // It still knows of them when it is started again, before anybody has found them anew.
    cluster.nodes[2].start();
    cluster.nodes[2].wait_ready();
    links(&cluster, 0, 1);
    assert_eq!(scrubbed(&cluster.nodes[2], "records_damaged"), Ok(damaged));
    assert_eq!(
        shown_by_status(&cluster, 2),
        json!({"waiting": damaged, "quarantined": damaged, "unreadable": false})
    );
    cluster.nodes[1].start();
    cluster.wait_ready();
    eventually(Duration::from_secs(60), || {
        let node = &cluster.nodes[2];
        match (scrubbed(node, "records_damaged")?, scrubbed(node, "records_healed_total")?) {
            (0, healed) if healed == damaged => Ok(()),
            other => Err(format!("{other:?} of {damaged}")),
        }
    });
    assert_eq!(
        shown_by_status(&cluster, 2),
        json!({"waiting": 0, "quarantined": damaged, "unreadable": false})
    );
    for name in ["quoral_read_repairs_total", "quoral_repair_records_received_total"] {
        assert_eq!(metric(&cluster.nodes[2], name), Ok(0), "{name}");
    }
    all_hold(&cluster, 2 * COUNT);
    // It alone answers.
    stop(&mut cluster.nodes[0]);
    stop(&mut cluster.nodes[1]);
    for keyspace in ["default", "carts"] {
        assert_eq!(read_all(cluster.nodes[2].client, keyspace, COUNT).await, 0, "{keyspace}");
    }
    stop(&mut cluster.nodes[2]);
    let (code, shown) = quarantine(&cluster.nodes[2]);
    assert!(code == 0 && shown["quarantine"][0]["healed_at"].is_string(), "{code} {shown}");
}

/// Without its own state a node can't tell what it has promised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_own_state_is_damaged_refuses_to_start_and_says_which() {
    let _alone = alone();
    let mut cluster = Cluster::start(1);
    client::wait_for_all(&cluster.all_clients(), 1).await;
    put_all(cluster.nodes[0].client, "default", 20).await;
    stop(&mut cluster.nodes[0]);
    let (data, good) = (cluster.nodes[0].data(), cluster.dir.path().join("good"));
    copy_dir(&data, &good);
    for (name, told) in [
        (schema::META_MAP, "the cluster map"),
        (schema::META_CLOCK_BOUND, "clock_bound"),
        (schema::META_DISK, "disk id"),
        (schema::META_STARTS, "starts"),
    ] {
        std::fs::remove_dir_all(&data).expect("removed");
        copy_dir(&good, &data);
        let storage = SledStorage::open(&data.join("storage"), 1 << 20).expect("opened");
        let key = schema::meta_key(name);
        let mut value = storage.get(&key).expect("readable").expect("there");
        *value.last_mut().expect("not empty") ^= 1;
        let mut batch = Batch::new();
        batch.put(key, value);
        storage.write(&batch).expect("written");
        storage.sync().expect("synced");
        drop(storage);
        cluster.nodes[0].start();
        let status = cluster.nodes[0].ended(Duration::from_secs(20)).expect("it refuses");
        let last = cluster.nodes[0].log_tail(1);
        assert_eq!(status.code(), Some(1), "{name}: {last}");
        assert!(last.contains(told) && last.contains("A disk is damaged"), "{name}: {last}");
    }
}

/// What a get finds damaged is healed at once, without the scrub; and a write meanwhile is not lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f29_a_damaged_record_is_healed_when_a_get_finds_it() {
    let _alone = alone();
    let mut cluster = Cluster::made(3);
    let bootstrap = cluster.bootstrap();
    let more =
        "[hints]\nwindow_ms = 0\n[repair]\nread_repair = false\ninterval_ms = 0\nscrub_interval_ms = 0\n";
    cluster.nodes.iter().for_each(|node| node.configure("", &format!("{bootstrap}{more}")));
    cluster.start_all();
    client::wait_for_all(&cluster.all_clients(), 3).await;
    put_all(cluster.nodes[0].client, "default", 50).await;
    all_hold(&cluster, 50);
    stop(&mut cluster.nodes[2]);
    let damaged = flip_records(&cluster.nodes[2].data(), 1);
    assert_eq!(damaged, 50);
    cluster.nodes[2].start();
    cluster.wait_ready();
    links(&cluster, 2, 2);
    assert_eq!(read_all(cluster.nodes[2].client, "default", 50).await, 0, "the others have them");
    eventually(Duration::from_secs(30), || {
        let healed = scrubbed(&cluster.nodes[2], "records_healed_total")?;
        if healed == damaged { Ok(()) } else { Err(format!("{healed} are healed")) }
    });
    assert_eq!(scrubbed(&cluster.nodes[2], "passes_total"), Ok(0));
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    assert_eq!(read_all(cluster.nodes[2].client, "default", 50).await, 0);
}

/// Where what is damaged was the only copy there is nothing to heal it from. A new write replaces it, but of siblings: those
/// are given up by who says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_copy_that_is_damaged_is_written_over_or_given_up() {
    let _alone = alone();
    let mut cluster = Cluster::start(1);
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 1).await;
    let ask = |arguments: &[&str]| {
        let output = cli(&clients, arguments).0;
        (output.status.code().expect("not killed"), said(&output))
    };
    let done = |arguments: &[&str]| {
        let (code, text) = ask(arguments);
        assert_eq!(code, 0, "{arguments:?}: {text}");
        text
    };
    done(&["keyspace", "create", "carts", "--conflicts", "siblings", "--n", "1", "--r", "1", "--w", "1"]);
    done(&["put", "a", "before"]);
    done(&["put", "b", "before"]);
    for key in ["c", "d"] {
        done(&["put", key, "before", "--keyspace", "carts", "--blind"]);
    }
    stop(&mut cluster.nodes[0]);
    spoil_records(&cluster.nodes[0].data());
    cluster.nodes[0].start();
    cluster.nodes[0].wait_ready();
    client::wait_for_all(&clients, 1).await;
    for (key, keyspace) in [("a", "default"), ("b", "default"), ("c", "carts"), ("d", "carts")] {
        let (code, text) = ask(&["get", key, "--keyspace", keyspace]);
        assert!(code != 0 && code != 3 && !text.contains("before"), "{key}: {code} {text}");
    }
    done(&["put", "a", "after"]);
    assert!(done(&["get", "a"]).contains("after"));
    done(&["del", "b"]);
    assert_eq!(ask(&["get", "b"]).0, 3);
    let (code, text) = ask(&["put", "c", "after", "--keyspace", "carts", "--blind"]);
    assert!(
        code != 0 && text.contains("damaged"),
        "siblings that can't be read may not be covered: {code} {text}"
    );
    eventually(Duration::from_secs(30), || match scrubbed(&cluster.nodes[0], "records_damaged")? {
        2 => Ok(()),
        other => Err(format!("{other} wait")),
    });
    stop(&mut cluster.nodes[0]);

    let node = &cluster.nodes[0];
    let of_c = ["c", "--keyspace", "carts"];
    let (code, told) = give_up(node, &of_c[..]);
    assert_eq!(
        (code, &told["given_up"], &told["records"][0]["key"]),
        (2, &json!(false), &json!("c")),
        "{told}"
    );
    assert_eq!(quarantine(node).0, 1, "nothing was done");
    let (code, told) = give_up(node, &[&of_c[..], &["--yes"]].concat());
    assert_eq!((code, &told["given_up"], &told["refused"]), (0, &json!(true), &json!([])), "{told}");
    assert!(told["records"][0]["raw_bytes"].as_u64() > Some(0), "{told}");
    let (code, told) = give_up(node, &["--all", "--yes"]);
    assert_eq!((code, told["records"].as_array().map(Vec::len)), (0, Some(1)), "{told}");
    assert_eq!(give_up(node, &["a", "--yes"]).0, 1, "it is sound");
    let (code, shown) = quarantine(node);
    let mut hows: Vec<&str> = shown["quarantine"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| entry["why"].as_str().expect("text").rsplit("; ").next().expect("one"))
        .collect();
    hows.sort_unstable();
    let (new, given) = ("a new write replaced it", "given up");
    assert_eq!((code, hows, &shown["not_kept"]), (0, vec![new, new, given, given], &json!(0)), "{shown}");

    cluster.nodes[0].start();
    cluster.nodes[0].wait_ready();
    client::wait_for_all(&clients, 1).await;
    assert_eq!(ask(&["get", "c", "--keyspace", "carts"]).0, 3);
    done(&["put", "c", "after", "--keyspace", "carts"]);
    assert!(done(&["get", "c", "--keyspace", "carts"]).contains("after"));
    assert!(done(&["get", "a"]).contains("after"));
    assert!(done(&["dump"]).contains("after"));
    cluster.check();
}
