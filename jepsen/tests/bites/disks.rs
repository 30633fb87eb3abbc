//! Disks that lose power, fail, are slow, or are full.

use crate::world::{Check, World, ensure, field, nemesis, number};

pub const CHECKS: [(&str, Check); 4] = [
    ("power", |world| Box::pin(power(world))),
    ("fsync-error", |world| Box::pin(fsync_error(world))),
    ("slow-fsync", |world| Box::pin(slow_fsync(world))),
    ("full-disk", |world| Box::pin(full_disk(world))),
];

async fn power(world: &mut World) -> Result<(), String> {
    let mut power = nemesis("power");
    for round in 0..4 {
        for node in 0..5 {
            world.ask(node, &format!("/synced?safe{round}")).await?;
            world.ask(node, &format!("/unsynced?lost{round}")).await?;
            ensure(world.ask(node, &format!("/has?lost{round}")).await? == "true", || "not written".into())?;
        }
        let hit = world.begin(power.as_mut()).await?;
        for node in world.hit(&hit) {
            ensure(world.ask(node, "/time").await.is_err(), || format!("n{} is on at {hit:?}", node + 1))?;
        }
        world.end(power.as_mut()).await?;
        for node in 0..5 {
            let cut = world.hit(&hit).contains(&node);
            let safe = world.ask(node, &format!("/has?safe{round}")).await?;
            let lost = world.ask(node, &format!("/has?lost{round}")).await?;
            let right = safe == "true" && (lost == "false") == cut;
            ensure(right, || format!("n{}: synced {safe}, unsynced {lost} at {hit:?}", node + 1))?;
        }
    }
    Ok(())
}

async fn fsync_error(world: &mut World) -> Result<(), String> {
    let mut errors = nemesis("fsync-error");
    for _ in 0..3 {
        let hit = world.begin(errors.as_mut()).await?;
        for node in 0..5 {
            let said = world.ask(node, "/synced?file").await;
            let failed = said.as_ref().is_err_and(|why| why.contains("os error 5"));
            ensure(failed == world.hit(&hit).contains(&node), || {
                format!("n{}: {said:?} at {hit:?}", node + 1)
            })?;
        }
        let calls = world.end(errors.as_mut()).await?;
        ensure(number(&calls, "calls") > 0, || format!("{calls:?}"))?;
        for node in 0..5 {
            world.ask(node, "/synced?file").await?;
        }
    }
    Ok(())
}

async fn slow_fsync(world: &mut World) -> Result<(), String> {
    let mut slow = nemesis("slow-fsync");
    // Nine syncs, and a page waits two seconds: only a short delay can be seen to its end.
    for _ in 0..30 {
        let hit = world.begin(slow.as_mut()).await?;
        let each = field(&hit, "slow-fsync").map_or(0, |how| number(how, "ms"));
        if each > 150 {
            world.end(slow.as_mut()).await?;
            continue;
        }
        let node = world.hit(&hit)[0];
        let took: i64 = world.ask(node, "/synced?file").await?.parse().map_err(|_| "no number")?;
        ensure(took >= 9 * each, || format!("{took} ms at {hit:?}"))?;
        let calls = world.end(slow.as_mut()).await?;
        ensure(number(&calls, "calls") >= 9, || format!("{calls:?}"))?;
        let after: i64 = world.ask(node, "/synced?file").await?.parse().map_err(|_| "no number")?;
        return ensure(after < 9 * each, || format!("{after} ms after {hit:?}"));
    }
    Err("no short delay was drawn".into())
}

async fn full_disk(world: &mut World) -> Result<(), String> {
    let mut full = nemesis("full-disk");
    let hit = world.begin(full.as_mut()).await?;
    for node in 0..5 {
        let said = world.ask(node, "/synced?more").await;
        let failed = said.as_ref().is_err_and(|why| why.contains("os error 28"));
        ensure(failed == world.hit(&hit).contains(&node), || format!("n{}: {said:?} at {hit:?}", node + 1))?;
    }
    world.end(full.as_mut()).await?;
    for node in 0..5 {
        world.ask(node, "/synced?more").await?;
    }
    Ok(())
}
