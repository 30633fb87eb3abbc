//! Canaries: bugs that are planted (`src/canary.rs`), each of which the swarm must find, by the checker whose
//! guarantee it breaks: what one checker misses another may find, and nobody would notice (F29).
//!
//! The short form begins with the seed that is known to find each; a change of the product may have drawn it
//! another scenario, then it plays seeds from 0 until one finds it, at most 500, and says which. The long form does
//! that for all; `QUORAL_SIM_CANARY=<name>` for one alone.

use quoral::canary::Canary;

use crate::draw::{Draw, Habit, draw};
use crate::swarm;

/// Seeds after which a canary that was not found is a hole in the checks.
const SEEDS_MAX: u64 = 500;

/// The rule that each canary breaks, and a seed that shows it; none for one that no seed shows as scenarios are drawn
/// now: a scenario made by hand does (`a_power_cut_takes_nothing_that_was_read`,
/// `f04_an_old_write_that_comes_after_the_purge_is_not_taken`).
const CANARIES: [(Canary, &str, Option<u64>); 26] = [
    (Canary::AckBeforeSync, "G1", Some(36)),
    (Canary::UnsyncedRead, "G3", None),
    (Canary::NotFoundWins, "G2", Some(92)),
    (Canary::WriteBackOff, "G3", Some(155)),
    (Canary::SupersededIgnored, "G4", Some(4)),
    (Canary::ClockBoundForgotten, "F13", Some(36)),
    (Canary::DotTwice, "G1", Some(1)),
    (Canary::TombstoneDropped, "G5", Some(3)),
    (Canary::ForwardRetried, "G8", Some(3)),
    (Canary::FailureSaidNo, "G8", Some(1)),
    (Canary::DeadlineIgnored, "G8", Some(3)),
    (Canary::SiblingForgotten, "G1", Some(1)),
    (Canary::VotesIgnored, "F23", Some(35)),
    (Canary::StaleMap, "F23", Some(12)),
    (Canary::BytesLeaked, "G9", Some(1)),
    (Canary::HintDropped, "G7", Some(0)),
    (Canary::KeyspaceIdReused, "G8", Some(0)),
    (Canary::SessionForgotten, "G3", Some(45)),
    (Canary::PurgedUnasked, "G5", Some(47)),
    (Canary::PurgedAtOnce, "G5", Some(57)),
    (Canary::PurgedBlindly, "G5", Some(29)),
    (Canary::HintNeverTooOld, "G5", None),
    (Canary::ExchangeOneWay, "G7", Some(7)),
    (Canary::RecordForgotten, "G7", Some(7)),
    (Canary::LostDiskAnswers, "G2", Some(63)),
    (Canary::ExpiryForgotten, "G5", Some(30)),
];

/// Plays a seed with a planted bug: the first finding under the rule.
fn finds(canary: Canary, rule: &str, seed: u64) -> Option<String> {
    let report = std::panic::catch_unwind(|| swarm::run(seed, Some(canary))).ok()?;
    report.wrong.iter().find(|finding| finding.rule == rule).map(|finding| finding.to_string())
}

/// Whether this build has them; says so if not.
pub fn has_canaries() -> bool {
    let has = cfg!(any(debug_assertions, quoral_canaries));
    if !has {
        eprintln!("SKIPPED: this build has no canaries; it needs --cfg quoral_canaries, see docs/testing.md");
    }
    has
}

/// Whether a scenario has what a canary that few show is known to need: the others are not played for it.
fn may_show(canary: Canary, draw: &Draw) -> bool {
    match canary {
        // A read writes back what it found: only one that asks a single replica rests on a copy that may be lost.
        Canary::UnsyncedRead => {
            (draw.mix.slow_disks || draw.mix.blackouts) && draw.setup.spaces.iter().any(|space| space.n == 1)
        }
        Canary::WriteBackOff => draw.habit == Habit::Reload,
        Canary::SupersededIgnored => draw.habit == Habit::Twice,
        Canary::ClockBoundForgotten => draw.mix.clocks_back && draw.keys > 1,
        Canary::KeyspaceIdReused => draw.more.lives,
        Canary::SessionForgotten => draw.setup.spaces.iter().any(|space| space.r + space.w <= space.n),
        Canary::StaleMap => draw.habit == Habit::Tenants,
        Canary::PurgedUnasked | Canary::PurgedAtOnce | Canary::PurgedBlindly | Canary::ExpiryForgotten => {
            draw.setup.upkeep.purge.is_some()
        }
        Canary::ExchangeOneWay | Canary::RecordForgotten => !draw.setup.upkeep.read_repair,
        Canary::LostDiskAnswers => draw.mix.lost_disk,
        _ => true,
    }
}

/// The first seed that finds a canary, at most [`SEEDS_MAX`], with what it found.
fn first_find(canary: Canary, rule: &str) -> Option<(u64, String)> {
    let may = |seed: &u64| may_show(canary, &draw(*seed, None));
    (0..SEEDS_MAX).filter(may).find_map(|seed| finds(canary, rule, seed).map(|found| (seed, found)))
}

/// Each canary is found.
#[test]
fn canaries_are_found() {
    assert!(Canary::ALL.iter().all(|canary| CANARIES.iter().any(|(known, ..)| known == canary)));
    if !has_canaries() {
        return;
    }
    let mut lost = Vec::new();
    for (canary, rule, seed) in CANARIES {
        let Some(seed) = seed else { continue };
        let found = finds(canary, rule, seed).map(|found| (seed, found)).or_else(|| first_find(canary, rule));
        match found {
            Some((by, found)) => println!("{canary:?}, seed {by}: {found}"),
            None => lost.push((canary, rule)),
        }
    }
    assert_eq!(lost, Vec::new(), "none of {SEEDS_MAX} seeds finds these any more");
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
