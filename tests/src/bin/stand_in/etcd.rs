//! Stands in for an etcd built with failpoints: the real one, and beside it what gofail would answer.
//!
//! Only the answers about failpoints are not real; nothing fails that is told to.

use std::{
    collections::BTreeMap,
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
};

use crate::{Request, die, open, serve_all};

/// The real one, as Debian has it.
const REAL: &str = "/usr/bin/etcd";

/// A point that any etcd with failpoints has.
const POINT: &str = "raftBeforeSave";

pub(crate) fn etcd(args: &[String]) {
    if let Ok(at) = std::env::var("GOFAIL_HTTP") {
        let at = at.parse().unwrap_or_else(|_| die(&format!("GOFAIL_HTTP={at} is no address")));
        let (listener, points) = (open(at), Points::default());
        thread::spawn(move || serve_all(listener, move |request| points.hear(request)));
    }
    let ended = Command::new(REAL).args(args).status();
    match ended {
        Ok(status) if status.success() => {}
        other => die(&format!("{REAL} ended: {other:?}")),
    }
}

/// Whether a chain of terms such as `5*off->10.0%sleep(100)` could be meant; values are not looked at.
fn is_terms(text: &str) -> bool {
    let is_action = |term: &str| {
        let word = term.split('(').next().unwrap_or_default();
        let word = word.trim_start_matches(|c: char| c.is_ascii_digit() || "*.%".contains(c));
        ["off", "return", "sleep", "panic", "break", "print"].contains(&word)
    };
    text.split("->").all(is_action)
}

/// Which points are on, with their terms.
#[derive(Default)]
struct Points(Mutex<BTreeMap<String, String>>);

impl Points {
    /// As gofail 0.2 answers.
    fn hear(&self, Request { method, path, body }: &Request) -> (u16, String) {
        let name = path.strip_prefix('/').unwrap_or(path);
        let mut on = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match method.as_str() {
            "GET" if name.is_empty() => {
                (200, format!("{POINT}={}\n", on.get(POINT).map_or("", String::as_str)))
            }
            "PUT" | "GET" | "DELETE" if name != POINT => {
                let status = if method == "GET" { 404 } else { 400 };
                (status, "failpoint: failpoint does not exist\n".to_owned())
            }
            "PUT" if !is_terms(body) => {
                (400, "fail to set failpoint: failpoint: could not parse\n".to_owned())
            }
            "PUT" => {
                on.insert(name.to_owned(), body.clone());
                (204, String::new())
            }
            "DELETE" if on.remove(name).is_none() => {
                (400, "failed to delete failpoint failpoint: failpoint is disabled\n".to_owned())
            }
            "DELETE" => (204, String::new()),
            "GET" => match on.get(name) {
                Some(terms) => (200, format!("{terms}\n")),
                None => (404, "failed to GET: failpoint: failpoint is disabled\n".to_owned()),
            },
            _ => (405, "Method not allowed\n".to_owned()),
        }
    }
}
