//! The owners of all partitions, as a flow of least cost.
//!
//! Each partition has slots to fill with distinct nodes, each node a least and a greatest load, and taking
//! a node that did not own the partition before costs 1. The way to the cheapest answer is that of
//! successive shortest paths: start from the old owners, and while a node has too much and another too
//! little, shift one replica along the cheapest chain of swaps between them ("in this partition B instead
//! of A, in that one C instead of B").
//!
//! Why not a textbook flow network: it has an edge for each partition and node. Only nodes matter to a
//! chain, so the search runs on a graph of nodes, and an arc from A to B only counts the partitions in
//! which B may take A's place at a cost of −1, 0 or 1. A search is over a few hundred arcs, not a million.
//!
//! Invariants:
//! 1. The owners of a partition, fixed and in slots, are distinct.
//! 2. A partition's owners lie in `spread` zones, each empty slot counting as one more zone.
//! 3. `counts` agrees with the slots.
//!
//! Empty slots are held by a node that is none (`self.nobody`). Loads between a node's least and greatest
//! are traded through one more vertex (`self.market`), so that which nodes round up is part of the search.

use crate::types::limits;

/// What is to be solved. Nodes and zones are indexes.
#[derive(Clone, Copy)]
pub(super) struct Problem<'a> {
    /// The zone of each node.
    pub(super) zones: &'a [u16],
    /// How many zones the owners of a partition must lie in, fixed ones included.
    pub(super) spread: usize,
    /// Owners of each partition that are given.
    pub(super) fixed: &'a [Vec<u16>],
    /// The nodes that each partition may have; all if `None`.
    pub(super) allowed: Option<&'a [Vec<u16>]>,
    /// The nodes that each partition may have at no cost.
    pub(super) old: &'a [Vec<u16>],
    /// Slots of each partition; with those fixed at most `N_MAX`.
    pub(super) slots: usize,
    /// Least and greatest load of each node, fixed ones included.
    pub(super) bounds: &'a [(u32, u32)],
}

/// Nodes for the slots of each partition, in no order that matters.
pub(super) struct Solution {
    /// Per partition.
    pub(super) owners: Vec<Vec<u16>>,
    /// By how much a load may be outside its bounds, because nothing better was found.
    pub(super) slack: u32,
}

/// Solves it, with bounds as little widened as it takes. They hold exactly if they can be held and each
/// partition may have every node.
pub(super) fn solve(problem: Problem<'_>) -> Solution {
    // Each width starts afresh: a flow of least cost within some bounds is not one within wider bounds,
    // and shortest paths lead nowhere from a flow that could be cheaper (there are negative cycles).
    let attempt = |slack: u32| {
        let mut flow = Flow::new(problem, slack);
        flow.run();
        (flow.is_solved(), flow)
    };
    let (solved, flow) = attempt(0);
    if solved {
        return Solution { owners: flow.owners(), slack: 0 };
    }
    // With loads from 0 to Q any node may take a slot, so some width is enough.
    let widest = problem.fixed.len() as u32;
    let (mut too_narrow, mut enough) = (0, 1);
    let mut best = attempt(enough);
    while !best.0 && enough < widest {
        (too_narrow, enough) = (enough, (enough * 2).min(widest));
        best = attempt(enough);
    }
    while enough - too_narrow > 1 {
        let middle = too_narrow + (enough - too_narrow) / 2;
        let (solved, flow) = attempt(middle);
        if solved {
            (enough, best) = (middle, (true, flow));
        } else {
            too_narrow = middle;
        }
    }
    Solution { owners: best.1.owners(), slack: enough }
}

struct Flow<'a> {
    problem: Problem<'a>,
    nodes: usize,
    nobody: usize,
    market: usize,
    bounds: Vec<(u32, u32)>,
    /// The node in each slot; slots of a partition are adjacent.
    slots: Vec<u16>,
    /// The slots that each node is in, and each slot's place in that list.
    held: Vec<Vec<u32>>,
    place: Vec<u32>,
    load: Vec<u32>,
    /// For each node (or nobody) and the node that would take its place: in how many slots, by cost.
    counts: Vec<[u32; 3]>,
    /// All loads together.
    total: i64,
    random: u64,
}

/// The zones that a node must not be in to take some slot: those that the partition's other owners are in,
/// if it still lacks one; else none.
struct Demand {
    zones: [u16; limits::N_MAX as usize],
    count: usize,
}

impl Demand {
    fn forbids(&self, zone: u16) -> bool {
        self.zones[..self.count].contains(&zone)
    }
}

/// Costs of a swap are −1, 0, 1; indexes are these plus 1.
const COSTS: [i64; 3] = [-1, 0, 1];
const FAR: i64 = i64::MAX / 2;

impl<'a> Flow<'a> {
    /// The starting point: old owners only, which no other owners could undercut.
    fn new(problem: Problem<'a>, slack: u32) -> Flow<'a> {
        let nodes = problem.zones.len();
        let partitions = problem.fixed.len();
        let mut flow = Flow {
            nodes,
            nobody: nodes,
            market: nodes + 1,
            bounds: problem
                .bounds
                .iter()
                .map(|(low, high)| (low.saturating_sub(slack), high + slack))
                .collect(),
            slots: vec![nodes as u16; partitions * problem.slots],
            held: vec![Vec::new(); nodes + 1],
            place: vec![0; partitions * problem.slots],
            load: vec![0; nodes + 1],
            counts: vec![[0; 3]; (nodes + 1) * nodes],
            total: (partitions * problem.slots + problem.fixed.iter().map(Vec::len).sum::<usize>()) as i64,
            random: 0,
            problem,
        };
        for partition in 0..partitions {
            flow.start(partition);
        }
        flow
    }

    /// Fills the slots of a partition with old owners, as far as they keep the invariants.
    fn start(&mut self, partition: usize) {
        let width = self.problem.slots;
        let fixed = &self.problem.fixed[partition];
        let mut taken = fixed.clone();
        let mut zones: Vec<u16> = Vec::with_capacity(width + fixed.len());
        for node in fixed {
            let zone = self.problem.zones[usize::from(*node)];
            if !zones.contains(&zone) {
                zones.push(zone);
            }
            self.load[usize::from(*node)] += 1;
        }
        let spare = (width + fixed.len()).saturating_sub(self.problem.spread);
        for node in &self.problem.old[partition] {
            let zone = self.problem.zones[usize::from(*node)];
            let new_zone = !zones.contains(&zone);
            let room = taken.len() < width + fixed.len() && (new_zone || taken.len() - zones.len() < spare);
            if room && !taken.contains(node) && self.is_allowed(partition, *node) {
                self.slots[partition * width + taken.len() - fixed.len()] = *node;
                taken.push(*node);
                if new_zone {
                    zones.push(zone);
                }
            }
        }
        for slot in partition * width..(partition + 1) * width {
            let node = usize::from(self.slots[slot]);
            self.place[slot] = self.held[node].len() as u32;
            self.held[node].push(slot as u32);
            self.load[node] += 1;
        }
        self.count(partition, 1);
    }

    fn owners(&self) -> Vec<Vec<u16>> {
        let owner = |node: &&u16| usize::from(**node) != self.nobody;
        let owners = |slots: &[u16]| slots.iter().filter(owner).copied().collect();
        self.slots.chunks(self.problem.slots).map(owners).collect()
    }

    fn is_allowed(&self, partition: usize, node: u16) -> bool {
        self.problem.allowed.is_none_or(|allowed| allowed[partition].contains(&node))
    }

    fn slots_of(&self, partition: usize) -> &[u16] {
        &self.slots[partition * self.problem.slots..(partition + 1) * self.problem.slots]
    }

    fn owns(&self, partition: usize, node: u16) -> bool {
        self.slots_of(partition).contains(&node) || self.problem.fixed[partition].contains(&node)
    }

    /// What invariant 2 asks of who takes `slot`.
    fn demand(&self, slot: usize) -> Demand {
        let partition = slot / self.problem.slots;
        let mut zones = [0; limits::N_MAX as usize];
        let (mut count, mut empty) = (0, 0);
        let slots = self.slots_of(partition).iter().enumerate();
        let others = slots.filter(|(index, _)| partition * self.problem.slots + index != slot);
        for node in others.map(|(_, node)| usize::from(*node)).chain(self.fixed_of(partition)) {
            if node == self.nobody {
                empty += 1;
            } else if !zones[..count].contains(&self.problem.zones[node]) {
                zones[count] = self.problem.zones[node];
                count += 1;
            }
        }
        let new_zone = count + empty < self.problem.spread;
        Demand { zones, count: if new_zone { count } else { 0 } }
    }

    fn fixed_of(&self, partition: usize) -> impl Iterator<Item = usize> + '_ {
        self.problem.fixed[partition].iter().map(|node| usize::from(*node))
    }

    /// Index of the cost of `node` in place of the one in `slot`, or `None` if it may not take it.
    fn cost(&self, slot: usize, demand: &Demand, node: u16) -> Option<usize> {
        let partition = slot / self.problem.slots;
        if self.owns(partition, node) || demand.forbids(self.problem.zones[usize::from(node)]) {
            return None;
        }
        let price = |node: u16| {
            usize::from(usize::from(node) != self.nobody && !self.problem.old[partition].contains(&node))
        };
        Some(1 + price(node) - price(self.slots[slot]))
    }

    /// Adds (or takes away) what a partition contributes to the counts.
    fn count(&mut self, partition: usize, sign: i32) {
        for slot in partition * self.problem.slots..(partition + 1) * self.problem.slots {
            let demand = self.demand(slot);
            let row = usize::from(self.slots[slot]) * self.nodes;
            let add = |flow: &mut Flow<'_>, node: u16| {
                if let Some(cost) = flow.cost(slot, &demand, node) {
                    let count = &mut flow.counts[row + usize::from(node)][cost];
                    *count = count.wrapping_add_signed(sign);
                }
            };
            match self.problem.allowed {
                Some(allowed) => allowed[partition].iter().for_each(|node| add(self, *node)),
                None => (0..self.nodes as u16).for_each(|node| add(self, node)),
            }
        }
    }

    /// Puts `node` into `slot`.
    fn put(&mut self, slot: usize, node: usize) {
        let partition = slot / self.problem.slots;
        self.count(partition, -1);
        let former = usize::from(self.slots[slot]);
        let place = self.place[slot] as usize;
        self.held[former].swap_remove(place);
        if let Some(moved) = self.held[former].get(place) {
            self.place[*moved as usize] = place as u32;
        }
        self.place[slot] = self.held[node].len() as u32;
        self.held[node].push(slot as u32);
        self.slots[slot] = node as u16;
        self.load[former] -= 1;
        self.load[node] += 1;
        self.count(partition, 1);
    }

    /// What of a node's load lies between its bounds.
    fn traded(&self, node: usize) -> u32 {
        let (least, greatest) = self.bounds[node];
        self.load[node].clamp(least, greatest.max(least)) - least
    }

    /// By how much more is traded than there is.
    fn market_excess(&self) -> i64 {
        let bound = |node: usize| i64::from(self.traded(node)) + i64::from(self.bounds[node].0);
        (0..self.nodes).map(bound).sum::<i64>() - self.total
    }

    /// By how much a vertex has too much (positive) or too little.
    fn excess(&self, vertex: usize, market: i64) -> i64 {
        if vertex == self.market {
            return market;
        }
        if vertex == self.nobody {
            return self.load[vertex].into();
        }
        let (least, greatest) = self.bounds[vertex];
        match i64::from(self.load[vertex]) {
            load if load < i64::from(least) => load - i64::from(least),
            load => (load - i64::from(greatest)).max(0),
        }
    }

    fn is_solved(&self) -> bool {
        let market = self.market_excess();
        (0..=self.market).all(|vertex| self.excess(vertex, market) == 0)
    }

    /// The cost of the cheapest arc between two vertices.
    fn arc(&self, from: usize, to: usize) -> Option<i64> {
        if to == self.nobody || from == to {
            return None;
        }
        let can_trade = |node: usize| node != self.nobody && self.bounds[node].0 < self.bounds[node].1;
        if to == self.market {
            let room = can_trade(from) && self.load[from] < self.bounds[from].1;
            return room.then_some(0);
        }
        if from == self.market {
            let gives = can_trade(to) && self.load[to] > self.bounds[to].0;
            return gives.then_some(0);
        }
        let counts = &self.counts[from * self.nodes + to];
        (0..3).find(|cost| counts[*cost] > 0).map(|cost| COSTS[cost])
    }

    /// Shifts replicas until nothing can be improved.
    fn run(&mut self) {
        // A path that can't be carried out to its end (it meets one partition twice) leaves a valid state;
        // so many in a row end the search.
        let mut failures = 0;
        while failures < 64 {
            let distances = self.distances();
            let mut progress = false;
            while let Some(path) = self.path(&distances) {
                if !self.shift(&path, &distances) {
                    failures += 1;
                    break;
                }
                progress = true;
                failures = 0;
            }
            if !progress && failures == 0 {
                return;
            }
            if self.is_solved() {
                return;
            }
        }
    }

    /// The cost of the cheapest chain to each vertex from any that has too much (Bellman and Ford).
    fn distances(&self) -> Vec<i64> {
        let market = self.market_excess();
        let start = |vertex| if self.excess(vertex, market) > 0 { 0 } else { FAR };
        let mut distances: Vec<i64> = (0..=self.market).map(start).collect();
        for _ in 0..=self.market {
            let mut changed = false;
            for from in 0..=self.market {
                if distances[from] == FAR {
                    continue;
                }
                for to in 0..=self.market {
                    if let Some(cost) = self.arc(from, to)
                        && distances[from] + cost < distances[to]
                    {
                        distances[to] = distances[from] + cost;
                        changed = true;
                    }
                }
            }
            if !changed {
                break;
            }
        }
        distances
    }

    /// The chain with the fewest swaps among the cheapest, from a vertex with too much to one with too
    /// little. The fewest, because such a chain never meets a partition twice where it matters.
    fn path(&mut self, distances: &[i64]) -> Option<Vec<usize>> {
        let market = self.market_excess();
        let vertices = self.market + 1;
        let mut before = vec![usize::MAX; vertices];
        let mut queue: Vec<usize> = (0..vertices).filter(|v| self.excess(*v, market) > 0).collect();
        queue.iter().for_each(|source| before[*source] = *source);
        let mut next = 0;
        while next < queue.len() {
            let from = queue[next];
            next += 1;
            let offset = self.draw(vertices);
            for step in 0..vertices {
                let to = (offset + step) % vertices;
                let tight = before[to] == usize::MAX
                    && self.arc(from, to).is_some_and(|cost| distances[from] + cost == distances[to]);
                if !tight {
                    continue;
                }
                before[to] = from;
                if self.excess(to, market) < 0 {
                    let mut path = vec![to];
                    while before[path[path.len() - 1]] != path[path.len() - 1] {
                        path.push(before[path[path.len() - 1]]);
                    }
                    path.reverse();
                    return Some(path);
                }
                queue.push(to);
            }
        }
        None
    }

    /// Carries out a chain; false if one of its swaps is no longer possible.
    fn shift(&mut self, path: &[usize], distances: &[i64]) -> bool {
        path.windows(2).all(|pair| {
            let (from, to) = (pair[0], pair[1]);
            from == self.market || to == self.market || self.swap(from, to, distances[to] - distances[from])
        })
    }

    /// Lets `to` take the place of `from` in some partition where that costs `cost`.
    fn swap(&mut self, from: usize, to: usize, cost: i64) -> bool {
        let count = self.held[from].len();
        if count == 0 {
            return false;
        }
        // Every slot once, in an order that is as good as random: the fitting ones may stand in clusters.
        let (offset, stride) = (self.draw(count), self.coprime(count));
        let (mut at, node) = (offset, to as u16);
        for _ in 0..count {
            let slot = self.held[from][at] as usize;
            let partition = slot / self.problem.slots;
            let fits = !self.owns(partition, node)
                && self.is_allowed(partition, node)
                && self.cost(slot, &self.demand(slot), node).is_some_and(|index| COSTS[index] == cost);
            if fits {
                self.put(slot, to);
                return true;
            }
            at = (at + stride) % count;
        }
        false
    }

    /// A number that has no divisor in common with `count`.
    fn coprime(&mut self, count: usize) -> usize {
        loop {
            let candidate = 1 + self.draw(count);
            let (mut a, mut b) = (count, candidate);
            while b > 0 {
                (a, b) = (b, a % b);
            }
            if a == 1 {
                return candidate;
            }
        }
    }

    /// A number below `bound`: from a fixed seed (splitmix64), so that every node draws the same. Drawing
    /// mixes who shares partitions with whom, so the load of a dead node spreads over all.
    fn draw(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}
