//! The data directory: whose it is, and that one process has it.
//!
//! | name | what |
//! | --- | --- |
//! | `LOCK` | locked while a process uses the directory |
//! | `identity.toml` | cluster, node, disk and incarnation, with a format number and a checksum |
//! | `storage/` | the storage engine's |
//!
//! Why this way: a node that comes up on another's data, or on an empty disk under its old name, could vote
//! for what it does not hold. So a directory says whose it is, and a new one is told from an old one by its
//! disk id, which the other nodes remember. A *copy* of a directory can't be told from it here; the cluster
//! sees the second process (F12).
//!
//! Invariants:
//! 1. At most one process has the directory open.
//! 2. `identity.toml` is there whole or not at all, and is on stable storage before anything else is stored.
//! 3. The incarnation only grows.
//!
//! It does not open the storage, nor decide when a new incarnation is due.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::types::ids::{ClusterId, DiskId, Incarnation, NodeId};
use crate::types::time::WallMs;

/// Format written, and the only one that is read. 1 was before the first release: its record keys had no slots.
pub const IDENTITY_FORMAT: u32 = 2;

const LOCK: &str = "LOCK";
const IDENTITY: &str = "identity.toml";
const IDENTITY_TMP: &str = "identity.toml.tmp";
const STORAGE: &str = "storage";

/// Whose a data directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The node.
    pub node_id: NodeId,
    /// The directory itself: an empty one gets a new id.
    pub disk_id: DiskId,
    /// The life of the data in it.
    pub incarnation: Incarnation,
}

/// Why a data directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error("the data directory {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// It belongs to another cluster.
    #[error("the data directory {} is of cluster {found}, this node's cluster is {expected}", path.display())]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// The cluster in it.
        found: ClusterId,
        /// The cluster of the configuration.
        expected: ClusterId,
    },
    /// It belongs to another node.
    #[error("the data directory {} is of node {found}, this node is {expected}", path.display())]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// The node in it.
        found: NodeId,
        /// The node of the configuration.
        expected: NodeId,
    },
    /// There are files in it, but no identity: it is not a data directory, or has lost what it was.
    #[error("{} has no {IDENTITY} but is not empty ({found:?} is in it): not a data directory", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One of the files.
        found: String,
    },
    /// There is no identity in it.
    #[error("{} has no {IDENTITY}: not a data directory", .0.display())]
    NoIdentity(PathBuf),
    /// Written by a newer release.
    #[error("{} is of format {found}, this release reads up to {IDENTITY_FORMAT}", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
    /// Written before the first release.
    #[error(
        "{} is of format {found}, from before the first release; this one reads {IDENTITY_FORMAT}: `dump` with the \
         build that made it, then `load`",
        path.display()
    )]
    OlderFormat {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
    /// The identity can't be read.
    #[error("{} is damaged: {problem}. See \"A disk is damaged\" in docs/operations.md", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A new incarnation must be greater than the one before.
    #[error("{}: incarnation {new} is not greater than {have}", path.display())]
    OldIncarnation {
        /// The directory.
        path: PathBuf,
        /// The incarnation in it.
        have: Incarnation,
        /// The one to set.
        new: Incarnation,
    },
    /// The file system failed.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// A data directory that this process has locked.
#[derive(Debug)]
pub struct DataDir {
    /// Where it is.
    pub path: PathBuf,
    /// Its id.
    pub disk_id: DiskId,
    /// The life of the data in it.
    pub incarnation: Incarnation,
    /// Whether it was empty: what the node had before, if anything, is lost.
    pub fresh: bool,
    cluster_id: ClusterId,
    node_id: NodeId,
    /// Held for its lock.
    _lock: File,
}

impl DataDir {
    /// Locks the directory of `node` in `cluster`; makes it if it is missing or empty.
    pub fn open(
        path: impl Into<PathBuf>,
        cluster: ClusterId,
        node: NodeId,
        new_disk: impl FnOnce() -> DiskId,
        now: WallMs,
    ) -> Result<DataDir, DataDirError> {
        let path = path.into();
        create_dir(&path)?;
        // Checked before the lock too, so that nothing is put into a directory of something else.
        check_no_strangers(&path)?;
        let lock = lock(&path)?;
        let (identity, fresh) = match DataDir::read_identity(&path) {
            Ok(identity) => (identity, false),
            Err(DataDirError::NoIdentity(_)) => {
                check_no_strangers(&path)?;
                let identity = Identity {
                    cluster_id: cluster,
                    node_id: node,
                    disk_id: new_disk(),
                    incarnation: Incarnation(now.0),
                };
                write_identity(&path, identity)?;
                (identity, true)
            }
            Err(error) => return Err(error),
        };
        let Identity { cluster_id: found, node_id: found_node, disk_id, incarnation } = identity;
        if found != cluster {
            return Err(DataDirError::OtherCluster { path, found, expected: cluster });
        }
        if found_node != node {
            return Err(DataDirError::OtherNode { path, found: found_node, expected: node });
        }
        Ok(DataDir { path, disk_id, incarnation, fresh, cluster_id: cluster, node_id: node, _lock: lock })
    }

    /// Locks the directory of any node, to look into it. Makes nothing in a directory of something else.
    pub fn open_existing(path: impl Into<PathBuf>) -> Result<DataDir, DataDirError> {
        let path = path.into();
        // Before the lock too, whose file would be made.
        DataDir::read_identity(&path)?;
        let lock = lock(&path)?;
        let Identity { cluster_id, node_id, disk_id, incarnation } = DataDir::read_identity(&path)?;
        Ok(DataDir { path, disk_id, incarnation, fresh: false, cluster_id, node_id, _lock: lock })
    }

    /// Whose it is.
    pub fn identity(&self) -> Identity {
        let DataDir { cluster_id, node_id, disk_id, incarnation, .. } = *self;
        Identity { cluster_id, node_id, disk_id, incarnation }
    }

    /// Whose the directory is; without the lock, so for inspection only.
    pub fn read_identity(path: &Path) -> Result<Identity, DataDirError> {
        let file = path.join(IDENTITY);
        match fs::read_to_string(&file) {
            Ok(text) => parse_identity(&file, &text),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(DataDirError::NoIdentity(path.to_path_buf()))
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                Err(DataDirError::Damaged { path: file, problem: error.to_string() })
            }
            Err(error) => Err(DataDirError::Io { path: file, error }),
        }
    }

    /// Where the storage engine keeps its files.
    pub fn storage_path(&self) -> PathBuf {
        self.path.join(STORAGE)
    }

    /// Makes it another disk, with a new life: what it held is lost. On stable storage when this returns.
    pub fn renew(&mut self, disk: DiskId, incarnation: Incarnation) -> Result<(), DataDirError> {
        let (cluster_id, node_id) = (self.cluster_id, self.node_id);
        write_identity(&self.path, Identity { cluster_id, node_id, disk_id: disk, incarnation })?;
        (self.disk_id, self.incarnation) = (disk, incarnation);
        Ok(())
    }

    /// Begins a new life of the data; it is on stable storage when this returns.
    pub fn set_incarnation(&mut self, new: Incarnation) -> Result<(), DataDirError> {
        if new <= self.incarnation {
            let have = self.incarnation;
            return Err(DataDirError::OldIncarnation { path: self.path.clone(), have, new });
        }
        let identity = Identity {
            cluster_id: self.cluster_id,
            node_id: self.node_id,
            disk_id: self.disk_id,
            incarnation: new,
        };
        write_identity(&self.path, identity)?;
        self.incarnation = new;
        Ok(())
    }
}

/// Makes a directory whose name survives a power cut.
fn create_dir(path: &Path) -> Result<(), DataDirError> {
    if path.is_dir() {
        return Ok(());
    }
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |error| DataDirError::Io { path, error }
    };
    fs::create_dir_all(path).map_err(failed(path))?;
    // Which of the parents are new is not known; to sync an old one costs nothing.
    let full = path.canonicalize().map_err(failed(path))?;
    for parent in full.ancestors().skip(1) {
        match File::open(parent).and_then(|dir| dir.sync_all()) {
            Ok(()) => {}
            // A parent that may not be read, or can't be synced, is not one that was just made.
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::InvalidInput) => {
                break;
            }
            Err(error) => return Err(failed(parent)(error)),
        }
    }
    Ok(())
}

/// Refuses a directory that has no identity but other files than a crash in [`DataDir::open`] leaves.
fn check_no_strangers(path: &Path) -> Result<(), DataDirError> {
    let failed = |error| DataDirError::Io { path: path.to_path_buf(), error };
    if path.join(IDENTITY).try_exists().map_err(failed)? {
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if name != LOCK && name != IDENTITY_TMP {
            let found = name.to_string_lossy().into_owned();
            return Err(DataDirError::NotEmpty { path: path.to_path_buf(), found });
        }
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, DataDirError> {
    let file = path.join(LOCK);
    let failed = |error| DataDirError::Io { path: file.clone(), error };
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(&file);
    let lock = opened.map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(DataDirError::InUse(path.to_path_buf())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// `identity.toml`. Ids are hexadecimal text; the checksum is of what stands before it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityFile {
    format: u32,
    cluster_id: String,
    node_id: String,
    disk_id: String,
    incarnation: u64,
    checksum: String,
}

impl IdentityFile {
    fn new(identity: Identity) -> IdentityFile {
        let mut file = IdentityFile {
            format: IDENTITY_FORMAT,
            cluster_id: identity.cluster_id.to_string(),
            node_id: identity.node_id.to_string(),
            disk_id: identity.disk_id.to_string(),
            incarnation: identity.incarnation.0,
            checksum: String::new(),
        };
        file.checksum = file.expected_checksum();
        file
    }

    /// The first 8 bytes, as hexadecimal digits, of blake3 over the fields, a line each.
    fn expected_checksum(&self) -> String {
        let IdentityFile { format, cluster_id, node_id, disk_id, incarnation, checksum: _ } = self;
        let fields = format!("{format}\n{cluster_id}\n{node_id}\n{disk_id}\n{incarnation}\n");
        blake3::hash(fields.as_bytes()).to_hex()[..16].to_string()
    }
}

fn parse_identity(path: &Path, text: &str) -> Result<Identity, DataDirError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let damaged = |problem: String| DataDirError::Damaged { path: path.to_path_buf(), problem };
    // The format first: a newer file may have other fields.
    let Format { format } = toml::from_str(text).map_err(|error| damaged(error.message().to_string()))?;
    if format > IDENTITY_FORMAT {
        return Err(DataDirError::NewerFormat { path: path.to_path_buf(), found: format });
    }
    if format < IDENTITY_FORMAT {
        return Err(DataDirError::OlderFormat { path: path.to_path_buf(), found: format });
    }
    let file: IdentityFile = toml::from_str(text).map_err(|error| damaged(error.message().to_string()))?;
    if file.checksum != file.expected_checksum() {
        return Err(damaged("the checksum does not match".to_string()));
    }
    Ok(Identity {
        cluster_id: file.cluster_id.parse().map_err(|error| damaged(format!("cluster_id: {error}")))?,
        node_id: file.node_id.parse().map_err(|error| damaged(format!("node_id: {error}")))?,
        disk_id: file.disk_id.parse().map_err(|error| damaged(format!("disk_id: {error}")))?,
        incarnation: Incarnation(file.incarnation),
    })
}

/// Replaces the identity: the old one or the new one survives a crash, and the new one once this returns.
fn write_identity(path: &Path, identity: Identity) -> Result<(), DataDirError> {
    let failed = |path: PathBuf| move |error| DataDirError::Io { path, error };
    let (tmp, target) = (path.join(IDENTITY_TMP), path.join(IDENTITY));
    let text = toml::to_string(&IdentityFile::new(identity))
        .map_err(|error| failed(target.clone())(io::Error::other(error)))?;
    let mut file = File::create(&tmp).map_err(failed(tmp.clone()))?;
    file.write_all(text.as_bytes()).map_err(failed(tmp.clone()))?;
    file.sync_all().map_err(failed(tmp.clone()))?;
    fs::rename(&tmp, &target).map_err(failed(target))?;
    File::open(path).and_then(|dir| dir.sync_all()).map_err(failed(path.to_path_buf()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(0xc1);
    const NODE: NodeId = NodeId(0xa1);

    fn open(path: &Path) -> Result<DataDir, DataDirError> {
        DataDir::open(path, CLUSTER, NODE, || DiskId(0xd1), WallMs(1_000))
    }

    fn tempdir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    #[test]
    fn a_new_directory_is_made_and_found_again() {
        let dir = tempdir();
        let path = dir.path().join("deep").join("data");
        let made = open(&path).expect("made");
        assert!(made.fresh);
        assert_eq!((made.disk_id, made.incarnation), (DiskId(0xd1), Incarnation(1_000)));
        assert_eq!(made.storage_path(), path.join("storage"));
        fs::create_dir(made.storage_path()).expect("the engine's");
        drop(made);
        let never = || panic!("an old directory has its disk id");
        let found = DataDir::open(&path, CLUSTER, NODE, never, WallMs(2_000)).expect("found");
        assert!(!found.fresh);
        assert_eq!((found.disk_id, found.incarnation), (DiskId(0xd1), Incarnation(1_000)));
    }

    #[test]
    fn a_second_process_is_refused() {
        let dir = tempdir();
        let first = open(dir.path()).expect("made");
        let error = open(dir.path()).expect_err("in use");
        assert!(matches!(&error, DataDirError::InUse(path) if path == dir.path()), "{error}");
        assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
        let identity = DataDir::read_identity(dir.path()).expect("can be inspected meanwhile");
        assert_eq!((identity.cluster_id, identity.node_id), (CLUSTER, NODE));
        drop(first);
        open(dir.path()).expect("free again");
    }

    #[test]
    fn to_look_into_a_directory_makes_none() {
        let dir = tempdir();
        let none = dir.path().join("none");
        for path in [dir.path(), &none] {
            let error = DataDir::open_existing(path).expect_err("no directory of a node");
            assert!(matches!(&error, DataDirError::NoIdentity(at) if at == path), "{error}");
        }
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0, "nothing was made");
        let node = open(dir.path()).expect("made");
        let error = DataDir::open_existing(dir.path()).expect_err("in use");
        assert!(matches!(error, DataDirError::InUse(_)), "{error}");
        let identity = node.identity();
        drop(node);
        let looked = DataDir::open_existing(dir.path()).expect("free");
        assert_eq!((looked.identity(), looked.fresh), (identity, false));
        assert!(matches!(open(dir.path()), Err(DataDirError::InUse(_))), "no node starts meanwhile");
    }

    #[test]
    fn the_directory_of_another_is_refused() {
        let dir = tempdir();
        open(dir.path()).expect("made");
        let other = DataDir::open(dir.path(), ClusterId(7), NODE, || DiskId(1), WallMs(0));
        let error = other.expect_err("another cluster");
        assert!(
            matches!(&error, DataDirError::OtherCluster { found: CLUSTER, expected: ClusterId(7), .. }),
            "{error}"
        );
        let other = DataDir::open(dir.path(), CLUSTER, NodeId(7), || DiskId(1), WallMs(0));
        let error = other.expect_err("another node");
        assert!(
            matches!(&error, DataDirError::OtherNode { found: NODE, expected: NodeId(7), .. }),
            "{error}"
        );
        let same = open(dir.path()).expect("still whole, and not locked");
        assert!(!same.fresh);
    }

    #[test]
    fn a_directory_of_something_else_is_refused_and_left_alone() {
        let dir = tempdir();
        fs::write(dir.path().join("thesis.tex"), "").expect("written");
        let error = open(dir.path()).expect_err("not empty");
        assert!(matches!(&error, DataDirError::NotEmpty { found, .. } if found == "thesis.tex"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1, "nothing was added");
        assert!(matches!(DataDir::read_identity(dir.path()), Err(DataDirError::NoIdentity(_))));
    }

    /// A data directory whose identity is lost must not pass for a new one: it would vote as an empty node.
    #[test]
    fn a_lost_identity_is_not_a_new_directory() {
        let dir = tempdir();
        let made = open(dir.path()).expect("made");
        fs::create_dir(made.storage_path()).expect("the engine's");
        drop(made);
        fs::remove_file(dir.path().join(IDENTITY)).expect("lost");
        assert!(matches!(open(dir.path()), Err(DataDirError::NotEmpty { found, .. }) if found == "storage"));
    }

    #[test]
    fn a_crash_while_it_is_made_leaves_an_empty_one() {
        let dir = tempdir();
        fs::write(dir.path().join(LOCK), "").expect("written");
        fs::write(dir.path().join(IDENTITY_TMP), "format = ").expect("written");
        assert!(open(dir.path()).expect("made").fresh);
        assert!(!dir.path().join(IDENTITY_TMP).exists());
    }

    #[test]
    fn another_format_is_refused_by_number() {
        let dir = tempdir();
        fs::write(dir.path().join(IDENTITY), "format = 3\nnew_field = true\n").expect("written");
        let error = open(dir.path()).expect_err("newer");
        assert!(matches!(&error, DataDirError::NewerFormat { found: 3, .. }), "{error}");
        fs::write(dir.path().join(IDENTITY), "format = 1\nold_field = true\n").expect("written");
        let error = open(dir.path()).expect_err("older");
        assert!(matches!(&error, DataDirError::OlderFormat { found: 1, .. }), "{error}");
    }

    /// Any one changed character is found, but for those that change no field.
    #[test]
    fn damage_is_found() {
        let dir = tempdir();
        drop(open(dir.path()).expect("made"));
        let file = dir.path().join(IDENTITY);
        let before = DataDir::read_identity(dir.path()).expect("whole");
        let whole = fs::read(&file).expect("read");
        let mut refused = 0;
        for i in 0..whole.len() {
            let mut bad = whole.clone();
            bad[i] ^= 1;
            fs::write(&file, &bad).expect("written");
            match DataDir::read_identity(dir.path()) {
                Ok(found) => assert_eq!(found, before, "byte {i}"),
                Err(
                    DataDirError::Damaged { .. }
                    | DataDirError::NewerFormat { .. }
                    | DataDirError::OlderFormat { .. },
                ) => refused += 1,
                Err(other) => panic!("byte {i}: {other}"),
            }
        }
        assert!(refused > whole.len() * 8 / 10, "{refused} of {} were found", whole.len());
        for cut in 0..whole.len() {
            fs::write(&file, &whole[..cut]).expect("written");
            match DataDir::read_identity(dir.path()) {
                Ok(found) => assert_eq!((found, cut), (before, whole.len() - 1), "only the last line end"),
                Err(DataDirError::Damaged { .. }) => {}
                Err(other) => panic!("cut to {cut}: {other}"),
            }
        }
        fs::write(&file, [0xff, 0xfe]).expect("written");
        assert!(matches!(open(dir.path()), Err(DataDirError::Damaged { .. })));
    }

    #[test]
    fn an_incarnation_is_kept_and_only_grows() {
        let dir = tempdir();
        let mut data = open(dir.path()).expect("made");
        data.set_incarnation(Incarnation(1_001)).expect("greater");
        for old in [1_001, 1_000] {
            let error = data.set_incarnation(Incarnation(old)).expect_err("not greater");
            assert!(
                matches!(&error, DataDirError::OldIncarnation { have: Incarnation(1_001), .. }),
                "{error}"
            );
        }
        drop(data);
        let data = open(dir.path()).expect("found");
        assert_eq!((data.incarnation, data.disk_id, data.fresh), (Incarnation(1_001), DiskId(0xd1), false));
    }

    #[test]
    fn a_file_in_its_place_is_an_error() {
        let dir = tempdir();
        let path = dir.path().join("data");
        fs::write(&path, "").expect("written");
        assert!(matches!(open(&path), Err(DataDirError::Io { .. })));
    }
}
