//! Exhaustive small models of what a record goes through: every interleaving, to a small depth.
//!
//! Why besides property tests: the stories of lost writes that others tell (riak_kv#679 and its `fb2` case)
//! take seven or eight steps in one exact order, which random steps seldom hit. Here every order is tried,
//! with the real records, contexts and clocks; replicas, clients and messages are the model's own.
//!
//! Each model has canaries: the same search with one rule left out must find the fault that the rule is for.

mod lww;
mod siblings;

use std::collections::HashSet;
use std::hash::{Hash, Hasher};

/// A state of a model. Its hash stands for it: two of a million states share one of 2^64 hashes with a
/// chance of 1 in 30 million, and then one of them is not looked at.
pub trait World: Clone + Hash {
    /// What can go wrong.
    type Flaw;
    /// Every state that one step leads to.
    fn next(&self) -> Vec<Self>;
    /// What is wrong in this state, if anything is.
    fn flaw(&self) -> Option<Self::Flaw>;
}

/// One multiplication a number, folded: three times as fast as std's in a debug build, and as even.
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    fn write_u64(&mut self, number: u64) {
        let wide = u128::from(self.0 ^ number ^ 0x9e37_79b9_7f4a_7c15) * 0xa076_1d64_78bd_642f;
        self.0 = (wide ^ (wide >> 64)) as u64;
    }
    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }
    fn write_u16(&mut self, number: u16) {
        self.write_u64(number.into());
    }
    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }
}

/// What a search found.
pub struct Found<F> {
    /// The first flaw, in the fewest steps.
    pub flaw: Option<F>,
    /// Distinct states seen.
    pub states: usize,
}

/// Visits each state that can be reached in `depth` steps, once, in order of depth; stops at a flaw.
pub fn search<W: World>(start: W, depth: usize) -> Found<W::Flaw> {
    let mut seen = HashSet::new();
    let mut level = vec![start];
    for _ in 0..depth {
        let mut next_level = Vec::new();
        for world in level.iter().flat_map(World::next) {
            let mut hasher = Mixer(0);
            world.hash(&mut hasher);
            if !seen.insert(hasher.finish()) {
                continue;
            }
            if let Some(flaw) = world.flaw() {
                return Found { flaw: Some(flaw), states: seen.len() };
            }
            next_level.push(world);
        }
        level = next_level;
    }
    Found { flaw: None, states: seen.len() }
}
