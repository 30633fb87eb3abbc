//! `rate.svg`: completions a second, a panel for each operation's name, outcomes stacked upon each other.
//!
//! Jepsen draws a line for each name and outcome in one plot; stacks in panels show the same and don't cross.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::layout::{LEFT, OUTCOMES, RIGHT, Sheet, window};
use super::markup::{grouped, short};
use super::scale::Scale;
use super::view::View;
use crate::history::Kind;

const PANEL: f64 = 96.0;
const GAP: f64 = 16.0;
/// More names than this are only in the sum.
const PANELS_MAX: usize = 8;

/// Completions in each window, by outcome, of one name or of all.
fn windows(view: &View, f: Option<&str>, wide: f64, count: usize) -> Vec<[u64; 3]> {
    let mut found = vec![[0; 3]; count];
    for op in view.ops.iter().filter(|op| f.is_none_or(|f| op.begin.f == f)) {
        let Some(end) = op.end else { continue };
        let number = (end.time as f64 / 1e9 / wide) as usize;
        let outcome = OUTCOMES.iter().position(|(kind, ..)| *kind == op.outcome()).unwrap_or(1);
        found[number.min(count - 1)][outcome] += 1;
    }
    found
}

/// The plot.
pub fn svg(view: &View) -> String {
    let wide = window(view.seconds());
    let count = (view.seconds() / wide).ceil().max(1.0) as usize;
    let mut panels: Vec<(Option<&str>, String)> = Vec::new();
    if view.fs.len() != 1 {
        panels.push((None, "all".into()));
    }
    panels.extend(view.fs.iter().take(PANELS_MAX).map(|f| (Some(*f), short(f, 18))));
    let height = panels.len() as f64 * (PANEL + GAP) - GAP;
    let mut sheet = Sheet::new(view, "rate of completions", height);
    let top = sheet.top;
    for (i, (f, name)) in panels.iter().enumerate() {
        let at = top + i as f64 * (PANEL + GAP);
        panel(view, &mut sheet, &windows(view, *f, wide, count), wide, at);
        sheet.text(RIGHT + 16.0, at + 12.0, "name", "start", name);
        let counts = view.counts(*f);
        let shown = OUTCOMES.iter().filter(|(kind, ..)| counts.of(*kind) > 0 || *kind == Kind::Ok);
        for (row, (kind, word, color)) in shown.enumerate() {
            let (x, y) = (RIGHT + 16.0, at + 32.0 + row as f64 * 18.0);
            let _ = writeln!(
                sheet.out,
                "<rect x=\"{x}\" y=\"{:.1}\" width=\"10\" height=\"10\" rx=\"2\" fill=\"{color}\"/>",
                y - 9.0
            );
            sheet.text(x + 16.0, y, "", "start", &format!("{word}  {}", grouped(counts.of(*kind))));
        }
    }
    sheet.axis(top, top + height, "operations per second");
    sheet.close(top + height, &format!("time of completion (s), in windows of {wide} s"))
}

fn panel(view: &View, sheet: &mut Sheet, windows: &[[u64; 3]], wide: f64, top: f64) {
    // The last window may be cut short by the end of the run.
    let length = |i: usize| (view.seconds() - i as f64 * wide).min(wide).max(wide * 0.2);
    let rate = |i: usize, sum: u64| sum as f64 / length(i);
    let sums = windows.iter().enumerate().map(|(i, counts)| rate(i, counts.iter().sum()));
    let y = Scale::linear(0.0, sums.fold(1.0, f64::max) * 1.08, top + PANEL, top);
    sheet.panel(
        &y,
        3,
        |value| if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") },
    );
    let x = |i: usize| sheet.x.at((i as f64 * wide).min(view.seconds()));
    let mut below: BTreeMap<usize, u64> = BTreeMap::new();
    let mut drawn = String::new();
    for (outcome, (_, _, color)) in OUTCOMES.iter().enumerate() {
        if windows.iter().all(|counts| counts[outcome] == 0) {
            continue;
        }
        let (mut upper, mut lower) = (String::new(), String::new());
        for (i, counts) in windows.iter().enumerate() {
            let under = below.get(&i).copied().unwrap_or(0);
            let (low, high) = (y.at(rate(i, under)), y.at(rate(i, under + counts[outcome])));
            let _ = write!(upper, "{}{:.1} {high:.1}H{:.1}", if i == 0 { 'M' } else { 'L' }, x(i), x(i + 1));
            lower.insert_str(0, &format!("L{:.1} {low:.1}H{:.1}", x(i + 1), x(i)));
            *below.entry(i).or_default() += counts[outcome];
        }
        let _ = writeln!(drawn, "<path fill=\"{color}\" fill-opacity=\"0.62\" d=\"{upper}{lower}z\"/>");
        if outcome == 0 {
            let _ = writeln!(
                drawn,
                "<path fill=\"none\" stroke=\"{color}\" stroke-width=\"1.3\" d=\"{upper}\"/>"
            );
        }
    }
    sheet.out.push_str(&drawn);
    sheet.line("box", LEFT, top + PANEL, RIGHT, top + PANEL);
}
