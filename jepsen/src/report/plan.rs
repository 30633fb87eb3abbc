//! What of a history the timeline shows, and where.
//!
//! A process that goes on under a new number after an `info` stays in its column, unlike in Jepsen's timeline,
//! which grows a column for each.

use std::collections::{BTreeMap, BTreeSet};

use super::view::{Op, View};
use crate::edn::Edn;
use crate::history::{Event, Kind};

/// How many operations are shown from the beginning on.
pub const OPS_MAX: usize = 10_000;
/// How many more may be shown for the anomalies' sake.
const NEAR_MAX: usize = 4_000;
/// How many operations before and after each one of an anomaly.
const NEAR: usize = 25;

/// Where things are drawn.
#[derive(Debug)]
pub struct Plan {
    /// Positions of the operations that are shown.
    pub shown: BTreeSet<usize>,
    /// The column of each operation, from 0.
    pub columns: Vec<usize>,
    /// The columns' clients.
    pub clients: Vec<u64>,
    /// Each drawn event's row, by index.
    rows: BTreeMap<u64, usize>,
    /// The time at each row.
    pub times: Vec<u64>,
    /// Rows at which operations were left out, and how many.
    pub gaps: Vec<(usize, usize)>,
}

/// The operations to show: the first, those of anomalies, and what surrounds these while there is room.
fn select(ops: &[Op], guilty: &BTreeSet<u64>, most: usize, near_most: usize) -> BTreeSet<usize> {
    let mut shown: BTreeSet<usize> = (0..ops.len().min(most)).collect();
    let bad: Vec<usize> = (0..ops.len()).filter(|at| is_guilty(&ops[*at], guilty)).collect();
    shown.extend(bad.iter().take(near_most));
    let room = most + near_most;
    for distance in 1..=NEAR {
        for at in &bad {
            for near in [at.checked_sub(distance), Some(at + distance)].into_iter().flatten() {
                if near < ops.len() && shown.len() < room {
                    shown.insert(near);
                }
            }
        }
    }
    shown
}

/// Whether an operation is part of an anomaly.
pub fn is_guilty(op: &Op, guilty: &BTreeSet<u64>) -> bool {
    guilty.contains(&op.begin.index) || op.end.is_some_and(|end| guilty.contains(&end.index))
}

/// A column for each operation, and the client of each column. `:client` names it, where it is given.
fn columns(ops: &[Op], concurrency: usize) -> (Vec<usize>, Vec<u64>) {
    let named = |op: &Op| match op.begin.extra.get("client") {
        Some(Edn::Int(number)) => u64::try_from(*number).ok(),
        _ => None,
    };
    let Some(named) = ops.iter().map(named).collect::<Option<Vec<u64>>>() else {
        return reused(ops, concurrency);
    };
    let clients: BTreeSet<u64> = named.iter().copied().collect();
    let places: BTreeMap<u64, usize> = clients.iter().enumerate().map(|(at, client)| (*client, at)).collect();
    (named.iter().map(|client| places[client]).collect(), clients.into_iter().collect())
}

/// A column for each process: its own, or that of one whose last operation ended as `info`.
fn reused(ops: &[Op], concurrency: usize) -> (Vec<usize>, Vec<u64>) {
    let mut columns: BTreeMap<u64, usize> = BTreeMap::new();
    // Of each column, whether its process is gone.
    let mut gone: Vec<bool> = Vec::new();
    let mut found = Vec::with_capacity(ops.len());
    for op in ops {
        let column = *columns.entry(op.process).or_insert_with(|| {
            // Jepsen numbers a process that goes on by adding the concurrency.
            let own = usize::try_from(op.process).unwrap_or(0) % concurrency.max(1);
            let free = |at: &usize| gone.get(*at) == Some(&true);
            let at = [own].into_iter().find(free).or_else(|| (0..gone.len()).find(free));
            at.unwrap_or(gone.len())
        });
        if column == gone.len() {
            gone.push(false);
        }
        gone[column] = op.end.is_some_and(|end| end.kind == Kind::Info);
        found.push(column);
    }
    (found, (0..gone.len() as u64).collect())
}

impl Plan {
    /// Plans a timeline.
    pub fn new(view: &View) -> Plan {
        let shown = select(&view.ops, &view.guilty, OPS_MAX, NEAR_MAX);
        let (columns, clients) = columns(&view.ops, view.test.concurrency);
        // Events in order; with an operation's invocation, how many were left out before it.
        let mut events: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
        let mut before = 0;
        for at in &shown {
            let op = &view.ops[*at];
            events.insert(op.begin.index, (op.begin.time, at - before));
            events.extend(op.end.map(|end| (end.index, (end.time, 0))));
            before = at + 1;
        }
        events.extend(view.nemesis.iter().map(|event| (event.index, (event.time, 0))));
        let (mut rows, mut times, mut gaps) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (index, (time, left_out)) in events {
            if left_out > 0 {
                gaps.push((times.len(), left_out));
                times.extend([time; 2]);
            }
            rows.insert(index, times.len());
            times.push(time);
        }
        if before < view.ops.len() {
            gaps.push((times.len(), view.ops.len() - before));
            times.extend([view.end; 2]);
        }
        Plan { shown, columns, clients, rows, times, gaps }
    }

    /// An event's row.
    pub fn row(&self, event: &Event) -> usize {
        self.rows.get(&event.index).copied().unwrap_or(0)
    }

    /// The first row at or after a time.
    pub fn row_at(&self, time: u64) -> usize {
        self.times.partition_point(|at| *at < time)
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
