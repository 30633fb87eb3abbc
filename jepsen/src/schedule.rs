//! Who breaks things when: the turns of a run's nemeses, from a seed, how many there are, and the time. Pure.
//!
//! First each nemesis has a turn of its own, then turns go on round, one nemesis at a time and now and then two, as
//! long as there is time. Before each turn it is quiet for a while. In a short run the first turns and the quiet
//! before them are made shorter, down to a least; when even that does not fit, there is no schedule.
//!
//! 1. Each nemesis is in at least one turn, alone.
//! 2. Turns do not overlap; each is at least [`LEAST_HARM`] long, with at least [`LEAST_QUIET`] before it.
//! 3. The last turn ends before the rest begins: what is left at the end shows recovery.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// The shortest calm before a turn.
pub const LEAST_QUIET: Duration = Duration::from_millis(500);
/// The shortest turn.
pub const LEAST_HARM: Duration = Duration::from_millis(2_000);
/// The shortest rest at the end.
pub const LEAST_REST: Duration = Duration::from_millis(2_000);
/// The longest rest.
const MOST_REST: Duration = Duration::from_secs(10);
/// Calm and harm when there is time, in milliseconds.
const QUIET_MS: std::ops::Range<u64> = 500..4_000;
const HARM_MS: std::ops::Range<u64> = 2_000..8_000;
/// How often two act at once.
const BOTH: f64 = 0.3;

/// One turn: the nemeses break things, and heal them later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// When they break things, counted from the beginning.
    pub at: Duration,
    /// When they heal them.
    pub until: Duration,
    /// Which: indexes into the list of nemeses.
    pub who: Vec<usize>,
    /// Whether it is the first of its nemesis: it is never left out, even on a machine that is behind.
    pub is_first: bool,
}

/// The least time that holds a turn of each of so many nemeses, in whole seconds.
#[must_use]
pub fn least(nemeses: usize) -> Duration {
    let turns = (LEAST_QUIET + LEAST_HARM) * u32::try_from(nemeses).unwrap_or(u32::MAX);
    let least = if nemeses == 0 { Duration::ZERO } else { turns + LEAST_REST };
    Duration::from_secs(least.as_secs() + u64::from(least.subsec_nanos() > 0))
}

/// The time at the end in which the nemeses rest.
fn rest(time: Duration) -> Duration {
    (time / 5).clamp(LEAST_REST, MOST_REST)
}

/// The turns of a run.
///
/// # Errors
///
/// The time can't hold a turn of each; the message names the least time.
pub fn turns(seed: u64, nemeses: usize, time: Duration) -> Result<Vec<Turn>, String> {
    if nemeses == 0 {
        return Ok(Vec::new());
    }
    if time < least(nemeses) {
        return Err(format!(
            "--time: {} s is too short for each of {nemeses} nemeses to have a turn: at least {} s",
            time.as_secs_f64(),
            least(nemeses).as_secs()
        ));
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let draw = |range: std::ops::Range<u64>, rng: &mut StdRng| Duration::from_millis(rng.random_range(range));
    let mut next = rng.random_range(0..nemeses);
    let firsts: Vec<[Duration; 2]> =
        (0..nemeses).map(|_| [draw(QUIET_MS, &mut rng), draw(HARM_MS, &mut rng)]).collect();
    // The rest gives way before a first turn does.
    let needed = (LEAST_QUIET + LEAST_HARM) * u32::try_from(nemeses).unwrap_or(u32::MAX);
    let budget = time.saturating_sub(rest(time)).max(needed);
    let drawn: Duration = firsts.iter().flatten().sum();
    // What is above the least shrinks to the share of it that fits; rounded down, so that it does fit.
    let (spare, wanted) = ((budget - needed).as_millis(), (drawn - needed).as_millis());
    let shorter = |long: Duration, least: Duration| {
        let kept = (long - least).as_millis() * spare.min(wanted) / wanted.max(1);
        least + Duration::from_millis(u64::try_from(kept).unwrap_or(u64::MAX))
    };
    let mut turns = Vec::new();
    let mut now = Duration::ZERO;
    for [quiet, harm] in firsts {
        let at = now + shorter(quiet, LEAST_QUIET);
        now = at + shorter(harm, LEAST_HARM);
        turns.push(Turn { at, until: now, who: vec![next], is_first: true });
        next = (next + 1) % nemeses;
    }
    loop {
        let (quiet, harm) = (draw(QUIET_MS, &mut rng), draw(HARM_MS, &mut rng));
        let many = if nemeses > 1 && rng.random_bool(BOTH) { 2 } else { 1 };
        let at = now + quiet;
        now = at + harm;
        if now > budget {
            return Ok(turns);
        }
        let who = (0..many).map(|more| (next + more) % nemeses).collect();
        turns.push(Turn { at, until: now, who, is_first: false });
        next = (next + many) % nemeses;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// All that the top of this file promises.
    fn check(turns: &[Turn], nemeses: usize, time: Duration) {
        let firsts: Vec<&Turn> = turns.iter().take_while(|turn| turn.is_first).collect();
        let mut alone: Vec<usize> = firsts.iter().flat_map(|turn| turn.who.clone()).collect();
        alone.sort_unstable();
        assert_eq!(alone, (0..nemeses).collect::<Vec<_>>(), "each has a turn, alone");
        assert!(turns[firsts.len()..].iter().all(|turn| !turn.is_first));
        let mut before = Duration::ZERO;
        for turn in turns {
            assert!(turn.at >= before + LEAST_QUIET, "{turn:?} after {before:?}");
            assert!(turn.until >= turn.at + LEAST_HARM, "{turn:?}");
            let mut who = turn.who.clone();
            who.dedup();
            assert_eq!(who, turn.who, "not twice the same");
            before = turn.until;
        }
        assert!(before + LEAST_REST <= time, "{before:?} of {time:?}");
    }

    #[test]
    fn each_has_a_turn_in_any_time_that_is_enough() {
        for nemeses in 1..=19 {
            let least = least(nemeses);
            for time in [least, least + SECOND, least * 2, Duration::from_secs(25), Duration::from_secs(600)]
            {
                for seed in 0..200 {
                    match turns(seed, nemeses, time) {
                        Ok(turns) => check(&turns, nemeses, time),
                        Err(_) => assert!(time < least, "{nemeses} in {time:?}"),
                    }
                }
            }
        }
    }

    #[test]
    fn three_fit_into_25_seconds() {
        for seed in 0..1_000 {
            check(&turns(seed, 3, SECOND * 25).expect("enough"), 3, SECOND * 25);
        }
    }

    #[test]
    fn too_short_a_time_is_refused_and_the_least_is_named() {
        assert_eq!(least(3), SECOND * 10);
        let refused = turns(1, 3, SECOND * 9).expect_err("too short");
        assert!(
            refused.contains("9 s") && refused.contains("3 nemeses") && refused.contains("10 s"),
            "{refused}"
        );
        assert!(turns(1, 3, SECOND * 10).is_ok());
        assert_eq!(turns(1, 0, Duration::ZERO), Ok(Vec::new()), "nobody needs no time");
    }

    #[test]
    fn a_long_run_has_many_turns_of_all_and_some_of_two() {
        let all: Vec<Turn> = (0..20).flat_map(|seed| turns(seed, 3, SECOND * 300).expect("enough")).collect();
        for which in 0..3 {
            assert!(all.iter().filter(|turn| turn.who.contains(&which)).count() > 20 * 8);
        }
        assert!(all.iter().any(|turn| turn.who.len() == 2));
        assert!(turns(4, 3, SECOND * 300) == turns(4, 3, SECOND * 300), "the seed decides");
        assert!(turns(4, 3, SECOND * 300) != turns(5, 3, SECOND * 300));
    }
}
