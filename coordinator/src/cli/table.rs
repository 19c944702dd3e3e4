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
    let cell = Cell::new(text.to_string());
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
