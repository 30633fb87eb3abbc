//! The client computes where a key lives as the server does: checked against the server's own code, and against
//! numbers that other clients can be checked against too.

use quoral::ring::partition::Partitions;
use quoral::types::key::Position;
use quoral_client::route::{partition, position};

#[test]
fn positions_and_partitions_are_the_servers() {
    let long = |n: u32| n.to_be_bytes().repeat(1 + n as usize % 256);
    let keys: Vec<Vec<u8>> = (0..1_000).map(long).chain([vec![0], vec![255; 1_024]]).collect();
    for keyspace in ["default", "carts", "a-rather-long-name-of-a-keyspace"] {
        for key in &keys {
            let theirs = Position::of(keyspace, key);
            assert_eq!(position(keyspace, key), theirs.0);
            for count in [16, 256, 65_536] {
                let their_partition = Partitions::new(count).expect("valid").of(theirs).0;
                assert_eq!(partition(theirs.0, count as usize), Some(their_partition.into()));
            }
        }
    }
}

#[test]
fn positions_are_these() {
    let known = [
        ("default", "cart:42", 0x8c41_2124_f7d5_8774),
        ("carts", "cart:42", 0xc9ea_4b61_6ef4_a0e1),
        ("default", "\u{1f6d2}", 0x4fac_d02e_a843_c649),
    ];
    for (keyspace, key, expected) in known {
        let is = position(keyspace, key.as_bytes());
        assert_eq!(is, expected, "{keyspace} {key}: {is:#018x}");
    }
}
