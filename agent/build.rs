//! Links the binary at a fixed address, so that shims share its pages instead of each relocating them.

#![allow(clippy::print_stdout, reason = "this is how a build script talks to cargo")]

/// A position-independent executable has its tables of pointers rewritten at every start: more than
/// a megabyte of private memory for each shim, where the shim itself needs a quarter of one. What is
/// given up is the random address of the binary's own image.
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = |part: &str| std::env::var(format!("CARGO_CFG_TARGET_{part}"));
    if target("OS").as_deref() == Ok("linux") && target("ENV").as_deref() == Ok("gnu") {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}
