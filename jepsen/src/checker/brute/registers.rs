//! Registers: the zones and the search against all orders.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{accepts, agree, history, run, spans};
use crate::checker::register::{Naming, registers};
use crate::checker::register_atomic::{Order, ordered};
use crate::checker::{RegisterAtomic, RegisterRegular};
use crate::edn::Edn;
use crate::history::{History, Kind, Operation};

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
