//! Brings the hints for one target home, and gives way to everybody else.
//!
//! Rules, each with a script in `scripts/hint_*.txt`:
//! 1. When the target is reachable its hints are loaded page by page and sent, oldest first; nothing is sent
//!    before that.
//! 2. A hint is forgotten when the target has it, or when it is too old; never else. One that was refused or
//!    lost comes again with the next pass.
//! 3. Bytes in flight stay within a window. It grows while the target answers about as fast as it can, and is
//!    halved, once a round trip, when answers come later than that: then others wait in the target's queues,
//!    and foreground requests among them (the idea of LEDBAT, RFC 6817; Scylla saw 17 times the latency
//!    when its hints did not give way).
//! 4. Over a second it sends no more than the rate.
//! 5. Refused: it pauses. Unreachable: it stops, and begins anew when the target is back.
//! 6. When all are sent and answered it looks again after a while; with none left the target is home.
//!
//! Invariants: each hint in flight at most once; bytes in flight over the window only with a single hint.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::machine::Machine;
use crate::types::time::Mono;

/// How fast it may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// Bytes a second.
    pub rate: u64,
    /// Least and most bytes in flight.
    pub window: (u64, u64),
    /// How much later than its fastest answer the target may answer before the window shrinks.
    pub delay: Duration,
    /// How long it waits after a refusal, and before it looks for new hints.
    pub pause: Duration,
}

/// A loaded hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Its number.
    pub seq: u64,
    /// Its bytes, and what it costs besides, in bytes.
    pub bytes: u64,
    /// Whether it may not be sent any more, or can't be read.
    pub too_old: bool,
}

/// What the target said to a hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is durable there.
    Stored,
    /// It is too old for the target.
    TooOld,
    /// Not now.
    Refused,
    /// The link broke: unknown.
    Lost,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The target is reachable.
    Up,
    /// It is not any more.
    Down,
    /// What was asked for with `Load`, and whether there is more behind.
    Page(Vec<Loaded>, bool),
    /// An answer.
    Answered(u64, Answer),
    /// The time asked for with `Arm` has come.
    Wake,
}

/// What it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Read a page of hints behind this number.
    Load(u64),
    /// Send this hint.
    Send(u64),
    /// Delete this hint.
    Forget(u64),
    /// Nothing is kept for the target any more.
    Home,
    /// Wake at this time; replaces the last.
    Arm(Mono),
}

/// How long the fastest answer counts, at least; at most twice that.
const FASTEST_WINDOW_US: u64 = 10_000_000;

/// What may be sent at once after a silence, as time at the rate: else each hint would need a timer.
const BURST_US: u64 = 100_000;

#[derive(Debug, Clone, Copy)]
struct Flying {
    bytes: u64,
    since: Mono,
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Delivery {
    pace: Pace,
    up: bool,
    loading: bool,
    /// Read, and not sent.
    queue: VecDeque<Loaded>,
    flying: BTreeMap<u64, Flying>,
    /// The last number read in this pass, and whether there is more behind.
    cursor: u64,
    more: bool,
    /// Whether this pass found anything.
    found: bool,
    window: u64,
    /// The fastest answer in this window of time and in the one before, in microseconds.
    fastest: [u64; 2],
    fastest_window: u64,
    /// The window was halved for what was sent before this.
    halved: Mono,
    /// When what was sent is paid for, at the rate (the theoretical arrival time of GCRA, ITU-T I.371).
    paid: Mono,
    /// Nothing is sent before this: the target refused.
    pause_end: Mono,
}

impl Delivery {
    /// A delivery to a target that is not reachable yet.
    pub fn new(pace: Pace) -> Delivery {
        let window = pace.window.0;
        Delivery {
            pace,
            up: false,
            loading: false,
            queue: VecDeque::new(),
            flying: BTreeMap::new(),
            cursor: 0,
            more: false,
            found: false,
            window,
            fastest: [u64::MAX; 2],
            fastest_window: 0,
            halved: Mono(0),
            paid: Mono(0),
            pause_end: Mono(0),
        }
    }

    fn next_send(&self) -> Mono {
        self.pause_end.max(Mono(self.paid.0.saturating_sub(BURST_US)))
    }

    fn in_flight(&self) -> u64 {
        self.flying.values().map(|flying| flying.bytes).sum()
    }

    fn begin_pass(&mut self, effects: &mut Vec<Effect>) {
        (self.cursor, self.more, self.found, self.loading) = (0, false, false, true);
        effects.push(Effect::Load(0));
    }

    fn stop(&mut self) {
        (self.up, self.loading, self.more) = (false, false, false);
        self.queue.clear();
        self.flying.clear();
        self.window = self.pace.window.0;
    }

    fn page(&mut self, now: Mono, page: Vec<Loaded>, more: bool, effects: &mut Vec<Effect>) {
        if !self.loading {
            return;
        }
        self.loading = false;
        self.more = more;
        self.found |= !page.is_empty();
        for hint in page {
            self.cursor = self.cursor.max(hint.seq);
            if hint.too_old {
                effects.push(Effect::Forget(hint.seq));
            } else if !self.flying.contains_key(&hint.seq) {
                self.queue.push_back(hint);
            }
        }
        self.pump(now, effects);
    }

    /// Sends what may be sent, and asks for what it needs next.
    fn pump(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        if !self.up {
            return;
        }
        while let Some(hint) = self.queue.front().copied() {
            let fits = self.flying.is_empty() || self.in_flight() + hint.bytes <= self.window;
            if !fits {
                return;
            }
            let next = self.next_send();
            if now < next {
                effects.push(Effect::Arm(next));
                return;
            }
            self.queue.pop_front();
            self.flying.insert(hint.seq, Flying { bytes: hint.bytes, since: now });
            let cost = Duration::from_micros(hint.bytes.saturating_mul(1_000_000) / self.pace.rate.max(1));
            self.paid = self.paid.max(now) + cost;
            effects.push(Effect::Send(hint.seq));
        }
        if self.loading {
            return;
        }
        if self.more {
            self.loading = true;
            effects.push(Effect::Load(self.cursor));
        } else if self.flying.is_empty() {
            if !self.found {
                effects.push(Effect::Home);
            }
            effects.push(Effect::Arm(now + self.pace.pause));
        }
    }

    fn answered(&mut self, now: Mono, seq: u64, answer: Answer, effects: &mut Vec<Effect>) {
        let Some(flying) = self.flying.remove(&seq) else { return };
        match answer {
            Answer::Stored => {
                effects.push(Effect::Forget(seq));
                self.adapt(now, flying);
            }
            Answer::TooOld => effects.push(Effect::Forget(seq)),
            Answer::Refused => {
                self.window = (self.window / 2).max(self.pace.window.0);
                self.pause_end = now + self.pace.pause;
            }
            Answer::Lost => {}
        }
        self.pump(now, effects);
    }

    /// Rule 3.
    fn adapt(&mut self, now: Mono, flying: Flying) {
        let took = now.micros_since(flying.since);
        let window = now.0 / FASTEST_WINDOW_US;
        if window != self.fastest_window {
            let before = if window == self.fastest_window + 1 { self.fastest[0] } else { u64::MAX };
            (self.fastest, self.fastest_window) = ([u64::MAX, before], window);
        }
        self.fastest[0] = self.fastest[0].min(took);
        let fastest = self.fastest[0].min(self.fastest[1]);
        let late = u64::try_from(self.pace.delay.as_micros()).unwrap_or(u64::MAX);
        if took.saturating_sub(fastest) <= late {
            // One least window more in a round trip.
            let step = self.pace.window.0.saturating_mul(flying.bytes) / self.window.max(1);
            self.window = (self.window + step.max(1)).min(self.pace.window.1);
        } else if flying.since >= self.halved {
            self.window = (self.window / 2).max(self.pace.window.0);
            self.halved = now;
        }
    }
}

impl Machine for Delivery {
    type Event = Event;
    type Effect = Effect;

    fn step(&mut self, now: Mono, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Up if !self.up => {
                self.up = true;
                self.begin_pass(effects);
            }
            Event::Up => {}
            Event::Down => self.stop(),
            Event::Page(page, more) => self.page(now, page, more, effects),
            Event::Answered(seq, answer) => self.answered(now, seq, answer, effects),
            Event::Wake if !self.up => {}
            Event::Wake => {
                let idle = self.queue.is_empty() && self.flying.is_empty() && !self.loading && !self.more;
                if idle { self.begin_pass(effects) } else { self.pump(now, effects) }
            }
        }
    }

    fn check_invariants(&self) {
        assert!(self.flying.len() <= 1 || self.in_flight() <= self.window.max(self.pace.window.1));
        assert!(self.queue.iter().all(|hint| !self.flying.contains_key(&hint.seq)));
        assert!(self.pace.window.0 <= self.window && self.window <= self.pace.window.1);
        assert!(self.up || (self.queue.is_empty() && self.flying.is_empty()));
    }
}
