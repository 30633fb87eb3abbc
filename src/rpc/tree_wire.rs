//! Nodes, sums and lists of Merkle trees as they travel.

use bytes::Bytes;

use super::proto;
use crate::antientropy::exchange::{Extra, ItemsCompared};
use crate::antientropy::tree::{Node, Salt, Sum};
use crate::version::hlc::Stamp;

/// A node with what is told of it.
pub fn node_to_wire(node: Node, prints: Bytes) -> proto::TreeNode {
    proto::TreeNode { bits: node.bits().into(), path: node.path(), prints }
}

/// The node; none if there is no such node.
pub fn node_of_wire(node: &proto::TreeNode) -> Option<Node> {
    Node::new(u8::try_from(node.bits).ok()?, node.path)
}

/// A root's sum: nothing for an empty tree.
pub fn root_to_wire(sum: Sum) -> Bytes {
    match sum == Sum::default() {
        true => Bytes::new(),
        false => Bytes::copy_from_slice(&sum.0.to_be_bytes()),
    }
}

/// A root's sum; none if it can't be one.
pub fn root_of_wire(bytes: &[u8]) -> Option<Sum> {
    match bytes {
        [] => Some(Sum::default()),
        bytes => bytes.try_into().ok().map(|bytes| Sum(u128::from_be_bytes(bytes))),
    }
}

/// The last bytes of each, as many as the salt says.
pub fn prints_to_wire(prints: impl IntoIterator<Item = u64>, salt: Salt) -> Bytes {
    let mut out = Vec::new();
    prints.into_iter().for_each(|print| out.extend_from_slice(&print.to_be_bytes()[8 - salt.width()..]));
    out.into()
}

fn print_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |print, byte| print << 8 | u64::from(*byte))
}

/// Takes back [`prints_to_wire`]; none if some bytes are left over.
pub fn prints_of_wire(bytes: &[u8], salt: Salt) -> Option<Vec<u64>> {
    let prints = bytes.chunks_exact(salt.width());
    prints.remainder().is_empty().then(|| prints.map(print_of).collect())
}

/// A bit for each of `count`.
pub fn mask_to_wire(count: usize, is_set: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut mask = vec![0; count.div_ceil(8)];
    for at in (0..count).filter(|at| is_set(*at)) {
        mask[at / 8] |= 1 << (at % 8);
    }
    mask
}

fn bit(mask: &[u8], at: usize) -> bool {
    mask.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1)
}

/// The children of a node that a mask names; none if the mask is of another length.
pub fn children_of_mask(node: Node, mask: &[u8]) -> Option<Vec<Node>> {
    (mask.len() == node.fan_out().div_ceil(8)).then(|| {
        node.children().enumerate().filter(|(at, _)| bit(mask, *at)).map(|(_, child)| child).collect()
    })
}

/// The short sums of a node's children: which are not 0, then those.
pub fn sums_to_wire(sums: &[u64], salt: Salt) -> Bytes {
    let mut out = mask_to_wire(sums.len(), |at| sums[at] != 0);
    out.extend(prints_to_wire(sums.iter().copied().filter(|sum| *sum != 0), salt));
    out.into()
}

/// Takes back [`sums_to_wire`]; none if it is not that of a node's children.
pub fn sums_of_wire(node: Node, bytes: &[u8], salt: Salt) -> Option<Vec<u64>> {
    let (mask, sums) = bytes.split_at_checked(node.fan_out().div_ceil(8))?;
    let mut sums = prints_of_wire(sums, salt)?.into_iter();
    let all = (0..node.fan_out()).map(|at| if bit(mask, at) { sums.next() } else { Some(0) });
    let all: Option<Vec<u64>> = all.collect();
    all.filter(|_| sums.next().is_none())
}

/// What a list lacks and has beyond.
pub fn list_to_wire(compared: &ItemsCompared, salt: Salt) -> proto::ListCompared {
    let mut extra = Vec::with_capacity(compared.extra.len() * (salt.width() + 8));
    for one in &compared.extra {
        extra.extend(prints_to_wire([one.key], salt));
        extra.extend(one.stamp.0.to_be_bytes());
    }
    let listed = compared.lacking.last().map_or(0, |last| last + 1);
    let lacking = mask_to_wire(listed, |at| compared.lacking.binary_search(&at).is_ok());
    proto::ListCompared { extra: extra.into(), lacking: lacking.into(), whole: compared.whole }
}

/// Takes back [`list_to_wire`]; none if it is not that.
pub fn list_of_wire(list: &proto::ListCompared, salt: Salt) -> Option<ItemsCompared> {
    let extra = list.extra.chunks_exact(salt.width() + 8);
    let is_even = extra.remainder().is_empty();
    let extra = extra.map(|one| {
        let (key, stamp) = one.split_at(salt.width());
        Extra { key: print_of(key), stamp: Stamp(print_of(stamp)) }
    });
    let lacking = (0..list.lacking.len() * 8).filter(|at| bit(&list.lacking, *at)).collect();
    is_even.then(|| ItemsCompared { extra: extra.collect(), lacking, whole: list.whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_travels_arrives() {
        [Salt::WIDE, Salt::drawn(7 << 32)].into_iter().for_each(travels);
    }

    fn travels(salt: Salt) {
        let node = Node::new(4, 3).expect("a node");
        assert_eq!(node_of_wire(&node_to_wire(node, Bytes::new())), Some(node));
        let sums: Vec<u64> = (0..16).map(|at| if at % 3 == 0 { at + 1 } else { 0 }).collect();
        let wire = sums_to_wire(&sums, salt);
        assert_eq!(wire.len(), 2 + 6 * salt.width());
        assert_eq!(sums_of_wire(node, &wire, salt), Some(sums));
        for bad in
            [&wire[..1], &wire[..wire.len() - 1], &wire[..wire.len() - 8], &[&wire[..], &[0; 8]].concat()]
        {
            assert_eq!(sums_of_wire(node, bad, salt), None);
        }
        let mask = mask_to_wire(16, |at| at == 2 || at == 15);
        let children = children_of_mask(node, &mask).expect("16 bits");
        assert_eq!(children.iter().map(|child| child.path()).collect::<Vec<_>>(), [3 << 4 | 2, 3 << 4 | 15]);
        assert_eq!(children_of_mask(node, &mask[..1]), None);
        let extra = vec![Extra { key: 2, stamp: Stamp(3) }, Extra { key: 9, stamp: Stamp(u64::MAX) }];
        for lacking in [vec![], vec![0], vec![4, 5, 17]] {
            let compared = ItemsCompared { extra: extra.clone(), lacking, whole: true };
            assert_eq!(list_of_wire(&list_to_wire(&compared, salt), salt), Some(compared.clone()));
            let mut bad = list_to_wire(&compared, salt);
            bad.extra = bad.extra.slice(..bad.extra.len() - 1);
            assert_eq!(list_of_wire(&bad, salt), None);
        }
        for sum in [Sum::default(), Sum(7)] {
            assert_eq!(root_of_wire(&root_to_wire(sum)), Some(sum));
        }
        assert_eq!(root_of_wire(&[1]), None);
    }
}
