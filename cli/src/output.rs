//! What people see: colours on terminals only, tables with aligned columns.

use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

static COLORED: AtomicBool = AtomicBool::new(false);
/// The first trouble with stdout: not all of the answer was written.
static TROUBLE: Mutex<Option<io::Error>> = Mutex::new(None);

/// A line of a command's answer, on stdout. Unlike `println!` it does not end the program when that cannot be written:
/// `main` tells of it at the end.
macro_rules! say {
    ($($words:tt)*) => { $crate::output::answer(format_args!("{}\n", format_args!($($words)*))) };
}

/// A line for people, on stderr. Nobody there, or a full disk behind it, is no reason to end.
macro_rules! tell {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr().lock(), $($words)*);
    }};
}

pub(crate) use {say, tell};

/// A whole answer: a table, a script.
pub fn say_all(text: &str) {
    answer(format_args!("{text}"));
}

/// Writes a part of a command's answer.
pub fn answer(text: fmt::Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    note(stdout.write_fmt(text).and_then(|()| stdout.flush()));
}

/// What kept the answer from being written whole. A reader that has gone away (`globalfs status | head`) is no trouble.
pub fn trouble() -> Option<io::Error> {
    TROUBLE.lock().ok()?.take()
}

fn note(written: io::Result<()>) {
    let Err(error) = written else { return };
    if error.kind() != ErrorKind::BrokenPipe
        && let Ok(mut trouble) = TROUBLE.lock()
    {
        trouble.get_or_insert(error);
    }
}

/// Decides once whether there are colours.
pub fn init(no_color: bool) {
    let refused = no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
    COLORED.store(!refused && terminal, Ordering::Relaxed);
}

/// Whether there are colours.
pub fn colored() -> bool {
    COLORED.load(Ordering::Relaxed)
}

/// Something is wrong.
pub fn red(text: &str) -> String {
    paint("31", text)
}

/// All is well.
pub fn green(text: &str) -> String {
    paint("32", text)
}

/// Degraded.
pub fn yellow(text: &str) -> String {
    paint("33", text)
}

/// A heading.
pub fn bold(text: &str) -> String {
    paint("1", text)
}

fn paint(code: &str, text: &str) -> String {
    if colored() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
}

/// A table; the first row is its heading.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    /// A table with this heading.
    pub fn new<const N: usize>(heading: [&str; N]) -> Self {
        Table { rows: vec![heading.map(bold).to_vec()], right: Vec::new() }
    }

    /// As [`Table::new`], for a number of columns that is not known beforehand.
    pub fn with_heading(heading: Vec<String>) -> Self {
        Table { rows: vec![heading.iter().map(|cell| bold(cell)).collect()], right: Vec::new() }
    }

    /// Columns with numbers: aligned to the right.
    #[must_use]
    pub fn right(mut self, columns: &[usize]) -> Self {
        self.right = columns.to_vec();
        self
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The lines, columns two blanks apart.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|at| self.rows.iter().filter_map(|row| row.get(at)).map(|cell| width(cell)).max().unwrap_or(0))
            .collect();
        let mut lines = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (at, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[at] - width(cell));
                let gap = if at == 0 { "" } else { "  " };
                match self.right.contains(&at) {
                    true => line.push_str(&format!("{gap}{pad}{cell}")),
                    false => line.push_str(&format!("{gap}{cell}{pad}")),
                }
            }
            lines.push_str(line.trim_end());
            lines.push('\n');
        }
        lines
    }
}

/// Columns on the screen: colours take none.
fn width(cell: &str) -> usize {
    let mut width = 0;
    let mut escaped = false;
    for c in cell.chars() {
        match (escaped, c) {
            (false, '\x1b') => escaped = true,
            (false, _) => width += 1,
            (true, 'm') => escaped = false,
            (true, _) => {}
        }
    }
    width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_aligns_and_ignores_colours() {
        let mut table = Table::new(["name", "ops/s"]).right(&[1]);
        table.row(vec!["\x1b[31mx\x1b[0m".into(), "12".into()]);
        assert_eq!(table.render(), "name  ops/s\n\x1b[31mx\x1b[0m        12\n");
    }
}
