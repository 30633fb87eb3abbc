//! Which processes this runner started, on disk: so that the next one can end what a killed one left behind.
//!
//! Nodes stop when the runner's end of their stdin closes, namespaces and mounts go with the last process in
//! them. A node that is stopped by SIGSTOP when its runner is killed can't see that. The kernel hangs it up, as an
//! orphaned process group, but that is not to be relied upon (a session of another shape, a handler): hence this.
//!
//! 1. A runner holds the lock of its file as long as it lives; whose lock can be had is dead.
//! 2. A process is known by its id and its time of start, so that nobody else's is ended.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

use super::Error;

/// This process's file, open and locked until it ends.
static OWN: OnceLock<Mutex<File>> = OnceLock::new();

fn directory() -> PathBuf {
    std::env::temp_dir().join(format!("quoral-jepsen-{}", rustix::process::geteuid().as_raw()))
}

/// Notes a process of ours.
///
/// # Errors
///
/// The file can't be written.
pub fn note(pid: u32) -> Result<(), Error> {
    let io = |error| Error::io("the ledger of processes", error);
    if OWN.get().is_none() {
        // Two threads may both come here: the later one's file is empty, and taken for a leftover once.
        let _ = OWN.set(Mutex::new(own_file().map_err(io)?));
    }
    let (Some(file), Some(started)) = (OWN.get(), started(pid)) else { return Ok(()) };
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    writeln!(file, "{pid} {started}").map_err(io)
}

fn own_file() -> std::io::Result<File> {
    let directory = directory();
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(std::process::id().to_string());
    loop {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        // Who cleans up may have removed it between the two.
        if std::fs::metadata(&path).is_ok_and(|now| file.metadata().is_ok_and(|mine| now.ino() == mine.ino()))
        {
            return Ok(file);
        }
    }
}

/// Ends what dead runners left; gives how many processes that were.
#[must_use]
pub fn clean() -> usize {
    let Ok(entries) = std::fs::read_dir(directory()) else { return 0 };
    entries.flatten().map(|entry| clean_one(&entry.path())).sum()
}

fn clean_one(path: &std::path::Path) -> usize {
    let Ok(file) = File::open(path) else { return 0 };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return 0;
    }
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let ended = text.lines().filter(|line| end(line).is_some()).count();
    let _ = std::fs::remove_file(path);
    ended
}

/// Ends the process of a line if it is still the same one.
fn end(line: &str) -> Option<()> {
    let (pid, noted) = line.split_once(' ')?;
    let pid: u32 = pid.parse().ok()?;
    if started(pid)? != noted {
        return None;
    }
    kill_process(Pid::from_raw(i32::try_from(pid).ok()?)?, Signal::KILL).ok()
}

/// When a process started, in ticks since the machine's boot: field 22 of its `stat`. None if it has ended.
fn started(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, but ends with the last bracket.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    // A zombie has ended, whoever is to wait for it.
    if fields.first() == Some(&"Z") { None } else { fields.get(19).map(|field| (*field).to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_process_is_ended() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let start = started(child.id()).unwrap();
        assert_eq!(end(&format!("{} {start}9", child.id())), None);
        assert!(child.try_wait().unwrap().is_none());
        assert_eq!(end(&format!("{} {start}", child.id())), Some(()));
        assert!(!child.wait().unwrap().success());
        assert_eq!(end("junk"), None);
    }
}
