//! The fenced blocks of the README and of the pages in `docs/`, and what each is marked as in the line above it:
//!
//! | mark | what it says of the block |
//! |---|---|
//! | `<!-- test: host NAME -->` | a test runs it, with the others of that name in order, on a host of their own |
//! | `<!-- test: host NAME file PATH -->` | a file of that host's |
//! | `<!-- test: host NAME serves PATH -->` | a program that a test runs until that socket of its has been connected to |
//! | `<!-- test: host NAME prints -->` | what the block before it prints, to the letter |
//! | `<!-- test: file PATH -->` | the content of that file of this repository |
//! | `<!-- test: venv -->` | makes the Python environment that other blocks run in |
//! | `<!-- test: xtask -->` | commands of `cargo xtask` |
//! | `<!-- shown -->` | a picture, or what was seen on some machine: nothing runs it |

use anyhow::{Context, Result, bail};
use schema::programs::{self, Process};

/// The README, as this was built.
pub const README: &str = include_str!("../../README.md");

/// What becomes of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Something on the host of that name.
    Host(String, Step),
    /// The content of a file of this repository.
    File(String),
    /// Makes the Python environment.
    Venv,
    /// Commands of `cargo xtask`.
    Xtask,
    /// Nothing.
    Shown,
}

/// What a block is on its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Commands that are run to their end.
    Run,
    /// A command that serves this socket.
    Serve(String),
    /// The content of a file.
    Write(String),
    /// What the block before it prints.
    Expect,
}

/// A fenced block.
#[derive(Clone, Debug)]
pub struct Block {
    /// The line that it begins in.
    pub line: usize,
    /// How it is marked.
    pub mark: Mark,
    /// What is in it.
    pub text: String,
}

/// The blocks of a page, in order.
///
/// # Errors
/// Where one is not marked, or has no end.
pub fn blocks(page: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut lines = (1..).zip(page.lines());
    let mut above = "";
    while let Some((line, text)) = lines.next() {
        if text.starts_with("```") {
            let mark = mark(above).with_context(|| format!("The block in line {line}"))?;
            let mut block = Block { line, mark, text: String::new() };
            loop {
                match lines.next() {
                    Some((_, "```")) => break,
                    Some((_, text)) => block.text.extend([text, "\n"]),
                    None => bail!("The block in line {line} has no end"),
                }
            }
            blocks.push(block);
        }
        above = text;
    }
    Ok(blocks)
}

fn mark(line: &str) -> Result<Mark> {
    let words = line.strip_prefix("<!-- ").and_then(|line| line.strip_suffix(" -->"));
    let words: Vec<&str> =
        words.with_context(|| format!("is not marked: {line:?} stands above it"))?.split(' ').collect();
    let host = |name: &str, step| Mark::Host(name.to_owned(), step);
    Ok(match words.as_slice() {
        ["test:", "host", name] => host(name, Step::Run),
        ["test:", "host", name, "serves", path] => host(name, Step::Serve((*path).to_owned())),
        ["test:", "host", name, "file", path] => host(name, Step::Write((*path).to_owned())),
        ["test:", "host", name, "prints"] => host(name, Step::Expect),
        ["test:", "file", path] => Mark::File((*path).to_owned()),
        ["test:", "venv"] => Mark::Venv,
        ["test:", "xtask"] => Mark::Xtask,
        ["shown"] => Mark::Shown,
        _ => bail!("is marked as nothing that is known: {line:?}"),
    })
}

/// A table of processes as a page has it: a row each, of its name and what `cells` gives for it.
#[must_use]
pub fn table<const N: usize>(columns: [&str; N], cells: impl Fn(&Process) -> [String; N]) -> String {
    let row = |cells: &[&str]| format!("| {} |\n", cells.join(" | "));
    let mut table = row(&[&["process"], &columns[..]].concat()) + "|---" + &"|---".repeat(N) + "|\n";
    for process in programs::ALL {
        let Process { name, program, .. } = process;
        let name = if name == program { format!("`{name}`") } else { format!("{name} (`{program}`)") };
        let cells = cells(process);
        table += &row(&[name.as_str()].into_iter().chain(cells.iter().map(String::as_str)).collect::<Vec<_>>());
    }
    table
}

/// The README's first VM: the command, in words.
///
/// # Errors
/// Where the README has no such command.
pub fn first_vm() -> Result<Vec<String>> {
    let blocks = blocks(README)?;
    let block = blocks.iter().find(|block| block.text.starts_with("volt run "));
    let block = block.context("The README has no block that begins with volt run")?;
    Ok(block.text.split_whitespace().filter(|word| *word != "\\").map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_with_its_mark_is_found_with_its_text_and_line() {
        let page = "text\n\n<!-- test: host web file web.toml -->\n```toml\na\nb\n```\n<!-- shown -->\n```\n```\n";
        let blocks = blocks(page).unwrap();
        let [file, shown] = blocks.as_slice() else { panic!("{blocks:?}") };
        assert_eq!((file.line, file.text.as_str()), (4, "a\nb\n"));
        assert_eq!(file.mark, Mark::Host("web".into(), Step::Write("web.toml".into())));
        assert_eq!((shown.line, &shown.mark, shown.text.as_str()), (9, &Mark::Shown, ""));
    }

    #[test]
    fn block_without_a_mark_or_with_an_unknown_one_or_without_an_end_is_an_error() {
        for page in
            ["```sh\nx\n```\n", "text\n```\n```\n", "<!-- test: nothing -->\n```\n```\n", "<!-- shown -->\n```\nx\n"]
        {
            assert!(blocks(page).is_err(), "{page:?}");
        }
    }
}
