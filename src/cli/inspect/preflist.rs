//! `inspect preflist`: home nodes and fallbacks of a key. Shapes of the JSON: see `inspect`.

use clap::Args;
use serde_json::{Map, Value, json};

use super::offline::Offline;
use super::{KeyArgs, Where, blocking};
use crate::cli::Global;
use crate::cli::explain::{self, key_text};
use crate::cli::output::{self, CliError, CliResult, Exit};
use crate::rpc::proto;
use crate::types::ids::NodeId;
use crate::types::key::Key;

/// `inspect preflist`
#[derive(Debug, Args)]
pub struct PreflistArgs {
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    from: Where,
}

impl PreflistArgs {
    pub(super) fn run(self, global: &Global) -> CliResult {
        let key = self.key.key()?;
        let view = match &self.from.data_dir {
            Some(path) => offline_preflist(&Offline::open(path)?, global.keyspace(), &key)?,
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
