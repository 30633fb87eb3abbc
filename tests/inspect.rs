//! `inspect` as a user meets it: of a running cluster, and of the data directories of nodes that are stopped.

mod dev;

use std::collections::BTreeSet;
use std::fs;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::process::Output;

use dev::{Dev, code, quoral, run, stderr, stdout};
use quoral::storage::sled::SledStorage;
use quoral::storage::{Batch, Storage, schema};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

/// A site of `quoral dev`.
struct Site {
    dir: PathBuf,
}

impl Site {
    fn config(&self, node: &str) -> toml::Table {
        let text = fs::read_to_string(self.dir.join(node).join("quoral.toml")).expect("a configuration");
        toml::from_str(&text).expect("TOML")
    }

    fn endpoint(&self, node: &str) -> String {
        self.config(node)["listen"]["client"].as_str().expect("an address").to_string()
    }

    fn id(&self, node: &str) -> String {
        self.config(node)["node"]["id"].as_str().expect("an id").to_string()
    }

    fn data(&self, node: &str) -> String {
        self.dir.join(node).join("data").to_str().expect("UTF-8").to_string()
    }

    /// Asks the cluster.
    fn ask(&self, arguments: &[&str]) -> Output {
        quoral().args(arguments).args(["--endpoints", &self.endpoint("n1")]).output().expect("runs")
    }

    fn ask_well(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert_eq!(code(&output), 0, "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

/// Looks into a data directory.
fn look(what: &[&str], data: &str) -> Output {
    run(&[&["inspect"], what, &["--data-dir", data, "-o", "json"]].concat())
}

fn look_well(what: &[&str], data: &str) -> Value {
    let output = look(what, data);
    assert_eq!(code(&output), 0, "{what:?}: {} {}", stdout(&output), stderr(&output));
    json(&output)
}

fn without_states(mut preflist: Value) -> Value {
    for node in preflist["nodes"].as_array_mut().expect("a list") {
        node["state"] = Value::Null;
    }
    preflist
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("made");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("read");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("known").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

fn write_some(site: &Site) {
    site.ask_well(&["put", "cart", "milk", "--w", "all"]);
    site.ask_well(&["put", "room", "hello", "--sort", "2026", "--w", "all"]);
    site.ask_well(&["put", "brief", "gone", "--ttl", "1ms", "--w", "all"]);
    site.ask_well(&["put", "dead", "x", "--w", "all"]);
    site.ask_well(&["del", "dead", "--w", "all"]);
    site.ask_well(&["keyspace", "create", "carts", "--conflicts", "siblings"]);
    for value in ["eggs", "bread"] {
        site.ask_well(&["put", "cart", value, "--blind", "--w", "all", "--keyspace", "carts"]);
    }
}

/// The homes of a key by name, in order, as the running cluster says.
fn homes(site: &Site, key: &str, keyspace: &str) -> Vec<String> {
    let shown = site.ask(&["inspect", "preflist", key, "--keyspace", keyspace, "-o", "json"]);
    let shown = json(&shown);
    let nodes = shown["nodes"].as_array().expect("a list").iter();
    nodes
        .filter(|node| node["role"] == "home")
        .map(|node| node["name"].as_str().expect("a name").to_string())
        .collect()
}

#[test]
fn a_cluster_and_its_data_directories_can_be_looked_into() {
    let dir = tempfile::tempdir().expect("a directory");
    let site = Site { dir: dir.path().join("q") };
    let mut dev = Dev::start(&site.dir, "4");
    write_some(&site);

    let layout = json(&site.ask(&["inspect", "layout", "-o", "json"]));
    let names: Vec<&str> =
        layout["members"].as_array().expect("a list").iter().filter_map(|m| m["name"].as_str()).collect();
    assert_eq!(BTreeSet::from_iter(names), BTreeSet::from(["n1", "n2", "n3", "n4"]));
    let lines = site.ask_well(&["inspect", "layout", "--partitions", "-o", "json"]);
    assert_eq!(lines.lines().count(), 1 + 256);
    let preflist = json(&site.ask(&["inspect", "preflist", "cart", "-o", "json"]));
    let roles = preflist["nodes"].as_array().expect("a list").iter().map(|node| &node["role"]);
    assert_eq!(roles.collect::<Vec<_>>(), ["home", "home", "home", "fallback"]);
    assert!(preflist["nodes"].as_array().expect("a list").iter().all(|node| node["state"] == "alive"));
    let number = preflist["partition"].to_string();
    let partition = json(&site.ask(&["inspect", "partition", &number, "-o", "json"]));
    assert_eq!(
        (partition["owners"].as_array().map(Vec::len), &partition["keyspaces"]),
        (Some(4), &Value::Null)
    );
    assert_eq!(code(&site.ask(&["inspect", "partition", "256"])), 2);
    assert!(site.ask_well(&["inspect", "record", "cart"]).contains("partition "));
    assert_eq!(code(&site.ask(&["inspect", "record", "nobody"])), 3);
    let (home, carts_home) = (homes(&site, "cart", "default"), homes(&site, "cart", "carts"));

    let before: BTreeSet<_> =
        fs::read_dir(site.data(&home[0])).expect("there").map(|e| e.expect("read").file_name()).collect();
    let locked = look(&["record", "cart"], &site.data(&home[0]));
    assert_eq!(code(&locked), 1);
    assert!(json(&locked)["error"].as_str().is_some_and(|e| e.contains("in use by another process")));
    let after: BTreeSet<_> =
        fs::read_dir(site.data(&home[0])).expect("there").map(|e| e.expect("read").file_name()).collect();
    assert_eq!(before, after);

    dev.signal(Signal::TERM);
    assert_eq!(dev.child.wait().expect("ended").code(), Some(0));
    let data = site.data(&home[0]);
    assert_eq!(look_well(&["layout"], &data), layout);
    let text = run(&["inspect", "layout", "--partitions", "-o", "json", "--data-dir", &data]);
    assert_eq!(stdout(&text), lines);
    assert_eq!(look_well(&["preflist", "cart"], &data), without_states(preflist));
    assert_eq!(code(&look(&["partition", "256"], &data)), 2);

    let record = look_well(&["record", "cart"], &data);
    assert_eq!((&record["node"], &record["role"]), (&site.id(&home[0]).into(), &"home".into()));
    assert_eq!((&record["checksum"], &record["conflicts"]), (&"ok".into(), &"lww".into()));
    let version = &record["versions"][0];
    assert_eq!((&version["value"], &version["bytes"]), (&"milk".into(), &4.into()));
    assert_eq!((&version["tombstone"], &version["expires"]), (&false.into(), &Value::Null));
    assert!(
        version["written"].as_str().is_some_and(|at| at.starts_with("20") && at.ends_with('Z')),
        "{version}"
    );
    let shown = run(&["inspect", "record", "cart", "--data-dir", &data]);
    assert!(
        stdout(&shown).contains("checksum ok") && stdout(&shown).contains("value    milk"),
        "{}",
        stdout(&shown)
    );

    assert_eq!(code(&look(&["record", "nobody"], &data)), 3);
    assert_eq!(code(&look(&["record", "cart", "--keyspace", "none"], &data)), 1);
    look_carts(&site.data(&carts_home[0]));
    look_everywhere(&site);

    // Nothing was changed: the cluster goes on.
    let mut again = Dev::start(&site.dir, "4");
    assert_eq!(site.ask_well(&["get", "cart", "--r", "all"]), "milk");
    again.signal(Signal::TERM);
    assert_eq!(again.child.wait().expect("ended").code(), Some(0));
}

/// Two siblings, neither of which has replaced anything.
fn look_carts(data: &str) {
    let record = look_well(&["record", "cart", "--keyspace", "carts"], data);
    assert_eq!(record["conflicts"], "siblings");
    let versions = record["versions"].as_array().expect("a list");
    let values: BTreeSet<&str> = versions.iter().filter_map(|v| v["value"].as_str()).collect();
    assert_eq!(values, BTreeSet::from(["bread", "eggs"]));
    for version in versions {
        assert_eq!(version["past"], serde_json::json!({ "up_to": [], "dots": [] }));
        assert!(version["dot"]["counter"].as_u64().is_some_and(|counter| counter > 0), "{version}");
    }
    let partition = look_well(&["partition", &record["partition"].to_string()], data);
    let counts = partition["keyspaces"].as_array().expect("a list").iter().find(|c| c["name"] == "carts");
    let counts = counts.expect("the keyspace is listed");
    assert_eq!(
        (&counts["records"], &counts["versions"], &counts["siblings"]),
        (&1.into(), &2.into(), &2.into())
    );
}

/// All nodes together hold what was written, three copies of each.
fn look_everywhere(site: &Site) {
    let mut sums = [0, 0, 0, 0];
    for node in ["n1", "n2", "n3", "n4"] {
        let data = site.data(node);
        for key in [&["cart"][..], &["room", "--sort", "2026"], &["brief"], &["dead"]] {
            let output = look(&[&["record"], key].concat(), &data);
            let record = json(&output);
            assert_eq!(code(&output), if record["found"] == true { 0 } else { 3 }, "{record}");
            if record["found"] == false {
                assert_eq!(record["role"], "fallback", "each home has it");
                continue;
            }
            let version = &record["versions"][0];
            sums[0] += 1;
            sums[1] += u64::from(version["tombstone"] == true);
            sums[2] += u64::from(version["expired"] == true);
            sums[3] += u64::from(record["sort"] == "2026");
        }
    }
    assert_eq!(sums, [12, 3, 3, 3], "copies, tombstones, expired, with a sort key");
}

#[test]
fn a_killed_node_can_be_looked_into_and_damage_is_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let site = Site { dir: dir.path().join("q") };
    let mut dev = Dev::start(&site.dir, "1");
    site.ask_well(&["put", "cart", "milk"]);
    site.ask_well(&["put", "other", "bread"]);
    kill_process(dev.nodes()[0], Signal::KILL).expect("it runs");
    dev.wait_for(|line| line.contains("has died")).expect("a report");
    let original = site.data("n1");
    let good = look_well(&["record", "cart"], &original);
    assert_eq!(good["versions"][0]["value"], "milk");

    let bad = dir.path().join("copy");
    copy(Path::new(&original), &bad);
    let flipped = flip_last_byte(&bad, b"cart");
    let bad = bad.to_str().expect("UTF-8");
    let output = look(&["record", "cart"], bad);
    let record = json(&output);
    assert_eq!((code(&output), &record["found"]), (1, &true.into()));
    for field in ["checksum", "damaged"] {
        assert!(
            record[field].as_str().is_some_and(|why| why.contains("checksum does not match")),
            "{record}"
        );
    }
    assert_eq!((&record["raw_hex"], &record["raw_bytes"]), (&hex(&flipped).into(), &flipped.len().into()));
    assert_eq!(record["versions"], Value::Null, "a damaged record is not guessed at");
    let shown = run(&["inspect", "record", "cart", "--data-dir", bad]);
    assert_eq!(code(&shown), 1);
    assert!(
        stdout(&shown).contains("DAMAGED") && stdout(&shown).contains(&hex(&flipped)),
        "{}",
        stdout(&shown)
    );
    let output = look(&["partition", &record["partition"].to_string()], bad);
    let partition = json(&output);
    assert_eq!((code(&output), &partition["keyspaces"][0]["damaged"]), (1, &1.into()));
    assert_eq!(partition["damaged"][0]["key"], "cart");
    assert_eq!(look_well(&["record", "other"], bad)["versions"][0]["value"], "bread");

    assert_eq!(look_well(&["record", "cart"], &original), good, "looking changes nothing");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Damages the record of a partition key in a data directory. Returns what it is now.
fn flip_last_byte(data: &Path, key: &[u8]) -> Vec<u8> {
    let storage = SledStorage::open(&data.join("storage"), 1 << 20).expect("opened");
    let mut found = None;
    let visit = &mut |storage_key: &[u8], value: &[u8]| {
        let split = schema::split_record_key(storage_key);
        if split.is_some_and(|(_, _, found)| found.partition_key() == key) {
            found = Some((storage_key.to_vec(), value.to_vec()));
        }
        true
    };
    storage.scan(Bound::Unbounded, Bound::Unbounded, false, visit).expect("scanned");
    let (storage_key, mut value) = found.expect("the record is there");
    *value.last_mut().expect("not empty") ^= 1;
    let mut batch = Batch::new();
    batch.put(storage_key, value.clone());
    storage.write(&batch).expect("written");
    storage.sync().expect("synced");
    value
}

#[test]
fn what_is_no_data_directory_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let (empty, file, missing) =
        (dir.path().join("empty"), dir.path().join("file"), dir.path().join("missing"));
    fs::create_dir(&empty).expect("made");
    fs::write(&file, "text").expect("written");
    for path in [&empty, &file, &missing] {
        for what in [&["layout"][..], &["preflist", "k"], &["partition", "1"], &["record", "k"]] {
            let output = look(what, path.to_str().expect("UTF-8"));
            assert_eq!(code(&output), 1, "{what:?} {path:?}");
            let error = json(&output);
            let says = error["error"].as_str().is_some_and(|e| e.contains(&path.display().to_string()));
            assert!(says, "{error}");
        }
    }
    assert_eq!(fs::read_dir(&empty).expect("there").count(), 0, "nothing is made");
    assert_eq!(fs::read_to_string(&file).expect("there"), "text");
    assert!(!missing.exists());
}
