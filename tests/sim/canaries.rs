//! Canaries: bugs that are planted (`src/canary.rs`), each of which the swarm must find.
//!
//! The short form plays for each canary one seed that is known to find it. The long form plays seeds from 0
//! until one does, at most 500, and says how many it took.

use quoral::canary::Canary;

use crate::swarm;

/// Seeds after which a canary that was not found is a hole in the checks.
const SEEDS_MAX: u64 = 500;

/// A seed that finds each.
const KNOWN: [(Canary, u64); 0] = [];

/// Plays a seed with a planted bug: the first thing that is wrong. A panic or a cluster that does not come up is
/// a find too.
fn finds(canary: Canary, seed: u64) -> Option<String> {
    let played = std::panic::catch_unwind(|| swarm::run(seed, Some(canary)));
    match played {
        Ok(report) => report.wrong.first().map(|finding| finding.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Some(text.or(panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default())
        }
    }
}

/// Each canary is found by the seed that is known to find it.
#[test]
fn canaries_are_found_by_their_seeds() {
    if !quoral::canary::plant(None) || !cfg!(any(debug_assertions, quoral_canaries)) {
        eprintln!("SKIPPED: this build has no canaries");
        return;
    }
    for (canary, seed) in KNOWN {
        let found = finds(canary, seed);
        println!("{canary:?}, seed {seed}: {}", found.as_deref().unwrap_or("nothing"));
        assert!(found.is_some(), "{canary:?} is not found by seed {seed} any more");
    }
}

/// Each canary is found within 500 seeds. Long: see docs/testing.md.
#[test]
#[ignore = "long: it plays hundreds of scenarios"]
fn canaries_are_found_within_500_seeds() {
    let only = std::env::var("QUORAL_SIM_CANARY").ok();
    let mut lost = Vec::new();
    for canary in Canary::ALL {
        if only.as_ref().is_some_and(|only| *only != format!("{canary:?}")) {
            continue;
        }
        let found = (0..SEEDS_MAX).find_map(|seed| finds(canary, seed).map(|found| (seed, found)));
        match found {
            Some((seed, found)) => println!("{canary:?}: found by seed {seed}: {found}"),
            None => lost.push(canary),
        }
    }
    assert_eq!(lost, Vec::new(), "not found within {SEEDS_MAX} seeds");
}
