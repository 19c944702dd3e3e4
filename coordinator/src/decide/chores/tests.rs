//! What happens by itself.

use faultbed_common::{
    edit::{Edit, NodeVerb},
    lab::{Ended, Phase},
    report::NodeState,
};

use super::next_at_unix_ms;
use crate::decide::fixtures::{empty, file, key, node, ready};

#[test]
fn faults_end_when_their_time_is_over_and_not_before() {
    let mut world = ready();
    assert_eq!(next_at_unix_ms(&world.lab), None);
    let name = world.inject("isolate = \"kv-1\"\nfor = \"30s\"").unwrap();
    world.inject("isolate = \"kv-2\"\nfor = \"none\"").unwrap();
    assert_eq!(next_at_unix_ms(&world.lab), Some(world.now + 30_000));
    world.now += 29_999;
    assert_eq!(world.chores(), None);
    world.now += 1;
    assert_eq!(world.chores(), Some(format!("{name} expired")));
    let over = Phase::Ended { how: Ended::Expired, at_unix_ms: world.now };
    assert_eq!(world.lab.faults[&name].phase, over);
    assert_eq!(next_at_unix_ms(&world.lab), None);
}

#[test]
fn a_deadline_is_its_hosts_and_no_clock_that_was_stepped_moves_it() {
    let mut world = ready();
    world.now += 3 * 3_600_000;
    let name = world.inject("isolate = \"kv-1\"\nfor = \"30s\"").unwrap();
    world.obey();
    let say = |world: &mut super::super::fixtures::World, active: bool| {
        for report in world.reports.values_mut().map(std::sync::Arc::make_mut) {
            let seen = report.faults.get_mut(&name).unwrap();
            (seen.active, seen.expired) = (active, !active);
            seen.remaining_ms = active.then_some(20_000);
        }
    };
    say(&mut world, true);
    world.now += 3_600_000;
    assert_eq!(world.chores(), None, "the hosts have it in force");
    world.now -= 2 * 3_600_000;
    say(&mut world, false);
    assert_eq!(world.chores(), Some(format!("{name} expired")), "and know when it is over");
}

#[test]
fn before_its_hosts_spoke_a_fault_is_as_old_as_it_was_seen_to_be() {
    let mut world = ready();
    let name = world.inject("isolate = \"kv-1\"\nfor = \"30s\"").unwrap();
    // Another coordinator's clock is an hour ahead of the one by which it began.
    world.now += 3_600_000;
    let after = |age_ms: u64| {
        let ages = [(name.clone(), age_ms)].into();
        super::due(&world.lab, &world.reports, &ages, &world.asked()).map(|due| due.what)
    };
    assert_eq!(after(29_999), None);
    assert_eq!(after(30_000), Some(format!("{name} expired")));
}

#[test]
fn a_gate_opens_when_all_nodes_that_should_run_have_been_ready() {
    let mut world = empty();
    world.apply("[cluster.kv]\nblueprint = \"etcd\"\n").unwrap();
    assert_eq!(world.chores(), None);
    world.obey();
    world.report("kv-3", |seen| {
        seen.been_ready = false;
        seen.observed = NodeState::Starting;
    });
    assert_eq!(world.chores(), None);
    world.verb("kv-3", NodeVerb::Stop).unwrap();
    assert_eq!(world.chores().as_deref(), Some("etcd of kv has been ready"));
    assert_eq!(world.chores(), None);
}

#[test]
fn an_earlier_cluster_of_the_same_name_opens_no_gate() {
    let mut world = ready();
    world.edit(Edit::DeleteCluster { name: "kv".parse().unwrap(), wipe: true }).unwrap();
    world.edit(Edit::Apply(file("[cluster.kv]\nblueprint = \"etcd\"\n"))).unwrap();
    // The hosts still report the nodes that were.
    assert_eq!(world.chores(), None);
    world.obey();
    assert!(world.chores().is_some());
}

#[test]
fn a_fault_that_follows_moves_with_the_leader_and_keeps_its_deadline() {
    let mut world = ready();
    let name = world.inject("isolate = \"leader:kv\"\nfollow = true\nfor = \"30s\"").unwrap();
    let stays = world.inject("isolate = \"leader:kv\"\nfor = \"30s\"").unwrap();
    let before = world.lab.faults[&name].clone();
    // While nobody is known to lead, it stays where it is.
    world.report("kv-1", |seen| seen.observed = NodeState::Unready);
    assert_eq!(world.chores(), None);
    world.report("kv-2", |seen| {
        seen.leader = Some(true);
        seen.term = Some(3);
    });
    world.now += 1_000;
    assert_eq!(world.chores(), Some(format!("{name} moves to kv-2 | kv-1,kv-3")));
    let after = &world.lab.faults[&name];
    assert_eq!((after.revision, &after.phase), (before.revision, &before.phase));
    assert!(after.resolved.links.iter().all(|link| link.touches(&node("kv-2"))));
    assert_eq!(world.lab.faults[&stays].resolved.groups[0], ["kv-1"]);
}

#[test]
fn a_waiting_fault_says_what_it_waits_for() {
    let mut world = empty();
    let text =
        "[cluster.kv]\nblueprint = \"etcd\"\n[fault.x]\nisolate = \"leader:kv\"\nfor = \"5s\"\n";
    world.apply(text).unwrap();
    world.obey();
    world.report("kv-1", |seen| seen.leader = None);
    world.chores();
    let Phase::Pending { why } = &world.lab.faults[&key("x")].phase else { unreachable!() };
    assert!(why.contains("no ready node of kv is known to lead"), "{why}");
    world.report("kv-1", |seen| seen.leader = Some(true));
    assert_eq!(world.chores().as_deref(), Some("begin x"));
}

#[test]
fn a_fault_of_a_file_waits_for_the_nodes_that_the_file_restarts() {
    let mut world = ready();
    let kv = "[cluster.kv]\nblueprint = \"etcd\"\n";
    let cut = "[fault.cut]\nisolate = \"kv-2\"\nfor = \"5s\"\n";
    let changed = format!("{kv}[cluster.kv.etcd]\nnode.2.path = \"/opt/etcd-next\"\n{cut}");
    world.apply(&changed).unwrap();
    let waits = Phase::Pending { why: "kv restarting".to_owned() };
    assert_eq!(world.lab.faults[&key("cut")].phase, waits);
    // The old one has still to end, then the new one to be ready.
    assert_eq!(world.chores(), None);
    let wanted = world.placement("kv-2").incarnation;
    world.report("kv-2", |seen| {
        seen.incarnation = wanted;
        seen.been_ready = false;
        seen.observed = NodeState::Starting;
    });
    assert_eq!(world.chores(), None);
    world.report("kv-2", |seen| seen.been_ready = true);
    assert_eq!(world.chores().as_deref(), Some("begin cut"));
}

#[test]
fn a_fault_does_not_wait_for_a_node_that_its_host_starts_again() {
    let mut world = ready();
    world.report("kv-2", |seen| {
        seen.incarnation = seen.incarnation.next();
        seen.been_ready = false;
        seen.observed = NodeState::Starting;
    });
    world
        .apply(
            "[cluster.kv]\nblueprint = \"etcd\"\n[fault.cut]\nisolate = \"kv-1\"\nfor = \"5s\"\n",
        )
        .unwrap();
    assert!(world.lab.faults[&key("cut")].is_active());
}

#[test]
fn a_fault_that_a_host_healed_by_itself_ends_everywhere_with_the_reason() {
    let mut world = ready();
    let name = world.inject("isolate = \"kv-2\"\nfor = \"none\"").unwrap();
    world.obey();
    let revision = world.lab.faults[&name].revision;
    let on_h2 = world.said("h2").faults.get_mut(&name).unwrap();
    on_h2.active = false;
    on_h2.healed = Some("heard no coordinator for 5m".to_owned());
    let before = world.status();
    assert_eq!(
        before.faults[0].why.as_deref(),
        Some("healed: host h2 heard no coordinator for 5m")
    );
    // What a host said of an earlier revision is not meant.
    world.said("h2").faults.get_mut(&name).unwrap().revision.0 -= 1;
    assert_eq!(world.chores(), None);
    world.said("h2").faults.get_mut(&name).unwrap().revision = revision;
    let what = format!("{name} healed: host h2 heard no coordinator for 5m");
    assert_eq!(world.chores(), Some(what));
    let after = world.status();
    assert_eq!(after.faults[0].why.as_deref(), Some("host h2 heard no coordinator for 5m"));
    let told = crate::decide::events::events(&before, &after);
    let sentence = format!("{name} is healed: host h2 heard no coordinator for 5m; it has not");
    assert!(told.iter().any(|(_, _, text)| text.starts_with(&sentence)), "{told:?}");
}

#[test]
fn the_dead_mans_handle_comes_from_the_file_to_every_host() {
    let mut world = empty();
    let file = "[lab]\ndead_man = \"5m\"\n[cluster.kv]\nblueprint = \"etcd\"\n";
    let decision = world.apply(file).unwrap();
    assert!(decision.reply.objects.iter().any(|object| object.kind == "lab"));
    let specs = faultbed_common::compile::compile(&world.lab).unwrap();
    assert!(specs.values().all(|spec| spec.terms.dead_man == "5m".parse().ok()));
    world.apply("[cluster.kv]\nblueprint = \"etcd\"\n").unwrap();
    assert_eq!(world.lab.settings.dead_man, None);
}

#[test]
fn who_lists_what_came_or_went_restarts_one_at_a_time_when_that_is_done() {
    let mut world = empty();
    world.apply("[cluster.g]\nblueprint = \"gitaly\"\n").unwrap();
    for _ in 0..3 {
        world.obey();
        world.chores();
    }
    let runs =
        |world: &super::super::fixtures::World, name: &str| world.placement(name).incarnation;
    let before = runs(&world, "g-praefect-1");
    world.apply("[cluster.g]\nblueprint = \"gitaly\"\ngitaly.count = 4\n").unwrap();
    assert_eq!(world.chores(), None, "what comes is not ready yet");
    world.obey();
    let said = world.chores().unwrap();
    assert_eq!(said, "restart g-praefect-1, which lists g-gitaly-4");
    assert_eq!(runs(&world, "g-praefect-1"), before.next());
    assert_eq!(runs(&world, "g-praefect-2"), before);
    assert_eq!(world.chores(), None, "the first is not ready yet");
    assert!(!world.status().converged);
    world.obey();
    assert_eq!(world.chores().as_deref(), Some("restart g-praefect-2, which lists g-gitaly-4"));
    world.obey();
    assert_eq!(world.chores(), None);

    world.verb("g-praefect-1", NodeVerb::Stop).unwrap();
    world.apply("[cluster.g]\nblueprint = \"gitaly\"\ngitaly.count = 3\n").unwrap();
    assert_eq!(
        world.chores().as_deref(),
        Some("g-praefect-1 is down, and lists g-gitaly-4 when it starts")
    );
    assert_eq!(world.chores(), None, "what goes is not gone yet");
    world.obey();
    assert_eq!(world.chores().as_deref(), Some("restart g-praefect-2, which lists g-gitaly-4"));
}
