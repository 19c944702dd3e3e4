//! Blueprints with the real databases from Debian's packages: each lives through the same list.
//!
//! Its own main, which runs several at once: they mostly wait for each other's elections, and one for
//! each core, as other tests are run, would take minutes.

use std::{io::Write as _, process::ExitCode, sync::Mutex, thread, time::Instant};

mod etcd;
mod gitaly;
mod life;
mod nats;
mod postgres;
mod rabbitmq;
mod redis;
mod redis_cluster;
mod stand_ins;
mod zookeeper;

/// A name to choose it by, and what is run.
type Case = (&'static str, fn());

/// Labs that run at once: databases that wait for each other's timers, and do not starve each other.
const AT_ONCE: usize = 6;

const CASES: [Case; 19] = [
    ("etcd", etcd::lives_through_the_list),
    ("tls", etcd::tls_between_members_and_clients),
    ("disk", etcd::a_disk_stands_still_until_its_time_is_up),
    ("kept", etcd::data_that_was_kept_is_met_by_the_same_cluster_only),
    ("nats-tls", nats::routes_over_tls),
    ("postgres-tls", postgres::standbys_follow_over_tls),
    ("nats", nats::jetstream_lives_through_the_list),
    ("postgres", postgres::lives_through_the_list),
    ("closed", postgres::a_directory_that_the_server_cannot_enter_is_named_before_anything_starts),
    ("rabbitmq", rabbitmq::quorum_queues_live_through_the_list),
    ("redis", redis::sentinel_fails_over_and_nothing_that_replicas_have_is_lost),
    ("redis-cluster", redis_cluster::slots_fail_over_and_move_and_every_key_stays),
    ("cockroach", stand_ins::what_cockroach_is_told_satisfies_its_stand_in),
    ("gofail", stand_ins::what_etcd_is_told_of_failpoints_satisfies_its_stand_in),
    ("gitaly", gitaly::what_gitaly_and_praefect_are_told_satisfies_their_stand_ins),
    ("dcf", stand_ins::what_a_driver_of_dcf_is_told_satisfies_its_stand_in),
    ("opengauss", stand_ins::what_opengauss_is_told_satisfies_its_stand_ins),
    ("tidb", stand_ins::what_tidb_is_told_satisfies_its_stand_ins),
    ("zookeeper", zookeeper::lives_through_the_list),
];

fn main() -> ExitCode {
    // What `cargo test` passes on is meant for other tests; words without dashes choose cases.
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_chosen = |name: &str| words.is_empty() || words.iter().any(|word| word == name);
    let begun = Instant::now();
    let cases = Mutex::new(CASES.into_iter().filter(|(name, _)| is_chosen(name)));
    let next = || cases.lock().expect("nobody panics with it").next();
    let failed = thread::scope(|scope| {
        let work = || {
            let mut failed = Vec::new();
            while let Some((name, case)) = next() {
                let began = Instant::now();
                let thread = thread::Builder::new().name(name.to_owned());
                match thread.spawn(case).expect("start a thread").join() {
                    Ok(()) => say(&format!("dbs {name} ... ok, {:.1?}", began.elapsed())),
                    Err(_) => failed.push(name),
                }
            }
            failed
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("it works")).collect::<Vec<_>>()
    });
    say(&format!("dbs: {:.1?}, failed: {failed:?}", begun.elapsed()));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A line of the result, whole although many threads write.
fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("write the result");
}
