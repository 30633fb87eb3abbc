//! Scales of plots: from values to places, and where the ticks stand.

/// From values to places along one side of a plot.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
}

impl Scale {
    /// A linear scale that puts `low` at `from` and `high` at `to`.
    pub fn linear(low: f64, high: f64, from: f64, to: f64) -> Scale {
        Scale { low, high: high.max(low + 1e-9), from, to, log: false }
    }

    /// A logarithmic scale that reaches from the 1, 2 or 5 below `low` to the one above `high`; both are
    /// above zero.
    pub fn log(low: f64, high: f64, from: f64, to: f64) -> Scale {
        let below = |v: f64| steps(v).rev().find(|s| *s <= v * 1.000_001).unwrap_or(v);
        let above = |v: f64| steps(v).find(|s| *s >= v * 0.999_999).unwrap_or(v);
        let (low, high) = (below(low), above(high));
        let high = if high < low * 10.0 { above(low * 10.0) } else { high };
        Scale { low, high, from, to, log: true }
    }

    /// Where a value stands; a value outside of the scale stands at its edge.
    pub fn at(&self, value: f64) -> f64 {
        let value = value.clamp(self.low, self.high);
        let part = if self.log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + part * (self.to - self.from)
    }

    /// The places of both ends, the smaller first.
    pub fn span(&self) -> (f64, f64) {
        (self.from.min(self.to), self.from.max(self.to))
    }

    /// Values for ticks, about `count` of them if linear; those of 1, 2 and 5 if logarithmic.
    pub fn ticks(&self, count: usize) -> Vec<f64> {
        if self.log {
            let decades = (self.high / self.low).log10();
            let keep = |s: &f64| decades <= 2.1 || first_digit(*s) == 1;
            return within(self.low, self.high).filter(keep).collect();
        }
        let step = nice((self.high - self.low) / count.max(1) as f64);
        let first = (self.low / step).ceil() as i64;
        (first..).map(|i| i as f64 * step).take_while(|v| *v <= self.high * 1.000_001).collect()
    }

    /// Values for faint lines between the ticks of a logarithmic scale.
    pub fn faint(&self) -> Vec<f64> {
        if self.log { within(self.low, self.high).collect() } else { Vec::new() }
    }
}

/// The next of 1, 2, 5, 10, … at or above a step.
pub fn nice(step: f64) -> f64 {
    let step = step.max(1e-9);
    steps(step).find(|s| *s >= step * 0.999_999).unwrap_or(step)
}

/// 1, 2 and 5 times powers of ten around a value.
fn steps(value: f64) -> impl DoubleEndedIterator<Item = f64> {
    let power = value.max(1e-12).log10().floor() as i32;
    (power - 1..=power + 2).flat_map(|p| [1.0, 2.0, 5.0].map(|m| decimal(m, p)))
}

/// `digit` times ten to the `power`, exact where a double can be.
fn decimal(digit: f64, power: i32) -> f64 {
    if power < 0 { digit / 10f64.powi(-power) } else { digit * 10f64.powi(power) }
}

fn within(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let (from, to) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    (from..=to)
        .flat_map(|p| [1.0, 2.0, 5.0].map(|m| decimal(m, p)))
        .filter(move |s| *s >= low * 0.999_999 && *s <= high * 1.000_001)
}

fn first_digit(value: f64) -> u32 {
    let digit = value / 10f64.powi((value * 1.000_001).log10().floor() as i32);
    digit.round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_scale_has_round_ticks() {
        let scale = Scale::linear(0.0, 61.3, 100.0, 900.0);
        assert_eq!(scale.ticks(7), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        assert_eq!((scale.at(0.0), scale.at(61.3), scale.at(99.0)), (100.0, 900.0, 900.0));
    }

    #[test]
    fn a_log_scale_ends_on_ticks_and_spans_a_decade() {
        let scale = Scale::log(0.34, 4100.0, 400.0, 50.0);
        assert_eq!((scale.low, scale.high), (0.2, 5000.0));
        assert_eq!(scale.ticks(0), [1.0, 10.0, 100.0, 1000.0]);
        let narrow = Scale::log(3.0, 3.0, 400.0, 50.0);
        assert_eq!((narrow.low, narrow.high), (2.0, 20.0));
        assert_eq!(narrow.ticks(0), [2.0, 5.0, 10.0, 20.0]);
        assert!((scale.at(1.0) - scale.at(10.0) - (scale.at(10.0) - scale.at(100.0))).abs() < 1e-6);
    }

    #[test]
    fn nice_steps() {
        assert_eq!([nice(0.3), nice(1.0), nice(1.1), nice(7.0)], [0.5, 1.0, 2.0, 10.0]);
    }
}
