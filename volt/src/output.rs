//! What people see: lines on standard error, and answers on standard output.

use std::{
    fmt::Display,
    io::{self, Write},
};

use comfy_table::{Table, presets};

use crate::error::Error;

/// A line for people.
pub fn say(line: impl Display) {
    confine::say!("volt: {}", printable(&line.to_string()));
}

/// A text as a terminal may see it. What a user names, a service answers or a kernel image says of itself may hold anything.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Prints a table whose columns are as wide as they need to be.
pub fn print_rows<const N: usize>(header: &[&str; N], rows: &[[String; N]]) -> Result<(), Error> {
    print(&table(header, rows))
}

fn table<const N: usize>(header: &[&str; N], rows: &[[String; N]]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    format!("{}\n", table.trim_fmt())
}

/// Writes to standard output. That its reader has had enough (`| head`) is no error.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Error::Output(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell_and_no_line_ends_with_a_space() {
        let rows = [["web", "running"], ["l\u{e0}-b\u{e0}s", ""]].map(|row| row.map(str::to_owned));
        let text = table(&["NAME", "STATE"], &rows);
        assert_eq!(text, "NAME    STATE\nweb     running\nl\u{e0}-b\u{e0}s\n");
        assert_eq!(table(&["NAME", "STATE"], &[]), "NAME  STATE\n");
        let long = "x".repeat(500);
        assert_eq!(table(&["A"], &[[long.clone()]]), format!("A\n{long}\n"));
    }
}
