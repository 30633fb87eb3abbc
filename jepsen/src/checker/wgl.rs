//! Whether some order explains a register whose values are not unique: Wing and Gong's search, as Lowe made
//! it fast.
//!
//! It takes operations one after another, only such as began before the first end of those not yet taken, and
//! goes back where it gets stuck. What keeps it from trying everything:
//!
//! - A set of operations is tried once, whatever state it leaves: when all matching reads are taken, the next
//!   step is a write. (Sets are remembered by a hash of 128 bits: a collision could only make a good history
//!   look bad, once in about 10^20 searches.)
//! - A read that matches the state is taken at once: it changes nothing, and later it could only be harder.
//! - A write whose value nobody has yet to read is taken just before the next write, which hides it.
//! - A version that has yet to be read, and that no write left brings back, must not be replaced.
//! - Of writes of one value that could be taken now, the one that ends first is: the others can do later
//!   whatever it could have done.
//! - Unknown writes never end, so that they never have to be taken; the caller drops those that nobody saw.
//!
//! It stops at a deadline, or when it remembers too much, and then does not say yes.

use std::collections::HashSet;
use std::time::Instant;

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Leaves this version.
    Write(u32),
    /// Finds this version.
    Read(u32),
    /// Finds any of the versions that are `nil`.
    ReadNil,
}

/// An operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) begin: u64,
    /// `u64::MAX`: it may never happen.
    pub(super) end: u64,
    pub(super) act: Act,
}

/// What the search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Yes,
    /// No order; the farthest one got stuck at this step.
    No(usize),
    /// It ran out of time or room.
    Undecided,
}

/// How many tried states are remembered: some 250 MB.
const MOST_TRIED: usize = 8 << 20;
/// The state after a write that nobody reads.
const HIDDEN: u32 = u32::MAX;

/// Looks for an order of the steps, which begin with version 0. `nil[v]`: whether version `v` is `nil`.
pub(super) fn search(steps: &[Step], nil: &[bool], deadline: Instant) -> Answer {
    let mut search = Search::new(steps, nil);
    if !search.descend() {
        return search.answer();
    }
    let mut tries = 0_u64;
    loop {
        tries += 1;
        if search.tried.len() >= MOST_TRIED || (tries.is_multiple_of(256) && Instant::now() >= deadline) {
            return Answer::Undecided;
        }
        let Some(frame) = search.frames.last_mut() else {
            return Answer::No(search.stuck);
        };
        let (taken, state, choice) = (frame.taken, frame.state, frame.choices.pop());
        search.go_back(taken);
        search.state = state;
        let Some(choice) = choice else {
            search.frames.pop();
            continue;
        };
        search.take(choice);
        if let Act::Write(version) = steps[choice].act {
            search.state = version;
        }
        if !search.descend() && search.sure_left == 0 {
            return Answer::Yes;
        }
    }
}

struct Frame {
    /// How many steps were taken.
    taken: usize,
    state: u32,
    /// Writes to try, the best last.
    choices: Vec<usize>,
}

/// What is not taken of a version's operations.
#[derive(Debug, Clone, Copy, Default)]
struct Left {
    reads: u32,
    writes: u32,
}

struct Search<'a> {
    steps: &'a [Step],
    nil: &'a [bool],
    /// Of each version, its reads and writes that are not taken; and all reads of any `nil`.
    left: Vec<Left>,
    nil_reads: u32,
    /// A ring of calls (`2 i`) and returns (`2 i + 1`) of steps not taken, in order of time; its head is last.
    next: Vec<usize>,
    prev: Vec<usize>,
    taken: Vec<usize>,
    hash: u128,
    state: u32,
    sure_left: usize,
    frames: Vec<Frame>,
    tried: HashSet<u128>,
    stuck: usize,
    farthest: usize,
}

impl<'a> Search<'a> {
    fn new(steps: &'a [Step], nil: &'a [bool]) -> Self {
        let mut order: Vec<(u64, usize)> = Vec::with_capacity(steps.len() * 2);
        for (at, step) in steps.iter().enumerate() {
            order.push((step.begin, 2 * at));
            if step.end != u64::MAX {
                order.push((step.end, 2 * at + 1));
            }
        }
        order.sort_unstable();
        let head = 2 * steps.len();
        let (mut next, mut prev) = (vec![head; head + 1], vec![head; head + 1]);
        let mut last = head;
        for (_, entry) in order {
            next[last] = entry;
            prev[entry] = last;
            last = entry;
        }
        next[last] = head;
        prev[head] = last;
        let (mut left, mut nil_reads) = (vec![Left::default(); nil.len()], 0);
        for step in steps {
            match step.act {
                Act::Read(version) => left[version as usize].reads += 1,
                Act::Write(version) => left[version as usize].writes += 1,
                Act::ReadNil => nil_reads += 1,
            }
        }
        let sure_left = steps.iter().filter(|step| step.end != u64::MAX).count();
        Self {
            steps,
            nil,
            left,
            nil_reads,
            next,
            prev,
            taken: Vec::new(),
            hash: 0,
            state: 0,
            sure_left,
            frames: Vec::new(),
            tried: HashSet::new(),
            stuck: 0,
            farthest: 0,
        }
    }

    fn answer(&self) -> Answer {
        if self.sure_left == 0 { Answer::Yes } else { Answer::No(self.stuck) }
    }

    /// Takes what is free; then, unless all is done or this was tried before, opens a frame.
    fn descend(&mut self) -> bool {
        self.take_all(|search, step| match step.act {
            Act::Read(version) => version == search.state,
            Act::ReadNil => search.nil.get(search.state as usize).is_some_and(|nil| *nil),
            Act::Write(_) => false,
        });
        let before = self.taken.len();
        let stuck = self.left.get(self.state as usize).is_some_and(|own| own.reads > 0 && own.writes == 0);
        if !stuck {
            self.take_all(|search, step| matches!(step.act, Act::Write(version) if !search.wanted(version)));
        }
        if self.taken.len() > before {
            self.state = HIDDEN;
        }
        if self.sure_left == 0 || !self.tried.insert(self.hash) {
            return false;
        }
        let (mut choices, blocked) = self.choices();
        if self.taken.len() >= self.farthest {
            self.farthest = self.taken.len();
            self.stuck = blocked;
        }
        if stuck {
            choices.clear();
        }
        self.frames.push(Frame { taken: self.taken.len(), state: self.state, choices });
        true
    }

    /// Whether somebody has yet to read a version.
    fn wanted(&self, version: u32) -> bool {
        let at = version as usize;
        self.left[at].reads > 0 || (self.nil_reads > 0 && self.nil[at])
    }

    /// Takes all steps that may come next and are free.
    fn take_all(&mut self, free: impl Fn(&Self, &Step) -> bool) {
        let head = 2 * self.steps.len();
        let mut entry = self.next[head];
        while entry != head && entry.is_multiple_of(2) {
            let at = entry / 2;
            let after = self.next[entry];
            if free(self, &self.steps[at]) {
                self.take(at);
                // Its own return may have been next.
                entry = if after == entry + 1 { self.next[after] } else { after };
            } else {
                entry = after;
            }
        }
    }

    /// The writes that may come next, of each version the one that ends first; and the step that all wait for.
    fn choices(&self) -> (Vec<usize>, usize) {
        let head = 2 * self.steps.len();
        let mut choices: Vec<usize> = Vec::new();
        let mut entry = self.next[head];
        while entry != head && entry.is_multiple_of(2) {
            if matches!(self.steps[entry / 2].act, Act::Write(_)) {
                choices.push(entry / 2);
            }
            entry = self.next[entry];
        }
        let version = |at: &usize| match self.steps[*at].act {
            Act::Write(version) => version,
            Act::Read(_) | Act::ReadNil => HIDDEN,
        };
        choices.sort_unstable_by_key(|at| (version(at), self.steps[*at].end));
        choices.dedup_by_key(|at| version(at));
        choices.sort_unstable_by_key(|at| std::cmp::Reverse(self.steps[*at].end));
        (choices, entry / 2)
    }

    fn take(&mut self, at: usize) {
        self.unlink(2 * at);
        if self.steps[at].end != u64::MAX {
            self.unlink(2 * at + 1);
            self.sure_left -= 1;
        }
        match self.steps[at].act {
            Act::Read(version) => self.left[version as usize].reads -= 1,
            Act::Write(version) => self.left[version as usize].writes -= 1,
            Act::ReadNil => self.nil_reads -= 1,
        }
        self.hash ^= mixed(at);
        self.taken.push(at);
    }

    /// Gives back all but so many steps, last taken first.
    fn go_back(&mut self, taken: usize) {
        while self.taken.len() > taken {
            let Some(at) = self.taken.pop() else { return };
            match self.steps[at].act {
                Act::Read(version) => self.left[version as usize].reads += 1,
                Act::Write(version) => self.left[version as usize].writes += 1,
                Act::ReadNil => self.nil_reads += 1,
            }
            self.hash ^= mixed(at);
            if self.steps[at].end != u64::MAX {
                self.relink(2 * at + 1);
                self.sure_left += 1;
            }
            self.relink(2 * at);
        }
    }

    fn unlink(&mut self, entry: usize) {
        let (before, after) = (self.prev[entry], self.next[entry]);
        self.next[before] = after;
        self.prev[after] = before;
    }

    fn relink(&mut self, entry: usize) {
        let (before, after) = (self.prev[entry], self.next[entry]);
        self.next[before] = entry;
        self.prev[after] = entry;
    }
}

/// A number's 128 bits that look random (twice splitmix).
fn mixed(at: usize) -> u128 {
    let half = |seed: u64| {
        let mut bits = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u128::from(bits ^ (bits >> 31))
    };
    let seed = at as u64;
    (half(2 * seed + 1) << 64) | half(2 * seed + 2)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ask(steps: &[(u64, u64, Act)]) -> Answer {
        let steps: Vec<Step> = steps.iter().map(|&(begin, end, act)| Step { begin, end, act }).collect();
        search(&steps, &[true, false, false, true], Instant::now() + Duration::from_secs(10))
    }

    #[test]
    fn orders_are_found_or_not() {
        use Act::{Read, ReadNil, Write};
        let never = u64::MAX;
        assert_eq!(ask(&[]), Answer::Yes);
        assert_eq!(ask(&[(1, 2, Write(1)), (3, 4, Read(1))]), Answer::Yes);
        // The read of version 0 has to come first, and can't.
        assert_eq!(ask(&[(1, 2, Write(1)), (3, 4, Read(0))]), Answer::No(0));
        assert_eq!(ask(&[(1, 9, Write(1)), (3, 4, Read(0)), (5, 6, Read(1))]), Answer::Yes);
        assert_eq!(ask(&[(1, 9, Write(1)), (3, 4, Read(1)), (5, 6, Read(0))]), Answer::No(1));
        assert_eq!(ask(&[(1, never, Write(1)), (3, 4, Read(0))]), Answer::Yes);
        let twice = [(1, 2, Write(1)), (3, 4, Write(2)), (5, 6, Read(1)), (7, 8, Read(2))];
        assert_eq!(ask(&twice), Answer::No(1));
        let again = [&twice[..], &[(0, never, Write(1)), (0, never, Write(2))]].concat();
        assert_eq!(ask(&again), Answer::Yes);
        // The same two writes in the other order leave another version, which is then read.
        let both = [(1, 10, Write(1)), (2, 11, Write(2)), (12, 13, Read(1)), (14, 15, Write(2))];
        let later = [(16, 17, Read(2)), (18, 19, Write(1)), (20, 21, Read(1))];
        assert_eq!(ask(&[&both[..], &later].concat()), Answer::Yes);
        assert_eq!(ask(&[(1, 2, Write(1)), (3, 4, Write(3)), (5, 6, ReadNil)]), Answer::Yes);
        assert_eq!(ask(&[(1, 2, Write(3)), (3, 4, Write(1)), (5, 6, ReadNil)]), Answer::No(2));
    }

    #[test]
    fn out_of_time_is_not_yes() {
        // Many concurrent writes, read in a way that no order explains.
        let mut steps: Vec<Step> = Vec::new();
        for version in 1..40_u32 {
            steps.push(Step { begin: u64::from(version), end: 1000, act: Act::Write(version) });
            steps.push(Step { begin: u64::from(version) + 100, end: 900, act: Act::Read(version) });
        }
        steps.push(Step { begin: 2000, end: 2001, act: Act::Read(40) });
        assert_eq!(search(&steps, &[false; 41], Instant::now()), Answer::Undecided);
    }
}
