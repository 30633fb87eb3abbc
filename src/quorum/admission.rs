//! How many requests of clients a node takes at a time.
//!
//! Rules:
//! 1. The limit follows the *standing* queue: the least time that anything waited, over a window. A burst that is worked
//!    off within a window is no overload (CoDel, Nichols and Jacobson 2012); a queue that never empties is, however
//!    short the service time.
//! 2. While that is over the target, the limit falls by a fifth of what was really under way. While it is below half
//!    the target and the limit was nearly reached, it grows by a tenth. Between the two it stays.
//! 3. It never leaves its bounds.
//!
//! Why so: past its capacity a node that takes everything makes everyone wait for the others until all deadlines have
//! passed. One that takes what it can do, and refuses the rest at once, does as much as at its best.

use std::time::Duration;

use crate::types::limits::{ADMISSION_DELAY, REQUESTS_AT_LEAST};

/// What was seen in a window of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// The least time that work waited before it was begun.
    pub least_delay: Duration,
    /// The most requests that were under way at a time.
    pub most_under_way: usize,
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
        if window.least_delay > ADMISSION_DELAY {
            self.limit = used - used / 5;
        } else if window.least_delay < ADMISSION_DELAY / 2 && used >= self.limit - self.limit / 4 {
            self.limit += (self.limit / 10).max(8);
        }
        self.limit = self.limit.clamp(REQUESTS_AT_LEAST.min(self.most), self.most);
        self.limit
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
            limiter.learn(Window { least_delay, most_under_way: under_way });
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
            assert_eq!(limiter.learn(Window { least_delay: Duration::ZERO, most_under_way: 10 }), 8_192);
        }
        for _ in 0..100 {
            let most_under_way = limiter.limit();
            limiter.learn(Window { least_delay: ADMISSION_DELAY * 3, most_under_way });
        }
        assert_eq!(limiter.limit(), REQUESTS_AT_LEAST);
        for _ in 0..100 {
            let most_under_way = limiter.limit();
            limiter.learn(Window { least_delay: Duration::ZERO, most_under_way });
        }
        assert_eq!(limiter.limit(), 8_192);
        let mut small = Limiter::new(4);
        assert_eq!(small.learn(Window { least_delay: ADMISSION_DELAY * 3, most_under_way: 4 }), 4);
    }
}
