//! Compiles the clients' protos: the library knows Quoral by them alone.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["failure", "kv", "cluster"].map(|name| format!("../proto/quoral/v1/{name}.proto"));
    let descriptors = protox::compile(&files, ["../proto"])?;
    tonic_prost_build::configure().bytes(".").build_server(false).compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=../proto");
    Ok(())
}
