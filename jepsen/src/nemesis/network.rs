//! Packets that are lost, late, out of order, or come twice.

use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::{Act, Needs, Nemesis, draw, integer, map, names};
use crate::cluster::{Cluster, Error};
use crate::network::rules::Pair;
use crate::network::wire::Shape;

/// `loss`: a share of the packets between nodes is dropped, of all nodes or of some.
#[derive(Debug, Default)]
pub struct Loss {
    acted: u64,
}

impl Nemesis for Loss {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn needs(&self) -> Needs {
        Needs { root: true, ..Needs::default() }
    }

    fn start<'a>(&'a mut self, cluster: &'a mut Cluster, rng: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let percent = rng.random_range(5..=50);
            let all: Vec<usize> = (0..cluster.len()).collect();
            let (_, nodes) = draw(rng, &all, cluster.len(), true);
            let pairs = all.iter().flat_map(|a| all.iter().map(move |b| (*a, *b)));
            let touched = |(a, b): &Pair| a != b && (nodes.contains(a) || nodes.contains(b));
            let pairs = pairs.filter(touched).collect();
            let network = cluster.network().ok_or_else(|| Error::Unable("no network of its own".into()))?;
            network.lose("loss", percent, pairs).await?;
            self.acted += 1;
            Ok(map([("percent", integer(percent)), ("nodes", names(cluster, &nodes))]))
        })
    }

    fn stop<'a>(&'a mut self, cluster: &'a mut Cluster, _: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            if let Some(network) = cluster.network() {
                network.clear("loss").await?;
            }
            Ok(map([]))
        })
    }

    fn acted(&self) -> u64 {
        self.acted
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Delay,
    Jitter,
    Duplicate,
}

/// `delay`, `jitter`, `duplicate`: what the wires can do, to the wires of some nodes or all.
#[derive(Debug)]
pub struct Shaper {
    what: What,
    /// Packets that the wires had shaped when it last began.
    before: u64,
    acted: u64,
}

impl Shaper {
    /// Packets are late, in order.
    #[must_use]
    pub fn delay() -> Shaper {
        Shaper { what: What::Delay, before: 0, acted: 0 }
    }

    /// Packets are late each on its own, so that they overtake each other.
    #[must_use]
    pub fn jitter() -> Shaper {
        Shaper { what: What::Jitter, before: 0, acted: 0 }
    }

    /// Packets come twice.
    #[must_use]
    pub fn duplicate() -> Shaper {
        Shaper { what: What::Duplicate, before: 0, acted: 0 }
    }

    /// Sets the one field that is this nemesis's.
    fn set(&self, shape: &mut Shape, strength: u64) {
        match self.what {
            What::Delay => shape.delay = Duration::from_millis(strength),
            What::Jitter => shape.jitter = Duration::from_millis(strength),
            What::Duplicate => shape.duplicate = u8::try_from(strength.min(100)).unwrap_or(100),
        }
    }
}

impl Nemesis for Shaper {
    fn name(&self) -> &'static str {
        match self.what {
            What::Delay => "delay",
            What::Jitter => "jitter",
            What::Duplicate => "duplicate",
        }
    }

    fn needs(&self) -> Needs {
        Needs { root: true, taps: true, ..Needs::default() }
    }

    fn start<'a>(&'a mut self, cluster: &'a mut Cluster, rng: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let (unit, strength) = match self.what {
                What::Delay => ("ms", rng.random_range(10..=200)),
                What::Jitter => ("ms", rng.random_range(5..=100)),
                What::Duplicate => ("percent", rng.random_range(5..=50)),
            };
            let all: Vec<usize> = (0..cluster.len()).collect();
            let (_, nodes) = draw(rng, &all, cluster.len(), true);
            let network = cluster.network().ok_or_else(|| Error::Unable("no network of its own".into()))?;
            self.before = network.shaped();
            for at in &nodes {
                network.shape(*at, |shape| self.set(shape, strength))?;
            }
            self.acted += 1;
            Ok(map([(unit, integer(strength)), ("nodes", names(cluster, &nodes))]))
        })
    }

    fn stop<'a>(&'a mut self, cluster: &'a mut Cluster, _: &'a mut StdRng) -> Act<'a> {
        Box::pin(async move {
            let nodes = cluster.len();
            let Some(network) = cluster.network().filter(|network| network.has_wires()) else {
                return Ok(map([]));
            };
            for at in 0..nodes {
                network.shape(at, |shape| self.set(shape, 0))?;
            }
            Ok(map([("packets", integer(network.shaped().saturating_sub(self.before)))]))
        })
    }

    fn acted(&self) -> u64 {
        self.acted
    }
}
