//! A cluster of real `quoral serve` processes on free loopback ports, for tests that kill them.
//!
//! Each node is a child with its own directory, configuration and log. Invariants:
//! 1. No node outlives the test, not even a test that is killed: each stops when its stdin closes.
//! 2. When a test fails, the end of each log is printed; when it passes, no log may hold a panic.
//! 3. One cluster test runs at a time ([`alone`]): they measure pauses, and share few cores.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub const BINARY: &str = env!("CARGO_BIN_EXE_quoral");
/// How long a cluster may take until all its nodes are ready.
pub const READY_WITHIN: Duration = Duration::from_secs(60);
/// Lines of each log that a failed test shows.
const TAIL_LINES: usize = 40;
/// Ports between 10 240 and 32 000: below those that the system gives to outgoing connections.
const PORTS_FROM: u16 = 10_240;
const PORTS_TO: u16 = 32_000;

/// Held by a test while its cluster runs.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `count` ports in a row that are free for TCP and UDP, and that no other cluster of this process has.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: Mutex<Option<u16>> = Mutex::new(None);
    let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
    let spread = u16::try_from(std::process::id() % 500).expect("below 500") * 40;
    let mut base = next.unwrap_or(PORTS_FROM + spread);
    let free = |port: u16| {
        TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok()
    };
    for _ in 0..2_000 {
        if base + count > PORTS_TO {
            base = PORTS_FROM;
        }
        if (base..base + count).all(free) {
            *next = Some(base + count);
            return base;
        }
        base += count;
    }
    panic!("no {count} free ports in a row");
}

/// One node: its place on disk, its ports, and its process while it runs.
pub struct Node {
    pub name: String,
    pub id: String,
    pub dir: PathBuf,
    pub config: PathBuf,
    pub log: PathBuf,
    pub client: SocketAddr,
    pub peer: SocketAddr,
    pub http: SocketAddr,
    child: Option<Child>,
}

/// A line of the bootstrap list.
pub fn listed(id: &str, name: &str, peer: SocketAddr) -> String {
    format!("  {{ id = \"{id}\", name = \"{name}\", address = \"{peer}\" }},\n")
}

impl Node {
    /// A node in `dir` with the three ports from `base`, that is not started and has no configuration.
    pub fn new(dir: PathBuf, name: &str, id: &str, base: u16) -> Node {
        std::fs::create_dir_all(&dir).expect("a node's directory");
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Node {
            name: name.into(),
            id: id.into(),
            config: dir.join("quoral.toml"),
            log: dir.join("log"),
            dir,
            client: at(base),
            peer: at(base + 1),
            http: at(base + 2),
            child: None,
        }
    }

    /// Writes the configuration; `more` is TOML before the bootstrap section.
    pub fn configure(&self, more: &str, bootstrap: &str) {
        let Node { name, id, client, peer, http, .. } = self;
        let text = format!(
            "[node]\nid = \"{id}\"\nname = \"{name}\"\ndata_dir = \"data\"\n\n[listen]\nclient = \"{client}\"\n\
             peer = \"{peer}\"\nhttp = \"{http}\"\n{more}\n[bootstrap]\n{bootstrap}"
        );
        std::fs::write(&self.config, text).expect("a configuration");
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs", self.name);
        let log = File::options().append(true).create(true).open(&self.log).expect("a log");
        let child = Command::new(BINARY)
            .args(["serve", "--stop-with-parent", "--config"])
            .arg(&self.config)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("quoral starts");
        self.child = Some(child);
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Pid {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name));
        Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("not 0")
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap_or_else(|e| panic!("{}: {e}", self.name));
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits for the process to end by itself.
    pub fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let status = wait_for_end(self.child.as_mut().expect("it was started"), within);
        if status.is_some() {
            self.child = None;
        }
        status
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("can be asked").is_none())
    }

    /// What it says at `/readyz`: ready, or why not.
    pub fn ready(&self) -> Result<(), String> {
        http_get(self.http, "/readyz").and_then(|(status, body)| match status {
            200 => Ok(()),
            _ => Err(body.trim().to_owned()),
        })
    }

    /// Waits until it is ready; panics if it is not in time, or ends.
    pub fn wait_ready(&mut self) {
        let end = Instant::now() + READY_WITHIN;
        loop {
            let why = match self.ready() {
                Ok(()) => return,
                Err(why) => why,
            };
            assert!(self.is_running(), "{} ended while starting:\n{}", self.name, self.log_tail(TAIL_LINES));
            assert!(Instant::now() < end, "{} is not ready: {why}", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn log_text(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn log_tail(&self, lines: usize) -> String {
        let text = self.log_text();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Panics if its log holds a panic.
    pub fn check_log(&self) {
        let text = self.log_text();
        if let Some(at) = text.find("panicked") {
            let end = (at + 600).min(text.len());
            let start = at.saturating_sub(100);
            panic!("{} panicked: …{}", self.name, String::from_utf8_lossy(&text.as_bytes()[start..end]));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            // Not `eprintln`: what other threads print would be lost, this is wanted in any case.
            let tail = self.log_tail(TAIL_LINES);
            let _ = writeln!(std::io::stderr(), "--- the log of {} ends with:\n{tail}", self.name);
        } else {
            self.check_log();
        }
    }
}

/// Several nodes with one bootstrap list.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub dir: tempfile::TempDir,
}

impl Cluster {
    /// Makes the nodes' directories and configurations; starts none.
    pub fn made(count: u16) -> Cluster {
        let dir = tempfile::tempdir().expect("a directory");
        let base = free_ports(10 * count);
        let nodes: Vec<Node> = (0..count)
            .map(|k| {
                let (name, id) = (format!("n{}", k + 1), format!("{:016x}", 0xa0 + u64::from(k) + 1));
                Node::new(dir.path().join(&name), &name, &id, base + 10 * k)
            })
            .collect();
        let cluster = Cluster { nodes, dir };
        let bootstrap = cluster.bootstrap();
        cluster.nodes.iter().for_each(|node| node.configure("", &bootstrap));
        cluster
    }

    /// Starts `count` new nodes, and returns when all are ready.
    pub fn start(count: u16) -> Cluster {
        let mut cluster = Cluster::made(count);
        cluster.start_all();
        cluster
    }

    /// The body of the bootstrap section.
    pub fn bootstrap(&self) -> String {
        let lines: String = self.nodes.iter().map(|n| listed(&n.id, &n.name, n.peer)).collect();
        format!("partitions = 32\nnodes = [\n{lines}]\n")
    }

    pub fn start_all(&mut self) {
        self.nodes.iter_mut().for_each(Node::start);
        self.wait_ready();
    }

    pub fn wait_ready(&mut self) {
        self.nodes.iter_mut().for_each(Node::wait_ready);
    }

    /// SIGKILL to all at once: none is waited for before the last has its signal.
    pub fn kill_all(&mut self) {
        self.nodes.iter().for_each(|node| node.signal(Signal::KILL));
        self.nodes.iter_mut().for_each(Node::kill);
    }

    /// The client ports of the nodes at `which`.
    pub fn clients(&self, which: &[usize]) -> Vec<SocketAddr> {
        which.iter().map(|at| self.nodes[*at].client).collect()
    }

    pub fn all_clients(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.client).collect()
    }

    /// Panics if a node's log holds a panic, or a node that should run does not.
    pub fn check(&mut self) {
        for node in &mut self.nodes {
            node.check_log();
            assert!(node.is_running(), "{} has ended:\n{}", node.name, node.log_tail(TAIL_LINES));
        }
    }
}

/// Runs the command line to its end; kills it when it takes too long.
pub fn run(arguments: &[&str], within: Duration) -> (Output, Duration) {
    let began = Instant::now();
    let mut child = Command::new(BINARY)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("quoral starts");
    // Short answers only: they fit into the pipes' buffers.
    let ended = wait_for_end(&mut child, within);
    let took = began.elapsed();
    if ended.is_none() {
        let _ = child.kill();
    }
    let output = child.wait_with_output().expect("its output");
    assert!(ended.is_some(), "`quoral {}` did not end in {within:?}: {output:?}", arguments.join(" "));
    (output, took)
}

/// `run` against one node or several.
pub fn cli(endpoints: &[SocketAddr], arguments: &[&str]) -> (Output, Duration) {
    let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    let endpoints = endpoints.join(",");
    run(&[&["--endpoints", &endpoints], arguments].concat(), Duration::from_secs(20))
}

/// Both streams of a process as text.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub fn wait_for_end(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + within;
    loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => return Some(status),
            None if Instant::now() >= end => return None,
            // A child's end is no event that std can await with a limit.
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Polls until `what` gives something; panics with its last complaint when it takes too long.
pub fn eventually<T>(within: Duration, mut what: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + within;
    loop {
        match what() {
            Ok(value) => return value,
            Err(why) => assert!(Instant::now() < end, "not within {within:?}: {why}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Status and body of a page of the HTTP port.
pub fn http_get(at: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let ask = || -> std::io::Result<String> {
        let mut connection = TcpStream::connect_timeout(&at, Duration::from_secs(1))?;
        connection.set_read_timeout(Some(Duration::from_secs(2)))?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        connection.write_all(request.as_bytes())?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| error.to_string())?;
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no status")?;
    Ok((status, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned()))
}

/// Copies a directory and all that is in it.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("can be read") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}
