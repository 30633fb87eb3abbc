//! Finds damaged records before they are needed (`replica::scrub`), and heals what anybody has found
//! (`replica::quarantine`, `replica::heal`).
//!
//! Both give way: the scrub reads so many bytes a second and less while clients are served, few places are healed at a
//! time, and a place of which a replica is away is asked after again when that one is back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::committer::Restored;
use super::comparisons::apart;
use super::config::RepairConfig;
use super::coordinator::Coordinator;
use super::drive;
use super::env::CommitMode;
use crate::machine::Machine as _;
use crate::replica::heal::{Effect, Event, Heal};
use crate::replica::pace::{self, Pace};
use crate::replica::scrub::{self, Looked, Position};
use crate::replica::stored::LoadError;
use crate::ring::layout::ClusterMap;
use crate::ring::preflist::homes;
use crate::rpc::proto::{self, answer, fetched, operation};
use crate::storage::schema;
use crate::types::error::Cause;
use crate::types::ids::NodeId;
use crate::types::limits::{HEAL_AGAIN, HEAL_NO_VERSION_AGAIN, HEALINGS_AT_ONCE};
use crate::types::time::Mono;
use crate::version::codec;
use crate::version::record::Record;

/// How long a peer may take over an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Looks for damage, and heals it.
pub struct Scrubber {
    coordinator: Arc<Coordinator>,
    map: watch::Receiver<Arc<ClusterMap>>,
    mode: CommitMode,
    interval: Duration,
    rate: u64,
}

/// What this node has found damaged.
pub fn damage(coordinator: &Coordinator) -> proto::Damage {
    let driver = &coordinator.driver;
    let (waiting, quarantined) = driver.committer.damaged();
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let unreadable = driver.metrics.scrub.unreadable.get() > 0;
    proto::Damage { waiting: number(waiting), quarantined: number(quarantined), unreadable }
}

/// What became of an attempt to heal a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// It is over.
    Done,
    /// It waits for a replica.
    Waits,
    /// No replica has a version.
    NoVersion,
}

impl Scrubber {
    /// For a node.
    pub fn new(
        coordinator: Arc<Coordinator>,
        map: watch::Receiver<Arc<ClusterMap>>,
        mode: CommitMode,
        config: &RepairConfig,
    ) -> Scrubber {
        let (interval, rate) = (Duration::from_millis(config.scrub_interval_ms), config.scrub_rate_bytes);
        Scrubber { coordinator, map, mode, interval, rate }
    }

    /// Runs passes as long as the node runs.
    pub async fn scrub(self: Arc<Scrubber>) {
        if self.interval.is_zero() {
            return;
        }
        let driver = &self.coordinator.driver;
        let position = Position::load(driver.committer.storage()).unwrap_or_default();
        let (mut machine, mut effects) = (Pace::new(self.interval, self.rate, position), Vec::new());
        machine.step(driver.clock.mono(), pace::Event::Start, &mut effects);
        loop {
            let mut event = None;
            for effect in std::mem::take(&mut effects) {
                match effect {
                    pace::Effect::Read(from) => event = Some(self.read(from).await),
                    pace::Effect::Rest(rest) => {
                        tokio::time::sleep(rest).await;
                        event = Some(pace::Event::Rested(driver.clock.wall()));
                    }
                    pace::Effect::Note(position) => {
                        if let Err(cause) = driver.committer.write(position.batch()).await {
                            tracing::debug!(?cause, "the position of the scrub is not stored");
                        }
                    }
                    pace::Effect::Passed => {
                        driver.metrics.scrub.passes.inc();
                    }
                }
            }
            let Some(event) = event else { return };
            machine.step(driver.clock.mono(), event, &mut effects);
        }
    }

    /// A step of a pass.
    async fn read(&self, from: Vec<u8>) -> pace::Event {
        let committer = self.coordinator.driver.committer.clone();
        match apart(self.mode, move || scrub::step(committer.storage(), &from)).await {
            Some(Ok(looked)) => {
                self.note(&looked);
                let is_busy = self.coordinator.under_way.load(Ordering::Relaxed) > 0;
                pace::Event::Read { bytes: looked.bytes, next: looked.next, is_busy }
            }
            failed => {
                tracing::warn!(?failed, "the scrub can't read now");
                pace::Event::Failed
            }
        }
    }

    fn note(&self, looked: &Looked) {
        let driver = &self.coordinator.driver;
        let metrics = &driver.metrics.scrub;
        metrics.entries.inc_by(looked.entries);
        metrics.bytes.inc_by(looked.bytes);
        for storage_key in &looked.damaged {
            driver.committer.suspect(storage_key, &LoadError::Damaged(String::new()));
        }
        for (key, why) in &looked.others {
            metrics.others_damaged.inc();
            tracing::error!(?key, why, "a damaged value");
        }
        if let Some(why) = &looked.unreadable {
            metrics.unreadable.inc();
            tracing::error!(
                why,
                "the storage engine can't read a part of its files, and can't heal it: \
                 see \"A disk is damaged\" in docs/operations.md"
            );
        }
    }

    /// Heals what waits, as long as the node runs.
    pub async fn heal(self: Arc<Scrubber>) {
        let driver = &self.coordinator.driver;
        let mut not_before: BTreeMap<Vec<u8>, Mono> = BTreeMap::new();
        loop {
            if driver.committer.waiting().is_empty() {
                driver.committer.suspected().await;
            } else {
                // A place that waits is tried again; one that is found meanwhile comes at once.
                let _ = tokio::time::timeout(HEAL_AGAIN, driver.committer.suspected()).await;
            }
            self.set_aside().await;
            let waiting = driver.committer.waiting();
            let renewed = driver.committer.take_renewed();
            not_before.retain(|key, _| waiting.contains(key) && !renewed.contains(key));
            let now = driver.clock.mono();
            let due = waiting.into_iter().filter(|key| not_before.get(key).is_none_or(|at| now >= *at));
            for (key, attempt) in self.heal_all(due.collect()).await {
                if attempt == Attempt::NoVersion {
                    not_before.insert(key, now + HEAL_NO_VERSION_AGAIN);
                }
            }
        }
    }

    /// Sets aside what was found; some at a time, which share a sync.
    async fn set_aside(&self) {
        let mut under_way = JoinSet::new();
        for storage_key in self.coordinator.driver.committer.take_suspects() {
            if under_way.len() == HEALINGS_AT_ONCE {
                under_way.join_next().await;
            }
            let committer = self.coordinator.driver.committer.clone();
            under_way.spawn(async move {
                loop {
                    match committer.set_aside(storage_key.clone()).await {
                        Err(Cause::Overloaded(delay)) => tokio::time::sleep(delay).await,
                        // It is found again.
                        Err(cause) => {
                            break tracing::warn!(?cause, "a damaged record can't be set aside now");
                        }
                        Ok(_) => break,
                    }
                }
            });
        }
        while under_way.join_next().await.is_some() {}
    }

    async fn heal_all(&self, due: Vec<Vec<u8>>) -> Vec<(Vec<u8>, Attempt)> {
        let (mut under_way, mut done) = (JoinSet::new(), Vec::new());
        for key in due {
            if under_way.len() == HEALINGS_AT_ONCE {
                done.extend(under_way.join_next().await.and_then(Result::ok));
            }
            let (coordinator, map) = (self.coordinator.clone(), self.map.borrow().clone());
            under_way.spawn(async move {
                let attempt = heal_one(&coordinator, &map, &key).await;
                (key, attempt)
            });
        }
        while let Some(ended) = under_way.join_next().await {
            done.extend(ended);
        }
        done
    }
}

/// Attempts to heal a place.
async fn heal_one(coordinator: &Arc<Coordinator>, map: &ClusterMap, storage_key: &[u8]) -> Attempt {
    let driver = &coordinator.driver;
    let Some((partition, id, key)) = schema::split_record_key(storage_key) else { return Attempt::NoVersion };
    let Some(keyspace) = map.keyspace_by_id(id) else {
        // Dropped: once its records are swept away there is nothing to heal.
        return match map.has_dropped(id) {
            true => restore(coordinator, storage_key, Vec::new()).await,
            false => Attempt::Waits,
        };
    };
    let all = homes(map, keyspace, partition);
    let others: BTreeSet<NodeId> = all.iter().copied().filter(|node| *node != driver.me).collect();
    if !all.contains(&driver.me) {
        return Attempt::NoVersion;
    }
    if others.iter().any(|node| driver.links.up(*node).is_none()) {
        return Attempt::Waits;
    }
    let place = drive::Place { keyspace: id, key, storage_key: storage_key.to_vec() };
    let (send, mut events) = mpsc::unbounded_channel();
    let (mut machine, mut effects, mut held) = (Heal::new(others), Vec::new(), Vec::new());
    machine.step(driver.clock.mono(), Event::Start, &mut effects);
    loop {
        for effect in effects.drain(..) {
            match effect {
                Effect::Ask(node) => {
                    let (coordinator, place, send) = (coordinator.clone(), place.clone(), send.clone());
                    tokio::spawn(async move {
                        let _ = send.send((node, ask(&coordinator, node, &place).await));
                    });
                }
                Effect::Restore => return restore(coordinator, storage_key, held).await,
                Effect::WaitFor(nodes) => {
                    tracing::debug!(?nodes, "a damaged record waits for its replicas");
                    return Attempt::Waits;
                }
                Effect::NoVersion => return Attempt::NoVersion,
            }
        }
        let Some((node, answer)) = events.recv().await else { return Attempt::Waits };
        let event = match answer {
            Some(record) => {
                let has_version = record.is_some();
                held.extend(record);
                Event::Answered(node, has_version)
            }
            None => Event::Failed(node),
        };
        machine.step(driver.clock.mono(), event, &mut effects);
        machine.check_invariants();
    }
}

async fn restore(coordinator: &Coordinator, storage_key: &[u8], held: Vec<Record>) -> Attempt {
    match coordinator.driver.committer.restore(storage_key.to_vec(), held).await {
        Ok(Restored::Healed | Restored::NotDamaged) => Attempt::Done,
        Ok(Restored::Waits) | Err(_) => Attempt::Waits,
    }
}

/// What a node holds of a place: a record, or none; no answer if it can't be asked, or refuses.
async fn ask(coordinator: &Coordinator, node: NodeId, place: &drive::Place) -> Option<Option<Record>> {
    let driver = &coordinator.driver;
    let fetch = proto::Fetch { heal: true, ..proto::Fetch::default() };
    let mut operation = place.operation(operation::Kind::Fetch(fetch));
    operation.until_us = (driver.clock.mono() + ANSWER_WITHIN.min(driver.message_age)).0;
    let link = driver.links.up(node)?;
    let (send, receive) = oneshot::channel();
    link.send(operation, Box::new(move |result| drop(send.send(result)))).ok()?;
    let answer = tokio::time::timeout(ANSWER_WITHIN, receive).await.ok()?.ok()?.ok()?;
    let answer::Kind::Fetched(proto::Fetched { kind: Some(kind) }) = answer else { return None };
    match kind {
        fetched::Kind::Record(bytes) => codec::decode_record(&bytes).ok().map(Some),
        fetched::Kind::None(_) => Some(None),
        fetched::Kind::Damaged(since) if since.is_empty() => Some(None),
        fetched::Kind::Damaged(since) => codec::decode_record(&since).ok().map(Some),
        fetched::Kind::Same(_) => None,
    }
}
