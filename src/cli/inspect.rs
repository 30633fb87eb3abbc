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
//!
//! Exit 3: no such record (of the cluster: no replica that answered has one, and all homes answered). Exit 1
//! also where something damaged was found and shown.
//!
//! Owners of a partition are listed for the widest keyspace there may be: a keyspace's homes are the first `n`.

mod offline;
mod record;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use self::offline::{Census, Offline};
use super::explain::{self, key_text};
use super::output::{self, CliError, CliResult, Exit, Op};
use super::{Global, block_on};
use crate::node::env::{Clock as _, SystemClock};
use crate::ring::partition::Partitions;
use crate::ring::placement::EXACT;
use crate::rpc::{convert, proto};
use crate::types::error::Invalid;
use crate::types::ids::{NodeId, PartitionId};
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
    Layout(LayoutArgs),
    /// Home nodes and fallbacks of a key, in order.
    Preflist(PreflistArgs),
    /// Owners of a partition; from a data directory also how much is stored.
    Partition(PartitionArgs),
    /// All versions of a key that are stored.
    Record(RecordArgs),
}

/// Where to look.
#[derive(Debug, Args)]
pub struct Where {
    /// Look into this directory of a stopped node, instead of asking the cluster.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// `inspect layout`
#[derive(Debug, Args)]
pub struct LayoutArgs {
    /// The owners of every partition too.
    #[arg(long)]
    partitions: bool,
    #[command(flatten)]
    from: Where,
}

/// `inspect preflist`
#[derive(Debug, Args)]
pub struct PreflistArgs {
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    from: Where,
}

/// `inspect partition`
#[derive(Debug, Args)]
pub struct PartitionArgs {
    /// The partition, from 0.
    partition: u32,
    #[command(flatten)]
    from: Where,
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
        }
    }
}

impl LayoutArgs {
    fn run(self, global: &Global) -> CliResult {
        let layout = match &self.from.data_dir {
            Some(path) => convert::layout_response(&Offline::open(path)?.map),
            None => blocking(ask_layout(global))?,
        };
        let members: Vec<(&proto::LayoutMember, f64)> =
            layout.members.iter().map(|member| (member, share(&layout, &member.node_id))).collect();
        if global.json() {
            output::print_json(&layout_json(&layout, &members))?;
        } else {
            output::print(layout_text(&layout, &members))?;
        }
        if self.partitions {
            output::print(partitions_text(&layout, global.json()))?;
        }
        Ok(Exit::Done)
    }
}

async fn ask_layout(global: &Global) -> Result<proto::LayoutResponse, CliError> {
    let client = global.client()?;
    let ask =
        |mut cluster: super::client::Cluster| async move { cluster.layout(proto::LayoutRequest {}).await };
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

/// A node's share of the replicas, counted as `status` counts it.
fn share(layout: &proto::LayoutResponse, node: &str) -> f64 {
    let counted = || layout.partitions.iter().flat_map(|partition| partition.owners.iter().take(EXACT));
    counted().filter(|owner| *owner == node).count() as f64 / counted().count().max(1) as f64
}

fn layout_json(layout: &proto::LayoutResponse, members: &[(&proto::LayoutMember, f64)]) -> Value {
    let member = |(member, share): &(&proto::LayoutMember, f64)| {
        json!({
            "node": member.node_id,
            "name": member.name,
            "address": member.address,
            "zone": member.zone,
            "weight": member.weight,
            "share": share,
        })
    };
    json!({
        "cluster_id": layout.cluster_id,
        "map_version": layout.map_version,
        "layout_version": layout.layout_version,
        "partitions": layout.partitions.len(),
        "members": members.iter().map(member).collect::<Vec<_>>(),
    })
}

fn layout_text(layout: &proto::LayoutResponse, members: &[(&proto::LayoutMember, f64)]) -> String {
    let row = |(member, share): &(&proto::LayoutMember, f64)| {
        let proto::LayoutMember { node_id, name, address, zone, weight } = member;
        let share = format!("{:.1}%", share * 100.0);
        vec![node_id.clone(), name.clone(), address.clone(), zone.clone(), weight.to_string(), share]
    };
    let rows: Vec<Vec<String>> = members.iter().map(row).collect();
    format!(
        "cluster {}: layout version {}, map version {}, {} partitions\n{}",
        layout.cluster_id,
        layout.layout_version,
        layout.map_version,
        layout.partitions.len(),
        output::table(&["NODE", "NAME", "ADDRESS", "ZONE", "WEIGHT", "SHARE"], &rows)
    )
}

fn partitions_text(layout: &proto::LayoutResponse, as_json: bool) -> String {
    let all = layout.partitions.iter().enumerate();
    if as_json {
        let line = |(index, owners): (usize, &proto::PartitionOwners)| {
            format!("{}\n", json!({ "partition": index, "owners": owners.owners }))
        };
        return all.map(line).collect();
    }
    let name = |id: &String| match member(layout, id) {
        Some(member) => member.name.clone(),
        None => id.clone(),
    };
    let row = |(index, owners): (usize, &proto::PartitionOwners)| {
        vec![index.to_string(), owners.owners.iter().map(name).collect::<Vec<_>>().join(", ")]
    };
    let rows: Vec<Vec<String>> = all.map(row).collect();
    format!("\n{}", output::table(&["PARTITION", "OWNERS"], &rows))
}

fn member<'a>(layout: &'a proto::LayoutResponse, id: &str) -> Option<&'a proto::LayoutMember> {
    layout.members.iter().find(|member| member.node_id == id)
}

impl PreflistArgs {
    fn run(self, global: &Global) -> CliResult {
        let key = self.key.key()?;
        let view = match &self.from.data_dir {
            Some(path) => offline_preflist(&Offline::open(path)?, &global.keyspace, &key)?,
            None => blocking(explain::ask(global, &key))?,
        };
        if global.json() {
            output::print_json(&preflist_json(&key, &view))?;
        } else {
            output::print(preflist_text(&key, &view))?;
        }
        Ok(Exit::Done)
    }
}

/// What `explain` would answer, as far as the map knows it: without states and versions.
fn offline_preflist(
    offline: &Offline,
    keyspace: &str,
    key: &Key,
) -> Result<proto::ExplainResponse, CliError> {
    let place = offline.place(keyspace, key)?;
    let nodes = |nodes: &[NodeId], role: &str| -> Vec<proto::ReplicaView> {
        let members = nodes.iter().filter_map(|node| offline.map.member(*node));
        let view = |member: &crate::ring::layout::Member| proto::ReplicaView {
            node_id: member.id.to_string(),
            name: member.name.clone(),
            zone: member.zone.clone(),
            role: role.to_string(),
            ..proto::ReplicaView::default()
        };
        members.map(view).collect()
    };
    Ok(proto::ExplainResponse {
        replicas: [nodes(&place.list.homes, "home"), nodes(&place.list.fallbacks, "fallback")].concat(),
        keyspace: place.keyspace.name,
        partition: place.partition.0.into(),
        position: format!("{:016x}", place.position.0),
        layout_version: offline.map.layout.version.0,
    })
}

fn preflist_json(key: &Key, view: &proto::ExplainResponse) -> Value {
    let mut object = Map::new();
    output::insert_bytes(&mut object, "key", key.partition_key());
    if !key.sort_key().is_empty() {
        output::insert_bytes(&mut object, "sort", key.sort_key());
    }
    object.insert("keyspace".into(), view.keyspace.clone().into());
    object.insert("partition".into(), view.partition.into());
    object.insert("position".into(), view.position.clone().into());
    object.insert("layout_version".into(), view.layout_version.into());
    let node = |r: &proto::ReplicaView| {
        let state = known(&r.state);
        json!({ "node": r.node_id, "name": r.name, "zone": r.zone, "role": r.role, "state": state })
    };
    object.insert("nodes".into(), view.replicas.iter().map(node).collect());
    Value::Object(object)
}

fn preflist_text(key: &Key, view: &proto::ExplainResponse) -> String {
    let row = |r: &proto::ReplicaView| {
        let state = known(&r.state).unwrap_or("-");
        [&r.node_id, &r.name, &r.zone, &r.role, state].map(str::to_string).to_vec()
    };
    let rows: Vec<Vec<String>> = view.replicas.iter().map(row).collect();
    format!(
        "{} in keyspace {}: position {}, partition {}, layout version {}\n{}",
        key_text(key),
        view.keyspace,
        view.position,
        view.partition,
        view.layout_version,
        output::table(&["NODE", "NAME", "ZONE", "ROLE", "STATE"], &rows)
    )
}

fn known(state: &str) -> Option<&str> {
    (!state.is_empty()).then_some(state)
}

/// A partition, and who owns it.
struct PartitionView<'a> {
    partition: PartitionId,
    partitions: Partitions,
    layout: &'a proto::LayoutResponse,
    /// States of the nodes, if the cluster was asked.
    status: Option<&'a proto::StatusResponse>,
}

impl PartitionArgs {
    fn run(self, global: &Global) -> CliResult {
        match &self.from.data_dir {
            Some(path) => self.run_offline(global, &Offline::open(path)?),
            None => self.run_online(global),
        }
    }

    fn view<'a>(
        &self,
        layout: &'a proto::LayoutResponse,
        status: Option<&'a proto::StatusResponse>,
    ) -> Result<PartitionView<'a>, CliError> {
        let count = layout.partitions.len();
        let partitions = Partitions::new(u32::try_from(count).unwrap_or(0))?;
        let partition = u16::try_from(self.partition).map(PartitionId).ok();
        match partition.filter(|partition| partitions.contains(*partition)) {
            Some(partition) => Ok(PartitionView { partition, partitions, layout, status }),
            None => {
                let problem = format!("is {}, the cluster has 0 to {}", self.partition, count - 1);
                Err(Invalid::new("partition", problem).into())
            }
        }
    }

    fn run_online(&self, global: &Global) -> CliResult {
        let (layout, status) = blocking(async {
            let layout = ask_layout(global).await?;
            let ask = |mut cluster: super::client::Cluster| async move {
                cluster.status(proto::StatusRequest {}).await
            };
            Ok((layout, global.client()?.call_cluster(Op::Read, ask).await?))
        })?;
        let view = self.view(&layout, Some(&status))?;
        if global.json() {
            output::print_json(&Value::Object(view.to_json()))?;
        } else {
            output::print(view.to_text())?;
            output::note("how much is stored of it is told from a data directory: --data-dir");
        }
        Ok(Exit::Done)
    }

    fn run_offline(&self, global: &Global, offline: &Offline) -> CliResult {
        let layout = convert::layout_response(&offline.map);
        let view = self.view(&layout, None)?;
        let census = offline.census(view.partition, SystemClock::default().wall())?;
        if global.json() {
            let mut object = view.to_json();
            object.extend(census_json(offline, &census));
            output::print_json(&Value::Object(object))?;
        } else {
            output::print(view.to_text() + &census_text(offline, &census))?;
        }
        Ok(if census.is_sound() { Exit::Done } else { Exit::Error })
    }
}

impl PartitionView<'_> {
    fn ends(&self) -> (String, String) {
        // There are at least 16 partitions, so an arc is shorter than 2^64.
        let arc = (1_u128 << 64) / u128::from(self.partitions.count());
        let first = u128::from(self.partition.0) * arc;
        (format!("{first:016x}"), format!("{:016x}", first + arc - 1))
    }

    fn owners(&self) -> impl Iterator<Item = (&proto::LayoutMember, Option<&str>)> {
        let ids = self.layout.partitions.get(usize::from(self.partition.0)).map(|p| p.owners.as_slice());
        ids.unwrap_or_default().iter().filter_map(|id| {
            let node = self.status.and_then(|status| status.nodes.iter().find(|node| node.node_id == *id));
            Some((member(self.layout, id)?, node.map(|node| node.state.as_str())))
        })
    }

    fn to_json(&self) -> Map<String, Value> {
        let (first, last) = self.ends();
        let owner = |(m, state): (&proto::LayoutMember, Option<&str>)| json!({ "node": m.node_id, "name": m.name, "zone": m.zone, "state": state });
        let fields = [
            ("partition", json!(self.partition.0)),
            ("first_position", first.into()),
            ("last_position", last.into()),
            ("map_version", self.layout.map_version.into()),
            ("layout_version", self.layout.layout_version.into()),
            ("owners", self.owners().map(owner).collect()),
        ];
        fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }

    fn to_text(&self) -> String {
        let (first, last) = self.ends();
        let row = |(m, state): (&proto::LayoutMember, Option<&str>)| {
            [&m.node_id, &m.name, &m.zone, state.unwrap_or("-")].map(str::to_string).to_vec()
        };
        let rows: Vec<Vec<String>> = self.owners().map(row).collect();
        format!(
            "partition {}: positions {first} to {last}, layout version {}, map version {}; owners in order\n{}",
            self.partition,
            self.layout.layout_version,
            self.layout.map_version,
            output::table(&["NODE", "NAME", "ZONE", "STATE"], &rows)
        )
    }
}

fn census_json(offline: &Offline, census: &Census) -> Map<String, Value> {
    let keyspace = |(id, counts): (&crate::types::ids::KeyspaceId, &offline::Counts)| {
        json!({
            "id": id.0,
            "name": offline.map.keyspace_by_id(*id).map(|keyspace| &keyspace.name),
            "records": counts.records,
            "versions": counts.versions,
            "siblings": counts.siblings,
            "tombstones": counts.tombstones,
            "expired": counts.expired,
            "bytes": counts.bytes,
            "damaged": counts.damaged,
        })
    };
    let damaged = |record: &offline::DamagedRecord| {
        let mut object = Map::new();
        object.insert("keyspace".into(), record.keyspace.0.into());
        output::insert_bytes(&mut object, "key", record.key.partition_key());
        if !record.key.sort_key().is_empty() {
            output::insert_bytes(&mut object, "sort", record.key.sort_key());
        }
        object.insert("why".into(), record.why.as_str().into());
        Value::Object(object)
    };
    let fields = [
        ("node", json!(offline.identity.node_id.to_string())),
        ("keyspaces", census.keyspaces.iter().map(keyspace).collect()),
        ("strays", census.strays.into()),
        ("damaged", census.damaged.iter().map(damaged).collect()),
    ];
    fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

fn census_text(offline: &Offline, census: &Census) -> String {
    let mut text = format!("\nstored by node {}", offline.identity.node_id);
    if census.keyspaces.is_empty() {
        text.push_str(": nothing\n");
    } else {
        let name = |id: &crate::types::ids::KeyspaceId| match offline.map.keyspace_by_id(*id) {
            Some(keyspace) => keyspace.name.clone(),
            None => format!("(id {id})"),
        };
        let row = |(id, c): (&crate::types::ids::KeyspaceId, &offline::Counts)| {
            let numbers = [c.records, c.versions, c.siblings, c.tombstones, c.expired, c.bytes, c.damaged];
            std::iter::once(name(id)).chain(numbers.iter().map(u64::to_string)).collect()
        };
        let rows: Vec<Vec<String>> = census.keyspaces.iter().map(row).collect();
        let head =
            ["KEYSPACE", "RECORDS", "VERSIONS", "SIBLINGS", "TOMBSTONES", "EXPIRED", "BYTES", "DAMAGED"];
        text.push('\n');
        text.push_str(&output::table(&head, &rows));
        for record in &census.damaged {
            let line =
                format!("DAMAGED: {} of {}: {}\n", key_text(&record.key), name(&record.keyspace), record.why);
            text.push_str(&line);
        }
    }
    if census.strays > 0 {
        text.push_str(&format!("DAMAGED: {} entries whose key is that of no record\n", census.strays));
    }
    text
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
        let place = offline.place(&global.keyspace, &key)?;
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

    #[test]
    fn a_partition_has_its_arc() {
        let layout = proto::LayoutResponse {
            partitions: vec![proto::PartitionOwners::default(); 16],
            ..proto::LayoutResponse::default()
        };
        let args = |partition| PartitionArgs { partition, from: Where { data_dir: None } };
        let ends = |partition| args(partition).view(&layout, None).map(|view| view.ends());
        assert_eq!(ends(0), Ok(("0000000000000000".to_string(), "0fffffffffffffff".to_string())));
        assert_eq!(ends(15), Ok(("f000000000000000".to_string(), "ffffffffffffffff".to_string())));
        for partition in [16, 65_536 + 3] {
            let error = ends(partition).expect_err("no such partition");
            assert_eq!(error.exit, Exit::Usage);
            assert!(
                error.message.contains(&partition.to_string()) && error.message.contains("15"),
                "{error}"
            );
        }
    }
}
