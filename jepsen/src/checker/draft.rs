//! A history written by hand, for canaries and tests.

use crate::edn::Edn;
use crate::history::{Event, History, Kind, Process};

/// A history in the making: each call adds the next event, a millisecond after the last.
#[derive(Debug, Clone, Default)]
pub struct Draft {
    events: Vec<Event>,
}

/// Extra fields of an event.
pub type Extra<'a> = &'a [(&'a str, Edn)];

impl Draft {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// An invocation.
    pub fn invoke(&mut self, process: u64, f: &str, key: u64, value: impl Into<Edn>) -> &mut Self {
        self.push(Process::Client(process), Kind::Invoke, f, keyed(key, value.into()), &[])
    }

    /// The completion of the operation that the process has under way.
    pub fn complete(&mut self, process: u64, kind: Kind, value: impl Into<Edn>, extra: Extra) -> &mut Self {
        let mut earlier = self.events.iter().rev();
        let Some(begun) = earlier.find(|event| event.process == Process::Client(process)) else {
            return self;
        };
        let (f, key) = (begun.f.clone(), begun.keyed().map_or(0, |(key, _)| key));
        self.finish(process, &f, key, kind, value.into(), extra)
    }

    /// A completion, for those who know of what.
    pub(super) fn finish(
        &mut self,
        process: u64,
        f: &str,
        key: u64,
        kind: Kind,
        value: Edn,
        extra: Extra,
    ) -> &mut Self {
        self.push(Process::Client(process), kind, f, keyed(key, value), extra)
    }

    /// A successful completion.
    pub fn ok(&mut self, process: u64, value: impl Into<Edn>, extra: Extra) -> &mut Self {
        self.complete(process, Kind::Ok, value, extra)
    }

    /// An operation that succeeds before anything else happens.
    pub fn done(
        &mut self,
        process: u64,
        f: &str,
        key: u64,
        value: impl Into<Edn>,
        extra: Extra,
    ) -> &mut Self {
        let value = value.into();
        let asked = if f == "read" { Edn::Nil } else { value.clone() };
        self.invoke(process, f, key, asked).ok(process, value, extra)
    }

    /// An operation whose answer gets lost.
    pub fn lost(
        &mut self,
        process: u64,
        f: &str,
        key: u64,
        value: impl Into<Edn>,
        extra: Extra,
    ) -> &mut Self {
        let value = value.into();
        self.invoke(process, f, key, value.clone()).complete(process, Kind::Info, value, extra)
    }

    /// An event of the nemesis.
    pub fn nemesis(&mut self, f: &str) -> &mut Self {
        self.push(Process::Nemesis, Kind::Info, f, Edn::Nil, &[])
    }

    /// Lets milliseconds pass before the event that was added last.
    pub fn after(&mut self, millis: u64) -> &mut Self {
        if let Some(event) = self.events.last_mut() {
            event.time += millis * 1_000_000;
        }
        self
    }

    /// The history.
    pub fn history(&self) -> History {
        History { events: self.events.clone() }
    }

    fn push(&mut self, process: Process, kind: Kind, f: &str, value: Edn, extra: Extra) -> &mut Self {
        self.events.push(Event {
            index: u64::try_from(self.events.len()).unwrap_or(u64::MAX),
            time: self.events.last().map_or(0, |event| event.time + 1_000_000),
            process,
            kind,
            f: f.to_owned(),
            value,
            extra: extra.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        });
        self
    }
}

fn keyed(key: u64, value: Edn) -> Edn {
    Edn::Vector(vec![Edn::from(key), value])
}
