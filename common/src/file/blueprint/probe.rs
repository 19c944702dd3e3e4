//! Reads the probes of a blueprint: one question, and how its answer is read.

use super::Scope;
use crate::{
    blueprint::{ProbeRule, RoleRule},
    duration::Span,
    expr,
    file::walk::{Item, Section},
    render::METHODS,
};

/// What a probe can ask.
const QUESTIONS: &str = "http, grpc, tcp, command or log";

/// `ready`, or a half of an effect.
pub(super) fn read_probe(
    section: &Section<'_>,
    place: &str,
    scope: Scope<'_>,
) -> Option<ProbeRule> {
    let rule = read_question(section, place, scope);
    section.finish();
    rule
}

/// `role_state`: a question, and what of its answer is the role.
pub(super) fn read_role_rule(section: &Section<'_>, scope: Scope<'_>) -> Option<RoleRule> {
    let probe = read_question(section, "role_state", scope);
    let [leader, state, term, leads] =
        ["leader", "state", "term", "leads"].map(|field| read_expression(section, field));
    if leader.is_none() && state.is_none() {
        let what = "role_state does not say how the role is read from the answer";
        section.missing(what, "add leader = \"json.leader == json.id\", or state");
    }
    section.finish();
    Some(RoleRule { probe: probe?, leader, state, term, leads })
}

fn read_question(section: &Section<'_>, place: &str, scope: Scope<'_>) -> Option<ProbeRule> {
    let template = |field: &'static str| {
        let item = section.get(field)?;
        item.filled_text()?;
        scope.template(&item, &format!("{place}.{field}"))
    };
    let asked: Vec<Item<'_>> = ["http", "grpc", "tcp", "command", "log"]
        .into_iter()
        .filter_map(|field| section.get(field))
        .collect();
    match asked.as_slice() {
        [] => section.missing(format!("{place} asks nothing"), format!("add one of {QUESTIONS}")),
        [_] => {}
        [_, second, ..] => {
            let message = format!("{place} asks two things: one of {QUESTIONS} is allowed");
            second.wrong_key(message, None);
        }
    }
    let rule = ProbeRule {
        http: template("http"),
        body: section.get("body").and_then(|item| scope.template(&item, &format!("{place}.body"))),
        grpc: template("grpc"),
        tcp: template("tcp"),
        command: section
            .get("command")
            .and_then(|item| scope.command(&item, &format!("{place}.command"))),
        log: read_pattern(section, "log"),
        expect: read_expression(section, "expect"),
        timeout: section.get("timeout").and_then(|item| read_timeout(&item)),
    };
    if let (Some(body), None) = (section.get("body"), section.get("http")) {
        body.wrong_key("only http has a body", None);
    }
    if let (Some(item), Some(http)) = (section.get("http"), &rule.http) {
        check_method(&item, http);
    }
    (!asked.is_empty()).then_some(rule)
}

/// An answer that may take no time never comes.
fn read_timeout(item: &Item<'_>) -> Option<Span> {
    let span: Span = item.duration()?;
    if span.0.is_zero() {
        item.wrong("a timeout must be longer than nothing", None);
        return None;
    }
    Some(span)
}

fn check_method(item: &Item<'_>, http: &str) {
    let Some((word, _)) = http.split_once(' ') else { return };
    let is_method = !word.is_empty() && word.bytes().all(|b| b.is_ascii_uppercase());
    if is_method && !METHODS.contains(&word) {
        item.wrong(format!("{word} is not a method; known are {}", METHODS.join(", ")), None);
    }
}

fn read_expression(section: &Section<'_>, field: &'static str) -> Option<String> {
    let item = section.get(field)?;
    let text = item.filled_text()?;
    if let Err(why) = expr::check(text) {
        let help = if text.contains("&&") || text.contains("||") {
            Some("write and, or and not instead of &&, || and !")
        } else if why.contains("did you mean") {
            None
        } else {
            Some("it is an expression over status, text and json, such as status == 200")
        };
        item.wrong(format!("{field}: {why}"), help.map(str::to_owned));
    }
    Some(text.to_owned())
}

pub(super) fn read_pattern(section: &Section<'_>, field: &'static str) -> Option<String> {
    let item = section.get(field)?;
    let text = item.filled_text()?;
    if let Err(error) = regex::Regex::new(text) {
        // The engine draws its own picture; its last line says what is wrong.
        let why = error.to_string();
        let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
        item.wrong(format!("{field} is not a regular expression: {why}"), None);
    }
    Some(text.to_owned())
}
