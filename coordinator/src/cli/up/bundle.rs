//! Collects what is needed to understand a failed run into one directory, before the lab goes.

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use faultbed_common::event::EventQuery;
use futures::StreamExt;
use serde::Serialize;

use crate::cli::{client::Client, context::Context, events, output, status};

/// Most bytes of one log: its end.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Most files of one bundle.
const FILES_MAX: usize = 5000;

/// How long a lab may take to say what it knows.
const ASK_MAX: Duration = Duration::from_secs(5);

/// Files of a run that tell its story.
const NAMES: [&str; 7] = [
    "output.log",
    "output.log.1",
    "exit.json",
    "launch.json",
    "agent.log",
    "coordinator.log",
    "proxy.log",
];

/// Writes a bundle and says where. A bundle that cannot be written is no reason to fail.
pub async fn write(context: &Context, said: &str) {
    let at = jiff::Zoned::now().strftime("%Y%m%d-%H%M%S").to_string();
    let dir = PathBuf::from(format!("faultbed-bundle-{}-{at}", context.name));
    if let Err(e) = fs::create_dir_all(&dir) {
        output::say(format!("write a bundle to {}: {e}", dir.display()));
        return;
    }
    let said = anstream::adapter::strip_str(said).to_string();
    let _ = fs::write(dir.join("failure.txt"), said + "\n");
    if tokio::time::timeout(ASK_MAX, ask(context, &dir)).await.is_err() {
        let _ = fs::write(dir.join("incomplete.txt"), "the lab did not answer in time\n");
    }
    let mut left = FILES_MAX;
    copy_tree(&context.dir, &context.dir, &dir.join("files"), &mut left);
    let shown = fs::canonicalize(&dir).unwrap_or(dir);
    output::say(format!("logs, status and events are in {}", shown.display()));
}

/// What the lab itself knows.
async fn ask(context: &Context, dir: &Path) {
    let Ok(client) = Client::connect(context.clone()).await else { return };
    if let Ok(now) = client.status().await {
        let text = anstream::adapter::strip_str(&status::overview(&now)).to_string();
        let _ = fs::write(dir.join("status.txt"), text + "\n");
        write_json(&dir.join("status.json"), &now);
    }
    if let Ok(lab) = client.lab().await {
        write_json(&dir.join("lab.json"), &lab);
    }
    if let Ok(history) = client.history().await {
        write_json(&dir.join("history.json"), &history);
    }
    if let Ok(mut all) = client.events(&EventQuery::default()).await {
        let mut lines = String::new();
        while let Some(Ok(event)) = all.next().await {
            lines.push_str(&anstream::adapter::strip_str(&events::line(&event)).to_string());
            lines.push('\n');
        }
        let _ = fs::write(dir.join("events.txt"), lines);
    }
}

fn write_json(path: &Path, value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string_pretty(value) {
        let _ = fs::write(path, text);
    }
}

/// Copies the ends of all logs and records; data stays.
fn copy_tree(base: &Path, from: &Path, to: &Path, left: &mut usize) {
    let Ok(entries) = fs::read_dir(from) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        if kind.is_dir() {
            if !matches!(name.as_str(), "data" | "bins") {
                copy_tree(base, &path, to, left);
            }
            continue;
        }
        if !kind.is_file() || !NAMES.contains(&name.as_str()) || *left == 0 {
            continue;
        }
        *left -= 1;
        let Ok(below) = path.strip_prefix(base) else { continue };
        let target = to.join(below);
        if let Some(parent) = target.parent() {
            let _ = fs::create_dir_all(parent);
        }
        let _ = copy_end(&path, &target);
    }
}

fn copy_end(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut source = fs::File::open(from)?;
    let length = source.metadata()?.len();
    source.seek(SeekFrom::Start(length.saturating_sub(FILE_BYTES_MAX)))?;
    let mut target = fs::File::create(to)?;
    std::io::copy(&mut source.take(FILE_BYTES_MAX), &mut target).map(drop)
}
