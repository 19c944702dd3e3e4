//! A soak of one proxy process: random faults, clients that dial again and again, and figures that must not grow.
//!
//!     soak [--seconds N | --minutes N] [--seed N]
//!
//! After a warm-up everything is healed and every connection ended, and memory and descriptors are
//! noted. Then faults of every kind come and go over busy connections, for half of the time one node
//! is cut off while its client dials again and again, and at the end everything is healed and ended
//! once more: what is used then must be what was used before.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

mod soak {
    pub(crate) mod churn;
    pub(crate) mod process;
    pub(crate) mod traffic;
}

use soak::{
    churn::Churn,
    process::{Figures, Proxy},
    traffic::Traffic,
};

/// A soak that is not told otherwise.
const SECONDS: u64 = 20 * 60;
/// The shortest that shows anything.
const SECONDS_LEAST: u64 = 20;
const LINE_EVERY: Duration = Duration::from_secs(10);
/// What an allocator may keep after millions of connections; a leak of one byte for each is more.
const MEMORY_GROWTH_MAX: u64 = 8_000_000;
/// Idle pipes that a worker keeps, two descriptors each, and nothing else.
const DESCRIPTORS_GROWTH_MAX: u64 = 32;
/// Descriptors that are not of connections or idle: pipes in use, drop listeners of cut diallers.
const DESCRIPTORS_OTHER_MAX: u64 = 256;
/// Connections at once: each client has one, and those that it gave up while they were cut.
const CONNECTIONS_MAX: u64 = 1_500;
/// Every rule change is in force after this time.
const CHANGE_MAX: Duration = Duration::from_secs(2);
/// When all is healed, every connection whose both ends are gone ends.
const QUIET_MAX: Duration = Duration::from_secs(60);

struct Options {
    time: Duration,
    seed: u64,
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options { time: Duration::from_secs(SECONDS), seed: rand::random() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let number = words.next().and_then(|text| text.parse().ok());
        match (word.as_str(), number) {
            ("--seconds", Some(number)) => options.time = Duration::from_secs(number),
            ("--minutes", Some(number)) => options.time = Duration::from_secs(60 * number),
            ("--seed", Some(number)) => options.seed = number,
            _ => anyhow::bail!("usage: soak [--seconds N | --minutes N] [--seed N]"),
        }
    }
    ensure!(options.time >= Duration::from_secs(SECONDS_LEAST), "at least {SECONDS_LEAST} s");
    Ok(options)
}

fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("print a line")
}

fn main() -> anyhow::Result<()> {
    let Options { time, seed } = options()?;
    say(&format!("soak for {} s: --seed {seed}", time.as_secs()))?;
    let mut soak = Soak::start(seed)?;
    soak.run("warm-up", time / 6, None)?;
    let before = soak.fall_quiet("after the warm-up")?;
    let rest = time - time / 6;
    soak.run("soak", rest, Some(rest / 2))?;
    let after = soak.fall_quiet("at the end")?;
    soak.finish(before, after)
}

struct Soak {
    proxy: Proxy,
    traffic: Traffic,
    churn: Churn,
    began: Instant,
    most: Figures,
    slowest: Duration,
}

impl Soak {
    fn start(seed: u64) -> anyhow::Result<Self> {
        let traffic = Traffic::prepare()?;
        let proxy = Proxy::start(&traffic)?;
        let churn = Churn::new(seed);
        let (began, most, slowest) = (Instant::now(), Figures::default(), Duration::ZERO);
        let mut soak = Self { proxy, traffic, churn, began, most, slowest };
        soak.traffic.start(seed)?;
        Ok(soak)
    }

    /// Faults come and go for a time; for the first `cut` of it one more node is cut off.
    fn run(&mut self, what: &str, time: Duration, cut: Option<Duration>) -> anyhow::Result<()> {
        self.traffic.go_on();
        let (began, mut line) = (Instant::now(), Instant::now());
        if cut.is_some() {
            self.proxy.cut_off()?;
        }
        while began.elapsed() < time {
            if cut.is_some_and(|cut| began.elapsed() > cut) {
                self.proxy.join_again();
            }
            std::thread::sleep(self.churn.change(&mut self.proxy)?);
            let took = self.proxy.apply()?;
            self.slowest = self.slowest.max(took);
            ensure!(took < CHANGE_MAX, "a change took {took:.1?}");
            self.traffic.check()?;
            if line.elapsed() >= LINE_EVERY {
                line = Instant::now();
                let figures = self.proxy.figures()?;
                self.check_now(figures)?;
                self.line(what, figures)?;
            }
        }
        Ok(())
    }

    /// What must hold at every moment.
    fn check_now(&mut self, figures: Figures) -> anyhow::Result<()> {
        self.most = self.most.max(figures);
        let other = figures.descriptors.saturating_sub(2 * figures.connections);
        ensure!(other <= DESCRIPTORS_OTHER_MAX, "{other} descriptors are of no connection");
        let connections = figures.connections;
        ensure!(connections <= CONNECTIONS_MAX, "{connections} connections do not end");
        Ok(())
    }

    fn line(&self, what: &str, figures: Figures) -> anyhow::Result<()> {
        let at = self.began.elapsed().as_secs();
        let (changes, traffic) = (self.churn.changes, self.traffic.counts());
        say(&format!("{at:5} s {what}: {changes} changes, {traffic}; {figures}"))
    }

    /// Heals all, ends all connections, and notes what is used then.
    fn fall_quiet(&mut self, when: &str) -> anyhow::Result<Figures> {
        self.proxy.heal_all();
        self.proxy.apply()?;
        self.traffic.rest();
        let began = Instant::now();
        loop {
            let figures = self.proxy.figures()?;
            if figures.connections == 0 {
                self.line(when, figures)?;
                return Ok(figures);
            }
            ensure!(
                began.elapsed() < QUIET_MAX,
                "{} connections are left {when}, although both ends of all are gone",
                figures.connections
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn finish(self, before: Figures, after: Figures) -> anyhow::Result<()> {
        let traffic = self.traffic.counts();
        let grown = after.own.saturating_sub(before.own);
        let more = after.descriptors.saturating_sub(before.descriptors);
        say(&format!("changes: {}, the slowest {:.1?}", self.churn.changes, self.slowest))?;
        say(&format!("traffic: {traffic}"))?;
        say(&format!("most at once: {}", self.most))?;
        say(&format!("idle before: {before}"))?;
        say(&format!("idle after:  {after}"))?;
        ensure!(self.traffic.was_busy(), "hardly anything came through");
        ensure!(grown <= MEMORY_GROWTH_MAX, "memory has grown by {grown} bytes");
        ensure!(more <= DESCRIPTORS_GROWTH_MAX, "{more} descriptors more than before");
        say("memory and descriptors are stable")
    }
}
