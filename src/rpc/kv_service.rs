//! `quoral.v1.Kv`: turns messages into validated requests, once, and hands them to the node.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::{mpsc, watch};
use tonic::{Request, Response, Status, Streaming};

use super::admission::{Entered, Held};
use super::proto::{self, kv_server::Kv};
use super::requests::{KvHandler, ScanEntry, ScanPage, ScanRequest};
use super::session::{self, Answers};
use super::{convert, item};
use crate::types::error::{Cause, Failure};
use crate::types::limits::RETRY_DELAY;

/// Pages of one scan that wait for a slow client.
const SCAN_PAGES_AHEAD: usize = 2;

/// A page on its way, and what it holds.
type Page = (Result<proto::ScanResponse, Status>, Option<Held>);

/// Pages as they are taken. One counts until the one behind it is asked for: by then it is on its way to the client.
struct Pages {
    receive: mpsc::Receiver<Page>,
    on_its_way: Option<Held>,
    /// How many count no more.
    left: watch::Sender<u64>,
}

impl Stream for Pages {
    type Item = Result<proto::ScanResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(held) = self.on_its_way.take() {
            drop(held);
            self.left.send_modify(|left| *left += 1);
        }
        let page = std::task::ready!(self.receive.poll_recv(context));
        Poll::Ready(page.map(|(page, held)| {
            self.on_its_way = held;
            page
        }))
    }
}

/// The service over a node.
pub struct KvService<H> {
    node: Arc<H>,
}

impl<H: KvHandler> KvService<H> {
    /// The service over `node`.
    pub fn new(node: Arc<H>) -> KvService<H> {
        KvService { node }
    }

    fn hold(&self, call: Option<&Arc<Entered>>, bytes: usize) -> Result<Held, Failure> {
        hold(&*self.node, call, bytes)
    }
}

/// Counts what was found against its client, if the door knows of one, and against the node.
pub fn hold<H: KvHandler>(node: &H, call: Option<&Arc<Entered>>, bytes: usize) -> Result<Held, Failure> {
    let own = match call {
        Some(call) => {
            let overloaded = || Failure::early(Cause::Overloaded(RETRY_DELAY));
            Some(call.hold(bytes).ok_or_else(overloaded)?)
        }
        None => None,
    };
    Ok(Held { guard: Arc::new((node.hold(bytes, false)?, own)) })
}

/// Sends the pages of a scan, from its first on. A page that there is no room for waits until those before it have
/// been taken; if there is none then, the scan ends, and its client goes on behind its last page.
async fn send_pages<H: KvHandler>(
    node: Arc<H>,
    call: Option<Arc<Entered>>,
    mut request: ScanRequest,
    mut page: ScanPage,
    send: mpsc::Sender<Page>,
    mut left: watch::Receiver<u64>,
) {
    let mut sent_pages = 0;
    loop {
        let cursor = page.cursor.clone();
        let count = u64::try_from(page.entries.len()).unwrap_or(u64::MAX);
        request.limit = request.limit.map(|limit| limit.saturating_sub(count));
        let bytes = page.entries.iter().map(ScanEntry::bytes).sum();
        let mut held = hold(&*node, call.as_ref(), bytes);
        if held.is_err() {
            if left.wait_for(|left| *left == sent_pages).await.is_err() {
                return;
            }
            held = hold(&*node, call.as_ref(), bytes);
        }
        let sent = match held {
            Ok(held) => send.send((Ok(convert::scan_response(page)), Some(held))).await,
            Err(failure) => {
                let _ = send.send((Err(convert::status(&failure)), None)).await;
                return;
            }
        };
        if sent.is_err() {
            return;
        }
        sent_pages += 1;
        let Some(cursor) = cursor.filter(|_| request.limit != Some(0)) else { return };
        request.cursor = cursor;
        page = match node.scan_page(request.clone()).await {
            Ok(page) => page,
            Err(failure) => {
                let _ = send.send((Err(convert::status(&failure)), None)).await;
                return;
            }
        };
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
        let (metadata, extensions, message) = request.into_parts();
        let request = convert::get_request(message, &metadata);
        let done = self.node.get(request.map_err(|f| convert::status(&f))?).await;
        let done = done.map_err(|f| convert::status(&f))?;
        let held = self.hold(extensions.get(), done.bytes()).map_err(|f| convert::status(&f))?;
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

    type ScanStream = Pin<Box<dyn Stream<Item = Result<proto::ScanResponse, Status>> + Send>>;

    async fn scan(&self, request: Request<proto::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let request = convert::scan_request(message, &metadata).map_err(|f| convert::status(&f))?;
        let first = self.node.scan_page(request.clone()).await.map_err(|f| convert::status(&f))?;
        let (send, receive) = mpsc::channel::<Page>(SCAN_PAGES_AHEAD);
        let call = extensions.get::<Arc<Entered>>().cloned();
        let (left, pages_left) = watch::channel(0);
        tokio::spawn(send_pages(self.node.clone(), call, request, first, send, pages_left));
        let pages = Pages { receive, on_its_way: None, left };
        Ok(Response::new(Box::pin(pages)))
    }

    async fn batch(
        &self,
        request: Request<proto::BatchRequest>,
    ) -> Result<Response<proto::BatchResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let request = item::batch_request(message, &metadata, self.node.value_limit());
        let outcomes = self.node.batch(request.map_err(|f| convert::status(&f))?).await;
        let mut outcomes = outcomes.map_err(|f| convert::status(&f))?;
        let found = outcomes.iter().flatten().map(item::Done::bytes).sum();
        let held = self.hold(extensions.get(), found).or_else(|failure| {
            // What was written stays so; what was found can be asked for again.
            let found = outcomes.iter_mut().filter(|outcome| matches!(outcome, Ok(item::Done::Get(_))));
            found.for_each(|outcome| *outcome = Err(failure.clone()));
            self.node.hold(0, true)
        });
        let mut response = Response::new(item::batch_response(outcomes));
        response.extensions_mut().insert(held.map_err(|f| convert::status(&f))?);
        Ok(response)
    }

    type SessionStream = Answers<H>;

    async fn session(
        &self,
        request: Request<Streaming<proto::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let client = request.extensions().get::<Arc<Entered>>().cloned();
        Ok(Response::new(session::open(self.node.clone(), client, request.into_inner())))
    }
}
