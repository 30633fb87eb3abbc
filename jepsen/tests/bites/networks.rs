//! Partitions, and packets that are lost, late, out of order or twice.

use std::time::{Duration, Instant};

use quoral_jepsen::edn::Edn;
use tokio::time::{sleep, timeout};

use crate::world::{Check, World, ensure, field, nemesis, number};

pub const CHECKS: [(&str, Check); 11] = [
    ("partition", |world| Box::pin(partition(world, "partition"))),
    ("partition-halves", |world| Box::pin(partition(world, "partition-halves"))),
    ("partition-isolate", |world| Box::pin(partition(world, "partition-isolate"))),
    ("partition-one-way", |world| Box::pin(partition(world, "partition-one-way"))),
    ("partition-bridge", |world| Box::pin(partition(world, "partition-bridge"))),
    ("partition-ring", |world| Box::pin(partition(world, "partition-ring"))),
    ("partition-random", |world| Box::pin(partition(world, "partition-random"))),
    ("loss", |world| Box::pin(loss(world))),
    ("delay", |world| Box::pin(delay(world))),
    ("jitter", |world| Box::pin(jitter(world))),
    ("duplicate", |world| Box::pin(duplicate(world))),
];

/// For each pair whether a datagram arrives: `[to][from]`.
async fn heard(world: &World) -> Result<Vec<Vec<bool>>, String> {
    let nodes = world.cluster.len();
    for to in 0..nodes {
        world.ask(to, "/received").await?;
    }
    for from in 0..nodes {
        for to in (0..nodes).filter(|to| *to != from) {
            world.ask(from, &format!("/send?{}&2", world.peer(to))).await?;
        }
    }
    sleep(Duration::from_millis(200)).await;
    let mut all = Vec::new();
    for to in 0..nodes {
        let said = world.ask(to, "/received").await?;
        let from = |from: usize| from == to || said.contains(&format!("{} ", world.peer(from)));
        all.push((0..nodes).map(from).collect());
    }
    Ok(all)
}

async fn partition(world: &mut World, name: &str) -> Result<(), String> {
    let mut partition = nemesis(name);
    let cut = world.begin(partition.as_mut()).await?;
    let Some(Edn::Map(deaf)) = field(&cut, "deaf").cloned() else { return Err(format!("{cut:?}")) };
    ensure(!deaf.is_empty(), || "nobody is deaf".into())?;
    let names = world.cluster.names();
    let is_deaf = |to: usize, from: usize| {
        let of = deaf.iter().find(|(name, _)| *name == Edn::Str(names[to].clone()));
        matches!(of, Some((_, Edn::Set(all))) if all.contains(&Edn::Str(names[from].clone())))
    };
    let heard_during = heard(world).await?;
    for (to, from) in (0..5).flat_map(|to| (0..5).map(move |from| (to, from))) {
        let right = heard_during[to][from] != is_deaf(to, from);
        ensure(right, || format!("n{} to n{} at {cut:?}", from + 1, to + 1))?;
    }
    // The runner is on nobody's side.
    world.cluster.wait_ready(Duration::from_secs(2)).await.map_err(|error| error.to_string())?;
    world.end(partition.as_mut()).await?;
    let after = heard(world).await?;
    ensure(after.iter().flatten().all(|heard| *heard), || format!("after {cut:?}: {after:?}"))
}

async fn loss(world: &mut World) -> Result<(), String> {
    let mut loss = nemesis("loss");
    let hit = world.begin(loss.as_mut()).await?;
    let node = world.hit(&hit)[0];
    let other = (node + 1) % 5;
    let (came, _) = world.datagrams(node, other, 1_000).await?;
    let expected = 1_000 - 10 * u64::try_from(number(&hit, "percent")).unwrap_or(0);
    ensure(came.abs_diff(expected) < 80, || format!("{came} of 1000 came at {hit:?}"))?;
    world.end(loss.as_mut()).await?;
    let (came, _) = world.datagrams(node, other, 1_000).await?;
    ensure(came > 990, || format!("{came} of 1000 came after {hit:?}"))
}

/// How long a page takes at best.
async fn page(world: &World, node: usize) -> Result<Duration, String> {
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let began = Instant::now();
        timeout(Duration::from_secs(5), world.ask(node, "/time")).await.map_err(|_| "too late")??;
        best = best.min(began.elapsed());
    }
    Ok(best)
}

async fn delay(world: &mut World) -> Result<(), String> {
    let mut delay = nemesis("delay");
    let hit = world.begin(delay.as_mut()).await?;
    let by = Duration::from_millis(u64::try_from(number(&hit, "ms")).unwrap_or(0));
    for node in 0..5 {
        // To and fro for the connection, and again for the page.
        let took = page(world, node).await?;
        let right = if world.hit(&hit).contains(&node) { took >= by * 4 } else { took < by * 4 };
        ensure(right, || format!("n{} answers in {took:?} at {hit:?}", node + 1))?;
    }
    world.end(delay.as_mut()).await?;
    let took = page(world, world.hit(&hit)[0]).await?;
    ensure(took < by * 4, || format!("{took:?} after {hit:?}"))
}

async fn jitter(world: &mut World) -> Result<(), String> {
    let mut jitter = nemesis("jitter");
    let hit = world.begin(jitter.as_mut()).await?;
    let node = world.hit(&hit)[0];
    let (came, late) = world.datagrams(node, (node + 1) % 5, 500).await?;
    ensure(came > 490 && late > 20, || format!("{came} of 500 came, {late} out of order, at {hit:?}"))?;
    world.end(jitter.as_mut()).await?;
    let (came, late) = world.datagrams(node, (node + 1) % 5, 500).await?;
    ensure(came > 490 && late == 0, || format!("{came} of 500 came, {late} out of order, after {hit:?}"))
}

async fn duplicate(world: &mut World) -> Result<(), String> {
    let mut duplicate = nemesis("duplicate");
    let hit = world.begin(duplicate.as_mut()).await?;
    let node = world.hit(&hit)[0];
    let (came, _) = world.datagrams(node, (node + 1) % 5, 1_000).await?;
    ensure(came > 1_010, || format!("{came} of 1000 came at {hit:?}"))?;
    let packets = world.end(duplicate.as_mut()).await?;
    ensure(number(&packets, "packets") > 0, || "none counted".into())?;
    let (came, _) = world.datagrams(node, (node + 1) % 5, 1_000).await?;
    ensure((990..=1_000).contains(&came), || format!("{came} of 1000 came after {hit:?}"))
}
