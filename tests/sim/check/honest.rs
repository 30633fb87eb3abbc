//! G8 and G9: what clients are told is true and comes in time, and nothing grows without end. And F13.

use std::collections::BTreeMap;

use quoral::types::ids::NodeId;

use super::Finding;
use crate::history::{Action, Op, Outcome, Value};

/// When a node, or the link of a client to it, was disturbed.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// The node.
    pub node: usize,
    /// The client; all, if none.
    pub client: Option<usize>,
    /// From when.
    pub from: u64,
    /// Until when.
    pub to: u64,
}

/// When what two nodes send each other was disturbed.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// The two.
    pub nodes: (usize, usize),
    /// From when.
    pub from: u64,
    /// Until when.
    pub to: u64,
}

/// How long a disturbed connection may go unnoticed: a keep-alive of 400 ms, 900 ms for its answer, and the
/// way to a new connection.
const AFTERMATH_MS: u64 = 2_500;

/// G8: a read value was written to that key, before the read ended, by a write that may have been applied; and
/// it was applied once.
pub fn g8_honest(ops: &[Op]) -> Vec<Finding> {
    let mut written: BTreeMap<Value, &Op> = BTreeMap::new();
    for op in ops {
        if let Action::Put(value) = op.action {
            written.insert(value, op);
        }
    }
    let mut wrong = Vec::new();
    for op in ops {
        let mut before = None;
        for (value, stamp) in op.values() {
            match written.get(value) {
                Some(put) if (&put.key, &put.space) != (&op.key, &op.space) => {
                    wrong.push(Finding::of("G8", "a value of another key", &[op, put]));
                }
                Some(put) if matches!(put.outcome, Outcome::Refused(_)) => {
                    wrong.push(Finding::of("G8", "surely not applied, and read (F30)", &[put, op]));
                }
                Some(put) if put.begin > op.end => {
                    wrong.push(Finding::of("G8", "read before it was written", &[op, put]));
                }
                // One that came through two coordinators may have two stamps.
                Some(put)
                    if !put.named
                        && !put.space.sloppy
                        && matches!(put.outcome, Outcome::Wrote(own) if own < *stamp) =>
                {
                    wrong.push(Finding::of("G8", "read under a greater stamp than acknowledged", &[put, op]));
                }
                Some(_) => {}
                None => wrong.push(Finding::of("G8", "a value that nobody wrote", &[op])),
            }
            if before.replace(value) == Some(value) {
                wrong.push(Finding::of("G8", &format!("{value} was applied twice"), &[op]));
            }
        }
    }
    wrong
}

/// G8: every request had its answer in time, but for what the network or a crash may have kept from it.
pub fn g8_deadlines(ops: &[Op], spans: &[Span], clients: usize) -> Vec<Finding> {
    let disturbed = |op: &Op| {
        op.client < clients
            && spans.iter().any(|span| {
                span.node == op.node
                    && span.client.is_none_or(|client| client == op.client)
                    && span.from <= op.ended_ms
                    && op.began_ms <= span.to + AFTERMATH_MS
            })
    };
    ops.iter()
        .filter(|op| matches!(op.outcome, Outcome::Late | Outcome::Waiting) && !disturbed(op))
        .map(|op| Finding::of("G8", &format!("no answer by the deadline of {} ms", op.timeout_ms), &[op]))
        .collect()
}

/// Time in which a sloppy write is taken though some of its homes are silent: they are waited for, and it may have
/// been sent on to one of them before.
const SLOPPY_MS: u64 = 1_000;

/// G6: a sloppy write with time enough is taken while its coordinator and `w - 1` other nodes are undisturbed. `nodes`
/// is how many there are.
pub fn g6_writable(ops: &[Op], spans: &[Span], cuts: &[Cut], nodes: usize) -> Vec<Finding> {
    let refused = |op: &Op| match &op.outcome {
        Outcome::Refused(code) | Outcome::Unknown(code) => {
            code == "UNAVAILABLE" || code == "DEADLINE_EXCEEDED"
        }
        _ => false,
    };
    let is_disturbed = |node: usize, op: &Op| {
        let near = |span: &&Span| span.from <= op.ended_ms && op.began_ms <= span.to + AFTERMATH_MS;
        spans.iter().filter(near).any(|span| span.node == node)
    };
    let is_cut = |node: usize, op: &Op| {
        let near = |cut: &&Cut| cut.from <= op.ended_ms && op.began_ms <= cut.to + AFTERMATH_MS;
        cuts.iter().filter(near).any(|cut| [(node, op.node), (op.node, node)].contains(&cut.nodes))
    };
    // One made on the way is not known to all at once.
    let is_known = |op: &Op| !op.space.name.starts_with("made-") && !op.space.name.starts_with("tenant-");
    let should_be_taken = |op: &&Op| {
        let there = (0..nodes).filter(|node| !is_disturbed(*node, op) && !is_cut(*node, op)).count();
        op.space.sloppy
            && is_known(op)
            && !op.is_read()
            && op.timeout_ms >= SLOPPY_MS
            && !is_disturbed(op.node, op)
            && there >= usize::from(op.level)
    };
    ops.iter()
        .filter(should_be_taken)
        .filter(|op| refused(op))
        .map(|op| Finding::of("G6", "a sloppy write was not taken, and enough nodes were there", &[op]))
        .collect()
}

/// Something that is counted and limited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gauge {
    /// Whose and of what.
    pub name: String,
    /// The most that was seen.
    pub most: usize,
    /// The limit.
    pub limit: usize,
    /// How much is left once nothing is under way.
    pub left: usize,
}

/// G9: nothing passes its limit, and nothing counts as under way once nothing is (F28).
pub fn g9_bounded(gauges: &[Gauge]) -> Vec<Finding> {
    let over = gauges.iter().filter(|gauge| gauge.most > gauge.limit);
    let left = gauges.iter().filter(|gauge| gauge.left > 0);
    let over = over.map(|gauge| Finding::new("G9", format!("over its limit: {gauge:?}")));
    over.chain(left.map(|gauge| Finding::new("G9", format!("not back at zero (F28): {gauge:?}")))).collect()
}

/// F13: of two acknowledged writes of one coordinator, one over before the other began, the later has the
/// greater stamp, whatever its key and whatever happened between. `coordinator` says who that was, if it is known.
pub fn f13_stamps_grow(ops: &[Op], coordinator: impl Fn(&Op) -> Option<NodeId>) -> Vec<Finding> {
    let mut nodes: BTreeMap<NodeId, Vec<(u64, &Op)>> = BTreeMap::new();
    for op in ops.iter().filter(|op| op.is_acked()) {
        if let (Some(node), Some(stamp)) = (coordinator(op), op.stamp()) {
            nodes.entry(node).or_default().push((stamp, op));
        }
    }
    let mut wrong = Vec::new();
    for mut writes in nodes.into_values() {
        let mut by_end = writes.clone();
        by_end.sort_by_key(|(_, op)| op.end);
        writes.sort_by_key(|(_, op)| op.begin);
        let (mut ended, mut greatest) = (by_end.into_iter().peekable(), None::<(u64, &Op)>);
        for (stamp, op) in writes {
            while let Some((before, earlier)) = ended.next_if(|(_, earlier)| earlier.end < op.begin) {
                if greatest.is_none_or(|(most, _)| before > most) {
                    greatest = Some((before, earlier));
                }
            }
            if let Some((_, earlier)) = greatest.filter(|(most, _)| stamp <= *most) {
                wrong.push(Finding::of("F13", "the stamps of a coordinator went back", &[earlier, op]));
            }
        }
    }
    wrong
}
