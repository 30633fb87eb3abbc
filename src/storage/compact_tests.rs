//! Tests of the compaction.

use std::path::Path;

use super::*;
use crate::storage::{Batch, Storage as _};

const NOW: Mono = Mono(0);

fn open(dir: &Path) -> SledStorage {
    SledStorage::open(dir, 1 << 20).expect("opened")
}

fn key(n: u32) -> Vec<u8> {
    [b"key ", &n.to_be_bytes()[..]].concat()
}

fn put(storage: &SledStorage, keys: impl Iterator<Item = u32>, value: &[u8]) {
    let mut batch = Batch::new();
    keys.for_each(|n| batch.put(key(n), value));
    storage.write(&batch).expect("written");
}

fn all(storage: &SledStorage) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    let add = &mut |key: &[u8], value: &[u8]| {
        all.push((key.to_vec(), value.to_vec()));
        true
    };
    storage.scan(Bound::Unbounded, Bound::Unbounded, false, add).expect("scanned");
    all
}

/// Steps until it has taken over.
fn finish(storage: &SledStorage) -> (u64, u64) {
    loop {
        match storage.compact(NOW, u64::MAX).expect("goes well") {
            Step::Compacted(before, after) => return (before, after),
            step => assert_eq!(step, Step::More),
        }
    }
}

#[test]
fn a_look_is_over_after_more_of_the_log_or_a_while() {
    let ended = Mono(7);
    let look = Look { written: 1_000, ended, took: Duration::from_secs(60) };
    let after = |seconds| ended + Duration::from_secs(seconds);
    assert!(!look.is_over(4_000, 1_999, after(1_199)));
    assert!(!look.is_over(4_000, 2_000, after(239)) && look.is_over(4_000, 2_000, after(240)));
    assert!(look.is_over(4_000, 1_001, after(1_200)));
    assert!(!look.is_over(4_000, 1_000, after(9_999)), "nothing was written");
    let quick = Look { took: Duration::ZERO, ..look };
    assert!(!quick.is_over(4_000, 1_001, after(299)) && quick.is_over(4_000, 1_001, after(300)));
}

#[test]
fn a_log_is_worth_it_by_what_is_in_it() {
    let content = Content { entries: 10, bytes: 1_000 };
    assert_eq!(content.packed(), 4_560);
    let worth = |log, least| content.is_worth(log, least);
    assert!(worth(11_400, 11_400) && !worth(11_399, 0) && !worth(11_400, 11_401));
}

#[test]
fn what_was_deleted_gives_its_space_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = open(dir.path());
    for round in 0..40 {
        put(&storage, (0..1_000).map(|n| round * 1_000 + n), &[7; 1_000]);
    }
    storage.sync().expect("synced");
    let loaded = storage.disk_bytes();
    assert_eq!(storage.compact(NOW, loaded + 1), Ok(Step::Idle), "it is not that large");
    let mut looked = 0;
    while storage.compact(NOW, 0).expect("looks") == Step::More {
        looked += 1;
    }
    assert!(looked > 1 && storage.live_bytes() > 40_000_000, "all is live: {}", storage.live_bytes());
    for round in 0..40 {
        let mut batch = Batch::new();
        (0..1_000).filter(|n| n % 20 != 0).for_each(|n| batch.delete(key(round * 1_000 + n)));
        storage.write(&batch).expect("written");
    }
    storage.sync().expect("synced");
    let left = all(&storage);
    // What is deleted does not make the log longer by a quarter; by its age a look is due in a while.
    storage.compaction.lock().expect("alone").last = None;
    let step = loop {
        match storage.compact(NOW, 0).expect("goes well") {
            Step::More => {}
            step => break step,
        }
    };
    let Step::Compacted(before, after) = step else { panic!("{step:?}") };
    assert!(before >= loaded && after * 5 < before, "{before} to {after}");
    assert_eq!(storage.compact(NOW, 0), Ok(Step::More), "what it left is removed");
    assert!(storage.disk_bytes() * 5 < before && !dir.path().join("db").exists());
    assert_eq!(all(&storage), left);
    assert_eq!(storage.compact(NOW, 0), Ok(Step::Idle));
    // Again, and over a start.
    storage.compact_anyway().expect("begun");
    finish(&storage);
    drop(storage);
    let storage = open(dir.path());
    assert_eq!(all(&storage), left);
    assert!(dir.path().join("g2/db").exists() && !dir.path().join("g1").exists());
}

#[test]
fn what_is_not_finished_is_nothing_at_the_next_start() {
    let dir = tempfile::tempdir().expect("a directory");
    for steps in [0, 1, 2, 5, 6] {
        let storage = open(dir.path());
        put(&storage, 0..300, format!("{steps}").as_bytes());
        storage.compact_anyway().expect("begun");
        (0..steps).for_each(|_| assert_eq!(storage.compact(NOW, 0), Ok(Step::More)));
        put(&storage, 100..400, format!("then {steps}").as_bytes());
        let left = all(&storage);
        drop(storage);
        let storage = open(dir.path());
        assert_eq!(all(&storage), left, "after {steps} steps");
        assert!(!dir.path().join("g1").exists() && Engine::exists(dir.path()));
    }
}

#[test]
fn a_reader_goes_on_while_the_log_is_exchanged() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = open(dir.path());
    put(&storage, 0..500, b"before");
    let mut seen = 0;
    let visit = &mut |_: &[u8], value: &[u8]| {
        seen += 1;
        if seen == 10 {
            storage.compact_anyway().expect("begun");
            finish(&storage);
            put(&storage, 0..500, b"after");
            assert_eq!(storage.compact(NOW, 0), Ok(Step::Idle), "it is still read");
            assert!(Engine::exists(dir.path()));
        }
        assert_eq!(value, b"before");
        true
    };
    storage.scan(Bound::Unbounded, Bound::Unbounded, false, visit).expect("scanned");
    assert_eq!(seen, 500);
    assert_eq!(storage.compact(NOW, 0), Ok(Step::More));
    assert!(!Engine::exists(dir.path()));
    assert_eq!(storage.get(&key(499)), Ok(Some(b"after".to_vec())));
}

#[test]
fn a_copy_that_differs_is_given_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = open(dir.path());
    put(&storage, 0..500, b"v");
    let left = all(&storage);
    let lost = [0, 250, 499].map(|n| (key(n), None));
    let other = [(key(130), Some(b"w")), (key(9_999), Some(b"v"))];
    for (key, value) in lost.into_iter().chain(other) {
        storage.compact_anyway().expect("begun");
        while !storage.writer().copy.as_ref().is_some_and(|copy| copy.is_whole) {
            assert_eq!(storage.compact(NOW, 0), Ok(Step::More));
        }
        let engine = storage.writer().copy.as_ref().map(|copy| copy.engine.clone()).expect("there");
        match value {
            Some(value) => drop(engine.db().insert(&key, value).expect("written")),
            None => drop(engine.db().remove(&key).expect("written")),
        }
        drop(engine);
        let error = loop {
            match storage.compact(NOW, 0) {
                Ok(step) => assert_eq!(step, Step::More),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("not what was copied"), "{error}");
        assert!(!dir.path().join("g1").exists() && storage.writer().copy.is_none());
        put(&storage, 0..1, b"v");
        assert_eq!(all(&storage), left);
    }
    storage.compact_anyway().expect("begun");
    finish(&storage);
    assert_eq!(all(&storage), left);
}

#[test]
fn a_write_that_failed_is_no_part_of_a_copy() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = open(dir.path());
    put(&storage, 0..10, b"v");
    storage.compact_anyway().expect("begun");
    while !storage.writer().copy.as_ref().is_some_and(|copy| copy.is_whole) {
        assert_eq!(storage.compact(NOW, 0), Ok(Step::More));
    }
    let failed = StorageError::Io("injected".into());
    let mut writer = storage.writer();
    writer.copy.as_mut().expect("there").apply(&Err(failed.clone()), Vec::new());
    drop(writer);
    assert_eq!(storage.compact(NOW, 0), Err(failed));
    assert!(!dir.path().join("g1").exists() && storage.writer().copy.is_none());
}

#[test]
fn a_copy_that_can_not_be_written_is_given_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = open(dir.path());
    put(&storage, 0..500, b"v");
    storage.compact_anyway().expect("begun");
    storage.compact(NOW, 0).expect("copies");
    let failed = StorageError::Io("injected".into());
    let copy = storage.writer().copy.as_ref().map(|copy| copy.engine.clone()).expect("there");
    copy.fail(failed.clone());
    drop(copy);
    put(&storage, 0..10, b"w");
    assert_eq!(storage.compact(NOW, 0), Err(failed));
    assert!(!dir.path().join("g1").exists());
    put(&storage, 10..500, b"w");
    storage.sync().expect("goes on");
    assert!(all(&storage).iter().all(|(_, value)| value == b"w"));
}
