//! Laws that hold whatever is asked in whatever order. `World::edit` checks those of every step.

use faultbed_common::{
    compile::compile,
    edit::{Edit, NodeVerb},
    link::Party,
};
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop, prop_assert, prop_oneof, proptest,
};

use crate::decide::fixtures::{World, fault, file, ready};

/// Something a user or time does.
#[derive(Debug, Clone)]
enum Act {
    Ask(Edit),
    Obey,
    Chores(u64),
}

fn acts() -> impl Strategy<Value = Act> {
    let node = prop::sample::select(vec!["kv-1", "kv-2", "kv-3", "kv-4", "kv", "leader:kv", "*"]);
    let verb = prop_oneof![
        Just(NodeVerb::Start),
        Just(NodeVerb::Stop),
        Just(NodeVerb::Restart),
        Just(NodeVerb::Wipe),
        any::<bool>().prop_map(|respawn| NodeVerb::Kill { signal: 9, respawn }),
    ];
    let faults = prop::sample::select(vec![
        "partition = [\"kv-1\", \"kv-2,kv-3\"]",
        "isolate = \"leader:kv\"\nfollow = true\nfor = \"2s\"",
        "from = \"kv-1\"\nto = \"kv-4\"\nlatency = \"5ms\"",
        "on = \"kv-2\"\npause = true\nfor = \"1s\"",
        "on = \"kv-3,kv-4\"\nkill = true",
        "between = [\"kv\", \"kv\"]\nrtt = \"10ms\"\nfor = \"none\"",
    ]);
    let files = (0..5_u32, any::<bool>()).prop_map(|(count, with_fault)| {
        let fault = "[fault.f]\npartition = [\"kv-1\", \"follower:kv\"]\nfor = \"3s\"\n";
        let kv = format!("[cluster.kv]\nblueprint = \"etcd\"\netcd.count = {count}\n");
        file(&format!("{kv}{}", if with_fault { fault } else { "" }))
    });
    prop_oneof![
        3 => (node, verb).prop_map(|(target, verb)| {
            Act::Ask(Edit::Node { targets: vec![target.to_owned()], verb })
        }),
        3 => faults.prop_map(|text| Act::Ask(Edit::Inject { name: None, spec: fault(text), replace: false })),
        1 => Just(Act::Ask(Edit::Heal { faults: vec![] })),
        2 => files.prop_map(|file| Act::Ask(Edit::Apply(file))),
        1 => any::<bool>().prop_map(|wipe| {
            Act::Ask(Edit::DeleteCluster { name: "kv".parse().unwrap(), wipe })
        }),
        3 => Just(Act::Obey),
        2 => (0..4_000_u64).prop_map(Act::Chores),
    ]
}

fn perform(world: &mut World, act: Act) {
    match act {
        Act::Ask(edit) => {
            // A refusal is an answer; what must hold is checked on what is accepted.
            let _ = world.edit(edit);
        }
        Act::Obey => world.obey(),
        Act::Chores(ms) => {
            world.now += ms;
            world.chores();
            assert!(world.chores().is_none(), "nothing is due twice");
        }
    }
}

proptest! {
    // Each case compiles the lab some hundred times.
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_accepted_change_keeps_the_laws(acts in prop::collection::vec(acts(), 1..30)) {
        let mut world = ready();
        for act in acts {
            perform(&mut world, act);
        }
        // A link is met at both its ends, so each of its hosts is told of it.
        let specs = compile(&world.lab).unwrap();
        for (name, fault) in world.lab.faults.iter().filter(|(_, fault)| fault.is_active()) {
            for link in &fault.resolved.links {
                let ends = [&link.from, &link.to].into_iter().filter_map(Party::node);
                for host in ends.map(|end| &world.lab.node(end).unwrap().placement.host) {
                    prop_assert!(specs[host].proxy.faults[name].links.contains(link));
                }
            }
        }
        // When everybody has done as told, nothing is pending but what waits for a crash or role.
        world.obey();
        world.chores();
        world.obey();
        let status = world.status();
        prop_assert!(status.stuck.is_empty(), "{:?}", status.stuck);
    }
}
