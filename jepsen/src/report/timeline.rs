//! `timeline.html`: who did what when. A column for each client, time runs down, an operation is a box.
//!
//! As in Jepsen's timeline a row is an event, not a stretch of time: what overlapped overlaps, and nothing is
//! too short to be read. Unlike there, a process that goes on under a new number after an `info` stays in its
//! column. Events of anomalies are marked and listed above. Long histories are cut; see [`select`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::markup::{duration, escape, grouped, short, verdict};
use super::standin::edn_text;
use super::text;
use super::view::{Op, View};
use crate::checker::{Anomaly, Valid};
use crate::edn::Edn;
use crate::history::{Event, Kind};

/// How many operations are shown from the beginning on.
pub const OPS_MAX: usize = 10_000;
/// How many more may be shown for the anomalies' sake.
const NEAR_MAX: usize = 4_000;
/// How many operations before and after each one of an anomaly.
const NEAR: usize = 25;
const ANOMALIES_MAX: usize = 50;
/// The height of a row, and the width of a column with its gutter, in pixels.
const ROW: usize = 17;
const COLUMN: usize = 128;
/// A time is written in the margin every so many rows.
const MARGIN_EVERY: usize = 10;

/// Where things are drawn.
struct Plan {
    /// Positions of the operations that are shown.
    shown: BTreeSet<usize>,
    /// The column of each operation, from 0.
    columns: Vec<usize>,
    width: usize,
    /// Each drawn event's row, by index.
    rows: BTreeMap<u64, usize>,
    /// The time at each row.
    times: Vec<u64>,
    /// Rows at which operations were left out, and how many.
    gaps: Vec<(usize, usize)>,
}

/// The operations to show: the first, those of anomalies, and what surrounds these while there is room.
fn select(ops: &[Op], guilty: &BTreeSet<u64>, most: usize, near_most: usize) -> BTreeSet<usize> {
    let mut shown: BTreeSet<usize> = (0..ops.len().min(most)).collect();
    let bad: Vec<usize> = (0..ops.len()).filter(|at| is_guilty(&ops[*at], guilty)).collect();
    shown.extend(bad.iter().take(near_most));
    let room = most + near_most;
    for distance in 1..=NEAR {
        for at in &bad {
            for near in [at.checked_sub(distance), Some(at + distance)].into_iter().flatten() {
                if near < ops.len() && shown.len() < room {
                    shown.insert(near);
                }
            }
        }
    }
    shown
}

fn is_guilty(op: &Op, guilty: &BTreeSet<u64>) -> bool {
    guilty.contains(&op.begin.index) || op.end.is_some_and(|end| guilty.contains(&end.index))
}

/// A column for each operation: a process's own, or that of one whose last operation ended as `info`.
fn columns(ops: &[Op], concurrency: usize) -> (Vec<usize>, usize) {
    let mut columns: BTreeMap<u64, usize> = BTreeMap::new();
    // Which process has a column, and whether it is gone.
    let mut owners: Vec<(u64, bool)> = Vec::new();
    let mut found = Vec::with_capacity(ops.len());
    for op in ops {
        let column = *columns.entry(op.process).or_insert_with(|| {
            // Jepsen numbers a process that goes on by adding the concurrency.
            let own = usize::try_from(op.process).unwrap_or(0) % concurrency.max(1);
            let free = |at: &usize| owners.get(*at).is_some_and(|(_, gone)| *gone);
            let at = [own].into_iter().find(free).or_else(|| (0..owners.len()).find(free));
            at.unwrap_or(owners.len())
        });
        if column == owners.len() {
            owners.push((op.process, false));
        }
        owners[column] = (op.process, op.end.is_some_and(|end| end.kind == Kind::Info));
        found.push(column);
    }
    (found, owners.len())
}

impl Plan {
    fn new(view: &View) -> Plan {
        let shown = select(&view.ops, &view.guilty, OPS_MAX, NEAR_MAX);
        let (columns, width) = columns(&view.ops, view.test.concurrency);
        // Events in order; with an operation's invocation, how many were left out before it.
        let mut events: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
        let mut before = 0;
        for at in &shown {
            let op = &view.ops[*at];
            events.insert(op.begin.index, (op.begin.time, at - before));
            events.extend(op.end.map(|end| (end.index, (end.time, 0))));
            before = at + 1;
        }
        events.extend(view.nemesis.iter().map(|event| (event.index, (event.time, 0))));
        let (mut rows, mut times, mut gaps) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (index, (time, left_out)) in events {
            if left_out > 0 {
                gaps.push((times.len(), left_out));
                times.extend([time; 2]);
            }
            rows.insert(index, times.len());
            times.push(time);
        }
        if before < view.ops.len() {
            gaps.push((times.len(), view.ops.len() - before));
            times.extend([view.end; 2]);
        }
        Plan { shown, columns, width, rows, times, gaps }
    }

    fn row(&self, event: &Event) -> usize {
        self.rows.get(&event.index).copied().unwrap_or(0)
    }

    /// The first row at or after a time.
    fn row_at(&self, time: u64) -> usize {
        self.times.partition_point(|at| *at < time)
    }
}

/// The page.
pub fn html(view: &View) -> String {
    let plan = Plan::new(view);
    let mut out = String::from("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><title>");
    let _ = write!(out, "{} {}</title>\n<style>", escape(&view.test.workload), escape(view.when));
    out.push_str(include_str!("timeline.css"));
    for column in 0..plan.width {
        let _ = write!(out, ".c{column}{{left:{}px}}", column * COLUMN);
    }
    out.push_str("</style></head>\n<body>\n");
    head(view, &plan, &mut out);
    anomalies(view, &mut out);
    let wide = plan.width * COLUMN;
    let _ = write!(
        out,
        "<div class=\"board\" style=\"width:{}px\">\n<div class=\"heads\"><i class=\"m\">s</i><i class=\"nem\">nemesis</i>",
        wide + 230
    );
    for column in 0..plan.width {
        let _ = write!(out, "<i>client {column}</i>");
    }
    let _ = write!(out, "</div>\n<div class=\"ops\" style=\"height:{}px\">\n", (plan.times.len() + 3) * ROW);
    margin(view, &plan, wide, &mut out);
    faults(view, &plan, wide, &mut out);
    out.push_str("<div class=\"boxes\">\n");
    for at in &plan.shown {
        operation(view, &plan, *at, &mut out);
    }
    out.push_str("</div>\n</div>\n</div>\n</body></html>\n");
    out
}

fn head(view: &View, plan: &Plan, out: &mut String) {
    let (word, color) = verdict(view.valid);
    let counts = view.counts(None);
    let _ = write!(
        out,
        "<header>\n<nav><a href=\"../../index.html\">runs</a> / <a href=\"../\">{0}</a> / <a href=\"./\">{1}</a></nav>\n\
         <h1>{0}: timeline <span class=\"pill\" style=\"background:{color}\">{word}</span></h1>\n<p>",
        escape(&view.test.workload),
        escape(view.when)
    );
    for (class, name, count) in
        [("ok", "ok", counts.ok), ("info", "info", counts.info), ("fail", "fail", counts.fail)]
    {
        let _ = write!(out, "<span class=\"key {class}\">{} {name}</span> ", grouped(count));
    }
    out.push_str(
        "<span class=\"key bad\">part of an anomaly</span> A row is an event; details are in the tips.</p>\n",
    );
    if plan.shown.len() < view.ops.len() {
        let _ = writeln!(
            out,
            "<p class=\"cut\">{} of {} operations are shown: the first {}, and what is near anomalies.</p>",
            grouped(plan.shown.len() as u64),
            grouped(view.ops.len() as u64),
            grouped(OPS_MAX as u64)
        );
    }
    out.push_str("</header>\n");
}

fn anomalies(view: &View, out: &mut String) {
    // Where an event is drawn: the box of its operation.
    let mut places: BTreeMap<u64, u64> = BTreeMap::new();
    for op in &view.ops {
        let id = id(op);
        places.extend([(op.begin.index, id)].into_iter().chain(op.end.map(|end| (end.index, id))));
    }
    let all: Vec<(&str, &Anomaly)> =
        view.verdicts.iter().flat_map(|(name, v)| v.anomalies.iter().map(|a| (name.as_str(), a))).collect();
    if all.is_empty() {
        if view.valid == Valid::Yes {
            out.push_str("<section><p class=\"fine\">No anomalies.</p></section>\n");
        }
        return;
    }
    let _ = write!(out, "<section>\n<h2>Anomalies ({})</h2>\n<ol>\n", all.len());
    for (checker, anomaly) in all.iter().take(ANOMALIES_MAX) {
        let key = anomaly.key.map_or(String::new(), |key| format!("key {key}: "));
        let _ = write!(out, "<li><b>{}</b> {key}{}", escape(checker), escape(&short(&anomaly.text, 400)));
        for event in anomaly.events.iter().take(20) {
            let _ = match places.get(event) {
                Some(id) => write!(out, " <a href=\"#i{id}\">{event}</a>"),
                None => write!(out, " <span>{event}</span>"),
            };
        }
        out.push_str("</li>\n");
    }
    out.push_str("</ol>\n");
    if all.len() > ANOMALIES_MAX {
        let _ = writeln!(out, "<p>and {} more, in results.edn</p>", all.len() - ANOMALIES_MAX);
    }
    out.push_str("</section>\n");
}

/// Times down the left side, and the places at which operations were left out.
fn margin(view: &View, plan: &Plan, wide: usize, out: &mut String) {
    for row in (0..plan.times.len()).step_by(MARGIN_EVERY) {
        let seconds = plan.times[row] as f64 / 1e9;
        let _ = writeln!(
            out,
            "<div class=\"time\" style=\"top:{}px;width:{}px\">{seconds:.3}</div>",
            row * ROW,
            wide + 220
        );
    }
    for (row, count) in &plan.gaps {
        let words = if plan.times.get(row + 2).is_some() { "operations left out" } else { "more operations" };
        let _ = writeln!(
            out,
            "<div class=\"gap\" style=\"top:{}px;width:{}px\">{} {words}</div>",
            row * ROW,
            wide + 220,
            grouped(*count as u64)
        );
    }
    if view.ops.is_empty() {
        out.push_str("<div class=\"gap\" style=\"top:0px;width:400px\">no operations</div>\n");
    }
}

/// The nemesis: bands while a fault is at work, a box for each event.
fn faults(view: &View, plan: &Plan, wide: usize, out: &mut String) {
    for period in &view.periods {
        let (from, to) = (plan.row_at(period.began), plan.row_at(period.ended));
        let lane = view.faults.iter().position(|name| *name == period.name).unwrap_or(0);
        let _ = writeln!(
            out,
            "<div class=\"band\" style=\"top:{0}px;height:{1}px;width:{2}px;background:{3}\"></div>\
             <div class=\"lane\" style=\"top:{0}px;height:{1}px;left:{4}px;background:{3}\" title=\"{5}, {6}\"></div>",
            from * ROW,
            (to - from).max(1) * ROW,
            wide + 110,
            view.color(&period.name),
            65 + lane % 6 * 6,
            escape(&period.name),
            duration(period.ended - period.began)
        );
    }
    for event in &view.nemesis {
        let _ = writeln!(
            out,
            "<div class=\"n\" style=\"top:{}px\" title=\"{}\">{} <i>{}</i></div>",
            plan.row(event) * ROW,
            escape(&format!("{:.4} s\n{}", event.time as f64 / 1e9, describe(event))),
            escape(&event.f),
            escape(&short(&value_text(&event.value), 60))
        );
    }
}

/// What an operation is known by in links: its completion, as in Jepsen's timeline.
fn id(op: &Op) -> u64 {
    op.end.map_or(op.begin.index, |end| end.index)
}

fn operation(view: &View, plan: &Plan, at: usize, out: &mut String) {
    let op = &view.ops[at];
    let top = plan.row(op.begin);
    let bottom = op.end.map_or(plan.times.len(), |end| plan.row(end) + 1);
    let class = text::kind(op.outcome());
    let bad = if is_guilty(op, &view.guilty) { " bad" } else { "" };
    let _ = writeln!(
        out,
        "<a class=\"{class} c{}{bad}\" id=\"i{1}\" href=\"#i{1}\" style=\"top:{2}px;height:{3}px\" title=\"{4}\">{5}</a>",
        plan.columns[at],
        id(op),
        top * ROW,
        (bottom - top) * ROW - 3,
        escape(&tip(op)),
        label(op)
    );
}

/// `read k3 → 17`: name, key, what was asked, and what was answered if that differs.
fn label(op: &Op) -> String {
    let (key, input) = split(&op.begin.value);
    let mut words = key.map_or(String::new(), |key| format!(" <u>{}</u>", escape(&short(&key, 12))));
    if *input != Edn::Nil {
        let _ = write!(words, " {}", escape(&short(&value_text(input), 40)));
    }
    if let Some(end) = op.end.filter(|end| end.kind == Kind::Ok && end.value != op.begin.value) {
        let _ = write!(words, " → {}", escape(&short(&value_text(split(&end.value).1), 40)));
    }
    format!("<b>{}</b>{words}", escape(&short(&op.begin.f, 16)))
}

/// A client's value as key and value; others are all value.
fn split(value: &Edn) -> (Option<String>, &Edn) {
    match value {
        Edn::Vector(pair) if pair.len() == 2 => (Some(format!("k{}", value_text(&pair[0]))), &pair[1]),
        _ => (None, value),
    }
}

fn value_text(value: &Edn) -> String {
    if let Edn::Str(text) = value { text.clone() } else { edn_text(value) }
}

fn tip(op: &Op) -> String {
    let mut tip = format!("process {}, from {:.4} s", op.process, op.begin.time as f64 / 1e9);
    match op.latency() {
        Some(latency) => drop(write!(tip, ", took {}", duration(latency))),
        None => tip.push_str(", never completed"),
    }
    let _ = write!(tip, "\n{}", describe(op.begin));
    if let Some(end) = op.end {
        let _ = write!(tip, "\n{}", describe(end));
    }
    tip
}

fn describe(event: &Event) -> String {
    let (kind, value) = (text::kind(event.kind), short(&edn_text(&event.value), 300));
    let mut words = format!("{}: {kind} {} {value}", event.index, event.f);
    for (name, value) in &event.extra {
        let _ = write!(words, "\n   {name}: {}", short(&value_text(value), 200));
    }
    words
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
