//! Writes made-up runs into a store, to look at the reports: `fake_run [store] [operations] [address]`. With an
//! address it shows them there until it is stopped.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use quoral_jepsen::checker::{Anomaly, Valid, Verdict};
use quoral_jepsen::edn::Edn;
use quoral_jepsen::history::{Event, History, Kind, Process};
use quoral_jepsen::report::{Outcome, Run, Test};

const CLIENTS: u64 = 10;

/// A small generator of numbers; the same seed gives the same run.
struct Dice(u64);

impl Dice {
    /// From 0 up to 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The nemesis: when, what, and to whom.
const FAULTS: [(f64, &str, &str); 14] = [
    (0.10, "start-partition", "halves"),
    (0.22, "stop-partition", ""),
    (0.30, "start-kill", "n2"),
    (0.36, "stop-kill", "n2"),
    (0.42, "start-partition", "isolate n1"),
    (0.47, "start-pause", "n4"),
    (0.53, "stop-pause", "n4"),
    (0.58, "stop-partition", ""),
    (0.66, "start-kill", "n1 n2 n3 n4 n5"),
    (0.69, "stop-kill", "n1 n2 n3 n4 n5"),
    (0.78, "start-partition", "ring"),
    (0.88, "stop-partition", ""),
    (0.92, "start-pause", "n3"),
    (0.95, "stop-pause", "n3"),
];

/// How bad it is at a part of the run, from 0 to 1.
fn trouble(part: f64) -> f64 {
    match part {
        0.10..0.22 => 0.12,
        0.30..0.36 => 0.06,
        0.42..0.58 => 0.15,
        0.66..0.69 => 1.0,
        0.78..0.88 => 0.1,
        _ => 0.0,
    }
}

fn history(operations: u64, seconds: f64, dice: &mut Dice) -> History {
    let mut events: Vec<(u64, Event)> = Vec::new();
    let nano = |seconds: f64| (seconds * 1e9) as u64;
    let mut put =
        |time: u64, process: Process, kind: Kind, f: &str, value: Edn, extra: BTreeMap<String, Edn>| {
            events.push((time, Event { index: 0, time, process, kind, f: f.into(), value, extra }));
        };
    for (part, f, whom) in FAULTS {
        for (late, value) in [(0.0, Edn::Str(whom.into())), (0.004, Edn::Keyword("done".into()))] {
            put(nano(part * seconds + late), Process::Nemesis, Kind::Info, f, value, BTreeMap::new());
        }
    }
    let mut register = vec![Edn::Nil; 40];
    for client in 0..CLIENTS {
        let (mut at, mut process) = (dice.next() * 0.05, client);
        let pause = seconds * CLIENTS as f64 / operations as f64;
        while at < seconds - 0.05 {
            let bad = trouble(at / seconds);
            let key = (at / seconds * 30.0) as usize + (dice.next() * 4.0) as usize;
            let pair = |value: Edn| Edn::Vector(vec![Edn::Int(key as i64), value]);
            let write = dice.next() < 0.45;
            let (f, asked) = if write { ("write", Edn::Int((at * 1e5) as i64)) } else { ("read", Edn::Nil) };
            let mut took = 0.0012 * (1.0 + 1.6 * dice.next()).powi(2) / (1.0 - dice.next()).powf(0.45);
            if bad > 0.0 && bad < 1.0 {
                took *= 1.5 + 6.0 * dice.next();
            }
            let luck = dice.next();
            let node = Edn::Str(format!("n{}", client % 5 + 1));
            let mut extra = BTreeMap::from([("node".to_string(), node)]);
            put(nano(at), Process::Client(process), Kind::Invoke, f, pair(asked.clone()), BTreeMap::new());
            let kind = if luck < bad * 0.35 {
                took = 1.0 + dice.next() * 0.03;
                Kind::Info
            } else if luck < bad {
                took = 0.0004 + dice.next() * 0.002;
                Kind::Fail
            } else {
                Kind::Ok
            };
            if kind == Kind::Ok && write {
                register[key] = asked.clone();
            }
            let answer = if kind == Kind::Ok && !write { register[key].clone() } else { asked };
            if kind != Kind::Ok {
                let words =
                    if kind == Kind::Info { "deadline <exceeded> & unknown" } else { "unavailable: 1 of 2" };
                extra.insert("error".into(), Edn::Str(words.into()));
            }
            put(nano(at + took), Process::Client(process), kind, f, pair(answer), extra);
            if kind == Kind::Info {
                process += CLIENTS;
            }
            at += took + pause * 1.6 * dice.next() * if bad >= 1.0 { 3.0 } else { 1.0 };
        }
    }
    events.sort_by_key(|(time, event)| (*time, event.process));
    let number = |(i, (_, event)): (usize, (u64, Event))| Event { index: i as u64, ..event };
    History { events: events.into_iter().enumerate().map(number).collect() }
}

/// An anomaly made up from a read and the write before it of the same key.
fn anomaly(history: &History) -> Option<Anomaly> {
    let read = history
        .events
        .iter()
        .filter(|e| e.kind == Kind::Ok && e.f == "read" && e.index as usize > history.events.len() * 3 / 4)
        .nth(5)?;
    let Edn::Vector(pair) = &read.value else { return None };
    let [Edn::Int(key), value] = pair.as_slice() else { return None };
    let same = |e: &&Event| e.kind == Kind::Ok && e.f == "write" && e.index < read.index;
    let write = history
        .events
        .iter()
        .filter(same)
        .rfind(|e| matches!(&e.value, Edn::Vector(p) if p[0] == pair[0]))?;
    let text = format!("a read returned {value:?}, older than a write that had ended");
    let text = text.replace("Int(", "").replace(')', "");
    Some(Anomaly { text, key: u64::try_from(*key).ok(), events: vec![write.index, read.index] })
}

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let store = arguments.get(1).map_or("jepsen/store", String::as_str);
    let operations = arguments.get(2).and_then(|n| n.parse().ok()).unwrap_or(5000);
    for (i, (workload, valid)) in
        [("register", Valid::Yes), ("set", Valid::Unknown), ("register", Valid::No)].into_iter().enumerate()
    {
        let at = UNIX_EPOCH + Duration::from_millis(1_772_000_000_123 + i as u64 * 97_000);
        let run = Run::create(Path::new(store), workload, at)?;
        for node in ["n1", "n2", "n3", "n4", "n5"] {
            std::fs::create_dir(run.dir().join(node))?;
            std::fs::write(run.dir().join(node).join("log"), "made up\n")?;
        }
        let history = history(operations, 60.0, &mut Dice(7 + i as u64));
        let found = anomaly(&history).filter(|_| valid == Valid::No);
        let figures = vec![("keys".to_string(), Edn::Int(34))];
        let verdicts = [
            ("register".to_string(), Verdict { valid, anomalies: found.into_iter().collect(), figures }),
            ("availability".to_string(), Verdict { valid: Valid::Yes, anomalies: vec![], figures: vec![] }),
        ];
        let test = Test {
            workload: workload.into(),
            nemeses: vec!["partition".into(), "kill".into(), "pause".into()],
            seed: 7 + i as u64,
            nodes: ["n1", "n2", "n3", "n4", "n5"].map(String::from).to_vec(),
            seconds: 60,
            concurrency: CLIENTS as usize,
            left_out: vec!["clock: libfaketime is missing".into()],
            options: vec![("policy".into(), Edn::Keyword("strong".into())), ("n".into(), Edn::Int(3))],
            command: format!("quoral-jepsen test --workload {workload} --seed {}", 7 + i),
        };
        let outcome = Outcome { test: &test, history: &history, verdicts: &verdicts };
        run.write(&outcome)?;
        println!("{}", run.summary(&outcome));
    }
    drop(Run::create(Path::new(store), "counter", UNIX_EPOCH + Duration::from_secs(1_772_000_900))?);
    let Some(address) = arguments.get(3).and_then(|address| address.parse().ok()) else { return Ok(()) };
    tokio::runtime::Runtime::new()?.block_on(quoral_jepsen::serve::serve(store.into(), address))
}
