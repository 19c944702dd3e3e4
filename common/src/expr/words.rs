//! Says in words what an expression expects of an answer, and what the answer has instead. What cannot be put
//! into words stays as it is written. Pure.

use std::{borrow::Cow, collections::BTreeSet, sync::LazyLock};

use regex::{Captures, Regex};

use super::{Answer, quote, text};

/// How parts of expressions are said, in this order.
const SAYINGS: [(&str, &str); 9] = [
    // The status is said with the answer.
    (r"^status == \d+ and ", ""),
    (r"^status == (\d+)$", "$1"),
    (r"'([^']*)' not in text", "no \"$1\""),
    (r"'([^']*)' in text", "\"$1\""),
    (r"text(?:\|trim)? == '([^']*)'", "\"$1\""),
    (r"json((?:\.\w+)+) == '([^']*)'", "$1 \"$2\""),
    (r"json((?:\.\w+)+) == (\d+)", "$1 $2"),
    (r"json((?:\.\w+)+) in \[([^\]]*)\]", "$1 of $2"),
    (r"json((?:\.\w+)+)", "$1"),
];

static RULES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let rules = SAYINGS.iter().filter_map(|(like, said)| Some((Regex::new(like).ok()?, *said)));
    rules.collect()
});

/// A path into the answer.
static PATHS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"json(?:\.\w+)+").ok());

/// The dot before the first field of a path that was said without its `json`.
static DOTS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r#"(^|[ (])\.(\w)"#).ok());

/// What an expression expects: `health "true"` for `status == 200 and json.health == 'true'`.
#[must_use]
pub fn expected(expression: &str) -> String {
    let mut said = Cow::Borrowed(expression);
    for (like, words) in RULES.iter() {
        said = Cow::Owned(like.replace_all(&said, *words).into_owned());
    }
    let undotted = DOTS.as_ref().map(|dots| {
        dots.replace_all(&said, |found: &Captures<'_>| format!("{}{}", &found[1], &found[2]))
            .replace('\'', "\"")
    });
    undotted.unwrap_or_else(|| said.into_owned())
}

/// What the answer has of that: `health "false"`; `None` where the expression asks only for its status.
#[must_use]
pub fn got(expression: &str, answer: &Answer) -> Option<String> {
    let paths = PATHS.as_ref()?.find_iter(expression).map(|found| found.as_str());
    let paths: BTreeSet<&str> = paths.collect();
    if !paths.is_empty() {
        let value = |path: &str| text(path, answer).map_or("nothing".to_owned(), |it| quote(&it));
        let values: Vec<String> = match paths.iter().collect::<Vec<_>>().as_slice() {
            [one] => vec![value(one)],
            many => many
                .iter()
                .map(|path| format!("{} {}", path.trim_start_matches("json."), value(path)))
                .collect(),
        };
        return Some(values.join(", "));
    }
    let asks_text = expression.split(|c: char| !c.is_ascii_alphanumeric()).any(|w| w == "text");
    asks_text.then(|| quote(answer.text.trim().lines().last().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_of_the_blueprints_are_said_in_words() {
        let json = r#"{"health":"false","role":"","meta":{"leader":"n2"}}"#;
        let json = Answer { status: 200, text: json.to_owned() };
        let text = Answer { status: 0, text: "Zookeeper\nMode: looking\n".to_owned() };
        let mut said = String::new();
        for (expression, answer) in [
            ("status == 200 and json.health == 'true'", &json),
            ("status == 200 and json.leader_id and json.role in ['LEADER', 'FOLLOWER']", &json),
            ("json.meta.leader == json.server_name", &json),
            ("status == 204", &json),
            ("'Mode: leader' in text or 'Mode: follower' in text", &text),
            ("('role:master' in text and 'slaves:0' not in text) or 'up' in text", &text),
            ("text|trim == 'true'", &text),
            ("range(3)|length > 2 and text|length > 100", &text),
        ] {
            let got = got(expression, answer);
            said += &format!("{} | {}\n", expected(expression), got.unwrap_or_default());
        }
        expect_test::expect![[r#"
            health "true" | "false"
            leader_id and role of "LEADER", "FOLLOWER" | leader_id nothing, role ""
            meta.leader == server_name | meta.leader "n2", server_name nothing
            204 | 
            "Mode: leader" or "Mode: follower" | "Mode: looking"
            ("role:master" and no "slaves:0") or "up" | "Mode: looking"
            "true" | "Mode: looking"
            range(3)|length > 2 and text|length > 100 | "Mode: looking"
        "#]]
        .assert_eq(&said);
    }
}
