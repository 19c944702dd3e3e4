//! What orders say that this release does not know, since a later one wrote them.

use std::collections::{BTreeMap, BTreeSet};

use faultbed_common::{
    host_spec::{Around, HostSpec},
    name::FaultName,
    report::{FaultReport, HostReport},
    session::Orders,
};
use serde::{Deserialize, Serialize};

use super::terms::faults;

/// Fields that are named at most, besides those of faults.
const FIELDS_MAX: usize = 3;

/// What a coordinator sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// What must be true, and what of it cannot be understood here.
    Orders(Box<Orders>, Unknown),
    /// Nothing that this release can read, and why.
    Unreadable(String),
}

/// Fields of orders that this release does not know. What they ask for cannot be made true here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unknown {
    /// One field of each fault that has such. It may mean that the fault does something else, so it is
    /// not in force here at all.
    pub faults: BTreeMap<FaultName, String>,
    /// All others. The rest of the orders is followed: a heal must never wait for an upgrade.
    pub fields: BTreeSet<String>,
}

impl From<Orders> for Told {
    fn from(orders: Orders) -> Self {
        Self::Orders(Box::new(orders), Unknown::default())
    }
}

impl Told {
    /// Reads orders as they came.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let mut unknown = Unknown::default();
        let mut json = serde_json::Deserializer::from_str(text);
        let orders = serde_ignored::deserialize(&mut json, |path| unknown.note(&path.to_string()));
        match orders.and_then(|orders| json.end().map(|()| orders)) {
            Ok(orders) => Self::Orders(Box::new(orders), unknown),
            Err(error) => Self::Unreadable(format!("read orders: {error}; {}", older())),
        }
    }
}

/// What a coordinator told of the rest of the lab, which it says again only where it has changed.
#[derive(Debug, Clone)]
pub struct ToldAround {
    around: Around,
    /// What of it is not known here.
    fields: BTreeSet<String>,
}

impl Told {
    /// The same with what was said before of the rest of the lab, where it is left out; else that is noted.
    #[must_use]
    pub fn whole(self, before: &mut Option<ToldAround>) -> Self {
        let Self::Orders(mut orders, mut unknown) = self else { return self };
        if std::mem::take(&mut orders.keeps_around) {
            let Some(before) = before else {
                let why = "read orders: the rest of the lab was not told before";
                return Self::Unreadable(why.to_owned());
            };
            orders.spec.put_around(before.around.clone());
            unknown.fields.extend(before.fields.iter().cloned());
        } else {
            let around = orders.spec.take_around();
            orders.spec.put_around(around.clone());
            *before = Some(ToldAround { around, fields: unknown.of_around() });
        }
        Self::Orders(orders, unknown)
    }
}

impl Unknown {
    /// Fields beside those of nodes and listeners, which are told with all orders.
    fn of_around(&self) -> BTreeSet<String> {
        let always = |field: &&String| {
            ["nodes.", "proxy.listeners."].iter().any(|told| field.starts_with(told))
        };
        self.fields.iter().filter(|field| !always(field)).cloned().collect()
    }

    fn note(&mut self, path: &str) {
        let words: Vec<&str> = path.split('.').collect();
        let of_fault = match words.as_slice() {
            ["spec", "proxy", "faults", name, field @ ..]
            | ["spec", "nodes", _, "faults", name, field @ ..] => Some((*name, field.join("."))),
            _ => None,
        };
        match of_fault.and_then(|(name, field)| Some((name.parse().ok()?, field))) {
            Some((name, field)) => drop(self.faults.insert(name, field)),
            None => drop(self.fields.insert(path.strip_prefix("spec.").unwrap_or(path).to_owned())),
        }
    }

    /// Says in a report what is not true here because of it.
    pub fn fill(&self, spec: &HostSpec, report: &mut HostReport) {
        if !self.fields.is_empty() {
            let fields = self.fields.iter().map(String::as_str).collect::<Vec<_>>();
            let named = fields[..fields.len().min(FIELDS_MAX)].join(", ");
            let more = match fields.len().saturating_sub(FIELDS_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            report.stuck.push(format!("its orders say {named}{more}, unknown here; {}", older()));
        }
        for (name, revision) in faults(spec) {
            let Some(field) = self.faults.get(&name) else { continue };
            let fault = report.faults.entry(name).or_default();
            *fault = FaultReport {
                revision,
                active: false,
                expired: false,
                remaining_ms: None,
                why: Some(format!("unknown field {field}; {}", older())),
                ..std::mem::take(fault)
            };
        }
    }
}

/// What to do about it.
fn older() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("this agent ({version}) is older than its coordinator: upgrade it")
}
