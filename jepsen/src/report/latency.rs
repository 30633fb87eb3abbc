//! `latency.svg`: every completed operation as a point; and a thumbnail of it for the index.
//!
//! A point stands at its invocation. Colour is the outcome, shape the operation's name. There may be more
//! points than a picture can hold; then the rare kinds and the extremes of each time stay, and the rest is
//! thinned out evenly.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::layout::{OUTCOMES, RIGHT, Sheet, latency_word};
use super::markup::grouped;
use super::scale::Scale;
use super::view::View;

/// The most points in a plot.
pub const POINTS_MAX: usize = 20_000;
const THUMBNAIL_POINTS_MAX: usize = 700;
const HEIGHT: f64 = 340.0;
/// Points of one series are drawn in so many paths, so that dense places are darker.
const LAYERS: usize = 4;

/// A completed operation as it is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    seconds: f64,
    ms: f64,
    /// Which name, and which outcome.
    series: (usize, usize),
}

fn points(view: &View) -> Vec<Point> {
    let mut found = Vec::new();
    for op in &view.ops {
        let Some(latency) = op.latency() else { continue };
        let f = view.fs.iter().position(|f| *f == op.begin.f).unwrap_or(0);
        let outcome = OUTCOMES.iter().position(|(kind, ..)| *kind == op.outcome()).unwrap_or(0);
        let (seconds, ms) = (op.begin.time as f64 / 1e9, (latency as f64 / 1e6).max(0.001));
        found.push(Point { seconds, ms, series: (f, outcome) });
    }
    found
}

/// At most `most` of the points: rare series whole, the extremes of each stretch of time, some of the rest.
fn sample(points: Vec<Point>, most: usize) -> Vec<Point> {
    if points.len() <= most {
        return points;
    }
    let mut series: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (i, point) in points.iter().enumerate() {
        series.entry(point.series).or_default().push(i);
    }
    // A quarter of the room for rare series, a half for extremes.
    let share = most / (4 * series.len());
    let end = points.iter().map(|point| point.seconds).fold(0.001, f64::max);
    let mut keep = vec![false; points.len()];
    for members in series.values() {
        if members.len() <= share {
            members.iter().for_each(|i| keep[*i] = true);
            continue;
        }
        let mut extremes: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
        for &i in members {
            let column = (points[i].seconds / end * share.saturating_sub(1) as f64) as usize;
            let (low, high) = extremes.entry(column).or_insert((i, i));
            *low = if points[i].ms < points[*low].ms { i } else { *low };
            *high = if points[i].ms > points[*high].ms { i } else { *high };
        }
        extremes.values().for_each(|(low, high)| (keep[*low], keep[*high]) = (true, true));
    }
    let rest: Vec<usize> = (0..points.len()).filter(|i| !keep[*i]).collect();
    let room = most.saturating_sub(points.len() - rest.len()).min(rest.len());
    for i in 0..room {
        keep[rest[i * rest.len() / room]] = true;
    }
    points.into_iter().zip(keep).filter_map(|(point, kept)| kept.then_some(point)).collect()
}

fn y_scale(points: &[Point], top: f64, bottom: f64) -> Scale {
    let low = points.iter().map(|point| point.ms).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|point| point.ms).fold(0.0, f64::max);
    if points.is_empty() { Scale::log(1.0, 1000.0, bottom, top) } else { Scale::log(low, high, bottom, top) }
}

/// A mark as path data around a place; round dots are lines of no length with round ends.
fn mark(shape: usize, x: f64, y: f64) -> String {
    match shape % 6 {
        0 => format!("M{x:.1} {y:.1}h0"),
        1 => format!("M{x:.1} {:.1}l3 5h-6z", y - 3.2),
        2 => format!("M{:.1} {:.1}h4.4v4.4h-4.4z", x - 2.2, y - 2.2),
        3 => format!("M{x:.1} {:.1}l2.9 3.2l-2.9 3.2l-2.9-3.2z", y - 3.2),
        4 => format!("M{x:.1} {:.1}l3-5h-6z", y + 3.2),
        _ => format!("M{:.1} {:.1}l4.4 4.4m0-4.4l-4.4 4.4", x - 2.2, y - 2.2),
    }
}

fn paint(shape: usize, color: &str, opacity: f64) -> String {
    match shape % 6 {
        0 => format!(
            "fill=\"none\" stroke=\"{color}\" stroke-width=\"4\" stroke-linecap=\"round\" stroke-opacity=\"{opacity}\""
        ),
        5 => format!("fill=\"none\" stroke=\"{color}\" stroke-width=\"1.6\" stroke-opacity=\"{opacity}\""),
        _ => format!("fill=\"{color}\" fill-opacity=\"{opacity}\""),
    }
}

/// The plot.
pub fn svg(view: &View) -> String {
    let all = points(view);
    let (total, drawn) = (all.len(), sample(all, POINTS_MAX));
    let mut sheet = Sheet::new(view, "latency of each operation", HEIGHT);
    let y = y_scale(&drawn, sheet.top, sheet.top + HEIGHT);
    sheet.panel(&y, 0, latency_word);
    sheet.axis(sheet.top, sheet.top + HEIGHT, "latency");
    // Few points are drawn stronger than many.
    let thin = if drawn.len() > 3000 { 0.4 } else { 0.65 };
    for (outcome, (_, _, color)) in OUTCOMES.iter().enumerate() {
        for f in 0..view.fs.len() {
            let mut layers = vec![String::new(); LAYERS];
            let members = drawn.iter().filter(|point| point.series == (f, outcome));
            for (i, point) in members.enumerate() {
                layers[i % LAYERS].push_str(&mark(f, sheet.x.at(point.seconds), y.at(point.ms)));
            }
            let paint = paint(f, color, if outcome == 0 { thin } else { 0.85 });
            for data in layers.iter().filter(|data| !data.is_empty()) {
                let _ = writeln!(sheet.out, "<path {paint} d=\"{data}\"/>");
            }
        }
    }
    legend(view, &mut sheet, drawn.len(), total);
    let bottom = sheet.top + HEIGHT;
    sheet.close(bottom, "time of invocation (s)")
}

fn legend(view: &View, sheet: &mut Sheet, drawn: usize, total: usize) {
    let (x, mut y) = (RIGHT + 16.0, sheet.top + 12.0);
    let counts = view.counts(None);
    for (kind, word, color) in OUTCOMES {
        let _ = writeln!(
            sheet.out,
            "<path {} d=\"{}\"/>",
            paint(0, color, 1.0).replace("\"4\"", "\"9\""),
            mark(0, x + 5.0, y - 4.0)
        );
        sheet.text(x + 16.0, y, "", "start", &format!("{word}  {}", grouped(counts.of(kind))));
        y += 19.0;
    }
    y += 10.0;
    for (i, f) in view.fs.iter().enumerate().take(8) {
        let _ =
            writeln!(sheet.out, "<path {} d=\"{}\"/>", paint(i, "#56616b", 1.0), mark(i, x + 5.0, y - 4.0));
        sheet.text(x + 16.0, y, "", "start", &super::markup::short(f, 18));
        y += 19.0;
    }
    y += 10.0;
    let unfinished = view.ops.len() - total;
    let mut notes = Vec::new();
    if drawn < total {
        notes.extend([format!("{} of {}", grouped(drawn as u64), grouped(total as u64)), "shown".into()]);
    }
    if unfinished > 0 {
        notes.push(format!("{} never completed", grouped(unfinished as u64)));
    }
    for note in notes {
        sheet.text(x, y, "note", "start", &note);
        y += 16.0;
    }
}

/// A small picture without words.
pub fn thumbnail(view: &View) -> String {
    let (width, height) = (220.0, 64.0);
    let drawn = sample(points(view), THUMBNAIL_POINTS_MAX);
    let x = Scale::linear(0.0, view.span(), 2.0, width - 2.0);
    let y = y_scale(&drawn, 3.0, height - 3.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    for period in &view.periods {
        let (from, to) = (x.at(period.began as f64 / 1e9), x.at(period.ended as f64 / 1e9));
        let _ = writeln!(
            out,
            "<rect x=\"{from:.1}\" y=\"0\" width=\"{:.1}\" height=\"{height}\" fill=\"{}\" fill-opacity=\"0.22\"/>",
            (to - from).max(1.0),
            view.color(&period.name)
        );
    }
    for (outcome, (_, _, color)) in OUTCOMES.iter().enumerate() {
        let members = drawn.iter().filter(|point| point.series.1 == outcome);
        let data: String = members.map(|point| mark(0, x.at(point.seconds), y.at(point.ms))).collect();
        let paint = paint(0, color, 0.7).replace("\"4\"", "\"2\"");
        if !data.is_empty() {
            let _ = writeln!(out, "<path {paint} d=\"{data}\"/>");
        }
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn many(n: usize) -> Vec<Point> {
        let ms = |i: usize| if i == 777 { 9999.0 } else { 1.0 + (i * 7 % 100) as f64 / 100.0 };
        let series = |i: usize| if i.is_multiple_of(5000) { (0, 2) } else { (i % 2, 0) };
        (0..n).map(|i| Point { seconds: i as f64 / 1000.0, ms: ms(i), series: series(i) }).collect()
    }

    #[test]
    fn a_sample_keeps_extremes_and_rare_kinds() {
        let all = many(100_000);
        let drawn = sample(all.clone(), POINTS_MAX);
        assert_eq!(drawn.len(), POINTS_MAX);
        assert!(drawn.iter().any(|point| point.ms == 9999.0));
        assert_eq!(drawn.iter().filter(|point| point.series == (0, 2)).count(), 20);
        assert_eq!(sample(many(50), 100), many(50), "few points are left alone");
        assert!(sample(all, 3).len() <= 3 + 3 * 3, "a tiny room is nearly held");
    }

    #[test]
    fn twenty_thousand_points_are_below_two_megabytes() {
        let longest = (0..6).map(|shape| mark(shape, 866.25, 411.25).len()).max().unwrap_or(0);
        assert!(longest * POINTS_MAX < 1_900_000, "{longest}");
    }
}
