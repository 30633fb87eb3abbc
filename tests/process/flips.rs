//! Random bytes flipped in the files of a node that is down: it starts or refuses clearly, never serves a wrong value,
//! and ends equal to the others.
//!
//! `QUORAL_FLIP_ROUNDS` sets the rounds (4; the bar is 50), `QUORAL_FLIP_SEED` the seed.
//!
//! A node that can't be healed is treated as its operator would (`docs/operations.md`, "A disk is damaged"): its directory is
//! moved away, and it is refilled on an empty one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quoral::rpc::proto;
use rustix::process::Signal;

use crate::client::{self, get_r, kv, put, values};
use crate::cluster::{Cluster, Node, alone, cli, eventually, said};
use crate::refill::wait_until_whole;
use crate::repair::metric;
use crate::repair_now::{links, number, repair};

const KEYS: u32 = 240;

/// Draws of one seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(limit).expect("small")).expect("small")
    }
}

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("listed") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

/// Flips bits in files of a directory; where. Half of them in the engine's log, among the bytes that it uses.
fn flip(data: &Path, draw: &mut Draw) -> Vec<String> {
    let mut all = Vec::new();
    files(data, &mut all);
    all.retain(|path| {
        path.file_name().is_some_and(|name| name != "LOCK") && path.metadata().expect("there").len() > 0
    });
    all.sort();
    let log = data.join("storage").join("db");
    let count = 1 + draw.below(4);
    (0..count)
        .map(|_| {
            let path = if draw.below(2) == 0 { log.clone() } else { all[draw.below(all.len())].clone() };
            let mut bytes = fs::read(&path).expect("read");
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(bytes.len(), |last| last + 1);
            let at = draw.below(used);
            bytes[at] ^= 1 << draw.below(8);
            fs::write(&path, bytes).expect("written");
            format!("{} at {at}", path.strip_prefix(data).expect("in it").display())
        })
        .collect()
}

/// What each key was last set to.
type Model = BTreeMap<u32, String>;

/// Some have a file of their own, and some are large enough that the log has several segments.
fn value_of(round: u64, n: u32) -> String {
    let times = match n % 12 {
        0 => 1_000,
        1 | 5 | 9 => 400,
        _ => 1,
    };
    format!("value of {n} in round {round} ").repeat(times)
}

/// Sets some keys, on all three replicas.
async fn write(cluster: &Cluster, model: &mut Model, round: u64, draw: &mut Draw) {
    let some: Vec<u32> = (0..KEYS).filter(|_| round == 0 || draw.below(4) == 0).collect();
    let at = cluster.nodes[0].client;
    let done = client::for_each(some.clone(), 16, move |n| async move {
        let acks = Some(proto::put_request::Acks::W(3));
        kv(at).put(proto::PutRequest { acks, ..put(format!("key {n}"), value_of(round, n)) }).await
    });
    done.await.into_iter().for_each(|result| drop(result.expect("put")));
    model.extend(some.into_iter().map(|n| (n, value_of(round, n))));
}

/// Reads all keys through each node, from one replica and from two: what comes is right. How many gets failed.
async fn read(cluster: &Cluster, which: &[usize], model: &Model, what: &str) -> usize {
    let mut failed = 0;
    for at in which.iter().map(|at| cluster.nodes[*at].client) {
        for r in [1, 2] {
            let done = client::for_each((0..KEYS).collect(), 16, move |n| async move {
                (n, kv(at).get(get_r(format!("key {n}"), r)).await)
            });
            for (n, answer) in done.await {
                match answer {
                    Ok(answer) => {
                        let found = values(answer.get_ref());
                        assert!(
                            found == [model[&n].as_bytes()],
                            "{what}: key {n} at {at}, r={r}: {found:.60?}"
                        );
                    }
                    Err(_) => failed += 1,
                }
            }
        }
    }
    failed
}

/// Reads until nothing fails any more, as it may while a starved machine lets nodes take each other for dead.
async fn read_all(cluster: &Cluster, model: &Model, what: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let failed = read(cluster, &[0, 1, 2], model, what).await;
        if failed == 0 {
            return;
        }
        assert!(Instant::now() < end, "{what}: {failed} gets fail");
        client::wait_for_all(&cluster.all_clients(), 3).await;
    }
}

/// How a round ended for the node whose files were changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Unharmed,
    Healed,
    Refused,
    /// It runs, and says that it can't read its files.
    Unreadable,
}

/// Waits until the node is ready, or has refused; why.
fn starts(cluster: &mut Cluster, at: usize) -> Result<(), String> {
    let node = &mut cluster.nodes[at];
    eventually(Duration::from_secs(60), || if node.is_running() { node.ready().map(Ok) } else { Ok(Err(())) })
        .map_err(|()| {
            let status = node.ended(Duration::from_secs(1)).expect("it has ended");
            assert_eq!(status.code(), Some(1), "{status}");
            let last = node.log_tail(1);
            assert!(last.contains("A disk is damaged"), "it says why, and what to do: {last}");
            last
        })
}

/// Two passes of the scrub from here on have ended, and what they found is healed; whether it can't read its files.
fn scrubbed(cluster: &Cluster, at: usize) -> End {
    let of = |name: &str| metric(&cluster.nodes[at], &format!("quoral_scrub_{name}"));
    let before = of("passes_total").expect("a metric");
    eventually(Duration::from_secs(60), || {
        let unreadable = of("unreadable_total")? > 0;
        match (of("passes_total")? >= before + 2, of("records_damaged")?, of("records_healed_total")?) {
            _ if unreadable => Ok(End::Unreadable),
            (true, 0, 0) => Ok(End::Unharmed),
            (true, 0, _) => Ok(End::Healed),
            other => Err(format!("{other:?}")),
        }
    })
}

fn stop(node: &mut Node) {
    node.signal(Signal::TERM);
    node.ended(Duration::from_secs(20)).expect("it stops");
}

/// What `docs/operations.md` says to do with a node that can't use its files: its data directory is moved away, and it is
/// started on an empty one, under its old id. It answers nothing wrong while the others refill it.
async fn replace_disk(cluster: &mut Cluster, at: usize, model: &Model, what: &str) {
    let away = cluster.dir.path().join("away");
    let node = &mut cluster.nodes[at];
    if node.is_running() {
        stop(node);
    }
    // What the engine prints of its own threads is no fault of the server's.
    fs::remove_file(&node.log).expect("removed");
    fs::rename(node.data(), &away).expect("moved");
    let began = Instant::now();
    node.start();
    node.wait_ready();
    read(cluster, &[at, (at + 1) % 3], model, what).await;
    wait_until_whole(cluster, at);
    let log = cluster.nodes[at].log_text();
    assert!(log.contains("replaces one that is lost"), "{what}: it took what it had for whole: {log}");
    println!("{what}: refilled after {:?}", began.elapsed());
    fs::remove_dir_all(&away).expect("removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_bytes_are_never_served_and_all_ends_equal() {
    let _alone = alone();
    let rounds = setting("QUORAL_FLIP_ROUNDS", 4);
    let seed = setting("QUORAL_FLIP_SEED", 20_261_122);
    let mut draw = Draw(seed);
    let mut cluster = Cluster::made(3);
    let more = "[repair]\ninterval_ms = 300\nscrub_interval_ms = 200\nscrub_rate_bytes = 100000000\n";
    let bootstrap = cluster.bootstrap();
    cluster.nodes.iter().for_each(|node| node.configure("", &format!("{bootstrap}{more}")));
    cluster.start_all();
    client::wait_for_all(&cluster.all_clients(), 3).await;
    let (mut model, mut ends) = (Model::new(), BTreeMap::<End, u32>::new());
    for round in 0..rounds {
        let victim = draw.below(3);
        write(&cluster, &mut model, round, &mut draw).await;
        if draw.below(2) == 0 {
            stop(&mut cluster.nodes[victim]);
        } else {
            cluster.nodes[victim].kill();
        }
        let at = flip(&cluster.nodes[victim].data(), &mut draw);
        let what = format!("seed {seed}, round {round}, n{}: {}", victim + 1, at.join(", "));
        cluster.nodes[victim].start();
        let started = starts(&mut cluster, victim);
        let end = match &started {
            Err(why) => {
                println!("{what}: refused: {why}");
                End::Refused
            }
            Ok(()) => {
                read(&cluster, &[victim, (victim + 1) % 3], &model, &what).await;
                links(&cluster, victim, 2);
                let end = scrubbed(&cluster, victim);
                println!("{what}: {end:?}");
                end
            }
        };
        if matches!(end, End::Refused | End::Unreadable) {
            replace_disk(&mut cluster, victim, &model, &what).await;
        }
        (0..3).for_each(|at| links(&cluster, at, 2));
        repair(cluster.nodes[victim].client, &[]);
        assert_eq!(number(&repair(cluster.nodes[0].client, &[]), "sent"), 0, "{what}: all are equal");
        read_all(&cluster, &model, &what).await;
        *ends.entry(end).or_default() += 1;
    }
    // Nodes that were replaced vote again.
    let (output, _) = cli(&cluster.all_clients(), &["keyspace", "create", "after"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    println!("{rounds} rounds of seed {seed}: {ends:?}");
}
