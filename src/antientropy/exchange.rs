//! The conversation of two replicas about one tree whose roots differ, as the one who asks sees it.
//!
//! Rules, each with a script in `scripts/exchange_*.txt`:
//! 1. The children of a node that differs are compared, many nodes to a message, until so few records are left under
//!    a node that it is cheaper to list them.
//! 2. A list is answered with what else the answerer has, and with what it lacks. The asker fetches the one and sends
//!    the other, of two versions of a key only the newer ([`resolve`]); when all of it is stored the next list goes
//!    out, so no more than one list's records are under way.
//! 3. What the answerer did not get to is listed again.
//! 4. A node with too many records to be listed is compared further, below its leaf by the records' fingerprints; so is
//!    one of which a list leaves a part, and next to nothing of it could be dealt with. Where there is nothing finer
//!    that part is left, and the exchange is not whole.
//! 5. It ends when nothing is left, or at the first failure: what is not done is found again by the next one, since
//!    the trees say where to look.
//!
//! Records that were written while the conversation went on, or a moment before, are likely to be on their way
//! already: both sides leave them out ([`Settling`]).
//!
//! Invariants: one question under way; at most [`NODES`] nodes to a question.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::forest::{Forest, Listed, Place};
use super::records::{Records, leaf_children, list};
use super::tree::{LEAF_BITS, Node, Salt, Sum};
use crate::canary::{self, Canary};
use crate::machine::Machine;
use crate::storage::StorageError;
use crate::types::policy::Conflicts;
use crate::types::time::{Mono, WallMs};
use crate::version::hlc::Stamp;

/// Nodes of one question.
pub const NODES: usize = 64;
/// Records under a node, as far as can be told, from which on its children are compared: a list has 4 bytes a record,
/// the children of a node up to 64.
const LIST_ITEMS: u64 = 16;
/// Records of one node that are listed at the most.
pub const LIST_MAX: usize = 2_048;
/// Records of one question that are listed at the most, if it is of more than one node.
pub const LIST_ALL: usize = 4_096;
/// How long a question about lists is worked on before what is done by then is the answer: less than who asked waits.
pub const COMPARE_FOR: Duration = Duration::from_secs(5);
/// Records of a list that leaves a part of a node: fewer than these dealt with, and the node is compared further.
const LIST_FEW: u64 = 512;
/// How old a version must be before it is exchanged: its own write is likely to bring it before.
pub const SETTLE: Duration = Duration::from_secs(5);

/// Which versions are left out, since their own writes are likely to bring them: those of the last [`SETTLE`] by the
/// clock of who asks, and such as are ahead of it by no more than the skew that replicas allow each other. One that is
/// further ahead is no news but of a clock that is off: the replicas refuse each other's new writes then, so an
/// exchange is what brings it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settling {
    after: Stamp,
    until: Stamp,
    /// Of those, somebody waits for the ones up to this.
    awaited: Stamp,
}

impl Settling {
    /// Nothing is left out.
    pub const NONE: Settling =
        Settling { after: Stamp(u64::MAX), until: Stamp(u64::MAX), awaited: Stamp(u64::MAX) };

    /// By a clock, for who waits for what was stamped up to `awaited`.
    pub fn at(now: WallMs, max_skew_ms: u64, awaited: Stamp) -> Settling {
        let settle = u64::try_from(SETTLE.as_millis()).unwrap_or(u64::MAX);
        let until = Stamp::at(WallMs(now.0.saturating_add(max_skew_ms).saturating_add(1)));
        Settling { after: Stamp::at(WallMs(now.0.saturating_sub(settle))), until, awaited }
    }

    /// Whether a version is left out.
    pub fn has(&self, stamp: Stamp) -> bool {
        self.after < stamp && stamp <= self.until
    }

    fn is_awaited(&self, stamp: Stamp) -> bool {
        stamp <= self.awaited
    }

    /// What was written before this is not left out, but if clocks are further apart than the skew allowed.
    pub fn since(now: WallMs, max_skew_ms: u64) -> WallMs {
        let all = Settling::at(now, max_skew_ms, Stamp::default());
        WallMs(all.after.wall().0.saturating_sub(max_skew_ms))
    }
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The roots differ; so many records there are at the most on one side.
    Start(u64),
    /// Of what was compared, these children differ.
    Differ(Vec<Node>),
    /// The first node of the list has too many records.
    TooMany,
    /// The first so many nodes of the list have been dealt with: so many records were received and stored here, and
    /// so many sent and stored there.
    Listed {
        /// Nodes.
        nodes: usize,
        /// Records.
        received: u64,
        /// Records.
        sent: u64,
    },
    /// The other side could not answer, or a record could not be stored.
    Failed,
}

/// What it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Compare the children of these nodes.
    Compare(Vec<Node>),
    /// List these nodes.
    List(Vec<Node>),
    /// It is over.
    Finish {
        /// Whether everything that differed has been looked at.
        whole: bool,
        /// Records received.
        received: u64,
        /// Records sent.
        sent: u64,
    },
}

/// The machine.
#[derive(Debug, Clone, Default)]
pub struct Exchange {
    /// From how many bits on nodes are listed.
    list_bits: u8,
    compare: Vec<Node>,
    list: Vec<Node>,
    /// What was asked last, as it was taken from the stacks.
    asked: Vec<Node>,
    received: u64,
    sent: u64,
    /// Whether a part of a node was left.
    missed: bool,
    over: bool,
}

impl Exchange {
    /// One that has not begun.
    pub fn new() -> Exchange {
        Exchange::default()
    }

    fn sort_in(&mut self, nodes: impl IntoIterator<Item = Node>) {
        for node in nodes {
            match node.bits() >= self.list_bits {
                true => self.list.push(node),
                false => self.compare.push(node),
            }
        }
    }

    /// Lists first: that empties the stacks, comparing fills them.
    fn ask(&mut self, effects: &mut Vec<Effect>) {
        let is_list = !self.list.is_empty();
        let stack = if is_list { &mut self.list } else { &mut self.compare };
        self.asked = stack.split_off(stack.len().saturating_sub(NODES));
        self.asked.reverse();
        match (self.asked.is_empty(), is_list) {
            (true, _) => self.finish(!self.missed, effects),
            (false, true) => effects.push(Effect::List(self.asked.clone())),
            (false, false) => effects.push(Effect::Compare(self.asked.clone())),
        }
    }

    /// Compares the children of the node that was listed first: they may be few enough. The rest is listed when they are
    /// compared.
    fn compare_first(&mut self, effects: &mut Vec<Effect>) -> bool {
        let mut asked = std::mem::take(&mut self.asked).into_iter();
        let Some(node) = asked.next() else { return false };
        self.list.extend(asked.rev());
        self.asked = vec![node];
        effects.push(Effect::Compare(vec![node]));
        true
    }

    fn finish(&mut self, whole: bool, effects: &mut Vec<Effect>) {
        self.over = true;
        let (received, sent) = (self.received, self.sent);
        effects.push(Effect::Finish { whole, received, sent });
    }
}

impl Machine for Exchange {
    type Event = Event;
    type Effect = Effect;

    fn step(&mut self, _: Mono, event: Event, effects: &mut Vec<Effect>) {
        if self.over {
            return;
        }
        match event {
            Event::Start(items) => {
                let enough = |bits: &u8| items >> *bits <= LIST_ITEMS;
                self.list_bits = [0, 4, 8].into_iter().find(enough).unwrap_or(LEAF_BITS);
                self.sort_in([Node::ROOT]);
            }
            Event::Differ(children) => self.sort_in(children.into_iter().rev()),
            Event::TooMany => {
                if self.compare_first(effects) {
                    return;
                }
            }
            Event::Listed { nodes, received, sent } => {
                self.received += received;
                self.sent += sent;
                // Listed again it would be the same list, or nearly so.
                let is_stuck = nodes == 0 && received + sent < LIST_FEW;
                if is_stuck && self.asked.first().is_some_and(|node| node.fan_out() > 0) {
                    self.compare_first(effects);
                    return;
                }
                // Nothing done and nothing stored would go round for ever.
                let is_left = nodes == 0 && received + sent == 0;
                self.missed |= is_left;
                let rest = std::mem::take(&mut self.asked).into_iter().skip(nodes + usize::from(is_left));
                self.list.extend(rest.rev());
            }
            Event::Failed => return self.finish(false, effects),
        }
        self.ask(effects);
    }

    fn check_invariants(&self) {
        assert!(self.asked.len() <= NODES, "{} nodes to a question", self.asked.len());
        assert!(self.list.iter().all(|node| node.bits() >= self.list_bits.min(LEAF_BITS)));
    }
}

/// The short sums of the children of nodes, as one side has them. None while a part of the tree is in rebuild.
pub fn children_of(
    forest: &dyn Fn(Place, Node) -> Option<Vec<Sum>>,
    records: &dyn Records,
    (place, node): (Place, Node),
    salt: Salt,
) -> Result<Option<Vec<u64>>, StorageError> {
    let sums = match node.is_leaf() {
        true => Some(leaf_children(records, place, node)?),
        false => forest(place, node),
    };
    Ok(sums.map(|sums| sums.into_iter().map(|sum| sum.short(salt)).collect()))
}

/// The children whose sums differ.
pub fn differing(node: Node, mine: &[u64], theirs: &[u64]) -> Vec<Node> {
    let of = |sums: &[u64], at: usize| sums.get(at).copied().unwrap_or(0);
    node.children().enumerate().filter(|(at, _)| of(mine, *at) != of(theirs, *at)).map(|(_, c)| c).collect()
}

/// A record that a list does not have, as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extra {
    /// Its key's fingerprint.
    pub key: u64,
    /// The greatest stamp of its versions.
    pub stamp: Stamp,
}

/// What comes of comparing a list with what is here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ItemsCompared {
    /// Records that are not on the list.
    pub extra: Vec<Extra>,
    /// Places on the list of which there is no record here, in order; empty unless `whole`.
    pub lacking: Vec<usize>,
    /// Whether all records here were looked at.
    pub whole: bool,
}

/// Compares the list of a node with the records here, until `most` are found that are not on it.
pub fn compare_items(
    records: &dyn Records,
    (place, node): (Place, Node),
    theirs: &[u64],
    (most, salt): (usize, Salt),
) -> Result<ItemsCompared, StorageError> {
    let listed: BTreeSet<u64> = theirs.iter().copied().collect();
    let mut unseen = listed.clone();
    let mut compared = ItemsCompared { whole: true, ..ItemsCompared::default() };
    records.each(place, node, &mut |record| {
        let item = record.item.short(salt);
        unseen.remove(&item);
        if !listed.contains(&item) {
            compared.extra.push(Extra { key: record.key_print(salt), stamp: record.stamp });
        }
        compared.whole = compared.extra.len() < most;
        compared.whole
    })?;
    if canary::sings(Canary::RecordForgotten) {
        compared.extra.pop();
    }
    if compared.whole {
        let lacking = theirs.iter().enumerate().filter(|(_, item)| unseen.contains(item));
        compared.lacking = lacking.map(|(at, _)| at).collect();
    }
    Ok(compared)
}

/// Lists the first of some nodes, as many as fit into a question and are read in time, at least one; none if the first
/// has too many records.
pub fn own_lists(
    records: &dyn Records,
    place: Place,
    nodes: &[Node],
    now: &dyn Fn() -> Mono,
) -> Result<Vec<(Node, Vec<Listed>)>, StorageError> {
    let (mut lists, mut all, until) = (Vec::new(), 0, now() + COMPARE_FOR);
    for node in nodes {
        if !lists.is_empty() && now() > until {
            break;
        }
        // Below a leaf there is nothing finer to compare.
        let most = if node.fan_out() == 0 { usize::MAX } else { LIST_MAX };
        let Some(listed) = list(records, place, *node, most)? else { break };
        all += listed.len();
        if !lists.is_empty() && all > LIST_ALL {
            break;
        }
        lists.push((*node, listed));
    }
    Ok(lists)
}

/// Compares the first of some lists, as many as fit into an answer and are read in time, at least one.
pub fn compare_lists(
    records: &dyn Records,
    (place, salt): (Place, Salt),
    lists: &[(Node, Vec<u64>)],
    now: &dyn Fn() -> Mono,
) -> Result<Vec<ItemsCompared>, StorageError> {
    let (mut answer, mut left, until) = (Vec::with_capacity(lists.len()), LIST_ALL, now() + COMPARE_FOR);
    for (node, theirs) in lists {
        let compared = compare_items(records, (place, *node), theirs, (left, salt))?;
        left = left.saturating_sub(compared.extra.len());
        let is_last = left == 0 || !compared.whole || now() > until;
        answer.push(compared);
        // The rest is asked for again.
        if is_last {
            break;
        }
    }
    Ok(answer)
}

/// What the asker does about an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolved {
    /// Fingerprints of the keys of records to fetch: as they are by then, which is no less than what was listed.
    pub fetch: Vec<u64>,
    /// Storage keys of records to send.
    pub send: Vec<Vec<u8>>,
    /// Of records to send if they hold more than what was fetched, once that is merged in.
    pub send_merged: Vec<Vec<u8>>,
    /// Records left out since they are too new, and nobody waits for them.
    pub later: u64,
    /// Records left out that somebody waits for.
    pub awaited: u64,
}

impl Resolved {
    fn leave_out(&mut self, settling: &Settling, stamp: Stamp) {
        match settling.is_awaited(stamp) {
            true => self.awaited += 1,
            false => self.later += 1,
        }
    }
}

/// Holds an answer against the own list. Of two versions of a key the newer travels, if stamps decide (`lww`); else
/// theirs comes, is merged, and goes back only if it is not all there was. What is too new stays.
pub fn resolve(
    conflicts: Conflicts,
    (mine, salt): (&[Listed], Salt),
    answer: &ItemsCompared,
    settling: &Settling,
) -> Resolved {
    let extra: BTreeMap<u64, &Extra> = answer.extra.iter().map(|extra| (extra.key, extra)).collect();
    let lacking: BTreeSet<usize> = answer.lacking.iter().copied().collect();
    let mut resolved = Resolved::default();
    let mut left_there = BTreeSet::new();
    for (at, record) in mine.iter().enumerate() {
        let theirs = extra.get(&record.key_print(salt));
        let is_lacking = lacking.contains(&at);
        if theirs.is_none() && !is_lacking {
            continue;
        }
        if settling.has(record.stamp) {
            // Nor does an older version of it come.
            left_there.extend(theirs.map(|theirs| theirs.key));
            resolved.leave_out(settling, record.stamp);
            continue;
        }
        match (theirs, conflicts) {
            (None, _) => resolved.send.push(record.storage_key.clone()),
            (Some(theirs), Conflicts::Lww) if theirs.stamp < record.stamp => {
                left_there.insert(theirs.key);
                resolved.send.push(record.storage_key.clone());
            }
            (Some(theirs), Conflicts::Lww) if theirs.stamp > record.stamp => {}
            (Some(_), _) => resolved.send_merged.push(record.storage_key.clone()),
        }
    }
    for theirs in answer.extra.iter().filter(|extra| !left_there.contains(&extra.key)) {
        match settling.has(theirs.stamp) {
            true => resolved.leave_out(settling, theirs.stamp),
            false => resolved.fetch.push(theirs.key),
        }
    }
    resolved
}

/// What [`children_of`] asks a forest.
pub fn kept_children(forest: &Forest) -> impl Fn(Place, Node) -> Option<Vec<Sum>> {
    |place, node| forest.children(place, node)
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
