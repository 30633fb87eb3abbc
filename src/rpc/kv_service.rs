//! `quoral.v1.Kv`: turns messages into validated requests, once, and hands them to the node.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::proto::{self, kv_server::Kv};
use super::requests::KvHandler;
use super::session::{self, Answers};
use super::{convert, item};

/// Pages of one scan that wait for a slow client.
const SCAN_PAGES_AHEAD: usize = 2;

/// The service over a node.
pub struct KvService<H> {
    node: Arc<H>,
}

impl<H: KvHandler> KvService<H> {
    /// The service over `node`.
    pub fn new(node: Arc<H>) -> KvService<H> {
        KvService { node }
    }
}

#[tonic::async_trait]
impl<H: KvHandler> Kv for KvService<H> {
    async fn put(&self, request: Request<proto::PutRequest>) -> Result<Response<proto::PutResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let request = convert::put_request(message, &metadata, self.node.value_limit());
        let done = self.node.write(request.map_err(|f| convert::status(&f))?).await;
        done.map(|done| Response::new(convert::put_response(done))).map_err(|f| convert::status(&f))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Result<Response<proto::GetResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let request = convert::get_request(message, &metadata);
        let done = self.node.get(request.map_err(|f| convert::status(&f))?).await;
        let done = done.map_err(|f| convert::status(&f))?;
        let held = self.node.hold(done.bytes()).map_err(|f| convert::status(&f))?;
        let mut response = Response::new(convert::get_response(done));
        response.extensions_mut().insert(held);
        Ok(response)
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteRequest>,
    ) -> Result<Response<proto::DeleteResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let request = convert::delete_request(message, &metadata);
        let done = self.node.write(request.map_err(|f| convert::status(&f))?).await;
        done.map(|done| Response::new(convert::delete_response(done))).map_err(|f| convert::status(&f))
    }

    type ScanStream = Pin<Box<dyn futures_core::Stream<Item = Result<proto::ScanResponse, Status>> + Send>>;

    async fn scan(&self, request: Request<proto::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let (metadata, _, message) = request.into_parts();
        let mut request = convert::scan_request(message, &metadata).map_err(|f| convert::status(&f))?;
        let node = self.node.clone();
        let first = node.scan_page(request.clone()).await.map_err(|f| convert::status(&f))?;
        let (send, receive) = mpsc::channel(SCAN_PAGES_AHEAD);
        tokio::spawn(async move {
            let mut page = first;
            loop {
                let cursor = page.cursor.clone();
                let count = u64::try_from(page.entries.len()).unwrap_or(u64::MAX);
                request.limit = request.limit.map(|limit| limit.saturating_sub(count));
                if send.send(Ok(convert::scan_response(page))).await.is_err() {
                    return;
                }
                let Some(cursor) = cursor.filter(|_| request.limit != Some(0)) else { return };
                request.cursor = cursor;
                page = match node.scan_page(request.clone()).await {
                    Ok(page) => page,
                    Err(failure) => {
                        let _ = send.send(Err(convert::status(&failure))).await;
                        return;
                    }
                };
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn batch(
        &self,
        request: Request<proto::BatchRequest>,
    ) -> Result<Response<proto::BatchResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let request = item::batch_request(message, &metadata, self.node.value_limit());
        let outcomes = self.node.batch(request.map_err(|f| convert::status(&f))?).await;
        outcomes.map(|all| Response::new(item::batch_response(all))).map_err(|f| convert::status(&f))
    }

    type SessionStream = Answers<H>;

    async fn session(
        &self,
        request: Request<Streaming<proto::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Ok(Response::new(session::open(self.node.clone(), request.into_inner())))
    }
}
