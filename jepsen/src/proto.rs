//! The messages and clients that the protos describe.

#![allow(missing_docs, clippy::all, clippy::pedantic)]

tonic::include_proto!("quoral.v1");
