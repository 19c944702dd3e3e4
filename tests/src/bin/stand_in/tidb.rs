//! Stands in for `pd-server`, `tikv-server` and `tidb-server`: members, stores and who knows of whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use crate::{
    EVERY, Flags, Request, die, flags, get, holds, is_list_of, listen, print, reply, serve,
    serve_all,
};

/// What TiKV demands of RLIMIT_NOFILE with `max-open-files` of 256 twice.
const TIKV_FILES_MIN: u64 = 1512;

pub(crate) fn pd(args: &[String]) {
    if args == ["--version"] {
        return print("Release Version: v8.5.7-stand-in");
    }
    const REQUIRED: [&str; 7] = [
        "name",
        "data-dir",
        "config",
        "client-urls",
        "advertise-client-urls",
        "peer-urls",
        "advertise-peer-urls",
    ];
    let flags = flags(args, &REQUIRED, &["log-file", "initial-cluster", "join"]);
    holds(&flags, "config", &["[replication]", "max-replicas = ", "dashboard-address"]);
    let (client, own) = listen(&flags, "client-urls", "advertise-client-urls", "http://");
    let (peer, told) = listen(&flags, "peer-urls", "advertise-peer-urls", "http://");
    let name = flags["name"].clone();
    let members = Arc::new(Members::open(&flags, &name, own, told));
    let heard = Arc::clone(&members);
    thread::spawn(move || serve(peer, move |_| (200, heard.now().to_text())));
    let leader: Arc<Mutex<Option<String>>> = Arc::default();
    let (found, known) = (Arc::clone(&leader), Arc::clone(&members));
    thread::spawn(move || {
        loop {
            let all = known.now().all;
            let mut alive = Vec::new();
            for (name, at) in &all {
                if let Some(said) = get(*at, "/") {
                    known.learn(List::of(&said));
                    alive.push(name);
                }
            }
            let first = alive.first().filter(|_| alive.len() * 2 > all.len());
            *found.lock().unwrap_or_else(PoisonError::into_inner) =
                first.map(|name| (*name).clone());
            thread::sleep(EVERY);
        }
    });
    let stores: Mutex<BTreeSet<String>> = Mutex::default();
    serve_all(client, move |request| {
        let leader = leader.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(leader) = leader else { return (503, "no leader".to_owned()) };
        let mut stores = stores.lock().unwrap_or_else(PoisonError::into_inner);
        let words: Vec<&str> = request.path.split('/').skip(1).collect();
        match (request.method.as_str(), words.as_slice()) {
            ("GET", ["pd", "api", "v1", "leader"]) => {
                (200, format!("{{\n  \"name\": \"{leader}\",\n  \"member_id\": 1\n}}"))
            }
            ("GET", ["pd", "api", "v1", "stores"]) => {
                (200, format!("{{\"count\": {}}}", stores.len()))
            }
            ("DELETE", ["pd", "api", "v1", "members", "name", gone]) => {
                (if members.remove(gone) { 200 } else { 404 }, String::new())
            }
            ("GET", ["stand-in", "join", name, at]) => members.add(name, at),
            ("GET", ["stand-in", "store", store]) => {
                (200, stores.insert((*store).to_owned()).to_string())
            }
            _ => (404, String::new()),
        }
    });
}

/// Who is a member, and how many changes ago: of two lists the one with more changes is true.
#[derive(Clone, Default)]
struct List {
    changes: u64,
    all: BTreeMap<String, SocketAddr>,
}

impl List {
    /// Reads `2 a=http://127.0.0.1:1,b=http://127.0.0.1:2`.
    fn of(text: &str) -> Self {
        let (changes, list) = text.split_once(' ').unwrap_or(("0", text));
        let mut all = BTreeMap::new();
        for part in list.split(',') {
            let member =
                part.split_once("=http://").and_then(|(n, at)| Some((n, at.parse().ok()?)));
            let (name, at) = member.unwrap_or_else(|| die(&format!("{part:?} is no member")));
            all.insert(name.to_owned(), at);
        }
        Self { changes: changes.parse().unwrap_or(0), all }
    }

    fn to_text(&self) -> String {
        let all: Vec<String> =
            self.all.iter().map(|(name, at)| format!("{name}=http://{at}")).collect();
        format!("{} {}", self.changes, all.join(","))
    }
}

/// The list, also kept in the data below a directory of the real one's name.
struct Members(Mutex<List>, PathBuf);

impl Members {
    /// As the real one: the list is given, or asked for at members, or both were done before.
    fn open(flags: &Flags, name: &str, own: SocketAddr, told: SocketAddr) -> Self {
        let dir = Path::new(&flags["data-dir"]).join("member");
        let file = dir.join("list");
        let list = match (flags.get("initial-cluster"), flags.get("join")) {
            (Some(_), Some(_)) => die("-initial-cluster and -join can not be provided together"),
            (None, None) => die("neither --initial-cluster nor --join: it would be alone"),
            _ if file.exists() => List::of(&fs::read_to_string(&file).unwrap_or_default()),
            (Some(initial), None) => List::of(initial),
            (None, Some(join)) => {
                let others = is_list_of(join, "http://");
                if others.contains(&own) {
                    die("join self is forbidden");
                }
                let path = format!("/stand-in/join/{name}/{told}");
                let said = others.iter().find_map(|at| get(*at, &path));
                List::of(&said.unwrap_or_else(|| die("missing data or join a duplicated pd")))
            }
        };
        if list.all.get(name) != Some(&told) {
            die("the list does not have this member at its --advertise-peer-urls");
        }
        fs::create_dir_all(&dir).unwrap_or_else(|error| die(&format!("make {dir:?}: {error}")));
        let members = Self(Mutex::new(List::default()), file);
        members.set(&mut members.held(), list);
        members
    }

    fn held(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> List {
        self.held().clone()
    }

    fn set(&self, held: &mut List, list: List) {
        let _kept = fs::write(&self.1, list.to_text());
        *held = list;
    }

    fn learn(&self, other: List) {
        let mut held = self.held();
        if other.changes > held.changes {
            self.set(&mut held, other);
        }
    }

    fn add(&self, name: &str, at: &str) -> (u16, String) {
        let mut held = self.held();
        let mut list = held.clone();
        let Ok(at) = at.parse() else { return (400, String::new()) };
        if list.all.insert(name.to_owned(), at).is_some() {
            return (409, String::new());
        }
        list.changes += 1;
        let text = list.to_text();
        self.set(&mut held, list);
        (200, text)
    }

    fn remove(&self, name: &str) -> bool {
        let mut held = self.held();
        let mut list = held.clone();
        let is_member = list.all.remove(name).is_some();
        if is_member {
            list.changes += 1;
            self.set(&mut held, list);
        }
        is_member
    }
}

pub(crate) fn tikv(args: &[String]) {
    if args == ["--version"] {
        return print("TiKV \nRelease Version:   8.5.7-stand-in");
    }
    const REQUIRED: [&str; 7] = [
        "addr",
        "advertise-addr",
        "status-addr",
        "advertise-status-addr",
        "pd-endpoints",
        "data-dir",
        "config",
    ];
    let flags = flags(args, &REQUIRED, &["log-file", "labels"]);
    holds(&flags, "config", &["reserve-space = \"0MB\"", "[raftstore]", "max-open-files = 256"]);
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if files.is_some_and(|files| files < TIKV_FILES_MIN) {
        die(&format!("the maximum number of open file descriptors is too small: {files:?}"));
    }
    let (grpc, own) = listen(&flags, "addr", "advertise-addr", "");
    let (status, told) = listen(&flags, "status-addr", "advertise-status-addr", "");
    if own == told {
        die("--advertise-status-addr is --advertise-addr");
    }
    let drivers = is_list_of(&flags["pd-endpoints"], "http://");
    let is_up = Arc::new(AtomicBool::new(false));
    let up = Arc::clone(&is_up);
    let is_paused = Arc::new(AtomicBool::new(false));
    let paused = Arc::clone(&is_paused);
    thread::spawn(move || serve_unless(&paused, grpc));
    thread::spawn(move || {
        loop {
            let register = |at: &SocketAddr| get(*at, &format!("/stand-in/store/{own}")).is_some();
            // Its status port goes on to answer when it loses sight of PD later.
            up.fetch_or(drivers.iter().filter(|at| register(at)).count() > 0, Relaxed);
            thread::sleep(EVERY);
        }
    });
    let points = FailPoints::default();
    serve_all(status, move |request| match (request.method.as_str(), request.path.as_str()) {
        (_, path) if path.starts_with("/fail") => points.hear(request),
        ("GET", "/status") => (if is_up.load(Relaxed) { 200 } else { 500 }, String::new()),
        ("PUT", path @ ("/pause_grpc" | "/resume_grpc")) => {
            is_paused.store(path == "/pause_grpc", Relaxed);
            (200, String::new())
        }
        _ => (404, String::new()),
    });
}

/// Serves gRPC's port, which is closed while it is paused: TiKV drops its gRPC server then.
fn serve_unless(paused: &AtomicBool, listener: TcpListener) {
    let Ok(at) = listener.local_addr() else { die("read the address of --addr") };
    let mut open = Some(listener);
    loop {
        if paused.load(Relaxed) {
            open = None;
        } else {
            let listener = open.get_or_insert_with(|| crate::open(at));
            if listener.set_nonblocking(true).is_err() {
                die("make --addr not block");
            }
            while let Ok((stream, _)) = listener.accept() {
                let _blocks = stream.set_nonblocking(false);
                thread::spawn(move || reply(&stream, |_| (200, String::new())));
            }
        }
        thread::sleep(EVERY);
    }
}

/// The failpoints of a build with the feature `failpoints`.
#[derive(Default)]
struct FailPoints(Mutex<BTreeMap<String, String>>);

impl FailPoints {
    fn hear(&self, Request { method, path, body }: &Request) -> (u16, String) {
        let mut points = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (method.as_str(), path.strip_prefix("/fail/")) {
            ("PUT", Some("")) => (422, "Missing param name".to_owned()),
            ("PUT", Some(_)) if body.is_empty() => (422, "Missing param actions".to_owned()),
            ("PUT", Some(name)) => {
                points.insert(name.to_owned(), body.clone());
                (200, format!("Added fail point with name: {name}, actions: {body}"))
            }
            ("DELETE", Some(name)) => {
                points.remove(name);
                (200, format!("Deleted fail point with name: {name}"))
            }
            ("GET", None | Some("")) => {
                let all = points.iter().map(|(name, terms)| format!("{name}={terms}"));
                (200, all.collect::<Vec<_>>().join("\n"))
            }
            ("GET", Some(_)) => (404, String::new()),
            _ => (405, String::new()),
        }
    }
}

pub(crate) fn tidb(args: &[String]) {
    if args == ["-V"] {
        return print("Release Version: v8.5.7-stand-in");
    }
    const REQUIRED: [&str; 9] = [
        "store",
        "path",
        "host",
        "P",
        "status-host",
        "status",
        "advertise-address",
        "temp-dir",
        "config",
    ];
    let mut flags = flags(args, &REQUIRED, &["socket", "log-file", "log-slow-query"]);
    holds(&flags, "config", &["[security]", "tmp-storage-path"]);
    if flags["store"] != "tikv" {
        die("--store is not tikv");
    }
    // It advertises an address at the ports that it listens on.
    for (name, host, port) in [("sql", "host", "P"), ("http", "status-host", "status")] {
        flags.insert(name.to_owned(), format!("{}:{}", flags[host], flags[port]));
        let told = format!("{}:{}", flags["advertise-address"], flags[port]);
        flags.insert(format!("advertise-{name}"), told);
    }
    let (sql, _) = listen(&flags, "sql", "advertise-sql", "");
    let (http, _) = listen(&flags, "http", "advertise-http", "");
    let drivers = is_list_of(&flags["path"], "");
    thread::spawn(move || serve(sql, |_| (200, String::new())));
    serve(http, move |path| {
        let has_store = |at: &SocketAddr| {
            get(*at, "/pd/api/v1/stores").is_some_and(|said| !said.contains("\"count\": 0"))
        };
        match path {
            "/status" if drivers.iter().any(has_store) => (200, "{\"connections\": 0}".to_owned()),
            "/status" => (500, String::new()),
            _ => (404, String::new()),
        }
    });
}
