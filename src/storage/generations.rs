//! Where in a directory the engine's files are.
//!
//! The first generation of them lies in the directory itself, a later one in a folder `g1`, `g2` and so on. Such a folder
//! counts once a file `complete` is in it: the newest that counts is the engine, and the others are what a compaction has
//! left behind, or has not finished.
//!
//! Invariants:
//! 1. `complete` is made when all else in the folder is on stable storage.
//! 2. Nothing is removed of a generation before a newer one counts, durably.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::StorageError;
use super::engine::{Engine, sync_tree};
use super::large::from_io;

const COMPLETE: &str = "complete";

/// The folder of a generation.
pub(super) fn folder(dir: &Path, number: u64) -> PathBuf {
    if number == 0 { dir.to_path_buf() } else { dir.join(format!("g{number}")) }
}

/// The generations above 0 of which there is a folder, and whether they count.
fn all(dir: &Path) -> io::Result<Vec<(u64, bool)>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut all = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix('g')?.parse().ok());
        // Only a name that is made here.
        let number = number.filter(|number| *number > 0 && folder(dir, *number) == dir.join(&name));
        if let Some(number) = number {
            all.push((number, folder(dir, number).join(COMPLETE).try_exists()?));
        }
    }
    Ok(all)
}

/// The newest generation that counts.
pub(super) fn newest(dir: &Path) -> io::Result<u64> {
    Ok(all(dir)?.into_iter().filter_map(|(number, counts)| counts.then_some(number)).max().unwrap_or(0))
}

/// Refuses a directory in which the engine's files are missing that must be there: without this, an empty engine would take
/// the place of what is left. No crash leaves one.
pub(super) fn check(dir: &Path, newest: u64) -> Result<(), StorageError> {
    if Engine::exists(&folder(dir, newest)) {
        return Ok(());
    }
    let lost = |what: String| Err(StorageError::Corrupt(what));
    match all(dir).map_err(from_io)?.into_iter().map(|(number, _)| number).max() {
        _ if newest > 0 => lost(format!("g{newest}: its log is gone")),
        Some(number) => lost(format!("g{number}: is not complete, and there is no other log")),
        None => Ok(()),
    }
}

/// Makes all that was written to the files of this generation durable, and its name.
pub(super) fn sync(dir: &Path, number: u64) -> io::Result<()> {
    sync_tree(&folder(dir, number))?;
    File::open(dir)?.sync_all()
}

/// From now on this generation is the engine: `sync` must come before. After an error it may or may not count at the next
/// start.
pub(super) fn complete(dir: &Path, number: u64) -> io::Result<()> {
    let folder = folder(dir, number);
    File::create_new(folder.join(COMPLETE))?.sync_all()?;
    File::open(&folder)?.sync_all()
}

/// Removes the files of one generation. `newest` is the one that counts.
pub(super) fn remove(dir: &Path, number: u64, newest: u64) -> io::Result<()> {
    assert_ne!(number, newest, "the engine's own files");
    if number > 0 {
        return fs::remove_dir_all(folder(dir, number));
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_engines = |name: &str| matches!(name, "db" | "conf" | "tide") || name.starts_with("snap.");
        if name.to_str() == Some("blobs") {
            fs::remove_dir_all(entry.path())?;
        } else if name.to_str().is_some_and(is_engines) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes the files of all generations but the newest that counts.
pub(super) fn remove_others(dir: &Path, newest: u64) -> io::Result<()> {
    let others =
        all(dir)?.into_iter().map(|(number, _)| number).chain([0]).filter(|number| *number != newest);
    others.into_iter().try_for_each(|number| remove(dir, number, newest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.expect("listed").file_name().into_string();
        let mut names: Vec<String> =
            fs::read_dir(dir).expect("listed").map(|entry| name(entry).expect("a name")).collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_complete_one_counts_and_the_others_go() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = home.path();
        assert_eq!(newest(&dir.join("none")).expect("read"), 0);
        for name in ["db", "conf", "tide", "snap.0000", "other", "g0", "g01", "gx"] {
            fs::write(dir.join(name), name).expect("written");
        }
        for name in ["large", "blobs", "g1", "g2", "g10"] {
            fs::create_dir(dir.join(name)).expect("made");
            fs::write(dir.join(name).join("db"), name).expect("written");
        }
        assert_eq!(newest(dir).expect("read"), 0, "none is complete");
        complete(dir, 2).expect("complete");
        assert_eq!(newest(dir).expect("read"), 2);
        complete(dir, 1).expect("complete");
        assert_eq!(newest(dir).expect("read"), 2, "by number");
        remove_others(dir, 2).expect("removed");
        assert_eq!(names(dir), ["g0", "g01", "g2", "gx", "large", "other"]);
        assert_eq!(names(&folder(dir, 2)), ["complete", "db"]);
        assert_eq!(names(&dir.join("large")), ["db"]);
    }

    #[test]
    fn a_log_that_must_be_there_and_is_not_is_damage() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = home.path();
        let checked = || {
            let newest = newest(dir).expect("read");
            check(dir, newest)
                .map_err(|error| error.to_string().rsplit(": ").next().expect("said").to_owned())
        };
        assert_eq!(checked(), Ok(()), "new");
        fs::create_dir(dir.join("g1")).expect("made");
        assert_eq!(checked(), Err("is not complete, and there is no other log".into()));
        fs::write(dir.join("db"), "first").expect("written");
        assert_eq!(checked(), Ok(()), "g1 was not finished");
        complete(dir, 1).expect("complete");
        assert_eq!(checked(), Err("its log is gone".into()));
        fs::write(dir.join("g1/db"), "second").expect("written");
        assert_eq!(checked(), Ok(()));
    }

    #[test]
    fn without_a_newer_one_the_first_stays() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = home.path();
        fs::write(dir.join("db"), "first").expect("written");
        fs::create_dir(dir.join("g1")).expect("made");
        remove_others(dir, newest(dir).expect("read")).expect("removed");
        assert_eq!(names(dir), ["db"]);
    }
}
