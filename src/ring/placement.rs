//! Placement: which nodes own which partitions, computed from the old placement and the nodes wanted.
//!
//! A pure function, so that a planned change can be shown before it is made, and every node computes the
//! same from the same bootstrap list. The owners of a partition are a list; a keyspace of `n` replicas uses
//! the first `n`. So every prefix should be a good placement of its own. How:
//!
//! 1. The first [`EXACT`] owners, as a set, by a flow of least cost (`flow`): loads within one replica of
//!    the fair shares (`share`), zones spread, no needless move.
//! 2. Their order: the set of the first two is a flow within the set of three, the primaries one within the
//!    set of two; each with the shares of its own length.
//! 3. Each further owner by a flow that adds one node to each list.
//!
//! Step 1 is exact: loads within ±1 and the least moves possible. Steps 2 and 3 are bound by the steps before
//! them; where no exact answer is left, the bounds on loads are widened by as little as is needed, for all
//! nodes alike, and zones are spread in every prefix all the same.
//!
//! Invariants of a [`Placement`]:
//! 1. Each partition has the same number of owners, all distinct.
//! 2. The first k owners lie in as many zones as there are, or in k.
//!
//! It does not decide when to move data, nor who is alive.

use std::collections::{BTreeMap, BTreeSet};

use super::flow;
use super::partition::Partitions;
use super::share::{self, Share};
use crate::types::error::Invalid;
use crate::types::ids::NodeId;
use crate::types::limits;

/// The length of prefix that is placed exactly: the usual `n`.
pub const EXACT: usize = 3;

/// A node that is to own partitions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// Who.
    pub id: NodeId,
    /// What may fail together with it.
    pub zone: String,
    /// Its capacity, relative to the others'.
    pub weight: u32,
}

/// The owners of all partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The nodes, by id.
    pub nodes: Vec<NodeId>,
    /// For each partition its owners in order of preference, as indexes into `nodes`.
    pub owners: Vec<Vec<u16>>,
    /// What could not be met of what was wished, and why; for people.
    pub notes: Vec<String>,
}

impl Placement {
    /// How many replicas each node has, by index, counting the first `n` owners of each partition.
    pub fn loads(&self, n: usize) -> Vec<u32> {
        let mut loads = vec![0; self.nodes.len()];
        for node in self.owners.iter().flat_map(|owners| owners.iter().take(n)) {
            loads[usize::from(*node)] += 1;
        }
        loads
    }

    /// How many replicas are here and were not in `old`, counting the first `n` owners: what must be copied.
    pub fn moves(&self, old: &Placement, n: usize) -> usize {
        let ids = |p: &Placement, owners: &[u16]| -> BTreeSet<NodeId> {
            owners.iter().take(n).map(|node| p.nodes[usize::from(*node)]).collect()
        };
        let both = self.owners.iter().zip(&old.owners);
        both.map(|(new, former)| ids(self, new).difference(&ids(old, former)).count()).sum()
    }
}

/// Places `n` replicas of each partition on the `wanted` nodes, with the fewest moves against `old`.
pub fn place(
    old: Option<&Placement>,
    wanted: &[Wanted],
    partitions: Partitions,
    n: u8,
) -> Result<Placement, Invalid> {
    let n = usize::from(n);
    check(old, wanted, partitions, n)?;
    let wanted: BTreeMap<NodeId, &Wanted> = wanted.iter().map(|node| (node.id, node)).collect();
    let nodes: Vec<NodeId> = wanted.keys().copied().collect();
    let field = Field::new(old, &wanted, partitions);
    let (owners, slack) = field.lists(n);
    // Never a list that is too short: keyspaces count on invariant 1.
    if owners.iter().any(|list| list.len() != n) {
        return Err(Invalid::new("nodes", "no complete placement was found; this is a fault of Quoral"));
    }
    let mut notes = field.notes(&nodes, n);
    if slack > 0 {
        notes.push(format!(
            "beyond {EXACT} replicas some nodes are up to {slack} further from their share: \
             the owners before leave no better choice"
        ));
    }
    Ok(Placement { nodes, owners, notes })
}

fn check(old: Option<&Placement>, wanted: &[Wanted], q: Partitions, n: usize) -> Result<(), Invalid> {
    if wanted.is_empty() {
        return Err(Invalid::new("nodes", "must not be empty"));
    }
    Invalid::check_max("nodes", wanted.len(), limits::NODES_MAX, "nodes")?;
    let ids: BTreeSet<NodeId> = wanted.iter().map(|node| node.id).collect();
    if ids.len() < wanted.len() {
        return Err(Invalid::new("nodes", "name one node id twice"));
    }
    if n == 0 || n > wanted.len() || n > limits::N_MAX.into() {
        let most = wanted.len().min(limits::N_MAX.into());
        return Err(Invalid::new(
            "n",
            format!("is {n}, must be from 1 to {most} with {} nodes", wanted.len()),
        ));
    }
    for node in wanted {
        check_weight("weight", node.weight)?;
    }
    let fits = |old: &Placement| {
        let known = |node: &u16| usize::from(*node) < old.nodes.len();
        old.owners.len() == q.count() as usize && old.owners.iter().flatten().all(known)
    };
    if !old.is_none_or(fits) {
        return Err(Invalid::new("old", format!("is not a placement of {} partitions", q.count())));
    }
    Ok(())
}

/// Refuses a weight outside 1 to 1000.
pub(super) fn check_weight(field: &str, weight: u32) -> Result<(), Invalid> {
    if (1..=limits::WEIGHT_MAX).contains(&weight) {
        return Ok(());
    }
    Err(Invalid::new(field, format!("is {weight}, must be from 1 to {}", limits::WEIGHT_MAX)))
}

/// What is placed: nodes, zones and old owners as indexes.
struct Field {
    zone_names: Vec<String>,
    zones: Vec<u16>,
    weights: Vec<u64>,
    /// Old owners that are still wanted, by place in the old list.
    old: Vec<Vec<Option<u16>>>,
}

impl Field {
    fn new(old: Option<&Placement>, wanted: &BTreeMap<NodeId, &Wanted>, partitions: Partitions) -> Field {
        let names: BTreeSet<&String> = wanted.values().map(|node| &node.zone).collect();
        let zone_names: Vec<String> = names.into_iter().cloned().collect();
        let zone_of: BTreeMap<&String, u16> = zone_names.iter().zip(0..).collect();
        let zones = wanted.values().map(|node| zone_of[&node.zone]).collect();
        let index: BTreeMap<NodeId, u16> = wanted.keys().copied().zip(0..).collect();
        let mut old_owners = vec![Vec::new(); partitions.count() as usize];
        if let Some(old) = old {
            let now = |node: &u16| index.get(&old.nodes[usize::from(*node)]).copied();
            for (partition, owners) in old.owners.iter().enumerate() {
                old_owners[partition] = owners.iter().map(now).collect();
            }
        }
        let weights = wanted.values().map(|node| node.weight.into()).collect();
        Field { zone_names, zones, weights, old: old_owners }
    }

    fn shares(&self, n: usize) -> Vec<Share> {
        share::shares(&self.weights, &self.zones, self.old.len() as u64, n)
    }

    /// The lists of owners, and by how much loads beyond the exact prefix are outside their bounds.
    fn lists(&self, n: usize) -> (Vec<Vec<u16>>, u32) {
        let exact = n.min(EXACT);
        let mut slack = 0;
        let none = vec![Vec::new(); self.old.len()];
        let mut sets = vec![none.clone(); exact + 1];
        for k in (1..=exact).rev() {
            let within = if k < exact { Some(sets[k + 1].as_slice()) } else { None };
            let solution = self.flow(k, k, &none, within);
            sets[k] = solution.owners;
        }
        let mut lists = none;
        for set in &sets[1..] {
            for (list, set) in lists.iter_mut().zip(set) {
                let next: Vec<u16> = set.iter().filter(|node| !list.contains(node)).copied().collect();
                list.extend(next);
            }
        }
        for k in exact + 1..=n {
            let solution = self.flow(k, 1, &lists, None);
            slack = slack.max(solution.slack);
            lists.iter_mut().zip(solution.owners).for_each(|(list, more)| list.extend(more));
        }
        (lists, slack)
    }

    /// Fills `slots` slots of each partition, so that with those `fixed` there are `k` owners.
    fn flow(
        &self,
        k: usize,
        slots: usize,
        fixed: &[Vec<u16>],
        allowed: Option<&[Vec<u16>]>,
    ) -> flow::Solution {
        let bounds: Vec<(u32, u32)> =
            self.shares(k).iter().map(|share| (share.floor(), share.ceil())).collect();
        let first = |owners: &Vec<Option<u16>>| owners.iter().take(k).flatten().copied().collect();
        let old: Vec<Vec<u16>> = self.old.iter().map(first).collect();
        let spread = k.min(self.zone_names.len());
        let zones = &self.zones;
        flow::solve(flow::Problem { zones, spread, fixed, allowed, old: &old, slots, bounds: &bounds })
    }

    /// Where zones or the rule of one replica a node keep a wish from being met.
    fn notes(&self, nodes: &[NodeId], n: usize) -> Vec<String> {
        let mut notes = Vec::new();
        let zone_count = self.zone_names.len();
        if zone_count < n {
            notes.push(format!(
                "not enough zones: {n} replicas in {zone_count} zone{}, so some share a zone",
                if zone_count == 1 { "" } else { "s" }
            ));
        }
        let total = self.weights.iter().sum::<u64>() as f64;
        let replicas = (n * self.old.len()) as f64;
        for (index, share) in self.shares(n).into_iter().enumerate() {
            let wished = replicas * self.weights[index] as f64 / total;
            if (share.value() - wished).abs() < 1.0 {
                continue;
            }
            let why = if share.value() < wished && share.floor() as usize == self.old.len() {
                "it already owns a replica of every partition".to_string()
            } else if zone_count > 1 && zone_count <= n && share.value() > wished {
                format!("each of the {zone_count} zones keeps a replica of every partition")
            } else if zone_count >= n && share.value() < wished {
                let zone = &self.zone_names[usize::from(self.zones[index])];
                format!("zone {zone} owns at most one replica of a partition")
            } else {
                "other nodes can't own what their weight asks for".to_string()
            };
            notes.push(format!(
                "node {}: weight {} asks for {wished:.0} replicas, it gets {:.0}: {why}",
                nodes[index],
                self.weights[index],
                share.value()
            ));
        }
        notes
    }
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
