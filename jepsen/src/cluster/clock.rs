//! A node's wall clock, moved by libfaketime: the offset stands in a file that it reads at each look at the clock.
//!
//! The monotonic clock stays true: machines whose monotonic clock jumps do not exist.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Error;

/// Where distributions put the library.
const PLACES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime",
    "/usr/lib/aarch64-linux-gnu/faketime",
    "/usr/lib64/faketime",
    "/usr/lib/faketime",
];

/// A clock that can be moved.
#[derive(Debug, Clone)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// A true clock, kept in `dir/clock`.
    ///
    /// # Errors
    ///
    /// libfaketime is missing, or the file can't be written.
    pub fn make(dir: &Path) -> Result<Clock, Error> {
        let found =
            PLACES.iter().map(|place| Path::new(place).join("libfaketimeMT.so.1")).find(|path| path.exists());
        let library = found.ok_or_else(|| Error::Unable("libfaketime is not installed".into()))?;
        let clock = Clock { library, file: dir.join("clock") };
        clock.set(0)?;
        Ok(clock)
    }

    /// Moves it to so many milliseconds from the truth; a reader sees the old or the new offset.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn set(&self, offset_ms: i64) -> Result<(), Error> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let sign = if offset_ms < 0 { '-' } else { '+' };
        let ms = offset_ms.unsigned_abs();
        // A name of its own, since several may move it at once.
        let new = self.file.with_extension(COUNT.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::write(&new, format!("{sign}{}.{:03}\n", ms / 1000, ms % 1000))
            .and_then(|()| std::fs::rename(&new, &self.file))
            .map_err(|error| Error::io("a clock's file", error))
    }

    /// The environment of a process that has this clock.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("LD_PRELOAD", self.library.to_string_lossy().into_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_string_lossy().into_owned()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            // Times of files stay true.
            ("NO_FAKE_STAT", "1".into()),
        ]
    }
}
