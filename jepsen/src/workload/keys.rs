//! Which keys are worked on.

use rand::RngExt as _;
use rand::rngs::StdRng;

/// A few keys at a time, each with a random number of steps left.
#[derive(Debug, Clone)]
pub struct Keys {
    live: Vec<(u64, u32)>,
    next: u64,
    steps: (u32, u32),
}

impl Keys {
    /// `width` keys at a time, each for `fewest` to `most` steps.
    pub fn new(width: usize, fewest: u32, most: u32) -> Keys {
        assert!(width > 0 && fewest > 0 && fewest <= most, "a key gets a step at least");
        Keys { live: vec![(0, 0); width], next: 0, steps: (fewest, most) }
    }

    /// A key for the next step.
    pub fn draw(&mut self, rng: &mut StdRng) -> u64 {
        let slot = rng.random_range(0..self.live.len());
        if self.live[slot].1 == 0 {
            self.live[slot] = (self.next, rng.random_range(self.steps.0..=self.steps.1));
            self.next += 1;
        }
        self.live[slot].1 -= 1;
        self.live[slot].0
    }

    /// How many keys there were so far; they are numbered from 0.
    pub fn count(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use std::collections::BTreeMap;

    #[test]
    fn each_key_gets_its_steps_and_makes_room() {
        let (mut keys, mut rng) = (Keys::new(3, 5, 9), StdRng::seed_from_u64(1));
        let mut steps: BTreeMap<u64, u32> = BTreeMap::new();
        (0..1_000).for_each(|_| *steps.entry(keys.draw(&mut rng)).or_default() += 1);
        assert_eq!(steps.len() as u64, keys.count());
        let done: Vec<u32> = steps.values().copied().filter(|steps| *steps >= 5).collect();
        assert!(done.len() + 3 >= steps.len() && done.iter().all(|steps| *steps <= 9), "{steps:?}");
    }
}
