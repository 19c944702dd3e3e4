//! Tests that kill a process which writes to an embedded store, again and again, and look what is there.
//!
//! The process is this test binary itself, told by its environment to run [`the_killed_process`].

use std::{
    io::{BufRead, BufReader, Write},
    ops::RangeInclusive,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures::StreamExt;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::Embedded;
use crate::store::{
    Event, Op, Revision, Store, StoreError, Txn,
    contract::{SOON, value},
    seed::seed,
};

/// Where the killed process finds its file.
const DIR: &str = "FAULTBED_KILLED_STORE";

/// What it says before the number of each commit that was acknowledged.
const ACKNOWLEDGED: &str = "acknowledged ";

/// How often it is killed.
const KILLS: u32 = 20;

/// Keys that are written in turn.
const KEYS: u64 = 16;

/// Commits that stay in history when the process compacts.
const HISTORY: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_store_reopens_with_every_acknowledged_commit() {
    let mut rng = StdRng::seed_from_u64(seed("a_killed_store_reopens"));
    let dir = tempfile::tempdir().unwrap();
    let (mut acknowledged, mut found) = (0, 0);
    for kill in 0..KILLS {
        let mut child = spawn(dir.path());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut numbers = lines.map_while(Result::ok).filter_map(|line| {
            // The test harness may have begun the line.
            line.split_once(ACKNOWLEDGED).map(|(_, number)| number.parse::<u64>().unwrap())
        });
        // Killed at a random moment after a random commit; at times while it still opens.
        for _ in 0..rng.random_range(0..40) {
            acknowledged = numbers.next().expect("it goes on until it is killed");
        }
        if kill == 1 {
            acknowledged = refuses_a_second_opener(dir.path(), &mut numbers).await;
        }
        spin(Duration::from_micros(rng.random_range(0..4_000)));
        child.kill().unwrap();
        acknowledged = numbers.last().unwrap_or(acknowledged);
        child.wait().unwrap();
        // Each process may leave one commit that it had no time to acknowledge, also one that was
        // killed before it acknowledged any.
        let most = found.max(acknowledged) + 1;
        found = check(dir.path(), found.max(acknowledged)..=most).await;
    }
    assert!(acknowledged > 100, "only {acknowledged} commits: nothing was tested");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_killed_while_it_was_made_opens() {
    let mut rng = StdRng::seed_from_u64(seed("a_store_that_was_killed_while_it_was_made"));
    for _ in 0..KILLS {
        let dir = tempfile::tempdir().unwrap();
        let mut child = spawn(dir.path());
        let began = std::time::Instant::now();
        while std::fs::read_dir(dir.path()).unwrap().next().is_none() {
            assert!(began.elapsed() < SOON, "it makes no file");
        }
        spin(Duration::from_micros(rng.random_range(0..8_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        check(dir.path(), 0..=u64::MAX).await;
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}

/// Another process has the file open, which is another case than this process having it. Says which
/// commit showed that.
async fn refuses_a_second_opener(dir: &Path, numbers: &mut impl Iterator<Item = u64>) -> u64 {
    let acknowledged = numbers.next().expect("it is open");
    let refused = Embedded::open(&dir.join("store.redb")).await.unwrap_err().to_string();
    assert!(refused.contains("another process has it open"), "{refused}");
    acknowledged
}

fn spin(time: Duration) {
    let began = std::time::Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
}

fn spawn(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::embedded::kills::the_killed_process", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// As many commits are there as may be, all of them, and no half of one. Says how many.
async fn check(dir: &Path, commits: RangeInclusive<u64>) -> u64 {
    let store = Embedded::open(&dir.join("store.redb")).await.unwrap();
    let last = last(&store).await;
    assert!(commits.contains(&last), "{last} commits instead of {commits:?}");
    for n in last.saturating_sub(KEYS - 1).max(1)..=last {
        assert_eq!(value(&store, &format!("k/{}", n % KEYS)).await, Some(payload(n)));
    }
    let (revision, kvs) = store.range(b"").await.unwrap();
    let from = match store.watch(b"", Revision(1)).await {
        Err(StoreError::Compacted(compacted)) => compacted.next(),
        Err(other) => panic!("{other}"),
        Ok(_) => Revision(2),
    };
    let watch = store.watch(b"", from).await.unwrap();
    let count = usize::try_from(revision.next().0 - from.0).unwrap();
    let batches: Vec<_> = watch.take(count).map(Result::unwrap).collect().await;
    for (batch, at) in batches.iter().zip(from.0..) {
        assert_eq!((batch.revision.0, batch.events.len()), (at, 2));
    }
    for event in batches.iter().flat_map(|batch| &batch.events) {
        let Event::Put(kv) = event else { panic!("nothing is deleted") };
        assert!(kvs.iter().any(|now| now.key == kv.key && now.modified >= kv.modified));
    }
    last
}

async fn last(store: &Embedded) -> u64 {
    value(store, "n").await.map_or(0, |n| n.parse().unwrap())
}

fn payload(n: u64) -> String {
    format!("{n}{}", "x".repeat(usize::try_from(n * 7919 % 9_000).unwrap()))
}

/// Not a test by itself: commits until it is killed, when it is started by the test above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_killed_process() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let store = Embedded::open(&Path::new(&dir).join("store.redb")).await.unwrap();
    for n in last(&store).await + 1.. {
        let then =
            vec![Op::put("n", n.to_string()), Op::put(format!("k/{}", n % KEYS), payload(n))];
        let revision = store.txn(Txn { then, ..Txn::default() }).await.unwrap().revision;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{ACKNOWLEDGED}{n}").unwrap();
        out.flush().unwrap();
        drop(out);
        if n % 7 == 0 {
            store.lease_grant(Duration::from_secs(60)).await.unwrap();
        }
        if n % HISTORY == 0 && revision.0 > HISTORY {
            store.compact(Revision(revision.0 - HISTORY)).await.unwrap();
        }
    }
}
