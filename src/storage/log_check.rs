//! Whether the engine's log is as it was when it was last synced, before the engine opens it.
//!
//! Why: where a message of its log is damaged the engine takes it for the end of a crash, and leaves out what follows in
//! the segment, or in the log. Its pages are then older than what was acknowledged, and their checksums are right. So
//! what it is going to replay is read here first, as the engine reads it, and any damage up to the last sync refuses
//! the start. What lies before its snapshot it reads page by page when it needs them, and finds damage by itself.
//!
//! The file `tide` beside the log says how far it was synced. It is written after each sync and not synced itself: older
//! than the log at worst, which makes the check weaker and not wrong.
//!
//! The log is a row of segments. A segment is a header (checksum, its own position in the log, and one more), then
//! messages: checksum (4), kind (1), length, number of the segment, page (1 to 9 bytes each), body.
//!
//! Invariants:
//! 1. A log that only lost what was written after its last sync is never refused.
//! 2. Nothing is changed.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::StorageError;
use super::large::from_io;

const TIDE: &str = "tide";
const TIDE_MARKER: [u8; 2] = [b'T', 1];
/// Marker, position, the first 6 bytes of a hash of both.
const TIDE_BYTES: usize = 2 + 8 + 6;

const SEGMENT_HEADER: usize = 20;
/// No message begins in so many last bytes of a segment.
const MESSAGE_HEADER_MAX: usize = 32;
const KIND_DAMAGED: u8 = 0;
const KIND_END: u8 = 2;

/// Keeps how far the log is synced.
pub(super) struct Tide {
    file: File,
    last: AtomicU64,
}

impl Tide {
    /// Of a directory.
    pub fn open(dir: &Path) -> Result<Tide, StorageError> {
        let file = File::options().write(true).create(true).truncate(false).open(dir.join(TIDE));
        Ok(Tide { file: file.map_err(from_io)?, last: AtomicU64::new(0) })
    }

    /// The log is synced up to this position. The caller holds off other writers, or is late, which does no harm.
    pub fn rises(&self, position: u64) -> Result<(), StorageError> {
        if self.last.fetch_max(position, Ordering::AcqRel) >= position {
            return Ok(());
        }
        self.file.write_all_at(&encode_tide(position), 0).map_err(from_io)
    }
}

fn encode_tide(position: u64) -> [u8; TIDE_BYTES] {
    let mut out = [0; TIDE_BYTES];
    out[..2].copy_from_slice(&TIDE_MARKER);
    out[2..10].copy_from_slice(&position.to_be_bytes());
    let hash = blake3::hash(&out[..10]);
    out[10..].copy_from_slice(&hash.as_bytes()[..TIDE_BYTES - 10]);
    out
}

fn damaged(what: impl std::fmt::Display) -> StorageError {
    StorageError::Corrupt(format!("{what}"))
}

/// How far the log in `dir` was synced, as far as is known.
fn tide(dir: &Path) -> Result<Option<u64>, StorageError> {
    let bytes = match fs::read(dir.join(TIDE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(from_io(error)),
    };
    if bytes.is_empty() {
        // Made, and not yet written to.
        return Ok(None);
    }
    let position = bytes.get(2..10).and_then(|position| position.try_into().ok()).map(u64::from_be_bytes);
    match position.filter(|position| encode_tide(*position)[..] == bytes[..]) {
        Some(position) => Ok(Some(position)),
        None => Err(damaged("the file tide, which says how far the log was synced, is not what was written")),
    }
}

/// The position of the engine's last snapshot: nothing before it is replayed.
fn snapshot(dir: &Path) -> Result<u64, StorageError> {
    let mut last = 0;
    for entry in fs::read_dir(dir).map_err(from_io)? {
        let name = entry.map_err(from_io)?.file_name();
        let position = name.to_str().and_then(|name| name.strip_prefix("snap."));
        last = last.max(position.and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0));
    }
    Ok(last)
}

/// Refuses a log of which something that was synced is damaged or gone.
pub(super) fn check(dir: &Path, segment_bytes: usize) -> Result<(), StorageError> {
    let Some(tide) = tide(dir)? else { return Ok(()) };
    let size = segment_bytes as u64;
    let from = snapshot(dir)? / size * size;
    let log = match File::open(dir.join("db")) {
        Ok(log) => log,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(damaged("its log is gone")),
        Err(error) => return Err(from_io(error)),
    };
    let bytes = log.metadata().map_err(from_io)?.len();
    let (mut reached, mut last, mut buffer) = (0, 0, vec![0; segment_bytes]);
    for at in (0..bytes).step_by(segment_bytes) {
        let read = usize::try_from((bytes - at).min(size)).unwrap_or(segment_bytes);
        let segment = &mut buffer[..read];
        let head = &mut segment[..read.min(SEGMENT_HEADER)];
        log.read_exact_at(head, at).map_err(from_io)?;
        let Some(position) = segment_position(head, size).map_err(|()| header_damaged(at))? else { continue };
        last = last.max(position);
        if position < from || position > tide {
            continue;
        }
        log.read_exact_at(segment, at).map_err(from_io)?;
        reached = reached.max(walk(segment, (position, segment_bytes), tide).map_err(|offset| {
            damaged(format!("its log is damaged at {} of the file", at + offset as u64))
        })?);
    }
    // The segment with the tide may have been used again since: then there is a later one.
    if reached < tide && from <= tide && last <= tide {
        return Err(damaged(format!("its log ends at {reached}, and was synced up to {tide}")));
    }
    Ok(())
}

fn header_damaged(at: u64) -> StorageError {
    damaged(format!("its log is damaged at {at} of the file, the begin of a segment"))
}

/// Where in the log a segment lies; none if it is not in use.
fn segment_position(head: &[u8], size: u64) -> Result<Option<u64>, ()> {
    if head.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let head: &[u8; SEGMENT_HEADER] = head.try_into().map_err(|_| ())?;
    let (sum, rest) = head.split_first_chunk().ok_or(())?;
    let position = rest.first_chunk().map(|position| i64::from_le_bytes(*position) ^ i64::MAX).ok_or(())?;
    if u32::from_le_bytes(*sum) != !crc32fast::hash(rest) {
        return Err(());
    }
    // What the engine makes of one that is not at a border is its own affair.
    Ok(u64::try_from(position).ok().filter(|position| position.is_multiple_of(size)))
}

/// Goes through the messages of a segment that begin before `tide`. Returns how far the log is whole; an error is the
/// offset of one that is damaged.
fn walk(segment: &[u8], (position, size): (u64, usize), tide: u64) -> Result<u64, usize> {
    let number = position / size as u64;
    let mut at = SEGMENT_HEADER;
    while at + MESSAGE_HEADER_MAX <= size && position + (at as u64) < tide {
        let rest = segment.get(at..).ok_or(at)?;
        let (kind, len) = message(rest, number).ok_or(at)?;
        if at + len > size {
            return Err(at);
        }
        at += len;
        if kind == KIND_END {
            at = size;
        }
    }
    let end = if at + MESSAGE_HEADER_MAX > size { size } else { at };
    Ok(position + end as u64)
}

/// Kind and length of a message; none if it is damaged.
fn message(bytes: &[u8], segment: u64) -> Option<(u8, usize)> {
    let (sum, rest) = bytes.split_first_chunk()?;
    let (kind, mut rest) = rest.split_first()?;
    let len = usize::try_from(number(&mut rest)?).ok()?;
    let its_segment = number(&mut rest)?;
    number(&mut rest)?;
    let header = bytes.len() - rest.len();
    let body = rest.get(..len)?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(body);
    hasher.update(&bytes[4..header]);
    let is_right = u32::from_le_bytes(*sum) == !hasher.finalize();
    (is_right && its_segment == segment && *kind != KIND_DAMAGED).then_some((*kind, header + len))
}

/// A number of 1 to 9 bytes.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let (first, rest) = bytes.split_first()?;
    let (value, taken) = match *first {
        0..=240 => (u64::from(*first), 0),
        241..=248 => (240 + 256 * (u64::from(*first) - 241) + u64::from(*rest.first()?), 1),
        249 => (2_288 + 256 * u64::from(*rest.first()?) + u64::from(*rest.get(1)?), 2),
        more => {
            let taken = usize::from(more) - 247;
            let mut whole = [0; 8];
            whole[..taken].copy_from_slice(rest.get(..taken)?);
            (u64::from_le_bytes(whole), taken)
        }
    };
    *bytes = &rest[taken..];
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sled::SledStorage;
    use crate::storage::{Batch, Storage as _};

    #[test]
    fn a_number_has_one_to_nine_bytes() {
        for (bytes, expected) in [
            (&[240][..], Some(240)),
            (&[241, 1], Some(241)),
            (&[248, 255], Some(2_287)),
            (&[249, 0, 2], Some(2_290)),
            (&[250, 1, 2, 3], Some(0x03_0201)),
            (&[255, 1, 2, 3, 4, 5, 6, 7, 8], Some(0x0807_0605_0403_0201)),
            (&[251, 1, 2, 3], None),
            (&[], None),
        ] {
            let mut rest = bytes;
            assert_eq!(number(&mut rest), expected, "{bytes:?}");
            assert!(expected.is_none() || rest.is_empty());
        }
    }

    /// The engine writes over a segment once later ones hold all that was in it.
    #[test]
    fn the_segment_with_the_tide_may_have_been_used_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let segment = |position: i64| {
            let rest = [(position ^ i64::MAX).to_le_bytes(); 2].concat();
            let mut segment = [&(!crc32fast::hash(&rest)).to_le_bytes()[..], &rest].concat();
            segment.resize(1_024, 0);
            segment
        };
        Tide::open(dir.path()).expect("made").rises(1_500).expect("written");
        let checked = |log: &[u8]| {
            fs::write(dir.path().join("db"), log).expect("written");
            check(dir.path(), 1_024)
        };
        assert_eq!(checked(&segment(2_048)), Ok(()));
        let gone = checked(&[0; 2_048]);
        assert!(matches!(&gone, Err(StorageError::Corrupt(what)) if what.contains("ends at 0")), "{gone:?}");
        let torn = checked(&segment(1_024));
        assert!(matches!(&torn, Err(StorageError::Corrupt(what)) if what.contains("at 20 ")), "{torn:?}");
    }

    #[test]
    fn a_tide_that_is_not_what_was_written_is_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(tide(dir.path()), Ok(None));
        Tide::open(dir.path()).expect("made").rises(77).expect("written");
        assert_eq!(tide(dir.path()), Ok(Some(77)));
        let good = fs::read(dir.path().join(TIDE)).expect("there");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            fs::write(dir.path().join(TIDE), bad).expect("written");
            assert!(matches!(tide(dir.path()), Err(StorageError::Corrupt(_))), "byte {at}");
        }
    }

    /// Whatever byte is flipped: what was synced is there, or it does not open, or what it can't read is an error.
    #[test]
    fn a_flipped_byte_never_brings_back_what_was_before() {
        let home = tempfile::tempdir().expect("a directory");
        let (good, bad) = (home.path().join("good"), home.path().join("bad"));
        let storage = SledStorage::open(&good, 1 << 20).expect("opened");
        let key = |n: usize| format!("key {n:03}").into_bytes();
        let value = |round: usize, n: usize| format!("value {round} of {n} ").into_bytes().repeat(1 + n % 40);
        for round in 0..6 {
            let mut batch = Batch::new();
            (0..200).filter(|n| n % 6 <= round).for_each(|n| batch.put(key(n), value(round, n)));
            storage.write(&batch).expect("written");
            storage.sync().expect("synced");
        }
        // As a kill leaves it: nothing is written out by the end of the process.
        copy_dir(&good, &bad);
        let log = fs::read(bad.join("db")).expect("a log");
        let used = log.iter().rposition(|byte| *byte != 0).expect("used") + 1;
        let (mut refused, mut unread) = (0, 0);
        for flip in 0..120_usize {
            let at = flip * 7_919 % used;
            let mut flipped = log.clone();
            flipped[at] ^= 1 << (flip % 8);
            fs::remove_dir_all(&bad).expect("removed");
            copy_dir(&good, &bad);
            fs::write(bad.join("db"), flipped).expect("written");
            let storage = match SledStorage::open(&bad, 1 << 20) {
                Ok(storage) => storage,
                Err(StorageError::Corrupt(what)) => {
                    assert!(what.contains("damaged"), "byte {at}: {what}");
                    refused += 1;
                    continue;
                }
                Err(other) => panic!("byte {at}: {other}"),
            };
            for n in 0..200 {
                match storage.get(&key(n)) {
                    Ok(found) => assert_eq!(found, Some(value(5, n)), "byte {at}, key {n}"),
                    Err(StorageError::Corrupt(_)) => unread += 1,
                    Err(other) => panic!("byte {at}: {other}"),
                }
            }
        }
        assert!(refused > 100, "{refused} refused, {unread} keys unread");
    }

    /// What is not replayed is read page by page: keys on a damaged one are errors, and so are writes that need it.
    /// All else goes on.
    #[test]
    fn a_page_that_can_not_be_read_takes_its_keys_and_no_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = |n: usize| format!("key {n:04}").into_bytes();
        let value = |n: usize| format!("value of {n} ").into_bytes().repeat(700);
        let put = |storage: &SledStorage, n: usize| {
            let mut batch = Batch::new();
            batch.put(key(n), value(n));
            batch.put(format!("beside {n:04}"), *b"v");
            storage.write(&batch)
        };
        let storage = SledStorage::open(dir.path(), 1 << 20).expect("opened");
        (0..800).for_each(|n| put(&storage, n).expect("written"));
        storage.sync().expect("synced");
        drop(storage);
        // A snapshot of what is there.
        drop(SledStorage::open(dir.path(), 1 << 20).expect("opened"));
        let path = dir.path().join("db");
        let mut log = fs::read(&path).expect("a log");
        // All over the segments that are not replayed.
        let size = 4 << 20;
        let replayed = snapshot(dir.path()).expect("there") / size as u64 * size as u64;
        for at in (0..log.len()).step_by(size) {
            let position = segment_position(&log[at..at + SEGMENT_HEADER], size as u64).expect("whole");
            if position.is_some_and(|position| position < replayed) {
                (1..100).for_each(|n| log[at + n * 40_009] ^= 16);
            }
        }
        fs::write(&path, log).expect("written");
        let storage = SledStorage::open(dir.path(), 1 << 20).expect("opened");
        let unread: Vec<usize> = (0..800)
            .filter(|n| match storage.get(&key(*n)) {
                Ok(found) => {
                    assert_eq!(found, Some(value(*n)), "key {n}");
                    false
                }
                Err(error) => {
                    assert!(matches!(error, StorageError::Corrupt(_)), "{error}");
                    true
                }
            })
            .collect();
        assert!((1..800).contains(&unread.len()), "{} can't be read", unread.len());
        for n in 0..800 {
            match put(&storage, n) {
                Ok(()) => assert!(!unread.contains(&n), "key {n}"),
                Err(error) => assert!(matches!(error, StorageError::Unreadable(_)), "{error}"),
            }
        }
        storage.sync().expect("it goes on");
    }

    fn copy_dir(from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("a directory");
        for entry in fs::read_dir(from).expect("listed") {
            let path = entry.expect("an entry").path();
            let to = to.join(path.file_name().expect("a name"));
            if path.is_dir() {
                copy_dir(&path, &to);
            } else {
                fs::copy(&path, &to).expect("copied");
            }
        }
    }
}
