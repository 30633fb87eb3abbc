//! Checkers that try everything, and thousands of small random histories on which the fast ones must agree.
//!
//! A random history comes of a simulated run: each operation takes effect at a moment within its span (an
//! unknown one perhaps never), and reads return what is there. In half of them a read is then made to return
//! something else, which may or may not be as good.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Checker, Draft, Valid};
use crate::edn::Edn;
use crate::history::{History, Kind};

mod collections;
mod registers;

/// An operation of a small history.
#[derive(Debug, Clone)]
struct Small {
    f: &'static str,
    /// What is written, or, for a read, returned.
    value: Edn,
    kind: Kind,
    begin: f64,
    end: f64,
    /// When it takes effect, if ever.
    point: Option<f64>,
    extra: Vec<(&'static str, Edn)>,
}

/// Spans of up to `most` operations, each with its moment.
fn spans(rng: &mut StdRng, most: usize) -> Vec<Small> {
    let count = rng.random_range(most - 3..=most);
    let longest = rng.random_range(0.05..0.5);
    let span = |_| {
        let begin: f64 = rng.random_range(0.0..1.0);
        let end = begin + rng.random_range(0.0..longest);
        let unknown = rng.random_bool(0.25);
        let latest = if unknown { 2.0 } else { end };
        let point = (!unknown || rng.random_bool(0.7)).then(|| rng.random_range(begin..latest));
        let kind = if unknown { Kind::Info } else { Kind::Ok };
        Small { f: "read", value: Edn::Nil, kind, begin, end, point, extra: Vec::new() }
    };
    let mut ops: Vec<Small> = (0..count).map(span).collect();
    ops.sort_by(|a, b| a.begin.total_cmp(&b.begin));
    ops
}

/// Lets the operations take effect in the order of their moments.
fn run<S>(ops: &mut [Small], mut state: S, mut step: impl FnMut(&mut S, &mut Small)) {
    let mut order: Vec<usize> = (0..ops.len()).filter(|at| ops[*at].point.is_some()).collect();
    order.sort_by(|a, b| ops[*a].point.partial_cmp(&ops[*b].point).expect("numbers"));
    order.into_iter().for_each(|at| step(&mut state, &mut ops[at]));
}

fn history(ops: &[Small]) -> History {
    let mut events: Vec<(f64, u64, bool)> = Vec::new();
    for (process, op) in ops.iter().enumerate() {
        events.push((op.begin, process as u64, true));
        events.push((op.end, process as u64, false));
    }
    events.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut draft = Draft::new();
    for (_, process, begins) in events {
        let op = &ops[process as usize];
        if begins {
            draft.invoke(process, op.f, 0, if op.f == "read" { Edn::Nil } else { op.value.clone() });
        } else {
            draft.complete(process, op.kind, op.value.clone(), &op.extra);
        }
    }
    let history = draft.history();
    history.validate().expect("a well-made history");
    history
}

/// Compares two judges on many histories, of which both good and bad ones must be frequent.
fn agree(
    histories: u64,
    mut make: impl FnMut(&mut StdRng) -> History,
    judges: impl Fn(&History) -> Vec<(&'static str, bool)>,
) {
    let mut counts = [0_u64; 2];
    for seed in 0..histories {
        let history = make(&mut StdRng::seed_from_u64(seed));
        let said = judges(&history);
        counts[usize::from(said[0].1)] += 1;
        assert!(said.iter().all(|(_, valid)| *valid == said[0].1), "{said:?}\n{}", history.to_edn());
    }
    assert!(counts.iter().all(|count| *count * 10 > histories), "bad and good: {counts:?}");
}

fn accepts(checker: &dyn Checker, history: &History) -> bool {
    checker.check(history).valid != Valid::No
}
