//! Judges of histories.

use crate::edn::Edn;
use crate::history::History;

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
