//! Stands in for database programs that are too large to run here: no data, no consensus.
//!
//! It checks what a blueprint renders as strictly as the real program would: unknown and missing flags,
//! files and addresses that make no sense end it. Ports are really open, members find each other at
//! advertised addresses only, and readiness and roles are answered for. Which program it is, its own
//! name says. It proves nothing about the real one.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

mod stand_in {
    pub(crate) mod dcf;
    pub(crate) mod etcd;
    pub(crate) mod gitaly;
    pub(crate) mod opengauss;
    pub(crate) mod tidb;
}

/// How long a peer has to answer.
const ANSWER: Duration = Duration::from_millis(500);

/// How often peers are asked.
const EVERY: Duration = Duration::from_millis(100);

type Flags = BTreeMap<String, String>;

fn main() {
    let mut args = std::env::args();
    let own = args.next().unwrap_or_default();
    let args: Vec<String> = args.collect();
    match Path::new(&own).file_name().and_then(|name| name.to_str()) {
        Some("cockroach") => cockroach(&args),
        Some("gitaly") => stand_in::gitaly::gitaly(&args),
        Some("praefect") => stand_in::gitaly::praefect(&args),
        Some("dcf-node") => stand_in::dcf::dcf_node(&args),
        Some("gaussdb") => stand_in::opengauss::gaussdb(&args),
        Some("gs_initdb") => stand_in::opengauss::gs_initdb(&args),
        Some("gs_ctl") => stand_in::opengauss::gs_ctl(&args),
        Some("etcd") => stand_in::etcd::etcd(&args),
        Some("pd-server") => stand_in::tidb::pd(&args),
        Some("tikv-server") => stand_in::tidb::tikv(&args),
        Some("tidb-server") => stand_in::tidb::tidb(&args),
        other => die(&format!("{other:?} is none of the programs that this stands in for")),
    }
}

fn die(why: &str) -> ! {
    let _ = writeln!(std::io::stderr(), "stand-in: {why}");
    #[expect(clippy::exit, reason = "a program this small has no one else to tell")]
    std::process::exit(1)
}

fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Reads `--name=value` and `--name`, and dies of what is unknown, double or missing.
fn flags(args: &[String], required: &[&str], allowed: &[&str]) -> Flags {
    let mut found = Flags::new();
    for arg in args {
        let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            die(&format!("unknown argument {arg:?}"))
        };
        let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
        if !required.contains(&name) && !allowed.contains(&name) {
            die(&format!("unknown flag: --{name}"));
        }
        if found.insert(name.to_owned(), value.to_owned()).is_some() {
            die(&format!("flag --{name} is given twice"));
        }
    }
    if let Some(missing) = required.iter().find(|name| !found.contains_key(**name)) {
        die(&format!("required flag --{missing} is missing"));
    }
    found
}

/// An address in a flag: numeric, and with a scheme where the real program wants one.
fn address(flags: &Flags, name: &str, scheme: &str) -> SocketAddr {
    let text = &flags[name];
    let plain = text.strip_prefix(scheme);
    let parsed = plain.and_then(|plain| plain.parse::<SocketAddr>().ok());
    let found = parsed.unwrap_or_else(|| die(&format!("--{name}={text} is no {scheme}address")));
    if found.ip().is_unspecified() || found.port() == 0 {
        die(&format!("--{name}={text} cannot be reached"));
    }
    found
}

/// Binds one address and demands that another one is advertised, or no proxy would be in between.
fn listen(flags: &Flags, bind: &str, advertise: &str, scheme: &str) -> (TcpListener, SocketAddr) {
    let own = address(flags, bind, scheme);
    let told = address(flags, advertise, scheme);
    if own == told {
        die(&format!("--{advertise} is where --{bind} listens: nothing would meet a proxy"));
    }
    (open(own), told)
}

fn open(at: SocketAddr) -> TcpListener {
    TcpListener::bind(at).unwrap_or_else(|error| die(&format!("listen on {at}: {error}")))
}

fn is_list_of(text: &str, scheme: &str) -> Vec<SocketAddr> {
    let parse = |part: &str| part.strip_prefix(scheme)?.parse().ok();
    let all: Option<Vec<SocketAddr>> = text.split(',').map(parse).collect();
    all.unwrap_or_else(|| die(&format!("{text:?} is no list of {scheme}addresses")))
}

fn holds(flags: &Flags, file: &str, words: &[&str]) {
    let path = &flags[file];
    let text = fs::read_to_string(path)
        .unwrap_or_else(|error| die(&format!("read --{file} {path}: {error}")));
    if let Some(word) = words.iter().find(|word| !text.contains(**word)) {
        die(&format!("{path} does not say {word}"));
    }
}

/// A request as far as anybody here looks at it. One that is only a line is a GET of its first word.
#[derive(Default)]
struct Request {
    method: String,
    path: String,
    body: String,
}

/// Reads a request, to its end where that says how long it is.
fn read_request(stream: &TcpStream) -> Request {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    let _closed = reader.read_line(&mut first);
    let mut line = first.clone();
    let mut length = 0;
    while first.contains(" HTTP/") && !line.trim().is_empty() {
        line.clear();
        let _closed = reader.read_line(&mut line);
        let lower = line.to_lowercase();
        let said = lower.strip_prefix("content-length:").and_then(|n| n.trim().parse().ok());
        length = said.unwrap_or(length);
    }
    let mut body = String::new();
    let _closed = reader.take(length).read_to_string(&mut body);
    let mut words = first.split_whitespace();
    let (word, path) = (words.next().unwrap_or_default(), words.next());
    let method = if path.is_some() { word } else { "GET" };
    Request { method: method.to_owned(), path: path.unwrap_or(word).to_owned(), body }
}

/// Answers lines or HTTP requests that ask for something by their path, for ever.
fn serve(listener: TcpListener, answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static) {
    serve_all(listener, move |request| answer(&request.path));
}

/// Answers requests by all that they say, for ever.
fn serve_all(
    listener: TcpListener,
    answer: impl Fn(&Request) -> (u16, String) + Send + Sync + 'static,
) {
    let answer = Arc::new(answer);
    for stream in listener.incoming().flatten() {
        let answer = Arc::clone(&answer);
        thread::spawn(move || reply(&stream, &*answer));
    }
}

fn reply(stream: &TcpStream, answer: impl Fn(&Request) -> (u16, String)) {
    let (status, body) = answer(&read_request(stream));
    let length =
        if status == 204 { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let mut to = stream;
    let _gone = write!(to, "HTTP/1.1 {status} X\r\n{length}Connection: close\r\n\r\n{body}");
}

fn get(at: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&at, ANSWER).ok()?;
    stream.set_read_timeout(Some(ANSWER)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}

fn cockroach(args: &[String]) {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["version"] => print("Build Tag:        stand-in"),
        ["start", ..] => cockroach_start(&args[1..]),
        ["init", ..] => {
            let flags = flags(&args[1..], &["insecure", "host", "cluster-name"], &[]);
            match get(address(&flags, "host", ""), &format!("/init/{}", flags["cluster-name"])) {
                Some(said) if said == "done" => print("Cluster successfully initialized"),
                Some(_) => die("ERROR: cluster has already been initialized"),
                None => die("ERROR: cannot dial server"),
            }
        }
        ["node", "decommission", ..] => {
            let flags = flags(&args[2..], &["self", "insecure", "host"], &[]);
            get(address(&flags, "host", ""), "/leave").unwrap_or_else(|| die("cannot dial server"));
        }
        ["node", "drain", ..] => {
            let flags = flags(&args[2..], &["self", "insecure", "host"], &[]);
            get(address(&flags, "host", ""), "/drain").unwrap_or_else(|| die("cannot dial server"));
            print("ok");
        }
        _ => die(&format!("unknown command {words:?}")),
    }
}

fn cockroach_start(args: &[String]) {
    const REQUIRED: [&str; 8] = [
        "insecure",
        "store",
        "listen-addr",
        "advertise-addr",
        "sql-addr",
        "advertise-sql-addr",
        "http-addr",
        "join",
    ];
    let flags = flags(args, &REQUIRED, &["cluster-name", "locality", "cache", "max-sql-memory"]);
    let Some(data) = flags["store"].strip_prefix("path=") else { die("--store has no path=") };
    let (rpc, own) = listen(&flags, "listen-addr", "advertise-addr", "");
    let (sql, _) = listen(&flags, "sql-addr", "advertise-sql-addr", "");
    let http = open(address(&flags, "http-addr", ""));
    let peers = is_list_of(&flags["join"], "");
    let mark = Path::new(data).join("initialised");
    let is_set_up = Arc::new(AtomicBool::new(mark.exists()));
    let is_quorate = Arc::new(AtomicBool::new(false));
    let name = flags.get("cluster-name").cloned().unwrap_or_default();
    // As the real one it is never undrained: only another process takes clients again.
    let is_drained = Arc::new(AtomicBool::new(false));

    let drained = Arc::clone(&is_drained);
    let (set_up, wanted, file) = (Arc::clone(&is_set_up), name.clone(), mark.clone());
    thread::spawn(move || {
        serve(rpc, move |path| match path.split('/').collect::<Vec<_>>().as_slice() {
            ["", _, other] if *other != wanted => (409, "another cluster".to_owned()),
            ["", "init", _] if set_up.load(Relaxed) => (200, "again".to_owned()),
            ["", "init", _] => {
                set_up.store(fs::write(&file, "").is_ok(), Relaxed);
                (200, "done".to_owned())
            }
            ["", "hello", _] => (200, set_up.load(Relaxed).to_string()),
            ["", "drain"] => {
                drained.store(true, Relaxed);
                (200, String::new())
            }
            _ => (200, String::new()),
        });
    });
    thread::spawn(move || serve(sql, |_| (200, String::new())));
    let (set_up, quorate) = (Arc::clone(&is_set_up), Arc::clone(&is_quorate));
    thread::spawn(move || {
        loop {
            let others = peers.iter().filter(|peer| **peer != own);
            let said: Vec<String> =
                others.filter_map(|peer| get(*peer, &format!("/hello/{name}"))).collect();
            if said.iter().any(|said| said == "true") && !set_up.load(Relaxed) {
                set_up.store(fs::write(&mark, "").is_ok(), Relaxed);
            }
            quorate.store((said.len() + 1) * 2 > peers.len(), Relaxed);
            thread::sleep(EVERY);
        }
    });
    serve(http, move |path| match path {
        "/health?ready=1" if is_drained.load(Relaxed) => (503, "node is draining".to_owned()),
        "/health?ready=1" if is_set_up.load(Relaxed) && is_quorate.load(Relaxed) => {
            (200, "{}".to_owned())
        }
        "/health?ready=1" => (503, "node is not ready".to_owned()),
        "/health" => (200, "{}".to_owned()),
        _ => (404, String::new()),
    });
}
