//! `latency-quantiles.svg`: how slow it was for most, for a few, and at worst, window by window.
//!
//! Of operations that are `ok` or `info`: a timeout is slowness that someone felt; a refusal that came at
//! once would only make a bad time look fast.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::layout::{RIGHT, Sheet, latency_word, window};
use super::scale::Scale;
use super::view::View;
use crate::history::Kind;

const HEIGHT: f64 = 300.0;
/// Share, name, colour and width; the widest is pale, so that it shows where another lies upon it.
const LINES: [(f64, &str, &str, f64); 4] = [
    (1.0, "max", "#efb3b8", 4.5),
    (0.99, "p99", "#f29100", 1.6),
    (0.95, "p95", "#2fa58a", 1.6),
    (0.5, "p50", "#3b82d6", 2.2),
];

/// The value below or at which that share of sorted values lies.
pub fn quantile(sorted: &[u64], share: f64) -> Option<u64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// Sorted latencies in nanoseconds, by the number of the window of the invocation.
fn windows(view: &View, wide: f64) -> BTreeMap<u64, Vec<u64>> {
    let mut found: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for op in view.ops.iter().filter(|op| op.outcome() != Kind::Fail) {
        if let Some(latency) = op.latency() {
            found.entry((op.begin.time as f64 / 1e9 / wide) as u64).or_default().push(latency);
        }
    }
    found.values_mut().for_each(|latencies| latencies.sort_unstable());
    found
}

/// The plot.
pub fn svg(view: &View) -> String {
    let wide = window(view.seconds()).max(1.0);
    let windows = windows(view, wide);
    let mut sheet = Sheet::new(view, "latency quantiles", HEIGHT);
    let (top, bottom) = (sheet.top, sheet.top + HEIGHT);
    let ms = |nanos: u64| (nanos as f64 / 1e6).max(0.001);
    let medians = windows.values().filter_map(|sorted| quantile(sorted, 0.5));
    let low = medians.min().map_or(1.0, ms);
    let high = windows.values().filter_map(|sorted| sorted.last().copied()).max().map_or(1000.0, ms);
    let y = Scale::log(low, high, bottom, top);
    sheet.panel(&y, 0, latency_word);
    sheet.axis(top, bottom, "latency");
    for (i, (share, name, color, width)) in LINES.into_iter().enumerate() {
        let (mut line, mut dots, mut before) = (String::new(), String::new(), None);
        for (number, sorted) in &windows {
            let Some(value) = quantile(sorted, share) else { continue };
            let middle = ((*number as f64 + 0.5) * wide).min(view.seconds());
            let place = format!("{:.1} {:.1}", sheet.x.at(middle), y.at(ms(value)));
            // A window without operations breaks the line.
            let joined = before.is_some_and(|before: u64| before + 1 == *number);
            let _ = write!(line, "{}{place}", if joined { 'L' } else { 'M' });
            let _ = write!(dots, "M{place}h0");
            before = Some(*number);
        }
        if !line.is_empty() {
            let _ = writeln!(
                sheet.out,
                "<path fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\" stroke-linejoin=\"round\" d=\"{line}\"/>\n\
                 <path fill=\"none\" stroke=\"{color}\" stroke-width=\"{}\" stroke-linecap=\"round\" d=\"{dots}\"/>",
                (width + 2.0).min(4.5)
            );
        }
        let (x, at) = (RIGHT + 16.0, top + 12.0 + i as f64 * 19.0);
        let _ = writeln!(
            sheet.out,
            "<path stroke=\"{color}\" stroke-width=\"{}\" d=\"M{x} {:.1}h14\"/>",
            width.max(3.0),
            at - 4.0
        );
        sheet.text(x + 22.0, at, "", "start", name);
    }
    let notes = [format!("in windows of {wide} s,"), "ok and info alike".into()];
    for (i, note) in notes.iter().enumerate() {
        sheet.text(RIGHT + 16.0, top + 104.0 + i as f64 * 16.0, "note", "start", note);
    }
    sheet.close(bottom, "time of invocation (s)")
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_by_rank() {
        let sorted: Vec<u64> = (1..=100).collect();
        let found = [0.0, 0.5, 0.99, 1.0].map(|share| quantile(&sorted, share));
        assert_eq!(found, [Some(1), Some(50), Some(99), Some(100)]);
        assert_eq!(quantile(&[7], 0.5), Some(7));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
