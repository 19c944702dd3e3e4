//! What was looked at on a machine, whether it will do, what it costs where not, and what helps.

use serde::{Deserialize, Serialize};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckVerdict {
    /// As it should be.
    Ok,
    /// A lab runs, and something is lost.
    Warn,
    /// A lab does not run, or not reliably.
    Fail,
}

impl CheckVerdict {
    /// The word that people see.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One check of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at: `open files`. Stable, for programs.
    pub what: String,
    /// How it went.
    pub verdict: CheckVerdict,
    /// What was found.
    pub found: String,
    /// What is lost by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub costs: Option<String>,
    /// What helps, without root where that can be.
    #[serde(default, rename = "do", skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// The command by which root helps for good or until the next boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_root: Option<String>,
}

impl Check {
    /// A check that went well.
    #[must_use]
    pub fn ok(what: &str, found: impl ToString) -> Self {
        Self {
            what: what.to_owned(),
            verdict: CheckVerdict::Ok,
            found: found.to_string(),
            costs: None,
            advice: None,
            as_root: None,
        }
    }

    /// A lab runs, but this is lost.
    #[must_use]
    pub fn warn(what: &str, found: impl ToString, costs: &str) -> Self {
        let costs = Some(costs.to_owned());
        Self { verdict: CheckVerdict::Warn, costs, ..Self::ok(what, found) }
    }

    /// A lab does not run, since this is missing.
    #[must_use]
    pub fn fail(what: &str, found: impl ToString, costs: &str) -> Self {
        Self { verdict: CheckVerdict::Fail, ..Self::warn(what, found, costs) }
    }

    /// Adds what helps.
    #[must_use]
    pub fn advise(mut self, advice: &str) -> Self {
        self.advice = Some(advice.to_owned());
        self
    }

    /// Adds what root would type.
    #[must_use]
    pub fn root(mut self, command: &str) -> Self {
        self.as_root = Some(command.to_owned());
        self
    }

    /// What there is to say below the line of the check itself; nothing where it went well.
    #[must_use]
    pub fn details(&self) -> Vec<String> {
        [("costs", &self.costs), ("do", &self.advice), ("as root", &self.as_root)]
            .into_iter()
            .filter_map(|(title, text)| Some(format!("{title}: {}", text.as_ref()?)))
            .collect()
    }
}

/// All checks as plain lines: `ok    kernel  6.1`, with what there is to say indented below.
#[must_use]
pub fn lines(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.what.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for check in checks {
        let line = format!("{:4}  {:width$}  {}", check.verdict.word(), check.what, check.found);
        lines.push(line.trim_end().to_owned());
        let details = check.details();
        lines.extend(details.iter().map(|detail| format!("{:width$}        {detail}", "")));
    }
    lines.join("\n")
}

/// How many checks went how, in words: `12 ok, 2 warnings, 1 failure`.
#[must_use]
pub fn tally(checks: &[Check]) -> String {
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let mut words = vec![format!("{} ok", count(CheckVerdict::Ok))];
    for (verdict, one, many) in
        [(CheckVerdict::Warn, "warning", "warnings"), (CheckVerdict::Fail, "failure", "failures")]
    {
        match count(verdict) {
            0 => {}
            1 => words.push(format!("1 {one}")),
            number => words.push(format!("{number} {many}")),
        }
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_says_what_it_costs_and_what_helps() {
        let checks = [
            Check::ok("kernel", "6.1"),
            Check::warn("open files", 1024, "few connections").root("ulimit -Hn 65536"),
        ];
        let text = lines(&checks);
        let expected = "ok    kernel      6.1\nwarn  open files  1024\n                  \
                        costs: few connections\n                  as root: ulimit -Hn 65536";
        assert_eq!(text, expected);
        assert_eq!(tally(&checks), "1 ok, 1 warning");
        let json = serde_json::to_value(&checks[1]).unwrap();
        assert_eq!(json["verdict"], "warn");
        assert_eq!(json["as_root"], "ulimit -Hn 65536");
    }
}
