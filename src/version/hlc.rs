//! The hybrid logical clock that stamps versions (Kulkarni et al. 2014).
//!
//! A stamp is 64 bits: 48 of milliseconds, 16 of counter. A clock never issues a stamp at or above its
//! *bound* before the bound is durable, and starts at its bound, so it does not go backwards over a restart
//! (F13). It follows the stamps of others, but refuses one that is further ahead of the wall clock than
//! the skew allowed (F17).
//!
//! Invariants:
//! 1. Each issued stamp is greater than every stamp issued or observed before.
//! 2. Each issued stamp is below the bound that was last handed out.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::limits::CLOCK_LEASE;
use crate::types::time::WallMs;

/// A point in hybrid logical time: `milliseconds << 16 | counter`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Stamp(pub u64);

const COUNTER_BITS: u32 = 16;

impl Stamp {
    /// The first stamp of a millisecond.
    pub fn at(wall: WallMs) -> Stamp {
        Stamp(wall.0.min(u64::MAX >> COUNTER_BITS) << COUNTER_BITS)
    }

    /// The millisecond.
    pub fn wall(self) -> WallMs {
        WallMs(self.0 >> COUNTER_BITS)
    }

    /// The least stamp above this one.
    pub fn next(self) -> Stamp {
        Stamp(self.0.saturating_add(1))
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> COUNTER_BITS, self.0 & 0xffff)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A stamp of another node that is too far ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stamp {stamp} is {ahead_ms} ms ahead of this node's clock, over the limit of {limit_ms} ms")]
pub struct TooFarAhead {
    /// The stamp.
    pub stamp: Stamp,
    /// How far it is ahead of the wall clock.
    pub ahead_ms: u64,
    /// `max_clock_skew`.
    pub limit_ms: u64,
}

/// A node's clock.
#[derive(Debug, Clone)]
pub struct Hlc {
    last: Stamp,
    bound: Stamp,
    max_skew_ms: u64,
}

/// A stamp, and the bound that must be durable before the stamp leaves the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Issued {
    /// The stamp.
    pub stamp: Stamp,
    /// A new bound to store with (or before) what carries the stamp.
    pub new_bound: Option<Stamp>,
}

impl Hlc {
    /// A clock that starts at the durable bound of the last run (`Stamp(0)` for a new one).
    pub fn new(durable_bound: Stamp, max_skew: Duration) -> Hlc {
        let max_skew_ms = u64::try_from(max_skew.as_millis()).unwrap_or(u64::MAX);
        Hlc { last: durable_bound, bound: durable_bound, max_skew_ms }
    }

    /// The greatest stamp issued or observed.
    pub fn last(&self) -> Stamp {
        self.last
    }

    /// Issues a stamp above all that were issued or observed, and above `floor`: the stamp of one key's version,
    /// which is refused if it is too far ahead. Else one key with a stamp from a clock that once jumped would
    /// pull this clock, and with it the stamps of all keys, as far ahead.
    pub fn issue(&mut self, now: WallMs, floor: Stamp) -> Result<Issued, TooFarAhead> {
        self.check(now, floor)?;
        Ok(self.take(Stamp::at(now).max(self.last.next()).max(floor.next())))
    }

    /// Forgets how far the durable bound is: what should have stored it was not written. The next stamp comes
    /// with a new bound.
    pub fn forget_bound(&mut self) {
        self.bound = self.last;
    }

    fn take(&mut self, stamp: Stamp) -> Issued {
        self.last = stamp;
        if stamp < self.bound {
            return Issued { stamp, new_bound: None };
        }
        let lease_ms = u64::try_from(CLOCK_LEASE.as_millis()).unwrap_or(0);
        self.bound = Stamp::at(WallMs(stamp.wall().0 + lease_ms)).max(stamp.next());
        Issued { stamp, new_bound: Some(self.bound) }
    }

    /// Refuses a stamp that is further ahead than the skew allowed: of `now`, or of the last stamp where that is
    /// itself further ahead of `now`.
    pub fn check(&self, now: WallMs, stamp: Stamp) -> Result<(), TooFarAhead> {
        let last = self.last.wall();
        let was_ahead = last.0.saturating_sub(now.0) > self.max_skew_ms;
        let ahead_ms = stamp.wall().0.saturating_sub(if was_ahead { last.0 } else { now.0 });
        if ahead_ms > self.max_skew_ms {
            return Err(TooFarAhead { stamp, ahead_ms, limit_ms: self.max_skew_ms });
        }
        Ok(())
    }

    /// Follows a stamp of another node; refuses one that is too far ahead and stays as it was.
    pub fn observe(&mut self, now: WallMs, stamp: Stamp) -> Result<(), TooFarAhead> {
        self.check(now, stamp)?;
        self.last = self.last.max(stamp);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::limits::CLOCK_SKEW_DEFAULT;
    use proptest::prelude::*;

    fn clock(bound: Stamp) -> Hlc {
        Hlc::new(bound, CLOCK_SKEW_DEFAULT)
    }

    #[test]
    fn stamps_follow_the_wall_clock_and_never_repeat() {
        let mut c = clock(Stamp(0));
        let a = c.issue(WallMs(1_000), Stamp(0)).expect("not ahead").stamp;
        let b = c.issue(WallMs(1_000), Stamp(0)).expect("not ahead").stamp;
        assert_eq!(a, Stamp::at(WallMs(1_000)));
        assert_eq!(b, a.next());
        assert!(
            c.issue(WallMs(900), Stamp(0)).expect("not ahead").stamp > b,
            "a clock that steps back does not"
        );
    }

    /// F13: over a restart the clock starts above everything that it issued, whatever the wall clock says.
    #[test]
    fn f13_the_bound_survives_a_restart() {
        let mut c = clock(Stamp(0));
        let mut durable = Stamp(0);
        let mut last = Stamp(0);
        for ms in [1_000, 1_001, 1_150, 1_199, 1_200, 1_500] {
            let issued = c.issue(WallMs(ms), Stamp(0)).expect("not ahead");
            durable = issued.new_bound.unwrap_or(durable);
            last = issued.stamp;
            assert!(last < durable);
        }
        let mut again = clock(durable);
        assert!(
            again.issue(WallMs(1_490), Stamp(0)).expect("not ahead").stamp > last,
            "the clock stepped back"
        );
    }

    /// F17: a stamp far in the future is refused and does not move the clock.
    #[test]
    fn f17_a_stamp_far_ahead_is_refused() {
        let mut c = clock(Stamp(0));
        let far = Stamp::at(WallMs(10_000_000));
        let refused = c.observe(WallMs(1_000), far).expect_err("far ahead");
        assert_eq!(refused.limit_ms, 500);
        assert!(c.issue(WallMs(1_000), Stamp(0)).expect("not ahead").stamp < far);
        assert!(c.observe(WallMs(1_000), Stamp::at(WallMs(1_500))).is_ok());
        assert!(c.observe(WallMs(1_000), Stamp::at(WallMs(1_501))).is_err());
    }

    /// A clock that was an hour ahead and is set right goes on at once, and so do those that were ahead with it.
    #[test]
    fn a_clock_that_was_ahead_goes_on_from_its_last_stamp() {
        let (ahead, now) = (WallMs(3_600_000), WallMs(5_000));
        let (mut one, mut other) = (clock(Stamp(0)), clock(Stamp(0)));
        let first = one.issue(ahead, Stamp(0)).expect("not ahead").stamp;
        other.issue(WallMs(ahead.0 + 300), Stamp(0)).expect("not ahead");
        let second = one.issue(now, Stamp(0)).expect("its own last stamp is no reason to refuse").stamp;
        assert_eq!(second, first.next());
        let from_other = other.issue(now, second).expect("not ahead of its last").stamp;
        assert_eq!(one.observe(now, from_other), Ok(()));
        assert_eq!(one.issue(now, from_other).expect("a key's version from then").stamp, from_other.next());
        let far = Stamp::at(WallMs(ahead.0 + 300 + 501));
        assert_eq!(one.observe(now, far).expect_err("further ahead than the skew").ahead_ms, 501);
    }

    /// F17: one key's stamp from the far future is refused, and does not pull the clock along.
    #[test]
    fn f17_a_floor_far_ahead_is_refused_and_moves_nothing() {
        let mut c = clock(Stamp(0));
        let far = Stamp::at(WallMs(10_000_000));
        assert_eq!(c.issue(WallMs(1_000), far).expect_err("far ahead").limit_ms, 500);
        assert_eq!(c.issue(WallMs(1_000), Stamp(0)).expect("not ahead").stamp, Stamp::at(WallMs(1_000)));
    }

    proptest! {
        /// Whatever stamps come, and however often, they pull a clock whose wall clock is right no further ahead
        /// of it than the skew.
        #[test]
        fn f17_no_stamps_of_others_pull_the_clock_further_than_the_skew(
            stamps in proptest::collection::vec((0u64..20_000, 0u64..30, proptest::bool::ANY), 1..200)
        ) {
            let (mut c, mut now) = (clock(Stamp(0)), 10_000);
            for (ms, step, floor) in stamps {
                now += step;
                let stamp = Stamp::at(WallMs(ms + step));
                let _ = if floor { c.issue(WallMs(now), stamp).map(|_| ()) } else { c.observe(WallMs(now), stamp) };
                prop_assert!(c.last().wall().0 <= now + 500, "{:?} at {}", c.last(), now);
            }
        }

        #[test]
        fn issued_stamps_grow_and_stay_below_the_bound(walls in proptest::collection::vec(0u64..5_000, 1..80)) {
            let mut c = clock(Stamp(0));
            let mut bound = Stamp(0);
            let mut last = None;
            for wall in walls {
                if wall % 3 == 0 {
                    let _ = c.observe(WallMs(wall), Stamp::at(WallMs(wall + 300)));
                }
                let Ok(issued) = c.issue(WallMs(wall), Stamp(0)) else { continue };
                bound = issued.new_bound.unwrap_or(bound);
                prop_assert!(Some(issued.stamp) > last);
                prop_assert!(issued.stamp < bound);
                last = Some(issued.stamp);
            }
        }
    }
}
