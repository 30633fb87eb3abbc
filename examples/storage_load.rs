//! Loads an engine and says what it took: writes a second, waits, memory, disk.
//!
//! `cargo run --release --example storage_load -- DIR [KEYS] [VALUE_BYTES] [CACHE_MIB] [WRITERS]`
//!
//! Writers hand batches of one put to a commit thread, which writes all that wait and syncs once, as a node
//! does. Then: overwrites, reads and a scan of all. The memory is that of the process at its peak, read from
//! `/proc`, so what the load itself needs is in it.

// A load generator reads the clock.
#![allow(clippy::disallowed_methods)]

use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use quoral::storage::sled::SledStorage;
use quoral::storage::{Batch, Storage};

type Job = (Batch, SyncSender<()>);

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().expect("the directory to use"));
    let mut number = |default: u64| args.next().map_or(default, |arg| arg.parse().expect("a number"));
    let (keys, value_bytes, cache_mib, writers) = (number(1_000_000), number(100), number(64), number(64));

    let start = Instant::now();
    let storage = Arc::new(SledStorage::open(&dir, cache_mib << 20).expect("opened"));
    println!("open          {:>9.3} s          {}", start.elapsed().as_secs_f64(), memory());
    for name in ["load", "overwrite"] {
        let (elapsed, mut waits) = load(&storage, keys, value_bytes as usize, writers);
        waits.sort_unstable();
        let at = |share: usize| waits[(waits.len() - 1) * share / 1_000].as_secs_f64() * 1e3;
        println!(
            "{name:<10} {:>9.0} /s  p50 {:.2} p99 {:.2} p999 {:.2} ms  {}  disk {} MiB",
            keys as f64 / elapsed.as_secs_f64(),
            at(500),
            at(990),
            at(999),
            memory(),
            storage.disk_bytes() >> 20
        );
    }
    let start = Instant::now();
    let reads = keys.min(200_000);
    for i in 0..reads {
        let key = key(scatter(i.wrapping_mul(7_919) % keys));
        assert!(storage.get(&key).expect("read").is_some());
    }
    println!("read       {:>9.0} /s  {}", reads as f64 / start.elapsed().as_secs_f64(), memory());
    let start = Instant::now();
    let mut seen = 0u64;
    let count = &mut |_: &[u8], _: &[u8]| {
        seen += 1;
        true
    };
    storage.scan(Bound::Unbounded, Bound::Unbounded, false, count).expect("scanned");
    assert_eq!(seen, keys);
    println!("scan       {:>9.0} /s  {}", seen as f64 / start.elapsed().as_secs_f64(), memory());
}

/// Puts each key once, from `writers` threads. Returns the time taken and each put's wait.
fn load(
    storage: &Arc<SledStorage>,
    keys: u64,
    value_bytes: usize,
    writers: u64,
) -> (Duration, Vec<Duration>) {
    let (jobs, queue) = sync_channel::<Job>(8_192);
    let committer = {
        let storage = storage.clone();
        std::thread::spawn(move || commit(&*storage, &queue))
    };
    let start = Instant::now();
    let threads: Vec<_> = (0..writers)
        .map(|writer| {
            let jobs = jobs.clone();
            std::thread::spawn(move || {
                let mut waits = Vec::new();
                for i in (writer..keys).step_by(writers as usize) {
                    let begin = Instant::now();
                    let mut batch = Batch::new();
                    batch.put(key(scatter(i)), value(i, value_bytes));
                    let (done, wait) = sync_channel(1);
                    jobs.send((batch, done)).expect("the commit thread runs");
                    wait.recv().expect("committed");
                    waits.push(begin.elapsed());
                }
                waits
            })
        })
        .collect();
    drop(jobs);
    let waits = threads.into_iter().flat_map(|thread| thread.join().expect("written")).collect();
    let elapsed = start.elapsed();
    committer.join().expect("ended");
    (elapsed, waits)
}

fn commit(storage: &dyn Storage, queue: &Receiver<Job>) {
    while let Ok((batch, done)) = queue.recv() {
        storage.write(&batch).expect("written");
        let mut waiting = vec![done];
        while let Ok((batch, done)) = queue.try_recv() {
            storage.write(&batch).expect("written");
            waiting.push(done);
        }
        storage.sync().expect("synced");
        for done in waiting {
            done.send(()).expect("the writer waits");
        }
    }
}

/// A number for each number, far from its neighbours'.
fn scatter(i: u64) -> u64 {
    i.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn key(i: u64) -> Vec<u8> {
    [&b"d\0\x2a\0\0\0\x01user:"[..], &i.to_be_bytes(), b"\0\x01"].concat()
}

fn value(i: u64, bytes: usize) -> Vec<u8> {
    let mut value = vec![0; bytes.max(8)];
    let mut x = i ^ (bytes as u64) << 32 | 1;
    for chunk in value.chunks_mut(8) {
        x = scatter(x ^ x >> 29);
        chunk.copy_from_slice(&x.to_be_bytes()[..chunk.len()]);
    }
    value
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 10
    };
    format!("RSS {} MiB, peak {} MiB", mib("VmRSS"), mib("VmHWM"))
}
