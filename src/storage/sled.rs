//! Storage in `sled`: the default engine. With [`super::engine`] and [`super::compact`] all that names it.
//!
//! What sled 0.34 does, and what is done about it here:
//! - `flush()` ends in `sync_file_range`, which a power cut undoes. After it, [`SledStorage::sync`] syncs
//!   sled's log through a descriptor of its own.
//! - It reuses a segment of its log once what replaced the contents has left the process, not once that is
//!   durable; two segments later at the earliest. So the log is synced at each new segment (invariant 2).
//!   After a kill it also takes for durable what it finds: so the files are synced before they are opened.
//! - A page over a quarter of a segment goes to a file that sled never syncs; with values and keys limited
//!   ([`INLINE_BYTES_MAX`], [`KEY_BYTES_MAX`]) and [`SEGMENT_BYTES`] there is no such page. Larger values
//!   are in [`super::large`].
//! - A half-written snapshot left by a crash at start makes it refuse to open: it is deleted first.
//! - A reverse scan spins where a key has 5 bytes `ff` in a row: keys are stored with a 0 after each third.
//! - A full disk fails it until the next start: writes are refused while there is still some room left.
//! - It may panic where its files are damaged: a panic is caught, and is an error.
//! - It takes damage in its log for the end of a crash, and goes back to older pages: [`super::log_check`] reads the log
//!   first.
//! - Its own flush thread is off: the commit thread syncs.
//! - Its log never gets shorter: [`super::compact`] makes a new one.
//!
//! Invariants:
//! 1. What `sync` has acknowledged survives a power cut; what was written since survives as a prefix of the
//!    batches, each whole.
//! 2. Before a write begins, each segment of the log that had been written out by the end of the one before
//!    is on stable storage.
//! 3. Once a write or a sync has failed in sled, every later one fails: its state is in doubt until the next
//!    start. Reads go on.
//! 4. Once a page could not be read, a write looks first whether it needs such a page, and is refused as a whole then.
//!
//! What it does not do: notice that one of sled's own threads has died, which leaves a sync waiting.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::compact::{Copy, State};
use super::engine::{Engine, SEGMENT_BYTES, caught, sync_tree};
use super::generations;
use super::large::{INLINE_BYTES_MAX, LargeValues, Pointer, from_io};
use super::stored::{Stored, decode, encode_inline, encode_pointer, stuff, unstuff};
use super::{Batch, Storage, StorageError, Write, is_empty_range};

/// Longest key, as stored. A key of `schema` has at most 3 081 bytes, and stuffing adds to few of them.
const KEY_BYTES_MAX: usize = 3_200;
const _: () = assert!((256 + 64) * (KEY_BYTES_MAX + 32) < SEGMENT_BYTES / 4);
const _: () = assert!((16 + 4) * (INLINE_BYTES_MAX + KEY_BYTES_MAX + 32) < SEGMENT_BYTES / 4);
/// Writes are refused while the disk has less room than this: enough for what is written between two
/// looks, and for the snapshot that sled writes at start.
pub(super) const RESERVE_BYTES: u64 = 32 << 20;
/// Bytes of batches after which the room on the disk is looked at again.
const LOOK_BYTES: u64 = 1 << 20;
/// What a write adds to the log beside its own bytes, at the most often: the page that it lands on.
const PAGE_BYTES: usize = 4 << 10;

/// A `sled` database in a directory.
pub struct SledStorage {
    engine: RwLock<Arc<Engine>>,
    pub(super) dir: PathBuf,
    dir_handle: File,
    pub(super) cache_bytes: u64,
    pub(super) large: LargeValues,
    writer: Mutex<Writer>,
    pub(super) compaction: Mutex<State>,
    /// Bytes of the log that a compaction writes, or has left behind.
    pub(super) beside: AtomicU64,
    /// Bytes of keys and values, of large ones only where they are, as the last look of the compaction found them.
    pub(super) live: AtomicU64,
}

/// What writers share; whoever writes holds it.
#[derive(Default)]
pub(super) struct Writer {
    /// Number of the log's segment up to which it is on stable storage.
    durable_segment: u64,
    /// Bytes written since the room on the disk was looked at.
    unlooked: u64,
    has_room: bool,
    /// Large values that were replaced, and the lengths of their keys: deleted after the next sync.
    garbage: Vec<(Pointer, usize)>,
    /// What is to take the engine's place, and is kept equal up to where it has come.
    pub copy: Option<Copy>,
}

impl SledStorage {
    /// Whether there is a database in `dir` already.
    pub fn exists(dir: &Path) -> bool {
        generations::newest(dir).is_ok_and(|newest| Engine::exists(&generations::folder(dir, newest)))
    }

    /// Opens or makes a database in `dir`, whose cache holds `cache_bytes` of pages.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<SledStorage, StorageError> {
        let newest = generations::newest(dir).map_err(from_io)?;
        generations::check(dir, newest)?;
        let engine = Engine::open(&generations::folder(dir, newest), cache_bytes)?;
        let large = LargeValues::open(&dir.join("large"), |id, key| {
            let stored = caught(|| engine.db().get(stuff(key)))?;
            Ok(matches!(stored.as_deref().map(decode), Some(Ok(Stored::At(pointer))) if pointer.id == id))
        })?;
        engine.sync()?;
        // Before anything older is removed: the name of the folder.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(from_io)?;
        generations::remove_others(dir, newest).map_err(from_io)?;
        // What opening itself has made: the snapshot, the configuration, the names of all.
        sync_tree(dir).map_err(from_io)?;
        Ok(SledStorage {
            engine: RwLock::new(Arc::new(engine)),
            dir: dir.to_path_buf(),
            dir_handle: File::open(dir).map_err(from_io)?,
            cache_bytes,
            large,
            writer: Mutex::default(),
            compaction: Mutex::new(State::new(newest)),
            beside: AtomicU64::new(0),
            live: AtomicU64::new(0),
        })
    }

    pub(super) fn engine(&self) -> Arc<Engine> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn writer(&self) -> MutexGuard<'_, Writer> {
        // Each field is whole at any moment.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has another engine take the place of this one, which has all that this one has. Returns this one.
    pub(super) fn exchange(&self, writer: &mut Writer, next: Arc<Engine>) -> Arc<Engine> {
        writer.durable_segment = next.written() / SEGMENT_BYTES as u64;
        std::mem::replace(&mut self.engine.write().unwrap_or_else(PoisonError::into_inner), next)
    }

    /// Bytes of room on the disk.
    pub(super) fn room(&self) -> Result<u64, StorageError> {
        let stat = rustix::fs::fstatvfs(&self.dir_handle)
            .map_err(|error| StorageError::Io(format!("room on the disk: {error}")))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Keeps invariant 4.
    fn check_readable(engine: &Engine, writes: &BTreeMap<&[u8], Option<&[u8]>>) -> Result<(), StorageError> {
        if !engine.is_unreadable() {
            return Ok(());
        }
        for key in writes.keys() {
            match caught(|| engine.db().get(stuff(key))) {
                Err(StorageError::Corrupt(what)) => return Err(StorageError::Unreadable(what)),
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Keeps invariant 2.
    fn sync_full_segments(engine: &Engine, writer: &mut Writer) -> Result<(), StorageError> {
        let written = engine.written();
        let segment = written / SEGMENT_BYTES as u64;
        if segment != writer.durable_segment {
            engine.sync_written(written)?;
            writer.durable_segment = segment;
        }
        Ok(())
    }

    /// Refuses to write when the disk is nearly full.
    fn check_has_room(&self, writer: &mut Writer, batch: &Batch) -> Result<(), StorageError> {
        let bytes: usize = batch
            .writes
            .iter()
            .map(|write| match write {
                Write::Put(key, value) => key.len() + value.len(),
                Write::Delete(key) => key.len(),
            })
            .sum();
        // What is copied is written twice.
        writer.unlooked += bytes as u64 * if writer.copy.is_some() { 2 } else { 1 };
        if !writer.has_room || writer.unlooked > LOOK_BYTES {
            writer.unlooked = 0;
            writer.has_room = self.room()? > RESERVE_BYTES + bytes as u64;
        }
        if writer.has_room { Ok(()) } else { Err(StorageError::Full) }
    }

    /// Writes the large values of `writes` to files. Returns what to store for each key.
    fn place<'a>(
        &self,
        writes: &BTreeMap<&'a [u8], Option<&'a [u8]>>,
    ) -> Result<Vec<Placed<'a>>, StorageError> {
        let mut placed = Vec::with_capacity(writes.len());
        let mut pointers = Vec::new();
        let mut place_one = |key: &'a [u8], value: Option<&'a [u8]>| {
            let stored = match value {
                Some(value) if value.len() > INLINE_BYTES_MAX => {
                    let pointer = self.large.write(key, value)?;
                    pointers.push((pointer, key.len()));
                    Some(encode_pointer(pointer))
                }
                Some(value) => Some(encode_inline(value)),
                None => None,
            };
            placed.push((key, stored));
            Ok(())
        };
        let mut result = writes.iter().try_for_each(|(key, value)| place_one(key, *value));
        if result.is_ok() && !pointers.is_empty() {
            result = self.large.sync_names();
        }
        if let Err(error) = result {
            for (pointer, key_len) in pointers {
                // If this fails too, the next start deletes the file.
                let _ = self.large.remove(pointer, key_len);
            }
            return Err(error);
        }
        Ok(placed)
    }

    /// Changes sled, and what is to take its place. Adds the large values that are replaced to the garbage.
    fn apply(
        &self,
        engine: &Engine,
        writer: &mut Writer,
        placed: Vec<Placed<'_>>,
    ) -> Result<(), StorageError> {
        let copied = writer.copy.as_ref().map(|copy| copy.writes_of(&placed));
        let applied = self.apply_to(engine, writer, placed);
        if let (Some(copy), Some(writes)) = (&mut writer.copy, copied) {
            copy.apply(&applied, writes);
        }
        applied
    }

    fn apply_to(
        &self,
        engine: &Engine,
        writer: &mut Writer,
        placed: Vec<Placed<'_>>,
    ) -> Result<(), StorageError> {
        let db = engine.db();
        let mut replaced = |key: &[u8], old: Option<sled::IVec>| {
            if let Some(Ok(Stored::At(pointer))) = old.as_deref().map(decode) {
                writer.garbage.push((pointer, key.len()));
            }
        };
        if let [(key, value)] = &placed[..] {
            let stored_key = stuff(key);
            let old = match value {
                Some(value) => engine.change(|| db.insert(&stored_key, &value[..]))?,
                None => engine.change(|| db.remove(&stored_key))?,
            };
            replaced(key, old);
            return engine.touch(&stored_key, value.as_ref().map_or(0, Vec::len));
        }
        let mut sled_batch = sled::Batch::default();
        let mut touched = Vec::new();
        for (key, value) in placed {
            let stored_key = stuff(key);
            if !self.large.is_empty() {
                replaced(key, engine.change(|| db.get(&stored_key))?);
            }
            match value {
                Some(value) => {
                    touched.push((stored_key.to_vec(), value.len()));
                    sled_batch.insert(&*stored_key, value);
                }
                None => sled_batch.remove(&*stored_key),
            }
        }
        engine.change(|| db.apply_batch(sled_batch))?;
        touched.iter().try_for_each(|(stored_key, len)| engine.touch(stored_key, *len))
    }

    /// The value that sled stores for `key` as `stored`; `None` if it was replaced meanwhile.
    fn resolve(&self, key: &[u8], stored: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        match decode(stored)? {
            Stored::Here(value) => Ok(Some(value.to_vec())),
            Stored::At(pointer) => self.large.read(key, pointer),
        }
    }

    /// The value of a key, whose stored form was `stored` a moment ago.
    fn settle(&self, key: &[u8], mut stored: sled::IVec) -> Result<Option<Vec<u8>>, StorageError> {
        loop {
            if let Some(value) = self.resolve(key, &stored)? {
                return Ok(Some(value));
            }
            match caught(|| self.engine().db().get(stuff(key)))? {
                None => return Ok(None),
                // Its file is missing: nothing is left of it, which is no value that anybody has sealed.
                Some(now) if now == stored => return Ok(Some(Vec::new())),
                Some(now) => stored = now,
            }
        }
    }
}

impl Storage for SledStorage {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let stored_key = stuff(key);
        let engine = self.engine();
        match engine.reading(|| engine.db().get(&stored_key))? {
            Some(stored) => {
                engine.touch(&stored_key, stored.len())?;
                self.settle(key, stored)
            }
            None => Ok(None),
        }
    }

    fn scan(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StorageError> {
        if is_empty_range(from, to) {
            return Ok(());
        }
        let engine = self.engine();
        let mut entries = engine.db().range::<Cow<'_, [u8]>, _>((from.map(stuff), to.map(stuff)));
        loop {
            let next =
                engine.reading(|| if reverse { entries.next_back() } else { entries.next() }.transpose())?;
            let Some((stored_key, stored)) = next else { return Ok(()) };
            engine.touch(&stored_key, stored.len())?;
            let key = unstuff(&stored_key);
            let go_on = match decode(&stored)? {
                Stored::Here(value) => visit(&key, value),
                Stored::At(_) => match self.settle(&key, stored)? {
                    Some(value) => visit(&key, &value),
                    None => true,
                },
            };
            if !go_on {
                return Ok(());
            }
        }
    }

    fn write(&self, batch: &Batch) -> Result<(), StorageError> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut last = BTreeMap::new();
        for write in &batch.writes {
            let (key, value) = match write {
                Write::Put(key, value) => (key, Some(&value[..])),
                Write::Delete(key) => (key, None),
            };
            check_key(key)?;
            last.insert(&key[..], value);
        }
        let mut writer = self.writer();
        let engine = self.engine();
        engine.check_failed()?;
        self.check_has_room(&mut writer, batch)?;
        SledStorage::check_readable(&engine, &last)?;
        let placed = self.place(&last)?;
        if last.len() * PAGE_BYTES > SEGMENT_BYTES / 2 {
            // It may fill segments without a look in between.
            engine.change(|| engine.db().flush())?;
            engine.sync_log()?;
        }
        self.apply(&engine, &mut writer, placed)?;
        SledStorage::sync_full_segments(&engine, &mut writer)
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.engine().check_failed()?;
        let garbage = std::mem::take(&mut self.writer().garbage);
        // After the garbage is taken: what replaced it was written to this engine, or to one that this one has all of.
        if let Err(error) = self.engine().sync() {
            self.writer().garbage.extend(garbage);
            return Err(error);
        }
        for (pointer, key_len) in garbage {
            self.large.remove(pointer, key_len)?;
        }
        Ok(())
    }

    fn disk_size(&self) -> Option<u64> {
        let stat = rustix::fs::fstatvfs(&self.dir_handle).ok()?;
        Some(stat.f_blocks.saturating_mul(stat.f_frsize))
    }

    fn disk_bytes(&self) -> u64 {
        self.engine().log_bytes() + self.beside.load(Ordering::Relaxed) + self.large.bytes()
    }
}

fn check_key(key: &[u8]) -> Result<(), StorageError> {
    let len = stuff(key).len();
    if len <= KEY_BYTES_MAX {
        return Ok(());
    }
    Err(StorageError::Io(format!("a storage key of {len} bytes, over the limit of {KEY_BYTES_MAX} bytes")))
}

/// A key, and what sled is to store for it.
pub(super) type Placed<'a> = (&'a [u8], Option<Vec<u8>>);

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    /// A failure within sled is final: what it holds is in doubt.
    #[test]
    fn after_a_failed_change_all_writes_fail_and_reads_go_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let storage = SledStorage::open(dir.path(), 1 << 20).expect("opened");
        let mut batch = Batch::new();
        batch.put(*b"a", *b"1");
        storage.write(&batch).expect("written");
        let injected = || Err(sled::Error::Io(std::io::Error::from(ErrorKind::StorageFull)));
        let failed = storage.engine().change::<()>(injected).expect_err("injected");
        assert!(matches!(failed, StorageError::Io(_)), "not Full: it may be half done: {failed}");
        assert_eq!(storage.write(&batch), Err(failed.clone()));
        assert_eq!(storage.sync(), Err(failed));
        assert_eq!(storage.get(b"a"), Ok(Some(b"1".to_vec())));
    }
}
