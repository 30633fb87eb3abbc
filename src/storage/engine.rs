//! One database of sled's, in a folder: opened safely, closed for good. With [`super::sled`] and [`super::compact`] all that
//! names sled.
//!
//! Invariants:
//! 1. What a kill or a power cut left is on stable storage before it is opened, and its log as whole as it was synced.
//! 2. Once a change or a sync has failed, every later one fails: its state is in doubt until the next start. Reads go on.
//! 3. A panic of sled's is an error.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};
use std::time::Duration;

use super::StorageError;
use super::large::from_io;
use super::log_check::{self, Tide};

/// Bytes of one segment of sled's log. An inner page has up to 256 + 64 keys while it is merged, a leaf up
/// to 16 + 4 values; either must stay below a quarter of this.
pub(super) const SEGMENT_BYTES: usize = 4 << 20;

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

/// A database.
pub(super) struct Engine {
    /// `None` only while it is dropped.
    db: Option<sled::Db>,
    log: File,
    tide: Tide,
    /// Whether a page could not be read.
    unreadable: AtomicBool,
    failed: OnceLock<StorageError>,
}

impl Engine {
    /// Whether there is a database in this folder.
    pub fn exists(folder: &Path) -> bool {
        folder.join("db").is_file()
    }

    /// Opens or makes a database, whose cache holds `cache_bytes` of pages. What it made by opening may not be durable yet.
    pub fn open(folder: &Path, cache_bytes: u64) -> Result<Engine, StorageError> {
        print_only_what_is_not_caught();
        prepare(folder).map_err(from_io)?;
        let config = sled::Config::new()
            .path(folder)
            .cache_capacity(cache_bytes.max(1 << 20))
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(None);
        log_check::check(folder, SEGMENT_BYTES)?;
        let db = caught(|| config.open())?;
        check_format(&db)?;
        let log = File::open(folder.join("db")).map_err(from_io)?;
        let (unreadable, failed) = (AtomicBool::new(false), OnceLock::new());
        Ok(Engine { db: Some(db), log, tide: Tide::open(folder)?, unreadable, failed })
    }

    /// The database.
    pub fn db(&self) -> &sled::Db {
        self.db.as_ref().expect("there until drop")
    }

    /// What it failed with, if it did (invariant 2).
    pub fn check_failed(&self) -> Result<(), StorageError> {
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// From now on every change fails with this, or with what it failed with before.
    pub fn fail(&self, error: StorageError) -> StorageError {
        self.failed.get_or_init(|| error).clone()
    }

    /// Whether a page could not be read.
    pub fn is_unreadable(&self) -> bool {
        self.unreadable.load(Ordering::Relaxed)
    }

    /// Runs a reading of sled's, and notes that there are pages that can't be read.
    pub fn reading<T>(&self, f: impl FnOnce() -> sled::Result<T>) -> Result<T, StorageError> {
        caught(f).inspect_err(|error| {
            if let StorageError::Corrupt(_) = error {
                self.unreadable.store(true, Ordering::Relaxed);
            }
        })
    }

    /// Runs a change of sled's; its failure is final (invariant 2).
    pub fn change<T>(&self, f: impl FnOnce() -> sled::Result<T>) -> Result<T, StorageError> {
        self.check_failed()?;
        caught(f).map_err(|error| {
            let error = match error {
                StorageError::Full => StorageError::Io("the disk is full, in the middle of a write".into()),
                other => other,
            };
            self.fail(error.clone());
            error
        })
    }

    /// Tells sled's cache how large the page is on which `stored_key` stands: see [`TOUCH_BYTES`].
    pub fn touch(&self, stored_key: &[u8], stored_len: usize) -> Result<(), StorageError> {
        for _ in 0..stored_len / TOUCH_BYTES {
            caught(|| self.db().contains_key(stored_key))?;
        }
        Ok(())
    }

    /// Writes out what was written before the call, and syncs it.
    pub fn sync(&self) -> Result<(), StorageError> {
        let flushed = self.change(|| self.db().flush());
        // Before the sync: what is written out meanwhile is not in it.
        let written = self.written();
        flushed.and_then(|_| self.sync_log()).and_then(|()| self.tide.rises(written))
    }

    /// Syncs what is written out of the log up to this position, and before the call.
    pub fn sync_written(&self, written: u64) -> Result<(), StorageError> {
        self.sync_log()?;
        self.tide.rises(written)
    }

    /// Syncs what is written out of the log.
    pub fn sync_log(&self) -> Result<(), StorageError> {
        let fail = |error| self.fail(StorageError::Io(format!("sync of the log: {error}")));
        self.log.sync_data().map_err(fail)
    }

    /// Where the part of the log that was written out ends.
    pub fn written(&self) -> u64 {
        u64::try_from(self.db().context.pagecache.log.stable_offset()).unwrap_or(0)
    }

    /// Bytes of its log on disk.
    pub fn log_bytes(&self) -> u64 {
        self.log.metadata().map_or(0, |metadata| metadata.len())
    }
}

impl Drop for Engine {
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
pub(super) fn caught<T>(f: impl FnOnce() -> sled::Result<T>) -> Result<T, StorageError> {
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
pub(super) fn sync_tree(dir: &Path) -> std::io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_engine_is_an_error() {
        let panicked = caught::<()>(|| panic!("{}", "x".repeat(1_000))).expect_err("a panic");
        let StorageError::Corrupt(what) = panicked else { panic!("{panicked}") };
        assert!(what.contains("panicked: x") && what.len() < 300, "{what}");
    }
}
