//! Reads the rows of a file, in batches, in a thread of its own: parsing goes on while requests wait.
//!
//! Invariants:
//! 1. Each batch ends at the end of a line and carries the point there: where the file is acknowledged up
//!    to once all its rows are, and the blake3 of all before it.
//! 2. The point of what was read before a bad line is the start of that line.
//! 3. Memory is bounded: batches are closed at a number of rows or bytes, and few wait.

use std::io::{self, BufRead, Read};
use std::thread;

use tokio::sync::mpsc;

use super::checkpoint::LoadPoint;
use super::rows::{self, Row};
use crate::types::error::Invalid;
use crate::types::limits;

/// Rows in a batch at the most.
const BATCH_ROWS: usize = 1_000;
/// Bytes of lines after which a batch is closed.
const BATCH_BYTES: usize = 1 << 20;
/// Batches that wait to be taken.
const BATCHES: usize = 2;
/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

/// Rows that follow each other in the file.
#[derive(Debug)]
pub struct Batch {
    /// Each with its line number, from 1.
    pub rows: Vec<(u64, Row)>,
    /// Lines that are no rows and were skipped.
    pub bad: Vec<(u64, Invalid)>,
    /// Where the file stands behind them.
    pub point: LoadPoint,
}

/// What the reader says.
#[derive(Debug)]
pub enum Chunk {
    /// Some rows.
    Batch(Batch),
    /// The line that is no row; nothing follows.
    Bad(u64, Invalid),
    /// The file can't be read; nothing follows.
    Failed(io::Error),
}

/// A file being read.
pub struct Reader<R> {
    from: io::BufReader<R>,
    hasher: blake3::Hasher,
    point: LoadPoint,
    skip_bad: bool,
    line: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads `from` its start. With `skip_bad`, lines that are no rows are reported and passed over.
    pub fn new(from: R, skip_bad: bool) -> Reader<R> {
        Reader {
            from: io::BufReader::with_capacity(READ_BYTES, from),
            hasher: blake3::Hasher::new(),
            point: LoadPoint::default(),
            skip_bad,
            line: Vec::new(),
        }
    }

    /// Where it stands.
    pub fn point(&self) -> &LoadPoint {
        &self.point
    }

    /// Goes to `point`, and says whether the file up to there is what it was.
    pub fn resume(&mut self, point: LoadPoint) -> io::Result<bool> {
        let mut left = point.offset;
        while left > 0 {
            let buffer = self.from.fill_buf()?;
            let take = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if take == 0 {
                return Ok(false);
            }
            self.hasher.update(&buffer[..take]);
            self.from.consume(take);
            left -= take as u64;
        }
        let same = self.hasher.finalize().to_hex().as_str() == point.blake3;
        self.point = point;
        Ok(same)
    }

    /// Reads one line, without its end, into `self.line`; what is over the limit is passed over, but for
    /// the byte that shows it. Returns its length in the file: 0 at the end.
    fn read_line(&mut self) -> io::Result<u64> {
        self.line.clear();
        let mut length = 0;
        loop {
            let buffer = self.from.fill_buf()?;
            if buffer.is_empty() {
                return Ok(length);
            }
            let end = buffer.iter().position(|b| *b == b'\n');
            let take = end.map_or(buffer.len(), |at| at + 1);
            let room = (limits::ROW_LINE_BYTES + 1).saturating_sub(self.line.len());
            self.line.extend_from_slice(&buffer[..end.unwrap_or(take).min(room)]);
            self.hasher.update(&buffer[..take]);
            self.from.consume(take);
            length += take as u64;
            if end.is_some() {
                return Ok(length);
            }
        }
    }

    fn close(&mut self, batch: &mut Batch) -> Batch {
        let mut point = self.point.clone();
        point.blake3 = self.hasher.finalize().to_hex().to_string();
        let next = Batch { rows: Vec::new(), bad: Vec::new(), point: LoadPoint::default() };
        let mut closed = std::mem::replace(batch, next);
        closed.point = point;
        closed
    }

    /// Reads to the end or to the first bad line, and gives each batch to `give` until it returns false.
    pub fn run(mut self, mut give: impl FnMut(Chunk) -> bool) {
        let mut batch = Batch { rows: Vec::new(), bad: Vec::new(), point: LoadPoint::default() };
        let mut bytes = 0;
        loop {
            // The point before this line, should it be bad.
            let hasher_before = (!self.skip_bad).then(|| self.hasher.clone());
            let length = match self.read_line() {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) => {
                    let _ = give(Chunk::Batch(self.close(&mut batch))) && give(Chunk::Failed(error));
                    return;
                }
            };
            let number = self.point.lines + 1;
            let blank = self.line.iter().all(u8::is_ascii_whitespace);
            match rows::parse(&self.line) {
                _ if blank => {}
                Ok(row) => {
                    batch.rows.push((number, row));
                    self.point.rows += 1;
                }
                Err(problem) if self.skip_bad => batch.bad.push((number, problem)),
                Err(problem) => {
                    self.hasher = hasher_before.unwrap_or_default();
                    let _ = give(Chunk::Batch(self.close(&mut batch))) && give(Chunk::Bad(number, problem));
                    return;
                }
            }
            self.point.offset += length;
            self.point.lines = number;
            bytes += self.line.len();
            let full = batch.rows.len() + batch.bad.len() >= BATCH_ROWS || bytes >= BATCH_BYTES;
            // Nothing more at hand: what came by a slow pipe must not wait.
            if full || self.from.buffer().is_empty() {
                bytes = 0;
                let closed = self.close(&mut batch);
                if !give(Chunk::Batch(closed)) {
                    return;
                }
            }
        }
        give(Chunk::Batch(self.close(&mut batch)));
    }
}

/// Starts the thread.
pub fn spawn<R: Read + Send + 'static>(reader: Reader<R>) -> mpsc::Receiver<Chunk> {
    let (give, take) = mpsc::channel(BATCHES);
    thread::spawn(move || reader.run(|read| give.blocking_send(read).is_ok()));
    take
}

#[cfg(test)]
mod tests {
    use super::*;

    type Seen = (Vec<Row>, Vec<u64>, Option<(u64, String)>, LoadPoint);

    fn read(text: &[u8], skip_bad: bool) -> Seen {
        let (mut rows, mut bad, mut stop, mut point) = (vec![], vec![], None, LoadPoint::default());
        Reader::new(text, skip_bad).run(|read| {
            match read {
                Chunk::Batch(batch) => {
                    rows.extend(batch.rows.into_iter().map(|(_, row)| row));
                    bad.extend(batch.bad.into_iter().map(|(line, _)| line));
                    point = batch.point;
                }
                Chunk::Bad(line, problem) => stop = Some((line, problem.to_string())),
                Chunk::Failed(error) => panic!("{error}"),
            }
            true
        });
        (rows, bad, stop, point)
    }

    const TEXT: &[u8] = b"{\"key\":\"a\",\"value\":\"1\"}\n\n{\"key\":\"b\",\"value\":\"2\"}\nbad\n{\"key\":\"c\",\"value\":\"3\"}";

    #[test]
    fn a_bad_line_stops_and_the_point_is_its_start() {
        let (rows, _, stop, point) = read(TEXT, false);
        assert_eq!(rows.len(), 2);
        assert_eq!(stop.as_ref().map(|s| s.0), Some(4), "{stop:?}");
        let prefix = TEXT.len() - b"bad\n{\"key\":\"c\",\"value\":\"3\"}".len();
        assert_eq!((point.offset, point.lines, point.rows), (prefix as u64, 3, 2));
        // Corrected behind the point, the file is gone on with; changed before it, it is not.
        let mut mended = TEXT[..prefix].to_vec();
        mended.extend_from_slice(b"{\"key\":\"x\",\"value\":\"4\"}\n");
        let mut reader = Reader::new(mended.as_slice(), false);
        assert!(reader.resume(point.clone()).expect("read"));
        let mut seen = vec![];
        reader.run(|read| match read {
            Chunk::Batch(batch) => {
                seen.extend(batch.rows.iter().map(|(line, row)| (*line, row.key.partition_key().clone())));
                true
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(seen, vec![(4, "x".into())]);
        mended[10] = b'z';
        assert!(!Reader::new(mended.as_slice(), false).resume(point.clone()).expect("read"), "changed");
        assert!(!Reader::new(&b"short"[..], false).resume(point).expect("read"), "cut");
    }

    #[test]
    fn bad_lines_can_be_skipped_and_are_counted() {
        let (rows, bad, stop, point) = read(TEXT, true);
        assert_eq!((rows.len(), bad, stop), (3, vec![4], None));
        assert_eq!((point.offset, point.lines, point.rows), (TEXT.len() as u64, 5, 3));
        assert_eq!(point.blake3, blake3::hash(TEXT).to_hex().as_str());
    }

    /// A line over the limit is refused by its length and read past, not kept.
    #[test]
    fn a_line_over_the_limit_is_bad_and_the_next_is_good() {
        let mut text = vec![b'x'; limits::ROW_LINE_BYTES + 5];
        text.extend_from_slice(b"\n{\"key\":\"a\",\"value\":\"1\"}\n");
        let (rows, bad, stop, point) = read(&text, true);
        assert_eq!((rows.len(), bad, stop), (1, vec![1], None));
        assert_eq!(point.offset, text.len() as u64);
        let (_, _, stop, _) = read(&text, false);
        let (line, problem) = stop.expect("bad");
        assert_eq!(line, 1);
        assert!(problem.starts_with("row: ") && problem.contains("limit"), "{problem}");
    }

    #[test]
    fn batches_are_bounded() {
        let text = b"{\"key\":\"a\",\"value\":\"1\"}\n".repeat(BATCH_ROWS * 2 + 5);
        let mut sizes = vec![];
        Reader::new(text.as_slice(), false).run(|read| {
            if let Chunk::Batch(batch) = read {
                sizes.push(batch.rows.len());
            }
            true
        });
        assert!(sizes.iter().all(|size| *size <= BATCH_ROWS), "{sizes:?}");
        assert_eq!(sizes.iter().sum::<usize>(), BATCH_ROWS * 2 + 5);
    }
}
