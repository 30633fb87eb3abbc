//! The hints that this node keeps, and their way home: the book under a lock, and one delivery for each peer.
//!
//! A hint is written by the commit thread like everything else, and counted before. Each peer has a task that
//! feeds its delivery machine: with what the link says, with pages of the log, with the peer's answers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::committer::{Committer, Job};
use super::config::HintsConfig;
use super::env::Clock;
use super::links::{Contact, Links};
use crate::canary::{self, Canary};
use crate::hinted::delivery::{Answer, Delivery, Effect, Event, Loaded, Pace};
use crate::hinted::queue::{self, Account, Book, Hint, Limits};
use crate::machine::Machine;
use crate::rpc::proto::{self, answer, operation, refusal::Reason};
use crate::storage::{Storage, StorageError, schema};
use crate::telemetry::metrics::Metrics;
use crate::types::ids::NodeId;
use crate::types::limits::{
    HINT_COST_BYTES, HINT_DELAY, HINT_PAGE_BYTES, HINT_PAGE_ITEMS, HINT_PAUSE, HINT_WINDOW_BYTES,
};
use crate::types::time::{Mono, WallMs};

/// What is kept for one target, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// For whom.
    pub target: NodeId,
    /// How much, and since when.
    pub account: Account,
    /// Number of the oldest hint.
    pub oldest: u64,
    /// The greatest number that this node has given to a hint.
    pub last: u64,
}

/// The hints that this node keeps.
pub struct Hints {
    book: Mutex<Book>,
    committer: Committer,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    pace: Pace,
}

impl Hints {
    /// Those in the committer's storage; reads all of them once.
    pub fn load(
        config: &HintsConfig,
        storage: &dyn Storage,
        committer: Committer,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Hints, StorageError> {
        let limits = Limits {
            window: Duration::from_millis(config.window_ms),
            target_bytes: config.target_bytes,
            total_bytes: config.total_bytes,
        };
        let (rate, window) = (config.rate_bytes, HINT_WINDOW_BYTES);
        let pace = Pace { rate, window, delay: HINT_DELAY, pause: HINT_PAUSE };
        let hints = Hints { book: Mutex::new(Book::load(storage, limits)?), committer, clock, metrics, pace };
        hints.show(&hints.book());
        Ok(hints)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, book: &Book) {
        let (hints, bytes) =
            book.accounts().values().fold((0, 0), |(h, b), account| (h + account.hints, b + account.bytes));
        self.metrics.hints_waiting.set(hints);
        self.metrics.hint_bytes.set(bytes);
    }

    /// How many are kept.
    pub fn count(&self) -> u64 {
        self.book().accounts().values().map(|account| account.hints).sum()
    }

    /// Keeps a record for a replica that did not take it, unless a limit forbids it.
    pub fn keep(self: &Arc<Hints>, target: NodeId, storage_key: &[u8], record: &Bytes) {
        let new = self.book().add(self.clock.wall(), target, storage_key, record);
        let new = match new {
            Ok(new) => new,
            Err(why) => {
                self.metrics.hints_refused.inc();
                tracing::debug!(%target, %why, "a hint is not kept");
                return;
            }
        };
        let (hints, bytes) = (self.clone(), new.bytes);
        let done = Box::new(move |written: Result<(), _>| match written {
            Ok(()) => {
                hints.metrics.hints_stored.inc();
                hints.show(&hints.book());
            }
            Err(cause) => {
                hints.metrics.hints_refused.inc();
                hints.book().strike(target, 1, bytes);
                tracing::debug!(%target, ?cause, "a hint could not be written");
            }
        });
        self.committer.submit(Job::Write(new.batch, done));
    }

    /// Whether a hint of this time is too old to be taken.
    pub fn is_too_old(&self, at: WallMs) -> bool {
        self.book().is_too_old(self.clock.wall(), at)
    }

    /// What is kept, for each target with any.
    pub fn kept(&self) -> Result<Vec<Kept>, StorageError> {
        let (accounts, last) = {
            let book = self.book();
            (book.accounts().clone(), book.last())
        };
        let mut kept = Vec::new();
        for (target, account) in accounts.into_iter().filter(|(_, account)| account.hints > 0) {
            // Counted, and not written yet: then it has a number still to come, at most the last.
            let oldest = queue::oldest(self.committer.storage(), target)?.unwrap_or(last);
            kept.push(Kept { target, account, oldest, last });
        }
        Ok(kept)
    }

    /// Deletes hints; `bytes` is what they took.
    fn forget(self: &Arc<Hints>, target: NodeId, seqs: &[u64], bytes: u64) {
        let (hints, count) = (self.clone(), u64::try_from(seqs.len()).unwrap_or(u64::MAX));
        let done = Box::new(move |deleted: Result<(), _>| {
            // What could not be deleted is still there, and comes again.
            if deleted.is_ok() {
                let mut book = hints.book();
                book.strike(target, count, bytes);
                hints.show(&book);
            }
        });
        self.committer.submit(Job::Write(queue::forget(target, seqs), done));
    }
}

/// Brings the hints for `target` home, for as long as the node runs.
pub async fn deliver(hints: Arc<Hints>, links: Arc<Links>, target: NodeId) {
    let (events, mut incoming) = mpsc::unbounded_channel();
    let mut contacts = links.contacts();
    let mut runner = Runner {
        machine: Delivery::new(hints.pace.clone()),
        hints,
        links,
        target,
        loaded: BTreeMap::new(),
        events,
        wake: None,
    };
    loop {
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
                match contacts.borrow_and_update().get(&target) {
                    Some(Contact::Accepted) => Event::Up,
                    _ => Event::Down,
                }
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
        let mut effects = Vec::new();
        self.machine.step(self.hints.clock.mono(), event, &mut effects);
        for effect in effects {
            match effect {
                Effect::Load(after) => self.load(after),
                Effect::Send(seq) => self.send(seq),
                Effect::Forget(seq) => {
                    if let Some(hint) = self.loaded.remove(&seq) {
                        self.hints.forget(self.target, &[seq], hint.bytes);
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
            let too_old = self.hints.is_too_old(hint.at);
            if too_old {
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
        let waiter = Box::new(move |result| {
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
fn bytes_only(seq: u64, bytes: u64) -> Hint {
    Hint { seq, at: WallMs(0), storage_key: Vec::new(), record: Bytes::new(), bytes }
}

/// A hint as its target takes it; none if its storage key is not one of a record.
fn operation_of(hint: &Hint) -> Option<proto::Operation> {
    let (_, keyspace, key) = schema::split_record_key(&hint.storage_key)?;
    let store = proto::Store { record: hint.record.clone(), fresh: false, hinted_at_ms: hint.at.0 };
    Some(proto::Operation {
        id: 0,
        keyspace_id: keyspace.0,
        key: key.partition_key().clone(),
        sort: key.sort_key().clone(),
        kind: Some(operation::Kind::Store(store)),
    })
}
