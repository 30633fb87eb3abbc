//! `serve`: runs one node until it is told to stop.
//!
//! It makes what a process has only one of (log, runtime, signals) and hands over to `node::startup`.

use std::future::Future;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use super::Global;
use super::output::{CliError, CliResult, Exit};
use crate::node::config::Config;
use crate::node::startup;

/// Runs one node.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quoral serve --config quoral.toml
  QUORAL_LOG_LEVEL=debug quoral serve --config quoral-dev/n2/quoral.toml

SIGTERM or Ctrl-C stops it cleanly; a second one at once. An acknowledged write survives either way.")]
pub struct ServeArgs {
    /// The node's configuration; `quoral config check FILE` tries it.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Stop when stdin ends: the process that started this node holds the other end, and has gone.
    #[arg(long, hide = true)]
    stop_with_parent: bool,
}

impl ServeArgs {
    /// Runs the node; returns when it has stopped.
    pub fn run(self, _: &Global) -> CliResult {
        let config = Config::load(&self.config).map_err(|error| CliError::error(error.to_string()))?;
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(&config.log.level))
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .init();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.runtime.threads)
            .enable_all()
            .build()
            .map_err(|error| CliError::io("the async runtime", &error))?;
        let parent = self.stop_with_parent.then(parent_gone);
        let ended = runtime.block_on(async {
            let shutdown = stop_signal(parent).map_err(|error| CliError::io("signals", &error))?;
            startup::run(config, shutdown).await.map_err(|error| CliError::error(error.to_string()))
        });
        // Whatever still runs is of no use to anyone: what was acknowledged is on the disk. It ends first, so that
        // the error is the last that is said.
        runtime.shutdown_timeout(Duration::from_secs(1));
        ended.map(|()| Exit::Done)
    }
}

/// Done at SIGTERM, SIGINT, or when the parent has gone. A second signal ends the process at once.
fn stop_signal(
    parent: Option<oneshot::Receiver<()>>,
) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let parent_gone = async {
            match parent {
                Some(parent) => {
                    let _ = parent.await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            () = parent_gone => tracing::info!("the process that started this node has gone: stopping"),
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("a second signal: stopping at once");
            std::process::exit(1);
        });
    })
}

/// Done when stdin ends. A thread of its own, because a read of stdin can't be given up, and the runtime
/// would wait for it.
fn parent_gone() -> oneshot::Receiver<()> {
    let (gone, told) = oneshot::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        let mut stdin = std::io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let _ = gone.send(());
    });
    told
}
