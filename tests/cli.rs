//! The command line as a user meets it: the binary is run, its output and exit codes are checked.

mod dev;

use std::path::{Path, PathBuf};
use std::time::Duration;

use dev::{Dev, PATIENCE, code, quoral, run, stderr, stdout};
use rustix::process::{Pid, Signal, kill_process};

const GOOD: &str = r#"
[node]
id = "00000000000000a1"
name = "n1"
data_dir = "data"

[bootstrap]
nodes = [{ id = "00000000000000a1", name = "n1", address = "127.0.0.1:7401" }]
"#;

fn file(dir: &Path, text: &str) -> String {
    let path = dir.join("quoral.toml");
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("UTF-8").to_string()
}

#[test]
fn a_good_configuration_is_ok_and_is_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = file(dir.path(), GOOD);
    let checked = run(&["config", "check", &path]);
    assert_eq!((code(&checked), stdout(&checked)), (0, format!("{path}: ok\n")));

    let shown = quoral()
        .args(["config", "show", &path])
        .env("QUORAL_NODE_DURABILITY", "interval")
        .output()
        .expect("runs");
    let text = stdout(&shown);
    assert!(text.contains("durability = \"interval\"") && text.contains("QUORAL_NODE_DURABILITY"), "{text}");
    assert!(text.contains(&dir.path().join("data").display().to_string()), "{text}");
    let json = run(&["config", "show", &path, "-o", "json"]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(value["bootstrap"]["partitions"], 256);
}

#[test]
fn without_a_file_the_defaults_and_the_environment_are_shown() {
    let show = |name: &str, value: &str, json: bool| {
        let mut command = quoral();
        command.args(["config", "show", "-o", if json { "json" } else { "text" }]).env(name, value);
        command.output().expect("runs")
    };
    let shown = show("QUORAL_NODE_NAME", "ann", false);
    let text = stdout(&shown);
    assert_eq!(code(&shown), 0, "{}", stderr(&shown));
    for line in
        ["# id = ", "# data_dir = ", "# nodes = [", "#   { id = ", "name = \"ann\"", "partitions = 256"]
    {
        assert!(text.lines().any(|got| got.starts_with(line)), "{line}: {text}");
    }
    let shown = show("QUORAL_NODE_NAME", "ann", true);
    let value: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!((&value["node"]["name"], &value["node"]["id"]), (&"ann".into(), &serde_json::Value::Null));
    let bad = show("QUORAL_BOOTSTRAP_PARTITIONS", "17", false);
    assert_eq!((code(&bad), stdout(&bad)), (1, String::new()));
    assert!(
        stderr(&bad).contains("QUORAL_BOOTSTRAP_PARTITIONS: bootstrap.partitions: is 17"),
        "{}",
        stderr(&bad)
    );
}

#[test]
fn a_bad_configuration_says_what_is_wrong_and_where() {
    let dir = tempfile::tempdir().expect("a directory");
    let path =
        file(dir.path(), &GOOD.replace("name = \"n1\"\n", "name = \"n1\"\ncolour = 1\ndurability = 2\n"));
    for verb in [&["config", "check"][..], &["config", "show"], &["serve", "--config"]] {
        let output = run(&[verb, &[&path]].concat());
        assert_eq!(code(&output), 1);
        let text = stderr(&output);
        assert!(text.contains(&format!("{path}:5: node.colour: is not a key")), "{text}");
        assert!(text.contains(&format!("{path}:6: node.durability: must be a text")), "{text}");
        assert_eq!(stdout(&output), "");
    }
    let good = file(dir.path(), GOOD);
    let output =
        quoral().args(["config", "check", &good]).env("QUORAL_LOG_LEVEL", "loud").output().expect("runs");
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("QUORAL_LOG_LEVEL: log.level"), "{}", stderr(&output));
    let missing = run(&["config", "check", "/no/such/file"]);
    assert_eq!(code(&missing), 1);
    assert!(stderr(&missing).contains("/no/such/file: can't be read"), "{}", stderr(&missing));
}

#[test]
fn bad_usage_exits_2() {
    for arguments in [
        &["frobnicate"][..],
        &[],
        &["status", "--timeout", "soon"],
        &["status", "--timeout", "0s"],
        &["status", "--endpoints", "nowhere"],
        &["status", "-o", "yaml"],
        &["explain"],
        &["explain", ""],
        &["keyspace", "create", "x", "--conflicts", "all"],
        &["keyspace", "create", "x", "--n", "0"],
        &["keyspace", "create", "x", "--ttl", "0s"],
        &["keyspace", "update", "x"],
        &["keyspace", "update", "x", "--w", "0"],
        &["keyspace", "update", "x", "--sloppy", "perhaps"],
        &["keyspace", "update", "x", "--ttl", "0"],
        &["keyspace", "drop"],
        &["serve"],
        &["dev", "--nodes", "0"],
        &["inspect"],
        &["inspect", "record"],
        &["inspect", "record", ""],
        &["inspect", "partition", "seven"],
    ] {
        let output = run(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
    let json = run(&["-o", "json", "status", "--timeout", "soon"]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((code(&json), &value["code"]), (2, &"INVALID_ARGUMENT".into()));
    assert!(value["error"].as_str().is_some_and(|error| error.contains("soon")), "{value}");
}

#[test]
fn help_and_version_exit_0() {
    let help = run(&["help", "explain"]);
    assert_eq!(code(&help), 0);
    assert!(stdout(&help).contains("Examples:\n  quoral explain"), "{}", stdout(&help));
    assert!(!stdout(&run(&["help"])).contains("transfers"), "what is not built is not offered");
    assert_eq!(stdout(&run(&["--version"])), format!("quoral {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn what_is_not_built_says_so() {
    for arguments in [
        &["cluster", "join", "n4"][..],
        &["cluster", "commit", "--version", "2", "--yes"],
        &["transfers"],
        &["workers"],
    ] {
        let output = run(arguments);
        assert_eq!(code(&output), 1, "{arguments:?}");
        assert!(stderr(&output).contains("is not built yet"), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_cluster_that_is_not_there_is_unavailable() {
    // Bound but not listening: nobody else can take the port, and nobody answers.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let nobody = socket.local_addr().expect("its address").to_string();
    drop(socket);
    let status = run(&["status", "--endpoints", &nobody]);
    assert_eq!(code(&status), 5);
    assert!(stderr(&status).contains(&nobody), "{}", stderr(&status));
    let create = quoral()
        .args(["keyspace", "create", "x", "-o", "json"])
        .env("QUORAL_ENDPOINTS", format!("{nobody},{nobody}"))
        .output()
        .expect("runs");
    let value: serde_json::Value = serde_json::from_slice(&create.stdout).expect("JSON");
    assert_eq!((code(&create), &value["code"], &value["applied"]), (5, &"UNAVAILABLE".into(), &"NO".into()));
}

/// Gone, or dead and not yet collected by whoever inherited it.
fn gone(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.trim_start().starts_with('Z'))
}

fn wait_gone(pids: &[Pid]) {
    for _ in 0..PATIENCE.as_millis() / 20 {
        if pids.iter().all(|pid| gone(*pid)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("still there: {pids:?}");
}

fn id_line(dir: &Path, node: &str) -> String {
    let text = std::fs::read_to_string(dir.join(node).join("quoral.toml")).expect("a configuration");
    text.lines().find(|line| line.starts_with("id = ")).expect("an id").to_string()
}

#[test]
fn dev_runs_reports_a_death_stops_cleanly_and_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let site: PathBuf = dir.path().join("q");
    let mut dev = Dev::start(&site, "3");
    let nodes = dev.nodes();
    assert_eq!(nodes.len(), 3);
    let ids: Vec<String> = ["n1", "n2", "n3"].map(|node| id_line(&site, node)).to_vec();

    let second = quoral().args(["dev", "--dir"]).arg(&site).output().expect("runs");
    assert_eq!(code(&second), 1);
    assert!(stderr(&second).contains("another `quoral dev`"), "{}", stderr(&second));

    kill_process(nodes[1], Signal::KILL).expect("it runs");
    let report = dev.wait_for(|line| line.contains("has died")).expect("a report");
    assert!(report.contains("signal: 9"), "{report}");
    let advice = dev.wait_for(|line| line.contains("serve --config")).expect("advice");
    assert!(
        ["n1", "n2", "n3"].iter().any(|node| advice.contains(&format!("{node}/quoral.toml"))),
        "{advice}"
    );

    dev.signal(Signal::TERM);
    assert_eq!(dev.child.wait().expect("ended").code(), Some(0));
    wait_gone(&nodes);

    let mut again = Dev::start(&site, "3");
    assert_eq!(["n1", "n2", "n3"].map(|node| id_line(&site, node)).to_vec(), ids);
    again.signal(Signal::INT);
    assert_eq!(again.child.wait().expect("ended").code(), Some(0));

    let other = quoral().args(["dev", "--nodes", "5", "--dir"]).arg(&site).output().expect("runs");
    assert_eq!(code(&other), 2);
    assert!(stderr(&other).contains("holds a cluster with 3"), "{}", stderr(&other));
}

#[test]
fn nodes_do_not_outlive_a_dev_that_was_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut dev = Dev::start(&dir.path().join("q"), "1");
    let nodes = dev.nodes();
    assert_eq!(nodes.len(), 1);
    dev.child.kill().expect("killed");
    dev.child.wait().expect("ended");
    wait_gone(&nodes);
}

#[test]
fn dev_shows_the_log_of_a_node_that_can_not_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let site = dir.path().join("q");
    let mut dev = Dev::start(&site, "1");
    dev.signal(Signal::TERM);
    dev.child.wait().expect("ended");
    let data = site.join("n1/data");
    let _ = std::fs::remove_dir_all(&data);
    std::fs::write(&data, "not a directory").expect("written");
    let output = quoral().args(["dev", "--dir"]).arg(&site).output().expect("runs");
    assert_eq!((code(&output), stdout(&output)), (1, String::new()));
    let text = stderr(&output);
    assert!(text.contains("n1 died while starting (exit status: 1)") && text.contains("n1/log"), "{text}");
    assert!(text.contains(&data.display().to_string()), "the log's end must be shown: {text}");
}

#[test]
fn a_closed_stdout_is_no_panic() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = file(dir.path(), GOOD);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = quoral().args(["config", "show", &path]).stdout(writer).output().expect("runs");
    assert_eq!((code(&output), stderr(&output)), (1, String::new()));
}
