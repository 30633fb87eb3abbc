//! The hints that a node keeps: a log for each target, and the book of how much is in them.
//!
//! | key | value |
//! | --- | --- |
//! | `h`, target (8), sequence number (8) | sealed: when it was kept, the record's storage key, the record |
//! | `f`, hash of the storage key (16), target, number | nothing: leads readers to a hint that a fallback keeps |
//!
//! Sequence numbers grow with the wall clock (milliseconds, and 16 bits of counter) and never repeat among the
//! hints of one node, so "all hints of before" is "all up to this number".
//!
//! Invariants:
//! 1. The book never says less than what is stored: a hint is counted before it is written, and struck out
//!    after it was deleted.
//! 2. Nothing is kept past a limit; what is refused says which.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::progress::Rate;
use crate::storage::schema;
use crate::storage::{Batch, Storage, StorageError};
use crate::types::ids::NodeId;
use crate::types::time::{Mono, WallMs};

/// How much is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How long hints are collected for a target that is away, and how old one may be. Zero: none are kept.
    pub window: Duration,
    /// Bytes for each target.
    pub target_bytes: u64,
    /// Bytes for all.
    pub total_bytes: u64,
    /// Bytes for all, as a share of the disk in percent.
    pub disk_percent: u64,
}

/// What is kept for one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Account {
    /// Hints.
    pub hints: u64,
    /// Their bytes, keys and values.
    pub bytes: u64,
    /// When the first was kept since the target was last up to date.
    pub since: Option<WallMs>,
    /// Those that came home since then, in this life of the node, and how fast they do.
    pub delivered: u64,
    /// Likewise.
    pub rate: Rate,
}

/// What was not kept for one target, in this life of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missed {
    /// Writes.
    pub hints: u64,
    /// Why the last was not kept.
    pub why: NoHint,
    /// Whether it has been told since the target was last up to date.
    is_told: bool,
}

/// Why no hint is kept; anti-entropy has to do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoHint {
    /// The target has been away too long.
    #[error("the node has been away for longer than hints.window_ms")]
    Window,
    /// There are too many for this target.
    #[error("its hints have as many bytes as hints.target_bytes allows")]
    TargetBytes,
    /// There are too many.
    #[error("all hints together have as many bytes as hints.total_bytes allows")]
    TotalBytes,
    /// They are too large a part of the disk.
    #[error("all hints together have as large a share of the disk as hints.disk_percent allows")]
    DiskShare,
}

/// A hint that is counted and not yet written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewHint {
    /// For whom.
    pub target: NodeId,
    /// What to write.
    pub batch: Batch,
    /// Its bytes.
    pub bytes: u64,
}

/// A stored hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// Its number.
    pub seq: u64,
    /// When it was kept, by the clock of the node that keeps it.
    pub at: WallMs,
    /// Where the record belongs.
    pub storage_key: Vec<u8>,
    /// The record, encoded.
    pub record: Bytes,
    /// Whether it is kept as a fallback: then readers look for it here.
    pub stands_in: bool,
    /// Bytes that it takes in the log.
    pub bytes: u64,
}

/// Some hints for one target, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// The hints.
    pub hints: Vec<Hint>,
    /// Numbers and bytes of those that can't be read any more.
    pub damaged: Vec<(u64, u64)>,
    /// Whether there may be more behind the last.
    pub more: bool,
}

#[derive(Serialize, Deserialize)]
struct Body<'a> {
    at: WallMs,
    #[serde(borrow)]
    storage_key: &'a [u8],
    #[serde(borrow)]
    record: &'a [u8],
    stands_in: bool,
}

/// What is kept for whom.
#[derive(Debug, Clone)]
pub struct Book {
    limits: Limits,
    accounts: BTreeMap<NodeId, Account>,
    missed: BTreeMap<NodeId, Missed>,
    /// Bytes of the disk; none if it has no size.
    disk: Option<u64>,
    last: u64,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// When a hint with this number was kept.
fn kept_at(seq: u64) -> WallMs {
    WallMs(seq >> 16)
}

impl Book {
    /// The book of what is stored; reads all hints once.
    pub fn load(storage: &dyn Storage, limits: Limits) -> Result<Book, StorageError> {
        let (accounts, missed, disk) = (BTreeMap::new(), BTreeMap::new(), storage.disk_size());
        let mut book = Book { limits, accounts, missed, disk, last: 0 };
        let (from, to) = schema::hint_range(None);
        storage.scan(Bound::Included(&from), Bound::Excluded(&to), false, &mut |key, value| {
            if let Some((target, seq)) = schema::split_hint_key(key) {
                let account = book.accounts.entry(target).or_default();
                account.hints += 1;
                account.bytes += length(key.len() + value.len());
                account.since = account.since.or(Some(kept_at(seq)));
                book.last = book.last.max(seq);
            }
            true
        })?;
        Ok(book)
    }

    /// What is kept for each target.
    pub fn accounts(&self) -> &BTreeMap<NodeId, Account> {
        &self.accounts
    }

    /// What was not kept for each target.
    pub fn missed(&self) -> &BTreeMap<NodeId, Missed> {
        &self.missed
    }

    /// Bytes of all hints.
    pub fn bytes(&self) -> u64 {
        self.accounts.values().map(|account| account.bytes).sum()
    }

    /// The greatest number used.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Counts a new hint, or says why it is not kept.
    pub fn add(
        &mut self,
        now: WallMs,
        target: NodeId,
        storage_key: &[u8],
        record: &[u8],
        stands_in: bool,
    ) -> Result<NewHint, NoHint> {
        self.add_written(now, now, target, storage_key, record, stands_in)
    }

    /// The same of a record that was written at `at`: the hint is as old as that, however late it is kept.
    pub fn add_written(
        &mut self,
        now: WallMs,
        at: WallMs,
        target: NodeId,
        storage_key: &[u8],
        record: &[u8],
        stands_in: bool,
    ) -> Result<NewHint, NoHint> {
        let away_ms = self.accounts.get(&target).and_then(|account| account.since);
        let away_ms = away_ms.map_or(0, |since| now.0.saturating_sub(since.0));
        // A fallback's hint is the write itself: only bytes limit it, where any may be kept at all.
        let is_late = !stands_in && away_ms > millis(self.limits.window);
        if self.limits.window.is_zero() || is_late {
            return Err(NoHint::Window);
        }
        self.add_of(now, at, target, storage_key, record, stands_in)
    }

    /// Counts a hint that is as old as `at`, unless it would take too many bytes.
    pub(super) fn add_of(
        &mut self,
        now: WallMs,
        at: WallMs,
        target: NodeId,
        storage_key: &[u8],
        record: &[u8],
        stands_in: bool,
    ) -> Result<NewHint, NoHint> {
        let seq = (now.0 << 16).max(self.last + 1);
        let key = schema::hint_key(target, seq);
        // A Vec grows as needed, and the body has no fallible Serialize.
        let body = Body { at, storage_key, record, stands_in };
        let body = postcard::to_extend(&body, Vec::new()).expect("a Vec takes any hint");
        let value = schema::seal(&key, &body);
        let bytes = length(key.len() + value.len());
        let total = self.bytes().saturating_add(bytes);
        let of_disk = self.disk.map_or(u64::MAX, |disk| disk / 100 * self.limits.disk_percent);
        let account = self.accounts.entry(target).or_default();
        if account.bytes.saturating_add(bytes) > self.limits.target_bytes {
            return Err(NoHint::TargetBytes);
        }
        if total > self.limits.total_bytes {
            return Err(NoHint::TotalBytes);
        }
        if total > of_disk {
            return Err(NoHint::DiskShare);
        }
        account.hints += 1;
        account.bytes += bytes;
        account.since.get_or_insert(now);
        self.last = seq;
        let mut batch = Batch::new();
        batch.put(key, value);
        if stands_in {
            batch.put(schema::stand_in_key(storage_key, target, seq), Vec::new());
        }
        Ok(NewHint { target, batch, bytes })
    }

    /// Strikes out hints that are deleted, or were never written.
    pub fn strike(&mut self, target: NodeId, hints: u64, bytes: u64) {
        if let Some(account) = self.accounts.get_mut(&target) {
            account.hints = account.hints.saturating_sub(hints);
            account.bytes = account.bytes.saturating_sub(bytes);
        }
    }

    /// Notes that a write has no hint. Whether it is to be told: once for each reason since the target was last up to
    /// date.
    pub fn missed_one(&mut self, target: NodeId, why: NoHint) -> bool {
        let missed = self.missed.entry(target).or_insert(Missed { hints: 0, why, is_told: false });
        missed.hints += 1;
        let is_news = !missed.is_told || missed.why != why;
        (missed.why, missed.is_told) = (why, true);
        is_news
    }

    /// Notes that a hint came home; it is struck out once it is deleted.
    pub fn delivered(&mut self, at: Mono, target: NodeId) {
        if let Some(account) = self.accounts.get_mut(&target) {
            account.delivered += 1;
            account.rate.count(at);
        }
    }

    /// The target is reachable, and has all its hints: the window begins anew with the next.
    pub fn is_home(&mut self, target: NodeId) {
        if self.accounts.get(&target).is_some_and(|account| account.hints == 0) {
            self.accounts.remove(&target);
            if let Some(missed) = self.missed.get_mut(&target) {
                missed.is_told = false;
            }
        }
    }

    /// Whether a hint of this time is too old to be sent or taken.
    pub fn is_too_old(&self, now: WallMs, at: WallMs) -> bool {
        now.0.saturating_sub(at.0) > millis(self.limits.window)
    }
}

/// The batch that deletes a hint.
pub fn forget(target: NodeId, hint: &Hint) -> Batch {
    let mut batch = Batch::new();
    batch.delete(schema::hint_key(target, hint.seq));
    if hint.stands_in {
        batch.delete(schema::stand_in_key(&hint.storage_key, target, hint.seq));
    }
    batch
}

/// How often a reader looks again for a hint that was moved under its eyes.
const LOOKS: usize = 3;

/// The records that are kept here, as a fallback, for the key with this storage key.
pub fn kept_for_key(
    storage: &dyn Storage,
    storage_key: &[u8],
    is_too_old: &dyn Fn(WallMs) -> bool,
) -> Result<Vec<Bytes>, StorageError> {
    let mut looks = 1;
    loop {
        // One that is missing has just come home, or was handed on to an heir.
        let (records, missing) = look_for_key(storage, storage_key, is_too_old)?;
        if !missing || looks == LOOKS {
            return Ok(records);
        }
        looks += 1;
    }
}

fn look_for_key(
    storage: &dyn Storage,
    storage_key: &[u8],
    is_too_old: &dyn Fn(WallMs) -> bool,
) -> Result<(Vec<Bytes>, bool), StorageError> {
    let prefix = schema::stand_in_prefix(storage_key);
    let mut hints = Vec::new();
    storage.scan(Bound::Included(&prefix), Bound::Unbounded, false, &mut |key, _| {
        hints.extend(schema::split_stand_in_key(key));
        key.starts_with(&prefix)
    })?;
    let (mut records, mut missing) = (Vec::new(), false);
    for (target, seq) in hints {
        let key = schema::hint_key(target, seq);
        let Some(value) = storage.get(&key)? else {
            missing = true;
            continue;
        };
        // One that can't be read is no answer; the delivery counts it.
        let body = schema::open(&key, &value).ok().and_then(|body| postcard::from_bytes::<Body>(body).ok());
        // Nor is one that its target would refuse: the key may have been deleted since, and the tombstone purged.
        let body = body.filter(|body| body.storage_key == storage_key && !is_too_old(body.at));
        if let Some(body) = body {
            records.push(Bytes::copy_from_slice(body.record));
        }
    }
    Ok((records, missing))
}

/// The hints for `target` behind number `after`, up to `items` of them and about `bytes`.
pub fn page(
    storage: &dyn Storage,
    target: NodeId,
    after: u64,
    items: usize,
    bytes: u64,
) -> Result<Page, StorageError> {
    let (from, (_, to)) = (schema::hint_key(target, after), schema::hint_range(Some(target)));
    let (mut page, mut read) = (Page::default(), 0);
    storage.scan(Bound::Excluded(&from), Bound::Excluded(&to), false, &mut |key, value| {
        let Some((_, seq)) = schema::split_hint_key(key) else { return true };
        if page.hints.len() + page.damaged.len() >= items || (read > 0 && read >= bytes) {
            page.more = true;
            return false;
        }
        let size = length(key.len() + value.len());
        read += size;
        let body = schema::open(key, value).ok().and_then(|body| postcard::from_bytes::<Body>(body).ok());
        match body {
            Some(body) => page.hints.push(Hint {
                seq,
                at: body.at,
                storage_key: body.storage_key.to_vec(),
                record: Bytes::copy_from_slice(body.record),
                stands_in: body.stands_in,
                bytes: size,
            }),
            None => page.damaged.push((seq, size)),
        }
        true
    })?;
    Ok(page)
}

/// The number of the oldest hint for `target`.
pub fn oldest(storage: &dyn Storage, target: NodeId) -> Result<Option<u64>, StorageError> {
    let (from, to) = schema::hint_range(Some(target));
    let mut oldest = None;
    storage.scan(Bound::Included(&from), Bound::Excluded(&to), false, &mut |key, _| {
        oldest = schema::split_hint_key(key).map(|(_, seq)| seq);
        oldest.is_none()
    })?;
    Ok(oldest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryStorage;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const NOW: WallMs = WallMs(1_700_000_000_000);

    fn limits() -> Limits {
        let window = Duration::from_secs(60);
        Limits { window, target_bytes: 1_000, total_bytes: 1_500, disk_percent: 10 }
    }

    fn later(seconds: u64) -> WallMs {
        WallMs(NOW.0 + seconds * 1_000)
    }

    fn add(book: &mut Book, storage: &MemoryStorage, now: WallMs, target: NodeId) -> Result<NewHint, NoHint> {
        let new = book.add(now, target, b"dkey", b"record", false)?;
        storage.write(&new.batch).expect("written");
        Ok(new)
    }

    fn all(storage: &MemoryStorage, target: NodeId) -> Vec<Hint> {
        page(storage, target, 0, 1_000, u64::MAX).expect("readable").hints
    }

    #[test]
    fn hints_come_back_in_order_page_by_page_and_survive_a_restart() {
        let storage = MemoryStorage::default();
        let mut book = Book::load(&storage, limits()).expect("readable");
        for turn in 0..5 {
            // The clock stands, steps back, and goes on.
            add(&mut book, &storage, later([1, 1, 0, 2, 2][turn]), A).expect("kept");
        }
        add(&mut book, &storage, NOW, B).expect("kept");
        let hints = all(&storage, A);
        assert_eq!(hints.len(), 5);
        assert!(hints.is_sorted_by_key(|hint| hint.seq), "numbers grow");
        assert_eq!(
            (&hints[0].storage_key[..], &hints[0].record[..], hints[0].at),
            (&b"dkey"[..], &b"record"[..], later(1))
        );
        let first = page(&storage, A, 0, 2, u64::MAX).expect("readable");
        assert_eq!((&first.hints[..], first.more), (&hints[..2], true));
        let rest = page(&storage, A, first.hints[1].seq, 3, u64::MAX).expect("readable");
        assert_eq!((&rest.hints[..], rest.more), (&hints[2..], false));
        assert_eq!(
            page(&storage, A, 0, 9, 1).expect("readable").hints.len(),
            1,
            "one at least, whatever its size"
        );
        let again = Book::load(&storage, limits()).expect("readable");
        assert_eq!(again.last(), book.last());
        assert_eq!(again.accounts()[&A].bytes, book.accounts()[&A].bytes);
        assert_eq!(again.accounts()[&A].hints, 5);
        assert_eq!(oldest(&storage, A), Ok(Some(hints[0].seq)));
        storage.write(&forget(A, &hints[0])).expect("written");
        assert_eq!(oldest(&storage, A), Ok(Some(hints[1].seq)));
        assert_eq!(oldest(&storage, NodeId(3)), Ok(None));
    }

    #[test]
    fn f26_past_each_limit_no_hint_is_kept_and_it_says_which() {
        let storage = MemoryStorage::default();
        let mut book = Book::load(&storage, limits()).expect("readable");
        let one = add(&mut book, &storage, NOW, A).expect("kept").bytes;
        while book.accounts()[&A].bytes + one <= limits().target_bytes {
            add(&mut book, &storage, NOW, A).expect("kept");
        }
        assert_eq!(add(&mut book, &storage, NOW, A), Err(NoHint::TargetBytes));
        let of_b = (limits().total_bytes - book.accounts()[&A].bytes) / one;
        for _ in 0..of_b {
            add(&mut book, &storage, NOW, B).expect("kept");
        }
        assert_eq!(add(&mut book, &storage, NOW, B), Err(NoHint::TotalBytes));
        book.strike(A, 1, one);
        assert!(add(&mut book, &storage, NOW, A).is_ok(), "what was delivered makes room");
        book.strike(B, of_b, of_b * one);
        assert!(book.add(later(60), B, b"dkey", b"record", false).is_ok());
        book.strike(B, 1, one);
        assert_eq!(
            book.add(later(61), B, b"dkey", b"record", false),
            Err(NoHint::Window),
            "away for too long"
        );
        book.is_home(B);
        assert!(book.add(later(61), B, b"dkey", b"record", false).is_ok(), "it was here");
        let mut off = Book::load(&storage, Limits { window: Duration::ZERO, ..limits() }).expect("readable");
        assert_eq!(off.add(NOW, B, b"dkey", b"record", false), Err(NoHint::Window), "switched off");
    }

    #[test]
    fn f26_all_hints_together_keep_to_their_share_of_the_disk() {
        let storage = MemoryStorage::default();
        let mut book = Book::load(&storage, limits()).expect("readable");
        book.disk = Some(5_000);
        while book.bytes() < 500 {
            let target = if book.bytes() < 250 { A } else { B };
            match add(&mut book, &storage, NOW, target) {
                Ok(_) => assert!(book.bytes() <= 500, "a tenth"),
                Err(why) => {
                    assert_eq!(why, NoHint::DiskShare);
                    break;
                }
            }
        }
        assert!(book.bytes() > 400 && book.accounts().len() == 2);
        book.disk = None;
        assert!(add(&mut book, &storage, NOW, A).is_ok(), "a disk without a size has no shares");
    }

    /// What was not kept is told once for each reason while a node is away, and counted for good.
    #[test]
    fn f26_what_has_no_hint_is_counted_and_told_once() {
        let storage = MemoryStorage::default();
        let mut book = Book::load(&storage, limits()).expect("readable");
        let told = [NoHint::TargetBytes, NoHint::TargetBytes, NoHint::TotalBytes, NoHint::TotalBytes];
        assert_eq!(told.map(|why| book.missed_one(A, why)), [true, false, true, false]);
        let one = add(&mut book, &storage, NOW, A).expect("kept").bytes;
        book.is_home(A);
        assert!(!book.missed_one(A, NoHint::TotalBytes), "a hint is left");
        book.delivered(Mono(5), A);
        assert_eq!((book.accounts()[&A].delivered, book.accounts()[&A].hints), (1, 1));
        book.strike(A, 1, one);
        book.is_home(A);
        assert!(book.missed_one(A, NoHint::TotalBytes), "it was home since");
        assert_eq!((book.missed()[&A].hints, book.missed()[&A].why), (6, NoHint::TotalBytes));
    }

    /// A fallback finds what it keeps for a key, and for no other, until it is home.
    #[test]
    fn what_a_fallback_keeps_is_found_by_key() {
        let storage = MemoryStorage::default();
        let mut book = Book::load(&storage, limits()).expect("readable");
        for (target, key, record, stands_in) in [
            (A, &b"dkey"[..], b"1", true),
            (B, b"dkey", b"2", true),
            (A, b"dkey", b"3", false),
            (A, b"dkey2", b"4", true),
        ] {
            let new = book.add(NOW, target, key, record, stands_in).expect("kept");
            storage.write(&new.batch).expect("written");
        }
        let kept = |key: &[u8]| kept_for_key(&storage, key, &|_| false).expect("readable");
        assert_eq!(
            (kept(b"dkey"), kept(b"dkey2"), kept(b"dke")),
            (vec!["1".into(), "2".into()], vec!["4".into()], vec![])
        );
        for hint in all(&storage, A) {
            storage.write(&forget(A, &hint)).expect("written");
        }
        assert_eq!((kept(b"dkey"), kept(b"dkey2")), (vec![Bytes::from("2")], vec![]));
        let (from, to) = ([schema::STAND_IN_TAG], [schema::STAND_IN_TAG + 1]);
        let mut left = 0;
        let scanned = storage.scan(Bound::Included(&from), Bound::Excluded(&to), false, &mut |_, _| {
            left += 1;
            true
        });
        assert_eq!((scanned, left), (Ok(()), 1));
    }

    #[test]
    fn a_damaged_hint_is_passed_over_and_named() {
        let storage = MemoryStorage::default();
        let mut book = Book::load(&storage, limits()).expect("readable");
        let mut bad = add(&mut book, &storage, NOW, A).expect("kept").batch;
        let crate::storage::Write::Put(_, value) = &mut bad.writes[0] else { panic!("a put") };
        *value.last_mut().expect("not empty") ^= 1;
        add(&mut book, &storage, NOW, A).expect("kept");
        storage.write(&bad).expect("written");
        let page = page(&storage, A, 0, 10, u64::MAX).expect("readable");
        assert_eq!((page.hints.len(), page.damaged.len()), (1, 1));
    }
}
