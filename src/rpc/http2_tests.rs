//! Tests of `http2.rs`, over a connection in memory.

use h2::client::{ResponseFuture, SendRequest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::watch;
use tower::service_fn;

use super::*;
use crate::types::limits::TIMEOUT_MAX;

const ALIVE: KeepAlive = KeepAlive { interval: Duration::from_secs(10), timeout: Duration::from_secs(10) };

/// Serves one client with a service that echoes what it is sent when `gate` is open; `begun` counts up for each
/// call that it has and down when that is dropped.
async fn start(limit: usize) -> (SendRequest<Bytes>, watch::Sender<bool>, watch::Sender<usize>) {
    let (here, gate, begun) = start_raw(limit);
    let (client, connection) = h2::client::handshake(here).await.expect("a connection");
    tokio::spawn(connection);
    (client.ready().await.expect("it takes calls"), gate, begun)
}

/// The same, before the client has said a word.
fn start_raw(limit: usize) -> (DuplexStream, watch::Sender<bool>, watch::Sender<usize>) {
    let (gate, begun) = (watch::Sender::new(false), watch::Sender::new(0_usize));
    let (here, there) = tokio::io::duplex(1 << 16);
    let peer = ([127, 0, 0, 1], 1).into();
    let connection = Connection { stream: Box::new(there), peer };
    let (opened, count) = (gate.clone(), begun.clone());
    let echo = service_fn(move |request: Request<Body>| {
        let (mut open, count) = (opened.subscribe(), count.clone());
        async move {
            count.send_modify(|count| *count += 1);
            let _gone = Gone(count);
            open.wait_for(|open| *open).await.expect("it lives");
            Ok::<_, Infallible>(Response::new(request.into_body()))
        }
    });
    let door = Arc::new(Door::new(limit, 1 << 20));
    tokio::spawn(serve(tokio_stream::iter([Ok(connection)]), echo, door, ALIVE));
    (here, gate, begun)
}

struct Gone(watch::Sender<usize>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

async fn call(client: &SendRequest<Bytes>, sent: Bytes) -> (ResponseFuture, SendStream<Bytes>) {
    let request = Request::post("http://node/quoral.v1.Kv/Get").body(()).expect("well-formed");
    let mut client = client.clone().ready().await.expect("it takes calls");
    let (response, mut stream) = client.send_request(request, false).expect("it is open");
    stream.send_data(sent, true).expect("it is open");
    (response, stream)
}

fn code(response: &Response<RecvStream>) -> Option<&[u8]> {
    response.headers().get("grpc-status").map(|value| value.as_bytes())
}

#[tokio::test]
async fn what_is_past_the_limit_is_refused_while_the_rest_waits() {
    let (client, gate, begun) = start(3).await;
    let mut under_way = Vec::new();
    for _ in 0..3 {
        under_way.push(call(&client, Bytes::from_static(b"value")).await.0);
    }
    begun.subscribe().wait_for(|begun| *begun == 3).await.expect("it lives");
    for _ in 0..100 {
        let (response, _) = call(&client, Bytes::from_static(b"value")).await;
        let response = response.await.expect("an answer");
        assert_eq!(code(&response), Some(&b"8"[..]), "{response:?}");
        assert!(response.headers().contains_key("grpc-status-details-bin"), "a retry delay");
        assert!(response.body().is_end_stream());
    }
    assert_eq!(*begun.borrow(), 3, "none of those came so far");
    gate.send_replace(true);
    for response in under_way {
        let mut body = response.await.expect("an answer").into_body();
        assert_eq!(body.data().await.expect("a body").expect("no end"), "value");
    }
    // There is room again.
    let (response, _) = call(&client, Bytes::new()).await;
    assert_eq!(code(&response.await.expect("an answer")), None);
}

#[tokio::test]
async fn a_call_that_is_taken_back_ends() {
    let (client, _gate, begun) = start(1).await;
    let (response, mut stream) = call(&client, Bytes::new()).await;
    begun.subscribe().wait_for(|begun| *begun == 1).await.expect("it lives");
    stream.send_reset(Reason::CANCEL);
    drop(response);
    begun.subscribe().wait_for(|begun| *begun == 0).await.expect("it lives");
}

#[tokio::test]
async fn an_answer_larger_than_its_window_comes_whole() {
    let (client, gate, _) = start(1).await;
    gate.send_replace(true);
    let sent = Bytes::from(vec![7; 1_000_000]);
    let request = Request::post("http://node/quoral.v1.Kv/Get").body(()).expect("well-formed");
    let mut client = client.ready().await.expect("it takes calls");
    let (response, mut stream) = client.send_request(request, false).expect("it is open");
    let body = async {
        send_data(sent.clone(), &mut stream).await.expect("it takes it");
        stream.send_data(Bytes::new(), true).expect("it is open");
    };
    let answer = async {
        let mut body = response.await.expect("an answer").into_body();
        let mut taken = 0;
        while let Some(data) = body.data().await {
            let data = data.expect("no end");
            body.flow_control().release_capacity(data.len()).expect("as much as came");
            taken += data.len();
        }
        taken
    };
    assert_eq!(tokio::join!(body, answer).1, sent.len());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_taken_for_long_is_given_up() {
    let (client, gate, begun) = start(3).await;
    gate.send_replace(true);
    let began = Instant::now();
    // It comes back, and the client takes as much as its window has.
    let (response, _sent) = call(&client, Bytes::from(vec![7; 1 << 20])).await;
    let mut body = response.await.expect("an answer").into_body();
    let mut taken = 0;
    let error = loop {
        match body.data().await.expect("it does not end well") {
            Ok(data) => taken += data.len(),
            Err(error) => break error,
        }
    };
    assert_eq!((error.reason(), error.is_remote()), (Some(Reason::CANCEL), true), "{error}");
    assert!(taken > 0 && began.elapsed() >= TAKEN_WITHIN, "{taken} after {:?}", began.elapsed());
    begun.subscribe().wait_for(|begun| *begun == 0).await.expect("nothing is left of it");
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_message_does_not_come_ends_at_its_time() {
    let (client, _gate, begun) = start(1).await;
    for (timeout, ends) in [(Some("500m"), Duration::from_millis(500)), (None, TIMEOUT_MAX)] {
        let mut request = Request::post("http://node/quoral.v1.Kv/Put");
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        let mut client = client.clone().ready().await.expect("it takes calls");
        let began = Instant::now();
        let request = request.body(()).expect("well-formed");
        let (response, _open) = client.send_request(request, false).expect("it is open");
        let response = response.await.expect("an answer");
        assert_eq!(code(&response), Some(&b"4"[..]), "{response:?}");
        let took = began.elapsed();
        assert!(took <= ends && took + Duration::from_millis(100) >= ends, "{took:?} of {ends:?}");
        begun.subscribe().wait_for(|begun| *begun == 0).await.expect("nothing is left of it");
    }
}

#[tokio::test]
async fn messages_that_do_not_end_are_bounded() {
    let (client, gate, _) = start(100).await;
    gate.send_replace(true);
    // A node that holds 1 MiB, and messages that say they have half of that.
    let begin = || async {
        let request = Request::post("http://node/quoral.v1.Kv/Put").body(()).expect("well-formed");
        let mut client = client.clone().ready().await.expect("it takes calls");
        let (response, mut stream) = client.send_request(request, false).expect("it is open");
        let mut begun = vec![0];
        begun.extend((1_u32 << 19).to_be_bytes());
        begun.push(7);
        stream.send_data(begun.into(), false).expect("it is open");
        // The echo gives back what it was given.
        let first = match response.await {
            Ok(response) => response.into_body().data().await,
            Err(_) => None,
        };
        (matches!(first, Some(Ok(_))), stream)
    };
    let [first, second] = [begin().await, begin().await];
    assert!(first.0 && second.0, "as much as the node holds");
    let third = begin().await;
    assert!(!third.0, "one too many");
    drop((second, third));
    assert!(begin().await.0, "there is room again");
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_is_closed() {
    let (mut here, _gate, _begun) = start_raw(1);
    let began = Instant::now();
    let mut said = Vec::new();
    here.read_to_end(&mut said).await.expect("it is closed");
    assert_eq!(began.elapsed(), HANDSHAKE_WITHIN);
}

/// Writes a frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Clients that send a message behind its head have not heard of the refusal then; many such don't end a connection.
#[tokio::test]
async fn late_messages_of_refused_calls_are_passed_over() {
    const CALLS: u32 = 4_000;
    let (here, _gate, _begun) = start_raw(0);
    let (mut read, mut write) = tokio::io::split(here);
    let reader = tokio::spawn(async move {
        // The kinds of all frames, up to the answer to a ping.
        let mut kinds = Vec::new();
        loop {
            let mut head = [0; 9];
            if read.read_exact(&mut head).await.is_err() {
                return kinds;
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            read.read_exact(&mut payload).await.expect("whole frames");
            kinds.push(head[3]);
            if head[3] == 6 && head[4] == 1 {
                return kinds;
            }
        }
    });
    let mut block = vec![0x83, 0x86, 0x04, 17];
    block.extend(b"/quoral.v1.Kv/Put");
    block.extend([0x01, 4]);
    block.extend(b"node");
    write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("open");
    write.write_all(&frame(4, 0, 0, &[])).await.expect("open");
    for call in 0..CALLS {
        write.write_all(&frame(1, 4, 2 * call + 1, &block)).await.expect("open");
    }
    for call in 0..CALLS {
        write.write_all(&frame(0, 1, 2 * call + 1, &[0, 0, 0, 0, 1, 7])).await.expect("open");
    }
    write.write_all(&frame(6, 0, 0, &[7; 8])).await.expect("open");
    let kinds = reader.await.expect("no panic");
    assert_eq!(kinds.last(), Some(&6), "the connection lives");
    assert_eq!(kinds.iter().filter(|kind| **kind == 1).count(), CALLS as usize, "each has an answer");
    assert!(!kinds.contains(&7), "nothing says that it ends");
}

#[test]
fn messages_are_told_apart_however_they_are_cut() {
    let message = |length: u32| [&[0][..], &length.to_be_bytes(), &vec![7; length as usize]].concat();
    let all = [message(3), message(0), message(300), message(1)].concat();
    for cut in [1, 2, 5, 7, 100, 1_000] {
        let mut frames = Frames::default();
        let mut begun: Vec<usize> = all.chunks(cut).filter_map(|data| frames.read(data)).collect();
        begun.dedup();
        assert_eq!((frames.left, frames.have), (0, 0), "cut by {cut}");
        assert!(cut > 300 || begun.contains(&300), "cut by {cut}: {begun:?}");
    }
}
