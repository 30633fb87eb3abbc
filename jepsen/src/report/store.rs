//! The directory of a run, and the links to the newest.
//!
//! `<store>/<workload>/<yyyymmddThhmmss.mmmZ>/` holds it all. `<store>/<workload>/latest` and `<store>/latest`
//! lead to the run that was begun last, `<store>/current` to one that is still running. Links are relative,
//! so that the store can be moved, and replaced by a rename, so that they lead somewhere at all times.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::view::View;
use super::{Outcome, index, latency, quantiles, rate, results, summary, text, timeline};

/// A run's place in the store. Dropped, it is no longer `current`.
#[derive(Debug)]
pub struct Run {
    root: PathBuf,
    workload: String,
    when: String,
}

impl Run {
    /// Makes the directory of a run that begins `at`, in the store `root`, and the links to it. The workload's
    /// name is to be a plain one: letters, digits, `-` and `_`. A taken time is moved on by a millisecond.
    pub fn create(root: &Path, workload: &str, at: SystemTime) -> io::Result<Run> {
        if !plain(workload) || ["latest", "current"].contains(&workload) {
            let message = format!("workload: {workload:?} is not made of letters, digits, - and _ alone");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        fs::create_dir_all(root.join(workload))?;
        let mut at = at;
        let when = loop {
            let when = name_of(at);
            match fs::create_dir(root.join(workload).join(&when)) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => at += Duration::from_millis(1),
                made => break made.map(|()| when)?,
            }
        };
        let run = Run { root: root.into(), workload: workload.into(), when };
        relink(&root.join(workload).join("latest"), Path::new(&run.when))?;
        relink(&root.join("latest"), &run.within())?;
        relink(&root.join("current"), &run.within())?;
        index::write(root)?;
        Ok(run)
    }

    /// Its directory.
    pub fn dir(&self) -> PathBuf {
        self.root.join(self.within())
    }

    /// Its directory, from the store.
    fn within(&self) -> PathBuf {
        Path::new(&self.workload).join(&self.when)
    }

    /// Writes the reports, and the store's index anew. `results.edn` comes last: with it the run is whole.
    pub fn write(&self, outcome: &Outcome) -> io::Result<()> {
        let view = View::new(outcome, &self.when);
        let put = |name: &str, text: String| replace(&self.dir().join(name), text.as_bytes());
        put("test.edn", results::test_edn(outcome.test, &self.when))?;
        put("history.edn", outcome.history.to_edn())?;
        put("history.txt", text::history_txt(outcome.history))?;
        put("timeline.html", timeline::html(&view))?;
        put("latency.svg", latency::svg(&view))?;
        put("latency-quantiles.svg", quantiles::svg(&view))?;
        put("rate.svg", rate::svg(&view))?;
        put("thumbnail.svg", latency::thumbnail(&view))?;
        put("results.edn", results::results_edn(outcome, &view))?;
        index::write(&self.root)
    }

    /// The summary, and where the store is.
    pub fn summary(&self, outcome: &Outcome) -> String {
        format!("{}  store      {}\n", summary(outcome), self.dir().display())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let current = self.root.join("current");
        if fs::read_link(&current).is_ok_and(|target| target == self.within()) {
            // A link that stays is put right by the next run.
            let _ = fs::remove_file(current);
            let _ = index::write(&self.root);
        }
    }
}

/// Whether a name is one plain part of a path, and of a link.
pub(super) fn plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// Whether a directory's name is a run's: `20240131T235959.123Z`.
pub(super) fn is_time(name: &str) -> bool {
    let fits = |(i, c): (usize, char)| match i {
        8 => c == 'T',
        15 => c == '.',
        19 => c == 'Z',
        _ => c.is_ascii_digit(),
    };
    name.len() == 20 && name.chars().enumerate().all(fits)
}

/// A time in UTC as the name of a run's directory. A time before 1970 counts as 1970.
fn name_of(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, rest) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Howard Hinnant's days to civil: years begin in March, so that the leap day is the last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}.{:03}Z", since.subsec_millis())
}

/// Makes `link` lead to `target`, whether or not it led elsewhere.
fn relink(link: &Path, target: &Path) -> io::Result<()> {
    let new = beside(link);
    let _ = fs::remove_file(&new);
    symlink(target, &new)?;
    fs::rename(&new, link)
}

/// Writes a file whole, or leaves the old one.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = beside(path);
    fs::write(&new, bytes)?;
    fs::rename(&new, path)
}

/// A name beside a path that no other process takes.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
