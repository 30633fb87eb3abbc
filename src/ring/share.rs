//! Fair shares: how many partition replicas each node should own, as an exact fraction.
//!
//! A node's share is its part of all `n` Q replicas by weight, with two bounds: a node owns at most one
//! replica of a partition, and a partition's owners lie in as many zones as there are, up to `n`. So a zone
//! has at most one replica of each partition while zones suffice for `n`, and at least one if they don't.
//! What a bound takes from one or gives to another is divided among the rest, again by weight.
//!
//! Why fractions: shares rounded in floating point would make the placement infeasible by one now and then.
//!
//! Invariants:
//! 1. Shares sum to `n` Q, and each is at most Q.
//! 2. Giving each partition `share / Q` of each node meets all bounds; so a placement exists in which each
//!    node has its share rounded down or up (flows are integral), and `flow` finds it.

/// A non-negative fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    num: u64,
    den: u64,
}

impl Share {
    /// Rounded down.
    pub(super) fn floor(self) -> u32 {
        (self.num / self.den) as u32
    }

    /// Rounded up.
    pub(super) fn ceil(self) -> u32 {
        self.num.div_ceil(self.den) as u32
    }

    /// As a float, to be shown.
    pub(super) fn value(self) -> f64 {
        self.num as f64 / self.den as f64
    }
}

/// The shares of nodes with `weights` (each at least 1) in `zones` (indexes from 0, none left out) of `n`
/// replicas of `q` partitions. `n` is at most the number of nodes.
pub(super) fn shares(weights: &[u64], zones: &[u16], q: u64, n: usize) -> Vec<Share> {
    let zone_count = zones.iter().map(|z| usize::from(*z) + 1).max().unwrap_or(0);
    let mut clamped = vec![false; zone_count];
    // A zone over (or under) its bound takes exactly Q. What the others then have moves in one direction
    // only, so a zone once clamped stays so, and each round but the last clamps another.
    loop {
        let level = Level::of(weights, zones, q, n, &clamped);
        let beyond = |zone: &usize| {
            let order = level.zone_total(weights, zones, q, *zone).cmp(&(q * level.weight));
            !clamped[*zone] && if n <= zone_count { order.is_gt() } else { order.is_lt() }
        };
        let found: Vec<usize> = (0..zone_count).filter(beyond).collect();
        if found.is_empty() {
            return level.shares(weights, zones, q, &clamped);
        }
        found.into_iter().for_each(|zone| clamped[zone] = true);
    }
}

/// What is divided by weight alone, once the bounds have been taken out.
struct Level {
    /// Replicas to be divided.
    replicas: u64,
    /// Weight of the nodes that divide them; at least 1.
    weight: u64,
    /// The nodes of other zones than the clamped that own one replica of each partition.
    capped: Vec<bool>,
}

impl Level {
    fn of(weights: &[u64], zones: &[u16], q: u64, n: usize, clamped: &[bool]) -> Level {
        let free = |node: &usize| !clamped[usize::from(zones[*node])];
        let clamped_count = clamped.iter().filter(|c| **c).count() as u64;
        let mut replicas = (n as u64).saturating_sub(clamped_count) * q;
        let mut weight: u64 = (0..weights.len()).filter(free).map(|node| weights[node]).sum();
        let mut capped = vec![false; weights.len()];
        loop {
            let over = |node: &usize| free(node) && !capped[*node] && weights[*node] * replicas > q * weight;
            let found: Vec<usize> = (0..weights.len()).filter(over).collect();
            for node in &found {
                capped[*node] = true;
                replicas = replicas.saturating_sub(q);
                weight -= weights[*node];
            }
            if found.is_empty() {
                return Level { replicas, weight: weight.max(1), capped };
            }
        }
    }

    /// The replicas of an unclamped `zone`, times `self.weight`.
    fn zone_total(&self, weights: &[u64], zones: &[u16], q: u64, zone: usize) -> u64 {
        let in_zone = (0..weights.len()).filter(|node| usize::from(zones[*node]) == zone);
        in_zone
            .map(|node| if self.capped[node] { q * self.weight } else { weights[node] * self.replicas })
            .sum()
    }

    fn shares(&self, weights: &[u64], zones: &[u16], q: u64, clamped: &[bool]) -> Vec<Share> {
        let mut zone_weights = vec![0; clamped.len()];
        for (node, weight) in weights.iter().enumerate() {
            zone_weights[usize::from(zones[node])] += weight;
        }
        let share = |node: usize| match usize::from(zones[node]) {
            zone if clamped[zone] => Share { num: q * weights[node], den: zone_weights[zone] },
            _ if self.capped[node] => Share { num: q, den: 1 },
            _ => Share { num: self.replicas * weights[node], den: self.weight },
        };
        (0..weights.len()).map(share).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(weights: &[u64], zones: &[u16], n: usize) -> Vec<f64> {
        shares(weights, zones, 16, n).into_iter().map(Share::value).collect()
    }

    #[test]
    fn shares_follow_weights_and_bounds() {
        assert_eq!(values(&[1, 1, 1, 1], &[0, 0, 0, 0], 2), [8.0; 4], "by weight");
        assert_eq!(values(&[2, 1, 1], &[0, 0, 0], 1), [8.0, 4.0, 4.0], "by weight");
        assert_eq!(values(&[9, 1, 1], &[0, 0, 0], 2), [16.0, 8.0, 8.0], "one replica of a partition");
        assert_eq!(values(&[1, 1, 1, 1], &[0, 0, 0, 1], 2), [16.0 / 3.0, 16.0 / 3.0, 16.0 / 3.0, 16.0]);
        assert_eq!(values(&[1, 1, 1, 1], &[0, 0, 0, 1], 3)[3], 16.0, "one replica in each zone");
        assert_eq!(values(&[9, 1, 1], &[0, 1, 1], 3), [16.0; 3]);
    }

    proptest! {
        /// Invariant 1, and the bounds of zones.
        #[test]
        fn shares_sum_up_within_the_bounds(
            nodes in proptest::collection::vec((1u64..1000, 0u16..4), 1..10),
            n in 1usize..6,
        ) {
            let mut names: Vec<u16> = nodes.iter().map(|node| node.1).collect();
            names.sort_unstable();
            names.dedup();
            let zone = |name: u16| names.iter().position(|z| *z == name).expect("known") as u16;
            let zones: Vec<u16> = nodes.iter().map(|node| zone(node.1)).collect();
            let weights: Vec<u64> = nodes.iter().map(|node| node.0).collect();
            let n = n.min(nodes.len());
            let got = values(&weights, &zones, n);
            prop_assert!((got.iter().sum::<f64>() - 16.0 * n as f64).abs() < 1e-9);
            prop_assert!(got.iter().all(|share| *share <= 16.0));
            for zone in 0..names.len() {
                let total: f64 = (0..zones.len()).filter(|i| usize::from(zones[*i]) == zone).map(|i| got[i]).sum();
                if n <= names.len() {
                    prop_assert!(total <= 16.0 + 1e-9);
                } else {
                    prop_assert!(total >= 16.0 - 1e-9);
                }
            }
        }
    }
}
