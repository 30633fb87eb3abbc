//! What clients did and what they were told, in the one order in which the simulation ran it.
//!
//! That order is a real-time order: the simulation runs one host at a time, so an operation that began
//! behind another's end could have been told of it.
//!
//! A finished scan stands here as one `Scan` for itself, and one `Seen` for each key that it could have found.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use quoral::types::ids::NodeId;
use quoral::types::policy::Conflicts;

/// A place in the order of all events.
pub type Seq = u64;

/// The name of a written value; unique. Zero is never written.
pub type Value = u64;

/// A keyspace as a scenario drew it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Space {
    /// Its name.
    pub name: String,
    /// Its policy.
    pub conflicts: Conflicts,
    /// Replicas of each key.
    pub n: u8,
    /// Answers of a get that names none.
    pub r: u8,
    /// Acknowledgements of a write that names none.
    pub w: u8,
    /// Whether fallbacks may stand in.
    pub sloppy: bool,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sloppy = if self.sloppy { " sloppy" } else { "" };
        write!(f, "{} {} n={} r={} w={}{sloppy}", self.name, self.conflicts, self.n, self.r, self.w)
    }
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Writes a value.
    Put(Value),
    /// Writes a tombstone.
    Delete,
    /// Reads.
    Get,
    /// Reads the whole keyspace.
    Scan,
    /// What a scan found of this key.
    Seen,
}

/// What the client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing yet, or never.
    Waiting,
    /// The write is acknowledged under this stamp.
    Wrote(u64),
    /// The read found these values, each with its stamp; and the context's stamp, 0 if there is no context. A
    /// scan says nothing of a key that it does not find, so then there is no stamp.
    Read(Vec<(Value, u64)>, Option<u64>),
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
    /// The keyspace.
    pub space: Arc<Space>,
    /// The key; empty for a scan.
    pub key: String,
    /// What it does.
    pub action: Action,
    /// The answers or acknowledgements that it waits for.
    pub level: u8,
    /// A write that was sent under a request id, perhaps several times.
    pub named: bool,
    /// The session that it belongs to, if any: its client's number.
    pub session: Option<usize>,
    /// An item of a batch: which one, and its place there. Those of one key come one after the other.
    pub batch: Option<(usize, usize)>,
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
    /// The node that made the acknowledged version, where its context tells.
    pub made_by: Option<NodeId>,
}

impl Op {
    /// Whether it reads.
    pub fn is_read(&self) -> bool {
        !matches!(self.action, Action::Put(_) | Action::Delete)
    }

    /// Whether it is a write that changed something, or may have.
    pub fn may_have_written(&self) -> bool {
        !self.is_read() && !matches!(self.outcome, Outcome::Refused(_))
    }

    /// Whether it is an acknowledged write.
    pub fn is_acked(&self) -> bool {
        matches!(self.outcome, Outcome::Wrote(_))
    }

    /// What it read; none if it read nothing, or is no read.
    pub fn values(&self) -> &[(Value, u64)] {
        match &self.outcome {
            Outcome::Read(values, _) => values,
            _ => &[],
        }
    }

    /// Whether it read without failing.
    pub fn has_read(&self) -> bool {
        matches!(self.outcome, Outcome::Read(..))
    }

    /// Whether it read this value.
    pub fn found(&self, value: Value) -> bool {
        // They are sorted.
        self.values().binary_search_by_key(&value, |(read, _)| *read).is_ok()
    }

    /// The stamp that it was told.
    pub fn stamp(&self) -> Option<u64> {
        match &self.outcome {
            Outcome::Wrote(stamp) => Some(*stamp),
            Outcome::Read(_, stamp) => *stamp,
            _ => None,
        }
    }

    /// Whether it was over before another began. Of a batch only the whole is timed, but items of a key have an order.
    pub fn is_before(&self, other: &Op) -> bool {
        let same = matches!((self.batch, other.batch), (Some((a, i)), Some((b, j))) if a == b && i < j);
        self.end < other.begin || (same && self.key == other.key && self.space == other.space)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Op { client, node, space, key, action, level, outcome, began_ms, ended_ms, .. } = self;
        let (client, node, letter) = (client + 1, node + 1, if self.is_read() { 'r' } else { 'w' });
        match self.end {
            Seq::MAX => write!(f, "{began_ms} ms on")?,
            _ => write!(f, "{began_ms}-{ended_ms} ms")?,
        }
        write!(f, " c{client} at n{node} {}/{key} {action:?} {letter}={level}", space.name)?;
        if !self.covers.is_empty() {
            write!(f, " over {:?}", self.covers)?;
        }
        write!(f, " -> {outcome:?}")
    }
}

/// A keyspace that a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Creation {
    /// When, in simulated time.
    pub at_ms: u64,
    /// What it should be.
    pub space: Space,
    /// The id, if it was made.
    pub made: Option<u32>,
}

/// What a client asked for of a keyspace that is changed again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// That it be made.
    Create,
    /// Other quorums: `r` and `w`.
    Update(u8, u8),
    /// That it go.
    Drop,
}

/// A change of such a keyspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What was asked for.
    pub wish: Wish,
    /// When it began, and when its answer was there.
    pub begin: Seq,
    /// `Seq::MAX` if nobody knows what became of it.
    pub end: Seq,
    /// The keyspace that it was about, if it was done.
    pub done: Option<u32>,
}

/// All operations, and a line for each event.
#[derive(Default)]
pub struct History {
    ops: Vec<Op>,
    creations: Vec<Creation>,
    changes: Vec<Change>,
    /// One line for each event.
    trace: Vec<String>,
    /// What the scenario did, and when.
    notes: Vec<(u64, String)>,
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
        let Op { client, node, space, key, action, began_ms, .. } = &op;
        let line = format!("{began_ms} c{} n{} {}/{key} {action:?}", client + 1, node + 1, space.name);
        history.trace.push(line);
        history.ops.push(op);
        history.ops.len() - 1
    }

    /// Notes that a write has a request id.
    pub fn named(&self, number: usize) {
        self.lock().ops[number].named = true;
    }

    /// Notes that an operation is an item of a batch.
    pub fn in_batch(&self, number: usize, batch: usize, place: usize) {
        self.lock().ops[number].batch = Some((batch, place));
    }

    /// Notes which node made the version of a write that is about to end.
    pub fn made_by(&self, number: usize, node: Option<NodeId>) {
        self.lock().ops[number].made_by = node;
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

    /// Notes what a finished scan found of one key.
    pub fn seen(&self, scan: usize, key: &str, outcome: Outcome) {
        let mut history = self.lock();
        let op = Op { key: key.into(), action: Action::Seen, outcome, ..history.ops[scan].clone() };
        history.trace.push(format!("{} {op}", op.ended_ms));
        history.ops.push(op);
    }

    /// Notes the end of the creation of a keyspace.
    pub fn created(&self, creation: Creation) {
        let mut history = self.lock();
        history.trace.push(format!("{} {:?}", creation.at_ms, creation));
        history.creations.push(creation);
    }

    /// The last place in the order of events that was given.
    pub fn seq(&self) -> Seq {
        self.lock().seq
    }

    /// Notes the beginning of a change of keyspaces: its number.
    pub fn change(&self, now_ms: u64, wish: Wish) -> usize {
        let mut history = self.lock();
        history.seq += 1;
        let begin = history.seq;
        history.trace.push(format!("{now_ms} {wish:?}"));
        history.changes.push(Change { wish, begin, end: Seq::MAX, done: None });
        history.changes.len() - 1
    }

    /// Notes its end: the keyspace that was changed, or none if it surely was not.
    pub fn changed(&self, now_ms: u64, number: usize, done: Option<u32>) {
        let mut history = self.lock();
        history.seq += 1;
        let seq = history.seq;
        let change = &mut history.changes[number];
        (change.end, change.done) = (seq, done);
        let line = format!("{now_ms} {change:?}");
        history.trace.push(line);
    }

    /// All such changes.
    pub fn changes(&self) -> Vec<Change> {
        self.lock().changes.clone()
    }

    /// Notes what the scenario did.
    pub fn note(&self, now_ms: u64, text: &str) {
        let mut history = self.lock();
        history.trace.push(format!("{now_ms} {text}"));
        history.notes.push((now_ms, text.to_owned()));
    }

    /// All operations so far, in the order of their beginnings.
    pub fn ops(&self) -> Vec<Op> {
        let mut ops = self.lock().ops.clone();
        ops.sort_by_key(|op| op.begin);
        ops
    }

    /// All keyspaces that clients asked for.
    pub fn creations(&self) -> Vec<Creation> {
        self.lock().creations.clone()
    }

    /// What the scenario did so far.
    pub fn notes(&self) -> Vec<(u64, String)> {
        self.lock().notes.clone()
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
