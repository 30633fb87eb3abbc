//! One node: its configuration and what it is made of.

pub mod config;
pub mod http;
pub mod startup;
