//! A cluster of real `quoral serve` processes, each on what looks to it like a machine of its own.
//!
//! As root each node has a network and a mount namespace ([`machine`]), joined by a bridge ([`crate::network`]),
//! and if wanted a disk that can lose power ([`disk`]), a clock that can be moved ([`clock`]) and wires that
//! delay and duplicate. Without root the nodes share loopback, and only their processes can be hurt. What was
//! asked for and can't be had stands in [`Cluster::left_out`]: it must be shown.
//!
//! 1. Nothing outlives the runner: nodes stop when it is gone, namespaces and mounts go with them. Stopped ones
//!    are ended by the next runner ([`ledger`]).
//! 2. Every outside program has a time limit.
//! 3. [`Cluster::heal_all`] and [`Cluster::stop`] may be called at any time, and again.
//!
//! Whoever uses namespaces calls [`crate::network::enter_hub`] first, before there are other threads.

mod act;
pub mod clock;
pub mod command;
pub mod disk;
pub mod ledger;
pub mod machine;
pub mod node;
pub mod ports;
mod setup;
pub mod tracer;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use disk::Fs;
pub use node::Node;

use crate::network::Network;

/// How long all nodes may take until they are ready.
pub const READY_WITHIN: Duration = Duration::from_secs(60);

/// How a cluster is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `quoral` binary.
    pub binary: PathBuf,
    /// How many nodes, at most 99.
    pub nodes: usize,
    /// The run's directory: `nK/quoral.toml`, `nK/data` or `nK/disk/data`, `nK/log` are made in it.
    pub dir: PathBuf,
    /// Where the nodes live.
    pub isolation: Isolation,
    /// What they store on.
    pub disk: Disk,
    /// Whether their clocks can be moved.
    pub clocks: bool,
    /// Whether their wires can delay and duplicate; costs a little of every packet's time.
    pub taps: bool,
    /// Partitions of the ring.
    pub partitions: u32,
    /// Seed of the wires' randomness.
    pub seed: u64,
    /// What stands in every node's configuration besides.
    pub config: String,
}

impl Options {
    /// Five nodes on what this machine allows, with plain disks, true clocks and plain wires.
    #[must_use]
    pub fn new(binary: PathBuf, dir: PathBuf) -> Options {
        let isolation = Isolation::probe().0;
        let disk = Disk::Plain;
        Options {
            binary,
            nodes: 5,
            dir,
            isolation,
            disk,
            clocks: false,
            taps: false,
            partitions: 32,
            seed: 0,
            config: String::new(),
        }
    }
}

/// Where nodes live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Each in its own network and mount namespace; needs root.
    Namespaces,
    /// All on loopback: only processes can be hurt.
    Loopback,
}

/// What nodes store on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// The run's directory.
    Plain,
    /// A file with a file system each, that can lose power and fill up; needs root.
    Loop(Fs),
}

/// What went wrong.
#[derive(Debug)]
pub enum Error {
    /// The system refused.
    Io {
        /// Doing what.
        what: String,
        /// What it said.
        error: std::io::Error,
    },
    /// A program failed.
    Command {
        /// The command line.
        line: String,
        /// How it failed.
        why: String,
    },
    /// A node is not ready in time.
    NotReady {
        /// The node.
        node: String,
        /// What it says.
        why: String,
    },
    /// Can't be done here, or now.
    Unable(String),
}

impl Error {
    /// The system refused `what`.
    pub fn io(what: impl Into<String>, error: std::io::Error) -> Error {
        Error::Io { what: what.into(), error }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { what, error } => write!(f, "{what}: {error}"),
            Error::Command { line, why } => write!(f, "`{line}`: {why}"),
            Error::NotReady { node, why } => write!(f, "{node} is not ready: {why}"),
            Error::Unable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}

/// Nodes that run, and what they run on.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    nodes: Vec<Node>,
    network: Option<Network>,
    /// Who moves clocks that run wrong.
    mover: Option<tokio::task::JoinHandle<()>>,
    left_out: Vec<String>,
    /// Nodes that ended by themselves and were started again since.
    deaths: Vec<String>,
    /// The same, where a disk fault excuses it.
    excused: Vec<String>,
}

impl Cluster {
    /// How many nodes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether it has none; it never does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Its nodes, in order.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// `http://IP:PORT` of each node's port for clients, in order.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("http://{}", node.client)).collect()
    }

    /// `n1`, `n2`, …
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// What was asked for and could not be had here.
    #[must_use]
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// How it was made; `isolation`, `disk`, `clocks` and `taps` as they turned out.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The network, when the nodes are in namespaces.
    #[must_use]
    pub fn network(&mut self) -> Option<&mut Network> {
        self.network.as_mut()
    }

    /// Nodes that ended though nobody ended them, and panics found in logs. A node that ended while its disk was
    /// failing is not here but in [`Cluster::excused`]; if it panicked it is in both.
    #[must_use]
    pub fn crashed(&self) -> Vec<String> {
        let now = self.nodes.iter().filter(|node| node.has_died() && node.disk_fault.is_none());
        let now = now.map(|node| format!("{} ended by itself", node.name));
        self.deaths.iter().cloned().chain(now).chain(self.nodes.iter().filter_map(Node::panic)).collect()
    }

    /// Nodes that ended by themselves while their disks were failing.
    #[must_use]
    pub fn excused(&self) -> Vec<String> {
        let now = self.nodes.iter().filter(|node| node.has_died());
        let now =
            now.filter_map(|node| Some(format!("{} ended by itself ({})", node.name, node.disk_fault?)));
        self.excused.iter().cloned().chain(now).collect()
    }
}
