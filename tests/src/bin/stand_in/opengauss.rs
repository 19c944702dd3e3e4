//! Stands in for `gaussdb`, `gs_initdb` and `gs_ctl` of openGauss with DCF, on top of the group in `dcf`.
//!
//! The configuration is read setting by setting; unknown and missing ones end it. A follower is no part of
//! the cluster until `gs_ctl build` took it over from whoever leads, through the port beside the named
//! one. As the real one it refuses root, and a leader that loses its lead exits.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use super::dcf::{Group, members};
use crate::{EVERY, die, get, open, print, serve};

/// Settings that are needed, and those that may be there too.
const REQUIRED: [&str; 12] = [
    "listen_addresses",
    "port",
    "enable_dcf",
    "dcf_node_id",
    "dcf_data_path",
    "dcf_log_path",
    "dcf_ssl",
    "ssl",
    "dcf_config",
    "max_process_memory",
    "shared_buffers",
    "dcf_election_timeout",
];
const ALLOWED: [&str; 4] =
    ["cstore_buffers", "enable_thread_pool", "unix_socket_directory", "password_encryption_type"];

type Settings = BTreeMap<String, String>;

fn refuse_root(program: &str) {
    if rustix::process::geteuid().is_root() {
        die(&format!("{program} cannot be run as root"));
    }
}

/// Flags as `getopt_long` reads them: `-D dir`, `-c`, `--name=value`.
fn options(args: &[String], with_value: &str, without: &str, long: &[&str]) -> Settings {
    let mut found = Settings::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if let Some((name, value)) = arg.strip_prefix("--").and_then(|arg| arg.split_once('=')) {
            if !long.contains(&name) {
                die(&format!("unrecognized option --{name}"));
            }
            found.insert(name.to_owned(), value.to_owned());
            continue;
        }
        let Some(letter) = arg.strip_prefix('-').filter(|letter| letter.len() == 1) else {
            die(&format!("too many arguments, {arg:?} first"))
        };
        if with_value.contains(letter) {
            let value = args.next().unwrap_or_else(|| die(&format!("-{letter} needs a value")));
            found.insert(letter.to_owned(), value.clone());
        } else if without.contains(letter) {
            found.insert(letter.to_owned(), String::new());
        } else {
            die(&format!("invalid option -- {letter}"));
        }
    }
    found
}

fn data_of(options: &Settings) -> PathBuf {
    PathBuf::from(options.get("D").unwrap_or_else(|| die("no data directory specified, with -D")))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path)
        .unwrap_or_else(|error| die(&format!("read {}: {error}", path.display())))
}

fn write(path: &Path, text: &str) {
    fs::write(path, text)
        .unwrap_or_else(|error| die(&format!("write {}: {error}", path.display())));
}

/// `gs_initdb`.
pub(crate) fn gs_initdb(args: &[String]) {
    refuse_root("gs_initdb");
    let options =
        options(args, "DEULwAHXTC", "cWdsnS", &["nodename", "locale", "host-ip", "pwpasswd"]);
    let data = data_of(&options);
    let missing = ["c", "nodename", "w"].into_iter().find(|name| !options.contains_key(*name));
    if let Some(missing) = missing {
        die(&format!("{missing} is not given"));
    }
    let kinds: [fn(char) -> bool; 4] = [
        |letter| letter.is_lowercase(),
        |letter| letter.is_uppercase(),
        |letter| letter.is_ascii_digit(),
        |letter| !letter.is_alphanumeric(),
    ];
    let password = &options["w"];
    let used = kinds.iter().filter(|is| password.chars().any(is)).count();
    if password.len() < 8 || used < 3 {
        die("Password must contain at least 8 characters of three kinds.");
    }
    let is_empty = fs::read_dir(&data).is_ok_and(|mut entries| entries.next().is_none());
    if !is_empty {
        die(&format!("directory {} exists but is not empty", data.display()));
    }
    write(&data.join("PG_VERSION"), "9.2\n");
    write(&data.join("system"), &format!("{}", std::process::id()));
    write(&data.join("postgresql.conf"), "# -----\n");
    write(&data.join("pg_hba.conf"), "");
}

/// The settings of a data directory; of one that is there twice the last one counts.
fn settings(data: &Path) -> Settings {
    let mut found = Settings::new();
    let mut peers = 0;
    let text = read(&data.join("postgresql.conf"));
    for line in
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let Some((name, value)) = line.split_once('=') else {
            die(&format!("syntax error: {line}"))
        };
        let (name, value) = (name.trim(), value.trim().trim_matches('\''));
        if name.strip_prefix("replconninfo").is_some_and(|rest| rest.parse::<u8>().is_ok()) {
            peers += 1;
            check_peer(value);
        } else if !REQUIRED.contains(&name) && !ALLOWED.contains(&name) {
            die(&format!("unrecognized configuration parameter \"{name}\""));
        }
        found.insert(name.to_owned(), value.to_owned());
    }
    if let Some(missing) = REQUIRED.iter().find(|name| !found.contains_key(**name)) {
        die(&format!("{missing} is not set"));
    }
    if peers + 1 != members(&found["dcf_config"]).len() {
        die("there must be one replconninfo for each other node");
    }
    found
}

fn check_peer(value: &str) {
    let words: Settings = value
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    for (host, ports) in [
        ("localhost", ["localport", "localheartbeatport"]),
        ("remotehost", ["remoteport", "remoteheartbeatport"]),
    ] {
        let is_host = words.get(host).is_some_and(|host| host.parse::<IpAddr>().is_ok());
        let is_port = |port: &str| words.get(port).is_some_and(|port| port.parse::<u16>().is_ok());
        if !is_host || !ports.iter().all(|port| is_port(port)) {
            die(&format!("replconninfo {value:?} lacks {host} or its ports"));
        }
    }
}

fn number<T: std::str::FromStr>(settings: &Settings, name: &str) -> T {
    settings[name].parse().unwrap_or_else(|_| die(&format!("{name} is no number")))
}

/// `gaussdb`.
pub(crate) fn gaussdb(args: &[String]) {
    if args == ["-V"] || args == ["--version"] {
        return print("gaussdb (openGauss stand-in)");
    }
    refuse_root("gaussdb");
    let options = options(args, "DMcp", "", &[]);
    let data = data_of(&options);
    if !["primary", "standby", "pending"].contains(&options.get("M").map_or("", String::as_str)) {
        die("the options of -M is not recognized");
    }
    read(&data.join("PG_VERSION"));
    let settings = settings(&data);
    if !Path::new(&settings["dcf_data_path"]).is_dir() {
        die("dcf_data_path is no directory");
    }
    let ip: IpAddr = settings["listen_addresses"]
        .parse()
        .unwrap_or_else(|_| die("listen_addresses is no address"));
    let (port, id): (u16, u64) = (number(&settings, "port"), number(&settings, "dcf_node_id"));
    let told = members(&settings["dcf_config"]).get(&id).map(SocketAddr::ip);
    if told == Some(ip) {
        die("listen_addresses is where others reach it: nothing would meet a proxy");
    }
    let sql = open(SocketAddr::new(ip, port));
    let beside = open(SocketAddr::new(ip, port + 1));
    let group = Group::start(id, &settings["dcf_config"]);
    write(&data.join("postmaster.pid"), &std::process::id().to_string());
    thread::spawn(move || serve(sql, |_| (200, String::new())));
    let (leads, own) = (Arc::clone(&group), data.join("system"));
    thread::spawn(move || {
        serve(beside, move |path| match path.strip_prefix("/lead/") {
            _ if !leads.leads() => (503, "not the primary".to_owned()),
            Some(id) if leads.promote(id.parse().unwrap_or(0)) => (200, String::new()),
            Some(_) => (503, "no such node".to_owned()),
            None => (200, read(&own)),
        });
    });
    let mut led = false;
    loop {
        thread::sleep(EVERY);
        if led && !group.leads() {
            die("Exit postmaster when demoting.");
        }
        if group.leads() && !led {
            // Its data is the cluster's now.
            write(&data.join("built"), "");
        }
        led = group.leads();
        obey(&data, &group);
        let is_whole = data.join("built").exists();
        let state = match group.leader() {
            _ if !is_whole => "Need repair",
            Some(_) => "Normal",
            None => "Starting",
        };
        let role = if led { "Primary" } else { "Standby" };
        let text = format!(
            " HA state:\n        local_role                    : {role}\n        db_state                      : {state}\n Paxos replication info:\n        dcf_replication_info          : {}\n",
            group.stream_info()
        );
        // Whole, or the one before.
        write(&data.join("gaussdb.state.new"), &text);
        let _shown = fs::rename(data.join("gaussdb.state.new"), data.join("gaussdb.state"));
    }
}

/// Changes of the group that `gs_ctl` left in the data directory.
fn obey(data: &Path, group: &Group) {
    for file in ["addmember", "removemember"] {
        let path = data.join(file);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let (id, at) = text.split_once(' ').unwrap_or((&text, ""));
        let id = id.parse().unwrap_or(0);
        let done = group.change(id, at.parse().ok());
        let _answer = fs::write(data.join(format!("{file}.done")), done.to_string());
        let _gone = fs::remove_file(path);
    }
}

/// `gs_ctl`.
pub(crate) fn gs_ctl(args: &[String]) {
    refuse_root("gs_ctl");
    let Some((verb, rest)) = args.split_first() else { die("no operation specified") };
    let options = options(rest, "DbMtrOuiem", "qwW", &[]);
    let data = data_of(&options);
    match verb.as_str() {
        "query" => print(&running(&data)),
        "build" => build(&data, &options),
        "switchover" => switch_over(&data),
        "member" => {
            let given = |name: &str| {
                options.get(name).cloned().unwrap_or_else(|| die(&format!("-{name} is missing")))
            };
            match given("O").as_str() {
                "add" => {
                    let at = format!("{} {}:{}", given("u"), given("i"), given("e"));
                    order(&data, "addmember", &at);
                }
                "remove" => order(&data, "removemember", &given("u")),
                other => die(&format!("unknown operation {other}")),
            }
        }
        other => die(&format!("unrecognized operation mode \"{other}\"")),
    }
}

/// What the server of a data directory says, which must run.
fn running(data: &Path) -> String {
    let pid = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    if pid.is_empty() || !Path::new("/proc").join(&pid).exists() {
        die("PID file does not exist. Is server running?");
    }
    read(&data.join("gaussdb.state"))
}

/// Has a server do something; only the leader does.
fn order(data: &Path, file: &str, text: &str) {
    if !running(data).contains(": Primary") {
        die("the operation must be executed on the primary");
    }
    let answer = data.join(format!("{file}.done"));
    let _old = fs::remove_file(&answer);
    write(&data.join(file), text);
    for _ in 0..50 {
        thread::sleep(EVERY);
        if let Ok(done) = fs::read_to_string(&answer) {
            return if done == "true" { print("done") } else { die("it was refused") };
        }
    }
    die("no answer");
}

/// Where the other nodes answer, beside the port for SQL.
fn remotes(settings: &Settings) -> Vec<SocketAddr> {
    let remotes = settings.iter().filter(|(name, _)| name.starts_with("replconninfo"));
    remotes
        .filter_map(|(_, value)| {
            let word = |name: &str| {
                value.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned)
            };
            format!("{}:{}", word("remotehost=")?, word("remoteport=")?).parse().ok()
        })
        .collect()
}

/// A follower asks whoever leads for the lead.
fn switch_over(data: &Path) {
    let settings = settings(data);
    let own: String = settings["dcf_node_id"].clone();
    let said = remotes(&settings).iter().find_map(|at| get(*at, &format!("/lead/{own}")));
    said.map_or_else(|| die("no primary to switch over from"), |_| print("done"));
}

/// Copies the leader's data over those of a server, which is stopped for it.
fn build(data: &Path, options: &Settings) {
    let is_full = options.get("b").is_some_and(|mode| mode == "full");
    if !is_full || options.get("M").is_none_or(|mode| mode != "standby") {
        die("only -b full and -M standby can be built in DCF mode");
    }
    if !options.contains_key("q") {
        die("without -q the server would run beside the one that is watched");
    }
    let settings = settings(data);
    let found = remotes(&settings).iter().find_map(|at| get(*at, "/build"));
    let system = found.unwrap_or_else(|| die("could not find the primary to build from"));
    if let Ok(pid) = fs::read_to_string(data.join("postmaster.pid"))
        && let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw)
    {
        let _stopped = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    }
    write(&data.join("system"), &system);
    write(&data.join("built"), "");
}
