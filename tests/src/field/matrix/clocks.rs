//! Rows that step the wall clocks of daemons; nobody's CLOCK_MONOTONIC or CLOCK_BOOTTIME moves.

use std::time::{Duration, Instant};

use super::{
    Row,
    row::{
        ALL, Notes, client_is_served, cut_clients, ends_in_time, in_force, no_faults,
        nobody_noticed, pids, recovered,
    },
};
use crate::field::{Field, PATIENCE, daemons::Daemon, look};

/// As far as clocks are stepped.
const HOUR: i64 = 3600;
/// How long the cut lasts during which they are: longer than it is watched on any machine.
const CUT: Duration = Duration::from_secs(10);
/// How long it is watched after they were.
const WATCHED: Duration = Duration::from_millis(2500);

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row { name: "clocks of coordinators stepped", run: of_coordinators },
        Row { name: "clocks of two coordinators apart", run: apart },
        Row { name: "clocks of agents stepped", run: of_agents },
    ]
}

/// Steps clocks during a cut, by each of these; the cut goes on and ends in its time.
fn during_cuts(
    field: &mut Field,
    notes: &mut Notes,
    daemons: fn(&Field) -> Vec<&Daemon>,
    steps: &[i64],
) {
    let before = pids(field);
    let client = field.client();
    client_is_served(&client, &ALL);
    client.forget();
    for step in steps {
        let deadline = cut_clients(field, "m-3", "due", CUT);
        let stepped = Instant::now();
        daemons(field).iter().for_each(|daemon| daemon.set_clock(*step));
        let ahead = client.seen()["m-3"].answers;
        while stepped.elapsed() < WATCHED {
            assert_eq!(in_force(&field.status()), ["due"], "clocks {step:+} s off");
        }
        let answers = client.seen()["m-3"].answers;
        assert!(look::boottime_ns() < deadline, "the look took longer than the cut");
        assert_eq!(answers, ahead, "bytes crossed the cut");
        notes.say(format!("clocks {step:+} s off:"));
        ends_in_time(field, "m-3", deadline, notes);
        for at in 0..field.coordinators.len() {
            field.wait_at(at, PATIENCE, "it is over", |status| {
                in_force(status).is_empty().then_some(())
            });
        }
        no_faults(field);
    }
    daemons(field).iter().for_each(|daemon| daemon.set_clock(0));
    recovered(field, Instant::now(), notes);
    client_is_served(&client, &ALL);
    assert_eq!(pids(field), before);
    nobody_noticed(&client, &["m-1", "m-2"], notes);
}

fn of_coordinators(field: &mut Field, notes: &mut Notes) {
    during_cuts(field, notes, |field| field.coordinators.iter().collect(), &[HOUR, -HOUR]);
}

/// Only the coordinator that people do not ask; then only the other one.
fn apart(field: &mut Field, notes: &mut Notes) {
    during_cuts(field, notes, |field| vec![&field.coordinators[1]], &[HOUR, -HOUR]);
    during_cuts(field, notes, |field| vec![&field.coordinators[0]], &[HOUR, -HOUR]);
}

fn of_agents(field: &mut Field, notes: &mut Notes) {
    during_cuts(field, notes, |field| field.hosts.iter().collect(), &[HOUR, -HOUR]);
}
