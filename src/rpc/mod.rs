//! The wire: what turns messages into validated requests and back, and carries them.

/// The messages and services of `proto/quoral/v1`, as prost and tonic generate them.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    tonic::include_proto!("quoral.v1");

    /// The encoded descriptors of all protos, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quoral.v1.bin"));
}

pub mod transport;
