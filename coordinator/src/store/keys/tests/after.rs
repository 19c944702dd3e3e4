//! What the mirror reads of a change is what a whole look reads.

use super::*;
use crate::store::keys::lab_after;

#[test]
fn what_was_not_written_since_need_not_be_read_again() {
    let mut fixture = Fixture::founded();
    let mut known: Option<(Lab, Revision)> = None;
    let mut labs = vec![full(1), many(2, "--a=1"), many(3, "--a=2"), full(4), lab(5), full(6)];
    let mut ended = full(7);
    for fault in ended.faults.values_mut() {
        fault.phase = Phase::Pending { why: "kv not ready".into() };
    }
    labs.push(ended);
    for lab in labs {
        fixture.accept(&lab);
        check(&fixture, &lab, &mut known);
        for txn in folds(&fixture.keys.clone(), &fixture.kvs()).unwrap() {
            assert!(fixture.txn(&txn).succeeded);
        }
        check(&fixture, &lab, &mut known);
    }
}

fn check(fixture: &Fixture, lab: &Lab, known: &mut Option<(Lab, Revision)>) {
    let kvs = fixture.kvs();
    let before = known.as_ref().map(|(lab, revision)| (lab, *revision));
    let read = lab_after(before, &fixture.keys, &kvs).unwrap().unwrap();
    assert_eq!(&read, lab);
    assert_eq!(Some(&read), lab_from(&fixture.keys, &kvs).unwrap().as_ref());
    let written = kvs.values().map(|kv| kv.modified).max().unwrap();
    let (head, _) = head_from(&fixture.keys, &kvs).unwrap().unwrap();
    *known = head.staged.is_none().then_some((read, written));
}
