//! A disk of a node's own: a file with a file system, mounted in the node's own mount namespace.
//!
//! The mount is seen by the node alone, and ends with the last process of its namespace. A power cut shuts the
//! file system down without writing its log: what was not synced is gone, directory entries too.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};

use super::Error;
use super::command::{run_blocking, words};
use super::machine::Machine;

/// Size of a disk; xfs wants 300 MB at least. The file is sparse.
const BYTES: u64 = 320 << 20;
/// The smallest piece that fills a disk.
const FILL_TO: u64 = 4096;

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fs {
    /// `xfs`
    Xfs,
    /// `ext4`
    Ext4,
}

impl Fs {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Fs::Xfs => "xfs",
            Fs::Ext4 => "ext4",
        }
    }
}

/// One node's disk.
#[derive(Debug, Clone)]
pub struct Loop {
    fs: Fs,
    image: PathBuf,
    /// Where it is mounted, as the node sees it.
    at: PathBuf,
    machine: Machine,
}

impl Loop {
    /// Makes the file and its file system, below `dir`, and mounts it at `dir/disk`. Blocks.
    ///
    /// # Errors
    ///
    /// A program is missing, or the machine has no loop devices.
    pub fn make(fs: Fs, dir: &Path, machine: &Machine) -> Result<Loop, Error> {
        let disk = Loop { fs, image: dir.join("disk.img"), at: dir.join("disk"), machine: machine.clone() };
        let io = |error| Error::io("a disk's image", error);
        std::fs::create_dir_all(&disk.at).map_err(io)?;
        std::fs::File::create(&disk.image).and_then(|file| file.set_len(BYTES)).map_err(io)?;
        let image = disk.image.to_string_lossy();
        let line = match fs {
            Fs::Xfs => words(&["mkfs.xfs", "-q", "-f", &image]),
            Fs::Ext4 => words(&["mkfs.ext4", "-q", "-F", &image]),
        };
        run_blocking(&line, "")?;
        disk.mount()?;
        Ok(disk)
    }

    /// Whether it is mounted.
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string(self.machine.proc().join("mounts")).unwrap_or_default();
        let at = self.at.to_string_lossy();
        mounts.lines().any(|line| line.split(' ').nth(1) == Some(&at))
    }

    /// Mounts it, if it is not. Blocks.
    ///
    /// # Errors
    ///
    /// It can't be mounted.
    pub fn mount(&self) -> Result<(), Error> {
        if self.is_mounted() {
            return Ok(());
        }
        let (image, at) = (self.image.to_string_lossy(), self.at.to_string_lossy());
        let line = self.machine.inside(&["mount", "-t", self.fs.name(), "-o", "loop", &image, &at]);
        run_blocking(&line, "").map(|_| ())
    }

    /// Shuts it down as a power cut does; nothing can be read or written after it. Blocks.
    ///
    /// # Errors
    ///
    /// `xfs_io` is missing or refuses.
    pub fn cut(&self) -> Result<(), Error> {
        let line = self.machine.inside(&["xfs_io", "-x", "-c", "shutdown", &self.at.to_string_lossy()]);
        run_blocking(&line, "").map(|_| ())
    }

    /// Unmounts it; who used it must be gone. Blocks.
    ///
    /// # Errors
    ///
    /// It stays busy.
    pub fn unmount(&self) -> Result<(), Error> {
        let line = self.machine.inside(&["umount", &self.at.to_string_lossy()]);
        let end = Instant::now() + Duration::from_secs(5);
        while self.is_mounted() {
            match run_blocking(&line, "") {
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    fn filler(&self) -> PathBuf {
        self.machine.root().join(self.at.strip_prefix("/").unwrap_or(&self.at)).join("filler")
    }

    /// Fills it; gives how many bytes that took. Blocks.
    ///
    /// # Errors
    ///
    /// The filler can't be made, or the disk is not mounted.
    pub fn fill(&self) -> Result<u64, Error> {
        if !self.is_mounted() {
            return Err(Error::Unable(format!("{} is not mounted", self.at.display())));
        }
        let path = self.filler();
        let io = |error| Error::io(format!("the filler {}", path.display()), error);
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path).map_err(io)?;
        let mut filled = file.metadata().map_err(io)?.len();
        let mut piece = BYTES;
        while piece >= FILL_TO {
            if filled < BYTES && fallocate(&file, FallocateFlags::empty(), filled, piece).is_ok() {
                filled += piece;
            } else {
                piece /= 2;
            }
        }
        Ok(filled)
    }

    /// Takes the filler away again. Blocks.
    ///
    /// # Errors
    ///
    /// It can't be removed.
    pub fn free(&self) -> Result<(), Error> {
        match std::fs::remove_file(self.filler()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("the filler", error)),
            _ => Ok(()),
        }
    }

    /// Removes the image: the run is over.
    pub fn remove(&self) {
        let _ = std::fs::remove_file(&self.image);
    }
}
