//! Tests of the cluster map: one map from one list, and no damaged map accepted.

use super::*;
use proptest::prelude::*;

fn member(id: u64) -> Member {
    let zone = format!("z{}", id % 2);
    Member { id: NodeId(id), name: format!("n{id}"), zone, weight: 1, address: format!("10.0.0.{id}:7401") }
}

fn partitions(count: u32) -> Partitions {
    Partitions::new(count).expect("valid")
}

fn boot(ids: &[u64]) -> ClusterMap {
    let nodes = ids.iter().map(|id| member(*id)).collect();
    ClusterMap::bootstrap("test", partitions(16), nodes).expect("valid")
}

#[test]
fn bootstrap_does_not_depend_on_the_order_of_the_list() {
    let map = boot(&[1, 2, 3, 4]);
    assert_eq!(map, boot(&[3, 1, 4, 2]));
    assert_eq!((map.version, map.layout.version), (MapVersion(1), LayoutVersion(1)));
    let mut ids = vec![map.cluster, boot(&[1, 2, 3]).cluster, boot(&[1, 2, 3, 5]).cluster];
    let nodes: Vec<Member> = [1, 2, 3, 4].map(member).into();
    ids.push(ClusterMap::bootstrap("other", partitions(16), nodes.clone()).expect("valid").cluster);
    ids.push(ClusterMap::bootstrap("test", partitions(32), nodes.clone()).expect("valid").cluster);
    for change in 0..3 {
        let mut nodes = nodes.clone();
        match change {
            0 => nodes[0].weight = 2,
            1 => nodes[0].address = "10.0.0.9:7401".into(),
            _ => nodes[0].name = "other".into(),
        }
        ids.push(ClusterMap::bootstrap("test", partitions(16), nodes).expect("valid").cluster);
    }
    let distinct: BTreeSet<ClusterId> = ids.iter().copied().collect();
    assert_eq!(distinct.len(), ids.len(), "any other list is another cluster");
}

/// The placement is part of the format: a release that placed otherwise would be of another cluster.
#[test]
fn bootstrap_is_the_same_in_every_release() {
    assert_eq!(boot(&[1, 2, 3]).cluster.to_string(), "16b9bd6c607fa6714f17fec2f6af60f8");
    assert_eq!(boot(&[1, 2, 3, 4, 5]).cluster.to_string(), "40a5d100029ef02ca7ce135c8731a192");
}

#[test]
fn the_default_keyspace_fits_the_nodes() {
    for (ids, n, majority) in
        [(&[1][..], 1, 1), (&[1, 2], 2, 2), (&[1, 2, 3], 3, 2), (&[1, 2, 3, 4, 5], 3, 2)]
    {
        let map = boot(ids);
        let default = map.keyspace("default").expect("there");
        assert_eq!((default.n, default.r, default.w), (n, majority, majority));
        assert_eq!((default.id, default.conflicts, default.sloppy), (KeyspaceId(1), Conflicts::Lww, false));
        assert_eq!((default.ttl_ms, map.keyspace_by_id(KeyspaceId(1))), (None, Some(default)));
    }
}

#[test]
fn bootstrap_refuses_bad_lists_by_name() {
    let refused = |change: &dyn Fn(&mut Vec<Member>)| {
        let mut nodes: Vec<Member> = [1, 2, 3].map(member).into();
        change(&mut nodes);
        ClusterMap::bootstrap("test", partitions(16), nodes).expect_err("refused").to_string()
    };
    let has = |text: String, parts: &[&str]| {
        assert!(parts.iter().all(|part| text.contains(part)), "{text:?} lacks one of {parts:?}");
    };
    has(refused(&|nodes| nodes.clear()), &["nodes", "empty"]);
    has(refused(&|nodes| nodes[1].id = NodeId(1)), &["nodes", "0000000000000001"]);
    has(refused(&|nodes| nodes[1].name = "n1".into()), &["nodes", "name", "n1"]);
    has(refused(&|nodes| nodes[1].address = "10.0.0.1:7401".into()), &["nodes", "address", "10.0.0.1:7401"]);
    has(refused(&|nodes| nodes[1].name = "a b".into()), &["nodes.name", "a b"]);
    has(refused(&|nodes| nodes[1].zone = String::new()), &["nodes[n2].zone", "empty"]);
    has(refused(&|nodes| nodes[1].weight = 0), &["nodes[n2].weight", "0", "1000"]);
    has(refused(&|nodes| nodes[1].weight = 1_001), &["nodes[n2].weight", "1001", "1000"]);
    for bad in ["", "host", ":1", "h:", "h:0", "h:65536", "h:+1", "a b:1", "::1:1", "[x]:1", "h\n:1"] {
        has(refused(&|nodes| nodes[1].address = bad.into()), &["nodes[n2].address", "host:port"]);
    }
    has(refused(&|nodes| nodes[1].address = "h".repeat(300) + ":1"), &["nodes[n2].address", "260", "302"]);
    let many = |nodes: &mut Vec<Member>| *nodes = (1..=1_001).map(member).collect();
    has(refused(&many), &["nodes", "1001", "1000"]);
    let e = ClusterMap::bootstrap("no/name", partitions(16), vec![member(1)]).expect_err("refused");
    has(e.to_string(), &["cluster", "no/name"]);
    let mut six = member(1);
    six.address = "[::1]:7401".into();
    assert!(ClusterMap::bootstrap("test", partitions(16), vec![six]).is_ok());
}

#[test]
fn members_and_ownership_are_found_by_id() {
    let map = boot(&[1, 2, 3, 4, 9]);
    assert_eq!(map.member(NodeId(9)).map(|member| member.name.as_str()), Some("n9"));
    assert_eq!((map.member(NodeId(8)), map.ownership(NodeId(8))), (None, 0.0));
    let shares: Vec<f64> = [1, 2, 3, 4, 9].map(|id| map.ownership(NodeId(id))).into();
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{shares:?}");
    assert!(shares.iter().all(|share| *share > 0.1), "{shares:?}");
}

#[test]
fn keyspaces_are_added_once() {
    let map = boot(&[1, 2, 3, 4]);
    let spec = NewKeyspace::with_defaults("carts", Conflicts::Siblings);
    let next = map.with_keyspace(spec.clone()).expect("valid");
    assert_eq!((next.version, next.layout.version), (MapVersion(2), LayoutVersion(1)));
    let carts = next.keyspace("carts").expect("there").clone();
    assert_eq!((carts.id, carts.n, carts.r, carts.w), (KeyspaceId(2), 3, 2, 2));
    assert_eq!(next.with_keyspace(spec.clone()), Err(KeyspaceError::Exists(carts)));
    assert_ne!(map.digest(), next.digest());
    let invalid = |change: &dyn Fn(&mut NewKeyspace), field: &str| {
        let mut spec = spec.clone();
        change(&mut spec);
        match map.with_keyspace(spec) {
            Err(KeyspaceError::Invalid(invalid)) => assert_eq!(invalid.field, field),
            other => panic!("{field}: {other:?}"),
        }
    };
    invalid(&|spec| spec.n = Some(5), "n");
    invalid(&|spec| spec.n = Some(0), "n");
    invalid(&|spec| spec.r = Some(4), "r");
    invalid(&|spec| spec.w = Some(0), "w");
    invalid(&|spec| spec.ttl_ms = Some(0), "ttl");
    invalid(&|spec| spec.name = "a/b".into(), "name");
    let sloppy = NewKeyspace { sloppy: true, ttl_ms: Some(5), n: Some(4), ..spec };
    let next = next.with_keyspace(NewKeyspace { name: "s".into(), ..sloppy }).expect("valid");
    let keyspace = next.keyspace_by_id(KeyspaceId(3)).expect("there");
    assert_eq!((keyspace.n, keyspace.r, keyspace.sloppy, keyspace.ttl_ms), (4, 3, true, Some(5)));
}

#[test]
fn only_the_next_map_follows() {
    let map = boot(&[1, 2, 3, 4]);
    let next = map.with_keyspace(NewKeyspace::with_defaults("carts", Conflicts::Lww)).expect("valid");
    assert_eq!(map.check_next(&next), Ok(()));
    let refused = |field: &str, change: &dyn Fn(&mut ClusterMap)| {
        let mut next = next.clone();
        change(&mut next);
        assert_eq!(map.check_next(&next).expect_err(field).field, field);
    };
    refused("map", &|next| next.cluster = ClusterId(1));
    refused("map.version", &|next| next.version = MapVersion(1));
    refused("map.version", &|next| next.version = MapVersion(3));
    refused("map.layout", &|next| next.layout.version = LayoutVersion(2));
    refused("map.layout", &|next| next.layout.members[0].weight = 2);
    refused("map.keyspaces", &|next| next.keyspaces[0].conflicts = Conflicts::Siblings);
    refused("map.keyspaces", &|next| next.keyspaces[0].name = "other".into());
    refused("map", &|next| next.next_keyspace = KeyspaceId(1));
    let changed = |change: &dyn Fn(&mut ClusterMap)| {
        let mut next = next.clone();
        change(&mut next);
        assert_eq!(map.check_next(&next), Ok(()));
    };
    changed(&|next| next.keyspaces[0].sloppy = true);
    changed(&|next| drop(next.keyspaces.remove(0)));
    changed(&|next| (next.layout.version, next.layout.members[0].weight) = (LayoutVersion(2), 2));
    let mut banning = next.clone();
    banning.banned = BTreeSet::from([NodeId(9)]);
    assert_eq!(map.check_next(&banning), Ok(()));
    let after = ClusterMap { version: MapVersion(3), ..next };
    assert_eq!(banning.check_next(&after).expect_err("a ban is for ever").field, "map");
}

#[test]
fn keyspaces_have_a_limit() {
    let mut map = boot(&[1]);
    for index in 1..limits::KEYSPACES_MAX {
        map = map
            .with_keyspace(NewKeyspace::with_defaults(&format!("k{index}"), Conflicts::Lww))
            .expect("valid");
    }
    assert_eq!(ClusterMap::decode(&map.encode()).as_ref(), Ok(&map));
    let e = map.with_keyspace(NewKeyspace::with_defaults("more", Conflicts::Lww)).expect_err("refused");
    assert!(e.to_string().contains("1001") && e.to_string().contains("1000"), "{e}");
}

#[test]
fn decoding_refuses_each_broken_invariant() {
    let map = boot(&[1, 2, 3, 4]);
    assert_eq!(ClusterMap::decode(&map.encode()), Ok(map.clone()));
    let refused = |what: &str, change: &dyn Fn(&mut ClusterMap)| {
        let mut map = map.clone();
        change(&mut map);
        match ClusterMap::decode(&map.encode()) {
            Err(BadMap::Invariant(problem)) => assert!(problem.contains(what), "{what}: {problem}"),
            other => panic!("{what}: {other:?}"),
        }
    };
    refused("sorted", &|map| map.layout.members.swap(0, 1));
    refused("id", &|map| map.layout.members[1].id = NodeId(1));
    refused("weight", &|map| map.layout.members[1].weight = 0);
    refused("banned", &|map| map.banned = BTreeSet::from([NodeId(1)]));
    refused("versions", &|map| map.layout.version = LayoutVersion(0));
    refused("versions", &|map| map.layout.version = LayoutVersion(2));
    refused("owners", &|map| drop(map.layout.owners.pop()));
    refused("owners", &|map| map.layout.owners[3].truncate(3));
    refused("owners", &|map| map.layout.owners[3][0] = 4);
    refused("owners", &|map| map.layout.owners[3][0] = map.layout.owners[3][1]);
    refused("owners", &|map| drop(map.layout.members.pop()));
    refused("never given", &|map| map.next_keyspace = KeyspaceId(1));
    refused("two of one name", &|map| map.keyspaces.push(map.keyspaces[0].clone()));
    refused("n: ", &|map| map.keyspaces[0].n = 5);
    refused("r: ", &|map| map.keyspaces[0].r = 0);
}

#[test]
fn decoding_refuses_other_bytes_by_kind() {
    let bytes = boot(&[1, 2, 3]).encode();
    assert_eq!(ClusterMap::decode(&[]), Err(BadMap::Marker));
    assert_eq!(ClusterMap::decode(b"R\x01"), Err(BadMap::Marker));
    assert_eq!(ClusterMap::decode(b"M\x02"), Err(BadMap::Version(2)));
    for cut in 2..bytes.len() {
        assert!(ClusterMap::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    assert_eq!(ClusterMap::decode(&[&bytes[..], &[0]].concat()), Err(BadMap::Body));
    // The map version 1, written as a two-byte number.
    let at = bytes.windows(2).position(|pair| pair == [1, 16]).expect("version, partitions");
    let longer = [&bytes[..at], &[0x81, 0], &bytes[at + 1..]].concat();
    assert_eq!(ClusterMap::decode(&longer), Err(BadMap::Body), "only one way to write a map");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// What a damaged or hostile encoding decodes to, if anything, keeps the invariants; nothing panics.
    #[test]
    fn hostile_bytes_are_refused_or_valid(
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6),
        junk in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut bytes = boot(&[1, 2, 3]).encode();
        for (at, byte) in changes {
            let at = usize::from(at) % bytes.len();
            bytes[at] = byte;
        }
        for bytes in [bytes, [&[MAP_MARKER, MAP_FORMAT], junk.as_slice()].concat()] {
            if let Ok(map) = ClusterMap::decode(&bytes) {
                prop_assert_eq!(map.encode(), bytes);
                let keyspace = &map.keyspaces.first().cloned();
                for partition in map.partitions.all() {
                    if let Some(keyspace) = keyspace {
                        let list = crate::ring::preflist::preference_list(&map, keyspace, partition);
                        prop_assert_eq!(list.homes.len(), usize::from(keyspace.n));
                        prop_assert_eq!(list.homes.len() + list.fallbacks.len(), map.layout.members.len());
                    }
                }
            }
        }
    }
}
