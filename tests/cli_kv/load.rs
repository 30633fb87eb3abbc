//! `load` and `dump`, through failures.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use quoral::cli::rows;
use quoral::node::env::{Clock as _, SystemClock};

use super::*;

/// Rows that are text and bytes, with and without sort keys, each once.
fn some_rows(count: u32) -> (String, BTreeSet<Vec<u8>>) {
    let mut file = Vec::new();
    for i in 0..count {
        let key =
            if i % 10 == 0 { vec![0xff, (i >> 8) as u8, i as u8] } else { format!("key {i}").into_bytes() };
        let sort = if i % 3 == 0 { format!("s{i}") } else { String::new() };
        let value = if i % 7 == 0 { vec![0x80, i as u8] } else { format!("värde\n{i}").into_bytes() };
        rows::write(&mut file, &key, sort.as_bytes(), &value, 0).expect("a Vec takes all");
    }
    let text = String::from_utf8(file).expect("JSON is text");
    let set = lines(text.as_bytes());
    (text, set)
}

fn lines(text: &[u8]) -> BTreeSet<Vec<u8>> {
    text.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(<[u8]>::to_vec).collect()
}

fn write(dir: &Path, name: &str, text: impl AsRef<[u8]>) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("text").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn load_and_dump_are_equal_as_sets_through_failures() {
    let world = World::new().await;
    let dir = tempfile::tempdir().expect("a directory");
    let (text, set) = some_rows(600);
    let file = write(dir.path(), "rows", &text);
    lock(&world.shared).page = 40;
    for (keyspace, seed) in [("default", 11), ("carts", 12)] {
        set_faults(&world.shared, random_faults(seed));
        let loaded = world.run(&["load", &file, "--keyspace", keyspace, "--timeout", "2s"]).await.exits(0);
        assert!(loaded.err.contains("600 rows"), "{}", loaded.err);
        assert!(!Path::new(&format!("{file}.progress")).exists(), "removed when done");
        // Pages fail as well.
        let dumped = world.run(&["dump", "--keyspace", keyspace, "--timeout", "2s"]).await.exits(0);
        let rows: Vec<&[u8]> = dumped.out.split_inclusive(|b| *b == b'\n').collect();
        assert_eq!(rows.len(), 600, "{keyspace}: each row once, nothing doubled");
        assert!(lines(&dumped.out) == set, "{keyspace}: dump and file differ");
        no_faults(&world.shared);
        let out = dir.path().join(format!("dump-{keyspace}"));
        let out = out.to_str().expect("text");
        world.run(&["dump", "--keyspace", keyspace, "--file", out]).await.exits(0);
        assert!(lines(&std::fs::read(out).expect("written")) == set);
        assert!(!Path::new(&format!("{out}.partial")).exists());
    }
    // Siblings come as a line each, and go back to the same set.
    world.run(&["put", "key 1", "another", "--keyspace", "carts", "--blind"]).await.exits(0);
    let dumped = world.run(&["dump", "--keyspace", "carts"]).await.exits(0).out;
    assert_eq!(lines(&dumped).len(), 601);
    lock(&world.shared).rows.clear();
    world.run_with(&["load", "-", "--keyspace", "carts"], &dumped).await.exits(0);
    assert!(lines(&world.run(&["dump", "--keyspace", "carts"]).await.out) == lines(&dumped));
    // Loaded again, nothing is doubled.
    world.run_with(&["load", "-", "--keyspace", "carts"], &dumped).await.exits(0);
    assert_eq!(world.run(&["dump", "--keyspace", "carts"]).await.out.len(), dumped.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_loaded_with_the_rest_of_its_time() {
    let world = World::new().await;
    let now = SystemClock::default().wall().0;
    let row =
        |expires_at_ms| format!("{{\"key\":\"k\",\"value\":\"v\",\"expires_at_ms\":{expires_at_ms}}}\n");
    world.run_with(&["load", "-"], row(now + 3_600_000).as_bytes()).await.exits(0);
    let put = lock(&world.shared).last_put.take().expect("a put");
    assert!((3_000_000..=3_600_000).contains(&put.ttl_ms), "{}", put.ttl_ms);
    // One whose time is up is left out.
    let loaded = world.run_with(&["load", "-"], row(now - 1).as_bytes()).await.exits(0);
    assert!(loaded.err.contains("1 left out: their time was up"), "{}", loaded.err);
    assert!(lock(&world.shared).last_put.is_none());
}

/// What an attempt without an answer wrote may be on no node that can be read now.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_among_siblings_is_sent_again_under_its_first_name() {
    let world = World::new().await;
    let mut puts = 0;
    set_faults(&world.shared, move |op| {
        puts += u32::from(op == "put");
        (op == "put" && puts <= 6).then(|| Fault::Before(unsure()))
    });
    let rows = [r#"{"key":"k","value":"a"}"#, r#"{"key":"k","value":"b"}"#].join("\n");
    world.run_with(&["load", "-", "--keyspace", "carts"], rows.as_bytes()).await.exits(0);
    let ids = std::mem::take(&mut lock(&world.shared).put_ids);
    assert_eq!(ids.len(), 8);
    assert!(ids.iter().all(|id| id.len() == 16), "{ids:?}");
    // Rows of one key are sent one after the other.
    assert!(ids[..7].iter().all(|id| *id == ids[0]) && ids[7] != ids[0], "{ids:?}");
    // Where the last one wins, twice does no more than once.
    world.run_with(&["load", "-"], rows.as_bytes()).await.exits(0);
    let ids = std::mem::take(&mut lock(&world.shared).put_ids);
    assert!(ids.len() == 2 && ids.iter().all(Bytes::is_empty), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_rows_of_one_key_the_last_wins() {
    let world = World::new().await;
    // Every other attempt fails, so that rows overtake each other if they can.
    let count = AtomicU64::new(0);
    set_faults(&world.shared, move |_| {
        count.fetch_add(1, Ordering::Relaxed).is_multiple_of(2).then(|| Fault::Before(unavailable()))
    });
    let mut text = Vec::new();
    for i in 0..60_u32 {
        rows::write(&mut text, format!("k{}", i % 20).as_bytes(), b"", format!("{i}").as_bytes(), 0)
            .expect("written");
    }
    world.run_with(&["load", "-"], &text).await.exits(0);
    no_faults(&world.shared);
    for key in 0..20 {
        let value = world.run(&["get", &format!("k{key}")]).await.exits(0);
        assert_eq!(value.text(), format!("{}", 40 + key));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_row_stops_the_load_where_it_can_go_on() {
    let world = World::new().await;
    let dir = tempfile::tempdir().expect("a directory");
    let (text, set) = some_rows(100);
    let mut parts: Vec<&str> = text.split_inclusive('\n').collect();
    parts.insert(60, "{\"key\":\"k\",\"valeu\":\"v\"}\n");
    let file = write(dir.path(), "rows", parts.concat());
    let stopped = world.run(&["load", &file]).await.exits(1);
    assert!(stopped.err.contains("line 61: valeu: "), "{}", stopped.err);
    assert!(stopped.err.contains("up to line 60"), "{}", stopped.err);
    assert_eq!(lock(&world.shared).rows.len(), 60, "all before it, nothing behind it");
    // Skipped on demand, and said so.
    let skipped = world.run(&["load", &file, "--skip-bad", "--restart", "-o", "json"]).await.exits(0);
    assert!(skipped.err.contains("line 61: valeu"), "{}", skipped.err);
    assert_eq!(fields_of(&skipped.json(), &["rows", "bad"]), json!([100, 1]));
    assert_eq!(lock(&world.shared).rows.len(), 100);
    // Corrected, it goes on behind what is loaded.
    lock(&world.shared).rows.clear();
    world.run(&["load", &file]).await.exits(1);
    write(dir.path(), "rows", &text);
    lock(&world.shared).log.clear();
    let resumed = world.run(&["load", &file]).await.exits(0);
    assert!(resumed.err.contains("behind line 60"), "{}", resumed.err);
    assert_eq!(lock(&world.shared).log.len(), 40, "only what was missing is sent");
    assert!(lines(&world.run(&["dump"]).await.out) == set);
    // Changed before that point, it is not trusted.
    write(dir.path(), "rows", parts.concat());
    world.run(&["load", &file]).await.exits(1);
    write(dir.path(), "rows", text.replacen("key 1\"", "key one\"", 1));
    lock(&world.shared).log.clear();
    let again = world.run(&["load", &file]).await.exits(0);
    assert!(again.err.contains("changed"), "{}", again.err);
    assert_eq!(lock(&world.shared).log.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_server_refuses_is_named() {
    let world = World::new().await;
    let mut text = b"{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\",\"value\":\"".to_vec();
    text.extend(vec![b'x'; (8 << 20) + 1]);
    text.extend(b"\"}\n{\"key\":\"c\",\"value\":\"3\"}\n");
    let refused = world.run_with(&["load", "-"], &text).await.exits(1);
    assert!(refused.err.contains("line 2: value: ") && refused.err.contains("8388608"), "{}", refused.err);
    world.run_with(&["load", "-", "--skip-bad"], &text).await.exits(0);
    assert_eq!(lock(&world.shared).rows.len(), 2);
    world.run(&["load", "/no/such"]).await.exits(1);
    world.run(&["load", "-", "--row-timeout", "0s"]).await.exits(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_gets_no_acknowledgement_stops_in_time() {
    let world = World::new().await;
    let dir = tempfile::tempdir().expect("a directory");
    let file = write(dir.path(), "rows", some_rows(100).0);
    let args = ["load", &file, "--row-timeout", "1s", "--timeout", "500ms"];
    set_faults(&world.shared, |_| Some(Fault::Before(unavailable())));
    let stopped = world.run(&args).await.exits(5);
    assert!(stopped.err.contains("line ") && stopped.err.contains("2 needed"), "{}", stopped.err);
    set_faults(&world.shared, |_| Some(Fault::After(unsure())));
    world.run(&args).await.exits(6);
    no_faults(&world.shared);
    world.run(&args).await.exits(0);
    assert_eq!(lock(&world.shared).rows.len(), 100);
}

/// The other nodes, which `status` tells of, are dead: what the living one says is definite, however often the
/// rows are tried and whatever time is left for the last try.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_is_refused_was_surely_not_applied() {
    let world = World::new().await;
    lock(&world.shared).told =
        [world.node.address.to_string(), "127.0.0.1:1".into(), "127.0.0.1:2".into()].into();
    set_faults(&world.shared, |_| Some(Fault::Before(unavailable())));
    for (keyspace, rows) in [("default", 100), ("carts", 1)] {
        let text = some_rows(rows).0;
        let args = ["load", "-", "--keyspace", keyspace, "--row-timeout", "1s", "--timeout", "20s"];
        let stopped =
            tokio::time::timeout(Duration::from_secs(10), world.run_with(&args, text.as_bytes())).await;
        let stopped = stopped.expect("the time of a row, not of a request").exits(5);
        assert!(stopped.err.contains("2 needed"), "{}", stopped.err);
    }
    assert!(lock(&world.shared).log.len() < 64 * 20, "{} attempts", lock(&world.shared).log.len());
}

/// The node that is asked dies half-way: the load goes on at one that was not even named, and the dump at
/// another.
#[tokio::test(flavor = "multi_thread")]
async fn load_and_dump_outlive_a_node() {
    let shared = shared();
    let (mut first, second) = (Node::start(&shared).await, Node::start(&shared).await);
    lock(&shared).told = vec![first.address.to_string(), second.address.to_string()];
    let (text, set) = some_rows(3_000);
    let half = Arc::new(tokio::sync::Notify::new());
    let (seen, reached) = (AtomicU64::new(0), half.clone());
    set_faults(&shared, move |_| {
        if seen.fetch_add(1, Ordering::Relaxed) == 1_500 {
            reached.notify_one();
        }
        None
    });
    let address = first.address.to_string();
    let load = tokio::spawn(async move { run_at(&address, &["load", "-"], text.as_bytes()).await });
    half.notified().await;
    first.kill();
    load.await.expect("ran").exits(0);
    first.restart().await;
    // A dump whose streams break again and again, each time after a few pages.
    let pages = AtomicU64::new(0);
    set_faults(&shared, move |op| {
        let broken = op == "page" && pages.fetch_add(1, Ordering::Relaxed) % 20 == 19;
        broken.then(|| Fault::Before(tonic::Status::unavailable("connection lost")))
    });
    let both = format!("{},{}", first.address, second.address);
    let dumped = run_at(&both, &["dump"], b"").await.exits(0);
    assert_eq!(dumped.out.split_inclusive(|b| *b == b'\n').count(), 3_000);
    assert!(lines(&dumped.out) == set);
    assert!(dumped.err.contains("going on"), "{}", dumped.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_was_stopped_goes_on() {
    let world = World::new().await;
    let dir = tempfile::tempdir().expect("a directory");
    let (text, set) = some_rows(200);
    world.run_with(&["load", "-"], text.as_bytes()).await.exits(0);
    let out = dir.path().join("out");
    let out = out.to_str().expect("text");
    let pages = AtomicU64::new(0);
    set_faults(&world.shared, move |op| {
        (op == "page" && pages.fetch_add(1, Ordering::Relaxed) > 10).then(|| Fault::Before(unavailable()))
    });
    world.run(&["dump", "--file", out, "--page-timeout", "300ms", "--timeout", "1s"]).await.exits(5);
    assert!(!Path::new(out).exists(), "no name before it is whole");
    no_faults(&world.shared);
    lock(&world.shared).log.clear();
    let resumed = world.run(&["dump", "--file", out]).await.exits(0);
    assert!(resumed.err.contains("behind row 77"), "{}", resumed.err);
    assert_eq!(lock(&world.shared).log.iter().filter(|(op, _)| op == "page").count(), 200 / 7 + 1 - 11);
    assert!(lines(&std::fs::read(out).expect("written")) == set);
}
