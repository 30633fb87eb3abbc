//! How a scenario keeps its replicas equal, and when what is deleted goes for good. Most have what users begin with:
//! anti-entropy every minute is never in the short life of a scenario, so it is off there, lest it hide what the other
//! paths miss (F29). Some have it often; of those some have nothing else, and some purge after seconds.

use std::fmt;

use quoral::node::config::{HintsConfig, RepairConfig};
use quoral::types::limits::REAP_MARGIN;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::cluster::mix;

/// A keyspace of scenarios that purge: what is written there dies by itself.
pub const BRIEF: &str = "brief";
/// How long that takes, in milliseconds.
pub const BRIEF_TTL_MS: u64 = 700;
/// The clock skew that nodes allow each other, in milliseconds.
pub const SKEW_MS: u64 = 500;
/// How far two nodes' clocks may be apart in a scenario: wild ones jump that far.
pub const APART_MS: u64 = 2_000;

/// When tombstones go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purge {
    /// `repair.tombstone_grace_ms`.
    pub grace_ms: u64,
    /// `repair.message_age_ms`.
    pub age_ms: u64,
}

/// What keeps replicas equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upkeep {
    /// Between two passes of anti-entropy; 0 for none.
    pub interval_ms: u64,
    /// Whether reads repair what they find.
    pub read_repair: bool,
    /// How old a hint may be, if not as old as usual; 0 for none.
    pub window_ms: Option<u64>,
    /// When tombstones go, if not after hours.
    pub purge: Option<Purge>,
    /// Bytes of anti-entropy a second, if not as many as usual.
    pub rate_bytes: Option<u64>,
}

impl fmt::Display for Upkeep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Upkeep { interval_ms, read_repair, window_ms, purge, rate_bytes: _ } = self;
        write!(f, "repair={interval_ms} reads={read_repair}")?;
        window_ms.map_or(Ok(()), |window| write!(f, " window={window}"))?;
        purge.map_or(Ok(()), |Purge { grace_ms, age_ms }| write!(f, " grace={grace_ms} age={age_ms}"))
    }
}

impl Upkeep {
    /// Hints and reads.
    pub const USUAL: Upkeep =
        Upkeep { interval_ms: 0, read_repair: true, window_ms: None, purge: None, rate_bytes: None };

    /// Of a seed. It is drawn apart, so that the other scenarios are what they were without it.
    pub fn draw(seed: u64) -> Upkeep {
        let rng = &mut StdRng::seed_from_u64(mix(seed, 17, 0));
        let kind = rng.random_range(0..20);
        let interval_ms = [200, 500, 1_500][rng.random_range(0..3)];
        let window_ms = [0, 600, 1_500][rng.random_range(0..3)];
        let age_ms = [800, 1_500][rng.random_range(0..2)];
        let grace_ms = window_ms + age_ms + SKEW_MS + rng.random_range(1..=600);
        let purge = Some(Purge { grace_ms, age_ms });
        match kind {
            0..12 => Upkeep::USUAL,
            12..14 => Upkeep { interval_ms, ..Upkeep::USUAL },
            14 | 15 => Upkeep { interval_ms, read_repair: false, window_ms: Some(0), ..Upkeep::USUAL },
            _ => {
                let read_repair = rng.random_bool(0.75);
                Upkeep { interval_ms, read_repair, window_ms: Some(window_ms), purge, rate_bytes: None }
            }
        }
    }

    /// The nodes' `[hints]`.
    pub fn hints(&self) -> HintsConfig {
        let usual = HintsConfig::default();
        HintsConfig { window_ms: self.window_ms.unwrap_or(usual.window_ms), ..usual }
    }

    /// The nodes' `[repair]`.
    pub fn repair(&self) -> RepairConfig {
        let usual = RepairConfig::default();
        let Purge { grace_ms, age_ms } =
            self.purge.unwrap_or(Purge { grace_ms: usual.tombstone_grace_ms, age_ms: usual.message_age_ms });
        RepairConfig {
            interval_ms: self.interval_ms,
            read_repair: self.read_repair,
            rate_bytes: self.rate_bytes.unwrap_or(usual.rate_bytes),
            tombstone_grace_ms: grace_ms,
            message_age_ms: age_ms,
            ..usual
        }
    }

    /// After how many milliseconds a tombstone may be gone, at the earliest, if it ever goes.
    pub fn gone_after_ms(&self) -> Option<u64> {
        let margin = u64::try_from(REAP_MARGIN.as_millis()).expect("seconds");
        self.purge.map(|Purge { grace_ms, age_ms }| (grace_ms + age_ms + margin).saturating_sub(APART_MS))
    }
}
