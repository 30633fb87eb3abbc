//! Repair on demand, as far as it is this node's part: a pass with each peer now, and again with what was not done.
//!
//! Rules:
//! 1. A run that is begun twice is the same run.
//! 2. What is not done after a pass, because a peer does not answer, a tree is in rebuild or a record is too new, is tried
//!    again, `ATTEMPTS` times in all. Only what was written before the run began is too new to be done: it is waited for.
//! 3. A run of which nobody asks any more ends. Ended ones are forgotten when there is no room.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::exchanges::Left;
use super::repairs::{Repairs, Selection, Shared, shared};
use crate::antientropy::exchange::SETTLE;
use crate::rpc::proto::{self, refusal::Reason};
use crate::types::ids::{KeyspaceId, NodeId, PartitionId};
use crate::types::time::{Mono, WallMs};
use crate::version::hlc::Stamp;

/// Passes of a run with one peer at the most.
const ATTEMPTS: usize = 3;
/// Time between two, if it is not for records that are too new.
const PAUSE: Duration = Duration::from_secs(1);
/// Runs that are remembered.
const RUNS: usize = 16;
/// How long a run goes on of which nobody asks.
const ABANDONED: Duration = Duration::from_secs(15);

/// Why trees are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It is time.
    Schedule,
    /// An operator asked for it: what was stamped up to this is to be equal.
    Asked(Stamp),
    /// A lost disk is refilled: nothing that the peer has is too new to be taken, or may stay behind.
    Refill,
}

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
    /// Records left out since they were written after it had begun.
    pub later: u64,
    /// Records that were written a moment before, and are waited for, by peer.
    pub awaited: BTreeMap<NodeId, u64>,
    /// Bytes of messages, both ways.
    pub bytes: u64,
    /// What did not work, by peer.
    pub problems: BTreeMap<NodeId, String>,
    /// Whether it has ended.
    pub over: bool,
}

impl Progress {
    /// Counts what an exchange has left. One that is not whole is counted again with the next attempt.
    pub fn left_out(&mut self, peer: NodeId, left: &Left, is_whole: bool) {
        if left.awaited > 0 {
            *self.awaited.entry(peer).or_default() += left.awaited;
        }
        self.later += if is_whole { left.later } else { 0 };
    }

    /// Says of trees that were not done with a peer why, if nobody has said so.
    fn not_done(&mut self, peer: NodeId, trees: usize) {
        let problem = match self.awaited.get(&peer) {
            Some(awaited) => format!("{awaited} records are still too new, by this node's clock"),
            None => format!("{trees} trees are not equal yet"),
        };
        self.problems.entry(peer).or_insert(problem);
    }

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
            too_new: self.later + self.awaited.values().sum::<u64>(),
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
        let driver = &self.coordinator.driver;
        let (me, skew_ms) = (driver.me, driver.max_skew_ms());
        // Whoever stamped it may be as far ahead.
        let began = Stamp::at(WallMs(driver.clock.wall().0.saturating_add(skew_ms).saturating_add(1)));
        let settled_after = SETTLE + Duration::from_millis(skew_ms) + PAUSE;
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
                let waits_for_records = !progress.borrow().awaited.is_empty();
                tokio::time::sleep(if waits_for_records { settled_after } else { PAUSE }).await;
                progress.send_modify(|p| {
                    p.awaited.clear();
                    p.problems.clear();
                });
            }
            for (peer, some) in &mut todo {
                if self.is_abandoned(id) {
                    break;
                }
                *some = self.pass(*peer, std::mem::take(some), progress, Purpose::Asked(began)).await;
            }
        }
        self.store_proofs().await;
        progress.send_modify(|p| {
            let not_done = todo.iter().filter(|(_, some)| !some.is_empty());
            not_done.for_each(|(peer, some)| p.not_done(*peer, some.len()));
            p.over = true;
        });
    }
}
