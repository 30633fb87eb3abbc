//! What each fuzz target does with its input: the same functions that a node runs on bytes from outside.
//!
//! A body takes any bytes, and panics only where the database has a bug. `tests/fuzz_corpora.rs` includes this file
//! too and replays the kept inputs, so that they mean something as long as the formats do.
//!
//! An input that holds more than one thing is cut by [`Parts`]: each part but the last has two bytes of length
//! before it. Checksums are made here, since no fuzzer guesses them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use quoral::antientropy::forest::Place;
use quoral::antientropy::tree::{Salt, Sum};
use quoral::gossip::digest::NodeState;
use quoral::gossip::packet::{self, Packet};
use quoral::hinted::queue;
use quoral::node::config::Checked;
use quoral::node::readings::{page_of_wire, page_to_wire};
use quoral::node::reaper;
use quoral::replica::mint::{self, Mint, Minter};
use quoral::replica::requests::{Entry, Print};
use quoral::replica::{apply, scan, stored};
use quoral::ring::decree::Acceptor;
use quoral::ring::keyspaces::{KeyspaceChange, KeyspaceUpdate};
use quoral::ring::layout::ClusterMap;
use quoral::ring::preflist;
use quoral::rpc::item::{self, Item};
use quoral::rpc::{convert, proto, tree_wire};
use quoral::storage::memory::MemoryStorage;
use quoral::storage::{Batch, Storage as _, schema};
use quoral::types::error::{Applied, Failure};
use quoral::types::ids::{ClusterId, Incarnation, KeyspaceId, NodeId, PartitionId, RequestId};
use quoral::types::key::Key;
use quoral::types::limits;
use quoral::types::policy::{Conflicts, check_name};
use quoral::types::time::WallMs;
use quoral::version::codec;
use quoral::version::dvv::Context;
use quoral::version::hlc::{Hlc, Stamp};
use quoral::version::record::{Payload, Record};
use tonic::metadata::MetadataMap;

/// What a target does with an input.
pub type Body = fn(&[u8]);

/// The targets by name.
pub const TARGETS: [(&str, Body); 6] = [
    ("records", records),
    ("peer_messages", peer_messages),
    ("client_requests", client_requests),
    ("contexts", contexts),
    ("configs", configs),
    ("hints", hints),
];

/// The key that the contexts of corpora are of.
pub const KEY_TAG: u32 = 0x00c0_ffee;
/// The node that mints, and its life.
pub const MINTER: (NodeId, Incarnation) = (NodeId(1), Incarnation(7));

const NOW: WallMs = WallMs(1_800_000_000_000);
const CLUSTER: ClusterId = ClusterId(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00);
const PLACE: (PartitionId, KeyspaceId) = (PartitionId(3), KeyspaceId(1));

/// Cuts an input into parts.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    /// The next part, as long as it says or as there is.
    fn next(&mut self) -> &'a [u8] {
        let Some((length, rest)) = self.0.split_first_chunk::<2>() else {
            return std::mem::take(&mut self.0);
        };
        let (part, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
        self.0 = rest;
        part
    }

    /// The next byte; 0 at the end.
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }
}

/// The input that [`Parts`] cuts into these.
pub fn joined(parts: &[&[u8]], last: &[u8]) -> Vec<u8> {
    let mut input = Vec::new();
    for part in parts {
        let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
        input.extend(length.to_le_bytes());
        input.extend(&part[..length.into()]);
    }
    input.extend(last);
    input
}

fn key() -> (Key, Vec<u8>) {
    let key = Key::new(&b"key"[..], &b"sort"[..]).expect("is valid");
    let storage_key = schema::record_key(PLACE.0, PLACE.1, &key);
    (key, storage_key)
}

fn put(storage: &MemoryStorage, key: &[u8], value: Vec<u8>) {
    let mut batch = Batch::new();
    batch.put(key.to_vec(), value);
    storage.write(&batch).expect("memory takes all");
}

/// Decodes a record, and asks everything of it that a reader does.
fn record(bytes: &[u8]) -> Option<Record> {
    let record = codec::decode_record(bytes).ok()?;
    let again = codec::decode_record(&codec::encode_record(&record));
    assert_eq!(again.as_ref(), Ok(&record), "what was decoded can be stored again");
    assert_eq!(record.problem(), None);
    assert!(record.live(NOW).len() <= record.versions());
    assert!(record.context().is_canonical());
    let _ = (record.stamp(), record.digest(), record.payload_bytes());
    Some(record)
}

/// Stored records: the body of a sealed value (a local mark, then a record), and another record that comes to it.
pub fn records(data: &[u8]) {
    let mut parts = Parts(data);
    let (body, other) = (parts.next(), parts.0);
    let (_, storage_key) = key();
    // Bytes as they are: their checksum is wrong.
    let _ = stored::decode(&storage_key, data);
    let _ = stored::decode(data, body);
    let _ = schema::split_record_key(data);
    let sealed = schema::seal(&storage_key, body);
    let own = stored::decode(&storage_key, &sealed).ok();
    if let Some(own) = &own {
        let bytes = codec::encode_record(&own.record);
        let again = stored::encode(&storage_key, own.line, &bytes);
        assert_eq!(stored::decode(&storage_key, &again).as_ref(), Ok(own));
        let _ = record(&bytes);
    }
    let Some(incoming) = record(other) else { return };
    if let Some(own) = &own {
        for (mine, theirs) in [(&own.record, &incoming), (&incoming, &own.record)] {
            let mut merged = mine.clone();
            let Ok(changed) = merged.merge(theirs) else { continue };
            assert_eq!(merged.problem(), None, "of sound records comes a sound one");
            assert!(changed || merged == *mine);
            let _ = record(&codec::encode_record(&merged));
        }
    }
    // And so as a node does it, over whatever is stored.
    for fresh in [false, true] {
        let storage = MemoryStorage::new();
        put(&storage, &storage_key, sealed.clone());
        if let Ok(apply::Applied { outcome: apply::Outcome::Changed(batch), .. }) =
            apply::apply(&storage, &storage_key, &incoming, other, fresh)
        {
            storage.write(&batch).expect("memory takes all");
            assert!(stored::load(&storage, &storage_key).is_ok(), "what was merged can be read");
        }
    }
}

/// Contexts as clients send them: two of one key, and what a write with one of them does to a record.
pub fn contexts(data: &[u8]) {
    let mut parts = Parts(data);
    let (first, second, stored_bytes) = (parts.next(), parts.next(), parts.0);
    let decode = |bytes: &[u8]| {
        let context = codec::decode_context(&codec::sealed_context(bytes.to_vec()), KEY_TAG).ok()?;
        let encoded = codec::encode_context(&context);
        assert_eq!(codec::decode_context(&encoded, KEY_TAG).as_ref(), Ok(&context));
        assert!(codec::decode_context(&encoded, KEY_TAG + 1).is_err(), "of another key");
        Some(context)
    };
    let (first, second) = (decode(first), decode(second));
    let Some(seen) = &first else { return };
    if let Some(second) = &second {
        let (mut a, mut b) = (seen.dots.clone(), second.dots.clone());
        a.join(&second.dots);
        b.join(&seen.dots);
        assert_eq!(a, b, "joining has no order");
        assert!(a.is_canonical());
        covers_all(&a, &seen.dots);
        covers_all(&a, &second.dots);
    }
    for dot in seen.dots.dots() {
        let mut more = second.as_ref().map(|second| second.dots.clone()).unwrap_or_default();
        more.insert(*dot);
        assert!(more.covers(dot) && more.is_canonical());
        assert!(more.top(&dot.actor) >= dot.counter);
    }
    write_with(seen, stored_bytes);
}

/// The bodies of stored hints, under a checksum that is right.
pub fn hints(data: &[u8]) {
    let (target, storage) = (NodeId(2), MemoryStorage::new());
    let key = schema::hint_key(target, 7);
    let mut batch = Batch::new();
    batch.put(key.clone(), schema::seal(&key, data));
    storage.write(&batch).expect("memory takes all");
    let page = queue::page(&storage, target, 0, 10, 1_000).expect("memory can be read");
    assert_eq!(page.hints.len() + page.damaged.len(), 1, "it is found, or found to be damaged");
    assert_eq!(queue::oldest(&storage, target), Ok(Some(7)));
    for hint in page.hints {
        let _ = (schema::split_record_key(&hint.storage_key), codec::decode_record(&hint.record));
    }
}

fn covers_all(whole: &Context, part: &Context) {
    assert!(part.dots().iter().all(|dot| whole.covers(dot)));
    assert!(part.vector().iter().all(|(actor, top)| whole.top(actor) >= *top));
}

/// A put and a delete, minted with `seen` over a record that came from elsewhere (or over nothing).
fn write_with(seen: &codec::ClientContext, held: &[u8]) {
    let (_, storage_key) = key();
    let storage = MemoryStorage::new();
    let held = codec::decode_record(held).ok();
    if let Some(held) = &held {
        put(&storage, &storage_key, stored::encode(&storage_key, None, &codec::encode_record(held)));
    }
    let clock = Hlc::new(Stamp(0), Duration::from_secs(1));
    let mut minter = Minter::new(MINTER.0, MINTER.1, clock, 0);
    for payload in [Payload::Value(Bytes::from_static(b"v")), Payload::Tombstone] {
        let write = Mint {
            storage_key: storage_key.clone(),
            conflicts: held.as_ref().map_or(Conflicts::Siblings, Record::conflicts),
            payload: payload.clone(),
            seen: seen.dots.clone(),
            above: seen.stamp,
            ttl_ms: Some(seen.stamp.0),
            stands_in: false,
            until: None,
            request: seen.dots.requests().keys().next().map(|id| {
                let id = RequestId(id.0.wrapping_add(1));
                (id, Print::of(&storage_key, &payload))
            }),
        };
        let Ok(minted) = mint::mint(&storage, &mut minter, NOW, &write) else { continue };
        storage.write(&minted.batch).expect("memory takes all");
        let now = stored::load(&storage, &storage_key).expect("what was minted can be read");
        let now = now.expect("it was written").record;
        let holds = match &now {
            Record::Lww(version) => version.stamp == minted.stamp && version.payload == payload,
            Record::Siblings(set) => {
                set.iter().any(|sibling| Some(sibling.dot) == minted.dot && sibling.payload == payload)
            }
        };
        assert!(holds, "a write that was acknowledged is there");
        assert_eq!(codec::decode_record(&minted.record).as_ref(), Ok(&now), "as it is sent");
    }
}

/// A failure as a client sees it; a request that breaks a rule changes nothing.
fn refused(failure: &Failure) {
    assert_eq!(failure.applied, Applied::No);
    let status = convert::status(failure);
    assert_eq!(status.code(), convert::code(failure));
    let _ = convert::failure_of_forward(convert::forward_failed(failure));
}

/// What clients send: a kind, gRPC's own deadline, then the message.
pub fn client_requests(data: &[u8]) {
    let mut parts = Parts(data);
    let kind = parts.byte();
    let (deadline, message) = (parts.next(), parts.0);
    let mut metadata = MetadataMap::new();
    if let Ok(text) = tonic::metadata::MetadataValue::try_from(deadline) {
        metadata.insert("grpc-timeout", text);
    }
    let timeout = match kind % 7 {
        0 => {
            let Ok(message) = proto::PutRequest::decode(message) else { return };
            let value_limit = limits::VALUE_BYTES_DEFAULT;
            write(convert::put_request(message, &metadata, value_limit))
        }
        1 => {
            let Ok(message) = proto::DeleteRequest::decode(message) else { return };
            write(convert::delete_request(message, &metadata))
        }
        2 => {
            let Ok(message) = proto::GetRequest::decode(message) else { return };
            match convert::get_request(message, &metadata) {
                Ok(get) => {
                    a_key(&get.keyspace, &get.key);
                    level(get.r);
                    Some(get.timeout)
                }
                Err(failure) => {
                    refused(&failure);
                    None
                }
            }
        }
        3 => {
            let Ok(message) = proto::ScanRequest::decode(message) else { return };
            match convert::scan_request(message, &metadata) {
                Ok(scan) => {
                    assert_eq!(check_name("keyspace", &scan.keyspace), Ok(()));
                    assert!(scan.partition_key.is_some() || (scan.prefix.is_empty() && !scan.reverse));
                    level(scan.r);
                    Some(scan.timeout)
                }
                Err(failure) => {
                    refused(&failure);
                    None
                }
            }
        }
        5 => {
            let Ok(message) = proto::BatchRequest::decode(message) else { return };
            let count = message.items.len();
            match item::batch_request(message, &metadata, limits::VALUE_BYTES_DEFAULT) {
                Ok(batch) => {
                    assert_eq!(batch.items.len(), count);
                    batch.items.into_iter().for_each(one);
                    Some(batch.timeout)
                }
                Err(failure) => {
                    refused(&failure);
                    None
                }
            }
        }
        6 => {
            let Ok(message) = proto::SessionRequest::decode(message) else { return };
            one(item::session_item(message.request, limits::VALUE_BYTES_DEFAULT));
            None
        }
        _ => {
            // The bytes of a creation are an update too, of other fields.
            if let Ok(message) = proto::UpdateKeyspaceRequest::decode(message) {
                match convert::keyspace_update(message) {
                    Ok(KeyspaceChange::Update(name, update)) => {
                        assert_eq!(check_name("name", &name), Ok(()));
                        assert_ne!(update, KeyspaceUpdate::default());
                    }
                    Ok(other) => panic!("an update became {other:?}"),
                    Err(invalid) => refused(&invalid.into()),
                }
            }
            let Ok(message) = proto::CreateKeyspaceRequest::decode(message) else { return };
            match convert::new_keyspace(message) {
                Ok(spec) => assert_eq!(check_name("name", &spec.name), Ok(())),
                Err(invalid) => refused(&invalid.into()),
            }
            None
        }
    };
    assert!(timeout.is_none_or(|timeout| timeout <= limits::TIMEOUT_MAX));
}

/// One request of a batch or a session.
fn one(request: Result<Item, Failure>) {
    match request {
        Ok(Item::Write(request)) => drop(write(Ok(request))),
        Ok(Item::Get(get)) => {
            a_key(&get.keyspace, &get.key);
            level(get.r);
            assert!(get.timeout <= limits::TIMEOUT_MAX);
        }
        Err(failure) => {
            refused(&failure);
            let error = item::request_error(&failure);
            assert_eq!(error.code, convert::code(&failure) as u32);
        }
    }
}

fn write(request: Result<quoral::rpc::requests::WriteRequest, Failure>) -> Option<Duration> {
    match request {
        Ok(write) => {
            a_key(&write.keyspace, &write.key);
            level(write.w);
            assert!(write.context.len() <= limits::CONTEXT_BYTES);
            assert!(write.payload.bytes() <= limits::VALUE_BYTES_DEFAULT);
            let _ = codec::decode_context(&write.context, KEY_TAG);
            Some(write.timeout)
        }
        Err(failure) => {
            refused(&failure);
            None
        }
    }
}

/// A valid key: it comes back from storage as it went in.
fn a_key(keyspace: &str, key: &Key) {
    assert_eq!(check_name("keyspace", keyspace), Ok(()));
    let storage_key = schema::record_key(PLACE.0, PLACE.1, key);
    assert_eq!(schema::split_record_key(&storage_key).as_ref(), Some(&(PLACE.0, PLACE.1, key.clone())));
}

fn level(level: Option<quoral::types::policy::Level>) {
    for n in 1..=limits::N_MAX {
        let resolved = level.map(|level| level.resolve("level", n));
        assert!(!matches!(resolved, Some(Ok(count)) if count == 0 || count > n));
    }
}

/// What peers send: operations and their answers, decrees, cluster maps, votes, and gossip.
pub fn peer_messages(data: &[u8]) {
    let mut parts = Parts(data);
    let kind = parts.byte();
    let message = parts.0;
    match kind % 7 {
        0 => {
            let Ok(message) = proto::Operations::decode(message) else { return };
            let _ = message.node_id.parse::<NodeId>();
            message.operations.into_iter().for_each(operation);
        }
        1 => {
            let Ok(message) = proto::Answers::decode(message) else { return };
            message.answers.into_iter().for_each(answer);
        }
        2 => {
            let Ok(message) = proto::DecreeRequest::decode(message) else { return };
            let _ = message.ballot_node.parse::<NodeId>();
            map(&message.map);
        }
        3 => map(message),
        4 => {
            let Ok(acceptor) = Acceptor::decode(message) else { return };
            assert_eq!(Acceptor::decode(&acceptor.encode()).map(|a| a.encode()), Ok(acceptor.encode()));
        }
        5 => gossip(message),
        _ => {
            let _ = proto::HelloRequest::decode(message).map(|hello| hello.node_id.parse::<NodeId>());
            let Ok(state) = NodeState::decode(message) else { return };
            let encoded = state.encode().expect("what was decoded can be sent on");
            assert_eq!(NodeState::decode(&encoded), Ok(state));
        }
    }
}

fn operation(operation: proto::Operation) {
    use proto::{forward::Request, operation::Kind};
    let key = Key::new(operation.key, operation.sort);
    if let Ok(key) = &key {
        a_key("default", key);
    }
    match operation.kind {
        Some(Kind::Store(store)) => {
            if let Some(entry) = Entry::decode(&store.remember) {
                assert_eq!(Entry::decode(&entry.encode()), Some(entry));
            }
            drop(record(&store.record));
        }
        Some(Kind::FindRequest(find)) => {
            if let Ok(id) = convert::request_id(&find.request_id) {
                assert_eq!(convert::request_id_bytes(id), find.request_id);
            }
        }
        Some(Kind::Page(message)) => page(operation.keyspace_id, message),
        Some(Kind::Forward(forward)) => {
            let metadata = MetadataMap::new();
            let timeout = match forward.request {
                Some(Request::Put(put)) => {
                    write(convert::put_request(put, &metadata, limits::VALUE_BYTES_DEFAULT))
                }
                Some(Request::Delete(delete)) => write(convert::delete_request(delete, &metadata)),
                None => None,
            };
            assert!(timeout.is_none_or(|timeout| timeout <= limits::TIMEOUT_MAX));
        }
        Some(Kind::CompareRoots(roots)) => {
            for root in roots.roots {
                if let Some(sum) = tree_wire::root_of_wire(&root.sum).filter(|sum| *sum != Sum::default()) {
                    assert_eq!(tree_wire::root_to_wire(sum), root.sum);
                }
            }
        }
        Some(Kind::CompareNodes(proto::CompareNodes { nodes, salt, .. }))
        | Some(Kind::CompareItems(proto::CompareItems { nodes, salt, .. }))
        | Some(Kind::FetchItems(proto::FetchItems { nodes, salt, .. })) => {
            nodes.iter().for_each(|node| tree_node(node, Salt::told(salt)));
        }
        Some(Kind::HoldDead(dead) | Kind::PurgeDead(dead)) => {
            let place = Place { partition: PLACE.0, keyspace: PLACE.1 };
            if let Ok(records) = reaper::records_of_wire(place, &dead) {
                assert!(records.iter().all(|(key, _)| schema::split_record_key(key).is_some()));
            }
        }
        Some(Kind::Fetch(_) | Kind::Hints(_) | Kind::Ping(_) | Kind::RunRepair(_) | Kind::Proofs(_))
        | None => {}
    }
}

fn tree_node(wired: &proto::TreeNode, salt: Salt) {
    if let Some(prints) = tree_wire::prints_of_wire(&wired.prints, salt) {
        assert_eq!(tree_wire::prints_to_wire(prints, salt), wired.prints);
    }
    let Some(node) = tree_wire::node_of_wire(wired) else { return };
    assert!(node.slots().0 <= node.slots().1);
    let children = tree_wire::children_of_mask(node, &wired.prints);
    assert!(children.is_none_or(|children| children.len() <= node.fan_out()));
    if let Some(sums) = tree_wire::sums_of_wire(node, &wired.prints, salt) {
        assert_eq!(sums.len(), node.fan_out());
        let again = tree_wire::sums_to_wire(&sums, salt);
        assert_eq!(tree_wire::sums_of_wire(node, &again, salt), Some(sums));
    }
}

/// A page of three records, whatever range is asked for.
fn page(keyspace: u32, message: proto::FetchPage) {
    let Some(request) = page_of_wire(keyspace, message) else { return };
    assert_eq!(page_of_wire(keyspace, page_to_wire(&request)).as_ref().map(|r| &r.from), Some(&request.from));
    let storage = MemoryStorage::new();
    for sort in [&b""[..], b"b", b"c\xff"] {
        let key = Key::new(&b"key"[..], sort).expect("is valid");
        let at = schema::record_key(request.partition, request.keyspace, &key);
        put(&storage, &at, stored::encode(&at, None, b"anything"));
    }
    let page = scan::page(&storage, &request).expect("nothing is damaged");
    assert!(page.entries.len() <= request.items.clamp(1, limits::SCAN_PAGE_ITEMS));
    for (suffix, _) in &page.entries {
        assert!(schema::split_suffix(suffix).is_some());
        let inside = match &request.from {
            Bound::Included(from) => suffix >= from,
            Bound::Excluded(from) => suffix > from,
            Bound::Unbounded => true,
        };
        assert!(inside, "behind where the page begins");
    }
}

fn answer(answer: proto::Answer) {
    use proto::{answer::Kind, fetched, forwarded};
    match answer.kind {
        Some(Kind::Fetched(proto::Fetched { kind: Some(fetched::Kind::Record(bytes)) })) => {
            drop(record(&bytes));
        }
        Some(Kind::Items(compared)) => {
            for list in &compared.lists {
                for salt in [Salt::WIDE, Salt::told(7)] {
                    let Some(compared) = tree_wire::list_of_wire(list, salt) else { continue };
                    let again = tree_wire::list_to_wire(&compared, salt);
                    assert_eq!(tree_wire::list_of_wire(&again, salt), Some(compared));
                }
            }
        }
        Some(Kind::Page(page) | Kind::Records(page)) => {
            for entry in page.entries {
                let _ = record(&entry.record);
                let Some(key) = schema::split_suffix(&entry.suffix) else { continue };
                assert_eq!(schema::record_suffix(&key), entry.suffix, "a key has one form only");
            }
        }
        Some(Kind::Forwarded(proto::Forwarded { kind: Some(forwarded::Kind::Failed(failed)) })) => {
            let failure = convert::failure_of_forward(failed);
            let again = convert::failure_of_forward(convert::forward_failed(&failure));
            assert_eq!(again.applied, failure.applied, "however far it is forwarded");
            assert_eq!(convert::code(&again), convert::code(&failure));
            let _ = convert::status(&failure);
        }
        _ => {}
    }
}

/// A cluster map, and everything that a node asks of one.
fn map(bytes: &[u8]) {
    let Ok(map) = ClusterMap::decode(bytes) else { return };
    assert_eq!(map.encode(), bytes, "a map has one form only");
    assert!(map.check_next(&map).is_err());
    let _ = (map.digest(), map.layout.placement(), convert::layout_response(&map));
    for member in &map.layout.members {
        assert!(map.ownership(member.id) <= 1.0);
    }
    for keyspace in &map.keyspaces {
        for partition in map.partitions.all().take(8) {
            let homes = preflist::homes(&map, keyspace, partition);
            assert_eq!(homes.len(), usize::from(keyspace.n).min(map.layout.members.len()));
            let _ = preflist::preference_list(&map, keyspace, partition).annotated(|_| true);
        }
    }
}

/// A datagram: as it is, and as the body of an envelope that is right.
fn gossip(data: &[u8]) {
    let _ = packet::open(CLUSTER, data);
    let _ = packet::inspect(data);
    let body = &data[..data.len().min(packet::FOCA_BYTES)];
    let sealed = packet::seal(CLUSTER, &Packet::Foca(body));
    assert_eq!(packet::open(CLUSTER, &sealed), Ok(Packet::Foca(body)));
}

/// A configuration file; behind a byte 0 lines of `NAME=value`: environment variables.
pub fn configs(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (text, lines) = text.split_once('\0').unwrap_or((&text, ""));
    let env: BTreeMap<String, String> =
        lines.lines().filter_map(|line| line.split_once('=')).map(|(n, v)| (n.into(), v.into())).collect();
    let file = Path::new("/etc/quoral/q.toml");
    let _ = Checked::defaults(&env);
    match Checked::parse(text, file, &env) {
        Ok(checked) => {
            // What a node says that its configuration is, means just that.
            let shown = checked.render();
            let again = Checked::parse(&shown, file, &BTreeMap::new());
            let again = again.unwrap_or_else(|error| panic!("{error}\nin:\n{shown}"));
            // What it shows is what follows from what is given: the addresses to tell others are given then.
            let mut given = checked.config;
            given.listen.advertise_client = Some(given.listen.advertised_client());
            given.listen.advertise_peer = Some(given.listen.advertised_peer());
            assert_eq!(again.config, given, "{shown}");
        }
        Err(error) => {
            assert!(!error.problems.is_empty());
            let _ = error.to_string();
        }
    }
}
