//! Disks that lose power, fail, are slow, or are full.

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::{Act, Needs, Nemesis, draw, integer, keyword, map, names, nobody, some};
use crate::cluster::Cluster;
use crate::edn::Edn;

/// `power`: machines lose power at one moment, and with it all that was not synced; some, or all.
#[derive(Debug, Default)]
pub struct Power {
    off: Vec<usize>,
    acted: u64,
}

impl Nemesis for Power {
    fn name(&self) -> &'static str {
        "power"
    }

    fn needs(&self) -> Needs {
        Needs { root: true, loop_disk: true, ..Needs::default() }
    }

    fn start<'a>(&'a mut self, cluster: &'a mut Cluster, rng: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let (kind, nodes) = draw(rng, &cluster.active(), cluster.len(), true);
            if nodes.is_empty() {
                return Err(nobody());
            }
            self.off.extend(&nodes);
            cluster.cut_power(&nodes).await?;
            self.acted += 1;
            Ok(map([("power-cut", keyword(kind)), ("nodes", names(cluster, &nodes))]))
        })
    }

    fn stop<'a>(&'a mut self, cluster: &'a mut Cluster, _: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let nodes = std::mem::take(&mut self.off);
            for at in &nodes {
                cluster.start_node(*at).await?;
            }
            Ok(map([("started", names(cluster, &nodes))]))
        })
    }

    fn acted(&self) -> u64 {
        self.acted
    }
}

/// `fsync-error` and `slow-fsync`: calls that put data onto the disk fail with EIO, or take long.
#[derive(Debug)]
pub struct Sync {
    fails: bool,
    hit: Vec<usize>,
    acted: u64,
}

impl Sync {
    /// They fail. What is on the disk is in doubt then, so those nodes are killed and started at the end.
    #[must_use]
    pub fn error() -> Sync {
        Sync { fails: true, hit: Vec::new(), acted: 0 }
    }

    /// They take long.
    #[must_use]
    pub fn slow() -> Sync {
        Sync { fails: false, hit: Vec::new(), acted: 0 }
    }

    /// What is done, for people and for `strace`.
    fn injection(&self, rng: &mut StdRng) -> (Edn, String) {
        if !self.fails {
            let ms = rng.random_range(20..=1_000);
            return (map([("ms", integer(ms))]), format!("delay_enter={ms}ms"));
        }
        // Counted by each thread on its own.
        let from = rng.random_range(1..=5);
        if rng.random_bool(0.5) {
            (map([("from-call", integer(from))]), format!("error=EIO:when={from}+"))
        } else {
            (map([("only-call", integer(from))]), format!("error=EIO:when={from}"))
        }
    }
}

impl Nemesis for Sync {
    fn name(&self) -> &'static str {
        if self.fails { "fsync-error" } else { "slow-fsync" }
    }

    fn needs(&self) -> Needs {
        Needs { root: true, strace: true, ..Needs::default() }
    }

    fn start<'a>(&'a mut self, cluster: &'a mut Cluster, rng: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let mut free = cluster.active();
            free.retain(|at| cluster.nodes()[*at].tracer.is_none());
            // A failing disk is one machine's misfortune, slow ones may be many.
            let nodes = if self.fails {
                let count = rng.random_range(1..=(cluster.len().saturating_sub(1) / 2).max(1));
                some(rng, &free, count)
            } else {
                draw(rng, &free, cluster.len(), true).1
            };
            if nodes.is_empty() {
                return Err(nobody());
            }
            let (how, what) = self.injection(rng);
            for at in &nodes {
                self.hit.push(*at);
                if self.fails {
                    cluster.excuse(*at, self.name());
                }
                cluster.tamper(*at, what.clone()).await?;
            }
            self.acted += 1;
            Ok(map([(self.name(), how), ("nodes", names(cluster, &nodes))]))
        })
    }

    fn stop<'a>(&'a mut self, cluster: &'a mut Cluster, _: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let nodes = std::mem::take(&mut self.hit);
            let mut calls = 0;
            for at in &nodes {
                calls += cluster.leave_alone(*at).await?;
                // One that another nemesis has ended stays so.
                if self.fails && cluster.nodes()[*at].pid().is_some() {
                    cluster.kill(*at).await;
                    cluster.start_node(*at).await?;
                }
            }
            Ok(map([("calls", integer(calls)), ("nodes", names(cluster, &nodes))]))
        })
    }

    fn acted(&self) -> u64 {
        self.acted
    }
}

/// `full-disk`: no room is left on the disks of some nodes, or all.
///
/// A node goes on in what it has allocated already, some hundred kB: it feels it only when more is written.
#[derive(Debug, Default)]
pub struct FullDisk {
    full: Vec<usize>,
    acted: u64,
}

impl Nemesis for FullDisk {
    fn name(&self) -> &'static str {
        "full-disk"
    }

    fn needs(&self) -> Needs {
        Needs { root: true, loop_disk: true, ..Needs::default() }
    }

    fn start<'a>(&'a mut self, cluster: &'a mut Cluster, rng: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let (kind, nodes) = draw(rng, &cluster.active(), cluster.len(), true);
            if nodes.is_empty() {
                return Err(nobody());
            }
            for at in &nodes {
                self.full.push(*at);
                cluster.excuse(*at, "full-disk");
                cluster.fill_disk(*at).await?;
            }
            self.acted += 1;
            Ok(map([("full", keyword(kind)), ("nodes", names(cluster, &nodes))]))
        })
    }

    /// Those that ended are started; those that run must find the room by themselves.
    fn stop<'a>(&'a mut self, cluster: &'a mut Cluster, _: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let nodes = std::mem::take(&mut self.full);
            for at in &nodes {
                cluster.free_disk(*at).await?;
                if cluster.nodes()[*at].has_died() {
                    cluster.start_node(*at).await?;
                }
            }
            Ok(map([("nodes", names(cluster, &nodes))]))
        })
    }

    fn acted(&self) -> u64 {
        self.acted
    }
}
