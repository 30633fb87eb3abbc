//! Batches on real nodes: one status for each item, and each says what is true.

use quoral::rpc::proto::{self, batch_item, batch_status::Outcome};
use tonic::Code;

use crate::client::{self, Kv, assert_refused, bytes, get, get_r, kv, put};
use crate::cluster::{Cluster, alone};

fn item(request: batch_item::Request) -> proto::BatchItem {
    proto::BatchItem { request: Some(request) }
}

fn put_item(request: proto::PutRequest) -> proto::BatchItem {
    item(batch_item::Request::Put(request))
}

fn get_item(request: proto::GetRequest) -> proto::BatchItem {
    item(batch_item::Request::Get(request))
}

fn delete_item(key: impl Into<Vec<u8>>) -> proto::BatchItem {
    let request = proto::DeleteRequest { key: bytes(key), ..Default::default() };
    item(batch_item::Request::Delete(request))
}

fn batch_of(items: Vec<proto::BatchItem>, timeout_ms: u64) -> proto::BatchRequest {
    proto::BatchRequest { items, timeout_ms, ..Default::default() }
}

async fn run(kv: &Kv, items: Vec<proto::BatchItem>, timeout_ms: u64) -> Vec<Outcome> {
    let count = items.len();
    let answer = kv.clone().batch(batch_of(items, timeout_ms)).await.expect("a batch").into_inner();
    assert_eq!(answer.statuses.len(), count, "a status for each item");
    answer.statuses.into_iter().map(|status| status.outcome.expect("an outcome")).collect()
}

/// Code, text, and whether it was surely not applied.
#[track_caller]
fn error(outcome: &Outcome) -> (Code, &str, bool) {
    let Outcome::Error(error) = outcome else { panic!("no error: {outcome:?}") };
    let failure = error.failure.as_ref().expect("each error has a failure");
    let code = Code::from_i32(i32::try_from(error.code).expect("small"));
    (code, &error.message, failure.applied() == proto::Applied::No)
}

#[track_caller]
fn found(outcome: &Outcome) -> Vec<bytes::Bytes> {
    let Outcome::Get(answer) = outcome else { panic!("no answer to a get: {outcome:?}") };
    client::values(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_item_of_a_batch_has_its_own_outcome() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let kv = kv(cluster.nodes[0].client);
    kv.clone().put(put("old", "old value")).await.expect("put");

    let bad = proto::PutRequest { keyspace: "nosuch".into(), ..put("k", "v") };
    let context = proto::PutRequest { context: bytes("junk"), ..put("k", "v") };
    let items = vec![
        put_item(put("new", "new value")),
        put_item(put("", "v")),
        get_item(get("old")),
        put_item(bad),
        delete_item("old"),
        get_item(get_r("old", 4)),
        proto::BatchItem::default(),
        get_item(get("never was")),
        put_item(context),
        put_item(put("k", vec![0; (1 << 20) + 1])),
        get_item(get("old")),
    ];
    let outcomes = run(&kv, items, 5_000).await;
    assert!(matches!(&outcomes[0], Outcome::Put(put) if put.acks >= 2 && !put.context.is_empty()));
    assert_eq!(found(&outcomes[2]), ["old value"]);
    assert!(matches!(&outcomes[4], Outcome::Delete(done) if done.acks >= 2));
    assert_eq!(found(&outcomes[10]), [""; 0], "the get behind the delete sees it");
    assert!(matches!(&outcomes[7], Outcome::Get(answer) if !answer.found));
    for (at, code, parts) in [
        (1, Code::InvalidArgument, ["key", "1 byte"]),
        (3, Code::NotFound, ["keyspace", "nosuch"]),
        (5, Code::InvalidArgument, ["r", "4"]),
        (6, Code::InvalidArgument, ["request", "missing"]),
        (8, Code::InvalidArgument, ["context", "context"]),
        (9, Code::InvalidArgument, ["1048577", "1048576"]),
    ] {
        let (of_item, said, surely_not) = error(&outcomes[at]);
        assert_eq!((of_item, surely_not), (code, true), "item {at}: {said}");
        assert!(parts.iter().all(|part| said.contains(part)), "item {at}: {said}");
    }
    // Through another node all of it is there.
    let answer = client::kv(cluster.nodes[2].client).get(get("new")).await.expect("get").into_inner();
    assert_eq!(client::values(&answer), ["new value"]);

    // What is wrong with the batch as a whole refuses all of it.
    let refused = async |items, parts: &[&str]| {
        let status = kv.clone().batch(batch_of(items, 0)).await.expect_err("a bad batch");
        assert_refused(&status, Code::InvalidArgument, parts);
    };
    refused(vec![], &["items", "at least 1"]).await;
    refused(vec![put_item(put("over", "v")); 1_001], &["items", "1001", "1000"]).await;
    refused(vec![put_item(put("over", vec![0; 1 << 20])); 24], &["items", "25165824 bytes"]).await;
    refused(vec![put_item(put("over", vec![0; 1 << 20])); 40], &["message", "33554432 bytes"]).await;
    assert!(!kv.clone().get(get("over")).await.expect("get").get_ref().found);

    // A keyspace for all items that name none.
    let mut request = batch_of(vec![put_item(put("k", "v")), get_item(get("old"))], 0);
    request.keyspace = "nosuch".into();
    let answer = kv.clone().batch(request).await.expect("a batch").into_inner();
    for status in &answer.statuses {
        assert_eq!(error(status.outcome.as_ref().expect("one")).0, Code::NotFound);
    }
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_items_and_one_key_in_order() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let kv = kv(cluster.nodes[1].client);
    let puts = (0..1_000).map(|n| put_item(put(format!("key {n}"), format!("value {n}")))).collect();
    let outcomes = run(&kv, puts, 30_000).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Put(_))), "{outcomes:?}");
    let gets = (0..1_000).map(|n| get_item(get(format!("key {n}")))).collect();
    let outcomes = run(&crate::client::kv(cluster.nodes[2].client), gets, 30_000).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        assert_eq!(found(outcome), [format!("value {n}")]);
    }

    // Each get sees the write before it, whatever else is under way.
    let mut items = Vec::new();
    for round in 0..20 {
        for key in ["a", "b", "c"] {
            items.push(put_item(put(key, format!("{key} {round}"))));
            items.push(get_item(get(key)));
            items.push(delete_item(key));
            items.push(get_item(get(key)));
        }
    }
    let outcomes = run(&kv, items, 30_000).await;
    for (at, of_key) in outcomes.chunks(4).enumerate() {
        let key = ["a", "b", "c"][at % 3];
        assert_eq!(found(&of_key[1]), [format!("{key} {}", at / 3)]);
        assert_eq!(found(&of_key[3]), [""; 0]);
    }

    // One key is slow on purpose: what the deadline finds not begun was surely not applied.
    let puts = (0..1_000).map(|n| put_item(put("contended", n.to_string()))).collect();
    let outcomes = run(&kv, puts, 60).await;
    let done = outcomes.iter().take_while(|outcome| matches!(outcome, Outcome::Put(_))).count();
    let mut begun = done;
    for outcome in &outcomes[done..] {
        let (code, said, surely_not) = error(outcome);
        assert_eq!(code, Code::DeadlineExceeded, "{said}");
        if !surely_not {
            begun += 1;
        }
    }
    assert!(begun <= done + 1 && done < 1_000, "{done} done, {begun} begun");
    let answer = kv.clone().get(get("contended")).await.expect("get").into_inner();
    let last = client::values(&answer)
        .first()
        .map_or(-1, |value| String::from_utf8_lossy(value).parse::<i64>().expect("a number"));
    let done = i64::try_from(done).expect("small");
    assert!((done - 1..=done).contains(&last), "{done} done, and the last is {last}");
    cluster.check();
}

/// With one of three nodes gone, `w = all` can't be met and the rest can; a status never says less than was done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_tell_the_truth_while_a_node_is_down() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let kvs: Vec<Kv> = cluster.all_clients().into_iter().map(kv).collect();
    client::wait_for_all(&cluster.all_clients(), 3).await;
    cluster.nodes[2].kill();
    let all = |request| proto::PutRequest {
        acks: Some(proto::put_request::Acks::WLevel(proto::Level::All.into())),
        ..request
    };
    // Some come while the others still think that it is up, some when they know better.
    for round in 0..6 {
        let key = |n: usize| format!("round {round} key {n}");
        let items = (0..90).map(|n| {
            let request = proto::PutRequest { timeout_ms: 0, ..put(key(n), "v") };
            put_item(if n % 3 == 0 { all(request) } else { request })
        });
        let outcomes = run(&kvs[round % 2], items.collect(), 2_000).await;
        let gets = (0..90).map(|n| get_item(get(key(n)))).collect();
        let there = run(&kvs[1 - round % 2], gets, 5_000).await;
        for (n, (outcome, there)) in outcomes.iter().zip(&there).enumerate() {
            let there = !found(there).is_empty();
            if n % 3 > 0 {
                assert!(matches!(outcome, Outcome::Put(_)) && there, "{}: {outcome:?}", key(n));
                continue;
            }
            let (code, said, surely_not) = error(outcome);
            let codes = [Code::Unavailable, Code::DeadlineExceeded];
            assert!(codes.contains(&code), "{}: {code:?}: {said}", key(n));
            assert!(!(surely_not && there), "{}: is there, and was surely not applied: {said}", key(n));
        }
        if round == 5 {
            let refused = outcomes.iter().filter(|o| matches!(o, Outcome::Error(_))).all(|o| error(o).2);
            assert!(refused, "by now it is known to be down: nothing is begun in vain");
        }
    }
    cluster.nodes[2].start();
    cluster.nodes[2].wait_ready();
    cluster.check();
}
