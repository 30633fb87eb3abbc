//! Partitions: Q equal arcs of the ring.
//!
//! Invariants:
//! 1. Q is a power of two within the limits, so a partition is the top bits of a position.

use serde::{Deserialize, Serialize};

use crate::types::error::Invalid;
use crate::types::ids::PartitionId;
use crate::types::key::Position;
use crate::types::limits::{PARTITIONS_MAX, PARTITIONS_MIN};

/// The number of partitions of a cluster. Fixed when the cluster is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Partitions(u32);

impl Partitions {
    /// Refuses what is not a power of two, and what is outside the limits.
    pub fn new(count: u32) -> Result<Partitions, Invalid> {
        if count.is_power_of_two() && (PARTITIONS_MIN..=PARTITIONS_MAX).contains(&count) {
            return Ok(Partitions(count));
        }
        let rule = format!("is {count}, must be a power of two from {PARTITIONS_MIN} to {PARTITIONS_MAX}");
        Err(Invalid::new("partitions", rule))
    }

    /// Q.
    pub fn count(self) -> u32 {
        self.0
    }

    /// The partition that `position` is in: its top log2(Q) bits.
    pub fn of(self, position: Position) -> PartitionId {
        // By invariant 1 there are 4 to 16 top bits, so they fit.
        PartitionId((position.0 >> (u64::BITS - self.0.trailing_zeros())) as u16)
    }

    /// Whether the cluster has this partition.
    pub fn contains(self, partition: PartitionId) -> bool {
        u32::from(partition.0) < self.0
    }

    /// All partitions, in order.
    pub fn all(self) -> impl Iterator<Item = PartitionId> {
        (0..self.0).map(|index| PartitionId(index as u16))
    }
}

impl TryFrom<u32> for Partitions {
    type Error = Invalid;
    fn try_from(count: u32) -> Result<Partitions, Invalid> {
        Partitions::new(count)
    }
}

impl From<Partitions> for u32 {
    fn from(partitions: Partitions) -> u32 {
        partitions.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_within_the_limits() {
        for bad in [0, 1, 8, 15, 17, 100, 131_072, u32::MAX] {
            let e = Partitions::new(bad).expect_err("refused").to_string();
            assert!(e.contains(&bad.to_string()) && e.contains("65536"), "{e}");
        }
        for good in [16, 256, 65_536] {
            assert_eq!(Partitions::new(good).map(Partitions::count), Ok(good));
        }
    }

    #[test]
    fn partitions_are_equal_arcs_in_order() {
        for count in [16, 256, 65_536] {
            let partitions = Partitions::new(count).expect("valid");
            let arc = (1u128 << 64) / u128::from(count);
            assert_eq!(partitions.all().count(), count as usize);
            for partition in partitions.all() {
                let first = u128::from(partition.0) * arc;
                assert_eq!(partitions.of(Position(first as u64)), partition);
                assert_eq!(partitions.of(Position((first + arc - 1) as u64)), partition);
            }
        }
    }
}
