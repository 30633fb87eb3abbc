//! Changes of a keyspace: it is made, given other quorums, and dropped. And a repair of all of them.

use std::time::Duration;

use quoral::cli::output::{CliError, Op as CallKind};
use quoral::rpc::proto::{self, cluster_client::ClusterClient};
use quoral::types::error::Applied;
use tonic::Status;

use super::Client;
use crate::clock::now_ms;
use crate::history::{Space, Wish};

/// How long a client waits for one.
const PATIENCE: Duration = Duration::from_secs(3);

impl Client {
    /// Asks for a change of a keyspace, and notes what became of it.
    pub async fn change(&self, node: usize, space: &Space, wish: Wish) {
        let number = self.recorder.change(now_ms(), wish);
        let answer = tokio::time::timeout(PATIENCE, self.ask_for(node, space, wish)).await;
        match answer {
            Ok(Ok(keyspace)) => {
                let id = keyspace.expect("an answer has the keyspace").id;
                self.recorder.changed(now_ms(), number, Some(id));
            }
            Ok(Err(status)) if CliError::from_status(&status, CallKind::Write).applied == Applied::No => {
                self.recorder.changed(now_ms(), number, None);
            }
            _ => {}
        }
    }

    /// Repairs everything; the last that is told of it.
    pub async fn repair(&self, node: usize) -> proto::RepairResponse {
        let mut cluster = ClusterClient::new(self.channels[node].clone());
        let mut told = cluster.repair(proto::RepairRequest::default()).await.expect("it begins").into_inner();
        loop {
            match told.message().await.expect("it goes on") {
                Some(last) if last.over => return last,
                Some(_) => {}
                None => panic!("it ended before it was over"),
            }
        }
    }

    async fn ask_for(
        &self,
        node: usize,
        space: &Space,
        wish: Wish,
    ) -> Result<Option<proto::KeyspaceInfo>, Status> {
        let mut cluster = ClusterClient::new(self.channels[node].clone());
        let name = space.name.clone();
        match wish {
            Wish::Create => {
                let request = proto::CreateKeyspaceRequest {
                    name,
                    conflicts: space.conflicts.to_string(),
                    n: space.n.into(),
                    r: space.r.into(),
                    w: space.w.into(),
                    sloppy: space.sloppy,
                    ..Default::default()
                };
                Ok(cluster.create_keyspace(request).await?.into_inner().keyspace)
            }
            Wish::Update(r, w) => {
                let (r, w) = (Some(r.into()), Some(w.into()));
                let request = proto::UpdateKeyspaceRequest { name, r, w, ..Default::default() };
                Ok(cluster.update_keyspace(request).await?.into_inner().keyspace)
            }
            Wish::Drop => {
                let request = proto::DropKeyspaceRequest { name, if_version: None };
                Ok(cluster.drop_keyspace(request).await?.into_inner().keyspace)
            }
        }
    }
}
