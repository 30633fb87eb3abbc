//! Inputs to begin with, made by the real encoders: without them no fuzzer gets past the first field.

use std::net::SocketAddr;
use std::path::Path;

use std::time::Duration;

use bytes::Bytes;
use foca::{Codec as _, Header, Member as Told, Message as Word, PostcardCodec};
use prost::Message as _;
use quoral::antientropy::tree::{Node, Salt, Sum};
use quoral::gossip::digest::{NodeReport, NodeState};
use quoral::gossip::identity::Identity;
use quoral::gossip::packet::{Hello, Packet, seal};
use quoral::hinted::queue::{Book, Limits};
use quoral::node::config::Checked;
use quoral::replica::requests::{Entry, Outcome, Print};
use quoral::replica::stored::Line;
use quoral::ring::decree::{Acceptor, Ballot};
use quoral::ring::layout::{ClusterMap, Member, NewKeyspace};
use quoral::ring::partition::Partitions;
use quoral::rpc::{convert, proto, tree_wire};
use quoral::storage::Write;
use quoral::storage::memory::MemoryStorage;
use quoral::storage::schema::{self, open, record_key};
use quoral::types::error::{Cause, Failure};
use quoral::types::ids::{
    Birth, ClusterId, Incarnation, KeyspaceId, MapVersion, NodeId, Nonce, PartitionId, RequestId,
};
use quoral::types::key::Key;
use quoral::types::policy::Conflicts;
use quoral::types::time::WallMs;
use quoral::version::codec::{ClientContext, encode_context, encode_record, sealed_context};
use quoral::version::dvv::{Actor, Context, Dot};
use quoral::version::hlc::Stamp;
use quoral::version::record::{LwwVersion, Payload, Record, Sibling};

use super::bodies::{KEY_TAG, MINTER, joined};

/// Named inputs.
type Seeds = Vec<(&'static str, Vec<u8>)>;

/// The seeds of a target.
pub fn of(target: &str) -> Seeds {
    match target {
        "records" => records(),
        "contexts" => contexts(),
        "hints" => hints(),
        "client_requests" => client_requests(),
        "peer_messages" => peer_messages(),
        "configs" => configs(),
        other => panic!("there are no seeds for {other}"),
    }
}

fn dot(node: u64, birth: u64, counter: u64) -> Dot {
    let incarnation = if NodeId(node) == MINTER.0 { MINTER.1 } else { Incarnation(1) };
    Dot { actor: Actor { node: NodeId(node), incarnation, birth: Birth(birth) }, counter }
}

fn context(dots: &[Dot]) -> Context {
    let mut context = Context::new();
    dots.iter().for_each(|dot| context.insert(*dot));
    context
}

fn sibling(dot: Dot, past: &[Dot], value: &'static str) -> Sibling {
    let payload = if value.is_empty() {
        Payload::Tombstone
    } else {
        Payload::Value(Bytes::from_static(value.as_bytes()))
    };
    let expires_at = (dot.counter == 2).then_some(WallMs(1_700_000_000_000));
    Sibling { dot, past: context(past), request: None, stamp: Stamp(dot.counter << 16), payload, expires_at }
}

fn siblings() -> Record {
    Record::Siblings(vec![
        sibling(dot(1, 1, 2), &[dot(1, 1, 1)], "a"),
        sibling(dot(2, 4, 7), &[dot(3, 1, 1), dot(3, 1, 2), dot(3, 1, 5)], "b"),
    ])
}

fn later_siblings() -> Record {
    Record::Siblings(vec![sibling(dot(3, 1, 6), &[dot(1, 1, 1), dot(1, 1, 2), dot(2, 4, 7)], "")])
}

fn lww(stamp: u64, value: &'static str) -> Record {
    let payload = if value.is_empty() {
        Payload::Tombstone
    } else {
        Payload::Value(Bytes::from_static(value.as_bytes()))
    };
    Record::Lww(LwwVersion { stamp: Stamp(stamp), node: NodeId(2), payload, expires_at: None, request: None })
}

/// The body of a stored value.
fn body(line: Option<Line>, record: &Record) -> Vec<u8> {
    // A mark is an option of three numbers; `replica::stored` puts a checksum around it, the target does too.
    let sealed = quoral::replica::stored::encode(b"key", line, &encode_record(record));
    quoral::storage::schema::open(b"key", &sealed).expect("was just sealed").to_vec()
}

fn records() -> Seeds {
    let line = Line { incarnation: MINTER.1, birth: Birth(1), counter: 2 };
    let pair = |line, own: &Record, other: &Record| joined(&[&body(line, own)], &encode_record(other));
    vec![
        ("lww", pair(None, &lww(5 << 16, "old"), &lww(6 << 16, ""))),
        ("lww-superseded", pair(None, &lww(6 << 16, "new"), &lww(5 << 16, "old"))),
        ("siblings", pair(Some(line), &siblings(), &later_siblings())),
        ("siblings-back", pair(Some(line), &later_siblings(), &siblings())),
        ("two-policies", pair(Some(line), &siblings(), &lww(1 << 16, "x"))),
    ]
}

fn client_context(dots: &[Dot], stamp: u64) -> Vec<u8> {
    encode_context(&ClientContext { key_tag: KEY_TAG, dots: context(dots), stamp: Stamp(stamp) })
}

/// Without its checksum, which the target makes.
fn bare_context(dots: &[Dot], stamp: u64) -> Vec<u8> {
    let mut bytes = client_context(dots, stamp);
    bytes.truncate(bytes.len() - sealed_context(Vec::new()).len());
    bytes
}

fn contexts() -> Seeds {
    let all = bare_context(&[dot(1, 1, 1), dot(1, 1, 2), dot(2, 4, 7), dot(3, 1, 5)], 3 << 16);
    let some = bare_context(&[dot(1, 1, 1), dot(2, 4, 6)], 1 << 16);
    let empty = bare_context(&[], 0);
    vec![
        ("all", joined(&[&all, &some], &encode_record(&siblings()))),
        ("some", joined(&[&some, &all], &encode_record(&siblings()))),
        ("empty", joined(&[&empty, &some], &encode_record(&later_siblings()))),
        ("lww", joined(&[&empty, &empty], &encode_record(&lww(5 << 16, "v")))),
        ("nothing-there", joined(&[&all, &empty], &[])),
        // Names a write that is yet to be made.
        ("never-issued", joined(&[&bare_context(&[dot(1, 1, 1)], 0), &empty], &[])),
    ]
}

/// Bytes, before them the kind and then what stands before the message.
fn of_kind(kind: u8, head: &[u8], message: &[u8]) -> Vec<u8> {
    [&[kind], head, message].concat()
}

fn put() -> proto::PutRequest {
    proto::PutRequest {
        keyspace: "default".into(),
        key: Bytes::from_static(b"key"),
        sort: Bytes::from_static(b"sort"),
        value: Bytes::from_static(b"value"),
        context: client_context(&[dot(1, 1, 1)], 0).into(),
        acks: Some(proto::put_request::Acks::W(2)),
        ttl_ms: 1_000,
        timeout_ms: 500,
        ..Default::default()
    }
}

fn delete() -> proto::DeleteRequest {
    proto::DeleteRequest {
        key: Bytes::from_static(b"key"),
        acks: Some(proto::delete_request::Acks::WLevel(proto::Level::Quorum.into())),
        request_id: Bytes::from_static(b"0123456789abcdef"),
        ..Default::default()
    }
}

fn get() -> proto::GetRequest {
    proto::GetRequest {
        keyspace: "k".into(),
        key: Bytes::from_static(b"key"),
        answers: Some(proto::get_request::Answers::RLevel(proto::Level::All.into())),
        ..Default::default()
    }
}

fn client_requests() -> Seeds {
    let scan = proto::ScanRequest {
        key: Bytes::from_static(b"key"),
        prefix: Bytes::from_static(b"so"),
        start: Bytes::from_static(b"sor"),
        end: Bytes::from_static(b"su"),
        limit: 10,
        reverse: true,
        answers: Some(proto::scan_request::Answers::R(1)),
        ..Default::default()
    };
    let keyspace = proto::CreateKeyspaceRequest {
        name: "carts".into(),
        conflicts: "siblings".into(),
        n: 3,
        r: 2,
        w: 2,
        sloppy: false,
        ttl_ms: 60_000,
    };
    let batch = proto::BatchRequest {
        keyspace: "carts".into(),
        items: vec![
            proto::BatchItem { request: Some(proto::batch_item::Request::Put(put())) },
            proto::BatchItem { request: Some(proto::batch_item::Request::Get(get())) },
            proto::BatchItem { request: Some(proto::batch_item::Request::Delete(delete())) },
            proto::BatchItem::default(),
        ],
        timeout_ms: 100,
    };
    let session = |request| proto::SessionRequest { id: 300, request: Some(request) }.encode_to_vec();
    let (deadline, none) = (joined(&[b"250m"], &[]), joined(&[b""], &[]));
    vec![
        ("put", of_kind(0, &deadline, &put().encode_to_vec())),
        ("put-sloppy", of_kind(0, &none, &proto::PutRequest { sloppy: Some(true), ..put() }.encode_to_vec())),
        ("delete", of_kind(1, &none, &delete().encode_to_vec())),
        ("get", of_kind(2, &deadline, &get().encode_to_vec())),
        ("scan", of_kind(3, &none, &scan.encode_to_vec())),
        (
            "scan-all",
            of_kind(3, &none, &proto::ScanRequest { limit: 5, ..Default::default() }.encode_to_vec()),
        ),
        ("keyspace", of_kind(4, &none, &keyspace.encode_to_vec())),
        ("batch", of_kind(5, &deadline, &batch.encode_to_vec())),
        ("session-put", of_kind(6, &none, &session(proto::session_request::Request::Put(put())))),
        ("session-get", of_kind(6, &none, &session(proto::session_request::Request::Get(get())))),
    ]
}

fn cluster_map() -> ClusterMap {
    let member = |k: u64| Member {
        id: NodeId(k),
        name: format!("n{k}"),
        zone: format!("z{}", k % 2),
        weight: 100,
        address: format!("10.0.0.{k}:7401"),
    };
    let partitions = Partitions::new(16).expect("a power of two");
    let map = ClusterMap::bootstrap("fuzz", partitions, (1..=4).map(member).collect()).expect("valid");
    map.with_keyspace(NewKeyspace::with_defaults("carts", Conflicts::Siblings)).expect("valid")
}

fn operations() -> proto::Operations {
    use proto::operation::Kind;
    let operation = |kind| proto::Operation {
        id: 7,
        keyspace_id: 1,
        key: Bytes::from_static(b"key"),
        sort: Bytes::from_static(b"sort"),
        kind: Some(kind),
        until_us: 12_345_678,
    };
    let page = proto::FetchPage {
        partition: 3,
        from: Some(Bytes::from_static(b"key\0\x01b")),
        after: true,
        to: Some(Bytes::from_static(b"key\0\x01c")),
        including: true,
        reverse: false,
        items: 2,
    };
    let dead = || proto::DeadRecords {
        partition: 3,
        records: vec![proto::DeadRecord {
            suffix: schema::record_suffix(&Key::new(&b"k"[..], &b"s"[..]).expect("valid")).into(),
            digest: Bytes::from_static(&[7; 16]),
        }],
    };
    let tree_node = |prints: &Bytes| tree_wire::node_to_wire(Node::ROOT, prints.clone());
    let salt = Salt::told(7);
    let sums = tree_wire::sums_to_wire(&(0..16).map(|child| child % 3).collect::<Vec<_>>(), salt);
    let prints = tree_wire::prints_to_wire([5, 6], salt);
    let salt = salt.number();
    let forward = |request| proto::Forward { timeout_ms: 100, request: Some(request) };
    let kinds = vec![
        Kind::Store(proto::Store {
            record: encode_record(&siblings()).into(),
            fresh: true,
            hinted_at_ms: 0,
            remember: entry().encode().into(),
            stand_in_for: "00000000000000a2".into(),
            exchange: false,
        }),
        Kind::Fetch(proto::Fetch {
            have: Bytes::from_static(&[7; 16]),
            inspect: false,
            stand_in: true,
            heal: true,
        }),
        Kind::Page(page),
        Kind::Forward(forward(proto::forward::Request::Put(put()))),
        Kind::Forward(forward(proto::forward::Request::Delete(delete()))),
        Kind::Store(proto::Store {
            record: encode_record(&lww(5 << 16, "v")).into(),
            fresh: false,
            hinted_at_ms: 9,
            remember: Bytes::new(),
            stand_in_for: String::new(),
            exchange: true,
        }),
        Kind::FindRequest(proto::FindRequest { request_id: Bytes::from_static(&[7; 16]) }),
        Kind::Hints(true),
        Kind::Ping(true),
        Kind::CompareRoots(proto::CompareRoots {
            roots: vec![proto::TreeRoot {
                partition: 3,
                keyspace_id: 1,
                sum: tree_wire::root_to_wire(Sum(5)),
                items: 1,
            }],
        }),
        Kind::CompareNodes(proto::CompareNodes { partition: 3, nodes: vec![tree_node(&sums)], salt }),
        Kind::CompareItems(proto::CompareItems { partition: 3, nodes: vec![tree_node(&prints)], salt }),
        Kind::FetchItems(proto::FetchItems { partition: 3, nodes: vec![tree_node(&prints)], salt }),
        Kind::HoldDead(dead()),
        Kind::PurgeDead(dead()),
        Kind::RunRepair(proto::RunRepair { run: 7, keyspace_id: Some(1), partition: Some(3) }),
        Kind::Proofs(true),
    ];
    proto::Operations {
        node_id: "00000000000000a1".into(),
        nonce: "00000000000000b1".into(),
        clock: 5 << 16,
        layout_version: 1,
        operations: kinds.into_iter().map(operation).collect(),
        wall_ms: 1_700_000_000_000,
        up_us: 9_000_000,
        believed_ms: 1_700_000_000_000,
    }
}

/// What is remembered of a write.
fn entry() -> Entry {
    let print = Some(Print::of(b"key", &Payload::Tombstone));
    Entry { id: RequestId(7), outcome: Outcome { print, stamp: Stamp(5 << 16), dot: Some(dot(1, 1, 2)) } }
}

/// The bodies of stored hints.
fn hints() -> Seeds {
    let limits = Limits {
        window: Duration::from_secs(60),
        target_bytes: 1 << 20,
        total_bytes: 1 << 20,
        disk_percent: 10,
    };
    let mut book = Book::load(&MemoryStorage::new(), limits).expect("memory can be read");
    let key = Key::new(&b"key"[..], &b"sort"[..]).expect("a key");
    let storage_key = record_key(PartitionId(3), KeyspaceId(1), &key);
    let mut body = |record: &[u8]| {
        let new = book
            .add(WallMs(1_800_000_000_000), NodeId(2), &storage_key, record, false)
            .expect("there is room");
        let Write::Put(key, value) = &new.batch.writes[0] else { panic!("a put") };
        open(key, value).expect("sealed").to_vec()
    };
    vec![("siblings", body(&encode_record(&siblings()))), ("no-record", body(b"junk"))]
}

fn answers() -> proto::Answers {
    use proto::{answer::Kind, fetched, forwarded};
    let fetched = |kind| Kind::Fetched(proto::Fetched { kind: Some(kind) });
    let entry = proto::PageEntry {
        suffix: Bytes::from_static(b"key\0\x01sort"),
        record: encode_record(&lww(1 << 16, "v")).into(),
    };
    let failed = convert::forward_failed(&Failure {
        silent: vec![NodeId(3)],
        ..Failure::early(Cause::Overloaded(std::time::Duration::from_millis(100)))
    });
    let kinds = vec![
        Kind::Stored(true),
        Kind::Superseded(9 << 16),
        fetched(fetched::Kind::Record(encode_record(&siblings()).into())),
        fetched(fetched::Kind::Same(true)),
        Kind::Page(proto::Page { entries: vec![entry], more: true }),
        Kind::Forwarded(proto::Forwarded { kind: Some(forwarded::Kind::Failed(failed)) }),
        Kind::Refused(proto::Refusal { reason: 2, message: "layout version 3".into() }),
    ];
    let answer = |kind| proto::Answer { id: 7, kind: Some(kind) };
    proto::Answers { clock: 6 << 16, answers: kinds.into_iter().map(answer).collect() }
}

fn state() -> NodeState {
    let report = NodeReport {
        map_version: MapVersion(2),
        client_address: "10.0.0.3:7400".into(),
        durability: "always".into(),
        ..NodeReport::default()
    };
    NodeState { node: NodeId(3), nonce: Nonce(3), generation: 9, sequence: 4, leaving: false, report }
}

fn identity(node: u8) -> Identity {
    let address = SocketAddr::from(([10, 0, 0, node], 7401));
    Identity::new(NodeId(node.into()), address, Nonce(3), 1_700_000_000_000)
}

/// A packet of gossip's: a word of one node to another, news of a third, and what that says of itself.
fn gossip(word: Word<Identity>) -> Vec<u8> {
    let header = Header { src: identity(1), src_incarnation: 2, dst: identity(2), message: word };
    let mut bytes = Vec::new();
    PostcardCodec.encode_header(&header, &mut bytes).expect("encodes");
    bytes.extend(1_u16.to_be_bytes());
    PostcardCodec.encode_member(&Told::alive(identity(3)), &mut bytes).expect("encodes");
    let state = state().encode().expect("fits");
    bytes.extend(u16::try_from(state.len()).expect("fits").to_be_bytes());
    bytes.extend(state);
    bytes
}

fn peer_messages() -> Seeds {
    let map = cluster_map().encode();
    let ballot = Ballot { round: 3, node: NodeId(2) };
    let decree = proto::DecreeRequest {
        version: 2,
        ballot_round: 3,
        ballot_node: NodeId(2).to_string(),
        map: map.clone().into(),
        decided: false,
    };
    let mut acceptor = Acceptor::new(MapVersion(2));
    acceptor.handle_prepare(ballot);
    acceptor.handle_accept(ballot, map.clone().into());
    let hello = Packet::Hello(Hello { from: identity(1), age_us: 5, to: identity(2).address });
    vec![
        ("operations", of_kind(0, &[], &operations().encode_to_vec())),
        ("answers", of_kind(1, &[], &answers().encode_to_vec())),
        ("decree", of_kind(2, &[], &decree.encode_to_vec())),
        ("map", of_kind(3, &[], &map)),
        ("acceptor", of_kind(4, &[], &acceptor.encode())),
        ("gossip", of_kind(5, &[], &gossip(Word::Gossip))),
        ("gossip-undead", of_kind(5, &[], &gossip(Word::TurnUndead))),
        ("hello", of_kind(5, &[], &seal(ClusterId(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00), &hello))),
        ("state", of_kind(6, &[], &state().encode().expect("fits"))),
    ]
}

const CONFIG: &str = r#"
[node]
id = "00000000000000a1"
name = "n1"
data_dir = "data"

[bootstrap]
nodes = [
  { id = "00000000000000a1", name = "n1", address = "127.0.0.1:7401" },
  { id = "00000000000000a2", name = "n2", address = "[::1]:7411", zone = "z2", weight = 2 },
]
"#;

fn configs() -> Seeds {
    let none = std::collections::BTreeMap::new();
    let shown = Checked::parse(CONFIG, Path::new("/etc/quoral/q.toml"), &none).expect("is right").render();
    let env = format!("{CONFIG}\0QUORAL_NODE_ZONE=z1\nQUORAL_LIMITS_VALUE_BYTES=4096\n");
    vec![
        ("small", CONFIG.into()),
        ("all", shown.into_bytes()),
        ("env", env.into_bytes()),
        ("wrong", CONFIG.replace("weight = 2", "weight = 0, wieght = \"x\"").into_bytes()),
    ]
}
