//! Tests of placement: against fair shares and against an independent search for the least cost.

use super::*;

fn q(count: u32) -> Partitions {
    Partitions::new(count).expect("valid")
}

fn wanted(nodes: &[(u64, u32, u16)]) -> Vec<Wanted> {
    nodes
        .iter()
        .map(|(id, weight, zone)| Wanted { id: NodeId(*id), zone: format!("z{zone}"), weight: *weight })
        .collect()
}

fn fair(nodes: &[Wanted], partitions: Partitions, n: usize) -> Vec<f64> {
    let wanted: BTreeMap<NodeId, &Wanted> = nodes.iter().map(|node| (node.id, node)).collect();
    Field::new(None, &wanted, partitions).shares(n).into_iter().map(Share::value).collect()
}

fn zones_of(placement: &Placement, nodes: &[Wanted], owners: &[u16]) -> BTreeSet<String> {
    let zone = |id: NodeId| nodes.iter().find(|node| node.id == id).expect("wanted").zone.clone();
    owners.iter().map(|node| zone(placement.nodes[usize::from(*node)])).collect()
}

/// Distinct owners, zones spread in every prefix, and loads within one of the fair share for the exact prefix.
fn assert_good(placement: &Placement, nodes: &[Wanted], partitions: Partitions, n: usize) {
    let zone_count = nodes.iter().map(|node| &node.zone).collect::<BTreeSet<_>>().len();
    assert_eq!(placement.owners.len(), partitions.count() as usize);
    for owners in &placement.owners {
        assert_eq!(owners.len(), n);
        assert_eq!(owners.iter().collect::<BTreeSet<_>>().len(), n, "distinct: {owners:?}");
        for k in 1..=n {
            assert_eq!(zones_of(placement, nodes, &owners[..k]).len(), k.min(zone_count), "{k}: {owners:?}");
        }
    }
    let exact = n.min(EXACT);
    for (node, share) in fair(nodes, partitions, exact).into_iter().enumerate() {
        let load = f64::from(placement.loads(exact)[node]);
        assert!((load - share).abs() < 1.0, "node {node}: {load} of {share}");
    }
}

#[test]
fn three_nodes_all_own_all_and_share_the_primaries() {
    let nodes = wanted(&[(1, 1, 0), (2, 1, 0), (3, 1, 0)]);
    let placement = place(None, &nodes, q(256), 3).expect("placed");
    assert_good(&placement, &nodes, q(256), 3);
    assert!(placement.loads(1).iter().all(|load| (85..=86).contains(load)), "{:?}", placement.loads(1));
    assert!(placement.loads(2).iter().all(|load| (170..=171).contains(load)), "{:?}", placement.loads(2));
}
