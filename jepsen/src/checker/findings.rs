//! What a checker collects on its way to a verdict.

use super::{Anomaly, Valid, Verdict};
use crate::edn::Edn;

/// How many anomalies a verdict keeps: more than anybody reads, and all are counted.
const KEPT: usize = 300;

/// A verdict in the making.
pub(super) struct Findings {
    valid: Valid,
    anomalies: Vec<Anomaly>,
    found: u64,
    figures: Vec<(String, Edn)>,
}

impl Findings {
    pub(super) fn new() -> Self {
        Self { valid: Valid::Yes, anomalies: Vec::new(), found: 0, figures: Vec::new() }
    }

    /// Something is wrong.
    pub(super) fn wrong(&mut self, key: Option<u64>, mut events: Vec<u64>, text: impl FnOnce() -> String) {
        self.valid = Valid::No;
        self.found += 1;
        if self.anomalies.len() < KEPT {
            events.sort_unstable();
            events.dedup();
            self.anomalies.push(Anomaly { text: text(), key, events });
        }
    }

    /// Too little was seen to say yes.
    pub(super) fn unsure(&mut self) {
        self.valid = self.valid.max(Valid::Unknown);
    }

    pub(super) fn figure(&mut self, name: &str, value: impl Into<Edn>) {
        self.figures.push((name.to_owned(), value.into()));
    }

    pub(super) fn done(mut self) -> Verdict {
        self.figure("anomaly-count", self.found);
        Verdict { valid: self.valid, anomalies: self.anomalies, figures: self.figures }
    }
}

/// Nanoseconds as milliseconds.
pub(super) fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

/// The value that a share of the sorted ones does not exceed; 0 if there are none.
pub(super) fn quantile(sorted: &[u64], share: f64) -> u64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0)
}

/// Quantiles of durations in milliseconds, as Jepsen's `:latencies` have them.
pub(super) fn quantiles(mut nanos: Vec<u64>, shares: &[(&str, f64)]) -> Edn {
    nanos.sort_unstable();
    Edn::map(shares.iter().map(|(name, share)| (*name, Edn::Float(millis(quantile(&nanos, *share))))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_exact() {
        let sorted: Vec<u64> = (1..=100).collect();
        assert_eq!(quantile(&sorted, 0.5), 50);
        assert_eq!(quantile(&sorted, 0.99), 99);
        assert_eq!(quantile(&sorted, 1.0), 100);
        assert_eq!(quantile(&[7], 0.0), 7);
        assert_eq!(quantile(&[], 0.5), 0);
    }

    #[test]
    fn all_are_counted_and_a_few_kept() {
        let mut findings = Findings::new();
        for event in 0..1000 {
            findings.wrong(None, vec![event, 0, event], String::new);
        }
        findings.unsure();
        let verdict = findings.done();
        assert_eq!(verdict.valid, Valid::No);
        assert_eq!(verdict.anomalies.len(), KEPT);
        assert_eq!(verdict.anomalies[2].events, [0, 2]);
        assert_eq!(verdict.figures, [("anomaly-count".to_owned(), Edn::Int(1000))]);
    }
}
