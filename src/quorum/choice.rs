//! Which replicas a read asks first, and when it asks one more.
//!
//! Rules:
//! 1. The replicas that are likely to answer first are asked first: by a moving average of their answers' latency,
//!    times how many of this node's requests wait there already (after C3, Suresh et al. 2015). Those that are about
//!    equally good take turns.
//! 2. One that has not been asked for a while seems better and better, so it is tried again: a replica that was slow
//!    once is not avoided for ever.
//! 3. Silence counts as an answer that took so long.
//! 4. A replica that is silent for longer than all but one in a hundred of its answers is joined by another (a hedge,
//!    after Dean and Barroso 2013), if the budget allows it: each read adds a share of a hedge to it. So hedges can't
//!    become a storm when all replicas are slow.
//!
//! Invariants:
//! 1. What waits at a replica is counted up once and down once for each request.
//! 2. The budget is never negative, and never above its limit.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::types::ids::NodeId;
use crate::types::limits::{HEDGE_AFTER, HEDGE_AFTER_MIN, HEDGES_AT_ONCE, READS_PER_HEDGE};
use crate::types::time::Mono;

/// How fast the average forgets: about the last eight answers count.
const FORGETTING: f64 = 1.0 / 8.0;
/// A replica that is not asked seems twice as good after so long.
const HALF_LIFE_US: f64 = 1_000_000.0;
/// What a replica is taken for that was never asked: a good one, so it is tried.
const UNKNOWN_US: f64 = 100.0;
/// Scores within such a factor are about equally good.
const ABOUT_EQUAL: f64 = 1.5;
/// How long answers count for the usual latency, at least; at most twice that.
const WINDOW_US: u64 = 10_000_000;
/// Answers without which nothing is usual.
const ANSWERS_MIN: u64 = 50;
/// Answers after which what is usual is worked out anew.
const ANSWERS_EACH: u64 = 32;

fn histogram() -> Histogram<u32> {
    // 1 µs to 100 s at 2 digits: constants that hdrhistogram accepts.
    Histogram::new_with_bounds(1, 100_000_000, 2).expect("the bounds are sound")
}

#[derive(Debug, Clone)]
struct Peer {
    average_us: f64,
    waiting: u32,
    heard: Mono,
    /// Of this window of time and of the one before.
    latencies: [Histogram<u32>; 2],
    window_since: Mono,
    /// All but one in a hundred answers come within this time.
    usual: Duration,
}

impl Peer {
    fn new(now: Mono) -> Peer {
        Peer {
            average_us: UNKNOWN_US,
            waiting: 0,
            heard: now,
            latencies: [histogram(), histogram()],
            window_since: now,
            usual: HEDGE_AFTER,
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "microseconds, far below 2^52")]
    fn score(&self, now: Mono) -> f64 {
        let idle = now.micros_since(self.heard) as f64 / HALF_LIFE_US;
        let waiting = f64::from(self.waiting) + 1.0;
        // What waits there is not forgotten by waiting longer.
        let average = if self.waiting == 0 { self.average_us * 0.5f64.powf(idle) } else { self.average_us };
        average.max(1.0) * waiting
    }

    #[allow(clippy::cast_precision_loss, reason = "microseconds, far below 2^52")]
    fn took(&mut self, now: Mono, us: u64) {
        // After a silence the answer says more than what was before it.
        let idle = now.micros_since(self.heard) as f64 / HALF_LIFE_US;
        let weight = FORGETTING.max(1.0 - 0.5f64.powf(idle));
        self.average_us += weight * (us as f64 - self.average_us);
        self.heard = now;
        if now.micros_since(self.window_since) >= WINDOW_US {
            self.latencies.swap(0, 1);
            self.latencies[0].reset();
            self.window_since = now;
        }
        self.latencies[0].saturating_record(us.max(1));
        if self.latencies[0].len().is_multiple_of(ANSWERS_EACH) {
            let busiest = self.latencies.iter().max_by_key(|latencies| latencies.len());
            if let Some(latencies) = busiest.filter(|latencies| latencies.len() >= ANSWERS_MIN) {
                self.usual = Duration::from_micros(latencies.value_at_quantile(0.99));
            }
        }
    }
}

/// What a node knows of the others as replicas to read from.
#[derive(Debug, Clone)]
pub struct Choice {
    peers: BTreeMap<NodeId, Peer>,
    turn: usize,
    /// Shares of a hedge: `READS_PER_HEDGE` of them are one.
    budget: u32,
}

impl Default for Choice {
    fn default() -> Choice {
        Choice { peers: BTreeMap::new(), turn: 0, budget: HEDGES_AT_ONCE * READS_PER_HEDGE }
    }
}

impl Choice {
    /// Puts replicas in the order in which to ask them; also pays for a read into the budget.
    pub fn order(&mut self, now: Mono, replicas: &mut [NodeId]) {
        self.budget = (self.budget + 1).min(HEDGES_AT_ONCE * READS_PER_HEDGE);
        if replicas.len() < 2 {
            return;
        }
        self.turn = self.turn.wrapping_add(1);
        replicas.rotate_left(self.turn % replicas.len());
        let score = |node: &NodeId| self.peers.get(node).map_or(UNKNOWN_US, |peer| peer.score(now));
        replicas.sort_by_cached_key(|node| {
            #[allow(clippy::cast_possible_truncation, reason = "a logarithm of at most 40 or so")]
            let class = score(node).log(ABOUT_EQUAL).floor() as i32;
            class
        });
    }

    /// How long the first of these may be silent before another is asked too.
    pub fn patience(&self, asked: &[NodeId]) -> Duration {
        let usual = asked.iter().filter_map(|node| self.peers.get(node)).map(|peer| peer.usual).max();
        usual.unwrap_or(HEDGE_AFTER).clamp(HEDGE_AFTER_MIN, HEDGE_AFTER)
    }

    /// Takes one hedge from the budget. False if there is none left.
    pub fn may_hedge(&mut self) -> bool {
        let pays = self.budget >= READS_PER_HEDGE;
        if pays {
            self.budget -= READS_PER_HEDGE;
        }
        pays
    }

    /// A replica is asked.
    pub fn asked(&mut self, now: Mono, node: NodeId) {
        self.peers.entry(node).or_insert_with(|| Peer::new(now)).waiting += 1;
    }

    /// It has answered, or its link broke.
    pub fn answered(&mut self, now: Mono, node: NodeId, asked_at: Mono) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.waiting = peer.waiting.saturating_sub(1);
            peer.took(now, now.micros_since(asked_at));
        }
    }

    /// It has been silent for so long that others are asked.
    #[allow(clippy::cast_precision_loss, reason = "microseconds, far below 2^52")]
    pub fn silent(&mut self, now: Mono, node: NodeId, asked_at: Mono) {
        if let Some(peer) = self.peers.get_mut(&node) {
            let us = now.micros_since(asked_at) as f64;
            if us > peer.average_us {
                peer.average_us += FORGETTING * (us - peer.average_us);
            }
            peer.heard = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    /// A read every millisecond that asks the first of two, whose answers take so long; how often each was asked.
    fn reads(choice: &mut Choice, from: u64, count: u64, took: impl Fn(NodeId) -> u64) -> [u64; 2] {
        let (mut asked, mut flying) = ([0, 0], Vec::new());
        for read in from..from + count {
            let now = Mono(read * 1_000);
            flying.retain(|(node, at): &(NodeId, Mono)| {
                let is_over = now.micros_since(*at) >= took(*node);
                if is_over {
                    choice.answered(*at + Duration::from_micros(took(*node)), *node, *at);
                }
                !is_over
            });
            let mut order = [A, B];
            choice.order(now, &mut order);
            asked[usize::from(order[0] == B)] += 1;
            choice.asked(now, order[0]);
            flying.push((order[0], now));
        }
        flying.into_iter().for_each(|(node, at)| choice.answered(Mono((from + count) * 1_000), node, at));
        asked
    }

    #[test]
    fn equally_good_ones_take_turns() {
        let mut choice = Choice::default();
        let [a, b] = reads(&mut choice, 0, 1_000, |_| 500);
        assert!(a.abs_diff(b) < 100, "{a} and {b}");
    }

    #[test]
    fn f27_a_slow_one_is_left_alone_tried_now_and_then_and_found_again() {
        let mut choice = Choice::default();
        let slow = |node| if node == B { 100_000 } else { 500 };
        reads(&mut choice, 0, 2_000, slow);
        let [fast, slow] = reads(&mut choice, 2_000, 20_000, slow);
        assert!(slow > 0 && slow * 200 < fast, "{slow} of {fast} asked the slow one");
        let [a, b] = reads(&mut choice, 22_000, 20_000, |_| 500);
        assert!(b * 3 > a, "{b} of {a}: it is fast again");
    }

    /// The usual latency is the 99th percentile, within limits; what is not known is waited for longest.
    #[test]
    fn patience_is_what_is_usual() {
        let mut choice = Choice::default();
        assert_eq!(choice.patience(&[A]), HEDGE_AFTER);
        for n in 0..640u64 {
            choice.asked(Mono(n * 20_000), A);
            choice.answered(Mono(n * 20_000 + if n % 50 == 0 { 30_000 } else { 8_000 }), A, Mono(n * 20_000));
            choice.asked(Mono(n * 20_000), B);
            choice.answered(Mono(n * 20_000 + 10), B, Mono(n * 20_000));
        }
        let usual = choice.patience(&[A]);
        assert!(usual.as_millis().abs_diff(30) <= 1, "{usual:?}");
        assert_eq!((choice.patience(&[B]), choice.patience(&[A, B])), (HEDGE_AFTER_MIN, usual));
        assert_eq!(choice.patience(&[C]), HEDGE_AFTER);
    }

    #[test]
    fn a_silent_one_is_avoided_before_it_answers() {
        let mut choice = Choice::default();
        reads(&mut choice, 0, 100, |_| 500);
        let now = Mono(100_000);
        for _ in 0..3 {
            choice.asked(now, A);
            choice.silent(now + Duration::from_millis(20), A, now);
        }
        for n in 0..10 {
            let mut order = [A, B];
            choice.order(now + Duration::from_millis(21 + n), &mut order);
            assert_eq!(order, [B, A]);
        }
    }

    #[test]
    fn f27_hedges_have_a_budget() {
        let mut choice = Choice::default();
        let at_once = (0..10_000).take_while(|_| choice.may_hedge()).count();
        assert_eq!(at_once, usize::try_from(HEDGES_AT_ONCE).expect("small"));
        for _ in 0..READS_PER_HEDGE * 5 {
            choice.order(Mono(0), &mut [A, B]);
        }
        assert_eq!((0..10_000).take_while(|_| choice.may_hedge()).count(), 5);
    }
}
