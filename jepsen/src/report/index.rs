//! `index.html`: all runs of the store, newest first.
//!
//! It is made from the directories each time, so it can't be wrong for long: a run that was deleted is gone
//! from it, one without `results.edn` is shown as running or broken off.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;

use super::markup::{escape, grouped, link, verdict};
use super::store::{is_time, plain, replace};
use crate::checker::Valid;
use crate::edn::Edn;

/// More runs than this are only counted.
const RUNS_MAX: usize = 1000;

/// A run as its directory shows it.
#[derive(Debug)]
struct Found {
    workload: String,
    when: String,
    nemeses: Vec<String>,
    /// `None` if there are no results.
    valid: Option<Valid>,
    anomalies: u64,
    ops: Option<u64>,
    ok: u64,
    seconds: Option<u64>,
    seed: String,
    current: bool,
    /// The names of what is in it.
    files: Vec<String>,
}

/// Writes the store's index anew.
pub fn write(root: &Path) -> io::Result<()> {
    replace(&root.join("index.html"), html(root)?.as_bytes())
}

/// The index of a store. A store that does not exist is empty.
pub fn html(root: &Path) -> io::Result<String> {
    let (runs, older) = scan(root)?;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for run in &runs {
        *counts.entry(shown(run).0).or_default() += 1;
    }
    let mut out = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><title>Quoral: runs</title>\n<style>",
    );
    out.push_str(super::INDEX_STYLE);
    out.push_str("</style></head>\n<body><header><h1>Quoral <span>runs of the fault suite</span></h1><p>");
    let _ = write!(out, "<b>{}</b> runs", grouped(runs.len() as u64));
    for (word, count) in counts {
        let _ = write!(out, " · {} {word}", grouped(count as u64));
    }
    out.push_str("</p></header>\n");
    if runs.is_empty() {
        out.push_str("<p class=\"none\">No runs yet: <code>cargo run -p quoral-jepsen -- test</code></p>\n");
    } else {
        out.push_str(
            "<table><thead><tr><th>time (UTC)</th><th>workload</th><th>nemeses</th><th>valid?</th>\
             <th class=\"n\">operations</th><th>latency</th><th>reports</th><th>plots</th><th>logs</th></tr></thead><tbody>\n",
        );
        runs.iter().for_each(|run| row(run, &mut out));
        out.push_str("</tbody></table>\n");
    }
    if older > 0 {
        let _ = writeln!(out, "<p class=\"none\">and {} older runs</p>", grouped(older as u64));
    }
    Ok(out + "</body></html>\n")
}

fn shown(run: &Found) -> (&'static str, &'static str) {
    match (run.valid, run.current) {
        (Some(valid), _) => verdict(valid),
        (None, true) => ("running", "#3b82d6"),
        (None, false) => ("broken off", "#87929c"),
    }
}

fn row(run: &Found, out: &mut String) {
    let base = link(&format!("{}/{}", run.workload, run.when));
    let has = |name: &str| run.files.iter().any(|file| file == name);
    let to = |names: &[(&str, &str)]| {
        let there = names.iter().filter(|(name, _)| has(name));
        let links = there.map(|(name, word)| format!("<a href=\"{base}/{name}\">{word}</a>"));
        links.collect::<Vec<_>>().join(" ")
    };
    let (word, color) = shown(run);
    let w = &run.when;
    let time =
        format!("{}-{}-{} <b>{}:{}:{}</b>", &w[..4], &w[4..6], &w[6..8], &w[9..11], &w[11..13], &w[13..15]);
    let _ = write!(
        out,
        "<tr><td class=\"t\"><a href=\"{base}/\">{time}</a></td><td><b>{}</b><small>{}</small></td><td>",
        escape(&run.workload),
        escape(&run.seed)
    );
    for nemesis in &run.nemeses {
        let _ = write!(out, "<span class=\"fault\">{}</span>", escape(nemesis));
    }
    let _ = write!(out, "</td><td><span class=\"pill\" style=\"background:{color}\">{word}</span>");
    match run.anomalies {
        0 => {}
        1 => out.push_str("<small>1 anomaly</small>"),
        n => drop(write!(out, "<small>{} anomalies</small>", grouped(n))),
    }
    out.push_str("</td><td class=\"n\">");
    if let Some(ops) = run.ops {
        let share = run.ok as f64 * 100.0 / (ops.max(1)) as f64;
        let _ = write!(out, "{}<small>{share:.1} % ok", grouped(ops));
        out.push_str(&run.seconds.map_or(String::new(), |s| format!(", {s} s")));
        out.push_str("</small>");
    }
    out.push_str("</td><td>");
    if has("thumbnail.svg") {
        let _ = write!(
            out,
            "<a href=\"{base}/latency.svg\"><img src=\"{base}/thumbnail.svg\" width=\"220\" height=\"64\" alt=\"latency\" loading=\"lazy\"/></a>"
        );
    }
    let reports = [
        ("timeline.html", "timeline"),
        ("results.edn", "results"),
        ("history.txt", "history"),
        ("history.edn", "edn"),
        ("test.edn", "test"),
    ];
    let plots = [("latency.svg", "latency"), ("latency-quantiles.svg", "quantiles"), ("rate.svg", "rate")];
    let _ = write!(
        out,
        "</td><td class=\"l\">{}</td><td class=\"l\">{}</td><td class=\"l\">",
        to(&reports),
        to(&plots)
    );
    for file in run.files.iter().filter(|file| file.ends_with("/log")) {
        let node = file.trim_end_matches("/log");
        let _ = write!(out, "<a href=\"{base}/{}\">{}</a> ", link(file), escape(node));
    }
    out.push_str("</td></tr>\n");
}

/// The newest runs, and how many older ones there are.
fn scan(root: &Path) -> io::Result<(Vec<Found>, usize)> {
    let current = fs::read_link(root.join("current")).ok();
    let mut names = Vec::new();
    for workload in dirs(root)?.into_iter().filter(|name| plain(name)) {
        let times = dirs(&root.join(&workload))?;
        names.extend(times.into_iter().filter(|when| is_time(when)).map(|when| (when, workload.clone())));
    }
    names.sort_by(|a, b| b.cmp(a));
    let older = names.len().saturating_sub(RUNS_MAX);
    names.truncate(RUNS_MAX);
    let runs = names.into_iter().map(|(when, workload)| {
        let within = Path::new(&workload).join(&when);
        let is_current = current.as_ref() == Some(&within);
        read(&root.join(&within), workload, when, is_current)
    });
    Ok((runs.collect(), older))
}

/// The names of the directories in a directory, links left out.
fn dirs(at: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(at) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    Ok(entries.flatten().filter(is_dir).filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

fn read(dir: &Path, workload: String, when: String, current: bool) -> Found {
    let edn = |name: &str| fs::read_to_string(dir.join(name)).ok().and_then(|text| Edn::parse(&text).ok());
    let (results, test) = (edn("results.edn"), edn("test.edn"));
    let (results, test) = (results.as_ref(), test.as_ref());
    let stats = get(results, "stats");
    let checkers = match results {
        Some(Edn::Map(pairs)) => pairs.as_slice(),
        _ => &[],
    };
    let nemeses = match get(test, "nemeses") {
        Some(Edn::Vector(items)) => items.iter().map(words).collect(),
        _ => Vec::new(),
    };
    let names =
        fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
    let with_log = |name: String| if dir.join(&name).join("log").is_file() { name + "/log" } else { name };
    let mut files: Vec<String> = names.map(with_log).collect();
    files.sort();
    Found {
        workload,
        when,
        nemeses,
        valid: results.map(|_| match get(results, "valid?") {
            Some(Edn::Bool(true)) => Valid::Yes,
            Some(Edn::Bool(false)) => Valid::No,
            _ => Valid::Unknown,
        }),
        anomalies: checkers.iter().filter_map(|(_, value)| int(get(Some(value), "anomaly-count"))).sum(),
        ops: int(get(stats, "count")),
        ok: int(get(stats, "ok-count")).unwrap_or(0),
        seconds: int(get(test, "time-limit")),
        seed: get(test, "seed").map_or(String::new(), |seed| format!("seed {}", words(seed))),
        current,
        files,
    }
}

fn get<'a>(value: Option<&'a Edn>, name: &str) -> Option<&'a Edn> {
    let Some(Edn::Map(pairs)) = value else { return None };
    pairs.iter().find(|(key, _)| matches!(key, Edn::Keyword(k) if k == name)).map(|(_, value)| value)
}

fn int(value: Option<&Edn>) -> Option<u64> {
    if let Some(Edn::Int(number)) = value { u64::try_from(*number).ok() } else { None }
}

fn words(value: &Edn) -> String {
    if let Edn::Str(text) = value { text.clone() } else { value.to_string() }
}
