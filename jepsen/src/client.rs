//! A client of Quoral that is honest about what it knows.
//!
//! It is `quoral-client` with all its help turned off, one for each node: a request is sent once, to the node that was
//! asked for, under no request id. So what a history records is what one request did.
//!
//! Every answer is one of three: it took effect, it surely did not, or nobody knows. A read changes nothing, so a read
//! that failed surely did not happen.

use std::time::Duration;

use bytes::Bytes;
use quoral_client::{
    Attempt, Context, Error, Keyspace, Op, Outcome, RequestId, RetryPolicy, Session, Stamp, Written, proto,
};
use tonic::transport::{Channel, Endpoint};

/// How long a client waits past the deadline that it told the node.
const PATIENCE: Duration = Duration::from_millis(500);

/// An operation's outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// It took effect.
    Ok(T),
    /// It surely did not, and never will.
    Fail(String),
    /// Nobody knows.
    Info(String),
}

/// An acknowledged write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrote {
    /// Covers it and what it replaced.
    pub context: Bytes,
    /// Its stamp.
    pub stamp: u64,
    /// The session's token after it; empty without one.
    pub session: Bytes,
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The concurrent values, with their stamps.
    pub siblings: Vec<(Bytes, u64)>,
    /// Covers them.
    pub context: Bytes,
    /// When the first of them will be gone, in milliseconds since 1970, if ever.
    pub expires: Option<u64>,
    /// The session's token after it; empty without one.
    pub session: Bytes,
}

/// What is asked of which key.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// Its keyspace.
    pub keyspace: String,
    /// The key.
    pub key: String,
    /// Replicas to hear, or to wait for; none is the keyspace's own.
    pub level: Option<u32>,
    /// The deadline.
    pub timeout: Duration,
    /// A session's token, if it is in one: empty at first.
    pub session: Option<Bytes>,
    /// How long a written value lives; none is the keyspace's own.
    pub ttl: Option<Duration>,
}

/// One item of a batch: a key, and what is written there; none reads it.
pub type Item = (String, Option<Bytes>);

/// What an item of a batch came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Of a put.
    Wrote(Answer<Wrote>),
    /// Of a get.
    Found(Answer<Found>),
    /// The answer to the batch says nothing of it.
    Missing,
}

/// Connections to all nodes.
#[derive(Debug, Clone)]
pub struct Client {
    nodes: Vec<quoral_client::Client>,
}

/// A lazy channel to `http://IP:PORT`.
pub fn channel(endpoint: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned())?
        .connect_timeout(Duration::from_secs(1))
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    Ok(endpoint.connect_lazy())
}

fn one(endpoint: &str) -> Result<quoral_client::Client, Error> {
    quoral_client::Client::builder()
        .endpoints([endpoint])
        .retries(RetryPolicy::NEVER)
        .routing(false)
        .request_ids(false)
        .answer_margin(PATIENCE)
        .connect_lazy()
}

impl Client {
    /// A client of the nodes at these endpoints; it connects when it is used.
    pub fn new(endpoints: &[String]) -> Result<Client, Error> {
        Ok(Client { nodes: endpoints.iter().map(|endpoint| one(endpoint)).collect::<Result<_, _>>()? })
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    fn keys(&self, node: usize, ask: &Ask) -> (Keyspace, Option<Session>) {
        let node = &self.nodes[node];
        let session = ask.session.clone().map(|token| node.session_from(token));
        let keys = match &session {
            Some(session) => session.keyspace(ask.keyspace.as_str()),
            None => node.keyspace(ask.keyspace.as_str()),
        };
        (keys, session)
    }

    /// Writes a value through a node.
    pub async fn put(&mut self, node: usize, ask: &Ask, value: Bytes, context: Bytes) -> Answer<Wrote> {
        self.put_as(node, ask, value, context, None).await
    }

    /// The same, under a request id.
    pub async fn put_as(
        &mut self,
        node: usize,
        ask: &Ask,
        value: Bytes,
        context: Bytes,
        id: Option<[u8; 16]>,
    ) -> Answer<Wrote> {
        let (keys, session) = self.keys(node, ask);
        let mut put = keys.put(ask.key.as_str(), value).context(context);
        if let Some(id) = id {
            put = put.request_id(RequestId(id));
        }
        if let Some(ttl) = ask.ttl {
            put = put.ttl(ttl);
        }
        let put = put.timeout(ask.timeout + PATIENCE);
        let answer = match ask.level {
            Some(w) => put.w(w).await,
            None => put.await,
        };
        write_answer(answer, token(session).await)
    }

    /// Writes a tombstone through a node.
    pub async fn delete(&mut self, node: usize, ask: &Ask, context: Bytes) -> Answer<Wrote> {
        let (keys, session) = self.keys(node, ask);
        let delete = keys.delete(ask.key.as_str()).context(context).timeout(ask.timeout + PATIENCE);
        let answer = match ask.level {
            Some(w) => delete.w(w).await,
            None => delete.await,
        };
        write_answer(answer, token(session).await)
    }

    /// Reads a key through a node.
    pub async fn get(&mut self, node: usize, ask: &Ask) -> Answer<Found> {
        let (keys, session) = self.keys(node, ask);
        let get = keys.get(ask.key.as_str()).timeout(ask.timeout + PATIENCE);
        let answer = match ask.level {
            Some(r) => get.r(r).await,
            None => get.await,
        };
        read_answer(answer, token(session).await)
    }

    /// Drops a keyspace through a node.
    pub async fn drop_keyspace(&mut self, node: usize, ask: &Ask) -> Answer<()> {
        let request = proto::DropKeyspaceRequest { name: ask.keyspace.clone(), if_version: None };
        let send = |attempt: Attempt| {
            let request = request.clone();
            async move { attempt.cluster().drop_keyspace(request).await }
        };
        let dropped = self.nodes[node].call_within(Op::Write, ask.timeout + PATIENCE, send).await;
        admin_answer(dropped.map(|_| ()))
    }

    /// Makes a keyspace of three replicas and majorities through a node: its id.
    pub async fn create_keyspace(&mut self, node: usize, ask: &Ask, conflicts: &str) -> Answer<u32> {
        let (name, conflicts) = (ask.keyspace.clone(), conflicts.to_owned());
        let request =
            proto::CreateKeyspaceRequest { name, conflicts, n: 3, r: 2, w: 2, ..Default::default() };
        let send = |attempt: Attempt| {
            let request = request.clone();
            async move { attempt.cluster().create_keyspace(request).await }
        };
        let made = self.nodes[node].call_within(Op::Write, ask.timeout + PATIENCE, send).await;
        admin_answer(made.map(|made| made.keyspace.map_or(0, |keyspace| keyspace.id)))
    }

    /// The id that a keyspace has on a node; none if there is none of this name.
    pub async fn keyspace_id(&mut self, node: usize, ask: &Ask) -> Answer<Option<u32>> {
        let list = |attempt: Attempt| async move {
            attempt.cluster().list_keyspaces(proto::ListKeyspacesRequest {}).await
        };
        match self.nodes[node].call_within(Op::Read, ask.timeout + PATIENCE, list).await {
            Ok(listed) => {
                let own = listed.keyspaces.iter().find(|keyspace| keyspace.name == ask.keyspace);
                Answer::Ok(own.map(|keyspace| keyspace.id))
            }
            Err(error) => Answer::Fail(words(&error)),
        }
    }

    /// Sends a batch through a node: a status for each item. Of its `ask` the key, the level and the session are not
    /// looked at.
    pub async fn batch(&mut self, node: usize, ask: &Ask, items: &[Item]) -> Vec<Status> {
        let keys = self.nodes[node].keyspace(ask.keyspace.as_str());
        let mut batch = keys.batch().timeout(ask.timeout + PATIENCE);
        for (key, value) in items {
            batch = match value {
                Some(value) => batch.put(key.as_str(), value.clone()),
                None => batch.get(key.as_str()),
            };
        }
        let answers = batch.await;
        let status = |at: usize| match &answers {
            Ok(answers) => match answers.get(at) {
                Some(Ok(Outcome::Written(written))) => {
                    Status::Wrote(write_answer(Ok(written.clone()), Bytes::new()))
                }
                Some(Ok(Outcome::Found(found))) => {
                    Status::Found(read_answer(Ok(found.clone()), Bytes::new()))
                }
                Some(Err(error)) => failed(items[at].1.is_some(), error),
                None => Status::Missing,
            },
            // The batch as a whole: what is true of it is true of each.
            Err(error) => failed(items[at].1.is_some(), error),
        };
        (0..items.len()).map(status).collect()
    }
}

fn failed(is_write: bool, error: &Error) -> Status {
    match is_write {
        true => Status::Wrote(write_answer(Err(error.clone()), Bytes::new())),
        false => Status::Found(read_answer(Err(error.clone()), Bytes::new())),
    }
}

async fn token(session: Option<Session>) -> Bytes {
    match session {
        Some(session) => session.token().await,
        None => Bytes::new(),
    }
}

fn words(error: &Error) -> String {
    format!("{:?}: {error}", error.code)
}

fn admin_answer<T>(answer: Result<T, Error>) -> Answer<T> {
    match answer {
        Ok(done) => Answer::Ok(done),
        Err(error) if error.surely_not_applied() => Answer::Fail(words(&error)),
        Err(error) => Answer::Info(words(&error)),
    }
}

fn write_answer(answer: Result<Written, Error>, session: Bytes) -> Answer<Wrote> {
    match answer {
        Ok(Written { context, stamp: Stamp(stamp), attempts, .. }) => {
            // One operation, one request: a history with hidden retries would be about another system.
            assert_eq!(attempts, 1, "the client has sent a write again");
            Answer::Ok(Wrote { context: Context::into(context), stamp, session })
        }
        Err(error) if error.surely_not_applied() => Answer::Fail(words(&error)),
        Err(error) => Answer::Info(words(&error)),
    }
}

fn read_answer(answer: Result<quoral_client::Found, Error>, session: Bytes) -> Answer<Found> {
    match answer {
        Ok(found) => {
            let expires = found.siblings.iter().filter_map(|sibling| sibling.expires_at).min();
            let since = expires.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
            let siblings = found.siblings.into_iter().map(|sibling| (sibling.value, sibling.stamp.0));
            Answer::Ok(Found {
                siblings: siblings.collect(),
                context: found.context.into(),
                expires: since.and_then(|since| u64::try_from(since.as_millis()).ok()),
                session,
            })
        }
        Err(error) => Answer::Fail(words(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn put(endpoint: std::net::SocketAddr, timeout: Duration) -> Answer<Wrote> {
        let mut client = Client::new(&[format!("http://{endpoint}")]).expect("an address");
        let ask = Ask { keyspace: "default".into(), key: "k".into(), timeout, ..Ask::default() };
        client.put(0, &ask, Bytes::from_static(b"1"), Bytes::new()).await
    }

    #[tokio::test]
    async fn a_connection_that_is_refused_applied_nothing() {
        // A port that nothing listens on: bound once, and let go.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let answer = put(free, Duration::from_secs(2)).await;
        assert!(matches!(answer, Answer::Fail(_)), "{answer:?}");
    }

    #[tokio::test]
    async fn nobody_knows_what_became_of_a_write_that_was_sent() {
        // It takes connections, and is silent or hangs up.
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = server.local_addr().expect("bound");
        let silent = put(address, Duration::from_millis(100)).await;
        assert!(matches!(silent, Answer::Info(_)), "{silent:?}");
        let hangs_up = tokio::spawn(async move {
            // The backlog has the first test's connection.
            loop {
                let (mut connection, _) = server.accept().await.expect("a connection");
                // Behind the preface comes the request.
                let mut bytes = vec![0; 1 << 10];
                let _ = tokio::io::AsyncReadExt::read(&mut connection, &mut bytes).await;
            }
        });
        let broken = put(address, Duration::from_secs(5)).await;
        assert!(matches!(broken, Answer::Info(_)), "{broken:?}");
        hangs_up.abort();
    }
}
