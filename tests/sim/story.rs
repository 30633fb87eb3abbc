//! The minimal story of a failure: of all events only the guilty key's writes, the operations that show the
//! fault, and what was wrong with the world meanwhile.

use crate::check::Finding;
use crate::history::{Op, Seq};

/// Lines that a story may have.
const LINES: usize = 60;
/// How long before the first guilty operation the faults are told.
const BEFORE_MS: u64 = 3_000;

/// The story of the first thing that is wrong; empty if nothing is.
pub fn story(wrong: &[Finding], ops: &[Op], notes: &[(u64, String)]) -> String {
    // One about a key tells more than one about a node.
    let Some(finding) = wrong.iter().find(|f| f.place.is_some()).or(wrong.first()) else {
        return String::new();
    };
    let guilty: Vec<&Op> = ops.iter().filter(|op| is_guilty(finding, op)).collect();
    let place = finding.place.as_ref();
    let of_key: Vec<&Op> = ops
        .iter()
        .filter(|op| place.is_some_and(|(space, key)| op.space.name == *space && op.key == *key))
        .collect();
    let (from, to) = window(&guilty, &of_key, notes);
    let mut lines: Vec<(u64, Seq, String)> = Vec::new();
    for op in
        of_key.into_iter().filter(|op| is_guilty(finding, op) || (op.may_have_written() && op.began_ms <= to))
    {
        let mark = if is_guilty(finding, op) { "  <--" } else { "" };
        if op.ended_ms >= from {
            lines.push((op.began_ms, op.begin, format!("{op}{mark}")));
        }
    }
    let faults = notes.iter().filter(|(at, _)| (from..=to).contains(at));
    lines.extend(faults.map(|(at, text)| (*at, 0, format!("{at} ms ** {text}"))));
    lines.sort();
    let many = lines.len();
    // The end tells most.
    let skipped = many.saturating_sub(LINES);
    let mut told = vec![finding.to_string()];
    if skipped > 0 {
        told.push(format!("  … {skipped} earlier events of this key"));
    }
    told.extend(lines.into_iter().skip(skipped).map(|(_, _, line)| format!("  {line}")));
    told.join("\n")
}

fn is_guilty(finding: &Finding, op: &Op) -> bool {
    finding.guilty.contains(&op.begin)
}

/// From some time before the guilty operations to their end.
fn window(guilty: &[&Op], of_key: &[&Op], notes: &[(u64, String)]) -> (u64, u64) {
    let ops = if guilty.is_empty() { of_key } else { guilty };
    let ended = |op: &&Op| if op.ended_ms == u64::MAX { op.began_ms } else { op.ended_ms };
    let last = notes.iter().map(|(at, _)| *at).max().unwrap_or(0);
    let from = ops.iter().map(|op| op.began_ms).min().unwrap_or(0);
    (from.saturating_sub(BEFORE_MS), ops.iter().map(ended).max().unwrap_or(last))
}
