//! The commit thread: the one writer of a node's storage.
//!
//! Jobs that wait together are carried out one after the other, synced once, and acknowledged together. It
//! is the partition's one writer of `mechanisms`: each job reads, merges and writes before the next begins.
//!
//! Invariants:
//! 1. With `durability = "always"` nothing is acknowledged, and no reader is told of it, before it is synced:
//!    a reader that finds a key which is written but not yet synced waits for that sync (G2, G3 over a power
//!    cut).
//! 2. After a failed sync nothing is acknowledged any more: what the disk holds is in doubt. The writes of that
//!    group may have been applied, and no reader is told of them.
//! 3. The queue is bounded; past it a job is refused at once.
//! 4. The count of remembered request ids is that of the storage, from the first job on.
//! 5. A record is written only if its keyspace has not been dropped by the map as it is then: a job that is taken
//!    from the queue after a map was learnt is held against that map.
//!
//! A damaged record is not written over, but by what supersedes whatever it was (`committer/damage.rs`).

mod damage;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot, watch};

pub use self::damage::Restored;
use super::env::{Clock, CommitMode};
use crate::antientropy::forest::{Forest, Health, STORE_AFTER};
use crate::canary::{self, Canary};
use crate::replica::apply::{self, Applied, Outcome};
use crate::replica::mint::{self, Mint, MintError, Minted, Minter};
use crate::replica::quarantine::Quarantine;
use crate::replica::requests::{self, Entry};
use crate::replica::stored::{self, LoadError};
use crate::ring::layout::ClusterMap;
use crate::storage::{Batch, Storage, StorageError, schema};
use crate::telemetry::metrics::Metrics;
use crate::types::error::{Cause, Invalid};
use crate::types::ids::KeyspaceId;
use crate::types::limits::{
    COMMIT_GROUP, COMMIT_QUEUE, REBUILD_RECORDS, RETRY_DELAY, SIBLINGS_WARN, STORE_REGIONS,
};
use crate::types::policy::Durability;
use crate::types::time::{Mono, WallMs};
use crate::version::record::{Change, Digest, Record};

type Done<T> = Box<dyn FnOnce(Result<T, Cause>) + Send>;

/// What the commit thread is asked to do.
pub enum Job {
    /// Make a new version.
    Mint(Mint, Done<Minted>),
    /// Merge a record that came from elsewhere.
    Apply(Incoming, Done<Outcome>),
    /// Write a piece of the node's own state.
    Write(Batch, Done<()>),
    /// Look after the Merkle trees; with `true` store all that can be stored.
    Tend(bool, Done<Health>),
    /// Delete dead records that all home replicas hold, if they are still the same; how many were.
    Purge(Vec<(Vec<u8>, Digest)>, Done<usize>),
    /// Set a record aside if it is damaged; whether it is.
    SetAside(Vec<u8>, Done<bool>),
    /// Restore the place of a damaged record from what the other replicas hold.
    Restore(Vec<u8>, Vec<Record>, Done<Restored>),
}

/// A record that came from elsewhere.
pub struct Incoming {
    /// Its storage key.
    pub storage_key: Vec<u8>,
    /// Decoded.
    pub record: Arc<Record>,
    /// Encoded.
    pub bytes: Bytes,
    /// Whether its coordinator has just stamped it.
    pub fresh: bool,
    /// What to remember of it under its request id.
    pub entry: Option<Entry>,
}

#[derive(Default)]
struct Unsynced {
    group: u64,
    keys: BTreeSet<u64>,
}

struct Shared {
    storage: Arc<dyn Storage>,
    minter: Mutex<Minter>,
    forest: Mutex<Forest>,
    quarantine: Mutex<Quarantine>,
    /// Records that can't be read and are not yet set aside.
    suspects: Mutex<BTreeSet<Vec<u8>>>,
    suspected: Notify,
    /// Places that wait to be healed, of which a version has come to this node since it was last asked.
    renewed: Mutex<BTreeSet<Vec<u8>>>,
    unsynced: Mutex<Unsynced>,
    synced: watch::Sender<u64>,
    failed: AtomicBool,
    /// How long the last group took, in microseconds.
    group_us: AtomicU64,
    durability: Durability,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    map: watch::Receiver<Arc<ClusterMap>>,
}

/// Hands jobs to the commit thread. Cheap to clone.
#[derive(Clone)]
pub struct Committer {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Job>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fingerprint(key: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(key).as_bytes()[..8]);
    u64::from_be_bytes(first)
}

impl Committer {
    /// Starts the commit thread (or task).
    pub fn start(
        storage: Arc<dyn Storage>,
        (minter, forest, quarantine): (Minter, Forest, Quarantine),
        durability: Durability,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        map: watch::Receiver<Arc<ClusterMap>>,
        mode: CommitMode,
    ) -> std::io::Result<Committer> {
        let (queue, jobs) = mpsc::channel(COMMIT_QUEUE);
        let shared = Arc::new(Shared {
            storage,
            minter: Mutex::new(minter),
            forest: Mutex::new(forest),
            quarantine: Mutex::new(quarantine),
            suspects: Mutex::default(),
            suspected: Notify::new(),
            renewed: Mutex::default(),
            unsynced: Mutex::default(),
            synced: watch::Sender::new(0),
            failed: AtomicBool::new(false),
            group_us: AtomicU64::new(0),
            durability,
            clock,
            metrics,
            map,
        });
        shared.show_waiting();
        let worker = shared.clone();
        match mode {
            CommitMode::Thread => {
                std::thread::Builder::new().name("commit".into()).spawn(move || worker.run_thread(jobs))?;
            }
            CommitMode::Inline => drop(tokio::spawn(async move { worker.run_task(jobs).await })),
        }
        Ok(Committer { shared, queue })
    }

    /// Hands over a job; past the bound it is told so at once.
    pub fn submit(&self, job: Job) {
        let refused = match self.queue.try_send(job) {
            Ok(()) => return,
            Err(mpsc::error::TrySendError::Full(job)) => (job, Cause::Overloaded(RETRY_DELAY)),
            Err(mpsc::error::TrySendError::Closed(job)) => (job, Cause::NotServing("stopping".into())),
        };
        refuse(refused.0, refused.1);
    }

    /// Writes a piece of the node's own state and returns when it is durable.
    pub async fn write(&self, batch: Batch) -> Result<(), Cause> {
        self.ask(|done| Job::Write(batch, done)).await
    }

    /// Hands over a job, and returns when it is carried out.
    async fn ask<T: Send + 'static>(&self, job: impl FnOnce(Done<T>) -> Job) -> Result<T, Cause> {
        let (send, receive) = oneshot::channel();
        self.submit(job(Box::new(move |result| drop(send.send(result)))));
        receive.await.unwrap_or_else(|_| Err(Cause::NotServing("stopping".into())))
    }

    /// The storage, to read.
    pub fn storage(&self) -> &dyn Storage {
        &*self.shared.storage
    }

    /// The node's clock and dots.
    pub fn with_minter<T>(&self, f: impl FnOnce(&mut Minter) -> T) -> T {
        f(&mut lock(&self.shared.minter))
    }

    /// The Merkle trees. What is seen of them may not be durable yet.
    pub fn with_forest<T>(&self, f: impl FnOnce(&Forest) -> T) -> T {
        f(&lock(&self.shared.forest))
    }

    /// Deletes dead records, if they are still the same; how many were.
    pub async fn purge(&self, doomed: Vec<(Vec<u8>, Digest)>) -> Result<usize, Cause> {
        self.ask(|done| Job::Purge(doomed, done)).await
    }

    /// Looks after the Merkle trees a little, or stores all of them.
    pub async fn tend(&self, all: bool) -> Result<Health, Cause> {
        self.ask(|done| Job::Tend(all, done)).await
    }

    /// The group to wait for if what was just read under `key` is not yet durable.
    pub fn unsettled(&self, key: &[u8]) -> Option<u64> {
        if self.shared.durability == Durability::Interval || canary::sings(Canary::UnsyncedRead) {
            return None;
        }
        let unsynced = lock(&self.shared.unsynced);
        (!unsynced.keys.is_empty() && unsynced.keys.contains(&fingerprint(key))).then_some(unsynced.group)
    }

    /// The group to wait for if anything that was just read may not yet be durable.
    pub fn unsettled_any(&self) -> Option<u64> {
        if self.shared.durability == Durability::Interval {
            return None;
        }
        let unsynced = lock(&self.shared.unsynced);
        (!unsynced.keys.is_empty()).then_some(unsynced.group)
    }

    /// Returns when a group is synced; false if it never will be.
    pub async fn settled(&self, group: u64) -> bool {
        let mut synced = self.shared.synced.subscribe();
        let done = synced.wait_for(|done| *done >= group || self.has_failed()).await.is_ok();
        done && !self.has_failed()
    }

    /// How long a job waits that is handed over now, beyond the group that is under way.
    pub fn queue_delay(&self) -> Duration {
        let waiting = COMMIT_QUEUE.saturating_sub(self.queue.capacity());
        let groups = u32::try_from(waiting / COMMIT_GROUP).unwrap_or(u32::MAX);
        Duration::from_micros(self.shared.group_us.load(Ordering::Relaxed)).saturating_mul(groups)
    }

    /// Whether a sync has failed.
    pub fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }
}

fn refuse(job: Job, cause: Cause) {
    match job {
        Job::Mint(_, done) => done(Err(cause)),
        Job::Apply(_, done) => done(Err(cause)),
        Job::Write(_, done) => done(Err(cause)),
        Job::Tend(_, done) => done(Err(cause)),
        Job::Purge(_, done) => done(Err(cause)),
        Job::SetAside(_, done) => done(Err(cause)),
        Job::Restore(_, _, done) => done(Err(cause)),
    }
}

/// The keyspace of a job's record, if it has been dropped.
fn dropped_keyspace(job: &Job, map: &ClusterMap) -> Option<KeyspaceId> {
    let storage_key = match job {
        Job::Mint(write, _) => &write.storage_key,
        Job::Apply(incoming, _) => &incoming.storage_key,
        Job::SetAside(..) | Job::Restore(..) => return None,
        Job::Write(..) | Job::Tend(..) | Job::Purge(..) => return None,
    };
    let (_, keyspace) = schema::split_range(storage_key)?;
    (map.has_dropped(keyspace)).then_some(keyspace)
}

/// A job that is written, with what acknowledges it.
type Acknowledge = Box<dyn FnOnce(Result<(), Cause>) + Send>;

/// Jobs that are written and wait for their sync.
struct Group {
    number: u64,
    acknowledge: Vec<Acknowledge>,
    wrote: bool,
}

impl Shared {
    /// Invariant 4: counted once, then kept by each batch.
    fn count_requests(&self) {
        match requests::count(&*self.storage) {
            Ok(count) => {
                self.metrics.requests_remembered.set(count);
            }
            Err(error) => tracing::error!(%error, "remembered requests can't be counted"),
        }
    }

    fn run_thread(&self, mut jobs: mpsc::Receiver<Job>) {
        self.count_requests();
        let mut group = Vec::new();
        while jobs.blocking_recv_many(&mut group, COMMIT_GROUP) > 0 {
            let began = self.clock.mono();
            if let Some(written) = self.write_group(&mut group) {
                self.sync_group(written);
            }
            self.group_us.store(self.clock.mono().micros_since(began), Ordering::Relaxed);
        }
    }

    async fn run_task(&self, mut jobs: mpsc::Receiver<Job>) {
        self.count_requests();
        let mut group = Vec::new();
        while jobs.recv_many(&mut group, COMMIT_GROUP).await > 0 {
            let Some(mut written) = self.write_group(&mut group) else { continue };
            if canary::sings(Canary::AckBeforeSync) {
                written.acknowledge.drain(..).for_each(|done| done(Ok(())));
            }
            let wait = self.storage.sync_takes();
            if written.wrote && !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            self.sync_group(written);
        }
    }

    /// Carries out the jobs that wait together; none if the storage has failed before.
    fn write_group(&self, jobs: &mut Vec<Job>) -> Option<Group> {
        if self.failed.load(Ordering::Acquire) {
            let cause = Cause::Storage("a sync has failed; the node must be restarted".into());
            jobs.drain(..).for_each(|job| refuse(job, cause.clone()));
            return None;
        }
        self.metrics.commit_groups.inc();
        self.metrics.commit_jobs.inc_by(u64::try_from(jobs.len()).unwrap_or(0));
        let number = {
            let mut unsynced = lock(&self.unsynced);
            unsynced.group += 1;
            unsynced.group
        };
        let (mut acknowledge, mut wrote) = (Vec::with_capacity(jobs.len()), false);
        // Read after the jobs were taken, see invariant 5.
        let map = self.map.borrow().clone();
        for job in jobs.drain(..) {
            match dropped_keyspace(&job, &map) {
                Some(id) => refuse(job, Cause::UnknownKeyspace(format!("id {id}, dropped"))),
                None => acknowledge.extend(self.run_job(job, &mut wrote)),
            }
        }
        Some(Group { number, acknowledge, wrote })
    }

    /// Makes a group durable, and acknowledges it.
    fn sync_group(&self, Group { number, acknowledge, wrote }: Group) {
        let result = if wrote && self.durability == Durability::Always {
            self.storage.sync().map_err(|error| Cause::InDoubt(error.to_string()))
        } else {
            Ok(())
        };
        let result = match self.failed.load(Ordering::Acquire) {
            true => result.and(Err(Cause::InDoubt("a write has failed; the node must be restarted".into()))),
            false => result,
        };
        if let Err(cause) = &result {
            tracing::error!(?cause, "storage failed: this node acknowledges nothing any more");
            self.failed.store(true, Ordering::Release);
        } else {
            lock(&self.unsynced).keys.clear();
        }
        self.synced.send_replace(number);
        acknowledge.into_iter().for_each(|done: Acknowledge| done(result.clone()));
    }

    /// Carries out one job; returns what acknowledges it once it is synced.
    fn run_job(&self, job: Job, wrote: &mut bool) -> Option<Acknowledge> {
        match job {
            Job::Mint(write, done) if write.until.is_some_and(|until| self.clock.mono() >= until) => {
                done(Err(Cause::NotBegun));
                None
            }
            Job::Mint(write, done) => {
                let minted = {
                    let mut minter = lock(&self.minter);
                    mint::mint(&*self.storage, &mut minter, self.clock.wall(), &write)
                };
                let minted = match minted {
                    Err(MintError::Load(LoadError::Damaged(why))) => {
                        self.mint_onto_damaged(why, &write, wrote)
                    }
                    Err(error) => Err(mint_cause(error)),
                    Ok(minted) => self.write_minted(&write.storage_key, minted, wrote),
                };
                once_synced(minted, done)
            }
            Job::Apply(incoming, done) => once_synced(self.apply(&incoming, wrote), done),
            Job::Write(batch, done) => once_synced(self.write(&batch, wrote), done),
            Job::Purge(doomed, done) => once_synced(self.purge(&doomed, wrote), done),
            Job::Tend(all, done) => once_synced(self.tend(all, wrote), done),
            Job::SetAside(key, done) => once_synced(self.set_aside(&key, wrote), done),
            Job::Restore(key, held, done) => once_synced(self.restore(&key, &held, wrote), done),
        }
    }

    /// Deletes those that are still what they were, with what leads to them.
    fn purge(&self, doomed: &[(Vec<u8>, Digest)], wrote: &mut bool) -> Result<usize, Cause> {
        let mut purged = 0;
        for (storage_key, digest) in doomed {
            let found = match stored::load(&*self.storage, storage_key) {
                // One that can't be read is not the same, and the others are purged.
                Err(LoadError::Damaged(_)) => {
                    self.suspect(storage_key);
                    continue;
                }
                found => found.map_err(|error| load_cause(&error))?,
            };
            let blind = canary::sings(Canary::PurgedBlindly);
            let Some(found) = found.filter(|found| blind || found.record.digest() == *digest) else {
                continue;
            };
            let since = found.record.dead_since().or(blind.then_some(WallMs(0)));
            let Some(since) = since else { continue };
            let mut batch = Batch::new();
            batch.delete(storage_key.clone());
            batch.delete(schema::dead_key(since, storage_key));
            let before = Some(found.record.digest());
            let change = Change { before, after: None, dead_since: None };
            self.write_record(storage_key, &mut batch, Some(change), wrote)?;
            purged += 1;
        }
        Ok(purged)
    }

    /// A step of each rebuild that waits, then some regions to disk, then what is gone.
    fn tend(&self, all: bool, wrote: &mut bool) -> Result<Health, Cause> {
        let mut forest = lock(&self.forest);
        let now = self.clock.mono();
        let read =
            forest.rebuild(now, &*self.storage, &|key, value| self.summary_of(key, value), REBUILD_RECORDS);
        read.map_err(|error| Cause::Storage(error.to_string()))?;
        let (before, most) = match all {
            true => (Mono(u64::MAX), usize::MAX),
            false => (now.minus(STORE_AFTER), STORE_REGIONS),
        };
        let (batch, count) = forest.store(before, most);
        for writes in batch.writes.chunks(STORE_REGIONS) {
            self.write(&Batch { writes: writes.to_vec() }, wrote)?;
        }
        forest.stored(count);
        let map = self.map.borrow().clone();
        let gone = forest.forget(|keyspace| map.has_dropped(keyspace));
        for writes in gone.writes.chunks(STORE_REGIONS) {
            self.write(&Batch { writes: writes.to_vec() }, wrote)?;
        }
        Ok(forest.health())
    }

    /// Writes a batch with a record in it, and keeps its Merkle tree up.
    fn write_record(
        &self,
        storage_key: &[u8],
        batch: &mut Batch,
        change: Option<Change>,
        wrote: &mut bool,
    ) -> Result<(), Cause> {
        let Some(change) = change else { return self.write(batch, wrote) };
        let mut forest = lock(&self.forest);
        if let Some(mark) = forest.before_write(storage_key) {
            batch.writes.insert(0, mark);
        }
        if let Some(since) = change.dead_since {
            batch.put(schema::dead_key(since, storage_key), Vec::new());
        }
        self.write(batch, wrote)?;
        forest.written(self.clock.mono(), storage_key, change);
        Ok(())
    }

    fn apply(&self, incoming: &Incoming, wrote: &mut bool) -> Result<Outcome, Cause> {
        let Incoming { storage_key, record, bytes, fresh, entry } = incoming;
        let applied = apply::apply(&*self.storage, storage_key, record, bytes, *fresh);
        if let Err(LoadError::Damaged(_)) = &applied {
            self.suspect(storage_key);
            self.version_came(storage_key);
        }
        let Applied { mut outcome, change, damage } = applied.map_err(|error| load_cause(&error))?;
        let entry = entry.or_else(|| requests::entry_of(storage_key, record, self.clock.wall()));
        if let Some(entry) = entry
            && !matches!(outcome, Outcome::Superseded(_))
        {
            let mut batch = match outcome {
                Outcome::Changed(batch) => batch,
                _ => Batch::new(),
            };
            entry.remember(self.clock.wall(), &mut batch);
            outcome = Outcome::Changed(batch);
        }
        match (&mut outcome, damage) {
            (Outcome::Changed(batch), Some(damage)) => {
                self.metrics.damaged_records.inc();
                let found = damage.found.as_deref().unwrap_or_default();
                self.quarantine(storage_key, (&damage.why, found), batch.writes.clone(), wrote)?;
            }
            (Outcome::Changed(batch), None) => {
                // It is kept beside the mark.
                if change.is_none() {
                    self.version_came(storage_key);
                }
                self.write_record(storage_key, batch, change, wrote)?;
            }
            _ => {}
        }
        Ok(outcome)
    }

    fn write_minted(
        &self,
        storage_key: &[u8],
        mut minted: Minted,
        wrote: &mut bool,
    ) -> Result<Minted, Cause> {
        self.write_record(storage_key, &mut minted.batch, minted.change, wrote)
            .inspect_err(|_| lock(&self.minter).forget_leases())?;
        if minted.versions > SIBLINGS_WARN {
            self.metrics.many_siblings.inc();
        }
        Ok(minted)
    }

    /// Writes a batch; its keys count as unsynced from before it is visible.
    fn write(&self, batch: &Batch, wrote: &mut bool) -> Result<(), Cause> {
        if self.durability == Durability::Always {
            let mut unsynced = lock(&self.unsynced);
            unsynced.keys.extend(batch.writes.iter().map(|write| fingerprint(write.key())));
        }
        *wrote = true;
        // What can't be read will fail by itself; it is not for the count to say so.
        let growth = requests::growth(&*self.storage, batch).unwrap_or(0);
        let written = self.storage.write(batch).map_err(|error| match error {
            StorageError::Full | StorageError::Unreadable(_) => Cause::Storage(error.to_string()),
            error => {
                self.failed.store(true, Ordering::Release);
                Cause::InDoubt(error.to_string())
            }
        });
        if written.is_ok() && growth != 0 {
            let remembered = &self.metrics.requests_remembered;
            remembered.set(remembered.get().saturating_add_signed(growth));
        }
        written
    }
}

/// What acknowledges a job once it is synced; one that failed is answered at once.
fn once_synced<T: Send + 'static>(result: Result<T, Cause>, done: Done<T>) -> Option<Acknowledge> {
    match result {
        Ok(value) => Some(Box::new(move |synced| done(synced.map(|()| value)))),
        Err(cause) => {
            done(Err(cause));
            None
        }
    }
}

fn load_cause(error: &LoadError) -> Cause {
    Cause::Storage(error.to_string())
}

fn mint_cause(error: MintError) -> Cause {
    match error {
        MintError::Load(error) => load_cause(&error),
        MintError::Clock(too_far) => Cause::ClockSkew(too_far.to_string()),
        MintError::TooManySiblings(count) => Cause::TooManySiblings(count),
        MintError::Forged => Cause::Invalid(Invalid::new("context", error.to_string())),
        MintError::TooLarge(_) => Cause::Invalid(Invalid::new("value", error.to_string())),
    }
}

/// Syncs every 200 ms with `durability = "interval"`, until the committer fails.
pub async fn sync_at_intervals(committer: Committer) {
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(200));
    loop {
        ticks.tick().await;
        let storage = committer.shared.storage.clone();
        let synced = tokio::task::spawn_blocking(move || storage.sync()).await;
        if !matches!(synced, Ok(Ok(()))) {
            tracing::error!(?synced, "sync failed: this node acknowledges nothing any more");
            committer.shared.failed.store(true, Ordering::Release);
            return;
        }
    }
}

#[cfg(test)]
mod tests;
