//! Several checkers on one history.

use super::{Anomaly, Checker, Valid, Verdict};
use crate::history::History;

/// Runs its checkers and takes the worst of what they say. Anomalies carry the name of who found them, and
/// each checker's own results stand under its name, as Jepsen's `compose` has it.
pub struct Compose {
    name: &'static str,
    checkers: Vec<Box<dyn Checker>>,
}

impl Compose {
    /// Several as one, under a name.
    pub fn new(name: &'static str, checkers: Vec<Box<dyn Checker>>) -> Self {
        Self { name, checkers }
    }
}

impl Checker for Compose {
    fn name(&self) -> &'static str {
        self.name
    }

    fn check(&self, history: &History) -> Verdict {
        let mut worst = Verdict { valid: Valid::Yes, anomalies: Vec::new(), figures: Vec::new() };
        if self.checkers.is_empty() {
            worst.valid = Valid::Unknown;
        }
        for checker in &self.checkers {
            let verdict = checker.check(history);
            worst.valid = worst.valid.max(verdict.valid);
            worst.figures.push((checker.name().to_owned(), verdict.to_edn()));
            let named =
                |found: Anomaly| Anomaly { text: format!("{}: {}", checker.name(), found.text), ..found };
            worst.anomalies.extend(verdict.anomalies.into_iter().map(named));
        }
        worst
    }
}
