//! Networks that fall apart: which nodes stop to hear which others.

use std::collections::BTreeMap;

use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use super::{Act, Needs, Nemesis, keyword, map};
use crate::cluster::{Cluster, Error};
use crate::edn::Edn;
use crate::network::rules::Pair;

/// How a network falls apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A minority and a majority.
    Halves,
    /// One node, and all others.
    Isolate,
    /// Two parts, of which one still hears the other.
    OneWay,
    /// Two parts, and one node that hears both.
    Bridge,
    /// Each node hears a majority, no two the same one.
    Ring,
    /// Each pair by the throw of a coin, each direction on its own.
    Random,
}

/// All kinds, and the names of their nemeses.
const KINDS: [(&str, &str, Kind); 6] = [
    ("partition-halves", "halves", Kind::Halves),
    ("partition-isolate", "isolate", Kind::Isolate),
    ("partition-one-way", "one-way", Kind::OneWay),
    ("partition-bridge", "bridge", Kind::Bridge),
    ("partition-ring", "ring", Kind::Ring),
    ("partition-random", "random", Kind::Random),
];

/// `partition`, and each kind by its own name.
#[derive(Debug)]
pub struct Partition {
    name: &'static str,
    only: Option<Kind>,
    acted: u64,
}

impl Partition {
    /// The nemesis of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Partition> {
        if name == "partition" {
            return Some(Partition { name: "partition", only: None, acted: 0 });
        }
        let (name, _, kind) = KINDS.into_iter().find(|(full, ..)| *full == name)?;
        Some(Partition { name, only: Some(kind), acted: 0 })
    }
}

impl Nemesis for Partition {
    fn name(&self) -> &'static str {
        self.name
    }

    fn needs(&self) -> Needs {
        Needs { root: true, ..Needs::default() }
    }

    fn start<'a>(&'a mut self, cluster: &'a mut Cluster, rng: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let (_, word, drawn) = KINDS[rng.random_range(0..KINDS.len())];
            let (word, kind) = match self.only {
                Some(kind) => {
                    (KINDS.iter().find(|(_, _, k)| *k == kind).map_or(word, |(_, word, _)| word), kind)
                }
                None => (word, drawn),
            };
            let pairs = pairs(kind, cluster.len(), rng);
            let deaf = deaf(cluster, &pairs);
            let network = cluster.network().ok_or_else(|| Error::Unable("no network of its own".into()))?;
            network.block(self.name, pairs).await?;
            self.acted += 1;
            Ok(map([("partition", keyword(word)), ("deaf", deaf)]))
        })
    }

    fn stop<'a>(&'a mut self, cluster: &'a mut Cluster, _: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            if let Some(network) = cluster.network() {
                network.clear(self.name).await?;
            }
            Ok(map([]))
        })
    }

    fn acted(&self) -> u64 {
        self.acted
    }
}

/// Which nodes do not hear which others: Jepsen's grudge.
fn deaf(cluster: &Cluster, pairs: &[Pair]) -> Edn {
    let mut by_node: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (from, to) in pairs {
        by_node.entry(*to).or_default().push(*from);
    }
    let name = |at: usize| Edn::Str(cluster.names()[at].clone());
    let entry = |(to, from): (usize, Vec<usize>)| (name(to), Edn::Set(from.into_iter().map(name).collect()));
    Edn::Map(by_node.into_iter().map(entry).collect())
}

/// The pairs that are cut, in order; never none, if there are two nodes.
#[must_use]
pub fn pairs(kind: Kind, nodes: usize, rng: &mut StdRng) -> Vec<Pair> {
    let mut order: Vec<usize> = (0..nodes).collect();
    order.shuffle(rng);
    let minority = nodes / 2;
    let mut pairs = match kind {
        Kind::Halves => both(cross(&order[..minority], &order[minority..])),
        Kind::Isolate => both(cross(&order[..nodes.min(1)], &order[nodes.min(1)..])),
        Kind::OneWay => {
            // Either side may be the deaf one, and of any size.
            let cut = rng.random_range(1..nodes.max(2)).min(nodes);
            cross(&order[..cut], &order[cut..])
        }
        Kind::Bridge => {
            let rest = &order[nodes.min(1)..];
            both(cross(&rest[..rest.len() / 2], &rest[rest.len() / 2..]))
        }
        Kind::Ring => ring(&order),
        Kind::Random => {
            let all: Vec<Pair> = both(cross(&order, &order)).into_iter().filter(|(a, b)| a != b).collect();
            let some: Vec<Pair> = all.iter().copied().filter(|_| rng.random_bool(0.5)).collect();
            if some.is_empty() { all } else { some }
        }
    };
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

/// On a circle each node hears the neighbours that make a majority with it.
fn ring(order: &[usize]) -> Vec<Pair> {
    let nodes = order.len();
    let reach = (nodes / 2).div_ceil(2);
    let far = |a: usize, b: usize| {
        let around = a.abs_diff(b);
        around.min(nodes - around) > reach
    };
    let places = (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b)));
    places.filter(|(a, b)| far(*a, *b)).map(|(a, b)| (order[a], order[b])).collect()
}

fn cross(from: &[usize], to: &[usize]) -> Vec<Pair> {
    from.iter().flat_map(|a| to.iter().map(move |b| (*a, *b))).collect()
}

fn both(mut pairs: Vec<Pair>) -> Vec<Pair> {
    let back: Vec<Pair> = pairs.iter().map(|(a, b)| (*b, *a)).collect();
    pairs.extend(back);
    pairs
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    /// Whom node `to` hears, itself too.
    fn heard(pairs: &[Pair], to: usize) -> usize {
        5 - pairs.iter().filter(|(_, t)| *t == to).count()
    }

    #[test]
    fn each_kind_cuts_what_it_says() {
        for seed in 0..50 {
            let rng = &mut StdRng::seed_from_u64(seed);
            let sorted = |kind, rng: &mut StdRng| {
                let pairs = pairs(kind, 5, rng);
                let mut heard: Vec<usize> = (0..5).map(|to| heard(&pairs, to)).collect();
                heard.sort_unstable();
                assert!(pairs.iter().all(|(a, b)| a != b));
                heard
            };
            assert_eq!(sorted(Kind::Halves, rng), [2, 2, 3, 3, 3]);
            assert_eq!(sorted(Kind::Isolate, rng), [1, 4, 4, 4, 4]);
            assert_eq!(sorted(Kind::Bridge, rng), [3, 3, 3, 3, 5]);
            assert_eq!(sorted(Kind::Ring, rng), [3, 3, 3, 3, 3]);
            let one_way = pairs(Kind::OneWay, 5, rng);
            assert!(!one_way.is_empty() && one_way.iter().all(|(a, b)| !one_way.contains(&(*b, *a))));
            assert!(!pairs(Kind::Random, 5, rng).is_empty());
        }
    }

    #[test]
    fn small_clusters_fall_apart_too() {
        let rng = &mut StdRng::seed_from_u64(1);
        for (_, _, kind) in KINDS {
            assert!(pairs(kind, 1, rng).is_empty());
            let _ = pairs(kind, 2, rng);
            let _ = pairs(kind, 3, rng);
        }
    }
}
