//! The real hands: shims, the proxy process, files and sockets of this machine.

mod check;
pub(crate) mod prepare;
mod programs;
mod proxy;
mod records;
mod tls;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use faultbed_common::{
    generation::Incarnation,
    host_spec::NodeSpec,
    name::{LabName, NodeName},
    probe::Probe,
    program::Pushed,
    proxy_spec::ProxyFile,
    render::node_dir,
    report::Identity,
};

use super::{
    Asked, Fetching, NodeOrders, NodeRecord, Run, Running,
    evidence::Kept,
    hands::{
        CommandFailed, CommandOrder, Hands, ProxyApplied, ProxySeen, StartOrder, Survey,
        SurveyOrder,
    },
};

use records::{asked_record, gone_is_fine, node_orders, run, shim_orders};

pub use crate::node::run_dir;
use crate::{
    allow::Allow,
    binaries::{
        self, Binary, Hashes,
        fetch::Fetcher,
        version::{self, Said},
    },
    bypass,
    canary::{self, Answer, Question},
    clock::{self, BootTime},
    fast_heal,
    ledger::Accepted,
    listeners,
    node::{
        self, AskedRecord, AskedWhy, LaunchError, LaunchSpec, RunRecord, RunState,
        records::{
            EXIT_FILE, IDENTITY_FILE, IdentityRecord, ORDERS_FILE, RUN_FILE, VERSION, read_record,
            write_record,
        },
        runs::{RUNS_KEPT, all_runs, try_lock},
    },
    probe::{Asker, command},
    search,
    session::Known,
    settings::Settings,
};

/// The file of a node's marks, in its directory.
pub(crate) const RECORD_FILE: &str = "node.json";

/// The file of what faults did, in the agent's directory.
const EVIDENCE_FILE: &str = "evidence.json";

/// The output of a node is rotated at this size,
const LOG_BYTES_MAX: u64 = 16 << 20;

/// into so many files, the current one included.
const LOG_FILES: u32 = 4;

/// A program that is asked for its version has so long.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Characters of a failed command itself that are shown.
const COMMAND_CHARS: usize = 60;

/// Lines of a failed command's output that are shown.
const COMMAND_LINES: usize = 5;

/// The hands of an agent of this machine.
#[derive(Debug)]
pub struct RealHands {
    lab: LabName,
    dir: PathBuf,
    address: Option<IpAddr>,
    allow: Allow,
    proxy: proxy::Proxy,
    /// `None` where nothing is started.
    fetcher: Option<Fetcher>,
    hashes: Mutex<Hashes>,
    /// Held by whoever hashes a program.
    identifying: Mutex<()>,
    /// What surveys remember.
    surveyed: Mutex<(listeners::Known, bypass::Known, fast_heal::Bounded)>,
}

impl RealHands {
    /// The hands of the agent of `dir`, which fetches programs from these coordinators.
    #[must_use]
    pub fn new(settings: &Settings, dir: &Path, known: Known) -> Self {
        let socket = settings.runtime.join(format!("{}-proxy.sock", settings.host));
        let hands = Self::with(settings.lab.clone(), dir, Some(settings.address), socket);
        let fetcher = Fetcher::new(dir.to_owned(), settings.host.clone(), known);
        let fetcher = fetcher.trusting(settings.fetch_ca.clone());
        Self { fetcher: Some(fetcher), allow: settings.allow.clone(), ..hands }
    }

    /// The hands of `down`, which has no agent's command line: what it needs is in the ledger.
    #[must_use]
    pub fn for_down(dir: &Path, accepted: Option<&Accepted>, runtime: Option<&Path>) -> Self {
        let noted = || fs::read_to_string(dir.join("runtime")).ok().map(PathBuf::from);
        let runtime = runtime.map(Path::to_owned).or_else(noted).unwrap_or_default();
        let host = match accepted {
            Some(accepted) => accepted.spec.host.to_string(),
            None => dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        // Only starts name the lab, and nothing is started.
        let lab = accepted.map(|accepted| accepted.spec.lab.clone());
        let lab = lab.or_else(|| LabName::parse("unknown").ok());
        #[allow(clippy::expect_used, reason = "a constant that parses")]
        let lab = lab.expect("`unknown` is a name");
        Self::with(lab, dir, None, runtime.join(format!("{host}-proxy.sock")))
    }

    fn with(lab: LabName, dir: &Path, address: Option<IpAddr>, socket: PathBuf) -> Self {
        Self {
            lab,
            dir: dir.to_owned(),
            address,
            allow: Allow::default(),
            proxy: proxy::Proxy::new(dir.join("proxy"), socket),
            fetcher: None,
            hashes: Mutex::default(),
            identifying: Mutex::default(),
            surveyed: Mutex::default(),
        }
    }

    /// Ends the proxy process, and waits until it is gone.
    ///
    /// # Errors
    /// Why it is not, for people.
    pub fn stop_proxy(&self) -> Result<(), String> {
        self.proxy.stop()
    }

    fn run_dir(&self, node: &NodeName, incarnation: Incarnation) -> PathBuf {
        run_dir(&self.node_dir(node), incarnation)
    }

    /// The living run of this incarnation; `None` where it is over.
    fn living(
        &self,
        node: &NodeName,
        of: Incarnation,
    ) -> Result<Option<(RunRecord, PathBuf, Option<AskedRecord>)>, String> {
        let dir = self.run_dir(node, of);
        match node::inspect(&dir) {
            RunState::Running { record, asked, .. } => Ok(Some((record, dir, asked))),
            RunState::Exited { .. } | RunState::None => Ok(None),
            RunState::Unknown { why } => Err(why),
        }
    }

    /// The newest run that ever ran: a start that was refused left a directory and nothing else.
    fn newest(&self, node: &NodeName) -> io::Result<Option<(Incarnation, PathBuf)>> {
        let mut runs = all_runs(&self.node_dir(node))?;
        while let Some((incarnation, dir)) = runs.pop() {
            let never_ran = !dir.join(RUN_FILE).exists()
                && (dir.join(EXIT_FILE).exists() || node::inspect(&dir) == RunState::None);
            if !never_ran {
                return Ok(Some((incarnation, dir)));
            }
        }
        Ok(None)
    }

    /// Whether a command may be run: its program is found as the kernel will find it.
    fn may_run(&self, argv: &[String], env: &BTreeMap<String, String>) -> Result<(), String> {
        let Some(program) = argv.first() else { return Ok(()) };
        self.allow.check_command(program, env)
    }
}

impl Hands for RealHands {
    fn now(&self) -> BootTime {
        clock::now()
    }

    fn nodes(&self) -> io::Result<Vec<NodeName>> {
        let entries = match fs::read_dir(self.dir.join("nodes")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut nodes = Vec::new();
        for entry in entries {
            // What is no node's name is not ours.
            nodes.extend(entry?.file_name().to_str().and_then(|name| NodeName::parse(name).ok()));
        }
        Ok(nodes)
    }

    fn load_record(&self, node: &NodeName) -> io::Result<NodeRecord> {
        Ok(read_record(&self.node_dir(node), RECORD_FILE)?.unwrap_or_default())
    }

    fn save_record(&self, node: &NodeName, record: &NodeRecord) -> io::Result<()> {
        let dir = self.node_dir(node);
        fs::create_dir_all(&dir)?;
        write_record(&dir, RECORD_FILE, record)
    }

    fn inspect(&self, node: &NodeName) -> Run {
        match self.newest(node) {
            Ok(Some((incarnation, dir))) => run(incarnation, node::inspect(&dir)),
            Ok(None) => Run::None,
            Err(error) => Run::Unknown { why: format!("its runs cannot be read: {error}") },
        }
    }

    fn identity(&self, node: &NodeName, incarnation: Incarnation) -> Identity {
        let dir = self.run_dir(node, incarnation);
        let record: Option<IdentityRecord> = read_record(&dir, IDENTITY_FILE).ok().flatten();
        record.map(|record| record.identity).unwrap_or_default()
    }

    fn told(&self, node: &NodeName, incarnation: Incarnation) -> Option<NodeOrders> {
        let dir = self.run_dir(node, incarnation);
        read_record(&dir, ORDERS_FILE).ok().flatten().map(node_orders)
    }

    fn ended(
        &self,
        node: &NodeName,
        running: &Running,
    ) -> impl Future<Output = ()> + Send + 'static {
        let dir = self.run_dir(node, running.incarnation);
        let record: Option<RunRecord> = read_record(&dir, RUN_FILE).ok().flatten();
        // One that cannot be watched is gone, or is looked at with everything else.
        let shim = record.and_then(|record| node::watch(&record).ok());
        watch::readable(shim)
    }

    fn has_program(&self, pushed: &Pushed) -> bool {
        binaries::fetch::is_here(&self.dir, pushed)
    }

    async fn fetch(&self, pushed: Pushed) -> Result<(), String> {
        match &self.fetcher {
            Some(fetcher) => fetcher.fetch(&pushed).await.map_err(|error| error.to_string()),
            None => Err("nothing is fetched while the host goes down".to_owned()),
        }
    }

    fn fetching(&self) -> Option<Fetching> {
        self.fetcher.as_ref()?.now()
    }

    fn check(&self, node: &NodeName, spec: &NodeSpec) -> Result<(), String> {
        self.check_next(node, spec)
    }

    fn start(&self, order: &StartOrder) -> Result<Binary, String> {
        let StartOrder { node, spec, incarnation, orders, .. } = order;
        let node_dir = self.node_dir(node);
        let (binary, program) = self.checked(order)?;
        prepare::files(&node_dir, spec)?;
        tls::files(&node_dir, spec, prepare::user(spec.launch.user.as_deref())?, true)?;
        let dir = self.run_dir(node, *incarnation);
        prepare::free(&dir)?;
        let launch = &spec.launch;
        let launch = LaunchSpec {
            version: VERSION,
            lab: self.lab.clone(),
            node: node.clone(),
            incarnation: *incarnation,
            program,
            args: launch.args.clone(),
            env: launch.env.clone(),
            cwd: node_dir.clone(),
            user: launch.user.clone().filter(|_| rustix::process::geteuid().is_root()),
            limits: launch.limits.clone(),
            private: spec.private,
            log_bytes_max: LOG_BYTES_MAX,
            log_files: LOG_FILES,
        };
        match node::launch(&dir, &launch, &shim_orders(orders)) {
            Ok(record) => {
                tracing::info!(%node, %incarnation, pid = record.node.pid, "node started");
            }
            Err(error @ LaunchError::Busy { .. }) => return Err(error.to_string()),
            Err(error) => return Err(error.to_string()),
        }
        if let Err(error) = node::prune_runs(&node_dir, RUNS_KEPT) {
            tracing::warn!(%node, %error, "prune old runs");
        }
        Ok(binary)
    }

    fn identify(&self, binary: &Binary, question: &[String]) -> Result<Binary, String> {
        let bins = self.dir.join("bins");
        let mut found = self.hashed(binary, &bins)?;
        if found.version.is_none() {
            found.version.clone_from(&binary.version);
        }
        if found.version.is_none() && !question.is_empty() {
            match version::ask(&found.path, question, VERSION_TIMEOUT) {
                Said::Line(line) => found.version = Some(line),
                // The next node of this program asks again.
                Said::Nothing | Said::Late => {}
            }
        }
        binaries::note_version(&found, &bins);
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner).learn(&found);
        Ok(found)
    }

    fn signal(&self, node: &NodeName, of: Incarnation, asked: &Asked) -> Result<(), String> {
        match self.living(node, of)? {
            Some((record, dir, _)) => {
                gone_is_fine(node::signal_node(&record, &dir, &asked_record(asked)))
            }
            None => Ok(()),
        }
    }

    fn kill_tree(&self, node: &NodeName, of: Incarnation) -> Result<(), String> {
        let Some((record, dir, asked)) = self.living(node, of)? else { return Ok(()) };
        // What it was asked for stays why it ends.
        let asked = asked.unwrap_or(AskedRecord {
            why: AskedWhy::Kill,
            signal: libc::SIGKILL,
            at_boot_ms: clock::now().ms(),
        });
        gone_is_fine(node::kill_tree(&record, &dir, &asked))
    }

    fn set_orders(
        &self,
        node: &NodeName,
        of: Incarnation,
        orders: &NodeOrders,
    ) -> Result<(), String> {
        match self.living(node, of)? {
            Some((record, dir, _)) => {
                gone_is_fine(node::set_orders(&dir, &record, &shim_orders(orders)))
            }
            None => Ok(()),
        }
    }

    fn wipe(&self, node: &NodeName, spec: &NodeSpec) -> Result<(), String> {
        prepare::delete_data(&self.node_dir(node), spec)
    }

    fn retire(&self, node: &NodeName, wipe: bool) -> Result<(), String> {
        prepare::retire(&self.node_dir(node), wipe)?;
        if wipe {
            return Ok(());
        }
        // A later node of this name finds the data, and nothing else of this one.
        let kept = self.load_record(node).map_err(|error| error.to_string())?.retired();
        self.save_record(node, &kept).map_err(|error| error.to_string())
    }

    async fn command(&self, order: CommandOrder) -> Result<String, CommandFailed> {
        let dir = self.node_dir(&order.node);
        let failed = |why: String| CommandFailed { why, output: String::new() };
        let launch = &order.spec.launch;
        if launch.init.contains(&order.argv) || launch.join.as_ref() == Some(&order.argv) {
            self.check_before_first(&order).map_err(failed)?;
        }
        prepare::files(&dir, &order.spec).map_err(failed)?;
        self.allow.check_user(launch.user.as_deref()).map_err(failed)?;
        let mut env = search::environment(&launch.env, &launch.search);
        self.may_run(&order.argv, &env).map_err(failed)?;
        let who = prepare::user(launch.user.as_deref()).map_err(failed)?;
        if let Some(home) = prepare::home(launch.user.as_deref()) {
            env.entry("HOME".to_owned()).or_insert(home);
        }
        let ran =
            command::run(&order.argv, &dir, &env, order.timeout, who).await.map_err(failed)?;
        let output = format!("{}{}", ran.stdout, ran.stderr);
        if ran.status == 0 {
            return Ok(output);
        }
        let lines: Vec<&str> = output.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(COMMAND_LINES)..].join("; ");
        let why = format!("`{}` exited with status {}: {last}", brief(&order.argv), ran.status);
        Err(CommandFailed { why, output })
    }

    async fn call(
        &self,
        node: &NodeName,
        spec: Option<&NodeSpec>,
        probe: &Probe,
    ) -> Result<(), String> {
        let env = spec.map(|spec| search::environment(&spec.launch.env, &spec.launch.search));
        let env = env.unwrap_or_default();
        let mut asker = Asker::at(self.node_dir(node), env, Incarnation::default());
        asker.check(probe).await
    }

    async fn ask_as_peer(&self, question: Question, patience: Duration) -> Answer {
        canary::ask::ask(&question, patience).await
    }

    fn last_lines(&self, node: &NodeName, incarnation: Incarnation, count: usize) -> Vec<String> {
        node::last_lines(&self.run_dir(node, incarnation), count).unwrap_or_default()
    }

    fn find_proxy(&self) -> Option<u32> {
        self.proxy.find()
    }

    fn proxy_ended(&self) -> impl Future<Output = ()> + Send + 'static {
        self.proxy.ended()
    }

    fn apply_proxy(&self, file: &ProxyFile) -> Result<ProxyApplied, String> {
        self.proxy.apply(file)
    }

    fn ask_proxy(&self) -> Result<ProxySeen, String> {
        self.proxy.ask()
    }

    fn load_evidence(&self) -> io::Result<Kept> {
        Ok(read_record(&self.dir, EVIDENCE_FILE)?.unwrap_or_default())
    }

    fn save_evidence(&self, kept: &Kept) -> io::Result<()> {
        records::write_unsettled(&self.dir, EVIDENCE_FILE, kept)
    }

    fn prune_binaries(&self, used: &BTreeSet<String>) {
        match binaries::prune(&self.dir.join("bins"), used) {
            // One that is gone must be pinned again when it is met again.
            Ok(gone) if !gone.is_empty() => {
                self.hashes.lock().unwrap_or_else(PoisonError::into_inner).forget(&gone);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "prune pinned programs"),
        }
    }

    fn survey(&self, order: &SurveyOrder) -> Survey {
        let proxy = self.find_proxy();
        let order = SurveyOrder { address: self.address, ..order.clone() };
        let mut known = self.surveyed.lock().unwrap_or_else(PoisonError::into_inner);
        let (listens, dials, bounded) = &mut *known;
        Survey {
            bypasses: bypass::find(&order, proxy, dials),
            foreign: listeners::find(&order, proxy, listens),
            slow: fast_heal::bound(&order, bounded),
        }
    }

    fn node_dir(&self, node: &NodeName) -> PathBuf {
        node_dir(&self.dir, node)
    }
}

/// A command in an error: enough of it to know which, for it may be a whole script.
fn brief(argv: &[String]) -> String {
    let whole = argv.join(" ");
    match whole.char_indices().nth(COMMAND_CHARS) {
        Some((end, _)) => format!("{}…", &whole[..end]),
        None => whole,
    }
}

/// Whether a run directory is free, without holding it.
fn is_free(dir: &Path) -> io::Result<bool> {
    Ok(try_lock(dir)?.is_some())
}
