//! Which operations are shown, and in which column.

use super::*;
use crate::history::Process;

fn event(index: u64, process: u64, kind: Kind) -> Event {
    let value = Edn::Vector(vec![Edn::Int(1), Edn::Nil]);
    let process = Process::Client(process);
    Event { index, time: index, process, kind, f: "read".into(), value, extra: BTreeMap::new() }
}

fn ops(events: &[Event]) -> Vec<Op<'_>> {
    let pair = |pair: &'_ [Event]| {
        let Process::Client(process) = pair[0].process else { panic!("a client") };
        (process, pair[0].index)
    };
    let chunks = events.chunks(2);
    chunks.map(|c| Op { begin: &c[0], end: c.get(1), process: pair(c).0 }).collect()
}

#[test]
fn anomalies_and_what_is_near_are_always_shown() {
    let events: Vec<Event> =
        (0..2000).map(|i| event(i, 0, if i % 2 == 0 { Kind::Invoke } else { Kind::Ok })).collect();
    let ops = ops(&events);
    // The completion of operation 600.
    let shown = select(&ops, &BTreeSet::from([1201]), 100, 400);
    assert!((0..100).chain(575..=625).all(|at| shown.contains(&at)));
    assert_eq!(shown.len(), 151);
    // Many anomalies: each itself, and no more than there is room for.
    let all: BTreeSet<u64> = (500..1500).collect();
    let shown = select(&ops, &all, 100, 50);
    assert_eq!(shown.len(), 150);
}

#[test]
fn a_process_goes_on_in_its_column() {
    let kinds =
        [(0, Kind::Ok), (1, Kind::Info), (0, Kind::Ok), (3, Kind::Ok), (0, Kind::Info), (2, Kind::Ok)];
    let events: Vec<Event> = kinds
        .iter()
        .enumerate()
        .flat_map(|(i, (process, kind))| {
            [event(i as u64 * 2, *process, Kind::Invoke), event(i as u64 * 2 + 1, *process, *kind)]
        })
        .collect();
    assert_eq!(columns(&ops(&events), 2), (vec![0, 1, 0, 1, 0, 0], vec![0, 1]));
    let client = |event: &Event| {
        let Process::Client(process) = event.process else { panic!("a client") };
        let extra = BTreeMap::from([("client".to_string(), Edn::Int(10 - process as i64 % 2))]);
        Event { extra, ..event.clone() }
    };
    let named: Vec<Event> = events.iter().map(client).collect();
    assert_eq!(
        columns(&ops(&named), 2),
        (vec![1, 0, 1, 0, 1, 1], vec![9, 10]),
        "a name that is given counts"
    );
}
