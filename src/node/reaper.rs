//! Collects tombstones: finds those whose grace is over, and leads the collection of the places of which this node is
//! the first home replica (`tombstone::reap`).
//!
//! Each dead record has a line in an index by time (`storage::schema`), written with it. A pass goes through what is
//! due; a line that leads to nothing any more, or to a record that is dead since another time, is deleted. What all confirm
//! is remembered, in memory: it is purged by a pass that comes when no message is on its way any more that is older.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::committer::Committer;
use super::comparisons::{Refused, place_of};
use super::coordinator::Coordinator;
use super::peers::Peers;
use super::refill::REFILLING;
use super::whose::check_layout;
use crate::antientropy::forest::Place;
use crate::antientropy::tree::Item;
use crate::canary::{self, Canary};
use crate::machine::Machine as _;
use crate::replica::stored;
use crate::ring::layout::ClusterMap;
use crate::ring::preflist::homes;
use crate::rpc::peer_service::{Reply, Sender};
use crate::rpc::proto::{self, answer, operation, refusal::Reason};
use crate::rpc::tree_wire as wire;
use crate::storage::{Batch, schema};
use crate::tombstone::reap::{Effect, Event, Reap};
use crate::types::error::Cause;
use crate::types::ids::{KeyspaceId, NodeId};
use crate::types::limits::{
    REAP_CONFIRMED, REAP_GATHERED, REAP_GATHERED_BYTES, REAP_INTERVAL_MAX, REAP_MARGIN, REAP_RECORDS,
};
use crate::types::time::{Mono, WallMs};
use crate::version::codec;
use crate::version::record::{Digest, Record};

/// How long a peer may take over an answer, at the most.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long to rest after some records, and while clients are served.
const REST: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// One pass of so many reads all that is due, to delete the lines that lead nowhere. The others read what this node leads.
const THOROUGH_EVERY: u64 = 16;
/// So many lines that a pass passed over make the next one read them all.
const SKIPPED_MOST: usize = 50_000;

/// A record and its digest, by storage key.
type Doomed = (Vec<u8>, Digest);

/// Dead records that are due and not purged yet, of places of which this node is the first home replica.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DueTombstones {
    waiting: usize,
    waits_for: BTreeMap<NodeId, usize>,
}

impl DueTombstones {
    /// So many of a batch are left, of which so many have been confirmed by all.
    fn add(&mut self, left: usize, confirmed: usize, waits_for: BTreeSet<NodeId>) {
        self.waiting += left;
        // If all have confirmed them, some node did not say that it purged them.
        let lacking = if left > confirmed { left - confirmed } else { left };
        for node in waits_for {
            *self.waits_for.entry(node).or_default() += lacking;
        }
    }

    /// For `status`.
    pub fn to_wire(&self) -> proto::DueTombstones {
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let of = |(node, count): (&NodeId, &usize)| proto::TombstonesFor {
            node_id: node.to_string(),
            tombstones: number(*count),
        };
        proto::DueTombstones {
            waiting: number(self.waiting),
            waits_for: self.waits_for.iter().map(of).collect(),
        }
    }
}

/// What all home replicas have confirmed, by fingerprint: when, and the pass that saw it last.
#[derive(Default)]
struct Confirmed {
    all: BTreeMap<Item, (Mono, u64)>,
    pass: u64,
    /// Lines that lead to places of others, and were not looked at: in this pass, and in the last.
    skipped: usize,
    skipped_last: usize,
}

impl Confirmed {
    fn item((storage_key, digest): &Doomed) -> Item {
        Item::of(storage_key, *digest)
    }

    /// Which of some records have been confirmed for so long.
    fn ripe(&mut self, records: &[(Doomed, Record)], now: Mono, rest: Duration) -> BTreeSet<usize> {
        let mut ripe = BTreeSet::new();
        for (at, (doomed, _)) in records.iter().enumerate() {
            let Some((since, pass)) = self.all.get_mut(&Confirmed::item(doomed)) else { continue };
            *pass = self.pass;
            if Duration::from_micros(now.micros_since(*since)) > rest {
                ripe.insert(at);
            }
        }
        ripe
    }

    /// Notes that all have confirmed a record, unless that is known.
    fn note(&mut self, doomed: &Doomed, now: Mono) {
        if self.all.len() < REAP_CONFIRMED {
            self.all.entry(Confirmed::item(doomed)).or_insert((now, self.pass));
        }
    }

    /// Somebody lacks a record: what was confirmed counts no more.
    fn forget(&mut self, doomed: &Doomed) {
        self.all.remove(&Confirmed::item(doomed));
    }

    /// Whether this pass also looks at the records of places that others lead.
    fn is_thorough(&self) -> bool {
        self.pass % THOROUGH_EVERY == THOROUGH_EVERY - 1 || self.skipped_last > SKIPPED_MOST
    }

    /// Forgets what the pass that is over has not seen: it is gone, or is something else by now.
    fn end_pass(&mut self) {
        let over = self.pass;
        self.all.retain(|_, (_, pass)| *pass == over);
        self.pass += 1;
        self.skipped_last = std::mem::take(&mut self.skipped);
    }
}

/// The records of a question about dead ones.
pub fn records_of_wire(place: Place, dead: &proto::DeadRecords) -> Result<Vec<Doomed>, Refused> {
    let bad = |problem: &str| (Reason::BadRequest, format!("records: {problem}"));
    if dead.records.len() > REAP_RECORDS {
        return Err(bad(&format!("{} of them, over the limit of {REAP_RECORDS}", dead.records.len())));
    }
    let prefix = schema::range_prefix(place.partition, place.keyspace);
    let record = |record: &proto::DeadRecord| {
        schema::split_suffix(&record.suffix)?;
        let digest = <[u8; 16]>::try_from(&record.digest[..]).ok()?;
        Some(([&prefix[..], &record.suffix].concat(), Digest(digest)))
    };
    dead.records.iter().map(record).collect::<Option<Vec<_>>>().ok_or_else(|| bad("one that can't be"))
}

/// A bit for each record that is held here exactly, and durably.
pub async fn held(committer: &Committer, records: &[Doomed]) -> Result<Bytes, Cause> {
    let mut holds = Vec::with_capacity(records.len());
    for (storage_key, digest) in records {
        let found = stored::load(committer.storage(), storage_key);
        let found = found.inspect_err(|error| committer.suspect(storage_key, error));
        // One that can't be read is not held.
        holds.push(found.is_ok_and(|found| found.is_some_and(|found| found.record.digest() == *digest)));
    }
    if let Some(group) = committer.unsettled_any()
        && !committer.settled(group).await
    {
        return Err(Cause::Storage("a sync has failed".into()));
    }
    Ok(wire::mask_to_wire(records.len(), |at| holds[at]).into())
}

impl Peers {
    /// Says which dead records are held here, or purges them.
    pub(super) fn dead_records(
        &self,
        from: Sender,
        keyspace: u32,
        dead: &proto::DeadRecords,
        purges: bool,
        reply: Reply,
    ) {
        let map = self.maps.current();
        let place = check_layout(from, &map)
            .and_then(|()| place_of(&map, self.me.node, KeyspaceId(keyspace), dead.partition));
        let records = place.and_then(|place| match self.coordinator.driver.refill.lacks(place) {
            true => Err((Reason::Refilling, REFILLING.to_owned())),
            false => records_of_wire(place, dead),
        });
        let records = match records {
            Ok(records) => records,
            Err((reason, message)) => return reply.refuse(reason, message),
        };
        let committer = self.coordinator.driver.committer.clone();
        tokio::spawn(async move {
            let answer = match purges {
                true => committer
                    .purge(records)
                    .await
                    .map(|purged| answer::Kind::PurgedDead(u32::try_from(purged).unwrap_or(u32::MAX))),
                false => held(&committer, &records).await.map(answer::Kind::HeldDead),
            };
            match answer {
                Ok(answer) => reply.send(answer),
                Err(cause) => reply.refuse(Reason::Storage, format!("{cause:?}")),
            }
        });
    }
}

/// Some dead records of one place.
struct Batched {
    place: Place,
    records: Vec<(Doomed, Record)>,
}

/// Dead records of many places, until there are enough for a conversation about each.
#[derive(Default)]
struct Gathered {
    by: BTreeMap<Place, Vec<(Doomed, Record)>>,
    records: usize,
    bytes: usize,
}

impl Gathered {
    fn add(&mut self, place: Place, doomed: Doomed, record: Record) {
        self.records += 1;
        self.bytes += doomed.0.len() + record.payload_bytes();
        self.by.entry(place).or_default().push((doomed, record));
    }

    fn is_enough(&self) -> bool {
        self.records >= REAP_GATHERED || self.bytes >= REAP_GATHERED_BYTES
    }

    /// By place, as many at a time as a question may have.
    fn batches(self) -> impl Iterator<Item = Batched> {
        self.by.into_iter().flat_map(|(place, mut records)| {
            let mut batches = Vec::new();
            while !records.is_empty() {
                let rest = records.split_off(records.len().min(REAP_RECORDS));
                batches.push(Batched { place, records: std::mem::replace(&mut records, rest) });
            }
            batches
        })
    }
}

/// Collects the tombstones of a node.
pub struct Reaper {
    coordinator: Arc<Coordinator>,
    map: watch::Receiver<Arc<ClusterMap>>,
    grace: Duration,
    confirmed: Confirmed,
}

impl Reaper {
    /// For a node.
    pub fn new(
        coordinator: Arc<Coordinator>,
        map: watch::Receiver<Arc<ClusterMap>>,
        grace: Duration,
    ) -> Reaper {
        Reaper { coordinator, map, grace, confirmed: Confirmed::default() }
    }

    /// Runs passes as long as the node runs.
    pub async fn run(mut self) {
        let interval = (self.grace / 4).clamp(Duration::from_millis(50), REAP_INTERVAL_MAX);
        loop {
            tokio::time::sleep(interval).await;
            let began = self.coordinator.driver.clock.mono();
            let due = self.pass().await;
            let driver = &self.coordinator.driver;
            driver.metrics.repair.tombstones_waiting.set(u64::try_from(due.waiting).unwrap_or(u64::MAX));
            *driver.due_tombstones.lock().unwrap_or_else(PoisonError::into_inner) = due;
            // A pass that finds much and can't purge it is no reason to read it all again at once.
            let took = Duration::from_micros(self.coordinator.driver.clock.mono().micros_since(began));
            tokio::time::sleep(took.min(REAP_INTERVAL_MAX) * 4).await;
        }
    }

    /// Goes through all that is due; how many wait, and for whom.
    async fn pass(&mut self) -> DueTombstones {
        let mut waiting = DueTombstones::default();
        let grace = u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX);
        let due = WallMs(self.coordinator.driver.clock.wall().0.saturating_sub(grace));
        let mut from = Some(schema::dead_key(WallMs(0), &[]));
        let mut gathered = Gathered::default();
        while let Some(at) = from {
            let (lines, next) = self.lines(&at, due);
            let looked = match self.sort(lines, &mut gathered).await {
                Ok(looked) => looked,
                Err(cause) => {
                    tracing::warn!(?cause, "tombstones can't be collected now");
                    return waiting;
                }
            };
            // The index is by time: what lies side by side is of many places, and each is a conversation.
            if next.is_none() || gathered.is_enough() {
                for batch in std::mem::take(&mut gathered).batches() {
                    self.reap(batch, &mut waiting).await;
                }
            }
            let busy = self.coordinator.under_way.load(Ordering::Relaxed) > 0;
            tokio::time::sleep(if busy && looked { REST.1 } else { REST.0 }).await;
            from = next;
        }
        self.confirmed.end_pass();
        waiting
    }

    /// Some lines of the index that are due, from here on, and where to go on.
    fn lines(&self, from: &[u8], due: WallMs) -> (Vec<Vec<u8>>, Option<Vec<u8>>) {
        let to = schema::dead_key(WallMs(due.0.saturating_add(1)), &[]);
        let (mut lines, mut next) = (Vec::new(), None);
        let storage = self.coordinator.driver.committer.storage();
        let read = storage.scan(Bound::Included(from), Bound::Excluded(&to), false, &mut |key, _| {
            if lines.len() == REAP_RECORDS {
                next = Some(key.to_vec());
                return false;
            }
            lines.push(key.to_vec());
            true
        });
        if let Err(error) = read {
            tracing::warn!(%error, "the index of dead records can't be read");
            return (Vec::new(), None);
        }
        (lines, next)
    }

    /// Whether this node leads the collection of a place: it is the first home replica, and has all of it.
    fn leads(&self, map: &ClusterMap, place: Place) -> bool {
        let driver = &self.coordinator.driver;
        let known = map.keyspace_by_id(place.keyspace);
        let lead = known.and_then(|known| homes(map, known, place.partition).first().copied());
        (lead == Some(driver.me) && !driver.refill.lacks(place)) || canary::sings(Canary::PurgedUnasked)
    }

    /// Adds the dead records of places that this node leads. Lines that lead nowhere are deleted: those of places that
    /// others lead are looked at in a thorough pass only. Whether any was.
    async fn sort(&mut self, lines: Vec<Vec<u8>>, gathered: &mut Gathered) -> Result<bool, Cause> {
        let coordinator = self.coordinator.clone();
        let driver = &coordinator.driver;
        let mut looked = false;
        let map = self.map.borrow().clone();
        let mut gone = Batch::new();
        for line in lines {
            let Some((since, storage_key)) = schema::split_dead_key(&line) else { continue };
            let Some((partition, keyspace)) = schema::split_range(storage_key) else { continue };
            let leads = self.leads(&map, Place { partition, keyspace });
            if !leads && !self.confirmed.is_thorough() {
                self.confirmed.skipped += 1;
                continue;
            }
            looked = true;
            let found = match stored::load(driver.committer.storage(), storage_key) {
                Ok(found) => found,
                // It is healed first.
                Err(error) => {
                    driver.committer.suspect(storage_key, &error);
                    continue;
                }
            };
            match found.filter(|found| found.record.dead_since() == Some(since)) {
                None => gone.delete(line.clone()),
                Some(found) if leads => {
                    let doomed = (storage_key.to_vec(), found.record.digest());
                    gathered.add(Place { partition, keyspace }, doomed, found.record);
                }
                Some(_) => {}
            }
        }
        if !gone.is_empty() {
            driver.committer.write(gone).await?;
        }
        Ok(looked)
    }

    /// Leads the collection of some records; adds those that wait.
    async fn reap(&mut self, batch: Batched, waiting: &mut DueTombstones) {
        let coordinator = self.coordinator.clone();
        let driver = &coordinator.driver;
        let map = self.map.borrow().clone();
        let Some(keyspace) = map.keyspace_by_id(batch.place.keyspace) else { return };
        let others: Vec<NodeId> = homes(&map, keyspace, batch.place.partition)
            .into_iter()
            .filter(|node| *node != driver.me && !canary::sings(Canary::PurgedUnasked))
            .collect();
        let rest = driver.message_age + REAP_MARGIN;
        let mut ripe = self.confirmed.ripe(&batch.records, driver.clock.mono(), rest);
        if canary::sings(Canary::PurgedUnasked) || canary::sings(Canary::PurgedAtOnce) {
            ripe = (0..batch.records.len()).collect();
        }
        let mut machine = Reap::new(batch.records.len(), ripe, others);
        let (send, mut events) = mpsc::unbounded_channel();
        let mut effects = Vec::new();
        let batch = Arc::new(batch);
        machine.step(driver.clock.mono(), Event::Start, &mut effects);
        loop {
            for effect in effects.drain(..) {
                if let Effect::Push(_, lacking) = &effect {
                    lacking.iter().for_each(|at| self.confirmed.forget(&batch.records[*at].0));
                }
                let (coordinator, batch, send) = (coordinator.clone(), batch.clone(), send.clone());
                match effect {
                    Effect::Finish { purged, confirmed, waits_for } => {
                        let now = driver.clock.mono();
                        confirmed.iter().for_each(|at| self.confirmed.note(&batch.records[*at].0, now));
                        let left = batch.records.len().saturating_sub(purged);
                        waiting.add(left, confirmed.len(), waits_for);
                        let purged = u64::try_from(purged).unwrap_or(0);
                        driver.metrics.repair.tombstones_purged.inc_by(purged);
                        return;
                    }
                    effect => drop(tokio::spawn(async move {
                        let event = carry_out(&coordinator, &batch, effect).await;
                        let _ = send.send(event);
                    })),
                }
            }
            let Some(event) = events.recv().await else { return };
            machine.step(driver.clock.mono(), event, &mut effects);
            machine.check_invariants();
        }
    }
}

async fn carry_out(coordinator: &Arc<Coordinator>, batch: &Batched, effect: Effect) -> Event {
    if canary::sings(Canary::PurgedBlindly) && matches!(effect, Effect::Purge(..) | Effect::PurgeOwn(_)) {
        // Time for somebody to write it anew.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    match effect {
        Effect::Ask(node) => {
            let dead = dead_records(batch, &(0..batch.records.len()).collect());
            match ask(coordinator, node, batch.place, operation::Kind::HoldDead(dead)).await {
                Some(answer::Kind::HeldDead(mask)) => {
                    let holds = |at: &usize| mask.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
                    Event::Holds(node, (0..batch.records.len()).filter(holds).collect())
                }
                _ => Event::Failed(node),
            }
        }
        Effect::Push(node, records) => {
            for at in records {
                if !push(coordinator, node, &batch.records[at]).await {
                    return Event::Failed(node);
                }
            }
            Event::Taken(node)
        }
        Effect::Purge(node, records) => {
            let dead = dead_records(batch, &records);
            match ask(coordinator, node, batch.place, operation::Kind::PurgeDead(dead)).await {
                Some(answer::Kind::PurgedDead(_)) => Event::Purged(node),
                _ => Event::Failed(node),
            }
        }
        Effect::PurgeOwn(records) => {
            let doomed = records.iter().map(|at| batch.records[*at].0.clone()).collect();
            match coordinator.driver.committer.purge(doomed).await {
                Ok(purged) => Event::PurgedOwn(purged),
                Err(_) => Event::PurgedOwn(0),
            }
        }
        Effect::Finish { .. } => Event::PurgedOwn(0),
    }
}

fn dead_records(batch: &Batched, records: &BTreeSet<usize>) -> proto::DeadRecords {
    let prefix = schema::range_prefix(batch.place.partition, batch.place.keyspace).len();
    let record = |at: &usize| {
        let ((storage_key, digest), _) = &batch.records[*at];
        proto::DeadRecord { suffix: storage_key[prefix..].to_vec().into(), digest: digest.0.to_vec().into() }
    };
    proto::DeadRecords {
        partition: batch.place.partition.0.into(),
        records: records.iter().map(record).collect(),
    }
}

/// A peer's answer; none if there is none in time.
async fn ask(
    coordinator: &Coordinator,
    node: NodeId,
    place: Place,
    kind: operation::Kind,
) -> Option<answer::Kind> {
    let until = coordinator.driver.clock.mono() + within(coordinator);
    let operation = proto::Operation {
        keyspace_id: place.keyspace.0,
        kind: Some(kind),
        until_us: until.0,
        ..proto::Operation::default()
    };
    send(coordinator, node, operation).await
}

async fn send(coordinator: &Coordinator, node: NodeId, operation: proto::Operation) -> Option<answer::Kind> {
    let link = coordinator.driver.links.up(node)?;
    let (send, receive) = oneshot::channel();
    link.send(operation, Box::new(move |result| drop(send.send(result)))).ok()?;
    tokio::time::timeout(within(coordinator), receive).await.ok()?.ok()?.ok()
}

/// How long a peer may take over an answer: later it would not even look at the question.
fn within(coordinator: &Coordinator) -> Duration {
    ANSWER_WITHIN.min(coordinator.driver.message_age)
}

/// Sends a record to be merged; whether it was.
async fn push(
    coordinator: &Coordinator,
    node: NodeId,
    ((storage_key, _), record): &(Doomed, Record),
) -> bool {
    let Some((_, keyspace, key)) = schema::split_record_key(storage_key) else { return false };
    let driver = &coordinator.driver;
    let store = proto::Store { record: codec::encode_record(record).into(), ..proto::Store::default() };
    let operation = proto::Operation {
        id: 0,
        keyspace_id: keyspace.0,
        key: key.partition_key().clone(),
        sort: key.sort_key().clone(),
        kind: Some(operation::Kind::Store(store)),
        until_us: (driver.clock.mono() + within(coordinator)).0,
    };
    matches!(send(coordinator, node, operation).await, Some(answer::Kind::Stored(_)))
}
