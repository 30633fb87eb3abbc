//! Takes down the history, in one order, with one clock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::edn::Edn;
use crate::history::{Event, History, Kind, Process};

struct Notes {
    began: Instant,
    events: Vec<Event>,
    next_value: u64,
}

/// Shared by all clients and the nemesis. Cheap to clone.
#[derive(Clone)]
pub struct Recorder(Arc<Mutex<Notes>>);

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder(Arc::new(Mutex::new(Notes { began: Instant::now(), events: Vec::new(), next_value: 0 })))
    }
}

/// More fields of an event, by name.
pub type Extra = BTreeMap<String, Edn>;

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an event, at this time.
    pub fn note(&self, process: Process, kind: Kind, f: &str, value: Edn, extra: Extra) {
        let mut notes = self.lock();
        // Under the lock, so that times grow with the indices.
        let time = u64::try_from(notes.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let index = notes.events.len() as u64;
        notes.events.push(Event { index, time, process, kind, f: f.to_owned(), value, extra });
    }

    /// Notes what the nemesis did.
    pub fn nemesis(&self, f: &str, value: Edn) {
        self.note(Process::Nemesis, Kind::Info, f, value, Extra::new());
    }

    /// A value that was never given before, from 1.
    pub fn new_value(&self) -> u64 {
        let mut notes = self.lock();
        notes.next_value += 1;
        notes.next_value
    }

    /// All events so far.
    pub fn history(&self) -> History {
        History { events: self.lock().events.clone() }
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.lock().events.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
