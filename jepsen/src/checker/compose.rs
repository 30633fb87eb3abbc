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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Availability, Draft, NeverFromNowhere, RegisterAtomic};
    use crate::edn::Edn;

    #[test]
    fn the_worst_counts_and_each_has_its_results() {
        let all = || -> Compose {
            let atomic = Box::new(RegisterAtomic::plain());
            Compose::new("all", vec![Box::new(NeverFromNowhere), atomic, Box::new(Availability::default())])
        };
        let mut draft = Draft::new();
        draft.done(1, "write", 0, 1_i64, &[]);
        assert_eq!(all().check(&draft.history()).valid, Valid::Unknown);
        draft.done(1, "read", 0, 2_i64, &[]);
        let verdict = all().check(&draft.history());
        assert_eq!(verdict.valid, Valid::No);
        assert_eq!(verdict.anomalies[0].text, "never-from-nowhere: a value that nobody wrote: 2");
        let edn = verdict.to_edn();
        let valid = |name: &str| edn.get(name).and_then(|own| own.get("valid?")).cloned();
        assert_eq!(edn.get("valid?"), Some(&Edn::Bool(false)));
        assert_eq!(valid("availability"), Some(Edn::Bool(true)));
        assert_eq!(valid("register-atomic"), Some(Edn::Bool(false)));
        assert_eq!(Compose::new("none", Vec::new()).check(&draft.history()).valid, Valid::Unknown);
    }
}
