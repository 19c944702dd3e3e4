//! Generates the services from `protos/` with a compiler written in Rust, so no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=protos");
    let files =
        ["operator", "agent", "trust", "exec"].map(|name| format!("faultbed/v1/{name}.proto"));
    let files = protox::compile(files, ["protos"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
