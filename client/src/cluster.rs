//! The cluster and its keyspaces.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::client::{Attempt, Client};
use crate::error::{Code, Error};
use crate::proto::{self, KeyspaceInfo, StatusResponse};
use crate::retry::Op;

/// How often a node is asked whether it has heard of a keyspace: gossip takes that long.
const HEARD_EVERY: Duration = Duration::from_millis(20);
/// How long a node is asked that does not answer.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// The policy of a new keyspace.
#[derive(Debug, Clone, PartialEq)]
pub struct NewKeyspace(proto::CreateKeyspaceRequest);

impl NewKeyspace {
    /// One value per key: the last write wins.
    pub fn lww(name: impl Into<String>) -> NewKeyspace {
        NewKeyspace::of(name.into(), "lww")
    }

    /// Concurrent writes are all kept and all returned.
    pub fn siblings(name: impl Into<String>) -> NewKeyspace {
        NewKeyspace::of(name.into(), "siblings")
    }

    fn of(name: String, conflicts: &str) -> NewKeyspace {
        NewKeyspace(proto::CreateKeyspaceRequest { name, conflicts: conflicts.into(), ..Default::default() })
    }

    /// Replicas of each key; 3 if it is not said (or all nodes, if there are fewer).
    pub fn n(mut self, n: u32) -> NewKeyspace {
        self.0.n = n;
        self
    }

    /// Replicas that a get hears; more than half of `n` if it is not said.
    pub fn r(mut self, r: u32) -> NewKeyspace {
        self.0.r = r;
        self
    }

    /// Acknowledgements that a write waits for; likewise.
    pub fn w(mut self, w: u32) -> NewKeyspace {
        self.0.w = w;
        self
    }

    /// Fallbacks stand in for home replicas that are away: always writable.
    pub fn sloppy(mut self, sloppy: bool) -> NewKeyspace {
        self.0.sloppy = sloppy;
        self
    }

    /// How long values live that do not say.
    pub fn ttl(mut self, ttl: Duration) -> NewKeyspace {
        self.0.ttl_ms = crate::client::millis(ttl);
        self
    }

    /// What `info` has that was asked for otherwise; none if it is as asked for.
    fn differs(&self, info: &KeyspaceInfo) -> Option<&'static str> {
        let asked = &self.0;
        let other = |asked: u32, has: u32| asked > 0 && asked != has;
        let checks = [
            ("conflicts", asked.conflicts != info.conflicts),
            ("n", other(asked.n, info.n)),
            ("r", other(asked.r, info.r)),
            ("w", other(asked.w, info.w)),
            ("sloppy", asked.sloppy != info.sloppy),
            ("ttl", asked.ttl_ms != info.ttl_ms),
        ];
        checks.into_iter().find(|(_, differs)| *differs).map(|(field, _)| field)
    }
}

impl Client {
    /// Nodes, liveness, ownership, disk, as one node sees them.
    pub async fn status(&self) -> Result<StatusResponse, Error> {
        self.call(Op::Read, |attempt| async move { attempt.cluster().status(proto::StatusRequest {}).await })
            .await
    }

    /// All keyspaces.
    pub async fn keyspaces(&self) -> Result<Vec<KeyspaceInfo>, Error> {
        let list = |attempt: Attempt| async move {
            attempt.cluster().list_keyspaces(proto::ListKeyspacesRequest {}).await
        };
        Ok(self.call(Op::Read, list).await?.keyspaces)
    }

    /// Makes a keyspace: `ALREADY_EXISTS` if there is one of this name. It returns when the nodes that this client
    /// knows and reaches have heard of it.
    pub async fn create_keyspace(&self, new: NewKeyspace) -> Result<KeyspaceInfo, Error> {
        let deadline = Instant::now() + self.0.settings.timeout;
        let send = |attempt: Attempt| {
            let request = new.0.clone();
            async move { attempt.cluster().create_keyspace(request).await }
        };
        let created = self.0.call(Op::Write, None, deadline, send).await?.answer;
        self.wait_until_heard(&new.0.name, deadline).await;
        let missing = || Error::invalid("create_keyspace: the answer has no keyspace");
        created.keyspace.ok_or_else(missing)
    }

    /// Makes a keyspace unless it is there; an error if one of another policy is.
    pub async fn ensure_keyspace(&self, new: NewKeyspace) -> Result<KeyspaceInfo, Error> {
        let info = match self.create_keyspace(new.clone()).await {
            Err(error) if error.code == Code::AlreadyExists => {
                let there = self.keyspaces().await?.into_iter().find(|info| info.name == new.0.name);
                // Who says that it is there may not be who is asked next.
                there.ok_or(error)?
            }
            done => return done,
        };
        match new.differs(&info) {
            None => Ok(info),
            Some(field) => {
                let name = &new.0.name;
                Err(Error::invalid(format!("keyspace {name}: is there, with another {field}")))
            }
        }
    }

    /// Waits until each node known has heard of a keyspace, or does not answer.
    async fn wait_until_heard(&self, name: &str, deadline: Instant) {
        if self.0.settings.routing {
            // So that all nodes are known. Those that are not are no worse off than without.
            let _ = self.refresh().await;
        }
        let heard = |target: std::sync::Arc<crate::endpoint::Target>| async move {
            let until = deadline.min(Instant::now() + HEARD_WITHIN);
            while let Ok(connection) = target.connection(until).await {
                let mut cluster = proto::cluster_client::ClusterClient::new(connection.channel);
                let list = timeout_at(until, cluster.list_keyspaces(proto::ListKeyspacesRequest {})).await;
                match list {
                    Ok(Ok(list)) if list.get_ref().keyspaces.iter().any(|info| info.name == name) => return,
                    Ok(Ok(_)) if Instant::now() < until => sleep(HEARD_EVERY).await,
                    _ => return,
                }
            }
        };
        for target in self.0.targets().iter() {
            heard(target.clone()).await;
        }
        if self.0.settings.routing {
            let _ = self.refresh().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_said_may_be_anything() {
        let info = KeyspaceInfo {
            conflicts: "siblings".into(),
            n: 3,
            r: 2,
            w: 2,
            sloppy: true,
            ..Default::default()
        };
        let asked = NewKeyspace::siblings("carts").sloppy(true);
        assert_eq!(asked.differs(&info), None);
        assert_eq!(asked.clone().n(3).differs(&info), None);
        assert_eq!(asked.clone().w(3).differs(&info), Some("w"));
        assert_eq!(asked.sloppy(false).differs(&info), Some("sloppy"));
        assert_eq!(NewKeyspace::lww("carts").sloppy(true).differs(&info), Some("conflicts"));
    }
}
