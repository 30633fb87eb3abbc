//! Whether a peer that says hello is who it says, and may ask and answer.
//!
//! The rules are in [`super::peers`]: 1 to 3.

use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use super::links::PROTOCOL_VERSION;
use super::peers::Peers;
use crate::rpc::proto;
use crate::storage::{Batch, schema};
use crate::types::ids::{DiskId, NodeId};

/// What is remembered of another node's data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct KnownLife {
    disk: DiskId,
    /// How often it had been started, and the nonce of that start: two starts with one count are two copies.
    starts: u64,
    nonce: u64,
}

/// A nonce as a number: a hash of its text, whatever a stranger sends.
fn nonce_of(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    hash.as_bytes().iter().take(8).fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// Why a caller is refused, and whether trying again is of no use.
pub(super) struct Refused(pub(super) String, pub(super) bool);

impl Peers {
    pub(super) async fn judge(&self, request: &proto::HelloRequest) -> Result<(), Refused> {
        let again = |why: String| Err(Refused(why, false));
        if request.protocol_version != PROTOCOL_VERSION {
            let (theirs, mine) = (request.protocol_version, PROTOCOL_VERSION);
            return again(format!("protocol version {theirs}, this node speaks {mine}"));
        }
        if request.cluster_id != self.me.cluster.to_string() {
            let (theirs, mine) = (&request.cluster_id, self.me.cluster);
            return again(format!(
                "cluster {theirs:?} is not this node's {mine}: the bootstrap lists must be equal on all nodes"
            ));
        }
        if request.expected_node_id != self.me.node.to_string() {
            let (theirs, mine) = (&request.expected_node_id, self.me.node);
            return again(format!("node {theirs:?} was called, but {mine} answers at this address"));
        }
        let map = self.maps.current();
        let member = request.node_id.parse().ok().and_then(|id| map.member(id));
        let Some(member) = member else {
            return again(format!("node {:?} is not in the cluster map", request.node_id));
        };
        if member.id == self.me.node {
            return Err(Refused(format!("{} is this node's own id", member.id), true));
        }
        let Ok(disk) = request.disk_id.parse::<DiskId>() else {
            return again(format!("disk_id: {:?} is not a disk id", request.disk_id));
        };
        self.judge_life(member.id, &request.nonce)?;
        let life = KnownLife { disk, starts: request.starts, nonce: nonce_of(&request.nonce) };
        self.judge_disk(member.id, &member.name, life).await
    }

    /// Rule 3.
    fn judge_life(&self, node: NodeId, nonce: &str) -> Result<(), Refused> {
        let admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        match admitted.get(&node) {
            Some(other) if other.nonce != nonce && other.streams > 0 => {
                Err(Refused(format!("another process with node id {node} is alive"), false))
            }
            _ => Ok(()),
        }
    }

    /// Rule 2.
    async fn judge_disk(&self, node: NodeId, name: &str, life: KnownLife) -> Result<(), Refused> {
        let committer = &self.coordinator.driver.committer;
        let key = schema::meta_key(&format!("{}{node}", schema::META_PEERS));
        let known = committer.storage().get(&key).map_err(|e| Refused(e.to_string(), false))?;
        let known = known.map(|value| {
            let body = schema::open(&key, &value).map_err(|damaged| damaged.to_string());
            body.and_then(|body| postcard::from_bytes::<KnownLife>(body).map_err(|bad| bad.to_string()))
        });
        let known = known.transpose().map_err(|bad| {
            Refused(format!("what is remembered here of node {node} ({name}) is damaged: {bad}"), false)
        })?;
        match known {
            Some(known) if known == life => Ok(()),
            Some(known) if known.disk == life.disk && known.starts >= life.starts => Err(Refused(
                format!(
                    "node {node} ({name}) was met at start {} of its data directory and comes with start {}: it is \
                     an older copy, restored from a backup perhaps. What it has lost since must not vote, and \
                     refilling it is not built yet. Start it on its latest data directory",
                    known.starts, life.starts
                ),
                true,
            )),
            Some(known) if known.disk != life.disk => Err(Refused(
                format!(
                    "node {node} ({name}) is known with data directory {} and comes with {}: its disk is \
                     lost or is another's; an empty directory must not vote, and refilling one is not built yet. \
                     Start it on its own data directory",
                    known.disk, life.disk
                ),
                true,
            )),
            _ => {
                // A KnownLife has no fallible Serialize.
                let body = postcard::to_extend(&life, Vec::new()).expect("a Vec takes any life");
                let mut batch = Batch::new();
                batch.put(key.clone(), schema::seal(&key, &body));
                committer.write(batch).await.map_err(|cause| Refused(format!("{cause:?}"), false))
            }
        }
    }
}
