//! Read, merge, write in the place of what was read.
//!
//! The read and the write are each sent again as far as that is safe; the merge runs once. There is no loop: a write
//! with a context never fails because others wrote meanwhile, it stands beside theirs.

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::request::{Answer, Get, Put, deadline};
use crate::values::{Found, Key, Level, Written};

/// An update; see [`Keyspace::update`].
#[derive(Debug, Clone)]
#[must_use = "an update is sent when it is awaited"]
pub struct Update<F> {
    keyspace: Keyspace,
    get: Get,
    put: Put,
    merge: F,
    timeout: Option<Duration>,
}

impl<F> Update<F> {
    pub(crate) fn new(keyspace: Keyspace, key: Key, merge: F) -> Update<F> {
        let get = Get::new(keyspace.clone(), key.clone());
        let put = Put::new(keyspace.clone(), key, Bytes::new());
        Update { keyspace, get, put, merge, timeout: None }
    }

    /// Replicas to hear, instead of the keyspace's own.
    pub fn r(mut self, r: impl Into<Level>) -> Update<F> {
        self.get = self.get.r(r);
        self
    }

    /// Acknowledgements to wait for, instead of the keyspace's own.
    pub fn w(mut self, w: impl Into<Level>) -> Update<F> {
        self.put = self.put.w(w);
        self
    }

    /// How long the new value lives, instead of the keyspace's own.
    pub fn ttl(mut self, ttl: Duration) -> Update<F> {
        self.put = self.put.ttl(ttl);
        self
    }

    /// Whether fallbacks may answer and stand in, instead of what the keyspace says.
    pub fn sloppy(mut self, sloppy: bool) -> Update<F> {
        (self.get, self.put) = (self.get.sloppy(sloppy), self.put.sloppy(sloppy));
        self
    }

    /// How long both may take together, instead of the client's time.
    pub fn timeout(mut self, timeout: Duration) -> Update<F> {
        self.timeout = Some(timeout);
        self
    }
}

impl<F, V> IntoFuture for Update<F>
where
    F: FnOnce(&Found) -> V + Send + 'static,
    V: Into<Bytes>,
{
    type Output = Result<Written, Error>;
    type IntoFuture = Answer<Written>;

    fn into_future(self) -> Answer<Written> {
        Box::pin(async move {
            let until = deadline(&self.keyspace, self.timeout);
            let left = || until.saturating_duration_since(Instant::now());
            let found = self.get.timeout(left()).await?;
            let mut put = self.put;
            put.message.value = (self.merge)(&found).into();
            put.context(found.context).timeout(left()).await
        })
    }
}
