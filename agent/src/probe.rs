//! Asks a node whether it serves and what its role is: facts, never decisions.
//!
//! Every question goes to a private address, so no fault changes the answer. While a node starts it
//! is asked every 20 ms, afterwards once a second; only news are told.

pub mod command;
mod grpc;
mod http;
mod log;
#[cfg(test)]
mod tests;
mod tls;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use faultbed_common::{
    duration::Span,
    expr::{self, Answer},
    generation::Incarnation,
    name::NodeName,
    probe::{Ask, Probe, RoleProbe},
};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use crate::{reconcile::report::Role, search};

/// How long most answers of a node that starts are waited for.
const STARTING_ANSWER: Duration = Duration::from_millis(100);

/// A node that starts is asked this often,
const STARTING_FAST: Duration = Duration::from_millis(20);

/// for so long,
const STARTING_FAST_FOR: Duration = Duration::from_secs(10);

/// then this often.
const STARTING_SLOW: Duration = Duration::from_millis(250);

/// A node that served is asked this often.
const SERVING: Duration = Duration::from_secs(1);

/// What a node says of its role when it first serves is told with that, if it comes so soon.
const ROLE_WITH_READY_MAX: Duration = Duration::from_millis(500);

/// So many failures in a row make a node unready: one may be an accident.
const UNREADY_AFTER: u32 = 2;

/// What is asked of one incarnation.
#[derive(Debug, Clone, PartialEq)]
pub struct Prober {
    /// Of which node.
    pub node: NodeName,
    /// Of which incarnation.
    pub incarnation: Incarnation,
    /// Whether it serves.
    pub ready: Option<Probe>,
    /// What its role is.
    pub role: Option<RoleProbe>,
    /// The node's directory: its runs are there, and commands run in it.
    pub dir: PathBuf,
    /// The environment of commands.
    pub env: BTreeMap<String, String>,
    /// Where commands are looked for after PATH.
    pub search: Vec<String>,
    /// Whether it served before, when another agent asked.
    pub was_ready: bool,
}

/// News of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// Which.
    pub node: NodeName,
    /// Which incarnation.
    pub incarnation: Incarnation,
    /// What.
    pub found: Found,
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It serves; and its role, where it was asked for in the same breath.
    Ready(Option<Role>),
    /// It does not.
    NotReady {
        /// Why, for people.
        why: String,
        /// Whether it did before, in this incarnation.
        was_ready: bool,
    },
    /// Its database says this of its role.
    Role(Role),
}

impl Prober {
    /// Whether both ask the same of the same.
    #[must_use]
    pub fn asks_as(&self, other: &Self) -> bool {
        let Self { node, incarnation, ready, role, dir, env, search, was_ready: _ } = self;
        (node, incarnation, ready) == (&other.node, &other.incarnation, &other.ready)
            && (role, dir, env, search) == (&other.role, &other.dir, &other.env, &other.search)
    }

    /// Asks, and tells what is new, until it is aborted or nobody listens.
    pub async fn run(self, facts: mpsc::Sender<Fact>) {
        let (node, incarnation) = (self.node.clone(), self.incarnation);
        let fact = |found| Fact { node: node.clone(), incarnation, found };
        let mut ready_asker = Asker::new(&self);
        let mut role_asker = Asker::new(&self);
        let began = Instant::now();
        let mut told = None;
        let mut role_told = None;
        let mut role_due = began;
        let mut failures = 0;
        let mut was_ready = self.was_ready;
        loop {
            let asked = Instant::now();
            let answer = match &self.ready {
                Some(probe) => ready_asker.check(&impatient(probe, was_ready, failures)).await,
                None => Ok(()),
            };
            let found = match answer {
                Ok(()) => {
                    failures = 0;
                    was_ready = true;
                    Some(Found::Ready(None))
                }
                Err(why) => {
                    failures += 1;
                    let counts = !was_ready || failures >= UNREADY_AFTER;
                    counts.then_some(Found::NotReady { why, was_ready })
                }
            };
            if let Some(found) = found
                && told.as_ref() != Some(&found)
            {
                told = Some(found.clone());
                let mut news = found;
                // Who hears that it serves wants to know next who leads.
                if let (Found::Ready(with), Some(probe)) = (&mut news, &self.role) {
                    let asking = timeout(ROLE_WITH_READY_MAX, role_asker.role(probe));
                    *with = asking.await.ok();
                    if with.is_some() {
                        role_told.clone_from(with);
                        role_due = asked + SERVING;
                    } else {
                        // What is half asked must not be answered to the next question.
                        role_asker = Asker::new(&self);
                    }
                }
                if facts.send(fact(news)).await.is_err() {
                    return;
                }
            }
            if let Some(probe) = &self.role
                && was_ready
                && role_due <= Instant::now()
            {
                role_due = asked + SERVING;
                let role = role_asker.role(probe).await;
                if role_told.as_ref() != Some(&role) {
                    role_told = Some(role.clone());
                    if facts.send(fact(Found::Role(role))).await.is_err() {
                        return;
                    }
                }
            }
            sleep_until(asked + pause(was_ready, began.elapsed())).await;
        }
    }
}

/// A server that starts may never answer what it was asked too early: etcd 3.4 loses a health
/// question that came before there was a leader. So most questions to a node that has not served
/// are given up early and asked anew; each fourth has all its time, for servers that are slow.
fn impatient(probe: &Probe, was_ready: bool, failures: u32) -> Probe {
    let is_short = !was_ready && failures % 4 != 3 && !matches!(probe.ask, Ask::Command { .. });
    let timeout = if is_short { probe.timeout.0.min(STARTING_ANSWER) } else { probe.timeout.0 };
    Probe { timeout: Span(timeout), ..probe.clone() }
}

fn pause(was_ready: bool, age: Duration) -> Duration {
    match (was_ready, age < STARTING_FAST_FOR) {
        (true, _) => SERVING,
        (false, true) => STARTING_FAST,
        (false, false) => STARTING_SLOW,
    }
}

/// Asks one node, and keeps what is worth keeping between questions.
#[derive(Debug)]
pub struct Asker {
    dir: PathBuf,
    env: BTreeMap<String, String>,
    incarnation: Incarnation,
    http: http::Client,
    grpc: grpc::Client,
    log: log::Reader,
}

impl Asker {
    fn new(prober: &Prober) -> Self {
        let env = search::environment(&prober.env, &prober.search);
        Self::at(prober.dir.clone(), env, prober.incarnation)
    }

    /// Asks the node whose directory this is.
    #[must_use]
    pub fn at(dir: PathBuf, env: BTreeMap<String, String>, incarnation: Incarnation) -> Self {
        Self {
            dir,
            env,
            incarnation,
            http: http::Client::default(),
            grpc: grpc::Client::default(),
            log: log::Reader::default(),
        }
    }

    /// Whether the answer is as expected.
    ///
    /// # Errors
    /// Why it is not, for people.
    pub async fn check(&mut self, probe: &Probe) -> Result<(), String> {
        let (answer, is_success) = self.answer(probe).await?;
        match &probe.expect {
            Some(expected) => match expr::is_true(expected, &answer) {
                Ok(true) => Ok(()),
                // An answer that is an error by itself says more than what is missing in it.
                Ok(false) | Err(_) if !is_success => Err(answered(probe, &answer)),
                Ok(false) => Err(unlike(probe, expected, &answer)),
                Err(why) => Err(format!("{}: {why}", name(probe))),
            },
            None if is_success => Ok(()),
            None => Err(answered(probe, &answer)),
        }
    }

    async fn role(&mut self, probe: &RoleProbe) -> Role {
        match self.told_role(probe).await {
            Ok(role) => role,
            Err(why) => {
                Role { why: Some(format!("its role is not known: {why}")), ..Role::default() }
            }
        }
    }

    /// The role that an answer tells; why it tells none.
    async fn told_role(&mut self, probe: &RoleProbe) -> Result<Role, String> {
        let (answer, is_success) = self.answer(&probe.probe).await?;
        let what = &probe.probe;
        let unclear = |why: String| match is_success {
            true => format!("{}: {why}", name(what)),
            // An answer that is an error by itself says more than what is missing in it.
            false => answered(what, &answer),
        };
        if let Some(expected) = &what.expect
            && !expr::is_true(expected, &answer).map_err(unclear)?
        {
            return Err(unlike(what, expected, &answer));
        }
        let asked = probe.leader.as_ref().map(|expression| expr::is_true(expression, &answer));
        let leader = asked.transpose();
        let word = |leads: bool| if leads { "leader" } else { "follower" }.to_owned();
        let state = match &probe.state {
            Some(expression) => expr::text(expression, &answer).map(Some),
            None => leader.clone().map(|leads| leads.map(word)),
        };
        let (leader, state) = match (leader, state) {
            (Err(_) | Ok(None), Err(why)) => return Err(unclear(why)),
            // What half an answer tells is told all the same.
            (leader, state) => (leader.ok().flatten(), state.ok().flatten()),
        };
        let number = |expression: &Option<String>| {
            expression.as_ref().and_then(|expression| expr::number(expression, &answer).ok())
        };
        let (term, leads) = (number(&probe.term), number(&probe.leads));
        Ok(Role { state, leader, term, leads, why: None })
    }

    /// The answer, and whether it is a success by itself.
    async fn answer(&mut self, probe: &Probe) -> Result<(Answer, bool), String> {
        let asking = async {
            match &probe.ask {
                Ask::Http { method, url, body } => {
                    let answer = self.http.ask(&self.dir, (method, url), body).await?;
                    let is_success = (200..300).contains(&answer.status);
                    Ok((answer, is_success))
                }
                Ask::Grpc { address, service } => {
                    let answer = self.grpc.ask(address, service).await?;
                    let is_success = answer.text == "SERVING";
                    Ok((answer, is_success))
                }
                Ask::Tcp { address } => {
                    let address: SocketAddr =
                        address.parse().map_err(|_| format!("{address} is no address"))?;
                    TcpStream::connect(address).await.map_err(|error| error.to_string())?;
                    Ok((Answer::default(), true))
                }
                Ask::Command { argv } => {
                    let ran =
                        command::run(argv, &self.dir, &self.env, probe.timeout.0, None).await?;
                    let answer = Answer { status: ran.status, text: ran.stdout };
                    Ok((answer, ran.status == 0))
                }
                Ask::Log { pattern } => {
                    let run = crate::reconcile::real::run_dir(&self.dir, self.incarnation);
                    let found = self.log.find(&run.join("output.log"), pattern).await?;
                    Ok(found.map_or_else(
                        || (Answer { status: 1, text: String::new() }, false),
                        |text| (Answer { status: 0, text }, true),
                    ))
                }
            }
        };
        match timeout(probe.timeout.0, asking).await {
            Ok(answer) => answer.map_err(|why: String| format!("{}: {why}", where_asked(probe))),
            Err(_) => {
                // What is half asked must not be answered to the next question.
                self.http = http::Client::default();
                self.grpc = grpc::Client::default();
                Err(format!("{}: no answer in {}", where_asked(probe), probe.timeout))
            }
        }
    }
}

/// What is asked, in a few words.
fn name(probe: &Probe) -> String {
    match &probe.ask {
        Ask::Http { method, url, .. } => {
            let (_, path) = split(url);
            format!("{method} /{path}")
        }
        Ask::Grpc { service, .. } if service.is_empty() => "its gRPC health check".to_owned(),
        Ask::Grpc { service, .. } => format!("its gRPC health check of {service}"),
        Ask::Tcp { .. } => "a connection".to_owned(),
        Ask::Command { argv } => format!("`{}`", command_words(argv)),
        Ask::Log { pattern } => format!("a line of its output like `{pattern}`"),
    }
}

/// The same with the port, where nobody answered: then it matters where.
fn where_asked(probe: &Probe) -> String {
    let (Ask::Http { url: at, .. } | Ask::Grpc { address: at, .. } | Ask::Tcp { address: at }) =
        &probe.ask
    else {
        return name(probe);
    };
    let (host, _) = split(at);
    match host.rsplit_once(':') {
        Some((_, port)) => format!("{} on port {port}", name(probe)),
        None => name(probe),
    }
}

/// `127.128.0.1:2379` and `health` of `https://127.128.0.1:2379/health`.
fn split(url: &str) -> (&str, &str) {
    let url = url.strip_prefix("https://").unwrap_or(url);
    url.split_once('/').unwrap_or((url, ""))
}

/// A command without the directories of its files, short enough for a table.
fn command_words(argv: &[String]) -> String {
    const CHARS_MAX: usize = 60;
    let word = |word: &String| match word.rsplit_once('/') {
        Some((before, last)) if before.starts_with('/') || before.is_empty() => last.to_owned(),
        _ => word.replace('\n', " "),
    };
    let words: Vec<String> = argv.iter().map(word).collect();
    let words = words.join(" ");
    match words.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words,
    }
}

/// `GET /health answered 503: no leader`, `` `pg_isready -q` exited with 2 ``.
fn answered(probe: &Probe, answer: &Answer) -> String {
    let name = name(probe);
    let said = short(answer);
    let colon = if said.is_empty() { "" } else { ": " };
    match &probe.ask {
        Ask::Http { .. } => format!("{name} answered {}{colon}{said}", answer.status),
        Ask::Command { .. } => format!("{name} exited with {}{colon}{said}", answer.status),
        Ask::Grpc { .. } => format!("{name} answered {said}"),
        Ask::Tcp { .. } | Ask::Log { .. } => format!("{name} is awaited"),
    }
}

/// `GET /health answered 200: expected health "true", got "false"`.
fn unlike(probe: &Probe, expected: &str, answer: &Answer) -> String {
    let words = expr::words::expected(expected);
    let Some(got) = expr::words::got(expected, answer) else {
        return format!("{}; expected {words}", answered(probe, answer));
    };
    let name = name(probe);
    match &probe.ask {
        Ask::Http { .. } => {
            format!("{name} answered {}: expected {words}, got {got}", answer.status)
        }
        _ => format!("{name}: expected {words}, got {got}"),
    }
}

/// An answer short enough for a table.
fn short(answer: &Answer) -> String {
    const CHARS_MAX: usize = 200;
    let line = answer.text.trim().lines().last().unwrap_or_default();
    line.chars().take(CHARS_MAX).collect()
}
