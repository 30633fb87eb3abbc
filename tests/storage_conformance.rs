//! One suite for both storage engines, and what each promises about a crash.
//!
//! Every case runs on `memory` and on `sled`, against a `BTreeMap` where there is a choice of operations.
//! The crash of a process is a real one: this binary starts itself as a child, which acknowledges what it
//! has synced until it is killed. A power cut needs root and is in `tests/storage_disk.rs`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::ops::Bound;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use proptest::prelude::*;
use quoral::storage::memory::MemoryStorage;
use quoral::storage::sled::SledStorage;
use quoral::storage::{Batch, Entry, Storage, StorageError};
use quoral::types::limits;
use quoral::types::time::Mono;

const CACHE: u64 = 8 << 20;

/// Longer than what sled keeps in its pages: it goes to a file of its own.
const LARGE: usize = 20_000;

fn sled(dir: &Path) -> SledStorage {
    SledStorage::open(dir, CACHE).expect("sled opens")
}

/// Runs a case on a new storage of each engine.
fn on_both(case: impl Fn(&dyn Storage)) {
    case(&MemoryStorage::new());
    let dir = tempfile::tempdir().expect("a directory");
    case(&sled(dir.path()));
}

fn put(storage: &dyn Storage, key: &[u8], value: &[u8]) {
    let mut batch = Batch::new();
    batch.put(key, value);
    storage.write(&batch).expect("written");
}

fn delete(storage: &dyn Storage, key: &[u8]) {
    let mut batch = Batch::new();
    batch.delete(key);
    storage.write(&batch).expect("deleted");
}

fn get(storage: &dyn Storage, key: &[u8]) -> Option<Vec<u8>> {
    storage.get(key).expect("read")
}

fn scan(storage: &dyn Storage, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Vec<Entry> {
    let mut entries = Vec::new();
    storage
        .scan(from, to, reverse, &mut |key, value| {
            entries.push((key.to_vec(), value.to_vec()));
            true
        })
        .expect("scanned");
    entries
}

fn all(storage: &dyn Storage) -> Vec<Entry> {
    scan(storage, Bound::Unbounded, Bound::Unbounded, false)
}

#[test]
fn puts_gets_and_deletes() {
    on_both(|storage| {
        assert_eq!(get(storage, b"a"), None);
        put(storage, b"a", b"1");
        put(storage, b"a", b"2");
        put(storage, b"b", b"");
        assert_eq!(get(storage, b"a"), Some(b"2".to_vec()));
        assert_eq!(get(storage, b"b"), Some(vec![]), "an empty value is a value");
        delete(storage, b"a");
        delete(storage, b"never there");
        assert_eq!(get(storage, b"a"), None);
        storage.sync().expect("synced");
        assert_eq!(all(storage), [(b"b".to_vec(), vec![])]);
        storage.write(&Batch::new()).expect("an empty batch does nothing");
    });
}

#[test]
fn the_last_write_of_a_key_in_a_batch_counts() {
    on_both(|storage| {
        put(storage, b"old", b"0");
        let mut batch = Batch::new();
        batch.put(*b"a", *b"1");
        batch.put(*b"b", *b"1");
        batch.put(*b"a", *b"2");
        batch.delete(*b"b");
        batch.delete(*b"old");
        batch.delete(*b"c");
        batch.put(*b"c", *b"3");
        storage.write(&batch).expect("written");
        assert_eq!(all(storage), [(b"a".to_vec(), b"2".to_vec()), (b"c".to_vec(), b"3".to_vec())]);
    });
}

#[test]
fn scans_keep_bounds_in_both_directions() {
    on_both(|storage| {
        let keys: Vec<[u8; 2]> = (0..200u8).map(|i| [i / 16, i % 16]).collect();
        for key in &keys {
            put(storage, key, key);
        }
        // Bounds on keys and between them, crossed ones too.
        let edges: Vec<Vec<u8>> =
            vec![vec![0, 0], vec![3], vec![3, 3], vec![3, 3, 0], vec![12, 7], vec![255]];
        let mut bounds = vec![Bound::Unbounded];
        for edge in &edges {
            bounds.push(Bound::Included(&edge[..]));
            bounds.push(Bound::Excluded(&edge[..]));
        }
        for from in &bounds {
            for to in &bounds {
                let inside = |key: &[u8]| {
                    let above = match from {
                        Bound::Included(from) => key >= *from,
                        Bound::Excluded(from) => key > *from,
                        Bound::Unbounded => true,
                    };
                    let below = match to {
                        Bound::Included(to) => key <= *to,
                        Bound::Excluded(to) => key < *to,
                        Bound::Unbounded => true,
                    };
                    above && below
                };
                let mut expected: Vec<Entry> =
                    keys.iter().filter(|key| inside(&key[..])).map(|k| (k.to_vec(), k.to_vec())).collect();
                assert_eq!(scan(storage, *from, *to, false), expected, "{from:?} {to:?}");
                expected.reverse();
                assert_eq!(scan(storage, *from, *to, true), expected, "{from:?} {to:?} reverse");
            }
        }
    });
}

#[test]
fn scans_stop_when_told() {
    on_both(|storage| {
        for i in 0..100u8 {
            put(storage, &[i], &[i]);
        }
        for (reverse, first) in [(false, 0), (true, 99u8)] {
            let mut seen = Vec::new();
            storage
                .scan(Bound::Unbounded, Bound::Unbounded, reverse, &mut |key, _| {
                    seen.push(key[0]);
                    seen.len() < 40
                })
                .expect("scanned");
            assert_eq!((seen.len(), seen[0]), (40, first));
        }
    });
}

/// A user may choose keys on which sled's own reverse scan does not end: a page that begins at `b`, and one
/// before it that begins at `a` with more than four bytes `ff` behind it.
#[test]
fn runs_of_ff_in_keys_are_scanned_both_ways() {
    on_both(|storage| {
        for run in 0..12 {
            for order in [0..9u8, 9..60] {
                // The first 9 and 8 keys split between `a` and `b`; the others split what is before `b`.
                for i in order {
                    put(storage, &[&[run, b'a'][..], &vec![0xff; usize::from(run)], &[i]].concat(), b"v");
                    if i < 8 {
                        put(storage, &[run, b'b', i], b"v");
                    }
                }
            }
        }
        let found = |reverse| -> Vec<Vec<u8>> {
            let entries = scan(storage, Bound::Unbounded, Bound::Unbounded, reverse);
            entries.into_iter().map(|(key, _)| key).collect()
        };
        let keys = found(false);
        assert_eq!(keys.len(), 12 * 68);
        assert!(keys.is_sorted());
        let mut backwards = found(true);
        backwards.reverse();
        assert_eq!(backwards, keys);
    });
}

#[test]
fn values_of_every_size_are_kept() {
    on_both(|storage| {
        let sizes =
            [1, 1_000, 16_383, 16_384, 16_385, LARGE, limits::VALUE_BYTES_MAX, limits::RECORD_BYTES_MAX];
        let pattern: Vec<u8> = (0..251).collect();
        let value = |size: usize| -> Vec<u8> {
            let mut value = pattern.repeat(size / pattern.len() + 1);
            value.truncate(size);
            value
        };
        for (i, size) in sizes.iter().enumerate() {
            put(storage, &[i as u8], &value(*size));
        }
        storage.sync().expect("synced");
        for (i, size) in sizes.iter().enumerate() {
            let got = get(storage, &[i as u8]).expect("there");
            assert!(got == value(*size), "a value of {size} bytes");
        }
        let mut scanned = Vec::new();
        storage
            .scan(Bound::Unbounded, Bound::Unbounded, true, &mut |_, value| {
                scanned.push(value.len());
                true
            })
            .expect("scanned");
        scanned.reverse();
        assert_eq!(scanned, sizes);
    });
}

/// Replaced large values give their room back.
#[test]
fn large_values_are_replaced_by_large_and_by_small_ones() {
    on_both(|storage| {
        put(storage, b"a", &vec![1; LARGE]);
        put(storage, b"b", &vec![2; LARGE]);
        put(storage, b"a", &vec![3; LARGE]);
        assert_eq!(get(storage, b"a"), Some(vec![3; LARGE]));
        let mut batch = Batch::new();
        batch.put(*b"a", *b"small");
        batch.put(*b"c", vec![4; LARGE]);
        batch.put(*b"c", vec![5; LARGE]);
        batch.delete(*b"b");
        storage.write(&batch).expect("written");
        storage.sync().expect("synced");
        assert_eq!(all(storage), [(b"a".to_vec(), b"small".to_vec()), (b"c".to_vec(), vec![5; LARGE])]);
        delete(storage, b"c");
        storage.sync().expect("synced");
        assert_eq!(all(storage), [(b"a".to_vec(), b"small".to_vec())]);
    });
    let dir = tempfile::tempdir().expect("a directory");
    let storage = sled(dir.path());
    for round in 0..10u8 {
        put(&storage, b"a", &vec![round; LARGE]);
        storage.sync().expect("synced");
    }
    let files = std::fs::read_dir(dir.path().join("large")).expect("listed").count();
    assert_eq!(files, 1, "one file is left of ten values");
}

#[test]
fn threads_may_write_and_read_at_once() {
    on_both(|storage| {
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                scope.spawn(move || {
                    for i in 0..200u8 {
                        let size = if i % 50 == 0 { LARGE } else { 10 };
                        put(storage, &[thread, i], &vec![i; size]);
                        put(storage, b"shared", &vec![thread; if i % 20 == 0 { LARGE } else { 10 }]);
                        storage.sync().expect("synced");
                        let shared = get(storage, b"shared").expect("always there");
                        assert!(shared.iter().all(|byte| *byte == shared[0]), "torn");
                    }
                });
            }
        });
        assert_eq!(all(storage).len(), 4 * 200 + 1);
    });
}

#[test]
fn memory_keeps_what_was_synced_and_a_prefix_of_whole_batches() {
    for seed in 0..200 {
        let storage = MemoryStorage::new();
        let write = |i: u8| {
            let mut batch = Batch::new();
            batch.put([i], [i]);
            batch.put(*b"last", [i]);
            batch.delete([i.wrapping_sub(5)]);
            storage.write(&batch).expect("written");
        };
        (1..=10).for_each(write);
        storage.sync().expect("synced");
        (11..=20).for_each(write);
        let lost = storage.crash_with(seed);
        let last = 20 - lost as u8;
        assert!((10..=20).contains(&last));
        let mut expected: Vec<Entry> = (last - 4..=last).map(|i| (vec![i], vec![i])).collect();
        expected.push((b"last".to_vec(), vec![last]));
        assert_eq!(all(&storage), expected, "seed {seed}");
        assert_eq!(storage.crash_with(seed + 1), 0, "what survived one crash survives the next");
    }
}

#[test]
fn sled_keeps_all_over_a_reopen() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut expected = Vec::new();
    for round in 0..3u8 {
        let storage = sled(dir.path());
        assert_eq!(all(&storage), expected);
        for i in 0..100u8 {
            put(&storage, &[i], &[round, i]);
        }
        put(&storage, b"\xffbig", &vec![round; LARGE]);
        storage.sync().expect("synced");
        expected = all(&storage);
        assert_eq!(expected.len(), 101);
    }
}

/// The longest keys, 256 of which share a page within, and values just small enough to stay in pages: no
/// page may get so large that sled puts it into a file of its own, which it never syncs.
#[test]
fn no_page_outgrows_the_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = sled(dir.path());
    let key = |i: u16| {
        // Above 255 equal bytes sled can't shorten what keys share.
        let mut key = vec![b'k'; 3_000];
        key.extend_from_slice(&i.to_be_bytes());
        key
    };
    for i in 0..6_000u16 {
        let size = if i % 16 == 0 { 16_384 } else { 10 };
        put(&storage, &key(i.wrapping_mul(40_503)), &vec![0; size]);
        assert_eq!(std::fs::read_dir(dir.path().join("blobs")).expect("listed").count(), 0, "after {i}");
    }
    for i in 0..1_000u16 {
        put(&storage, &[b"0", &i.to_be_bytes()[..]].concat(), &vec![0; 16_384]);
    }
    for i in 0..6_000u16 {
        delete(&storage, &key(i.wrapping_mul(40_503)));
    }
    storage.sync().expect("synced");
    assert_eq!(all(&storage).len(), 1_000);
    assert_eq!(std::fs::read_dir(dir.path().join("blobs")).expect("listed").count(), 0);
    let long = vec![b'k'; 3_201];
    let mut batch = Batch::new();
    batch.put(long, *b"v");
    let refused = storage.write(&batch);
    assert!(matches!(&refused, Err(StorageError::Io(what)) if what.contains("3200")), "{refused:?}");
}

/// A crash while sled writes its snapshot leaves a part of one, which sled itself would stumble over.
#[test]
fn a_half_written_snapshot_does_not_stop_a_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = sled(dir.path());
    put(&storage, b"a", b"1");
    storage.sync().expect("synced");
    drop(storage);
    std::fs::write(dir.path().join("snap.7FFFFFFFFFFFFFFF.generating"), b"half").expect("planted");
    assert_eq!(get(&sled(dir.path()), b"a"), Some(b"1".to_vec()));
}

#[test]
fn one_directory_is_one_storage() {
    let dir = tempfile::tempdir().expect("a directory");
    let _storage = sled(dir.path());
    assert!(matches!(SledStorage::open(dir.path(), CACHE), Err(StorageError::Io(_))));
}

#[test]
fn a_newer_format_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(sled(dir.path()));
    {
        let config = sled::Config::new().path(dir.path()).segment_size(4 << 20).flush_every_ms(None);
        let db = config.open().expect("opened");
        db.open_tree("quoral").expect("tree").insert("format", &[b'S', 2]).expect("written");
        db.flush().expect("flushed");
    }
    let error = SledStorage::open(dir.path(), CACHE).err().expect("refused");
    assert!(matches!(&error, StorageError::Corrupt(what) if what.contains("format")), "{error}");
}

#[derive(Debug, Clone)]
enum Op {
    Write(Vec<(Vec<u8>, Option<Vec<u8>>)>),
    Get(Vec<u8>),
    Scan(Bound<Vec<u8>>, Bound<Vec<u8>>, bool),
    Sync,
    Reopen,
    /// A step of a compaction.
    Compact,
}

fn any_key() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => 0..3u8, 2 => Just(0xffu8), 1 => any::<u8>()];
    proptest::collection::vec(byte, 1..7)
}

fn any_value() -> impl Strategy<Value = Vec<u8>> {
    let size = prop_oneof![20 => 0..20usize, 1 => Just(16_384usize), 1 => Just(LARGE)];
    (any::<u8>(), size).prop_map(|(byte, size)| vec![byte; size])
}

fn any_bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![
        Just(Bound::Unbounded),
        any_key().prop_map(Bound::Included),
        any_key().prop_map(Bound::Excluded)
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    let write = (any_key(), proptest::option::weighted(0.7, any_value()));
    prop_oneof![
        12 => proptest::collection::vec(write, 1..8).prop_map(Op::Write),
        4 => any_key().prop_map(Op::Get),
        4 => (any_bound(), any_bound(), any::<bool>()).prop_map(|(from, to, r)| Op::Scan(from, to, r)),
        1 => Just(Op::Sync),
        1 => Just(Op::Reopen),
        2 => Just(Op::Compact),
    ]
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

/// Does `op` on both, and compares what they say.
fn step(storage: &dyn Storage, model: &mut BTreeMap<Vec<u8>, Vec<u8>>, op: &Op) {
    match op {
        Op::Write(writes) => {
            let mut batch = Batch::new();
            for (key, value) in writes {
                match value {
                    Some(value) => {
                        batch.put(key.clone(), value.clone());
                        model.insert(key.clone(), value.clone());
                    }
                    None => {
                        batch.delete(key.clone());
                        model.remove(key);
                    }
                }
            }
            storage.write(&batch).expect("written");
        }
        Op::Get(key) => assert_eq!(get(storage, key), model.get(key).cloned()),
        Op::Scan(from, to, reverse) => {
            let inside = |key: &Vec<u8>| {
                (match from {
                    Bound::Included(from) => key >= from,
                    Bound::Excluded(from) => key > from,
                    Bound::Unbounded => true,
                }) && (match to {
                    Bound::Included(to) => key <= to,
                    Bound::Excluded(to) => key < to,
                    Bound::Unbounded => true,
                })
            };
            let mut expected: Vec<Entry> =
                model.iter().filter(|(k, _)| inside(k)).map(|(k, v)| (k.clone(), v.clone())).collect();
            if *reverse {
                expected.reverse();
            }
            assert_eq!(scan(storage, as_slice(from), as_slice(to), *reverse), expected);
        }
        Op::Sync => storage.sync().expect("synced"),
        Op::Reopen | Op::Compact => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn both_engines_are_a_sorted_map(ops in proptest::collection::vec(any_op(), 1..150)) {
        let memory = MemoryStorage::new();
        let dir = tempfile::tempdir().expect("a directory");
        let mut disk = Some(sled(dir.path()));
        let (mut of_memory, mut of_disk) = (BTreeMap::new(), BTreeMap::new());
        for op in &ops {
            step(&memory, &mut of_memory, op);
            if let Op::Reopen = op {
                drop(disk.take());
                disk = Some(sled(dir.path()));
            }
            if let (Op::Compact, Some(disk)) = (op, &disk) {
                // Begins one, or goes on with it.
                disk.compact_anyway().expect("begun");
                disk.compact(Mono(0), 0).expect("a step");
            }
            step(disk.as_ref().expect("open"), &mut of_disk, op);
        }
        let last = Op::Scan(Bound::Unbounded, Bound::Unbounded, true);
        step(&memory, &mut of_memory, &last);
        step(disk.as_ref().expect("open"), &mut of_disk, &last);
    }
}

const CHILD_DIR: &str = "QUORAL_TEST_CHILD_DIR";
/// Set if the child is to compact all the time.
const CHILD_COMPACTS: &str = "QUORAL_TEST_CHILD_COMPACTS";
const CHILD_FROM: &str = "QUORAL_TEST_CHILD_FROM";
/// Batches between two syncs of the child.
const GROUP: u64 = 5;

fn number_key(prefix: &[u8], n: u64) -> Vec<u8> {
    [prefix, &n.to_be_bytes()].concat()
}

/// What batch `n` of the child puts under the key that every batch replaces.
fn shared_value(n: u64) -> Vec<u8> {
    let size = if n.is_multiple_of(7) { LARGE } else { 50 };
    [&n.to_be_bytes()[..], &vec![n as u8; size]].concat()
}

/// The child: writes batches from a number on, and prints the last number after each sync, until killed.
/// Each batch puts a key of its own twice and replaces a shared one; some values are large.
fn child(dir: &str, from: u64) {
    let storage = Arc::new(sled(Path::new(dir)));
    if std::env::var(CHILD_COMPACTS).is_ok() {
        let storage = storage.clone();
        std::thread::spawn(move || {
            loop {
                storage.compact_anyway().expect("begun");
                storage.compact(Mono(0), 0).expect("a step");
            }
        });
    }
    for n in from.. {
        let mut batch = Batch::new();
        batch.put(number_key(b"a", n), n.to_be_bytes());
        batch.put(*b"shared", shared_value(n));
        batch.put(number_key(b"b", n), vec![n as u8; if n.is_multiple_of(11) { LARGE } else { 200 }]);
        storage.write(&batch).expect("written");
        if n.is_multiple_of(GROUP) {
            storage.sync().expect("synced");
            println!("acknowledged {n}");
        }
    }
}

/// Kills a writer eight times in the middle of its work. Nothing acknowledged is missing, and what is there
/// beyond that is a prefix of whole batches.
#[test]
fn sled_loses_nothing_acknowledged_when_killed() {
    if let Ok(dir) = std::env::var(CHILD_DIR) {
        let from = std::env::var(CHILD_FROM).expect("set with the directory").parse().expect("a number");
        return child(&dir, from);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut next = 1;
    for round in 0..8 {
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["--exact", "sled_loses_nothing_acknowledged_when_killed", "--nocapture"]);
        command.env(CHILD_DIR, dir.path()).env(CHILD_FROM, next.to_string()).stdout(Stdio::piped());
        if round % 2 == 1 {
            command.env(CHILD_COMPACTS, "1");
        }
        let mut process = command.spawn().expect("started");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let mut acknowledged = 0;
        let goal = next + 150 + round * 70;
        while acknowledged < goal {
            let line = lines.next().expect("the child runs until it is killed").expect("read");
            if let Some(n) = line.strip_prefix("acknowledged ") {
                acknowledged = n.parse().expect("a number");
            }
        }
        process.kill().expect("killed");
        // What it acknowledged before the signal reached it counts too.
        for line in lines.map_while(Result::ok) {
            if let Some(n) = line.strip_prefix("acknowledged ").and_then(|n| n.parse().ok()) {
                acknowledged = n;
            }
        }
        process.wait().expect("gone");

        let storage = sled(dir.path());
        let mut last = 0;
        while get(&storage, &number_key(b"a", last + 1)).is_some() {
            last += 1;
        }
        assert!(last >= acknowledged, "round {round}: {last} there, {acknowledged} acknowledged");
        assert_eq!(all(&storage).len() as u64, 2 * last + 1, "round {round}: not a prefix of whole batches");
        for n in 1..=last {
            let b = get(&storage, &number_key(b"b", n));
            assert!(b.is_some_and(|b| b.iter().all(|byte| *byte == n as u8)), "round {round}: batch {n}");
        }
        assert_eq!(get(&storage, b"shared"), Some(shared_value(last)), "round {round}");
        let files = std::fs::read_dir(dir.path().join("large")).expect("listed").count() as u64;
        let live = last / 11 + u64::from(last.is_multiple_of(7));
        assert_eq!(files, live, "round {round}: files of large values");
        next = last + 1;
    }
}
