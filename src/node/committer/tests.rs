//! What the commit thread refuses.

use super::*;
use crate::antientropy::forest::Place;
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
        quarantine: Mutex::default(),
        suspects: Mutex::default(),
        suspected: Notify::new(),
        renewed: Mutex::default(),
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

/// What is in the tree is what can be read, before and after a damaged record is set aside and healed; and what comes
/// meanwhile is in what is restored.
#[test]
fn a_damaged_record_leaves_the_tree_and_comes_back_with_its_healing() {
    let (name, zone, address) = ("n1".into(), "z".into(), "n1:7401".into());
    let member = Member { id: NodeId(1), name, zone, weight: 1, address };
    let partitions = Partitions::new(16).expect("a power of two");
    let (storage, _maps, shared) =
        halted(ClusterMap::bootstrap("c", partitions, vec![member]).expect("valid"));
    let key = Key::new(&b"k"[..], &b""[..]).expect("a valid key");
    let place = Place { partition: PartitionId(3), keyspace: KeyspaceId(1) };
    let storage_key = schema::record_key(place.partition, place.keyspace, &key);
    let lww = |stamp| {
        let (stamp, node, payload) = (Stamp(stamp), NodeId(2), Payload::Tombstone);
        Record::Lww(LwwVersion { stamp, node, payload, expires_at: None, request: None })
    };
    let run = |job: Job| {
        let group = shared.write_group(&mut vec![job]).expect("not failed");
        shared.sync_group(group);
    };
    let apply = |record: Record, fresh| {
        let bytes = codec::encode_record(&record).into();
        let incoming = Incoming {
            storage_key: storage_key.clone(),
            bytes,
            record: Arc::new(record),
            fresh,
            entry: None,
        };
        let (send, receive) = std::sync::mpsc::channel();
        run(Job::Apply(incoming, Box::new(move |done| drop(send.send(done)))));
        receive.recv().expect("answered")
    };
    let root = || {
        run(Job::Tend(false, Box::new(|_| {})));
        lock(&shared.forest).root(place)
    };
    let tree_of = |record: &Record| {
        let item = crate::antientropy::tree::Item::of(&storage_key, record.digest());
        Some((crate::antientropy::tree::Sum::default().plus(item), 1))
    };
    apply(lww(5), true).expect("applied");
    assert_eq!(root(), tree_of(&lww(5)));
    let mut batch = Batch::new();
    batch.put(storage_key.clone(), &b"junk"[..]);
    storage.write(&batch).expect("written");
    assert!(matches!(apply(lww(9), true), Err(Cause::Storage(_))), "a fresh write");
    assert_eq!(lock(&shared.suspects).len(), 1);
    apply(lww(4), false).expect("a repair");
    assert!(matches!(stored::load(&*storage, &storage_key), Err(LoadError::Damaged(_))));
    assert!(lock(&shared.renewed).is_empty(), "it did not wait yet");
    for (stamp, fresh) in [(9, true), (8, false)] {
        assert_eq!(apply(lww(stamp), fresh).is_ok(), !fresh);
        assert_eq!(std::mem::take(&mut *lock(&shared.renewed)).len(), 1, "there is a version somewhere");
    }
    assert_eq!(root(), Some((Default::default(), 0)));
    assert_eq!((shared.metrics.scrub.quarantined.get(), shared.metrics.scrub.damaged.get()), (1, 1));
    let restore = |held: Vec<Record>| {
        let (send, receive) = std::sync::mpsc::channel();
        run(Job::Restore(storage_key.clone(), held, Box::new(move |done| drop(send.send(done)))));
        receive.recv().expect("answered").expect("restored")
    };
    assert_eq!(restore(vec![lww(3), lww(6)]), Restored::Healed);
    assert_eq!(root(), tree_of(&lww(8)));
    let found = stored::load(&*storage, &storage_key).expect("readable").expect("there");
    assert_eq!((found.record, found.line), (lww(8), None));
    assert_eq!((shared.metrics.scrub.healed.get(), shared.metrics.scrub.damaged.get()), (1, 0));
    assert_eq!(restore(vec![lww(9)]), Restored::NotDamaged);
    assert_eq!(root(), tree_of(&lww(8)), "nothing is changed any more");
}

/// A new write replaces a damaged record where it supersedes whatever that was: the only copy, of an `lww` keyspace.
#[test]
fn a_new_write_replaces_a_damaged_only_copy_and_no_other() {
    let member = |id: u64| {
        let (name, zone, address) = (format!("n{id}"), format!("z{id}"), format!("n{id}:7401"));
        Member { id: NodeId(id), name, zone, weight: 1, address }
    };
    let partitions = Partitions::new(16).expect("a power of two");
    for (nodes, conflicts, is_replaced) in
        [(1, Conflicts::Lww, true), (1, Conflicts::Siblings, false), (3, Conflicts::Lww, false)]
    {
        let map = ClusterMap::bootstrap("c", partitions, (1..=nodes).map(member).collect()).expect("valid");
        let (storage, _maps, shared) = halted(map);
        let outcomes = Arc::default();
        let Some(Job::Mint(mint, _)) = jobs(1, &outcomes).into_iter().next() else { panic!("a mint") };
        let mint = Mint { conflicts, ..mint };
        let write = || {
            let (send, receive) = std::sync::mpsc::channel();
            let job = Job::Mint(mint.clone(), Box::new(move |done| drop(send.send(done))));
            let group = shared.write_group(&mut vec![job]).expect("not failed");
            shared.sync_group(group);
            receive.recv().expect("answered")
        };
        let first = write().expect("minted");
        let mut batch = Batch::new();
        batch.put(mint.storage_key.clone(), &b"junk"[..]);
        storage.write(&batch).expect("written");
        let second = write();
        assert_eq!(second.is_ok(), is_replaced, "{nodes} {conflicts}: {second:?}");
        let found = stored::load(&*storage, &mint.storage_key);
        let Ok(second) = second else {
            assert!(matches!(found, Err(LoadError::Damaged(_))), "{nodes} {conflicts}: {found:?}");
            continue;
        };
        assert_eq!(codec::encode_record(&found.expect("sound").expect("there").record), second.record);
        assert!(second.stamp > first.stamp);
        let scrub = &shared.metrics.scrub;
        assert_eq!((scrub.quarantined.get(), scrub.damaged.get(), scrub.healed.get()), (1, 0, 0));
        let mut whys = Vec::new();
        crate::replica::quarantine::visit(&*storage, &mut |_, entry| whys.push(entry.expect("sound").why))
            .expect("read");
        assert!(whys.len() == 1 && whys[0].ends_with("; a new write replaced it"), "{whys:?}");
    }
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
