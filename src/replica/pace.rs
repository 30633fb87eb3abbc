//! The pace of the scrub (`replica::scrub`): when it reads, how long it rests, when it notes how far it is.
//!
//! Rules, each with a script in `scripts/scrub_*.txt`:
//! 1. A pass begins when the last one ended as long ago as the interval, or none ever did. A clock that went back is waited for.
//! 2. After each step it rests for as long as the rate asks for, and longer while clients are served.
//! 3. A pass that a stop of the node broke off goes on where it was, at once.
//! 4. How far it is is noted now and then, and at the end of a pass; a step is noted after its rest, so never too early.
//! 5. What can't be read now is read again after a pause.

use std::time::Duration;

use super::scrub::Position;
use crate::machine::Machine;
use crate::types::time::{Mono, WallMs};

/// How often the position of a pass is noted, and how often it is looked whether one is due.
const NOTE_EVERY: Duration = Duration::from_secs(30);
/// How long to rest at least after a step while clients are served.
const REST_BUSY: Duration = Duration::from_millis(20);
/// How long to wait after an error of the storage.
const PAUSE: Duration = Duration::from_secs(5);

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Begin.
    Start,
    /// The rest is over, at this time of the wall clock.
    Rested(WallMs),
    /// A step has read so many bytes, and the next begins at this key; none if it was the last.
    Read {
        /// Of keys and values.
        bytes: u64,
        /// Where to go on.
        next: Option<Vec<u8>>,
        /// Whether clients are served.
        is_busy: bool,
    },
    /// The storage could not read.
    Failed,
}

/// What it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Read a step from this key on.
    Read(Vec<u8>),
    /// Store how far it is.
    Note(Position),
    /// A pass has ended.
    Passed,
    /// Come back after this time. The last effect, but for a step that is read.
    Rest(Duration),
}

/// What it does after its rest.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    /// Look whether a pass is due.
    Look,
    /// Read a step.
    Read(Vec<u8>),
    /// End the pass.
    End,
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Pace {
    interval: Duration,
    rate: u64,
    position: Position,
    next: Next,
    noted_at: Mono,
    is_reading: bool,
}

impl Pace {
    /// A pass each `interval`, of `rate` bytes a second at the most, from `position` on.
    pub fn new(interval: Duration, rate: u64, position: Position) -> Pace {
        Pace { interval, rate, position, next: Next::Look, noted_at: Mono(0), is_reading: false }
    }

    fn is_due(&self, wall: WallMs) -> bool {
        let interval = u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX);
        let is_old = |ended: WallMs| wall.0.saturating_sub(ended.0) >= interval;
        self.position.next.is_some() || self.position.ended_at.is_none_or(is_old)
    }

    fn look_again(&mut self, effects: &mut Vec<Effect>) {
        self.next = Next::Look;
        effects.push(Effect::Rest(NOTE_EVERY.min(self.interval)));
    }

    fn read(&mut self, from: Vec<u8>, effects: &mut Vec<Effect>) {
        self.is_reading = true;
        effects.push(Effect::Read(from));
    }

    fn rested(&mut self, now: Mono, wall: WallMs, effects: &mut Vec<Effect>) {
        match std::mem::replace(&mut self.next, Next::Look) {
            Next::Look if self.is_due(wall) => {
                self.noted_at = now;
                let from = self.position.next.clone().unwrap_or_default();
                self.read(from, effects);
            }
            Next::Look => self.look_again(effects),
            Next::Read(from) => {
                if now >= self.noted_at + NOTE_EVERY {
                    self.noted_at = now;
                    effects.push(Effect::Note(self.position.clone()));
                }
                self.read(from, effects);
            }
            Next::End => {
                self.position.ended_at = Some(wall);
                effects.extend([Effect::Note(self.position.clone()), Effect::Passed]);
                self.look_again(effects);
            }
        }
    }
}

impl Machine for Pace {
    type Event = Event;
    type Effect = Effect;

    fn step(&mut self, now: Mono, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Start => self.look_again(effects),
            Event::Rested(wall) => self.rested(now, wall, effects),
            Event::Read { bytes, next, is_busy } => {
                self.is_reading = false;
                let by_rate = Duration::from_micros(bytes.saturating_mul(1_000_000) / self.rate.max(1));
                let least = if is_busy { REST_BUSY } else { Duration::ZERO };
                self.position.next.clone_from(&next);
                self.next = next.map_or(Next::End, Next::Read);
                effects.push(Effect::Rest(by_rate.max(least)));
            }
            Event::Failed => {
                self.is_reading = false;
                self.next = Next::Read(self.position.next.clone().unwrap_or_default());
                effects.push(Effect::Rest(PAUSE));
            }
        }
    }

    fn check_invariants(&self) {
        assert!(!self.is_reading || self.next == Next::Look, "it reads one step at a time");
    }
}
