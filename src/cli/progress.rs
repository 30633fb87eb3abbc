//! How far `load`, `dump` and `repair` are: a bar on a terminal, else a plain line now and then; always on stderr.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::output::note;

/// Time between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(5);
/// Time between two changes of the bar.
const BAR_EVERY: Duration = Duration::from_millis(100);
/// Steps of the bar.
const STEPS: u64 = 10_000;
/// Weight of the last interval in the smoothed rate.
const SMOOTHING: f64 = 0.3;

/// Shows progress.
pub struct Progress {
    verb: &'static str,
    bar: ProgressBar,
    started: Instant,
    shown: Instant,
    shown_rows: u64,
    /// Smoothed rows a second.
    rate: Option<f64>,
    /// Share already done when it began.
    from: f64,
}

impl Progress {
    /// A bar for `verb`, which begins at the share `from` of 1.
    pub fn new(verb: &'static str, from: f64) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr());
        // The template is a constant, and a test shows that it parses.
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg}") {
            bar.set_style(style);
        }
        let now = Instant::now();
        Progress { verb, bar, started: now, shown: now, shown_rows: 0, rate: None, from }
    }

    /// The time, and that since the last line, if it is time for another.
    fn due(&self) -> Option<(Instant, Duration)> {
        let every = if self.bar.is_hidden() { PLAIN_EVERY } else { BAR_EVERY };
        let now = Instant::now();
        let passed = now.duration_since(self.shown);
        (passed >= every).then_some((now, passed))
    }

    /// Tells of `rows` done since it began, and of the share of the whole that is done, if that is known.
    pub fn update(&mut self, rows: u64, share: Option<f64>) {
        let Some((now, passed)) = self.due() else { return };
        let rate = rows.saturating_sub(self.shown_rows) as f64 / passed.as_secs_f64();
        let rate = self.rate.map_or(rate, |old| old + (rate - old) * SMOOTHING);
        (self.shown, self.shown_rows, self.rate) = (now, rows, Some(rate));
        let what = format!("{} rows, {} rows/s", thousands(rows), thousands(rate as u64));
        self.show(now, &what, share);
    }

    /// Tells of what is done in its own words, and of the share of the whole.
    pub fn tell(&mut self, what: &str, share: Option<f64>) {
        let Some((now, _)) = self.due() else { return };
        self.shown = now;
        self.show(now, what, share);
    }

    fn show(&self, now: Instant, what: &str, share: Option<f64>) {
        let left = share.and_then(|share| time_left(now.duration_since(self.started), self.from, share));
        let text = line(what, share, left);
        if self.bar.is_hidden() {
            note(format!("{}: {text}", self.verb));
            return;
        }
        if let Some(share) = share {
            self.bar.set_position((share.clamp(0.0, 1.0) * STEPS as f64) as u64);
        }
        self.bar.set_message(text);
    }

    /// A line on stderr that does not break the bar.
    pub fn note(&self, text: &str) {
        self.bar.suspend(|| note(text));
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Takes the bar away and prints the last line; returns the time taken.
    pub fn finish(&self, rows: u64, rest: &str) -> Duration {
        self.bar.finish_and_clear();
        let took = self.started.elapsed();
        let rate = rows as f64 / took.as_secs_f64().max(1e-9);
        note(format!(
            "{}: {} rows in {:.1} s, {} rows/s{rest}",
            self.verb,
            thousands(rows),
            took.as_secs_f64(),
            thousands(rate as u64)
        ));
        took
    }
}

fn line(what: &str, share: Option<f64>, left: Option<Duration>) -> String {
    let mut text = what.to_owned();
    if let Some(share) = share {
        text = format!("{:.0}%, {text}", share.clamp(0.0, 1.0) * 100.0);
    }
    if let Some(left) = left {
        let seconds = left.as_secs();
        text = match seconds {
            0..60 => format!("{text}, {seconds} s left"),
            60..3_600 => format!("{text}, {} min {} s left", seconds / 60, seconds % 60),
            _ => format!("{text}, {} h {} min left", seconds / 3_600, seconds % 3_600 / 60),
        };
    }
    text
}

/// What is left at the speed so far; unknown until something is done.
fn time_left(spent: Duration, from: f64, share: f64) -> Option<Duration> {
    let done = share - from;
    if done <= 0.0 || share > 1.0 {
        return None;
    }
    Duration::try_from_secs_f64(spent.as_secs_f64() * (1.0 - share) / done).ok()
}

/// A number with commas.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_rows_rate_and_time_left() {
        assert!(ProgressStyle::with_template("{bar:30} {msg}").is_ok());
        assert_eq!(line("7 rows", None, None), "7 rows");
        let left = time_left(Duration::from_secs(10), 0.5, 0.75);
        assert_eq!(left, Some(Duration::from_secs(10)), "a quarter took 10 s, a quarter is left");
        assert_eq!(line("5 rows", Some(0.75), left), "75%, 5 rows, 10 s left");
        assert!(line("5 rows", Some(0.5), Some(Duration::from_secs(3_725))).ends_with("1 h 2 min left"));
        assert_eq!(time_left(Duration::from_secs(1), 0.5, 0.5), None);
    }
}
