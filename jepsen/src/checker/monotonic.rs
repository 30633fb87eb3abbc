//! What one client sees of a key never gets older: it reads its own writes, and what it has read before.
//!
//! Told by stamps, over all the process numbers that a client had (`:client`). Holds with `r + w > n`, and with a
//! session token in every mode. A read that found nothing after a deletion is excused, as in `Stamps`.

use std::collections::BTreeMap;

use super::findings::Findings;
use super::register::{RegOp, event, purged, registers, tombstones};
use super::{Checker, Verdict};
use crate::history::History;

/// Read your writes and monotonic reads, for each client and key.
#[derive(Debug, Clone, Copy, Default)]
pub struct Monotonic;

impl Checker for Monotonic {
    fn name(&self) -> &'static str {
        "monotonic"
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new();
        let (mut judged, mut unstamped) = (0_u64, 0_u64);
        for (key, ops) in registers(history) {
            let deletions = tombstones(&ops);
            // By client, the greatest stamp among its operations that ended, and the one that ended last.
            let mut seen: BTreeMap<i64, (i64, &RegOp)> = BTreeMap::new();
            for op in ops.iter().filter(|op| op.sure()) {
                let Some(stamp) = op.stamp else {
                    unstamped += 1;
                    continue;
                };
                let floor = seen.get(&op.client).copied().filter(|(_, earlier)| earlier.end < op.begin);
                if let Some((floor, earlier)) = floor
                    && !op.write
                {
                    judged += 1;
                    if stamp < floor && !purged(op, floor, &deletions) {
                        let what = if earlier.write { "its own write" } else { "its own read" };
                        let (client, value, before) = (op.client, &op.value, &earlier.value);
                        let events = [earlier.begin, earlier.end, op.begin, op.end];
                        findings.wrong(Some(key), events.into_iter().filter_map(event).collect(), || {
                            format!(
                                "client {client} read {value} at stamp {stamp} after {what} of {before} at stamp {floor}"
                            )
                        });
                    }
                }
                let own = seen.entry(op.client).or_insert((stamp, op));
                if own.0 <= stamp {
                    *own = (stamp, op);
                }
            }
        }
        if judged == 0 {
            findings.unsure();
        }
        findings.figure("reads", judged);
        findings.figure("operations-without-stamp", unstamped);
        findings.done()
    }
}
