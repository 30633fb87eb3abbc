//! What clients do: they read and write a few keys of every keyspace through all nodes, scan, try again, send
//! several requests at once, and ask for new keyspaces.

use std::sync::Arc;
use std::time::Duration;

use quoral::types::policy::Conflicts;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::client::{Ask, Client};
use crate::clock::now_ms;
use crate::cluster::{Cluster, mix};
use crate::draw::{Draw, space};
use crate::history::Space;

/// The keys of a keyspace that clients use.
pub fn keys(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("key-{number}")).collect()
}

/// How clients are chosen what they do.
struct Habits {
    nodes: usize,
    spaces: Vec<Arc<Space>>,
    keys: Vec<String>,
    hop: f64,
    own_level: f64,
}

impl Habits {
    fn ask(&self, rng: &mut StdRng, node: usize) -> Ask {
        let space = self.spaces[rng.random_range(0..self.spaces.len())].clone();
        let level = rng.random_bool(self.own_level).then(|| rng.random_range(1..=space.n));
        let key = self.keys[rng.random_range(0..self.keys.len())].clone();
        Ask { node, space, key, timeout_ms: rng.random_range(100..=1_500), level }
    }

    async fn turn(&self, rng: &mut StdRng, client: &mut Client, node: usize) {
        let ask = self.ask(rng, node);
        match rng.random_range(0..80) {
            0..34 => drop(client.get(&ask).await),
            34..42 => drop(client.delete(&ask).await),
            42..46 => {
                client.forget(&ask);
                client.put(&ask).await;
            }
            46..50 => drop(client.scan(&ask, &self.keys).await),
            50..60 if ask.space.conflicts == Conflicts::Siblings => {
                client.get(&ask).await;
                client.put(&ask).await;
            }
            60..65 => {
                // A new write after one that failed, through another node: whatever became of the first.
                for attempt in 0..3 {
                    let node = (node + attempt) % self.nodes;
                    if client.put(&Ask { node, ..ask.clone() }).await {
                        break;
                    }
                }
            }
            65..67 => self.burst(rng, client, &ask).await,
            72..75 => {
                let nodes: Vec<usize> = (0..3).map(|_| rng.random_range(0..self.nodes)).collect();
                client.put_named(&ask, &nodes, rng.random_bool(0.4)).await;
            }
            67 => {
                let name = format!("made-{}", rng.random_range(0..6));
                client.create(node, space(rng, name, self.nodes)).await;
            }
            68..72 => drop(client.get(&Ask { level: Some(ask.space.n), ..ask }).await),
            _ => drop(client.put(&ask).await),
        }
    }

    /// Several requests at once, without contexts.
    async fn burst(&self, rng: &mut StdRng, client: &Client, ask: &Ask) {
        let mut requests = tokio::task::JoinSet::new();
        for number in 0..rng.random_range(2..=12) {
            let (mut client, ask) = (client.clone(), ask.clone());
            client.forget(&ask);
            requests.spawn(async move {
                match number % 3 {
                    0 => client.put(&ask).await,
                    _ => client.get(&ask).await,
                }
            });
        }
        while requests.join_next().await.is_some() {}
    }
}

/// Adds a client that goes on until the chaos ends.
pub fn add_client(cluster: &mut Cluster, draw: &Draw, number: usize, patience: Duration) {
    let habits = Habits {
        nodes: cluster.hosts.len(),
        spaces: draw.setup.spaces.clone(),
        keys: keys(draw.keys),
        hop: draw.hop,
        own_level: draw.own_level,
    };
    let (pause_ms, until) = (draw.pause_ms, cluster.now_ms() + draw.chaos_ms + 500);
    let (names, recorder) = (cluster.node_names(), cluster.recorder.clone());
    let mut rng = StdRng::seed_from_u64(mix(draw.setup.seed, 3, number as u64));
    cluster.client(&format!("c{}", number + 1), async move {
        let mut client = Client::new(number, &names, patience, recorder);
        let mut node = rng.random_range(0..habits.nodes);
        while now_ms() < until {
            if rng.random_bool(habits.hop) {
                node = rng.random_range(0..habits.nodes);
            }
            habits.turn(&mut rng, &mut client, node).await;
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..=pause_ms))).await;
        }
    });
}
