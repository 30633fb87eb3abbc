//! A client of Quoral, the Dynamo-style quorum key-value database.
//!
//! ```no_run
//! use quoral_client::{Client, NewKeyspace};
//!
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(["127.0.0.1:7400", "127.0.0.1:7410"]).await?;
//!
//! let profiles = client.keyspace("default");
//! profiles.put("user:7", "Ada").await?;
//! assert_eq!(profiles.get("user:7").await?.one()?.map(|value| &value[..]), Some(b"Ada".as_slice()));
//!
//! // Concurrent writes are kept beside each other, until somebody merges them.
//! client.ensure_keyspace(NewKeyspace::siblings("carts").sloppy(true)).await?;
//! let carts = client.keyspace("carts");
//! carts.update("cart:42", |found| {
//!     let mut carts: Vec<&[u8]> = found.values().map(|value| &value[..]).collect();
//!     carts.push(b"milk");
//!     carts.join(&b"\n"[..])
//! }).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Where requests go
//!
//! Any node answers for any key. The client asks the cluster who owns what, in the background, and sends each request
//! to a home replica of its key that is up; so it is not handed on. Nodes that it was not told of are learnt; if their
//! addresses lead nowhere from here, the given ones serve. Without any of this it works too.
//!
//! # What is sent again
//!
//! A request that fails is sent again, to another node if there is one, when that is safe: when it was surely not
//! applied (a node said so, or was never reached), or when sending it twice does the same as once. Reads are so; and
//! puts and deletes are, since each has a *request id*, under which the cluster carries it out once. Pauses grow, with
//! full jitter; what an overloaded node asks for is waited; a *budget* keeps retries to a tenth of the requests, so that
//! they never make an overload worse; and the deadline of the request ends them all. [`RetryPolicy::NEVER`] turns it off.
//!
//! Two attempts that could not know of each other, on two sides of a partition, may both be carried out. In a `siblings`
//! keyspace they are one version all the same. In an `lww` keyspace the second may stand above another client's write
//! that came between, if clocks differ by more than the time between.
//!
//! What fails in the end says in [`Error::applied`] whether it was surely not applied or may have been.
//!
//! ## What a request id costs
//!
//! The coordinator asks the other home replicas whether they know the write before it carries it out: one more exchange
//! between nodes. Each of them remembers the id for 10 minutes, up to a million of them; past that writes which have an
//! id are refused as overloaded. A stream of more than 1 500 writes a second and node, for long, had better go without:
//! [`Put::unnamed`], or [`Builder::request_ids`] for all. Such writes are sent again only if they were surely not applied.
//!
//! # Many requests
//!
//! A [`Pipeline`] carries them on one stream to each node, answered as they are ready, with the same routing and retries.
//! That costs the client and the nodes much less than a call for each.
//!
//! # What it does not do
//!
//! No TLS and no authentication, as the server has none yet. An update in an `lww` keyspace is no atomic
//! read-modify-write.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod batch;
mod client;
mod cluster;
mod endpoint;
mod error;
mod keyspace;
mod pipeline;
pub mod proto;
mod request;
pub mod retry;
pub mod route;
mod scan;
mod session;
mod update;
mod values;

pub use batch::{Batch, Item, Outcome};
pub use client::{Attempt, Builder, Client};
pub use cluster::NewKeyspace;
pub use error::{Applied, Code, Conflict, Error, Reached};
pub use keyspace::Keyspace;
pub use pipeline::Pipeline;
pub use proto::{KeyspaceInfo, NodeStatus, StatusResponse};
pub use request::{Answer, Delete, Get, Put, RequestId};
pub use retry::{Op, RetryPolicy};
pub use scan::{Entry, Page, Pages, Scan};
pub use session::Session;
pub use update::Update;
pub use values::{Context, Found, Key, Level, Sibling, Stamp, Written};
