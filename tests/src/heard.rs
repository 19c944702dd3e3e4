//! What mini-nodes say of each other: when the last byte of each came.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use anyhow::Context as _;

/// CLOCK_MONOTONIC in nanoseconds, which mini-nodes go by.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// When the node at the end of `stream` last heard another one, in nanoseconds of CLOCK_MONOTONIC.
///
/// # Errors
/// It does not answer, or never heard that one.
pub fn heard_ns(mut stream: TcpStream, address: &str, from: &str) -> anyhow::Result<u64> {
    write!(stream, "GET /status HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split("\r\n\r\n").nth(1).context("body")?;
    let json: serde_json::Value = serde_json::from_str(body)?;
    json["last_ns"][from].as_u64().context("never heard")
}
