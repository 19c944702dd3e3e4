//! Brings a prepared lab up: starts what is missing, waits for its hosts, applies, waits for ready.

use std::time::{Duration, Instant};

use faultbed_common::{
    blueprint::Role,
    duration::Span,
    edit::{Edit, EditRequest},
    generation::Incarnation,
    host_spec::Wanted,
    name::{ClusterName, NodeName},
    report::NodeState,
    status::{NodeStatus, Status},
};

use super::{
    Plan,
    daemons::{self, Daemon, Programs},
    prepare::{Lab, lock},
};
use crate::cli::{
    change,
    client::Client,
    context::{self, Context, Places},
    diff,
    down::inventory::{self, Kind},
    endpoints,
    failure::{Exit, Failure},
    output, status,
    table::{Tone, tone},
    wait::{self, Goal, follow},
};

/// How long the coordinator may take to open its socket.
const SOCKET_MAX: Duration = Duration::from_secs(20);

/// How long agents may take to connect.
const HOSTS_MAX: Duration = Duration::from_secs(20);

/// How long it may take until it is known who leads.
const LEADERS_MAX: Duration = Duration::from_secs(4);

/// How long it may take to write down that a cluster has been ready, once its nodes are.
const NOTED_MAX: Duration = Duration::from_secs(20);

/// How long the last change may take to reach every host before it is shown as pending.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// The socket is tried this often.
const TRY_EVERY: Duration = Duration::from_millis(10);

/// Brings a lab up.
///
/// # Errors
/// A daemon does not come up, the change is refused, or a node does not become ready in time.
pub async fn bring_up(
    lab: &Lab,
    plan: &Plan,
    programs: &Programs,
) -> Result<(Client, Status), Failure> {
    let context = &lab.context;
    let begun = Instant::now();
    let client = {
        let _lock = lock(&Places::from_env()?, &context.name)?;
        context::make_runtime(&context.runtime)?;
        come_up(context, programs).await?
    };
    output::say(format!(
        "lab {}: {} up after {:.1} s, from 127.77.{}.1 on",
        context.name,
        if context.hosts == 1 { "1 host".to_owned() } else { format!("{} hosts", context.hosts) },
        begun.elapsed().as_secs_f32(),
        context.octet
    ));
    if let Some(lasts) = plan.lifetime() {
        lend(&client, lasts).await?;
    }
    let now = match &plan.change {
        Some(change) => apply(&client, change, plan, lab.was_running).await?,
        None => {
            let before = client.status().await?;
            wait(&client, idle(&before, |_| false), plan.args.wait.0).await?
        }
    };
    let now = with_leaders(&client, now).await;
    Ok((client, now))
}

/// Starts what is missing and waits until every host is up. A coordinator that was being killed
/// just now may still have answered: then one is begun. One that this command began and that ends
/// meanwhile is the reason.
async fn come_up(context: &Context, programs: &Programs) -> Result<Client, Failure> {
    let begun = Instant::now();
    let mut started = Started::default();
    loop {
        start_missing(context, programs, &mut started)?;
        let up = tokio::select! {
            biased;
            ended = end_of(&mut started.coordinators) => return Err(ended),
            up = hosts_up(context) => up,
        };
        let failure = match up {
            Ok(client) => {
                reap_later(started);
                return Ok(client);
            }
            Err(failure) => failure,
        };
        if let Some(ended) = started.agents.iter_mut().find_map(Daemon::ended) {
            return Err(ended);
        }
        if failure.exit != Exit::UNREACHABLE {
            return Err(failure);
        }
        if begun.elapsed() > SOCKET_MAX {
            let log = context.coordinator_dir().join("coordinator.log");
            return Err(failure.next(format!("less {}", log.display())));
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
}

/// Connects, and waits until every host of the lab is up.
async fn hosts_up(context: &Context) -> Result<Client, Failure> {
    let client = Client::connect(context.clone()).await?;
    let hosts = usize::try_from(context.hosts).unwrap_or(usize::MAX);
    // Agents of removed hosts are told so and end again.
    let removed = client.lab().await.map_or(0, |lab| lab.removed_hosts.len());
    let goal = Goal::Hosts(hosts.saturating_sub(removed));
    follow::until(&client, vec![goal], HOSTS_MAX).await?;
    Ok(client)
}

/// Waits for the first of these daemons that ends: why it has.
async fn end_of(daemons: &mut [Daemon]) -> Failure {
    loop {
        if let Some(ended) = daemons.iter_mut().find_map(Daemon::ended) {
            return ended;
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
}

/// Waits a moment until it is known who leads, so that people see it: probes ask once a second.
pub async fn with_leaders(client: &Client, now: Status) -> Status {
    let Ok(lab) = client.lab().await else { return now };
    let goals: Vec<Goal> = lab
        .clusters
        .iter()
        .filter(|(name, _)| {
            let mut nodes = now.nodes.iter().filter(|node| node.cluster == **name);
            nodes.any(|node| node.observed == NodeState::Ready)
        })
        .filter(|(_, cluster)| cluster.blueprint.roles.values().any(tells_leader))
        .map(|(name, _)| Goal::Leader(name.clone(), None))
        .collect();
    let now = match follow::until(client, goals, LEADERS_MAX).await {
        Ok(waited) => waited.status,
        Err(_) => now,
    };
    let now = match follow::until(client, noted(&now), NOTED_MAX).await {
        Ok(waited) => waited.status,
        Err(_) => now,
    };
    // The generation that says who has been ready is on its way to the hosts then.
    match follow::until(client, vec![Goal::Converged], SETTLE_MAX).await {
        Ok(waited) => waited.status,
        Err(_) => now,
    }
}

/// Clusters of which all that runs is ready: that this is so is about to be written down.
fn noted(now: &Status) -> Vec<Goal> {
    let is_well = |name: &ClusterName| {
        let nodes = now.nodes.iter().filter(|node| node.cluster == *name);
        let mut running = nodes.filter(|node| node.wanted == Wanted::Running).peekable();
        running.peek().is_some() && running.all(|node| node.observed == NodeState::Ready)
    };
    let clusters = now.clusters.iter().filter(|cluster| is_well(&cluster.name));
    clusters.map(|cluster| Goal::ClusterReady(cluster.name.clone())).collect()
}

fn tells_leader(role: &Role) -> bool {
    role.role_state.as_ref().is_some_and(|rule| rule.leader.is_some())
}

/// Daemons that this command began.
#[derive(Default)]
struct Started {
    coordinators: Vec<Daemon>,
    agents: Vec<Daemon>,
}

/// Starts the daemons that do not run yet, all at once: agents try until the coordinator is there.
fn start_missing(
    context: &Context,
    programs: &Programs,
    started: &mut Started,
) -> Result<(), Failure> {
    let running = inventory::processes(&context.dir);
    let runs = |kind: Kind, name: &str| {
        running.iter().any(|process| process.kind == kind && process.name == name)
    };
    if !runs(Kind::Coordinator, "") {
        // A socket without its coordinator would make agents wait for nobody.
        let _ = std::fs::remove_file(context.socket());
        started.coordinators.push(daemons::coordinator(programs, context)?);
    }
    for number in 1..=context.hosts {
        if !runs(Kind::Agent, &format!("h{number}")) {
            started.agents.push(daemons::agent(programs, context, number)?);
        }
    }
    Ok(())
}

/// Waits for daemons to end while this command lives, so that they leave no zombies behind.
fn reap_later(started: Started) {
    for mut daemon in started.coordinators.into_iter().chain(started.agents) {
        tokio::task::spawn_blocking(move || daemon.child.wait());
    }
}

/// Lets the agents know how long the lab may run: they stop its nodes then, also where nobody who
/// was to take it down lives any more.
async fn lend(client: &Client, lasts: Duration) -> Result<(), Failure> {
    let request = EditRequest {
        edit: Edit::LabLease { lasts: Some(Span(lasts)) },
        plan: false,
        if_generation: None,
        blueprints: Default::default(),
        everyone: false,
        force: false,
        files: Default::default(),
    };
    client.edit(&request).await.map(drop)
}

/// Applies the first change and waits until it is true. What it does to a lab that runs is said as
/// `apply` says it: nodes may restart.
async fn apply(
    client: &Client,
    change: &EditRequest,
    plan: &Plan,
    was_running: bool,
) -> Result<Status, Failure> {
    let before = client.status().await?;
    let reply = client.edit(change).await.map_err(|refused| match &plan.file {
        Some(file) => file.source.locate(refused),
        None => refused,
    })?;
    if was_running && reply.changed {
        output::say(diff::plan(&reply));
    } else {
        for note in &reply.notes {
            output::say(tone(format!("note: {note}"), Tone::Faint));
        }
    }
    let mut goals = change::goals(&change.edit, &reply, Some(&before));
    goals.extend(idle(&before, |node| reply.nodes.contains_key(node)));
    wait(client, goals, plan.args.wait.0).await
}

/// A lab that comes up again starts what it has: every node that should run and does not change.
/// One that crashed stays a finding, and the table shows it.
fn idle(before: &Status, changes: impl Fn(&NodeName) -> bool) -> Vec<Goal> {
    let goal = |node: &NodeStatus| {
        let over = Incarnation(node.incarnation.0.saturating_sub(1));
        Goal::Ready(node.name.clone(), over)
    };
    let nodes = before
        .nodes
        .iter()
        .filter(|node| node.wanted == Wanted::Running && node.observed != NodeState::Crashed);
    nodes.filter(|node| !changes(&node.name)).map(goal).collect()
}

async fn wait(client: &Client, goals: Vec<Goal>, limit: Duration) -> Result<Status, Failure> {
    let waited = follow::until(client, goals, limit).await?;
    for word in &waited.said {
        output::say(tone(format!("note: {word}"), Tone::Warn));
    }
    Ok(waited.status)
}

/// What a person sees when the lab is ready: the table, how to connect, what to try with cluster `of`, or
/// with the first.
#[must_use]
pub fn welcome(context: &Context, now: &Status, of: Option<&ClusterName>) -> String {
    let mut parts = vec![status::overview(now)];
    let connect = endpoints::connect_lines(now);
    if !connect.is_empty() {
        parts.push(block("connect", &connect));
    }
    parts.push(block("try next", &suggestions(context, now, of)));
    parts.join("\n\n")
}

fn block(title: &str, lines: &[String]) -> String {
    let lines: Vec<String> = lines.iter().map(|line| format!("  {line}")).collect();
    format!("{}\n{}", tone(title, Tone::Strong), lines.join("\n"))
}

/// Three things to type next.
fn suggestions(context: &Context, now: &Status, of: Option<&ClusterName>) -> Vec<String> {
    let mut clusters = now.clusters.iter();
    let used = clusters.find(|cluster| of == Some(&cluster.name));
    let Some(cluster) = used.or(now.clusters.first()) else {
        return vec![
            context.typed("start cluster --etcd.count 3"),
            context.typed("blueprint list"),
            context.typed("status -w"),
        ];
    };
    let led = wait::leaders(now, &cluster.name).next().is_some();
    let target = if led {
        format!("leader:{}", cluster.name)
    } else {
        first_node(now, cluster.name.as_str())
    };
    vec![
        context.typed("status -w"),
        context.typed(&format!("isolate {target} --for 30s")),
        context.typed(&format!("restart {}", first_node(now, cluster.name.as_str()))),
    ]
}

fn first_node(now: &Status, cluster: &str) -> String {
    now.nodes
        .iter()
        .find(|node| node.cluster.as_str() == cluster)
        .map_or_else(|| cluster.to_owned(), |node| node.name.to_string())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::cli::testing;

    fn context() -> Context {
        Context {
            version: 1,
            name: "lab".parse().unwrap(),
            octet: 1,
            dir: "/d".into(),
            runtime: "/r".into(),
            store: "embedded".into(),
            hosts: 3,
            token: String::new(),
            ephemeral: false,
            terms: 0,
            etcd: Default::default(),
            remote: Vec::new(),
        }
    }

    #[test]
    fn a_ready_lab_says_how_to_connect_and_what_to_try() {
        let text = welcome(&context(), &testing::three_nodes(), None);
        expect![[r#"
            lab lab · generation 4 · 3/3 hosts up · converged · kv ready

            NODE  ROLE  HOST  STATE  LEADER  ADDRESS                 RUN  PID   BINARY           AGE
            kv-1  etcd  h1    ready  *       http://127.77.1.1:2379  1    4001  9f86d081 3.4.23  12s
            kv-2  etcd  h2    ready          http://127.77.1.2:2379  1    4002  9f86d081 3.4.23  12s
            kv-3  etcd  h3    ready          http://127.77.1.3:2379  1    4003  9f86d081 3.4.23  12s

            connect
              etcdctl --endpoints=http://127.77.1.1:2379,http://127.77.1.2:2379,http://127.77.1.3:2379 put hello world

            try next
              faultbed status -w
              faultbed isolate leader:kv --for 30s
              faultbed restart kv-1"#]].assert_eq(&anstream::adapter::strip_str(&text).to_string());
    }

    #[test]
    fn what_to_try_is_of_the_cluster_that_was_just_started() {
        let mut status = testing::three_nodes();
        let mut other = status.clusters[0].clone();
        other.name = "vk".parse().unwrap();
        status.clusters.push(other);
        let mut node = status.nodes[0].clone();
        (node.name, node.cluster) = ("vk-1".parse().unwrap(), "vk".parse().unwrap());
        status.nodes.push(node);
        let of: ClusterName = "vk".parse().unwrap();
        let tried = suggestions(&context(), &status, Some(&of));
        assert_eq!(tried[1], "faultbed isolate leader:vk --for 30s");
        assert_eq!(tried[2], "faultbed restart vk-1");
    }
}
