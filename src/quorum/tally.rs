//! One count for all quorums: three-valued, over several replica sets at once.
//!
//! While a layout changes there are two sets, and a request needs its quorum in each; a node in both counts
//! for both (after etcd's `quorum` package). Today there is one.
//!
//! Invariants:
//! 1. A node counts at most once per set, as an acknowledgement or as a failure, not both.
//! 2. The verdict is `Met` if each set has what it needs, `Impossible` if some set can't reach it any more.

use crate::types::ids::NodeId;

/// What a tally says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// More answers are needed, and can come.
    Pending,
    /// Each set has its quorum.
    Met,
    /// Some set can't reach its quorum.
    Impossible,
}

#[derive(Debug, Clone)]
struct Set {
    members: Vec<NodeId>,
    needed: usize,
}

/// Acknowledgements and failures of one request.
#[derive(Debug, Clone)]
pub struct Tally {
    sets: Vec<Set>,
    acks: Vec<NodeId>,
    failures: Vec<NodeId>,
}

impl Tally {
    /// A tally over one set that needs `needed` of `members`.
    pub fn new(members: Vec<NodeId>, needed: u8) -> Tally {
        assert!(usize::from(needed) <= members.len(), "a quorum larger than its set");
        Tally { sets: vec![Set { members, needed: needed.into() }], acks: Vec::new(), failures: Vec::new() }
    }

    /// Also needs `needed` of `members`, as in the joint phase of a layout change.
    pub fn and(mut self, members: Vec<NodeId>, needed: u8) -> Tally {
        assert!(usize::from(needed) <= members.len(), "a quorum larger than its set");
        self.sets.push(Set { members, needed: needed.into() });
        self
    }

    /// Counts an acknowledgement; one that comes after a failure of the same node replaces it.
    pub fn ack(&mut self, node: NodeId) {
        self.failures.retain(|n| *n != node);
        if !self.acks.contains(&node) {
            self.acks.push(node);
        }
    }

    /// Counts a failure, unless the node has acknowledged.
    pub fn fail(&mut self, node: NodeId) {
        if !self.acks.contains(&node) && !self.failures.contains(&node) {
            self.failures.push(node);
        }
    }

    /// Forgets all answers, for a new round.
    pub fn reset(&mut self) {
        self.acks.clear();
        self.failures.clear();
    }

    /// How many nodes acknowledged.
    pub fn acks(&self) -> usize {
        self.acks.len()
    }

    /// Whether `node` has answered, well or badly.
    pub fn has_answered(&self, node: NodeId) -> bool {
        self.acks.contains(&node) || self.failures.contains(&node)
    }

    /// Whether `node` has acknowledged.
    pub fn has_acked(&self, node: NodeId) -> bool {
        self.acks.contains(&node)
    }

    /// The verdict on what has been counted.
    pub fn verdict(&self) -> Verdict {
        let mut met = true;
        for set in &self.sets {
            let acks = set.members.iter().filter(|n| self.acks.contains(n)).count();
            let failures = set.members.iter().filter(|n| self.failures.contains(n)).count();
            if set.members.len() - failures < set.needed {
                return Verdict::Impossible;
            }
            met &= acks >= set.needed;
        }
        if met { Verdict::Met } else { Verdict::Pending }
    }

    /// Panics if invariant 1 does not hold.
    pub fn check_invariants(&self) {
        for node in &self.acks {
            assert!(!self.failures.contains(node), "{node} counts twice");
            assert_eq!(self.acks.iter().filter(|n| *n == node).count(), 1, "{node} counts twice");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    /// All ways that three nodes can answer, for each quorum, against the definition.
    #[test]
    fn verdicts_of_one_set_are_those_of_the_definition() {
        for needed in 1..=3u8 {
            for ways in 0..27u32 {
                let mut tally = Tally::new(nodes(&[1, 2, 3]), needed);
                let (mut acks, mut failures) = (0, 0);
                for i in 0..3u32 {
                    match ways / 3u32.pow(i) % 3 {
                        1 => (tally.ack(NodeId(u64::from(i) + 1)), acks += 1).0,
                        2 => (tally.fail(NodeId(u64::from(i) + 1)), failures += 1).0,
                        _ => {}
                    }
                    tally.check_invariants();
                }
                let expected = if acks >= needed {
                    Verdict::Met
                } else if 3 - failures < needed {
                    Verdict::Impossible
                } else {
                    Verdict::Pending
                };
                assert_eq!(tally.verdict(), expected, "needed {needed}, ways {ways}");
            }
        }
    }

    #[test]
    fn a_node_in_both_sets_counts_for_both() {
        let mut tally = Tally::new(nodes(&[1, 2, 3]), 2).and(nodes(&[2, 3, 4]), 2);
        tally.ack(NodeId(1));
        tally.ack(NodeId(2));
        assert_eq!(tally.verdict(), Verdict::Pending, "the second set has one");
        tally.ack(NodeId(3));
        assert_eq!(tally.verdict(), Verdict::Met);
    }

    #[test]
    fn repeated_answers_count_once() {
        let mut tally = Tally::new(nodes(&[1, 2, 3]), 2);
        tally.ack(NodeId(1));
        tally.ack(NodeId(1));
        tally.fail(NodeId(1));
        tally.ack(NodeId(9));
        assert_eq!(tally.verdict(), Verdict::Pending);
    }
}
