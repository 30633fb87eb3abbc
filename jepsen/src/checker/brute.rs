//! Checkers that try everything, and thousands of small random histories on which the fast ones must agree.
//!
//! A random history comes of a simulated run: each operation takes effect at a moment within its span (an
//! unknown one perhaps never), and reads return what is there. In half of them a read is then made to return
//! something else, which may or may not be as good.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::register::{Naming, registers};
use super::register_atomic::{Order, ordered};
use super::{
    Causal, Checker, Counter, Draft, NeverFromNowhere, RegisterAtomic, RegisterRegular, SetFull, Valid,
};
use crate::edn::Edn;
use crate::history::{History, Kind, Operation};

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

// Registers.

#[derive(Clone, Copy, PartialEq)]
enum Style {
    /// Unique writes only.
    Writes,
    /// Deletions too, without stamps.
    Deletes,
    /// With stamps that tell deletions apart.
    Tombs,
    /// With stamps: some writes are stamped twice, and tombstones are purged.
    Stamps,
}

fn register(rng: &mut StdRng, style: Style) -> History {
    register_of(rng, style, 7)
}

fn register_of(rng: &mut StdRng, style: Style, most: usize) -> History {
    let mut ops = spans(rng, most);
    let stamped = matches!(style, Style::Tombs | Style::Stamps);
    for (at, op) in ops.iter_mut().enumerate() {
        let chance: f64 = rng.random();
        if chance < 0.3 {
            (op.f, op.value) = ("write", Edn::from(at + 1));
        } else if chance < 0.5 && style != Style::Writes {
            op.f = "delete";
        } else {
            op.kind = Kind::Ok;
            op.point = Some(rng.random_range(op.begin..=op.end));
        }
    }
    let mut stamp = 0_i64;
    let purge = style == Style::Stamps && rng.random_bool(0.2);
    run(&mut ops, (Edn::Nil, 0_i64), |state, op| {
        if op.f == "read" {
            op.value = state.0.clone();
            let gone = purge && state.0 == Edn::Nil;
            op.extra = vec![("stamp", Edn::from(if gone { 0 } else { state.1 }))];
        } else {
            stamp += 2;
            *state = (op.value.clone(), stamp);
            op.extra = vec![("stamp", Edn::from(stamp))];
        }
    });
    let written: Vec<(Edn, i64)> = ops
        .iter()
        .filter(|op| op.f != "read")
        .map(|op| (op.value.clone(), op.extra.first().and_then(|(_, s)| s.as_int()).unwrap_or(1)))
        .chain([(Edn::Nil, 0)])
        .collect();
    let other = if rng.random_bool(0.3) { 0.0 } else { 0.6 };
    for op in ops.iter_mut().filter(|op| op.f == "read") {
        if rng.random_bool(other) {
            let (value, own) = &written[rng.random_range(0..written.len())];
            // The stamp before, or after, the one it has in the end.
            let moved = if style != Style::Tombs && rng.random_bool(0.5) {
                [-1, 1][rng.random_range(0..2)]
            } else {
                0
            };
            let seen = if *own == 0 { 0 } else { own + moved };
            (op.value, op.extra) = (value.clone(), vec![("stamp", Edn::from(seen))]);
        }
    }
    for op in &mut ops {
        if !stamped || op.kind != Kind::Ok {
            op.extra.clear();
        }
    }
    history(&ops)
}

type State = (Edn, i64);

fn version(op: &Operation) -> State {
    let value = if op.f == "read" { &op.output } else { &op.input };
    (value.clone(), op.number("stamp").unwrap_or(0))
}

/// Whether a read may have found a purged tombstone.
fn may_be_purged(read: &Operation, ops: &[Operation]) -> bool {
    version(read) == (Edn::Nil, 0)
        && read.number("stamp").is_some()
        && ops.iter().any(|op| op.f == "delete" && op.begin < read.end)
}

/// Tries all orders: plain ones by value, others by value and stamp.
struct Orders<'a> {
    ops: &'a [Operation],
    stamped: bool,
    /// With stamps: versions that a write may leave besides, each once, and from when on.
    births: Vec<(State, u64)>,
}

impl<'a> Orders<'a> {
    fn of(ops: &'a [Operation], stamped: bool) -> Self {
        let mut births = Vec::new();
        let reads: Vec<State> = ops.iter().filter(|op| op.f == "read").map(version).collect();
        let writes = || ops.iter().filter(|op| op.f != "read");
        let acked = |state: &State| writes().any(|op| op.outcome == Kind::Ok && version(op) == *state);
        for (at, state) in reads.iter().enumerate() {
            if !stamped || reads[..at].contains(state) || acked(state) || *state == (Edn::Nil, 0) {
                continue;
            }
            let may = |op: &&Operation| {
                op.input == state.0 && op.number("stamp").is_none_or(|stamp| stamp >= state.1)
            };
            if let Some(born) = writes().filter(may).map(|op| op.begin).min() {
                births.push((state.clone(), born));
            }
        }
        for op in writes().filter(|op| stamped && op.f == "delete" && op.outcome == Kind::Info) {
            births.push(((Edn::Nil, -1), op.begin));
        }
        Self { ops, stamped, births }
    }

    fn any(&self, done: u32, born: u32, state: &State) -> bool {
        let open = |at: usize| done & (1 << at) == 0;
        let sure = |at: &usize| self.ops[*at].outcome == Kind::Ok;
        let waiting: Vec<usize> = (0..self.ops.len()).filter(|at| open(*at)).collect();
        let Some(limit) = waiting.iter().filter(|at| sure(at)).map(|at| self.ops[*at].end).min() else {
            return true;
        };
        for (at, (version, since)) in self.births.iter().enumerate() {
            if born & (1 << at) == 0 && *since < limit && self.any(done, born | (1 << at), version) {
                return true;
            }
        }
        waiting.into_iter().filter(|at| self.ops[*at].begin < limit).any(|at| {
            let op = &self.ops[at];
            let mut own = version(op);
            if !self.stamped {
                own.1 = 0;
            } else if op.f != "read" && op.outcome != Kind::Ok {
                // With stamps it is only seen by its births.
                return false;
            }
            let purged = self.stamped && may_be_purged(op, self.ops) && state.0 == Edn::Nil;
            let fits = op.f != "read" || own == *state || purged;
            let next = if op.f == "read" { state.clone() } else { own };
            fits && self.any(done | (1 << at), born, &next)
        })
    }
}

fn brute_atomic(history: &History, stamped: bool) -> bool {
    let ops = history.operations();
    Orders::of(&ops, stamped).any(0, 0, &(Edn::Nil, 0))
}

fn searched(history: &History, naming: Naming) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    registers(history).values().all(|ops| matches!(ordered(ops, naming, deadline), Order::Found))
}

#[test]
fn atomic_zones_and_search_agree_with_all_orders() {
    agree(
        6000,
        |rng| register(rng, Style::Writes),
        |history| {
            vec![
                ("brute", brute_atomic(history, false)),
                ("zones", accepts(&RegisterAtomic::plain(), history)),
                ("search", searched(history, Naming::Plain)),
            ]
        },
    );
}

#[test]
fn zones_and_search_agree_on_longer_histories() {
    agree(
        4000,
        |rng| {
            let most = rng.random_range(10..30);
            register_of(rng, Style::Writes, most)
        },
        |history| {
            let zones = accepts(&RegisterAtomic::plain(), history);
            vec![("zones", zones), ("search", searched(history, Naming::Plain))]
        },
    );
}

#[test]
fn the_search_of_deletions_agrees_with_all_orders() {
    agree(
        6000,
        |rng| register(rng, Style::Deletes),
        |history| {
            let search = accepts(&RegisterAtomic::plain(), history);
            vec![("brute", brute_atomic(history, false)), ("search", search)]
        },
    );
}

#[test]
fn atomic_versions_agree_with_all_orders_of_their_births() {
    agree(
        6000,
        |rng| register(rng, Style::Stamps),
        |history| {
            vec![
                ("brute", brute_atomic(history, true)),
                ("zones", accepts(&RegisterAtomic::stamped(), history)),
                ("search", searched(history, Naming::Stamped)),
            ]
        },
    );
}

/// Tries all orders of the writes. A tombstone that was read, and that no acknowledged deletion left, counts as
/// one more write that never ended.
fn brute_regular(ops: &[Operation]) -> bool {
    let stamped = |op: &Operation| op.input == Edn::Nil && op.number("stamp").is_some();
    let mut writes: Vec<Operation> =
        ops.iter().filter(|op| op.f != "read" && (op.f != "delete" || stamped(op))).cloned().collect();
    for read in ops.iter().filter(|op| op.f == "read" && version(op).0 == Edn::Nil) {
        let state = version(read);
        if state.1 == 0 || writes.iter().any(|op| version(op) == state) {
            continue;
        }
        let may = |op: &&Operation| op.number("stamp").is_none_or(|stamp| stamp >= state.1);
        let Some(born) = ops.iter().filter(|op| op.f == "delete").filter(may).map(|op| op.begin).min() else {
            return false;
        };
        let extra = read.extra.clone();
        let (f, input) = ("delete".to_owned(), Edn::Nil);
        writes.push(Operation { f, input, begin: born, end: u64::MAX, extra, ..read.clone() });
    }
    let writes: Vec<&Operation> = writes.iter().collect();
    some_order(&writes, &mut Vec::new(), &|order| {
        ops.iter().filter(|op| op.f == "read").all(|read| {
            let wanted = version(read);
            let is = |op: &&Operation| match &wanted.0 {
                Edn::Nil => version(op) == wanted && op.number("stamp").is_some(),
                value => op.input == *value,
            };
            let at = order.iter().position(is);
            let begun = at.is_none_or(|at| order[at].begin < read.end);
            let finished = |op: &Operation| op.end < read.begin;
            let mut later = order.iter().skip(at.map_or(0, |at| at + 1));
            (wanted == (Edn::Nil, 0) || at.is_some()) && begun && !later.any(|op| finished(op))
        })
    })
}

fn some_order<'a>(
    writes: &[&'a Operation],
    order: &mut Vec<&'a Operation>,
    fits: &dyn Fn(&[&Operation]) -> bool,
) -> bool {
    if order.len() == writes.len() {
        return fits(order);
    }
    for write in writes {
        let placed = |other: &Operation| order.iter().any(|own| std::ptr::eq(*own, other));
        let too_early = writes.iter().any(|other| !placed(other) && other.end < write.begin);
        if placed(write) || too_early {
            continue;
        }
        order.push(write);
        if some_order(writes, order, fits) {
            return true;
        }
        order.pop();
    }
    false
}

/// Each read alone: some order of it and of the writes begun before its end, with its value's write last
/// before it.
fn brute_alone(ops: &[Operation]) -> bool {
    let alone = |read: &Operation| {
        let writes: Vec<&Operation> =
            ops.iter().filter(|op| op.f != "read" && op.begin < read.end).chain([read]).collect();
        some_order(&writes, &mut Vec::new(), &|order| {
            let at = order.iter().position(|op| op.begin == read.begin).expect("it is there");
            let last = at.checked_sub(1).map_or(&Edn::Nil, |before| &order[before].input);
            *last == read.output
        })
    };
    ops.iter().filter(|op| op.f == "read").all(alone)
}

#[test]
fn regular_agrees_with_all_orders_of_writes() {
    let judge = |history: &History| {
        vec![("brute", brute_regular(&history.operations())), ("zones", accepts(&RegisterRegular, history))]
    };
    agree(6000, |rng| register(rng, Style::Writes), judge);
    // What is atomic is regular.
    for seed in 0..3000 {
        let history = register(&mut StdRng::seed_from_u64(seed), Style::Writes);
        assert!(!brute_atomic(&history, false) || accepts(&RegisterRegular, &history), "{seed}");
    }
}

#[test]
fn regular_reads_of_deletions_agree_with_all_orders() {
    let deleted = |history: &History| {
        let ops = history.operations();
        let nil = |op: &Operation| op.outcome == Kind::Ok && version(op).0 == Edn::Nil;
        ops.iter().any(|op| op.f == "delete") && ops.iter().any(nil)
    };
    agree(
        6000,
        |rng| register(rng, Style::Deletes),
        |history| {
            let ops = history.operations();
            let brute = if deleted(history) { brute_alone(&ops) } else { brute_regular(&ops) };
            vec![("brute", brute), ("each alone", accepts(&RegisterRegular, history))]
        },
    );
}

#[test]
fn regular_tombstones_agree_with_all_orders_of_writes() {
    agree(
        6000,
        |rng| {
            // A read that finds nothing after a deletion is another test's.
            let purged = |history: &History| {
                let ops = history.operations();
                ops.iter().any(|op| op.f == "read" && may_be_purged(op, &ops))
            };
            std::iter::repeat_with(|| register(rng, Style::Tombs)).find(|own| !purged(own)).expect("endless")
        },
        |history| {
            let brute = brute_regular(&history.operations());
            vec![("brute", brute), ("zones", accepts(&RegisterRegular, history))]
        },
    );
}

// Counters and sets.

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
