//! The wire: what turns messages into validated requests and back, and carries them.
//!
//! The services call the traits [`requests::KvHandler`], [`requests::ClusterHandler`] and
//! [`peer_service::PeerHandler`]; the node implements them. prost's types end in [`convert`] for clients, and
//! at the node's edge to its peers.

/// The messages and services of `proto/quoral/v1`, as prost and tonic generate them.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    tonic::include_proto!("quoral.v1");

    /// The encoded descriptors of all protos, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quoral.v1.bin"));
}

pub mod admission;
pub mod cluster_service;
pub mod convert;
pub mod http2;
pub mod item;
pub mod kv_service;
pub mod malformed;
pub mod peer_link;
pub mod peer_service;
pub mod requests;
pub mod session;
pub mod transport;
pub mod tree_wire;
