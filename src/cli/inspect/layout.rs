//! `inspect layout`: the members, and who owns which partition. Shapes of the JSON: see `inspect`.

use clap::Args;
use serde_json::{Value, json};

use super::offline::Offline;
use super::{Where, ask_layout, blocking, member};
use crate::cli::Global;
use crate::cli::output::{self, CliResult, Exit};
use crate::ring::placement::EXACT;
use crate::rpc::{convert, proto};

/// `inspect layout`
#[derive(Debug, Args)]
pub struct LayoutArgs {
    /// The owners of every partition too.
    #[arg(long)]
    partitions: bool,
    #[command(flatten)]
    from: Where,
}

impl LayoutArgs {
    pub(super) fn run(self, global: &Global) -> CliResult {
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
