//! `give-up`: gives up damaged records that nothing can heal, in the data directory of a stopped node.
//!
//! Only those of keyspaces of one replica. Of others a replica that answered "not found" where it has acknowledged a
//! write would count in read quorums without it; and there is a better way: the other replicas heal it, or, if none of
//! them has a version, a new write of the key that they take.
//!
//! Without `--yes` it changes nothing and says what would be lost. With `-o json`: `{"node","given_up","records":
//! [{"key","sort"?,"keyspace","partition","why","raw_bytes","raw_hex","left"}],"refused":[{"key","sort"?,"keyspace",
//! "partition","why"}]}`; `raw_hex` has the first bytes of what was found, `left` says whether a version has come since,
//! which takes its place. Exit 1: some are refused. Exit 2: `--yes` was not said.

use std::ffi::OsString;
use std::ops::Bound;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value};

use super::Global;
use super::explain::key_text;
use super::inspect::offline::{Offline, storage_error};
use super::inspect::record::hex;
use super::output::{self, CliError, CliResult, Exit, note};
use crate::antientropy::forest::Forest;
use crate::node::env::{Clock as _, SystemClock};
use crate::replica::quarantine::{self, Entry, Quarantine};
use crate::replica::stored::{self, Damage, LoadError, Place};
use crate::ring::preflist::homes;
use crate::storage::{Batch, StorageError, schema};
use crate::types::ids::{KeyspaceId, PartitionId};
use crate::types::key::Key;

/// Gives up damaged records of which there is no other replica: what they held is lost for good. Reads nothing but the
/// data directory of a stopped node.
#[derive(Debug, Args)]
#[command(after_help = "It says what is lost, and changes nothing without --yes.

Examples:
  quoral give-up cart --keyspace carts --data-dir /var/lib/quoral
  quoral give-up cart --keyspace carts --data-dir /var/lib/quoral --yes
  quoral give-up --all --data-dir /var/lib/quoral -o json")]
pub struct GiveUpArgs {
    /// The partition key of the record.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    key: Option<OsString>,
    /// Its sort key.
    #[arg(long, value_name = "SORT", requires = "key")]
    sort: Option<OsString>,
    /// All damaged records that the node has, of all keyspaces or of --keyspace.
    #[arg(long)]
    all: bool,
    /// The data directory.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Do it.
    #[arg(long)]
    yes: bool,
}

/// A damaged record.
struct Lost {
    storage_key: Vec<u8>,
    place: (PartitionId, KeyspaceId, Key),
    keyspace: String,
    damage: Damage,
    /// What is kept of it, if it was set aside.
    entry: Option<Entry>,
}

/// One that is not given up, and why.
struct Refused {
    place: (PartitionId, KeyspaceId, Key),
    keyspace: String,
    why: String,
}

fn place_json((partition, _, key): &(PartitionId, KeyspaceId, Key), keyspace: &str) -> Map<String, Value> {
    let mut object = Map::new();
    output::insert_bytes(&mut object, "key", key.partition_key());
    if !key.sort_key().is_empty() {
        output::insert_bytes(&mut object, "sort", key.sort_key());
    }
    object.insert("keyspace".into(), keyspace.into());
    object.insert("partition".into(), partition.0.into());
    object
}

impl Lost {
    fn why(&self) -> &str {
        self.entry.as_ref().map_or(&self.damage.why, |entry| &entry.why)
    }

    fn found(&self) -> (&[u8], u64) {
        match (&self.damage.found, &self.entry) {
            (Some(found), _) => (found, found.len() as u64),
            (None, Some(entry)) => (&entry.found, entry.bytes),
            (None, None) => (&[], 0),
        }
    }

    fn to_json(&self) -> Value {
        let (mut object, (found, bytes)) = (place_json(&self.place, &self.keyspace), self.found());
        object.insert("why".into(), self.why().into());
        object.insert("raw_bytes".into(), bytes.into());
        object.insert("raw_hex".into(), hex(found).into());
        object.insert("left".into(), self.damage.since.is_some().into());
        Value::Object(object)
    }

    fn row(&self) -> Vec<String> {
        let left = if self.damage.since.is_some() { "what has come since" } else { "nothing" };
        let cells = [&self.keyspace, &key_text(&self.place.2), &self.found().1.to_string(), left, self.why()];
        cells.map(str::to_string).to_vec()
    }
}

impl GiveUpArgs {
    /// Looks what is damaged, and gives it up.
    pub fn run(self, global: &Global) -> CliResult {
        let offline = Offline::open(&self.data_dir)?;
        let (mut lost, mut refused) = (Vec::new(), Vec::new());
        for storage_key in self.storage_keys(&offline, global)? {
            match judge(&offline, storage_key)? {
                Some(Ok(one)) => lost.push(one),
                Some(Err(one)) => refused.push(one),
                None => {}
            }
        }
        let is_done = self.yes && !lost.is_empty();
        if is_done {
            give_up(&offline, &lost).map_err(|error| storage_error(&error))?;
        }
        show(global, &offline, &lost, &refused, is_done)?;
        match (lost.len(), self.yes) {
            (_, true) | (0, _) if !refused.is_empty() => Ok(Exit::Error),
            (0, _) => {
                note("give-up: no damaged record is there");
                Ok(if self.all { Exit::Done } else { Exit::Error })
            }
            (_, true) => Ok(Exit::Done),
            (_, false) if global.json() => Ok(Exit::Usage),
            (many, false) => {
                let problem = format!("{many} records would be lost for good; say --yes to give them up");
                Err(CliError::usage(format!("give-up: {problem}")))
            }
        }
    }

    /// Where to look.
    fn storage_keys(&self, offline: &Offline, global: &Global) -> Result<Vec<Vec<u8>>, CliError> {
        if let Some(key) = self.key.clone() {
            let sort = self.sort.clone().map(OsStringExt::into_vec).unwrap_or_default();
            let key =
                Key::new(key.into_vec(), sort).map_err(|invalid| CliError::usage(invalid.to_string()))?;
            let place = offline.place(global.keyspace(), &key)?;
            return Ok(vec![schema::record_key(place.partition, place.keyspace.id, &key)]);
        }
        let only = global.keyspace.as_deref().map(|name| {
            let none = || CliError::error(format!("keyspace: there is no keyspace {name:?}"));
            offline.map.keyspace(name).map(|keyspace| keyspace.id).ok_or_else(none)
        });
        let only = only.transpose()?;
        let (from, to) = ([schema::RECORD_TAG], [schema::RECORD_TAG + 1]);
        let mut damaged = Vec::new();
        let read =
            offline.storage.scan(Bound::Included(&from), Bound::Excluded(&to), false, &mut |key, value| {
                let is_wanted =
                    only.is_none_or(|only| schema::split_range(key).is_some_and(|(_, id)| id == only));
                if is_wanted && stored::decode(key, value).is_err() {
                    damaged.push(key.to_vec());
                }
                true
            });
        read.map_err(|error| storage_error(&error))?;
        Ok(damaged)
    }
}

/// Whether a record is damaged, and may be given up.
fn judge(offline: &Offline, storage_key: Vec<u8>) -> Result<Option<Result<Lost, Refused>>, CliError> {
    let Some(place) = schema::split_record_key(&storage_key) else { return Ok(None) };
    let (partition, id, _) = &place;
    let keyspace = offline.map.keyspace_by_id(*id);
    let name = keyspace.map_or_else(|| format!("(id {id})"), |keyspace| keyspace.name.clone());
    let refuse = |place, why| Ok(Some(Err(Refused { place, keyspace: name.clone(), why })));
    let damage = match stored::place(&*offline.storage, &storage_key) {
        Ok(Place::Damaged(damage)) => damage,
        Ok(Place::Nothing | Place::Sound(_)) => return Ok(None),
        Err(LoadError::Damaged(why)) => return refuse(place, format!("it is not damaged: {why}")),
        Err(LoadError::Storage(error)) => return Err(storage_error(&error)),
    };
    let Some(keyspace) = keyspace else {
        return refuse(place, "its keyspace was dropped: the node deletes it when it runs".into());
    };
    if keyspace.n > 1 {
        let me = offline.identity.node_id;
        let others = homes(&offline.map, keyspace, *partition).into_iter().filter(|home| *home != me);
        let name_of = |id| {
            let member = offline.map.layout.members.iter().find(|member| member.id == id);
            member.map_or_else(|| id.to_string(), |member| member.name.clone())
        };
        let others: Vec<String> = others.map(name_of).collect();
        return refuse(
            place,
            format!(
                "it has other replicas, on {}: once all of them are up it is healed from them, or, if none has a \
                 version, by a new write (`put --w 1`)",
                others.join(", ")
            ),
        );
    }
    let key = schema::quarantine_key(&storage_key);
    let entry = offline.storage.get(&key).map_err(|error| storage_error(&error))?;
    let entry = entry.and_then(|value| Entry::read(&key, &value).ok()).filter(|_| damage.found.is_none());
    Ok(Some(Ok(Lost { storage_key, place, keyspace: name, damage, entry })))
}

/// As the node would: set aside first, so that its bytes are kept, then given up.
fn give_up(offline: &Offline, lost: &[Lost]) -> Result<(), StorageError> {
    let storage = &*offline.storage;
    let (mut quarantine, forest) = (Quarantine::load(storage)?, Forest::default());
    let now = SystemClock::default().wall();
    for Lost { storage_key, damage, .. } in lost {
        // The region of its tree is in doubt from here on.
        let mut writes: Vec<_> = forest.before_write(storage_key).into_iter().collect();
        if let Some(found) = &damage.found {
            writes.extend(quarantine.add(storage_key, now, &damage.why, found));
            writes.push(quarantine::mark(storage_key, None));
        }
        storage.write(&Batch { writes })?;
        let unreadable = |error: LoadError| StorageError::Corrupt(error.to_string());
        if let Some(batch) = quarantine::give_up(storage, storage_key).map_err(unreadable)? {
            storage.write(&batch)?;
        }
        let writes = quarantine.healed(storage, storage_key, now, Some("given up"))?;
        storage.write(&Batch { writes })?;
    }
    storage.sync()
}

fn show(
    global: &Global,
    offline: &Offline,
    lost: &[Lost],
    refused: &[Refused],
    is_done: bool,
) -> Result<(), CliError> {
    if global.json() {
        let refused = refused.iter().map(|one| {
            let mut object = place_json(&one.place, &one.keyspace);
            object.insert("why".into(), one.why.as_str().into());
            Value::Object(object)
        });
        let records: Vec<Value> = lost.iter().map(Lost::to_json).collect();
        return output::print_json(&serde_json::json!({
            "node": offline.identity.node_id.to_string(),
            "given_up": is_done,
            "records": records,
            "refused": refused.collect::<Vec<Value>>(),
        }));
    }
    if !lost.is_empty() {
        let rows: Vec<Vec<String>> = lost.iter().map(Lost::row).collect();
        output::print(output::table(&["KEYSPACE", "KEY", "BYTES", "LEAVES", "WHY"], &rows))?;
    }
    for one in refused {
        note(format!("give-up: {:?}, {}: refused: {}", one.keyspace, key_text(&one.place.2), one.why));
    }
    if is_done {
        note(format!(
            "give-up: {} records are given up: what they held is lost; `inspect quarantine` shows what is kept of them",
            lost.len()
        ));
    }
    Ok(())
}
