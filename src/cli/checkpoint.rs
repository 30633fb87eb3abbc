//! Checkpoints: what a stopped `load` or `dump` knows when it is started again.
//!
//! A small JSON file beside the data, replaced whole (written beside and renamed), removed when all is
//! done. It names the cluster and the keyspace's id, so that it is never taken for another's.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::output::CliError;

/// First field of each checkpoint, with the version of its format.
const FORMAT: u32 = 1;

/// Whose checkpoint it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The cluster's id.
    pub cluster_id: String,
    /// The keyspace's name and its id, which is never used again.
    pub keyspace: String,
    /// The id.
    pub keyspace_id: u32,
}

/// How far a load is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct LoadPoint {
    /// All before this byte of the file is acknowledged.
    pub offset: u64,
    /// Lines before the offset.
    pub lines: u64,
    /// Good rows in them.
    pub rows: u64,
    /// blake3 of the file up to the offset.
    pub blake3: String,
}

/// How far a dump is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct DumpPoint {
    /// Bytes written and on the disk.
    pub bytes: u64,
    /// Rows in them.
    pub rows: u64,
    /// The scan's cursor behind them, in base64.
    pub cursor: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved<P> {
    format: u32,
    owner: Owner,
    point: P,
}

/// A checkpoint's file.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    owner: Owner,
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

impl Checkpoint {
    /// The checkpoint of `file`: `FILE.progress`.
    pub fn of(file: &Path, owner: Owner) -> Checkpoint {
        Checkpoint { path: beside(file, ".progress"), owner }
    }

    /// Its path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was saved; or why it can't be used, if something was.
    pub fn read<P: DeserializeOwned>(&self) -> Result<Option<P>, String> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let saved: Saved<P> = serde_json::from_slice(&bytes).map_err(|_| "it is damaged".to_string())?;
        if saved.format != FORMAT {
            return Err(format!("its format is {}, this release reads {FORMAT}", saved.format));
        }
        if saved.owner != self.owner {
            return Err("it is of another cluster or keyspace".to_string());
        }
        Ok(Some(saved.point))
    }

    /// Saves a point.
    pub fn write<P: Serialize>(&self, point: P) -> Result<(), CliError> {
        let saved = Saved { format: FORMAT, owner: self.owner.clone(), point };
        let new = beside(&self.path, ".new");
        let write = || {
            let mut file = fs::File::create(&new)?;
            file.write_all(&serde_json::to_vec(&saved)?)?;
            fs::rename(&new, &self.path)
        };
        write().map_err(|error| CliError::io(&self.path.display().to_string(), &error))
    }

    /// Removes it; that there is none is no error.
    pub fn remove(&self) -> Result<(), CliError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CliError::io(&self.path.display().to_string(), &error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_read_back_by_its_owner_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("rows");
        let owner = Owner { cluster_id: "c".into(), keyspace: "k".into(), keyspace_id: 1 };
        let mine = Checkpoint::of(&file, owner.clone());
        assert_eq!(mine.read::<LoadPoint>(), Ok(None));
        let point = LoadPoint { offset: 7, lines: 1, rows: 1, blake3: "x".into() };
        mine.write(&point).expect("written");
        assert_eq!(mine.path(), dir.path().join("rows.progress"));
        assert_eq!(mine.read(), Ok(Some(point)));
        let other = Checkpoint::of(&file, Owner { keyspace_id: 2, ..owner });
        assert!(other.read::<LoadPoint>().expect_err("another's").contains("another"));
        assert!(mine.read::<DumpPoint>().expect_err("another kind").contains("damaged"));
        mine.remove().expect("removed");
        mine.remove().expect("no error without a file");
        assert_eq!(mine.read::<LoadPoint>(), Ok(None));
    }
}
