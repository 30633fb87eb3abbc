//! How fast hints come home, for people: a count over the last seconds.

use crate::types::time::Mono;

/// Two of these are looked at: the one under way and the one before.
const WINDOW_US: u64 = 2_000_000;
/// Less time than this says nothing of a rate.
const LEAST_US: u64 = 200_000;

/// A count over the last two to four seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate {
    window: u64,
    now: u64,
    before: u64,
    /// The first that counts.
    first: Option<Mono>,
}

impl Rate {
    fn roll(&mut self, at: Mono) {
        let window = at.0 / WINDOW_US;
        if window == self.window {
            return;
        }
        self.before = if window == self.window + 1 { self.now } else { 0 };
        (self.window, self.now) = (window, 0);
    }

    /// Counts one.
    pub fn count(&mut self, at: Mono) {
        self.roll(at);
        if self.now + self.before == 0 {
            self.first = Some(at);
        }
        self.now += 1;
    }

    /// So many a second.
    pub fn per_second(&self, at: Mono) -> u64 {
        let mut rolled = *self;
        rolled.roll(at);
        let Some(first) = self.first else { return 0 };
        let spent = (at.0 % WINDOW_US + WINDOW_US).min(at.micros_since(first)).max(LEAST_US);
        (rolled.now + rolled.before).saturating_mul(1_000_000) / spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_last_seconds() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(Mono(7)), 0);
        let begin = 1_234_000_000;
        for turn in 0..20_000u64 {
            rate.count(Mono(begin + turn * 1_000));
            if turn > 500 {
                let now = rate.per_second(Mono(begin + turn * 1_000));
                assert!((950..=1_050).contains(&now), "{now} a second after {turn} ms");
            }
        }
        assert_eq!(rate.per_second(Mono(begin + 26_000_000)), 0, "none of late");
        rate.count(Mono(begin + 30_000_000));
        assert_eq!(rate.per_second(Mono(begin + 30_000_000)), 5, "one, in a fifth of a second at least");
    }
}
