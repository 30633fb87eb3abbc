//! The hints that this node keeps, and their way home: the book under a lock, and one delivery for each peer.
//!
//! A hint is written by the commit thread like everything else, and counted before. Each peer has a task that
//! feeds its delivery machine: with what the link says, with pages of the log, with the peer's answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::{mpsc, watch};

use super::committer::{Committer, Job};
use super::config::HintsConfig;
use super::env::Clock;
use super::links::{Contact, Links};
use crate::canary::{self, Canary};
use crate::hinted::delivery::{Answer, Delivery, Effect, Event, Loaded, Pace};
use crate::hinted::queue::{self, Account, Book, Hint, Limits, Missed, NoHint};
use crate::machine::Machine;
use crate::replica::requests::Entry;
use crate::replica::stored::LoadError;
use crate::ring::layout::ClusterMap;
use crate::rpc::proto::{self, answer, operation, refusal::Reason};
use crate::storage::{Batch, Storage, StorageError, schema};
use crate::telemetry::metrics::{Metrics, NotKept};
use crate::types::error::Cause;
use crate::types::ids::NodeId;
use crate::types::limits::{
    HINT_COST_BYTES, HINT_DELAY, HINT_PAGE_BYTES, HINT_PAGE_ITEMS, HINT_PAUSE, HINT_WINDOW_BYTES, RETRY_DELAY,
};
use crate::types::time::{Mono, WallMs};
use crate::version::codec;
use crate::version::record::Record;

/// What is kept for one target, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// For whom.
    pub target: NodeId,
    /// How much, and since when.
    pub account: Account,
    /// How many come home in a second.
    pub per_second: u64,
    /// What was not kept.
    pub missed: Option<Missed>,
    /// Number of the oldest hint.
    pub oldest: u64,
    /// The greatest number that this node has given to a hint.
    pub last: u64,
}

/// The hints that this node keeps.
pub struct Hints {
    pub(super) me: NodeId,
    book: Mutex<Book>,
    pub(super) committer: Committer,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    pace: Pace,
    pub(super) map: watch::Receiver<Arc<ClusterMap>>,
}

impl Hints {
    /// Those in the committer's storage; reads all of them once.
    pub fn load(
        me: NodeId,
        config: &HintsConfig,
        storage: &dyn Storage,
        committer: Committer,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        map: watch::Receiver<Arc<ClusterMap>>,
    ) -> Result<Hints, StorageError> {
        let limits = Limits {
            window: Duration::from_millis(config.window_ms),
            target_bytes: config.target_bytes,
            total_bytes: config.total_bytes,
            disk_percent: config.disk_percent,
        };
        let (rate, window) = (config.rate_bytes, HINT_WINDOW_BYTES);
        let pace = Pace { rate, window, delay: HINT_DELAY, pause: HINT_PAUSE };
        let book = Mutex::new(Book::load(storage, limits)?);
        let hints = Hints { me, book, committer, clock, metrics, pace, map };
        hints.show(&hints.book());
        Ok(hints)
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn show(&self, book: &Book) {
        let (hints, bytes) =
            book.accounts().values().fold((0, 0), |(h, b), account| (h + account.hints, b + account.bytes));
        self.metrics.hints_waiting.set(hints);
        self.metrics.hint_bytes.set(bytes);
    }

    /// How many are kept.
    pub fn count(&self) -> u64 {
        self.book().accounts().values().map(|account| account.hints).sum()
    }

    /// Whether the keyspace of a record has been dropped.
    fn is_dropped(&self, storage_key: &[u8]) -> bool {
        schema::split_range(storage_key).is_some_and(|(_, keyspace)| self.map.borrow().has_dropped(keyspace))
    }

    /// Keeps a record for a replica that did not take it, unless a limit forbids it.
    pub fn keep(self: &Arc<Hints>, target: NodeId, storage_key: &[u8], record: &Bytes) {
        self.keep_as(target, storage_key, record, None, |_| {});
    }

    /// Keeps a record as a fallback for `target`, with what is to be remembered of its request; `done` hears when it
    /// is durable, or why it is not kept.
    pub fn stand_in(
        self: &Arc<Hints>,
        target: NodeId,
        storage_key: &[u8],
        record: &Bytes,
        entry: Option<Entry>,
        done: impl FnOnce(Result<(), Cause>) + Send + 'static,
    ) {
        self.keep_as(target, storage_key, record, Some(entry), done);
    }

    fn keep_as(
        self: &Arc<Hints>,
        target: NodeId,
        storage_key: &[u8],
        record: &Bytes,
        stands_in: Option<Option<Entry>>,
        done: impl FnOnce(Result<(), Cause>) + Send + 'static,
    ) {
        if self.is_dropped(storage_key) {
            self.metrics.hints_dropped.inc();
            return done(Err(Cause::UnknownKeyspace("dropped".into())));
        }
        let now = self.clock.wall();
        let written = codec::decode_record(record).map_or(now, |record| record.stamp().wall().min(now));
        let counted = self.book().add_written(now, written, target, storage_key, record, stands_in.is_some());
        let mut new = match counted {
            Ok(new) => new,
            Err(why) => {
                self.missed(target, why);
                return done(Err(Cause::Overloaded(RETRY_DELAY)));
            }
        };
        if let Some(entry) = stands_in.flatten() {
            entry.remember(now, &mut new.batch);
        }
        let (hints, bytes) = (self.clone(), new.bytes);
        let written = Box::new(move |written: Result<(), Cause>| {
            match &written {
                Ok(()) => {
                    hints.metrics.hints_stored.inc();
                    hints.show(&hints.book());
                }
                Err(cause) => {
                    hints.metrics.hint_refused(NotKept::WriteFailed);
                    hints.book().strike(target, 1, bytes);
                    tracing::debug!(%target, ?cause, "a hint could not be written");
                }
            }
            done(written);
        });
        self.committer.submit(Job::Write(new.batch, written));
    }

    /// Counts a write that has no hint, and tells it once.
    fn missed(&self, target: NodeId, why: NoHint) {
        self.metrics.hint_refused(match why {
            NoHint::Window => NotKept::Window,
            NoHint::TargetBytes => NotKept::TargetBytes,
            NoHint::TotalBytes => NotKept::TotalBytes,
            NoHint::DiskShare => NotKept::DiskShare,
        });
        let mut book = self.book();
        // One who has switched hints off knows.
        if book.missed_one(target, why) && !book.limits().window.is_zero() {
            tracing::warn!(%target, %why, "hints are not kept any more: the rest is for anti-entropy");
        }
    }

    /// What is kept here for a key as a fallback, merged; none if nothing is.
    pub fn kept_for_key(&self, storage_key: &[u8]) -> Result<Option<Record>, LoadError> {
        let mut kept: Option<Record> = None;
        for bytes in queue::kept_for_key(self.committer.storage(), storage_key, &|at| self.is_too_old(at))? {
            let record = codec::decode_record(&bytes)?;
            match &mut kept {
                None => kept = Some(record),
                Some(kept) => {
                    kept.merge(&record).map_err(|mismatch| LoadError::Damaged(mismatch.to_string()))?;
                }
            }
        }
        Ok(kept)
    }

    /// Whether a hint of this time is too old to be taken.
    pub fn is_too_old(&self, at: WallMs) -> bool {
        !canary::sings(Canary::HintNeverTooOld) && self.book().is_too_old(self.clock.wall(), at)
    }

    /// What is kept, or was not, for each target.
    pub fn kept(&self) -> Result<Vec<Kept>, StorageError> {
        let (accounts, missed, last) = {
            let book = self.book();
            (book.accounts().clone(), book.missed().clone(), book.last())
        };
        let now = self.clock.mono();
        let waiting = accounts.iter().filter(|(_, account)| account.hints > 0).map(|(target, _)| *target);
        let targets: BTreeSet<NodeId> = waiting.chain(missed.keys().copied()).collect();
        let mut kept = Vec::new();
        for target in targets {
            let account = accounts.get(&target).copied().unwrap_or_default();
            let (per_second, missed) = (account.rate.per_second(now), missed.get(&target).copied());
            let oldest = match account.hints {
                0 => last + 1,
                // Counted, and not written yet: then it has a number still to come, at most the last.
                _ => queue::oldest(self.committer.storage(), target)?.unwrap_or(last),
            };
            kept.push(Kept { target, account, per_second, missed, oldest, last });
        }
        Ok(kept)
    }

    /// Deletes the hints for `target` that are of dropped keyspaces. The target's delivery must not be loading
    /// or sending any, or a hint might be struck out twice.
    async fn forget_dropped(self: &Arc<Hints>, target: NodeId) -> Result<(), Cause> {
        let mut after = 0;
        loop {
            // What was forgotten before is deleted before the page is read.
            self.committer.write(Batch::new()).await?;
            let page = queue::page(self.committer.storage(), target, after, HINT_PAGE_ITEMS, HINT_PAGE_BYTES);
            let page = page.map_err(|error| Cause::Storage(error.to_string()))?;
            let last = page.hints.iter().map(|hint| hint.seq).chain(page.damaged.iter().map(|(seq, _)| *seq));
            after = last.max().unwrap_or(after);
            for hint in page.hints.iter().filter(|hint| self.is_dropped(&hint.storage_key)) {
                self.metrics.hints_dropped.inc();
                self.forget(target, hint);
            }
            if !page.more {
                return Ok(());
            }
        }
    }

    /// The nodes that hints are kept for.
    pub fn targets(&self) -> BTreeSet<NodeId> {
        self.book().accounts().keys().copied().collect()
    }

    /// Deletes a hint.
    pub(super) fn forget(self: &Arc<Hints>, target: NodeId, hint: &Hint) {
        let (hints, bytes) = (self.clone(), hint.bytes);
        let done = Box::new(move |deleted: Result<(), _>| {
            // What could not be deleted is still there, and comes again.
            if deleted.is_ok() {
                let mut book = hints.book();
                book.strike(target, 1, bytes);
                hints.show(&book);
            }
        });
        self.committer.submit(Job::Write(queue::forget(target, hint), done));
    }
}

/// Brings the hints for `target` home, for as long as the node runs.
pub async fn deliver(hints: Arc<Hints>, links: Arc<Links>, target: NodeId) {
    let (events, mut incoming) = mpsc::unbounded_channel();
    let mut contacts = links.contacts();
    let (mut maps, mut dropped) = (hints.map.clone(), 0);
    let mut runner = Runner {
        machine: Delivery::new(hints.pace.clone()),
        hints,
        links,
        target,
        loaded: BTreeMap::new(),
        events,
        wake: None,
    };
    let mut is_up = false;
    loop {
        if maps.borrow_and_update().member(target).is_none() {
            runner.feed(Event::Down);
            if runner.hand_on(&mut maps).await.is_err() {
                return;
            }
            // Should it be a member again, it is looked at anew.
            contacts.mark_changed();
            continue;
        }
        // While the target is reachable, delivery drops them itself as it comes to them.
        let now = maps.borrow_and_update().dropped();
        if !is_up && now > dropped {
            match runner.hints.forget_dropped(target).await {
                Ok(()) => dropped = now,
                Err(cause) => tracing::warn!(%target, ?cause, "hints of dropped keyspaces are not deleted"),
            }
        }
        let clock = runner.hints.clock.clone();
        let woken = async {
            match runner.wake {
                Some(at) => {
                    tokio::time::sleep(Duration::from_micros(at.micros_since(clock.mono()))).await;
                }
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            biased;
            event = incoming.recv() => match event {
                Some(event) => event,
                None => return,
            },
            changed = contacts.changed() => {
                if changed.is_err() {
                    return;
                }
                is_up = matches!(contacts.borrow_and_update().get(&target), Some(Contact::Accepted));
                if is_up { Event::Up } else { Event::Down }
            }
            changed = maps.changed() => {
                if changed.is_err() {
                    return;
                }
                continue;
            }
            () = woken => {
                runner.wake = None;
                Event::Wake
            }
        };
        runner.feed(event);
    }
}

/// Carries out what one delivery asks for.
struct Runner {
    machine: Delivery,
    hints: Arc<Hints>,
    links: Arc<Links>,
    target: NodeId,
    /// Loaded and not forgotten.
    loaded: BTreeMap<u64, Hint>,
    events: mpsc::UnboundedSender<Event>,
    wake: Option<Mono>,
}

impl Runner {
    /// The target is no member: hands on what is kept for it until it is one again. An error when the node ends.
    async fn hand_on(
        &self,
        maps: &mut watch::Receiver<Arc<ClusterMap>>,
    ) -> Result<(), watch::error::RecvError> {
        let (hints, target) = (&self.hints, self.target);
        while maps.borrow_and_update().member(target).is_none() {
            let kept = hints.book().accounts().get(&target).is_some_and(|account| account.hints > 0);
            if kept && let Err(cause) = hints.hand_on(target).await {
                tracing::warn!(%target, ?cause, "hints of a node that has left can't be handed on now");
            }
            // A write that was under way when the map changed may still keep one.
            tokio::select! {
                biased;
                changed = maps.changed() => changed?,
                () = tokio::time::sleep(HINT_PAUSE) => {}
            }
        }
        Ok(())
    }

    fn feed(&mut self, event: Event) {
        if event == Event::Down {
            self.loaded.clear();
        }
        if let Event::Answered(seq, answer) = event
            && answer != Answer::Stored
            && answer != Answer::TooOld
        {
            self.loaded.remove(&seq);
        }
        let now = self.hints.clock.mono();
        if let Event::Answered(seq, Answer::Stored) = event
            && self.loaded.contains_key(&seq)
        {
            self.hints.book().delivered(now, self.target);
        }
        let mut effects = Vec::new();
        self.machine.step(now, event, &mut effects);
        for effect in effects {
            match effect {
                Effect::Load(after) => self.load(after),
                Effect::Send(seq) => self.send(seq),
                Effect::Forget(seq) => {
                    if let Some(hint) = self.loaded.remove(&seq) {
                        self.hints.forget(self.target, &hint);
                    }
                }
                Effect::Home => {
                    let mut book = self.hints.book();
                    book.is_home(self.target);
                }
                Effect::Arm(at) => self.wake = Some(at),
            }
        }
    }

    fn load(&mut self, after: u64) {
        let storage = self.hints.committer.storage();
        let page = queue::page(storage, self.target, after, HINT_PAGE_ITEMS, HINT_PAGE_BYTES);
        let page = page.unwrap_or_else(|error| {
            tracing::error!(target = %self.target, %error, "hints can't be read");
            queue::Page::default()
        });
        let mut loaded = Vec::with_capacity(page.hints.len() + page.damaged.len());
        // What can't be read is for the machine like what is too old: passed over, and forgotten once.
        for (seq, bytes) in page.damaged {
            self.hints.metrics.hints_damaged.inc();
            tracing::error!(target = %self.target, seq, "a hint is damaged, and dropped");
            loaded.push(Loaded { seq, bytes, too_old: true });
            self.loaded.insert(seq, bytes_only(seq, bytes));
        }
        for hint in page.hints {
            // What is of a dropped keyspace is for the machine like what is too old.
            let dropped = self.hints.is_dropped(&hint.storage_key);
            let too_old = dropped || self.hints.is_too_old(hint.at);
            if dropped {
                self.hints.metrics.hints_dropped.inc();
            } else if too_old {
                self.hints.metrics.hints_expired.inc();
            }
            loaded.push(Loaded { seq: hint.seq, bytes: hint.bytes + HINT_COST_BYTES, too_old });
            self.loaded.insert(hint.seq, hint);
        }
        let _ = self.events.send(Event::Page(loaded, page.more));
    }

    fn send(&self, seq: u64) {
        let answered = move |answer| Event::Answered(seq, answer);
        if canary::sings(Canary::HintDropped) {
            let _ = self.events.send(answered(Answer::Stored));
            return;
        }
        let operation = self.loaded.get(&seq).and_then(operation_of);
        let (Some(operation), Some(link)) = (operation, self.links.up(self.target)) else {
            let _ = self.events.send(answered(Answer::Refused));
            return;
        };
        let (events, metrics) = (self.events.clone(), self.hints.metrics.clone());
        metrics.hints_sent_bytes.inc_by(u64::try_from(operation.encoded_len()).unwrap_or(0));
        let waiter = Box::new(move |result: Result<answer::Kind, _>| {
            if let Ok(kind) = &result {
                metrics.hints_sent_bytes.inc_by(u64::try_from(kind.encoded_len()).unwrap_or(0));
            }
            let answer = match result {
                Ok(answer::Kind::Stored(_)) => {
                    metrics.hints_delivered.inc();
                    Answer::Stored
                }
                Ok(answer::Kind::Refused(refusal)) if refusal.reason() == Reason::TooOld => {
                    metrics.hints_expired.inc();
                    Answer::TooOld
                }
                Ok(_) => Answer::Refused,
                Err(_) => Answer::Lost,
            };
            let _ = events.send(answered(answer));
        });
        if link.send(operation, waiter).is_err() {
            let _ = self.events.send(answered(Answer::Refused));
        }
    }
}

/// What stands for a hint that can't be read, until it is forgotten.
pub(super) fn bytes_only(seq: u64, bytes: u64) -> Hint {
    Hint { seq, at: WallMs(0), storage_key: Vec::new(), record: Bytes::new(), stands_in: false, bytes }
}

/// A hint as its target takes it; none if its storage key is not one of a record.
fn operation_of(hint: &Hint) -> Option<proto::Operation> {
    let (_, keyspace, key) = schema::split_record_key(&hint.storage_key)?;
    let store =
        proto::Store { record: hint.record.clone(), hinted_at_ms: hint.at.0, ..proto::Store::default() };
    Some(proto::Operation {
        id: 0,
        keyspace_id: keyspace.0,
        key: key.partition_key().clone(),
        sort: key.sort_key().clone(),
        kind: Some(operation::Kind::Store(store)),
        until_us: 0,
    })
}

/// What this node keeps, as peers are told.
pub fn kept_to_wire(kept: Vec<Kept>) -> proto::KeptHints {
    let one = |kept: Kept| proto::KeptFor {
        target: kept.target.to_string(),
        hints: kept.account.hints,
        bytes: kept.account.bytes,
        since_ms: kept.account.since.map_or(0, |since| since.0),
        oldest: kept.oldest,
        last: kept.last,
        delivered: kept.account.delivered,
        per_second: kept.per_second,
        refused: kept.missed.map_or(0, |missed| missed.hints),
        refusal: kept.missed.map(|missed| missed.why.to_string()).unwrap_or_default(),
    };
    proto::KeptHints { targets: kept.into_iter().map(one).collect() }
}
