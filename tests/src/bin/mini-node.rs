//! A tiny "database" for tests and benchmarks: every node streams to every other and says whom it hears.
//!
//! Each node dials its peers at their advertised addresses and writes eight bytes every ten milliseconds,
//! or as `--every-ms` says, on each connection. `GET /status` tells when the last byte of each peer came
//! (CLOCK_MONOTONIC), who leads (the first by name of those heard within half a second) and in which term.
//! With `--echo` it also gives clients back what they send.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

/// Between two writes on one connection, where nothing else is said.
const WRITE_EVERY: Duration = Duration::from_millis(10);

/// A peer not heard for this long counts as gone.
const GONE_AFTER_NS: u64 = 500_000_000;

type Shared<T> = Arc<Mutex<T>>;

#[derive(Debug, Default)]
struct Heard {
    last_ns: BTreeMap<String, u64>,
    leader: String,
    term: u64,
}

fn main() {
    let mut options: BTreeMap<String, String> = BTreeMap::new();
    for argument in std::env::args().skip(1) {
        let Some((key, value)) = argument.trim_start_matches("--").split_once('=') else {
            panic_usage(&argument)
        };
        options.insert(key.to_owned(), value.to_owned());
    }
    let get = |key: &str| options.get(key).cloned().unwrap_or_else(|| panic_usage(key));
    let (name, listen, http) = (get("name"), get("listen"), get("http"));
    let heard: Shared<Heard> = Shared::default();

    let peers =
        TcpListener::bind(&listen).unwrap_or_else(|e| panic_usage(&format!("{listen}: {e}")));
    let status = TcpListener::bind(&http).unwrap_or_else(|e| panic_usage(&format!("{http}: {e}")));
    let every = options.get("every-ms").map_or(WRITE_EVERY, |ms| {
        Duration::from_millis(ms.parse().unwrap_or_else(|_| panic_usage(ms)))
    });
    for peer in get("peers").split(',').filter(|peer| !peer.is_empty()) {
        let Some((peer_name, address)) = peer.split_once('=') else { panic_usage(peer) };
        if peer_name != name {
            let (name, address) = (name.clone(), address.to_owned());
            thread::spawn(move || write_for_ever(&name, &address, every));
        }
    }
    {
        let heard = Arc::clone(&heard);
        thread::spawn(move || {
            for stream in peers.incoming().flatten() {
                let heard = Arc::clone(&heard);
                thread::spawn(move || read_to_the_end(stream, &heard));
            }
        });
    }
    if let Some(at) = options.get("echo") {
        let clients = TcpListener::bind(at).unwrap_or_else(|e| panic_usage(&format!("{at}: {e}")));
        thread::spawn(move || {
            for stream in clients.incoming().flatten() {
                thread::spawn(move || give_back(stream));
            }
        });
    }
    for stream in status.incoming().flatten() {
        answer(stream, &name, &heard);
    }
}

fn panic_usage(what: &str) -> ! {
    let _ = writeln!(
        std::io::stderr(),
        "mini-node: {what}; usage: --name=N --listen=A:P --http=A:P --peers=N=A:P,… [--echo=A:P] \
         [--every-ms=N]"
    );
    #[expect(clippy::exit, reason = "a program this small has no one else to tell")]
    std::process::exit(2)
}

fn write_for_ever(name: &str, address: &str, every: Duration) {
    let hello = format!("{name:<8.8}");
    loop {
        if let Ok(mut stream) = TcpStream::connect(address) {
            let _ = stream.set_nodelay(true);
            while stream.write_all(hello.as_bytes()).is_ok() {
                thread::sleep(every);
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn read_to_the_end(mut stream: TcpStream, heard: &Mutex<Heard>) {
    let mut chunk = [0; 4096];
    let mut name = String::new();
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        let now = monotonic_ns();
        if name.is_empty() && count >= 8 {
            name = String::from_utf8_lossy(&chunk[..8]).trim().to_owned();
        }
        heard.lock().unwrap_or_else(PoisonError::into_inner).last_ns.insert(name.clone(), now);
    }
}

fn give_back(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        if stream.write_all(&chunk[..count]).is_err() {
            return;
        }
    }
}

fn answer(mut stream: TcpStream, name: &str, heard: &Mutex<Heard>) {
    // To the end: closing a socket with unread bytes in it resets it, and the answer is lost.
    let (mut request, mut chunk) = (Vec::new(), [0; 1024]);
    while !request.ends_with(b"\r\n\r\n") && request.len() < 64 * 1024 {
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => request.extend_from_slice(&chunk[..count]),
            Ok(0) | Err(_) => return,
        }
    }
    let body = {
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        let now = monotonic_ns();
        let leader = heard
            .last_ns
            .iter()
            .filter(|(_, at)| now.saturating_sub(**at) < GONE_AFTER_NS)
            .map(|(peer, _)| peer.as_str())
            .chain([name])
            .min()
            .unwrap_or(name)
            .to_owned();
        if heard.leader != leader {
            heard.term += 1;
            heard.leader = leader;
        }
        serde_json::json!({
            "id": name, "leader": heard.leader, "term": heard.term, "last_ns": heard.last_ns,
        })
        .to_string()
    };
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
