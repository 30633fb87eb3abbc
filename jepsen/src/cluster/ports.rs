//! Free ports on loopback, and what a node says at `/readyz`.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Error;

/// Between what services use and what the system gives to outgoing connections.
const FROM: u16 = 10_240;
const TO: u16 = 32_000;
/// How long a page may take.
const PAGE_WITHIN: Duration = Duration::from_secs(2);

/// `count` ports in a row that are free for TCP and UDP on loopback, and given to nobody else in this process.
///
/// # Errors
///
/// There are none.
pub fn free(count: u16) -> Result<u16, Error> {
    static NEXT: Mutex<Option<u16>> = Mutex::new(None);
    let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
    let spread = u16::try_from(std::process::id() % 500).unwrap_or(0) * 40;
    let mut base = next.unwrap_or(FROM + spread);
    let is_free = |port: u16| {
        TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok()
    };
    for _ in 0..2_000 {
        if base.saturating_add(count) > TO {
            base = FROM;
        }
        if (base..base + count).all(is_free) {
            *next = Some(base + count);
            return Ok(base);
        }
        base += count;
    }
    Err(Error::Unable(format!("no {count} free ports in a row")))
}

/// Whether a node says that it is ready; or why not.
///
/// # Errors
///
/// It does not answer, or answers that it is not.
pub async fn ready(http: SocketAddr) -> Result<(), String> {
    match get(http, "/readyz").await? {
        (200, _) => Ok(()),
        (_, body) => Err(body.trim().to_owned()),
    }
}

/// Status and body of a page of a node's HTTP port.
///
/// # Errors
///
/// No answer in time, or none that can be read.
pub async fn get(at: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let ask = async {
        let mut connection = TcpStream::connect(at).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = match timeout(PAGE_WITHIN, ask).await {
        Ok(answer) => answer.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("no answer in {PAGE_WITHIN:?}")),
    };
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no status")?;
    Ok((status, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned()))
}
