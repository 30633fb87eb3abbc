//! What an operator can see: metrics. Counted at effects and interceptors only, never inside a machine.

pub mod metrics;
pub mod repair;
