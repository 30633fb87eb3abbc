//! `inspect partition`: who owns it, and what a data directory stores of it. Shapes of the JSON: see `inspect`.

use clap::Args;
use serde_json::{Map, Value, json};

use super::offline::{Census, Counts, DamagedRecord, Offline};
use super::{Where, ask_layout, blocking, member};
use crate::cli::Global;
use crate::cli::client::Cluster;
use crate::cli::explain::key_text;
use crate::cli::output::{self, CliError, CliResult, Exit, Op};
use crate::node::env::{Clock as _, SystemClock};
use crate::ring::partition::Partitions;
use crate::rpc::{convert, proto};
use crate::types::error::Invalid;
use crate::types::ids::{KeyspaceId, PartitionId};

/// `inspect partition`
#[derive(Debug, Args)]
pub struct PartitionArgs {
    /// The partition, from 0.
    partition: u32,
    #[command(flatten)]
    from: Where,
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
    pub(super) fn run(self, global: &Global) -> CliResult {
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
            let ask = |mut cluster: Cluster| async move { cluster.status(proto::StatusRequest {}).await };
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
    let keyspace = |(id, counts): (&KeyspaceId, &Counts)| {
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
    let damaged = |record: &DamagedRecord| {
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
        let name = |id: &KeyspaceId| match offline.map.keyspace_by_id(*id) {
            Some(keyspace) => keyspace.name.clone(),
            None => format!("(id {id})"),
        };
        let row = |(id, c): (&KeyspaceId, &Counts)| {
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

#[cfg(test)]
mod tests {
    use super::*;

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
