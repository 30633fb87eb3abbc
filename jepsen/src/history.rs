//! What clients and the nemesis did, and what they were told: Jepsen's history.
//!
//! An operation is two events: its invocation, and its completion by the same process. `ok` means that it took
//! effect, `fail` that it surely did not and never will, `info` that nobody knows: it may take effect at any
//! time after its invocation, or never. After an `info` the process is not used again (a client goes on under
//! a new number). An invocation without a completion counts as `info`.
//!
//! Times are nanoseconds since the beginning of the run, by the one monotonic clock of the runner.
//!
//! # What operations look like
//!
//! A client's value is `[k v]`, in both its events. What checkers know:
//!
//! - register: `:write [k v]` (`v` unique for the key), `:delete [k nil]`, `:read [k v-or-nil]`. With
//!   `:stamp`, the stamp of the version written or read; 0 if a read found that nothing was ever there.
//! - set: `:add [k v]`, `:read [k [v ...]]`.
//! - counter: `:add [k delta]`, `:read [k n]`.
//! - append: `:append [k v]` and `:delete [k nil]` with `:covers [v ...]`, the values that their context had
//!   seen; `:read [k [v ...]]`, the siblings.
//! - `:client n` names the client across its process numbers. `:final true` marks the reads after the end, and
//!   `:replica "n1"` one that a single replica answered, which promises less than a client's read.
//!
//! The nemesis' `:f` is `:start-NAME` and `:stop-NAME`, or `NAME` for what lasts no time.

use std::collections::BTreeMap;

use crate::edn::Edn;

mod pairs;
mod text;

pub use pairs::{Broken, Period};
pub use text::ParseError;

/// Who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    /// A client.
    Client(u64),
    /// Who breaks things.
    Nemesis,
}

/// The type of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An operation begins.
    Invoke,
    /// It took effect.
    Ok,
    /// It surely did not, and never will.
    Fail,
    /// Unknown; all events of the nemesis are of this kind.
    Info,
}

/// One line of a history.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its place in the history, from 0.
    pub index: u64,
    /// Nanoseconds since the beginning of the run.
    pub time: u64,
    /// Who.
    pub process: Process,
    /// What kind.
    pub kind: Kind,
    /// The operation's name, without the colon: `read`, `write`, `add`, …
    pub f: String,
    /// For clients `[k v]`: the key's number, and what was written or read.
    pub value: Edn,
    /// More fields, by name without the colon: `error`, `node`, `stamp`, …
    pub extra: BTreeMap<String, Edn>,
}

/// A client's operation: an invocation and its completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// The client.
    pub process: u64,
    /// The operation's name.
    pub f: String,
    /// The key's number.
    pub key: u64,
    /// What was asked: the second half of the invocation's value.
    pub input: Edn,
    /// What was answered: the second half of the completion's value; `input` again if there is none.
    pub output: Edn,
    /// `Ok`, `Fail` or `Info`.
    pub outcome: Kind,
    /// Index of the invocation: the order of events in real time.
    pub begin: u64,
    /// Index of the completion; `u64::MAX` if there is none or it is `Info`.
    pub end: u64,
    /// Time of the invocation, in nanoseconds.
    pub began: u64,
    /// Time of the completion, whatever it is; of the end of the run if there is none.
    pub ended: u64,
    /// The extra fields of both events; the completion's win.
    pub extra: BTreeMap<String, Edn>,
}

/// A whole run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// In order of time and index.
    pub events: Vec<Event>,
}

impl Event {
    /// The key and the second half of a client's value, if it is `[k v]`.
    pub fn keyed(&self) -> Option<(u64, &Edn)> {
        match self.value.as_list()? {
            [key, value] => Some((u64::try_from(key.as_int()?).ok()?, value)),
            _ => None,
        }
    }
}

impl Operation {
    /// An extra field that is a whole number.
    pub fn number(&self, field: &str) -> Option<i64> {
        self.extra.get(field)?.as_int()
    }

    /// Whether an extra field is there and `true`.
    pub fn flag(&self, field: &str) -> bool {
        self.extra.get(field) == Some(&Edn::Bool(true))
    }

    /// Whether it took effect, or may have.
    pub fn may_have_happened(&self) -> bool {
        self.outcome != Kind::Fail
    }
}
