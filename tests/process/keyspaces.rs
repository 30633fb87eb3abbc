//! Keyspaces that are changed, dropped and made anew, by the command line, on real disks.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use quoral::rpc::proto;

use crate::client::{self, for_each, get_r, kv, put};
use crate::cluster::{BINARY, Cluster, Node, alone, cli, eventually, http_get, run, said, wait_for_end};

const KEYS: usize = 400;
/// A deletion of a few hundred records, on a busy machine.
const SWEPT_WITHIN: Duration = Duration::from_secs(30);

fn code(at: &[SocketAddr], arguments: &[&str]) -> (i32, String) {
    let (output, _) = cli(at, arguments);
    (output.status.code().expect("not killed"), said(&output))
}

fn json(at: SocketAddr, arguments: &[&str]) -> Value {
    let (output, _) = cli(&[at], &[arguments, &["-o", "json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {}", said(&output)))
}

/// A call of the command line that goes on by itself.
fn begin(at: SocketAddr, arguments: &[&str]) -> Child {
    Command::new(BINARY)
        .args(["--endpoints", &at.to_string()])
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("quoral starts")
}

fn exit_code(child: &mut Child) -> i32 {
    let status = wait_for_end(child, Duration::from_secs(20)).expect("it ends");
    status.code().expect("not killed")
}

/// F23: two creations of one name at once, on two sides of what cuts a node off. One wins, the other is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f23_of_two_creations_at_once_one_wins() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    // A stopped node takes connections and says nothing, as if cut off; then it goes on with the map of before.
    cluster.nodes[2].signal(Signal::STOP);
    let mut late = begin(clients[2], &["keyspace", "create", "carts", "--conflicts", "siblings"]);
    // It must have been sent before the other is answered; that it was is not seen from outside.
    std::thread::sleep(Duration::from_millis(300));
    let (first, told) = code(&clients[..1], &["keyspace", "create", "carts"]);
    assert_eq!(first, 0, "{told}");
    cluster.nodes[2].signal(Signal::CONT);
    assert_eq!(exit_code(&mut late), 4);
    for at in &clients {
        eventually(Duration::from_secs(10), || {
            let shown = json(*at, &["keyspace", "show", "carts"]);
            if shown["conflicts"] == "lww" { Ok(()) } else { Err(format!("{at}: {shown}")) }
        });
    }
    // Many at once, at all nodes: one is first, and each of the others hears it.
    for round in 0..3 {
        let name = format!("race{round}");
        let create = ["keyspace", "create", name.as_str()];
        let mut racers: Vec<Child> = (0..6).map(|at| begin(clients[at % 3], &create)).collect();
        let mut codes: Vec<i32> = racers.iter_mut().map(exit_code).collect();
        codes.sort_unstable();
        assert_eq!(codes, [0, 4, 4, 4, 4, 4]);
    }
    cluster.check();
}

#[test]
fn a_keyspace_is_changed_and_dropped_by_the_command_line() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let at = cluster.nodes[0].client;
    let said_with = |arguments: &[&str], wanted: i32| {
        let (code, text) = code(&[at], arguments);
        assert_eq!(code, wanted, "{arguments:?}: {text}");
        text
    };
    said_with(&["keyspace", "create", "carts", "--ttl", "1h"], 0);
    let made = json(at, &["keyspace", "show", "carts"]);
    let update = ["keyspace", "update", "carts", "--r", "1", "--w", "3", "--sloppy", "true", "--ttl", "none"];
    let changed = json(at, &update);
    assert_eq!(changed["id"], made["id"]);
    assert_eq!(
        (&changed["r"], &changed["w"], &changed["n"], &changed["sloppy"], &changed["ttl_ms"]),
        (&1.into(), &3.into(), &3.into(), &true.into(), &Value::Null)
    );
    said_with(&["keyspace", "update", "default", "--r", "3"], 0);
    // What breaks a rule names field, limit and value; nothing is changed.
    for (arguments, parts) in [
        (&["keyspace", "update", "carts", "--r", "4"][..], &["r", "4", "3"][..]),
        (&["keyspace", "update", "carts", "--w", "70000"], &["w", "70000", "15"]),
        (&["keyspace", "update", "carts"], &["--r"]),
        (&["keyspace", "update", "carts", "--ttl", "0s"], &["ttl", "1ms"]),
        (&["keyspace", "update", "a/b", "--r", "1"], &["name", "a/b"]),
        (&["keyspace", "drop", "default"], &["name", "default"]),
    ] {
        let text = said_with(arguments, 2);
        assert!(parts.iter().all(|part| text.contains(part)), "{arguments:?}: {text}");
    }
    assert_eq!(json(at, &["keyspace", "show", "carts"]), changed);
    // Not there: 3. Somebody was faster: 4.
    let missing = said_with(&["keyspace", "update", "none", "--r", "1"], 3);
    assert!(missing.contains("none"), "{missing}");
    said_with(&["keyspace", "drop", "none"], 3);
    let version = json(at, &["keyspace", "list"])["map_version"].as_u64().expect("a number");
    let (now, before) = (version.to_string(), (version - 1).to_string());
    let late = said_with(&["keyspace", "update", "carts", "--r", "2", "--if-version", &before], 4);
    assert!(late.contains(&now) && late.contains(&before), "{late}");
    said_with(&["keyspace", "drop", "carts", "--if-version", &before], 4);
    said_with(&["keyspace", "update", "carts", "--r", "2", "--if-version", &now], 0);
    let dropped = json(at, &["keyspace", "drop", "carts"]);
    assert_eq!((&dropped["dropped"]["id"], &dropped["map_version"]), (&made["id"], &(version + 2).into()));
    said_with(&["keyspace", "show", "carts"], 3);
    let text = said_with(&["get", "k", "--keyspace", "carts"], 1);
    assert!(text.contains("there is no keyspace \"carts\""), "{text}");
    said_with(&["keyspace", "create", "carts"], 0);
    assert!(json(at, &["keyspace", "show", "carts"])["id"].as_u64() > made["id"].as_u64());
    cluster.check();
}

/// How many records of each keyspace a stopped node's directory holds, by the keyspace's id.
fn stored(node: &Node, keyspace: u64) -> u64 {
    let (mut records, data) = (0, node.data().display().to_string());
    for partition in 0..32 {
        let partition = partition.to_string();
        let arguments = ["inspect", "partition", &partition, "--data-dir", &data, "-o", "json"];
        let (output, _) = run(&arguments, Duration::from_secs(20));
        let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let keyspaces = shown["keyspaces"].as_array().unwrap_or_else(|| panic!("no keyspaces in {shown}"));
        let of_it = keyspaces.iter().filter(|found| found["id"] == keyspace);
        records += of_it.filter_map(|found| found["records"].as_u64()).sum::<u64>();
    }
    records
}

fn metric(node: &Node, name: &str) -> Result<u64, String> {
    let (_, page) = http_get(node.http, "/metrics")?;
    let line = page.lines().find(|line| line.split(' ').next() == Some(name));
    line.and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or(format!("no {name}"))
}

fn wait_swept(node: &Node, at_least: u64) {
    eventually(SWEPT_WITHIN, || {
        let (swept, more) = (metric(node, "quoral_swept_records_total")?, metric(node, "quoral_sweeping")?);
        match swept >= at_least && more == 0 {
            true => Ok(()),
            false => Err(format!("{}: {swept} swept, more: {more}", node.name)),
        }
    });
}

/// What was in a dropped keyspace is gone from every disk, also from that of a node that was away, and the keyspace
/// of the same name that is made later is empty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_keyspace_is_gone_from_every_disk() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    let in_carts =
        |turn: usize| proto::PutRequest { keyspace: "carts".into(), ..put(format!("k{turn}"), "v") };
    let all_put = |from: usize, nodes: Vec<SocketAddr>| {
        let puts: Vec<usize> = (from..from + KEYS).collect();
        for_each(puts, 16, move |turn| {
            let (at, request) = (nodes[turn % nodes.len()], in_carts(turn));
            async move { kv(at).put(request).await.map(drop).expect("put") }
        })
    };
    assert_eq!(code(&clients[..1], &["keyspace", "create", "carts"]).0, 0);
    assert_eq!(code(&clients[..1], &["keyspace", "create", "kept"]).0, 0);
    kv(clients[0]).put(proto::PutRequest { keyspace: "kept".into(), ..put("k", "v") }).await.expect("put");
    let old = json(clients[0], &["keyspace", "show", "carts"])["id"].as_u64().expect("an id");
    all_put(0, clients.clone()).await;
    // One is away: hints wait for it.
    cluster.nodes[2].kill();
    all_put(KEYS, clients[..2].to_vec()).await;
    assert_eq!(code(&clients[..1], &["keyspace", "drop", "carts"]).0, 0);
    assert_eq!(code(&clients[..1], &["keyspace", "create", "carts"]).0, 0);
    let new = json(clients[0], &["keyspace", "show", "carts"])["id"].as_u64().expect("an id");
    assert!(new > old);
    for node in &cluster.nodes[..2] {
        wait_swept(node, 2 * KEYS as u64);
        eventually(SWEPT_WITHIN, || match metric(node, "quoral_hints_waiting")? {
            0 => Ok(()),
            hints => Err(format!("{}: {hints} hints", node.name)),
        });
    }
    // One of the two starts again in the middle of nothing; the one that was away begins with the map of before.
    cluster.nodes[1].kill();
    cluster.nodes[1].start();
    cluster.nodes[2].start();
    cluster.wait_ready();
    client::wait_for_all(&clients, 3).await;
    wait_swept(&cluster.nodes[2], KEYS as u64 / 2);
    for at in &clients {
        for turn in [0, 1, KEYS - 1, KEYS, 2 * KEYS - 1] {
            let get = proto::GetRequest { keyspace: "carts".into(), ..get_r(format!("k{turn}"), 3) };
            assert!(!kv(*at).get(get).await.expect("get").get_ref().found, "{at}: k{turn}");
        }
    }
    kv(clients[2]).put(in_carts(7)).await.expect("the new one takes writes");
    let get = proto::GetRequest { keyspace: "kept".into(), ..get_r("k", 3) };
    assert!(kv(clients[1]).get(get).await.expect("get").get_ref().found, "others lose nothing");
    cluster.check();
    cluster.kill_all();
    for node in &cluster.nodes {
        assert_eq!(stored(node, old), 0, "{} has records of it", node.name);
    }
    assert!(cluster.nodes.iter().map(|node| stored(node, new)).sum::<u64>() >= 2);
}
