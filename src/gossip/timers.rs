//! The queue of timers: in order of time, then of kind, then of arrival.
//!
//! Why this way: foca needs its timers in exactly that order, or a probe ends before its indirect stage and
//! foca reports a bug in its driver. One ordered queue inside the machine gives it, on every runtime.
//!
//! A process that was paused, or starved of its processor, finds many timers due at once, and the answers
//! that it waited for unread in its socket. Were the timers to fire first it would suspect live nodes. So
//! [`Timers::forgive`] moves the whole queue by the time that was lost: a slow node becomes slower to
//! accuse others (what Lifeguard calls local health).

use std::collections::BTreeMap;
use std::time::Duration;

use foca::Timer;

use super::identity::Identity;
use crate::types::time::Mono;

/// What is to be done at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// A timer of foca's.
    Foca(Timer<Identity>),
    /// The machine's own regular round.
    Round,
}

impl Due {
    /// foca's order of timers that are due together (see its `Timer`); ours last.
    fn rank(&self) -> u8 {
        match self {
            Due::Foca(Timer::SendIndirectProbe { .. }) => 0,
            Due::Foca(Timer::ProbeRandomMember(_)) => 1,
            Due::Foca(Timer::ChangeSuspectToDown { .. }) => 2,
            Due::Foca(Timer::PeriodicAnnounce(_)) => 3,
            Due::Foca(Timer::PeriodicGossip(_)) => 4,
            Due::Foca(Timer::RemoveDown(_)) => 5,
            Due::Foca(Timer::PeriodicAnnounceDown(_)) => 6,
            Due::Round => 7,
        }
    }
}

/// The queue.
#[derive(Debug, Default)]
pub struct Timers {
    queue: BTreeMap<(Mono, u8, u64), Due>,
    arrivals: u64,
}

impl Timers {
    /// Adds one.
    pub fn push(&mut self, at: Mono, due: Due) {
        self.arrivals += 1;
        self.queue.insert((at, due.rank(), self.arrivals), due);
    }

    /// When the first is due.
    pub fn next(&self) -> Option<Mono> {
        self.queue.first_key_value().map(|((at, _, _), _)| *at)
    }

    /// Takes the first that is due at `now`.
    pub fn pop(&mut self, now: Mono) -> Option<Due> {
        if self.next()? > now {
            return None;
        }
        self.queue.pop_first().map(|(_, due)| due)
    }

    /// If the first timer is later than `tolerance`, time was lost: moves all timers so that the first is due
    /// `grace` from now, for the reader of the socket to catch up. Says whether it did.
    pub fn forgive(&mut self, now: Mono, tolerance: Duration, grace: Duration) -> bool {
        let Some(first) = self.next() else { return false };
        if first + tolerance >= now {
            return false;
        }
        let lost = Duration::from_micros(now.micros_since(first)) + grace;
        let queue = std::mem::take(&mut self.queue);
        self.queue = queue.into_iter().map(|((at, rank, n), due)| ((at + lost, rank, n), due)).collect();
        true
    }

    /// Forgets those of foca's.
    pub fn drop_foca(&mut self) {
        self.queue.retain(|_, due| *due == Due::Round);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(timers: &mut Timers, now: Mono) -> Vec<Due> {
        std::iter::from_fn(|| timers.pop(now)).collect()
    }

    #[test]
    fn timers_come_by_time_then_kind_then_arrival() {
        let mut timers = Timers::default();
        let foca = |timer| Due::Foca(timer);
        timers.push(Mono(20), Due::Round);
        timers.push(Mono(20), foca(Timer::PeriodicGossip(2)));
        timers.push(Mono(20), foca(Timer::PeriodicGossip(1)));
        timers.push(Mono(20), foca(Timer::ProbeRandomMember(0)));
        timers.push(Mono(10), foca(Timer::PeriodicAnnounce(0)));
        timers.push(Mono(30), Due::Round);
        assert_eq!(drained(&mut timers, Mono(9)), []);
        let expected = [
            foca(Timer::PeriodicAnnounce(0)),
            foca(Timer::ProbeRandomMember(0)),
            foca(Timer::PeriodicGossip(2)),
            foca(Timer::PeriodicGossip(1)),
            Due::Round,
        ];
        assert_eq!(drained(&mut timers, Mono(20)), expected);
        assert_eq!(timers.next(), Some(Mono(30)));
    }

    #[test]
    fn lost_time_moves_the_queue_and_keeps_its_order() {
        let ms = Duration::from_millis;
        let mut timers = Timers::default();
        timers.push(Mono(1_000), Due::Round);
        timers.push(Mono(3_000), Due::Foca(Timer::PeriodicGossip(0)));
        assert!(!timers.forgive(Mono(101_000), ms(100), ms(5)), "just in time");
        assert!(timers.forgive(Mono(101_001), ms(100), ms(5)));
        assert_eq!(timers.next(), Some(Mono(106_001)));
        assert_eq!(timers.pop(Mono(106_001)), Some(Due::Round));
        assert_eq!(timers.next(), Some(Mono(108_001)));
    }
}
