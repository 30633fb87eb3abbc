//! Another language: `tests/python_client.py` with stubs of its own, and the package in `clients/python` with its tests,
//! each against a real cluster of three processes.
//!
//! It needs a Python 3 with grpcio and grpcio-tools (`PYTHON` names the interpreter). Without them the tests
//! say `SKIPPED` on stderr and pass, unless `QUORAL_REQUIRE_PYTHON=1`, as CI sets it once they are there.

#![allow(clippy::disallowed_methods, reason = "real processes are waited for in real time")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const NODES: u16 = 3;
/// A node takes three ports, and the next one begins ten above.
const PORTS: u16 = 10 * NODES;
const READY_WITHIN: Duration = Duration::from_secs(60);
const CHECKED_WITHIN: Duration = Duration::from_secs(180);
const PACKAGE_WITHIN: Duration = Duration::from_secs(300);
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

/// A base such that all ports of the cluster are free, for TCP and UDP. Below the range that the system gives
/// to outgoing connections, so that none of them takes one before the nodes do.
fn free_ports() -> u16 {
    let spread = u16::try_from(std::process::id() % 500).expect("below 500");
    (0..500)
        .map(|attempt| 10_240 + (spread + attempt) % 500 * 40)
        .find(|base| {
            (*base..base + PORTS).all(|port| {
                TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok()
            })
        })
        .expect("no 30 free ports in a row")
}

/// Ends the process, and with it the nodes, whatever the test's end.
struct Cluster(Child);

impl Cluster {
    fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        let _ = rustix::process::kill_process(pid.expect("a process id"), signal);
    }

    fn wait(&mut self, within: Duration) -> Option<std::process::ExitStatus> {
        wait(&mut self.0, within)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // TERM first: `dev` stops its nodes then, KILL would leave them.
        self.signal(rustix::process::Signal::TERM);
        if self.wait(STOPPED_WITHIN).is_none() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn wait(child: &mut Child, within: Duration) -> Option<std::process::ExitStatus> {
    let end = Instant::now() + within;
    loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => return Some(status),
            None if Instant::now() >= end => return None,
            // A child's end is no event that std can await with a limit.
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Starts `quoral dev`, and returns when it has printed `ready`.
fn start(base: u16, dir: &Path) -> Cluster {
    let log = dir.join("dev.log");
    let child = Command::new(env!("CARGO_BIN_EXE_quoral"))
        .args(["dev", "--nodes", &NODES.to_string(), "--base-port", &base.to_string(), "--dir"])
        .arg(dir.join("cluster"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&log).expect("a log"))
        .spawn()
        .expect("quoral starts");
    let mut cluster = Cluster(child);
    let out = cluster.0.stdout.take().expect("it is piped");
    let (lines, printed) = mpsc::channel();
    // Reads to the end, so that `dev` never blocks on a full pipe.
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
    let end = Instant::now() + READY_WITHIN;
    loop {
        match printed.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) if line.trim() == "ready" || line.starts_with("ready ") => return cluster,
            Ok(_) => {}
            Err(why) => {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                panic!("`quoral dev` did not print `ready` ({why}); its log:\n{log}");
            }
        }
    }
}

/// Why the Python client can't be run, if it can't.
fn missing(python: &str) -> Option<String> {
    match Command::new(python).args(["-c", "import grpc, grpc_tools.protoc"]).output() {
        Err(error) => Some(format!("{python} can't be started: {error}")),
        Ok(out) if out.status.success() => None,
        Ok(_) => Some(format!("{python} has no grpcio and grpcio-tools (pip install grpcio grpcio-tools)")),
    }
}

/// The interpreter, if it has what is needed; else says so, or fails where it is required.
fn python() -> Option<String> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let Some(why) = missing(&python) else { return Some(python) };
    assert!(std::env::var_os("QUORAL_REQUIRE_PYTHON").is_none_or(|v| v != "1"), "required, but {why}");
    // Not `eprintln`: the test harness would keep it to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED: the Python client: {why}");
    None
}

/// Runs the interpreter to its end: whether it ended well in time, and what it said. What it started goes with it.
fn run(command: &mut Command, log: &Path, within: Duration) -> (bool, String) {
    let file = File::create(log).expect("a log");
    let mut child = command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("a second handle"))
        .stderr(file)
        .process_group(0)
        .spawn()
        .expect("it was started before");
    let ended = wait(&mut child, within);
    if ended.is_none() {
        let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let _ =
            rustix::process::kill_process_group(group.expect("a process id"), rustix::process::Signal::KILL);
        let _ = child.wait();
    }
    let said = std::fs::read_to_string(log).unwrap_or_default();
    (ended.is_some_and(|status| status.success()), format!("{ended:?}\n{said}"))
}

#[test]
fn the_python_package_passes_its_tests() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let mut tests = Command::new(python);
    tests
        .args(["-m", "unittest", "discover", "-v", "-s", "clients/python/tests"])
        .env("PYTHONPATH", "clients/python/src")
        .env("QUORAL_BIN", env!("CARGO_BIN_EXE_quoral"));
    let (passed, said) = run(&mut tests, &dir.path().join("tests.log"), PACKAGE_WITHIN);
    assert!(passed, "the package's tests: {said}");
    let is_of_binary = |line: &&str| line.contains("skipped") && line.contains("QUORAL_BIN");
    assert!(said.contains("Ran ") && !said.lines().any(|line| is_of_binary(&line)), "{said}");
}

#[test]
fn a_python_client_does_what_the_contract_says() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let base = free_ports();
    let mut cluster = start(base, dir.path());
    let endpoints = (0..NODES).map(|node| format!("127.0.0.1:{}", base + 10 * node));
    let mut client = Command::new(python);
    client.arg("tests/python_client.py").args(endpoints);
    let (passed, said) = run(&mut client, &dir.path().join("client.log"), CHECKED_WITHIN);
    let server = std::fs::read_to_string(dir.path().join("dev.log")).unwrap_or_default();
    assert!(passed, "the client: {said}\nthe cluster:\n{server}");
    assert!(said.contains("all as promised"), "{said}");

    cluster.signal(rustix::process::Signal::TERM);
    let stopped = cluster.wait(STOPPED_WITHIN).expect("`dev` stops on SIGTERM");
    assert!(stopped.success(), "`dev` ended with {stopped}");
}
