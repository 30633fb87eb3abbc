//! The shopping cart of the Dynamo paper: two devices add to one cart on the two sides of a partition, and after it
//! heals both items are there.
//!
//! ```sh
//! cargo build --release
//! cargo run --release -p quoral-client --example cart
//! ```
//!
//! It starts four nodes of its own. To cut them in two without root, the two sides take turns: while one runs the
//! other is stopped, so neither hears of the other until both run again. The keyspace is `sloppy`, so each side takes
//! writes, though it has too few of the cart's home replicas; and it keeps `siblings`, so neither cart is lost.

mod nodes;

use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nodes::Nodes;
use quoral_client::{Client, Found, Keyspace, Level, NewKeyspace, Op, RetryPolicy, proto};

/// What is in the cart: the union of all versions. An item that is in any of them was added by somebody.
fn items(found: &Found) -> BTreeSet<String> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    found.values().flat_map(|value| text(value).lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Adds an item to what this device sees of the cart.
async fn add(carts: &Keyspace, item: &'static str) -> Result<(), quoral_client::Error> {
    let with_item = move |found: &Found| {
        let mut items = items(found);
        items.insert(item.to_owned());
        items.into_iter().collect::<Vec<_>>().join("\n")
    };
    let done = carts.update("cart:42", with_item).await?;
    println!("  added {item}: {} of {} acknowledgements, sloppy: {}", done.acks, done.w, done.sloppy);
    Ok(())
}

/// Waits until what fallbacks took has come home.
async fn hints_are_home(client: &Client) -> Result<(), Box<dyn Error>> {
    loop {
        let hints = client.call(Op::Read, |attempt| async move {
            let mut cluster = attempt.cluster();
            cluster.hints(proto::HintsRequest {}).await
        });
        let hints = hints.await?;
        if hints.silent.is_empty() && hints.logs.iter().all(|log| log.hints == 0) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Plays it, and returns what is in the cart at the end.
pub async fn run(binary: &Path, base_port: u16) -> Result<BTreeSet<String>, Box<dyn Error>> {
    const PHONE_SIDE: [usize; 2] = [0, 1];
    const LAPTOP_SIDE: [usize; 2] = [2, 3];
    let mut nodes = Nodes::start(binary, base_port, 4)?;
    let device = |side: [usize; 2]| {
        let endpoints = side.map(|at| nodes::address(base_port, at));
        // Nodes that have just been started need a while: as many attempts as the time has room for.
        let patient = RetryPolicy { attempts: u32::MAX, ..RetryPolicy::default() };
        let time = Duration::from_secs(30);
        Client::builder().endpoints(endpoints).timeout(time).retries(patient).connect_lazy()
    };
    let (phone, laptop) = (device(PHONE_SIDE)?, device(LAPTOP_SIDE)?);
    println!("Four nodes; a keyspace that is sloppy and keeps siblings.");
    phone.ensure_keyspace(NewKeyspace::siblings("carts").sloppy(true)).await?;
    let (of_phone, of_laptop) = (phone.keyspace("carts"), laptop.keyspace("carts"));
    of_phone.put("cart:0", "all nodes are there").w(Level::All).sloppy(false).await?;

    println!("Two nodes are cut off. The phone adds milk through the other two.");
    nodes.stop(&LAPTOP_SIDE);
    add(&of_phone, "milk").await?;
    println!("The laptop, on the other side, has not heard of it. It adds eggs.");
    nodes.stop(&PHONE_SIDE);
    nodes.run(&LAPTOP_SIDE)?;
    add(&of_laptop, "eggs").await?;

    println!("The partition heals.");
    nodes.run(&PHONE_SIDE)?;
    hints_are_home(&phone).await?;
    for (name, carts) in [("phone", &of_phone), ("laptop", &of_laptop)] {
        // A quorum of homes, and no fallbacks: the ordinary guarantees hold again.
        let found = carts.get("cart:42").sloppy(false).await?;
        println!("  the {name} sees {:?} in {} versions", items(&found), found.siblings.len());
    }
    println!("The next to add something merges them.");
    add(&of_phone, "bread").await?;
    let found = of_laptop.get("cart:42").await?;
    println!("  the laptop sees {:?} in {} version", items(&found), found.siblings.len());
    Ok(items(&found))
}

/// The server's binary: `QUORAL_BINARY`, or the one that was built beside this example.
#[allow(dead_code, reason = "a test plays it with a binary of its own")]
fn binary() -> Result<PathBuf, Box<dyn Error>> {
    if let Some(path) = std::env::var_os("QUORAL_BINARY") {
        return Ok(path.into());
    }
    let example = std::env::current_exe()?;
    let beside = example.ancestors().nth(2).map(|profile| profile.join("quoral"));
    beside
        .filter(|path| path.exists())
        .ok_or_else(|| "no quoral is built beside this example: cargo build, or set QUORAL_BINARY".into())
}

#[allow(dead_code, reason = "a test plays it with a binary of its own")]
#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    run(&binary()?, 17_400).await?;
    Ok(())
}
