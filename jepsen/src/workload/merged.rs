//! Values that clients merge: what each sibling says, read and written back as one.
//!
//! A step reads the key, merges its siblings, changes the result, and writes it with the context that it read.
//! If the read fails nothing was written, so the operation surely did not happen.

use bytes::Bytes;

use super::Worker;
use crate::client::{Answer, Found, Wrote};

/// Reads, merges, changes, and writes back.
pub async fn update<T>(
    worker: &mut Worker,
    key: u64,
    merge: impl Fn(&Found) -> T,
    change: impl FnOnce(&mut T),
    store: impl Fn(&T) -> Bytes,
) -> Answer<Wrote> {
    let found = match worker.get(key, None).await {
        Answer::Ok(found) => found,
        Answer::Fail(why) | Answer::Info(why) => return Answer::Fail(format!("the read before: {why}")),
    };
    let mut merged = merge(&found);
    change(&mut merged);
    worker.put(key, None, store(&merged), found.context).await
}
