//! Renders the probes of a node: from a rule as written to a question with nothing left to choose.

use std::time::Duration;

use crate::{
    blueprint::{ProbeRule, RoleRule},
    duration::Span,
    name::NodeName,
    probe::{Ask, Probe, RoleProbe},
    render::{RenderError, Scene, refuse},
};

/// How long an answer may take where the blueprint does not say.
const TIMEOUT: Span = Span(Duration::from_secs(1));

/// Methods a probe may use.
pub(crate) const METHODS: [&str; 4] = ["GET", "POST", "PUT", "DELETE"];

impl Scene<'_> {
    /// Renders a probe. `place` names it in errors: `ready`.
    pub(super) fn probe(
        &self,
        node: &NodeName,
        place: &str,
        rule: &ProbeRule,
    ) -> Result<Probe, RenderError> {
        let text =
            |field: &str, template: &str| self.text(node, &format!("{place}.{field}"), template);
        let ask = if let Some(http) = &rule.http {
            let body = rule.body.as_deref().unwrap_or_default();
            let (method, url) = request(&text("http", http)?);
            Ask::Http { method, url, body: text("body", body)? }
        } else if let Some(grpc) = &rule.grpc {
            let whole = text("grpc", grpc)?;
            let (address, service) = whole.split_once('/').unwrap_or((&whole, ""));
            Ask::Grpc { address: address.to_owned(), service: service.to_owned() }
        } else if let Some(tcp) = &rule.tcp {
            Ask::Tcp { address: text("tcp", tcp)? }
        } else if let Some(command) = &rule.command {
            let list = command.iter().enumerate();
            let argv = list.map(|(i, part)| text(&format!("command[{i}]"), part));
            Ask::Command { argv: argv.collect::<Result<_, _>>()? }
        } else if let Some(log) = &rule.log {
            Ask::Log { pattern: log.clone() }
        } else {
            let why = "it asks nothing: one of http, grpc, tcp, command and log is needed";
            return Err(refuse(node, place, why.to_owned()));
        };
        Ok(Probe { ask, expect: rule.expect.clone(), timeout: rule.timeout.unwrap_or(TIMEOUT) })
    }

    /// Renders `role_state`.
    pub(super) fn role_probe(
        &self,
        node: &NodeName,
        rule: &RoleRule,
    ) -> Result<RoleProbe, RenderError> {
        Ok(RoleProbe {
            probe: self.probe(node, "role_state", &rule.probe)?,
            leader: rule.leader.clone(),
            state: rule.state.clone(),
            term: rule.term.clone(),
            leads: rule.leads.clone(),
        })
    }
}

/// Splits `[METHOD ][http://]address/path`.
fn request(text: &str) -> (String, String) {
    let (method, url) = match text.split_once(' ') {
        Some((word, rest)) if METHODS.contains(&word) => (word, rest.trim_start()),
        _ => ("GET", text),
    };
    (method.to_owned(), url.strip_prefix("http://").unwrap_or(url).to_owned())
}
