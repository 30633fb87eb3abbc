//! Each nemesis really bites: what it does is seen from outside, and that it is gone after `stop`.
//!
//! Most needs root and namespaces, so it runs only when told to; without, processes are hurt on loopback:
//!
//! ```sh
//! QUORAL_JEPSEN_ROOT=1 cargo test -p quoral-jepsen --test bites              # all
//! QUORAL_JEPSEN_ROOT=1 cargo test -p quoral-jepsen --test bites -- partition # those whose name holds the word
//! QUORAL_JEPSEN_ROOT=1 QUORAL_BINARY=target/release/quoral cargo test …      # and the real node under each
//! ```
//!
//! The nodes are this very program ([`standin`]); with `QUORAL_BINARY` real ones are hurt too ([`real`]).
//! `QUORAL_JEPSEN_SEED` repeats a run's draws, `QUORAL_JEPSEN_KEEP` keeps logs and configurations.
//! What can't be had on a machine is skipped, loudly.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is its own test harness")]

mod disks;
mod left;
mod networks;
mod processes;
mod real;
mod standin;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use world::{Check, World};

/// How long one check may take.
const WITHIN: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", "--stop-with-parent", "--config", config] => {
            standin::serve(&PathBuf::from(config));
            return ExitCode::SUCCESS;
        }
        ["runner-to-be-killed", dir] => {
            left::runner(PathBuf::from(dir));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    if std::env::var_os("QUORAL_JEPSEN_ROOT").is_none() {
        eprintln!("SKIPPED bites: all but those on loopback; they need root: QUORAL_JEPSEN_ROOT=1 runs them");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let failed = runtime.expect("a runtime").block_on(on_loopback());
        return if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let wanted = |name: &str| {
        let mut filters = words.iter().filter(|word| !word.starts_with('-')).peekable();
        filters.peek().is_none() || filters.any(|word| name.contains(word))
    };
    if let Err(error) = quoral_jepsen::network::enter_hub() {
        eprintln!("SKIPPED bites: all of them: {error}");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let failed = runtime.expect("a runtime").block_on(all(wanted));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs what is wanted; gives how many failed.
async fn all(wanted: impl Fn(&str) -> bool) -> usize {
    let mut failed = 0;
    let mut checks: Vec<(&str, Check)> = Vec::new();
    checks.extend(processes::CHECKS);
    checks.extend(networks::CHECKS);
    checks.extend(disks::CHECKS);
    checks.retain(|(name, _)| wanted(name));
    if !checks.is_empty() {
        match World::start(std::env::current_exe().expect("this program")).await {
            Ok(mut world) => {
                for (name, check) in checks {
                    failed += usize::from(!one(name, check, &mut world).await);
                }
                world.cluster.stop().await.expect("stops");
            }
            Err(error) => {
                println!("FAILED  the cluster of stand-ins: {error}");
                failed += 1;
            }
        }
    }
    for name in ["left-processes", "left-disks"].into_iter().filter(|name| wanted(name)) {
        let result = if name == "left-disks" { left::disks().await } else { left::processes() };
        failed += usize::from(!report(name, Duration::ZERO, result));
    }
    failed + real::all(&wanted).await
}

/// What needs no root; gives how many failed.
async fn on_loopback() -> usize {
    let mut world = World::loopback(std::env::current_exe().expect("this program")).await.expect("a cluster");
    let mut failed = 0;
    for (name, check) in processes::CHECKS.into_iter().filter(|(name, _)| *name != "clock") {
        failed += usize::from(!one(name, check, &mut world).await);
    }
    for name in ["partition", "power", "clock", "delay"] {
        let refused = quoral_jepsen::nemesis::by_name(name).is_some_and(|n| n.probe(&world.cluster).is_err());
        let result = world::ensure(refused, || "it claims that it can act on loopback".into());
        failed += usize::from(!report(&format!("{name} refuses"), Duration::ZERO, result));
    }
    failed
}

async fn one(name: &str, check: Check, world: &mut World) -> bool {
    if let Some(nemesis) = quoral_jepsen::nemesis::by_name(name)
        && let Err(why) = nemesis.probe(&world.cluster)
    {
        eprintln!("SKIPPED {name}: {why}");
        return true;
    }
    let began = Instant::now();
    let result = match tokio::time::timeout(WITHIN, check(world)).await {
        Ok(result) => result,
        Err(_) => Err(format!("not done in {WITHIN:?}")),
    };
    let healed = world.cluster.heal_all().await.map_err(|error| format!("not healed: {error}"));
    let crashed = world.cluster.crashed();
    let whole = if crashed.is_empty() { Ok(()) } else { Err(format!("crashed: {crashed:?}")) };
    report(name, began.elapsed(), result.and(healed).and(whole))
}

fn report(name: &str, took: Duration, result: Result<(), String>) -> bool {
    match &result {
        Ok(()) => println!("ok      {name} ({:.1} s)", took.as_secs_f64()),
        Err(why) => println!("FAILED  {name}: {why}"),
    }
    result.is_ok()
}
