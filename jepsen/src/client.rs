//! A client of Quoral that is honest about what it knows.
//!
//! It is `quoral-client` with all its help turned off, one for each node: a request is sent once, to the node that was
//! asked for, under no request id. So what a history records is what one request did.
//!
//! Every answer is one of three: it took effect, it surely did not, or nobody knows. A read changes nothing, so a read
//! that failed surely did not happen.

use std::time::Duration;

use bytes::Bytes;
use quoral_client::{Context, Error, Keyspace, RequestId, RetryPolicy, Stamp, Written};
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
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The concurrent values, with their stamps.
    pub siblings: Vec<(Bytes, u64)>,
    /// Covers them.
    pub context: Bytes,
}

/// What is asked of which key.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Its keyspace.
    pub keyspace: String,
    /// The key.
    pub key: String,
    /// Replicas to hear, or to wait for; none is the keyspace's own.
    pub level: Option<u32>,
    /// The deadline.
    pub timeout: Duration,
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

    fn keys(&self, node: usize, ask: &Ask) -> Keyspace {
        self.nodes[node].keyspace(ask.keyspace.as_str())
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
        let mut put = self.keys(node, ask).put(ask.key.as_str(), value).context(context);
        if let Some(id) = id {
            put = put.request_id(RequestId(id));
        }
        let put = put.timeout(ask.timeout + PATIENCE);
        write_answer(match ask.level {
            Some(w) => put.w(w).await,
            None => put.await,
        })
    }

    /// Writes a tombstone through a node.
    pub async fn delete(&mut self, node: usize, ask: &Ask, context: Bytes) -> Answer<Wrote> {
        let delete = self.keys(node, ask).delete(ask.key.as_str()).context(context);
        let delete = delete.timeout(ask.timeout + PATIENCE);
        write_answer(match ask.level {
            Some(w) => delete.w(w).await,
            None => delete.await,
        })
    }

    /// Reads a key through a node.
    pub async fn get(&mut self, node: usize, ask: &Ask) -> Answer<Found> {
        let get = self.keys(node, ask).get(ask.key.as_str()).timeout(ask.timeout + PATIENCE);
        let found = match ask.level {
            Some(r) => get.r(r).await,
            None => get.await,
        };
        match found {
            Ok(found) => {
                let siblings = found.siblings.into_iter().map(|sibling| (sibling.value, sibling.stamp.0));
                Answer::Ok(Found { siblings: siblings.collect(), context: found.context.into() })
            }
            Err(error) => Answer::Fail(words(&error)),
        }
    }
}

fn words(error: &Error) -> String {
    format!("{:?}: {error}", error.code)
}

fn write_answer(answer: Result<Written, Error>) -> Answer<Wrote> {
    match answer {
        Ok(Written { context, stamp: Stamp(stamp), attempts, .. }) => {
            // One operation, one request: a history with hidden retries would be about another system.
            assert_eq!(attempts, 1, "the client has sent a write again");
            Answer::Ok(Wrote { context: Context::into(context), stamp })
        }
        Err(error) if error.surely_not_applied() => Answer::Fail(words(&error)),
        Err(error) => Answer::Info(words(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn put(endpoint: std::net::SocketAddr, timeout: Duration) -> Answer<Wrote> {
        let mut client = Client::new(&[format!("http://{endpoint}")]).expect("an address");
        let ask = Ask { keyspace: "default".into(), key: "k".into(), level: None, timeout };
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
