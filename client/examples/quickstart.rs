//! Puts, gets, scans, siblings and a session against a running cluster.
//!
//! ```sh
//! cargo run --release -- dev                                  # in one shell
//! cargo run -p quoral-client --example quickstart             # in another
//! ```

use std::time::Duration;

use futures_util::TryStreamExt as _;
use quoral_client::{Applied, Client, Level, NewKeyspace};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut endpoints: Vec<String> = std::env::args().skip(1).collect();
    if endpoints.is_empty() {
        endpoints = vec!["127.0.0.1:7400".into(), "127.0.0.1:7410".into()];
    }
    // Some of the nodes are enough: it learns the others.
    let client = Client::connect(endpoints).await?;
    println!("nodes: {}", client.endpoints().join(" "));

    // One value per key: the last write wins.
    let keys = client.keyspace("default");
    let done = keys.put("greeting", "hello").w(Level::All).ttl(Duration::from_secs(3_600)).await?;
    println!("put: on {} replicas, written at {:?}", done.acks, done.stamp.time());
    let found = keys.get("greeting").await?;
    println!("get: {:?}", found.one()?);

    // Sort keys of one partition key live together, in order.
    for (time, text) in [("09:00", "good morning"), ("12:30", "lunch?"), ("12:31", "yes")] {
        keys.put(("room:7", time), text).await?;
    }
    let mut noon = std::pin::pin!(keys.scan_key("room:7").prefix("12:").entries());
    while let Some(entry) = noon.try_next().await? {
        println!("scan: {:?} {:?}", entry.key.sort, entry.siblings[0].value);
    }

    // Concurrent writes are kept beside each other until somebody merges them.
    client.ensure_keyspace(NewKeyspace::siblings("tags")).await?;
    let tags = client.keyspace("tags");
    tags.put("photo:1", "cat").await?;
    tags.put("photo:1", "sofa").await?;
    println!("siblings: {:?}", tags.get("photo:1").await?.values().collect::<Vec<_>>());
    tags.update("photo:1", |found| {
        let mut all: Vec<&[u8]> = found.values().flat_map(|value| value.split(|b| *b == b' ')).collect();
        all.sort_unstable();
        all.dedup();
        all.join(&b' ')
    })
    .await?;
    println!("merged: {:?}", tags.get("photo:1").await?.one()?);

    // One client reads its own writes, with any levels and through any node.
    let session = client.session();
    let mine = session.keyspace("default");
    mine.put("draft", "first words").w(Level::One).await?;
    println!("session: {:?}", mine.get("draft").r(Level::One).await?.one()?);

    // An error says whether anything was changed.
    if let Err(error) = client.keyspace("no-such").put("k", "v").await {
        println!("refused: {error} ({:?}, applied: {})", error.code, error.applied == Applied::Maybe);
    }
    Ok(())
}
