//! Judges of histories.
//!
//! Each checker is one model of what Quoral promises in one mode (G1 to G9 of its contract), or a measure of
//! what it does not promise. A mode gets the checkers of its model, by `Compose`:
//!
//! | mode | checkers |
//! | --- | --- |
//! | `lww`, `r + w > n`, `2 r > n` | `RegisterAtomic::stamped`, `Stamps`, `Monotonic` |
//! | `lww`, `r + w > n`, `2 r <= n` | `RegisterRegular`, `Stale` |
//! | `lww`, `r + w <= n`, or sloppy, or blind with skewed clocks | `Stale` |
//! | `siblings` with contexts | `Causal` |
//! | in sessions, whatever `r` and `w` | `Sessions`, `Durable` |
//! | in batches | `Batches`, besides those of the items' own mode |
//! | values that expire | `Expiry`, `Stamps` |
//! | a keyspace that is dropped and made anew | `Lives` |
//! | set and counter by sibling merge | `SetFull`, `Counter` |
//! | all | `NeverFromNowhere` (not for counters), `Convergence`, `Availability` |
//!
//! What they have in common:
//!
//! - A write whose outcome is unknown takes effect at any time after its beginning, or never.
//! - The order of events in real time is that of their indices; durations are told by their times.
//! - A read of a single replica (`:replica`) promises nothing: models leave it out. Only `Convergence`,
//!   `NeverFromNowhere`, and those for which it comes after the end (`SetFull`, `Counter`, `Durable`, `Expiry`, `Lives`)
//!   look at it.
//! - `Yes` is never said of what was not looked at: nothing to judge, or a time limit, gives `Unknown`.
//!
//! Each is tested three ways: it rejects its canary (`canary`), it agrees with a checker that tries everything
//! on thousands of small random histories, and it judges 100 000 operations in seconds (`speed`).

use crate::edn::Edn;
use crate::history::History;

mod availability;
mod batches;
pub mod canary;
mod causal;
mod compose;
mod convergence;
mod counter;
mod draft;
mod durable;
mod expiry;
mod findings;
mod lives;
mod monotonic;
mod nowhere;
mod once;
mod register;
mod register_atomic;
mod register_regular;
mod sessions;
mod set_full;
mod stale;
mod stamps;
mod value;
mod wgl;
mod zones;

#[cfg(test)]
mod brute;
#[cfg(test)]
mod speed;

pub use availability::Availability;
pub use batches::Batches;
pub use causal::Causal;
pub use compose::Compose;
pub use convergence::Convergence;
pub use counter::Counter;
pub use draft::Draft;
pub use durable::Durable;
pub use expiry::Expiry;
pub use lives::Lives;
pub use monotonic::Monotonic;
pub use nowhere::NeverFromNowhere;
pub use once::AppliedOnce;
pub use register_atomic::RegisterAtomic;
pub use register_regular::RegisterRegular;
pub use sessions::Sessions;
pub use set_full::SetFull;
pub use stale::Stale;
pub use stamps::Stamps;

/// Whether a history is as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Valid {
    /// It is.
    Yes,
    /// It shows too little, or could not be decided in the time given. Never counts as `Yes`.
    Unknown,
    /// It is not.
    No,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq)]
pub struct Anomaly {
    /// In a few words, with the values.
    pub text: String,
    /// The key, if it is about one.
    pub key: Option<u64>,
    /// Indices of the events that show it.
    pub events: Vec<u64>,
}

/// What a checker found.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The worst of it.
    pub valid: Valid,
    /// What is wrong; at most a few hundred are kept.
    pub anomalies: Vec<Anomaly>,
    /// Figures, by name without the colon, for `results.edn`.
    pub figures: Vec<(String, Edn)>,
}

/// Judges a history.
pub trait Checker: Send + Sync {
    /// Its name in `results.edn`.
    fn name(&self) -> &'static str;
    /// Judges.
    fn check(&self, history: &History) -> Verdict;
}

impl Valid {
    /// As Jepsen's `:valid?` has it: `true`, `:unknown` or `false`.
    pub fn to_edn(self) -> Edn {
        match self {
            Self::Yes => Edn::Bool(true),
            Self::Unknown => Edn::keyword("unknown"),
            Self::No => Edn::Bool(false),
        }
    }
}

impl Anomaly {
    /// A map for `results.edn`.
    pub fn to_edn(&self) -> Edn {
        let key = self.key.map_or(Edn::Nil, Edn::from);
        Edn::map([
            ("text", Edn::from(self.text.as_str())),
            ("key", key),
            ("events", Edn::vector(self.events.iter().copied())),
        ])
    }
}

impl Verdict {
    /// A map for `results.edn`: `:valid?`, the figures, then the anomalies if there are any.
    pub fn to_edn(&self) -> Edn {
        let mut entries = vec![(Edn::keyword("valid?"), self.valid.to_edn())];
        let figures = self.figures.iter().map(|(name, value)| (Edn::keyword(name.as_str()), value.clone()));
        entries.extend(figures);
        if !self.anomalies.is_empty() {
            let anomalies = self.anomalies.iter().map(Anomaly::to_edn).collect();
            entries.push((Edn::keyword("anomalies"), Edn::Vector(anomalies)));
        }
        Edn::Map(entries)
    }
}
