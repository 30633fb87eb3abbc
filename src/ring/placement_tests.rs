//! Tests of placement: against fair shares and against an independent search for the least cost.

use std::collections::VecDeque;

use proptest::prelude::*;

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

#[test]
fn a_placement_does_not_depend_on_the_order_of_the_nodes() {
    let nodes = wanted(&[(1, 3, 0), (2, 1, 1), (3, 2, 2), (4, 1, 0)]);
    let reversed: Vec<Wanted> = nodes.iter().rev().cloned().collect();
    assert_eq!(place(None, &nodes, q(64), 4), place(None, &reversed, q(64), 4));
}

#[test]
fn nothing_moves_if_nothing_changes() {
    let nodes = wanted(&[(1, 3, 0), (2, 1, 1), (3, 2, 2), (4, 1, 0), (5, 7, 1)]);
    let placement = place(None, &nodes, q(256), 5).expect("placed");
    let again = place(Some(&placement), &nodes, q(256), 5).expect("placed");
    assert_eq!(again.owners, placement.owners, "not even their order");
}

#[test]
fn equal_nodes_share_every_prefix_evenly() {
    let nodes: Vec<Wanted> =
        (1..=10).map(|id| Wanted { id: NodeId(id), zone: "z".into(), weight: 1 }).collect();
    let placement = place(None, &nodes, q(256), 10).expect("placed");
    for k in 1..=10 {
        let share = 256.0 * k as f64 / 10.0;
        for load in placement.loads(k) {
            assert!((f64::from(load) - share).abs() <= 2.0, "{k}: {load} of {share}");
        }
    }
}

/// If a node dies, the others should take over its partitions in equal parts.
#[test]
fn each_node_shares_partitions_with_every_other() {
    let nodes: Vec<Wanted> =
        (1..=8).map(|id| Wanted { id: NodeId(id), zone: "z".into(), weight: 1 }).collect();
    let placement = place(None, &nodes, q(256), 3).expect("placed");
    let mut together = [[0u32; 8]; 8];
    for owners in &placement.owners {
        for a in owners {
            owners.iter().for_each(|b| together[usize::from(*a)][usize::from(*b)] += 1);
        }
    }
    // 96 replicas each, with two partners each, over 7 others: 27 on average.
    for (a, row) in together.iter().enumerate() {
        for (b, count) in row.iter().enumerate().filter(|(b, _)| *b != a) {
            assert!((12..=45).contains(count), "{a} and {b}: {count}");
        }
    }
}

#[test]
fn wishes_that_cannot_be_met_are_explained() {
    let notes = |nodes: &[(u64, u32, u16)], n| place(None, &wanted(nodes), q(64), n).expect("placed").notes;
    assert_eq!(notes(&[(1, 1, 0), (2, 1, 1), (3, 1, 2), (4, 1, 3)], 3), Vec::<String>::new());
    let got = notes(&[(1, 1, 0), (2, 1, 1), (3, 1, 0)], 3).join("\n");
    assert!(got.contains("not enough zones: 3 replicas in 2 zones"), "{got}");
    let got = notes(&[(1, 9, 0), (2, 1, 1), (3, 1, 2), (4, 1, 3)], 3).join("\n");
    assert!(got.contains("node 0000000000000001: weight 9 asks for 144 replicas, it gets 64"), "{got}");
    assert!(got.contains("it already owns a replica of every partition"), "{got}");
    let got = notes(&[(1, 1, 0), (2, 1, 0), (3, 1, 0), (4, 1, 1), (5, 1, 2)], 3).join("\n");
    assert!(got.contains("zone z0 owns at most one replica of a partition"), "{got}");
    assert!(got.contains("each of the 3 zones keeps a replica of every partition"), "{got}");
}

#[test]
fn bad_requests_are_refused_by_name() {
    let nodes = wanted(&[(1, 1, 0), (2, 1, 0)]);
    let refused = |old: Option<&Placement>, nodes: &[Wanted], n| {
        place(old, nodes, q(16), n).expect_err("refused").to_string()
    };
    assert!(refused(None, &[], 1).contains("nodes: must not be empty"));
    assert!(refused(None, &nodes, 0).contains("n: is 0"));
    assert!(refused(None, &nodes, 3).contains("n: is 3, must be from 1 to 2"));
    assert!(refused(None, &[nodes[0].clone(), nodes[0].clone()], 1).contains("twice"));
    assert!(refused(None, &wanted(&[(1, 0, 0)]), 1).contains("weight: is 0"));
    let many: Vec<Wanted> = wanted(&(1..=20).map(|id| (id, 1, 0)).collect::<Vec<_>>());
    assert!(refused(None, &many, 16).contains("n: is 16, must be from 1 to 15"));
    let other = place(None, &nodes, q(32), 2).expect("placed");
    assert!(refused(Some(&other), &nodes, 2).contains("old: is not a placement of 16 partitions"));
}

/// Once, bounds were widened in the middle of a search, and a partition was left one owner short.
#[test]
fn lists_are_complete_where_the_bounds_cannot_be_met() {
    let mut nodes = wanted(&[(1, 2, 0), (2, 1, 2), (3, 1, 1), (4, 5, 2), (5, 1, 2), (6, 4, 1), (7, 5, 0)]);
    let mut placement = place(None, &nodes, q(16), 4).expect("placed");
    for (kind, which, weight, zone) in [(3, 6, 1, 2), (4, 2, 6, 0), (1, 0, 1, 0)] {
        nodes = change(&nodes, kind, which, weight, zone);
        placement = place(Some(&placement), &nodes, q(16), 4).expect("placed");
        assert_good(&placement, &nodes, q(16), 4);
    }
}

/// The fewest moves that lead from `old` to a placement within the bounds, by a textbook search on the
/// whole network: source, partitions, zones of a partition, nodes, sink.
fn least_moves(old: &Placement, nodes: &[Wanted], partitions: Partitions, n: usize) -> i64 {
    /// Outweighs all moves: the price paid for each unit that must flow.
    const MUST: i64 = 1_000_000;
    let wanted: BTreeMap<NodeId, &Wanted> = nodes.iter().map(|node| (node.id, node)).collect();
    let field = Field::new(Some(old), &wanted, partitions);
    let (count, zones, m) = (partitions.count() as usize, field.zone_names.len(), field.zones.len());
    let (source, sink) = (0, 1 + count * (1 + zones) + m);
    let partition = |p: usize| 1 + p;
    let zone = |p: usize, z: usize| 1 + count + p * zones + z;
    let node = |i: usize| 1 + count * (1 + zones) + i;
    // From, to, capacity, cost; each edge is followed by its reverse.
    let mut edges: Vec<(usize, usize, i64, i64)> = Vec::new();
    let mut add = |from: usize, to: usize, capacity: i64, cost: i64| {
        edges.extend([(from, to, capacity, cost), (to, from, 0, -cost)])
    };
    let mut must = 0;
    for p in 0..count {
        add(source, partition(p), n as i64, 0);
        for z in 0..zones {
            add(partition(p), zone(p, z), 1, if n > zones { -MUST } else { 0 });
            must += if n > zones { MUST } else { 0 };
            add(partition(p), zone(p, z), n.saturating_sub(zones) as i64, 0);
        }
        for i in 0..m {
            let kept = field.old[p].iter().take(n).any(|owner| *owner == Some(i as u16));
            add(zone(p, field.zones[i].into()), node(i), 1, if kept { 0 } else { 1 });
        }
    }
    for (i, share) in field.shares(n).into_iter().enumerate() {
        add(node(i), sink, share.floor().into(), -MUST);
        must += MUST * i64::from(share.floor());
        add(node(i), sink, (share.ceil() - share.floor()).into(), 0);
    }
    let mut out: Vec<Vec<usize>> = vec![Vec::new(); sink + 1];
    edges.iter().enumerate().for_each(|(index, edge)| out[edge.0].push(index));
    let (mut flow, mut cost) = (0, 0);
    loop {
        let mut distance = vec![i64::MAX; sink + 1];
        let mut before = vec![usize::MAX; sink + 1];
        distance[source] = 0;
        let mut queue = VecDeque::from([source]);
        while let Some(at) = queue.pop_front() {
            for index in &out[at] {
                let (_, to, capacity, cost) = edges[*index];
                if capacity > 0 && distance[at] + cost < distance[to] {
                    distance[to] = distance[at] + cost;
                    before[to] = *index;
                    queue.push_back(to);
                }
            }
        }
        if distance[sink] == i64::MAX {
            break;
        }
        let mut at = sink;
        while at != source {
            edges[before[at]].2 -= 1;
            edges[before[at] ^ 1].2 += 1;
            at = edges[before[at]].0;
        }
        flow += 1;
        cost += distance[sink];
    }
    assert_eq!(flow, n * count, "the bounds can be met");
    cost + must
}

/// What an operator may do to a cluster.
fn change(nodes: &[Wanted], kind: u8, which: usize, weight: u32, zone: u16) -> Vec<Wanted> {
    let mut nodes = nodes.to_vec();
    let at = which % nodes.len();
    match kind {
        0 => nodes.push(Wanted { id: NodeId(100), zone: format!("z{zone}"), weight }),
        1 if nodes.len() > 1 => drop(nodes.remove(at)),
        2 => nodes[at].id = NodeId(50),
        3 => nodes[at].zone = format!("z{zone}"),
        _ => nodes[at].weight = weight,
    }
    nodes
}

fn any_nodes(most: usize, weights: u32, zones: u16) -> impl Strategy<Value = Vec<Wanted>> {
    proptest::collection::vec((1..=weights, 0..zones), 1..=most).prop_map(|nodes| {
        let numbered = nodes.into_iter().zip(1..).map(|((weight, zone), id)| (id, weight, zone));
        wanted(&numbered.collect::<Vec<_>>())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Any nodes, weights and zones; then a chain of changes. Each step is good, and moves the least.
    #[test]
    fn every_change_is_balanced_and_moves_the_least(
        nodes in prop_oneof![any_nodes(8, 6, 4), any_nodes(8, 1_000, 3)],
        changes in proptest::collection::vec((0u8..5, 0usize..8, 1u32..7, 0u16..4), 1..4),
        n in 1usize..9,
    ) {
        let partitions = q(16);
        let mut nodes = nodes;
        let n_now = n.min(nodes.len());
        let mut placement = place(None, &nodes, partitions, n_now as u8).expect("placed");
        assert_good(&placement, &nodes, partitions, n_now);
        for (kind, which, weight, zone) in changes {
            nodes = change(&nodes, kind, which, weight, zone);
            let mut ids = BTreeSet::new();
            nodes.retain(|node| ids.insert(node.id));
            let n = n.min(nodes.len());
            let next = place(Some(&placement), &nodes, partitions, n as u8).expect("placed");
            assert_good(&next, &nodes, partitions, n);
            let exact = n.min(EXACT);
            let least = least_moves(&placement, &nodes, partitions, exact);
            prop_assert_eq!(next.moves(&placement, exact) as i64, least);
            placement = next;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// More nodes, any weights, more partitions.
    #[test]
    fn larger_clusters_move_the_least(
        nodes in any_nodes(12, 1_000, 5),
        (kind, which, weight, zone) in (0u8..5, 0usize..12, 1u32..1_000, 0u16..5),
        bits in 5u32..=7,
    ) {
        step_of_a_cluster(&nodes, &change(&nodes, kind, which, weight, zone), q(1 << bits));
    }
}

/// Places three replicas on `before`, then on `after`, with the least moves.
fn step_of_a_cluster(before: &[Wanted], after: &[Wanted], partitions: Partitions) {
    let n = before.len().min(3);
    let placement = place(None, before, partitions, n as u8).expect("placed");
    assert_good(&placement, before, partitions, n);
    let n = after.len().min(3);
    let next = place(Some(&placement), after, partitions, n as u8).expect("placed");
    assert_good(&next, after, partitions, n);
    assert_eq!(next.moves(&placement, n) as i64, least_moves(&placement, after, partitions, n));
}

/// Equal nodes in one zone: a newcomer gets its share and nothing else moves; a leaver's share moves.
#[test]
fn joins_and_leaves_move_one_share() {
    for (count, m) in [(256, 3), (256, 9), (1_024, 5), (1_024, 11)] {
        let nodes: Vec<Wanted> = wanted(&(1..=m + 1).map(|id| (id, 1, 0)).collect::<Vec<_>>());
        let fewer = &nodes[..m as usize];
        let small = place(None, fewer, q(count), 3).expect("placed");
        let large = place(Some(&small), &nodes, q(count), 3).expect("placed");
        assert_good(&large, &nodes, q(count), 3);
        let share = 3 * count as usize / nodes.len();
        assert!((share..=share + 1).contains(&large.moves(&small, 3)), "join: {}", large.moves(&small, 3));
        let back = place(Some(&large), fewer, q(count), 3).expect("placed");
        assert_good(&back, fewer, q(count), 3);
        assert!((share..=share + 1).contains(&back.moves(&large, 3)), "leave: {}", back.moves(&large, 3));
    }
}

#[test]
#[ignore = "minutes in a debug build"]
fn many_partitions_move_the_least() {
    let nodes = wanted(&(1..=12).map(|id| (id, 1 + 7 * id as u32 % 11, (id % 4) as u16)).collect::<Vec<_>>());
    for kind in 0..5 {
        step_of_a_cluster(&nodes, &change(&nodes, kind, 5, 9, 1), q(1_024));
    }
}

#[test]
#[ignore = "seconds in a release build, minutes in a debug build"]
fn large_clusters_are_placed_well() {
    for (count, m) in [(65_536, 10), (65_536, 3), (1_024, 100)] {
        let nodes = wanted(&(1..=m).map(|id| (id, 1, (id % 4) as u16)).collect::<Vec<_>>());
        let placement = place(None, &nodes, q(count), m.min(15) as u8).expect("placed");
        assert_good(&placement, &nodes, q(count), m.min(15) as usize);
    }
}
