//! Where a request goes. Pure.
//!
//! Any node answers for any key; a *home replica* of the key does it without handing it on. A write with a request
//! id runs on the first home replica that is up, so writes prefer that one. Reads take turns among the homes.
//!
//! The [`Table`] is what the cluster said of itself at some time. It may be old, wrong, or not there at all: it
//! changes how far a request travels, never what it means.
//!
//! Invariants:
//! 1. An endpoint known to be dead is tried only when all are.
//! 2. Among the others, the one that was tried least comes first; so a retry goes elsewhere while there is elsewhere.
//! 3. A connection is awaited only if there is no other that is open.

use std::collections::BTreeMap;

use crate::proto;

/// The keyspace of a request that names none.
pub const DEFAULT_KEYSPACE: &str = "default";

/// First 8 bytes, big endian, of blake3 over keyspace name, a zero byte, and the partition key.
pub fn position(keyspace: &str, partition_key: &[u8]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(keyspace.as_bytes()).update(&[0]).update(partition_key);
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    u64::from_be_bytes(first)
}

/// The partition that a position is in: its top bits. None if `partitions` is not a power of two.
pub fn partition(position: u64, partitions: usize) -> Option<usize> {
    match partitions {
        1 => Some(0),
        _ if partitions.is_power_of_two() => {
            usize::try_from(position >> (u64::BITS - partitions.trailing_zeros())).ok()
        }
        _ => None,
    }
}

/// Which key a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// Its keyspace.
    pub keyspace: &'a str,
    /// Its partition key.
    pub key: &'a [u8],
}

/// Who owns what, and where they are: what the cluster said of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// The layout's version.
    pub layout_version: u64,
    /// Client addresses of the nodes that were not known to be down, by id.
    addresses: BTreeMap<String, String>,
    /// Ids of the owners of each partition, in order of preference.
    owners: Vec<Vec<String>>,
    /// How many of them are home replicas, by keyspace.
    replicas: BTreeMap<String, usize>,
    /// Whether all nodes are up and have said where they are.
    pub is_complete: bool,
}

impl Table {
    /// Puts the cluster's answers together.
    pub fn new(
        status: proto::StatusResponse,
        layout: proto::LayoutResponse,
        keyspaces: proto::ListKeyspacesResponse,
    ) -> Table {
        let is_up = |state: &str| state == "alive" || state == "suspect";
        let is_there = |node: &proto::NodeStatus| is_up(&node.state) && !node.client_address.is_empty();
        let is_complete = status.nodes.iter().filter(|node| node.state != "left").all(is_there);
        let nodes = status.nodes.into_iter().filter(is_there);
        let n = |info: proto::KeyspaceInfo| (info.name, usize::try_from(info.n).unwrap_or(0));
        Table {
            layout_version: layout.layout_version,
            addresses: nodes.map(|node| (node.node_id, node.client_address)).collect(),
            owners: layout.partitions.into_iter().map(|partition| partition.owners).collect(),
            replicas: keyspaces.keyspaces.into_iter().map(n).collect(),
            is_complete,
        }
    }

    /// Addresses of all nodes that were not known to be down.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.addresses.values().map(String::as_str)
    }

    /// Addresses of the home replicas of a key, in order of preference; empty if they are not known.
    pub fn homes(&self, place: Place<'_>) -> Vec<&str> {
        let at = partition(position(place.keyspace, place.key), self.owners.len());
        let (Some(owners), Some(n)) =
            (at.and_then(|at| self.owners.get(at)), self.replicas.get(place.keyspace))
        else {
            return Vec::new();
        };
        owners.iter().take(*n).filter_map(|id| self.addresses.get(id)).map(String::as_str).collect()
    }
}

/// How well an endpoint is, as far as this client has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Health {
    /// Nothing is known against it.
    #[default]
    Well,
    /// It refused what another may take: it starts, or stops, or is cut off.
    Unwell,
    /// It could not be reached, or stayed silent.
    Dead,
}

/// What is known of one endpoint when a choice is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// How well it is.
    pub health: Health,
    /// How often this request was sent there.
    pub tries: u32,
    /// Whether a connection is open.
    pub connected: bool,
    /// Whether the user named it; others were named by the cluster.
    pub given: bool,
    /// Its rank among the key's home replicas, if it is one.
    pub home: Option<usize>,
}

/// The endpoint to send to: its index; none if there are none. `turn` spreads what has no other preference.
pub fn pick(endpoints: &[Seen], turn: usize) -> Option<usize> {
    let count = endpoints.len();
    let order = |index: &usize| {
        let seen = &endpoints[*index];
        (
            seen.health == Health::Dead,
            seen.tries,
            seen.health,
            !seen.connected,
            // An address that the cluster told may not lead there from here.
            !seen.connected && !seen.given,
            seen.home.unwrap_or(usize::MAX),
            (index + count - turn % count) % count,
        )
    };
    (0..count).min_by_key(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Seen = Seen { health: Health::Well, tries: 0, connected: true, given: true, home: None };

    #[test]
    fn partitions_are_the_top_bits() {
        assert_eq!(partition(u64::MAX, 256), Some(255));
        assert_eq!(partition(1 << 63, 16), Some(8));
        assert_eq!(partition(u64::MAX, 1), Some(0));
        assert_eq!(partition(0, 0), None);
        assert_eq!(partition(0, 17), None);
    }

    fn table() -> Table {
        let node = |id: &str, state: &str, address: &str| proto::NodeStatus {
            node_id: id.into(),
            state: state.into(),
            client_address: address.into(),
            ..Default::default()
        };
        let nodes = vec![
            node("a", "alive", "h:1"),
            node("b", "down", "h:2"),
            node("c", "suspect", "h:3"),
            node("d", "alive", ""),
        ];
        let owners =
            |ids: &[&str]| proto::PartitionOwners { owners: ids.iter().map(ToString::to_string).collect() };
        let partitions = (0..16).map(|_| owners(&["c", "b", "d", "a"])).collect();
        let info = |name: &str, n| proto::KeyspaceInfo { name: name.into(), n, ..Default::default() };
        Table::new(
            proto::StatusResponse { nodes, ..Default::default() },
            proto::LayoutResponse { layout_version: 3, partitions, ..Default::default() },
            proto::ListKeyspacesResponse { keyspaces: vec![info("few", 3), info("all", 4)], map_version: 9 },
        )
    }

    #[test]
    fn homes_are_the_first_n_owners_that_can_be_reached() {
        let table = table();
        let homes = |keyspace| table.homes(Place { keyspace, key: b"k" });
        assert_eq!(homes("few"), ["h:3"]);
        assert_eq!(homes("all"), ["h:3", "h:1"]);
        assert!(homes("unknown").is_empty());
        assert!(Table::default().homes(Place { keyspace: "few", key: b"k" }).is_empty());
        assert_eq!(table.addresses().collect::<Vec<_>>(), ["h:1", "h:3"]);
    }

    #[test]
    fn the_first_home_comes_first_then_the_others_in_turn() {
        let mut seen = [OPEN, Seen { home: Some(1), ..OPEN }, Seen { home: Some(0), ..OPEN }, OPEN];
        assert_eq!(pick(&seen, 0), Some(2));
        seen[2].tries = 1;
        assert_eq!(pick(&seen, 0), Some(1));
        seen[1].tries = 1;
        assert_eq!((pick(&seen, 0), pick(&seen, 3), pick(&seen, 7)), (Some(0), Some(3), Some(3)));
        seen.iter_mut().for_each(|seen| seen.tries = 1);
        assert_eq!(pick(&seen, 0), Some(2), "the second round begins as the first");
        assert_eq!(pick(&[], 5), None);
    }

    #[test]
    fn the_dead_are_asked_only_when_all_are_dead() {
        let dead = Seen { health: Health::Dead, home: Some(0), ..OPEN };
        let unwell = Seen { health: Health::Unwell, tries: 3, ..OPEN };
        assert_eq!(pick(&[dead, unwell], 0), Some(1));
        assert_eq!(pick(&[dead, Seen { tries: 1, ..dead }], 1), Some(0));
        assert_eq!(pick(&[Seen { health: Health::Unwell, home: Some(0), ..OPEN }, OPEN], 0), Some(1));
    }

    #[test]
    fn nobody_waits_for_a_connection_while_another_is_open() {
        let closed_home = Seen { connected: false, given: false, home: Some(0), ..OPEN };
        assert_eq!(pick(&[closed_home, OPEN], 0), Some(1));
        let closed = Seen { connected: false, ..OPEN };
        assert_eq!(pick(&[closed_home, closed], 0), Some(1), "what the user named comes first");
    }
}
