//! Puts the lines of several nodes in the order of time, as far as the lines tell it themselves. Pure.

use std::{collections::BTreeMap, sync::LazyLock};

use faultbed_common::{logs::LogLine, name::NodeName};
use regex::{Captures, Regex};

/// A line says its time among its first bytes.
const LOOKED_AT: usize = 96;

/// How programs write the time: `2026-11-21T16:50:01.123`, also with slashes, a space and a comma; Redis'
/// `21 Nov 2026 16:50:01.123`; and CockroachDB's `I261121 16:50:01.123456`.
const TIMES: [&str; 3] = [
    r"(?P<y>\d{4})[-/](?P<m>\d\d)[-/](?P<d>\d\d)[T ](?P<t>\d\d:\d\d:\d\d)(?:[.,](?P<f>\d{1,9}))?",
    r"(?P<d>\d\d) (?P<m>[A-Z][a-z]{2}) (?P<y>\d{4}) (?P<t>\d\d:\d\d:\d\d)(?:\.(?P<f>\d{1,9}))?",
    r"^[IWEF](?P<y>\d\d)(?P<m>\d\d)(?P<d>\d\d) (?P<t>\d\d:\d\d:\d\d)(?:\.(?P<f>\d{1,9}))?",
];

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

static PATTERNS: LazyLock<Vec<Regex>> =
    LazyLock::new(|| TIMES.iter().filter_map(|like| Regex::new(like).ok()).collect());

/// A point of time that compares as text.
type Time = String;

/// The lines of each source of each node, with the times that they tell.
type Logs = BTreeMap<(NodeName, String), Vec<(Option<Time>, LogLine)>>;

/// The lines in the order of time. Those of one log stay in their order: one without a time belongs to the
/// line before it, and at the beginning of a log to the first that has one. What has none comes first.
#[must_use]
pub(super) fn sorted(lines: Vec<LogLine>) -> Vec<LogLine> {
    let mut logs = Logs::new();
    for line in lines {
        let key = (line.node.clone(), line.source.clone());
        logs.entry(key).or_default().push((time(&line.text), line));
    }
    let mut all: Vec<(Time, LogLine)> = Vec::new();
    for log in logs.into_values() {
        let first = log.iter().find_map(|(time, _)| time.clone());
        let mut latest = first.unwrap_or_default();
        for (time, line) in log {
            // A clock that was set back moves no line before the one that was written before it.
            latest = time.filter(|time| *time > latest).unwrap_or(latest);
            all.push((latest.clone(), line));
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all.into_iter().map(|(_, line)| line).collect()
}

fn time(line: &str) -> Option<Time> {
    let mut end = line.len().min(LOOKED_AT);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    let head = &line[..end];
    PATTERNS.iter().find_map(|like| like.captures(head)).map(|found| comparable(&found))
}

fn comparable(found: &Captures<'_>) -> Time {
    let part = |name: &str| found.name(name).map_or("", |part| part.as_str());
    let month = MONTHS.iter().zip(1..).find(|(name, _)| **name == part("m"));
    let month = month.map_or_else(|| part("m").to_owned(), |(_, number)| format!("{number:02}"));
    let year = if part("y").len() == 2 { format!("20{}", part("y")) } else { part("y").to_owned() };
    format!("{year}-{month}-{} {}.{:0<9}", part("d"), part("t"), part("f"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(node: &str, text: &str) -> LogLine {
        LogLine {
            node: node.parse().unwrap(),
            source: "output".into(),
            text: text.into(),
            absent: false,
        }
    }

    #[test]
    fn lines_of_several_programs_come_in_the_order_of_time() {
        let lines = vec![
            line("kv-1", "2026-11-21 16:50:01.500000 I | raft: became leader"),
            line("kv-1", "goroutine 1 [running]:"),
            line("kv-1", "2026-11-21 16:50:09.000000 I | bye"),
            line("r-1", "77:M 21 Nov 2026 16:50:02.123 * Ready to accept connections"),
            line("r-2", "starting without a time"),
            line("r-2", r#"{"level":"info","ts":"2026-11-21T16:50:01.4Z","msg":"up"}"#),
            line("c-1", "I261121 16:50:03.000001 1 server up"),
            line("n-1", "[12] 2026/11/21 16:50:08.000001 [INF] up"),
        ];
        let order: Vec<String> = sorted(lines)
            .iter()
            .map(|line| format!("{} {}", line.node, line.text.chars().take(9).collect::<String>()))
            .collect();
        assert_eq!(
            order,
            [
                "r-2 starting ",
                "r-2 {\"level\":",
                "kv-1 2026-11-2",
                "kv-1 goroutine",
                "r-1 77:M 21 N",
                "c-1 I261121 1",
                "n-1 [12] 2026",
                "kv-1 2026-11-2",
            ]
        );
    }
}
