//! The server, asked as an attacker would.

use std::fs;
use std::os::unix::fs::symlink;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// A store with a run, beside a secret.
fn store() -> (tempfile::TempDir, PathBuf) {
    let outside = tempfile::tempdir().unwrap();
    let root = outside.path().join("store");
    let run = root.join("set/20240229T235959.007Z");
    fs::create_dir_all(run.join("n1")).unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    fs::create_dir(outside.path().join("store-2")).unwrap();
    fs::write(outside.path().join("store-2/secret"), "secret").unwrap();
    fs::write(run.join("results.edn"), "{:valid? true}").unwrap();
    fs::write(run.join("latency.svg"), "<svg/>").unwrap();
    fs::write(run.join("n1/log"), "started").unwrap();
    fs::write(run.join("a <b>&.txt"), "odd").unwrap();
    fs::write(root.join(".hidden"), "hidden").unwrap();
    symlink("set/20240229T235959.007Z", root.join("latest")).unwrap();
    symlink("../secret", root.join("leak")).unwrap();
    symlink("..", root.join("set/up")).unwrap();
    symlink("../..", root.join("set/out")).unwrap();
    (outside, root)
}

const ATTACKS: [&str; 18] = [
    "/../secret",
    "/set/../../secret",
    "/%2e%2e/secret",
    "/%2E%2e%2Fsecret",
    "/..%2fsecret",
    "/%252e%252e/secret",
    "/..%252fsecret",
    "/set/%2e%2e/%2e%2e/secret",
    "/..\\secret",
    "/..%5csecret",
    "/secret%00.edn",
    "//../secret",
    "/leak",
    "/set/out/secret",
    "/.hidden",
    "/../store-2/secret",
    "/%c0%ae%c0%ae/secret",
    "/%",
];

#[test]
fn nothing_outside_of_the_store_is_served() {
    let (_outside, root) = store();
    for attack in ATTACKS {
        let answer = answer(&root, attack);
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{attack}");
        assert!(!answer.body.windows(3).any(|part| part == b"hid"), "{attack}");
    }
    let absolute = format!("/{}", root.parent().unwrap().join("secret").display());
    assert_eq!(answer(&root, &absolute).status, StatusCode::NOT_FOUND);
}

#[test]
fn files_have_types_and_links_are_followed_within() {
    let (_outside, root) = store();
    let kind = |path: &str| {
        let found = answer(&root, path);
        assert_eq!(found.status, StatusCode::OK, "{path}");
        found.kind
    };
    assert_eq!(kind("/latest/results.edn"), "text/plain; charset=utf-8");
    assert_eq!(kind("/latest/n1/log"), "text/plain; charset=utf-8");
    assert_eq!(kind("/latest/latency.svg"), "image/svg+xml");
    assert_eq!(kind("/set/up/latest/latency.svg"), "image/svg+xml");
    assert_eq!(answer(&root, "/latest/a%20%3Cb%3E&.txt").body, b"odd");
    assert_eq!(answer(&root, "/latest/nothing").status, StatusCode::NOT_FOUND);
}

#[test]
fn directories_are_listed_and_redirected_to_their_slash() {
    let (_outside, root) = store();
    let there = answer(&root, "/latest");
    assert_eq!((there.status, there.kind.as_str()), (StatusCode::TEMPORARY_REDIRECT, "/latest/"));
    let page = String::from_utf8(answer(&root, "/latest/").body).unwrap();
    for link in ["href=\"n1/\"", "href=\"results.edn\"", "href=\"a%20%3Cb%3E%26.txt\"", "src=\"latency.svg\""]
    {
        assert!(page.contains(link), "{link} in {page}");
    }
    assert!(page.contains("a &lt;b&gt;&amp;.txt"));
    let top = String::from_utf8(answer(&root, "/set/").body).unwrap();
    assert!(!top.contains(".hidden"));
}

#[test]
fn the_index_is_made_anew() {
    let (_outside, root) = store();
    let page = || String::from_utf8(answer(&root, "/").body).unwrap();
    assert!(page().contains("set/20240229T235959.007Z/") && !page().contains("20250101T000000.000Z"));
    fs::create_dir(root.join("set/20250101T000000.000Z")).unwrap();
    assert!(page().contains("20250101T000000.000Z"));
    assert_eq!(answer(&root, "/index.html"), answer(&root, "/"));
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let text = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn over_the_wire() {
    let (_outside, root) = store();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(on(listener, root));
    let page = ask(address, "GET /").await;
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("default-src 'none'"), "{page}");
    assert!(ask(address, "GET /latest/n1/log").await.ends_with("started"));
    assert!(ask(address, "HEAD /latest/n1/log").await.starts_with("HTTP/1.1 200"));
    assert!(ask(address, "POST /latest/n1/log").await.starts_with("HTTP/1.1 405"));
    let missing = ask(address, "GET /nothing").await;
    assert!(missing.starts_with("HTTP/1.1 404") && missing.contains("no such file"), "{missing}");
    for attack in ATTACKS {
        let answer = ask(address, &format!("GET {attack}")).await;
        assert!(!answer.contains("secret\n") && !answer.ends_with("secret"), "{attack}: {answer}");
        assert!(!answer.starts_with("HTTP/1.1 200"), "{attack}: {answer}");
    }
    server.abort();
}
