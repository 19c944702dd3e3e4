//! Shows what a file says of names that there are not: before a lab of its own is begun, and where a lab
//! that runs refuses the file.

use std::{collections::BTreeMap, net::Ipv4Addr};

use faultbed_common::{
    blueprint::Blueprint,
    fault::FaultSpec,
    file::Problem,
    lab::{Cluster, Host, Lab, Means, Origin, Relist},
    name::{ClusterName, FaultName, LabName},
    place, shape,
    spec::{ClusterSpec, LabFile},
    target,
};

use super::{Loaded, Source, failure, span_of};
use crate::cli::{
    blueprints,
    failure::{Exit, Failure},
};

impl Loaded {
    /// Checks the file of a lab in which nothing else is: on so many hosts its clusters can be placed, and
    /// its faults name what there is.
    ///
    /// # Errors
    /// All mistakes, each at its place.
    pub fn check_alone(&self, hosts: u32) -> Result<(), Failure> {
        let problems = problems(&self.file, &self.blueprints, hosts, &self.source.text);
        if problems.is_empty() {
            return Ok(());
        }
        Err(failure(&self.source.path, &self.source.text, &problems))
    }
}

impl Source {
    /// The refusal of a lab, at the place in the file that it is about, where it names an object of it.
    #[must_use]
    pub fn locate(&self, refused: Failure) -> Failure {
        let message = match &refused.message {
            Some(message) if refused.exit == Exit::REFUSED => message.as_str(),
            _ => return refused,
        };
        let about = ["fault", "cluster"].into_iter().find_map(|kind| {
            let (name, why) = message.strip_prefix(kind)?.strip_prefix(' ')?.split_once(": ")?;
            (!name.contains(' ')).then_some((kind, name, why))
        });
        let Some((kind, name, why)) = about else { return refused };
        // A target stands in front of what is wrong with it.
        let value = why.strip_prefix('"').and_then(|rest| Some(rest.split_once('"')?.0));
        let Some(problem) = at(&self.text, kind, name, value, message.to_owned()) else {
            return refused;
        };
        let shown = failure(&self.path, &self.text, &[problem]);
        refused.next.iter().fold(shown, |failure, line| failure.next(line))
    }
}

/// A mistake of an object: where this value stands in it, else at its head.
fn at(text: &str, kind: &str, name: &str, value: Option<&str>, message: String) -> Option<Problem> {
    let head = span_of(text, &[kind, name]);
    if head.is_empty() {
        return None;
    }
    let body = &text[head.end..];
    // Tables end where the next begins.
    let body = &body[..body.find("\n[").unwrap_or(body.len())];
    let found = value.filter(|value| !value.is_empty()).and_then(|value| {
        let at = head.end + body.find(value)?;
        Some(at..at + value.len())
    });
    let span = found.unwrap_or(head);
    Some(Problem { span, message, help: None })
}

fn problems(
    file: &LabFile,
    own: &BTreeMap<String, Blueprint>,
    hosts: u32,
    text: &str,
) -> Vec<Problem> {
    let Ok(mut lab) = LabName::parse("new").map(|name| Lab::new(name, 1)) else {
        return Vec::new();
    };
    for number in 1..=hosts {
        let last = u8::try_from(number).unwrap_or(u8::MAX);
        let Ok(name) = format!("h{number}").parse() else { continue };
        let mut host = Host::new(Ipv4Addr::new(127, 77, 1, last).into(), "/".into());
        if let Some(said) = file.host.get(&name) {
            host.relabel(|of| of.file.clone_from(&said.labels));
        }
        lab.hosts.insert(name, host);
    }
    let shipped = blueprints::shipped();
    let mut problems = Vec::new();
    for (name, spec) in &file.cluster {
        let blueprint = own.get(&spec.blueprint).or_else(|| shipped.get(&spec.blueprint));
        // What is not known is said elsewhere.
        let Some(blueprint) = blueprint else { return problems };
        match placed(&lab, name, spec, blueprint) {
            Ok(cluster) => {
                lab.clusters.insert(name.clone(), cluster.into());
            }
            Err(why) => problems.extend(at(text, "cluster", name.as_str(), None, why)),
        }
    }
    if !problems.is_empty() {
        return problems;
    }
    for (name, spec) in &file.fault {
        problems.extend(unknown(&lab, name, spec, text));
    }
    problems.sort_by_key(|problem| problem.span.start);
    problems
}

fn placed(
    lab: &Lab,
    name: &ClusterName,
    spec: &ClusterSpec,
    blueprint: &Blueprint,
) -> Result<Cluster, String> {
    let mut cluster = Cluster {
        spec: spec.clone(),
        blueprint: blueprint.clone(),
        origin: Origin { owner: String::new(), by: Means::Apply },
        nodes: BTreeMap::new(),
        last_index: BTreeMap::new(),
        been_ready: Default::default(),
        relist: Relist::default(),
        token: String::new(),
        lease: None,
        authority: None,
    };
    match place::place(lab, name, &mut cluster, &BTreeMap::new()) {
        Ok(()) => Ok(cluster),
        Err(error) => Err(error.to_string()),
    }
}

/// The targets of a fault that can never be anything in this lab.
fn unknown(lab: &Lab, name: &FaultName, spec: &FaultSpec, text: &str) -> Vec<Problem> {
    let targets = shape::targets(spec);
    // One that only excludes means nothing by itself.
    let named = targets.iter().filter(|target| !target.starts_with("not:"));
    let each = named.filter_map(|one| target::clusters(lab, std::slice::from_ref(one)).err());
    let mut errors: Vec<_> = each.collect();
    if errors.is_empty() {
        errors.extend(target::clusters(lab, &targets).err());
    }
    let problem = |error: target::TargetError| {
        let message = format!("fault {name}: {error}");
        at(text, "fault", name.as_str(), Some(&error.target), message)
    };
    errors.into_iter().filter_map(problem).collect()
}
