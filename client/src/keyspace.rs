//! The keys of one keyspace: where requests begin.

use std::sync::Arc;

use bytes::Bytes;

use crate::batch::Batch;
use crate::client::Client;
use crate::request::{Delete, Get, Put};
use crate::scan::Scan;
use crate::session::Session;
use crate::update::Update;
use crate::values::{Found, Key};

/// The keys of one keyspace, perhaps in a session. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Keyspace {
    pub(crate) client: Client,
    name: Arc<str>,
    pub(crate) session: Option<Session>,
}

impl Keyspace {
    pub(crate) fn new(client: Client, name: String, session: Option<Session>) -> Keyspace {
        let name = if name.is_empty() { crate::route::DEFAULT_KEYSPACE.into() } else { name };
        Keyspace { client, name: name.into(), session }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes a value. In a `siblings` keyspace it replaces what its [`context`](Put::context) covers, and without
    /// one nothing: then it stands beside what is there.
    ///
    /// ```no_run
    /// # async fn f(profiles: quoral_client::Keyspace) -> Result<(), quoral_client::Error> {
    /// use quoral_client::Level;
    /// use std::time::Duration;
    /// profiles.put("user:7", "{}").ttl(Duration::from_secs(3600)).w(Level::All).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn put(&self, key: impl Into<Key>, value: impl Into<Bytes>) -> Put {
        Put::new(self.clone(), key.into(), value.into())
    }

    /// Reads a key: all its concurrent values, and the context that covers them.
    pub fn get(&self, key: impl Into<Key>) -> Get {
        Get::new(self.clone(), key.into())
    }

    /// Deletes a key: what the [`context`](Delete::context) covers in a `siblings` keyspace, all in an `lww` one.
    pub fn delete(&self, key: impl Into<Key>) -> Delete {
        Delete::new(self.clone(), key.into())
    }

    /// Reads a key, has `merge` make one value of all that is there, and writes it in their place. What others
    /// wrote meanwhile is kept beside it, for the next update to merge.
    ///
    /// That is for `siblings` keyspaces. In an `lww` keyspace nothing is kept beside anything: of two updates at
    /// once one is lost.
    ///
    /// ```no_run
    /// # async fn f(carts: quoral_client::Keyspace) -> Result<(), quoral_client::Error> {
    /// use std::collections::BTreeSet;
    /// let add_milk = |found: &quoral_client::Found| {
    ///     let text = |value| String::from_utf8_lossy(value).into_owned();
    ///     let carts: Vec<String> = found.values().map(|value| text(value)).collect();
    ///     let mut items: BTreeSet<&str> = carts.iter().flat_map(|cart| cart.lines()).collect();
    ///     items.insert("milk");
    ///     items.into_iter().collect::<Vec<_>>().join("\n")
    /// };
    /// carts.update("cart:42", add_milk).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn update<F, V>(&self, key: impl Into<Key>, merge: F) -> Update<F>
    where
        F: FnOnce(&Found) -> V + Send + 'static,
        V: Into<Bytes>,
    {
        Update::new(self.clone(), key.into(), merge)
    }

    /// Reads the whole keyspace, in order of partition, then of a hash of the partition key.
    pub fn scan(&self) -> Scan {
        Scan::new(self.clone(), Bytes::new())
    }

    /// Reads sort keys of one partition key, in byte order.
    pub fn scan_key(&self, partition: impl Into<Bytes>) -> Scan {
        Scan::new(self.clone(), partition.into())
    }

    /// Many puts, gets and deletes in one message. Not a transaction: each has an outcome of its own.
    pub fn batch(&self) -> Batch {
        Batch::new(self.clone())
    }
}
