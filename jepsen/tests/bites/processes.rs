//! Processes and clocks.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use quoral_jepsen::edn::Edn;
use tokio::time::sleep;

use crate::world::{Check, World, ensure, field, nemesis, number};

pub const CHECKS: [(&str, Check); 4] = [
    ("kill", |world| Box::pin(kill(world))),
    ("pause", |world| Box::pin(pause(world))),
    ("restart", |world| Box::pin(restart(world))),
    ("clock", |world| Box::pin(clock(world))),
];

async fn kill(world: &mut World) -> Result<(), String> {
    let mut kill = nemesis("kill");
    for _ in 0..3 {
        let hit = world.begin(kill.as_mut()).await?;
        for node in 0..world.cluster.len() {
            let answers = world.ask(node, "/time").await.is_ok();
            ensure(answers != world.hit(&hit).contains(&node), || {
                format!("n{}: {answers} at {hit:?}", node + 1)
            })?;
        }
        world.end(kill.as_mut()).await?;
    }
    Ok(())
}

async fn pause(world: &mut World) -> Result<(), String> {
    let mut pause = nemesis("pause");
    let hit = world.begin(pause.as_mut()).await?;
    for node in 0..world.cluster.len() {
        let said = world.ask(node, "/time").await;
        let silent = said.as_ref().is_err_and(|why| why.contains("no answer"));
        ensure(silent == world.hit(&hit).contains(&node), || format!("n{}: {said:?} at {hit:?}", node + 1))?;
    }
    world.end(pause.as_mut()).await.map(drop)
}

async fn restart(world: &mut World) -> Result<(), String> {
    let pids = |world: &World| world.cluster.nodes().iter().map(|node| node.pid()).collect::<Vec<_>>();
    let before = pids(world);
    let mut restart = nemesis("restart");
    let hit = world.begin(restart.as_mut()).await?;
    world.end(restart.as_mut()).await?;
    let after = pids(world);
    for node in 0..world.cluster.len() {
        let other = before[node] != after[node];
        ensure(other == world.hit(&hit).contains(&node), || format!("n{}: {hit:?}", node + 1))?;
    }
    Ok(())
}

/// How far a node's clock is from the truth.
async fn offset(world: &World, node: usize) -> Result<i64, String> {
    let said: i64 = world.ask(node, "/time").await?.parse().map_err(|_| "no number")?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(|error| error.to_string())?;
    Ok(said - i64::try_from(now.as_millis()).map_err(|error| error.to_string())?)
}

async fn clock(world: &mut World) -> Result<(), String> {
    const ABOUT: i64 = 50;
    let mut clock = nemesis("clock");
    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        let hit = world.begin(clock.as_mut()).await?;
        let Some(Edn::Keyword(kind)) = field(&hit, "clock").cloned() else { return Err(format!("{hit:?}")) };
        let nodes = world.hit(&hit);
        let by = number(&hit, "ms");
        // What is too small to be told from noise is not looked at.
        let clear = by.abs() > 4 * ABOUT || number(&hit, "thousandths").abs() > 120;
        if clear && seen.insert(kind.clone()) {
            for node in 0..world.cluster.len() {
                let mut offsets = Vec::new();
                for _ in 0..20 {
                    offsets.push(offset(world, node).await?);
                    sleep(Duration::from_millis(40)).await;
                }
                let near = |at: i64| offsets.iter().any(|offset| (offset - at).abs() < ABOUT);
                let far = offsets.iter().map(|offset| offset.abs()).max().unwrap_or(0);
                let right = match (nodes.contains(&node), kind.as_str()) {
                    (false, _) => far < ABOUT,
                    (true, "jump") => offsets.iter().all(|offset| (offset - by).abs() < ABOUT),
                    (true, "flicker") => near(by) && near(0),
                    (true, _) => offsets[19].abs() - offsets[0].abs() > ABOUT,
                };
                ensure(right, || format!("n{} at {hit:?}: {offsets:?}", node + 1))?;
            }
        }
        world.end(clock.as_mut()).await?;
        for node in nodes {
            let left = offset(world, node).await?;
            ensure(left.abs() < ABOUT, || format!("n{} is {left} ms off after {hit:?}", node + 1))?;
        }
    }
    ensure(seen.len() == 3, || format!("only {seen:?} were drawn"))
}
