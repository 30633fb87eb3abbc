//! Compiles the clients' protos: what the Rust client has no word for.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["failure", "kv", "cluster"].map(|name| format!("../proto/quoral/v1/{name}.proto"));
    let descriptors = protox::compile(&files, ["../proto"])?;
    tonic_prost_build::configure().bytes(".").build_server(false).compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=../proto");
    Ok(())
}
