//! What became of writes that had a request id: kept beside the record by each replica that minted or stored one, in
//! the same batch, so that a retry through any coordinator finds it.
//!
//! Entries stand by the minute in which they were stored; one that is looked for is looked for in each minute of
//! [`REQUEST_MEMORY`]. A write that came without its entry, as a hint or a repair, is found in its record.
//!
//! Invariants:
//! 1. An entry is durable no later than the version that it tells of.
//! 2. It is found for at least [`REQUEST_MEMORY`], and forgotten within two minutes after that.

use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::stored::{self, LoadError};
use crate::storage::schema;
use crate::storage::{Batch, Storage, StorageError, Write};
use crate::types::ids::RequestId;
use crate::types::limits::REQUEST_MEMORY;
use crate::types::time::WallMs;
use crate::version::dvv::Dot;
use crate::version::hlc::Stamp;
use crate::version::record::{Payload, Record};

/// Fingerprint of what a request asks for, to tell a retry from another request under the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Print(pub [u8; 16]);

impl Print {
    /// Of a write of `payload` under `storage_key`.
    pub fn of(storage_key: &[u8], payload: &Payload) -> Print {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&u64::try_from(storage_key.len()).unwrap_or(u64::MAX).to_be_bytes())
            .update(storage_key);
        match payload {
            Payload::Value(value) => hasher.update(b"v").update(value),
            Payload::Tombstone => hasher.update(b"t"),
        };
        let mut print = [0; 16];
        print.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Print(print)
    }
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What it asked for; none if only its record tells of it.
    pub print: Option<Print>,
    /// Its stamp.
    pub stamp: Stamp,
    /// Its dot, in a `siblings` record; none if it has been replaced since, and only its record tells of it.
    pub dot: Option<Dot>,
}

/// An outcome with its name, as it travels beside the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The client's name for the write.
    pub id: RequestId,
    /// What became of it.
    pub outcome: Outcome,
}

impl Entry {
    /// For the wire.
    pub fn encode(&self) -> Vec<u8> {
        // A Vec grows as needed, and an entry has no fallible Serialize.
        postcard::to_extend(self, Vec::new()).expect("a Vec takes any entry")
    }

    /// From the wire; none if it is not one.
    pub fn decode(bytes: &[u8]) -> Option<Entry> {
        match postcard::take_from_bytes(bytes) {
            Ok((entry, [])) => Some(entry),
            _ => None,
        }
    }

    /// Adds it to the batch of its version.
    pub fn remember(&self, now: WallMs, batch: &mut Batch) {
        let key = schema::request_key(minute(now), self.id);
        let value = schema::seal(&key, &self.encode());
        batch.put(key, value);
    }
}

const MINUTE_MS: u64 = 60_000;

fn minute(at: WallMs) -> u64 {
    at.0 / MINUTE_MS
}

/// The oldest minute in which an entry may stand that is still to be found.
fn oldest(now: WallMs) -> u64 {
    let memory = u64::try_from(REQUEST_MEMORY.as_millis()).unwrap_or(u64::MAX);
    minute(WallMs(now.0.saturating_sub(memory)))
}

/// What is known here of a request, and the key of what was read, to wait for if it is not yet durable.
pub fn find(
    storage: &dyn Storage,
    now: WallMs,
    storage_key: &[u8],
    id: RequestId,
) -> Result<Option<(Outcome, Vec<u8>)>, LoadError> {
    // A node whose clock was a little ahead has stored it in the next minute.
    for minute in (oldest(now)..=minute(now) + 1).rev() {
        let key = schema::request_key(minute, id);
        let Some(value) = storage.get(&key)? else { continue };
        let body = schema::open(&key, &value).map_err(|damaged| LoadError::Damaged(damaged.to_string()))?;
        let entry = Entry::decode(body).ok_or_else(|| LoadError::Damaged("not an outcome".into()))?;
        return Ok(Some((entry.outcome, key)));
    }
    let told = stored::load(storage, storage_key)?.and_then(|stored| told_by(&stored.record, id));
    Ok(told.map(|outcome| (outcome, storage_key.to_vec())))
}

/// What is to be remembered of a version that came without its entry, by a hint or a repair, while a retry may come: the
/// next write of an `lww` key leaves nothing of it.
pub fn entry_of(storage_key: &[u8], record: &Record, now: WallMs) -> Option<Entry> {
    let Record::Lww(version) = record else { return None };
    let memory = u64::try_from(REQUEST_MEMORY.as_millis()).unwrap_or(u64::MAX);
    let id = version.request.filter(|_| now.0.saturating_sub(version.stamp.wall().0) <= memory)?;
    let print = Some(Print::of(storage_key, &version.payload));
    Some(Entry { id, outcome: Outcome { print, stamp: version.stamp, dot: None } })
}

/// What a record tells of a request.
fn told_by(record: &Record, id: RequestId) -> Option<Outcome> {
    let set = match record {
        Record::Siblings(set) => set,
        Record::Lww(version) => {
            let outcome = Outcome { print: None, stamp: version.stamp, dot: None };
            return (version.request == Some(id)).then_some(outcome);
        }
    };
    if let Some(sibling) = set.iter().find(|sibling| sibling.request == Some(id)) {
        return Some(Outcome { print: None, stamp: sibling.stamp, dot: Some(sibling.dot) });
    }
    let is_replaced = set.iter().any(|sibling| sibling.past.has_request(id));
    is_replaced.then(|| Outcome { print: None, stamp: record.stamp(), dot: None })
}

/// How many are remembered; reads all of them.
pub fn count(storage: &dyn Storage) -> Result<u64, StorageError> {
    let (from, to) = ([schema::REQUEST_TAG], [schema::REQUEST_TAG + 1]);
    let mut count = 0;
    storage.scan(Bound::Included(&from), Bound::Excluded(&to), false, &mut |_, _| {
        count += 1;
        true
    })?;
    Ok(count)
}

/// How many more a batch makes that is about to be written: it is taken or forgotten by key, and an id that is
/// remembered again in its minute counts once.
pub fn growth(storage: &dyn Storage, batch: &Batch) -> Result<i64, StorageError> {
    let mut growth = 0;
    for write in batch.writes.iter().filter(|write| write.key().first() == Some(&schema::REQUEST_TAG)) {
        let is_there = storage.get(write.key())?.is_some();
        growth += match write {
            Write::Put(..) => i64::from(!is_there),
            Write::Delete(_) => -i64::from(is_there),
        };
    }
    Ok(growth)
}

/// Forgets those whose time is over, at most `most` of them; the batch is empty when there are none.
pub fn forget(storage: &dyn Storage, now: WallMs, most: usize) -> Result<Batch, StorageError> {
    let (from, to) = ([schema::REQUEST_TAG], schema::request_prefix(oldest(now)));
    let mut batch = Batch::new();
    storage.scan(Bound::Included(&from), Bound::Excluded(&to), false, &mut |key, _| {
        batch.delete(key.to_vec());
        batch.writes.len() < most
    })?;
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryStorage;
    use crate::types::ids::{Birth, Incarnation, NodeId};
    use crate::version::codec;
    use crate::version::dvv::{Actor, Context};
    use crate::version::record::Sibling;

    const NOW: WallMs = WallMs(1_700_000_000_000);
    const ID: RequestId = RequestId(7);

    fn later(seconds: u64) -> WallMs {
        WallMs(NOW.0 + seconds * 1_000)
    }

    fn entry() -> Entry {
        let print = Some(Print::of(b"dkey", &Payload::Tombstone));
        Entry { id: ID, outcome: Outcome { print, stamp: Stamp(5), dot: None } }
    }

    fn remember(storage: &MemoryStorage, at: WallMs) {
        let mut batch = Batch::new();
        entry().remember(at, &mut batch);
        storage.write(&batch).expect("written");
    }

    #[test]
    fn an_outcome_is_found_for_ten_minutes_and_forgotten_after() {
        let storage = MemoryStorage::default();
        remember(&storage, NOW);
        let found = |at| find(&storage, at, b"dkey", ID).expect("readable").map(|(outcome, _)| outcome);
        for seconds in [0, 59, 300, 599] {
            assert_eq!(found(later(seconds)), Some(entry().outcome), "after {seconds} s");
        }
        assert_eq!(found(WallMs(NOW.0 - 30_000)), Some(entry().outcome), "by a clock that is behind");
        assert_eq!(found(later(720)), None);
        assert_eq!(find(&storage, NOW, b"dkey", RequestId(8)), Ok(None));
        assert_eq!((count(&storage), forget(&storage, later(599), 10)), (Ok(1), Ok(Batch::new())));
        let batch = forget(&storage, later(720), 10).expect("readable");
        storage.write(&batch).expect("written");
        assert_eq!(count(&storage), Ok(0));
    }

    #[test]
    fn the_count_follows_what_is_written() {
        let storage = MemoryStorage::default();
        let count_of = |batch: Batch| {
            let growth = growth(&storage, &batch).expect("readable");
            storage.write(&batch).expect("written");
            (growth, count(&storage).expect("readable"))
        };
        let remembered = |at| {
            let mut batch = Batch::new();
            batch.put(&b"dkey"[..], &b"v"[..]);
            entry().remember(at, &mut batch);
            batch
        };
        assert_eq!(count_of(remembered(NOW)), (1, 1));
        assert_eq!(count_of(remembered(NOW)), (0, 1), "again in that minute");
        assert_eq!(count_of(remembered(later(60))), (1, 2));
        let mut forgotten = Batch::new();
        let key = schema::request_key(minute(NOW), ID);
        forgotten.delete(key.clone());
        assert_eq!(count_of(forgotten.clone()), (-1, 1));
        assert_eq!(count_of(forgotten), (0, 1));
    }

    #[test]
    fn prints_tell_requests_apart() {
        let value = |v: &'static str| Payload::Value(v.into());
        let print = Print::of(b"dkey", &value("v"));
        assert_eq!(print, Print::of(b"dkey", &value("v")));
        for other in [
            Print::of(b"dkey", &value("w")),
            Print::of(b"dke", &value("yv")),
            Print::of(b"dkey", &Payload::Tombstone),
        ] {
            assert_ne!(print, other);
        }
    }

    /// A write that came as a hint, without its entry, is found in its record, and in what replaced it.
    #[test]
    fn a_record_tells_of_its_requests() {
        let storage = MemoryStorage::default();
        let dot = |counter| Dot {
            actor: Actor { node: NodeId(1), incarnation: Incarnation(1), birth: Birth(1) },
            counter,
        };
        let first = Sibling {
            dot: dot(1),
            past: Context::new(),
            request: Some(ID),
            stamp: Stamp::at(NOW),
            payload: Payload::Value("v".into()),
            expires_at: None,
        };
        let mut record = Record::Siblings(vec![first.clone()]);
        let put = |record: &Record| {
            let mut batch = Batch::new();
            batch.put(&b"dkey"[..], stored::encode(b"dkey", None, &codec::encode_record(record)));
            storage.write(&batch).expect("written");
            find(&storage, NOW, b"dkey", ID).expect("readable").map(|(outcome, _)| outcome.dot)
        };
        assert_eq!(put(&record), Some(Some(dot(1))));
        let heir = Sibling { dot: dot(2), past: record.context(), request: None, ..first };
        record.replace(heir).expect("one policy");
        assert_eq!(put(&record), Some(None));
    }
}
