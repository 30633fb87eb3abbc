//! What the cluster's clocks say together: the bounds within which this node's own wall clock is believed.
//!
//! A wall clock that jumps by an hour makes a node useless, or worse: its stamps are refused by all, and what it
//! stored under them can't be written over for that hour. So a node that hears at least two others keeps to
//! within half the skew allowed of the median of all clocks, its own included. While fewer than half of the
//! clocks are wrong, the median lies between two right ones.
//!
//! Others' clocks are kept as their distance from the own *monotonic* clock, so that a jump of the own wall
//! clock is seen at once. It has two parts. How far a peer's monotonic clock is from the own one: a message that
//! was long under way makes it look behind, never ahead, so the greatest distance of the last seconds is the best
//! (as in NTP's clock filter). And how far the peer's wall clock is from its monotonic one, which no delay
//! changes: the last word counts, so that a clock that jumped, or was set right, is seen with the next message.
//! Were the wall clocks themselves filtered, a clock would seem wrong for seconds after it was set right, and two
//! that were wrong one after the other would be a majority.
//!
//! Invariants:
//! 1. With fewer than three clocks the own one is believed: of two nobody knows which is wrong.
//! 2. A peer that has been silent for two windows counts no more.
//! 3. What is known of how far a peer's monotonic clock is outlasts a silence of its live link: only a process that
//!    was frozen, this one, finds one, and what it reads first then is old.
//! 4. Monotonic clocks begin anew with each process: whoever hears of a new connection calls [`Median::forget`].
//!
//! It sets no clock, and says nothing of expiry that the caller does not ask with.

use std::collections::BTreeMap;

use crate::types::ids::NodeId;
use crate::types::time::{Mono, WallMs};

/// How long the greatest distance of a peer's clock is kept, at least; at most twice that.
const WINDOW_US: u64 = 5_000_000;
/// How far two monotonic clocks may drift apart in such a time, in milliseconds: 600 parts in a million.
const DRIFT_MS: u64 = 3;

/// What is known of a peer's clocks, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Heard {
    window: u64,
    /// How far its monotonic clock is ahead of the own one: the greatest distance of this window.
    now: i64,
    /// And of the window before.
    before: Option<i64>,
    /// How far its wall clock is ahead of its monotonic one.
    ahead: i64,
}

impl Heard {
    /// How far its monotonic clock is ahead of the own one.
    fn distance(&self) -> i64 {
        self.now.max(self.before.unwrap_or(i64::MIN))
    }
}

/// The clocks of the nodes that were heard of late.
#[derive(Debug, Clone, Default)]
pub struct Median {
    heard: BTreeMap<NodeId, Heard>,
}

fn ms(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Median {
    /// Notes what a peer's clocks said in a message that came at `at`.
    pub fn heard(&mut self, from: NodeId, wall: WallMs, up: Mono, at: Mono) {
        let distance = ms(up.0 / 1_000).saturating_sub(ms(at.0 / 1_000));
        let ahead = ms(wall.0).saturating_sub(ms(up.0 / 1_000));
        let window = at.0 / WINDOW_US;
        let next = match self.heard.get(&from) {
            Some(old) if old.window == window => Heard { now: old.now.max(distance), ahead, ..*old },
            Some(old) if old.window + 1 == window => {
                Heard { window, now: distance, before: Some(old.now), ahead }
            }
            Some(old) => {
                let drift = ms(window.saturating_sub(old.window).saturating_mul(DRIFT_MS));
                Heard { window, now: distance, before: Some(old.distance().saturating_sub(drift)), ahead }
            }
            None => Heard { window, now: distance, before: None, ahead },
        };
        self.heard.insert(from, next);
    }

    /// What a peer's monotonic clock says now, as far as it is known here: never more than it does, and less only by
    /// what its fastest message of late took.
    pub fn up(&self, from: NodeId, at: Mono) -> Option<Mono> {
        let distance = self.heard.get(&from)?.distance();
        let up = ms(at.0 / 1_000).saturating_add(distance);
        Some(Mono(u64::try_from(up).unwrap_or(0).saturating_mul(1_000)))
    }

    /// Forgets what a peer said.
    pub fn forget(&mut self, from: NodeId) {
        self.heard.remove(&from);
    }

    /// The median of the own clock and those heard of late, with how many they are.
    fn median(&self, own: WallMs, at: Mono) -> (i64, usize) {
        let window = at.0 / WINDOW_US;
        let fresh = self.heard.values().filter(|heard| heard.window + 1 >= window);
        let peers = fresh.map(|heard| heard.distance().saturating_add(heard.ahead));
        let mut clocks: Vec<i64> = peers.map(|distance| distance.saturating_add(ms(at.0 / 1_000))).collect();
        clocks.push(ms(own.0));
        clocks.sort_unstable();
        (clocks[(clocks.len() - 1) / 2], clocks.len())
    }

    /// The own clock, kept to within `limit_ms` of the median of three clocks or more.
    pub fn believe(&self, own: WallMs, at: Mono, limit_ms: u64) -> WallMs {
        let (median, clocks) = self.median(own, at);
        if clocks < 3 {
            return own;
        }
        let (low, high) = (median.saturating_sub(ms(limit_ms)), median.saturating_add(ms(limit_ms)));
        WallMs(u64::try_from(ms(own.0).clamp(low, high)).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: u64 = 250;
    const EPOCH: u64 = 1_700_000_000_000;

    fn at(seconds: u64) -> Mono {
        Mono(seconds * 1_000_000)
    }

    fn wall(seconds: u64) -> WallMs {
        WallMs(EPOCH + seconds * 1_000)
    }

    fn heard(clocks: &[(u64, WallMs)], when: Mono) -> Median {
        let mut median = Median::default();
        clocks.iter().for_each(|(node, wall)| median.heard(NodeId(*node), *wall, when, when));
        median
    }

    #[test]
    fn a_clock_that_jumps_is_held_near_the_others() {
        let median = heard(&[(2, wall(100)), (3, wall(100))], at(7));
        let believe = |own| median.believe(own, at(8), LIMIT);
        assert_eq!(believe(wall(101)), wall(101));
        assert_eq!(
            believe(WallMs(wall(101).0 + 200)),
            WallMs(wall(101).0 + 200),
            "within the skew: as it is"
        );
        assert_eq!(believe(wall(3_700)), WallMs(wall(101).0 + LIMIT));
        assert_eq!(believe(wall(0)), WallMs(wall(101).0 - LIMIT));
    }

    #[test]
    fn one_other_that_jumps_moves_nothing() {
        for wrong in [wall(0), wall(1_000_000)] {
            let median = heard(&[(2, wrong), (3, wall(100))], at(7));
            assert_eq!(median.believe(wall(100), at(7), LIMIT), wall(100));
        }
    }

    #[test]
    fn of_two_clocks_the_own_is_believed_and_silence_is_forgotten() {
        assert_eq!(heard(&[(2, wall(100))], at(7)).believe(wall(5_000), at(7), LIMIT), wall(5_000));
        let median = heard(&[(2, wall(100)), (3, wall(100))], at(7));
        assert_eq!(median.believe(wall(5_000), at(7 + 11), LIMIT), wall(5_000));
    }

    /// What was long under way makes a peer look behind; what came in time counts, until it is old.
    #[test]
    fn delays_are_filtered_and_steps_back_noticed() {
        let mut median = heard(&[(2, wall(100)), (3, wall(100))], at(16));
        for node in [2, 3] {
            median.heard(NodeId(node), wall(92), at(8), at(17));
        }
        assert_eq!(median.believe(wall(101), at(17), LIMIT), wall(101));
        for node in [2, 3] {
            median.heard(NodeId(node), wall(20), at(18), at(18));
        }
        assert_eq!(median.believe(wall(102), at(18), LIMIT), WallMs(wall(20).0 + LIMIT));
    }

    /// Two clocks that are wrong one after the other are never a majority.
    #[test]
    fn a_clock_that_was_set_right_is_right_with_the_next_message() {
        let mut median = heard(&[(2, wall(900)), (3, wall(100))], at(6));
        median.heard(NodeId(2), wall(101), at(7), at(7));
        median.heard(NodeId(3), wall(900), at(7), at(7));
        assert_eq!(median.believe(wall(101), at(7), LIMIT), wall(101));
    }

    #[test]
    fn a_new_process_counts_from_its_own_beginning() {
        let mut median = heard(&[(2, wall(100)), (3, wall(100))], at(7));
        for node in [2, 3] {
            median.forget(NodeId(node));
            median.heard(NodeId(node), wall(101), at(0), at(8));
        }
        assert_eq!(median.believe(wall(900), at(8), LIMIT), WallMs(wall(101).0 + LIMIT));
    }

    /// A process that was frozen reads old messages first: they neither put the clock back nor seem young.
    #[test]
    fn what_waited_for_a_frozen_process_is_known_to_be_old() {
        let mut median = heard(&[(2, wall(100)), (3, wall(100))], at(7));
        let own_up = |median: &Median, at| median.up(NodeId(2), at).expect("heard");
        assert_eq!(own_up(&median, at(8)), at(8));
        for node in [2, 3] {
            median.heard(NodeId(node), wall(101), at(8), at(68));
        }
        let now = own_up(&median, at(68));
        assert!(now <= at(68) && now + std::time::Duration::from_millis(100) > at(68), "{now}");
        let believed = median.believe(wall(161), at(68), LIMIT);
        assert_eq!(believed, wall(161), "not a minute ago");
        median.forget(NodeId(2));
        assert_eq!(median.up(NodeId(2), at(69)), None);
    }

    proptest! {
        /// While fewer than half of the clocks are wrong, what is believed is near a right one.
        #[test]
        fn a_minority_of_wrong_clocks_moves_nobody_far(
            wrong in proptest::collection::vec(0u64..10_000_000, 0..3),
            right in proptest::collection::vec(0u64..200, 3..6),
            own in 0u64..10_000_000,
        ) {
            let true_now = 5_000_000;
            let mut median = Median::default();
            let all = wrong.iter().copied().chain(right.iter().map(|r| true_now + r));
            for (node, wall) in all.enumerate() {
                median.heard(NodeId(node as u64 + 2), WallMs(wall), at(3), at(7));
            }
            // The own clock may be wrong too: then two wrong ones beside at least three right ones.
            prop_assume!(wrong.len() + 1 < right.len() || (own >= true_now && own < true_now + 200));
            let believed = median.believe(WallMs(own), at(7), LIMIT).0;
            prop_assert!(believed + LIMIT >= true_now && believed <= true_now + 200 + LIMIT, "{}", believed);
        }
    }
}
