//! The control socket, and what goes wrong: bad input, taken ports, no descriptors, two at once.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
};

use faultbed_common::{fault::Grade, proxy_spec::Cut};

use rustix::process::{Resource, Rlimit};

use crate::proxy::{Proxy, ProxyError};

use super::harness::{Lab, cut, eventually, fault, in_child, is_silent, pass};

/// Says something to a control socket and reads one line.
fn say(socket: &Path, words: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    // The other side may hang up before all is said.
    let _hung_up = stream.write_all(words);
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply).unwrap_or_default();
    reply
}

#[test]
fn malformed_requests_are_refused_and_harm_nobody() {
    let mut lab = Lab::start(&["x", "y"]);
    let socket = lab.socket();
    for (words, why) in [
        (&b"\n"[..], "parse request"),
        (b"\xff\xfe\0\n", "parse request"),
        (b"{\"v\":1,\"op\":\"explode\"}\n", "unknown variant"),
        (b"{\"v\":99,\"op\":\"stop\"}\n", "version 99"),
        (b"[[[[[[[[[[[[[[[[\n", "parse request"),
        (&[b'x'; 1 << 20], "too long"),
    ] {
        let reply = say(&socket, words);
        assert!(reply.contains("\"ok\":false") && reply.contains(why), "{reply}");
    }
    // Nobody waits for one who says nothing.
    let _silent = UnixStream::connect(&socket).unwrap();
    lab.apply();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_that_is_wrong_changes_nothing() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("split", cut(Cut::Packets), &["x>y", "y>x"]);
    lab.apply();
    let path = lab.home().join("proxy.json");
    // What says only its version, or leaves out one thing that must be said, is half a file.
    let mut halves = vec![String::new(), "{".into(), "{\"version\":1}".into(), "[]".into()];
    let whole = serde_json::to_value(&lab.file).unwrap();
    for key in ["version", "boot_id", "spec", "deadlines"] {
        let mut half = whole.clone();
        half.as_object_mut().unwrap().remove(key).unwrap();
        halves.push(half.to_string());
    }
    for key in ["generation", "listeners", "diallers", "faults"] {
        let mut half = whole.clone();
        half["spec"].as_object_mut().unwrap().remove(key).unwrap();
        halves.push(half.to_string());
    }
    for text in halves {
        fs::write(&path, &text).unwrap();
        let error = lab.client().apply().expect_err(&text);
        assert!(matches!(&error, ProxyError::Refused(why) if why.contains("parse")), "{error}");
    }
    for version in [0, 2] {
        lab.file.version = version;
        lab.write();
        let error = lab.client().apply().unwrap_err().to_string();
        assert!(error.contains(&format!("version {version} is not 1")), "{error}");
    }
    (&mut &near).write_all(b"x").unwrap();
    assert!(is_silent(&far) && lab.report().faults[&fault("split")].active);
    lab.halt();
    assert!(Proxy::start(&lab.home(), &lab.socket()).is_err(), "never open instead");
}

/// What was added to the file since has defaults that mean what its absence meant.
#[test]
fn a_file_of_the_release_before_is_understood() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("split", cut(Cut::Packets), &["x>y", "y>x"]);
    let mut old = serde_json::to_value(&lab.file).unwrap();
    old.as_object_mut().unwrap().remove("lab");
    let spec = old["spec"].as_object_mut().unwrap();
    for key in ["blocks", "hosts", "desk"] {
        spec.remove(key);
    }
    for key in ["grade", "probability", "canary", "fast_heal"] {
        spec["faults"]["split"].as_object_mut().unwrap().remove(key);
    }
    fs::write(lab.home().join("proxy.json"), old.to_string()).unwrap();
    lab.client().apply().unwrap();
    (&mut &near).write_all(b"x").unwrap();
    assert!(is_silent(&far) && lab.report().faults[&fault("split")].active);
}

/// Half of a fault that is told to be in force would be worse than none of it.
#[test]
fn a_fault_with_a_field_of_a_later_release_is_not_in_force_and_says_so() {
    let mut lab = Lab::start(&["x", "y", "z"]);
    let (near, far) = lab.join("x", "y");
    let (other, last) = lab.join("z", "y");
    lab.inject("split", cut(Cut::Packets), &["x>y", "y>x"]);
    lab.inject("later", cut(Cut::Packets), &["z>y", "y>z"]);
    let mut file = serde_json::to_value(&lab.file).unwrap();
    file["spec"]["faults"]["later"]["effect"]["shiny"] = true.into();
    file["spec"]["more"] = 7.into();
    fs::write(lab.home().join("proxy.json"), file.to_string()).unwrap();
    let applied = lab.client().apply().unwrap();
    let later = &applied.faults[&fault("later")];
    let why = "not in force: unknown field effect.shiny; upgrade the proxy";
    assert_eq!((later.active, later.why.as_deref()), (false, Some(why)));
    pass(&other, &last, "passes");
    (&mut &near).write_all(b"x").unwrap();
    assert!(is_silent(&far) && applied.faults[&fault("split")].active, "others are in force");
    // A release that knows it, or a fault without it.
    assert!(lab.apply().faults[&fault("later")].active);
}

#[test]
fn a_port_in_use_names_its_holder_and_is_taken_when_it_is_free() {
    let mut lab = Lab::prepare(&["x", "y"]);
    let foreign = TcpListener::bind(lab.listen("y")).unwrap();
    lab.run();
    let applied = lab.apply();
    let [failed] = applied.failed.as_slice() else { panic!("{applied:?}") };
    assert_eq!(failed.listener, lab.listen("y"));
    let holder = format!("port in use by pid {} (", std::process::id());
    assert!(failed.why.starts_with(&holder), "{}", failed.why);
    drop(lab.join("y", "x"));

    drop(foreign);
    eventually("it is opened", || lab.report().failed.is_empty());
    let (near, far) = lab.join("x", "y");
    pass(&near, &far, "works");
}

#[test]
fn a_port_of_control_is_no_nodes_and_so_no_faults() {
    let mut lab = Lab::prepare(&["x", "y"]);
    lab.file.spec.desk = Some(lab.listen("y"));
    lab.run();
    lab.inject("split", cut(Cut::Packets), &["x>y", "y>x"]);
    let applied = lab.apply();
    let [failed] = applied.failed.as_slice() else { panic!("{applied:?}") };
    assert_eq!(failed.listener, lab.listen("y"));
    assert!(failed.why.contains("a port of control is no node's"), "{}", failed.why);
    assert_eq!(lab.report().report.listeners, 1, "the others are served");
}

#[test]
fn a_listener_that_another_proxy_has_is_not_shared_with_it() {
    let mut lab = Lab::start(&["x"]);
    let mut other = Lab::prepare(&["z"]);
    other.file.spec.listeners[0].listen = lab.listen("x");
    other.run();
    assert!(other.apply().failed[0].why.contains("port in use by pid"));
    assert!(lab.apply().failed.is_empty());
}

#[test]
fn listeners_come_and_go_while_connections_stay() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    let listeners = std::mem::take(&mut lab.file.spec.listeners);
    lab.apply();
    assert_eq!(lab.report().report.listeners, 0);
    assert!(lab.dial("x", "y").is_err());
    pass(&near, &far, "still carried");
    lab.file.spec.listeners = listeners;
    lab.apply();
    drop(lab.join("x", "y"));
    let state = lab.report().report;
    assert_eq!((state.listeners, state.best_grade), (2, Some(Grade::Packet)));
}

#[test]
fn one_directory_has_one_proxy() {
    let lab = Lab::start(&[]);
    let error = Proxy::start(&lab.home(), &lab.socket()).unwrap_err();
    assert!(error.to_string().contains("another proxy serves"), "{error}");
    drop(lab.report());
}

#[test]
fn a_proxy_that_is_told_to_stop_closes_its_connections_and_listeners() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, _far) = lab.join("x", "y");
    lab.client().stop().unwrap();
    lab.halt();
    let read = (&mut &near).read(&mut [0]);
    assert!(read.is_err() || matches!(read, Ok(0)), "{read:?}");
    assert!(lab.dial("x", "y").is_err());
    let error = lab.client().report().unwrap_err();
    assert!(matches!(error, ProxyError::Unreachable(_)), "{error}");
}

#[test]
fn connections_of_a_wildcard_holder_are_named_too() {
    let mut lab = Lab::prepare(&["x"]);
    let port = lab.listen("x").port();
    let everywhere = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port)));
    // The node itself may have the port on its own address, which then excludes the wildcard.
    let Ok(_everywhere) = everywhere else { return };
    lab.run();
    assert!(lab.apply().failed[0].why.contains("port in use by pid"));
}

/// The limit is the process's own, so that this test runs alone in another one.
#[test]
fn without_descriptors_connections_are_refused_and_later_ones_carried() {
    let name = "control::without_descriptors_connections_are_refused_and_later_ones_carried";
    if !in_child(name, ("FEW", "descriptors")) {
        return;
    }
    let lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let mut taken = Vec::new();
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(200), ..limit }).unwrap();
    // One for the dialler, and none for the proxy.
    while let Ok(file) = fs::File::open("/dev/null") {
        taken.push(file);
    }
    taken.pop();
    let read = |near: std::net::TcpStream| (&mut &near).read(&mut [0]);
    let error = lab.dial("x", "y").and_then(read).expect_err("there is no room for it");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    pass(&near, &far, "others go on");
    drop(taken);
    let (near, far) = lab.join("x", "y");
    pass(&near, &far, "room again");
    assert!(lab.report().report.refused > 0);
}
