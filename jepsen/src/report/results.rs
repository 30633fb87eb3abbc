//! `results.edn` and `test.edn`: what was found, and what was run.

use super::text::{map, number, pretty, strings};
use super::view::{Counts, View};
use super::{Outcome, Test};
use crate::checker::{Anomaly, Valid, Verdict};
use crate::edn::Edn;

/// A verdict as Jepsen writes it: `true`, `false` or `:unknown`.
pub fn valid(valid: Valid) -> Edn {
    match valid {
        Valid::Yes => Edn::Bool(true),
        Valid::Unknown => Edn::Keyword("unknown".into()),
        Valid::No => Edn::Bool(false),
    }
}

/// The names at the top of `results.edn` that are no checker's.
const RESERVED: [&str; 3] = ["valid?", "stats", "left-out"];

/// `results.edn`: as Jepsen's, a map with `:valid?` and an entry for each checker.
pub fn results_edn(outcome: &Outcome, view: &View) -> String {
    let mut entries = vec![("valid?".to_string(), valid(view.valid))];
    for (name, verdict) in outcome.verdicts {
        let taken = RESERVED.contains(&name.as_str());
        entries.push((if taken { format!("{name}-checker") } else { name.clone() }, checker(verdict)));
    }
    entries.push(("stats".into(), stats(view)));
    entries.push(("left-out".into(), strings(&outcome.test.left_out)));
    pretty(&map(entries.iter().map(|(name, value)| (name.as_str(), value.clone()))))
}

fn checker(verdict: &Verdict) -> Edn {
    let anomalies = Edn::Vector(verdict.anomalies.iter().map(anomaly).collect());
    let figures = verdict.figures.iter().map(|(name, value)| (name.as_str(), value.clone()));
    let head = [("valid?", valid(verdict.valid))];
    let tail = [("anomaly-count", number(verdict.anomalies.len() as u64)), ("anomalies", anomalies)];
    map(head.into_iter().chain(figures).chain(tail))
}

fn anomaly(anomaly: &Anomaly) -> Edn {
    let events = Edn::Vector(anomaly.events.iter().map(|index| number(*index)).collect());
    let key = anomaly.key.map_or(Edn::Nil, number);
    map([("text", Edn::Str(anomaly.text.clone())), ("key", key), ("events", events)])
}

fn stats(view: &View) -> Edn {
    let by_f: Vec<_> = view.fs.iter().map(|f| (*f, map(counted(view.counts(Some(f)))))).collect();
    let (at, pause) = view.longest_pause();
    let ms = |nanos: u64| Edn::Float((nanos as f64 / 1e3).round() / 1e3);
    let pause = map([("at-ms", ms(at)), ("ms", ms(pause))]);
    let mut entries = counted(view.counts(None)).to_vec();
    entries.extend([("longest-pause", pause), ("by-f", map(by_f))]);
    map(entries)
}

fn counted(counts: Counts) -> [(&'static str, Edn); 4] {
    [
        ("count", number(counts.all())),
        ("ok-count", number(counts.ok)),
        ("fail-count", number(counts.fail)),
        ("info-count", number(counts.info)),
    ]
}

/// `test.edn`: the options.
pub fn test_edn(test: &Test, when: &str) -> String {
    pretty(&map([
        ("name", Edn::Str(test.workload.clone())),
        ("start-time", Edn::Str(when.into())),
        ("nemeses", strings(&test.nemeses)),
        ("seed", number(test.seed)),
        ("nodes", strings(&test.nodes)),
        ("time-limit", number(test.seconds)),
        ("concurrency", number(test.concurrency as u64)),
        ("left-out", strings(&test.left_out)),
        ("command", Edn::Str(test.command.clone())),
        ("options", map(test.options.iter().map(|(name, value)| (name.as_str(), value.clone())))),
    ]))
}
