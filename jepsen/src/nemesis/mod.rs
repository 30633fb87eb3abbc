//! Who breaks things: each nemesis does one kind of harm to a running cluster, and undoes it.
//!
//! A nemesis draws its victims and its strength anew at each start, and says in Jepsen's words what it did. All
//! of them can be at work at once, but for [`disk`]'s two tracers, which share a slot per node. `restart` does
//! its harm within `start`; the others' lasts until `stop`.
//!
//! 1. `stop` undoes what this nemesis did, nothing else; it may be called without a start, and again.
//! 2. A nemesis that could not act says why, as an error: that is no fault of the database.
//! 3. [`Nemesis::acted`] counts starts that did harm: a run in which it stays 0 proves nothing.

pub mod clock;
pub mod disk;
pub mod network;
pub mod partition;
pub mod process;

use std::future::Future;
use std::pin::Pin;

use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use crate::cluster::{Cluster, Disk, Error, Isolation};
use crate::edn::Edn;

/// What a nemesis does, as long as it takes.
pub type Act<'a> = Pin<Box<dyn Future<Output = Result<Edn, Error>> + Send + 'a>>;

/// One kind of harm.
pub trait Nemesis: Send {
    /// Its name, as the user types it. Its events are `start-NAME` and `stop-NAME`.
    fn name(&self) -> &'static str;

    /// What it needs of the cluster.
    fn needs(&self) -> Needs;

    /// Why it can't act on this cluster, if so.
    ///
    /// # Errors
    ///
    /// The reason.
    fn probe(&self, cluster: &Cluster) -> Result<(), String> {
        self.needs().met_by(cluster)
    }

    /// Does harm; gives what was hit.
    fn start<'a>(&'a mut self, cluster: &'a mut Cluster, rng: &'a mut StdRng) -> Act<'a>;

    /// Undoes it; gives what is well again.
    fn stop<'a>(&'a mut self, cluster: &'a mut Cluster, rng: &'a mut StdRng) -> Act<'a>;

    /// How many starts did harm.
    fn acted(&self) -> u64;
}

/// All names.
pub const NAMES: [&str; 19] = [
    "kill",
    "pause",
    "restart",
    "partition",
    "partition-halves",
    "partition-isolate",
    "partition-one-way",
    "partition-bridge",
    "partition-ring",
    "partition-random",
    "loss",
    "delay",
    "jitter",
    "duplicate",
    "clock",
    "power",
    "fsync-error",
    "slow-fsync",
    "full-disk",
];

/// The nemesis of that name.
#[must_use]
pub fn by_name(name: &str) -> Option<Box<dyn Nemesis>> {
    use disk::{FullDisk, Power, Sync};
    use network::{Loss, Shaper};
    use process::{Kill, Pause, Restart};
    if let Some(partition) = partition::Partition::by_name(name) {
        return Some(Box::new(partition));
    }
    Some(match name {
        "kill" => Box::new(Kill::default()),
        "pause" => Box::new(Pause::default()),
        "restart" => Box::new(Restart::default()),
        "loss" => Box::new(Loss::default()),
        "delay" => Box::new(Shaper::delay()),
        "jitter" => Box::new(Shaper::jitter()),
        "duplicate" => Box::new(Shaper::duplicate()),
        "clock" => Box::new(clock::Clocks::default()),
        "power" => Box::new(Power::default()),
        "fsync-error" => Box::new(Sync::error()),
        "slow-fsync" => Box::new(Sync::slow()),
        "full-disk" => Box::new(FullDisk::default()),
        _ => return None,
    })
}

/// What a nemesis needs of the cluster it is to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// Namespaces, and so root.
    pub root: bool,
    /// Disks of the nodes' own.
    pub loop_disk: bool,
    /// Clocks that can be moved.
    pub clocks: bool,
    /// Wires that can delay.
    pub taps: bool,
    /// The `strace` program, and leave to trace.
    pub strace: bool,
}

impl Needs {
    /// Both.
    #[must_use]
    pub fn and(self, other: Needs) -> Needs {
        Needs {
            root: self.root || other.root,
            loop_disk: self.loop_disk || other.loop_disk,
            clocks: self.clocks || other.clocks,
            taps: self.taps || other.taps,
            strace: self.strace || other.strace,
        }
    }

    fn met_by(self, cluster: &Cluster) -> Result<(), String> {
        let options = cluster.options();
        let missing = if self.root && options.isolation == Isolation::Loopback {
            "needs namespaces, so root"
        } else if self.loop_disk && options.disk == Disk::Plain {
            "needs disks of the nodes' own (loop devices, and mkfs and xfs_io of xfsprogs)"
        } else if self.clocks && !options.clocks {
            "needs clocks that can be moved (libfaketime)"
        } else if self.taps && !options.taps {
            "needs wires (TAP devices)"
        } else if self.strace && !runs("strace") {
            "needs strace"
        } else {
            return Ok(());
        };
        Err(missing.into())
    }
}

/// Whether a program is there.
fn runs(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Some of `from`, drawn as Jepsen does: one, a minority, a majority, or all if that is wanted. Gives the kind.
fn draw(rng: &mut StdRng, from: &[usize], of: usize, all: bool) -> (&'static str, Vec<usize>) {
    let minority = of.saturating_sub(1) / 2;
    let (kind, count) = match rng.random_range(0..if all { 4 } else { 3 }) {
        0 => ("one", 1),
        1 => ("minority", minority.max(1)),
        2 => ("majority", of / 2 + 1),
        _ => ("all", of),
    };
    (kind, some(rng, from, count))
}

/// `count` of `from`, in order; all if there are fewer.
fn some(rng: &mut StdRng, from: &[usize], count: usize) -> Vec<usize> {
    let mut nodes = from.to_vec();
    nodes.shuffle(rng);
    nodes.truncate(count);
    nodes.sort_unstable();
    nodes
}

fn nobody() -> Error {
    Error::Unable("no node runs that could be hit".into())
}

fn keyword(name: &str) -> Edn {
    Edn::Keyword(name.into())
}

fn integer(number: impl TryInto<i64>) -> Edn {
    Edn::Int(number.try_into().unwrap_or(i64::MAX))
}

/// A map of keywords.
fn map<const N: usize>(entries: [(&str, Edn); N]) -> Edn {
    Edn::Map(entries.into_iter().map(|(name, value)| (keyword(name), value)).collect())
}

/// Names of nodes.
fn names(cluster: &Cluster, nodes: &[usize]) -> Edn {
    Edn::Vector(cluster.names_of(nodes).into_iter().map(Edn::Str).collect())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn each_name_has_its_nemesis() {
        for name in NAMES {
            assert_eq!(by_name(name).map(|nemesis| nemesis.name()), Some(name));
        }
        assert!(by_name("partition-nothing").is_none());
    }

    #[test]
    fn victims_are_as_many_as_said() {
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..100 {
            let (kind, nodes) = draw(&mut rng, &[0, 1, 2, 3, 4], 5, true);
            let expected = match kind {
                "one" => 1,
                "minority" => 2,
                "majority" => 3,
                _ => 5,
            };
            assert_eq!(nodes.len(), expected, "{kind}");
            assert!(nodes.is_sorted());
        }
        assert_eq!(draw(&mut rng, &[], 5, true).1, []);
    }
}
