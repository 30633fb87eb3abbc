//! `inspect quarantine`: the damaged records of a data directory that were set aside. Shape of the JSON: see `inspect`.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use super::offline::{Offline, storage_error};
use super::record::hex;
use crate::cli::Global;
use crate::cli::explain::key_text;
use crate::cli::output::{self, CliError, CliResult, Exit, note};
use crate::replica::quarantine::{self, Entry};
use crate::replica::stored;
use crate::storage::schema;
use crate::types::ids::{KeyspaceId, PartitionId};
use crate::types::key::Key;
use crate::types::limits::QUARANTINE_ENTRIES;

/// `inspect quarantine`
#[derive(Debug, Args)]
pub struct QuarantineArgs {
    /// The data directory of a stopped node.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

/// A place, and what is kept of the record that was there.
struct Shown {
    place: Option<(PartitionId, KeyspaceId, Key)>,
    entry: Result<Entry, String>,
}

impl Shown {
    fn waits(&self) -> bool {
        // One that can't be read says nothing of a healing.
        self.entry.as_ref().map_or(true, |entry| entry.healed_at.is_none())
    }

    fn to_json(&self, keyspace: &dyn Fn(KeyspaceId) -> String) -> Value {
        let mut object = Map::new();
        if let Some((partition, id, key)) = &self.place {
            output::insert_bytes(&mut object, "key", key.partition_key());
            if !key.sort_key().is_empty() {
                output::insert_bytes(&mut object, "sort", key.sort_key());
            }
            object.insert("keyspace".into(), keyspace(*id).into());
            object.insert("partition".into(), partition.0.into());
        }
        let fields = match &self.entry {
            Ok(entry) => vec![
                ("why", json!(entry.why)),
                ("found_at", entry.found_at.utc().into()),
                ("healed_at", entry.healed_at.map(|at| at.utc()).into()),
                ("raw_bytes", entry.bytes.into()),
                ("raw_hex", hex(&entry.found).into()),
            ],
            Err(why) => vec![("damaged", why.as_str().into())],
        };
        object.extend(fields.into_iter().map(|(name, value)| (name.to_string(), value)));
        Value::Object(object)
    }

    fn row(&self, keyspace: &dyn Fn(KeyspaceId) -> String) -> Vec<String> {
        let (name, key) = match &self.place {
            Some((_, id, key)) => (keyspace(*id), key_text(key)),
            None => ("-".to_string(), "-".to_string()),
        };
        match &self.entry {
            Ok(entry) => {
                let healed = entry.healed_at.map_or_else(|| "no, it waits".to_string(), |at| at.utc());
                vec![name, key, entry.found_at.utc(), healed, entry.bytes.to_string(), entry.why.clone()]
            }
            Err(why) => vec![name, key, "-".into(), "-".into(), "-".into(), format!("DAMAGED: {why}")],
        }
    }
}

/// How many damaged records wait that found no room: what stands at each place tells, so all are read.
fn not_kept(offline: &Offline, kept: &BTreeSet<Vec<u8>>) -> Result<usize, CliError> {
    let (from, to) = ([schema::RECORD_TAG], [schema::RECORD_TAG + 1]);
    let mut count = 0;
    let read =
        offline.storage.scan(Bound::Included(&from), Bound::Excluded(&to), false, &mut |key, value| {
            count += usize::from(stored::decode(key, value).is_err() && !kept.contains(key));
            true
        });
    read.map_err(|error| storage_error(&error))?;
    Ok(count)
}

impl QuarantineArgs {
    pub(super) fn run(self, global: &Global) -> CliResult {
        let offline = Offline::open(&self.data_dir)?;
        let (mut all, mut kept) = (Vec::new(), BTreeSet::new());
        let read = quarantine::visit(&*offline.storage, &mut |storage_key, entry| {
            kept.insert(storage_key.to_vec());
            all.push(Shown { place: schema::split_record_key(storage_key), entry });
        });
        read.map_err(|error| storage_error(&error))?;
        let not_kept = if all.len() < QUARANTINE_ENTRIES { 0 } else { not_kept(&offline, &kept)? };
        let keyspace = |id: KeyspaceId| match offline.map.keyspace_by_id(id) {
            Some(keyspace) => keyspace.name.clone(),
            None => format!("(id {id})"),
        };
        if global.json() {
            let records: Vec<Value> = all.iter().map(|shown| shown.to_json(&keyspace)).collect();
            let node = offline.identity.node_id.to_string();
            output::print_json(&json!({ "node": node, "quarantine": records, "not_kept": not_kept }))?;
        } else if all.is_empty() {
            output::print("no damaged record was set aside\n")?;
        } else {
            let head = ["KEYSPACE", "KEY", "FOUND", "HEALED", "BYTES", "WHY"];
            let rows: Vec<Vec<String>> = all.iter().map(|shown| shown.row(&keyspace)).collect();
            output::print(output::table(&head, &rows))?;
        }
        if not_kept > 0 {
            note(format!("{not_kept} more damaged records wait, of which nothing is kept: there is no room"));
        }
        Ok(if not_kept > 0 || all.iter().any(Shown::waits) { Exit::Error } else { Exit::Done })
    }
}
