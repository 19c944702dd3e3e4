//! Whatever somebody wrote into the store, or sends as a request: it is refused, and nothing panics or hangs.

use faultbed_common::edit::EditRequest;
use faultbed_coordinator::store::{
    Kv, Revision,
    keys::{Keys, Kind, Kvs, head_from, lab_from, specs_from},
};
use faultbed_fuzz::{corpus, examples, fuzz};

fn kv(key: Vec<u8>, value: &[u8]) -> (Vec<u8>, Kv) {
    let value = value.to_vec();
    let (created, modified) = (Revision(1), Revision(2));
    (key.clone(), Kv { key, value, created, modified, version: 1, lease: None })
}

#[test]
fn values_of_the_store() {
    let keys = Keys::new(&"dev".parse().expect("a name"));
    // The head as it should be, so that what is below it is looked at.
    let head = corpus("store").remove(0);
    fuzz!(corpus("store"), |document: &[u8]| {
        for value in [document, head.as_slice()] {
            let kvs: Kvs = [
                kv(keys.head(), value),
                kv(keys.accepted(Kind::Host, "h1"), document),
                kv(keys.accepted(Kind::Cluster, "kv"), document),
                kv(keys.accepted(Kind::Fault, "split"), document),
                kv(keys.spec(Kind::Cluster, "kv"), document),
                kv(keys.spec(Kind::Fault, "split"), document),
            ]
            .into();
            let _refused = head_from(&keys, &kvs);
            let _refused = lab_from(&keys, &kvs);
            let _refused = specs_from(&keys, &kvs);
        }
    });
}

#[test]
fn keys_of_the_store() {
    let keys = Keys::new(&"dev".parse().expect("a name"));
    let texts = [
        "/faultbed/v1/dev/spec/cluster/kv",
        "/faultbed/v1/dev/accepted/fault/f",
        "/faultbed/v1/dev/head",
    ];
    fuzz!(texts, |key: &[u8]| {
        let _foreign = keys.below(key);
        let kvs: Kvs = [kv(key.to_vec(), b"{}")].into();
        let _refused = lab_from(&keys, &kvs);
        let _refused = specs_from(&keys, &kvs);
    });
}

#[test]
fn bodies_of_requests() {
    let documents = corpus("host_spec").into_iter().chain(examples("deploy/examples"));
    fuzz!(documents, |body: &[u8]| {
        let _refused = serde_json::from_slice::<EditRequest>(body);
    });
}
