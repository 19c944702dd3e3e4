//! What is drawn, for every seed and number of nodes.

use proptest::prelude::*;

use super::*;
use crate::testing;

const LAWS: [Chance; 4] = [Chance::Halves, Chance::Minority, Chance::Ring, Chance::Bridge];

fn nodes(count: usize) -> Vec<NodeName> {
    (1..=count).map(|n| format!("kv-{n}").parse().unwrap()).collect()
}

/// Drawn of nodes that all have the same cluster, or none: what is known of it changes nothing.
fn drawn(chance: Chance, count: usize, seed: u64) -> Result<Drawn, ShapeError> {
    draw(chance, &testing::empty_lab(1), &nodes(count), false, seed)
}

/// Whom a node still sees, itself included.
fn seen(drawn: &Drawn, count: usize, node: &NodeName) -> BTreeSet<NodeName> {
    let cut = |other: &NodeName| {
        drawn.links.contains(&link(node, other)) || drawn.links.contains(&link(other, node))
    };
    nodes(count).into_iter().filter(|other| !cut(other)).collect()
}

proptest! {
    #[test]
    fn in_a_ring_each_sees_a_majority_and_no_two_the_same(count in 3_usize..24, seed: u64) {
        let ring = drawn(Chance::Ring, count, seed).unwrap();
        let views: BTreeSet<_> =
            nodes(count).iter().map(|node| seen(&ring, count, node)).collect();
        prop_assert_eq!(views.len(), count);
        prop_assert!(views.iter().all(|view| view.len() > count / 2), "{:?}", views);
        prop_assert!(!ring.links.is_empty());
    }

    #[test]
    fn sides_have_the_sizes_that_their_names_say(count in 3_usize..24, seed: u64) {
        let sizes = |chance| -> Vec<usize> {
            drawn(chance, count, seed).unwrap().groups.iter().map(BTreeSet::len).collect()
        };
        prop_assert_eq!(sizes(Chance::Halves), [count / 2, count - count / 2]);
        let few = sizes(Chance::Minority)[0];
        prop_assert!(few * 2 < count && (few + 1) * 2 >= count, "{} of {}", few, count);
        let rest = count - 1;
        prop_assert_eq!(sizes(Chance::Bridge), [rest / 2, rest - rest / 2]);
        let bridge = drawn(Chance::Bridge, count, seed).unwrap();
        let all_seen = |node: &&NodeName| seen(&bridge, count, node).len() == count;
        prop_assert_eq!(nodes(count).iter().filter(all_seen).count(), 1);
    }

    #[test]
    fn the_seed_decides_and_the_order_of_the_targets_does_not(count in 3_usize..24, seed: u64) {
        for chance in LAWS {
            let mut turned = nodes(count);
            turned.reverse();
            let other = draw(chance, &testing::empty_lab(1), &turned, false, seed);
            prop_assert_eq!(drawn(chance, count, seed), other);
        }
    }
}

#[test]
fn every_node_has_its_turn() {
    let alone: BTreeSet<_> =
        (0..64).map(|seed| drawn(Chance::Minority, 3, seed).unwrap().groups.remove(0)).collect();
    assert_eq!(alone.len(), 3);
}

#[test]
fn too_few_nodes_are_refused_by_name() {
    for chance in LAWS {
        let error = drawn(chance, 1, 0).unwrap_err().to_string();
        assert!(error.contains("needs") && error.contains("kv-1"), "{error}");
    }
    assert!(drawn(Chance::Ring, 2, 0).is_err() && drawn(Chance::Halves, 2, 0).is_ok());
}
