//! Repair on demand, of the whole cluster: any node asks all of them for their part, and adds up how far they are.
//!
//! A node that does not answer for `PATIENCE` is given up, which is said; so is one that refuses that long. When the
//! caller is gone nobody is asked any more, and the nodes end by themselves (`repair_runs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::coordinator::Coordinator;
use super::proofs::{ALONE, UNPROVED, add};
use super::repair_runs::selection_to_wire;
use super::repairs::{Repairs, Selection, shared};
use super::scrub::damage;
use crate::ring::layout::{ClusterMap, Member};
use crate::ring::preflist::homes;
use crate::rpc::proto::{self, answer, operation};
use crate::rpc::requests::RepairRequest;
use crate::types::error::{Cause, Failure, Invalid};
use crate::types::ids::{NodeId, PartitionId};
use crate::types::time::WallMs;

/// How often the nodes are asked how far they are.
const EVERY: Duration = Duration::from_millis(200);
/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How long a node may be silent.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks this node or a peer; a receiver that ends without an answer says that there is none.
pub fn ask(
    coordinator: &Coordinator,
    node: NodeId,
    kind: operation::Kind,
) -> oneshot::Receiver<answer::Kind> {
    let (send, receive) = oneshot::channel();
    let operation = proto::Operation { kind: Some(kind), ..proto::Operation::default() };
    let waiter = Box::new(move |answer| {
        if let Ok(kind) = answer {
            let _ = send.send(kind);
        }
    });
    if let Some(link) = coordinator.driver.links.up(node) {
        let _ = link.send(operation, waiter);
    }
    receive
}

/// What a request selects.
pub fn selection(map: &ClusterMap, request: &RepairRequest) -> Result<Selection, Failure> {
    let keyspace = match &request.keyspace {
        None => None,
        Some(name) => {
            let known = map.keyspace(name).map(|keyspace| keyspace.id);
            Some(known.ok_or_else(|| Failure::early(Cause::UnknownKeyspace(name.clone())))?)
        }
    };
    let partition = match request.partition {
        None => None,
        Some(number) => {
            let id = u16::try_from(number).ok().filter(|_| number < map.partitions.count());
            let too_large = || format!("is {number}, must be below {}", map.partitions.count());
            Some(PartitionId(id.ok_or_else(|| Failure::from(Invalid::new("partition", too_large())))?))
        }
    };
    Ok(Selection { keyspace, partition })
}

/// A node that has a part in it.
struct Part {
    told: proto::NodeRepair,
    heard: Instant,
}

/// A repair of the cluster.
pub struct Campaign {
    /// This node's own part.
    pub repairs: Arc<Repairs>,
    /// The way to the others.
    pub coordinator: Arc<Coordinator>,
    /// The map by which nodes are asked.
    pub map: Arc<ClusterMap>,
    /// Its name, on all nodes.
    pub run: u64,
    /// What is repaired.
    pub selection: Selection,
}

impl Campaign {
    /// Whether a node has something to compare with another of a higher id.
    fn has_part(&self, member: &Member) -> bool {
        let mut peers = self.map.layout.members.iter().filter(|peer| peer.id > member.id);
        peers.any(|peer| !shared(&self.map, member.id, peer.id, self.selection).is_empty())
    }

    /// Runs until all nodes are done or given up, or nobody listens.
    pub async fn run(self, listener: mpsc::Sender<proto::RepairResponse>) {
        let members = self.map.layout.members.iter().filter(|member| self.has_part(member));
        let part = |member: &Member| {
            let (node_id, name) = (member.id.to_string(), member.name.clone());
            let told = proto::NodeRepair { node_id, name, ..proto::NodeRepair::default() };
            (member.id, Part { told, heard: Instant::now() })
        };
        let mut parts: BTreeMap<NodeId, Part> = members.map(part).collect();
        loop {
            self.ask_all(&mut parts).await;
            let over = parts.values().all(|part| part.told.over);
            let nodes = parts.values().map(|part| part.told.clone()).collect();
            if listener.send(proto::RepairResponse { nodes, over }).await.is_err() || over {
                return;
            }
            tokio::select! {
                biased;
                () = listener.closed() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    async fn ask_all(&self, parts: &mut BTreeMap<NodeId, Part>) {
        let question = selection_to_wire(self.run, self.selection);
        let mut asked = Vec::new();
        for (node, _) in parts.iter().filter(|(_, part)| !part.told.over) {
            let answer = match *node == self.coordinator.driver.me {
                true => Err(self.repairs.answer_run(&question)),
                false => Ok(ask(&self.coordinator, *node, operation::Kind::RunRepair(question))),
            };
            asked.push((*node, answer));
        }
        let deadline = Instant::now() + ANSWER_WITHIN;
        for (node, answer) in asked {
            let Some(part) = parts.get_mut(&node) else { continue };
            let told = match answer {
                Err(own) => own.map_err(|(_, problem)| problem),
                Ok(asked) => match tokio::time::timeout_at(deadline, asked).await {
                    Ok(Ok(answer::Kind::Repair(told))) => Ok(told),
                    Ok(Ok(answer::Kind::Refused(refusal))) => Err(refusal.message),
                    _ => Err("the node does not answer".into()),
                },
            };
            match told {
                Ok(told) => {
                    let name = std::mem::take(&mut part.told.name);
                    *part = Part { told: proto::NodeRepair { name, ..told }, heard: Instant::now() };
                }
                Err(problem) if part.heard.elapsed() >= PATIENCE => {
                    part.told.over = true;
                    part.told.problems.push(proto::RepairProblem { peer: String::new(), problem });
                }
                Err(_) => {}
            }
        }
    }
}

/// What the nodes say of how equal they are, and of what they lack.
pub struct Standing {
    /// When all replicas of each partition were last proved equal.
    pub proved: Vec<WallMs>,
    /// How far those are that are refilled.
    pub refills: BTreeMap<NodeId, proto::Refill>,
    /// What those that answer have found damaged.
    pub damages: BTreeMap<NodeId, proto::Damage>,
    /// Which tombstones are due and not purged yet, where those lead that answer.
    pub tombstones: BTreeMap<NodeId, proto::DueTombstones>,
}

/// Asks all nodes how equal they are; those that don't say have proved nothing.
pub async fn standing(coordinator: &Coordinator, repairs: &Repairs, map: &ClusterMap) -> Standing {
    let me = coordinator.driver.me;
    let others = map.layout.members.iter().map(|member| member.id).filter(|id| *id != me);
    let asked: Vec<_> =
        others.map(|node| (node, ask(coordinator, node, operation::Kind::Proofs(true)))).collect();
    let own = coordinator.driver.refill.view(map, me).map(|view| (me, view.to_wire()));
    let (refills, damages) = (own.into_iter().collect(), [(me, damage(coordinator))].into());
    let tombstones = [(me, coordinator.driver.due_tombstones())].into();
    let mut standing = Standing { proved: repairs.proofs(map), refills, damages, tombstones };
    let deadline = Instant::now() + ANSWER_WITHIN;
    for (node, answer) in asked {
        let told = match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(answer::Kind::Proofs(told))) if told.proved_ms.len() == standing.proved.len() => {
                standing.refills.extend(told.refill.map(|refill| (node, refill)));
                standing.damages.extend(told.damage.map(|damage| (node, damage)));
                standing.tombstones.extend(told.tombstones.map(|due| (node, due)));
                told.proved_ms.into_iter().map(WallMs).collect()
            }
            _ => unproved(map, node),
        };
        standing.proved.iter_mut().zip(told).for_each(|(all, one)| add(all, one));
    }
    standing
}

/// What a node that does not say would have to prove.
fn unproved(map: &ClusterMap, node: NodeId) -> Vec<WallMs> {
    let is_its = |partition: PartitionId| {
        map.keyspaces.iter().any(|keyspace| {
            let homes = homes(map, keyspace, partition);
            homes.contains(&node) && homes.iter().any(|home| *home > node)
        })
    };
    map.partitions.all().map(|partition| if is_its(partition) { UNPROVED } else { ALONE }).collect()
}
