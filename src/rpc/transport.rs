//! The network: the one file that names `tokio::net`.
//!
//! A [`Network`] listens, connects and binds datagram sockets. The server gets [`TcpNetwork`]; the
//! simulator passes its own (over turmoil), so that everything above runs unchanged in both.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// A boxed future, as the traits here return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A connection's bytes.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection, as tonic takes it.
pub struct Connection {
    /// The bytes.
    pub stream: Box<dyn Stream>,
    /// The other end.
    pub peer: SocketAddr,
}

/// Accepts connections.
pub trait Listener: Send {
    /// The next connection.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Connection>>;
}

/// Sends and receives datagrams.
pub trait Datagrams: Send + Sync {
    /// Sends one datagram.
    fn send_to<'a>(&'a self, bytes: &'a [u8], to: SocketAddr) -> BoxFuture<'a, io::Result<()>>;
    /// Receives one datagram into `buffer`; its length and sender.
    fn receive_from<'a>(&'a self, buffer: &'a mut [u8]) -> BoxFuture<'a, io::Result<(usize, SocketAddr)>>;
}

/// What a node needs of a network.
pub trait Network: Send + Sync + 'static {
    /// Listens for connections.
    fn listen(&self, at: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>>;
    /// Connects to `host:port`.
    fn connect<'a>(&'a self, to: &'a str) -> BoxFuture<'a, io::Result<Connection>>;
    /// Binds a datagram socket.
    fn bind(&self, at: SocketAddr) -> BoxFuture<'_, io::Result<Arc<dyn Datagrams>>>;
    /// Looks up `host:port`.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<SocketAddr>>;
}

/// The operating system's network.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpNetwork;

impl Network for TcpNetwork {
    fn listen(&self, at: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = tokio::net::TcpListener::bind(at).await?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, to: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            let peer = stream.peer_addr()?;
            Ok(Connection { stream: Box::new(stream), peer })
        })
    }

    fn bind(&self, at: SocketAddr) -> BoxFuture<'_, io::Result<Arc<dyn Datagrams>>> {
        Box::pin(async move {
            let socket = tokio::net::UdpSocket::bind(at).await?;
            Ok(Arc::new(socket) as Arc<dyn Datagrams>)
        })
    }

    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<SocketAddr>> {
        Box::pin(async move {
            let none = || io::Error::new(io::ErrorKind::NotFound, format!("{name}: no address"));
            tokio::net::lookup_host(name).await?.next().ok_or_else(none)
        })
    }
}

impl Listener for tokio::net::TcpListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Connection>> {
        Box::pin(async move {
            let (stream, peer) = tokio::net::TcpListener::accept(self).await?;
            stream.set_nodelay(true)?;
            Ok(Connection { stream: Box::new(stream), peer })
        })
    }
}

impl Datagrams for tokio::net::UdpSocket {
    fn send_to<'a>(&'a self, bytes: &'a [u8], to: SocketAddr) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move { tokio::net::UdpSocket::send_to(self, bytes, to).await.map(|_| ()) })
    }

    fn receive_from<'a>(&'a self, buffer: &'a mut [u8]) -> BoxFuture<'a, io::Result<(usize, SocketAddr)>> {
        Box::pin(tokio::net::UdpSocket::recv_from(self, buffer))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}

/// What a handler can learn of a connection: the other end's address.
#[derive(Debug, Clone, Copy)]
pub struct ConnectInfo {
    /// The other end.
    pub peer: SocketAddr,
}

impl Connected for Connection {
    type ConnectInfo = ConnectInfo;
    fn connect_info(&self) -> ConnectInfo {
        ConnectInfo { peer: self.peer }
    }
}
