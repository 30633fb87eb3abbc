//! `dump`: a whole keyspace as NDJSON, in the row format of `load`, one line for each value.
//!
//! Pages of a scan are written as they come, so memory is bounded; a node that dies costs a pause. With
//! `--file` the rows go to `FILE.partial`, which is renamed when all are there; a dump that was stopped
//! goes on where it was when it is started again.
//!
//! It is not a snapshot: a row that changes while the dump runs may be in it old or new.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use super::Global;
use super::checkpoint::{Checkpoint, DumpPoint, Owner};
use super::output::{self, CliError, CliResult, Exit};
use super::pages::{Known, Pages};
use super::progress::Progress;
use super::request::keyspace;
use super::rows;
use super::scan::scan_level;
use crate::rpc::proto::{ScanRequest, ScanResponse};
use crate::types::key::Position;
use crate::types::policy::Level;

/// Time between two checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);

/// Writes all rows of a keyspace as NDJSON.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quoral dump > rows.ndjson
  quoral dump --file rows.ndjson
  quoral dump --keyspace carts | quoral load - --keyspace carts2

A line is {\"key\": text, \"sort\": text, \"value\": text}, as `quoral load` takes it; bytes that are not text are in
key_b64, sort_b64, value_b64. A key with siblings has a line for each. A value with a time to live has
\"expires_at_ms\": milliseconds since 1970.")]
pub struct DumpArgs {
    /// Write to this file instead of stdout; a dump that was stopped goes on.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Begin at the start, whatever FILE.progress says.
    #[arg(long)]
    restart: bool,
    /// How long to wait for a page before the dump stops.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = super::parse_duration)]
    page_timeout: Duration,
    /// Replicas to hear: a number, one, quorum or all.
    #[arg(long, value_name = "R")]
    r: Option<Level>,
}

/// Where the rows go.
enum Sink {
    Stdout(BufWriter<io::Stdout>),
    File { out: BufWriter<File>, partial: PathBuf, path: PathBuf, checkpoint: Checkpoint },
}

impl DumpArgs {
    /// Dumps; the summary goes to stderr.
    pub async fn run(self, global: &Global) -> CliResult {
        let known = Known::ask(global).await?;
        let info = keyspace(&global.client()?, global.keyspace()).await?;
        let owner = Owner {
            cluster_id: known.cluster_id.clone(),
            keyspace: global.keyspace().to_owned(),
            keyspace_id: info.id,
        };
        let (mut sink, from) = match &self.file {
            None => (Sink::Stdout(BufWriter::new(io::stdout())), DumpPoint::default()),
            Some(path) => self.file_sink(path, owner)?,
        };
        let request = ScanRequest {
            keyspace: global.keyspace().to_owned(),
            cursor: output::parse_base64("cursor", &from.cursor)?.into(),
            answers: self.r.map(scan_level),
            ..Default::default()
        };
        let pages = Pages::new(global, &known, request, self.page_timeout)?;
        write_all(&mut sink, pages, from, global.keyspace()).await?;
        sink.close()?;
        Ok(Exit::Done)
    }

    /// Opens the partial file, at the point where an earlier dump was if there was one.
    fn file_sink(&self, path: &Path, owner: Owner) -> Result<(Sink, DumpPoint), CliError> {
        let checkpoint = Checkpoint::of(path, owner);
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let bad = |error: io::Error| CliError::io(&partial.display().to_string(), &error);
        let mut point = match checkpoint.read::<DumpPoint>() {
            _ if self.restart => DumpPoint::default(),
            Ok(point) => point.unwrap_or_default(),
            Err(why) => {
                let path = checkpoint.path().display();
                output::note(format!("dump: {path} is not used, {why}: beginning at the start"));
                DumpPoint::default()
            }
        };
        let mut file =
            OpenOptions::new().create(true).write(true).truncate(false).open(&partial).map_err(bad)?;
        if file.metadata().map_err(bad)?.len() < point.bytes {
            output::note("dump: the partial file is shorter than it was: beginning at the start");
            point = DumpPoint::default();
        }
        file.set_len(point.bytes).map_err(bad)?;
        file.seek(SeekFrom::Start(point.bytes)).map_err(bad)?;
        if point.rows > 0 {
            output::note(format!("dump: going on behind row {} (--restart begins at the start)", point.rows));
        }
        Ok((Sink::File { out: BufWriter::new(file), partial, path: path.into(), checkpoint }, point))
    }
}

/// Writes page after page.
async fn write_all(
    sink: &mut Sink,
    mut pages: Pages,
    mut point: DumpPoint,
    keyspace: &str,
) -> Result<(), CliError> {
    // Pages come in order of partition, and the position of a key tells how far around the ring that is.
    let mut share = 0.0_f64;
    let mut progress: Option<Progress> = None;
    let before = point.rows;
    let mut saved = Instant::now();
    let mut buffer = Vec::new();
    loop {
        let page = match pages.next().await {
            Ok(Some(page)) => page,
            Ok(None) => break,
            Err(error) => {
                sink.save(&point)?;
                return Err(error);
            }
        };
        point.rows += write_page(&mut buffer, &page);
        if let Some(last) = page.entries.last() {
            share = share.max(Position::of(keyspace, &last.key).0 as f64 / u64::MAX as f64);
        }
        let shown =
            progress.get_or_insert_with(|| Progress::new("dump", if before > 0 { share } else { 0.0 }));
        sink.write(&buffer)?;
        point.bytes += buffer.len() as u64;
        buffer.clear();
        point.cursor = output::context_text(&page.cursor);
        shown.update(point.rows - before, Some(share));
        if saved.elapsed() >= CHECKPOINT_EVERY && !page.cursor.is_empty() {
            sink.save(&point)?;
            saved = Instant::now();
        }
    }
    progress.unwrap_or_else(|| Progress::new("dump", 0.0)).finish(point.rows - before, "");
    Ok(())
}

/// Appends the rows of a page; returns how many.
fn write_page(buffer: &mut Vec<u8>, page: &ScanResponse) -> u64 {
    let mut count = 0;
    for entry in &page.entries {
        for sibling in &entry.siblings {
            // A Vec takes everything, and strings and base64 always serialize.
            let _ = rows::write(buffer, &entry.key, &entry.sort, &sibling.value, sibling.expires_at_ms);
            count += 1;
        }
    }
    count
}

impl Sink {
    fn write(&mut self, rows: &[u8]) -> Result<(), CliError> {
        match self {
            Sink::Stdout(out) => output::stdout_result(out.write_all(rows).and_then(|()| out.flush())),
            Sink::File { out, partial, .. } => {
                out.write_all(rows).map_err(|error| CliError::io(&partial.display().to_string(), &error))
            }
        }
    }

    /// Makes what is written durable, then saves the point behind it.
    fn save(&mut self, point: &DumpPoint) -> Result<(), CliError> {
        match self {
            Sink::File { out, partial, checkpoint, .. } if !point.cursor.is_empty() => {
                out.flush()
                    .and_then(|()| out.get_ref().sync_data())
                    .map_err(|error| CliError::io(&partial.display().to_string(), &error))?;
                checkpoint.write(point)
            }
            _ => Ok(()),
        }
    }

    /// Gives the file its name: all rows are there.
    fn close(self) -> Result<(), CliError> {
        let Sink::File { mut out, partial, path, checkpoint } = self else { return Ok(()) };
        out.flush()
            .and_then(|()| out.get_ref().sync_all())
            .and_then(|()| fs::rename(&partial, &path))
            .map_err(|error| CliError::io(&path.display().to_string(), &error))?;
        checkpoint.remove()
    }
}
