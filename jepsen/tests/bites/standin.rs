//! A node for those who only want to see a nemesis bite: started as `quoral serve` is, it answers simple pages.
//!
//! `/readyz`; `/time` in milliseconds; `/synced?NAME` and `/unsynced?NAME` write a file of 256 kB into the data
//! directory; `/has?NAME`; `/send?ADDRESS&N` sends numbered datagrams from the peer port, `/received` says how many
//! came from whom, how many of them after a later one, and forgets them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// By sender: how many, how many out of order, and the last number.
type Received = BTreeMap<SocketAddr, (u64, u64, u64)>;

struct Node {
    data: PathBuf,
    udp: UdpSocket,
    received: Mutex<Received>,
}

/// Runs it; ends when stdin does.
pub fn serve(config: &Path) {
    let text = std::fs::read_to_string(config).expect("a configuration");
    let key = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} = \"")));
        line.unwrap_or_else(|| panic!("no {name}")).trim_end_matches('"').to_owned()
    };
    let data = config.parent().expect("a directory").join(key("data_dir"));
    std::fs::create_dir_all(&data).expect("a data directory");
    File::open(data.parent().expect("a parent")).and_then(|dir| dir.sync_all()).expect("a synced directory");
    let udp = UdpSocket::bind(key("peer")).expect("the peer port");
    let http = TcpListener::bind(key("http")).expect("the http port");
    let node = Arc::new(Node { data, udp, received: Mutex::default() });
    let receiver = node.clone();
    std::thread::spawn(move || receiver.receive());
    std::thread::spawn(move || {
        for connection in http.incoming().flatten() {
            let node = node.clone();
            std::thread::spawn(move || node.answer(connection));
        }
    });
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

impl Node {
    fn receive(&self) {
        let mut number = [0; 8];
        while let Ok((_, from)) = self.udp.recv_from(&mut number) {
            let number = u64::from_be_bytes(number);
            let mut all = self.received.lock().expect("not poisoned");
            let (count, late, last) = all.entry(from).or_default();
            *count += 1;
            *late += u64::from(number < *last);
            *last = number;
        }
    }

    fn answer(&self, mut connection: TcpStream) {
        let mut buffer = [0; 1024];
        let length = connection.read(&mut buffer).unwrap_or(0);
        let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let path = request.split(' ').nth(1).unwrap_or("/").to_owned();
        let (page, query) = path.split_once('?').unwrap_or((&path, ""));
        let result = match page {
            "/readyz" => Ok("ready".into()),
            "/time" => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
                Ok(now.as_millis().to_string())
            }
            "/synced" => self.write(query, true),
            "/unsynced" => self.write(query, false),
            "/has" => Ok(self.data.join(query).exists().to_string()),
            "/send" => self.send(query),
            "/received" => {
                let all = std::mem::take(&mut *self.received.lock().expect("not poisoned"));
                Ok(all.iter().map(|(from, (count, late, _))| format!("{from} {count} {late}\n")).collect())
            }
            _ => Err(std::io::Error::other("no such page")),
        };
        let (status, body) = result.map_or_else(|error| (500, error.to_string()), |body| (200, body));
        let _ = write!(connection, "HTTP/1.1 {status} X\r\nconnection: close\r\n\r\n{body}");
    }

    /// Writes a file; syncs it ten times, so that a failure of the n-th call is met.
    fn write(&self, name: &str, sync: bool) -> std::io::Result<String> {
        let began = Instant::now();
        let mut file = File::create(self.data.join(name))?;
        for byte in 0..8 {
            file.write_all(&[byte; 32 * 1024])?;
            if sync {
                file.sync_all()?;
            }
        }
        if sync {
            File::open(&self.data)?.sync_all()?;
        }
        Ok(began.elapsed().as_millis().to_string())
    }

    fn send(&self, query: &str) -> std::io::Result<String> {
        let (to, count) = query.split_once('&').unwrap_or((query, "1"));
        for number in 1..=count.parse::<u64>().unwrap_or(1) {
            self.udp.send_to(&number.to_be_bytes(), to)?;
            // Not faster than anyone can take them.
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(count.to_owned())
    }
}
