//! What clients did and what they were told, in the one order in which the simulation ran it.
//!
//! That order is a real-time order: the simulation runs one host at a time, so an operation that began
//! behind another's end could have been told of it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use quoral::types::policy::Conflicts;

/// A place in the order of all events.
pub type Seq = u64;

/// The name of a written value; unique. Zero is never written.
pub type Value = u64;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Writes a value.
    Put(Value),
    /// Writes a tombstone.
    Delete,
    /// Reads.
    Get,
}

/// What the client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing yet, or never.
    Waiting,
    /// The write is acknowledged under this stamp.
    Wrote(u64),
    /// The read found these values, each with its stamp; and the context's stamp, 0 if there is no context.
    Read(Vec<(Value, u64)>, u64),
    /// It surely changed nothing.
    Refused(String),
    /// It may have changed something.
    Unknown(String),
    /// No answer within the deadline and some more.
    Late,
}

/// One operation.
#[derive(Debug, Clone)]
pub struct Op {
    /// Its client.
    pub client: usize,
    /// The node that was asked.
    pub node: usize,
    /// The keyspace's policy.
    pub conflicts: Conflicts,
    /// The key.
    pub key: String,
    /// What it does.
    pub action: Action,
    /// A write: the values that its context had seen.
    pub covers: BTreeSet<Value>,
    /// How long the node had for it.
    pub timeout_ms: u64,
    /// When it began.
    pub begin: Seq,
    /// In simulated time.
    pub began_ms: u64,
    /// When its answer was there; `Seq::MAX` if it never was.
    pub end: Seq,
    /// In simulated time.
    pub ended_ms: u64,
    /// The answer.
    pub outcome: Outcome,
}

impl Op {
    /// Whether it is a write that changed something, or may have.
    pub fn may_have_written(&self) -> bool {
        !matches!(self.action, Action::Get) && !matches!(self.outcome, Outcome::Refused(_))
    }

    /// From when on a write is surely there: its end, if it was acknowledged.
    pub fn acked_at(&self) -> Option<Seq> {
        matches!(self.outcome, Outcome::Wrote(_)).then_some(self.end)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Op { client, node, key, action, outcome, began_ms, ended_ms, begin, end, .. } = self;
        write!(f, "{began_ms}-{ended_ms} ms ({begin}-{end}) c{} at n{} {key} ", client + 1, node + 1)?;
        write!(f, "{action:?} -> {outcome:?}")?;
        if !self.covers.is_empty() {
            write!(f, " over {:?}", self.covers)?;
        }
        Ok(())
    }
}

/// All operations, and a line for each event.
#[derive(Default)]
pub struct History {
    /// In the order of their beginnings.
    pub ops: Vec<Op>,
    /// One line for each event.
    pub trace: Vec<String>,
    seq: Seq,
    next_value: Value,
}

/// Shares the history with the clients. Cheap to clone.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<History>>);

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, History> {
        self.0.lock().expect("no panic while it is held")
    }

    /// A value that was never written.
    pub fn new_value(&self) -> Value {
        let mut history = self.lock();
        history.next_value += 1;
        history.next_value
    }

    /// Notes an operation's beginning; its `begin` is filled in. Returns its number.
    pub fn begin(&self, mut op: Op) -> usize {
        let mut history = self.lock();
        history.seq += 1;
        op.begin = history.seq;
        let Op { client, node, key, action, began_ms, .. } = &op;
        let line = format!("{began_ms} c{} n{} {key} {action:?}", client + 1, node + 1);
        history.trace.push(line);
        history.ops.push(op);
        history.ops.len() - 1
    }

    /// Notes an operation's end.
    pub fn end(&self, number: usize, now_ms: u64, outcome: Outcome) {
        let mut history = self.lock();
        history.seq += 1;
        let seq = history.seq;
        let op = &mut history.ops[number];
        (op.end, op.ended_ms, op.outcome) = (seq, now_ms, outcome);
        let line = format!("{now_ms} {op}");
        history.trace.push(line);
    }

    /// Notes what the scenario did.
    pub fn note(&self, now_ms: u64, text: &str) {
        self.lock().trace.push(format!("{now_ms} {text}"));
    }

    /// All operations so far.
    pub fn ops(&self) -> Vec<Op> {
        self.lock().ops.clone()
    }

    /// All events so far.
    pub fn trace(&self) -> Vec<String> {
        self.lock().trace.clone()
    }
}

/// A short name of a trace.
pub fn digest(trace: &[String]) -> String {
    let mut hasher = blake3::Hasher::new();
    for line in trace {
        hasher.update(line.as_bytes()).update(b"\n");
    }
    hasher.finalize().to_hex()[..16].to_string()
}
