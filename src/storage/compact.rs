//! Gives back the disk space of what was deleted.
//!
//! sled's log never gets shorter: it reuses its segments, so it stays as large as it ever was. So where it has become much
//! larger than what is in it, all entries are copied to a new database beside it, which then takes its place. Reads and
//! writes go on meanwhile.
//!
//! A step does a little, and the caller rests between two; what a step has copied is synced at its end, so the device is not
//! flooded. While the copy is made, every write up to where it has come
//! goes to both. It is compared with the engine, entry by entry, before it takes over.
//!
//! Invariants:
//! 1. Under the writers' lock, the copy holds exactly what the engine holds of the keys up to where it has come.
//! 2. The copy takes over with all of it, and all of that on stable storage: what a sync has acknowledged stays so.
//! 3. Whatever fails before, the engine goes on as if nothing had been begun. If it is in doubt which of the two the next
//!    start will take, nothing more is written to either.
//!
//! It needs room on the disk for what is copied, and its cache takes as much memory again while it is made.

use std::fs::File;
use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::StorageError;
use super::engine::Engine;
use super::generations;
use super::large::from_io;
use super::sled::{Placed, RESERVE_BYTES, SledStorage, Writer};
use super::stored::stuff;
use crate::types::time::Mono;

/// Entries that one step reads without a lock, and that one step copies or compares under it.
const READ_ENTRIES: usize = 1_024;
const COPY_ENTRIES: usize = 128;
/// Bytes after which a step ends earlier.
const STEP_BYTES: usize = 256 << 10;

/// What sled needs for entries that are written in order: so many times their bytes, and so many bytes for each.
const PACKED_TIMES: u64 = 2;
const PACKED_ENTRY: u64 = 256;
/// A log of more than so many halves of what a new one would have is worth the work.
const WORTH_HALVES: u64 = 5;

/// After a look: another once the log has been written on by one part of so many of its size, and so many times what the
/// last one took is over, ...
const LOOK_PARTS: u64 = 4;
const LOOK_SOON: u32 = 4;
/// ... or, if anything was written, after so many times what the last one took, and this at the least.
const LOOK_TIMES: u32 = 20;
const LOOK_PAUSE: Duration = Duration::from_mins(5);

/// What a step has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There is nothing to do for now.
    Idle,
    /// There is more to do.
    More,
    /// The engine's log has become smaller, from so many bytes to so many.
    Compacted(u64, u64),
}

/// What is in the engine: entries, and bytes of their keys and values, of large ones only where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Content {
    entries: u64,
    bytes: u64,
}

impl Content {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.entries += 1;
        self.bytes += (key.len() + value.len()) as u64;
    }

    /// About how large a log of nothing else is.
    fn packed(self) -> u64 {
        PACKED_TIMES * self.bytes + PACKED_ENTRY * self.entries
    }

    fn is_worth(self, log: u64, least: u64) -> bool {
        log >= least && log * 2 >= self.packed() * WORTH_HALVES
    }
}

/// The last look at what is in the engine.
#[derive(Debug, Clone, Copy)]
struct Look {
    /// Where the log was.
    written: u64,
    ended: Mono,
    took: Duration,
}

impl Look {
    fn is_over(&self, log: u64, written: u64, now: Mono) -> bool {
        let more = written.saturating_sub(self.written);
        let pause = (self.took * LOOK_TIMES).max(LOOK_PAUSE);
        let is_longer = more >= log / LOOK_PARTS && now >= self.ended + self.took * LOOK_SOON;
        more > 0 && (is_longer || now >= self.ended + pause)
    }
}

/// What is being done.
enum Phase {
    Resting,
    /// Counts what there is, from behind this key on.
    Looking {
        from: Option<Vec<u8>>,
        content: Content,
        began: Mono,
    },
    Copying,
    /// Compares, from behind this key on.
    Comparing {
        from: Option<Vec<u8>>,
    },
    /// The copy has taken over: waits until nobody reads the old one any more.
    Leaving {
        old: Arc<Engine>,
        number: u64,
    },
}

/// How far the compaction is.
pub(super) struct State {
    phase: Phase,
    /// The generation of the engine.
    number: u64,
    last: Option<Look>,
}

impl State {
    pub fn new(number: u64) -> State {
        State { phase: Phase::Resting, number, last: None }
    }
}

/// What is to take the engine's place.
pub(super) struct Copy {
    engine: Arc<Engine>,
    /// The last key that was copied, as stored.
    last: Option<Vec<u8>>,
    /// All keys are.
    is_whole: bool,
    failed: Option<StorageError>,
}

impl Copy {
    fn covers(&self, stored_key: &[u8]) -> bool {
        self.is_whole || self.last.as_deref().is_some_and(|last| stored_key <= last)
    }

    /// Those of some writes that are up to where it has come.
    pub fn writes_of(&self, placed: &[Placed<'_>]) -> Vec<CopyWrite> {
        let stored = placed.iter().map(|(key, value)| (stuff(key), value));
        let covered = stored.filter(|(stored_key, _)| self.covers(stored_key));
        covered.map(|(stored_key, value)| (stored_key.into_owned(), value.clone())).collect()
    }

    /// Writes to it what was written to the engine with this result. If that, or this, fails, the next step gives it up.
    pub fn apply(&mut self, result: &Result<(), StorageError>, writes: Vec<CopyWrite>) {
        let all = || {
            result.clone()?;
            writes.into_iter().try_for_each(|(stored_key, value)| self.set(&stored_key, value.as_deref()))
        };
        if self.failed.is_none() {
            self.failed = all().err();
        }
    }

    /// One by one: a batch of sled's keeps out all readers of all databases of the process, and the copy counts as a whole or
    /// not at all.
    fn set(&self, stored_key: &[u8], value: Option<&[u8]>) -> Result<(), StorageError> {
        let db = self.engine.db();
        match value {
            Some(value) => self.engine.change(|| db.insert(stored_key, value))?,
            None => self.engine.change(|| db.remove(stored_key))?,
        };
        self.engine.touch(stored_key, value.map_or(0, <[u8]>::len))
    }

    fn check_failed(&self) -> Result<(), StorageError> {
        self.failed.clone().map_or(Ok(()), Err)
    }
}

/// A key as stored, and what is stored for it now.
type CopyWrite = (Vec<u8>, Option<Vec<u8>>);

fn behind(key: Option<&[u8]>) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (key.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

type Pair = (sled::IVec, sled::IVec);

/// Some entries behind a key, in order; none at the end.
fn some(engine: &Engine, from: Option<&[u8]>, most: usize) -> Result<Vec<Pair>, StorageError> {
    let mut entries = engine.db().range::<&[u8], _>(behind(from));
    let (mut found, mut bytes) = (Vec::new(), 0);
    while found.len() < most && bytes < STEP_BYTES {
        let Some((key, value)) = engine.reading(|| entries.next().transpose())? else { break };
        engine.touch(&key, value.len())?;
        bytes += key.len() + value.len();
        found.push((key, value));
    }
    Ok(found)
}

impl SledStorage {
    /// Bytes of keys and values that the last look found, of large ones only where they are.
    pub fn live_bytes(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// Begins a compaction, unless one is under way, whether it is worth the work or not.
    pub fn compact_anyway(&self) -> Result<(), StorageError> {
        let mut state = self.compaction.lock().unwrap_or_else(PoisonError::into_inner);
        let engine = self.engine();
        engine.check_failed()?;
        if !matches!(state.phase, Phase::Resting | Phase::Looking { .. }) {
            return Ok(());
        }
        self.check_room(engine.log_bytes())?;
        self.begin(&mut state).inspect_err(|_| self.give_up(&mut state))
    }

    /// Whether a compaction that writes so much fits on the disk.
    fn check_room(&self, needed: u64) -> Result<(), StorageError> {
        let (room, needed) = (self.room()?, needed + 2 * RESERVE_BYTES);
        if room >= needed {
            return Ok(());
        }
        Err(StorageError::Io(format!("{room} bytes are free, a compaction needs about {needed}")))
    }

    /// One step of looking after the log: finds out whether one of at least `least` bytes is much larger than what is in
    /// it, and if so makes a new one. An error has ended what was under way; the storage goes on.
    pub fn compact(&self, now: Mono, least: u64) -> Result<Step, StorageError> {
        let mut state = self.compaction.lock().unwrap_or_else(PoisonError::into_inner);
        self.engine().check_failed()?;
        let stepped = self.step(&mut state, now, least);
        if let (Err(_), Phase::Looking { began, .. }) = (&stepped, &state.phase) {
            // What can't be read now can't be read at once again.
            let took = Duration::from_micros(now.micros_since(*began));
            state.last = Some(Look { written: self.engine().written(), ended: now, took });
        }
        if stepped.is_err() && !matches!(state.phase, Phase::Leaving { .. }) {
            self.give_up(&mut state);
        }
        stepped
    }

    fn step(&self, state: &mut State, now: Mono, least: u64) -> Result<Step, StorageError> {
        let engine = self.engine();
        match &mut state.phase {
            Phase::Resting => {
                let log = engine.log_bytes();
                let is_due = state.last.is_none_or(|last| last.is_over(log, engine.written(), now));
                if log < least || !is_due {
                    return Ok(Step::Idle);
                }
                state.phase = Phase::Looking { from: None, content: Content::default(), began: now };
            }
            Phase::Looking { from, content, began } => {
                let found = some(&engine, from.as_deref(), READ_ENTRIES)?;
                found.iter().for_each(|(key, value)| content.add(key, value));
                let Some((last, _)) = found.last() else {
                    let (content, took) = (*content, Duration::from_micros(now.micros_since(*began)));
                    state.last = Some(Look { written: engine.written(), ended: now, took });
                    state.phase = Phase::Resting;
                    self.live.store(content.bytes, Ordering::Relaxed);
                    if !content.is_worth(engine.log_bytes(), least) {
                        return Ok(Step::Idle);
                    }
                    self.check_room(content.packed())?;
                    self.begin(state)?;
                    return Ok(Step::More);
                };
                *from = Some(last.to_vec());
            }
            Phase::Copying => {
                let is_whole = self.copy_some(&engine)?;
                self.sync_copy()?;
                if is_whole {
                    state.phase = Phase::Comparing { from: None };
                }
            }
            Phase::Comparing { from } => {
                self.sync_copy()?;
                let mut writer = self.writer();
                match compare(&engine, &writer, from.as_deref())? {
                    Some(last) => *from = Some(last),
                    None => return self.take_over(state, &mut writer),
                }
            }
            Phase::Leaving { old, number } => {
                if Arc::strong_count(old) > 1 {
                    return Ok(Step::Idle);
                }
                let (gone, newest) = (*number, state.number);
                // Closes it.
                state.phase = Phase::Resting;
                self.beside.store(0, Ordering::Relaxed);
                generations::remove(&self.dir, gone, newest).map_err(from_io)?;
            }
        }
        Ok(Step::More)
    }

    /// Makes an empty database to copy to.
    fn begin(&self, state: &mut State) -> Result<(), StorageError> {
        generations::remove_others(&self.dir, state.number).map_err(from_io)?;
        let folder = generations::folder(&self.dir, state.number + 1);
        let engine = Arc::new(Engine::open(&folder, self.cache_bytes)?);
        self.writer().copy = Some(Copy { engine, last: None, is_whole: false, failed: None });
        state.phase = Phase::Copying;
        Ok(())
    }

    /// Copies some entries; whether all are copied.
    fn copy_some(&self, engine: &Engine) -> Result<bool, StorageError> {
        let mut writer = self.writer();
        let copy = writer.copy.as_mut().ok_or_else(lost)?;
        copy.check_failed()?;
        if self.room()? < 2 * RESERVE_BYTES {
            return Err(StorageError::Full);
        }
        let found = some(engine, copy.last.as_deref(), COPY_ENTRIES)?;
        found.iter().try_for_each(|(key, value)| copy.set(key, Some(value)))?;
        self.beside.store(copy.engine.log_bytes(), Ordering::Relaxed);
        match found.last() {
            Some((last, _)) => copy.last = Some(last.to_vec()),
            None => copy.is_whole = true,
        }
        Ok(copy.is_whole)
    }

    /// Without the writers' lock: what waits to be written out would hold up readers and writers of the engine, too.
    fn sync_copy(&self) -> Result<(), StorageError> {
        let copy = self.writer().copy.as_ref().map(|copy| copy.engine.clone());
        copy.ok_or_else(lost)?.sync()
    }

    /// Invariant 2. Whoever holds the writers' lock keeps others from writing meanwhile.
    fn take_over(&self, state: &mut State, writer: &mut Writer) -> Result<Step, StorageError> {
        let copy = writer.copy.as_ref().ok_or_else(lost)?;
        copy.check_failed()?;
        self.engine().check_failed()?;
        let next = copy.engine.clone();
        next.sync()?;
        let (gone, number) = (state.number, state.number + 1);
        generations::sync(&self.dir, number).map_err(from_io)?;
        if let Err(error) = generations::complete(&self.dir, number) {
            // Invariant 3.
            let error = StorageError::Io(format!("the end of a compaction is in doubt: {error}"));
            next.fail(error.clone());
            return Err(self.engine().fail(error));
        }
        let (before, after) = (self.engine().log_bytes(), next.log_bytes());
        if let Some(last) = &mut state.last {
            last.written = next.written();
        }
        writer.copy = None;
        let old = self.exchange(writer, next);
        self.beside.store(before, Ordering::Relaxed);
        state.number = number;
        state.phase = Phase::Leaving { old, number: gone };
        Ok(Step::Compacted(before, after))
    }

    /// Removes what was made so far.
    fn give_up(&self, state: &mut State) {
        state.phase = Phase::Resting;
        let copy = self.writer().copy.take();
        // Which of the two counts may be in doubt.
        if self.engine().check_failed().is_err() {
            return;
        }
        let number = state.number + 1;
        if copy.is_some_and(|copy| copy.engine.check_failed().is_err()) {
            // It can't be closed, and its file stays for as long as the process does: empty.
            let log = generations::folder(&self.dir, number).join("db");
            let emptied = File::options().write(true).open(log).and_then(|log| log.set_len(0));
            drop(emptied);
        }
        self.beside.store(0, Ordering::Relaxed);
        if let Err(error) = generations::remove_others(&self.dir, state.number) {
            tracing::warn!(%error, "what is left of a compaction can't be removed; the next start does it");
        }
    }
}

fn lost() -> StorageError {
    StorageError::Io("the copy that a compaction makes is gone".into())
}

/// Compares some entries of the engine and the copy, of which the writers' lock is held; the last key, if there are any.
fn compare(engine: &Engine, writer: &Writer, from: Option<&[u8]>) -> Result<Option<Vec<u8>>, StorageError> {
    let copy = writer.copy.as_ref().ok_or_else(lost)?;
    copy.check_failed()?;
    let (ours, theirs) = (some(engine, from, COPY_ENTRIES)?, some(&copy.engine, from, COPY_ENTRIES)?);
    if ours != theirs {
        return Err(StorageError::Corrupt("a compaction's copy is not what was copied".into()));
    }
    Ok(ours.last().map(|(key, _)| key.to_vec()))
}

#[cfg(test)]
#[path = "compact_tests.rs"]
mod tests;
