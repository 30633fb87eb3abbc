//! Whether what a peer asks for is this node's, by the map here.
//!
//! What counts for a client (its writes and reads, pages of a scan) and what purges tombstones is refused if the two
//! nodes have different layout versions: they may count different replicas, and their quorums need not meet.
//!
//! What makes replicas equal makes up no quorum: an exchange merges what it finds, and a damaged record is healed when
//! all others have been asked. So that goes on while the nodes learn of a new layout one after the other. But this
//! node takes nothing from one that is no home of the place by the map here: a former home was not asked when
//! tombstones were purged, and would bring back what they had deleted.

use super::drive::Place;
use super::peers::Peers;
use crate::ring::layout::ClusterMap;
use crate::ring::preflist::homes;
use crate::rpc::peer_service::Sender;
use crate::rpc::proto::{self, refusal::Reason};
use crate::storage::schema;
use crate::types::ids::{KeyspaceId, NodeId, PartitionId};
use crate::types::key::{Key, Position};
use crate::types::policy::Keyspace;

/// As what this node is asked for a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum As {
    /// As one of its homes.
    Home,
    /// As one of its homes, by another of them, to make the two equal.
    Replica,
    /// As a fallback, for a home if something is to be kept for it.
    Fallback(Option<NodeId>),
    /// Whatever it is.
    Any,
}

pub(super) fn check_layout(from: Sender, map: &ClusterMap) -> Result<(), (Reason, String)> {
    if from.layout_version != map.layout.version {
        let (theirs, mine) = (from.layout_version, map.layout.version);
        return Err((Reason::StaleLayout, format!("layout version {theirs}, this node has {mine}")));
    }
    Ok(())
}

impl Peers {
    /// The place of a key, if its partition is this node's.
    pub(super) fn place(
        &self,
        from: Sender,
        operation: &proto::Operation,
        as_who: As,
    ) -> Result<Place, (Reason, String)> {
        let map = self.maps.current();
        let bad = |problem: String| (Reason::BadRequest, problem);
        let key = Key::new(operation.key.clone(), operation.sort.clone());
        let key = key.map_err(|invalid| bad(invalid.to_string()))?;
        let keyspace = self.known(&map, operation.keyspace_id)?;
        let partition = map.partitions.of(Position::of(&keyspace.name, key.partition_key()));
        match as_who {
            As::Any => {}
            As::Home => self.check_owner(from, &map, keyspace, partition)?,
            As::Replica => self.check_replicas(from, &map, keyspace, partition)?,
            As::Fallback(home) => {
                check_layout(from, &map)?;
                let homes = homes(&map, keyspace, partition);
                if let Some(home) = home.filter(|home| *home == self.me.node || !homes.contains(home)) {
                    return Err(bad(format!(
                        "stand_in_for: {home} is not another home of partition {partition}"
                    )));
                }
            }
        }
        let storage_key = schema::record_key(partition, keyspace.id, &key);
        Ok(Place { keyspace: keyspace.id, key, storage_key })
    }

    /// The keyspace with this id.
    pub(super) fn known<'a>(&self, map: &'a ClusterMap, id: u32) -> Result<&'a Keyspace, (Reason, String)> {
        let id = KeyspaceId(id);
        if map.has_dropped(id) {
            return Err((Reason::StaleLayout, format!("keyspace {id} was dropped")));
        }
        map.keyspace_by_id(id).ok_or_else(|| {
            self.maps.suspect_stale();
            (Reason::StaleLayout, format!("keyspace {id} is not known here"))
        })
    }

    /// Both know the same layout, and the partition is this node's.
    fn check_owner(
        &self,
        from: Sender,
        map: &ClusterMap,
        keyspace: &Keyspace,
        partition: PartitionId,
    ) -> Result<(), (Reason, String)> {
        check_layout(from, map)?;
        if !homes(map, keyspace, partition).contains(&self.me.node) {
            return Err((Reason::StaleLayout, format!("partition {partition} is not this node's")));
        }
        Ok(())
    }

    /// Both are homes by the map here.
    fn check_replicas(
        &self,
        from: Sender,
        map: &ClusterMap,
        keyspace: &Keyspace,
        partition: PartitionId,
    ) -> Result<(), (Reason, String)> {
        let homes = homes(map, keyspace, partition);
        match [self.me.node, from.node].into_iter().find(|node| !homes.contains(node)) {
            Some(other) => {
                let problem = format!("node {other} is no home of partition {partition}, by the map here");
                Err((Reason::StaleLayout, problem))
            }
            None => Ok(()),
        }
    }

    pub(super) fn check_page(
        &self,
        from: Sender,
        keyspace: u32,
        partition: u32,
    ) -> Result<(), (Reason, String)> {
        let map = self.maps.current();
        let keyspace = self.known(&map, keyspace)?;
        match u16::try_from(partition) {
            Ok(id) if partition < map.partitions.count() => {
                self.check_owner(from, &map, keyspace, PartitionId(id))
            }
            _ => Err((Reason::BadRequest, format!("partition: {partition} is out of range"))),
        }
    }
}
