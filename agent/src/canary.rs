//! Canaries: nodes of this host are asked as their peers would ask them, before, while and after a
//! fault is on the link, which proves a cut and its heal end to end. Pure; `ask` asks.
//!
//! A dialled node's proxy carries the whole connection, so what a peer would meet is met on this
//! host, whoever the peer is: the connection is bound to the peer's own address.

pub mod ask;
mod judge;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use faultbed_common::{
    fault::Grade,
    generation::FaultRevision,
    host_spec::{HostSpec, NodeSpec},
    link::{Link, Party},
    name::{FaultName, NodeName},
    probe::Ask,
    proxy_spec::{Cut, LinkFault},
    report::{CanaryReport, FaultReport},
};

use crate::{clock::BootTime, ledger::Accepted};

/// Most links of one host that are asked over at a time: more would be load, not proof.
pub const LINKS_MAX: usize = 32;

/// A link is asked over this often.
pub const EVERY: Duration = Duration::from_millis(500);

/// A question has so long.
pub const TRY_MAX: Duration = Duration::from_secs(1);

/// A fault begins this much later at most, so that its links are asked over before.
pub const BEFORE_MAX: Duration = Duration::from_millis(200);

/// A link that is whole again answers within this: each question is a connection of its own, so no
/// back-off of an old one delays it.
pub const HEALED_MAX: Duration = Duration::from_secs(10);

/// Canaries of ended faults that are kept for the report.
const OVER_MAX: usize = 256;

/// Which canary: the link is asked over from its sender to its receiver.
pub type Key = (FaultName, Link);

/// What is asked, of whom, as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The peer's own address.
    pub from: IpAddr,
    /// The advertised address of the node.
    pub to: SocketAddr,
    /// Whether bytes go both ways, by HTTP; else a connection that opens is all that is asked for.
    pub is_http: bool,
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing, or a refusal.
    None,
    /// An answer, after so many microseconds.
    In(u64),
    /// It could not be asked, for this reason.
    NotAsked(String),
}

/// One question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Try {
    /// When it began.
    pub began: BootTime,
    /// When it was over.
    pub over: BootTime,
    /// What came of it.
    pub answer: Answer,
}

/// A canary that must be asked: one with another round begins anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    /// What is asked.
    pub question: Question,
    /// Counts the edges; a question must not straddle one.
    round: u32,
    /// The deadline of the fault: an edge that nobody tells.
    pub until: Option<BootTime>,
}

/// Where a canary stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It has not been asked at all.
    New,
    /// The fault is wanted, and not known to be in force.
    Waiting,
    /// The fault is in force since then.
    InForce(BootTime),
    /// The fault is not wanted any more, and may still be in force.
    Ending,
    /// The fault is over since then.
    After(BootTime),
    /// It is not asked any more.
    Over,
}

#[derive(Debug, Clone)]
struct Canary {
    revision: FaultRevision,
    question: Question,
    fault: LinkFault,
    grade: Option<Grade>,
    ends: Option<BootTime>,
    phase: Phase,
    round: u32,
    /// Why no answer after the end would be no wonder.
    excuse: Option<String>,
    report: CanaryReport,
}

/// All canaries of this host.
#[derive(Debug, Clone, Default)]
pub struct Canaries {
    all: BTreeMap<Key, Canary>,
    skipped: BTreeMap<FaultName, u64>,
}

impl Canaries {
    /// Takes in what is wanted now. `kept` is what is known of faults from an earlier agent.
    pub fn take_orders(
        &mut self,
        accepted: &Accepted,
        kept: impl Fn(&FaultName, FaultRevision, &Link) -> Option<CanaryReport>,
    ) {
        let wanted = wanted(&accepted.spec);
        for (key, canary) in &mut self.all {
            canary.excuse = excuse(&accepted.spec, key);
            if !wanted.asked.contains_key(key) && !matches!(canary.phase, Phase::Over) {
                canary.leave();
            }
        }
        for (key, question) in wanted.asked {
            let Some(fault) = accepted.spec.proxy.faults.get(&key.0) else { continue };
            let ends = accepted.ends(&key.0);
            let known = self
                .all
                .get_mut(&key)
                .filter(|held| held.revision == fault.revision && held.question == question);
            if let Some(held) = known {
                held.ends = ends;
                continue;
            }
            let report = kept(&key.0, fault.revision, &key.1).or_else(|| self.carried(&key));
            let canary = Canary {
                revision: fault.revision,
                question,
                fault: fault.clone(),
                grade: None,
                ends,
                // What an earlier agent began to ask is in force already, or about to be.
                phase: if report.is_some() { Phase::Waiting } else { Phase::New },
                round: 0,
                excuse: excuse(&accepted.spec, &key),
                report: CanaryReport { is_over: false, ..report.unwrap_or_default() },
            };
            self.all.insert(key, canary);
        }
        self.skipped = wanted.skipped;
        self.forget();
    }

    /// What must be asked before the fault begins; each is named once.
    pub fn to_ask_before(&mut self) -> Vec<(Key, Question)> {
        let new = self.all.iter_mut().filter(|(_, canary)| canary.phase == Phase::New);
        new.filter_map(|(key, canary)| {
            canary.phase = Phase::Waiting;
            // Another fault on the link would answer for this one.
            canary.excuse.is_none().then(|| (key.clone(), canary.question.clone()))
        })
        .collect()
    }

    /// Nothing is asked before faults that were in force before this agent came.
    pub fn skip_before(&mut self) {
        self.to_ask_before();
    }

    /// What came of a question before the fault.
    pub fn was_before(&mut self, key: &Key, answer: &Answer) {
        let Some(canary) = self.all.get_mut(key) else { return };
        match answer {
            Answer::In(_) => canary.report.before = Some(true),
            Answer::None => canary.report.before = Some(false),
            Answer::NotAsked(why) => canary.report.why = Some(why.clone()),
        }
        canary.judge(key);
    }

    /// Takes in what the proxy says of its faults.
    pub fn proxy_says(&mut self, faults: &BTreeMap<FaultName, FaultReport>, now: BootTime) {
        for (key, canary) in &mut self.all {
            let told = faults.get(&key.0).filter(|told| told.revision == canary.revision);
            let is_active = told.is_some_and(|told| told.active);
            match canary.phase {
                Phase::New | Phase::Waiting if is_active => {
                    canary.grade = told.and_then(|told| told.grade);
                    canary.enter(Phase::InForce(now));
                }
                Phase::InForce(_) if told.is_some_and(|told| told.expired) => {
                    let since = canary.ends.unwrap_or(now);
                    canary.enter(Phase::After(since));
                }
                // A fault that never began proves nothing, whatever is answered after it.
                Phase::Ending if !is_active && canary.report.tries == 0 => canary.end(),
                Phase::Ending if !is_active => canary.enter(Phase::After(now)),
                _ => {}
            }
            canary.judge(key);
        }
    }

    /// Takes in one question and its answer.
    pub fn tried(&mut self, key: &Key, found: &Try, node_runs: bool) {
        let Some(canary) = self.all.get_mut(key) else { return };
        if let (Phase::InForce(_), Some(ends)) = (canary.phase, canary.ends)
            && found.began >= ends
        {
            // The proxy keeps deadlines by itself; so does this. The round stays: it is being asked.
            canary.phase = Phase::After(ends);
        }
        canary.tried(found, node_runs, &key.1);
        canary.judge(key);
    }

    /// What must be asked now.
    #[must_use]
    pub fn asking(&self) -> BTreeMap<Key, Asking> {
        let asked = self.all.iter().filter_map(|(key, canary)| {
            let until = match canary.phase {
                Phase::InForce(_) => canary.ends,
                Phase::After(_) => canary.ends,
                Phase::New | Phase::Waiting | Phase::Ending | Phase::Over => return None,
            };
            let question = canary.question.clone();
            Some((key.clone(), Asking { question, round: canary.round, until }))
        });
        asked.collect()
    }

    /// Puts what was found into the reports of faults.
    pub fn fill(&self, faults: &mut BTreeMap<FaultName, FaultReport>) {
        for ((name, link), canary) in &self.all {
            // A proxy process that began anew knows nothing of what ended before.
            let revision = canary.revision;
            let fault = faults
                .entry(name.clone())
                .or_insert_with(|| FaultReport { revision, ..FaultReport::default() });
            if fault.revision == revision {
                fault.canary.insert(link.clone(), canary.report.clone());
            }
        }
        for (name, skipped) in &self.skipped {
            if let Some(fault) = faults.get_mut(name) {
                fault.canary_skipped = *skipped;
            }
        }
    }

    /// What stays true of a fault that goes on in another revision.
    fn carried(&self, key: &Key) -> Option<CanaryReport> {
        let held = self.all.get(key)?;
        let goes_on = matches!(held.phase, Phase::Waiting | Phase::InForce(_));
        let before = held.report.before;
        goes_on.then(|| CanaryReport { before, ..CanaryReport::default() })
    }

    /// What all canaries say, with the fault and the link of each.
    pub fn reports(
        &self,
    ) -> impl Iterator<Item = (&FaultName, FaultRevision, &Link, &CanaryReport)> {
        self.all.iter().map(|((name, link), canary)| (name, canary.revision, link, &canary.report))
    }

    fn forget(&mut self) {
        let over: Vec<Key> = self
            .all
            .iter()
            .filter(|(_, canary)| canary.phase == Phase::Over)
            .map(|(key, _)| key.clone())
            .collect();
        for key in over.iter().take(over.len().saturating_sub(OVER_MAX)) {
            self.all.remove(key);
        }
    }
}

impl Canary {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.round += 1;
    }

    fn end(&mut self) {
        self.phase = Phase::Over;
        self.report.is_over = true;
    }

    /// The fault is not wanted any more.
    fn leave(&mut self) {
        match self.phase {
            // Nobody asked, or the fault was not seen in force: it may be right now.
            Phase::New | Phase::Waiting | Phase::InForce(_) => self.enter(Phase::Ending),
            Phase::Ending | Phase::After(_) | Phase::Over => {}
        }
    }

    fn tried(&mut self, found: &Try, node_runs: bool, link: &Link) {
        match (self.phase, &found.answer) {
            (_, Answer::NotAsked(why)) => {
                self.report.why = Some(why.clone());
                if let Phase::After(_) = self.phase {
                    self.end();
                }
            }
            (Phase::InForce(since), answer) if found.began >= since => {
                // One that was answered across the end says nothing of either side.
                if self.ends.is_some_and(|ends| found.over >= ends) {
                    return;
                }
                self.report.tries += 1;
                if let Answer::In(us) = answer {
                    self.report.answers += 1;
                    let fastest = self.report.fastest_us.map_or(*us, |held| held.min(*us));
                    self.report.fastest_us = Some(fastest);
                }
            }
            (Phase::After(since), Answer::In(_)) if found.began >= since => {
                let after = since.until(found.over);
                self.report.healed_after_ms = Some(faultbed_common::duration::millis(after));
                self.end();
            }
            (Phase::After(since), Answer::None) => {
                if !node_runs {
                    self.excuse = Some(format!("{} does not run", link.to));
                }
                if self.excuse.is_some() || since.until(found.over) >= HEALED_MAX {
                    self.end();
                }
            }
            _ => {}
        }
    }

    fn judge(&mut self, key: &Key) {
        let (verdict, why) =
            judge::judge(&self.report, judge::expect(self, &key.1), self.excuse.as_deref(), &key.1);
        self.report.verdict = verdict;
        self.report.why = why.or_else(|| self.report.why.take().filter(|_| self.report.tries == 0));
    }
}

/// What is to be asked over.
#[derive(Debug, Default)]
struct Wanted {
    asked: BTreeMap<Key, Question>,
    skipped: BTreeMap<FaultName, u64>,
}

/// The links of canary faults that end at a node of this host and come from a node.
fn wanted(spec: &HostSpec) -> Wanted {
    let mut wanted = Wanted::default();
    let addresses: BTreeMap<&NodeName, IpAddr> =
        spec.proxy.diallers.iter().map(|(address, node)| (node, *address)).collect();
    for (name, fault) in spec.proxy.faults.iter().filter(|(_, fault)| fault.canary) {
        for link in &fault.links {
            let (Party::Node(from), Party::Node(to)) = (&link.from, &link.to) else { continue };
            let question = spec.nodes.get(to).zip(addresses.get(from));
            let Some(question) = question.and_then(|(node, from)| question_to(node, *from)) else {
                continue;
            };
            if wanted.asked.len() < LINKS_MAX {
                wanted.asked.insert((name.clone(), link.clone()), question);
            } else {
                *wanted.skipped.entry(name.clone()).or_default() += 1;
            }
        }
    }
    wanted
}

/// How a node is asked by its peer at this address: by HTTP where its ready probe speaks it on a
/// proxied port, else by a connection to the port of the probe, or to any.
fn question_to(node: &NodeSpec, from: IpAddr) -> Option<Question> {
    let proxied: BTreeSet<u16> =
        node.ports.values().filter(|port| port.proxied).map(|port| port.port).collect();
    let ask = node.ready.as_ref().map(|probe| &probe.ask);
    let probed = match ask {
        Some(Ask::Http { url, .. }) => url.split('/').next(),
        Some(Ask::Grpc { address, .. } | Ask::Tcp { address }) => Some(address.as_str()),
        Some(Ask::Command { .. } | Ask::Log { .. }) | None => None,
    };
    let probed = probed
        .and_then(|address| address.parse::<SocketAddr>().ok())
        .map(|address| address.port())
        .filter(|port| proxied.contains(port));
    let port = probed.or_else(|| proxied.first().copied())?;
    let is_http = probed.is_some() && matches!(ask, Some(Ask::Http { .. }));
    Some(Question { from, to: SocketAddr::new(node.address, port), is_http })
}

/// Why silence on this link would be no wonder without the fault: another one is on it, or on the
/// node.
fn excuse(spec: &HostSpec, (name, link): &Key) -> Option<String> {
    let reversed = link.reversed();
    let mut others = spec.proxy.faults.iter().filter(|(other, fault)| {
        *other != name && (fault.links.contains(link) || fault.links.contains(&reversed))
    });
    if let Some((other, _)) = others.next() {
        return Some(format!("{other} is on the link too"));
    }
    let node = link.to.node().and_then(|node| spec.nodes.get(node))?;
    node.faults.keys().next().map(|other| format!("{other} is on {}", link.to))
}

/// Whether the proxy keeps out those whom the fault cuts, so that not even a connection opens.
fn keeps_out(fault: &LinkFault, grade: Option<Grade>) -> bool {
    fault.effect.cut == Some(Cut::Packets) && grade == Some(Grade::Packet)
}
