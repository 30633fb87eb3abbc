//! The store on a disk: what is in it, where the links lead, what the files say.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::Test;
use super::super::markup::check::well_formed;
use super::*;
use crate::checker::{Anomaly, Valid, Verdict};
use crate::edn::Edn;
use crate::history::{Event, History, Kind, Process};

const NAMESPACE: &str = "http://www.w3.org/2000/svg";
const NASTY: &str = "</title><script>alert('x')</script> & \"quoted\" \u{7}";

fn event(index: u64, process: Process, kind: Kind, f: &str, value: Edn) -> Event {
    let extra = BTreeMap::from([("error".to_string(), Edn::Str(NASTY.into()))]);
    Event { index, time: index * 1_000_000_000, process, kind, f: f.into(), value, extra }
}

fn history() -> History {
    let pair = |value| Edn::Vector(vec![Edn::Int(3), value]);
    let events = [
        (Process::Client(0), Kind::Invoke, "write", pair(Edn::Int(17))),
        (Process::Nemesis, Kind::Info, "start-partition", Edn::Str(NASTY.into())),
        (Process::Client(0), Kind::Ok, "write", pair(Edn::Int(17))),
        (Process::Client(1), Kind::Invoke, "read", pair(Edn::Nil)),
        (Process::Client(0), Kind::Invoke, "write", pair(Edn::Str(NASTY.into()))),
        (Process::Client(1), Kind::Fail, "read", pair(Edn::Nil)),
        (Process::Nemesis, Kind::Info, "stop-partition", Edn::Nil),
        (Process::Client(0), Kind::Info, "write", pair(Edn::Str(NASTY.into()))),
        (Process::Client(2), Kind::Invoke, "cas<&>", Edn::Str(NASTY.into())),
    ];
    let number = |(i, (process, kind, f, value)): (usize, (Process, Kind, &str, Edn))| {
        event(i as u64, process, kind, f, value)
    };
    History { events: events.into_iter().enumerate().map(number).collect() }
}

fn test() -> Test {
    Test {
        workload: "register".into(),
        nemeses: vec!["partition".into(), NASTY.into()],
        seed: u64::MAX,
        nodes: vec!["n1".into(), NASTY.into()],
        seconds: 9,
        concurrency: 2,
        left_out: vec!["clock".into()],
        options: vec![("policy".into(), Edn::Str(NASTY.into()))],
        command: NASTY.into(),
    }
}

fn verdicts() -> Vec<(String, Verdict)> {
    let anomaly = Anomaly { text: NASTY.into(), key: Some(3), events: vec![2, 5] };
    let figures = vec![("operations".to_string(), Edn::Int(4)), ("valid?".to_string(), Edn::Bool(true))];
    vec![
        ("zones".into(), Verdict { valid: Valid::No, anomalies: vec![anomaly], figures }),
        ("stats".into(), Verdict { valid: Valid::Unknown, anomalies: vec![], figures: vec![] }),
    ]
}

fn written() -> (tempfile::TempDir, Run) {
    let store = tempfile::tempdir().unwrap();
    let run = Run::create(store.path(), "register", at(0)).unwrap();
    fs::create_dir(run.dir().join("n1")).unwrap();
    fs::write(run.dir().join("n1/log"), "started\n").unwrap();
    let (test, history, verdicts) = (test(), history(), verdicts());
    run.write(&Outcome { test: &test, history: &history, verdicts: &verdicts }).unwrap();
    (store, run)
}

fn at(millis: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_709_251_199_007 + millis)
}

fn read(run: &Run, name: &str) -> String {
    fs::read_to_string(run.dir().join(name)).unwrap()
}

fn get<'a>(value: &'a Edn, path: &[&str]) -> &'a Edn {
    path.iter().fold(value, |at, name| {
        let Edn::Map(pairs) = at else { panic!("{name} in {at:?}") };
        let found = pairs.iter().find(|(key, _)| *key == Edn::Keyword((*name).into()));
        &found.unwrap_or_else(|| panic!("{name} in {at:?}")).1
    })
}

#[test]
fn names_are_times_in_utc() {
    assert_eq!(name_of(at(0)), "20240229T235959.007Z");
    assert_eq!(name_of(at(993)), "20240301T000000.000Z");
    assert_eq!(name_of(UNIX_EPOCH), "19700101T000000.000Z");
    assert_eq!(name_of(UNIX_EPOCH + Duration::from_secs(951_782_400)), "20000229T000000.000Z");
    assert!(is_time(&name_of(at(0))));
    assert!(!is_time("20240229T235959.007z") && !is_time("latest"));
}

#[test]
fn links_lead_to_the_newest_and_current_ends_with_the_run() {
    let store = tempfile::tempdir().unwrap();
    let root = store.path();
    let first = Run::create(root, "register", at(0)).unwrap();
    assert!(root.join("current").canonicalize().is_ok());
    let second = Run::create(root, "register", at(0)).unwrap();
    assert_ne!(first.dir(), second.dir(), "one time twice is two runs");
    let other = Run::create(root, "set", at(5000)).unwrap();
    let to = |link: &str| root.join(link).canonicalize().unwrap();
    assert_eq!(to("register/latest"), second.dir().canonicalize().unwrap());
    assert_eq!(to("set/latest"), other.dir().canonicalize().unwrap());
    assert_eq!([to("latest"), to("current")], [0; 2].map(|_| other.dir().canonicalize().unwrap()));
    assert!(fs::read_link(root.join("latest")).unwrap().is_relative());
    drop(first);
    assert!(root.join("current").exists(), "a run ends only its own link");
    drop(other);
    assert!(!root.join("current").exists());
    assert!(root.join("latest").exists());
}

#[test]
fn latest_leads_somewhere_at_all_times() {
    let store = tempfile::tempdir().unwrap();
    let _first = Run::create(store.path(), "set", at(0)).unwrap();
    let (over, link) = (AtomicBool::new(false), store.path().join("latest"));
    std::thread::scope(|scope| {
        let looker = scope.spawn(|| {
            let mut looks = 0;
            while !over.load(Ordering::Relaxed) || looks == 0 {
                assert!(fs::read_link(&link).is_ok());
                looks += 1;
            }
        });
        for i in 1..200 {
            drop(Run::create(store.path(), "set", at(i)).unwrap());
        }
        over.store(true, Ordering::Relaxed);
        looker.join().unwrap();
    });
}

#[test]
fn a_workload_is_a_plain_name() {
    let store = tempfile::tempdir().unwrap();
    for bad in ["", ".", "..", "a/b", "../x", "latest", "current", "a b"] {
        let refused = Run::create(store.path(), bad, at(0)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{bad}");
    }
}

#[test]
fn results_say_what_was_found() {
    let (_store, run) = written();
    let text = read(&run, "results.edn");
    assert!(text.starts_with("{:valid? false\n"), "the verdict is the first line: {text}");
    let results = Edn::parse(&text).unwrap();
    assert_eq!(get(&results, &["valid?"]), &Edn::Bool(false));
    assert_eq!(get(&results, &["zones", "valid?"]), &Edn::Bool(false), "a figure can't hide the verdict");
    assert_eq!(get(&results, &["zones", "operations"]), &Edn::Int(4));
    let Edn::Vector(anomalies) = get(&results, &["zones", "anomalies"]) else { panic!("{text}") };
    assert_eq!(get(&anomalies[0], &["events"]), &Edn::Vector(vec![Edn::Int(2), Edn::Int(5)]));
    assert_eq!(get(&anomalies[0], &["text"]), &Edn::Str(NASTY.into()));
    assert_eq!(get(&results, &["stats-checker", "valid?"]), &Edn::Keyword("unknown".into()));
    let counts = ["count", "ok-count", "fail-count", "info-count"];
    assert_eq!(counts.map(|name| get(&results, &["stats", name]).clone()), [4, 1, 1, 2].map(Edn::Int));
    assert_eq!(get(&results, &["stats", "by-f", "write", "ok-count"]), &Edn::Int(1));
    assert_eq!(get(&results, &["stats", "longest-pause", "ms"]), &Edn::Float(6000.0));
    assert_eq!(get(&results, &["left-out"]), &Edn::Vector(vec![Edn::Str("clock".into())]));
    let options = Edn::parse(&read(&run, "test.edn")).unwrap();
    assert_eq!(
        get(&options, &["seed"]),
        &Edn::Str(u64::MAX.to_string()),
        "no number that Clojure can't hold"
    );
    assert_eq!(get(&options, &["options", "policy"]), &Edn::Str(NASTY.into()));
}

#[test]
fn histories_have_a_line_an_event() {
    let (_store, run) = written();
    let edn = read(&run, "history.edn");
    let lines: Vec<&str> = edn.lines().collect();
    assert_eq!(lines.len(), 9);
    let line = Edn::parse(lines[2]).unwrap();
    assert_eq!(get(&line, &["index"]), &Edn::Int(2));
    assert_eq!(get(&line, &["process"]), &Edn::Int(0));
    assert_eq!(get(&line, &["type"]), &Edn::Keyword("ok".into()));
    assert_eq!(get(&line, &["value"]), &Edn::Vector(vec![Edn::Int(3), Edn::Int(17)]));
    assert!(lines[1].contains(":process :nemesis, :type :info, :f :start-partition"), "{}", lines[1]);
    let txt = read(&run, "history.txt");
    assert_eq!(txt.lines().count(), 10);
    let head = txt.lines().next().unwrap();
    for (line, f) in [(1, "write"), (2, "start-partition"), (4, "read"), (9, "cas<&>")] {
        let line = txt.lines().nth(line).unwrap();
        assert_eq!(line.find(f), head.find(" f ").map(|at| at + 1), "columns are aligned: {line}");
    }
}

#[test]
fn pages_and_pictures_are_well_formed_whatever_the_words() {
    let (store, run) = written();
    let pages = ["timeline.html", "latency.svg", "latency-quantiles.svg", "rate.svg", "thumbnail.svg"];
    let mut texts: Vec<String> = pages.iter().map(|name| read(&run, name)).collect();
    texts.push(fs::read_to_string(store.path().join("index.html")).unwrap());
    for text in &texts {
        // Style sheets hold > and quotes, which are fine there.
        let (head, rest) = text.split_once("<style>").unwrap_or((text, "</style>"));
        let (style, tail) = rest.split_once("</style>").unwrap();
        assert!(!style.contains('<'));
        well_formed(&format!("{head}{tail}"));
        assert!(!text.contains("<script") && !text.replace(NAMESPACE, "").contains("http"));
    }
    for text in &texts[1..4] {
        assert!(text.contains("partition × 1") && text.contains("fill-opacity=\"0.13\""), "shaded");
    }
}

#[test]
fn plots_count_what_they_show() {
    let (_store, run) = written();
    let latency = read(&run, "latency.svg");
    for words in [">ok  1<", ">info  2<", ">fail  1<", ">1 never completed<"] {
        assert!(latency.contains(words), "{words}");
    }
    assert!(!latency.contains("shown"), "nothing was left out");
    // A panel for all, and one for each name.
    let rate = read(&run, "rate.svg");
    assert_eq!(rate.matches("class=\"name\"").count(), 4);
    assert_eq!(rate.matches(">fail  1<").count(), 2);
}

#[test]
fn an_empty_run_has_reports_too() {
    let store = tempfile::tempdir().unwrap();
    let run = Run::create(store.path(), "set", at(0)).unwrap();
    let (test, history) = (test(), History::default());
    run.write(&Outcome { test: &test, history: &history, verdicts: &[] }).unwrap();
    let results = Edn::parse(&read(&run, "results.edn")).unwrap();
    assert_eq!(get(&results, &["valid?"]), &Edn::Keyword("unknown".into()), "nothing proves nothing");
    for name in ["latency.svg", "latency-quantiles.svg", "rate.svg", "timeline.html"] {
        assert!(!read(&run, name).contains("NaN") && !read(&run, name).contains("inf\""), "{name}");
    }
}

#[test]
fn the_index_links_what_there_is() {
    let (store, run) = written();
    let newer = Run::create(store.path(), "set", at(60_000)).unwrap();
    index::write(store.path()).unwrap();
    let page = fs::read_to_string(store.path().join("index.html")).unwrap();
    let base = format!("register/{}", run.when);
    for name in ["", "timeline.html", "results.edn", "latency.svg", "rate.svg", "n1/log"] {
        let link = format!("href=\"{base}/{name}\"");
        assert!(page.contains(&link), "{link}");
        assert!(store.path().join(&base).join(name).exists());
    }
    assert!(page.contains(">invalid<") && page.contains("1 anomaly"));
    assert!(page.contains(">running<"), "no results yet");
    assert!(page.find(&newer.when) < page.find(&run.when), "newest first");
    drop(newer);
    assert!(index::html(store.path()).unwrap().contains(">broken off<"));
    let elsewhere = store.path().join("nowhere");
    assert!(index::html(&elsewhere).unwrap().contains("No runs yet"));
}

#[test]
fn the_summary_names_the_worst_first() {
    let (_store, run) = written();
    let (test, history, verdicts) = (test(), history(), verdicts());
    let words = run.summary(&Outcome { test: &test, history: &history, verdicts: &verdicts });
    assert!(words.starts_with("register: INVALID\n"), "{words}");
    for part in
        ["zones  invalid, 1 anomaly", "key 3: ", "[2 5]", "left out   clock", "6.00 s without", &run.when]
    {
        assert!(words.contains(part), "{part} in {words}");
    }
    assert!(!words.contains('\u{7}'), "nothing commands the terminal");
}
