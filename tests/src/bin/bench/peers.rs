//! The targets of the link benchmark: nothing between client and server, our proxy, and others as child processes.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{
    cost::Processes,
    load::{
        client::Route,
        server::{DOORS, STREAM_DOOR, door},
    },
    proxy,
};

/// How long a target may take to listen.
const START_MAX: Duration = Duration::from_secs(10);
const START_POLL: Duration = Duration::from_millis(5);
/// Door 0 of the first target; each has a hundred ports.
const PORT: u16 = 7000;
/// Sources that the rules of our proxy name.
pub(crate) const SOURCES: u8 = 16;

/// What stands between client and server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Direct,
    /// Our proxy, by the path of its binary.
    Ours(PathBuf),
    HaProxy,
    Nginx,
    Socat,
    Toxiproxy,
    EtcdProxy,
}

/// A kind of target under a name of its own.
#[derive(Debug, Clone)]
pub(crate) struct Contender {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

/// One that runs.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) route: Route,
    pub(crate) processes: Processes,
    children: Vec<Child>,
    _dir: tempfile::TempDir,
}

/// Addresses of clients which the rules know as those of nodes.
pub(crate) fn sources() -> Vec<Ipv4Addr> {
    (1..=SOURCES).map(|last| Ipv4Addr::new(127, 66, 0, last)).collect()
}

impl Contender {
    /// Whether its program is here.
    pub(crate) fn is_here(&self) -> bool {
        let program = match &self.kind {
            Kind::Direct => return true,
            Kind::Ours(path) => return path.exists(),
            Kind::HaProxy => "haproxy",
            Kind::Nginx => "nginx",
            Kind::Socat => "socat",
            Kind::Toxiproxy => "toxiproxy-server",
            Kind::EtcdProxy => "etcd-proxy",
        };
        find_program(program).is_some()
    }

    /// Starts it in the `place`th block of ports and waits until it forwards.
    ///
    /// # Errors
    /// Where it does not come up.
    pub(crate) fn start(&self, place: u16) -> anyhow::Result<Target> {
        let dir = tempfile::tempdir()?;
        let first: SocketAddr = (Ipv4Addr::LOCALHOST, PORT + place * 100).into();
        let first = if self.kind == Kind::Direct { door(STREAM_DOOR) } else { first };
        let route = Route { first, sources: sources() };
        let mut children = Vec::new();
        for mut command in self.commands(dir.path(), &route)? {
            let log = fs::File::create(dir.path().join(format!("log-{}", children.len())))?;
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
            children.push(command.spawn().with_context(|| format!("start {}", self.name))?);
        }
        let processes = Processes::of(children.first().map(Child::id));
        let target = Target { route, processes, children, _dir: dir };
        let end = Instant::now() + START_MAX;
        for number in 0..DOORS {
            while TcpStream::connect(target.route.door(number)).is_err() {
                anyhow::ensure!(
                    Instant::now() < end,
                    "{} did not come up: {}",
                    self.name,
                    target.log()
                );
                std::thread::sleep(START_POLL);
            }
        }
        Ok(target)
    }

    fn commands(&self, dir: &Path, route: &Route) -> anyhow::Result<Vec<Command>> {
        let doors = (0..DOORS).map(|number| (route.door(number), door(number)));
        Ok(match &self.kind {
            Kind::Direct => Vec::new(),
            Kind::Ours(path) => vec![proxy::command(path, dir, route)?],
            Kind::HaProxy => {
                let file = dir.join("haproxy.cfg");
                fs::write(&file, haproxy(doors))?;
                let mut command = Command::new("haproxy");
                command.arg("-db").arg("-f").arg(file);
                vec![command]
            }
            Kind::Nginx => {
                let file = dir.join("nginx.conf");
                fs::write(&file, nginx(dir, doors))?;
                let mut command = Command::new("nginx");
                command.arg("-p").arg(dir).arg("-c").arg(file);
                vec![command]
            }
            Kind::Socat => vec![socat(dir, doors)?],
            Kind::Toxiproxy => {
                let file = dir.join("toxiproxy.json");
                fs::write(&file, toxiproxy(doors))?;
                let port = (route.first.port() + 99).to_string();
                let mut command = Command::new("toxiproxy-server");
                command.args(["-host", "127.0.0.1", "-port", &port, "-config"]).arg(file);
                vec![command]
            }
            Kind::EtcdProxy => {
                let one = |(from, to): (SocketAddr, SocketAddr)| {
                    let control = (from.port() + 50).to_string();
                    let mut command = Command::new("etcd-proxy");
                    command.args(["--from", &from.to_string(), "--to", &to.to_string()]);
                    command.args(["--http-port", &control]);
                    command
                };
                doors.map(one).collect()
            }
        })
    }
}

impl Target {
    fn log(&self) -> String {
        let entries = fs::read_dir(self._dir.path()).into_iter().flatten().flatten();
        let logs = entries.filter(|e| e.file_name().to_string_lossy().contains("log"));
        logs.filter_map(|e| fs::read_to_string(e.path()).ok()).collect()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        for child in &mut self.children {
            // The whole group: nginx has workers, and socat a process for each connection.
            if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                let _gone =
                    rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            let _gone = child.kill();
            let _gone = child.wait();
        }
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn haproxy(doors: impl Iterator<Item = (SocketAddr, SocketAddr)>) -> String {
    let mut text = "global\n  nbthread 2\n  maxconn 6000\n\
                    defaults\n  mode tcp\n  maxconn 6000\n  option splice-request\n  option splice-response\n  \
                    timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
        .to_owned();
    for (at, (from, to)) in doors.enumerate() {
        let _ = write!(text, "listen door{at}\n  bind {from}\n  server node {to}\n");
    }
    text
}

fn nginx(dir: &Path, doors: impl Iterator<Item = (SocketAddr, SocketAddr)>) -> String {
    let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
    let mut text = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n{user}daemon off;\n\
         worker_processes 2;\npid {dir}/pid;\nerror_log {dir}/log crit;\n\
         events {{ worker_connections 8000; }}\nstream {{\n  tcp_nodelay on;\n",
        dir = dir.display()
    );
    for (from, to) in doors {
        let _ = writeln!(text, "  server {{ listen {from}; proxy_pass {to}; }}");
    }
    text.push_str("}\n");
    text
}

/// One shell that waits for one socat for each door.
fn socat(
    dir: &Path,
    doors: impl Iterator<Item = (SocketAddr, SocketAddr)>,
) -> anyhow::Result<Command> {
    let mut text = String::new();
    for (from, to) in doors {
        let (ip, port) = (from.ip(), from.port());
        let _ = writeln!(
            text,
            "socat -b 65536 TCP-LISTEN:{port},bind={ip},fork,reuseaddr,backlog=1024,nodelay TCP:{to},nodelay &"
        );
    }
    text.push_str("wait\n");
    let file = dir.join("socat.sh");
    fs::write(&file, text)?;
    let mut command = Command::new("sh");
    command.arg(file);
    Ok(command)
}

fn toxiproxy(doors: impl Iterator<Item = (SocketAddr, SocketAddr)>) -> String {
    let proxies: Vec<_> = doors
        .map(|(from, to)| {
            serde_json::json!({
                "name": format!("door{}", from.port()), "listen": from, "upstream": to,
                "enabled": true,
            })
        })
        .collect();
    serde_json::Value::from(proxies).to_string()
}
