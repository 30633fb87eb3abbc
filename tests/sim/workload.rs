//! What clients do: they read and write a few keys of every keyspace through all nodes, scan, try again, send
//! several requests at once, and ask for new keyspaces. In some scenarios they send batches too, or many requests on
//! one stream, or make a keyspace anew again and again.

use std::sync::Arc;
use std::time::Duration;

use quoral::types::policy::Conflicts;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::client::{Ask, Client, Deed, Part};
use crate::clock::now_ms;
use crate::cluster::{Cluster, mix};
use crate::draw::{Draw, Habit, More, reborn_space, space};
use crate::history::{Space, Wish};

/// How many tenants may get a keyspace.
const TENANTS: usize = 24;

/// The keys of a keyspace that clients use.
pub fn keys(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("key-{number}")).collect()
}

/// How many keys that are left alone now and then there are, in so many groups.
const COLD: (usize, usize) = (10, 5);
/// How long a group of them is used, in milliseconds; then it rests while the others are.
const WARM_MS: u64 = 2_500;
/// From when on in that time they are deleted rather than written.
const COOLS_MS: u64 = 1_700;

/// The keys that are left alone now and then, where tombstones go after a while.
pub fn cold_keys(draw: &Draw) -> Vec<String> {
    let count = if draw.setup.upkeep.purge.is_some() { COLD.0 } else { 0 };
    (0..count).map(|number| format!("cold-{number}")).collect()
}

/// Most items of a batch.
pub const BATCH_MOST: usize = 8;
/// How often a client of a scenario that has more than the usual does that.
const MORE: f64 = 0.35;

/// How clients are chosen what they do.
struct Habits {
    nodes: usize,
    spaces: Vec<Arc<Space>>,
    keys: Vec<String>,
    cold: Vec<String>,
    hop: f64,
    own_level: f64,
    habit: Habit,
    more: More,
    /// The keyspace that is made anew.
    reborn: Arc<Space>,
    /// In the order in which they come, evenly over the time of the chaos.
    tenants: Vec<Arc<Space>>,
    began_ms: u64,
    chaos_ms: u64,
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
        if self.habit != Habit::None && rng.random_bool(0.6) {
            return self.habitual(rng, client, ask).await;
        }
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

    /// What clients of this scenario are in the habit of.
    async fn habitual(&self, rng: &mut StdRng, client: &mut Client, ask: Ask) {
        let first = ask.node;
        // Each node once, in an order of its own.
        let step = if rng.random_bool(0.5) { 1 } else { self.nodes - 1 };
        let through = move |turn: usize| (first + turn * step) % self.nodes;
        match self.habit {
            Habit::None => {}
            Habit::Reload => {
                for turn in 0..self.nodes.min(4) {
                    client.get(&Ask { node: through(turn), ..ask.clone() }).await;
                }
            }
            Habit::Twice => {
                for turn in 0..2 {
                    client.forget(&ask);
                    client.put(&Ask { node: through(turn), ..ask.clone() }).await;
                }
            }
            Habit::Tenants => {
                let (at, last) = (now_ms().saturating_sub(self.began_ms), self.tenants.len() - 1);
                let newest = usize::try_from(at * self.tenants.len() as u64 / self.chaos_ms).unwrap_or(last);
                let number = newest.min(last).saturating_sub(rng.random_range(0..3));
                let space = self.tenants[number].clone();
                let ask = Ask { space: space.clone(), level: None, ..ask };
                match rng.random_range(0..3) {
                    0 => {
                        client.create(first, (*space).clone()).await;
                        client.put(&ask).await;
                    }
                    1 => drop(client.put(&ask).await),
                    _ => drop(client.get(&ask).await),
                }
            }
        }
    }

    /// What only clients of some scenarios do.
    async fn besides(&self, rng: &mut StdRng, client: &mut Client, node: usize) {
        let More { batches, streams, lives } = self.more;
        let kinds: Vec<u8> =
            [(batches, 0), (streams, 1), (lives, 2)].iter().filter(|(on, _)| *on).map(|(_, k)| *k).collect();
        match kinds[rng.random_range(0..kinds.len())] {
            0 => {
                let parts = self.parts(rng, node, BATCH_MOST);
                client.batch(&parts).await;
            }
            1 => {
                let parts = self.parts(rng, node, 16);
                client.stream(&parts).await;
            }
            _ => self.live(rng, client, node).await,
        }
    }

    /// A key that is used for a while, deleted, and left alone, so that its tombstone may be purged before it is
    /// written anew; or a look at any such key, which writes nothing but what it repairs.
    async fn cool(&self, rng: &mut StdRng, client: &mut Client, node: usize) {
        let at = now_ms().saturating_sub(self.began_ms);
        let warm = usize::try_from(at / WARM_MS).unwrap_or(0) % COLD.1;
        let looks = rng.random_bool(0.25);
        // Now and then one comes late, or early.
        let group = if looks || rng.random_bool(0.03) { rng.random_range(0..COLD.1) } else { warm };
        let of_group: Vec<&String> = self.cold.iter().skip(group).step_by(COLD.1).collect();
        let key = of_group[rng.random_range(0..of_group.len())].clone();
        let ask = Ask { key, ..self.ask(rng, node) };
        let deletes = if at % WARM_MS >= COOLS_MS { 0.85 } else { 0.3 };
        if looks {
            client.get(&ask).await;
        } else if rng.random_bool(deletes) {
            if ask.space.conflicts == Conflicts::Siblings {
                client.get(&ask).await;
            }
            client.delete(&ask).await;
        } else {
            client.put(&ask).await;
        }
    }

    /// Requests that are sent together, of any keyspaces; some of one key.
    fn parts(&self, rng: &mut StdRng, node: usize, most: usize) -> Vec<Part> {
        let count = rng.random_range(1..=most);
        let mut part = || {
            let mut ask = self.ask(rng, node);
            if self.more.lives && rng.random_bool(0.2) {
                ask = self.ask_reborn(rng, node);
            }
            let deed = match rng.random_range(0..20) {
                0..10 => Deed::Put,
                10..12 => Deed::Delete,
                _ => Deed::Get,
            };
            Part { ask, deed }
        };
        (0..count).map(|_| part()).collect()
    }

    fn ask_reborn(&self, rng: &mut StdRng, node: usize) -> Ask {
        let (space, n) = (self.reborn.clone(), self.reborn.n);
        let level = if rng.random_bool(0.8) { n / 2 + 1 } else { rng.random_range(1..=n) };
        Ask { space, level: Some(level), ..self.ask(rng, node) }
    }

    /// A keyspace is made, used, changed, and made anew.
    async fn live(&self, rng: &mut StdRng, client: &mut Client, node: usize) {
        let ask = self.ask_reborn(rng, node);
        let (space, n) = (&*self.reborn, self.reborn.n);
        match rng.random_range(0..100) {
            0..5 => {
                client.change(node, space, Wish::Drop).await;
                client.change(node, space, Wish::Create).await;
            }
            5..12 => client.change(node, space, Wish::Create).await,
            12..17 => {
                let wish = Wish::Update(rng.random_range(1..=n), rng.random_range(1..=n));
                client.change(node, space, wish).await;
            }
            17..50 => drop(client.get(&ask).await),
            50..56 => drop(client.delete(&ask).await),
            56..60 => drop(client.scan(&ask, &self.keys).await),
            _ => drop(client.put(&ask).await),
        }
    }

    /// Several requests at once, without contexts.
    async fn burst(&self, rng: &mut StdRng, client: &Client, ask: &Ask) {
        let mut requests = tokio::task::JoinSet::new();
        for number in 0..rng.random_range(2..=12) {
            let (mut client, ask) = (client.clone(), ask.clone());
            // What goes out at once can't carry one token along.
            client.has_session(false);
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

/// Tenants' keyspaces, which are the same to all clients of a scenario.
fn tenants(draw: &Draw) -> Vec<Arc<Space>> {
    let mut rng = StdRng::seed_from_u64(mix(draw.setup.seed, 5, 0));
    let nodes = draw.setup.zones.len();
    (0..TENANTS).map(|number| Arc::new(space(&mut rng, format!("tenant-{number}"), nodes))).collect()
}

/// Adds a client that goes on until the chaos ends.
pub fn add_client(cluster: &mut Cluster, draw: &Draw, number: usize, patience: Duration) {
    let habits = Habits {
        nodes: cluster.hosts.len(),
        spaces: draw.setup.spaces.clone(),
        keys: keys(draw.keys),
        cold: cold_keys(draw),
        hop: draw.hop,
        own_level: draw.own_level,
        habit: draw.habit,
        more: draw.more,
        reborn: Arc::new(reborn_space(draw.setup.seed, cluster.hosts.len())),
        tenants: tenants(draw),
        began_ms: cluster.now_ms(),
        chaos_ms: draw.chaos_ms,
    };
    let (pause_ms, until) = (draw.pause_ms, cluster.now_ms() + draw.chaos_ms + 500);
    let (names, recorder) = (cluster.node_names(), cluster.recorder.clone());
    let mut rng = StdRng::seed_from_u64(mix(draw.setup.seed, 3, number as u64));
    let mut extra = StdRng::seed_from_u64(mix(draw.setup.seed, 13, number as u64));
    let mut apart = StdRng::seed_from_u64(mix(draw.setup.seed, 19, number as u64));
    let has_session = mix(draw.setup.seed, 9, number as u64).is_multiple_of(3);
    cluster.client(&format!("c{}", number + 1), async move {
        let mut client = Client::new(number, &names, patience, recorder);
        client.has_session(has_session);
        let mut node = rng.random_range(0..habits.nodes);
        while now_ms() < until {
            if rng.random_bool(habits.hop) {
                node = rng.random_range(0..habits.nodes);
            }
            if !habits.cold.is_empty() && apart.random_bool(0.5) {
                habits.cool(&mut apart, &mut client, node).await;
            } else if habits.more.is_any() && extra.random_bool(MORE) {
                habits.besides(&mut extra, &mut client, node).await;
            } else {
                habits.turn(&mut rng, &mut client, node).await;
            }
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..=pause_ms))).await;
        }
    });
}
