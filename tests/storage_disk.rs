//! `sled` storage on a disk whose power is cut, and on one that is full.
//!
//! What was acknowledged survives a power cut; what was written since survives as a prefix of whole batches.
//! The cut is a file system of its own in a file, which is told to drop all that is not on stable storage:
//! directory entries and file sizes too. This needs root, loop devices and `xfs_io` or `python3`, so these
//! tests run only when asked for:
//!
//! `QUORAL_DISK_FAULTS=1 cargo test --release --test storage_disk -- --nocapture`
//!
//! This binary starts itself as a child, which acknowledges what it has synced until the power is cut. It
//! syncs after few batches, or after so many that sled reuses parts of its log in between.

use std::io::{BufRead, BufReader};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use quoral::storage::compact::Step;
use quoral::storage::sled::SledStorage;
use quoral::storage::{Batch, Storage, StorageError};
use quoral::types::time::Mono;

const CHILD_DIR: &str = "QUORAL_TEST_CHILD_DIR";
/// Set if the child is to compact all the time.
const CHILD_COMPACTS: &str = "QUORAL_TEST_CHILD_COMPACTS";
const CHILD_FROM: &str = "QUORAL_TEST_CHILD_FROM";
const CHILD_GROUP: &str = "QUORAL_TEST_CHILD_GROUP";

/// Keys that the batches take turns to replace. The live data is small against what is written, so sled
/// frees and reuses its segments all the time.
const SLOTS: u64 = 1_500;
const LARGE_SLOTS: u64 = 7;

fn open(dir: &Path) -> SledStorage {
    SledStorage::open(dir, 4 << 20).expect("storage opens")
}

fn slot_key(n: u64) -> Vec<u8> {
    [b"slot", &(n % SLOTS).to_be_bytes()[..]].concat()
}

fn large_key(n: u64) -> Vec<u8> {
    [b"large", &(n % LARGE_SLOTS).to_be_bytes()[..]].concat()
}

fn value(n: u64, bytes: usize) -> Vec<u8> {
    [&n.to_be_bytes()[..], &vec![n as u8; bytes]].concat()
}

fn has_large(n: u64) -> bool {
    n.is_multiple_of(50)
}

fn child(dir: &Path, from: u64, group: u64) {
    let storage = Arc::new(open(dir));
    if std::env::var(CHILD_COMPACTS).is_ok() {
        let storage = storage.clone();
        std::thread::spawn(move || {
            loop {
                storage.compact_anyway().expect("begun");
                if let Step::Compacted(before, after) = storage.compact(Mono(0), 0).expect("a step") {
                    println!("compacted {before} to {after}");
                }
            }
        });
    }
    for n in from.. {
        if n.is_multiple_of(3) {
            // Alone, so not in a batch of sled's; `last` is then a batch behind.
            let mut batch = Batch::new();
            batch.put(slot_key(n), value(n, 1_500));
            storage.write(&batch).expect("written");
        } else {
            let mut batch = Batch::new();
            batch.put(slot_key(n), value(n, 1_500));
            batch.put(*b"last", n.to_be_bytes());
            if has_large(n) {
                batch.put(large_key(n), value(n, 40_000));
            }
            storage.write(&batch).expect("written");
        }
        if n.is_multiple_of(group) {
            storage.sync().expect("synced");
            println!("acknowledged {n}");
        }
    }
}

/// Every slot must hold what the last of the batches 1 to `last` that writes it wrote.
fn check(storage: &SledStorage, acknowledged: u64) -> u64 {
    let get = |key: &[u8]| storage.get(key).expect("read");
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes[..8].try_into().expect("8 bytes"));
    let mut last = get(b"last").map_or(0, |bytes| number(&bytes));
    let next = last + 1;
    if next.is_multiple_of(3) && get(&slot_key(next)).is_some_and(|value| number(&value) == next) {
        last = next;
    }
    assert!(last >= acknowledged, "{last} there, {acknowledged} acknowledged");
    let mut entries = 1;
    for slot in 0..SLOTS.min(last) {
        let n = last - slot;
        assert_eq!(
            get(&slot_key(n)),
            Some(value(n, 1_500)),
            "batch {n} of {last}, {acknowledged} acknowledged"
        );
        entries += 1;
    }
    for slot in 0..LARGE_SLOTS {
        let newest =
            (1..=last).rev().find(|n| has_large(*n) && n % LARGE_SLOTS == slot && !n.is_multiple_of(3));
        if let Some(n) = newest {
            assert_eq!(get(&large_key(n)), Some(value(n, 40_000)), "large value of batch {n} of {last}");
            entries += 1;
        }
    }
    let mut found = 0;
    let count = &mut |_: &[u8], _: &[u8]| {
        found += 1;
        true
    };
    storage.scan(Bound::Unbounded, Bound::Unbounded, false, count).expect("scanned");
    assert_eq!(found, entries, "entries");
    last
}

/// A file system in a file; unmounted when dropped.
struct Disk {
    dir: PathBuf,
}

impl Disk {
    fn new(dir: &Path) -> Disk {
        let image = std::fs::File::create(dir.join("image")).expect("the image");
        image.set_len(600 << 20).expect("sized");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(dir.join("image")));
        std::fs::create_dir(dir.join("mount")).expect("the mount point");
        let disk = Disk { dir: dir.to_path_buf() };
        disk.mount();
        disk
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.dir.join("image")).arg(self.path()));
    }

    fn path(&self) -> PathBuf {
        self.dir.join("mount")
    }

    /// Drops all that is not on stable storage, from now on, without a word to it.
    fn cut(&self) {
        let xfs_io = Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(self.path()).status();
        if xfs_io.is_ok_and(|status| status.success()) {
            return;
        }
        // EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH.
        let script = "import fcntl, os, struct, sys\n\
            fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
        run(Command::new("python3").args(["-c", script]).arg(self.path()));
    }

    fn unmount(&self) {
        run(Command::new("umount").arg(self.path()));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

fn run(command: &mut Command) {
    let status = command.status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{command:?}: {status:?}");
}

fn start(dir: &Path, from: u64, group: u64, compacts: bool) -> Child {
    Command::new(std::env::current_exe().expect("this test"))
        .envs(compacts.then_some((CHILD_COMPACTS, "1")))
        .args(["--exact", "nothing_acknowledged_is_lost_in_a_power_cut", "--nocapture"])
        .env(CHILD_DIR, dir)
        .env(CHILD_FROM, from.to_string())
        .env(CHILD_GROUP, group.to_string())
        .stdout(Stdio::piped())
        // It panics once its disk is gone.
        .stderr(Stdio::null())
        .spawn()
        .expect("started")
}

fn wanted(what: &str) -> bool {
    let wanted = std::env::var("QUORAL_DISK_FAULTS").is_ok();
    if !wanted {
        eprintln!("SKIPPED: set QUORAL_DISK_FAULTS=1, as root, to {what}");
    }
    wanted
}

/// Writes are refused, whole, while there is still room for the engine; they go on when room is made. Nothing
/// in it fails for good, and it can be started on the full disk.
#[test]
fn a_full_disk_refuses_writes_until_there_is_room() {
    if !wanted("fill a disk") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mount = dir.path().join("mount");
    std::fs::create_dir(&mount).expect("the mount point");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=128m", "tmpfs"]).arg(&mount));
    let disk = Disk { dir: dir.path().to_path_buf() };
    let filler = mount.join("filler");
    std::fs::write(&filler, vec![0; 40 << 20]).expect("filled");
    let data = mount.join("data");
    let mut storage = open(&data);
    let batch = |n: u64| {
        let mut batch = Batch::new();
        batch.put(n.to_be_bytes(), value(n, if n.is_multiple_of(100) { 100_000 } else { 1_000 }));
        batch.put(*b"last", n.to_be_bytes());
        batch
    };
    let mut written = 0;
    for round in 0..3 {
        let first = written + 1;
        let refused = (first..first + 200_000).find_map(|n| {
            let result = storage.write(&batch(n));
            if result.is_ok() {
                written = n;
                if n.is_multiple_of(20) {
                    storage.sync().expect("synced");
                }
            }
            result.err()
        });
        assert_eq!(refused, Some(StorageError::Full), "round {round}");
        storage.sync().expect("what was taken can be synced");
        assert_eq!(storage.get(b"last"), Ok(Some(written.to_be_bytes().to_vec())), "round {round}");
        drop(storage);
        // This may free a little room: sled drops the free end of its log.
        storage = open(&data);
        assert_eq!(storage.get(b"last"), Ok(Some(written.to_be_bytes().to_vec())), "round {round}");
        let left = 40 - 10 * (round + 1);
        std::fs::write(&filler, vec![0; left << 20]).expect("made room");
        let next = written + 1;
        storage.write(&batch(next)).expect("there is room again");
        written = next;
        println!("round {round}: full before batch {written}, {} MiB", storage.disk_bytes() >> 20);
    }
    drop(storage);
    drop(disk);
}

#[test]
fn nothing_acknowledged_is_lost_in_a_power_cut() {
    if let Ok(dir) = std::env::var(CHILD_DIR) {
        let number = |name| std::env::var(name).expect("set").parse().expect("a number");
        return child(Path::new(&dir), number(CHILD_FROM), number(CHILD_GROUP));
    }
    if !wanted("cut the power") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Disk::new(dir.path());
    let data = disk.path().join("data");
    let mut last = 0;
    let rounds = [1, 40, 20_000, 7, 20_000, 20_000, 300, 20_000];
    let rounds = rounds.iter().flat_map(|group| [(*group, false), (*group, true)]).chain([(1, true); 8]);
    for (round, (group, compacts)) in rounds.enumerate() {
        let mut process = start(&data, last + 1, group, compacts);
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let goal = if group < 1_000 { last + 2_000 + 10 * group } else { last + 1 };
        let (mut acknowledged, mut compacted) = (0, 0);
        while acknowledged < goal {
            let line = lines.next().expect("the child runs until the cut").expect("read");
            compacted += usize::from(line.starts_with("compacted "));
            if let Some(n) = line.strip_prefix("acknowledged ") {
                acknowledged = n.parse().expect("a number");
            }
        }
        if group > 1_000 {
            // In the midst of what is not synced.
            std::thread::sleep(std::time::Duration::from_millis(200 + 65 * round as u64));
        }
        disk.cut();
        process.kill().expect("killed");
        for line in lines.map_while(Result::ok) {
            compacted += usize::from(line.starts_with("compacted "));
            if let Some(n) = line.strip_prefix("acknowledged ").and_then(|n| n.parse().ok()) {
                acknowledged = n;
            }
        }
        process.wait().expect("gone");
        disk.unmount();
        disk.mount();
        let storage = open(&data);
        last = check(&storage, acknowledged);
        println!(
            "round {round}: sync every {group}: {acknowledged} acknowledged, {last} there, {compacted} compactions"
        );
    }
}
