//! Walks a TOML tree by hand, so that one pass finds every mistake, each with its place.

use std::{cell::RefCell, fmt::Display, ops::Range, str::FromStr};

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use crate::{file::Problem, nearest};

/// Most mistakes shown of one file.
const PROBLEMS_MAX: usize = 50;

/// The mistakes found so far. Shared by everything that walks the same file.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    /// Notes a mistake.
    pub(super) fn add(&self, span: Range<usize>, message: impl Into<String>, help: Option<String>) {
        let problem = Problem { span, message: message.into(), help };
        let mut list = self.0.borrow_mut();
        if !list.contains(&problem) {
            list.push(problem);
        }
    }

    /// How many there are: tells whether a part of the file was without mistakes.
    pub(super) fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// All, in the order of the text; of more than anybody reads, the first.
    pub(super) fn into_list(self) -> Vec<Problem> {
        let mut list = self.0.into_inner();
        list.sort_by_key(|problem| (problem.span.start, problem.span.end));
        let more = list.split_off(list.len().min(PROBLEMS_MAX));
        if let Some(first) = more.first() {
            let message = format!("there are {} more mistakes from here on", more.len());
            list.push(Problem { span: first.span.clone(), message, help: None });
        }
        list
    }
}

/// One table, whose fields are taken by name; what nobody took is unknown.
pub(super) struct Section<'a> {
    /// How messages call it: `[cluster.kv]`.
    pub(super) path: String,
    /// Where it begins: its header, or the braces.
    pub(super) span: Range<usize>,
    table: &'a DeTable<'a>,
    problems: &'a Problems,
    known: RefCell<Vec<&'static str>>,
}

/// One field of a table or one part of an array.
#[derive(Clone)]
pub(super) struct Item<'a> {
    /// Its name in messages: `count`, `args[2]`.
    pub(super) name: String,
    /// Where its key is; its value where it has none.
    pub(super) key_span: Range<usize>,
    /// Where its value is.
    pub(super) span: Range<usize>,
    value: &'a DeValue<'a>,
    path: String,
    problems: &'a Problems,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(super) fn root(table: &'a Spanned<DeTable<'a>>, problems: &'a Problems) -> Self {
        Self {
            path: String::new(),
            span: 0..0,
            table: table.get_ref(),
            problems,
            known: RefCell::default(),
        }
    }

    /// A field, if it is there. Only fields asked for by this are known.
    pub(super) fn get(&self, name: &'static str) -> Option<Item<'a>> {
        self.known.borrow_mut().push(name);
        self.items().find(|item| item.name == name)
    }

    /// Every field; for tables whose keys are names.
    pub(super) fn items(&self) -> impl Iterator<Item = Item<'a>> {
        self.table.iter().map(|(key, value)| Item {
            name: key.get_ref().to_string(),
            key_span: key.span(),
            span: value.span(),
            value: value.get_ref(),
            path: join(&self.path, key.get_ref()),
            problems: self.problems,
        })
    }

    /// The fields that nobody has asked for.
    pub(super) fn rest(&self) -> Vec<Item<'a>> {
        let known = self.known.borrow();
        self.items().filter(|item| !known.contains(&item.name.as_str())).collect()
    }

    /// Reports the fields that nobody asked for.
    pub(super) fn finish(&self) {
        for item in self.rest() {
            self.unknown(&item);
        }
    }

    /// Reports one field as unknown, with the nearest known one.
    pub(super) fn unknown(&self, item: &Item<'a>) {
        let known = self.known.borrow();
        let help = nearest::did_you_mean(&item.name, known.iter()).or_else(|| {
            let mut known = known.clone();
            known.sort_unstable();
            (!known.is_empty()).then(|| format!("fields here are {}", known.join(", ")))
        });
        let place =
            if self.path.is_empty() { String::new() } else { format!(" in [{}]", self.path) };
        let span = item.key_span.clone();
        self.problems.add(span, format!("unknown field {:?}{place}", item.name), help);
    }

    /// Reports that a field is missing.
    pub(super) fn missing(&self, what: impl Into<String>, help: impl Into<String>) {
        self.problems.add(self.span.clone(), what, Some(help.into()));
    }

    /// What was found in the whole file.
    pub(super) fn problems(&self) -> &'a Problems {
        self.problems
    }
}

impl<'a> Item<'a> {
    /// Notes a mistake at the value.
    pub(super) fn wrong(&self, message: impl Into<String>, help: Option<String>) {
        self.problems.add(self.span.clone(), message, help);
    }

    /// Notes a mistake somewhere else in the file.
    pub(super) fn wrong_at(&self, span: &Range<usize>, message: String, help: Option<String>) {
        self.problems.add(span.clone(), message, help);
    }

    /// Notes a mistake at the key.
    pub(super) fn wrong_key(&self, message: impl Into<String>, help: Option<String>) {
        self.problems.add(self.key_span.clone(), message, help);
    }

    /// Reads the key as a name.
    pub(super) fn key<T: FromStr<Err: Display>>(&self) -> Option<T> {
        self.name.parse().map_err(|error: T::Err| self.wrong_key(error.to_string(), None)).ok()
    }

    fn wrong_type(&self, wanted: &str, help: Option<String>) {
        let is = match self.value {
            DeValue::String(_) => "a text",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.wrong(format!("{} must be {wanted}, and this is {is}", self.name), help);
    }

    /// A text.
    pub(super) fn text(&self) -> Option<&'a str> {
        match self.value {
            DeValue::String(text) => Some(text),
            DeValue::Integer(number) => {
                self.wrong_type("a text", Some(format!("write \"{number}\"")));
                None
            }
            DeValue::Boolean(truth) => {
                self.wrong_type("a text", Some(format!("write \"{truth}\"")));
                None
            }
            _ => {
                self.wrong_type("a text", None);
                None
            }
        }
    }

    /// A text that says something.
    pub(super) fn filled_text(&self) -> Option<&'a str> {
        let text = self.text()?;
        if text.trim().is_empty() {
            self.wrong(format!("{} is empty", self.name), None);
            return None;
        }
        Some(text)
    }

    /// A text that is read as a `T`: a name, a duration.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&self) -> Option<T> {
        self.text()?.parse().map_err(|error: T::Err| self.wrong(error.to_string(), None)).ok()
    }

    /// A text that is read as a duration.
    pub(super) fn duration<T: FromStr<Err: Display>>(&self) -> Option<T> {
        if let DeValue::Integer(number) = self.value {
            self.wrong_type("a duration", Some(format!("write \"{number}s\" for seconds")));
            return None;
        }
        self.parsed()
    }

    /// A text that is read as an amount with its unit. `like` is one that is right, for a number without.
    pub(super) fn amount<T: FromStr<Err: Display>>(&self, like: &str) -> Option<T> {
        if matches!(self.value, DeValue::Integer(_) | DeValue::Float(_)) {
            self.wrong_type("a text with a unit", Some(format!("write it like \"{like}\"")));
            return None;
        }
        self.parsed()
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let all: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
        let help = nearest::did_you_mean(text, &words)
            .unwrap_or_else(|| format!("it can be {}", all.join(" or ")));
        self.wrong(format!("{} cannot be {text:?}", self.name), Some(help));
        None
    }

    /// True or false.
    pub(super) fn truth(&self) -> Option<bool> {
        let DeValue::Boolean(truth) = self.value else {
            let quoted = matches!(self.value, DeValue::String(s) if s == "true" || s == "false");
            let help = quoted.then(|| "write it without quotes".to_owned());
            self.wrong_type("true or false", help);
            return None;
        };
        Some(*truth)
    }

    /// A whole number within bounds. `help` is shown where it is out of them.
    pub(super) fn number(&self, from: u64, to: u64, help: Option<&str>) -> Option<u64> {
        let DeValue::Integer(number) = self.value else {
            let quoted = matches!(self.value, DeValue::String(s) if s.parse::<u64>().is_ok());
            self.wrong_type("a whole number", quoted.then(|| "write it without quotes".to_owned()));
            return None;
        };
        let value = i128::from_str_radix(number.as_str(), number.radix()).ok();
        let fits = value.filter(|value| (i128::from(from)..=i128::from(to)).contains(value));
        let fits = fits.and_then(|value| u64::try_from(value).ok());
        if fits.is_none() {
            let message = format!("{} is {number}; it goes from {from} to {to}", self.name);
            self.wrong(message, help.map(str::to_owned));
        }
        fits
    }

    /// The parts of a list.
    pub(super) fn list(&self) -> Option<Vec<Item<'a>>> {
        let DeValue::Array(list) = self.value else {
            let help =
                matches!(self.value, DeValue::String(_)).then(|| "put [ ] around it".to_owned());
            self.wrong_type("a list", help);
            return None;
        };
        Some(
            list.iter()
                .enumerate()
                .map(|(i, part)| Item {
                    name: format!("{}[{i}]", self.name),
                    key_span: part.span(),
                    span: part.span(),
                    value: part.get_ref(),
                    path: format!("{}[{i}]", self.path),
                    problems: self.problems,
                })
                .collect(),
        )
    }

    /// A list of texts.
    pub(super) fn texts(&self) -> Option<Vec<String>> {
        let parts = self.list()?;
        // Every part is looked at, also after a wrong one.
        let texts: Vec<Option<&str>> = parts.iter().map(Item::text).collect();
        texts.into_iter().map(|text| text.map(str::to_owned)).collect()
    }

    /// One text or a list of them.
    pub(super) fn one_or_more(&self) -> Option<Vec<Item<'a>>> {
        match self.value {
            DeValue::String(_) => Some(vec![self.clone()]),
            DeValue::Array(_) => self.list(),
            _ => {
                self.wrong_type("a text or a list of texts", None);
                None
            }
        }
    }

    /// A table.
    pub(super) fn section(&self) -> Option<Section<'a>> {
        let DeValue::Table(table) = self.value else {
            self.wrong_type("a table", None);
            return None;
        };
        Some(Section {
            path: self.path.clone(),
            // What is missing in a table is shown at its name, whichever way it was written.
            span: self.key_span.clone(),
            table,
            problems: self.problems,
            known: RefCell::default(),
        })
    }

    /// Whether it is a table at all.
    pub(super) fn is_table(&self) -> bool {
        matches!(self.value, DeValue::Table(_))
    }

    /// Whether it is a text at all.
    pub(super) fn is_text(&self) -> bool {
        matches!(self.value, DeValue::String(_))
    }

    /// Whether it is a list at all.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.value, DeValue::Array(_))
    }

    /// Whether it is true or false.
    pub(super) fn is_truth(&self) -> bool {
        matches!(self.value, DeValue::Boolean(_))
    }
}

/// Adds a key to a path, in quotes where it needs them.
fn join(path: &str, key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let bare = !key.is_empty() && key.chars().all(plain);
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
