//! Starts a node. Not here yet: the server replaces this file.

use std::future::Future;

use super::config::Config;

/// Why a node did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

/// Runs a node until `shutdown` is done.
pub async fn run(config: Config, shutdown: impl Future<Output = ()> + Send) -> Result<(), StartError> {
    let _ = (config, shutdown);
    Err(StartError("the server is not here yet".into()))
}
