//! `dev`: a real cluster on loopback, one process a node, for trying things out and for tests.
//!
//! Each node is this binary's own `serve`, so that what is tried is what runs. A node that dies is
//! reported and not restarted: to see what a death does is what a dev cluster is for.
//!
//! Invariants:
//! 1. No node outlives this process: each holds the read end of a pipe and stops when it closes, even
//!    after a kill -9 of this process.
//! 2. Nodes are in process groups of their own, so Ctrl-C reaches them through this process, in order.
//! 3. No configuration is written and no node is started unless the directory is ours alone and all ports are
//!    free.

mod site;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::site::{Site, SiteNode};
use super::Global;
use super::output::{self, CliError, CliResult, Exit};
use crate::rpc::transport::{Network, TcpNetwork};

/// Starts a cluster on this machine, one process a node.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quoral dev
  quoral dev --nodes 5 --dir /tmp/q --base-port 8400

Node k has DIR/nK/quoral.toml, DIR/nK/data and DIR/nK/log, and the ports 7400 (clients), 7401 (peers) and
7402 (HTTP) plus 10 (k - 1). Ctrl-C or SIGTERM stops the cluster. Started again on the same DIR, it goes
on with the data. A node that dies is reported, not restarted:
  quoral serve --config DIR/nK/quoral.toml")]
pub struct DevArgs {
    /// How many nodes. [default: 3, or as many as DIR has]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=NODES_MAX))]
    nodes: Option<u16>,
    /// Where the nodes live.
    #[arg(long, default_value = "quoral-dev")]
    dir: PathBuf,
    /// First port of the first node. [default: 7400, or what DIR has]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    base_port: Option<u16>,
    /// Partitions of a new cluster, a power of two. [default: 256]
    #[arg(long)]
    partitions: Option<u32>,
}

/// More processes than this on one machine try the machine, not Quoral.
const NODES_MAX: i64 = 50;
/// How long the nodes may take to find each other.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a node may take to stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// Lines of a dead node's log that are shown.
const TAIL_LINES: usize = 20;

impl DevArgs {
    /// Runs the cluster until a signal.
    pub async fn run(self, _: &Global) -> CliResult {
        let mut signals = Signals::new()?;
        let wanted =
            site::Wanted { nodes: self.nodes, base_port: self.base_port, partitions: self.partitions };
        let site = Site::open(&self.dir, &wanted)?;
        site.check_ports().await?;
        site.write_missing()?;
        let mut cluster = Running::default();
        for node in &site.nodes {
            if let Err(error) = cluster.start(node) {
                cluster.stop(&mut signals).await;
                return Err(error);
            }
        }
        let started = tokio::select! {
            started = cluster.wait_ready(&site) => started.map(|()| true),
            () = signals.next() => Ok(false),
        };
        let ended = match started {
            Ok(true) => match announce(&site) {
                Ok(()) => {
                    cluster.watch(&site, &mut signals).await;
                    Ok(Exit::Done)
                }
                Err(error) => Err(error),
            },
            Ok(false) => Ok(Exit::Done),
            Err(error) => Err(error),
        };
        cluster.stop(&mut signals).await;
        ended
    }
}

/// SIGTERM and SIGINT, caught from before the first node starts.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Signals, CliError> {
        let catch = |kind| signal(kind).map_err(|error| CliError::io("signals", &error));
        Ok(Signals { terminate: catch(SignalKind::terminate())?, interrupt: catch(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The processes.
#[derive(Default)]
struct Running {
    /// Number of each node that lives, with its process.
    pids: BTreeMap<usize, Pid>,
    /// The write ends of the pipes that say we live.
    lifelines: Vec<ChildStdin>,
    ends: JoinSet<(usize, std::io::Result<ExitStatus>)>,
}

impl Running {
    fn start(&mut self, node: &SiteNode) -> Result<(), CliError> {
        let failed = |error| CliError::io(&format!("{}: can't be started", node.name), &error);
        let log = std::fs::File::options().append(true).create(true).open(&node.log);
        let log = log.map_err(|error| CliError::io(&node.log.display().to_string(), &error))?;
        let mut child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(["serve", "--stop-with-parent", "--config"])
            .arg(&node.config_file)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        // Taken out, because waiting for a child closes its stdin.
        self.lifelines.extend(child.stdin.take());
        if let Some(pid) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
            self.pids.insert(node.number, pid);
        }
        let number = node.number;
        self.ends.spawn(async move { (number, child.wait().await) });
        Ok(())
    }

    /// The next node to end: its number, and how. Never, if none is left.
    async fn next_end(&mut self) -> (usize, String) {
        loop {
            match self.ends.join_next().await {
                Some(Ok((number, result))) => {
                    self.pids.remove(&number);
                    return match result {
                        Ok(status) => (number, status.to_string()),
                        Err(error) => (number, format!("unknown status: {error}")),
                    };
                }
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Waits until every node says that it is ready.
    async fn wait_ready(&mut self, site: &Site) -> Result<(), CliError> {
        let deadline = Instant::now() + READY_WITHIN;
        let mut waiting: Vec<(&SiteNode, String)> =
            site.nodes.iter().map(|node| (node, "no answer".to_string())).collect();
        loop {
            let mut still = Vec::new();
            for (node, _) in waiting {
                if let Err(reason) = ask_ready(node).await {
                    still.push((node, reason));
                }
            }
            waiting = still;
            if waiting.is_empty() {
                return Ok(());
            }
            tokio::select! {
                (number, how) = self.next_end() => {
                    let node = &site.nodes[number - 1];
                    let tail = node.log_tail(TAIL_LINES);
                    return Err(CliError::error(format!(
                        "{} died while starting ({how}); the end of {}:\n{tail}",
                        node.name,
                        node.log.display()
                    )));
                }
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
            if Instant::now() >= deadline {
                let reasons: Vec<String> =
                    waiting.iter().map(|(node, why)| format!("{}: {why}", node.name)).collect();
                return Err(CliError::error(format!(
                    "not ready after {} s: {}; see the logs in {}",
                    READY_WITHIN.as_secs(),
                    reasons.join(", "),
                    site.dir.display()
                )));
            }
        }
    }

    /// Reports deaths until a signal.
    async fn watch(&mut self, site: &Site, signals: &mut Signals) {
        loop {
            tokio::select! {
                () = signals.next() => return,
                (number, how) = self.next_end() => {
                    let node = &site.nodes[number - 1];
                    output::note(format!(
                        "{} has died ({how}), see {}; this brings it back:\n  {} serve --config {}",
                        node.name, node.log.display(), own_name(), node.config_file.display()
                    ));
                }
            }
        }
    }

    /// Stops all nodes: politely; after a while, or at another signal, by force.
    async fn stop(&mut self, signals: &mut Signals) {
        self.signal_all(Signal::TERM);
        let patience = tokio::time::sleep(STOP_WITHIN);
        tokio::pin!(patience);
        let mut forced = false;
        while !self.pids.is_empty() {
            tokio::select! {
                _ = self.next_end() => {}
                () = &mut patience, if !forced => {
                    forced = true;
                    output::note("some nodes did not stop in time and are killed");
                    self.signal_all(Signal::KILL);
                }
                () = signals.next(), if !forced => {
                    forced = true;
                    self.signal_all(Signal::KILL);
                }
            }
        }
    }

    fn signal_all(&self, signal: Signal) {
        for pid in self.pids.values() {
            // It may have ended just now.
            let _ = kill_process(*pid, signal);
        }
    }
}

/// Whether a node says that it is ready; or why not.
async fn ask_ready(node: &SiteNode) -> Result<(), String> {
    let ask = async {
        let mut connection = TcpNetwork.connect(&node.http.to_string()).await?;
        connection.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        // An answer of ours is short; whatever else sits on that port is not read to its end.
        connection.take(16 << 10).read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = match tokio::time::timeout(Duration::from_secs(1), ask).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err("no answer".to_string()),
    };
    if answer.starts_with("HTTP/1.1 200") {
        return Ok(());
    }
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Err(body.lines().next().unwrap_or("no answer").to_string())
}

/// Says that the cluster is there, and how to use it.
fn announce(site: &Site) -> Result<(), CliError> {
    let me = own_name();
    let clients: Vec<String> = site.nodes.iter().map(|node| node.client.to_string()).collect();
    let endpoints = clients.join(",");
    let default = clients.first().is_some_and(|first| first == "127.0.0.1:7400");
    let flag = if default { String::new() } else { format!(" --endpoints {}", clients[0]) };
    let text = format!(
        "ready\n\n{} nodes in {}; Ctrl-C stops them. In another shell:\n  {me}{flag} put greeting hello\n  \
         {me}{flag} get greeting\n  {me}{flag} status\nTo go on when a node is away:\n  \
         export QUORAL_ENDPOINTS={endpoints}\n",
        site.nodes.len(),
        site.dir.display(),
    );
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever waited for the line and went away wants the cluster to stay.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => output::stdout_result(other),
    }
}

/// This program, as the user called it.
fn own_name() -> String {
    std::env::args().next().unwrap_or_else(|| "quoral".to_string())
}
