//! A node on a directory that is not its own, or that has lost what it was, does not take part.

use std::time::Duration;

use crate::client::{self, get, get_r, kv, put};
use crate::cluster::{Cluster, Node, alone, copy_dir, eventually, free_ports, listed, said};

/// A refusal by peers waits for a while: the peer may not have noticed yet that an old process is gone.
const REFUSED_WITHIN: Duration = Duration::from_secs(40);

/// Waits for the node to end by itself with an error that has all of `parts`.
#[track_caller]
fn assert_dies_saying(node: &mut Node, parts: &[&str]) {
    let status = node.ended(REFUSED_WITHIN);
    let log = node.log_tail(20);
    let status = status.unwrap_or_else(|| panic!("{} goes on: {:?}\n{log}", node.name, node.ready()));
    assert_eq!(status.code(), Some(1), "{log}");
    let last = log.lines().last().unwrap_or_default();
    for part in parts {
        assert!(last.contains(part), "{part:?} is not in {last:?}");
    }
}

#[test]
fn the_directory_of_another_is_refused() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let bootstrap = cluster.bootstrap();
    let base = free_ports(10);

    // In use by a live process: the same directory under the same id.
    let mut rival = Node::new(cluster.dir.path().join("rival"), "n1", &cluster.nodes[0].id, base);
    let data = cluster.nodes[0].data();
    let at = format!("advertise_peer = \"{}\"\n", cluster.nodes[0].peer);
    rival.configure(&at, &bootstrap);
    let text = std::fs::read_to_string(&rival.config).expect("it was written");
    let text = text.replace("data_dir = \"data\"", &format!("data_dir = {:?}", data.display().to_string()));
    std::fs::write(&rival.config, &text).expect("written");
    rival.start();
    assert_dies_saying(&mut rival, &["in use by another process", &data.display().to_string()]);

    // Of another node.
    cluster.nodes[0].kill();
    let mut other = Node::new(cluster.dir.path().join("other"), "n2", &cluster.nodes[1].id, base);
    other.configure(&format!("advertise_peer = \"{}\"\n", cluster.nodes[1].peer), &bootstrap);
    copy_dir(&cluster.nodes[0].data(), &other.data());
    other.start();
    assert_dies_saying(&mut other, &["of node 00000000000000a1", "this node is 00000000000000a2"]);

    // Of another cluster: the name, or a list with another node, makes it another.
    rival.configure(&at, &format!("cluster = \"elsewhere\"\n{bootstrap}"));
    copy_dir(&cluster.nodes[0].data(), &rival.data());
    rival.start();
    assert_dies_saying(&mut rival, &["of cluster", "this node's cluster is"]);

    // Not a data directory at all.
    std::fs::remove_dir_all(rival.data()).expect("removed");
    std::fs::create_dir(rival.data()).expect("made");
    std::fs::write(rival.data().join("thesis.tex"), "years of work").expect("written");
    rival.configure(&at, &bootstrap);
    rival.start();
    assert_dies_saying(&mut rival, &["thesis.tex", "not a data directory"]);
    assert_eq!(std::fs::read_dir(rival.data()).expect("there").count(), 1, "nothing was put into it");

    // None of it harmed the owner.
    cluster.nodes[0].start();
    cluster.wait_ready();
    cluster.check();
}

/// Also when the cluster learns of it late: all nodes start together, one of them on an empty disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_directory_is_known_to_a_cluster_that_starts() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    kv(cluster.nodes[0].client).put(put("k", "v")).await.expect("put");
    cluster.kill_all();
    std::fs::remove_dir_all(cluster.nodes[1].data()).expect("removed");
    cluster.start_all();
    assert!(cluster.nodes[1].log_text().contains("this data directory replaces one that is lost"));
    for at in &cluster.all_clients() {
        client::wait_for_all(&[*at], 2).await;
        let answer = kv(*at).get(get_r("k", 2)).await.expect("two are there");
        assert_eq!(client::values(answer.get_ref()), ["v"]);
    }
    cluster.check();
}

/// F12: a copy of a data directory must not run beside the original.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f12_a_copy_beside_the_original_is_refused() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    kv(cluster.nodes[0].client).put(put("k", "v")).await.expect("put");
    // A copy of a directory at rest: as from a backup.
    cluster.nodes[0].kill();
    let mut copy = Node::new(cluster.dir.path().join("copy"), "n1", &cluster.nodes[0].id, free_ports(10));
    copy_dir(&cluster.nodes[0].data(), &copy.data());
    copy.configure(&format!("advertise_peer = \"{}\"\n", cluster.nodes[0].peer), &cluster.bootstrap());
    cluster.nodes[0].start();
    cluster.wait_ready();
    client::wait_for_all(&cluster.all_clients(), 3).await;

    copy.start();
    // It never serves, and ends with the reason.
    let end = std::time::Instant::now() + REFUSED_WITHIN;
    while copy.is_running() {
        assert!(copy.ready().is_err(), "the copy serves:\n{}", copy.log_tail(20));
        assert!(
            std::time::Instant::now() < end,
            "the copy goes on: {:?}\n{}",
            copy.ready(),
            copy.log_tail(20)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let log = copy.log_tail(5);
    // The cluster says it, or the gossip of the original, whichever is first.
    let last = log.lines().last().unwrap_or_default();
    let told =
        last.contains("another process with node id") || last.contains("has this node id; this one stops");
    assert!(told, "{log}");
    // The original goes on as if nothing had been.
    assert_eq!(cluster.nodes[0].ready(), Ok(()));
    client::wait_for_all(&cluster.all_clients(), 3).await;
    cluster.check();
}

/// F11, F12: an engine without its files under an identity that was kept is a lost disk, and does not vote while it is
/// empty.
#[tokio::test]
async fn f11_a_lost_storage_folder_is_a_lost_disk() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    // Two of three have it; then one of the two loses it, and is asked together with the third.
    cluster.nodes[1].kill();
    kv(cluster.nodes[0].client).put(put("k", "v")).await.expect("put");
    cluster.nodes[0].kill();
    cluster.nodes[2].kill();
    std::fs::remove_dir_all(cluster.nodes[0].data().join("storage")).expect("removed");
    cluster.nodes[1].start();
    cluster.nodes[0].start();
    cluster.nodes[1].wait_ready();
    let found = kv(cluster.nodes[1].client).get(get("k")).await;
    assert!(found.is_err(), "two empty ones answer: {found:?}");
    assert!(cluster.nodes[0].ready().is_err(), "admitted by more than half of the others, not by one of two");
    cluster.nodes[2].start();
    cluster.wait_ready();
    for at in &cluster.all_clients() {
        client::wait_for_all(&[*at], 2).await;
        let answer = kv(*at).get(get("k")).await.expect("get").into_inner();
        assert!(answer.found, "with the third node back the write is there");
    }
    cluster.check();
}

/// F12: a directory restored from a backup has forgotten dots that it issued, and writes that it took.
#[tokio::test]
async fn f12_an_older_copy_of_a_directory_is_refused() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    cluster.nodes[0].kill();
    let backup = cluster.dir.path().join("backup");
    copy_dir(&cluster.nodes[0].data(), &backup);
    cluster.nodes[0].start();
    cluster.wait_ready();
    client::wait_for_all(&cluster.all_clients(), 3).await;
    kv(cluster.nodes[0].client).put(put("k", "v")).await.expect("put");
    cluster.nodes[0].kill();
    let (data, latest) = (cluster.nodes[0].data(), cluster.dir.path().join("latest"));
    std::fs::rename(&data, &latest).expect("moved");
    copy_dir(&backup, &data);
    cluster.nodes[0].start();
    assert_dies_saying(&mut cluster.nodes[0], &["an older copy"]);
    std::fs::remove_dir_all(&data).expect("removed");
    std::fs::rename(&latest, &data).expect("moved");
    cluster.nodes[0].start();
    cluster.wait_ready();
    cluster.check();
}

#[test]
fn unequal_bootstrap_lists_refuse_each_other() {
    let _alone = alone();
    let mut cluster = Cluster::made(3);
    // The third believes in a fourth.
    let fourth =
        listed("00000000000000a4", "n4", format!("127.0.0.1:{}", free_ports(10)).parse().expect("at"));
    let other = cluster.bootstrap().replace("]\n", &format!("{fourth}]\n"));
    cluster.nodes[2].configure("", &other);
    cluster.nodes.iter_mut().for_each(Node::start);
    assert_dies_saying(&mut cluster.nodes[2], &["cluster", "the bootstrap lists must be equal"]);
    for node in &mut cluster.nodes[..2] {
        assert!(node.ready().is_err(), "{} serves a cluster that is not there", node.name);
        eventually(Duration::from_secs(20), || {
            let log = node.log_text();
            if log.contains("the bootstrap lists must be equal") { Ok(()) } else { Err(log) }
        });
    }
    // Set right, they find each other.
    cluster.nodes[2].configure("", &cluster.bootstrap());
    std::fs::remove_dir_all(cluster.nodes[2].data()).expect("removed");
    cluster.nodes[2].start();
    cluster.wait_ready();
    cluster.check();
}

#[test]
fn a_bad_configuration_names_its_place() {
    let _alone = alone();
    let cluster = Cluster::made(1);
    let node = &cluster.nodes[0];
    let good = std::fs::read_to_string(&node.config).expect("it was written");
    let cases: [(String, &[&str]); 4] = [
        (format!("{good}\n[limits]\nvalue_bytse = 3\n"), &["limits.value_bytse"]),
        (good.replace("partitions = 32", "partitions = 33"), &["bootstrap.partitions", "33", "power of two"]),
        (
            format!("{good}\n[limits]\nvalue_bytes = 99999999\n"),
            &["limits.value_bytes", "99999999", "16777216"],
        ),
        (good.replace("00000000000000a1\"\nname", "x\"\nname"), &["node.id"]),
    ];
    for (text, parts) in cases {
        std::fs::write(&node.config, &text).expect("written");
        let config = node.config.display().to_string();
        let (checked, _) = crate::cluster::run(&["config", "check", &config], Duration::from_secs(10));
        let (served, _) = crate::cluster::run(&["serve", "--config", &config], Duration::from_secs(10));
        for output in [&checked, &served] {
            assert!(!output.status.success(), "{text}");
            for part in parts {
                assert!(said(output).contains(part), "{part:?} is not in {:?}", said(output));
            }
        }
        assert!(!node.data().exists(), "nothing is begun under a bad configuration");
    }
}
