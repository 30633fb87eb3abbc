//! Storage in memory, with a model of a crash: the simulator's engine.
//!
//! Why this way: one ordered map holds what is visible, and each batch since the last sync leaves behind
//! what it replaced. A crash undoes a suffix of those batches, newest first, so it costs nothing until it
//! happens and can stop at any batch. Faults are asked for by name, not by chance: chance is the
//! simulator's, which has the seed.
//!
//! Invariants:
//! 1. After a crash the map holds what was synced, plus a prefix of the batches since, each whole.
//! 2. A write that fails changes nothing.
//! 3. Once a sync has failed, writes and syncs fail until the next crash: a real device may have dropped
//!    what it could not write and call the next sync a success.
//!
//! It does not model torn sectors or flipped bits: tests write bad values where they want them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Batch, Storage, StorageError, Write, is_empty_range};

/// Entries copied out under the lock at a time, so that a visitor may use the storage.
const SCAN_CHUNK: usize = 32;

type Value = Arc<[u8]>;

/// What a batch replaced, in the order of its writes.
type Undo = Vec<(Vec<u8>, Option<Value>)>;

#[derive(Default)]
struct State {
    map: BTreeMap<Vec<u8>, Value>,
    bytes: u64,
    unsynced: Vec<Undo>,
    capacity: Option<u64>,
    fail_next_sync: Option<StorageError>,
    fail_next_write: Option<StorageError>,
    failed: Option<StorageError>,
    sync_takes: Duration,
}

/// An ordered map in memory that forgets at a crash what was not synced.
#[derive(Default)]
pub struct MemoryStorage {
    state: Mutex<State>,
}

impl MemoryStorage {
    /// An empty storage without a limit.
    pub fn new() -> MemoryStorage {
        MemoryStorage::default()
    }

    /// Crashes, and comes up again: see [`MemoryStorage::crash_with`].
    pub fn crash(&self, rng: &mut impl rand::Rng) -> usize {
        self.crash_with(rng.next_u64())
    }

    /// Crashes, and comes up again with everything synced and a prefix of the batches since then, whose
    /// length `seed` decides. Returns how many batches are lost. Failures that were waiting or had happened
    /// are over; the capacity stays.
    pub fn crash_with(&self, seed: u64) -> usize {
        let mut state = self.lock();
        let kept = choose(seed, state.unsynced.len());
        let lost = state.unsynced.split_off(kept);
        let count = lost.len();
        for undo in lost.into_iter().rev() {
            state.undo(undo);
        }
        state.unsynced.clear();
        state.failed = None;
        state.fail_next_sync = None;
        state.fail_next_write = None;
        count
    }

    /// The next sync fails with [`StorageError::Io`], and everything after it (invariant 3).
    pub fn fail_next_sync(&self, problem: &str) {
        self.lock().fail_next_sync = Some(StorageError::Io(problem.to_string()));
    }

    /// The next write fails with `error` and changes nothing; those after it work.
    pub fn fail_next_write(&self, error: StorageError) {
        self.lock().fail_next_write = Some(error);
    }

    /// From now on a write that would leave more than `bytes` of keys and values is refused with
    /// [`StorageError::Full`], unless it frees more than it takes. `None` lifts the limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// From now on a sync takes so long.
    pub fn set_sync_takes(&self, time: Duration) {
        self.lock().sync_takes = time;
    }

    /// Batches that a crash now could lose.
    pub fn unsynced(&self) -> usize {
        self.lock().unsynced.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock and has changed only a part.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next few entries between the bounds.
    fn chunk(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Vec<(Vec<u8>, Value)> {
        if is_empty_range(from, to) {
            return Vec::new();
        }
        let state = self.lock();
        let range = state.map.range::<[u8], _>((from, to));
        let copy = |(key, value): (&Vec<u8>, &Value)| (key.clone(), value.clone());
        if reverse {
            range.rev().take(SCAN_CHUNK).map(copy).collect()
        } else {
            range.take(SCAN_CHUNK).map(copy).collect()
        }
    }
}

impl State {
    fn set(&mut self, key: Vec<u8>, value: Option<Value>) -> Option<Value> {
        let key_bytes = key.len() as u64;
        let size = |value: &Option<Value>| value.as_ref().map_or(0, |v| key_bytes + v.len() as u64);
        let added = size(&value);
        let old = match value {
            Some(value) => self.map.insert(key, value),
            None => self.map.remove(&key),
        };
        self.bytes = self.bytes + added - size(&old);
        old
    }

    fn undo(&mut self, undo: Undo) {
        for (key, old) in undo.into_iter().rev() {
            self.set(key, old);
        }
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), StorageError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if let Some(error) = self.fail_next_write.take() {
            return Err(error);
        }
        let before = self.bytes;
        let mut undo = Undo::new();
        for write in &batch.writes {
            let (key, value) = match write {
                Write::Put(key, value) => (key, Some(Value::from(value.as_slice()))),
                Write::Delete(key) => (key, None),
            };
            let old = self.set(key.clone(), value);
            undo.push((key.clone(), old));
        }
        if self.bytes > before && self.capacity.is_some_and(|capacity| self.bytes > capacity) {
            self.undo(undo);
            return Err(StorageError::Full);
        }
        self.unsynced.push(undo);
        Ok(())
    }
}

/// A number from 0 to `max`, evenly (SplitMix64: the same on every release, unlike `rand`'s).
fn choose(seed: u64, max: usize) -> usize {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let even = u128::from(z ^ (z >> 31)) * (max as u128 + 1);
    (even >> 64) as usize
}

impl Storage for MemoryStorage {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.lock().map.get(key).map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StorageError> {
        let mut chunk = self.chunk(from, to, reverse);
        loop {
            for (key, value) in &chunk {
                if !visit(key, value) {
                    return Ok(());
                }
            }
            if chunk.len() < SCAN_CHUNK {
                return Ok(());
            }
            let Some((last, _)) = chunk.pop() else { return Ok(()) };
            chunk = if reverse {
                self.chunk(from, Bound::Excluded(&last), true)
            } else {
                self.chunk(Bound::Excluded(&last), to, false)
            };
        }
    }

    fn write(&self, batch: &Batch) -> Result<(), StorageError> {
        self.lock().apply(batch)
    }

    fn sync(&self) -> Result<(), StorageError> {
        let mut state = self.lock();
        if let Some(error) = state.fail_next_sync.take() {
            state.failed = Some(error);
        }
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        state.unsynced.clear();
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        self.lock().bytes
    }

    fn sync_takes(&self) -> Duration {
        self.lock().sync_takes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn put(key: &[u8], value: &[u8]) -> Batch {
        let mut batch = Batch::new();
        batch.put(key, value);
        batch
    }

    /// Every length of the kept prefix is met by some seed, and equal seeds keep equally much.
    #[test]
    fn a_seed_decides_how_much_a_crash_keeps() {
        let mut kept = BTreeSet::new();
        for seed in 0..200 {
            let run = || {
                let storage = MemoryStorage::new();
                for i in 0..4u8 {
                    storage.write(&put(&[i], &[i])).expect("written");
                }
                4 - storage.crash_with(seed)
            };
            assert_eq!(run(), run());
            kept.insert(run());
        }
        assert_eq!(kept, BTreeSet::from([0, 1, 2, 3, 4]));
    }

    #[test]
    fn a_failed_sync_fails_all_until_the_crash() {
        let storage = MemoryStorage::new();
        storage.write(&put(b"a", b"1")).expect("written");
        storage.sync().expect("synced");
        storage.write(&put(b"b", b"2")).expect("written");
        storage.fail_next_sync("no such device");
        let failed = Err(StorageError::Io("no such device".to_string()));
        assert_eq!(storage.sync(), failed);
        assert_eq!(storage.sync(), failed);
        assert_eq!(storage.write(&put(b"c", b"3")), failed);
        assert_eq!(storage.get(b"a"), Ok(Some(b"1".to_vec())));
        assert_eq!(storage.unsynced(), 1);
        storage.crash_with(0);
        storage.write(&put(b"c", b"3")).expect("written again");
        storage.sync().expect("synced again");
        assert_eq!(storage.get(b"a"), Ok(Some(b"1".to_vec())));
    }

    #[test]
    fn a_full_disk_refuses_whole_batches_and_lets_delete() {
        let storage = MemoryStorage::new();
        storage.set_capacity(Some(10));
        storage.write(&put(b"a", b"12345")).expect("fits");
        let mut batch = put(b"b", b"1");
        batch.put(*b"c", *b"123");
        assert_eq!(storage.write(&batch), Err(StorageError::Full));
        assert_eq!(storage.get(b"b"), Ok(None));
        assert_eq!(storage.disk_bytes(), 6);
        assert_eq!(storage.unsynced(), 1, "a refused batch is nothing to lose");
        let mut batch = Batch::new();
        batch.delete(*b"a");
        batch.put(*b"c", *b"123456789");
        storage.write(&batch).expect("fits now");
        assert_eq!(storage.disk_bytes(), 10);
        storage.set_capacity(Some(5));
        let mut batch = Batch::new();
        batch.delete(*b"c");
        storage.write(&batch).expect("frees");
        assert_eq!(storage.disk_bytes(), 0);
    }

    #[test]
    fn one_write_can_be_made_to_fail() {
        let storage = MemoryStorage::new();
        storage.fail_next_write(StorageError::Full);
        assert_eq!(storage.write(&put(b"a", b"1")), Err(StorageError::Full));
        assert_eq!(storage.get(b"a"), Ok(None));
        storage.write(&put(b"a", b"1")).expect("the next one works");
    }

    /// A visitor may read and write the storage it walks over.
    #[test]
    fn a_visitor_may_use_the_storage() {
        let storage = MemoryStorage::new();
        for i in 0..100u8 {
            storage.write(&put(&[i], &[i])).expect("written");
        }
        let mut seen = 0;
        storage
            .scan(Bound::Unbounded, Bound::Unbounded, false, &mut |key, _| {
                let mut batch = Batch::new();
                batch.delete(key);
                storage.write(&batch).expect("deleted");
                seen += 1;
                true
            })
            .expect("scanned");
        assert_eq!((seen, storage.disk_bytes()), (100, 0));
    }
}
