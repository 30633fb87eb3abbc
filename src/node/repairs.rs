//! Anti-entropy's schedule: which trees this node compares with which peer, and when.
//!
//! Of each pair of nodes the one with the lower id begins. In a pass with a peer it compares the roots of all trees
//! that both have, many to a message, and runs an exchange for each that differs. One exchange at a time, so a
//! node's share of the work is bounded; a pass that breaks off begins anew with the next, which finds equal what was
//! made equal, at the cost of its root.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::config::RepairConfig;
use super::coordinator::Coordinator;
use super::env::CommitMode;
use super::exchanges::{Broken, Done, Talk};
use crate::antientropy::forest::Place;
use crate::ring::layout::ClusterMap;
use crate::ring::preflist::homes;
use crate::rpc::proto::{self, answer, operation, root_verdict::Verdict};
use crate::rpc::tree_wire as wire;
use crate::types::ids::{KeyspaceId, NodeId, PartitionId};
use crate::types::limits::EXCHANGE_ROOTS;
use crate::types::policy::Conflicts;
use crate::types::time::{Mono, WallMs};

/// How often the schedule looks whether something is due.
const TICK: Duration = Duration::from_millis(250);

/// What is to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Selection {
    /// Only this keyspace.
    pub keyspace: Option<KeyspaceId>,
    /// Only this partition.
    pub partition: Option<PartitionId>,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// Comparisons of one tree with one peer: all, and done.
    pub trees: u64,
    /// Of those, done.
    pub done: u64,
    /// Of those, found equal at once.
    pub equal: u64,
    /// Records in the trees that were compared.
    pub records: u64,
    /// Records that came, and were new.
    pub received: u64,
    /// Records that were sent.
    pub sent: u64,
    /// Records left out since they were written a moment before.
    pub too_new: u64,
    /// What did not work, by peer.
    pub problems: BTreeMap<NodeId, String>,
    /// Whether it has ended.
    pub over: bool,
}

/// Anti-entropy of a node.
pub struct Repairs {
    coordinator: Arc<Coordinator>,
    map: watch::Receiver<Arc<ClusterMap>>,
    mode: CommitMode,
    config: RepairConfig,
    /// When this node and a peer were last known to agree on a tree.
    proved: Mutex<BTreeMap<(NodeId, Place), WallMs>>,
    /// One pass at a time.
    pass: tokio::sync::Mutex<()>,
}

/// A tree that two nodes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shared {
    place: Place,
    conflicts: Conflicts,
}

/// The trees that both nodes have, by a map.
fn shared(map: &ClusterMap, me: NodeId, peer: NodeId, selection: Selection) -> Vec<Shared> {
    let mut all = Vec::new();
    let wanted = |keyspace: &KeyspaceId| selection.keyspace.is_none_or(|only| only == *keyspace);
    for keyspace in map.keyspaces.iter().filter(|keyspace| wanted(&keyspace.id)) {
        for partition in map.partitions.all() {
            if selection.partition.is_some_and(|only| only != partition) {
                continue;
            }
            let homes = homes(map, keyspace, partition);
            if homes.contains(&me) && homes.contains(&peer) {
                let place = Place { partition, keyspace: keyspace.id };
                all.push(Shared { place, conflicts: keyspace.conflicts });
            }
        }
    }
    all
}

impl Repairs {
    /// For a node.
    pub fn new(
        coordinator: Arc<Coordinator>,
        map: watch::Receiver<Arc<ClusterMap>>,
        mode: CommitMode,
        config: RepairConfig,
    ) -> Repairs {
        Repairs {
            coordinator,
            map,
            mode,
            config,
            proved: Mutex::default(),
            pass: tokio::sync::Mutex::default(),
        }
    }

    /// Runs passes on schedule, as long as the node runs.
    pub async fn run(self: Arc<Repairs>) {
        if self.config.interval_ms == 0 {
            return;
        }
        let mut due: BTreeMap<NodeId, Mono> = BTreeMap::new();
        let clock = self.coordinator.driver.clock.clone();
        loop {
            tokio::time::sleep(TICK).await;
            let map = self.map.borrow().clone();
            let me = self.coordinator.driver.me;
            for peer in map.layout.members.iter().map(|member| member.id).filter(|id| *id > me) {
                let is_due = due.get(&peer).is_none_or(|due| clock.mono() >= *due);
                if is_due && self.coordinator.driver.links.up(peer).is_some() {
                    let mut progress = Progress::default();
                    self.pass(peer, Selection::default(), &mut progress).await;
                    self.show_age(&map);
                    due.insert(peer, clock.mono() + Duration::from_millis(self.config.interval_ms));
                }
            }
        }
    }

    /// Compares everything selected with a peer, and makes it equal.
    async fn pass(&self, peer: NodeId, selection: Selection, progress: &mut Progress) {
        let _one = self.pass.lock().await;
        let map = self.map.borrow().clone();
        let all = shared(&map, self.coordinator.driver.me, peer, selection);
        let talk =
            Talk { coordinator: &self.coordinator, mode: self.mode, peer, rate: self.config.rate_bytes };
        progress.trees += u64::try_from(all.len()).unwrap_or(0);
        for some in all.chunks(EXCHANGE_ROOTS) {
            if let Err(broken) = self.compare(&talk, some, progress).await {
                self.coordinator.driver.metrics.repair.broken.inc();
                tracing::debug!(%peer, %broken, "a pass of anti-entropy broke off");
                progress.problems.insert(peer, broken.to_string());
                return;
            }
        }
    }

    async fn compare(&self, talk: &Talk<'_>, some: &[Shared], progress: &mut Progress) -> Result<(), Broken> {
        let driver = &self.coordinator.driver;
        let began = driver.clock.wall();
        let roots: Vec<_> = driver.committer.with_forest(|forest| {
            some.iter().filter_map(|at| forest.root(at.place).map(|root| (*at, root))).collect()
        });
        let wired = roots.iter().map(|(at, (sum, items))| proto::TreeRoot {
            partition: at.place.partition.0.into(),
            keyspace_id: at.place.keyspace.0,
            sum: wire::root_to_wire(*sum),
            items: *items,
        });
        let question = proto::CompareRoots { roots: wired.collect() };
        let answer = talk.ask(0, operation::Kind::CompareRoots(question)).await?;
        let answer::Kind::Roots(answer) = answer else { return Err(Broken::Nonsense("roots")) };
        let verdicts: BTreeMap<usize, _> =
            answer.verdicts.iter().map(|verdict| (verdict.at as usize, verdict)).collect();
        let repair = &driver.metrics.repair;
        let mut unready = some.len() - roots.len();
        for (at, (shared, (_, items))) in roots.iter().enumerate() {
            repair.compared.inc();
            progress.records += items;
            match verdicts.get(&at).map(|verdict| (verdict.verdict(), verdict.items)) {
                None => {
                    repair.equal.inc();
                    progress.equal += 1;
                    self.prove(talk.peer, shared.place, began);
                }
                Some((Verdict::Differs, theirs)) => {
                    let done = talk.exchange(shared.place, shared.conflicts, theirs.max(*items)).await?;
                    self.count(done, progress);
                    // But for what was written since a moment before.
                    let settled = began.0.saturating_sub(SETTLE_MS);
                    self.prove(talk.peer, shared.place, WallMs(settled));
                }
                Some(_) => unready += 1,
            }
            progress.done += 1;
        }
        if unready > 0 {
            progress.problems.insert(talk.peer, format!("{unready} trees can't be compared now"));
        }
        Ok(())
    }

    fn count(&self, done: Done, progress: &mut Progress) {
        progress.received += done.received;
        progress.sent += done.sent;
        progress.too_new += done.too_new;
    }

    fn prove(&self, peer: NodeId, place: Place, at: WallMs) {
        let mut proved = self.proved.lock().unwrap_or_else(PoisonError::into_inner);
        let known = proved.entry((peer, place)).or_insert(at);
        *known = at.max(*known);
    }

    /// Shows how long ago the least recent proof is, of those that this node is to seek.
    fn show_age(&self, map: &ClusterMap) {
        let me = self.coordinator.driver.me;
        let now = self.coordinator.driver.clock.wall();
        let proved = self.proved.lock().unwrap_or_else(PoisonError::into_inner);
        let peers = map.layout.members.iter().map(|member| member.id).filter(|id| *id > me);
        let wanted = peers.flat_map(|peer| {
            shared(map, me, peer, Selection::default()).into_iter().map(move |at| (peer, at.place))
        });
        // What was never proved is as old as the epoch.
        let oldest = wanted.map(|key| proved.get(&key).copied().unwrap_or(WallMs(0))).min();
        let age = oldest.map_or(0, |oldest| now.0.saturating_sub(oldest.0) / 1_000);
        self.coordinator.driver.metrics.repair.age.set(age);
    }
}

/// `antientropy::exchange::SETTLE` in milliseconds.
const SETTLE_MS: u64 = 5_000;
