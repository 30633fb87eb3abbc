//! How long the checkers take for 100 000 operations. Run by hand:
//! `CARGO_PROFILE_DEV_OPT_LEVEL=3 cargo test -p quoral-jepsen --lib speed -- --ignored --nocapture --test-threads 1`

use std::collections::BTreeMap;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{
    Availability, Causal, Checker, Convergence, Counter, Draft, Monotonic, NeverFromNowhere, RegisterAtomic,
    RegisterRegular, SetFull, Stale, Stamps, Valid,
};
use crate::edn::Edn;
use crate::history::{History, Kind};

const OPERATIONS: usize = 100_000;

/// What a client is at.
struct Busy {
    process: u64,
    f: &'static str,
    key: u64,
    value: Edn,
    extra: Vec<(&'static str, Edn)>,
    applied: bool,
}

/// A run of so many clients on so many keys, in which each operation takes effect at one moment. One write in
/// fifty gets no answer. `ask` says what to do next, `apply` does it.
fn run<S: Default>(
    clients: usize,
    keys: u64,
    mut ask: impl FnMut(&mut StdRng, u64, &S) -> (&'static str, Edn, Vec<(&'static str, Edn)>),
    mut apply: impl FnMut(&mut S, &mut Busy),
) -> History {
    let mut rng = StdRng::seed_from_u64(1);
    let mut draft = Draft::new();
    let mut busy: Vec<Option<Busy>> = (0..clients).map(|_| None).collect();
    let mut process: Vec<u64> = (0..clients as u64).collect();
    let mut states: BTreeMap<u64, S> = BTreeMap::new();
    let mut begun = 0_usize;
    draft.nemesis("start-kill");
    while begun < OPERATIONS || busy.iter().any(Option::is_some) {
        let client = rng.random_range(0..clients);
        match &mut busy[client] {
            None if begun < OPERATIONS => {
                let key = rng.random_range(0..keys);
                let (f, value, extra) = ask(&mut rng, begun as u64, states.entry(key).or_default());
                begun += 1;
                if begun == OPERATIONS / 2 {
                    draft.nemesis("stop-kill");
                }
                draft.invoke(process[client], f, key, if f == "read" { Edn::Nil } else { value.clone() });
                let process = process[client];
                busy[client] = Some(Busy { process, f, key, value, extra, applied: false });
            }
            None => {}
            Some(own) if !own.applied => {
                apply(states.entry(own.key).or_default(), own);
                own.applied = true;
            }
            Some(own) => {
                let lost = own.f != "read" && rng.random_bool(0.02);
                let kind = if lost { Kind::Info } else { Kind::Ok };
                own.extra.push(("client", Edn::from(client)));
                draft.finish(own.process, own.f, own.key, kind, own.value.clone(), &own.extra);
                if lost {
                    process[client] += clients as u64;
                }
                busy[client] = None;
            }
        }
    }
    draft.history()
}

fn register(clients: usize, keys: u64, deletions: bool) -> History {
    let mut stamp = 0_i64;
    run(
        clients,
        keys,
        move |rng, number, _: &Option<(Edn, i64)>| match rng.random_range(0..10) {
            0..4 => ("write", Edn::from(number + 1), Vec::new()),
            4 if deletions => ("delete", Edn::Nil, Vec::new()),
            _ => ("read", Edn::Nil, Vec::new()),
        },
        move |state: &mut Option<(Edn, i64)>, own| {
            let state = state.get_or_insert((Edn::Nil, 0));
            if own.f == "read" {
                own.value = state.0.clone();
            } else {
                stamp += 1;
                *state = (own.value.clone(), stamp);
            }
            own.extra = vec![("stamp", Edn::from(state.1))];
        },
    )
}

fn measure(what: &str, checker: &dyn Checker, history: &History) {
    let start = Instant::now();
    let verdict = checker.check(history);
    println!("{:20} {what:40} {:>9.1?}  {:?}", checker.name(), start.elapsed(), verdict.valid);
    assert_eq!(verdict.valid, Valid::Yes, "{:?}", verdict.anomalies.first());
}

#[test]
#[ignore = "a measurement"]
fn registers() {
    for (clients, keys) in [(10, 1), (10, 100), (50, 1)] {
        let history = register(clients, keys, false);
        let what = format!("{clients} clients, {keys} keys");
        measure(&format!("{what}, by value"), &RegisterAtomic::plain(), &history);
        measure(&what, &RegisterAtomic::stamped(), &history);
        measure(&what, &RegisterRegular, &history);
        measure(&what, &Stamps, &history);
        measure(&what, &Stale::default(), &history);
        measure(&what, &NeverFromNowhere, &history);
        measure(&what, &Monotonic, &history);
        measure(&what, &Availability::default(), &history);
        let history = register(clients, keys, true);
        let what = format!("{clients} clients, {keys} keys, deletions");
        measure(&what, &RegisterAtomic::stamped(), &history);
        measure(&format!("{what}, by search"), &RegisterAtomic::plain(), &history);
        measure(&what, &RegisterRegular, &history);
    }
    let start = Instant::now();
    let history = register(10, 100, false);
    let made = start.elapsed();
    let text = history.to_edn();
    let written = start.elapsed() - made;
    assert_eq!(History::parse(&text).as_ref(), Ok(&history));
    println!(
        "made in {made:.1?}, written in {written:.1?}, all in {:.1?}, {} bytes",
        start.elapsed(),
        text.len()
    );
    let start = Instant::now();
    assert_eq!(history.operations().len(), OPERATIONS);
    println!("operations() in {:.1?}", start.elapsed());
}

#[test]
#[ignore = "a measurement"]
fn collections() {
    let ask = |rng: &mut StdRng, number, _: &Vec<Edn>| match rng.random_bool(0.5) {
        true => ("add", Edn::from(number), Vec::new()),
        false => ("read", Edn::Nil, Vec::new()),
    };
    let history = run(10, 200, ask, |state: &mut Vec<Edn>, own| match own.f {
        "add" => state.push(own.value.clone()),
        _ => own.value = Edn::Vector(state.clone()),
    });
    measure("200 keys, 250 elements each", &SetFull { linearizable: true }, &history);
    measure("200 keys, 250 elements each", &NeverFromNowhere, &history);
    let ask = |rng: &mut StdRng, _, _: &i64| match rng.random_bool(0.5) {
        true => ("add", Edn::Int(rng.random_range(-2..5)), Vec::new()),
        false => ("read", Edn::Nil, Vec::new()),
    };
    let history = run(10, 1, ask, |state: &mut i64, own| match own.f {
        "add" => *state += own.value.as_int().unwrap_or(0),
        _ => own.value = Edn::Int(*state),
    });
    measure("one key", &Counter, &history);
    let mut draft = Draft::new();
    for at in 0..OPERATIONS as u64 {
        let name = ["n1", "n2", "n3"][at as usize % 3];
        draft.done(1, "read", at / 3, at / 3, &[("final", Edn::Bool(true)), ("replica", Edn::from(name))]);
    }
    // The last key has one replica only.
    draft.done(1, "read", OPERATIONS as u64 / 3, OPERATIONS as u64 / 3, &[("final", Edn::Bool(true))]);
    measure("33 333 keys of three replicas", &Convergence, &draft.history());
}

/// The history of a database that answers one read in ten with an older read's answer.
fn spoiled(mut history: History) -> History {
    let mut rng = StdRng::seed_from_u64(2);
    let reads: Vec<usize> = (0..history.events.len())
        .filter(|at| history.events[*at].f == "read" && history.events[*at].kind == Kind::Ok)
        .collect();
    let answers: Vec<_> = reads
        .iter()
        .map(|at| (history.events[*at].value.clone(), history.events[*at].extra.clone()))
        .collect();
    for (place, at) in reads.iter().enumerate().skip(1).filter(|(place, _)| place % 10 == 0) {
        let (value, extra) = &answers[rng.random_range(place / 2..place)];
        if value.as_list().map(|own| &own[0]) == history.events[*at].value.as_list().map(|own| &own[0]) {
            (history.events[*at].value, history.events[*at].extra) = (value.clone(), extra.clone());
        }
    }
    history
}

#[test]
#[ignore = "a measurement"]
fn bad_ones() {
    let expect = |what: &str, checker: &dyn Checker, history: &History, valid: &[Valid]| {
        let start = Instant::now();
        let verdict = checker.check(history);
        let found = verdict.figures.last().map(|(_, count)| count.to_string()).unwrap_or_default();
        println!("{:20} {what:40} {:>9.1?}  {found} anomalies", checker.name(), start.elapsed());
        assert!(valid.contains(&verdict.valid), "{:?}", verdict.valid);
    };
    let no = &[Valid::No];
    let history = spoiled(register(10, 1, true));
    expect("spoiled", &RegisterAtomic::stamped(), &history, no);
    expect("spoiled, by search", &RegisterAtomic::plain(), &history, &[Valid::No, Valid::Unknown]);
    expect("spoiled", &RegisterRegular, &history, no);
    expect("spoiled", &Stamps, &history, no);
    expect("spoiled", &Monotonic, &history, no);
    expect("spoiled", &Stale::default(), &history, &[Valid::Yes]);
    let mut nobody = history;
    nobody.events.retain(|event| event.f == "read");
    expect("no writes", &NeverFromNowhere, &nobody, no);
    expect("no writes", &RegisterAtomic::stamped(), &nobody, no);
    expect("one key, spoiled", &Causal::default(), &spoiled(causes(1)), no);
    expect("100 keys, spoiled", &Causal::default(), &spoiled(causes(100)), no);
}

#[test]
#[ignore = "a measurement"]
fn siblings() {
    for keys in [1, 100] {
        measure(&format!("10 clients, {keys} keys"), &Causal::default(), &causes(keys));
    }
}

fn causes(keys: u64) -> History {
    let ask = |rng: &mut StdRng, number, state: &(Vec<Edn>, Vec<Edn>)| {
        let covers = || vec![("covers", Edn::Vector(state.0.clone()))];
        match rng.random_range(0..100) {
            0..50 => ("append", Edn::from(number), covers()),
            50..52 => ("delete", Edn::Nil, covers()),
            _ => ("read", Edn::Nil, Vec::new()),
        }
    };
    let apply = |state: &mut (Vec<Edn>, Vec<Edn>), own: &mut Busy| {
        let covers = own.extra.first().and_then(|(_, covers)| covers.as_list()).unwrap_or_default();
        state.0.retain(|value| !covers.contains(value));
        match own.f {
            "append" => state.0.push(own.value.clone()),
            "read" => own.value = Edn::Vector(state.0.clone()),
            _ => {}
        }
    };
    run(10, keys, ask, apply)
}
