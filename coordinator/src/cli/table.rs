//! Tables for people: aligned columns, coloured words, no lines, nothing wrapped, so `grep` and `awk` work.

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, TableStyle};

/// What a word tells at a glance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Nothing special.
    Plain,
    /// As it should be.
    Good,
    /// On its way, or on purpose.
    Calm,
    /// Look here.
    Warn,
    /// Broken.
    Bad,
    /// Of little interest.
    Faint,
    /// A name.
    Strong,
}

/// One cell.
#[must_use]
pub fn cell(text: impl ToString, tone: Tone) -> Cell {
    let text = text.to_string();
    // Nothing is not coloured: its codes would hide the spaces before it from the trimming.
    let tone = if text.is_empty() { Tone::Plain } else { tone };
    let cell = Cell::new(text);
    match tone {
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::Green),
        Tone::Calm => cell.fg(Color::Cyan),
        Tone::Warn => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red).add_attribute(Attribute::Bold),
        Tone::Faint => cell.add_attribute(Attribute::Dim),
        Tone::Strong => cell.add_attribute(Attribute::Bold),
    }
}

/// An ordinary cell.
#[must_use]
pub fn plain(text: impl ToString) -> Cell {
    cell(text, Tone::Plain)
}

/// The cell of what is not known or does not apply.
#[must_use]
pub fn none() -> Cell {
    cell("-", Tone::Faint)
}

/// Lays out rows under a header. Colours are always in it; `output::data` strips them where
/// nobody looks.
#[must_use]
pub fn render(header: &[&str], rows: Vec<Vec<Cell>>) -> String {
    let mut table = Table::new();
    table
        .load_style(TableStyle::new())
        .set_content_arrangement(ContentArrangement::Disabled)
        .force_no_tty()
        .enforce_styling()
        .set_header(header.iter().map(|title| cell(title, Tone::Faint)));
    table.style_text_only();
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    text.join("\n")
}

/// Cuts every line to what a terminal of `width` columns shows, with `…` where something is missing.
/// Colours stay, and end where the line ends.
#[must_use]
pub fn fit(text: &str, width: usize) -> String {
    let lines: Vec<String> = text.lines().map(|line| fit_line(line, width)).collect();
    lines.join("\n")
}

fn fit_line(line: &str, width: usize) -> String {
    let plain = anstream::adapter::strip_str(line).to_string();
    if plain.chars().count() <= width {
        return line.to_owned();
    }
    let mut cut = String::new();
    let mut left = width.saturating_sub(1);
    let mut is_code = false;
    for char in line.chars() {
        match (char, is_code) {
            ('\x1b', _) => is_code = true,
            (_, true) => is_code = !char.is_ascii_alphabetic(),
            (_, false) if left == 0 => break,
            (_, false) => left -= 1,
        }
        cut.push(char);
    }
    let end = if line.contains('\x1b') { "\x1b[0m" } else { "" };
    format!("{}…{end}", cut.trim_end())
}

/// Shortens a sentence to `width` columns, at the end of a word.
#[must_use]
pub fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let end = text.char_indices().nth(width.saturating_sub(2)).map_or(text.len(), |(at, _)| at);
    let head = &text[..end];
    // A word longer than the line is cut where it must be.
    let head = head.rsplit_once(' ').map_or(head, |(words, _)| words);
    format!("{} …", head.trim_end_matches([' ', ',', ';', ':']))
}

/// The columns of the terminal behind a descriptor; `None` where it is none.
#[must_use]
pub fn columns(of: impl std::os::fd::AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(of).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// A text in a tone, for sentences.
#[must_use]
pub fn tone(text: impl std::fmt::Display, tone: Tone) -> String {
    use owo_colors::OwoColorize;
    match tone {
        Tone::Plain => text.to_string(),
        Tone::Good => text.green().to_string(),
        Tone::Calm => text.cyan().to_string(),
        Tone::Warn => text.yellow().to_string(),
        Tone::Bad => text.red().bold().to_string(),
        Tone::Faint => text.dimmed().to_string(),
        Tone::Strong => text.bold().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_to_the_terminal_and_colours_end_with_them() {
        assert_eq!(fit("short\na longer line", 8), "short\na longe…");
        let red = format!("x {}", tone("not ready at all", Tone::Bad));
        let cut = fit(&red, 8);
        assert_eq!(anstream::adapter::strip_str(&cut).to_string(), "x not r…");
        assert!(cut.ends_with("…\x1b[0m"), "{cut:?}");
        assert_eq!(fit(&red, 80), red);
    }

    #[test]
    fn sentences_are_cut_between_words() {
        assert_eq!(shorten("kv-1 is starting; kv-2 is starting", 20), "kv-1 is starting …");
        assert_eq!(shorten("kv-1 is", 20), "kv-1 is");
        assert_eq!(shorten("abcdefghij", 6), "abcd …");
    }

    #[test]
    fn nothing_in_the_last_column_leaves_no_spaces() {
        let rows = vec![vec![plain("a"), cell("", Tone::Faint)]];
        let text = anstream::adapter::strip_str(&render(&["X", "LONGER"], rows)).to_string();
        assert!(text.lines().all(|line| line == line.trim_end()), "{text:?}");
    }
}
