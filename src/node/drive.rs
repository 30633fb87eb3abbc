//! The one loop that feeds the request machines and carries out their effects, in order.
//!
//! A put or read runs in a task of its own that lives until the machine says `Finished`; the client gets its
//! answer as soon as the machine says `Reply`. Answers of peers and of the commit thread come back through
//! the task's channel, which holds at most a few events for each replica.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};

use super::committer::{Committer, Incoming, Job};
use super::engaged::Engaged;
use super::env::Clock;
use super::hints::Hints;
use super::links::Links;
use super::reaper::DueTombstones;
use super::refill::Refill;
use crate::antientropy::records::Leaves;
use crate::machine::Machine;
use crate::quorum::choice::Choice;
use crate::quorum::{put, read};
use crate::replica::apply::Outcome;
use crate::replica::mint::{Mint, Minted};
use crate::rpc::peer_link::Lost;
use crate::rpc::proto::{self, answer, operation, refusal::Reason};
use crate::telemetry::metrics::Metrics;
use crate::types::error::{Applied, Cause, Failure};
use crate::types::ids::{KeyspaceId, NodeId};
use crate::types::key::Key;
use crate::types::limits::HEDGE_AFTER;
use crate::types::time::Mono;
use crate::version::codec;
use crate::version::hlc::Stamp;
use crate::version::record::{Digest, Record};

/// What a driver needs of its node. Cheap to clone.
#[derive(Clone)]
pub struct Driver {
    /// This node.
    pub me: NodeId,
    /// Clocks.
    pub clock: Arc<dyn Clock>,
    /// The own storage's writer.
    pub committer: Committer,
    /// The other nodes.
    pub links: Arc<Links>,
    /// What is kept for those that are away.
    pub hints: Arc<Hints>,
    /// What must not be asked of this node while it is refilled.
    pub refill: Arc<Refill>,
    /// Whom to read from first.
    pub choice: Arc<Mutex<Choice>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Which trees are being exchanged, and with whom.
    pub engaged: Arc<Engaged>,
    /// What was read of large leaves of the trees.
    pub leaves: Arc<Leaves>,
    /// Tombstones that are due and not purged yet, as the last pass found them.
    pub due_tombstones: Arc<Mutex<DueTombstones>>,
    /// Whether reads repair what they find; only tests of the other paths say no.
    pub read_repair: bool,
    /// How long ago what is stored may have been read or minted: later it could bring back what was purged.
    pub message_age: Duration,
}

/// Where a key is stored.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its keyspace.
    pub keyspace: KeyspaceId,
    /// The key.
    pub key: Key,
    /// Its storage key.
    pub storage_key: Vec<u8>,
}

impl Place {
    /// An operation on the key.
    pub fn operation(&self, kind: operation::Kind) -> proto::Operation {
        proto::Operation {
            id: 0,
            keyspace_id: self.keyspace.0,
            key: self.key.partition_key().clone(),
            sort: self.key.sort_key().clone(),
            kind: Some(kind),
            until_us: 0,
        }
    }
}

/// An acknowledged put.
pub struct PutDone {
    /// What the machine said.
    pub done: put::Done,
    /// The version that was acknowledged.
    pub minted: Minted,
}

enum PutEvent {
    Machine(put::Event),
    Minted(Box<Result<Minted, Cause>>),
}

impl Driver {
    /// Which tombstones that this node leads are due and not purged yet.
    pub fn due_tombstones(&self) -> proto::DueTombstones {
        self.due_tombstones.lock().unwrap_or_else(PoisonError::into_inner).to_wire()
    }

    /// `clock.max_skew_ms`.
    pub fn max_skew_ms(&self) -> u64 {
        self.committer.with_minter(|minter| minter.clock().max_skew_ms())
    }

    /// What is known of the others as replicas to read from.
    pub fn choice(&self) -> MutexGuard<'_, Choice> {
        self.choice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sleep_until(&self, at: Option<Mono>) {
        match at {
            Some(at) => {
                let wait = at.micros_since(self.clock.mono());
                tokio::time::sleep(std::time::Duration::from_micros(wait)).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Runs a put to its answer; its task lives on until each replica has answered or the deadline is there.
    pub async fn put(&self, plan: put::Plan, place: Place, write: Mint) -> Result<PutDone, Failure> {
        let (reply, answer) = oneshot::channel();
        let driver = self.clone();
        tokio::spawn(async move { driver.run_put(plan, place, write, reply).await });
        // The task is gone, with the runtime or by a fault: what it had stored is not known.
        let lost = Failure { applied: Applied::Maybe, ..Failure::early(Cause::TooFewAcks) };
        answer.await.unwrap_or(Err(lost))
    }

    async fn run_put(
        &self,
        plan: put::Plan,
        place: Place,
        mut write: Mint,
        reply: oneshot::Sender<Result<PutDone, Failure>>,
    ) {
        let (events, mut incoming) = mpsc::unbounded_channel();
        // A fallback that coordinates keeps its own copy as a hint for the first home.
        let stands_in_for = plan.homes.iter().all(|(node, _)| *node != plan.me).then(|| plan.homes[0].0);
        let (mut machine, mut effects) = (put::Put::new(plan), Vec::new());
        let (mut reply, mut minted, mut deadline, mut stand_in) = (Some(reply), None::<Minted>, None, None);
        let mut next = Some(put::Event::Start);
        let until = self.clock.mono() + self.message_age;
        loop {
            if let Some(event) = next.take() {
                machine.step(self.clock.mono(), event, &mut effects);
            }
            let mut queued = VecDeque::new();
            for effect in effects.drain(..) {
                match effect {
                    put::Effect::Arm(at) => deadline = Some(at),
                    put::Effect::Mint { round, above } => {
                        if round > 0 {
                            self.metrics.restamps.inc();
                        }
                        write.above = write.above.max(above.unwrap_or_default());
                        self.mint(&write, stands_in_for, &place, &events);
                    }
                    put::Effect::Send { to, round } => {
                        let minted = minted.as_ref().expect("what is sent is minted");
                        queued.extend(self.send(&place, minted, (to, None), (round, until), &events));
                    }
                    put::Effect::ArmStandIn(at) => stand_in = Some(at),
                    put::Effect::StandIn { to, home, round } => {
                        let minted = minted.as_ref().expect("what is sent is minted");
                        queued.extend(self.send(&place, minted, (to, Some(home)), (round, until), &events));
                    }
                    put::Effect::Hint(target) => {
                        let record = &minted.as_ref().expect("hints follow the own copy").record;
                        self.hints.keep(target, &place.storage_key, record);
                    }
                    put::Effect::Reply(result) => {
                        let done = result.map(|done| PutDone {
                            done,
                            minted: minted.clone().expect("a put is acknowledged after it is minted"),
                        });
                        if let Some(reply) = reply.take() {
                            let _ = reply.send(done);
                        }
                    }
                    put::Effect::Finished => return,
                }
            }
            if let Some(event) = queued.pop_front() {
                // Refusals without a peer: fed one by one, like answers.
                queued.into_iter().for_each(|event| drop(events.send(PutEvent::Machine(event))));
                next = Some(event);
                continue;
            }
            next = Some(tokio::select! {
                biased;
                event = incoming.recv() => match event {
                    Some(PutEvent::Machine(event)) => event,
                    Some(PutEvent::Minted(result)) => match *result {
                        Ok(new) => {
                            minted = Some(new);
                            put::Event::Stored
                        }
                        Err(cause) => put::Event::StoreFailed(cause),
                    },
                    None => return,
                },
                () = self.sleep_until(deadline) => put::Event::Deadline,
                () = self.sleep_until(stand_in) => {
                    stand_in = None;
                    put::Event::StandInDue
                }
            });
        }
    }

    /// Makes a version and stores the own copy: the record, or a hint for the home that this node stands in for.
    fn mint(
        &self,
        write: &Mint,
        stands_in_for: Option<NodeId>,
        place: &Place,
        events: &mpsc::UnboundedSender<PutEvent>,
    ) {
        let (events, hints, storage_key) = (events.clone(), self.hints.clone(), place.storage_key.clone());
        let done = Box::new(move |result: Result<Minted, Cause>| match (result, stands_in_for) {
            (Ok(minted), Some(home)) => {
                let record = minted.record.clone();
                hints.stand_in(home, &storage_key, &record, minted.entry, move |kept| {
                    drop(events.send(PutEvent::Minted(Box::new(kept.map(|()| minted)))));
                });
            }
            (result, _) => drop(events.send(PutEvent::Minted(Box::new(result)))),
        });
        self.committer.submit(Job::Mint(write.clone(), done));
    }

    /// Sends a fresh record to a home, or to a fallback for one; an event if it could not be sent.
    fn send(
        &self,
        place: &Place,
        minted: &Minted,
        (to, home): (NodeId, Option<NodeId>),
        (round, until): (u8, Mono),
        events: &mpsc::UnboundedSender<PutEvent>,
    ) -> Option<put::Event> {
        let answered = move |answer| put::Event::Answered { from: to, round, answer };
        let Some(link) = self.links.up(to) else { return Some(answered(put::Answer::Refused)) };
        let mut operation = place.operation(operation::Kind::Store(proto::Store {
            record: minted.record.clone(),
            fresh: true,
            remember: minted.entry.map(|entry| entry.encode().into()).unwrap_or_default(),
            stand_in_for: home.map(|home| home.to_string()).unwrap_or_default(),
            ..Default::default()
        }));
        // Whatever holds it up: later its key may have been deleted, and the tombstone purged.
        operation.until_us = until.0;
        let events = events.clone();
        let waiter = Box::new(move |result| {
            let answer = match result {
                Ok(answer::Kind::Stored(_)) => put::Answer::Acked,
                Ok(answer::Kind::Superseded(stamp)) => put::Answer::Superseded(Stamp(stamp)),
                Ok(_) => put::Answer::Refused,
                Err(Lost) => put::Answer::Lost,
            };
            let _ = events.send(PutEvent::Machine(answered(answer)));
        });
        link.send(operation, waiter).err().map(|_| answered(put::Answer::Refused))
    }

    /// Runs a read to its answer; its task lives on until what it has asked for has been answered.
    pub async fn read<R: Reading>(
        &self,
        plan: read::Plan<<R::Answer as read::Readable>::Floor>,
        reading: R,
    ) -> Result<read::Done<R::Answer>, Failure> {
        let (reply, answer) = oneshot::channel();
        let driver = self.clone();
        tokio::spawn(async move { driver.run_read(plan, Arc::new(reading), reply).await });
        answer.await.unwrap_or_else(|_| Err(Failure::early(Cause::NotServing("stopping".into()))))
    }

    async fn run_read<R: Reading>(
        &self,
        plan: read::Plan<<R::Answer as read::Readable>::Floor>,
        reading: Arc<R>,
        reply: oneshot::Sender<Result<read::Done<R::Answer>, Failure>>,
    ) {
        let (events, mut incoming) = mpsc::unbounded_channel();
        // A write that is sent again is acknowledged for what this stores: that is no repair.
        let repairs = self.read_repair || plan.holders > 0;
        let (mut machine, mut effects) = (read::Read::<R::Answer>::new(plan), Vec::new());
        let (mut reply, mut own, mut deadline, mut hedge) = (Some(reply), None, None, None);
        let mut silent = BTreeMap::new();
        let until = self.clock.mono() + self.message_age;
        let mut next = Some(read::Event::Start);
        loop {
            if let Some(event) = next.take() {
                machine.step(self.clock.mono(), event, &mut effects);
            }
            for effect in effects.drain(..) {
                match effect {
                    read::Effect::ArmDeadline(at) => deadline = Some(at),
                    read::Effect::ArmHedge(at) => hedge = Some(at),
                    read::Effect::Fetch(node) if node == self.me => {
                        self.fetch_own(&reading, &mut own, &events);
                    }
                    read::Effect::Fetch(node) => {
                        silent.insert(node, self.clock.mono());
                        self.fetch(&reading, node, own.clone(), &events);
                    }
                    read::Effect::Repair(node, number, _) if !repairs => {
                        let _ = events.send(read::Event::Repaired(node, number));
                    }
                    read::Effect::Repair(node, number, repair) => {
                        self.repair(reading.stores(repair), (node, number), until, &events);
                    }
                    read::Effect::Reply(result) => {
                        if result.as_ref().is_ok_and(|done| done.repaired) {
                            self.metrics.read_repairs.inc();
                        }
                        if let Some(reply) = reply.take() {
                            let _ = reply.send(result);
                        }
                    }
                    read::Effect::Finished => return,
                }
            }
            next = Some(tokio::select! {
                biased;
                event = incoming.recv() => match event {
                    Some(event) => event,
                    None => return,
                },
                () = self.sleep_until(deadline) => read::Event::Deadline,
                () = self.sleep_until(hedge) => {
                    hedge = None;
                    if !self.pays_hedge(&silent) {
                        hedge = Some(self.clock.mono() + HEDGE_AFTER);
                        continue;
                    }
                    read::Event::HedgeDue
                }
            });
            if let Some(read::Event::Answered(node, _) | read::Event::Failed(node)) = &next {
                silent.remove(node);
            }
        }
    }

    /// Whether the budget allows to ask one more; those that are silent are avoided for a while.
    fn pays_hedge(&self, silent: &BTreeMap<NodeId, Mono>) -> bool {
        let now = self.clock.mono();
        let mut choice = self.choice();
        silent.iter().for_each(|(node, asked_at)| choice.silent(now, *node, *asked_at));
        let pays = choice.may_hedge();
        drop(choice);
        match pays {
            true => self.metrics.hedges.inc(),
            false => self.metrics.hedges_refused.inc(),
        };
        pays
    }

    /// Reads the own copy; if it is not yet durable, the event comes when it is.
    fn fetch_own<R: Reading>(
        &self,
        reading: &Arc<R>,
        own: &mut Option<R::Answer>,
        events: &mpsc::UnboundedSender<read::Event<R::Answer>>,
    ) {
        let answer = match reading.read_own(&self.committer) {
            Ok(answer) => answer,
            Err(cause) => {
                self.count_damage(&cause);
                let _ = events.send(read::Event::Failed(self.me));
                return;
            }
        };
        match reading.unsettled(&self.committer) {
            None => {
                *own = Some(answer.clone());
                let _ = events.send(read::Event::Answered(self.me, answer));
            }
            Some(group) => {
                let (committer, me, events) = (self.committer.clone(), self.me, events.clone());
                tokio::spawn(async move {
                    let event = match committer.settled(group).await {
                        true => read::Event::Answered(me, answer),
                        false => read::Event::Failed(me),
                    };
                    let _ = events.send(event);
                });
            }
        }
    }

    fn count_damage(&self, cause: &Cause) {
        self.metrics.damaged_records.inc();
        tracing::error!(?cause, "the own copy can't be read");
    }

    fn fetch<R: Reading>(
        &self,
        reading: &Arc<R>,
        node: NodeId,
        own: Option<R::Answer>,
        events: &mpsc::UnboundedSender<read::Event<R::Answer>>,
    ) {
        let operation = reading.operation(node, own.as_ref());
        let (reading, failed) = (reading.clone(), events.clone());
        let (events, refill, clock) = (events.clone(), self.refill.clone(), self.clock.clone());
        let asked = R::IS_TIMED.then(|| Asked::new(self, node));
        let waiter = Box::new(move |result: Result<answer::Kind, _>| {
            drop(asked);
            if matches!(&result, Ok(answer::Kind::Refused(refusal)) if refusal.reason() == Reason::Refilling)
            {
                refill.refused_by(node, clock.mono());
            }
            let answer = result.ok().and_then(|kind| reading.decode(kind, own));
            let _ = events.send(match answer {
                Some(answer) => read::Event::Answered(node, answer),
                None => read::Event::Failed(node),
            });
        });
        let sent = self.links.up(node).is_some_and(|link| link.send(operation, waiter).is_ok());
        if !sent {
            let _ = failed.send(read::Event::Failed(node));
        }
    }

    /// Stores records on a stale replica; one event when all are stored, or when one was not.
    fn repair<A>(
        &self,
        stores: Vec<(Place, Arc<Record>)>,
        (node, number): (NodeId, u32),
        until: Mono,
        events: &mpsc::UnboundedSender<read::Event<A>>,
    ) where
        A: Send + 'static,
    {
        let (left, metrics) = (Arc::new(AtomicUsize::new(stores.len())), self.metrics.clone());
        let finished = move |ok: bool, left: &AtomicUsize, events: &mpsc::UnboundedSender<read::Event<A>>| {
            if !ok {
                let _ = events.send(read::Event::RepairFailed(node, number));
                return;
            }
            metrics.read_repair_records.inc();
            if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                let _ = events.send(read::Event::Repaired(node, number));
            }
        };
        if self.clock.mono() > until {
            let _ = events.send(read::Event::RepairFailed(node, number));
            return;
        }
        let link = self.links.up(node);
        for (place, record) in stores {
            let bytes = Bytes::from(codec::encode_record(&record));
            let (left, events, finished) = (left.clone(), events.clone(), finished.clone());
            if node == self.me {
                let done =
                    Box::new(move |result: Result<Outcome, Cause>| finished(result.is_ok(), &left, &events));
                let incoming =
                    Incoming { storage_key: place.storage_key, record, bytes, fresh: false, entry: None };
                self.committer.submit(Job::Apply(incoming, done));
                continue;
            }
            let store = proto::Store { record: bytes, fresh: false, ..Default::default() };
            let mut operation = place.operation(operation::Kind::Store(store));
            operation.until_us = until.0;
            let (failed, none_left, not_sent) = (events.clone(), left.clone(), finished.clone());
            let metrics = self.metrics.clone();
            metrics.read_repair_bytes.inc_by(u64::try_from(operation.encoded_len()).unwrap_or(0));
            let waiter = Box::new(move |result: Result<answer::Kind, Lost>| {
                if let Ok(kind) = &result {
                    metrics.read_repair_bytes.inc_by(u64::try_from(kind.encoded_len()).unwrap_or(0));
                }
                finished(matches!(result, Ok(answer::Kind::Stored(_))), &left, &events);
            });
            let sent = link.as_ref().is_some_and(|link| link.send(operation, waiter).is_ok());
            if !sent {
                return not_sent(false, &none_left, &failed);
            }
        }
    }
}

/// A replica that is asked, until it has answered or its link broke.
struct Asked {
    choice: Arc<Mutex<Choice>>,
    clock: Arc<dyn Clock>,
    node: NodeId,
    at: Mono,
}

impl Asked {
    fn new(driver: &Driver, node: NodeId) -> Asked {
        let at = driver.clock.mono();
        driver.choice().asked(at, node);
        Asked { choice: driver.choice.clone(), clock: driver.clock.clone(), node, at }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut choice = self.choice.lock().unwrap_or_else(PoisonError::into_inner);
        choice.answered(self.clock.mono(), self.node, self.at);
    }
}

/// One kind of read: of a key, or of a page.
pub trait Reading: Send + Sync + 'static {
    /// Whether its answers tell how fast a replica is.
    const IS_TIMED: bool;

    /// What replicas answer.
    type Answer: read::Readable + Send + 'static;

    /// The own copy.
    fn read_own(&self, committer: &Committer) -> Result<Self::Answer, Cause>;
    /// The group to wait for before the own copy counts.
    fn unsettled(&self, committer: &Committer) -> Option<u64>;
    /// What a peer is asked, which need not send what `own` has.
    fn operation(&self, node: NodeId, own: Option<&Self::Answer>) -> proto::Operation;
    /// A peer's answer; none if it is a refusal or not what was asked for.
    fn decode(&self, answer: answer::Kind, own: Option<Self::Answer>) -> Option<Self::Answer>;
    /// What to store where for a repair.
    fn stores(&self, repair: <Self::Answer as read::Readable>::Repair) -> Vec<(Place, Arc<Record>)>;
}

/// A digest on the wire.
pub fn digest_bytes(digest: Digest) -> Bytes {
    Bytes::copy_from_slice(&digest.0)
}
