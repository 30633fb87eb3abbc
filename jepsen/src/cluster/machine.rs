//! What stands for one machine: a network and a mount namespace of its own, held by a process that does nothing.
//!
//! The holder is `cat` on a pipe: it ends when the runner does, however that ends, and the namespaces and all
//! that is mounted or connected in them go with the last process inside. So nothing has a name, nothing can
//! collide with another run, and nothing is left behind. Commands get in by `nsenter`.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Error;
use super::command::words;

/// How long the holder may take to be inside.
const INSIDE_WITHIN: Duration = Duration::from_secs(5);

/// A machine; copies are the same one. It goes with the last copy.
#[derive(Debug, Clone)]
pub struct Machine {
    holder: Arc<Holder>,
}

#[derive(Debug)]
struct Holder {
    pid: u32,
    child: Mutex<Child>,
}

impl Machine {
    /// A new one, with nothing but a loopback that is down. Blocks.
    ///
    /// # Errors
    ///
    /// Not root, or the machine does not let root make namespaces.
    pub fn make() -> Result<Machine, Error> {
        let io = |error| Error::io("unshare", error);
        let child = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(io)?;
        let pid = child.id();
        let machine = Machine { holder: Arc::new(Holder { pid, child: Mutex::new(child) }) };
        // `unshare` becomes `cat` when all is done.
        let end = Instant::now() + INSIDE_WITHIN;
        while std::fs::read_to_string(machine.proc().join("comm")).unwrap_or_default().trim() != "cat" {
            let mut child = machine.holder.child.lock().unwrap_or_else(PoisonError::into_inner);
            if child.try_wait().map_err(io)?.is_some() || Instant::now() > end {
                return Err(Error::Unable("no namespaces: `unshare --net --mount` failed".into()));
            }
            drop(child);
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(machine)
    }

    /// The process that stands for it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.holder.pid
    }

    /// The holder's directory in `/proc`.
    #[must_use]
    pub fn proc(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.holder.pid))
    }

    /// Its file tree, as seen from outside.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.proc().join("root")
    }

    /// A command line that runs inside. Paths must be absolute.
    #[must_use]
    pub fn inside(&self, line: &[&str]) -> Vec<String> {
        let target = self.holder.pid.to_string();
        words(&[&["nsenter", "--target", &target, "--net", "--mount", "--"], line].concat())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}
