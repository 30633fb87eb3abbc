//! Nodes, sums and lists of Merkle trees as they travel.

use bytes::Bytes;

use super::proto;
use crate::antientropy::exchange::{Extra, ItemsCompared};
use crate::antientropy::tree::{Node, Sum};
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

/// 8 bytes each.
pub fn prints_to_wire(prints: impl IntoIterator<Item = u64>) -> Bytes {
    prints.into_iter().flat_map(u64::to_be_bytes).collect()
}

/// 8 bytes each; none if some are left over.
pub fn prints_of_wire(bytes: &[u8]) -> Option<Vec<u64>> {
    let (prints, rest) = bytes.as_chunks::<8>();
    rest.is_empty().then(|| prints.iter().map(|print| u64::from_be_bytes(*print)).collect())
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
pub fn sums_to_wire(sums: &[u64]) -> Bytes {
    let mut out = mask_to_wire(sums.len(), |at| sums[at] != 0);
    out.extend(sums.iter().filter(|sum| **sum != 0).flat_map(|sum| sum.to_be_bytes()));
    out.into()
}

/// Takes back [`sums_to_wire`]; none if it is not that of a node's children.
pub fn sums_of_wire(node: Node, bytes: &[u8]) -> Option<Vec<u64>> {
    let (mask, sums) = bytes.split_at_checked(node.fan_out().div_ceil(8))?;
    let mut sums = prints_of_wire(sums)?.into_iter();
    let all = (0..node.fan_out()).map(|at| if bit(mask, at) { sums.next() } else { Some(0) });
    let all: Option<Vec<u64>> = all.collect();
    all.filter(|_| sums.next().is_none())
}

/// What a list lacks and has beyond.
pub fn list_to_wire(compared: &ItemsCompared) -> proto::ListCompared {
    let extra = compared.extra.iter().flat_map(|extra| [extra.item, extra.key, extra.stamp.0]);
    proto::ListCompared {
        extra: prints_to_wire(extra),
        lacking: prints_to_wire(compared.lacking.iter().copied()),
        whole: compared.whole,
    }
}

/// Takes back [`list_to_wire`]; none if it is not that.
pub fn list_of_wire(list: &proto::ListCompared) -> Option<ItemsCompared> {
    let extra = prints_of_wire(&list.extra)?;
    let (extra, rest) = extra.as_chunks::<3>();
    let extra = extra.iter().map(|[item, key, stamp]| Extra { item: *item, key: *key, stamp: Stamp(*stamp) });
    let lacking = prints_of_wire(&list.lacking)?;
    rest.is_empty().then(|| ItemsCompared { extra: extra.collect(), lacking, whole: list.whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_travels_arrives() {
        let node = Node::new(4, 3).expect("a node");
        assert_eq!(node_of_wire(&node_to_wire(node, Bytes::new())), Some(node));
        let sums: Vec<u64> = (0..16).map(|at| if at % 3 == 0 { at + 1 } else { 0 }).collect();
        let wire = sums_to_wire(&sums);
        assert_eq!(wire.len(), 2 + 6 * 8);
        assert_eq!(sums_of_wire(node, &wire), Some(sums));
        for bad in
            [&wire[..1], &wire[..wire.len() - 1], &wire[..wire.len() - 8], &[&wire[..], &[0; 8]].concat()]
        {
            assert_eq!(sums_of_wire(node, bad), None);
        }
        let mask = mask_to_wire(16, |at| at == 2 || at == 15);
        let children = children_of_mask(node, &mask).expect("16 bits");
        assert_eq!(children.iter().map(|child| child.path()).collect::<Vec<_>>(), [3 << 4 | 2, 3 << 4 | 15]);
        assert_eq!(children_of_mask(node, &mask[..1]), None);
        let extra = vec![Extra { item: 1, key: 2, stamp: Stamp(3) }];
        let compared = ItemsCompared { extra, lacking: vec![4, 5], whole: true };
        assert_eq!(list_of_wire(&list_to_wire(&compared)), Some(compared.clone()));
        let mut bad = list_to_wire(&compared);
        bad.extra = bad.extra.slice(..16);
        assert_eq!(list_of_wire(&bad), None);
        for sum in [Sum::default(), Sum(7)] {
            assert_eq!(root_of_wire(&root_to_wire(sum)), Some(sum));
        }
        assert_eq!(root_of_wire(&[1]), None);
    }
}
