//! Wall clocks that jump, run wrong, or flicker.

use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::{Act, Needs, Nemesis, draw, integer, keyword, map, names};
use crate::cluster::Cluster;

/// A jump is 2 to this many milliseconds at most, about four minutes: Jepsen's.
const LARGEST_JUMP: f64 = 18.0;

/// `clock`: clocks jump, drift or flicker; they jump back to the truth at the end.
#[derive(Debug, Default)]
pub struct Clocks {
    acted: u64,
}

#[derive(Debug, Clone, Copy)]
enum How {
    /// At once by so many milliseconds.
    Jump(i64),
    /// Faster or slower by so many thousandths.
    Drift(i64),
    /// To and fro by so many milliseconds, at each period.
    Flicker(i64, Duration),
}

impl How {
    fn draw(rng: &mut StdRng) -> How {
        let sign = if rng.random_bool(0.5) { 1 } else { -1 };
        match rng.random_range(0..3) {
            0 => How::Drift(sign * rng.random_range(1..=200)),
            1 => How::Flicker(sign * jump(rng), Duration::from_millis(rng.random_range(20..500))),
            _ => How::Jump(sign * jump(rng)),
        }
    }

    /// The offset after some time.
    fn offset(self, after: Duration) -> i64 {
        let ms = i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
        match self {
            How::Jump(by) => by,
            How::Drift(thousandths) => ms.saturating_mul(thousandths) / 1000,
            How::Flicker(by, period) => {
                let turns = after.as_millis() / period.as_millis().max(1);
                if turns.is_multiple_of(2) { by } else { 0 }
            }
        }
    }

    fn words(self) -> (&'static str, i64) {
        match self {
            How::Jump(by) => ("jump", by),
            How::Drift(thousandths) => ("drift", thousandths),
            How::Flicker(by, _) => ("flicker", by),
        }
    }
}

/// Milliseconds, drawn so that each magnitude is as likely as any.
fn jump(rng: &mut StdRng) -> i64 {
    // At most 2^18: the cast is exact enough.
    #[allow(clippy::cast_possible_truncation, reason = "between 4 and 2^18")]
    let ms = rng.random_range(2.0..LARGEST_JUMP).exp2() as i64;
    ms
}

impl Nemesis for Clocks {
    fn name(&self) -> &'static str {
        "clock"
    }

    fn needs(&self) -> Needs {
        Needs { clocks: true, ..Needs::default() }
    }

    fn start<'a>(&'a mut self, cluster: &'a mut Cluster, rng: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let how = How::draw(rng);
            let all: Vec<usize> = (0..cluster.len()).collect();
            let (_, nodes) = draw(rng, &all, cluster.len(), true);
            cluster.wrong_clocks(&nodes, move |after| how.offset(after)).await?;
            self.acted += 1;
            let (word, by) = how.words();
            let unit = if word == "drift" { "thousandths" } else { "ms" };
            Ok(map([("clock", keyword(word)), (unit, integer(by)), ("nodes", names(cluster, &nodes))]))
        })
    }

    fn stop<'a>(&'a mut self, cluster: &'a mut Cluster, _: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            cluster.true_clocks().await?;
            Ok(map([]))
        })
    }

    fn acted(&self) -> u64 {
        self.acted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_as_drawn() {
        let second = Duration::from_secs(1);
        assert_eq!(How::Jump(-300).offset(second), -300);
        assert_eq!(How::Drift(-50).offset(second * 2), -100);
        let flicker = How::Flicker(40, Duration::from_millis(100));
        assert_eq!(flicker.offset(Duration::from_millis(50)), 40);
        assert_eq!(flicker.offset(Duration::from_millis(150)), 0);
    }
}
