//! Whether a peer that says hello is who it says, and may ask and answer.
//!
//! The rules are in [`super::peers`]: 1 to 3.

use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use super::links::PROTOCOL_VERSION;
use super::peers::Peers;
use crate::rpc::proto;
use crate::storage::{Batch, schema};
use crate::types::ids::{DiskId, Incarnation, NodeId};

/// What is remembered of another node's data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct KnownLife {
    disk: DiskId,
    /// How often it had been started, and the nonce of that start: two starts with one count are two copies.
    starts: u64,
    nonce: u64,
    incarnation: Incarnation,
    /// Whether it came in the place of another that was known.
    replaced: bool,
}

/// The same, as it was written before it had an incarnation.
#[derive(Serialize, Deserialize)]
struct OldLife {
    disk: DiskId,
    starts: u64,
    nonce: u64,
}

impl KnownLife {
    fn decode(body: &[u8]) -> Result<KnownLife, postcard::Error> {
        postcard::from_bytes(body).or_else(|_| {
            let OldLife { disk, starts, nonce } = postcard::from_bytes(body)?;
            Ok(KnownLife { disk, starts, nonce, incarnation: Incarnation(0), replaced: false })
        })
    }
}

/// What becomes of a life that says hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    /// It is as it was.
    Again,
    /// It is remembered from now on like this.
    Anew(KnownLife),
    /// It is a copy from before a start that was met.
    Copy,
    /// Its directory was replaced by a later one.
    Retired,
}

/// Rule 2, held against what is remembered.
fn meet(known: Option<KnownLife>, life: KnownLife) -> Met {
    let Some(known) = known else { return Met::Anew(life) };
    let replaced = known.replaced || known.disk != life.disk;
    let life = KnownLife { replaced, ..life };
    match () {
        () if known == life => Met::Again,
        () if known.disk == life.disk && known.starts >= life.starts => Met::Copy,
        () if known.disk != life.disk && known.incarnation >= life.incarnation => Met::Retired,
        () => Met::Anew(life),
    }
}

/// A nonce as a number: a hash of its text, whatever a stranger sends.
fn nonce_of(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    hash.as_bytes().iter().take(8).fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// Why a caller is refused, and whether trying again is of no use.
pub(super) struct Refused(pub(super) String, pub(super) bool);

impl Peers {
    /// Whether the caller is let in, and if so, whether its data directory is to be refilled.
    pub(super) async fn judge(&self, request: &proto::HelloRequest) -> Result<bool, Refused> {
        let again = |why: String| Err::<bool, _>(Refused(why, false));
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
        let life = KnownLife {
            disk,
            starts: request.starts,
            nonce: nonce_of(&request.nonce),
            incarnation: Incarnation(request.incarnation),
            replaced: false,
        };
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
    async fn judge_disk(&self, node: NodeId, name: &str, life: KnownLife) -> Result<bool, Refused> {
        let committer = &self.coordinator.driver.committer;
        let key = schema::meta_key(&format!("{}{node}", schema::META_PEERS));
        let known = committer.storage().get(&key).map_err(|e| Refused(e.to_string(), false))?;
        let known = known.map(|value| {
            let body = schema::open(&key, &value).map_err(|damaged| damaged.to_string());
            body.and_then(|body| KnownLife::decode(body).map_err(|bad| bad.to_string()))
        });
        let known = known.transpose().map_err(|bad| {
            Refused(format!("what is remembered here of node {node} ({name}) is damaged: {bad}"), false)
        })?;
        let before = known.unwrap_or(life);
        match meet(known, life) {
            Met::Again => Ok(before.replaced),
            Met::Copy => Err(Refused(
                format!(
                    "node {node} ({name}) was met at start {} of its data directory and comes with start {}: it is \
                     an older copy, restored from a backup perhaps. What it has lost since must not vote. Start it on \
                     its latest data directory; if that is lost, on an empty one, which is refilled",
                    before.starts, life.starts
                ),
                true,
            )),
            Met::Retired => Err(Refused(
                format!(
                    "node {node} ({name}) is known with data directory {}, which took the place of this one, {}: it is \
                     retired, and has missed what was written since. Start it on the other; if that is lost, on an \
                     empty one, once its clock is right (this one began at {}, the other at {})",
                    before.disk, life.disk, life.incarnation, before.incarnation
                ),
                true,
            )),
            Met::Anew(life) => {
                if before.disk != life.disk {
                    tracing::warn!(%node, name, old = %before.disk, new = %life.disk, "a lost disk is replaced");
                }
                // A KnownLife has no fallible Serialize.
                let body = postcard::to_extend(&life, Vec::new()).expect("a Vec takes any life");
                // It may have lost what its trees were proved equal with.
                let is_other = before.disk != life.disk || before.incarnation != life.incarnation;
                let mut batch = if is_other { self.repairs.forget_proofs(node) } else { Batch::new() };
                batch.put(key.clone(), schema::seal(&key, &body));
                let written = committer.write(batch).await;
                written.map_err(|cause| Refused(format!("{cause:?}"), false))?;
                Ok(life.replaced)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(disk: u64, starts: u64, incarnation: u64) -> KnownLife {
        let incarnation = Incarnation(incarnation);
        KnownLife { disk: DiskId(disk), starts, nonce: 100 * disk + starts, incarnation, replaced: false }
    }

    fn anew(life: KnownLife) -> KnownLife {
        KnownLife { replaced: true, ..life }
    }

    #[test]
    fn one_directory_goes_on() {
        let first = life(1, 1, 10);
        assert_eq!(meet(None, first), Met::Anew(first));
        assert_eq!(meet(Some(first), first), Met::Again);
        assert_eq!(meet(Some(first), life(1, 2, 10)), Met::Anew(life(1, 2, 10)));
        let later_life = life(1, 2, 30);
        assert_eq!(meet(Some(first), later_life), Met::Anew(later_life));
    }

    /// F12: two copies of one directory differ in their starts, or in the nonce of a start.
    #[test]
    fn f12_a_copy_is_found_out() {
        let known = life(1, 5, 10);
        assert_eq!(meet(Some(known), life(1, 4, 10)), Met::Copy);
        assert_eq!(meet(Some(known), KnownLife { nonce: 1, ..known }), Met::Copy);
    }

    #[test]
    fn a_later_directory_takes_the_place_of_an_earlier_one_for_good() {
        let (lost, new) = (life(1, 5, 10), life(2, 1, 20));
        assert_eq!(meet(Some(lost), new), Met::Anew(anew(new)));
        // It is told so again and again, since it may not have heard it.
        assert_eq!(meet(Some(anew(new)), new), Met::Again);
        assert_eq!(meet(Some(anew(new)), life(2, 2, 20)), Met::Anew(anew(life(2, 2, 20))));
        for old in [lost, life(1, 6, 10), life(1, 9, 20), life(3, 1, 20)] {
            assert_eq!(meet(Some(anew(new)), old), Met::Retired, "{old:?}");
        }
        assert_eq!(meet(Some(anew(new)), life(3, 1, 21)), Met::Anew(anew(life(3, 1, 21))));
    }

    #[test]
    fn what_was_written_before_there_were_incarnations_is_read() {
        let old = postcard::to_extend(&OldLife { disk: DiskId(7), starts: 300, nonce: 9 }, Vec::new());
        let known = KnownLife::decode(&old.expect("encoded")).expect("read");
        assert_eq!(known, KnownLife { nonce: 9, ..life(7, 300, 0) });
        let new = postcard::to_extend(&known, Vec::new()).expect("encoded");
        assert_eq!(KnownLife::decode(&new), Ok(known));
        assert!(KnownLife::decode(&[1]).is_err());
    }
}
