//! Storage: ordered keys, atomic batches, explicit sync.
//!
//! A small synchronous trait, so that everything above is deterministic and runs on `memory` in the
//! simulator and on `sled` in production. What a batch wrote is visible at once, and durable after the
//! next [`Storage::sync`]; a crash may lose any suffix of what was written since, never a part of a batch.
//!
//! Caveats:
//! - A scan is no snapshot: it may see some of the writes made meanwhile and not others.
//! - `sled` takes a batch of one write as one; a batch of 2 or 3 costs three times as much a write, one of 64
//!   or more as much as single ones. Order may serve where atomicity was wanted: a crash keeps a prefix.
//! - A value may come back damaged, or cut, where the device has changed it. Those that matter carry a checksum
//!   (`schema::seal`).
//! - Once a sync has failed, the storage only reads: the device may have dropped what it could not write.

pub mod compact;
mod engine;
mod generations;
mod large;
mod log_check;
pub mod memory;
pub mod schema;
pub mod sled;
mod stored;

use std::ops::Bound;
use std::time::Duration;

/// What one batch does, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put(Vec<u8>, Vec<u8>),
    /// Removes a key.
    Delete(Vec<u8>),
}

impl Write {
    /// The key that is set or removed.
    pub fn key(&self) -> &[u8] {
        match self {
            Write::Put(key, _) | Write::Delete(key) => key,
        }
    }
}

/// Writes that become visible together, and survive a crash together or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// In order; the last write of a key counts.
    pub writes: Vec<Write>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds a put.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.writes.push(Write::Put(key.into(), value.into()));
    }

    /// Adds a delete.
    pub fn delete(&mut self, key: impl Into<Vec<u8>>) {
        self.writes.push(Write::Delete(key.into()));
    }

    /// Whether it does nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// Why storage could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The disk is full: nothing of the batch was written.
    #[error("the disk is full")]
    Full,
    /// The device or the file system failed. What was written since the last sync is in doubt: the node
    /// must stop acknowledging.
    #[error("input or output failed: {0}")]
    Io(String),
    /// A part of the engine's files that the batch would change can't be read: nothing of it was written.
    #[error("a part of the storage engine's files can't be read: {0}")]
    Unreadable(String),
    /// The engine found its own files damaged.
    #[error("the files of the storage engine are damaged: {0}")]
    Corrupt(String),
}

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// An ordered, durable map from bytes to bytes.
pub trait Storage: Send + Sync {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;

    /// Calls `visit` for each entry from `from` to `to` in byte order (or the reverse) until it returns
    /// false. Writes made meanwhile may or may not be seen.
    fn scan(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StorageError>;

    /// Applies `batch`: visible at once, durable after `sync`.
    fn write(&self, batch: &Batch) -> Result<(), StorageError>;

    /// Returns when everything written before the call is on stable storage.
    fn sync(&self) -> Result<(), StorageError>;

    /// Bytes on disk (or in memory).
    fn disk_bytes(&self) -> u64;

    /// Bytes of the disk that it is on, used ones included; none if it has no such size.
    fn disk_size(&self) -> Option<u64> {
        None
    }

    /// How long a simulated device takes over the sync that is due: the simulator's commit task waits so long
    /// before it. A real one takes its time in `sync`.
    fn sync_takes(&self) -> Duration {
        Duration::ZERO
    }
}

/// Whether no key can lie between the bounds. `BTreeMap` and `sled` panic at some such ranges.
fn is_empty_range(from: Bound<&[u8]>, to: Bound<&[u8]>) -> bool {
    match (from, to) {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => {
            from >= to
        }
        _ => false,
    }
}
