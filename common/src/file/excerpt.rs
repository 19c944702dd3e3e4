//! Shows a mistake in its file: name, line and column, the text underlined, what to do.

use std::fmt::Write;

use crate::file::Problem;

/// Longer lines are shown in part, around what is wrong.
const EXCERPT_CHARS_MAX: usize = 120;

/// Characters shown before the mistake in a long line.
const LEAD_CHARS: usize = 40;

/// Line and column of a byte of a text, both from 1; columns count characters.
#[must_use]
pub fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

impl Problem {
    /// The mistake as people read it, without colours, ending in a line break:
    ///
    /// ```text
    /// error: unknown field "cuont" in [cluster.kv.etcd]
    ///  --> lab.toml:7:1
    ///   |
    /// 7 | cuont = 3
    ///   | ^^^^^
    ///   = help: did you mean "count"?
    /// ```
    #[must_use]
    pub fn render(&self, file_name: &str, text: &str) -> String {
        let (line, column) = line_column(text, self.span.start);
        let number = line.to_string();
        let gutter = " ".repeat(number.len());
        let (excerpt, lead) = window(text.split('\n').nth(line - 1).unwrap_or_default(), column);
        let rest = excerpt.chars().count().saturating_sub(lead);
        let marks = "^".repeat(self.marked_chars(text).clamp(1, rest.max(1)));
        let mut out = format!("error: {}\n", self.message);
        let _ = writeln!(out, "{gutter}--> {file_name}:{line}:{column}");
        let _ = writeln!(out, "{gutter} |");
        let _ = writeln!(out, "{}", format!("{number} | {excerpt}").trim_end());
        let _ = writeln!(out, "{gutter} | {}{marks}", " ".repeat(lead));
        if let Some(help) = &self.help {
            let _ = writeln!(out, "{gutter} = help: {help}");
        }
        out
    }

    /// How many characters are wrong on the first line of them.
    fn marked_chars(&self, text: &str) -> usize {
        let wrong = text.get(self.span.clone()).unwrap_or_default();
        wrong.split('\n').next().unwrap_or_default().trim_end().chars().count()
    }
}

/// The part of a line to show, and how many characters of it come before the column. One character
/// stays one character, so that the marks stay below what is wrong; none can steer a terminal.
fn window(line: &str, column: usize) -> (String, usize) {
    let shown = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    let chars: Vec<char> = line.trim_end_matches('\r').chars().map(shown).collect();
    let at = column - 1;
    if chars.len() <= EXCERPT_CHARS_MAX {
        return (chars.into_iter().collect(), at);
    }
    let start = at.saturating_sub(LEAD_CHARS);
    let end = (start + EXCERPT_CHARS_MAX).min(chars.len());
    let mut part = String::new();
    if start > 0 {
        part.push('…');
    }
    part.extend(&chars[start..end]);
    if end < chars.len() {
        part.push('…');
    }
    (part, at - start + usize::from(start > 0))
}
