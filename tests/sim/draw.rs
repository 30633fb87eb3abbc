//! What a scenario is: drawn from its seed, extremes rather than means. A mean of everything is what never goes
//! wrong, so each run also draws which kinds of faults it has at all.

use std::sync::Arc;

use quoral::canary::Canary;
use quoral::types::limits;
use quoral::types::policy::Conflicts;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::check::lives;
use crate::cluster::{Setup, Weather, mix};
use crate::history::Space;
use crate::upkeep::{BRIEF, Upkeep};

/// Which kinds of faults a run has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mix {
    /// Links are cut, both ways or one.
    pub cuts: bool,
    /// What is sent is held back.
    pub holds: bool,
    /// Links are slow.
    pub slow_links: bool,
    /// Hosts stand still.
    pub pauses: bool,
    /// Datagrams are lost.
    pub datagrams: bool,
    /// Hosts crash, one at a time.
    pub crashes: bool,
    /// Several or all hosts crash at once.
    pub blackouts: bool,
    /// Syncs fail.
    pub disk_errors: bool,
    /// Syncs take long.
    pub slow_disks: bool,
    /// Disks are full.
    pub full_disks: bool,
    /// Wall clocks jump within what is allowed.
    pub clocks: bool,
    /// Wall clocks jump further than is allowed.
    pub wild_clocks: bool,
    /// All wall clocks are ahead, and set right while no node runs.
    pub clocks_back: bool,
    /// Hosts lose first the others, then their power.
    pub torn: bool,
    /// Several disks are full at once.
    pub full_cluster: bool,
    /// A host loses its disk, once.
    pub lost_disk: bool,
}

/// What some clients do besides a bit of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Habit {
    /// Nothing.
    None,
    /// A key is read again and again, each time through another node, as behind a load balancer.
    Reload,
    /// A key is written again at once through another node, by somebody who has not read it.
    Twice,
    /// A keyspace is made for each tenant, and used at once, by those too who did not wait for it.
    Tenants,
}

/// What clients of some scenarios do besides. It is drawn apart, so that the others are what they were without it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct More {
    /// They send batches.
    pub batches: bool,
    /// They send many requests on one stream.
    pub streams: bool,
    /// They make a keyspace, change it, drop it and make it anew.
    pub lives: bool,
}

impl More {
    fn draw(seed: u64) -> More {
        let rng = &mut StdRng::seed_from_u64(mix(seed, 11, 0));
        if rng.random_bool(0.5) {
            return More::default();
        }
        More { batches: rng.random_bool(0.5), streams: rng.random_bool(0.4), lives: rng.random_bool(0.6) }
    }

    /// Whether there is any.
    pub fn is_any(self) -> bool {
        self != More::default()
    }
}

impl Mix {
    /// Whether disks and clocks are left alone.
    pub fn is_of_the_network_only(&self) -> bool {
        let disks =
            self.disk_errors || self.slow_disks || self.full_disks || self.full_cluster || self.lost_disk;
        !disks && !self.clocks && !self.wild_clocks && !self.clocks_back
    }

    fn draw(rng: &mut StdRng) -> Mix {
        // In a run of many faults two rare ones seldom meet; in one of few they do.
        let often = one_of(rng, [0.15, 0.4, 0.75]);
        Mix {
            cuts: rng.random_bool(often),
            holds: rng.random_bool(often),
            slow_links: rng.random_bool(often),
            pauses: rng.random_bool(often),
            datagrams: rng.random_bool(often),
            crashes: rng.random_bool(often),
            blackouts: rng.random_bool(often),
            disk_errors: rng.random_bool(often),
            slow_disks: rng.random_bool(often),
            full_disks: rng.random_bool(often),
            clocks: rng.random_bool(often),
            wild_clocks: rng.random_bool(often * 0.5),
            clocks_back: rng.random_bool(often * 0.5),
            torn: rng.random_bool(often),
            full_cluster: rng.random_bool(often * 0.5),
            lost_disk: false,
        }
    }
}

/// What a scenario is drawn to be.
#[derive(Debug, Clone)]
pub struct Draw {
    /// Cluster, keyspaces, weather.
    pub setup: Setup,
    /// Faults.
    pub mix: Mix,
    /// Clients.
    pub clients: usize,
    /// Keys of each keyspace.
    pub keys: usize,
    /// Longest pause of a client between two requests.
    pub pause_ms: u64,
    /// How often a client goes to another node.
    pub hop: f64,
    /// How often a request names its own quorum.
    pub own_level: f64,
    /// What its clients do besides a bit of everything.
    pub habit: Habit,
    /// What they do besides.
    pub more: More,
    /// How long the faults go on.
    pub chaos_ms: u64,
}

fn one_of<T: Copy, const N: usize>(rng: &mut StdRng, choices: [T; N]) -> T {
    choices[rng.random_range(0..N)]
}

/// A keyspace of a drawn policy. Majorities most of the time: they promise most.
pub fn space(rng: &mut StdRng, name: String, nodes: usize) -> Space {
    let most = u8::try_from(nodes.min(5)).unwrap_or(5);
    let n = match rng.random_range(0..8) {
        0 => 1,
        1 | 2 => rng.random_range(1..=most),
        3 => most,
        _ => most.min(3),
    };
    let majority = n / 2 + 1;
    let (r, w) = match rng.random_range(0..8) {
        0 => (1, n),
        1 => (n, 1),
        2 => (1, 1),
        3 => (rng.random_range(1..=n), rng.random_range(1..=n)),
        _ => (majority, majority),
    };
    let conflicts = if rng.random_bool(0.5) { Conflicts::Lww } else { Conflicts::Siblings };
    Space { name, conflicts, n, r, w, sloppy: rng.random_bool(0.25) }
}

/// Draws the scenario of a seed.
pub fn draw(seed: u64, canary: Option<Canary>) -> Draw {
    let mut rng = StdRng::seed_from_u64(mix(seed, 1, 0));
    let rng = &mut rng;
    let nodes = one_of(rng, [3, 3, 3, 3, 3, 4, 5, 5, 6, 7, 8, 9]);
    let zones = one_of(rng, [1, 2, 3, nodes, nodes]);
    let latency_min = rng.random_range(0..=3);
    let weather = Weather {
        latency_min,
        latency_max: latency_min + one_of(rng, [2, 20, 80]),
        random_order: rng.random_bool(0.5),
        tick_ms: one_of(rng, [1, 2, 4]),
    };
    let offset = |rng: &mut StdRng| match rng.random_range(0..3) {
        0 => 0,
        1 => 200,
        _ => rng.random_range(0..=200),
    };
    let offsets = (0..nodes).map(|_| offset(rng)).collect();
    // One of each policy, and some more.
    let carts = Space { conflicts: Conflicts::Siblings, ..space(rng, "carts".into(), nodes) };
    let mut spaces = vec![default_space(nodes), carts];
    for number in 0..rng.random_range(0..=2) {
        spaces.push(space(rng, format!("space-{number}"), nodes));
    }
    let upkeep = Upkeep::draw(seed);
    if upkeep.purge.is_some() {
        spaces.push(brief_space(seed, nodes));
    }
    let mut setup = Setup {
        seed,
        offsets,
        zones: (0..nodes).map(|node| format!("z{}", node % zones)).collect(),
        spaces: spaces.into_iter().map(Arc::new).collect(),
        weather,
        sync_ms: one_of(rng, [0, 2, 10, 50]),
        requests_limit: one_of(rng, [4, 16, 8_192, 8_192]),
        // A value has a few bytes.
        bytes_limit: one_of(rng, [12, 64, limits::BYTES_IN_FLIGHT, limits::BYTES_IN_FLIGHT]),
        upkeep,
        canary,
    };
    let more = More::draw(seed);
    if more.streams {
        // A quarter of this is the room of a client's streams: past it a stream is read no further, and no get begins. What
        // waits for that has not begun its time.
        setup.bytes_limit = limits::BYTES_IN_FLIGHT;
    }
    let mut draw = Draw {
        setup,
        mix: Mix::draw(rng),
        clients: rng.random_range(1..=5),
        keys: rng.random_range(1..=3),
        pause_ms: one_of(rng, [8, 40, 150]),
        hop: one_of(rng, [0.1, 0.5, 1.0]),
        own_level: one_of(rng, [0.0, 0.0, 0.2]),
        habit: one_of(rng, [Habit::None, Habit::None, Habit::Reload, Habit::Twice, Habit::Tenants]),
        // What is purged is left alone for a while, and used again.
        chaos_ms: rng.random_range(6_000..=10_000) + if upkeep.purge.is_some() { 10_000 } else { 0 },
        more,
    };
    if StdRng::seed_from_u64(mix(seed, 21, 0)).random_bool(LOST_DISKS) {
        lose_a_disk(&mut draw);
    }
    draw
}

/// How often a host loses its disk, in scenarios that can have it.
const LOST_DISKS: f64 = 0.15;

/// What one replica alone has acknowledged is lost with its disk: no such promise is asked for here.
fn lose_a_disk(draw: &mut Draw) {
    // These draw quorums of their own.
    if draw.more.lives || draw.habit == Habit::Tenants {
        return;
    }
    draw.mix.lost_disk = true;
    draw.own_level = 0.0;
    let hints_end = draw.setup.upkeep.window_ms.is_some();
    for space in &mut draw.setup.spaces {
        let Space { n, w, sloppy, .. } = **space;
        // A fallback's hint may be the second copy.
        *space =
            Arc::new(Space { n: n.max(2), w: w.max(2), sloppy: sloppy && !hints_end, ..(**space).clone() });
    }
}

/// The keyspace that clients make anew: of one policy for all its lives, so that what is asked of it is known. Requests
/// name their own quorums, since those of the keyspace change.
pub fn reborn_space(seed: u64, nodes: usize) -> Space {
    let rng = &mut StdRng::seed_from_u64(mix(seed, 12, 0));
    Space { sloppy: false, ..space(rng, lives::NAME.into(), nodes) }
}

/// A keyspace whose values die by themselves.
fn brief_space(seed: u64, nodes: usize) -> Space {
    let rng = &mut StdRng::seed_from_u64(mix(seed, 18, 0));
    Space { sloppy: false, ..space(rng, BRIEF.into(), nodes) }
}

/// The keyspace that every cluster begins with.
pub fn default_space(nodes: usize) -> Space {
    let n = u8::try_from(nodes.min(3)).unwrap_or(3);
    Space { name: "default".into(), conflicts: Conflicts::Lww, n, r: n / 2 + 1, w: n / 2 + 1, sloppy: false }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::nemesis::Plan;

    /// A kind of fault, size or policy that no seed draws is one that nothing is tested with.
    #[test]
    fn seeds_draw_all_of_the_world() {
        let (mut sizes, mut spaces, mut deeds) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (mut habits, mut rare, mut more) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut upkeeps = BTreeSet::new();
        for seed in 0..2_000 {
            let draw = draw(seed, None);
            let nodes = draw.setup.zones.len();
            sizes.insert(nodes);
            habits.insert(draw.habit);
            more.insert(draw.more);
            let Upkeep { interval_ms, read_repair, window_ms, purge, .. } = draw.setup.upkeep;
            upkeeps.insert((interval_ms > 0, read_repair, window_ms == Some(0), purge.is_some()));
            let Mix { clocks_back, torn, full_cluster, lost_disk, .. } = draw.mix;
            rare.extend(
                [clocks_back, torn, full_cluster, lost_disk]
                    .iter()
                    .enumerate()
                    .filter(|(_, on)| **on)
                    .map(|(at, _)| at),
            );
            spaces.extend(draw.setup.spaces.iter().map(|s| (s.conflicts, s.n, s.r + s.w > s.n)));
            deeds.extend(Plan::draw(seed, draw.mix, nodes, draw.clients, 0, draw.chaos_ms).kinds());
        }
        assert_eq!(sizes, (3..=9).collect());
        assert_eq!(rare.len(), 4, "{rare:?}");
        assert_eq!(more.len(), 8, "{more:?}");
        assert_eq!(upkeeps.len(), 7, "{upkeeps:?}");
        assert_eq!(habits, [Habit::None, Habit::Reload, Habit::Twice, Habit::Tenants].into());
        for conflicts in [Conflicts::Lww, Conflicts::Siblings] {
            let drawn = |n| {
                spaces.contains(&(conflicts, n, true)) && (n == 1 || spaces.contains(&(conflicts, n, false)))
            };
            assert!((1..=5).all(drawn), "{spaces:?}");
        }
        let faults =
            ["Begin(Cut", "Begin(OneWay", "Begin(Hold", "Begin(Slow", "Begin(Pause", "Begin(Datagrams"];
        let host = ["Crash", "LostDisk", "Disk", "SlowDisk", "FullDisk", "Clock", "Alone"]
            .map(|kind| format!("Fail({kind}"));
        for kind in faults.map(str::to_owned).into_iter().chain(host) {
            assert!(deeds.contains(&kind), "{kind} is in no plan: {deeds:?}");
        }
    }
}
