//! Preference lists: the home replicas of a partition, then the fallbacks that may stand in for them.
//!
//! Every coordinator with the same map computes the same lists, so a sloppy write and the read that looks
//! for it meet at the same fallbacks. Fallbacks are in rendezvous order (by a hash of partition and node),
//! so the load of a dead node spreads over all others; zones without a home come first.
//!
//! Invariants:
//! 1. Homes and fallbacks together are all members, each once.

use super::layout::ClusterMap;
use crate::types::ids::{NodeId, PartitionId};
use crate::types::policy::Keyspace;

/// As what a node gets a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It owns the partition.
    Home,
    /// It stands in for this home replica.
    FallbackFor(NodeId),
}

/// The replicas of one partition for one keyspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferenceList {
    /// The `n` owners, in order of preference.
    pub homes: Vec<NodeId>,
    /// All other members, in the order in which they stand in.
    pub fallbacks: Vec<NodeId>,
}

impl PreferenceList {
    /// The nodes that should take a write now: each home that `is_up`, and for each that isn't the next
    /// fallback that is, as long as there are any.
    pub fn annotated(&self, is_up: impl Fn(NodeId) -> bool) -> Vec<(NodeId, Role)> {
        let mut fallbacks = self.fallbacks.iter().filter(|node| is_up(**node));
        let stand_in = |home: &NodeId| match is_up(*home) {
            true => Some((*home, Role::Home)),
            false => fallbacks.next().map(|node| (*node, Role::FallbackFor(*home))),
        };
        self.homes.iter().filter_map(stand_in).collect()
    }
}

/// The home replicas of `partition`, in order of preference; none if the map has no such partition.
pub fn homes(map: &ClusterMap, keyspace: &Keyspace, partition: PartitionId) -> Vec<NodeId> {
    indexes(map, keyspace, partition).iter().map(|index| map.layout.members[usize::from(*index)].id).collect()
}

fn indexes<'a>(map: &'a ClusterMap, keyspace: &Keyspace, partition: PartitionId) -> &'a [u16] {
    let owners: &[u16] = map.layout.owners.get(usize::from(partition.0)).map_or(&[], |owners| owners);
    &owners[..owners.len().min(keyspace.n.into())]
}

/// Homes and fallbacks of `partition`.
pub fn preference_list(map: &ClusterMap, keyspace: &Keyspace, partition: PartitionId) -> PreferenceList {
    let members = &map.layout.members;
    let owners = indexes(map, keyspace, partition);
    let is_home = |index: &usize| owners.iter().any(|owner| usize::from(*owner) == *index);
    let mut zones: Vec<&str> =
        owners.iter().map(|owner| members[usize::from(*owner)].zone.as_str()).collect();
    let mut others: Vec<usize> = (0..members.len()).filter(|index| !is_home(index)).collect();
    others.sort_by_cached_key(|index| rendezvous(partition, members[*index].id));
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for index in others {
        if zones.contains(&members[index].zone.as_str()) {
            rest.push(members[index].id);
        } else {
            zones.push(&members[index].zone);
            first.push(members[index].id);
        }
    }
    first.append(&mut rest);
    PreferenceList { homes: homes(map, keyspace, partition), fallbacks: first }
}

/// The node's rank among the fallbacks of a partition; the least stands in first.
fn rendezvous(partition: PartitionId, node: NodeId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&partition.0.to_be_bytes()).update(&node.0.to_be_bytes());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::ring::layout::{Member, NewKeyspace};
    use crate::ring::partition::Partitions;
    use crate::types::policy::Conflicts;

    fn map(zones: &[&str]) -> ClusterMap {
        let member = |(index, zone): (usize, &&str)| Member {
            id: NodeId(index as u64 + 1),
            name: format!("n{index}"),
            zone: zone.to_string(),
            weight: 1,
            address: format!("h{index}:7401"),
        };
        let nodes = zones.iter().enumerate().map(member).collect();
        ClusterMap::bootstrap("test", Partitions::new(64).expect("valid"), nodes).expect("valid")
    }

    #[test]
    fn homes_are_the_first_n_owners() {
        let map = map(&["a", "b", "c", "a", "b"]);
        let mut spec = NewKeyspace::with_defaults("wide", Conflicts::Lww);
        spec.n = Some(5);
        let map = map.with_keyspace(spec).expect("valid");
        let (narrow, wide) = (map.keyspace("default").expect("there"), map.keyspace("wide").expect("there"));
        for partition in map.partitions.all() {
            let list = preference_list(&map, narrow, partition);
            assert_eq!(list.homes.len(), 3);
            assert_eq!(list.homes, homes(&map, wide, partition)[..3], "a prefix of the wider keyspace's");
            assert!(preference_list(&map, wide, partition).fallbacks.is_empty());
        }
        assert!(homes(&map, narrow, PartitionId(64)).is_empty(), "no such partition");
    }

    #[test]
    fn fallbacks_are_all_others_new_zones_first_and_mixed() {
        let map = map(&["a", "b", "c", "d", "a", "b", "c", "d", "a"]);
        let keyspace = map.keyspace("default").expect("there");
        let mut first = BTreeSet::new();
        for partition in map.partitions.all() {
            let list = preference_list(&map, keyspace, partition);
            let all: BTreeSet<NodeId> = list.homes.iter().chain(&list.fallbacks).copied().collect();
            assert_eq!((all.len(), list.homes.len() + list.fallbacks.len()), (9, 9));
            let zone = |id: &NodeId| map.member(*id).expect("a member").zone.clone();
            let mut zones: BTreeSet<String> = list.homes.iter().map(zone).collect();
            assert!(zones.insert(zone(&list.fallbacks[0])), "the zone without a home comes first");
            let mut ranks: Vec<_> = list.fallbacks[1..].iter().map(|id| rendezvous(partition, *id)).collect();
            assert!(ranks.is_sorted());
            ranks.dedup();
            first.insert(list.fallbacks[1]);
        }
        assert!(first.len() >= 7, "each node is some partition's next fallback: {first:?}");
    }

    #[test]
    fn a_fallback_stands_in_for_each_home_that_is_down() {
        let list = PreferenceList {
            homes: vec![NodeId(1), NodeId(2), NodeId(3)],
            fallbacks: vec![NodeId(4), NodeId(5), NodeId(6)],
        };
        let got = list.annotated(|node| ![1, 3, 4].contains(&node.0));
        let one = (NodeId(5), Role::FallbackFor(NodeId(1)));
        let three = (NodeId(6), Role::FallbackFor(NodeId(3)));
        assert_eq!(got, vec![one, (NodeId(2), Role::Home), three]);
        let got = list.annotated(|node| node.0 == 2);
        assert_eq!(got, vec![(NodeId(2), Role::Home)], "no fallback is up");
    }
}
