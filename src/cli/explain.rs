//! `explain`: where a key lives, and each replica's version of it now.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::Args;
use serde_json::{Map, Value, json};

use super::Global;
use super::client::Cluster;
use super::output::{self, CliError, CliResult, Exit, Op};
use crate::rpc::proto;
use crate::types::key::Key;

/// Shows where a key lives, and each replica's version of it now.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quoral explain greeting
  quoral explain user:7 --sort 2026-01-01 --keyspace carts -o json")]
pub struct ExplainArgs {
    /// The partition key.
    key: OsString,
    /// The sort key.
    #[arg(long, value_name = "SORT")]
    sort: Option<OsString>,
}

impl ExplainArgs {
    /// Asks one node, which asks the replicas, and prints what they say.
    pub async fn run(self, global: &Global) -> CliResult {
        let key = self.key.into_vec();
        let key = Key::new(key, self.sort.map(OsStringExt::into_vec).unwrap_or_default())?;
        show(global, &key, &ask(global, &key).await?)?;
        Ok(Exit::Done)
    }
}

/// Asks one node, which asks the replicas.
pub async fn ask(global: &Global, key: &Key) -> Result<proto::ExplainResponse, CliError> {
    let (keyspace, sort) = (global.keyspace().to_owned(), key.sort_key().clone());
    let request = proto::ExplainRequest { keyspace, key: key.partition_key().clone(), sort };
    let client = global.client()?;
    let ask = |mut cluster: Cluster| {
        let request = request.clone();
        async move { cluster.explain(request).await }
    };
    client.call_cluster(Op::Read, ask).await
}

/// Prints what [`ask`] brought.
pub fn show(global: &Global, key: &Key, answer: &proto::ExplainResponse) -> Result<(), CliError> {
    match global.json() {
        true => output::print_json(&to_json(key, answer)),
        false => output::print(to_text(key, answer)),
    }
}

fn to_json(key: &Key, answer: &proto::ExplainResponse) -> Value {
    let mut object = Map::new();
    output::insert_bytes(&mut object, "key", key.partition_key());
    if !key.sort_key().is_empty() {
        output::insert_bytes(&mut object, "sort", key.sort_key());
    }
    object.insert("keyspace".into(), answer.keyspace.clone().into());
    object.insert("partition".into(), answer.partition.into());
    object.insert("position".into(), answer.position.clone().into());
    object.insert("layout_version".into(), answer.layout_version.into());
    let replica = |replica: &proto::ReplicaView| {
        json!({
            "node": replica.node_id,
            "name": replica.name,
            "zone": replica.zone,
            "role": replica.role,
            "state": replica.state,
            "version": replica.version,
        })
    };
    object.insert("replicas".into(), answer.replicas.iter().map(replica).collect());
    Value::Object(object)
}

fn to_text(key: &Key, answer: &proto::ExplainResponse) -> String {
    let rows: Vec<Vec<String>> = answer
        .replicas
        .iter()
        .map(|replica| {
            let cells = [
                &replica.node_id,
                &replica.name,
                &replica.zone,
                &replica.role,
                &replica.state,
                &replica.version,
            ];
            cells.map(String::clone).to_vec()
        })
        .collect();
    format!(
        "{} in keyspace {}: position {}, partition {}, layout version {}\n{}",
        key_text(key),
        answer.keyspace,
        answer.position,
        answer.partition,
        answer.layout_version,
        output::table(&["NODE", "NAME", "ZONE", "ROLE", "STATE", "VERSION"], &rows)
    )
}

/// A key in a sentence.
pub fn key_text(key: &Key) -> String {
    let text = format!("key {:?}", output::show_bytes(key.partition_key()));
    match key.sort_key().is_empty() {
        true => text,
        false => format!("{text}, sort key {:?}", output::show_bytes(key.sort_key())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_is_that_of_the_contract() {
        let key = Key::new("k", &[0xff][..]).expect("within the limits");
        let answer = proto::ExplainResponse {
            keyspace: "default".into(),
            partition: 7,
            position: "07ff000000000000".into(),
            layout_version: 1,
            replicas: vec![proto::ReplicaView {
                node_id: "00000000000000a1".into(),
                name: "n1".into(),
                zone: "z".into(),
                role: "home".into(),
                state: "alive".into(),
                version: "none".into(),
            }],
        };
        let expected = json!({
            "key": "k", "sort_b64": "/w==", "keyspace": "default", "partition": 7,
            "position": "07ff000000000000", "layout_version": 1,
            "replicas": [{"node": "00000000000000a1", "name": "n1", "zone": "z", "role": "home",
                "state": "alive", "version": "none"}],
        });
        assert_eq!(to_json(&key, &answer), expected);
        let text = to_text(&key, &answer);
        assert!(text.contains("partition 7") && text.contains("00000000000000a1  n1"), "{text}");
    }
}
