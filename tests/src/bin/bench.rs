//! Benchmarks of a whole lab (`start`, `flip`, `hosts`, `adopt`, `agents`, `idle`), of its links (`link`, `effects`) and of who dials (`identity`), as a table or one JSON document.

use std::io::Write as _;

mod bench {
    pub(crate) mod adopt;
    pub(crate) mod agents;
    pub(crate) mod cost;
    pub(crate) mod crowd;
    pub(crate) mod effects;
    pub(crate) mod flip;
    pub(crate) mod hosts;
    pub(crate) mod identity;
    pub(crate) mod idle;
    pub(crate) mod link;
    pub(crate) mod load;
    pub(crate) mod options;
    pub(crate) mod peers;
    pub(crate) mod proxy;
    pub(crate) mod start;
    pub(crate) mod table;
}

use bench::{options::Options, table::Table};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map_or("", String::as_str);
    if name == bench::identity::DIAL {
        return bench::identity::dial(arguments.get(1..).unwrap_or_default());
    }
    let known: &[&str] = match name {
        "link" => &["rounds", "only", "targets", "also"],
        "effects" => &["only"],
        "agents" => &["hosts", "faults"],
        _ => &[],
    };
    let options = Options::parse(arguments.get(1..).unwrap_or_default(), known)?;
    let table: Table = match name {
        "adopt" => bench::adopt::run()?,
        "agents" => bench::agents::run(&options)?,
        "start" => bench::start::run()?,
        "flip" => bench::flip::run()?,
        "hosts" => bench::hosts::run()?,
        "idle" => bench::idle::run()?,
        "identity" => bench::identity::run()?,
        "link" => bench::link::run(&options)?,
        "effects" => bench::effects::run(&options)?,
        _ => anyhow::bail!(
            "usage: bench start|flip|hosts|adopt|agents|idle|identity|link|effects [--json]"
        ),
    };
    let text = if options.json { table.json() } else { table.text() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
