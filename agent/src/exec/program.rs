//! A program for an operator: its input and output pass through, and its end is told.

use std::{
    collections::BTreeMap, os::unix::process::ExitStatusExt as _, process::Stdio, time::Duration,
};

use faultbed_common::exec::{Done, PIECE_BYTES_MAX};
use faultbed_proto::v1::{ExecPart, exec_part::Kind};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{ChildStdin, Command},
    sync::mpsc,
    time::timeout,
};
use tonic::Streaming;

use super::{Next, Place, next};
use crate::{
    node::records::read_record,
    probe::command::{Group, PROXY_VARIABLES, die_with_us},
    reconcile::{
        NodeRecord,
        real::{
            RECORD_FILE,
            prepare::{home, user},
        },
    },
    search,
};

/// How long output may go on after the program has ended: something it started may still hold it.
const OUTPUT_AFTER_END: Duration = Duration::from_secs(2);

/// Variables of the agent's own service that no program may answer to.
const SERVICE_VARIABLES: [&str; 4] = ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC"];

/// Runs it to its end, or until the person goes; then its whole process group is killed.
pub(super) async fn run(
    place: &Place,
    command: &[String],
    down: &mut Streaming<ExecPart>,
    up: &mpsc::Sender<ExecPart>,
) -> Done {
    match try_run(place, command, down, up).await {
        Ok(done) => done,
        Err(why) => Done::failed(why),
    }
}

async fn try_run(
    place: &Place,
    command: &[String],
    down: &mut Streaming<ExecPart>,
    up: &mpsc::Sender<ExecPart>,
) -> Result<Done, String> {
    let [program, args @ ..] = command else { return Err("there is nothing to run".to_owned()) };
    place.allow.check_user(place.spec.launch.user.as_deref())?;
    let env = environment(place);
    place.allow.check_command(program, &env)?;
    let who = user(place.spec.launch.user.as_deref())?;
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir(&place.dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    for name in PROXY_VARIABLES.iter().chain(&SERVICE_VARIABLES) {
        command.env_remove(name);
    }
    if let Some(home) = home(place.spec.launch.user.as_deref()) {
        command.env("HOME", home);
    }
    command.envs(&env).envs(about(place));
    if let Some(who) = who {
        command.uid(who.uid).gid(who.gid);
    }
    die_with_us(&mut command);
    let mut child = command.spawn().map_err(|error| format!("run {program}: {error}"))?;
    let group = Group::of(child.id());
    let output = forward(child.stdout.take(), up.clone(), Kind::Data);
    let complaints = forward(child.stderr.take(), up.clone(), Kind::Complaint);
    let input = feed(child.stdin.take(), down);
    tokio::pin!(input);
    let said = async { tokio::join!(output, complaints) };
    tokio::pin!(said);
    let mut is_silent = false;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.map_err(|e| format!("wait for {program}: {e}"))?,
            _ = &mut said, if !is_silent => is_silent = true,
            // Dropping the group kills it.
            () = &mut input => return Err("whoever asked has gone".to_owned()),
        }
    };
    if !is_silent {
        timeout(OUTPUT_AFTER_END, said).await.ok();
    }
    drop(group);
    Ok(Done { code: status.code(), signal: status.signal(), ..Done::default() })
}

/// The node's own environment. Programs are looked for beside the one that the node runs, so that they are
/// of the same release, then where its blueprint looks.
fn environment(place: &Place) -> BTreeMap<String, String> {
    let launch = &place.spec.launch;
    let mut env = search::environment(&launch.env, &launch.search);
    let record = read_record::<NodeRecord>(&place.dir, RECORD_FILE).ok().flatten();
    let ran = record.and_then(|record| record.binary).map(|binary| binary.path);
    // One that has never run says no more than its orders do.
    let program = ran.unwrap_or_else(|| launch.program.clone().into());
    if let Some(own) = program.parent().filter(|own| own.is_absolute()) {
        let rest = env.get("PATH").cloned().unwrap_or_else(|| search::path(&[]));
        env.insert("PATH".to_owned(), format!("{}:{rest}", own.display()));
    }
    env
}

/// What a program is told of its node beside the node's own environment. Not `FAULTBED_NODE`: that
/// tag is of the node's own processes.
fn about(place: &Place) -> BTreeMap<String, String> {
    let spec = &place.spec;
    let mut about: BTreeMap<String, String> = [
        ("LAB", place.lab.to_string()),
        ("HOST", place.host.to_string()),
        ("NAME", place.name.to_string()),
        ("CLUSTER", spec.cluster.to_string()),
        ("ROLE", spec.role.to_string()),
        ("DATA", spec.data.display().to_string()),
        ("ADDRESS", spec.address.to_string()),
        ("PRIVATE", spec.private.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (format!("FAULTBED_{name}"), value))
    .collect();
    for (name, port) in &spec.ports {
        let name = name.as_str().to_ascii_uppercase().replace('-', "_");
        let endpoint = std::net::SocketAddr::new(spec.address, port.port);
        let url = port.url.as_ref().map(|scheme| format!("{scheme}://")).unwrap_or_default();
        about.insert(format!("FAULTBED_PORT_{name}"), port.port.to_string());
        about.insert(format!("FAULTBED_ENDPOINT_{name}"), format!("{url}{endpoint}"));
    }
    about
}

/// Sends what a program prints until it closes it, or nobody reads it any more.
async fn forward(
    from: Option<impl AsyncRead + Unpin>,
    up: mpsc::Sender<ExecPart>,
    kind: fn(Vec<u8>) -> Kind,
) {
    let Some(mut from) = from else { return };
    let mut piece = vec![0; PIECE_BYTES_MAX];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        let part = ExecPart { kind: Some(kind(piece[..count].to_vec())) };
        if up.send(part).await.is_err() {
            return;
        }
    }
}

/// Feeds a program; returns when the person has gone. A program that does not read is no reason to.
async fn feed(mut to: Option<ChildStdin>, down: &mut Streaming<ExecPart>) {
    loop {
        match next(down).await {
            Next::Data(bytes) => {
                let Some(open) = &mut to else { continue };
                if open.write_all(&bytes).await.is_err() {
                    to = None;
                }
            }
            Next::End => to = None,
            Next::Gone => return,
        }
    }
}
