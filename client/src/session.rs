//! Sessions: one client that reads its own writes and never goes back, through any node, with any `r` and `w`.
//!
//! Each answer gives a token that names what was written and read; the next request carries it. So the requests of
//! one session are sent one at a time: two at once would each begin from the same token, and the answer of one
//! would be forgotten by the other. For work in parallel take several sessions.
//!
//! A read that no reachable replica can answer well enough is refused, as `UNAVAILABLE`, rather than answered with
//! something older.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout_at};

use crate::client::Client;
use crate::error::Error;
use crate::keyspace::Keyspace;

/// A session. Clones are the same session.
#[derive(Debug, Clone)]
pub struct Session {
    client: Client,
    token: Arc<Mutex<Bytes>>,
}

impl Session {
    pub(crate) fn from_token(client: Client, token: Bytes) -> Session {
        Session { client, token: Arc::new(Mutex::new(token)) }
    }

    /// The keys of a keyspace, as this session sees them: puts, deletes, gets and updates. Scans and batches have no
    /// session, and are refused.
    pub fn keyspace(&self, name: impl Into<String>) -> Keyspace {
        Keyspace::new(self.client.clone(), name.into(), Some(self.clone()))
    }

    /// What this session has seen, as a token of up to 4 KiB: kept in a cookie, say, it goes on through another
    /// process by [`Client::session_from`].
    pub async fn token(&self) -> Bytes {
        self.token.lock().await.clone()
    }

    /// This request's turn: the token, to be replaced by the answer's.
    pub(crate) async fn turn(&self, deadline: Instant) -> Result<MutexGuard<'_, Bytes>, Error> {
        let turn = timeout_at(deadline, self.token.lock()).await;
        turn.map_err(|_| {
            Error::not_begun("the session's earlier requests took all the time; nothing was sent")
        })
    }
}
