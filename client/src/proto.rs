//! The messages and clients that the protos describe, for what the library has no word of its own for.

#![allow(missing_docs, clippy::all, clippy::pedantic)]

tonic::include_proto!("quoral.v1");
