//! Batches: each item has exactly one status, at its own place, and items of one key are carried out in order.
//!
//! The items of a batch are operations of their own, with `:batch` (its number), `:item` (the place, from 0) and
//! `:items` (how many there are). `:unreported true` is on one of which the answer said nothing. They are begun at
//! once, so what the order in the list promises stands here: of two items of one key that both succeeded the later
//! has no smaller stamp, and a greater one if it writes.

use std::collections::BTreeMap;

use super::findings::Findings;
use super::{Checker, Verdict};
use crate::history::{History, Kind, Operation};

/// Batches as a whole.
#[derive(Debug, Clone, Copy, Default)]
pub struct Batches;

fn all_events<'a>(items: impl IntoIterator<Item = &'a Operation>) -> Vec<u64> {
    let events = items.into_iter().flat_map(|op| [op.begin, op.end]);
    events.filter(|event| *event != u64::MAX).collect()
}

/// Each place is taken once, and each item has its status.
fn judge_statuses(number: i64, items: &[&Operation], findings: &mut Findings) {
    let mut places: Vec<i64> = items.iter().map(|op| op.number("item").unwrap_or(-1)).collect();
    places.sort_unstable();
    let asked = items.first().and_then(|op| op.number("items")).unwrap_or(0);
    if places != (0..asked).collect::<Vec<_>>() {
        let events = all_events(items.iter().copied());
        findings.wrong(None, events, || {
            format!("batch {number} of {asked} items: there are outcomes of {places:?}")
        });
    }
    for op in items.iter().filter(|op| op.flag("unreported")) {
        findings.wrong(Some(op.key), all_events([*op]), || {
            format!("batch {number} says nothing of item {}", op.number("item").unwrap_or(-1))
        });
    }
}

/// Items of one key come one after the other.
fn judge_order(number: i64, items: &[&Operation], findings: &mut Findings) -> u64 {
    let mut judged = 0;
    let mut keys: BTreeMap<u64, (i64, &Operation)> = BTreeMap::new();
    for op in items.iter().filter(|op| op.outcome == Kind::Ok) {
        let Some(stamp) = op.number("stamp") else { continue };
        if let Some((floor, earlier)) = keys.get(&op.key) {
            judged += 1;
            if stamp < *floor || (stamp == *floor && op.f != "read") {
                findings.wrong(Some(op.key), all_events([*earlier, *op]), || {
                    format!(
                        "batch {number}: the {} at place {} has stamp {stamp}, and an earlier {} has {floor}",
                        op.f,
                        op.number("item").unwrap_or(-1),
                        earlier.f
                    )
                });
            }
        }
        let own = keys.entry(op.key).or_insert((stamp, op));
        if own.0 <= stamp {
            *own = (stamp, op);
        }
    }
    judged
}

impl Checker for Batches {
    fn name(&self) -> &'static str {
        "batches"
    }

    fn check(&self, history: &History) -> Verdict {
        let operations = history.operations();
        let mut findings = Findings::new();
        let mut batches: BTreeMap<i64, Vec<&Operation>> = BTreeMap::new();
        for op in &operations {
            if let Some(number) = op.number("batch") {
                batches.entry(number).or_default().push(op);
            }
        }
        let (mut partly, mut ordered) = (0_u64, 0);
        for (number, items) in &mut batches {
            items.sort_by_key(|op| op.number("item"));
            judge_statuses(*number, items, &mut findings);
            ordered += judge_order(*number, items, &mut findings);
            let done = items.iter().filter(|op| op.outcome == Kind::Ok).count();
            partly += u64::from(done > 0 && done < items.len());
        }
        if batches.is_empty() {
            findings.unsure();
        }
        findings.figure("batches", batches.len());
        findings.figure("batches-done-in-part", partly);
        findings.figure("items-behind-others-of-their-key", ordered);
        findings.done()
    }
}
