//! After the end all replicas of a key are equal (G7): so are all final reads of it, values and stamps.
//!
//! Lists are compared without their order. Of several final reads of one replica the last counts (a runner
//! may ask until they agree); those without `:replica` all count. A replica that never answered, or a key
//! with fewer than two answers, leaves it unknown.

use std::collections::{BTreeMap, BTreeSet};

use super::findings::Findings;
use super::value::Val;
use super::{Checker, Verdict};
use crate::edn::Edn;
use crate::history::{History, Kind, Operation};

/// Equality of final reads, for each key.
#[derive(Debug, Clone, Copy, Default)]
pub struct Convergence;

fn replica(op: &Operation) -> Option<&str> {
    op.extra.get("replica").and_then(Edn::as_name)
}

/// What must be equal.
fn state(op: &Operation) -> (Vec<Val>, Option<i64>) {
    let mut values = Val::all_of(&op.output);
    values.sort_unstable();
    (values, op.number("stamp"))
}

impl Checker for Convergence {
    fn name(&self) -> &'static str {
        "convergence"
    }

    fn check(&self, history: &History) -> Verdict {
        let operations = history.operations();
        let mut findings = Findings::new();
        let mut keys: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
        for op in operations.iter().filter(|op| op.f == "read" && op.flag("final")) {
            keys.entry(op.key).or_default().push(op);
        }
        let (mut reads, mut silent) = (0_usize, 0_usize);
        for (key, ops) in &keys {
            let asked: BTreeSet<&str> = ops.iter().filter_map(|op| replica(op)).collect();
            let mut last: BTreeMap<&str, &Operation> = BTreeMap::new();
            let mut answers: Vec<&Operation> = Vec::new();
            for op in ops.iter().filter(|op| op.outcome == Kind::Ok) {
                match replica(op) {
                    Some(name) => drop(last.insert(name, op)),
                    None => answers.push(op),
                }
            }
            silent += asked.len() - last.len();
            answers.extend(last.into_values());
            reads += answers.len();
            if answers.len() < 2 || answers.len() < asked.len() {
                findings.unsure();
            }
            let Some((first, others)) = answers.split_first() else { continue };
            let expected = state(first);
            for other in others.iter().filter(|other| state(other) != expected) {
                let events = vec![first.begin, first.end, other.begin, other.end];
                findings.wrong(Some(*key), events, || format!("{} but {}", told(first), told(other)));
            }
        }
        if keys.is_empty() || silent > 0 {
            findings.unsure();
        }
        findings.figure("keys", keys.len());
        findings.figure("final-reads", reads);
        findings.figure("replicas-without-answer", silent);
        findings.done()
    }
}

fn told(op: &Operation) -> String {
    let who = replica(op).unwrap_or("a read");
    match op.number("stamp") {
        Some(stamp) => format!("{who} has {} at stamp {stamp}", op.output),
        None => format!("{who} has {}", op.output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Draft, Valid};

    fn of(replica: &str) -> [(&'static str, Edn); 2] {
        [("final", Edn::Bool(true)), ("replica", Edn::from(replica))]
    }

    #[test]
    fn the_last_answer_of_a_replica_counts_and_order_does_not() {
        let mut draft = Draft::new();
        draft.done(1, "read", 0, Edn::vector([1_i64]), &of("n1"));
        draft.done(1, "read", 0, Edn::vector([2_i64, 1]), &of("n1"));
        draft.done(1, "read", 0, Edn::vector([1_i64, 2]), &of("n2"));
        assert_eq!(Convergence.check(&draft.history()).valid, Valid::Yes);
        // A read before the end does not matter.
        draft.done(1, "read", 0, Edn::vector([7_i64]), &[]);
        assert_eq!(Convergence.check(&draft.history()).valid, Valid::Yes);
    }

    #[test]
    fn silence_is_not_equality() {
        let mut draft = Draft::new();
        assert_eq!(Convergence.check(&draft.history()).valid, Valid::Unknown, "no key");
        draft.done(1, "read", 0, 1_i64, &of("n1"));
        assert_eq!(Convergence.check(&draft.history()).valid, Valid::Unknown, "one answer");
        draft.done(1, "read", 0, 1_i64, &of("n2"));
        assert_eq!(Convergence.check(&draft.history()).valid, Valid::Yes);
        draft.invoke(1, "read", 0, Edn::Nil).complete(1, Kind::Fail, Edn::Nil, &of("n3"));
        let verdict = Convergence.check(&draft.history());
        assert_eq!(verdict.valid, Valid::Unknown, "n3 never answered");
        assert!(verdict.figures.contains(&("replicas-without-answer".to_owned(), Edn::Int(1))));
    }
}
