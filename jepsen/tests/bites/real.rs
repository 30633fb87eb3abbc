//! Each nemesis against real nodes, with `QUORAL_BINARY`: that the cluster goes through it and comes back, and that
//! what was acknowledged is there afterwards. It is no checker: the suite's workloads are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quoral_jepsen::cluster::{Cluster, command};
use quoral_jepsen::nemesis::NAMES;
use tokio::time::{sleep, timeout};

use crate::world::{World, ensure, nemesis};

/// How long harm lasts.
const HARM: Duration = Duration::from_secs(2);
/// Times that each nemesis strikes.
const ROUNDS: usize = 3;

/// Strikes with each that is wanted; gives how many failed.
pub async fn all(wanted: &impl Fn(&str) -> bool) -> usize {
    let names: Vec<&str> = NAMES.into_iter().filter(|name| wanted(&format!("real-{name}"))).collect();
    let Some(binary) = std::env::var_os("QUORAL_BINARY").map(PathBuf::from) else {
        eprintln!("SKIPPED {} nemeses against the real node: QUORAL_BINARY is not set", names.len());
        return 0;
    };
    if names.is_empty() {
        return 0;
    }
    let mut world = match World::start(binary.clone()).await {
        Ok(world) => world,
        Err(error) => {
            println!("FAILED  the cluster of real nodes: {error}");
            return names.len();
        }
    };
    let mut failed = 0;
    for name in names {
        let began = Instant::now();
        let result = strike(&mut world, &binary, name).await;
        let healed = world.cluster.heal_all().await.map_err(|error| format!("not healed: {error}"));
        failed += usize::from(!super::report(&format!("real-{name}"), began.elapsed(), result.and(healed)));
    }
    for node in world.cluster.crashed() {
        println!("FAILED  {node}");
        failed += 1;
    }
    world.cluster.excused().iter().for_each(|node| println!("note    {node}"));
    let _ = world.cluster.stop().await;
    failed
}

async fn strike(world: &mut World, binary: &Path, name: &str) -> Result<(), String> {
    let mut nemesis = nemesis(name);
    if let Err(why) = nemesis.probe(&world.cluster) {
        eprintln!("SKIPPED real-{name}: {why}");
        return Ok(());
    }
    for round in 0..ROUNDS {
        let mut acknowledged = Vec::new();
        let mut outcomes = BTreeMap::new();
        let value = world.begin(nemesis.as_mut()).await?;
        let end = Instant::now() + HARM;
        let mut number = 0;
        while Instant::now() < end {
            let node = number % world.cluster.len();
            let key = format!("{name}-{round}-{number}");
            let (code, said) = cli(&world.cluster, binary, node, &["put", &key, &key]).await;
            *outcomes
                .entry(format!("n{} {}", node + 1, if code == 0 { "acknowledged" } else { &said }))
                .or_insert(0) += 1;
            if code == 0 {
                acknowledged.push(key);
            }
            number += 1;
        }
        let began = Instant::now();
        let stopped =
            nemesis.stop(&mut world.cluster, &mut world.rng).await.map_err(|error| error.to_string())?;
        let ready = world.cluster.wait_ready(Duration::from_secs(30)).await;
        println!(
            "        {name} {value:?}\n        then {stopped:?}, ready in {:?}: {ready:?}",
            began.elapsed()
        );
        outcomes.iter().for_each(|(said, count)| println!("          {count:4} {said}"));
        sleep(Duration::from_millis(500)).await;
        for (at, key) in acknowledged.iter().enumerate() {
            let (code, said) = cli(&world.cluster, binary, at % world.cluster.len(), &["get", key]).await;
            ensure(said.trim() == key, || format!("{key} was acknowledged, and now: {code} {said}"))?;
        }
        ready.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The command line against one node: exit code, and what it said.
async fn cli(cluster: &Cluster, binary: &Path, node: usize, words: &[&str]) -> (i32, String) {
    let endpoint = cluster.nodes()[node].client.to_string();
    let mut command = tokio::process::Command::new(binary);
    command.args(["--endpoints", &endpoint, "--timeout", "1s"]).args(words).kill_on_drop(true);
    match timeout(command::WITHIN, command.output()).await {
        Ok(Ok(output)) => {
            let said = [output.stdout, output.stderr].concat();
            (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
        }
        other => (-1, format!("{other:?}")),
    }
}
