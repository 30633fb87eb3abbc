//! The house keeps itself in order: layers, confined names, docs that tell the truth, sizes.
//!
//! Why a test: a rule that nothing checks is broken within a month (openraft's rooms became one knot of 22
//! modules). The parsing is small and made for this code base's own style, not for all of Rust: comments
//! and strings are blanked, `use` trees are unfolded, and paths in code are resolved through them.
//!
//! What it does not do: look into macros' output, or judge docs beyond paths, constants and test names.
//! The last tests feed each check a bad sample, so that none of them can only pass.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms and their layers. A room imports itself and rooms of a lower number.
const LAYERS: [(&str, u8); 18] = [
    ("canary", 0),
    ("machine", 0),
    ("types", 0),
    ("version", 1),
    ("ring", 1),
    ("quorum", 2),
    ("gossip", 2),
    ("storage", 2),
    ("replica", 3),
    ("antientropy", 3),
    ("hinted", 3),
    ("tombstone", 3),
    ("rebalance", 3),
    ("security", 3),
    ("telemetry", 3),
    ("rpc", 4),
    ("node", 5),
    ("cli", 6),
];

/// Imports within one layer that are wanted: the shape of a machine speaks of time, a word of the vocabulary.
const WITHIN_A_LAYER: [(&str, &str); 1] = [("machine", "types")];

/// Names that one place alone may use: the start of the resolved path, and where it is allowed.
const CONFINED: [(&str, &[&str]); 5] = [
    ("sled", &["src/storage/sled.rs", "src/storage/engine.rs", "src/storage/compact.rs"]),
    ("tokio::net", &["src/rpc/transport.rs"]),
    ("foca", &["src/gossip/", "src/node/gossip"]),
    ("std::time::Instant::now", &["src/node/env.rs", "src/cli/"]),
    ("std::time::SystemTime::now", &["src/node/env.rs"]),
];

/// First parts of a path that make it one of the repository's, so that it must exist.
const TOP: [&str; 24] = [
    "src",
    "client",
    "tests",
    "docs",
    "proto",
    "jepsen",
    "fuzz",
    "clients",
    ".ci",
    ".cargo",
    "README.md",
    "ARCHITECTURE.md",
    "STYLE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "Cargo.toml",
    "Cargo.lock",
    "clippy.toml",
    "deny.toml",
    "rustfmt.toml",
    "rust-toolchain.toml",
    "build.rs",
];

/// The root documents that are checked, besides all of `docs`.
const ROOT_DOCS: [&str; 5] = ["README.md", "ARCHITECTURE.md", "STYLE.md", "CONTRIBUTING.md", "CHANGELOG.md"];

/// Constants of others that the docs may name: gRPC's codes and health states.
const FOREIGN_CONSTANTS: [&str; 10] = [
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "DATA_LOSS",
    "NOT_SERVING",
    "RUST_LOG",
    "CARGO_TARGET_DIR",
];

const LINES_MAX: usize = 600;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files under `dir` whose names end in `ending`, as paths from the root, in order.
fn files(dir: &str, ending: &str) -> Vec<String> {
    fn walk(at: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(at).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, ending, found);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(dir), ending, &mut found);
    found.sort();
    found.iter().map(|p| p.strip_prefix(root()).expect("is below it").to_string_lossy().into()).collect()
}

fn text_of(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn sources() -> Vec<(String, String)> {
    files("src", ".rs").into_iter().map(|f| (f.clone(), text_of(&f))).collect()
}

fn assert_tidy(findings: Vec<String>) {
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

// ---- A small reader of Rust. ----

/// The text with comments, strings and chars blanked, line for line.
fn code_only(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let at = |i: usize| bytes.get(i).copied().unwrap_or('\0');
    let (mut out, mut i) = (String::new(), 0);
    let blank = |out: &mut String, from: usize, to: usize| {
        out.extend((from..to.min(bytes.len())).map(|k| if bytes[k] == '\n' { '\n' } else { ' ' }));
    };
    while i < bytes.len() {
        let word_before = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
        let hashes = (i + 1..).take_while(|k| at(*k) == '#').count();
        let end = if at(i) == '/' && at(i + 1) == '/' {
            (i..bytes.len()).find(|k| at(*k) == '\n').unwrap_or(bytes.len())
        } else if at(i) == '/' && at(i + 1) == '*' {
            (i + 2..bytes.len()).find(|k| at(*k) == '*' && at(k + 1) == '/').map_or(bytes.len(), |k| k + 2)
        } else if at(i) == 'r' && at(i + 1 + hashes) == '"' && !word_before {
            let closes = |k: usize| at(k) == '"' && (1..=hashes).all(|h| at(k + h) == '#');
            (i + 2 + hashes..bytes.len()).find(|k| closes(*k)).map_or(bytes.len(), |k| k + 1 + hashes)
        } else if at(i) == '"' {
            let mut k = i + 1;
            while k < bytes.len() && at(k) != '"' {
                k += if at(k) == '\\' { 2 } else { 1 };
            }
            k + 1
        } else if at(i) == '\'' && at(i + 1) == '\\' {
            (i + 3..bytes.len()).find(|k| at(*k) == '\'').map_or(bytes.len(), |k| k + 1)
        } else if at(i) == '\'' && at(i + 2) == '\'' {
            i + 3
        } else {
            out.push(at(i));
            i += 1;
            continue;
        };
        blank(&mut out, i, end);
        i = end;
    }
    out
}

/// Unfolds `a::{b, c::{d as e, self}}` into pairs of the name that it brings in and the whole path.
fn unfold(prefix: &str, tree: &str, out: &mut Vec<(String, String)>) {
    let tree = tree.trim().trim_start_matches("::");
    let join = |a: &str, b: &str| match (a.is_empty(), b.is_empty()) {
        (true, _) => b.to_string(),
        (_, true) => a.to_string(),
        _ => format!("{a}::{b}"),
    };
    if let Some(open) = tree.find('{') {
        let head = join(prefix, tree[..open].trim().trim_end_matches("::"));
        let inner = tree[open + 1..].trim_end().strip_suffix('}').unwrap_or(&tree[open + 1..]);
        let (mut depth, mut start) = (0, 0);
        for (i, c) in inner.char_indices().chain([(inner.len(), ',')]) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    unfold(&head, &inner[start..i], out);
                    start = i + 1;
                }
                _ => {}
            }
        }
    } else if !tree.is_empty() {
        let (path, name) = tree.split_once(" as ").unwrap_or((tree, ""));
        let path = join(prefix, path.trim().trim_end_matches("self").trim_end_matches("::"));
        let last = path.rsplit("::").next().unwrap_or(&path).to_string();
        out.push((if name.is_empty() { last } else { name.trim().to_string() }, path));
    }
}

/// Every path that a file names, resolved through its imports, with its line.
fn paths(text: &str) -> Vec<(usize, String)> {
    let code = code_only(text);
    let (mut found, mut imports) = (Vec::new(), Vec::new());
    let mut rest = String::new();
    let mut offset = 0;
    // First the `use` items; what is left is code.
    while offset < code.len() {
        let here = &code[offset..];
        let starts_word = offset == 0 || !code[..offset].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if starts_word && here.starts_with("use ") {
            let end = here.find(';').unwrap_or(here.len());
            let mut unfolded = Vec::new();
            unfold("", &here[4..end], &mut unfolded);
            let line = code[..offset].matches('\n').count() + 1;
            found.extend(unfolded.iter().map(|(_, path)| (line, path.clone())));
            imports.extend(unfolded);
            rest.extend(here[..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            offset += end;
        } else {
            let next = here.chars().next().map_or(1, char::len_utf8);
            rest.push_str(&here[..next]);
            offset += next;
        }
    }
    let imports: BTreeMap<String, String> = imports.into_iter().collect();
    for (index, line) in rest.lines().enumerate() {
        for word in line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')) {
            let word = word.trim_start_matches("::");
            let Some((first, tail)) = word.split_once("::") else { continue };
            let path = match imports.get(first) {
                Some(path) => format!("{path}::{tail}"),
                None => word.to_string(),
            };
            found.push((index + 1, path.trim_end_matches(':').to_string()));
        }
    }
    found
}

// ---- The checks: each takes what it judges, and returns what is wrong. ----

fn layer(room: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == room).map(|(_, layer)| *layer)
}

/// The room of a source file; none for `lib.rs` and `main.rs`, which stand above all.
fn room_of(file: &str) -> Option<&str> {
    let name = file.strip_prefix("src/")?.split('/').next()?.trim_end_matches(".rs");
    (name != "lib" && name != "main").then_some(name)
}

/// The room that a path leads to, if it leaves the file's own.
fn room_named<'a>(path: &'a str, own: &str) -> Option<&'a str> {
    let mut parts = path.split("::").peekable();
    match parts.next()? {
        "crate" | "quoral" => parts.next(),
        // A chain of `super` that ends at a room's name has left its own room.
        "super" => {
            parts.find(|p| *p != "super").filter(|p| layer(p).is_some() && path.matches("super").count() > 1)
        }
        _ => None,
    }
    .filter(|room| *room != own)
}

fn check_layers(file: &str, text: &str) -> Vec<String> {
    let Some(own) = room_of(file) else { return Vec::new() };
    let Some(own_layer) = layer(own) else { return vec![format!("{file}: the room {own} has no layer")] };
    let mut findings = Vec::new();
    for (line, path) in paths(text) {
        let Some(other) = room_named(&path, own) else { continue };
        match layer(other) {
            Some(lower) if lower < own_layer => {}
            Some(_) if WITHIN_A_LAYER.contains(&(own, other)) => {}
            Some(n) => findings.push(format!(
                "{file}:{line}: {own} (layer {own_layer}) imports {other} (layer {n}): {path}"
            )),
            // A name at the crate's root: a macro's `$crate::x`, or a room that is not in the table.
            None => findings.push(format!("{file}:{line}: {other} has no layer: {path}")),
        }
    }
    findings
}

fn check_confined(file: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for (line, path) in paths(text) {
        for (name, allowed) in CONFINED {
            let named = path == name || path.strip_prefix(name).is_some_and(|tail| tail.starts_with("::"));
            if named && !allowed.iter().any(|place| file.starts_with(place)) {
                findings.push(format!("{file}:{line}: {path}: only {} may name {name}", allowed.join(", ")));
            }
        }
    }
    findings
}

fn check_shape(file: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    if !text.starts_with("//!") {
        findings.push(format!("{file}:1: does not open with //! lines that say what it is"));
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        findings.push(format!("{file}: {lines} lines, over {LINES_MAX}: split it"));
    }
    findings
}

/// Texts with their lines.
type Spans = Vec<(usize, String)>;

/// The code spans and link targets of a document outside its fenced blocks, with their lines.
fn spans(text: &str) -> (Spans, Spans) {
    let (mut code, mut links, mut fenced) = (Vec::new(), Vec::new(), false);
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            code.extend(line.split('`').skip(1).step_by(2).map(|s| (index + 1, s.to_string())));
            let targets = line.split("](").skip(1).filter_map(|s| s.split(')').next());
            links.extend(targets.map(|s| (index + 1, s.to_string())));
        }
    }
    (code, links)
}

/// The file that a code span means, if it means one of this repository.
fn repository_path(span: &str) -> Option<String> {
    let path = span.split([':', '#']).next()?.trim_end_matches('/');
    if path.is_empty() || path.contains([' ', '*', '<', '{', '(']) {
        return None;
    }
    let first = path.split('/').next()?;
    let names_a_file = [".rs", ".md", ".proto", ".toml"].iter().any(|e| path.ends_with(e));
    if TOP.contains(&first) && (span.contains('/') || names_a_file || first == path && first.contains('-')) {
        return Some(path.to_string());
    }
    // `rpc/kv_service.rs`: a file by its room.
    (layer(first).is_some() && names_a_file && path.contains('/')).then(|| format!("src/{path}"))
}

fn is_constant(span: &str) -> bool {
    let upper = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    span.starts_with(|c: char| c.is_ascii_uppercase()) && span.contains('_') && span.chars().all(upper)
}

fn has_word(text: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word)
        .any(|(i, _)| !part(text[..i].chars().next_back()) && !part(text[i + word.len()..].chars().next()))
}

fn check_doc(file: &str, text: &str, exists: &dyn Fn(&str) -> bool, code: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let (spans, links) = spans(text);
    for (line, span) in spans {
        if let Some(path) = repository_path(&span).filter(|path| !exists(path)) {
            findings.push(format!("{file}:{line}: {path} does not exist"));
        }
        if is_constant(&span) && !FOREIGN_CONSTANTS.contains(&span.as_str()) && !has_word(code, &span) {
            findings.push(format!("{file}:{line}: no constant {span} in the code"));
        }
    }
    let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
    for (line, link) in links.iter().filter(|(_, link)| !link.contains("://") && !link.starts_with('#')) {
        let mut path: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
        for part in link.split('#').next().unwrap_or("").split('/') {
            match part {
                ".." => drop(path.pop()),
                "." | "" => {}
                part => path.push(part),
            }
        }
        if !exists(&path.join("/")) {
            findings.push(format!("{file}:{line}: the link {link} leads nowhere"));
        }
    }
    findings
}

/// Names like `f10_…` in the testing document that no test has.
fn check_test_names(file: &str, text: &str, code: &str) -> Vec<String> {
    let numbered = |span: &str| {
        let b = span.as_bytes();
        b.len() > 4 && b[0] == b'f' && b[1].is_ascii_digit() && b[2].is_ascii_digit() && b[3] == b'_'
    };
    let (spans, _) = spans(text);
    spans
        .iter()
        .filter(|(_, span)| numbered(span) && !has_word(code, &format!("fn {span}")))
        .map(|(line, span)| format!("{file}:{line}: no test is named {span}"))
        .collect()
}

// ---- The house, judged. ----

#[test]
fn rooms_import_lower_layers_only() {
    let sources = sources();
    assert!(sources.len() > 10, "the sources were found");
    assert_tidy(sources.iter().flat_map(|(f, t)| check_layers(f, t)).collect());
}

#[test]
fn confined_names_stay_in_their_files() {
    assert_tidy(sources().iter().flat_map(|(f, t)| check_confined(f, t)).collect());
}

#[test]
fn files_say_what_they_are_and_stay_small() {
    let mut all = sources();
    for folder in ["tests", "client"] {
        all.extend(files(folder, ".rs").into_iter().map(|f| (f.clone(), text_of(&f))));
    }
    all.push(("build.rs".into(), text_of("build.rs")));
    assert_tidy(all.iter().flat_map(|(f, t)| check_shape(f, t)).collect());
}

/// The code that docs may speak of: sources, protos and tests, but for this file with its bad samples.
fn all_code() -> String {
    let mut names = files("src", ".rs");
    names.extend(files("client", ".rs"));
    names.extend(files("proto", ".proto"));
    names.extend(files("tests", ".rs").into_iter().filter(|f| f != "tests/tidy.rs"));
    names.extend(files("tests", ".py"));
    names.iter().map(|f| text_of(f)).collect()
}

#[test]
fn docs_name_what_exists() {
    let mut docs: Vec<String> = ROOT_DOCS.iter().map(ToString::to_string).collect();
    docs.extend(files("docs", ".md"));
    docs.extend(files("clients", "README.md"));
    assert!(docs.contains(&"docs/testing.md".to_string()), "the documents were found");
    let (code, exists) = (all_code(), |path: &str| root().join(path).exists());
    assert_tidy(docs.iter().flat_map(|f| check_doc(f, &text_of(f), &exists, &code)).collect());
    assert_tidy(check_test_names("docs/testing.md", &text_of("docs/testing.md"), &all_code()));
}

// ---- The checks, judged: each must refuse what is bad and pass what is good. ----

#[test]
fn the_layer_check_refuses_bad_imports() {
    let bad = |file: &str, text: &str| check_layers(file, text).len();
    assert_eq!(bad("src/version/a.rs", "use crate::storage::Batch;"), 1, "upwards");
    assert_eq!(bad("src/version/a.rs", "use crate::ring::layout::Map;"), 1, "within a layer");
    assert_eq!(
        bad("src/types/a.rs", "use crate::{\n    version::hlc,\n    types::ids,\n};"),
        1,
        "in a group"
    );
    assert_eq!(bad("src/quorum/a.rs", "fn f() { let x = crate::node::run(); }"), 1, "in code");
    assert_eq!(bad("src/quorum/a.rs", "use quoral::rpc::proto;"), 1, "by the crate's name");
    assert_eq!(bad("src/quorum/a.rs", "use super::super::node::env;"), 1, "by super");
    assert_eq!(bad("src/attic/a.rs", ""), 1, "a room without a layer");
    assert_eq!(bad("src/quorum/a.rs", "use crate::attic::x;"), 1, "into a room without a layer");
    assert_eq!(
        check_layers("src/ring/a.rs", "\n\nuse crate::cli;")[0].split(' ').next(),
        Some("src/ring/a.rs:3:")
    );

    assert_eq!(bad("src/node/a.rs", "use crate::{rpc, quorum::put, node::env, types::ids::NodeId};"), 0);
    assert_eq!(bad("src/version/a.rs", "// crate::storage\n/* crate::cli */ let s = \"crate::rpc\";"), 0);
    assert_eq!(
        bad("src/version/a.rs", "let s = r#\"a \" crate::rpc\"#; let c = '\"'; use super::dvv::Dot;"),
        0
    );
    assert_eq!(bad("src/machine.rs", "use crate::types::time::Mono;"), 0);
}

#[test]
fn the_confinement_check_refuses_bad_names() {
    let bad = |file: &str, text: &str| check_confined(file, text).len();
    assert_eq!(bad("src/node/a.rs", "fn f(db: sled::Db) {}"), 1);
    assert_eq!(bad("src/node/a.rs", "use sled::Db;"), 1);
    assert_eq!(bad("src/storage/sled.rs", "use sled::Db;"), 0);
    assert_eq!(
        bad("src/node/a.rs", "use crate::storage::sled;\nfn f() { sled::Store::open(); }"),
        0,
        "the own file"
    );
    assert_eq!(
        bad("src/node/a.rs", "use crate::storage::{self, sled::Store};\nfn f(s: storage::sled::X) {}"),
        0
    );
    assert_eq!(bad("src/node/a.rs", "use tokio::{net::TcpStream, time};"), 1);
    assert_eq!(bad("src/node/a.rs", "use tokio::net;"), 1);
    assert_eq!(bad("src/node/a.rs", "use std::net::SocketAddr; use tokio::time;"), 0);
    assert_eq!(bad("src/replica/a.rs", "let f: foca::Foca = x;"), 1);
    assert_eq!(bad("src/gossip/a.rs", "let f: foca::Foca = x;"), 0);
    assert_eq!(bad("src/node/a.rs", "use std::time::{Duration, Instant};\nlet t = Instant::now();"), 1);
    assert_eq!(bad("src/cli/a.rs", "use std::time::Instant;\nlet t = Instant::now();"), 0);
    assert_eq!(bad("src/cli/a.rs", "let t = std::time::SystemTime::now();"), 1);
    assert_eq!(
        bad("src/node/a.rs", "use tokio::time::Instant;\nlet t = Instant::now();"),
        0,
        "tokio's can be simulated"
    );
    assert_eq!(bad("src/node/env.rs", "let t = std::time::SystemTime::now();"), 0);
}

#[test]
fn the_shape_check_refuses_bad_files() {
    assert_eq!(check_shape("src/a.rs", "use x;\n").len(), 1);
    assert_eq!(check_shape("src/a.rs", &format!("//! What.\n{}", "\n".repeat(LINES_MAX))).len(), 1);
    assert_eq!(check_shape("src/a.rs", "//! What.\n").len(), 0);
}

#[test]
fn the_document_check_refuses_dead_names() {
    let exists = |path: &str| ["src/rpc/mod.rs", "docs", "README.md"].contains(&path);
    let bad = |text: &str| check_doc("docs/x.md", text, &exists, "pub const GOOD_LIMIT: u8 = 1;");
    assert_eq!(bad("see `src/rpc/gone.rs` and `rpc/gone.rs`").len(), 2);
    assert_eq!(bad("see `src/gone/`, `docs/gone.md` and `STYLE.md`").len(), 3);
    assert_eq!(bad("the limit `BAD_LIMIT`, and `GOOD_LIMI`, `GOOD_LIMIT_X`").len(), 3);
    assert_eq!(bad("[a](gone.md) [b](../src/gone.rs) [c](../README.md#x)").len(), 2);
    assert!(
        bad("see `src/rpc/mod.rs`, `rpc/mod.rs:12`, `docs/`, `README.md`, `a/b`, `GOOD_LIMIT`").is_empty()
    );
    assert!(
        bad("`NOT_FOUND` [x](https://example.org/gone) [y](#part) `target/gone`\n```\n`src/gone`\n```")
            .is_empty()
    );
    let names =
        |text: &str| check_test_names("docs/testing.md", text, "fn f10_a_dot() {} fn f11_b() {}").len();
    assert_eq!(names("`f10_a_dot` `f11_b` `f12_gone` `f10_a`"), 2);
}
