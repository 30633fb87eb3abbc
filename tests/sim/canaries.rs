//! Canaries: bugs that are planted (`src/canary.rs`), each of which the swarm must find, by the checker whose
//! guarantee it breaks: what one checker misses another may find, and nobody would notice (F29).
//!
//! The short form begins with the seed that is known to find each; a change of the product may have drawn it
//! another scenario, then it plays seeds from 0 until one finds it, at most 500, and says which. The long form does
//! that for those too whose seed is not known; `QUORAL_SIM_CANARY=<name>` for one alone.

use quoral::canary::Canary;

use crate::swarm;

/// Seeds after which a canary that was not found is a hole in the checks.
const SEEDS_MAX: u64 = 500;

/// The rule that each canary breaks, and the first seed that shows it, as the long form says it; none if it
/// is not known for the scenarios as they are drawn now. Stamps go back over a restart only if no other node has
/// heard of the later ones, for which the median of clocks probably leaves too little time; a stale map is soon
/// replaced by a newer one.
const CANARIES: [(Canary, &str, Option<u64>); 15] = [
    (Canary::AckBeforeSync, "G1", Some(0)),
    (Canary::UnsyncedRead, "G3", None),
    (Canary::NotFoundWins, "G2", Some(18)),
    (Canary::WriteBackOff, "G3", None),
    (Canary::SupersededIgnored, "G4", None),
    (Canary::ClockBoundForgotten, "F13", None),
    (Canary::DotTwice, "G1", Some(1)),
    (Canary::TombstoneDropped, "G5", Some(0)),
    (Canary::ForwardRetried, "G8", Some(0)),
    (Canary::FailureSaidNo, "G8", Some(0)),
    (Canary::DeadlineIgnored, "G8", Some(0)),
    (Canary::SiblingForgotten, "G1", Some(0)),
    (Canary::VotesIgnored, "F23", Some(23)),
    (Canary::StaleMap, "F23", None),
    (Canary::BytesLeaked, "G9", Some(0)),
];
/// How many of them a test must find.
const FOUND_MIN: usize = 8;

/// Plays a seed with a planted bug: the first finding under the rule.
fn finds(canary: Canary, rule: &str, seed: u64) -> Option<String> {
    let report = std::panic::catch_unwind(|| swarm::run(seed, Some(canary))).ok()?;
    report.wrong.iter().find(|finding| finding.rule == rule).map(|finding| finding.to_string())
}

fn has_canaries() -> bool {
    let has = cfg!(any(debug_assertions, quoral_canaries));
    if !has {
        eprintln!("SKIPPED: this build has no canaries; it needs --cfg quoral_canaries, see docs/testing.md");
    }
    has
}

/// The first seed that finds a canary, at most [`SEEDS_MAX`], with what it found.
fn first_find(canary: Canary, rule: &str) -> Option<(u64, String)> {
    (0..SEEDS_MAX).find_map(|seed| finds(canary, rule, seed).map(|found| (seed, found)))
}

/// Each canary whose seed is known is found.
#[test]
fn canaries_are_found() {
    assert!(Canary::ALL.iter().all(|canary| CANARIES.iter().any(|(known, ..)| known == canary)));
    if !has_canaries() {
        return;
    }
    let known: Vec<_> =
        CANARIES.into_iter().filter_map(|(canary, rule, seed)| Some((canary, rule, seed?))).collect();
    assert!(known.len() >= FOUND_MIN, "{known:?}");
    for (canary, rule, seed) in known {
        let found = finds(canary, rule, seed).map(|found| (seed, found)).or_else(|| first_find(canary, rule));
        let Some((by, found)) = found else {
            panic!("{canary:?} breaks {rule}, and none of {SEEDS_MAX} seeds finds it any more")
        };
        println!("{canary:?}, seed {by}: {found}");
    }
}

/// Each canary is found within 500 seeds. Long: see docs/testing.md.
#[test]
#[ignore = "long: it plays hundreds of scenarios"]
fn canaries_are_found_within_500_seeds() {
    if !has_canaries() {
        return;
    }
    let only = std::env::var("QUORAL_SIM_CANARY").ok();
    let wanted = |canary: Canary| only.as_ref().is_none_or(|only| *only == format!("{canary:?}"));
    let mut lost = Vec::new();
    for (canary, rule, _) in CANARIES.into_iter().filter(|(canary, ..)| wanted(*canary)) {
        match first_find(canary, rule) {
            Some((seed, found)) => println!("{canary:?}: found by seed {seed}: {found}"),
            None => {
                println!("{canary:?}: not found within {SEEDS_MAX} seeds");
                lost.push(canary);
            }
        }
    }
    assert_eq!(lost, Vec::new(), "not found within {SEEDS_MAX} seeds");
}
