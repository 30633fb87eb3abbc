//! What Merkle trees and their exchange cost: a write, a rebuild, and finding what differs.
//!
//! `cargo run --release --example antientropy -- [SVG]`
//!
//! In memory, one thread. Costs in time are medians of rounds. The bytes of an exchange are those of sums, lists and
//! names; records come on top. A picture of them is written to SVG.

// A benchmark reads the clock.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use quoral::antientropy::exchange::*;
use quoral::antientropy::forest::*;
use quoral::antientropy::records::{Stored, list};
use quoral::antientropy::tree::{Node, Salt};
use quoral::machine::Machine as _;
use quoral::storage::memory::MemoryStorage;
use quoral::storage::{Batch, Storage as _, Write, schema};
use quoral::types::ids::{KeyspaceId, PartitionId};
use quoral::types::key::Key;
use quoral::types::policy::Conflicts;
use quoral::types::time::Mono;
use quoral::version::hlc::Stamp;
use quoral::version::record::{Change, Digest, Summary};

#[allow(dead_code)]
#[path = "../src/antientropy/exchange_talk.rs"]
mod talk;

use talk::{Replica, fill, key, talk};

/// Keys of the first two measurements, in this many partitions.
const KEYS: u32 = 1_000_000;
const PARTITIONS: u32 = 256;
const ROUNDS: usize = 5;

fn main() {
    let records: Vec<(Vec<u8>, [u8; 16])> = (0..KEYS).map(record).collect();
    update(&records);
    rebuild(&records);
    drop(records);
    let curves = exchange();
    if let Some(path) = std::env::args().nth(1) {
        std::fs::write(&path, svg(&curves)).expect("the picture is written");
        println!("written: {path}");
    }
}

fn record(number: u32) -> (Vec<u8>, [u8; 16]) {
    let key = Key::new(format!("key-{number}"), &b""[..]).expect("valid");
    // Below 256.
    let partition = PartitionId((number % PARTITIONS) as u16);
    (schema::record_key(partition, KeyspaceId(1), &key), u128::from(number).to_be_bytes())
}

/// Of every round, in nanoseconds a record.
fn median(mut rounds: Vec<f64>) -> f64 {
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

/// A write to a key that is there, as the commit thread counts it; the hash of the version ids is not part of it.
fn update(records: &[(Vec<u8>, [u8; 16])]) {
    let mut forest = Forest::default();
    let digest = |value: &[u8; 16], round: usize| {
        let mut digest = *value;
        // Fewer than 256 rounds.
        digest[0] = round as u8;
        Some(Digest(digest))
    };
    let mut rounds = Vec::new();
    for round in 0..=ROUNDS {
        let began = Instant::now();
        for (key, value) in records {
            std::hint::black_box(forest.before_write(key));
            let before = (round > 0).then(|| digest(value, round - 1)).flatten();
            forest.written(Mono(0), key, Change { before, after: digest(value, round), dead_since: None });
        }
        // The first makes the trees.
        if round > 0 {
            rounds.push(began.elapsed().as_nanos() as f64 / records.len() as f64);
        }
    }
    let health = forest.health();
    let memory = health.memory as f64 / health.items as f64;
    let (batch, _) = forest.store(Mono(u64::MAX), usize::MAX);
    let bytes = |write: &Write| match write {
        Write::Put(key, value) => key.len() + value.len(),
        Write::Delete(_) => 0,
    };
    let disk = batch.writes.iter().map(bytes).sum::<usize>() as f64 / health.items as f64;
    println!("update: {:.0} ns a write, {KEYS} keys in {PARTITIONS} trees", median(rounds));
    println!("        {memory:.1} bytes of memory and {disk:.1} of disk a key");
}

fn rebuild(records: &[(Vec<u8>, [u8; 16])]) {
    let storage = MemoryStorage::default();
    for chunk in records.chunks(1_000) {
        let mut batch = Batch::new();
        chunk.iter().for_each(|(key, value)| batch.put(key.clone(), *value));
        storage.write(&batch).expect("memory");
    }
    let of =
        |_: &[u8], value: &[u8]| Some(Summary { digest: Digest(value.try_into().ok()?), stamp: Stamp(0) });
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut forest = Forest::default();
        records.iter().for_each(|(key, _)| forest.written_blindly(key));
        let began = Instant::now();
        while forest.health().in_rebuild > 0 {
            forest.rebuild(Mono(0), &storage, &of, 100_000).expect("memory");
        }
        rounds.push(began.elapsed().as_secs_f64());
        assert_eq!(forest.health().items, u64::from(KEYS));
    }
    println!("rebuild: {:.0} records a second, from memory", f64::from(KEYS) / median(rounds));
}

/// Bytes of an exchange by the number of keys and of differences.
fn exchange() -> BTreeMap<u32, Vec<(u32, usize)>> {
    let mut curves = BTreeMap::new();
    println!("exchange:    keys   differ        bytes   bytes each   messages");
    for keys in [1_000, 10_000, 100_000] {
        let (mut a, mut b) = (Replica::default(), Replica::default());
        fill([&mut a, &mut b], (0..keys).map(key));
        let equal = talk(&mut a, &mut b, |_, _| {});
        println!("         {keys:>8} {:>8} {:>12}", 0, equal.bytes);
        let differences = [1, 10, 100, 1_000, 10_000_u32].into_iter().filter(|differ| *differ <= keys);
        for (version, differ) in (2_u64..).zip(differences) {
            for number in 0..differ {
                // Far from each other, and half of them on each side.
                let replica = if number % 2 == 0 { &mut a } else { &mut b };
                replica.merge(&key(number * (keys / differ)), version.to_be_bytes());
            }
            let cost = talk(&mut a, &mut b, |_, _| {});
            assert_eq!((cost.records, cost.vain), (u64::from(differ), 0));
            let each = cost.bytes as f64 / f64::from(differ);
            println!("         {keys:>8} {differ:>8} {:>12} {each:>12.0} {:>10}", cost.bytes, cost.questions);
            curves.entry(keys).or_insert_with(Vec::new).push((differ, cost.bytes));
        }
    }
    curves
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 340.0;

/// Both axes by powers of ten: differences to 10^4, bytes from 10^2 to 10^7.
fn at(differ: f64, bytes: f64) -> (f64, f64) {
    let x = LEFT + differ.log10() / 4.0 * (WIDTH - LEFT - 100.0);
    (x, BOTTOM - (bytes.log10() - 2.0) / 5.0 * (BOTTOM - 40.0))
}

fn svg(curves: &BTreeMap<u32, Vec<(u32, usize)>>) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"14\">Bytes that tell what differs between two replicas</text>\n"
    );
    // Writing to a String can't fail.
    for power in 0..=4 {
        let (x, _) = at(10_f64.powi(power), 100.0);
        let _ = writeln!(
            out,
            "<path d=\"M{x:.0} 40V{BOTTOM}\" stroke=\"#ddd\"/><text x=\"{x:.0}\" y=\"{}\" \
             text-anchor=\"middle\">{}</text>",
            BOTTOM + 18.0,
            10_u32.pow(power.unsigned_abs())
        );
    }
    for (power, name) in (2..).zip(["100 B", "1 kB", "10 kB", "100 kB", "1 MB", "10 MB"]) {
        let (_, y) = at(1.0, 10_f64.powi(power));
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {y:.0}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.0}\" \
             text-anchor=\"end\">{name}</text>",
            WIDTH - 100.0,
            LEFT - 6.0,
            y + 4.0
        );
    }
    for ((keys, points), colour) in curves.iter().zip(["#15803d", "#1d4ed8", "#c2410c"]) {
        let points: Vec<(f64, f64)> = points.iter().map(|(d, b)| at(f64::from(*d), *b as f64)).collect();
        let line: String = points.iter().map(|(x, y)| format!("{x:.0},{y:.0} ")).collect();
        let (x, y) = points.last().copied().unwrap_or_default();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\" fill=\"{colour}\">{keys} keys</text>",
            line.trim_end(),
            x + 6.0,
            y + 4.0
        );
    }
    let _ = write!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">records that differ</text>\n</svg>\n",
        (LEFT + WIDTH - 100.0) / 2.0,
        HEIGHT - 20.0
    );
    out
}
