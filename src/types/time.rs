//! Units of time. Clocks are never read here: times come in by argument.

use std::fmt;
use std::ops::Add;

use serde::{Deserialize, Serialize};

/// Wall-clock time in milliseconds since the Unix epoch. May jump; used for stamps and expiry only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WallMs(pub u64);

/// Monotonic time in microseconds since some start of the process. Used for every timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub u64);

impl WallMs {
    /// The same as `2026-01-31T23:59:59.000Z`: UTC, as people and RFC 3339 write it (years over 9999 too).
    pub fn utc(self) -> String {
        let (days, ms) = (self.0 / 86_400_000, self.0 % 86_400_000);
        // Days from 0000-03-01, in eras of 400 years, with the leap day at the end of a year
        // (Hinnant, "chrono-compatible low-level date algorithms").
        let days = days + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
        let (second, ms) = (ms / 1_000 % 60, ms % 1_000);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

impl Mono {
    /// The time from `earlier` to `self` in microseconds; zero if `earlier` is later.
    pub fn micros_since(self, earlier: Mono) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// So long before; the start of the process at the earliest.
    #[must_use]
    pub fn minus(self, d: std::time::Duration) -> Mono {
        Mono(self.0.saturating_sub(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Add<std::time::Duration> for Mono {
    type Output = Mono;
    fn add(self, d: std::time::Duration) -> Mono {
        Mono(self.0.saturating_add(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for WallMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

impl fmt::Display for Mono {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} us", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_is_shown_in_utc() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (68_169_600_000, "1972-02-29T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
            (1_798_761_599_000, "2026-12-31T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (u64::MAX >> 16, "10889-08-02T05:31:50.655Z"),
        ] {
            assert_eq!(WallMs(ms).utc(), text);
        }
    }
}
