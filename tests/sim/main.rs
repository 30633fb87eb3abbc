//! The whole node in a simulation: one seed decides everything, and the same seed gives the same trace.
//!
//! Simulated: the network (turmoil), both clocks, the disk (`MemoryStorage`, which forgets at a crash what was
//! not synced) and chance. Real: all of the node from its ports to its storage trait, tonic and foca with it.
//!
//! A failure prints its seed, the story of the guilty key and the command that plays it again.
//! `QUORAL_SIM_SEEDS=a..b` plays the seeds from `a` to before `b`, `QUORAL_SIM_TRACE=1` prints the traces.

mod canaries;
mod check;
mod client;
mod clock;
mod cluster;
mod deletes;
mod draw;
mod history;
mod keyspaces;
mod layouts;
mod nemesis;
mod net;
mod repairs;
mod scenarios;
mod story;
mod swarm;
mod too_new;
mod upkeep;
mod workload;

use std::ops::Range;

/// Says on a panic how to play the seed again.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} failed; {}", self.0, replay(self.0));
        }
    }
}

/// The seeds that the environment asks for; none if it does not say.
fn seeds() -> Option<Range<u64>> {
    let text = std::env::var("QUORAL_SIM_SEEDS").ok()?;
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    Some(parsed.unwrap_or_else(|| panic!("QUORAL_SIM_SEEDS: must be two numbers as in 0..100, not {text:?}")))
}

/// Seeds that once found something, kept in `tests/sim/regressions`.
fn regressions() -> Vec<u64> {
    let lines = include_str!("regressions").lines().map(|line| line.split('#').next().unwrap_or(line).trim());
    lines.filter(|line| !line.is_empty()).map(|line| line.parse().expect("a seed")).collect()
}

/// How to play a seed again.
fn replay(seed: u64) -> String {
    let release = if cfg!(debug_assertions) { "" } else { " --release" };
    let seeds = format!("QUORAL_SIM_SEEDS={seed}..{}", seed + 1);
    format!("play it again with:\n    {seeds} cargo test{release} --test sim swarm -- --nocapture")
}

/// Plays a seed, and says what is wrong, if something is.
fn play(seed: u64) -> Result<swarm::Report, String> {
    let _replay = Replay(seed);
    let report = swarm::run(seed, None);
    if std::env::var_os("QUORAL_SIM_TRACE").is_some() {
        report.trace.iter().for_each(|line| println!("{line}"));
    }
    println!("{}", report.summary);
    if report.wrong.is_empty() {
        return Ok(report);
    }
    let (many, first) = (report.wrong.len(), &report.wrong[..report.wrong.len().min(10)]);
    let list: Vec<String> = first.iter().map(|finding| format!("  {finding}")).collect();
    let (list, story) = (list.join("\n"), &report.story);
    let head = format!("seed {seed} failed: {many} things are wrong; {}", replay(seed));
    Err(format!("{head}\n{list}\n\nThe story of the first:\n{story}\n"))
}

/// Many scenarios, each drawn from its seed: those asked for, or a few and the ones that once failed.
#[test]
fn swarm() {
    let (mut slowest, mut simulated, mut small) = (0, 0, (0, 0.0));
    let began = tokio::time::Instant::now();
    let seeds: Vec<u64> = match seeds() {
        Some(seeds) => seeds.collect(),
        None => (0..6).chain(regressions()).collect(),
    };
    let (many, mut failed) = (seeds.len(), Vec::new());
    for seed in seeds {
        let this = tokio::time::Instant::now();
        // One that fails does not keep the others from being played, unless it panics.
        let report = match play(seed) {
            Ok(report) => report,
            Err(text) => {
                println!("{text}");
                failed.push((seed, text));
                continue;
            }
        };
        slowest = slowest.max(report.recovery_ms);
        simulated += report.simulated_ms;
        if report.nodes == 3 {
            small = (small.0 + report.simulated_ms, small.1 + this.elapsed().as_secs_f64());
        }
    }
    let speed = simulated as f64 / began.elapsed().as_millis().max(1) as f64;
    println!(
        "{many} seeds, {} failed; slowest recovery {slowest} ms; {simulated} ms simulated, {speed:.0} times as \
         fast as real time; with three nodes {:.0} times",
        failed.len(),
        small.0 as f64 / 1_000.0 / small.1.max(0.001)
    );
    let numbers: Vec<u64> = failed.iter().map(|(seed, _)| *seed).collect();
    if let Some((_, first)) = failed.first() {
        panic!("of {many} seeds these failed: {numbers:?}\n{first}");
    }
}

/// The same seed gives the same trace, faults and all; another seed gives another.
#[test]
fn a_seed_decides_everything() {
    let play = |seed| play(seed).unwrap_or_else(|wrong| panic!("{wrong}"));
    let (one, again, other) = (play(1_000), play(1_000), play(1_001));
    let differs = one.trace.iter().zip(&again.trace).find(|(a, b)| a != b);
    assert_eq!(differs, None, "the first line that differs");
    assert_eq!(one.trace.len(), again.trace.len());
    assert_ne!(one.trace, other.trace);
}
