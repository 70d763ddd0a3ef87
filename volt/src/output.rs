//! What people see: lines on standard error, answers on standard output, and commands to copy.

use std::{
    fmt::Display,
    io::{self, Write},
    path::Path,
};

use comfy_table::{Table, presets};
use ipc::{Code, Fault, chain};

/// A line for people.
pub fn say(line: impl Display) {
    confine::say!("volt: {}", printable(&line.to_string()));
}

/// A text as a terminal may see it. What a user names, a service answers or a kernel image says of itself may hold anything.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Prints a table whose columns are as wide as they need to be.
pub fn print_rows<const N: usize>(header: &[&str; N], rows: &[[String; N]]) -> Result<(), Fault> {
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
pub fn print(text: &str) -> Result<(), Fault> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Fault::new(Code::Unavailable, "write to standard output", chain(&e), "See where it leads to"))
        }
        _ => Ok(()),
    }
}

/// A path as a shell takes it, and the program that it is given to: for commands that people copy.
pub fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    let text = if text.starts_with('-') { format!("./{text}") } else { text };
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+./:@%,".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell_and_no_line_ends_with_a_space() {
        let rows = [["web", "running"], ["l\u{e0}-b\u{e0}s", ""]].map(|row| row.map(str::to_owned));
        let text = table(&["NAME", "STATE"], &rows);
        assert_eq!(text, "NAME    STATE\nweb     running\nl\u{e0}-b\u{e0}s\n");
        assert_eq!(table(&["NAME", "STATE"], &[]), "NAME  STATE\n");
        let long = "x".repeat(500);
        assert_eq!(table(&["A"], &[[long.clone()]]), format!("A\n{long}\n"));
    }

    #[test]
    fn command_for_a_file_of_any_name_does_what_it_says() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["plain.img", "-s", "--help", "a b", "it's", "$(touch no)", "a;b", "`x`", "*", "\"q\"", "~", "#c"] {
            let file = if name.starts_with('-') { Path::new(name).to_owned() } else { dir.path().join(name) };
            fs::write(dir.path().join(name), [0; 5]).unwrap();
            let command = format!("truncate -s 512 {}", shell(&file));
            let done =
                std::process::Command::new("sh").args(["-c", &command]).current_dir(dir.path()).status().unwrap();
            assert!(done.success(), "{command}");
            assert_eq!(fs::metadata(dir.path().join(name)).unwrap().len(), 512, "{command}");
        }
        assert_eq!(shell(Path::new("/a/b.img")), "/a/b.img");
    }
}
