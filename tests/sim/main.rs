//! The whole node in a simulation: one seed decides everything, and the same seed gives the same trace.
//!
//! Simulated: the network (turmoil), both clocks, the disk (`MemoryStorage`, which forgets at a crash what was
//! not synced) and chance. Real: all of the node from its ports to its storage trait, tonic and foca with it.
//!
//! A failure prints its seed and the command that plays it again. `QUORAL_SIM_SEEDS=a..b` plays the seeds
//! from `a` to before `b`, `QUORAL_SIM_TRACE=1` prints the traces.

mod check;
mod client;
mod clock;
mod cluster;
mod history;
mod nemesis;
mod net;
mod scenarios;
mod swarm;

use std::ops::Range;

/// Says on a panic how to play the seed again.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!("seed {seed} failed; play it again with:");
            eprintln!("    QUORAL_SIM_SEEDS={seed}..{} cargo test --test sim swarm -- --nocapture", seed + 1);
        }
    }
}

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("QUORAL_SIM_SEEDS") else { return 0..8 };
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parsed.unwrap_or_else(|| panic!("QUORAL_SIM_SEEDS: must be two numbers as in 0..100, not {text:?}"))
}

fn play(seed: u64) -> swarm::Report {
    let _replay = Replay(seed);
    let report = swarm::run(seed);
    if std::env::var_os("QUORAL_SIM_TRACE").is_some() {
        report.trace.iter().for_each(|line| println!("{line}"));
    }
    println!("{}", report.summary);
    let many = report.wrong.len();
    let first: Vec<&String> = report.wrong.iter().take(10).collect();
    assert!(report.wrong.is_empty(), "{}\n{many} things are wrong: {first:#?}", report.summary);
    report
}

/// Many scenarios, each drawn from its seed.
#[test]
fn swarm() {
    let (mut slowest, mut simulated) = (0, 0);
    let began = tokio::time::Instant::now();
    for seed in seeds() {
        let report = play(seed);
        slowest = slowest.max(report.recovery_ms);
        simulated += report.simulated_ms;
    }
    let speed = simulated as f64 / began.elapsed().as_millis().max(1) as f64;
    println!(
        "slowest recovery {slowest} ms; {simulated} ms simulated, {speed:.0} times as fast as real time"
    );
}

/// The same seed gives the same trace, faults and all; another seed gives another.
#[test]
fn a_seed_decides_everything() {
    let (one, again, other) = (play(1_000), play(1_000), play(1_001));
    let differs = one.trace.iter().zip(&again.trace).find(|(a, b)| a != b);
    assert_eq!(differs, None, "the first line that differs");
    assert_eq!(one.trace.len(), again.trace.len());
    assert_ne!(one.trace, other.trace);
}
