//! What `sled` storage acknowledged survives a power cut; what it wrote since survives as a prefix of whole
//! batches.
//!
//! The cut is a file system of its own in a file, which is told to drop all that is not on stable storage:
//! directory entries and file sizes too. This needs root, loop devices and `xfs_io` or `python3`, so it runs
//! only when asked for:
//!
//! `QUORAL_POWER_CUT=1 cargo test --release --test power_cut -- --nocapture`
//!
//! This binary starts itself as a child, which acknowledges what it has synced until the power is cut. It
//! syncs after few batches, or after so many that sled reuses parts of its log in between.

use std::io::{BufRead, BufReader};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use quoral::storage::sled::SledStorage;
use quoral::storage::{Batch, Storage};

const CHILD_DIR: &str = "QUORAL_TEST_CHILD_DIR";
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
    let storage = open(dir);
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

fn start(dir: &Path, from: u64, group: u64) -> Child {
    Command::new(std::env::current_exe().expect("this test"))
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

#[test]
fn nothing_acknowledged_is_lost_in_a_power_cut() {
    if let Ok(dir) = std::env::var(CHILD_DIR) {
        let number = |name| std::env::var(name).expect("set").parse().expect("a number");
        return child(Path::new(&dir), number(CHILD_FROM), number(CHILD_GROUP));
    }
    if std::env::var("QUORAL_POWER_CUT").is_err() {
        eprintln!("SKIPPED: set QUORAL_POWER_CUT=1, as root, to cut the power");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Disk::new(dir.path());
    let data = disk.path().join("data");
    let mut last = 0;
    for (round, group) in [1, 40, 20_000, 7, 20_000, 20_000, 300, 20_000].into_iter().enumerate() {
        let mut process = start(&data, last + 1, group);
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let goal = if group < 1_000 { last + 2_000 + 10 * group } else { last + 1 };
        let mut acknowledged = 0;
        while acknowledged < goal {
            let line = lines.next().expect("the child runs until the cut").expect("read");
            if let Some(n) = line.strip_prefix("acknowledged ") {
                acknowledged = n.parse().expect("a number");
            }
        }
        if group > 1_000 {
            // In the midst of what is not synced.
            std::thread::sleep(std::time::Duration::from_millis(200 + 130 * round as u64));
        }
        disk.cut();
        process.kill().expect("killed");
        for line in lines.map_while(Result::ok) {
            if let Some(n) = line.strip_prefix("acknowledged ").and_then(|n| n.parse().ok()) {
                acknowledged = n;
            }
        }
        process.wait().expect("gone");
        disk.unmount();
        disk.mount();
        let storage = open(&data);
        last = check(&storage, acknowledged);
        println!("round {round}: sync every {group}: {acknowledged} acknowledged, {last} there");
    }
}
