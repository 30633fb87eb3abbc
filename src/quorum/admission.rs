//! How many requests of clients a node takes at a time.
//!
//! Rules:
//! 1. The limit follows the *standing* queue: the least time that anything waited, over a window. A burst that is worked
//!    off within a window is no overload (CoDel, Nichols and Jacobson 2012); a queue that never empties is, however
//!    short the service time.
//! 2. While that is over the target, the limit falls by a fifth of what was really under way, if that was more than the
//!    least: few requests make no queue. While it is below half the target the limit grows by a tenth, used or not, so
//!    that a node which was busy once takes a burst like any other. Between the two it stays.
//! 3. When more than half of what ended in a window, and more than a few, took over a quarter of its time, the limit is
//!    halved, whatever the queues say: work may wait where nobody looks, as at a peer. It keeps what the window did
//!    well, so that those who came before don't take it down with them. It does not grow while more than an eighth did:
//!    it would come to where it is halved, and the latest of what was taken on the way would miss their deadlines.
//! 4. It never leaves its bounds.
//! 5. A key that everybody wants leaves room for the others: past half the limit one that has its share of that half
//!    under way is refused ([`KeyShares`]).
//!
//! Why so: past its capacity a node that takes everything makes everyone wait for the others until all deadlines have
//! passed. One that takes what it can do, and refuses the rest at once, does as much as at its best.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::limits::{ADMISSION_DELAY, KEY_REQUESTS_AT_LEAST, LATE_AT_LEAST, REQUESTS_AT_LEAST};

/// What was seen in a window of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// The least time that work waited before it was begun.
    pub least_delay: Duration,
    /// The most requests that were under way at a time.
    pub most_under_way: usize,
    /// Requests that ended.
    pub ended: usize,
    /// Of them, those that took over a quarter of their time.
    pub late: usize,
    /// Of them, those that ended well.
    pub well: usize,
}

/// The limit.
#[derive(Debug, Clone)]
pub struct Limiter {
    limit: usize,
    most: usize,
}

impl Limiter {
    /// A limit that begins at `most`, and never passes it.
    pub fn new(most: usize) -> Limiter {
        Limiter { limit: most, most }
    }

    /// Requests that may be under way now.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Learns from a window; returns the limit for the next.
    pub fn learn(&mut self, window: Window) -> usize {
        let used = window.most_under_way.min(self.limit);
        if window.late > (window.ended / 2).max(LATE_AT_LEAST) {
            self.limit = (used / 2).max(window.well.min(used));
        } else if window.least_delay > ADMISSION_DELAY && used > REQUESTS_AT_LEAST {
            self.limit = used - used / 5;
        } else if window.least_delay < ADMISSION_DELAY / 2 && window.late <= window.ended / 8 {
            self.limit += (self.limit / 10).max(8);
        }
        self.limit = self.limit.clamp(REQUESTS_AT_LEAST.min(self.most), self.most);
        self.limit
    }
}

/// Requests under way by key.
///
/// Half of the limit is for whoever comes. In the other half a key has its share: that half by the number of keys under
/// way, and never less than a sixteenth of the limit, since two requests for one key at a time make it no hot one.
#[derive(Debug, Clone, Default)]
pub struct KeyShares {
    by: BTreeMap<u64, usize>,
}

impl KeyShares {
    /// Counts a request for `key` in, unless the key has its share; `others` requests are under way besides.
    pub fn enter(&mut self, key: u64, others: usize, limit: usize) -> bool {
        let mine = self.by.get(&key).copied().unwrap_or(0);
        let keys = self.by.len() + usize::from(mine == 0);
        let share = (limit / 2 / keys).max(limit / 16).max(KEY_REQUESTS_AT_LEAST);
        if others >= limit / 2 && mine >= share {
            return false;
        }
        self.by.insert(key, mine + 1);
        true
    }

    /// A request for `key` has ended.
    pub fn leave(&mut self, key: u64) {
        match self.by.get_mut(&key) {
            Some(mine) if *mine > 1 => *mine -= 1,
            _ => drop(self.by.remove(&key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that works off `speed` requests in a window of 100 ms; clients offer so many in each. What is taken and
    /// not done waits. Returns how much it did in the second half, and the longest wait then, in milliseconds.
    fn node(speed: usize, offered: usize, windows: usize) -> (usize, usize) {
        let (mut limiter, mut waiting) = (Limiter::new(8_192), 0usize);
        let (mut did, mut longest) = (0, 0);
        for window in 0..windows {
            // As work is done room comes free.
            let taken = offered.min((limiter.limit() + speed).saturating_sub(waiting));
            let all = waiting + taken;
            let left = all.saturating_sub(speed);
            let wait_ms = waiting * 100 / speed;
            if window >= windows / 2 {
                did += all.min(speed);
                longest = longest.max(wait_ms);
            }
            let under_way = left.max(all.min(speed) / 10);
            waiting = left;
            let least_delay = Duration::from_millis(u64::try_from(wait_ms).expect("small"));
            limiter.learn(Window { least_delay, most_under_way: under_way, ..Window::default() });
        }
        (did, longest)
    }

    #[test]
    fn at_three_times_its_capacity_a_node_does_as_much_as_ever() {
        let (best, _) = node(1_000, 1_000, 400);
        let (did, longest) = node(1_000, 3_000, 400);
        assert!(did * 100 >= best * 95, "{did} of {best}");
        assert!(longest <= 100, "{longest} ms");
    }

    #[test]
    fn a_quiet_node_keeps_its_limit_and_a_busy_one_gets_it_back() {
        let mut limiter = Limiter::new(8_192);
        for _ in 0..100 {
            let window = Window { most_under_way: 10, ..Window::default() };
            assert_eq!(limiter.learn(window), 8_192);
        }
        for _ in 0..100 {
            let most_under_way = limiter.limit();
            limiter.learn(Window { least_delay: ADMISSION_DELAY * 3, most_under_way, ..Window::default() });
        }
        assert_eq!(limiter.limit(), REQUESTS_AT_LEAST);
        for _ in 0..100 {
            let most_under_way = limiter.limit();
            limiter.learn(Window { most_under_way, ..Window::default() });
        }
        assert_eq!(limiter.limit(), 8_192);
        // When it is quiet again, it is as it was.
        let slow = Window { least_delay: ADMISSION_DELAY * 3, most_under_way: 150, ..Window::default() };
        assert_eq!(limiter.learn(slow), REQUESTS_AT_LEAST);
        let few = Window { most_under_way: 3, ..slow };
        let quiet = Window { most_under_way: 3, ..Window::default() };
        assert_eq!((0..100).map(|_| limiter.learn(quiet)).last(), Some(8_192));
        assert_eq!(limiter.learn(few), 8_192, "three requests make no queue");
        let mut small = Limiter::new(4);
        let slow = Window { least_delay: ADMISSION_DELAY * 3, most_under_way: 4, ..Window::default() };
        assert_eq!(small.learn(slow), 4);
    }

    #[test]
    fn requests_that_are_late_halve_the_limit_but_for_what_is_done_well() {
        let mut limiter = Limiter::new(8_192);
        let late = Window { most_under_way: 9_000, ended: 260, late: 200, well: 150, ..Window::default() };
        let limits: Vec<usize> = (0..8).map(|_| limiter.learn(late)).collect();
        assert_eq!(limits, [4_096, 2_048, 1_024, 512, 256, 150, 150, 150]);
        // One that had a millisecond says nothing, on a quiet node (it would cut the limit to the least).
        let mut quiet = Limiter::new(8_192);
        assert_eq!(quiet.learn(Window { most_under_way: 1, ended: 1, late: 1, ..Window::default() }), 8_192);
        // More than a few are late: it stays. A few that hang on a dead peer are no overload; and what has not ended says
        // nothing.
        let some = Window { most_under_way: 150, ended: 260, late: 100, well: 160, ..Window::default() };
        assert_eq!(limiter.learn(some), 150);
        let few = Window { late: 30, ..some };
        assert!(limiter.learn(few) > 150);
        assert!(limiter.learn(Window { most_under_way: 200, ..Window::default() }) >= 150);
    }

    /// Lets in what it can of `offered` requests for each of some keys, in turns, on top of those under way.
    fn offer(shares: &mut KeyShares, offered: &mut BTreeMap<u64, usize>, limit: usize) {
        while !offered.is_empty() {
            offered.retain(|key, count| {
                let all: usize = shares.by.values().sum();
                *count -= 1;
                all < limit && shares.enter(*key, all, limit) && *count > 0
            });
        }
    }

    #[test]
    fn a_hot_key_has_half_the_limit_and_others_find_room() {
        for limit in [32, 100, 8_192] {
            let mut shares = KeyShares::default();
            offer(&mut shares, &mut BTreeMap::from([(7, 3 * limit)]), limit);
            assert_eq!(shares.by[&7], limit / 2, "alone");
            // Ten others find room, though it goes on.
            let mut offered: BTreeMap<u64, usize> = (100..110).map(|key| (key, 2)).collect();
            offered.insert(7, 3 * limit);
            offer(&mut shares, &mut offered, limit);
            assert!((100..110).all(|key| shares.by[&key] >= 1), "{:?}", shares.by);
            assert_eq!(shares.by[&7], limit / 2);
        }
    }

    #[test]
    fn keys_that_are_all_alike_have_the_whole_limit() {
        let mut shares = KeyShares::default();
        offer(&mut shares, &mut (0..100).map(|key| (key, 100)).collect(), 1_000);
        assert_eq!(shares.by.values().sum::<usize>(), 1_000);
        // Two at a time of one key, of very many: no hot key.
        let mut shares = KeyShares::default();
        offer(&mut shares, &mut (0..16).map(|key| (key, 2)).collect(), 32);
        assert!(shares.by.values().all(|count| *count == 2));
    }

    #[test]
    fn what_has_ended_is_forgotten() {
        let mut shares = KeyShares::default();
        assert!(shares.enter(1, 0, 8) && shares.enter(1, 1, 8) && shares.enter(2, 2, 8));
        (0..2).for_each(|_| shares.leave(1));
        shares.leave(2);
        shares.leave(2);
        assert!(shares.by.is_empty());
    }
}
