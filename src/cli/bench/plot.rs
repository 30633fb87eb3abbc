//! Latency by percentile as an SVG: the tail stretched (each nine as wide as the last), time logarithmic.

use std::fmt::Write;

use super::run::{Latencies, Measured};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Percentiles on the axis.
const TICKS: [(f64, &str); 6] = [
    (0.0, "0"),
    (0.9, "90 %"),
    (0.99, "99 %"),
    (0.999, "99.9 %"),
    (0.9999, "99.99 %"),
    (0.99999, "99.999 %"),
];
/// Points of a curve for each nine.
const POINTS: u32 = 40;

/// Nines of a quantile: 0 for 0, 1 for 0.9, 2 for 0.99.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

struct Axes {
    nines: f64,
    /// Powers of ten of a microsecond.
    low: f64,
    high: f64,
}

impl Axes {
    fn x(&self, nines: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * nines / self.nines
    }

    fn y(&self, micros: f64) -> f64 {
        let share = (micros.max(1.0).log10() - self.low) / (self.high - self.low);
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share
    }
}

fn label(power: f64) -> String {
    match power as i32 {
        micros @ ..3 => format!("{} µs", 10_u32.pow(micros.max(0) as u32)),
        millis @ 3..6 => format!("{} ms", 10_u32.pow(millis as u32 - 3)),
        seconds => format!("{} s", 10_u32.pow(seconds as u32 - 6)),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn curve(axes: &Axes, latencies: &Latencies) -> String {
    // No further than the samples reach.
    let reach = (latencies.len() as f64).log10().min(axes.nines);
    let steps = (reach * f64::from(POINTS)).ceil().max(1.0) as u32;
    let mut points = String::new();
    for step in 0..=steps {
        let at = reach * f64::from(step) / f64::from(steps);
        let micros = latencies.value_at_quantile(1.0 - 10_f64.powf(-at));
        let _ = write!(points, "{:.1},{:.1} ", axes.x(at), axes.y(micros as f64));
    }
    points.trim_end().to_string()
}

/// The picture of a measurement.
pub fn svg(title: &str, measured: &Measured) -> String {
    let curves: Vec<(&str, &str, &Latencies)> =
        [("put", "#c2410c", &measured.put), ("get", "#1d4ed8", &measured.get)]
            .into_iter()
            .filter(|(_, _, latencies)| !latencies.is_empty())
            .collect();
    let most = curves.iter().map(|(_, _, l)| l.len()).max().unwrap_or(1).max(10) as f64;
    let low = curves.iter().map(|(_, _, l)| l.min()).min().unwrap_or(1).max(1) as f64;
    let high = curves.iter().map(|(_, _, l)| l.max()).max().unwrap_or(10).max(10) as f64;
    let low = low.log10().floor();
    let axes = Axes { nines: most.log10().clamp(1.0, 5.0), low, high: high.log10().ceil().max(low + 1.0) };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"14\">{}</text>\n",
        escaped(title)
    );
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    // Writing to a String can't fail.
    for (quantile, name) in TICKS.iter().filter(|(q, _)| nines(*q) <= axes.nines + 1e-9) {
        let x = axes.x(nines(*quantile));
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
            bottom + 18.0
        );
    }
    for power in (axes.low as i32)..=(axes.high as i32) {
        let y = axes.y(10_f64.powi(power));
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            label(f64::from(power))
        );
    }
    for (i, (name, colour, latencies)) in curves.iter().enumerate() {
        let y = TOP + 16.0 + 18.0 * i as f64;
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{y:.1}\" fill=\"{colour}\">{name}</text>",
            curve(&axes, latencies),
            LEFT + 12.0
        );
    }
    let _ = write!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">share of requests that were faster</text>\n</svg>\n",
        (LEFT + right) / 2.0,
        HEIGHT - 10.0
    );
    out
}
