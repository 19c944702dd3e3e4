//! What is packed is unpacked as it was, and what makes no sense is refused.

use std::{collections::VecDeque, fs::File, io::Read as _, os::fd::AsFd as _};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Serialize, Deserialize)]
struct Thing {
    #[serde(with = "bytes")]
    tail: Vec<u8>,
    #[serde(with = "bytes")]
    jam: VecDeque<u8>,
    #[serde(with = "shared")]
    one: Arc<String>,
    #[serde(with = "maybe_shared")]
    other: Option<Arc<String>>,
    #[serde(with = "entries")]
    counts: BTreeMap<(u8, u8), u64>,
}

fn arrived(luggage: Luggage) -> Arrived {
    let descriptors = luggage.descriptors.into_iter().map(Some).collect();
    Arrived { descriptors, bytes: luggage.bytes, ..Arrived::default() }
}

proptest! {
    #[test]
    fn what_is_packed_comes_out_as_it_was(
        tail: Vec<u8>,
        jam: VecDeque<u8>,
        counts in proptest::collection::btree_map(any::<(u8, u8)>(), any::<u64>(), 0..5),
    ) {
        let one = Arc::new("one".to_owned());
        let other = Some(Arc::clone(&one));
        let thing = Thing { tail, jam, one, other, counts };
        let mut luggage = Luggage::default();
        let documents = [pack(&mut luggage, &thing)?, pack(&mut luggage, &thing)?];
        let mut arrived = arrived(luggage);
        let first: Thing = unpack(&mut arrived, &documents[0])?;
        let again: Thing = unpack(&mut arrived, &documents[1])?;
        prop_assert_eq!((&again.tail, &again.jam), (&thing.tail, &thing.jam));
        prop_assert_eq!(&again.counts, &thing.counts);
        // Shared as before, in one document and over several.
        prop_assert!(Arc::ptr_eq(&first.one, &again.one));
        prop_assert!(again.other.is_some_and(|other| Arc::ptr_eq(&other, &again.one)));
    }

    #[test]
    fn any_document_is_refused_or_read(document: Vec<u8>, start: usize, length: usize) {
        let mut arrived = Arrived { bytes: vec![0; 10], ..Arrived::default() };
        let _any = unpack::<Thing>(&mut arrived, &document);
        let text = format!(
            "{{\"tail\":[{start},{length}],\"jam\":[0,0],\"one\":{{\"at\":{start}}},\"other\":null,\"counts\":[]}}"
        );
        prop_assert!(unpack::<Thing>(&mut arrived, text.as_bytes()).is_err());
    }
}

#[test]
fn descriptors_are_taken_once() {
    #[derive(Debug, Serialize, Deserialize)]
    struct Held(#[serde(with = "descriptor")] OwnedFd);
    let (read, write) = rustix::pipe::pipe().unwrap();
    let mut luggage = Luggage::default();
    let document = pack(&mut luggage, &Held(write)).unwrap();
    let mut arrived = arrived(luggage);
    let Held(write) = unpack(&mut arrived, &document).unwrap();
    rustix::io::write(write.as_fd(), b"x").unwrap();
    drop(write);
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(text, "x", "the same pipe, and nobody else holds it");
    let error = unpack::<Held>(&mut arrived, &document).unwrap_err();
    assert!(error.to_string().contains("not there"), "{error}");
}
