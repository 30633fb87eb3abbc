//! The verbs of keys, run as a user runs them, against a fake cluster whose errors are chosen: exit codes,
//! JSON shapes, raw values, and that load and dump lose nothing when requests fail.

mod fake;
mod load;

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fake::{
    Fault, Node, Shared, failure, lock, no_faults, random_faults, set_faults, shared, unavailable, unsure,
};
use quoral::rpc::proto::Applied;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tonic::Code;

struct Ran {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Ran {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).expect("text")
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|e| panic!("{e}: {:?} {}", self.out, self.err))
    }

    #[track_caller]
    fn exits(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "stdout {:?}, stderr {}", String::from_utf8_lossy(&self.out), self.err);
        self
    }
}

/// Runs the binary against `endpoints`, no longer than a minute.
async fn run_at(endpoints: &str, args: &[&str], stdin: &[u8]) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_quoral"))
        .env_remove("QUORAL_ENDPOINTS")
        .env_remove("QUORAL_KEYSPACE")
        .env_remove("QUORAL_TIMEOUT")
        .args(args)
        .args(["--endpoints", endpoints])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary runs");
    let mut input = child.stdin.take().expect("piped");
    let stdin = stdin.to_vec();
    // The verb may end without reading it all.
    let feed = tokio::spawn(async move { input.write_all(&stdin).await.is_ok() });
    let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output())
        .await
        .expect("ends within a minute")
        .expect("its output is read");
    feed.await.expect("fed");
    Ran {
        code: output.status.code().expect("no signal"),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

struct World {
    shared: Shared,
    node: Node,
}

impl World {
    async fn new() -> World {
        let shared = shared();
        let node = Node::start(&shared).await;
        World { shared, node }
    }

    async fn run(&self, args: &[&str]) -> Ran {
        run_at(&self.node.address.to_string(), args, b"").await
    }

    async fn run_with(&self, args: &[&str], stdin: &[u8]) -> Ran {
        run_at(&self.node.address.to_string(), args, stdin).await
    }
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

fn fields_of(value: &Value, names: &[&str]) -> Value {
    names.iter().map(|name| value[name].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_comes_back_raw() {
    let world = World::new().await;
    assert_eq!(world.run(&["put", "k", "v 1"]).await.exits(0).out, b"");
    assert_eq!(world.run(&["get", "k"]).await.exits(0).out, b"v 1");
    let binary: Vec<u8> = (0..=255).chain([b'\n']).collect();
    world.run_with(&["put", "bin"], &binary).await.exits(0);
    assert_eq!(world.run(&["get", "bin"]).await.exits(0).out, binary);
    world.run_with(&["put", "dash", "-"], b"from stdin\n").await.exits(0);
    assert_eq!(world.run(&["get", "dash"]).await.out, b"from stdin\n");
    world.run(&["put", "negative", "-5"]).await.exits(0);
    world.run(&["put", "empty", ""]).await.exits(0);
    assert_eq!(world.run(&["get", "empty"]).await.exits(0).out, b"");
    let shown = world.run(&["get", "bin", "-o", "json"]).await.exits(0).json();
    assert!(shown["siblings"][0]["value_b64"].is_string() && shown["siblings"][0].get("value").is_none());
}

/// Over gRPC's default of 4 MiB, and over the limits: of the server, and of any server.
#[tokio::test(flavor = "multi_thread")]
async fn large_values_pass_and_over_large_ones_are_refused() {
    let world = World::new().await;
    let dir = tempfile::tempdir().expect("a directory");
    let (file, copy) = (dir.path().join("large"), dir.path().join("copy"));
    let large: Vec<u8> = (0..6_u32 << 20).map(|i| ((i * 7) >> 3) as u8).collect();
    std::fs::write(&file, &large).expect("written");
    let (file, copy) = (file.to_str().expect("text"), copy.to_str().expect("text"));
    world.run(&["put", "k", "--file", file]).await.exits(0);
    world.run(&["get", "k", "--file", copy]).await.exits(0);
    assert!(std::fs::read(copy).expect("written") == large);
    let refused = world.run_with(&["put", "k"], &vec![0; 9 << 20]).await.exits(2);
    assert!(refused.err.contains("value") && refused.err.contains("8388608"), "{}", refused.err);
    let refused = world.run_with(&["put", "k"], &vec![0; (16 << 20) + 1]).await.exits(2);
    assert!(refused.err.contains("value") && refused.err.contains("16777216"), "{}", refused.err);
    assert!(world.run(&["put", "k", "--file", "/no/such"]).await.exits(1).err.contains("/no/such"));
}

#[tokio::test(flavor = "multi_thread")]
async fn json_has_the_shapes_of_the_contract() {
    let world = World::new().await;
    let put = world.run(&["put", "k", "v", "--sort", "s", "-o", "json"]).await.exits(0).json();
    assert_eq!(keys(&put), BTreeSet::from(["key", "sort", "context", "w", "acks", "sloppy"]));
    assert_eq!(fields_of(&put, &["key", "sort", "w", "acks", "sloppy"]), json!(["k", "s", 2, 3, false]));
    let get = world.run(&["get", "k", "--sort", "s", "-o", "json"]).await.exits(0).json();
    let fields = ["key", "sort", "found", "siblings", "context", "r", "replies", "sloppy"];
    assert_eq!(keys(&get), BTreeSet::from(fields));
    assert_eq!(get["found"], true);
    assert_eq!(keys(&get["siblings"][0]), BTreeSet::from(["value", "stamp"]));
    assert_eq!(get["siblings"][0]["value"], "v");
    assert_eq!(get["context"], put["context"]);
    let missing = world.run(&["get", "k", "-o", "json"]).await.exits(3).json();
    assert_eq!(keys(&missing), BTreeSet::from(fields));
    assert_eq!(fields_of(&missing, &["found", "sort"]), json!([false, ""]));
    let del = world.run(&["del", "k", "--sort", "s", "-o", "json"]).await.exits(0).json();
    assert_eq!(keys(&del), BTreeSet::from(["key", "sort", "context", "w", "acks", "sloppy"]));
    world.run(&["put", "/wA=", "v", "--b64", "--sort", "gA=="]).await.exits(0);
    let get = world.run(&["get", "/wA=", "--b64", "--sort", "gA==", "-o", "json"]).await.exits(0).json();
    assert_eq!(fields_of(&get, &["key_b64", "sort_b64"]), json!(["/wA=", "gA=="]));
    set_faults(&world.shared, |_| Some(Fault::Before(unavailable())));
    let error = world.run(&["put", "k", "v", "-o", "json", "--timeout", "1s"]).await.exits(5).json();
    assert_eq!(keys(&error), BTreeSet::from(["error", "code", "applied", "required", "received"]));
    assert_eq!(fields_of(&error, &["code", "applied", "required"]), json!(["UNAVAILABLE", "NO", 2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_outcome_has_its_exit_code() {
    let world = World::new().await;
    let missing = world.run(&["get", "k"]).await.exits(3);
    assert_eq!(missing.out, b"");
    world.run(&["put"]).await.exits(2);
    world.run(&["put", ""]).await.exits(2);
    world.run(&["put", "k", "v", "--w", "most"]).await.exits(2);
    world.run(&["put", "k", "v", "--ttl", "0s"]).await.exits(2);
    world.run(&["put", "k", "v", "--request-id", "12"]).await.exits(2);
    world.run(&["put", "k", "v", "--context", "*"]).await.exits(2);
    world.run(&["get", "*", "--b64"]).await.exits(2);
    for verb in [&["get", "k"][..], &["put", "k", "v"], &["del", "k"], &["scan"], &["dump"], &["load", "-"]] {
        let unknown = world.run(&[verb, &["--keyspace", "none"]].concat()).await.exits(1);
        assert!(unknown.err.contains("\"none\""), "{verb:?}: {}", unknown.err);
        let dead = run_at("127.0.0.1:1", verb, b"").await.exits(5);
        assert!(dead.err.contains("127.0.0.1:1"), "{verb:?}: {}", dead.err);
    }
    set_faults(&world.shared, |_| Some(Fault::Before(unavailable())));
    for verb in [&["get", "k"][..], &["put", "k", "v"], &["del", "k"], &["scan"]] {
        world.run(&[verb, &["--timeout", "1s"]].concat()).await.exits(5);
    }
    set_faults(&world.shared, |_| Some(Fault::After(unsure())));
    world.run(&["put", "k", "v"]).await.exits(6);
    world.run(&["del", "k"]).await.exits(6);
    world.run(&["get", "k", "--timeout", "1s"]).await.exits(5);
    let damaged = || failure(Code::DataLoss, "storage: a stored record is damaged", Applied::No, 2, 1);
    set_faults(&world.shared, move |_| Some(Fault::Before(damaged())));
    world.run(&["get", "k"]).await.exits(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn options_reach_the_server() {
    let world = World::new().await;
    let id = "000102030405060708090a0b0c0d0e0f";
    let args = ["put", "k", "v", "--ttl", "10s", "--w", "all", "--sloppy", "--request-id", id];
    world.run(&args).await.exits(0);
    let put = lock(&world.shared).last_put.take().expect("a put");
    assert_eq!(put.ttl_ms, 10_000);
    assert_eq!(put.acks, Some(quoral::rpc::proto::put_request::Acks::WLevel(3)));
    assert_eq!(put.sloppy, Some(true));
    assert_eq!(put.request_id.as_ref(), (0..16).collect::<Vec<u8>>());
    assert_eq!(put.timeout_ms, 5_000);
    world.run(&["del", "k", "--w", "1", "--sloppy=false", "--timeout", "2s"]).await.exits(0);
    let del = lock(&world.shared).last_delete.take().expect("a delete");
    assert_eq!(del.acks, Some(quoral::rpc::proto::delete_request::Acks::W(1)));
    assert_eq!((del.sloppy, del.timeout_ms), (Some(false), 2_000));
    world.run(&["get", "k", "--r", "one"]).await.exits(3);
    let get = lock(&world.shared).last_get.take().expect("a get");
    assert_eq!(get.answers, Some(quoral::rpc::proto::get_request::Answers::RLevel(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn siblings_are_kept_shown_and_resolved() {
    let world = World::new().await;
    let carts = |args: &[&'static str]| [args, &["--keyspace", "carts"]].concat();
    // Read first: the second put replaces what it saw.
    world.run(&carts(&["put", "c", "one"])).await.exits(0);
    world.run(&carts(&["put", "c", "two"])).await.exits(0);
    assert_eq!(world.run(&carts(&["get", "c"])).await.exits(0).out, b"two");
    // Blind: nothing is replaced.
    world.run(&carts(&["put", "c", "tab\tline\n", "--blind"])).await.exits(0);
    let several = world.run(&carts(&["get", "c"])).await.exits(4);
    assert_eq!(several.out, b"");
    assert!(several.err.contains("two") && several.err.contains("tab\\tline\\n"), "{}", several.err);
    assert_eq!(world.run(&carts(&["get", "c", "--all"])).await.exits(0).text(), "two\ntab\\tline\\n\n");
    let json = world.run(&carts(&["get", "c", "-o", "json"])).await.exits(0).json();
    assert_eq!(json["siblings"].as_array().map(Vec::len), Some(2));
    // The context covers both; used once more, it covers nothing that is new.
    let context = json["context"].as_str().expect("base64").to_string();
    let with = ["put", "c", "three", "--keyspace", "carts", "--context", &context];
    world.run(&with).await.exits(0);
    assert_eq!(world.run(&carts(&["get", "c"])).await.exits(0).out, b"three");
    world.run(&with).await.exits(0);
    world.run(&carts(&["get", "c"])).await.exits(4);
    world.run(&carts(&["del", "c"])).await.exits(0);
    world.run(&carts(&["get", "c"])).await.exits(3);
    world.run(&carts(&["put", "c", "x", "--blind", "--context", "AAAA"])).await.exits(2);
    // In an lww keyspace nothing is read first.
    lock(&world.shared).log.clear();
    world.run(&["put", "c", "x"]).await.exits(0);
    assert!(lock(&world.shared).log.iter().all(|(op, _)| op == "put"));
}

#[tokio::test(flavor = "multi_thread")]
async fn scan_shows_ranges_and_goes_on_by_cursor() {
    let world = World::new().await;
    for sort in ["a1", "a2", "b1", "b2", "c\t"] {
        world.run(&["put", "room", &format!("v{sort}"), "--sort", sort]).await.exits(0);
    }
    world.run(&["put", "other", "o"]).await.exits(0);
    let text = |ran: Ran| ran.exits(0).text().to_string();
    let sorts = |text: String| -> Vec<String> {
        text.lines().map(|l| l.split('\t').nth(1).expect("three fields").to_string()).collect()
    };
    assert_eq!(text(world.run(&["scan", "room", "--prefix", "a"]).await), "room\ta1\tva1\nroom\ta2\tva2\n");
    assert_eq!(text(world.run(&["scan", "room", "--prefix", "c"]).await), "room\tc\\t\tvc\\t\n");
    assert_eq!(sorts(text(world.run(&["scan", "room", "--start", "a2", "--end", "b2"]).await)), ["a2", "b1"]);
    assert_eq!(text(world.run(&["scan"]).await).lines().count(), 6);
    let cut = world.run(&["scan", "room", "--limit", "2", "--reverse"]).await.exits(0);
    assert_eq!(sorts(cut.text().to_string()), ["c\\t", "b2"]);
    let cursor = cut.err.split("--cursor ").nth(1).expect("a cursor").trim().to_string();
    let rest = world.run(&["scan", "room", "--reverse", "--cursor", &cursor]).await;
    assert!(!rest.err.contains("cursor"), "{}", rest.err);
    assert_eq!(sorts(text(rest)), ["b1", "a2", "a1"]);
    let shown = world.run(&["scan", "room", "--limit", "2", "-o", "json"]).await.exits(0);
    let lines: Vec<Value> = shown.text().lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(keys(&lines[0]), BTreeSet::from(["key", "sort", "siblings", "context"]));
    assert_eq!((&lines[0]["sort"], &lines[0]["siblings"][0]["value"]), (&json!("a1"), &json!("va1")));
    assert_eq!(keys(&lines[2]), BTreeSet::from(["cursor"]));
    let all = world.run(&["scan", "room", "--limit", "5", "-o", "json"]).await.exits(0);
    assert_eq!(all.text().lines().count(), 5, "no cursor when nothing is left out");
    world.run(&["scan", "--prefix", "a"]).await.exits(2);
    world.run(&["scan", "--cursor", "*"]).await.exits(2);
    // A cursor that the server refuses is not recommended.
    let bad = || failure(Code::InvalidArgument, "cursor: is not of this keyspace", Applied::No, 0, 0);
    set_faults(&world.shared, move |op| (op == "scan").then(|| Fault::Before(bad())));
    let refused = world.run(&["scan", "--cursor", "zzzz"]).await.exits(2);
    assert_eq!(refused.err, "quoral: cursor: is not of this keyspace\n");
    // A scan that is cut off on its way can be gone on with.
    let pages = AtomicU64::new(0);
    lock(&world.shared).page = 2;
    set_faults(&world.shared, move |op| {
        (op == "page" && pages.fetch_add(1, Ordering::Relaxed) > 0).then(|| Fault::Before(unavailable()))
    });
    let cut = world.run(&["scan", "room", "--timeout", "300ms"]).await.exits(5);
    assert_eq!(sorts(cut.text().to_string()), ["a1", "a2"]);
    let cursor = cut.err.split("--cursor ").nth(1).and_then(|rest| rest.lines().next()).expect("a cursor");
    no_faults(&world.shared);
    let rest = world.run(&["scan", "room", "--cursor", cursor]).await;
    assert_eq!(sorts(text(rest)), ["b1", "b2", "c\\t"]);
}

/// Dead, slow, refusing and good nodes: the good one is found, else the refusal is told.
#[tokio::test(flavor = "multi_thread")]
async fn scan_asks_the_next_endpoint_and_tells_what_a_node_said() {
    let (bad, good) = (World::new().await, World::new().await);
    good.run(&["put", "k", "v"]).await.exits(0);
    let (at_bad, at_good) = (bad.node.address, good.node.address);
    set_faults(&bad.shared, |_| Some(Fault::Before(unavailable())));
    let dead = "127.0.0.1:1";
    for endpoints in [format!("{dead},{at_bad}"), format!("{at_bad},{dead}")] {
        let refused = run_at(&endpoints, &["scan", "--timeout", "400ms"], b"").await.exits(5);
        assert!(refused.err.contains("2 needed"), "{}", refused.err);
    }
    let found = run_at(&format!("{dead},{at_bad},{at_good}"), &["scan"], b"").await.exits(0);
    assert_eq!(found.text(), "k\t\tv\n");
    // Slower than the time of the whole scan.
    lock(&bad.shared).scan_pause = Duration::from_secs(60);
    let found = run_at(&format!("{at_bad},{at_good}"), &["scan", "--timeout", "400ms"], b"").await.exits(0);
    assert_eq!(found.text(), "k\t\tv\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_measures_both_loops() {
    let world = World::new().await;
    let dir = tempfile::tempdir().expect("a directory");
    let plot = dir.path().join("plot.svg");
    let plot = plot.to_str().expect("text");
    let base = ["bench", "--keys", "50", "--warmup", "0", "--concurrency", "8", "-o", "json"];
    let closed =
        world.run(&[&base[..], &["--workload", "mixed", "--ops", "500", "--plot", plot]].concat()).await;
    let closed = closed.exits(0).json();
    assert_eq!(fields_of(&closed, &["ops", "not_found"]), json!([500, 0]));
    let latency = &closed["latency_us"]["all"];
    assert_eq!(latency["count"], 500);
    let series: Vec<u64> =
        ["p50", "p90", "p99", "p99.9", "max"].iter().filter_map(|p| latency[p].as_u64()).collect();
    assert!(series.len() == 5 && series.is_sorted() && series[0] > 0, "{series:?}");
    let svg = std::fs::read_to_string(plot).expect("drawn");
    assert!(svg.starts_with("<svg") && svg.matches("<polyline").count() == 2 && !svg.contains("NaN"));
    let open =
        world.run(&[&base[..], &["--workload", "put", "--rate", "300", "--seconds", "1"]].concat()).await;
    let open = open.exits(0).json();
    assert_eq!(fields_of(&open, &["ops", "unsent", "rate"]), json!([300, 0, 300]));
    // Errors are counted by kind, and the rest is measured.
    set_faults(&world.shared, random_faults(5));
    let broken =
        world.run(&[&base[..], &["--workload", "put", "--ops", "200"]].concat()).await.exits(0).json();
    let errors: u64 = broken["errors"].as_object().expect("kinds").values().filter_map(Value::as_u64).sum();
    assert!(errors > 0 && broken["errors"]["UNAVAILABLE"].is_u64(), "{broken}");
    assert_eq!(broken["ops"].as_u64().map(|ops| ops + errors), Some(200));
    world.run(&["bench", "--keyspace", "carts", "--workload", "put"]).await.exits(2);
}
