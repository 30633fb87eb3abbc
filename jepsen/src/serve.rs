//! The store in a browser: the index, made anew for each request, files, and listings of directories.
//!
//! It only reads. A path is decoded once, then judged part by part; what it leads to, links followed, must
//! lie in the store. Pages may run no script and load nothing from elsewhere. There is no password: it is meant
//! for the loopback address.

use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Response, StatusCode, Uri, header};
use tokio::net::TcpListener;

use crate::report::index;

/// A larger file is to be opened where it lies.
const FILE_MAX: u64 = 256 * 1024 * 1024;
/// More entries of a directory are not listed.
const ENTRIES_MAX: usize = 2000;

/// Shows the store at `root` to browsers, until it is dropped.
pub async fn serve(root: PathBuf, address: SocketAddr) -> io::Result<()> {
    on(TcpListener::bind(address).await?, root).await
}

async fn on(listener: TcpListener, root: PathBuf) -> io::Result<()> {
    let answer = move |method: Method, uri: Uri| {
        let root = root.clone();
        async move {
            if method != Method::GET && method != Method::HEAD {
                return Answer::refused(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD").response();
            }
            // Files may be large, and the index reads many: not on the threads that answer.
            let path = uri.path().to_string();
            let made = tokio::task::spawn_blocking(move || answer(&root, &path)).await;
            let broken = |_| Answer::refused(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made");
            made.unwrap_or_else(broken).response()
        }
    };
    axum::serve(listener, Router::new().fallback(answer)).await
}

/// What is sent.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: StatusCode,
    /// The type of the content; of a redirection, where to.
    kind: String,
    body: Vec<u8>,
}

impl Answer {
    fn page(body: String) -> Answer {
        Answer { status: StatusCode::OK, kind: "text/html; charset=utf-8".into(), body: body.into_bytes() }
    }

    fn refused(status: StatusCode, why: &str) -> Answer {
        let body = format!("{status}: {why}\n").into_bytes();
        Answer { status, kind: "text/plain; charset=utf-8".into(), body }
    }

    fn missing() -> Answer {
        Answer::refused(StatusCode::NOT_FOUND, "there is no such file in the store")
    }

    fn response(self) -> Response<Body> {
        let field = if self.status.is_redirection() { header::LOCATION } else { header::CONTENT_TYPE };
        let response = Response::builder()
            .status(self.status)
            .header(field, self.kind)
            .header(header::CACHE_CONTROL, "no-cache")
            .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
            .header(
                header::CONTENT_SECURITY_POLICY,
                "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'",
            );
        // A name that is no header's value can only come from a strange redirection.
        response.body(Body::from(self.body)).unwrap_or_else(|_| Response::new(Body::empty()))
    }
}

/// Answers a request for a path, as it came.
fn answer(root: &Path, path: &str) -> Answer {
    let Some(parts) = parts(path) else {
        return Answer::missing();
    };
    if parts.is_empty() || parts == ["index.html"] {
        let broken = |e: io::Error| Answer::refused(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string());
        return index::html(root).map_or_else(broken, Answer::page);
    }
    let wanted = parts.iter().fold(root.to_path_buf(), |at, part| at.join(part));
    // Links are followed here: `latest` leads to a run, and nothing may lead out of the store.
    let (Ok(root), Ok(found)) = (root.canonicalize(), wanted.canonicalize()) else {
        return Answer::missing();
    };
    if !found.starts_with(&root) {
        return Answer::missing();
    }
    if found.is_dir() {
        if !path.ends_with('/') {
            let to = format!("/{}/", crate::report::path_link(&parts.join("/")));
            return Answer { status: StatusCode::TEMPORARY_REDIRECT, kind: to, body: Vec::new() };
        }
        return listing(&found, &parts).unwrap_or_else(|_| Answer::missing());
    }
    file(&found).unwrap_or_else(|_| Answer::missing())
}

/// The parts of a path, decoded; `None` if one is not a plain name.
fn parts(path: &str) -> Option<Vec<String>> {
    let decoded = decode(path)?;
    let parts: Vec<String> = decoded.split('/').filter(|part| !part.is_empty()).map(String::from).collect();
    // Hidden files are ours while they are being written; `.` and `..` are hidden too.
    let plain = |part: &String| !part.starts_with('.') && !part.contains(['\\', '\0']);
    parts.iter().all(plain).then_some(parts)
}

/// Decodes `%2e` and the like, once.
fn decode(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let hex = bytes.get(at + 1..at + 3).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit))?;
            out.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).ok()
}

fn file(path: &Path) -> io::Result<Answer> {
    let facts = path.metadata()?;
    if !facts.is_file() {
        return Ok(Answer::missing());
    }
    if facts.len() > FILE_MAX {
        let why =
            format!("the file has {} bytes, at most {FILE_MAX} are sent: open it where it lies", facts.len());
        return Ok(Answer::refused(StatusCode::PAYLOAD_TOO_LARGE, &why));
    }
    let kind = match path.extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("edn" | "txt" | "log" | "toml") | None => "text/plain; charset=utf-8",
        Some(_) => "application/octet-stream",
    };
    Ok(Answer { status: StatusCode::OK, kind: kind.into(), body: std::fs::read(path)? })
}

/// What is in a directory: directories first, plots as pictures.
fn listing(dir: &Path, parts: &[String]) -> io::Result<Answer> {
    use crate::report::{escape, path_link};
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(dir)?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Ok(facts) = entry.path().metadata() else { continue };
        if !name.starts_with('.') {
            entries.push((!facts.is_dir(), name, facts.len()));
        }
    }
    entries.sort();
    let title = escape(&parts.join("/"));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><title>{title}</title>\n<style>{}</style></head>\n\
         <body><header><h1><a href=\"/\">runs</a>",
        crate::report::INDEX_STYLE
    );
    for (i, part) in parts.iter().enumerate() {
        let _ = write!(out, " / <a href=\"/{}/\">{}</a>", path_link(&parts[..=i].join("/")), escape(part));
    }
    out.push_str(
        "</h1></header>\n<table><thead><tr><th>name</th><th class=\"n\">bytes</th></tr></thead><tbody>\n",
    );
    for (is_file, name, size) in entries.iter().take(ENTRIES_MAX) {
        let (end, size) = if *is_file { ("", size.to_string()) } else { ("/", String::new()) };
        let _ = writeln!(
            out,
            "<tr><td><a href=\"{}{end}\">{}{end}</a></td><td class=\"n\">{size}</td></tr>",
            path_link(name),
            escape(name)
        );
    }
    out.push_str("</tbody></table>\n");
    if entries.len() > ENTRIES_MAX {
        let _ = writeln!(out, "<p class=\"none\">and {} more</p>", entries.len() - ENTRIES_MAX);
    }
    for (_, name, _) in
        entries.iter().filter(|(_, name, _)| name.ends_with(".svg") && name != "thumbnail.svg")
    {
        let to = path_link(name);
        let _ = writeln!(
            out,
            "<p><a href=\"{to}\"><img src=\"{to}\" width=\"780\" alt=\"{}\"/></a></p>",
            escape(name)
        );
    }
    Ok(Answer::page(out + "</body></html>\n"))
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
