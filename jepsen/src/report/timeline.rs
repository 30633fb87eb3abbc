//! `timeline.html`: who did what when. A column for each client, time runs down, an operation is a box.
//!
//! As in Jepsen's timeline a row is an event, not a stretch of time: what overlapped overlaps, and nothing is
//! too short to be read. Events of anomalies are marked and listed above. Long histories are cut; see [`super::plan`].

use std::collections::BTreeMap;
use std::fmt::Write;

use super::markup::{duration, escape, grouped, short, verdict};
use super::plan::{OPS_MAX, Plan, is_guilty};
use super::text;
use super::view::{Op, View};
use crate::checker::{Anomaly, Valid};
use crate::edn::Edn;
use crate::history::{Event, Kind};

const ANOMALIES_MAX: usize = 50;
/// The height of a row, and the width of a column with its gutter, in pixels.
const ROW: usize = 17;
const COLUMN: usize = 128;
/// A time is written in the margin every so many rows.
const MARGIN_EVERY: usize = 10;

/// The page.
pub fn html(view: &View) -> String {
    let plan = Plan::new(view);
    let mut out = String::from("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><title>");
    let _ = write!(out, "{} {}</title>\n<style>", escape(&view.test.workload), escape(view.when));
    out.push_str(include_str!("timeline.css"));
    for column in 0..plan.clients.len() {
        let _ = write!(out, ".c{column}{{left:{}px}}", column * COLUMN);
    }
    out.push_str("</style></head>\n<body>\n");
    head(view, &plan, &mut out);
    anomalies(view, &mut out);
    let wide = plan.clients.len() * COLUMN;
    let _ = write!(
        out,
        "<div class=\"board\" style=\"width:{}px\">\n<div class=\"heads\"><i class=\"m\">s</i><i class=\"nem\">nemesis</i>",
        wide + 230
    );
    for client in &plan.clients {
        let _ = write!(out, "<i>client {client}</i>");
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
        "<span class=\"key bad\">part of an anomaly</span> A row is an event. Point at a box for the details.</p>\n",
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
    let answered = |end: &&Event| end.kind == Kind::Ok && (end.value != op.begin.value || *input == Edn::Nil);
    if let Some(end) = op.end.filter(answered) {
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
    if let Edn::Str(text) = value { text.clone() } else { value.to_string() }
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
    let (kind, value) = (text::kind(event.kind), short(&event.value.to_string(), 300));
    let mut words = format!("{}: {kind} {} {value}", event.index, event.f);
    for (name, value) in &event.extra {
        let _ = write!(words, "\n   {name}: {}", short(&value_text(value), 200));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Process;

    fn event(index: u64, kind: Kind, value: Edn) -> Event {
        let (process, value) = (Process::Client(0), Edn::Vector(vec![Edn::Int(1), value]));
        Event { index, time: index, process, kind, f: "read".into(), value, extra: BTreeMap::new() }
    }

    #[test]
    fn labels_say_what_was_asked_and_answered() {
        let begin = event(0, Kind::Invoke, Edn::Nil);
        let end = event(1, Kind::Ok, Edn::Str("<b>".into()));
        let op = Op { begin: &begin, end: Some(&end), process: 0 };
        assert_eq!(label(&op), "<b>read</b> <u>k1</u> → &lt;b&gt;");
        let nothing = event(1, Kind::Ok, Edn::Nil);
        assert_eq!(label(&Op { end: Some(&nothing), ..op }), "<b>read</b> <u>k1</u> → nil");
        let open = Op { end: None, ..op };
        assert_eq!(label(&open), "<b>read</b> <u>k1</u>");
        assert!(tip(&open).contains("never completed"));
    }
}
