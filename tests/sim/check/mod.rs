//! The guarantees, each with a checker of its own over the whole history (`docs/consistency.md`).
//!
//! | checker | what must hold |
//! | --- | --- |
//! | [`guarantees::g1_durable`] | a get of all `n` finds every acknowledged write, or what replaced it |
//! | [`guarantees::g2_read_your_quorum`] | so does one with `r + w > n`; nothing that was replaced comes back |
//! | [`guarantees::g3_monotonic`] | with `2 r > n` no later get returns an older version |
//! | [`register::g3_register`] | an `lww` key under majorities only is an atomic register of versions |
//! | [`guarantees::g4_nothing_vanishes`] | an acknowledged write is gone only if a write that may do so replaced it |
//! | [`guarantees::g5_does_not_come_back`], [`guarantees::g5_is_not_swallowed`] | what a delete covered never comes back, what came after it is not lost |
//! | [`g5_expired_stays_expired`] | nor does what died by itself |
//! | [`state::g5_purged`] | in the calm every tombstone goes, where they go after a while |
//! | [`honest::g6_writable`] | a sloppy write is taken while enough nodes are undisturbed |
//! | [`state::g7_converges`] | after the calm all home replicas of each key hold the same record |
//! | [`state::HintWatch`] | a hint is forgotten only when its target holds it, or what replaced it |
//! | [`honest::g8_honest`] | nothing that was refused is ever read, nothing is applied twice |
//! | [`honest::g8_deadlines`] | every request ends at its deadline |
//! | [`honest::g9_bounded`] | no gauge passes its limit, and all are back at zero in the end |
//! | [`honest::f13_stamps_grow`] | the stamps of one coordinator grow, over restarts too |
//! | [`state::MapWatch`] | no node goes back to an older cluster map |
//! | [`state::f23_one_map`] | all nodes hold one cluster map, with every keyspace that was said to be made |
//! | [`lives::f23_changes`] | what was said of a keyspace that is changed and dropped again and again is what the map has |
//! | [`lives::LifeWatch`] | each life of it by all of the above: nothing of an earlier one is read |
//!
//! Where tombstones go after a while, [`purged`] says what a read of nothing means.
//!
//! In a keyspace that takes sloppy writes only what is read when the hints are home is judged by G1 and G5: until then
//! quorums promise nothing.
//!
//! What two operations promise each other depends on what each asked for: see [`meets`]. Keyspaces and requests
//! with smaller quorums are checked for what is left.
//!
//! A write whose outcome is unknown may take effect at any time after its beginning, or never.

pub mod guarantees;
pub mod honest;
pub mod lives;
#[cfg(test)]
mod lives_tests;
pub mod purged;
pub mod register;
pub mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use quoral::types::policy::Conflicts;

use crate::history::{Action, Op, Seq};
use crate::upkeep::{APART_MS, BRIEF_TTL_MS, Upkeep};

/// The client that reads everything when nothing is wrong any more, and all hints are home.
pub const READER: usize = 200;

/// A key of a keyspace.
pub type Place = (String, String);

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which guarantee is broken.
    pub rule: &'static str,
    /// How.
    pub text: String,
    /// The key, if it is one key's.
    pub place: Option<Place>,
    /// The beginnings of the operations that show it.
    pub guilty: Vec<Seq>,
}

impl Finding {
    /// One about these operations, which are of one key.
    pub fn of(rule: &'static str, text: &str, ops: &[&Op]) -> Finding {
        let list: Vec<String> = ops.iter().map(|op| op.to_string()).collect();
        let text = format!("{text}: {}", list.join("; "));
        let place = ops.first().map(|op| (op.space.name.clone(), op.key.clone()));
        Finding { rule, text, place, guilty: ops.iter().map(|op| op.begin).collect() }
    }

    /// One about no operation.
    pub fn new(rule: &'static str, text: String) -> Finding {
        Finding { rule, text, place: None, guilty: Vec::new() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.text)
    }
}

/// Whether every replica set of `later` shares a node with what `earlier` left behind, so that the later must
/// know of the earlier. A write is on `w` replicas. What a read of a majority returned is on at least half of
/// them, which every later majority meets. In one session everything is known.
pub fn meets(earlier: &Op, later: &Op) -> bool {
    if earlier.session.is_some() && earlier.session == later.session {
        return true;
    }
    let (n, first, second) = (u32::from(later.space.n), u32::from(earlier.level), u32::from(later.level));
    match earlier.is_read() {
        true => 2 * first > n && 2 * second > n,
        false => first + second > n,
    }
}

/// The operations of each key.
pub fn by_key(ops: &[Op]) -> BTreeMap<Place, Vec<&Op>> {
    let mut keys: BTreeMap<Place, Vec<&Op>> = BTreeMap::new();
    for op in ops.iter().filter(|op| !op.key.is_empty()) {
        keys.entry((op.space.name.clone(), op.key.clone())).or_default().push(op);
    }
    keys
}

/// Everything that is wrong with a history, by the checkers that need nothing else.
pub fn check(ops: &[Op]) -> Vec<Finding> {
    check_with(ops, &Upkeep::USUAL)
}

/// The same where replicas are kept equal in another way.
pub fn check_with(ops: &[Op], upkeep: &Upkeep) -> Vec<Finding> {
    let mut wrong = honest::g8_honest(ops);
    for ops in by_key(ops).values() {
        match upkeep.gone_after_ms().filter(|_| ops[0].space.conflicts == Conflicts::Lww) {
            Some(after) => {
                let stamped = purged::with_stamps(ops, after);
                check_key(&stamped.iter().collect::<Vec<_>>(), upkeep, &mut wrong);
            }
            None => check_key(ops, upkeep, &mut wrong),
        }
    }
    wrong
}

/// The operations of one key.
fn check_key(ops: &[&Op], upkeep: &Upkeep, wrong: &mut Vec<Finding>) {
    if ops.iter().any(|op| op.space.sloppy) {
        let late = ops.iter().copied().filter(|op| !op.is_read() || op.client == READER);
        let key = guarantees::KeyOps::new(&late.collect::<Vec<_>>());
        wrong.extend(guarantees::g5_does_not_come_back(&key));
        // A sloppy write is a hint at first, and gone if its time is over before it is home.
        if upkeep.window_ms.is_none() {
            wrong.extend(guarantees::g1_durable(&key));
            wrong.extend(guarantees::g5_is_not_swallowed(&key));
        }
        return;
    }
    let key = guarantees::KeyOps::new(ops);
    wrong.extend(guarantees::g1_durable(&key));
    wrong.extend(guarantees::g2_read_your_quorum(&key));
    wrong.extend(guarantees::g4_nothing_vanishes(&key));
    wrong.extend(guarantees::g5_does_not_come_back(&key));
    wrong.extend(guarantees::g5_is_not_swallowed(&key));
    // Two reads have nothing in common if the first leaves nothing behind.
    if upkeep.read_repair {
        wrong.extend(guarantees::g3_monotonic(&key));
        wrong.extend(register::g3_register(ops));
    }
}

/// G5, of a keyspace whose values die by themselves: nobody finds one that is long dead (F08).
pub fn g5_expired_stays_expired(ops: &[Op]) -> Vec<Finding> {
    let mut wrong = honest::g8_honest(ops);
    for ops in by_key(ops).values() {
        for read in ops.iter().filter(|op| op.has_read()) {
            let is_dead = |put: &&&Op| match put.action {
                // One that nobody acknowledged may take its place late, and was made before its deadline.
                Action::Put(value) => {
                    let made_by = put.began_ms + put.timeout_ms;
                    read.found(value) && made_by + BRIEF_TTL_MS + APART_MS < read.began_ms
                }
                _ => false,
            };
            let back = ops.iter().filter(is_dead);
            wrong.extend(back.map(|put| Finding::of("G5", "an expired value came back", &[put, read])));
        }
    }
    wrong
}
