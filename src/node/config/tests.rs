//! Each kind of configuration error, with its line, limit and value.

use super::*;
use crate::types::limits;

const GOOD: &str = r#"
[node]
id = "00000000000000a1"
name = "n1"
data_dir = "data"

[bootstrap]
nodes = [
  { id = "00000000000000a1", name = "n1", address = "127.0.0.1:7401" },
  { id = "00000000000000a2", name = "n2", address = "127.0.0.1:7411", zone = "z2", weight = 2 },
]
"#;

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn check(text: &str, pairs: &[(&str, &str)]) -> Result<Config, String> {
    Config::check(text, Path::new("/etc/quoral/q.toml"), &env(pairs)).map_err(|error| error.to_string())
}

/// `GOOD` with one line replaced, or lines put before it.
fn with(old: &str, new: &str) -> String {
    assert!(GOOD.contains(old), "{old}");
    GOOD.replacen(old, new, 1)
}

#[track_caller]
fn refuses(text: &str, pairs: &[(&str, &str)], parts: &[&str]) {
    let error = check(text, pairs).expect_err("must be refused");
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in:\n{error}");
    }
}

#[test]
fn defaults_are_as_documented() {
    let config = check(GOOD, &[]).expect("good");
    assert_eq!(config.node.id, NodeId(0xa1));
    assert_eq!(config.node.zone, "default");
    assert_eq!(config.node.data_dir, Path::new("/etc/quoral/data"));
    assert_eq!(config.node.durability, Durability::Always);
    assert_eq!(config.listen.client.to_string(), "127.0.0.1:7400");
    assert_eq!(config.listen.peer.to_string(), "127.0.0.1:7401");
    assert_eq!(config.listen.http.to_string(), "127.0.0.1:7402");
    assert_eq!(config.listen.advertised_peer(), "127.0.0.1:7401");
    assert_eq!(config.bootstrap.cluster, "quoral");
    assert_eq!(config.bootstrap.partitions, 256);
    assert_eq!(config.bootstrap.nodes[1].zone, "z2");
    assert_eq!((config.bootstrap.nodes[0].weight, config.bootstrap.nodes[1].weight), (1, 2));
    assert_eq!(config.limits.value_bytes, 1 << 20);
    assert_eq!(config.limits.requests_in_flight, limits::REQUESTS_IN_FLIGHT);
    assert_eq!(config.limits.bytes_in_flight, limits::BYTES_IN_FLIGHT);
    assert_eq!(config.clock.max_skew_ms, 500);
    assert_eq!((config.storage.cache_bytes, config.storage.compact_bytes), (24 << 20, 64 << 20));
    assert_eq!(config.runtime.threads, 1);
    assert_eq!(config.log.level, "info");
}

#[test]
fn an_absolute_data_dir_stays() {
    let config = check(&with("\"data\"", "\"/var/q\""), &[]).expect("good");
    assert_eq!(config.node.data_dir, Path::new("/var/q"));
}

#[test]
fn unknown_keys_and_sections_are_refused_with_their_line() {
    refuses(
        &with("[bootstrap]", "colour = \"red\"\n[bootstrap]"),
        &[],
        &["q.toml:7", "node.colour", "durability"],
    );
    refuses(&format!("{GOOD}\n[nodes]\nx = 1\n"), &[], &["q.toml:13", "nodes", "[bootstrap]"]);
    refuses(&format!("top = 1\n{GOOD}"), &[], &["q.toml:1", "top"]);
    refuses(&with("weight = 2", "wait = 2"), &[], &["q.toml:10", "bootstrap.nodes[1].wait", "weight"]);
}

#[test]
fn what_is_not_toml_is_refused_with_its_line() {
    refuses(&with("name = \"n1\"\n", "name = n1\"\n"), &[], &["q.toml:4", "not TOML"]);
    refuses(&with("name = \"n1\"\n", "name = \"n1\"\nname = \"n1\"\n"), &[], &["q.toml:5", "duplicate"]);
}

#[test]
fn missing_keys_are_named() {
    refuses("", &[], &["node.id: is required", "node.name: is required", "node.data_dir", "bootstrap.nodes"]);
    refuses(
        &with("address = \"127.0.0.1:7401\" ", "zone = \"default\" "),
        &[],
        &["q.toml:9", "nodes[0].address"],
    );
}

#[test]
fn values_out_of_bounds_are_refused_with_limit_and_value() {
    let add = |text: &str| format!("{GOOD}\n{text}\n");
    refuses(
        &add("[limits]\nvalue_bytes = 16777217"),
        &[],
        &["q.toml:14", "limits.value_bytes", "16777216", "16777217"],
    );
    refuses(&add("[limits]\nvalue_bytes = -1"), &[], &["is -1"]);
    refuses(&add("[limits]\nvalue_bytes = \"1 MiB\""), &[], &["whole number", "\"1 MiB\""]);
    refuses(&add("[limits]\nrequests_in_flight = 0"), &[], &["limits.requests_in_flight", "is 0", "65536"]);
    refuses(&add("[clock]\nmax_skew_ms = 60001"), &[], &["clock.max_skew_ms", "60000", "60001"]);
    refuses(&add("[clock]\nmax_skew_ms = 0"), &[], &["is 0", "from 1"]);
    refuses(&add("[storage]\ncache_bytes = 1048575"), &[], &["storage.cache_bytes", "1048576", "1048575"]);
    refuses(&add("[runtime]\nthreads = 0"), &[], &["runtime.threads", "is 0"]);
    refuses(&add("[log]\nlevel = \"inof\""), &[], &["log.level", "inof", "info"]);
    refuses(&add("[listen]\nclient = \"localhost\""), &[], &["listen.client", "localhost"]);
    refuses(&add("[listen]\nclient = \"127.0.0.1:0\""), &[], &["listen.client", "port 0"]);
    refuses(&with("\"n1\"\n", "7\n"), &[], &["q.toml:4", "node.name", "text in quotes", "7"]);
    refuses(&with("id = \"00000000000000a1\"\n", "id = \"a1\"\n"), &[], &["q.toml:3", "node.id", "16", "a1"]);
    refuses(
        &with("data_dir", "durability = \"never\"\ndata_dir"),
        &[],
        &["node.durability", "never", "interval"],
    );
    refuses(&with("data_dir", "zone = \"a b\"\ndata_dir"), &[], &["node.zone", "' '"]);
    refuses(&with("weight = 2", "weight = 0"), &[], &["q.toml:10", "nodes[1].weight", "is 0"]);
    refuses(&with("\"127.0.0.1:7411\"", "\"127.0.0.1\""), &[], &["nodes[1].address", "host:port"]);
    for bad in ["100", "8", "131072"] {
        refuses(
            &with("[bootstrap]", &format!("[bootstrap]\npartitions = {bad}")),
            &[],
            &["bootstrap.partitions", bad],
        );
    }
}

#[test]
fn the_first_nodes_must_agree_with_this_one_and_each_other() {
    refuses(
        &with("id = \"00000000000000a1\"\n", "id = \"00000000000000ff\"\n"),
        &[],
        &["node.id", "00000000000000ff", "bootstrap.nodes"],
    );
    refuses(&with("name = \"n1\"\n", "name = \"one\"\n"), &[], &["node.name", "\"one\"", "\"n1\""]);
    refuses(&with("data_dir", "zone = \"z9\"\ndata_dir"), &[], &["node.zone", "z9"]);
    refuses(&with("00000000000000a2", "00000000000000a1"), &[], &["two nodes", "00000000000000a1"]);
    refuses(&with("\"n2\"", "\"n1\""), &[], &["two nodes", "name n1"]);
    refuses(&with("7411", "7401"), &[], &["two nodes", "address"]);
    refuses(&with("7401", "7501"), &[], &["listen.peer", "7401", "7501", "advertise_peer"]);
    refuses("[bootstrap]\nnodes = []", &[], &["node.id"]);
    refuses(
        &format!("{GOOD}\n[listen]\nhttp = \"127.0.0.1:7400\""),
        &[],
        &["listen.http", "listen.client", "differ"],
    );
}

#[test]
fn listening_everywhere_needs_an_advertised_address() {
    let everywhere = format!("{GOOD}\n[listen]\nclient = \"0.0.0.0:7400\"\npeer = \"0.0.0.0:7401\"\n");
    refuses(&everywhere, &[], &["listen.advertise_client", "listen.advertise_peer", "0.0.0.0:7401"]);
    let told =
        format!("{everywhere}advertise_client = \"q1.example:7400\"\nadvertise_peer = \"q1.example:7401\"\n");
    let config = check(&told, &[]).expect("good");
    assert_eq!(config.listen.advertised_client(), "q1.example:7400");
}

#[test]
fn variables_beat_the_file() {
    let config = check(
        GOOD,
        &[
            ("QUORAL_NODE_DURABILITY", "interval"),
            ("QUORAL_CLOCK_MAX_SKEW_MS", "250"),
            ("QUORAL_LISTEN_HTTP", "\"127.0.0.1:9000\""),
            ("QUORAL_BOOTSTRAP_CLUSTER", "2026"),
            ("QUORAL_ENDPOINTS", "not of a section"),
        ],
    )
    .expect("good");
    assert_eq!(config.node.durability, Durability::Interval);
    assert_eq!(config.clock.max_skew_ms, 250);
    assert_eq!(config.listen.http.port(), 9000);
    assert_eq!(config.bootstrap.cluster, "2026");
}

#[test]
fn a_list_can_come_from_a_variable() {
    let text = GOOD.split("[bootstrap]").next().expect("a part");
    let list = r#"[{ id = "00000000000000a1", name = "n1", address = "127.0.0.1:7401" }]"#;
    assert_eq!(check(text, &[("QUORAL_BOOTSTRAP_NODES", list)]).expect("good").bootstrap.nodes.len(), 1);
    refuses(text, &[("QUORAL_BOOTSTRAP_NODES", "7")], &["QUORAL_BOOTSTRAP_NODES: bootstrap.nodes", "not 7"]);
}

#[test]
fn unknown_and_bad_variables_are_refused_by_name() {
    refuses(GOOD, &[("QUORAL_NODE_COLOUR", "red")], &["QUORAL_NODE_COLOUR: node.colour", "durability"]);
    refuses(GOOD, &[("QUORAL_CLOCK_MAX_SKEW_MS", "soon")], &["QUORAL_CLOCK_MAX_SKEW_MS", "60000", "soon"]);
}

#[test]
fn all_problems_are_told_at_once() {
    let text = with("data_dir", "durability = \"never\"\nzone = \"\"\ndata_dir");
    let error = Config::check(&text, Path::new("q.toml"), &env(&[])).expect_err("bad");
    assert_eq!(error.problems.len(), 2, "{error}");
}

#[test]
fn what_is_shown_reads_back_as_the_same() {
    let pairs = env(&[("QUORAL_NODE_DURABILITY", "interval")]);
    let checked = Checked::parse(GOOD, Path::new("/etc/quoral/q.toml"), &pairs).expect("good");
    let shown = checked.render();
    assert!(shown.contains("(QUORAL_NODE_DURABILITY)"), "{shown}");
    assert!(shown.contains("(file, line 3)") && shown.contains("(default)"), "{shown}");
    let mut again = check(&shown, &[]).expect("reads back");
    // What was only the default before is now said.
    again.listen.advertise_client = None;
    again.listen.advertise_peer = None;
    assert_eq!(again, checked.config);
}

#[test]
fn no_text_makes_it_panic() {
    for end in (0..GOOD.len()).filter(|at| GOOD.is_char_boundary(*at)) {
        let _ = check(&GOOD[..end], &[]);
    }
    for text in
        ["[node", "node = 1", "[[node]]", "bootstrap.nodes = [1, \"x\"]", "\u{0}", "[node]\nid = 1979-05-27"]
    {
        assert!(check(text, &[]).is_err(), "{text:?}");
    }
}
