//! The fuzzers' corpora, replayed: the inputs that fuzzing found worth keeping, and seeds made from real encodings.
//!
//! The bodies are the fuzz targets' own (`fuzz/src/bodies.rs`), so a corpus can't rot unseen: when a format
//! changes, seeds that no longer get past the first field fail here. How to fuzz is in `docs/testing.md`.
//!
//! `QUORAL_WRITE_SEEDS=1 cargo test --test fuzz_corpora` writes the seeds into the corpora.

#[path = "../../fuzz/src/bodies.rs"]
mod bodies;
mod seeds;

use std::fs;
use std::path::{Path, PathBuf};

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// All inputs kept for a target, in order.
fn kept(target: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(corpus(target)).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

#[test]
fn every_kept_input_is_taken_without_a_panic() {
    for (target, body) in bodies::TARGETS {
        let files = kept(target);
        assert!(!files.is_empty(), "{target} has a corpus");
        for file in files {
            let input = fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            // So that a failure names its input.
            println!("{}", file.display());
            body(&input);
        }
    }
}

#[test]
fn every_seed_is_kept() {
    for (target, body) in bodies::TARGETS {
        let seeds = seeds::of(target);
        assert!(!seeds.is_empty(), "{target} has seeds");
        for (name, input) in seeds {
            println!("{target}: {name}");
            body(&input);
            let file = corpus(target).join(format!("seed-{name}"));
            if std::env::var_os("QUORAL_WRITE_SEEDS").is_some() {
                fs::create_dir_all(corpus(target)).expect("a folder can be made");
                fs::write(&file, &input).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            }
            let there = fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            assert!(there == input, "{} is of an older format: see the top of this file", file.display());
        }
    }
}
