//! Rows in columns for people. Every cell is escaped here, whatever is in it.

use std::io::{self, IsTerminal as _};

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::excerpt::escaped;

/// What stands between two columns.
const GAP: &str = "  ";

/// A column is not made narrower than this.
const NARROWEST: usize = 4;

/// How wide a terminal is taken to be that does not say.
const USUAL_WIDTH: usize = 80;

/// How many columns the terminal has that standard output is; `None` if it is none, and lines may be of any length.
pub(super) fn terminal_width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let said = rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| usize::from(size.ws_col));
    Some(if said == 0 { USUAL_WIDTH } else { said })
}

/// Columns with their heads, filled part by part. Later parts widen a column where they must, and never narrow one.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    heads: Option<[&'static str; N]>,
    widths: [usize; N],
    most: Option<usize>,
}

impl<const N: usize> Table<N> {
    /// Lines are at most `most` columns wide, and cells are cut for it; `None` cuts nothing.
    pub(super) fn new(heads: [&'static str; N], most: Option<usize>) -> Self {
        Self { heads: Some(heads), widths: heads.map(|head| head.width()), most }
    }

    /// These rows as lines, the heads before the first.
    pub(super) fn lines(&mut self, rows: impl IntoIterator<Item = [String; N]>) -> String {
        let heads = self.heads.take().map(|heads| heads.map(str::to_owned));
        let rows: Vec<[String; N]> =
            heads.into_iter().chain(rows).map(|row| row.map(|cell| escaped(&cell))).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.width().max(*width);
            }
        }
        let widths = self.most.map_or(self.widths, |most| narrowed(self.widths, most));
        rows.iter().map(|row| line(row, &widths, self.most.is_some())).collect()
    }
}

/// Takes from the widest columns what is too much.
fn narrowed<const N: usize>(mut widths: [usize; N], most: usize) -> [usize; N] {
    let room = most.saturating_sub(GAP.len() * N.saturating_sub(1));
    let mut excess = widths.iter().sum::<usize>().saturating_sub(room);
    while excess > 0 {
        let Some(widest) = widths.iter_mut().max().filter(|widest| **widest > NARROWEST) else { break };
        *widest -= 1;
        excess -= 1;
    }
    widths
}

fn line(row: &[String], widths: &[usize], cuts: bool) -> String {
    let mut line = String::new();
    for (at, (cell, width)) in row.iter().zip(widths).enumerate() {
        if at > 0 {
            line.push_str(GAP);
        }
        let cell = if cuts { cut(cell, *width) } else { cell.clone() };
        line.push_str(&cell);
        line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.width())));
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// As much of `text` as fits, with `…` for the rest.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut left = width.saturating_sub(1);
    let mut kept = String::new();
    for char in text.chars() {
        let Some(rest) = left.checked_sub(char.width().unwrap_or(0)) else { break };
        left = rest;
        kept.push(char);
    }
    kept.push('…');
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[[&str; 3]]) -> Vec<[String; 3]> {
        rows.iter().map(|row| row.map(str::to_owned)).collect()
    }

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them() {
        let mut table = Table::new(["ID", "KIND", "ERROR"], None);
        let first = table.lines(rows(&[["1", "a kind", ""], ["22", "漢字", "long error text"]]));
        assert_eq!(first, "ID  KIND    ERROR\n1   a kind\n22  漢字    long error text\n");
        assert_eq!(
            table.lines(rows(&[["333", "k", "e"]])),
            "333  k       e\n",
            "without heads, and no narrower"
        );
    }

    #[test]
    fn on_a_terminal_the_widest_cells_are_cut() {
        let mut table = Table::new(["ID", "KIND", "ERROR"], Some(24));
        let lines =
            table.lines(rows(&[["12345", "a kind of some length", "an error"], ["1", "漢字漢字漢字", "x"]]));
        assert_eq!(lines, "ID     KIND      ERROR\n12345  a kind …  an err…\n1      漢字漢…   x\n");
        for line in lines.lines() {
            assert!(line.width() <= 24, "{line}");
        }
        let mut tiny = Table::new(["ID", "KIND", "ERROR"], Some(3));
        assert_eq!(tiny.lines(rows(&[["123456", "", "x"]])), "ID    KIND  ERR…\n123…        x\n");
    }

    #[test]
    fn cells_do_not_drive_the_terminal() {
        let mut table = Table::new(["ID", "KIND", "ERROR"], None);
        let lines = table.lines(rows(&[["1", "\x1b[31mred\n", "\u{202e}x"]]));
        assert!(!lines.contains(['\x1b', '\u{202e}']) && lines.lines().count() == 2, "{lines}");
    }
}
