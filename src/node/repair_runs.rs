//! Repair on demand, as far as it is this node's part: a pass with each peer now, and again with what was not done.
//!
//! Rules:
//! 1. A run that is begun twice is the same run.
//! 2. What is not done after a pass, because a peer does not answer, a tree is in rebuild or a record is too new, is tried
//!    again, `ATTEMPTS` times in all.
//! 3. A run of which nobody asks any more ends. Ended ones are forgotten when there is no room.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::repairs::{Repairs, Selection, Shared, shared};
use crate::antientropy::exchange::SETTLE;
use crate::rpc::proto::{self, refusal::Reason};
use crate::types::ids::{KeyspaceId, NodeId, PartitionId};
use crate::types::time::Mono;

/// Passes of a run with one peer at the most.
const ATTEMPTS: usize = 3;
/// Time between two, if it is not for records that are too new.
const PAUSE: Duration = Duration::from_secs(1);
/// Runs that are remembered.
const RUNS: usize = 16;
/// How long a run goes on of which nobody asks.
const ABANDONED: Duration = Duration::from_secs(15);

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// Comparisons of one tree with one peer.
    pub trees: u64,
    /// Of those, done.
    pub done: u64,
    /// Of those, found equal at once.
    pub equal: u64,
    /// Records in the trees that were compared.
    pub records: u64,
    /// Records that travelled, either way.
    pub sent: u64,
    /// Of those, such as were new where they came.
    pub healed: u64,
    /// Records left out since they were written a moment before.
    pub too_new: u64,
    /// Bytes of messages, both ways.
    pub bytes: u64,
    /// What did not work, by peer.
    pub problems: BTreeMap<NodeId, String>,
    /// Whether it has ended.
    pub over: bool,
}

impl Progress {
    /// For a peer.
    pub fn to_wire(&self, node: NodeId) -> proto::NodeRepair {
        let problem = |(peer, problem): (&NodeId, &String)| proto::RepairProblem {
            peer: peer.to_string(),
            problem: problem.clone(),
        };
        proto::NodeRepair {
            node_id: node.to_string(),
            name: String::new(),
            trees: self.trees,
            done: self.done,
            equal: self.equal,
            records: self.records,
            sent: self.sent,
            healed: self.healed,
            too_new: self.too_new,
            bytes: self.bytes,
            over: self.over,
            problems: self.problems.iter().map(problem).collect(),
        }
    }
}

/// A run that is remembered.
#[derive(Debug)]
pub struct Run {
    progress: watch::Sender<Progress>,
    /// When somebody last asked of it.
    asked: Mono,
}

/// What a run compares, for a peer.
pub fn selection_to_wire(run: u64, selection: Selection) -> proto::RunRepair {
    proto::RunRepair {
        run,
        keyspace_id: selection.keyspace.map(|keyspace| keyspace.0),
        partition: selection.partition.map(|partition| partition.0.into()),
    }
}

impl Repairs {
    /// Begins a run, if there is none of this id, and says how far it is.
    pub fn answer_run(
        self: &Arc<Repairs>,
        asked: &proto::RunRepair,
    ) -> Result<proto::NodeRepair, (Reason, String)> {
        let map = self.map.borrow().clone();
        let (me, now) = (self.coordinator.driver.me, self.coordinator.driver.clock.mono());
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = runs.get_mut(&asked.run) {
            run.asked = now;
            return Ok(run.progress.borrow().to_wire(me));
        }
        let keyspace = asked.keyspace_id.map(KeyspaceId);
        if let Some(unknown) =
            keyspace.filter(|id| map.keyspace_by_id(*id).is_none() && !map.has_dropped(*id))
        {
            return Err((Reason::StaleLayout, format!("keyspace {unknown} is not known here")));
        }
        let partition = asked.partition.map(u16::try_from).transpose().ok();
        let Some(partition) = partition.map(|partition| partition.map(PartitionId)) else {
            return Err((Reason::BadRequest, "partition: is out of range".into()));
        };
        if runs.len() >= RUNS {
            let ended = runs.iter().filter(|(_, run)| run.progress.borrow().over);
            let Some(oldest) = ended.min_by_key(|(_, run)| run.asked).map(|(id, _)| *id) else {
                return Err((Reason::Overloaded, format!("{RUNS} repairs are under way")));
            };
            runs.remove(&oldest);
        }
        let progress = watch::Sender::new(Progress::default());
        runs.insert(asked.run, Run { progress: progress.clone(), asked: now });
        drop(runs);
        let (repairs, id) = (self.clone(), asked.run);
        let begun = progress.borrow().to_wire(me);
        tokio::spawn(async move { repairs.run_now(id, Selection { keyspace, partition }, &progress).await });
        Ok(begun)
    }

    fn is_abandoned(&self, id: u64) -> bool {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.coordinator.driver.clock.mono();
        runs.get(&id).is_none_or(|run| now >= run.asked + ABANDONED)
    }

    async fn run_now(&self, id: u64, selection: Selection, progress: &watch::Sender<Progress>) {
        let map = self.map.borrow().clone();
        let me = self.coordinator.driver.me;
        let peers = map.layout.members.iter().map(|member| member.id).filter(|id| *id > me);
        let with = |peer| (peer, shared(&map, me, peer, selection));
        let mut todo: Vec<(NodeId, Vec<Shared>)> = peers.map(with).collect();
        // Another peer first than the node before.
        let before = map.layout.members.iter().filter(|member| member.id < me).count();
        let begin = before % todo.len().max(1);
        todo.rotate_left(begin);
        let trees: usize = todo.iter().map(|(_, some)| some.len()).sum();
        progress.send_modify(|p| p.trees = u64::try_from(trees).unwrap_or(u64::MAX));
        for attempt in 0..ATTEMPTS {
            todo.retain(|(_, some)| !some.is_empty());
            if attempt > 0 && !todo.is_empty() {
                let waits_for_records = progress.borrow().too_new > 0;
                tokio::time::sleep(if waits_for_records { SETTLE + PAUSE } else { PAUSE }).await;
                progress.send_modify(|p| {
                    p.too_new = 0;
                    p.problems.clear();
                });
            }
            for (peer, some) in &mut todo {
                if self.is_abandoned(id) {
                    break;
                }
                *some = self.pass(*peer, std::mem::take(some), progress, false).await;
            }
        }
        self.store_proofs().await;
        progress.send_modify(|p| p.over = true);
    }
}
