//! What strangers and mistaken clients send: each gets the right answer, and the node goes on.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use bytes::Bytes;
use quoral::rpc::proto::{self, cluster_client::ClusterClient};
use quoral::types::limits;
use tonic::codegen::http;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::{Service as _, ServiceExt as _};

use crate::client::{self, Kv, assert_refused, bytes, get, get_r, kv, put};
use crate::cluster::{Cluster, alone, eventually, http_get};

/// Bytes that look like chance and are the same in each run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("small")
    }
}

/// That the cluster still serves, through each node, with all replicas.
async fn check_serves(cluster: &mut Cluster, what: &str) {
    for node in &cluster.nodes {
        let mut kv = kv(node.client);
        let request = proto::PutRequest {
            acks: Some(proto::put_request::Acks::W(3)),
            ..put(format!("after {what}"), node.name.clone())
        };
        kv.put(request).await.unwrap_or_else(|e| panic!("after {what}, put through {}: {e:?}", node.name));
        let answer = kv.get(get_r(format!("after {what}"), 3)).await;
        let answer = answer.unwrap_or_else(|e| panic!("after {what}, get through {}: {e:?}", node.name));
        assert_eq!(client::values(answer.get_ref()), [node.name.as_str()], "after {what}");
        assert_eq!(node.ready(), Ok(()), "after {what}");
    }
    cluster.check();
}

async fn put_error(kv: &Kv, request: proto::PutRequest) -> Status {
    let text = format!("key of {} bytes, value of {}", request.key.len(), request.value.len());
    kv.clone().put(request).await.expect_err(&text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_over_a_limit_name_it() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let kv = kv(cluster.nodes[0].client);
    let long = |length: usize| vec![b'k'; length];
    let invalid = Code::InvalidArgument;

    let e = put_error(&kv, put(long(1_025), "v")).await;
    assert_refused(&e, invalid, &["key", "1025", "1024"]);
    let e = put_error(&kv, put("", "v")).await;
    assert_refused(&e, invalid, &["key", "1 byte"]);
    let e = put_error(&kv, proto::PutRequest { sort: bytes(long(1_025)), ..put("k", "v") }).await;
    assert_refused(&e, invalid, &["sort", "1025", "1024"]);
    let e = put_error(&kv, put("k", long((1 << 20) + 1))).await;
    assert_refused(&e, invalid, &["value", "1048577", "1048576"]);
    // Over what the node's own messages may hold: refused before it is read.
    let e = put_error(&kv, put("k", long(40 << 20))).await;
    assert_refused(&e, invalid, &["message", &(40 << 20).to_string()[..3], &(32 << 20).to_string()]);
    let e = kv.clone().get(get(long(1_025))).await.expect_err("long");
    assert_refused(&e, invalid, &["key", "1025", "1024"]);
    let e = kv.clone().get(get("")).await.expect_err("empty");
    assert_refused(&e, invalid, &["key", "1 byte"]);
    let delete = proto::DeleteRequest { key: bytes(long(1_025)), ..Default::default() };
    assert_refused(&kv.clone().delete(delete).await.expect_err("long"), invalid, &["key", "1025", "1024"]);
    // What is just allowed is served.
    let full = proto::PutRequest { sort: bytes(long(1_024)), ..put(long(1_024), long(1 << 20)) };
    kv.clone().put(full).await.expect("at the limits");

    // Acknowledgements and answers.
    for (w, parts) in [
        (4, ["w", "4", "3"]),
        (0, ["w", "0", "1"]),
        (300, ["w", "300", "3"]),
        (u32::MAX, ["w", "4294967295", "3"]),
    ] {
        let request = proto::PutRequest { acks: Some(proto::put_request::Acks::W(w)), ..put("k", "v") };
        assert_refused(&put_error(&kv, request).await, invalid, &parts);
        let request = proto::DeleteRequest {
            key: bytes("k"),
            acks: Some(proto::delete_request::Acks::W(w)),
            ..Default::default()
        };
        assert_refused(&kv.clone().delete(request).await.expect_err("w"), invalid, &parts);
        let e = kv.clone().get(get_r("k", w)).await.expect_err("r");
        assert_refused(&e, invalid, &["r", parts[1], parts[2]]);
    }
    let request = proto::PutRequest { acks: Some(proto::put_request::Acks::WLevel(77)), ..put("k", "v") };
    assert_refused(&put_error(&kv, request).await, invalid, &["w", "77"]);

    // Keyspaces.
    let request = proto::PutRequest { keyspace: "nosuch".into(), ..put("k", "v") };
    assert_refused(&put_error(&kv, request).await, Code::NotFound, &["keyspace", "nosuch"]);
    let e = kv.clone().get(proto::GetRequest { keyspace: "nosuch".into(), ..get("k") }).await;
    assert_refused(&e.expect_err("unknown"), Code::NotFound, &["keyspace", "nosuch"]);
    for (name, part) in [("a b", "' '"), ("x/y", "'/'"), ("ümlaut", "ü"), (&"x".repeat(65), "64")] {
        let request = proto::PutRequest { keyspace: name.into(), ..put("k", "v") };
        assert_refused(&put_error(&kv, request).await, invalid, &["keyspace", part]);
    }
    // Identifiers of requests.
    let request = proto::PutRequest { request_id: bytes([1; 3]), ..put("k", "v") };
    assert_refused(&put_error(&kv, request).await, invalid, &["request_id", "3", "16"]);

    // Scans.
    let scan = |request: proto::ScanRequest| {
        let mut kv = kv.clone();
        async move { kv.scan(request).await.map(drop).expect_err("a bad scan") }
    };
    let of = |key: &str| proto::ScanRequest { key: bytes(key), ..Default::default() };
    let e = scan(proto::ScanRequest { prefix: bytes("p"), ..of("") }).await;
    assert_refused(&e, invalid, &["prefix", "key"]);
    let e = scan(proto::ScanRequest { reverse: true, ..of("") }).await;
    assert_refused(&e, invalid, &["reverse"]);
    let e = scan(proto::ScanRequest { start: bytes(long(1_025)), ..of("k") }).await;
    assert_refused(&e, invalid, &["start", "1025", "1024"]);
    let e = scan(proto::ScanRequest { cursor: bytes("not a cursor"), ..of("k") }).await;
    assert_refused(&e, invalid, &["cursor"]);
    let e = scan(proto::ScanRequest { answers: Some(proto::scan_request::Answers::R(4)), ..of("k") }).await;
    assert_refused(&e, invalid, &["r", "4", "3"]);
    let e = scan(of(&"k".repeat(1_025))).await;
    assert_refused(&e, invalid, &["key", "1025", "1024"]);

    check_serves(&mut cluster, "bad requests").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_keyspaces_are_refused() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let mut admin = ClusterClient::new(client::channel(cluster.nodes[0].client));
    let new = |name: &str| proto::CreateKeyspaceRequest { name: name.into(), ..Default::default() };
    let long = "x".repeat(65);
    let cases: Vec<(proto::CreateKeyspaceRequest, Vec<&str>)> = vec![
        (new(""), vec!["name"]),
        (new("a b"), vec!["name", "' '"]),
        (new("a/b"), vec!["name", "'/'"]),
        (new("a\0b"), vec!["name"]),
        (new(&long), vec!["name", "64", "65"]),
        (
            proto::CreateKeyspaceRequest { conflicts: "newest".into(), ..new("k") },
            vec!["conflicts", "newest"],
        ),
        (proto::CreateKeyspaceRequest { n: 4, ..new("k") }, vec!["n", "4", "3"]),
        (proto::CreateKeyspaceRequest { n: 16, ..new("k") }, vec!["n", "16", "15"]),
        (proto::CreateKeyspaceRequest { n: 70_000, ..new("k") }, vec!["n", "70000", "15"]),
        (proto::CreateKeyspaceRequest { n: 2, r: 3, ..new("k") }, vec!["r", "3", "2"]),
        (proto::CreateKeyspaceRequest { n: 2, w: 3, ..new("k") }, vec!["w", "3", "2"]),
    ];
    for (request, parts) in cases {
        let text = format!("{request:?}");
        let e = admin.create_keyspace(request).await.expect_err(&text);
        assert_refused(&e, Code::InvalidArgument, &parts);
    }
    check_serves(&mut cluster, "bad keyspaces").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_contexts_are_refused() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let mut kv = kv(cluster.nodes[0].client);
    let good = kv.put(put("mine", "v")).await.expect("put").into_inner().context;
    let foreign = kv.put(put("other", "v")).await.expect("put").into_inner().context;
    let mut noise = Noise(11);
    let mut bad = vec![
        ("one byte".to_owned(), bytes([0])),
        ("text".to_owned(), bytes("a context")),
        ("of another key".to_owned(), foreign),
        ("with more behind".to_owned(), bytes([&good[..], &[0]].concat())),
    ];
    bad.extend((1..good.len()).map(|length| (format!("cut to {length} bytes"), good.slice(..length))));
    for bit in 0..good.len() * 8 {
        let mut flipped = good.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        bad.push((format!("with bit {bit} flipped"), flipped.into()));
    }
    bad.extend((0..50).map(|round| (format!("noise {round}"), noise.bytes(1 + round * 3).into())));
    for (what, context) in bad {
        let flipped = what.contains("flipped");
        let request = proto::PutRequest { context: context.clone(), ..put("mine", "w") };
        match kv.put(request).await {
            Err(status) => assert_refused(&status, Code::InvalidArgument, &["context"]),
            // A flipped bit of a stamp or a number makes another context that can't be told from a true one.
            Ok(_) => assert!(flipped, "a context {what} is taken"),
        }
        let delete = proto::DeleteRequest { key: bytes("mine"), context, ..Default::default() };
        if let Err(status) = kv.delete(delete).await {
            assert_refused(&status, Code::InvalidArgument, &["context"]);
        }
    }
    let huge = proto::PutRequest { context: bytes(vec![1; limits::CONTEXT_BYTES + 1]), ..put("mine", "w") };
    let status = kv.put(huge).await.expect_err("too long");
    assert_refused(&status, Code::InvalidArgument, &["context", "65537", "65536"]);
    check_serves(&mut cluster, "bad contexts").await;
}

/// POSTs `body` as a gRPC message; the code of the answer.
async fn post(channel: &Channel, path: &str, body: Vec<u8>) -> Result<Code, String> {
    let request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(axum::body::Body::from(body)))
        .expect("a request");
    let mut channel = channel.clone();
    channel.ready().await.map_err(|e| e.to_string())?;
    let answer = tokio::time::timeout(Duration::from_secs(5), channel.call(request)).await;
    let answer = answer.map_err(|_| "no answer".to_owned())?.map_err(|e| format!("{e:?}"))?;
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return Ok(status.code());
    }
    // An answer, and its code behind it.
    let mut body = answer.into_body();
    use tonic::codegen::Body as _;
    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await;
        match frame {
            Some(Ok(frame)) => {
                if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                    return Ok(status.code());
                }
            }
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("no status".into()),
        }
    }
}

fn frame(flag: u8, length: u32, message: &[u8]) -> Vec<u8> {
    [&[flag][..], &length.to_be_bytes(), message].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_grpc_messages_are_refused() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let (client, peer) = (cluster.nodes[0].client, cluster.nodes[0].peer);
    let mut noise = Noise(5);
    let good = prost::Message::encode_to_vec(&put("k", "v"));
    let size = |bytes: &[u8]| u32::try_from(bytes.len()).expect("short");
    let mut bodies: Vec<(String, Vec<u8>)> = vec![
        ("nothing".into(), vec![]),
        ("half a length".into(), vec![0, 0, 0]),
        ("a length and no message".into(), frame(0, 100, b"")),
        ("a message cut off".into(), frame(0, size(&good) + 40, &good)),
        ("a compressed message".into(), frame(1, size(&good), &good)),
        ("a bad flag".into(), frame(7, size(&good), &good)),
        ("the greatest length".into(), frame(0, u32::MAX, &good)),
        ("two messages".into(), [frame(0, size(&good), &good), frame(0, size(&good), &good)].concat()),
    ];
    for round in 0..60 {
        let junk = {
            let length = 1 + noise.below(300);
            noise.bytes(length)
        };
        bodies.push((format!("random message {round}"), frame(0, size(&junk), &junk)));
        bodies.push((format!("random bytes {round}"), junk));
        let mut damaged = good.clone();
        let at = noise.below(damaged.len());
        damaged[at] ^= 1 << noise.below(8);
        bodies.push((format!("a damaged message {round}"), frame(0, size(&damaged), &damaged)));
        let cut = &good[..noise.below(good.len())];
        bodies.push((format!("a cut message {round}"), frame(0, size(cut), cut)));
    }
    let kv_paths =
        ["Put", "Get", "Delete", "Scan", "Batch", "Session"].map(|verb| format!("/quoral.v1.Kv/{verb}"));
    let admin = ["CreateKeyspace", "UpdateKeyspace", "DropKeyspace", "Explain", "Status"]
        .map(|verb| format!("/quoral.v1.Cluster/{verb}"));
    let peers = ["Hello", "Exchange", "PullMap", "Decree"].map(|verb| format!("/quoral.v1.Peer/{verb}"));
    let mut seen = BTreeSet::new();
    for (at, paths) in [(client, [&kv_paths[..], &admin[..]].concat()), (peer, peers.to_vec())] {
        let channel = client::channel(at);
        for path in &paths {
            for (what, body) in &bodies {
                // An exchange of operations goes on for as long as its caller lives.
                let code = post(&channel, path, body.clone()).await;
                let code = code.unwrap_or_else(|why| panic!("{what} to {path}: {why}"));
                seen.insert(format!("{path} {code:?}"));
            }
        }
        for path in ["/quoral.v1.Kv/Nothing", "/", "/a/b/c", "/quoral.v1.Kv/"] {
            let code = post(&channel, path, frame(0, size(&good), &good)).await;
            assert_eq!(code, Ok(Code::Unimplemented), "{path}");
        }
    }
    println!("{seen:#?}");
    // Nothing of it has an answer that would say "the server is broken" or "try again".
    for bad in ["Internal", "Unknown", "DataLoss"] {
        let wrong: Vec<&String> = seen.iter().filter(|s| s.ends_with(bad) && !s.contains("Peer")).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
    check_serves(&mut cluster, "broken messages").await;
}

/// Datagrams as a node of this cluster sends them: taken by a socket that is listed as a node.
fn real_datagrams() -> Vec<Vec<u8>> {
    let mut cluster = Cluster::made(2);
    let other = UdpSocket::bind(cluster.nodes[1].peer).expect("its port is free");
    other.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
    cluster.nodes[0].start();
    let mut buffer = [0; 65_536];
    (0..3)
        .map(|_| {
            let (length, _) = other.recv_from(&mut buffer).expect("a node calls its seeds");
            buffer[..length].to_vec()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn junk_on_the_gossip_port_changes_nothing() {
    let _alone = alone();
    let real = real_datagrams();
    let mut cluster = Cluster::start(3);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let mut noise = Noise(3);
    for node in &cluster.nodes {
        let send = |bytes: &[u8]| {
            // A full buffer is the system's affair.
            let _ = socket.send_to(bytes, node.peer);
        };
        for round in 0..500 {
            send(&noise.bytes(round % 200));
        }
        for length in [0, 1, 1_399, 1_400, 1_401, 9_000, 65_507] {
            send(&noise.bytes(length));
        }
        for packet in &real {
            // Of another cluster: whole, cut, damaged, with more behind.
            send(packet);
            (0..packet.len()).for_each(|length| send(&packet[..length]));
            for _ in 0..300 {
                let mut damaged = packet.clone();
                let at = noise.below(damaged.len());
                damaged[at] ^= 1 << noise.below(8);
                send(&damaged);
            }
            send(&[packet.clone(), noise.bytes(1_000)].concat());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Longer than a round of probes: nobody was declared dead, and no stranger is a member.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for node in &cluster.nodes {
        let mut admin = ClusterClient::new(client::channel(node.client));
        let status = admin.status(proto::StatusRequest {}).await.expect("status").into_inner();
        let states: Vec<&str> = status.nodes.iter().map(|n| n.state.as_str()).collect();
        assert_eq!(states, ["alive"; 3], "{status:?}");
        assert!(!node.log_text().contains("Down"), "{}", node.log_tail(20));
    }
    check_serves(&mut cluster, "junk datagrams").await;
}

fn junk_connection(at: SocketAddr, junk: &[u8]) -> TcpStream {
    let mut connection = TcpStream::connect(at).expect("the port is open");
    connection.set_write_timeout(Some(Duration::from_secs(1))).expect("a limit");
    // The node may close at any time.
    let _ = connection.write_all(junk);
    connection
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn junk_on_the_tcp_ports_changes_nothing() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let mut noise = Noise(9);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut open = Vec::new();
    for node in &cluster.nodes {
        for port in [node.client, node.peer, node.http] {
            for round in 0..40 {
                let junk = noise.bytes(1 + round * 50);
                drop(junk_connection(port, &junk));
                drop(junk_connection(port, &[&preface[..], &junk].concat()));
            }
            drop(junk_connection(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"));
            drop(junk_connection(port, &noise.bytes(1 << 20)));
            // And some that stay and say nothing, or half of something.
            open.push(junk_connection(port, b""));
            open.push(junk_connection(port, &preface[..10]));
            open.push(junk_connection(port, preface));
            open.push(junk_connection(port, b"GET /readyz HTTP/1.1\r\nho"));
        }
        eventually(Duration::from_secs(5), || match http_get(node.http, "/metrics")? {
            (200, _) => Ok(()),
            (status, body) => Err(format!("{status}: {body}")),
        });
        let (status, _) = http_get(node.http, "/nothing").expect("an answer");
        assert_eq!(status, 404);
    }
    check_serves(&mut cluster, "junk on TCP").await;
    for connection in &mut open {
        connection.set_read_timeout(Some(Duration::from_millis(1))).expect("a limit");
        let _ = connection.read(&mut [0; 64]);
    }
    drop(open);
    check_serves(&mut cluster, "hung connections").await;
}

/// A request's key may be any bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_bytes_are_a_key_and_a_value() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let mut one = kv(cluster.nodes[0].client);
    let mut two = kv(cluster.nodes[1].client);
    let all: Vec<u8> = (0..=255).collect();
    for key in
        [vec![0], vec![0xff], vec![0, 0], vec![0, 0xff], vec![0xff; 1_024], vec![0; 1_024], all.clone()]
    {
        let value: Bytes = [&key[..], &all].concat().into();
        one.put(put(key.clone(), value.to_vec())).await.expect("put");
        let answer = two.get(get(key.clone())).await.expect("get").into_inner();
        assert_eq!(client::values(&answer), [value], "{key:?}");
    }
    one.put(put("empty", "")).await.expect("an empty value is a value");
    let answer = two.get(get("empty")).await.expect("get").into_inner();
    assert!(answer.found && client::values(&answer) == [""], "{answer:?}");
    cluster.check();
}
