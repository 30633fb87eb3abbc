//! `quoral.v1.Cluster`: what operators ask.

use std::pin::Pin;
use std::sync::Arc;

use futures_core::Stream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::convert;
use super::proto::{self, cluster_server::Cluster};
use super::requests::{ChangeKeyspaceError, ClusterHandler, CreateKeyspaceError};
use crate::ring::keyspaces::KeyspaceChange;
use crate::types::error::{Cause, Failure};
use crate::types::ids::MapVersion;
use crate::types::key::Key;
use crate::types::policy::check_name;

/// The service over a node.
pub struct ClusterService<H> {
    node: Arc<H>,
}

impl<H: ClusterHandler> ClusterService<H> {
    /// The service over `node`.
    pub fn new(node: Arc<H>) -> ClusterService<H> {
        ClusterService { node }
    }
}

/// What a change of a keyspace that was not made is for the client.
fn change_status(error: ChangeKeyspaceError) -> Status {
    match error {
        ChangeKeyspaceError::Invalid(invalid) => convert::status(&Failure::from(invalid)),
        ChangeKeyspaceError::Unknown(name) => convert::status(&Failure::early(Cause::UnknownKeyspace(name))),
        ChangeKeyspaceError::Conflict(message) => convert::overtaken(message),
        ChangeKeyspaceError::Failed(failure) => convert::status(&failure),
    }
}

#[tonic::async_trait]
impl<H: ClusterHandler> Cluster for ClusterService<H> {
    async fn status(
        &self,
        _: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusResponse>, Status> {
        let view = self.node.status().await;
        let node = |node: super::requests::NodeView| proto::NodeStatus {
            node_id: node.node_id,
            name: node.name,
            address: node.address,
            client_address: node.client_address,
            zone: node.zone,
            state: node.state,
            ownership: node.ownership,
            hints: node.hints,
            disk_bytes: node.disk_bytes,
            durability: node.durability,
            map_version: node.map_version,
            hints_delivered: node.hints_delivered,
            hints_per_second: node.hints_per_second,
            hints_refused: node.hints_refused,
            hints_refusal: node.hints_refusal,
            proved_ms: node.proved.0,
            refill: node.refill,
            damage: node.damage,
            tombstones: node.tombstones,
        };
        Ok(Response::new(proto::StatusResponse {
            cluster_id: view.cluster_id,
            layout_version: view.layout_version,
            map_version: view.map_version,
            partitions: view.partitions,
            nodes: view.nodes.into_iter().map(node).collect(),
            answered_by: view.answered_by,
            proved_ms: view.proved.into_iter().map(|at| at.0).collect(),
            now_ms: view.now.0,
        }))
    }

    async fn layout(
        &self,
        _: Request<proto::LayoutRequest>,
    ) -> Result<Response<proto::LayoutResponse>, Status> {
        Ok(Response::new(convert::layout_response(&self.node.map())))
    }

    async fn hints(&self, _: Request<proto::HintsRequest>) -> Result<Response<proto::HintsResponse>, Status> {
        let view = self.node.hints().await;
        let log = |log: super::requests::HintLogView| proto::HintLog {
            holder: log.holder.to_string(),
            holder_name: log.holder_name,
            target: log.target.to_string(),
            target_name: log.target_name,
            target_state: log.target_state,
            hints: log.hints,
            bytes: log.bytes,
            since_ms: log.since_ms,
            oldest: log.oldest,
            last: log.last,
            delivered: log.delivered,
            per_second: log.per_second,
            refused: log.refused,
            refusal: log.refusal,
        };
        Ok(Response::new(proto::HintsResponse {
            logs: view.logs.into_iter().map(log).collect(),
            silent: view.silent.iter().map(ToString::to_string).collect(),
        }))
    }

    type RepairStream = Pin<Box<dyn Stream<Item = Result<proto::RepairResponse, Status>> + Send>>;

    async fn repair(
        &self,
        request: Request<proto::RepairRequest>,
    ) -> Result<Response<Self::RepairStream>, Status> {
        let request = convert::repair_request(request.into_inner());
        let request = request.map_err(|invalid| convert::status(&Failure::from(invalid)))?;
        let told = self.node.repair(request).map_err(|failure| convert::status(&failure))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(told).map(Ok))))
    }

    async fn create_keyspace(
        &self,
        request: Request<proto::CreateKeyspaceRequest>,
    ) -> Result<Response<proto::CreateKeyspaceResponse>, Status> {
        let request = convert::new_keyspace(request.into_inner());
        let request = request.map_err(|invalid| convert::status(&Failure::from(invalid)))?;
        match self.node.create_keyspace(request).await {
            Ok((keyspace, map_version)) => Ok(Response::new(proto::CreateKeyspaceResponse {
                keyspace: Some(convert::keyspace_info(&keyspace)),
                map_version,
            })),
            Err(CreateKeyspaceError::Exists(keyspace)) => {
                let name = keyspace.name;
                Err(convert::taken(format!("keyspace: there is a keyspace {name:?} already")))
            }
            Err(CreateKeyspaceError::Invalid(invalid)) => Err(convert::status(&Failure::from(invalid))),
            Err(CreateKeyspaceError::Failed(failure)) => Err(convert::status(&failure)),
        }
    }

    async fn update_keyspace(
        &self,
        request: Request<proto::UpdateKeyspaceRequest>,
    ) -> Result<Response<proto::UpdateKeyspaceResponse>, Status> {
        let message = request.into_inner();
        let if_version = message.if_version.map(MapVersion);
        let change = convert::keyspace_update(message);
        let change = change.map_err(|invalid| convert::status(&Failure::from(invalid)))?;
        let changed = self.node.change_keyspace(change, if_version).await;
        let (keyspace, map_version) = changed.map_err(change_status)?;
        let keyspace = Some(convert::keyspace_info(&keyspace));
        Ok(Response::new(proto::UpdateKeyspaceResponse { keyspace, map_version }))
    }

    async fn drop_keyspace(
        &self,
        request: Request<proto::DropKeyspaceRequest>,
    ) -> Result<Response<proto::DropKeyspaceResponse>, Status> {
        let proto::DropKeyspaceRequest { name, if_version } = request.into_inner();
        let named = check_name("name", &name);
        named.map_err(|invalid| convert::status(&Failure::from(invalid)))?;
        let dropped = self.node.change_keyspace(KeyspaceChange::Drop(name), if_version.map(MapVersion)).await;
        let (keyspace, map_version) = dropped.map_err(change_status)?;
        let keyspace = Some(convert::keyspace_info(&keyspace));
        Ok(Response::new(proto::DropKeyspaceResponse { keyspace, map_version }))
    }

    async fn list_keyspaces(
        &self,
        _: Request<proto::ListKeyspacesRequest>,
    ) -> Result<Response<proto::ListKeyspacesResponse>, Status> {
        let map = self.node.map();
        let keyspaces = map.keyspaces.iter().map(convert::keyspace_info).collect();
        Ok(Response::new(proto::ListKeyspacesResponse { keyspaces, map_version: map.version.0 }))
    }

    async fn explain(
        &self,
        request: Request<proto::ExplainRequest>,
    ) -> Result<Response<proto::ExplainResponse>, Status> {
        let message = request.into_inner();
        let key = Key::new(message.key, message.sort);
        let key = key.map_err(|invalid| convert::status(&Failure::from(invalid)))?;
        let keyspace = match message.keyspace.as_str() {
            "" => convert::DEFAULT_KEYSPACE.into(),
            name => name.to_owned(),
        };
        let view = self.node.explain(keyspace, key).await.map_err(|f| convert::status(&f))?;
        let replica = |replica: super::requests::ReplicaView| proto::ReplicaView {
            node_id: replica.node_id,
            name: replica.name,
            zone: replica.zone,
            role: replica.role,
            state: replica.state,
            version: replica.version,
        };
        Ok(Response::new(proto::ExplainResponse {
            keyspace: view.keyspace,
            partition: view.partition,
            position: view.position,
            layout_version: view.layout_version,
            replicas: view.replicas.into_iter().map(replica).collect(),
        }))
    }
}
