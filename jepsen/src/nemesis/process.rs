//! Processes that are killed, stopped and started again.

use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::{Act, Needs, Nemesis, draw, integer, keyword, map, names, nobody, some};
use crate::cluster::Cluster;

/// `kill`: SIGKILL to some or all; they are started again at the end.
#[derive(Debug, Default)]
pub struct Kill {
    killed: Vec<usize>,
    acted: u64,
}

impl Nemesis for Kill {
    fn name(&self) -> &'static str {
        "kill"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn start<'a>(&'a mut self, cluster: &'a mut Cluster, rng: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let (kind, nodes) = draw(rng, &cluster.active(), cluster.len(), true);
            if nodes.is_empty() {
                return Err(nobody());
            }
            self.killed.extend(&nodes);
            cluster.kill_many(&nodes).await;
            self.acted += 1;
            Ok(map([("kill", keyword(kind)), ("nodes", names(cluster, &nodes))]))
        })
    }

    fn stop<'a>(&'a mut self, cluster: &'a mut Cluster, _: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let nodes = std::mem::take(&mut self.killed);
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

/// `pause`: SIGSTOP to some or all, and SIGCONT at the end.
#[derive(Debug, Default)]
pub struct Pause {
    paused: Vec<usize>,
    acted: u64,
}

impl Nemesis for Pause {
    fn name(&self) -> &'static str {
        "pause"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn start<'a>(&'a mut self, cluster: &'a mut Cluster, rng: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let (kind, nodes) = draw(rng, &cluster.active(), cluster.len(), true);
            if nodes.is_empty() {
                return Err(nobody());
            }
            self.paused.extend(&nodes);
            nodes.iter().for_each(|at| cluster.pause(*at));
            self.acted += 1;
            Ok(map([("pause", keyword(kind)), ("nodes", names(cluster, &nodes))]))
        })
    }

    fn stop<'a>(&'a mut self, cluster: &'a mut Cluster, _: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let nodes = std::mem::take(&mut self.paused);
            nodes.iter().for_each(|at| cluster.resume(*at));
            Ok(map([("resumed", names(cluster, &nodes))]))
        })
    }

    fn acted(&self) -> u64 {
        self.acted
    }
}

/// `restart`: nodes are ended and started again, several times quickly, often before they are ready.
#[derive(Debug, Default)]
pub struct Restart {
    acted: u64,
}

impl Nemesis for Restart {
    fn name(&self) -> &'static str {
        "restart"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn start<'a>(&'a mut self, cluster: &'a mut Cluster, rng: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let rounds = rng.random_range(3..=8);
            let mut hit = Vec::new();
            for _ in 0..rounds {
                for at in some(rng, &cluster.active(), 1) {
                    if rng.random_bool(0.5) {
                        cluster.kill(at).await;
                    } else {
                        cluster.terminate(at, Duration::from_secs(2)).await;
                    }
                    cluster.start_node(at).await?;
                    hit.push(at);
                }
                sleep(Duration::from_millis(rng.random_range(20..700))).await;
            }
            if hit.is_empty() {
                return Err(nobody());
            }
            self.acted += 1;
            Ok(map([("restarts", integer(hit.len())), ("nodes", names(cluster, &hit))]))
        })
    }

    fn stop<'a>(&'a mut self, _: &'a mut Cluster, _: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move { Ok(map([])) })
    }

    fn acted(&self) -> u64 {
        self.acted
    }
}
