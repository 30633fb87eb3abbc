//! When requests are due, and the thread that wakes those that wait.
//!
//! tokio's timers tick in milliseconds, too coarse for a request every 50 µs; so a thread sleeps by the
//! system's timer and hands out permits. A worker with a permit takes the next number, from which its due
//! time follows: the schedule never depends on how the server does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Shortest sleep of the pacing thread: bounds its CPU, and is the most that it adds to a latency.
const NAP: Duration = Duration::from_micros(200);

/// An even schedule.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// When request 0 is due.
    pub start: Instant,
    /// Requests a second.
    pub rate: u32,
}

impl Schedule {
    /// When request `number` is due.
    pub fn due(&self, number: u64) -> Instant {
        let rate = u64::from(self.rate);
        let nanos = number % rate * 1_000_000_000 / rate;
        self.start + Duration::from_secs(number / rate) + Duration::from_nanos(nanos)
    }

    /// How many are due at `now`.
    pub fn due_by(&self, now: Instant) -> u64 {
        let Some(passed) = now.checked_duration_since(self.start) else { return 0 };
        let nanos = passed.as_nanos() * u128::from(self.rate) / 1_000_000_000;
        u64::try_from(nanos).unwrap_or(u64::MAX) + 1
    }

    /// Gives a permit to `permits` for each request as it falls due, up to `total`, until `stop`.
    pub fn pace(self, total: u64, permits: Arc<Semaphore>, stop: Arc<AtomicBool>) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            let mut given = 0;
            while given < total && !stop.load(Ordering::Relaxed) {
                let due = self.due_by(Instant::now()).min(total);
                // No more than a semaphore holds; a backlog of that size is lost already.
                permits
                    .add_permits(usize::try_from(due - given).unwrap_or(0).min(Semaphore::MAX_PERMITS >> 4));
                given = due;
                let next = self.due(given).saturating_duration_since(Instant::now());
                thread::sleep(next.clamp(NAP, Duration::from_millis(50)));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_are_due_evenly() {
        let start = Instant::now();
        let schedule = Schedule { start, rate: 3 };
        assert_eq!(schedule.due(0), start);
        assert_eq!(schedule.due(3), start + Duration::from_secs(1));
        assert_eq!(schedule.due(3_000_000_001) - start, Duration::from_nanos(1_000_000_000_333_333_333));
        for number in 0..100 {
            let due = schedule.due(number) + Duration::from_nanos(1);
            assert_eq!(schedule.due_by(due), number + 1, "number {number} and all before");
        }
        assert_eq!(schedule.due_by(start - Duration::from_secs(1)), 0);
    }

    #[test]
    fn permits_come_to_the_total_and_no_further() {
        let permits = Arc::new(Semaphore::new(0));
        let schedule = Schedule { start: Instant::now() - Duration::from_secs(1), rate: 1_000 };
        let pacer = schedule.pace(50, permits.clone(), Arc::default());
        pacer.join().expect("ends by itself");
        assert_eq!(permits.available_permits(), 50);
    }
}
