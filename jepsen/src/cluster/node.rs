//! One node: its directory, its configuration, and its process while it runs.
//!
//! The node's stdin is a pipe whose other end is ours: `--stop-with-parent` stops it when we are gone. It has a
//! process group of its own, so that Ctrl-C in a terminal does not reach it before the runner has decided.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::clock::Clock;
use super::command::words;
use super::disk::Loop;
use super::machine::Machine;
use super::tracer::Tracer;
use super::{Error, ledger};

/// A node.
#[derive(Debug)]
pub struct Node {
    /// `n1`, …
    pub name: String,
    /// 16 hex digits.
    pub id: String,
    /// `nK` in the run's directory, absolute.
    pub dir: PathBuf,
    /// Port for clients.
    pub client: SocketAddr,
    /// Port for other nodes.
    pub peer: SocketAddr,
    /// Port of `/readyz`.
    pub http: SocketAddr,
    /// Its machine, when it has one.
    pub machine: Option<Machine>,
    /// Its own disk, when it has one.
    pub disk: Option<Loop>,
    /// Its clock, when that can be moved.
    pub clock: Option<Clock>,
    /// What tampers with its system calls now.
    pub tracer: Option<Tracer>,
    /// Stopped by SIGSTOP.
    pub paused: bool,
    /// A disk fault that it had since it was started: it may end by itself then.
    pub disk_fault: Option<&'static str>,
    child: Option<Child>,
}

impl Node {
    /// A node that does not run.
    #[must_use]
    pub fn new(name: String, id: String, dir: PathBuf, ports: [SocketAddr; 3]) -> Node {
        let [client, peer, http] = ports;
        Node {
            name,
            id,
            dir,
            client,
            peer,
            http,
            machine: None,
            disk: None,
            clock: None,
            tracer: None,
            paused: false,
            disk_fault: None,
            child: None,
        }
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("quoral.toml")
    }

    /// Its log, of all its lives.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Its data directory, as the node sees it.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        match self.disk {
            Some(_) => self.dir.join("disk").join("data"),
            None => self.dir.join("data"),
        }
    }

    /// Its data directory, as this process sees it.
    #[must_use]
    pub fn data_from_outside(&self) -> PathBuf {
        let data = self.data();
        match (&self.disk, &self.machine) {
            (Some(_), Some(machine)) => machine.root().join(data.strip_prefix("/").unwrap_or(&data)),
            _ => data,
        }
    }

    /// Writes the configuration; `bootstrap` is the body of that section, `more` are others. A small log of the storage
    /// engine is compacted already, so that this happens under faults too.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn configure(&self, bootstrap: &str, more: &str) -> Result<(), Error> {
        let Node { name, id, client, peer, http, .. } = self;
        let data = self.data();
        let data = data.strip_prefix(&self.dir).unwrap_or(&data).display();
        let text = format!(
            "[node]\nid = \"{id}\"\nname = \"{name}\"\ndata_dir = \"{data}\"\n\n[listen]\nclient = \"{client}\"\n\
             peer = \"{peer}\"\nhttp = \"{http}\"\n\n[bootstrap]\n{bootstrap}\n\
             [storage]\ncompact_bytes = 1048576\n\n{more}"
        );
        std::fs::write(self.config(), text).map_err(|error| Error::io("a configuration", error))
    }

    /// Starts it; nothing if it runs. Blocks.
    ///
    /// # Errors
    ///
    /// The binary can't be started, or its disk can't be mounted.
    pub fn start(&mut self, binary: &Path) -> Result<(), Error> {
        if self.child.is_some() {
            return Ok(());
        }
        if let Some(disk) = &self.disk {
            disk.mount()?;
        }
        let io = |error| Error::io(format!("starting {}", self.name), error);
        let log = File::options().append(true).create(true).open(self.log()).map_err(io)?;
        let (binary, config) = (binary.to_string_lossy(), self.config());
        let line = [&*binary, "serve", "--stop-with-parent", "--config", &config.to_string_lossy()]
            .map(str::to_owned);
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let line = self.machine.as_ref().map_or_else(|| words(&line), |machine| machine.inside(&line));
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).env_clear().env("RUST_BACKTRACE", "1");
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        if let Some(clock) = &self.clock {
            command.envs(clock.environment());
        }
        let child = command
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(io)?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(io)?;
        let noted = ledger::note(child.id());
        self.child = Some(child);
        self.paused = false;
        self.disk_fault = None;
        noted
    }

    /// Its process, if it was started and not ended by us; it may have ended by itself.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn raw_pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.pid()?).ok()?)
    }

    /// Whether its process lives; a paused one does.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.child.is_some() && !self.has_died()
    }

    /// Whether it ended though nobody ended it.
    #[must_use]
    pub fn has_died(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.raw_pid().is_some_and(|pid| matches!(waitid(WaitId::Pid(pid), look), Ok(Some(_))))
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.raw_pid() {
            // One that has died is still ours until it is waited for: the id can't be another's.
            let _ = kill_process(pid, signal);
        }
    }

    /// SIGKILL, and waits for its end, which takes a millisecond or two. Blocks.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = child.kill();
        let _ = child.wait();
        self.paused = false;
        if let Some(tracer) = self.tracer.take() {
            let _ = tracer.detach();
        }
    }

    /// The first panic that its log tells of.
    #[must_use]
    pub fn panic(&self) -> Option<String> {
        let text = std::fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines().skip_while(|line| !line.contains("panicked at"));
        let (what, why) = (lines.next()?, lines.next().unwrap_or_default());
        Some(format!("{} panicked: {} {}", self.name, what.trim(), why.trim()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
