//! `faultbed exec NODE -- CMD` and `faultbed cp`: a program or a file on a node's host.

use std::{
    ffi::OsString,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use clap_complete::ArgValueCandidates;
use faultbed_common::exec::{Done, PIECE_BYTES_MAX, Request, Work};
use faultbed_proto::v1::{ExecPart, exec_part::Kind};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::cli::{
    Session,
    client::Client,
    completion,
    failure::{Exit, Failure, Outcome},
    output,
};

/// Pieces on their way down.
const PIECES_MAX: usize = 8;

/// What a shell adds to the number of a signal that ended a program.
const SIGNAL_BASE: i32 = 128;

/// The exit code after Ctrl-C, as of a shell.
const INTERRUPTED: Exit = Exit(130);

/// Permissions of a file that was copied, less what is not for files.
const MODE_MASK: u32 = 0o777;

/// Arguments of `exec`.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// One node: `kv-1`, `leader:kv`
    #[arg(value_name = "NODE", add = ArgValueCandidates::new(completion::targets))]
    node: String,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
    /// Also on a node that is somebody else's
    #[arg(long)]
    everyone: bool,
}

/// Arguments of `cp`.
#[derive(Debug, clap::Args)]
pub struct CopyArgs {
    /// A file here, or NODE:PATH below the node's directory
    #[arg(value_name = "FROM", value_hint = clap::ValueHint::FilePath)]
    from: String,
    /// A file or directory here, or NODE:PATH
    #[arg(value_name = "TO", value_hint = clap::ValueHint::FilePath)]
    to: String,
    /// Also with a node that is somebody else's
    #[arg(long)]
    everyone: bool,
}

/// Runs `exec`: ends with the program's own exit code.
///
/// # Errors
/// The lab refuses, the program cannot be run, or its host goes away.
pub async fn exec(session: &Session, args: &ExecArgs) -> Outcome {
    let command = args
        .command
        .iter()
        .map(|word| word.clone().into_string())
        .collect::<Result<Vec<String>, OsString>>()
        .map_err(|word| Failure::refused(format!("{} is no text", word.display())))?;
    let request =
        Request { target: args.node.clone(), work: Work::Run { command }, everyone: args.everyone };
    let (client, send, mut answers) = open(session, &request).await?;
    // It keeps the stream open: that we are there is all the host knows of us.
    feed(std::io::stdin(), send.clone());
    let ended = tokio::select! {
        ended = pass_on(&client, &mut answers) => ended?,
        _ = tokio::signal::ctrl_c() => return Ok(INTERRUPTED),
    };
    drop(send);
    exit_of(&ended, &args.node)
}

/// How a program's end becomes ours.
fn exit_of(done: &Done, node: &str) -> Outcome {
    if let Some(why) = &done.error {
        return Err(Failure::no(format!("{node}: {why}")).next(format!("faultbed show {node}")));
    }
    let code = done.code.or(done.signal.map(|signal| SIGNAL_BASE + signal));
    Ok(Exit(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

type Opened = (Client, mpsc::Sender<ExecPart>, Streaming<ExecPart>);

/// Asks the coordinator that is nearest, then the others: an agent is connected to but one of them.
async fn open(session: &Session, request: &Request) -> Result<Opened, Failure> {
    let client = session.client().await?;
    let (send, parts) = begin(request)?;
    let first = match client.exec(parts).await {
        Ok(answers) => return Ok((client, send, answers)),
        Err(status) => status,
    };
    if first.code() == tonic::Code::FailedPrecondition {
        for other in client.others().await {
            let (send, parts) = begin(request)?;
            match other.exec(parts).await {
                Ok(answers) => return Ok((other, send, answers)),
                Err(status) if status.code() == tonic::Code::FailedPrecondition => {}
                Err(status) => return Err(other.failure(&status)),
            }
        }
    }
    Err(client.failure(&first))
}

/// The first message, and where the rest goes.
fn begin(request: &Request) -> Result<(mpsc::Sender<ExecPart>, ReceiverStream<ExecPart>), Failure> {
    let (send, queued) = mpsc::channel(PIECES_MAX);
    let head = serde_json::to_string(request)
        .map_err(|error| Failure::no(format!("write the request: {error}")))?;
    send.try_send(ExecPart { kind: Some(Kind::Head(head)) }).ok();
    Ok((send, ReceiverStream::new(queued)))
}

/// Sends what is read, then its end. A thread, since nothing else can wait for a terminal; it ends
/// with the process.
fn feed(mut from: impl std::io::Read + Send + 'static, to: mpsc::Sender<ExecPart>) {
    std::thread::spawn(move || {
        let mut piece = vec![0; PIECE_BYTES_MAX];
        while let Ok(count @ 1..) = from.read(&mut piece) {
            let part = ExecPart { kind: Some(Kind::Data(piece[..count].to_vec())) };
            if to.blocking_send(part).is_err() {
                return;
            }
        }
        to.blocking_send(ExecPart { kind: Some(Kind::End(true)) }).ok();
    });
}

/// Passes output on until it is over.
async fn pass_on(client: &Client, answers: &mut Streaming<ExecPart>) -> Result<Done, Failure> {
    let describe = |error: &std::io::Error| Failure::io("write what the program says", error);
    loop {
        match next(client, answers).await? {
            Answer::Data(bytes) => {
                let mut out = std::io::stdout().lock();
                out.write_all(&bytes).and_then(|()| out.flush()).map_err(|e| describe(&e))?;
            }
            Answer::Complaint(bytes) => {
                std::io::stderr().lock().write_all(&bytes).map_err(|e| describe(&e))?;
            }
            Answer::Done(done) => return Ok(done),
        }
    }
}

enum Answer {
    Data(Vec<u8>),
    Complaint(Vec<u8>),
    Done(Done),
}

async fn next(client: &Client, answers: &mut Streaming<ExecPart>) -> Result<Answer, Failure> {
    loop {
        let part = answers.message().await.map_err(|status| client.failure(&status))?;
        let Some(part) = part else {
            return Err(Failure::unreachable("the node's host went away before the end")
                .next(client.context.typed("status")));
        };
        return Ok(match part.kind {
            Some(Kind::Data(bytes)) => Answer::Data(bytes),
            Some(Kind::Complaint(bytes)) => Answer::Complaint(bytes),
            Some(Kind::Done(json)) => Answer::Done(
                serde_json::from_str(&json)
                    .map_err(|error| Failure::no(format!("read how it ended: {error}")))?,
            ),
            // What a newer one says.
            Some(Kind::Head(_) | Kind::End(_)) | None => continue,
        });
    }
}

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Side {
    Here(PathBuf),
    There { node: String, path: String },
}

/// `NODE:PATH` is there; what has a slash before its colon is here.
fn side(text: &str) -> Side {
    match text.rsplit_once(':') {
        Some((node, path)) if !node.contains('/') && !node.is_empty() => {
            Side::There { node: node.to_owned(), path: path.to_owned() }
        }
        _ => Side::Here(PathBuf::from(text)),
    }
}

/// Runs `cp`.
///
/// # Errors
/// Both sides are here or there, a file cannot be read or written, or as [`exec`].
pub async fn copy(session: &Session, args: &CopyArgs) -> Outcome {
    match (side(&args.from), side(&args.to)) {
        (Side::There { node, path }, Side::Here(to)) => {
            fetch(session, args, &node, &path, &to).await
        }
        (Side::Here(from), Side::There { node, path }) => {
            bring(session, args, &from, &node, &path).await
        }
        (Side::Here(_), Side::Here(_)) => {
            Err(Failure::refused("neither side is a node's; write NODE:PATH for the one that is")
                .next("faultbed cp kv-1:data/FILE ."))
        }
        (Side::There { .. }, Side::There { .. }) => {
            Err(Failure::refused("one side must be a file here")
                .next("faultbed cp kv-1:data/FILE FILE"))
        }
    }
}

async fn fetch(session: &Session, args: &CopyArgs, node: &str, path: &str, to: &Path) -> Outcome {
    let name = Path::new(path).file_name();
    let to = match name {
        Some(name) if to.is_dir() => to.join(name),
        _ => to.to_owned(),
    };
    let describe = |error: std::io::Error| Failure::io(format!("write {}", to.display()), &error);
    let work = Work::Read { path: path.to_owned() };
    let request = Request { target: node.to_owned(), work, everyone: args.everyone };
    let (client, send, mut answers) = open(session, &request).await?;
    // Whole, or not at all: the file takes its name when it is complete.
    let mut temporary = to.clone().into_os_string();
    temporary.push(format!(".faultbed-{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let mut file = None;
    let mut bytes = 0_u64;
    let done = loop {
        match next(&client, &mut answers).await {
            Ok(Answer::Data(piece)) => {
                let open = match &mut file {
                    Some(open) => open,
                    empty => empty.insert(new_file(&temporary).map_err(describe)?),
                };
                if let Err(error) = open.write_all(&piece) {
                    break Err(describe(error));
                }
                bytes += piece.len() as u64;
            }
            Ok(Answer::Complaint(_)) => {}
            Ok(Answer::Done(done)) => {
                break exit_of(&Done { code: Some(0), ..done.clone() }, node).map(|_| done);
            }
            Err(failure) => break Err(failure),
        }
    };
    drop(send);
    let kept = done.and_then(|done| {
        if file.is_none() {
            new_file(&temporary).map_err(describe)?;
        }
        let mode = std::fs::Permissions::from_mode(done.mode.unwrap_or(0o644) & MODE_MASK);
        std::fs::set_permissions(&temporary, mode).map_err(describe)?;
        std::fs::rename(&temporary, &to).map_err(describe)
    });
    if kept.is_err() {
        let _was_never_made = std::fs::remove_file(&temporary);
    }
    kept?;
    output::say(format!("{bytes} bytes to {}", to.display()));
    Ok(Exit::DONE)
}

fn new_file(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)
}

async fn bring(session: &Session, args: &CopyArgs, from: &Path, node: &str, path: &str) -> Outcome {
    let describe = |error: std::io::Error| {
        Failure::refused(format!("read {}: {error}", from.display()))
            .next(format!("ls -l {}", from.display()))
    };
    let meta = std::fs::metadata(from).map_err(describe)?;
    if !meta.is_file() {
        return Err(Failure::refused(format!("{} is no plain file", from.display()))
            .next(format!("faultbed cp FILE {node}:data/")));
    }
    let file = std::fs::File::open(from).map_err(describe)?;
    let mut path = path.to_owned();
    if path.is_empty() || path.ends_with('/') {
        path.push_str(&from.file_name().unwrap_or_default().to_string_lossy());
    }
    let work = Work::Write { path: path.clone(), mode: meta.permissions().mode() & MODE_MASK };
    let request = Request { target: node.to_owned(), work, everyone: args.everyone };
    let (client, send, mut answers) = open(session, &request).await?;
    feed(file, send.clone());
    let ended = tokio::select! {
        ended = pass_on(&client, &mut answers) => ended?,
        _ = tokio::signal::ctrl_c() => return Ok(INTERRUPTED),
    };
    drop(send);
    exit_of(&Done { code: Some(0), ..ended }, node)?;
    output::say(format!("{} bytes to {node}:{path}", meta.len()));
    Ok(Exit::DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_with_a_node_before_its_colon_is_there() {
        let there = |node: &str, path: &str| Side::There { node: node.into(), path: path.into() };
        assert_eq!(side("kv-1:data/x"), there("kv-1", "data/x"));
        assert_eq!(side("leader:kv:data/x"), there("leader:kv", "data/x"));
        assert_eq!(side("./a:b"), Side::Here("./a:b".into()));
        assert_eq!(side("/tmp/a:b/c"), Side::Here("/tmp/a:b/c".into()));
        assert_eq!(side("file"), Side::Here("file".into()));
    }

    #[test]
    fn the_exit_code_passes_through() {
        let exit = |done: Done| exit_of(&done, "kv-1").unwrap();
        assert_eq!(exit(Done { code: Some(7), ..Done::default() }), Exit(7));
        assert_eq!(exit(Done { signal: Some(9), ..Done::default() }), Exit(137));
        let failure = exit_of(&Done::failed("run x: No such file"), "kv-1").unwrap_err();
        assert!(failure.to_string().contains("kv-1: run x: No such file"), "{failure}");
    }
}
