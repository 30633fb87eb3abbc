//! What clients are promised, through any of three real nodes: both conflict policies, expiry, and scans.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quoral::rpc::proto::{self, cluster_client::ClusterClient};
use rustix::process::Signal;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::client::{self, Kv, bytes, get, get_r, kv, put};
use crate::cluster::{Cluster, alone};

fn kvs(cluster: &Cluster) -> Vec<Kv> {
    cluster.all_clients().into_iter().map(kv).collect()
}

fn delete(key: impl Into<Vec<u8>>, context: Bytes) -> proto::DeleteRequest {
    proto::DeleteRequest { key: bytes(key), context, timeout_ms: 2_000, ..Default::default() }
}

/// Makes a keyspace of siblings, and waits until each node has heard of it.
pub async fn siblings_keyspace(cluster: &Cluster) -> String {
    let name = "carts".to_owned();
    let request = proto::CreateKeyspaceRequest {
        name: name.clone(),
        conflicts: "siblings".into(),
        ..Default::default()
    };
    let mut admin = ClusterClient::new(client::channel(cluster.nodes[0].client));
    let made = admin.create_keyspace(request).await.expect("created").into_inner().keyspace.expect("told");
    assert_eq!(
        (made.name.as_str(), made.conflicts.as_str(), made.n, made.r, made.w),
        ("carts", "siblings", 3, 2, 2)
    );
    for node in &cluster.nodes {
        let mut admin = ClusterClient::new(client::channel(node.client));
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let list =
                admin.list_keyspaces(proto::ListKeyspacesRequest {}).await.expect("a list").into_inner();
            if list.keyspaces.iter().any(|keyspace| keyspace.name == name) {
                break;
            }
            assert!(Instant::now() < end, "{} has not heard of it: {list:?}", node.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    name
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lww_reads_its_writes_through_any_node() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let mut kvs = kvs(&cluster);
    // G2: at once, from each node, whoever took it.
    for round in 0..300 {
        let (key, value) = (format!("key {}", round % 7), format!("value {round}"));
        kvs[round % 3].put(put(key.clone(), value.clone())).await.expect("put");
        for at in [1, 2] {
            let answer = kvs[(round + at) % 3].get(get(key.clone())).await.expect("get").into_inner();
            assert_eq!(client::values(&answer), [value.as_str()], "round {round}");
        }
    }
    // A put that knows nothing beats an earlier one all the same; a delete too, and a put after it.
    let told = kvs[0].delete(delete("key 1", Bytes::new())).await.expect("deleted").into_inner();
    assert!(told.acks >= 2 && !told.context.is_empty(), "{told:?}");
    for kv in &mut kvs {
        let answer = kv.get(get("key 1")).await.expect("get").into_inner();
        assert!(!answer.found && answer.siblings.is_empty(), "{answer:?}");
    }
    kvs[1].put(put("key 1", "again")).await.expect("put");
    for kv in &mut kvs {
        assert_eq!(client::values(kv.get(get("key 1")).await.expect("get").get_ref()), ["again"]);
    }
    // To delete what is not there is no error.
    kvs[2].delete(delete("never was", Bytes::new())).await.expect("deleted");
    assert!(!kvs[0].get(get("never was")).await.expect("get").get_ref().found);
    cluster.check();
}

/// Many writers of one key through all nodes: every node ends with one and the same value, one that was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lww_writers_of_one_key_agree() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let kvs = kvs(&cluster);
    let writes: Vec<usize> = (0..300).collect();
    let results = client::for_each(writes, 24, |number| {
        let mut kv = kvs[number % 3].clone();
        async move { kv.put(put("contended", format!("value {number}"))).await.map(|_| number) }
    });
    let results = results.await;
    let written: BTreeSet<String> =
        results.iter().filter_map(|result| result.as_ref().ok()).map(|n| format!("value {n}")).collect();
    assert_eq!(written.len(), 300, "{:?}", results.iter().find(|result| result.is_err()));
    let mut seen = BTreeSet::new();
    for kv in &kvs {
        let answer = kv.clone().get(get_r("contended", 3)).await.expect("get").into_inner();
        assert_eq!(answer.siblings.len(), 1, "{answer:?}");
        seen.insert(answer.siblings[0].value.clone());
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
    let value = String::from_utf8_lossy(seen.first().expect("one")).into_owned();
    assert!(written.contains(&value), "{value:?} was not written");
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_expire() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let mut kvs = kvs(&cluster);
    let written = Instant::now();
    let request = proto::PutRequest { ttl_ms: 1_500, ..put("brief", "v") };
    kvs[0].put(request).await.expect("put");
    kvs[0].put(put("lasting", "v")).await.expect("put");
    let answer = kvs[1].get(get("brief")).await.expect("get").into_inner();
    if written.elapsed() < Duration::from_millis(1_400) {
        assert_eq!(client::values(&answer), ["v"]);
        assert!(answer.siblings[0].expires_at_ms > 0, "{answer:?}");
    }
    let left = Duration::from_millis(1_700).saturating_sub(written.elapsed());
    tokio::time::sleep(left).await;
    for kv in &mut kvs {
        let answer = kv.get(get("brief")).await.expect("get").into_inner();
        assert!(!answer.found && answer.siblings.is_empty(), "{answer:?}");
        let answer = kv.get(get("lasting")).await.expect("get").into_inner();
        assert!(answer.found && answer.siblings[0].expires_at_ms == 0, "{answer:?}");
        let rows = scan(kv, proto::ScanRequest { key: bytes("brief"), ..Default::default() }).await;
        assert_eq!(rows.len(), 0, "an expired value is in a scan");
    }
    // And it can be written anew.
    kvs[2].put(put("brief", "anew")).await.expect("put");
    assert_eq!(client::values(kvs[0].get(get("brief")).await.expect("get").get_ref()), ["anew"]);
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn siblings_are_all_kept_until_replaced() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let keyspace = siblings_keyspace(&cluster).await;
    let kvs = kvs(&cluster);
    let of = |request: proto::PutRequest| proto::PutRequest { keyspace: keyspace.clone(), ..request };
    let get = |at: usize, key: &str| {
        let (mut kv, request) =
            (kvs[at].clone(), proto::GetRequest { keyspace: keyspace.clone(), ..get(key.to_owned()) });
        async move { kv.get(request).await.expect("get").into_inner() }
    };

    // Blind and at once, through all nodes: every one of them is there.
    let blind: Vec<usize> = (0..24).collect();
    let acknowledged = client::for_each(blind, 24, |number| {
        let (mut kv, request) = (kvs[number % 3].clone(), of(put("cart", format!("item {number:02}"))));
        async move { kv.put(request).await.map(|_| number) }
    });
    let acknowledged = acknowledged.await;
    assert!(acknowledged.iter().all(Result::is_ok), "{acknowledged:?}");
    let wanted: Vec<Bytes> = (0..24).map(|number| Bytes::from(format!("item {number:02}"))).collect();
    let mut context = Bytes::new();
    for at in 0..3 {
        let answer = get(at, "cart").await;
        assert_eq!(client::values(&answer), wanted, "through node {at}");
        context = answer.context;
    }

    // One late and blind, one that has seen the 24: the two stay.
    kvs[0].clone().put(of(put("cart", "late"))).await.expect("put");
    let resolve = proto::PutRequest { context: context.clone(), ..of(put("cart", "resolved")) };
    let resolved = kvs[1].clone().put(resolve).await.expect("put").into_inner();
    for at in 0..3 {
        assert_eq!(client::values(&get(at, "cart").await), ["late", "resolved"], "through node {at}");
    }
    // A write with what a put was told replaces that, and no more.
    let next = proto::PutRequest { context: resolved.context, ..of(put("cart", "next")) };
    kvs[2].clone().put(next).await.expect("put");
    for at in 0..3 {
        assert_eq!(client::values(&get(at, "cart").await), ["late", "next"], "through node {at}");
    }
    // An old context replaces nothing that it has not seen.
    let old = proto::PutRequest { context, ..of(put("cart", "old")) };
    kvs[0].clone().put(old).await.expect("put");
    let answer = get(1, "cart").await;
    assert_eq!(client::values(&answer), ["late", "next", "old"]);

    // A blind delete replaces nothing; one with the context, everything; and a put after it is there.
    let of_delete =
        |context: Bytes| proto::DeleteRequest { keyspace: keyspace.clone(), ..delete("cart", context) };
    kvs[1].clone().delete(of_delete(Bytes::new())).await.expect("deleted");
    assert_eq!(client::values(&get(2, "cart").await), ["late", "next", "old"]);
    let context = get(2, "cart").await.context;
    kvs[2].clone().delete(of_delete(context)).await.expect("deleted");
    for at in 0..3 {
        let answer = get(at, "cart").await;
        assert!(!answer.found && !answer.context.is_empty(), "{answer:?}");
    }
    kvs[0].clone().put(of(put("cart", "new"))).await.expect("put");
    for at in 0..3 {
        assert_eq!(client::values(&get(at, "cart").await), ["new"], "through node {at}");
    }
    // The same key of another keyspace is another key.
    assert!(!kvs[0].clone().get(client::get("cart")).await.expect("get").get_ref().found);
    cluster.check();
}

/// F10: a coordinator that is killed right after it acknowledged must not issue a dot again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f10_no_sibling_vanishes_when_its_coordinator_is_killed() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let keyspace = siblings_keyspace(&cluster).await;
    let mut acknowledged: BTreeMap<String, BTreeSet<Bytes>> = BTreeMap::new();
    for round in 0..10_usize {
        let at = round % 3;
        let kv = kv(cluster.nodes[at].client);
        let (acks, mut told) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..12 {
            // The same keys in each round: old counters go on.
            let (key, value) = (format!("cart {}", number % 4), format!("{round}-{number}"));
            let request = proto::PutRequest { keyspace: keyspace.clone(), ..put(key.clone(), value.clone()) };
            let (mut kv, acks) = (kv.clone(), acks.clone());
            tokio::spawn(async move {
                if kv.put(request).await.is_ok() {
                    let _ = acks.send((key, Bytes::from(value)));
                }
            });
        }
        drop(acks);
        // At another acknowledgement in each round: the first, or one in the middle, or the last.
        let fatal = 1 + (round * 5) % 12;
        let mut count = 0;
        while let Some((key, value)) = told.recv().await {
            acknowledged.entry(key).or_default().insert(value);
            count += 1;
            if count == fatal {
                cluster.nodes[at].signal(Signal::KILL);
            }
        }
        assert!(count >= fatal, "round {round}: {count} acknowledged before anything was killed");
        cluster.nodes[at].kill();
        cluster.nodes[at].start();
        cluster.nodes[at].wait_ready();
        client::wait_for_all(&cluster.all_clients(), 3).await;
        for (key, values) in &acknowledged {
            for node in &cluster.nodes {
                let request = proto::GetRequest { keyspace: keyspace.clone(), ..get(key.clone()) };
                let answer = crate::client::kv(node.client).get(request).await.expect("get").into_inner();
                let found: BTreeSet<Bytes> = answer.siblings.iter().map(|s| s.value.clone()).collect();
                let lost: Vec<&Bytes> = values.difference(&found).collect();
                assert!(lost.is_empty(), "round {round}, {key} through {}: {lost:?} vanished", node.name);
            }
        }
    }
    let total: usize = acknowledged.values().map(BTreeSet::len).sum();
    println!("{total} siblings acknowledged, none missing");
    cluster.check();
}

type Row = (Bytes, Bytes, Bytes);

/// All rows of a scan with their values, following no cursor.
async fn scan(kv: &Kv, request: proto::ScanRequest) -> Vec<Row> {
    pages(kv, request).await.expect("a scan").into_iter().flat_map(|page| page.entries).map(row).collect()
}

fn row(entry: proto::ScanEntry) -> Row {
    assert_eq!(entry.siblings.len(), 1, "{entry:?}");
    (entry.key, entry.sort, entry.siblings[0].value.clone())
}

async fn pages(kv: &Kv, request: proto::ScanRequest) -> Result<Vec<proto::ScanResponse>, tonic::Status> {
    let mut stream = kv.clone().scan(request).await?.into_inner();
    let mut pages = Vec::new();
    while let Some(page) = stream.message().await? {
        pages.push(page);
    }
    Ok(pages)
}

/// Sort keys of all shapes: numbers, and bytes that an encoding could trip over.
fn sorts() -> BTreeMap<Vec<u8>, String> {
    let mut sorts: BTreeSet<Vec<u8>> = (0..2_200).map(|n: u32| format!("row {n:05}").into_bytes()).collect();
    for odd in [
        &b""[..],
        b"\0",
        b"\0\0",
        b"\0\x01",
        b"\0\xff",
        b"\x01",
        b"\x01\0",
        b"row",
        b"row ",
        b"row\0",
        b"row\xff",
        b"\xff",
        b"\xff\0",
        b"\xff\xff",
        b"\xff\xff\xff",
        b"\xfe\xff",
        b"z",
    ] {
        sorts.insert(odd.to_vec());
    }
    sorts.insert(vec![0xff; 1_024]);
    sorts.insert(vec![0; 1_024]);
    sorts.into_iter().enumerate().map(|(number, sort)| (sort, format!("value {number}"))).collect()
}

async fn fill(kvs: &[Kv], rows: Vec<(Vec<u8>, Vec<u8>, String)>) {
    let numbered: Vec<_> = rows.into_iter().enumerate().collect();
    let results = client::for_each(numbered, 64, |(number, (key, sort, value))| {
        let mut kv = kvs[number % kvs.len()].clone();
        let request = proto::PutRequest { sort: bytes(sort), ..put(key, value) };
        async move { kv.put(request).await.map(drop) }
    });
    let failed: Vec<_> = results.await.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_gives_the_sort_keys_in_order() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let kvs = kvs(&cluster);
    let sorts = sorts();
    let key: &[u8] = b"a\0key\xff";
    fill(&kvs, sorts.iter().map(|(sort, value)| (key.to_vec(), sort.clone(), value.clone())).collect()).await;
    // Neighbours that must not show: keys with the same beginning, and a deleted row.
    for near in [&b"a\0key"[..], b"a\0key\xff\0", b"a\0key\xff\xff", b"a"] {
        fill(&kvs, vec![(near.to_vec(), b"row 00001".to_vec(), "a neighbour's".into())]).await;
    }
    fill(&kvs, vec![(key.to_vec(), b"row 01000 and more".to_vec(), "to be deleted".into())]).await;
    let gone = proto::DeleteRequest { sort: bytes(&b"row 01000 and more"[..]), ..delete(key, Bytes::new()) };
    kvs[0].clone().delete(gone).await.expect("deleted");

    let all = || proto::ScanRequest { key: bytes(key), ..Default::default() };
    let expect = |within: &dyn Fn(&[u8]) -> bool| -> Vec<Row> {
        let rows = sorts.iter().filter(|(sort, _)| within(sort));
        rows.map(|(sort, value)| (bytes(key), bytes(sort.clone()), Bytes::from(value.clone()))).collect()
    };
    let everything = expect(&|_| true);
    assert!(everything.len() > 2_000);
    for kv in &kvs {
        assert_eq!(scan(kv, all()).await, everything);
    }
    let ranges: Vec<(proto::ScanRequest, Vec<Row>)> = vec![
        (proto::ScanRequest { prefix: bytes("row 0"), ..all() }, expect(&|s| s.starts_with(b"row 0"))),
        (proto::ScanRequest { prefix: bytes(&b"\xff"[..]), ..all() }, expect(&|s| s.starts_with(b"\xff"))),
        (proto::ScanRequest { prefix: bytes(&b"\0"[..]), ..all() }, expect(&|s| s.starts_with(b"\0"))),
        (proto::ScanRequest { prefix: bytes("none"), ..all() }, vec![]),
        (
            proto::ScanRequest { start: bytes("row 00100"), end: bytes("row 00200"), ..all() },
            expect(&|s| (&b"row 00100"[..]..b"row 00200").contains(&s)),
        ),
        (proto::ScanRequest { start: bytes("row 02000"), ..all() }, expect(&|s| s >= &b"row 02000"[..])),
        (proto::ScanRequest { end: bytes(&b"\0\x01"[..]), ..all() }, expect(&|s| s < &b"\0\x01"[..])),
        (proto::ScanRequest { start: bytes("z"), end: bytes("row"), ..all() }, vec![]),
        (
            proto::ScanRequest {
                prefix: bytes("row 01"),
                start: bytes("row 01500"),
                end: bytes("y"),
                ..all()
            },
            expect(&|s| s.starts_with(b"row 01") && s >= &b"row 01500"[..]),
        ),
    ];
    for (number, (request, mut wanted)) in ranges.into_iter().enumerate() {
        let kv = &kvs[number % 3];
        assert_eq!(scan(kv, request.clone()).await, wanted, "{request:?}");
        let limited = proto::ScanRequest { limit: 7, ..request.clone() };
        assert_eq!(scan(kv, limited).await, wanted[..wanted.len().min(7)], "the first 7 of {request:?}");
        wanted.reverse();
        let reverse = proto::ScanRequest { reverse: true, ..request.clone() };
        assert_eq!(scan(kv, reverse.clone()).await, wanted, "{request:?} in reverse");
        let limited = proto::ScanRequest { limit: 7, ..reverse };
        assert_eq!(scan(kv, limited).await, wanted[..wanted.len().min(7)], "the last 7 of {request:?}");
    }

    // By cursor, another node each time, in both directions.
    for reverse in [false, true] {
        let (mut rows, mut cursor, mut turn) = (Vec::new(), Bytes::new(), 0);
        loop {
            let request = proto::ScanRequest { limit: 130, cursor: cursor.clone(), reverse, ..all() };
            let pages = pages(&kvs[turn % 3], request).await.expect("a scan");
            let last = pages.last().map(|page| page.cursor.clone()).unwrap_or_default();
            rows.extend(pages.into_iter().flat_map(|page| page.entries).map(row));
            turn += 1;
            assert!(turn < 60, "the cursor does not get on");
            if last.is_empty() {
                break;
            }
            cursor = last;
        }
        let mut wanted = everything.clone();
        if reverse {
            wanted.reverse();
        }
        assert_eq!(rows, wanted, "by cursor, reverse {reverse}");
    }
    // A cursor of another question is refused.
    let page = pages(&kvs[0], proto::ScanRequest { limit: 3, ..all() }).await.expect("a scan");
    let cursor = page.last().expect("a page").cursor.clone();
    assert!(!cursor.is_empty());
    let other = proto::ScanRequest { key: bytes("another"), cursor, ..Default::default() };
    let refused = pages(&kvs[0], other).await.expect_err("a cursor of another key");
    client::assert_refused(&refused, Code::InvalidArgument, &["cursor"]);
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_of_the_keyspace_gives_every_key_once() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let kvs = kvs(&cluster);
    let mut rows: BTreeMap<(Vec<u8>, Vec<u8>), String> = BTreeMap::new();
    for number in 0..1_500_u32 {
        rows.insert((format!("key {number}").into_bytes(), vec![]), format!("value {number}"));
    }
    for odd in [&b"\0"[..], b"\0\0", b"\xff", b"\xff\xff", b"\0\xff", b"\xff\0"] {
        for sort in [&b""[..], b"\0", b"\xff", b"s"] {
            rows.insert((odd.to_vec(), sort.to_vec()), format!("{odd:?} {sort:?}"));
        }
    }
    for number in 0..1_200_u32 {
        rows.insert(
            (b"one key of many rows".to_vec(), number.to_be_bytes().to_vec()),
            format!("row {number}"),
        );
    }
    fill(&kvs, rows.iter().map(|((key, sort), value)| (key.clone(), sort.clone(), value.clone())).collect())
        .await;
    kvs[0].clone().put(put("gone", "v")).await.expect("put");
    kvs[1].clone().delete(delete("gone", Bytes::new())).await.expect("deleted");

    let check = |what: &str, found: Vec<Row>| {
        let mut seen = BTreeMap::new();
        for (key, sort, value) in found {
            let value = String::from_utf8(value.to_vec()).expect("text");
            let twice = seen.insert((key.to_vec(), sort.to_vec()), value);
            assert!(twice.is_none(), "{what}: {key:?} {sort:?} comes twice");
        }
        assert_eq!(seen.len(), rows.len(), "{what}");
        assert_eq!(seen, rows, "{what}");
    };
    for (at, kv) in kvs.iter().enumerate() {
        check(&format!("through node {at}"), scan(kv, proto::ScanRequest::default()).await);
    }
    // Page by page, another node each time.
    let (mut found, mut cursor, mut turn) = (Vec::new(), Bytes::new(), 0);
    loop {
        let request = proto::ScanRequest { limit: 97, cursor: cursor.clone(), ..Default::default() };
        let pages = pages(&kvs[turn % 3], request).await.expect("a scan");
        cursor = pages.last().map(|page| page.cursor.clone()).unwrap_or_default();
        found.extend(pages.into_iter().flat_map(|page| page.entries).map(row));
        turn += 1;
        assert!(turn < 200, "the cursor does not get on");
        if cursor.is_empty() {
            break;
        }
    }
    check("by cursor", found);
    // With a dead node it is still whole; and what was written meanwhile is there.
    cluster.nodes[2].kill();
    check("with a dead node", scan(&kvs[0], proto::ScanRequest::default()).await);
    cluster.nodes[2].start();
    cluster.nodes[2].wait_ready();
    check("after its return", scan(&kvs[2], proto::ScanRequest::default()).await);
    cluster.check();
}

/// More bytes at once than a node may hold: what is over is refused at once and surely not applied (G9).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_over_the_bytes_in_flight_are_refused() {
    let _alone = alone();
    let mut cluster = Cluster::made(3);
    let bootstrap = cluster.bootstrap();
    let limit = "[limits]\nbytes_in_flight = 100000\n";
    cluster.nodes.iter().for_each(|node| node.configure("", &format!("{bootstrap}{limit}")));
    cluster.start_all();
    cluster.wait_ready();
    // With both others stopped no put can be acknowledged, so they pile up: three fit.
    for node in &cluster.nodes[1..] {
        node.signal(Signal::STOP);
    }
    let kv = kv(cluster.nodes[0].client);
    let results = client::for_each((0..8).collect(), 8, |number| {
        let mut kv = kv.clone();
        async move { kv.put(put(format!("large {number}"), vec![7; 30_000])).await }
    })
    .await;
    for node in &cluster.nodes[1..] {
        node.signal(Signal::CONT);
    }
    let statuses = results.iter().filter_map(|result| result.as_ref().err());
    let (refused, tried): (Vec<_>, Vec<_>) = statuses.partition(|s| s.code() == Code::ResourceExhausted);
    assert_eq!((refused.len(), tried.len()), (5, 3), "{results:?}");
    for status in refused {
        assert!(client::surely_not_applied(status), "{status:?}");
        assert!(status.get_details_retry_info().is_some(), "{status:?}");
    }
    // Nothing is left counted, and a value over the limit is taken when it is alone.
    client::wait_for_all(&cluster.all_clients(), 3).await;
    kv.clone().put(put("alone", vec![7; 200_000])).await.expect("put");
    cluster.check();
}
