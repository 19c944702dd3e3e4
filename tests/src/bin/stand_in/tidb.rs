//! Stands in for `pd-server`, `tikv-server` and `tidb-server`: members, stores and who knows of whom.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
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
    let stores = Mutex::new(Stores::of(&flags["config"]));
    serve_all(client, move |request| {
        let leader = leader.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(leader) = leader else { return (503, "no leader".to_owned()) };
        let mut stores = stores.lock().unwrap_or_else(PoisonError::into_inner);
        let words: Vec<&str> = request.path.split('/').skip(1).collect();
        match (request.method.as_str(), words.as_slice()) {
            ("GET", ["pd", "api", "v1", "leader"]) => {
                (200, format!("{{\n  \"name\": \"{leader}\",\n  \"member_id\": 1\n}}"))
            }
            ("GET", ["pd", "api", "v1", "stores"]) => (200, stores.look()),
            ("DELETE", ["pd", "api", "v1", "members", "name", gone]) => {
                (if members.remove(gone) { 200 } else { 404 }, String::new())
            }
            ("GET", ["stand-in", "join", name, at]) => members.add(name, at),
            ("DELETE", ["pd", "api", "v1", "store", id]) => stores.remove(id),
            ("GET", ["stand-in", "store", store, own]) => (200, stores.put(store, own)),
            _ => (404, String::new()),
        }
    });
}

/// For how many looks at the list a store that goes is still in it: its regions move.
const LOOKS: u32 = 3;

/// What a store is told that is not the one that PD knows by its address.
const DUPLICATED: &str = "duplicated store address";

/// A store as PD knows it. `looks` is for how many more of them one that goes is listed.
struct Store {
    id: usize,
    own: String,
    looks: Option<u32>,
}

/// The stores that joined, by their addresses.
struct Stores {
    replicas: usize,
    all: BTreeMap<String, Store>,
    last: usize,
}

impl Stores {
    fn of(config: &str) -> Self {
        let text = fs::read_to_string(config).unwrap_or_default();
        let said = text.lines().find_map(|line| line.strip_prefix("max-replicas = ")?.parse().ok());
        let replicas = said.unwrap_or_else(|| die("max-replicas is no number"));
        Self { replicas, all: BTreeMap::new(), last: 0 }
    }

    /// One joins, or says that it is there: at the address of a tombstone, but not of another store.
    fn put(&mut self, address: &str, own: &str) -> String {
        match self.all.get(address) {
            Some(store) if store.own == own => return String::new(),
            Some(store) if store.looks != Some(0) => return DUPLICATED.to_owned(),
            _ => {}
        }
        self.last += 1;
        let store = Store { id: self.last, own: own.to_owned(), looks: None };
        self.all.insert(address.to_owned(), store);
        String::new()
    }

    /// The list, in which a tombstone is not.
    fn look(&mut self) -> String {
        let mut shown = Vec::new();
        for (address, Store { id, looks, .. }) in &mut self.all {
            if *looks == Some(0) {
                continue;
            }
            *looks = looks.map(|looks| looks - 1);
            shown.push(format!(
                "{{\n \"store\": {{\n  \"id\": {id},\n  \"address\": \"{address}\"\n }}\n}}"
            ));
        }
        format!("{{\n\"count\": {},\n\"stores\": [{}]\n}}", shown.len(), shown.join(","))
    }

    /// One goes: by force at once, else unless fewer would be left than there are replicas.
    fn remove(&mut self, asked: &str) -> (u16, String) {
        let (id, is_forced) = match asked.strip_suffix("?force=true") {
            Some(id) => (id, true),
            None => (asked, false),
        };
        let left = self.all.values().filter(|store| store.looks.is_none()).count();
        let Some(store) = self.all.values_mut().find(|store| store.id.to_string() == id) else {
            return (404, String::new());
        };
        if !is_forced && store.looks.is_none() && left <= self.replicas {
            let (would, need) = (left - 1, self.replicas);
            let why = format!("the number of up stores would be {would} while need {need}");
            return (400, format!("can not remove store {id} since {why}"));
        }
        store.looks = if is_forced { Some(0) } else { store.looks.or(Some(LOOKS)) };
        (200, "\"The store is set as Offline.\"".to_owned())
    }
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
    let ident = ident(&flags["data-dir"]);
    let is_up = Arc::new(AtomicBool::new(false));
    let up = Arc::clone(&is_up);
    let is_paused = Arc::new(AtomicBool::new(false));
    let paused = Arc::clone(&is_paused);
    thread::spawn(move || serve_unless(&paused, grpc));
    thread::spawn(move || {
        loop {
            let path = format!("/stand-in/store/{own}/{ident}");
            let said = drivers.iter().find_map(|at| get(*at, &path));
            if said.as_deref() == Some(DUPLICATED) {
                die(DUPLICATED);
            }
            // Its status port goes on to answer when it loses sight of PD later.
            up.fetch_or(said.is_some(), Relaxed);
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

/// Which store it is, as its data says; one without data is a new one.
fn ident(data: &str) -> String {
    let file = Path::new(data).join("db").join("ident");
    fs::read_to_string(&file).unwrap_or_else(|_| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ident = since.as_nanos().to_string();
        let made = fs::create_dir_all(Path::new(data).join("db"));
        made.and_then(|()| fs::write(&file, &ident))
            .unwrap_or_else(|error| die(&format!("write {file:?}: {error}")));
        ident
    })
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
