//! Storage in `sled`: the default engine. The only file that names it.
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
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::time::Duration;

use super::large::{INLINE_BYTES_MAX, LargeValues, Pointer, from_io};
use super::log_check::{self, Tide};
use super::stored::{Stored, decode, encode_inline, encode_pointer, stuff, unstuff};
use super::{Batch, Storage, StorageError, Write, is_empty_range};

/// Longest key, as stored. A key of `schema` has at most 3 081 bytes, and stuffing adds to few of them.
const KEY_BYTES_MAX: usize = 3_200;
/// Bytes of one segment of sled's log. An inner page has up to 256 + 64 keys while it is merged, a leaf up
/// to 16 + 4 values; either must stay below a quarter of this.
const SEGMENT_BYTES: usize = 4 << 20;
const _: () = assert!((256 + 64) * (KEY_BYTES_MAX + 32) < SEGMENT_BYTES / 4);
const _: () = assert!((16 + 4) * (INLINE_BYTES_MAX + KEY_BYTES_MAX + 32) < SEGMENT_BYTES / 4);
/// Writes are refused while the disk has less room than this: enough for what is written between two
/// looks, and for the snapshot that sled writes at start.
const RESERVE_BYTES: u64 = 32 << 20;
/// Bytes of batches after which the room on the disk is looked at again.
const LOOK_BYTES: u64 = 1 << 20;
/// What a write adds to the log beside its own bytes, at the most often: the page that it lands on.
const PAGE_BYTES: usize = 4 << 10;

/// How often, and how long after each other, a drop looks whether sled has let go of its lock.
const RELEASE_TRIES: u32 = 2_000;
const RELEASE_PAUSE: Duration = Duration::from_millis(1);

/// sled looks for pages to drop from its cache once 64 accesses of one of its 256 shards have come together,
/// however large the pages are. So a value counts as one more access per this many bytes: what waits to be
/// looked at is then about 256 * 64 * 16 (keys a page) * this, or 128 MiB, at the most.
const TOUCH_BYTES: usize = 512;

/// Most characters of a panic's message that an error repeats.
const PANIC_CHARS: usize = 200;

/// The engine's own keys stand in a tree of their own.
const OWN_TREE: &str = "quoral";
const FORMAT_KEY: &str = "format";
const FORMAT: [u8; 2] = [b'S', 1];

/// A `sled` database in a directory.
pub struct SledStorage {
    /// `None` only while it is dropped.
    db: Option<sled::Db>,
    log: File,
    dir: File,
    large: LargeValues,
    tide: Tide,
    /// Whether a page could not be read.
    unreadable: AtomicBool,
    failed: OnceLock<StorageError>,
    writer: Mutex<Writer>,
}

/// What writers share; whoever writes holds it.
#[derive(Default)]
struct Writer {
    /// Number of the log's segment up to which it is on stable storage.
    durable_segment: u64,
    /// Bytes written since the room on the disk was looked at.
    unlooked: u64,
    has_room: bool,
    /// Large values that were replaced, and the lengths of their keys: deleted after the next sync.
    garbage: Vec<(Pointer, usize)>,
}

impl SledStorage {
    /// Whether there is a database in `dir` already.
    pub fn exists(dir: &Path) -> bool {
        dir.join("db").is_file()
    }

    /// Opens or makes a database in `dir`, whose cache holds `cache_bytes` of pages.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<SledStorage, StorageError> {
        print_only_what_is_not_caught();
        prepare(dir).map_err(from_io)?;
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(cache_bytes.max(1 << 20))
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(None);
        log_check::check(dir, SEGMENT_BYTES)?;
        let db = caught(|| config.open())?;
        check_format(&db)?;
        let log = File::open(dir.join("db")).map_err(from_io)?;
        let large = LargeValues::open(&dir.join("large"), |id, key| {
            let stored = caught(|| db.get(stuff(key)))?;
            Ok(matches!(stored.as_deref().map(decode), Some(Ok(Stored::At(pointer))) if pointer.id == id))
        })?;
        let writer = Mutex::new(Writer::default());
        let (dir_handle, tide) = (File::open(dir).map_err(from_io)?, Tide::open(dir)?);
        let (unreadable, failed) = (AtomicBool::new(false), OnceLock::new());
        let storage =
            SledStorage { db: Some(db), log, dir: dir_handle, large, tide, unreadable, failed, writer };
        storage.sync()?;
        // What opening itself has made: the snapshot, the configuration, the names of all.
        sync_tree(dir).map_err(from_io)?;
        Ok(storage)
    }

    fn db(&self) -> &sled::Db {
        self.db.as_ref().expect("there until drop")
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // Each field is whole at any moment.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_failed(&self) -> Result<(), StorageError> {
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Runs a reading of sled's, and notes that there are pages that can't be read.
    fn reading<T>(&self, f: impl FnOnce() -> sled::Result<T>) -> Result<T, StorageError> {
        caught(f).inspect_err(|error| {
            if let StorageError::Corrupt(_) = error {
                self.unreadable.store(true, Ordering::Relaxed);
            }
        })
    }

    /// Keeps invariant 4.
    fn check_readable(&self, writes: &BTreeMap<&[u8], Option<&[u8]>>) -> Result<(), StorageError> {
        if !self.unreadable.load(Ordering::Relaxed) {
            return Ok(());
        }
        for key in writes.keys() {
            match caught(|| self.db().get(stuff(key))) {
                Err(StorageError::Corrupt(what)) => return Err(StorageError::Unreadable(what)),
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Runs a change of sled's; its failure is final (invariant 3).
    fn change<T>(&self, f: impl FnOnce() -> sled::Result<T>) -> Result<T, StorageError> {
        caught(f).map_err(|error| {
            let error = match error {
                StorageError::Full => StorageError::Io("the disk is full, in the middle of a write".into()),
                other => other,
            };
            self.failed.get_or_init(|| error.clone());
            error
        })
    }

    fn sync_log(&self) -> Result<(), StorageError> {
        self.log.sync_data().map_err(|error| {
            let error = StorageError::Io(format!("sync of the log: {error}"));
            self.failed.get_or_init(|| error.clone());
            error
        })
    }

    /// Where the part of the log that was written out ends.
    fn written(&self) -> u64 {
        u64::try_from(self.db().context.pagecache.log.stable_offset()).unwrap_or(0)
    }

    /// Keeps invariant 2.
    fn sync_full_segments(&self, writer: &mut Writer) -> Result<(), StorageError> {
        let written = self.written();
        let segment = written / SEGMENT_BYTES as u64;
        if segment != writer.durable_segment {
            self.sync_log()?;
            self.tide.rises(written)?;
            writer.durable_segment = segment;
        }
        Ok(())
    }

    /// Refuses to write when the disk is nearly full.
    fn check_room(&self, writer: &mut Writer, batch: &Batch) -> Result<(), StorageError> {
        let bytes: usize = batch
            .writes
            .iter()
            .map(|write| match write {
                Write::Put(key, value) => key.len() + value.len(),
                Write::Delete(key) => key.len(),
            })
            .sum();
        writer.unlooked += bytes as u64;
        if !writer.has_room || writer.unlooked > LOOK_BYTES {
            let stat = rustix::fs::fstatvfs(&self.dir)
                .map_err(|error| StorageError::Io(format!("room on the disk: {error}")))?;
            writer.unlooked = 0;
            writer.has_room = stat.f_bavail.saturating_mul(stat.f_frsize) > RESERVE_BYTES + bytes as u64;
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

    /// Changes sled. Adds the large values that are replaced to the garbage.
    fn apply(&self, writer: &mut Writer, placed: Vec<(&[u8], Option<Vec<u8>>)>) -> Result<(), StorageError> {
        let db = self.db();
        let mut replaced = |key: &[u8], old: Option<sled::IVec>| {
            if let Some(Ok(Stored::At(pointer))) = old.as_deref().map(decode) {
                writer.garbage.push((pointer, key.len()));
            }
        };
        if let [(key, value)] = &placed[..] {
            let stored_key = stuff(key);
            let old = match value {
                Some(value) => self.change(|| db.insert(&stored_key, &value[..]))?,
                None => self.change(|| db.remove(&stored_key))?,
            };
            replaced(key, old);
            return self.touch(&stored_key, value.as_ref().map_or(0, Vec::len));
        }
        let mut sled_batch = sled::Batch::default();
        let mut touched = Vec::new();
        for (key, value) in placed {
            let stored_key = stuff(key);
            if !self.large.is_empty() {
                replaced(key, self.change(|| db.get(&stored_key))?);
            }
            match value {
                Some(value) => {
                    if value.len() >= TOUCH_BYTES {
                        touched.push((stored_key.to_vec(), value.len()));
                    }
                    sled_batch.insert(&*stored_key, value);
                }
                None => sled_batch.remove(&*stored_key),
            }
        }
        self.change(|| db.apply_batch(sled_batch))?;
        touched.iter().try_for_each(|(stored_key, len)| self.touch(stored_key, *len))
    }

    /// Tells sled's cache how large the page is on which `stored_key` stands: see [`TOUCH_BYTES`].
    fn touch(&self, stored_key: &[u8], stored_len: usize) -> Result<(), StorageError> {
        for _ in 0..stored_len / TOUCH_BYTES {
            caught(|| self.db().contains_key(stored_key))?;
        }
        Ok(())
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
            match caught(|| self.db().get(stuff(key)))? {
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
        match self.reading(|| self.db().get(&stored_key))? {
            Some(stored) => {
                self.touch(&stored_key, stored.len())?;
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
        let mut entries = self.db().range::<Cow<'_, [u8]>, _>((from.map(stuff), to.map(stuff)));
        loop {
            let next =
                self.reading(|| if reverse { entries.next_back() } else { entries.next() }.transpose())?;
            let Some((stored_key, stored)) = next else { return Ok(()) };
            self.touch(&stored_key, stored.len())?;
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
        self.check_failed()?;
        self.check_room(&mut writer, batch)?;
        self.check_readable(&last)?;
        let placed = self.place(&last)?;
        if last.len() * PAGE_BYTES > SEGMENT_BYTES / 2 {
            // It may fill segments without a look in between.
            self.change(|| self.db().flush())?;
            self.sync_log()?;
        }
        self.apply(&mut writer, placed)?;
        self.sync_full_segments(&mut writer)
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.check_failed()?;
        let garbage = std::mem::take(&mut self.writer().garbage);
        let flushed = self.change(|| self.db().flush());
        // Before the sync: what is written out meanwhile is not in it.
        let written = self.written();
        let synced = flushed.and_then(|_| self.sync_log()).and_then(|()| self.tide.rises(written));
        if let Err(error) = synced {
            self.writer().garbage.extend(garbage);
            return Err(error);
        }
        for (pointer, key_len) in garbage {
            self.large.remove(pointer, key_len)?;
        }
        Ok(())
    }

    fn disk_size(&self) -> Option<u64> {
        let stat = rustix::fs::fstatvfs(&self.dir).ok()?;
        Some(stat.f_blocks.saturating_mul(stat.f_frsize))
    }

    fn disk_bytes(&self) -> u64 {
        self.log.metadata().map_or(0, |metadata| metadata.len()) + self.large.bytes()
    }
}

impl Drop for SledStorage {
    /// sled writes out what it has when it is dropped, and waits for ever if it can't: then it is leaked.
    /// Its threads let go of its lock a moment later: waits for that, so that it can be opened again.
    fn drop(&mut self) {
        if self.failed.get().is_some() {
            std::mem::forget(self.db.take());
            return;
        }
        let dropped = caught(|| {
            drop(self.db.take());
            Ok(())
        });
        if dropped.is_err() {
            return;
        }
        for _ in 0..RELEASE_TRIES {
            if self.log.try_lock().is_ok() {
                return;
            }
            sled::crossbeam_pin().flush();
            std::thread::sleep(RELEASE_PAUSE);
        }
    }
}

thread_local! {
    /// Whether a panic of this thread is caught, and told as an error.
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the panics that are caught from being printed, with all that sled has to say in them.
fn print_only_what_is_not_caught() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_CAUGHT.get() {
                before(panic);
            }
        }));
    });
}

/// Runs a call of sled's. A panic becomes an error: sled panics where it finds its files damaged.
fn caught<T>(f: impl FnOnce() -> sled::Result<T>) -> Result<T, StorageError> {
    IS_CAUGHT.set(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    IS_CAUGHT.set(false);
    match result {
        Ok(result) => result.map_err(from_sled),
        Err(panic) => {
            let what = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            // Some of sled's messages print all of the tree.
            let what: String = what.chars().take(PANIC_CHARS).collect();
            Err(StorageError::Corrupt(format!("the engine panicked: {what}")))
        }
    }
}

fn from_sled(error: sled::Error) -> StorageError {
    match error {
        sled::Error::Io(error) if error.kind() == ErrorKind::StorageFull => StorageError::Full,
        // sled's clones of an error keep its kind, but for what std had no name for when it was written.
        sled::Error::Io(error) if error.raw_os_error().is_none() => StorageError::Io(error.to_string()),
        sled::Error::Io(error) => from_io(error),
        sled::Error::Corruption { at, .. } => StorageError::Corrupt(format!("at {at:?}")),
        other => StorageError::Io(other.to_string()),
    }
}

/// Makes the directory, and what a crash left in it safe to open.
fn prepare(dir: &Path) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("snap.") && name.ends_with(".generating")) {
            fs::remove_file(entry.path())?;
        }
    }
    sync_tree(dir)
}

/// Syncs every file and directory below `dir`, and `dir` itself.
fn sync_tree(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(dir)?.sync_all()
}

fn check_format(db: &sled::Db) -> Result<(), StorageError> {
    let own = caught(|| db.open_tree(OWN_TREE))?;
    match caught(|| own.get(FORMAT_KEY))?.as_deref() {
        None if db.is_empty() => caught(|| own.insert(FORMAT_KEY, &FORMAT)).map(|_| ()),
        Some(format) if *format == FORMAT => Ok(()),
        found => Err(StorageError::Corrupt(format!("a database of format {found:?}, not {FORMAT:?}"))),
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
type Placed<'a> = (&'a [u8], Option<Vec<u8>>);

#[cfg(test)]
mod tests {
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
        let failed = storage.change::<()>(injected).expect_err("injected");
        assert!(matches!(failed, StorageError::Io(_)), "not Full: it may be half done: {failed}");
        assert_eq!(storage.write(&batch), Err(failed.clone()));
        assert_eq!(storage.sync(), Err(failed));
        assert_eq!(storage.get(b"a"), Ok(Some(b"1".to_vec())));
    }

    #[test]
    fn a_panic_of_the_engine_is_an_error() {
        let panicked = caught::<()>(|| panic!("{}", "x".repeat(1_000))).expect_err("a panic");
        let StorageError::Corrupt(what) = panicked else { panic!("{panicked}") };
        assert!(what.contains("panicked: x") && what.len() < 300, "{what}");
    }
}
