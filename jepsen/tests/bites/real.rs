//! Each nemesis against real nodes, with `QUORAL_BINARY`: that the cluster goes through it and comes back, and that
//! what was acknowledged is there afterwards. It is no checker: the suite's workloads are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quoral_jepsen::cluster::command;
use quoral_jepsen::nemesis::NAMES;
use tokio::time::{sleep, timeout};

use crate::world::{World, ensure, nemesis};

/// How long harm lasts.
const HARM: Duration = Duration::from_secs(2);
/// How long all is well before harm, and after.
const BEFORE: Duration = Duration::from_secs(1);
/// Who puts at once.
const WRITERS: usize = 3;
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
        let seen = Arc::new(Mutex::new(Seen::default()));
        let endpoints: Vec<String> =
            world.cluster.nodes().iter().map(|node| node.client.to_string()).collect();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let prefix = format!("{name}-{round}-{writer}");
                tokio::spawn(write(binary.to_owned(), endpoints.clone(), prefix, writer, seen.clone()))
            })
            .collect();
        sleep(BEFORE).await;
        let hit = world.begin(nemesis.as_mut()).await?;
        sleep(HARM).await;
        let began = Instant::now();
        let stopped =
            nemesis.stop(&mut world.cluster, &mut world.rng).await.map_err(|error| error.to_string())?;
        let ready = world.cluster.wait_ready(Duration::from_secs(30)).await;
        println!(
            "        {name} {hit:?}\n        then {stopped:?}, ready in {:?}: {ready:?}",
            began.elapsed()
        );
        sleep(BEFORE).await;
        for writer in writers {
            writer.abort();
            let _ = writer.await;
        }
        let seen = std::mem::take(&mut *seen.lock().expect("not poisoned"));
        seen.outcomes.iter().for_each(|(said, count)| println!("          {count:4} {said}"));
        for (at, key) in seen.acknowledged.iter().enumerate() {
            let (code, said) = cli(binary, &endpoints[at % endpoints.len()], &["get", key]).await;
            ensure(said.trim() == value(key), || {
                let said: String = said.chars().take(200).collect();
                format!("{key} was acknowledged, and now: {code} {said}")
            })?;
        }
        ready.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// What the writers were told.
#[derive(Default)]
struct Seen {
    acknowledged: Vec<String>,
    outcomes: BTreeMap<String, u64>,
}

/// Puts new keys until it is aborted, through one node after the other.
async fn write(binary: PathBuf, endpoints: Vec<String>, prefix: String, from: usize, seen: Arc<Mutex<Seen>>) {
    for number in from.. {
        let (key, node) = (format!("{prefix}-{number}"), number % endpoints.len());
        let (code, said) = cli(&binary, &endpoints[node], &["put", &key, &value(&key)]).await;
        let mut seen = seen.lock().expect("not poisoned");
        let outcome = if code == 0 { "acknowledged" } else { said.trim() };
        // Numbers differ each time, and say nothing here.
        let outcome: String = outcome.chars().filter(|c| !c.is_ascii_digit()).collect();
        *seen.outcomes.entry(format!("n{} {code}: {outcome}", node + 1)).or_default() += 1;
        if code == 0 {
            seen.acknowledged.push(key);
        }
    }
}

/// Large enough that a full disk is felt: a few small ones find room in what the node has allocated.
fn value(key: &str) -> String {
    format!("{key} {}", "x".repeat(20_000))
}

/// The command line against one node: exit code, and what it said.
async fn cli(binary: &Path, endpoint: &str, words: &[&str]) -> (i32, String) {
    let mut command = tokio::process::Command::new(binary);
    command.args(["--endpoints", endpoint, "--timeout", "1s"]).args(words).kill_on_drop(true);
    match timeout(command::WITHIN, command.output()).await {
        Ok(Ok(output)) => {
            let said = [output.stdout, output.stderr].concat();
            (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
        }
        other => (-1, format!("{other:?}")),
    }
}
