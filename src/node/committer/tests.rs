//! What the commit thread refuses.

use super::*;
use crate::node::env::SystemClock;
use crate::ring::keyspaces::{Edit, KeyspaceChange, Next};
use crate::ring::layout::{Member, NewKeyspace};
use crate::ring::partition::Partitions;
use crate::storage::memory::MemoryStorage;
use crate::types::ids::{Incarnation, NodeId, PartitionId};
use crate::types::key::Key;
use crate::types::limits::CLOCK_SKEW_DEFAULT;
use crate::types::policy::Conflicts;
use crate::version::codec;
use crate::version::dvv::Context;
use crate::version::hlc::{Hlc, Stamp};
use crate::version::record::{LwwVersion, Payload};

fn changed(map: &ClusterMap, change: KeyspaceChange) -> ClusterMap {
    match Edit::new(change, None).next(map) {
        Ok(Next::Propose(map, _)) => map,
        other => panic!("{other:?}"),
    }
}

/// A committer without its task, so that a test decides when the jobs that wait are taken.
fn halted(map: ClusterMap) -> (Arc<MemoryStorage>, watch::Sender<Arc<ClusterMap>>, Shared) {
    let (storage, maps) = (Arc::new(MemoryStorage::default()), watch::Sender::new(Arc::new(map)));
    let clock = Hlc::new(Stamp(0), CLOCK_SKEW_DEFAULT);
    let shared = Shared {
        storage: storage.clone(),
        minter: Mutex::new(Minter::new(NodeId(1), Incarnation(1), clock, 0)),
        forest: Mutex::default(),
        unsynced: Mutex::default(),
        synced: watch::Sender::new(0),
        failed: AtomicBool::new(false),
        group_us: AtomicU64::new(0),
        durability: Durability::Always,
        clock: Arc::new(SystemClock::default()),
        metrics: Arc::default(),
        map: maps.subscribe(),
    };
    (storage, maps, shared)
}

/// A mint and an apply of one keyspace, whose outcomes go to a list.
fn jobs(keyspace: u32, outcomes: &Arc<Mutex<Vec<Option<Cause>>>>) -> Vec<Job> {
    let storage_key = |key: &[u8]| {
        let key = Key::new(key.to_vec(), &b""[..]).expect("a valid key");
        schema::record_key(PartitionId(3), KeyspaceId(keyspace), &key)
    };
    let note = |outcomes: &Arc<Mutex<Vec<_>>>, cause| lock(outcomes).push(cause);
    let (minted, applied) = (outcomes.clone(), outcomes.clone());
    let mint = Mint {
        storage_key: storage_key(b"minted"),
        conflicts: Conflicts::Lww,
        payload: Payload::Tombstone,
        seen: Context::new(),
        above: Stamp(0),
        ttl_ms: None,
        request: None,
        stands_in: false,
        until: None,
    };
    let (stamp, node, payload) = (Stamp(5), NodeId(2), Payload::Tombstone);
    let record = Record::Lww(LwwVersion { stamp, node, payload, expires_at: None, request: None });
    let incoming = Incoming {
        storage_key: storage_key(b"applied"),
        bytes: codec::encode_record(&record).into(),
        record: Arc::new(record),
        fresh: true,
        entry: None,
    };
    vec![
        Job::Mint(mint, Box::new(move |done| note(&minted, done.err()))),
        Job::Apply(incoming, Box::new(move |done| note(&applied, done.err()))),
    ]
}

/// A write that waited in the queue while its keyspace was dropped is refused, and leaves nothing behind.
#[test]
fn a_late_write_of_a_dropped_keyspace_is_refused() {
    let (name, zone, address) = ("n1".into(), "z".into(), "n1:7401".into());
    let member = Member { id: NodeId(1), name, zone, weight: 1, address };
    let partitions = Partitions::new(16).expect("a power of two");
    let map = ClusterMap::bootstrap("c", partitions, vec![member]).expect("valid");
    let spec = NewKeyspace::with_defaults("carts", Conflicts::Lww);
    let map = changed(&map, KeyspaceChange::Create(spec));
    let (storage, maps, shared) = halted(map.clone());
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let run = |keyspace| {
        let group = shared.write_group(&mut jobs(keyspace, &outcomes)).expect("not failed");
        shared.sync_group(group);
        (std::mem::take(&mut *lock(&outcomes)), storage.disk_bytes())
    };
    assert_eq!(run(2).0, [None, None]);
    maps.send_replace(Arc::new(changed(&map, KeyspaceChange::Drop("carts".into()))));
    let before = storage.disk_bytes();
    let (refused, after) = run(2);
    assert!(
        refused.iter().all(|cause| matches!(cause, Some(Cause::UnknownKeyspace(_)))) && refused.len() == 2,
        "{refused:?}"
    );
    assert_eq!(after, before);
    assert_eq!(run(1).0, [None, None], "others are written");
    assert_eq!(run(3).0, [None, None], "and those that the map does not know yet");
}
