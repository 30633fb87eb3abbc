//! The Merkle tree of one keyspace in one partition, as one replica has it.
//!
//! The tree is over the slots of partition keys (`storage::schema`): 65 536 of them, 1 024 leaves of 64 slots each.
//! A leaf holds the sum of the fingerprints of its records, one for each (storage key, version ids). A sum can be
//! kept up to date with one subtraction and one addition, in any order, and the sum of a node is that of its leaves:
//! so leaves are all that is kept (the incremental hashing of Bellare and Micciancio 1997, `AdHash`, modulo 2^128).
//! Sixteen leaves make a region, the unit in which a tree is stored and rebuilt.
//!
//! Below a leaf with very many records (the sort keys of one partition key have one slot) the tree goes on by the
//! bits of the fingerprints; those nodes are made when they are asked for.
//!
//! Invariants:
//! 1. Two trees of equal records are equal, in whatever order the records came.
//! 2. A region's items are as many as were added less those taken away.
//!
//! Caveat: sums are no defence against somebody who can choose version ids. Nodes make them, clients don't.

use serde::{Deserialize, Serialize};

use crate::version::record::Digest;

/// Bits of a slot.
pub const SLOT_BITS: u8 = 16;
/// Bits that tell a leaf.
pub const LEAF_BITS: u8 = 10;
/// Bits that tell a region.
pub const REGION_BITS: u8 = 6;
/// Leaves of a region.
const REGION_LEAVES: usize = 1 << (LEAF_BITS - REGION_BITS);
/// Bits of a node below a leaf: the leaf's, and 8 of the fingerprint.
pub const BUCKET_BITS: u8 = LEAF_BITS + 8;

/// How sums and fingerprints travel below the root: 4 bytes each, mixed with a number that is drawn for each pass. Two that
/// differ travel alike once in 2^31, and then one exchange does not see it; the next has another number, and does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Salt(u32);

impl Salt {
    /// 8 bytes each, as they are: for who must not miss one.
    pub const WIDE: Salt = Salt(0);

    /// For an exchange, from a random number.
    pub fn drawn(random: u64) -> Salt {
        // The shift leaves 32 bits.
        Salt(((random >> 32) as u32).max(1))
    }

    /// As it is told on the wire.
    pub fn number(self) -> u32 {
        self.0
    }

    /// As it was told.
    pub fn told(number: u32) -> Salt {
        Salt(number)
    }

    /// Bytes of each.
    pub fn width(self) -> usize {
        if self == Salt::WIDE { 8 } else { 4 }
    }

    /// The short form of a sum or a fingerprint; 0 of 0.
    fn short(self, of: u128) -> u64 {
        // The shift leaves 64 bits.
        self.mix((of >> 64) as u64)
    }

    /// The short form of 8 bytes that are a hash; 0 of 0.
    pub fn mix(self, print: u64) -> u64 {
        if self == Salt::WIDE {
            return print;
        }
        // Multiply-shift hashing (Dietzfelbinger et al. 1997): with a random odd factor two numbers fall together once in
        // 2^31. Splitmix (Steele et al. 2014) spreads the salt over 64 bits.
        let spread = u64::from(self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let spread = (spread ^ spread >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let spread = (spread ^ spread >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        print.wrapping_mul((spread ^ spread >> 31) | 1) >> 32
    }
}

/// Fingerprint of one version set of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Item(pub u128);

impl Item {
    /// Of the record under `storage_key` with these version ids.
    pub fn of(storage_key: &[u8], digest: Digest) -> Item {
        let mut hasher = blake3::Hasher::new();
        // The digest stands first and has a fixed length, so no two pairs are written alike.
        hasher.update(&digest.0).update(storage_key);
        let mut first = [0; 16];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Item(u128::from_be_bytes(first))
    }

    /// As it travels.
    pub fn short(self, salt: Salt) -> u64 {
        salt.short(self.0)
    }

    /// Which of the 256 buckets below its leaf it is in.
    fn bucket(self) -> u32 {
        // The shift leaves 8 bits.
        (self.0 >> 120) as u32
    }
}

/// Sum of the fingerprints of some records; 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Sum(pub u128);

impl Sum {
    /// With one more.
    #[must_use]
    pub fn plus(self, item: Item) -> Sum {
        Sum(self.0.wrapping_add(item.0))
    }

    /// With one less.
    #[must_use]
    pub fn minus(self, item: Item) -> Sum {
        Sum(self.0.wrapping_sub(item.0))
    }

    /// Of both.
    #[must_use]
    pub fn and(self, other: Sum) -> Sum {
        Sum(self.0.wrapping_add(other.0))
    }

    /// As it travels for a node below the root.
    pub fn short(self, salt: Salt) -> u64 {
        salt.short(self.0)
    }
}

/// A node of a tree: how many bits lead to it, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    bits: u8,
    path: u32,
}

/// The depths at which there are nodes.
const DEPTHS: [u8; 5] = [0, 4, 8, LEAF_BITS, BUCKET_BITS];

impl Node {
    /// The root.
    pub const ROOT: Node = Node { bits: 0, path: 0 };

    /// The node that these bits lead to; none if there is no such node.
    pub fn new(bits: u8, path: u32) -> Option<Node> {
        (DEPTHS.contains(&bits) && path >> bits == 0).then_some(Node { bits, path })
    }

    /// The leaf of a slot.
    pub fn leaf_of(slot: u16) -> Node {
        Node { bits: LEAF_BITS, path: u32::from(slot >> (SLOT_BITS - LEAF_BITS)) }
    }

    /// How many bits lead to it.
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// Those bits.
    pub fn path(self) -> u32 {
        self.path
    }

    /// Whether its children are not kept, but made from the records.
    pub fn is_leaf(self) -> bool {
        self.bits == LEAF_BITS
    }

    /// How many bits lead to its children; none if it has none.
    fn child_bits(self) -> Option<u8> {
        DEPTHS.iter().copied().find(|bits| *bits > self.bits)
    }

    /// Its children; none below the last depth.
    pub fn children(self) -> impl Iterator<Item = Node> {
        let bits = self.child_bits().unwrap_or(self.bits);
        let more = bits - self.bits;
        let count = if more == 0 { 0 } else { 1_u32 << more };
        (0..count).map(move |child| Node { bits, path: self.path << more | child })
    }

    /// How many it has.
    pub fn fan_out(self) -> usize {
        self.child_bits().map_or(0, |bits| 1 << (bits - self.bits))
    }

    /// First and last slot of its records.
    pub fn slots(self) -> (u16, u16) {
        let (bits, path) = match self.bits {
            BUCKET_BITS => (LEAF_BITS, self.path >> (BUCKET_BITS - LEAF_BITS)),
            bits => (bits, self.path),
        };
        let below = u32::from(SLOT_BITS - bits);
        let first = path << below;
        let last = first + ((1 << below) - 1);
        // `path` has `bits` bits, so both have 16.
        (first as u16, last as u16)
    }

    /// The leaf that it lies below; none for a leaf and what is above.
    pub fn leaf_above(self) -> Option<Node> {
        let path = self.path >> (BUCKET_BITS - LEAF_BITS);
        (self.bits == BUCKET_BITS).then_some(Node { bits: LEAF_BITS, path })
    }

    /// Whether a record in its slots is in it.
    pub fn has(self, item: Item) -> bool {
        self.bits != BUCKET_BITS || item.bucket() == self.path & 0xff
    }

    /// First and last leaf that is in it, as numbers; a leaf for a node below one.
    fn leaves(self) -> (usize, usize) {
        let (first, last) = self.slots();
        let leaf = |slot: u16| usize::from(slot >> (SLOT_BITS - LEAF_BITS));
        (leaf(first), leaf(last))
    }
}

/// Sixteen leaves side by side: those that are not empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Region {
    /// Bit `i`: leaf `i` is not empty.
    mask: u16,
    /// Of those, in order.
    sums: Vec<Sum>,
    /// Records in it.
    items: u32,
}

impl Region {
    /// Which region the leaf of a slot is in.
    pub fn of_slot(slot: u16) -> u8 {
        // The shift leaves 6 bits.
        (slot >> (SLOT_BITS - REGION_BITS)) as u8
    }

    /// First and last slot of a region.
    pub fn slots(region: u8) -> (u16, u16) {
        let below = SLOT_BITS - REGION_BITS;
        let first = u16::from(region) << below;
        (first, first + ((1 << below) - 1))
    }

    /// How many records it has.
    pub fn items(&self) -> u64 {
        self.items.into()
    }

    /// Whether it can be one: as many sums as bits.
    pub fn is_sound(&self) -> bool {
        self.mask.count_ones() as usize == self.sums.len()
            && self.sums.iter().all(|sum| *sum != Sum::default())
    }

    /// The sum of a leaf of it, by its number in the tree.
    fn leaf(&self, leaf: usize) -> Sum {
        let bit = 1_u16 << (leaf % REGION_LEAVES);
        match self.mask & bit {
            0 => Sum::default(),
            _ => self.sums[(self.mask & (bit - 1)).count_ones() as usize],
        }
    }

    /// Takes one version away from a slot and puts another there.
    pub fn change(&mut self, slot: u16, before: Option<Item>, after: Option<Item>) {
        let leaf = usize::from(slot >> (SLOT_BITS - LEAF_BITS)) % REGION_LEAVES;
        let bit = 1_u16 << leaf;
        let at = (self.mask & (bit - 1)).count_ones() as usize;
        let mut sum = self.leaf(leaf);
        if let Some(before) = before {
            sum = sum.minus(before);
            self.items = self.items.saturating_sub(1);
        }
        if let Some(after) = after {
            sum = sum.plus(after);
            self.items = self.items.saturating_add(1);
        }
        match (self.mask & bit != 0, sum == Sum::default()) {
            (true, false) => self.sums[at] = sum,
            (false, false) => {
                self.sums.insert(at, sum);
                self.mask |= bit;
            }
            (true, true) => {
                self.sums.remove(at);
                self.mask &= !bit;
            }
            (false, true) => {}
        }
    }

    /// About how many bytes of memory it takes.
    pub fn memory(&self) -> usize {
        size_of::<Region>() + self.sums.capacity() * size_of::<Sum>()
    }
}

/// The regions of a tree that are not empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    regions: Vec<(u8, Region)>,
}

impl Tree {
    /// A region.
    pub fn region(&self, region: u8) -> Option<&Region> {
        let at = self.regions.binary_search_by_key(&region, |(number, _)| *number).ok()?;
        Some(&self.regions[at].1)
    }

    /// A region, to change; an empty one is made if there is none.
    pub fn region_mut(&mut self, region: u8) -> &mut Region {
        let at = match self.regions.binary_search_by_key(&region, |(number, _)| *number) {
            Ok(at) => at,
            Err(at) => {
                self.regions.insert(at, (region, Region::default()));
                at
            }
        };
        &mut self.regions[at].1
    }

    /// Records in the tree.
    pub fn items(&self) -> u64 {
        self.regions.iter().map(|(_, region)| region.items()).sum()
    }

    /// The sum of a node, but for one below a leaf.
    pub fn sum(&self, node: Node) -> Sum {
        let (first, last) = node.leaves();
        if (first, last) == (0, (1 << LEAF_BITS) - 1) {
            return self
                .regions
                .iter()
                .flat_map(|(_, region)| &region.sums)
                .fold(Sum::default(), |a, b| a.and(*b));
        }
        let of_leaf = |leaf: usize| {
            // A leaf's number has 10 bits, a region's 6.
            let region = (leaf / REGION_LEAVES) as u8;
            self.region(region).map_or(Sum::default(), |region| region.leaf(leaf))
        };
        (first..=last).map(of_leaf).fold(Sum::default(), Sum::and)
    }

    /// About how many bytes of memory it takes.
    pub fn memory(&self) -> usize {
        let regions = self.regions.iter().map(|(_, region)| region.memory() + 8);
        size_of::<Tree>() + regions.sum::<usize>()
    }
}

/// The sums of the children of a node that is a leaf, made from its records.
pub fn buckets(leaf: Node, items: impl Iterator<Item = Item>) -> Vec<Sum> {
    let mut sums = vec![Sum::default(); leaf.fan_out()];
    for item in items {
        let sum = &mut sums[item.bucket() as usize];
        *sum = sum.plus(item);
    }
    sums
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn item(number: u64) -> Item {
        Item::of(&number.to_be_bytes(), Digest([0; 16]))
    }

    fn put(tree: &mut Tree, slot: u16, before: Option<Item>, after: Option<Item>) {
        tree.region_mut(Region::of_slot(slot)).change(slot, before, after);
    }

    fn all_nodes(from: Node) -> Vec<Node> {
        let mut nodes = vec![from];
        if !from.is_leaf() {
            nodes.extend(from.children().flat_map(all_nodes));
        }
        nodes
    }

    proptest! {
        /// Invariants 1 and 2, against a map that is summed up anew.
        #[test]
        fn a_tree_is_that_of_its_records(writes in proptest::collection::vec((0..60u16, 0..5u64), 0..200)) {
            let mut map: BTreeMap<u16, u64> = BTreeMap::new();
            let mut tree = Tree::default();
            for (key, version) in writes {
                // Some slots side by side, some far away.
                let slot = key.wrapping_mul(if key % 2 == 0 { 1 } else { 1_093 });
                let before = map.get(&slot).map(|v| item(u64::from(slot) << 8 | v));
                let after = (version > 0).then(|| item(u64::from(slot) << 8 | version));
                match version {
                    0 => map.remove(&slot),
                    version => map.insert(slot, version),
                };
                put(&mut tree, slot, before, after);
            }
            let mut again = Tree::default();
            for (slot, version) in map.iter().rev() {
                put(&mut again, *slot, None, Some(item(u64::from(*slot) << 8 | version)));
            }
            prop_assert_eq!(tree.items(), map.len() as u64);
            for node in all_nodes(Node::ROOT) {
                prop_assert_eq!(tree.sum(node), again.sum(node), "{:?}", node);
                let (first, last) = node.slots();
                let sum = map.range(first..=last).fold(Sum::default(), |sum, (slot, version)| {
                    sum.plus(item(u64::from(*slot) << 8 | version))
                });
                prop_assert_eq!(tree.sum(node), sum, "{:?}", node);
            }
            prop_assert!(tree.regions.iter().all(|(_, region)| region.is_sound()));
        }
    }

    #[test]
    fn children_are_all_of_their_parent_and_nothing_else() {
        for node in all_nodes(Node::ROOT) {
            let children: Vec<Node> = node.children().collect();
            assert_eq!(children.len(), node.fan_out());
            assert!(children.iter().all(|child| Node::new(child.bits, child.path) == Some(*child)));
            let (first, last) = node.slots();
            if node.is_leaf() {
                assert!(children.iter().all(|child| child.slots() == (first, last)));
                assert!((0..100).map(item).all(|i| children.iter().filter(|c| c.has(i)).count() == 1));
            } else {
                assert_eq!((children[0].slots().0, children[children.len() - 1].slots().1), (first, last));
                assert!(children.windows(2).all(|pair| pair[0].slots().1 + 1 == pair[1].slots().0));
            }
        }
        for (bits, path) in [(1, 0), (4, 16), (10, 1 << 10), (18, 1 << 18), (32, 0), (255, 0)] {
            assert_eq!(Node::new(bits, path), None, "{bits} {path}");
        }
        assert_eq!(Node::new(BUCKET_BITS, 7).expect("a node").children().count(), 0);
    }

    #[test]
    fn a_large_leaf_is_told_apart_by_its_items() {
        let leaf = Node::leaf_of(77);
        let items: Vec<Item> = (0..1_000).map(item).collect();
        let sums = buckets(leaf, items.iter().copied());
        for (child, sum) in leaf.children().zip(&sums) {
            let own = items.iter().filter(|i| child.has(**i)).fold(Sum::default(), |s, i| s.plus(*i));
            assert_eq!(*sum, own);
        }
        let fewer = buckets(leaf, items[1..].iter().copied());
        assert_eq!(sums.iter().zip(&fewer).filter(|(a, b)| a != b).count(), 1);
    }
}
