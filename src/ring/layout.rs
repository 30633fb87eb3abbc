//! The layout and the cluster map: what all nodes of a cluster agree on.
//!
//! The map is one value: who is a member, who owns which partition, which keyspaces there are, which node
//! ids are banned. It travels whole and is decided whole, so no two parts of it can be of different times.
//!
//! Each partition lists `min(members, N_MAX)` owners, not just the greatest `n` of any keyspace: so a new
//! keyspace of any `n` fits without a change of ownership, and old keyspaces aren't moved by it.
//!
//! The stored and wire form is `M`, a format version, then a `postcard` body; equal maps have equal bytes.
//!
//! Invariants, which a decoder checks because maps come over the wire:
//! 1. Members are sorted by id; ids, names and addresses are unique and valid; none is banned.
//! 2. Each partition has `min(members, N_MAX)` distinct owners, all members.
//! 3. Keyspaces are sorted by id, with unique names and valid policies; ids are below the next to be given.
//! 4. Versions are at least 1, and the layout's is at most the map's.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::partition::Partitions;
use super::placement::{self, Placement, Wanted};
use crate::canary::{self, Canary};
use crate::types::error::Invalid;
use crate::types::ids::{ClusterId, KeyspaceId, LayoutVersion, MapVersion, NodeId};
use crate::types::limits;
use crate::types::policy::{Conflicts, Keyspace, check_name};

/// First byte of an encoded cluster map.
pub const MAP_MARKER: u8 = b'M';
/// Version written, and the newest that is read.
pub const MAP_FORMAT: u8 = 1;
/// The keyspace that a new cluster has.
pub const DEFAULT_KEYSPACE: &str = "default";

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub id: NodeId,
    /// The name that people use.
    pub name: String,
    /// What may fail together with it.
    pub zone: String,
    /// Its capacity, relative to the others'.
    pub weight: u32,
    /// Where its peers reach it, `host:port`.
    pub address: String,
}

impl Member {
    fn check(&self) -> Result<(), Invalid> {
        check_name("nodes.name", &self.name)?;
        let field = |part: &str| format!("nodes[{}].{part}", self.name);
        check_name(&field("zone"), &self.zone)?;
        placement::check_weight(&field("weight"), self.weight)?;
        check_address(&field("address"), &self.address)
    }
}

/// Refuses what is not `host:port` with a port from 1 to 65535; an IPv6 host stands in brackets.
fn check_address(field: &str, address: &str) -> Result<(), Invalid> {
    Invalid::check_max(field, address.len(), limits::ADDRESS_BYTES, "bytes")?;
    let bad = |why: &str| Err(Invalid::new(field, format!("must be host:port, not {address:?}: {why}")));
    let Some((host, port)) = address.rsplit_once(':') else { return bad("it has no port") };
    if !matches!(port.parse::<u16>(), Ok(1..)) || port.starts_with('+') {
        return bad("the port must be a number from 1 to 65535");
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    match bare {
        Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_ok() => Ok(()),
        Some(_) => bad("what stands in brackets is no IPv6 address"),
        None if host.is_empty() => bad("it has no host"),
        None if host.chars().all(plain) => Ok(()),
        None => bad("the host may have letters, digits, '.', '-' and '_'"),
    }
}

/// Who owns what. Its version grows only when ownership changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Requests carry it, so that replicas and coordinators notice when they disagree.
    pub version: LayoutVersion,
    /// Sorted by id.
    pub members: Vec<Member>,
    /// Per partition its owners, as indexes into `members`, in order of preference.
    pub owners: Vec<Vec<u16>>,
}

impl Layout {
    /// The placement that this layout is, to compute the next from.
    pub fn placement(&self) -> Placement {
        let nodes = self.members.iter().map(|member| member.id).collect();
        Placement { nodes, owners: self.owners.clone(), notes: Vec::new() }
    }

    /// Members that count in placement.
    fn wanted(&self) -> Vec<Wanted> {
        let wanted = |m: &Member| Wanted { id: m.id, zone: m.zone.clone(), weight: m.weight };
        self.members.iter().map(wanted).collect()
    }
}

/// How many owners each partition lists.
fn list_length(members: usize) -> usize {
    members.min(limits::N_MAX.into())
}

/// The cluster map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Which cluster. Never changes.
    pub cluster: ClusterId,
    /// Decided once per version.
    pub version: MapVersion,
    /// Never changes.
    pub partitions: Partitions,
    /// Who owns what.
    pub layout: Layout,
    /// Sorted by id.
    pub keyspaces: Vec<Keyspace>,
    /// The id of the next keyspace to be made.
    pub next_keyspace: KeyspaceId,
    /// Nodes that may never return.
    pub banned: BTreeSet<NodeId>,
    /// Chosen at random by whoever proposed this version: tells two equal changes made at once apart, so that
    /// the loser knows. 0 in version 1.
    pub proposal: u64,
}

/// What a new keyspace should be; what is left out has a default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKeyspace {
    /// Unique in the cluster.
    pub name: String,
    /// Fixed for the life of the keyspace.
    pub conflicts: Conflicts,
    /// Three, or all nodes if there are fewer.
    pub n: Option<u8>,
    /// A majority of `n`.
    pub r: Option<u8>,
    /// A majority of `n`.
    pub w: Option<u8>,
    /// Whether fallbacks may stand in.
    pub sloppy: bool,
    /// Milliseconds that a version lives.
    pub ttl_ms: Option<u64>,
}

/// Why a keyspace was not made, changed or dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyspaceError {
    /// The name is taken, by this one.
    #[error("keyspace: {:?} exists already", .0.name)]
    Exists(Keyspace),
    /// There is none of this name.
    #[error("keyspace: there is no keyspace {0:?}")]
    Unknown(String),
    /// The one that was meant is gone, and another has its name.
    #[error("keyspace: {0:?} was dropped and made anew meanwhile; nothing was changed")]
    Replaced(String),
    /// The change is for another version of the map.
    #[error("if_version: is {wanted}, the cluster map is at {now}; nothing was changed")]
    Moved {
        /// The version that it is for.
        wanted: MapVersion,
        /// The version there is.
        now: MapVersion,
    },
    /// The change may be in a version that was decided meanwhile.
    #[error("the change may have been made")]
    InDoubt,
    /// The policy breaks a rule.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// Bytes that are no cluster map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMap {
    /// The first byte is another.
    #[error("not a cluster map: wrong marker")]
    Marker,
    /// Written by a newer release.
    #[error("a cluster map of format {0}, this release reads up to {MAP_FORMAT}")]
    Version(u8),
    /// The body does not parse, or is not as this release would write it.
    #[error("a damaged cluster map")]
    Body,
    /// The body parses but breaks an invariant.
    #[error("a damaged cluster map: {0}")]
    Invariant(String),
}

impl From<Invalid> for BadMap {
    fn from(invalid: Invalid) -> BadMap {
        BadMap::Invariant(invalid.to_string())
    }
}

impl ClusterMap {
    /// Map version 1 of a new cluster. Equal names, partition counts and nodes, in any order, give equal
    /// maps; anything else gives another cluster id.
    pub fn bootstrap(
        cluster_name: &str,
        partitions: Partitions,
        mut nodes: Vec<Member>,
    ) -> Result<ClusterMap, Invalid> {
        check_name("cluster", cluster_name)?;
        nodes.sort();
        check_members(&nodes)?;
        let count = nodes.len();
        let mut layout = Layout { version: LayoutVersion(1), members: nodes, owners: Vec::new() };
        // At most N_MAX, so it fits.
        let length = list_length(count) as u8;
        layout.owners = placement::place(None, &layout.wanted(), partitions, length)?.owners;
        let mut map = ClusterMap {
            cluster: ClusterId(0),
            version: MapVersion(1),
            partitions,
            layout,
            keyspaces: Vec::new(),
            next_keyspace: KeyspaceId(1),
            banned: BTreeSet::new(),
            proposal: 0,
        };
        let default = NewKeyspace::with_defaults(DEFAULT_KEYSPACE, Conflicts::Lww);
        map.keyspaces.push(default.resolve(KeyspaceId(1), count)?);
        map.next_keyspace = KeyspaceId(2);
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"quoral cluster\0").update(cluster_name.as_bytes()).update(&[0]);
        map.cluster = ClusterId(u128::from_be_bytes(first_16(&hasher.update(&map.encode()).finalize())));
        Ok(map)
    }

    /// The member with this id.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        let index = self.layout.members.binary_search_by_key(&id, |member| member.id).ok()?;
        self.layout.members.get(index)
    }

    /// The keyspace of this name.
    pub fn keyspace(&self, name: &str) -> Option<&Keyspace> {
        self.keyspaces.iter().find(|keyspace| keyspace.name == name)
    }

    /// The keyspace with this id.
    pub fn keyspace_by_id(&self, id: KeyspaceId) -> Option<&Keyspace> {
        let index = self.keyspaces.binary_search_by_key(&id, |keyspace| keyspace.id).ok()?;
        self.keyspaces.get(index)
    }

    /// First 16 bytes of blake3 over the encoding: equal maps, and no others, have equal digests.
    pub fn digest(&self) -> [u8; 16] {
        first_16(&blake3::hash(&self.encode()))
    }

    /// The stored and wire form.
    pub fn encode(&self) -> Vec<u8> {
        // A Vec grows as needed and these types have no fallible Serialize, so this can't fail.
        postcard::to_extend(self, vec![MAP_MARKER, MAP_FORMAT]).expect("a Vec takes any serializable body")
    }

    /// Decodes, and checks every invariant.
    pub fn decode(bytes: &[u8]) -> Result<ClusterMap, BadMap> {
        let [MAP_MARKER, format, body @ ..] = bytes else { return Err(BadMap::Marker) };
        if *format != MAP_FORMAT {
            return Err(BadMap::Version(*format));
        }
        let map: ClusterMap = match postcard::take_from_bytes(body) {
            Ok((map, [])) => map,
            _ => return Err(BadMap::Body),
        };
        map.check()?;
        // Numbers can be written in more than one way; only one is the map's.
        if map.encode() != bytes {
            return Err(BadMap::Body);
        }
        Ok(map)
    }

    /// The map with one more keyspace, and the next version.
    pub fn with_keyspace(&self, spec: NewKeyspace) -> Result<ClusterMap, KeyspaceError> {
        if let Some(keyspace) = self.keyspace(&spec.name) {
            return Err(KeyspaceError::Exists(keyspace.clone()));
        }
        let (mut id, used_up) =
            (self.next_keyspace, Invalid::new("keyspace", "all keyspace ids are used up"));
        if canary::sings(Canary::KeyspaceIdReused) {
            let last = self.keyspaces.iter().map(|keyspace| keyspace.id.0).max();
            id = KeyspaceId(last.unwrap_or(0) + 1);
        }
        let keyspace = spec.resolve(id, self.layout.members.len())?;
        Invalid::check_max("keyspace", self.keyspaces.len() + 1, limits::KEYSPACES_MAX, "keyspaces")?;
        let mut map = self.clone();
        map.version = MapVersion(self.version.0.saturating_add(1));
        map.next_keyspace = self.next_keyspace.max(KeyspaceId(id.0.checked_add(1).ok_or(used_up)?));
        map.keyspaces.push(keyspace);
        Ok(map)
    }

    /// Refuses a map that can't be the next after this one: a voter checks it before it accepts. It does
    /// not judge whether the change is a good one.
    pub fn check_next(&self, next: &ClusterMap) -> Result<(), Invalid> {
        let refuse = |field: &str, problem: String| Err(Invalid::new(field, problem));
        if next.cluster != self.cluster || next.partitions != self.partitions {
            return refuse("map", format!("is of cluster {}, not {}", next.cluster, self.cluster));
        }
        if Some(next.version.0) != self.version.0.checked_add(1) {
            return refuse("map.version", format!("is {}, must follow {}", next.version, self.version));
        }
        let (before, after) = (self.layout.version.0, next.layout.version.0);
        let same = next.layout.members == self.layout.members && next.layout.owners == self.layout.owners;
        let fits = if same { after == before } else { Some(after) == before.checked_add(1) };
        if !fits {
            return refuse("map.layout", format!("has version {after} after {before}, against its content"));
        }
        let kept = next.keyspaces.iter().filter(|keyspace| keyspace.id < self.next_keyspace);
        for keyspace in kept {
            let same = |k: &Keyspace| {
                (&k.name, k.conflicts, k.n) == (&keyspace.name, keyspace.conflicts, keyspace.n)
            };
            let is_known = self.keyspace_by_id(keyspace.id).is_some_and(same);
            if !is_known && !canary::sings(Canary::KeyspaceIdReused) {
                return refuse("map.keyspaces", format!("{:?} has the id of another", keyspace.name));
            }
        }
        if next.next_keyspace < self.next_keyspace || !next.banned.is_superset(&self.banned) {
            return refuse("map", "gives keyspace ids again, or lifts a ban".into());
        }
        Ok(())
    }

    /// The share of all partition replicas that `node` owns, counting the first three owners (or as many
    /// as there are members). All members' shares sum to 1; a stranger's is 0.
    pub fn ownership(&self, node: NodeId) -> f64 {
        let Ok(index) = self.layout.members.binary_search_by_key(&node, |member| member.id) else {
            return 0.0;
        };
        let counted = || self.layout.owners.iter().flat_map(|owners| owners.iter().take(placement::EXACT));
        let owned = counted().filter(|owner| usize::from(**owner) == index).count();
        owned as f64 / counted().count().max(1) as f64
    }

    fn check(&self) -> Result<(), BadMap> {
        let broken = |what: &str| Err(BadMap::Invariant(what.to_string()));
        let members = &self.layout.members;
        check_members(members)?;
        if self.banned.len() > limits::BANNED_MAX || members.iter().any(|m| self.banned.contains(&m.id)) {
            return broken("banned: too many, or a member");
        }
        if self.layout.version.0 == 0 || self.layout.version.0 > self.version.0 {
            return broken("versions: the layout's is 0 or above the map's");
        }
        if self.layout.owners.len() != self.partitions.count() as usize {
            return broken("owners: not one list for each partition");
        }
        for owners in &self.layout.owners {
            let distinct: BTreeSet<&u16> = owners.iter().collect();
            let known = owners.iter().all(|owner| usize::from(*owner) < members.len());
            if owners.len() != list_length(members.len()) || distinct.len() != owners.len() || !known {
                return broken("owners: too few or many, not distinct, or not members");
            }
        }
        Invalid::check_max("keyspaces", self.keyspaces.len(), limits::KEYSPACES_MAX, "keyspaces")?;
        let names: BTreeSet<&String> = self.keyspaces.iter().map(|keyspace| &keyspace.name).collect();
        let sorted = self.keyspaces.is_sorted_by(|a, b| a.id < b.id);
        if names.len() < self.keyspaces.len() || !sorted {
            return broken("keyspaces: not sorted by id, or two of one name");
        }
        if self.keyspaces.iter().any(|keyspace| keyspace.id >= self.next_keyspace) {
            return broken("keyspaces: an id that was never given");
        }
        for keyspace in &self.keyspaces {
            keyspace.validate(members.len())?;
        }
        Ok(())
    }
}

impl NewKeyspace {
    /// A keyspace with everything else left to the defaults.
    pub fn with_defaults(name: &str, conflicts: Conflicts) -> NewKeyspace {
        NewKeyspace { name: name.into(), conflicts, n: None, r: None, w: None, sloppy: false, ttl_ms: None }
    }

    /// Fills in the defaults for a cluster of `nodes`, and checks the policy.
    fn resolve(self, id: KeyspaceId, nodes: usize) -> Result<Keyspace, Invalid> {
        // At most 3, so it fits.
        let n = self.n.unwrap_or(nodes.min(3) as u8);
        let majority = n / 2 + 1;
        let (r, w) = (self.r.unwrap_or(majority), self.w.unwrap_or(majority));
        let NewKeyspace { name, conflicts, sloppy, ttl_ms, .. } = self;
        let keyspace = Keyspace { id, name, conflicts, n, r, w, sloppy, ttl_ms };
        keyspace.validate(nodes)?;
        Ok(keyspace)
    }
}

/// Invariant 1, without what is banned.
fn check_members(members: &[Member]) -> Result<(), Invalid> {
    if members.is_empty() {
        return Err(Invalid::new("nodes", "must not be empty"));
    }
    Invalid::check_max("nodes", members.len(), limits::NODES_MAX, "nodes")?;
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for (index, member) in members.iter().enumerate() {
        member.check()?;
        match index.checked_sub(1).map(|before| members[before].id.cmp(&member.id)) {
            Some(std::cmp::Ordering::Equal) => {
                return Err(Invalid::new("nodes", format!("two nodes have the id {}", member.id)));
            }
            Some(std::cmp::Ordering::Greater) => return Err(Invalid::new("nodes", "are not sorted by id")),
            _ => {}
        }
        if !names.insert(&member.name) {
            return Err(Invalid::new("nodes", format!("two nodes have the name {:?}", member.name)));
        }
        if !addresses.insert(&member.address) {
            return Err(Invalid::new("nodes", format!("two nodes have the address {:?}", member.address)));
        }
    }
    Ok(())
}

fn first_16(hash: &blake3::Hash) -> [u8; 16] {
    let mut first = [0; 16];
    first.copy_from_slice(&hash.as_bytes()[..16]);
    first
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
