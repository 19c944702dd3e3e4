//! Generates the services from `protos/` with a compiler written in Rust, so no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=protos");
    let files = protox::compile(
        ["faultbed/v1/operator.proto", "faultbed/v1/agent.proto", "faultbed/v1/exec.proto"],
        ["protos"],
    )?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
