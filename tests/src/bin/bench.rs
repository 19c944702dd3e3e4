//! Benchmarks of a whole lab: `start`, `flip` and `idle`, as a table or one JSON document.

use std::io::Write as _;

mod bench {
    pub(crate) mod flip;
    pub(crate) mod idle;
    pub(crate) mod start;
    pub(crate) mod table;
}

use bench::table::Table;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map_or("", String::as_str);
    let table: Table = match name {
        "start" => bench::start::run()?,
        "flip" => bench::flip::run()?,
        "idle" => bench::idle::run()?,
        _ => anyhow::bail!("usage: bench start|flip|idle [--json]"),
    };
    let text = if arguments.iter().any(|a| a == "--json") { table.json() } else { table.text() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
