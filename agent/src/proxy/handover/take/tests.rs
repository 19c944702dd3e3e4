//! A successor that is told what makes no sense.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

use super::*;
use crate::proxy::carry::Luggage;

fn line() -> (Line, OwnedFd, OwnedFd) {
    let kind = SocketType::SEQPACKET;
    let pair = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.unwrap();
    (Line::new(ours, TAKE_MAX), theirs.try_clone().unwrap(), theirs)
}

/// What the successor says of a parcel, or of a word that is not one.
fn after(document: &[u8], luggage: &Luggage, content: Content) -> String {
    let (line, theirs, _open) = line();
    let theirs = Line::new(theirs, TAKE_MAX);
    theirs.ship(content, document, luggage).unwrap();
    theirs.say(&Word::End { connections: 0 }).unwrap();
    receive(line).unwrap_err().to_string()
}

#[test]
fn parcels_that_make_no_sense_are_refused() {
    let none = Luggage::default();
    assert!(after(b"", &none, Content::Pairs).contains("the rules are missing"));
    for document in [&b"{}\n"[..], b"\xff\n", b"[]\n", b"{\"pair\":{},\"alarms\":[]}\n"] {
        for content in [Content::Base, Content::Doors, Content::Pairs] {
            let said = after(document, &none, content);
            assert!(said.contains("at line 1"), "{said}");
        }
    }
    let base = b"{\"lock\":0,\"control\":7,\"inheritance\":{}}\n";
    assert!(after(base, &none, Content::Base).contains("descriptor 0 is not there"));
    let stray = std::fs::File::open("/dev/null").unwrap().into();
    let mut luggage = Luggage::default();
    luggage.descriptors.push(stray);
    assert!(after(b"", &luggage, Content::Doors).contains("nobody owns"));
}

#[test]
fn words_that_make_no_sense_are_refused() {
    for (word, why) in [
        (&b"{}"[..], "missing field"),
        (b"\0\xff", "expected value"),
        (b"{\"v\":99,\"word\":\"ready\"}", "version 99"),
        (b"{\"v\":1,\"word\":\"more\"}", "says More"),
        (b"{\"v\":1,\"word\":\"ready\"}", "says Ready"),
        (b"{\"v\":1,\"word\":{\"end\":{\"connections\":9}}}", "connections are missing"),
        (&[b' '; 4096], "not whole"),
        (b"{\"v\":1,\"word\":{\"parcel\":{\"content\":\"base\",\"document\":1,\"bytes\":1,\"descriptors\":0}}}", "not whole"),
    ] {
        let (line, theirs, open) = line();
        send(&theirs, word, SendFlags::NOSIGNAL).unwrap();
        send(&theirs, b"{\"v\":1,\"word\":\"taken\"}", SendFlags::NOSIGNAL).unwrap();
        drop((theirs, open));
        let said = receive(line).unwrap_err().to_string();
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn a_line_that_ends_is_told_from_one_that_is_reset() {
    let (line, theirs, open) = line();
    drop((theirs, open));
    assert_eq!(line.hear().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let (line, theirs, open) = self::line();
    line.say(&Word::Yours).unwrap();
    drop((theirs, open));
    assert_eq!(line.hear().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}
