//! Anti-entropy's schedule: which trees this node compares with which peer, and when.
//!
//! Of each pair of nodes the one with the lower id begins. In a pass with a peer it compares the roots of all trees
//! that both have, many to a message, and runs an exchange for each that differs. One exchange at a time, so a
//! node's share of the work is bounded; a tree that another peer is at is left for the end (`engaged`). One that fails does not keep the others from being tried; a pass that breaks off,
//! since the peer is silent, begins anew with the next, which finds equal what was made equal, at the cost of its root.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::config::RepairConfig;
use super::coordinator::Coordinator;
use super::env::Env;
use super::exchanges::{Broken, Talk};
use super::proofs::{ALONE, Proofs};
use super::repair_runs::{Progress, Purpose, Run};
use crate::antientropy::exchange::Settling;
use crate::antientropy::forest::Place;
use crate::antientropy::tree::{Salt, Sum};
use crate::ring::layout::ClusterMap;
use crate::ring::preflist::homes;
use crate::rpc::proto::{self, answer, operation, root_verdict::Verdict};
use crate::rpc::tree_wire as wire;
use crate::storage::Batch;
use crate::types::ids::{KeyspaceId, NodeId, PartitionId};
use crate::types::limits::EXCHANGE_ROOTS;
use crate::types::policy::Conflicts;
use crate::types::time::{Mono, WallMs};

/// How often the schedule looks whether something is due.
const TICK: Duration = Duration::from_millis(250);

/// How often the schedule stores what was proved, if something was.
const PROOFS_STORED_EVERY: Duration = Duration::from_secs(5);

/// How long to wait for trees that are being exchanged with others, and how often: 2 seconds, and then 28 more, since one
/// may be large. Then their turn has come.
const TAKEN_PAUSES: [(usize, Duration); 2] =
    [(40, Duration::from_millis(50)), (56, Duration::from_millis(500))];

/// Trees of one comparison whose exchange a peer may leave without an answer before it is taken for silent.
const LATE_MOST: u32 = 2;

/// What is to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Selection {
    /// Only this keyspace.
    pub keyspace: Option<KeyspaceId>,
    /// Only this partition.
    pub partition: Option<PartitionId>,
}

/// Anti-entropy of a node.
pub struct Repairs {
    pub(super) coordinator: Arc<Coordinator>,
    pub(super) map: watch::Receiver<Arc<ClusterMap>>,
    pub(super) env: Env,
    config: RepairConfig,
    proofs: Proofs,
    /// Runs that an operator asked for, by their ids.
    pub(super) runs: Mutex<BTreeMap<u64, Run>>,
    /// One pass at a time.
    pass: tokio::sync::Mutex<()>,
}

/// A tree that two nodes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// Which.
    pub place: Place,
    /// Its keyspace's policy.
    pub conflicts: Conflicts,
    /// Whether an exchange was whole already, but for records that were too new.
    is_counted: bool,
}

/// The trees that both nodes have, by a map. Each node begins at another one, so that several which do this at a time don't
/// bring one record to one replica.
pub fn shared(map: &ClusterMap, me: NodeId, peer: NodeId, selection: Selection) -> Vec<Shared> {
    let mut all = Vec::new();
    let wanted = |keyspace: &KeyspaceId| selection.keyspace.is_none_or(|only| only == *keyspace);
    for keyspace in map.keyspaces.iter().filter(|keyspace| wanted(&keyspace.id)) {
        for partition in map.partitions.all() {
            if selection.partition.is_some_and(|only| only != partition) {
                continue;
            }
            let place = Place { partition, keyspace: keyspace.id };
            if is_shared(map, me, peer, place) {
                all.push(Shared { place, conflicts: keyspace.conflicts, is_counted: false });
            }
        }
    }
    let members = &map.layout.members;
    let before = members.iter().filter(|member| member.id < me).count();
    let begin = all.len() * before / members.len().max(1);
    all.rotate_left(begin);
    all
}

/// Whether both nodes have a tree, by a map.
fn is_shared(map: &ClusterMap, me: NodeId, peer: NodeId, place: Place) -> bool {
    map.keyspace_by_id(place.keyspace).is_some_and(|keyspace| {
        let homes = homes(map, keyspace, place.partition);
        homes.contains(&me) && homes.contains(&peer)
    })
}

impl Repairs {
    /// For a node.
    pub fn new(
        coordinator: Arc<Coordinator>,
        map: watch::Receiver<Arc<ClusterMap>>,
        env: Env,
        config: RepairConfig,
        proofs: Proofs,
    ) -> Repairs {
        Repairs {
            coordinator,
            map,
            env,
            config,
            proofs,
            runs: Mutex::default(),
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
        let mut stored = clock.mono();
        loop {
            tokio::time::sleep(TICK).await;
            if clock.mono() >= stored + PROOFS_STORED_EVERY {
                self.store_proofs().await;
                stored = clock.mono();
            }
            let map = self.map.borrow().clone();
            let me = self.coordinator.driver.me;
            for peer in map.layout.members.iter().map(|member| member.id).filter(|id| *id > me) {
                let is_due = due.get(&peer).is_none_or(|due| clock.mono() >= *due);
                if is_due && self.coordinator.driver.links.up(peer).is_some() {
                    let all = shared(&map, me, peer, Selection::default());
                    let unseen = watch::Sender::new(Progress::default());
                    self.pass(peer, all, &unseen, Purpose::Schedule).await;
                    self.show_age(&map);
                    due.insert(peer, clock.mono() + Duration::from_millis(self.config.interval_ms));
                }
            }
        }
    }

    /// Compares trees with a peer, and makes them equal. Returns those that are to be compared again.
    pub(super) async fn pass(
        &self,
        peer: NodeId,
        all: Vec<Shared>,
        progress: &watch::Sender<Progress>,
        purpose: Purpose,
    ) -> Vec<Shared> {
        let _one = self.pass.lock().await;
        let repair = &self.coordinator.driver.metrics.repair;
        let (mode, rate) = (self.env.commit, self.config.rate_bytes);
        let is_refill = purpose == Purpose::Refill;
        let salt = if is_refill { Salt::WIDE } else { Salt::drawn(self.env.random()) };
        let talk = Talk { coordinator: &self.coordinator, mode, peer, rate, progress, purpose, salt };
        let mut undone = Vec::new();
        let mut chunks = all.chunks(EXCHANGE_ROOTS);
        for some in chunks.by_ref() {
            let mut left: BTreeMap<Place, Shared> = some.iter().map(|one| (one.place, *one)).collect();
            let bytes = repair.bytes.get();
            let compared = self.compare_in_turn(&talk, &mut left).await;
            progress.send_modify(|p| p.bytes += repair.bytes.get() - bytes);
            undone.extend(left.into_values());
            if let Err(broken) = compared {
                self.note_broken(&talk, &broken);
                break;
            }
        }
        undone.extend(chunks.flatten());
        undone
    }

    fn note_broken(&self, talk: &Talk<'_>, broken: &Broken) {
        self.coordinator.driver.metrics.repair.broken.inc();
        tracing::debug!(peer = %talk.peer, %broken, "an exchange of anti-entropy broke off");
        talk.progress.send_modify(|p| drop(p.problems.insert(talk.peer, broken.to_string())));
    }

    /// Compares some trees, those last that are being exchanged with others. What stays in `left` is to be compared
    /// again. An error if the peer does not answer.
    async fn compare_in_turn(
        &self,
        talk: &Talk<'_>,
        left: &mut BTreeMap<Place, Shared>,
    ) -> Result<(), Broken> {
        let mut undone = BTreeMap::new();
        let pauses =
            TAKEN_PAUSES.into_iter().flat_map(|(times, pause)| std::iter::repeat_n(Some(pause), times));
        for pause in pauses.chain([None]) {
            let salt = if pause.is_some() { talk.salt } else { Salt::WIDE };
            let mut taken = BTreeMap::new();
            let compared = self.compare(&Talk { salt, ..*talk }, left, &mut taken).await;
            undone.append(left);
            *left = taken;
            if compared.is_err() || left.is_empty() {
                left.append(&mut undone);
                return compared;
            }
            tokio::time::sleep(pause.unwrap_or_default()).await;
        }
        left.append(&mut undone);
        Ok(())
    }

    /// Compares some trees. Those that stay in `left` are to be compared again, as are those that go to `taken`.
    async fn compare(
        &self,
        talk: &Talk<'_>,
        left: &mut BTreeMap<Place, Shared>,
        taken: &mut BTreeMap<Place, Shared>,
    ) -> Result<(), Broken> {
        let driver = &self.coordinator.driver;
        let began = driver.clock.wall();
        let roots = self.roots(talk.peer, left.values());
        let mut exchanged = Vec::new();
        let (verdicts, mut damaged) = ask_roots(talk, &roots).await?;
        let own = driver.committer.damaged_trees();
        damaged.extend((0..roots.len()).filter(|at| own.contains(&roots[*at].0.place)));
        if talk.purpose == Purpose::Refill {
            // Healing waits for the refilled replica, so that must not wait for healing.
            damaged.clear();
        }
        let mut unready = left.len() - roots.len();
        let mut late = 0;
        for (at, (shared, (_, items))) in roots.iter().enumerate() {
            driver.metrics.repair.compared.inc();
            let is_whole = match verdicts.get(&at).map(|verdict| (verdict.verdict(), verdict.items)) {
                // A root does not have what is damaged.
                None if damaged.contains(&at) => false,
                None => {
                    driver.metrics.repair.equal.inc();
                    talk.progress.send_modify(|p| p.equal += u64::from(!shared.is_counted));
                    self.proved(talk.peer, shared.place, began);
                    true
                }
                Some((Verdict::Differs, theirs)) => {
                    match talk.exchange(shared.place, shared.conflicts, theirs.max(*items)).await {
                        Ok(left_out) => {
                            let is_sound = !damaged.contains(&at);
                            // What is too new does not matter to what is proved.
                            exchanged.extend((is_sound && !left_out.is_partial).then_some(*shared));
                            let is_whole = left_out.is_whole() && is_sound;
                            talk.progress.send_modify(|p| p.left_out(talk.peer, &left_out, is_whole));
                            is_whole
                        }
                        Err(Broken::Silent) => return Err(Broken::Silent),
                        Err(Broken::Taken) => {
                            taken.extend(left.remove_entry(&shared.place));
                            continue;
                        }
                        Err(broken) => {
                            // One tree that takes too long does not keep the others from being tried.
                            late += u32::from(broken == Broken::Late);
                            if late > LATE_MOST {
                                return Err(broken);
                            }
                            self.note_broken(talk, &broken);
                            continue;
                        }
                    }
                }
                Some(_) => {
                    unready += 1;
                    continue;
                }
            };
            if !shared.is_counted {
                talk.progress.send_modify(|p| {
                    p.records += items;
                    p.done += 1;
                });
            }
            match is_whole {
                true => drop(left.remove(&shared.place)),
                false => drop(left.insert(shared.place, Shared { is_counted: true, ..*shared })),
            }
        }
        if unready > 0 {
            let problem = format!("{unready} trees can't be compared now");
            talk.progress.send_modify(|p| drop(p.problems.insert(talk.peer, problem)));
        }
        if !damaged.is_empty() {
            let problem = format!("{} trees have damaged records that wait to be healed", damaged.len());
            talk.progress.send_modify(|p| drop(p.problems.insert(talk.peer, problem)));
        }
        self.prove(talk, began, &exchanged).await
    }

    /// Of some trees the roots that are known now, of those that this node and a peer have by the map now: it may be
    /// another than when the pass began.
    fn roots<'a>(&self, peer: NodeId, of: impl Iterator<Item = &'a Shared>) -> Vec<(Shared, (Sum, u64))> {
        let of: Vec<Shared> = of.filter(|at| self.shares(peer, at.place)).copied().collect();
        let committer = &self.coordinator.driver.committer;
        committer.with_forest(|forest| {
            of.into_iter().filter_map(|at| Some((at, forest.root(at.place)?))).collect::<Vec<_>>()
        })
    }

    /// Whether this node and a peer have a tree, by the map now.
    fn shares(&self, peer: NodeId, place: Place) -> bool {
        is_shared(&self.map.borrow(), self.coordinator.driver.me, peer, place)
    }

    /// Notes a proof, unless the tree is no longer both nodes'.
    fn proved(&self, peer: NodeId, place: Place, at: WallMs) {
        if self.shares(peer, place) {
            self.proofs.prove(peer, place, at);
        }
    }

    /// Trees have been exchanged whole. That may have missed something, by the short forms that travelled: so they are
    /// proved by their roots, or, while writes go on and roots are never equal, by the next exchange that is whole.
    async fn prove(&self, talk: &Talk<'_>, began: WallMs, exchanged: &[Shared]) -> Result<(), Broken> {
        // But for what was written since a moment before.
        let settled = Settling::since(began, self.coordinator.driver.max_skew_ms());
        if talk.salt == Salt::WIDE {
            exchanged.iter().for_each(|shared| self.proved(talk.peer, shared.place, settled));
            return Ok(());
        }
        if exchanged.is_empty() {
            return Ok(());
        }
        let now = self.coordinator.driver.clock.wall();
        let roots = self.roots(talk.peer, exchanged.iter());
        let (verdicts, damaged) = ask_roots(talk, &roots).await?;
        for (at, (shared, _)) in roots.iter().enumerate() {
            match verdicts.get(&at).map(proto::RootVerdict::verdict) {
                _ if damaged.contains(&at) => {}
                None => self.proved(talk.peer, shared.place, now),
                Some(Verdict::Differs) => self.proofs.exchanged(talk.peer, shared.place, settled),
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Stores what was proved since it was last stored.
    pub(super) async fn store_proofs(&self) {
        let Some((batch, changes)) = self.proofs.changes() else { return };
        if let Err(cause) = self.coordinator.driver.committer.write(batch).await {
            tracing::debug!(?cause, "what was proved equal is not stored");
            self.proofs.not_stored(changes);
        }
    }

    /// A peer may have lost what was proved equal: forgets that. Returns what deletes it.
    pub(super) fn forget_proofs(&self, peer: NodeId) -> Batch {
        self.proofs.forget(peer)
    }

    /// Of each partition the oldest proof of those that this node is to seek.
    pub fn proofs(&self, map: &ClusterMap) -> Vec<WallMs> {
        self.proofs.by_partition(map, self.coordinator.driver.me)
    }

    /// Shows how long ago the least recent proof is, of those that this node is to seek.
    fn show_age(&self, map: &ClusterMap) {
        let now = self.coordinator.driver.clock.wall();
        let oldest = self.proofs(map).into_iter().filter(|at| *at != ALONE).min();
        // What was never proved is as old as the epoch.
        let age = oldest.map_or(0, |oldest| now.0.saturating_sub(oldest.0) / 1_000);
        self.coordinator.driver.metrics.repair.age.set(age);
    }
}

/// What a peer says of roots that it does not find equal, by their place in the question; and which of the trees have
/// damaged records there.
async fn ask_roots(
    talk: &Talk<'_>,
    roots: &[(Shared, (Sum, u64))],
) -> Result<(BTreeMap<usize, proto::RootVerdict>, BTreeSet<usize>), Broken> {
    let wired = roots.iter().map(|(at, (sum, items))| proto::TreeRoot {
        partition: at.place.partition.0.into(),
        keyspace_id: at.place.keyspace.0,
        sum: wire::root_to_wire(*sum),
        items: *items,
    });
    let question = proto::CompareRoots { roots: wired.collect() };
    let answer = talk.ask(0, operation::Kind::CompareRoots(question)).await?;
    let answer::Kind::Roots(answer) = answer else { return Err(Broken::Nonsense("roots")) };
    let verdicts = answer.verdicts.into_iter().map(|verdict| (verdict.at as usize, verdict)).collect();
    Ok((verdicts, answer.damaged.into_iter().map(|at| at as usize).collect()))
}
