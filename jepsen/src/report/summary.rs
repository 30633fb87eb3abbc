//! A run in a few lines, for the terminal.

use std::fmt::Write;

use super::Outcome;
use super::markup::{duration, grouped, short, verdict};
use super::quantiles::quantile;
use super::view::View;
use crate::history::Kind;

const ANOMALIES_SHOWN: usize = 5;

/// What was run, each checker's verdict, the first anomalies, counts, rates, and the longest pause. Where the
/// store is, [`super::Run::summary`] adds.
pub fn summary(outcome: &Outcome) -> String {
    let view = View::new(outcome, "");
    let test = outcome.test;
    let faults = if test.nemeses.is_empty() { "none".into() } else { test.nemeses.join(", ") };
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{}: {}\n  nemeses    {faults}; seed {}",
        test.workload,
        verdict(view.valid).0.to_uppercase(),
        test.seed
    );
    for missing in &test.left_out {
        let _ = writeln!(out, "  left out   {}", one_line(missing));
    }
    let wide = outcome.verdicts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, found) in outcome.verdicts {
        let _ = write!(out, "  checker    {name:wide$}  {}", verdict(found.valid).0);
        let count = found.anomalies.len();
        let _ = match count {
            0 => writeln!(out),
            1 => writeln!(out, ", 1 anomaly"),
            _ => writeln!(out, ", {count} anomalies"),
        };
        for anomaly in found.anomalies.iter().take(ANOMALIES_SHOWN) {
            let key = anomaly.key.map_or(String::new(), |key| format!("key {key}: "));
            let events: Vec<_> = anomaly.events.iter().take(8).map(u64::to_string).collect();
            let events = if events.is_empty() { String::new() } else { format!(" [{}]", events.join(" ")) };
            let _ = writeln!(out, "             {key}{}{events}", one_line(&short(&anomaly.text, 160)));
        }
        if count > ANOMALIES_SHOWN {
            let _ = writeln!(out, "             and {} more", count - ANOMALIES_SHOWN);
        }
    }
    operations(&view, &mut out);
    let (at, pause) = view.longest_pause();
    let _ = writeln!(
        out,
        "  pause      {} without an acknowledgement, from {:.1} s on",
        duration(pause),
        at as f64 / 1e9
    );
    // Words of others must not command the terminal.
    out.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

fn operations(view: &View, out: &mut String) {
    let wide = view.fs.iter().map(|f| f.chars().count()).max().unwrap_or(0).max(3);
    let rows = [None].into_iter().chain(view.fs.iter().map(|f| Some(*f)));
    for f in rows.filter(|f| f.is_none() || view.fs.len() > 1) {
        let counts = view.counts(f);
        let oks = view.ops.iter().filter(|op| op.outcome() == Kind::Ok && f.is_none_or(|f| op.begin.f == f));
        let mut latencies: Vec<u64> = oks.filter_map(|op| op.latency()).collect();
        latencies.sort_unstable();
        let at = |share| quantile(&latencies, share).map_or("-".into(), duration);
        let _ = writeln!(
            out,
            "  {:<10} {:wide$}  {:>7} ok  {:>6} info  {:>6} fail  {:>8.1} ok/s  p50 {:>8}  p99 {:>8}",
            if f.is_none() { "operations" } else { "" },
            f.unwrap_or("all"),
            grouped(counts.ok),
            grouped(counts.info),
            grouped(counts.fail),
            counts.ok as f64 / view.seconds(),
            at(0.5),
            at(0.99),
        );
    }
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}
