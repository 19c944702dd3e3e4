//! Log lines as somebody who asked for them sees them.

use faultbed_common::logs::LogWanted;

use super::*;

struct World {
    dir: tempfile::TempDir,
    node: NodeName,
}

impl World {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), node: "kv-1".parse().unwrap() }
    }

    fn output(&self, incarnation: u64) -> PathBuf {
        let run = run_dir(self.dir.path(), Incarnation(incarnation));
        fs::create_dir_all(&run).unwrap();
        run.join("output.log")
    }

    fn append(path: &Path, text: &str) {
        use std::io::Write as _;
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn ask(&self, follow: bool, tail: Option<u32>) -> mpsc::Receiver<LogBatch> {
        let wanted = LogWanted { nodes: vec![self.node.clone()], follow, tail, incarnation: None };
        let places = Places {
            dirs: BTreeMap::from([(self.node.clone(), self.dir.path().to_owned())]),
            files: BTreeMap::from([(self.node.clone(), vec![self.dir.path().join("slow.log")])]),
        };
        let (to, from) = mpsc::channel(1);
        tokio::spawn(send(7, wanted, places, to));
        from
    }
}

/// The next `count` lines with their sources.
async fn lines(from: &mut mpsc::Receiver<LogBatch>, count: usize) -> Vec<String> {
    let mut found = Vec::new();
    while found.len() < count {
        let batch = from.recv().await.expect("more lines");
        assert_eq!(batch.id, 7);
        assert!(batch.lines.len() <= BATCH_LINES_MAX);
        assert!(!batch.end, "ended after {found:?}");
        found.extend(batch.lines.into_iter().map(|line| format!("{}: {}", line.source, line.text)));
    }
    found
}

#[tokio::test]
async fn the_last_lines_are_taken_over_rotated_files_and_files_of_its_own() {
    let world = World::new();
    let output = world.output(3);
    World::append(&world.output(2), "of an earlier incarnation\n");
    World::append(&output.with_extension("log.1"), "one\ntwo\n");
    World::append(&output, "three\nhalf");
    World::append(&world.dir.path().join("slow.log"), "slow\n");
    let mut from = world.ask(false, Some(2));
    let found = lines(&mut from, 3).await;
    assert_eq!(found, ["output: two", "output: three", "slow.log: slow"]);
    assert!(from.recv().await.unwrap().end);
    let mut from = world.ask(false, None);
    assert_eq!(lines(&mut from, 4).await[0], "output: one");
}

#[tokio::test]
async fn following_survives_rotation_and_goes_on_with_the_next_incarnation() {
    let world = World::new();
    let output = world.output(1);
    World::append(&output, "one\n");
    let mut from = world.ask(true, Some(0));
    World::append(&output, "");
    // Nothing of the past was asked for, so the first line is one that comes now.
    tokio::time::sleep(FOLLOW).await;
    World::append(&output, "two\nthr");
    assert_eq!(lines(&mut from, 1).await, ["output: two"]);
    World::append(&output, "ee\n");
    fs::rename(&output, output.with_extension("log.1")).unwrap();
    World::append(&output, "four\n");
    assert_eq!(lines(&mut from, 2).await, ["output: three", "output: four"]);
    World::append(&world.output(2), "again\n");
    assert_eq!(lines(&mut from, 1).await, ["output: again"]);
}

#[tokio::test]
async fn long_logs_come_in_batches_that_fit_a_message() {
    let world = World::new();
    let line = "x".repeat(2 * LINE_BYTES_MAX);
    World::append(&world.output(1), &format!("{}{line}\n", "short\n".repeat(2000)));
    let mut from = world.ask(false, None);
    let found = lines(&mut from, 2001).await;
    assert_eq!(found[2000].len(), "output: ".len() + LINE_BYTES_MAX);
    assert!(from.recv().await.unwrap().end);
}
