//! Log lines of nodes on their way to a coordinator: the end of what is there, then what is added.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use faultbed_common::{
    generation::Incarnation,
    logs::{LogBatch, LogLine, LogWanted},
    name::NodeName,
};
use tokio::sync::mpsc;

/// Files are looked at this often while somebody follows them.
const FOLLOW: Duration = Duration::from_millis(200);

/// Lines of one batch.
const BATCH_LINES_MAX: usize = 500;

/// Bytes of one batch, but for its last line.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Longer lines are cut: nobody reads them, and a batch must fit a message.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// How many older files a log may be rotated into.
const ROTATED_MAX: u32 = 9;

/// The source of a node's standard output and error.
const OUTPUT: &str = "output";

/// Where the logs of nodes are.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The directory of each node.
    pub dirs: BTreeMap<NodeName, PathBuf>,
    /// Log files of its own.
    pub files: BTreeMap<NodeName, Vec<PathBuf>>,
}

/// Sends what is wanted, and an end. A receiver that is gone ends it as well.
pub async fn send(id: u64, wanted: LogWanted, places: Places, to: mpsc::Sender<LogBatch>) {
    let mut sources: Vec<Source> =
        wanted.nodes.iter().flat_map(|node| sources(node, &wanted, &places)).collect();
    let mut is_first = true;
    loop {
        for source in &mut sources {
            if is_first && let Some(tail) = wanted.tail {
                let lines = source.tail(tail);
                if send_lines(id, source, lines, &to).await.is_err() {
                    return;
                }
            }
            loop {
                let lines = source.next_lines();
                if lines.is_empty() {
                    break;
                }
                if send_lines(id, source, lines, &to).await.is_err() {
                    return;
                }
            }
        }
        is_first = false;
        if !wanted.follow {
            break;
        }
        tokio::time::sleep(FOLLOW).await;
        for node in &wanted.nodes {
            follow_incarnations(node, &wanted, &places, &mut sources);
        }
    }
    to.send(LogBatch { id, lines: Vec::new(), end: true }).await.ok();
}

/// Lines of one source, in batches that fit a message.
async fn send_lines(
    id: u64,
    source: &Source,
    lines: Vec<String>,
    to: &mpsc::Sender<LogBatch>,
) -> Result<(), ()> {
    let line = |text: String| LogLine {
        node: source.node.clone(),
        source: source.name.clone(),
        text,
        absent: false,
    };
    let mut batch = LogBatch { id, lines: Vec::new(), end: false };
    let mut bytes = 0;
    for text in lines {
        bytes += text.len();
        batch.lines.push(line(text));
        if bytes > BATCH_BYTES_MAX || batch.lines.len() >= BATCH_LINES_MAX {
            let full =
                std::mem::replace(&mut batch, LogBatch { id, lines: Vec::new(), end: false });
            bytes = 0;
            to.send(full).await.map_err(drop)?;
        }
    }
    if batch.lines.is_empty() { Ok(()) } else { to.send(batch).await.map_err(drop) }
}

fn sources(node: &NodeName, wanted: &LogWanted, places: &Places) -> Vec<Source> {
    let Some(dir) = places.dirs.get(node) else { return Vec::new() };
    let runs = dir.join("runs");
    let incarnation = wanted.incarnation.or_else(|| newest(&runs));
    let run = incarnation.map(|incarnation| run_dir(dir, incarnation));
    let output = run.map(|run| Source::new(node, OUTPUT, run.join("output.log")));
    // Files of its own go on over incarnations, so they belong to no earlier one.
    let own = places.files.get(node).filter(|_| wanted.incarnation.is_none());
    let own = own.into_iter().flatten().map(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        Source::new(node, &name.unwrap_or_default(), path.clone())
    });
    output.into_iter().chain(own).collect()
}

/// Somebody who follows a node wants its next incarnation too.
fn follow_incarnations(
    node: &NodeName,
    wanted: &LogWanted,
    places: &Places,
    sources: &mut Vec<Source>,
) {
    if wanted.incarnation.is_some() {
        return;
    }
    let Some(dir) = places.dirs.get(node) else { return };
    let Some(newest) = newest(&dir.join("runs")) else { return };
    let path = run_dir(dir, newest).join("output.log");
    match sources.iter_mut().find(|source| source.node == *node && source.name == OUTPUT) {
        Some(source) if source.path == path => {}
        Some(source) => *source = Source::new(node, OUTPUT, path),
        None => sources.push(Source::new(node, OUTPUT, path)),
    }
}

fn run_dir(dir: &Path, incarnation: Incarnation) -> PathBuf {
    crate::reconcile::real::run_dir(dir, incarnation)
}

fn newest(runs: &Path) -> Option<Incarnation> {
    let entries = fs::read_dir(runs).ok()?;
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.max().map(Incarnation)
}

/// One log of one node, with the place up to which it was read.
#[derive(Debug)]
struct Source {
    node: NodeName,
    name: String,
    path: PathBuf,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    lines: BufReader<File>,
    inode: u64,
    offset: u64,
}

impl Source {
    fn new(node: &NodeName, name: &str, path: PathBuf) -> Self {
        Self { node: node.clone(), name: name.to_owned(), path, open: None }
    }

    /// The file as it was rotated `age` times; 0 is the one being written.
    fn rotated(&self, age: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        if age > 0 {
            path.push(format!(".{age}"));
        }
        path.into()
    }

    /// The last lines, older files included. Reading goes on after them.
    fn tail(&mut self, count: u32) -> Vec<String> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let mut kept: VecDeque<String> = VecDeque::new();
        for age in (0..=ROTATED_MAX).rev() {
            let Ok(mut open) = Open::at(&self.rotated(age)) else { continue };
            while let Ok(Some(line)) = open.next() {
                kept.push_back(line);
                if kept.len() > count {
                    kept.pop_front();
                }
            }
            if age == 0 {
                self.open = Some(open);
            }
        }
        kept.into()
    }

    /// Whole lines that are new, at most a batch of them.
    fn next_lines(&mut self) -> Vec<String> {
        if self.open.is_none() {
            self.open = self.oldest();
        }
        let mut lines = Vec::new();
        while lines.len() < BATCH_LINES_MAX {
            let Some(open) = &mut self.open else { break };
            match open.next() {
                Ok(Some(line)) => lines.push(line),
                Ok(None) | Err(_) => match self.next_file() {
                    Some(next) => self.open = Some(next),
                    None => break,
                },
            }
        }
        lines
    }

    fn oldest(&self) -> Option<Open> {
        (0..=ROTATED_MAX).rev().find_map(|age| Open::at(&self.rotated(age)).ok())
    }

    /// The file after the one that was read to its end, if it was rotated away meanwhile.
    fn next_file(&self) -> Option<Open> {
        let read = self.open.as_ref()?;
        let ages: Vec<(u32, u64)> = (0..=ROTATED_MAX)
            .filter_map(|age| Some((age, fs::metadata(self.rotated(age)).ok()?.ino())))
            .collect();
        match ages.iter().find(|(_, inode)| *inode == read.inode) {
            Some((0, _)) => {
                // The same file, shorter: it was emptied in place.
                let length = fs::metadata(&self.path).ok()?.len();
                (length < read.offset).then(|| Open::at(&self.path).ok()).flatten()
            }
            Some((age, _)) => Open::at(&self.rotated(age - 1)).ok(),
            None => self.oldest(),
        }
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self { lines: BufReader::new(file), inode, offset: 0 })
    }

    /// The next whole line; what is still being written is read again later.
    fn next(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        let read = self.lines.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            self.lines.seek(SeekFrom::Start(self.offset))?;
            return Ok(None);
        }
        self.offset += u64::try_from(read).unwrap_or(0);
        while line.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            line.pop();
        }
        line.truncate(LINE_BYTES_MAX);
        Ok(Some(String::from_utf8_lossy(&line).into_owned()))
    }
}

#[cfg(test)]
mod tests;
