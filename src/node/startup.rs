//! Starts a node. Not here yet: the server replaces this file. Until then it answers its HTTP port only,
//! which is what `dev` and its tests need.

use std::future::Future;
use std::sync::Arc;

use super::config::Config;
use super::http::{HttpState, serve_http};
use crate::rpc::transport::{Network, TcpNetwork};

/// Why a node did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

struct Nothing;

impl HttpState for Nothing {
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
    fn metrics(&self) -> String {
        "# EOF\n".into()
    }
}

/// Runs a node until `shutdown` is done.
pub async fn run(
    config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), StartError> {
    tracing::warn!("the server is not here yet: only the HTTP port answers");
    let data_dir = &config.node.data_dir;
    std::fs::create_dir_all(data_dir)
        .map_err(|error| StartError(format!("node.data_dir: {}: {error}", data_dir.display())))?;
    let at = config.listen.http;
    let listener = TcpNetwork.listen(at).await.map_err(|error| StartError(format!("{at}: {error}")))?;
    serve_http(Arc::new(Nothing), listener, shutdown).await;
    Ok(())
}
