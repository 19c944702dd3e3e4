//! Whatever people and programs write: parsers refuse it with a reason, and never panic or hang.

use std::{fmt::Display, str::FromStr};

use faultbed_common::{
    duration::Span,
    edit::EditRequest,
    effect::{Loss, Rate, Ratio, Size, Slice},
    expr::{self, Answer},
    file,
    host_spec::HostSpec,
    link::{Link, Party},
    name::{ClusterName, FaultName, NodeName},
    proxy_spec::ProxyFile,
    target,
};
use faultbed_fuzz::{corpus, examples, fuzz};
use serde::{Serialize, de::DeserializeOwned};

fn text(document: &[u8]) -> String {
    String::from_utf8_lossy(document).into_owned()
}

/// What is read is written as a text that is read as the same.
fn round<T: FromStr + Display + PartialEq + std::fmt::Debug>(text: &str) {
    let Ok(value) = text.parse::<T>() else { return };
    let written = value.to_string();
    assert_eq!(written.parse::<T>().ok(), Some(value), "{text:?} is written as {written:?}");
}

/// As [`round`], for JSON.
fn round_json<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(document: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(document) else { return };
    let written = serde_json::to_vec(&value).expect("write what was read");
    assert_eq!(serde_json::from_slice::<T>(&written).ok(), Some(value));
}

#[test]
fn lab_files() {
    fuzz!(examples("deploy/examples"), |document: &[u8]| {
        let _refused = file::parse_lab(&text(document));
    });
}

#[test]
fn blueprints() {
    fuzz!(examples("deploy/blueprints"), |document: &[u8]| {
        let _refused = file::parse_blueprint(&text(document));
    });
}

#[test]
fn quantities() {
    let texts = [
        "100kbit",
        "10Mbit",
        "1.5MB/s",
        "512B",
        "64KiB",
        "1%",
        "0.01%",
        "p=1% r=20% good=0% bad=99%",
        "burst=20ms every=2s",
        "64B variation=16B delay=1ms",
        "10ms",
        "1h30m",
        "2days",
        "1us",
    ];
    fuzz!(texts, |document: &[u8]| {
        let text = text(document);
        round::<Rate>(&text);
        round::<Size>(&text);
        round::<Ratio>(&text);
        round::<Loss>(&text);
        round::<Slice>(&text);
        round::<Span>(&text);
    });
}

#[test]
fn names_links_and_targets() {
    let texts = [
        "kv-1",
        "db-tikv-2",
        "x>y",
        "clients>kv-1",
        "leader:kv/pd",
        "host:h1",
        "label:zone=a",
        "not:kv-*",
        "kv-1,kv-2",
        "clients",
    ];
    fuzz!(texts, |document: &[u8]| {
        let text = text(document);
        round::<NodeName>(&text);
        round::<ClusterName>(&text);
        round::<FaultName>(&text);
        round::<Link>(&text);
        round::<Party>(&text);
        let _refused = target::check(&text);
    });
}

#[test]
fn expressions() {
    let texts = [
        "status == 200 and json.health == 'true'",
        "json.raftTerm | int",
        "text | length > 3",
        "'a' ~ text[0:3]",
    ];
    let answer =
        Answer { status: 200, text: "{\"health\":\"true\",\"raftTerm\":\"7\"}".to_owned() };
    fuzz!(texts, |document: &[u8]| {
        let text = text(document);
        if expr::check(&text).is_ok() {
            let _refused = expr::is_true(&text, &answer);
            let _refused = expr::text(&text, &answer);
            let _refused = expr::number(&text, &answer);
        }
    });
}

#[test]
fn proxy_files() {
    fuzz!(corpus("proxy_file"), round_json::<ProxyFile>);
}

#[test]
fn host_specs_and_requests() {
    fuzz!(corpus("host_spec"), |document: &[u8]| {
        let _refused = serde_json::from_slice::<HostSpec>(document);
        let _refused = serde_json::from_slice::<EditRequest>(document);
    });
}
