//! Large values of the `sled` engine: one file each, beside it.
//!
//! Why this way: `sled` splits its pages by the number of keys, never by bytes. Sixteen values of a mebibyte
//! make a page that is read, cached and rewritten as one, outside of any cache limit. So a value over
//! [`INLINE_BYTES_MAX`] goes to a file of its own, and the engine holds its number and length.
//!
//! A file is `L`, a format version, the length of the storage key (4 bytes, big endian), the key, the value.
//! The key is there for the next start, which looks it up and deletes the file if it is not the one meant.
//!
//! Invariants:
//! 1. A file, and its name, are on stable storage before the engine is told of it.
//! 2. A file is deleted only after what replaced it is on stable storage.
//! 3. Numbers are not used again while the process lives, nor later while their file exists.
//!
//! It does not check the value's bytes: those carry a checksum of their own (`schema::seal`). Where a file is not what it
//! should be, what is left of it is given as the value, and found out by that.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::StorageError;

/// Longest value that stays in the engine. A page of the engine then stays far below a quarter of one of its
/// segments, past which it would use files of its own that it never syncs; and a page in its cache small.
pub(super) const INLINE_BYTES_MAX: usize = 16 << 10;

/// Memory that is set aside for a value before it is read: what says how long it is may be damaged.
const READ_AT_FIRST: u64 = 16 << 20;

const MARKER: u8 = b'L';
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 6;

/// Where a large value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pointer {
    /// The number of its file.
    pub id: u64,
    /// Bytes of the value.
    pub len: u64,
}

/// A directory of large values.
pub(super) struct LargeValues {
    dir: PathBuf,
    handle: File,
    next: AtomicU64,
    bytes: AtomicU64,
    files: AtomicU64,
}

impl LargeValues {
    /// Opens or makes the directory. Keeps the files for whose id and key `is_live` says so, and deletes the
    /// others: the remains of a crash.
    pub fn open(
        dir: &Path,
        mut is_live: impl FnMut(u64, &[u8]) -> Result<bool, StorageError>,
    ) -> Result<LargeValues, StorageError> {
        fs::create_dir_all(dir).map_err(from_io)?;
        let handle = File::open(dir).map_err(from_io)?;
        let (mut next, mut bytes, mut files) = (1, 0, 0);
        for entry in fs::read_dir(dir).map_err(from_io)? {
            let entry = entry.map_err(from_io)?;
            let Some(id) = entry.file_name().to_str().and_then(parse_name) else { continue };
            next = next.max(id + 1);
            let mut file = File::open(entry.path()).map_err(from_io)?;
            let live = match read_key(&mut file).map_err(from_io)? {
                Some(key) => is_live(id, &key)?,
                None => false,
            };
            if live {
                bytes += file.metadata().map_err(from_io)?.len();
                files += 1;
            } else {
                fs::remove_file(entry.path()).map_err(from_io)?;
            }
        }
        handle.sync_all().map_err(from_io)?;
        let (next, bytes, files) = (AtomicU64::new(next), AtomicU64::new(bytes), AtomicU64::new(files));
        Ok(LargeValues { dir: dir.to_path_buf(), handle, next, bytes, files })
    }

    /// Writes and syncs a file for `value`; [`LargeValues::sync_names`] must follow before it is pointed to.
    /// A write that fails leaves nothing behind.
    pub fn write(&self, key: &[u8], value: &[u8]) -> Result<Pointer, StorageError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.path(id);
        match write_file(&path, key, value) {
            Ok(bytes) => {
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.files.fetch_add(1, Ordering::Relaxed);
                Ok(Pointer { id, len: value.len() as u64 })
            }
            Err(error) => {
                // If this fails too, the next start deletes the file.
                let _ = fs::remove_file(&path);
                Err(from_io(error))
            }
        }
    }

    /// Makes the names of all files written before the call durable.
    pub fn sync_names(&self) -> Result<(), StorageError> {
        self.handle.sync_all().map_err(from_io)
    }

    /// The value that was written for `key`, or what is left of it; `None` if its file is gone, because it was replaced
    /// meanwhile.
    pub fn read(&self, key: &[u8], pointer: Pointer) -> Result<Option<Vec<u8>>, StorageError> {
        let mut file = match File::open(self.path(pointer.id)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(from_io(error)),
        };
        // By the length of the key that is meant: what the file says of it may be damaged, and the value sound.
        let head = (HEADER_BYTES + key.len()) as u64;
        file.seek(SeekFrom::Start(head)).map_err(from_io)?;
        let mut value = Vec::with_capacity(usize::try_from(pointer.len.min(READ_AT_FIRST)).unwrap_or(0));
        file.take(pointer.len).read_to_end(&mut value).map_err(from_io)?;
        Ok(Some(value))
    }

    /// Deletes a file that nothing durable points to any more.
    pub fn remove(&self, pointer: Pointer, key_len: usize) -> Result<(), StorageError> {
        match fs::remove_file(self.path(pointer.id)) {
            Ok(()) => {
                self.bytes.fetch_sub(file_bytes(key_len, pointer.len), Ordering::Relaxed);
                self.files.fetch_sub(1, Ordering::Relaxed);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(from_io(error)),
        }
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.files.load(Ordering::Relaxed) == 0
    }

    fn path(&self, id: u64) -> PathBuf {
        self.dir.join(name(id))
    }
}

fn name(id: u64) -> String {
    format!("{id:016x}")
}

fn parse_name(name: &str) -> Option<u64> {
    if name.len() == 16 { u64::from_str_radix(name, 16).ok() } else { None }
}

fn file_bytes(key_len: usize, value_len: u64) -> u64 {
    (HEADER_BYTES + key_len) as u64 + value_len
}

fn write_file(path: &Path, key: &[u8], value: &[u8]) -> io::Result<u64> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    let mut head = Vec::with_capacity(HEADER_BYTES + key.len());
    head.extend_from_slice(&[MARKER, VERSION]);
    let key_len = u32::try_from(key.len()).map_err(|_| ErrorKind::InvalidInput)?;
    head.extend_from_slice(&key_len.to_be_bytes());
    head.extend_from_slice(key);
    file.write_all(&head)?;
    file.write_all(value)?;
    file.sync_all()?;
    Ok(file_bytes(key.len(), value.len() as u64))
}

/// The key at the head of a file; `None` if the head is cut short or not one.
fn read_key(file: &mut File) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; HEADER_BYTES];
    match file.read_exact(&mut head) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let [MARKER, VERSION, len @ ..] = head else { return Ok(None) };
    let len = u64::from(u32::from_be_bytes(len));
    let mut key = Vec::new();
    file.take(len).read_to_end(&mut key)?;
    Ok((key.len() as u64 == len).then_some(key))
}

/// The error of a file operation of this room.
pub(super) fn from_io(error: io::Error) -> StorageError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StorageError::Full,
        _ => StorageError::Io(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_live_is_deleted_at_the_next_start() {
        let dir = tempfile::tempdir().expect("a directory");
        let none = |_: u64, _: &[u8]| Ok(false);
        let large = LargeValues::open(dir.path(), none).expect("opened");
        assert!(large.is_empty());
        let kept = large.write(b"kept", b"value").expect("written");
        let lost = large.write(b"lost", b"value").expect("written");
        fs::write(dir.path().join(name(77)), b"L\x01\0").expect("a cut file");
        drop(large);

        let large = LargeValues::open(dir.path(), |id, key| Ok(id == kept.id && key == b"kept"));
        let large = large.expect("opened");
        assert_eq!(large.read(b"kept", kept), Ok(Some(b"value".to_vec())));
        assert_eq!(large.read(b"lost", lost), Ok(None));
        assert_eq!(large.bytes(), file_bytes(4, 5));
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
        let new = large.write(b"new", b"v").expect("written");
        assert!(new.id > 77, "a number must not come back: {}", new.id);
        large.remove(kept, 4).expect("removed");
        large.remove(new, 3).expect("removed");
        assert_eq!((large.bytes(), large.is_empty()), (0, true));
    }

    #[test]
    fn what_is_left_of_a_damaged_file_is_given_as_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let large = LargeValues::open(dir.path(), |_, _| Ok(true)).expect("opened");
        let pointer = large.write(b"key", b"value").expect("written");
        let read = || large.read(b"key", pointer).expect("readable").expect("there");
        for (left, expected) in [
            (&b"L\x01\0\0\0\x03keyvalu"[..], &b"valu"[..]),
            (b"L\x07\0\xff\0\x03kezvalue", b"value"),
            (b"L\x01\0\0\0\x03keyvaluevalue", b"value"),
            (b"L\x01", b""),
        ] {
            fs::write(large.path(pointer.id), left).expect("written");
            assert_eq!(read(), expected, "{left:?}");
        }
    }
}
