//! Zones, after Gibbons and Korach: stretches of time that must belong to one version.
//!
//! A version's operations took effect at one time each. If one of them ended at `from`, the version was there
//! by `from`; if one began at `to`, it was still (or only then) there. `from < to` is a *forward* zone: the
//! register held this version all the way. Otherwise the zone is *backward*: all operations of the version
//! fit anywhere into `to ..= from`. Some order explains the versions if and only if no two forward zones
//! overlap and no backward zone lies within a forward one.

/// The zone of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Zone {
    pub(super) from: u64,
    pub(super) to: u64,
}

/// Pairs of zones, by their places, that can't both be: at least one if there is any, each zone's worst one.
pub(super) fn clashes(zones: &[Zone]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut forward: Vec<(Zone, usize)> = Vec::new();
    let mut backward: Vec<(Zone, usize)> = Vec::new();
    for (place, zone) in zones.iter().enumerate() {
        if zone.from < zone.to { forward.push((*zone, place)) } else { backward.push((*zone, place)) }
    }
    forward.sort_unstable_by_key(|(zone, place)| (zone.from, *place));
    // For each forward zone, the one that reaches farthest of those that begin no later.
    let mut reach: Vec<(u64, usize)> = Vec::with_capacity(forward.len());
    for (zone, place) in &forward {
        let farthest = reach.last().copied().unwrap_or((0, *place));
        if zone.from < farthest.0 {
            found.push((farthest.1, *place));
        }
        reach.push(farthest.max((zone.to, *place)));
    }
    for (zone, place) in backward {
        let begun = forward.partition_point(|(other, _)| other.from < zone.to);
        if let Some((to, other)) = begun.checked_sub(1).and_then(|at| reach.get(at))
            && zone.from < *to
        {
            found.push((*other, place));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clashes_are_those_of_all_pairs() {
        let mut seed = 1_u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % 1000
        };
        let (mut some, mut none) = (0, 0);
        for _ in 0..5000 {
            let zones: Vec<Zone> = (0..4).map(|_| Zone { from: next(), to: next() }).collect();
            let clash = |a: &Zone, b: &Zone| a.from < b.to && b.from < a.to;
            let all = (0..4).any(|a| (0..a).any(|b| clash(&zones[a], &zones[b])));
            let found = clashes(&zones);
            assert_eq!(!found.is_empty(), all, "{zones:?}");
            assert!(found.iter().all(|(a, b)| clash(&zones[*a], &zones[*b])), "{zones:?} {found:?}");
            if all { some += 1 } else { none += 1 }
        }
        assert!(some > 500 && none > 200, "{some} {none}");
    }
}
