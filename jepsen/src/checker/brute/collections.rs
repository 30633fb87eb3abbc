//! Counters, sets and siblings: the checkers against all subsets of the writes.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::rngs::StdRng;

use super::{Small, accepts, agree, history, run, spans};
use crate::checker::{Causal, Counter, NeverFromNowhere, SetFull};
use crate::edn::Edn;
use crate::history::{Kind, Operation};

#[test]
fn counter_bounds_are_those_of_all_subsets() {
    let make = |rng: &mut StdRng| {
        let mut ops = spans(rng, 6);
        for op in &mut ops {
            if rng.random_bool(0.6) {
                (op.f, op.value) = ("add", Edn::Int([1, 1, -1][rng.random_range(0..3)]));
            }
        }
        run(&mut ops, 0_i64, |sum, op| match op.f {
            "add" => *sum += op.value.as_int().expect("a number"),
            _ => op.value = Edn::Int(*sum),
        });
        if rng.random_bool(0.5) {
            let reads = ops.iter_mut().filter(|op| op.f == "read");
            reads.for_each(|op| op.value = Edn::Int(rng.random_range(-2..4)));
        }
        history(&ops)
    };
    agree(6000, make, |history| {
        let ops = history.operations();
        let brute = |read: &Operation| {
            let adds: Vec<&Operation> =
                ops.iter().filter(|op| op.f == "add" && op.begin < read.end).collect();
            (0..1_u32 << adds.len()).any(|set| {
                let taken = |at: usize| set & (1 << at) != 0;
                let must = |add: &Operation| add.end < read.begin;
                let sum = (0..adds.len()).filter(|at| taken(*at)).filter_map(|at| adds[at].input.as_int());
                (0..adds.len()).all(|at| taken(at) || !must(adds[at])) && read.output == Edn::Int(sum.sum())
            })
        };
        let good = ops.iter().filter(|op| op.f == "read" && op.outcome == Kind::Ok).all(brute);
        vec![("brute", good), ("bounds", accepts(&Counter, history))]
    });
}

fn values(edn: &Edn) -> Vec<i64> {
    edn.as_list().unwrap_or_default().iter().filter_map(Edn::as_int).collect()
}

/// A read's legal sets: all writes that must be seen, none that began later, and what they leave is returned.
fn brute_seen(ops: &[Operation], read: &Operation) -> bool {
    let writes: Vec<&Operation> =
        ops.iter().filter(|op| op.f != "read" && op.may_have_happened() && op.begin < read.end).collect();
    let earlier =
        |other: &&Operation| other.f == "read" && other.outcome == Kind::Ok && other.end < read.begin;
    let known: Vec<i64> = ops.iter().filter(earlier).flat_map(|other| values(&other.output)).collect();
    let value = |op: &Operation| if op.f == "delete" { None } else { op.input.as_int() };
    let must = |op: &Operation| op.end < read.begin || value(op).is_some_and(|own| known.contains(&own));
    let mut returned = values(&read.output);
    returned.sort_unstable();
    (0..1_u32 << writes.len()).any(|set| {
        let taken = |at: &usize| set & (1 << at) != 0;
        let all: Vec<&Operation> = (0..writes.len()).filter(taken).map(|at| writes[at]).collect();
        let covered: Vec<i64> = all.iter().filter_map(|op| op.extra.get("covers")).flat_map(values).collect();
        let mut left: Vec<i64> =
            all.iter().filter_map(|op| value(op)).filter(|own| !covered.contains(own)).collect();
        left.sort_unstable();
        (0..writes.len()).all(|at| taken(&at) || !must(writes[at])) && left == returned
    })
}

fn reads(ops: &[Operation]) -> impl Iterator<Item = &Operation> {
    ops.iter().filter(|op| op.f == "read" && op.outcome == Kind::Ok)
}

#[test]
fn sets_agree_with_all_subsets() {
    let make = |rng: &mut StdRng| {
        let mut ops = spans(rng, 6);
        for (at, op) in ops.iter_mut().enumerate() {
            if rng.random_bool(0.5) {
                (op.f, op.value) = ("add", Edn::from(at));
            }
        }
        run(&mut ops, Vec::new(), |set, op| match op.f {
            "add" => set.push(op.value.clone()),
            _ => op.value = Edn::Vector(set.clone()),
        });
        disturb(rng, &mut ops);
        history(&ops)
    };
    agree(6000, make, |history| {
        let ops = history.operations();
        let good = reads(&ops).all(|read| brute_seen(&ops, read));
        let set = accepts(&SetFull { linearizable: true }, history);
        vec![("brute", good), ("set-full", set && accepts(&NeverFromNowhere, history))]
    });
}

/// In half of the histories, makes a read return one value more or less.
fn disturb(rng: &mut StdRng, ops: &mut [Small]) {
    let written: Vec<Edn> =
        ops.iter().filter(|op| matches!(op.f, "add" | "append")).map(|op| op.value.clone()).collect();
    let mut reads: Vec<&mut Small> = ops.iter_mut().filter(|op| op.f == "read").collect();
    if reads.is_empty() || written.is_empty() || rng.random_bool(0.5) {
        return;
    }
    let read = rng.random_range(0..reads.len());
    let one = &written[rng.random_range(0..written.len())];
    if let Edn::Vector(items) = &mut reads[read].value {
        let before = items.len();
        items.retain(|item| item != one);
        if items.len() == before {
            items.push(one.clone());
        }
    }
}

#[test]
fn causal_siblings_agree_with_all_subsets() {
    let make = |rng: &mut StdRng| {
        let mut ops = spans(rng, 7);
        let mut appended: Vec<usize> = Vec::new();
        for (at, op) in ops.iter_mut().enumerate() {
            let chance: f64 = rng.random();
            if chance > 0.6 {
                continue;
            }
            let covers: Vec<usize> = appended.iter().copied().filter(|_| rng.random_bool(0.5)).collect();
            op.extra = vec![("covers", Edn::vector(covers))];
            op.f = if chance < 0.1 { "delete" } else { "append" };
            if op.f == "append" {
                appended.push(at);
                op.value = Edn::from(at);
            }
        }
        run(&mut ops, (Vec::new(), Vec::new()), |(values, covered), op| {
            match op.f {
                "read" => op.value = Edn::Vector(values.clone()),
                "append" => values.push(op.value.clone()),
                _ => {}
            }
            let own = op.extra.first().and_then(|(_, covers)| covers.as_list()).unwrap_or_default();
            covered.extend_from_slice(own);
            values.retain(|value| !covered.contains(value));
        });
        disturb(rng, &mut ops);
        history(&ops)
    };
    agree(8000, make, |history| {
        let ops = history.operations();
        let good = reads(&ops).all(|read| brute_seen(&ops, read)) && !back_again(&ops);
        let causal = accepts(&Causal::default(), history) && accepts(&NeverFromNowhere, history);
        vec![("brute", good), ("causal", causal)]
    });
}

/// Whether a value that a read had to see was missing there, and in a later one not.
fn back_again(ops: &[Operation]) -> bool {
    let mut known: BTreeMap<i64, u64> = BTreeMap::new();
    for op in ops {
        let seen = if op.f == "read" { values(&op.output) } else { op.input.as_int().into_iter().collect() };
        for value in seen.into_iter().filter(|_| op.outcome == Kind::Ok) {
            let end = known.entry(value).or_insert(op.end);
            *end = op.end.min(*end);
        }
    }
    reads(ops).any(|first| {
        let lacks = |value: &i64| known[value] < first.begin && !values(&first.output).contains(value);
        let later = reads(ops).filter(|later| first.end < later.begin);
        later.flat_map(|later| values(&later.output)).any(|value| lacks(&value))
    })
}
