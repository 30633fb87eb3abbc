//! The sheet that every plot over time shares: title, verdict, a lane for each fault, panels, the time axis.

use std::fmt::Write;

use super::markup::{FAIL, INFO, OK, escape, grouped, short, verdict};
use super::scale::Scale;
use super::view::View;
use crate::history::Kind;

/// The width of a sheet.
pub const WIDTH: f64 = 1040.0;
/// Where panels begin.
pub const LEFT: f64 = 84.0;
/// Where panels end, and the legend begins.
pub const RIGHT: f64 = 868.0;
const LANES: f64 = 72.0;
const LANE: f64 = 17.0;

const STYLE: &str = "
text { font-family: system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; font-size: 12px; fill: #3d4852 }
.title { font-size: 20px; font-weight: 600; fill: #1b242c }
.sub, .note { fill: #75818c }
.name { font-weight: 600; fill: #1b242c }
.pill { fill: #ffffff; font-weight: 600; font-size: 13px }
.grid { stroke: #e7ebef; stroke-width: 1; fill: none }
.faint { stroke: #f3f5f7; stroke-width: 1; fill: none }
.box { stroke: #c9d1d9; stroke-width: 1; fill: none }
";

/// The outcomes in the order in which they are drawn and listed, with words and colours.
pub const OUTCOMES: [(Kind, &str, &str); 3] =
    [(Kind::Ok, "ok", OK), (Kind::Info, "info", INFO), (Kind::Fail, "fail", FAIL)];

/// A plot being drawn.
#[derive(Debug)]
pub struct Sheet<'a> {
    view: &'a View<'a>,
    /// Seconds to places.
    pub x: Scale,
    /// Where panels may begin.
    pub top: f64,
    /// What is drawn so far.
    pub out: String,
}

impl<'a> Sheet<'a> {
    /// Begins a sheet about `what`, with room of `height` for panels.
    pub fn new(view: &'a View<'a>, what: &str, height: f64) -> Sheet<'a> {
        let lanes = if view.faults.is_empty() { 0.0 } else { view.faults.len() as f64 * LANE + 8.0 };
        let top = LANES + lanes;
        let whole = top + height + 48.0;
        let x = Scale::linear(0.0, view.span(), LEFT, RIGHT);
        let mut sheet = Sheet { view, x, top, out: String::new() };
        let test = view.test;
        let _ = write!(
            sheet.out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {whole}\" width=\"{WIDTH}\" \
             height=\"{whole}\">\n<style>{STYLE}</style>\n<rect width=\"{WIDTH}\" height=\"{whole}\" fill=\"#ffffff\"/>\n"
        );
        sheet.text(LEFT, 34.0, "title", "start", &format!("{}: {what}", short(&test.workload, 50)));
        let faults = if test.nemeses.is_empty() { "no faults".into() } else { test.nemeses.join(", ") };
        let facts = format!(
            "{} nodes · {} clients · {} operations · seed {} · {} · {}",
            test.nodes.len(),
            test.concurrency,
            grouped(view.ops.len() as u64),
            test.seed,
            short(&faults, 60),
            view.when
        );
        sheet.text(LEFT, 55.0, "sub", "start", &facts);
        let (word, color) = verdict(view.valid);
        let (width, left) = (84.0, WIDTH - 24.0 - 84.0);
        let _ = writeln!(
            sheet.out,
            "<rect x=\"{left}\" y=\"18\" width=\"{width}\" height=\"24\" rx=\"12\" fill=\"{color}\"/>"
        );
        sheet.text(left + width / 2.0, 34.5, "pill", "middle", word);
        sheet.lanes();
        sheet
    }

    /// A lane a fault, with the times in which it was at work.
    fn lanes(&mut self) {
        for (i, fault) in self.view.faults.iter().enumerate() {
            let (y, color) = (LANES + i as f64 * LANE, self.view.color(fault));
            let width = RIGHT - LEFT;
            let _ = writeln!(
                self.out,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width}\" height=\"10\" rx=\"2\" fill=\"#f3f5f7\"/>"
            );
            let mut times = 0;
            for period in self.view.periods.iter().filter(|period| period.name == *fault) {
                let (from, wide) = self.stretch(period.began, period.ended);
                let _ = writeln!(
                    self.out,
                    "<rect x=\"{from:.1}\" y=\"{y}\" width=\"{wide:.1}\" height=\"10\" rx=\"2\" fill=\"{color}\"/>"
                );
                times += 1;
            }
            let _ = writeln!(
                self.out,
                "<rect x=\"{}\" y=\"{y}\" width=\"10\" height=\"10\" rx=\"2\" fill=\"{color}\"/>",
                RIGHT + 16.0
            );
            let words = format!("{} × {times}", short(fault, 16));
            self.text(RIGHT + 32.0, y + 9.0, "", "start", &words);
        }
    }

    /// Where a time begins, and how wide it is: never so narrow that it cannot be seen.
    fn stretch(&self, began: u64, ended: u64) -> (f64, f64) {
        let (from, to) = (self.x.at(began as f64 / 1e9), self.x.at(ended as f64 / 1e9));
        (from, (to - from).max(1.5))
    }

    /// A panel: shades where faults were at work, a grid, and the ticks of the y axis with their words.
    pub fn panel(&mut self, y: &Scale, ticks: usize, word: impl Fn(f64) -> String) {
        let (top, bottom) = y.span();
        let height = bottom - top;
        for value in y.faint() {
            self.line("faint", LEFT, y.at(value), RIGHT, y.at(value));
        }
        for value in self.x.ticks(8) {
            self.line("grid", self.x.at(value), top, self.x.at(value), bottom);
        }
        for value in y.ticks(ticks) {
            self.line("grid", LEFT, y.at(value), RIGHT, y.at(value));
            self.text(LEFT - 8.0, y.at(value) + 4.0, "", "end", &word(value));
        }
        for period in &self.view.periods {
            let (from, wide) = self.stretch(period.began, period.ended);
            let _ = writeln!(
                self.out,
                "<rect x=\"{from:.1}\" y=\"{top}\" width=\"{wide:.1}\" height=\"{height}\" fill=\"{}\" \
                 fill-opacity=\"0.13\"/>",
                self.view.color(&period.name)
            );
        }
        let width = RIGHT - LEFT;
        let _ = writeln!(
            self.out,
            "<rect class=\"box\" x=\"{LEFT}\" y=\"{top}\" width=\"{width}\" height=\"{height}\"/>"
        );
    }

    /// The time axis under the last panel, and the end of the sheet.
    pub fn close(mut self, bottom: f64, axis: &str) -> String {
        for value in self.x.ticks(8) {
            let words = if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") };
            self.text(self.x.at(value), bottom + 17.0, "", "middle", &words);
        }
        self.text((LEFT + RIGHT) / 2.0, bottom + 36.0, "sub", "middle", axis);
        self.out + "</svg>\n"
    }

    /// A line of text.
    pub fn text(&mut self, x: f64, y: f64, class: &str, anchor: &str, words: &str) {
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        let _ = writeln!(
            self.out,
            "<text x=\"{x:.1}\" y=\"{y:.1}\"{class} text-anchor=\"{anchor}\">{}</text>",
            escape(words)
        );
    }

    /// A straight line.
    pub fn line(&mut self, class: &str, x1: f64, y1: f64, x2: f64, y2: f64) {
        let _ = writeln!(self.out, "<path class=\"{class}\" d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\"/>");
    }

    /// What the y axis is about, turned, left of the panels.
    pub fn axis(&mut self, top: f64, bottom: f64, words: &str) {
        let middle = (top + bottom) / 2.0;
        let _ = writeln!(
            self.out,
            "<text class=\"sub\" text-anchor=\"middle\" transform=\"translate(20 {middle:.1}) rotate(-90)\">{}</text>",
            escape(words)
        );
    }
}

/// A latency in milliseconds as the word of a tick.
pub fn latency_word(ms: f64) -> String {
    match ms {
        ms if ms >= 1000.0 => format!("{} s", ms / 1000.0),
        ms if ms < 0.999 => format!("{} µs", (ms * 1000.0).round()),
        ms => format!("{ms} ms"),
    }
}

/// The width of the windows in which rates and quantiles are taken, in seconds: about a hundred in a run.
pub fn window(seconds: f64) -> f64 {
    super::scale::nice(seconds / 120.0).max(0.1)
}
