//! `bench`: a load generator with honest latencies.
//!
//! Closed loop: so many requests are in flight, each followed by the next. Open loop (`--rate`): request
//! number i is due at i / rate, whatever became of those before it, and its latency is measured from the
//! moment when it was due, so a pause of the server counts against every request that it delayed
//! (no coordinated omission).
//!
//! The generator runs on one thread and shares its connections, because it is usually run beside the
//! servers that it measures.

mod plot;
mod report;
mod run;
mod schedule;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use quoral_client::Pipeline;

use self::run::{Plan, Way, Workload};
use super::Global;
use super::output::{self, CliError, CliResult, Exit, note};
use super::progress::thousands;
use super::request::keyspace;
use crate::types::limits;
use crate::types::policy::{Conflicts, Level};

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Puts only.
    Put,
    /// Gets only.
    Get,
    /// Half puts, half gets.
    Mixed,
}

/// Generates load and measures it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quoral bench --workload put --seconds 10
  quoral bench --workload mixed --rate 5000 --plot latency.svg
  quoral bench --workload get --ops 200000 -o json --endpoints 127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420

Without --rate so many requests as --concurrency are always in flight. With it they begin on schedule, and
latency counts from when a request was due. Keys are bench-00000000 and so on.")]
pub struct BenchArgs {
    /// What is done.
    #[arg(long, value_enum, default_value = "mixed")]
    workload: Kind,
    /// Requests in flight (with --rate: at the most).
    #[arg(long, default_value_t = 64, value_name = "REQUESTS")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=limits::CLI_CONCURRENCY_MAX as i64))]
    concurrency: u16,
    /// Connections, spread over the endpoints.
    #[arg(long, default_value_t = 4, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=256))]
    connections: u16,
    /// How long it is measured.
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Measure so many requests instead.
    #[arg(long, value_name = "COUNT", conflicts_with = "seconds")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    ops: Option<u64>,
    /// Seconds of the same load before, that are not measured.
    #[arg(long, default_value_t = 1, value_name = "SECONDS")]
    warmup: u32,
    /// Requests a second, on schedule (open loop).
    #[arg(long, value_name = "OPS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Bytes of each value.
    #[arg(long, default_value_t = 100, value_name = "BYTES")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=limits::VALUE_BYTES_MAX as i64))]
    value_bytes: u32,
    /// Keys, chosen uniformly.
    #[arg(long, default_value_t = 100_000, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    keys: u32,
    /// Don't write the keys before gets are measured.
    #[arg(long)]
    no_preload: bool,
    /// Seed of the choice of keys.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Replicas that a get hears: a number, one, quorum or all.
    #[arg(long, value_name = "R")]
    r: Option<Level>,
    /// Acknowledgements that a put waits for, likewise.
    #[arg(long, value_name = "W")]
    w: Option<Level>,
    /// Send all requests of a connection on one stream, which costs the nodes and this generator less than a call for
    /// each. What a node does not take now waits there, up to its time, instead of being refused.
    #[arg(long)]
    stream: bool,
    /// Draw the latencies by percentile into this SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

impl BenchArgs {
    /// Measures, and prints the report.
    pub async fn run(self, global: &Global) -> CliResult {
        let client = global.client()?;
        let info = keyspace(&client, global.keyspace()).await?;
        if info.conflicts == Conflicts::Siblings.to_string() && self.workload != Kind::Get {
            return Err(CliError::usage(
                "keyspace: bench writes without contexts, which would pile up siblings; use an lww keyspace",
            ));
        }
        let plan = Arc::new(self.plan(global, info.conflicts == Conflicts::Siblings.to_string()));
        let mut ways: Vec<Way> = Vec::new();
        while ways.len() < plan.connections {
            if self.stream {
                let stream =
                    |pipeline: Pipeline| Way::Stream(pipeline.clone(), pipeline.keyspace(&plan.keyspace));
                ways.extend(client.pipelines().await?.into_iter().map(stream));
            } else {
                ways.extend(client.channels().await?.into_iter().map(Way::calls));
            }
        }
        ways.truncate(plan.connections);
        if plan.preload {
            note(format!("bench: writing {} keys", thousands(self.keys.into())));
            let failed = run::preload(&plan, &ways).await;
            if failed > 0 {
                return Err(CliError::new(
                    Exit::Unavailable,
                    format!("bench: {failed} of {} keys could not be written before", self.keys),
                ));
            }
        }
        let measured = run::measure(&plan, &ways).await;
        if let Some(path) = &self.plot {
            let svg = plot::svg(&plan.title(), &measured);
            std::fs::write(path, svg).map_err(|error| CliError::io(&path.display().to_string(), &error))?;
        }
        if global.json() {
            output::print_json(&report::json(&plan, &measured))?;
        } else {
            output::print(report::text(&plan, &measured))?;
        }
        if measured.done() == 0 {
            return Err(CliError::new(Exit::Unavailable, "bench: no request succeeded"));
        }
        Ok(Exit::Done)
    }

    fn plan(&self, global: &Global, siblings: bool) -> Plan {
        let workload = match self.workload {
            Kind::Put => Workload::Put,
            Kind::Get => Workload::Get,
            Kind::Mixed => Workload::Mixed,
        };
        Plan {
            workload,
            keyspace: global.keyspace().to_owned(),
            concurrency: self.concurrency.into(),
            connections: self.connections.into(),
            seconds: Duration::from_secs(self.seconds.into()),
            ops: self.ops,
            warmup: Duration::from_secs(self.warmup.into()),
            rate: self.rate,
            value: value(self.value_bytes as usize, self.seed),
            keys: (0..self.keys).map(|i| Bytes::from(format!("bench-{i:08}"))).collect(),
            preload: !self.no_preload && workload != Workload::Put && !siblings,
            seed: self.seed,
            r: self.r,
            w: self.w,
            timeout: global.timeout(),
        }
    }
}

/// Bytes that don't compress.
fn value(length: usize, seed: u64) -> Bytes {
    let mut random = run::Random::new(seed);
    let mut value: Vec<u8> = Vec::with_capacity(length + 8);
    while value.len() < length {
        value.extend_from_slice(&random.next().to_le_bytes());
    }
    value.truncate(length);
    value.into()
}
