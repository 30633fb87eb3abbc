//! `inspect`: the layout, a key's preference list, a partition, a record; asked of a running cluster, or
//! read from a data directory whose node is stopped.
//!
//! Both ways print the same, as far as each knows it: only the cluster knows who is alive, only a data
//! directory what exactly is stored in it. With `-o json`:
//! - `layout`: `{"cluster_id","map_version","layout_version","partitions","members":[{"node","name","address",
//!   "zone","weight","share"}]}`, share as in `status`; with `--partitions` then a line for each partition,
//!   `{"partition","owners":[node]}`.
//! - `preflist`: `{"key","sort"?,"keyspace","partition","position","layout_version","nodes":[{"node","name",
//!   "zone","role","state"}]}`, in order; role `home` or `fallback`, state null from a data directory.
//! - `partition`: `{"partition","first_position","last_position","map_version","layout_version","owners":
//!   [{"node","name","zone","state"}]}`; from a data directory also `"node"` (whose it is), `"strays"`,
//!   `"keyspaces":[{"id","name","records","versions","siblings","tombstones","expired","bytes","damaged"}]` and
//!   `"damaged":[{"keyspace","key","sort"?,"why"}]`, the first few.
//! - `record`: of the cluster that of `explain`; from a data directory see `record`.
//! - `quarantine`: `{"node","quarantine":[{"key","sort"?,"keyspace","partition","why","found_at","healed_at","raw_bytes",
//!   "raw_hex"}],"not_kept"}`; `healed_at` is null while a record waits, `raw_hex` has the first bytes of what was found,
//!   `not_kept` is how many more wait, of which nothing is kept since there is no room.
//!
//! Exit 3: no such record (of the cluster: no replica that answered has one, and all homes answered). Exit 1
//! also where something damaged was found and shown.
//!
//! Owners of a partition are listed for the widest keyspace there may be: a keyspace's homes are the first `n`.

mod layout;
pub(super) mod offline;
mod partition;
mod preflist;
mod quarantine;
pub(super) mod record;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use self::offline::Offline;
use super::client::Cluster;
use super::explain::{self, key_text};
use super::output::{self, CliError, CliResult, Exit, Op};
use super::{Global, block_on};
use crate::node::env::{Clock as _, SystemClock};
use crate::rpc::proto;
use crate::types::error::Invalid;
use crate::types::key::Key;

/// Looks into the cluster, or into the data directory of a stopped node.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  quoral inspect layout --partitions
  quoral inspect preflist cart:42
  quoral inspect partition 7 --data-dir quoral-dev/n1/data
  quoral inspect record cart:42 --data-dir quoral-dev/n1/data -o json")]
pub enum InspectVerb {
    /// Members of the cluster, and what they own.
    Layout(layout::LayoutArgs),
    /// Home nodes and fallbacks of a key, in order.
    Preflist(preflist::PreflistArgs),
    /// Owners of a partition; from a data directory also how much is stored.
    Partition(partition::PartitionArgs),
    /// All versions of a key that are stored.
    Record(RecordArgs),
    /// Damaged records that a stopped node has set aside, and whether they are healed.
    Quarantine(quarantine::QuarantineArgs),
}

/// Where to look.
#[derive(Debug, Args)]
pub struct Where {
    /// Look into this directory of a stopped node, instead of asking the cluster.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// `inspect record`
#[derive(Debug, Args)]
pub struct RecordArgs {
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    from: Where,
}

/// A key.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// The partition key.
    key: OsString,
    /// The sort key.
    #[arg(long, value_name = "SORT")]
    sort: Option<OsString>,
}

impl KeyArgs {
    fn key(self) -> Result<Key, Invalid> {
        Key::new(self.key.into_vec(), self.sort.map(OsStringExt::into_vec).unwrap_or_default())
    }
}

impl InspectVerb {
    /// Looks where it was told to, and prints what is there.
    pub fn run(self, global: &Global) -> CliResult {
        match self {
            InspectVerb::Layout(args) => args.run(global),
            InspectVerb::Preflist(args) => args.run(global),
            InspectVerb::Partition(args) => args.run(global),
            InspectVerb::Record(args) => args.run(global),
            InspectVerb::Quarantine(args) => args.run(global),
        }
    }
}

async fn ask_layout(global: &Global) -> Result<proto::LayoutResponse, CliError> {
    let client = global.client()?;
    let ask = |mut cluster: Cluster| async move { cluster.layout(proto::LayoutRequest {}).await };
    client.call_cluster(Op::Read, ask).await
}

fn blocking<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let mut answer = None;
    block_on(async {
        answer = Some(work.await?);
        Ok(Exit::Done)
    })?;
    answer.ok_or_else(|| CliError::error("no answer"))
}

fn member<'a>(layout: &'a proto::LayoutResponse, id: &str) -> Option<&'a proto::LayoutMember> {
    layout.members.iter().find(|member| member.node_id == id)
}

impl RecordArgs {
    fn run(self, global: &Global) -> CliResult {
        let key = self.key.key()?;
        let Some(path) = &self.from.data_dir else {
            let answer = blocking(explain::ask(global, &key))?;
            explain::show(global, &key, &answer)?;
            return Ok(exit_of(&answer));
        };
        let offline = Offline::open(path)?;
        let place = offline.place(global.keyspace(), &key)?;
        let found = offline.found(&place, &key)?;
        let now = SystemClock::default().wall();
        let view = record::View { offline: &offline, place: &place, key: &key, found: found.as_ref(), now };
        if global.json() {
            output::print_json(&view.to_json())?;
        }
        match &found {
            None if global.json() => Ok(Exit::NotFound),
            None => Err(CliError::new(
                Exit::NotFound,
                format!(
                    "node {} holds no record of {} in keyspace {} (partition {})",
                    offline.identity.node_id,
                    key_text(&key),
                    place.keyspace.name,
                    place.partition
                ),
            )),
            Some(found) => {
                if !global.json() {
                    output::print(view.to_text(found))?;
                }
                Ok(if found.stored.is_ok() { Exit::Done } else { Exit::Error })
            }
        }
    }
}

/// How an answer of `explain` ends the verb.
fn exit_of(answer: &proto::ExplainResponse) -> Exit {
    let any = |version: &str| answer.replicas.iter().any(|replica| replica.version == version);
    let held = answer.replicas.iter().any(|r| !["none", "?", "damaged"].contains(&r.version.as_str()));
    let silent_home = answer.replicas.iter().any(|r| r.role == "home" && r.version == "?");
    match () {
        () if any("damaged") => Exit::Error,
        () if held => Exit::Done,
        () if silent_home => Exit::Unavailable,
        () => Exit::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(versions: [(&str, &str); 3]) -> proto::ExplainResponse {
        let replica = |(role, version): (&str, &str)| proto::ReplicaView {
            role: role.into(),
            version: version.into(),
            ..proto::ReplicaView::default()
        };
        proto::ExplainResponse {
            replicas: versions.map(replica).to_vec(),
            ..proto::ExplainResponse::default()
        }
    }

    #[test]
    fn not_found_needs_every_home() {
        for (versions, exit) in [
            ([("home", "none"), ("home", "none"), ("fallback", "?")], Exit::NotFound),
            ([("home", "none"), ("home", "?"), ("fallback", "none")], Exit::Unavailable),
            ([("home", "none"), ("home", "?"), ("fallback", "1.0@a")], Exit::Done),
            ([("home", "1.0@a"), ("home", "?"), ("home", "none")], Exit::Done),
            ([("home", "1.0@a"), ("home", "damaged"), ("home", "none")], Exit::Error),
        ] {
            assert_eq!(exit_of(&answer(versions)), exit, "{versions:?}");
        }
    }
}
