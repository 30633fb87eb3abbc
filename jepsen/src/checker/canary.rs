//! Bad histories, one or more for each checker, that it must reject: who finds nothing may just be blind.
//!
//! Each has a mended twin that differs in the bad part only and must be accepted. The suite judges them before
//! it judges a run.

use std::time::Duration;

use super::{
    AppliedOnce, Availability, Causal, Checker, Compose, Convergence, Counter, Draft, Monotonic,
    NeverFromNowhere, RegisterAtomic, RegisterRegular, SetFull, Stale, Stamps, Valid,
};

mod modes;

use crate::edn::Edn;
use crate::history::{History, Kind};

/// A checker and what it must find.
pub struct Canary {
    /// Who must find it.
    pub checker: Box<dyn Checker>,
    /// What must be rejected.
    pub history: History,
    /// The same without the fault.
    pub mended: History,
    /// The fault, in a few words.
    pub why: &'static str,
}

impl Canary {
    fn new(checker: impl Checker + 'static, why: &'static str, draft: impl Fn(&mut Draft, bool)) -> Self {
        let make = |bad| {
            let mut own = Draft::new();
            draft(&mut own, bad);
            own.history()
        };
        Self { checker: Box::new(checker), history: make(true), mended: make(false), why }
    }

    /// Whether the checker tells the two apart.
    pub fn is_found(&self) -> bool {
        self.checker.check(&self.history).valid == Valid::No
            && self.checker.check(&self.mended).valid == Valid::Yes
    }
}

/// All of them.
pub fn canaries() -> Vec<Canary> {
    [registers(), clients(), collections(), causes(), measures(), modes::all()]
        .into_iter()
        .flatten()
        .collect()
}

fn stamp(stamp: i64) -> [(&'static str, Edn); 1] {
    [("stamp", Edn::Int(stamp))]
}

fn list(values: &[i64]) -> Edn {
    Edn::vector(values.iter().copied())
}

fn registers() -> Vec<Canary> {
    vec![
        Canary::new(RegisterAtomic::stamped(), "a read after two writes returned the first", |draft, bad| {
            draft.done(1, "write", 0, 1_i64, &stamp(5)).done(1, "write", 0, 2_i64, &stamp(6));
            let (value, seen) = if bad { (1_i64, 5) } else { (2, 6) };
            draft.done(2, "read", 0, value, &stamp(seen));
        }),
        Canary::new(
            RegisterAtomic::stamped(),
            "an unfinished write was read, and then no more",
            |draft, bad| {
                draft.done(1, "write", 0, 1_i64, &stamp(5)).lost(2, "write", 0, 2_i64, &[]);
                draft.done(3, "read", 0, 2_i64, &stamp(6));
                let (value, seen) = if bad { (1_i64, 5) } else { (2, 6) };
                draft.done(1, "read", 0, value, &stamp(seen));
            },
        ),
        Canary::new(RegisterAtomic::plain(), "a deleted value came back", |draft, bad| {
            draft.done(1, "write", 0, 1_i64, &[]).done(1, "delete", 0, Edn::Nil, &[]);
            draft.done(2, "read", 0, Edn::Nil, &[]).done(3, "delete", 0, Edn::Nil, &[]);
            draft.done(2, "read", 0, if bad { Edn::Int(1) } else { Edn::Nil }, &[]);
        }),
        Canary::new(
            RegisterRegular,
            "a read missed a write that was finished before it began",
            |draft, bad| {
                draft.done(1, "write", 0, 1_i64, &[]);
                if !bad {
                    draft.invoke(2, "read", 0, Edn::Nil);
                }
                draft.done(1, "write", 0, 2_i64, &[]);
                if bad {
                    draft.invoke(2, "read", 0, Edn::Nil);
                }
                draft.ok(2, 1_i64, &[]);
            },
        ),
        Canary::new(Stamps, "a later write got a smaller stamp", |draft, bad| {
            draft.done(1, "write", 0, 1_i64, &stamp(5));
            draft.done(2, "write", 0, 2_i64, &stamp(if bad { 4 } else { 6 }));
        }),
        Canary::new(NeverFromNowhere, "a write that surely failed was read", |draft, bad| {
            let kind = if bad { Kind::Fail } else { Kind::Info };
            draft.invoke(1, "write", 0, 1_i64).complete(1, kind, 1_i64, &[]).done(2, "read", 0, 1_i64, &[]);
        }),
    ]
}

fn clients() -> Vec<Canary> {
    let of = |client: i64, stamp: i64| [("client", Edn::Int(client)), ("stamp", Edn::Int(stamp))];
    vec![
        Canary::new(Monotonic, "a client under a new number missed its own write", move |draft, bad| {
            draft.done(1, "write", 0, 1_i64, &of(0, 5)).done(2, "write", 0, 2_i64, &of(1, 6));
            draft.lost(2, "write", 0, 3_i64, &of(1, 9));
            let (value, seen) = if bad { (1_i64, 5) } else { (2, 6) };
            draft.done(3, "read", 0, value, &of(1, seen));
        }),
        Canary::new(Monotonic, "a client read something older than before", move |draft, bad| {
            draft.done(1, "read", 0, 2_i64, &of(0, 6)).done(1, "read", 1, 7_i64, &of(0, 1));
            draft.done(1, "read", 0, 1_i64, &of(i64::from(!bad), 5)).done(1, "read", 1, 7_i64, &of(0, 1));
        }),
    ]
}

fn collections() -> Vec<Canary> {
    vec![
        Canary::new(AppliedOnce, "an element was there twice", |draft, bad| {
            draft.done(1, "add", 0, 1_i64, &[]).done(1, "add", 0, 2_i64, &[]);
            draft.done(2, "read", 0, list(if bad { &[1, 2, 1] } else { &[1, 2] }), &[]);
        }),
        Canary::new(SetFull::default(), "an acknowledged element was lost", |draft, bad| {
            draft.done(1, "add", 0, 1_i64, &[]).done(1, "add", 0, 2_i64, &[]);
            draft.done(1, "read", 0, list(if bad { &[1] } else { &[1, 2] }), &[("final", Edn::Bool(true))]);
        }),
        Canary::new(SetFull { linearizable: true }, "an element was missing for a while", |draft, bad| {
            draft.done(1, "add", 0, 1_i64, &[]).done(1, "read", 0, list(&[1]), &[]);
            draft.done(1, "read", 0, list(if bad { &[] } else { &[1] }), &[]);
            draft.done(1, "read", 0, list(&[1]), &[]);
        }),
        Canary::new(Counter, "an acknowledged addition was lost", |draft, bad| {
            draft.done(1, "add", 0, 2_i64, &[]).done(2, "add", 0, 3_i64, &[]).lost(3, "add", 0, -1_i64, &[]);
            draft.done(1, "read", 0, if bad { 3_i64 } else { 4 }, &[]);
        }),
        Canary::new(Counter, "an addition counted twice", |draft, bad| {
            draft.done(1, "add", 0, 2_i64, &[]).lost(3, "add", 0, 1_i64, &[]);
            draft.done(1, "read", 0, if bad { 4_i64 } else { 3 }, &[]);
        }),
    ]
}

fn causes() -> Vec<Canary> {
    let covers = |values: &[i64]| [("covers", list(values))];
    vec![
        Canary::new(
            Causal::default(),
            "an acknowledged value that nothing covers vanished",
            move |draft, bad| {
                draft.done(1, "append", 0, 1_i64, &covers(&[]));
                draft.done(2, "append", 0, 2_i64, &covers(if bad { &[] } else { &[1] }));
                draft.done(1, "read", 0, list(&[2]), &[]);
            },
        ),
        Canary::new(Causal { monotonic: false }, "a replaced value came back", move |draft, bad| {
            draft.done(1, "append", 0, 1_i64, &covers(&[])).done(1, "append", 0, 2_i64, &covers(&[1]));
            draft.done(1, "read", 0, list(if bad { &[1, 2] } else { &[2] }), &[]);
        }),
        Canary::new(
            Causal::default(),
            "a write's value is gone, and what it replaced is too",
            move |draft, bad| {
                draft.done(1, "append", 0, 1_i64, &covers(&[])).lost(2, "append", 0, 2_i64, &covers(&[1]));
                draft.done(3, "read", 0, list(if bad { &[] } else { &[2] }), &[]);
            },
        ),
        Canary::new(Causal::default(), "a value was read, and then no more", move |draft, bad| {
            draft.lost(1, "append", 0, 1_i64, &covers(&[])).done(2, "read", 0, list(&[1]), &[]);
            draft.done(2, "read", 0, list(if bad { &[] } else { &[1] }), &[]);
        }),
        Canary::new(Causal::default(), "a deletion was seen, and then no more", move |draft, bad| {
            draft.done(1, "append", 0, 1_i64, &covers(&[])).lost(2, "delete", 0, Edn::Nil, &covers(&[1]));
            draft.done(3, "read", 0, list(&[]), &[]);
            draft.done(3, "read", 0, list(if bad { &[1] } else { &[] }), &[]);
        }),
    ]
}

fn measures() -> Vec<Canary> {
    let limit = Some(Duration::from_millis(100));
    let stale = |draft: &mut Draft, bad: bool| {
        draft.done(1, "write", 0, 1_i64, &[]).done(1, "write", 0, 2_i64, &[]);
        draft.invoke(1, "read", 0, Edn::Nil).after(if bad { 200 } else { 50 }).ok(1, 1_i64, &[]);
    };
    let replica = |name: &str, stamp: i64| {
        [("final", Edn::Bool(true)), ("replica", Edn::from(name)), ("stamp", Edn::Int(stamp))]
    };
    let missed = |draft: &mut Draft, bad: bool| {
        draft.done(1, "write", 0, 1_i64, &[]).done(
            1,
            "read",
            0,
            if bad { Edn::Nil } else { Edn::Int(1) },
            &[],
        );
    };
    let paused = Availability { longest_pause: limit, ..Availability::default() };
    vec![
        Canary::new(Stale { limit }, "a value was read long after it was replaced", stale),
        Canary::new(paused, "nothing succeeded for long", |draft, bad| {
            draft.done(1, "read", 0, 1_i64, &[]).invoke(1, "read", 0, Edn::Nil);
            draft.ok(1, 1_i64, &[]).after(if bad { 200 } else { 50 }).done(1, "read", 0, 1_i64, &[]);
        }),
        Canary::new(Convergence, "a replica holds another value", move |draft, bad| {
            draft.done(1, "read", 0, 1_i64, &replica("n1", 5));
            draft.done(1, "read", 0, if bad { 2_i64 } else { 1 }, &replica("n2", 5));
        }),
        Canary::new(Convergence, "a replica holds another version of an equal value", move |draft, bad| {
            draft.done(1, "read", 0, 1_i64, &replica("n1", 5));
            draft.done(1, "read", 0, 1_i64, &replica("n2", if bad { 4 } else { 5 }));
        }),
        Canary::new(
            Compose::new("composed", vec![Box::new(NeverFromNowhere), Box::new(RegisterRegular)]),
            "one of two checkers found something",
            move |draft, bad| {
                draft.done(2, "write", 1, 1_i64, &[]).done(2, "read", 1, 1_i64, &[]);
                missed(draft, bad);
            },
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_canary_is_rejected_and_its_mended_twin_accepted() {
        for canary in canaries() {
            let (name, why) = (canary.checker.name(), canary.why);
            for history in [&canary.history, &canary.mended] {
                assert_eq!(history.validate(), Ok(()), "{name}: {why}");
            }
            let bad = canary.checker.check(&canary.history);
            assert_eq!(bad.valid, Valid::No, "{name} missed that {why}: {bad:?}");
            assert!(!bad.anomalies.is_empty(), "{name}: {why}");
            let mended = canary.checker.check(&canary.mended);
            assert_eq!(mended.valid, Valid::Yes, "{name} says of what is mended that {why}: {mended:?}");
            assert!(canary.is_found());
        }
    }

    #[test]
    fn every_checker_has_one() {
        let names: BTreeSet<&str> = canaries().iter().map(|canary| canary.checker.name()).collect();
        let all = [
            "applied-once",
            "availability",
            "batches",
            "causal",
            "composed",
            "convergence",
            "counter",
            "durable",
            "expiry",
            "lives",
            "monotonic",
            "never-from-nowhere",
            "register-atomic",
            "register-regular",
            "sessions",
            "set-full",
            "stale",
            "stamps",
        ];
        assert_eq!(names.into_iter().collect::<Vec<_>>(), all);
    }
}
