//! What is true of the sources themselves, wherever they lie.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use volt_tests::workspace::Workspace;

/// Texts that are others': a licence's own words, and where cargo found what it locked.
const FOREIGN: [&str; 2] = ["LICENSE", "Cargo.lock"];

/// Every file of the tree, but for what is built and what git keeps.
fn files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let (entry, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let kind = fs::symlink_metadata(&entry)?;
        if kind.is_dir() && name != "target" && name != ".git" {
            files(&entry, found)?;
        } else if kind.is_file() {
            found.push(entry);
        }
    }
    Ok(())
}

#[test]
fn tree_names_no_host_to_download_from() -> Result<()> {
    let root = Workspace::find()?.root;
    let mut found = Vec::new();
    files(&root, &mut found)?;
    found.retain(|path| !FOREIGN.iter().any(|name| *path == root.join(name)));
    // Were nothing looked at, nothing would be found.
    ensure!(found.contains(&root.join("tests/tests/sources.rs")), "The tree is not at {}", root.display());
    let mut named = Vec::new();
    for path in found {
        let text = String::from_utf8_lossy(&fs::read(&path)?).to_ascii_lowercase();
        for (n, line) in text.lines().enumerate() {
            // Put together here, so that this file names none.
            if ["http", "https", "ftp", "ssh"].iter().any(|scheme| line.contains(&format!("{scheme}:{}", "//"))) {
                named.push(format!("{}:{}: {}", path.display(), n + 1, line.trim()));
            }
        }
    }
    ensure!(named.is_empty(), "Hosts are named; say what apt or cargo say, or the title of a text: {named:#?}");
    Ok(())
}

#[test]
fn every_fuzz_target_has_inputs_which_ordinary_tests_replay() -> Result<()> {
    let root = Workspace::find()?.root;
    let table = fs::read_to_string(root.join("fuzz/src/targets.rs"))?;
    let named = |line: &str| Some(line.trim().strip_prefix("(\"")?.split_once('"')?.0.to_owned());
    let mut targets: Vec<String> = table.lines().filter_map(named).collect();
    targets.sort();
    ensure!(!targets.is_empty(), "There is no target in fuzz/src/targets.rs");
    let mut found = Vec::new();
    files(&root, &mut found)?;
    let corpus = root.join("fuzz/corpus");
    let mut kept: Vec<String> =
        found.iter().filter_map(|path| Some(path.strip_prefix(&corpus).ok()?.parent()?.to_str()?.to_owned())).collect();
    kept.sort();
    kept.dedup();
    ensure!(targets == kept, "Targets are {targets:?}, and inputs there are for {kept:?}");
    let tests = found.iter().filter(|path| path.ends_with("fuzzing.rs"));
    let tests = tests.map(fs::read_to_string).collect::<Result<String, _>>()?;
    let lost: Vec<_> = targets.iter().filter(|target| !tests.contains(&format!("replay(\"{target}\","))).collect();
    ensure!(lost.is_empty(), "No test replays {lost:?}");
    let large = found.iter().filter(|path| path.starts_with(&corpus));
    let large: Vec<_> = large.filter(|path| fs::metadata(path).is_ok_and(|of| of.len() > 4096)).collect();
    ensure!(large.is_empty(), "Inputs have 4096 bytes at most: {large:?}");
    Ok(())
}

#[test]
fn programs_say_their_lines_in_the_way_that_cannot_end_them() -> Result<()> {
    let root = Workspace::find()?.root;
    let mut found = Vec::new();
    for folder in fs::read_dir(&root)?.flatten() {
        let source = folder.path().join("src");
        if source.is_dir() && folder.file_name() != "tests" {
            files(&source, &mut found)?;
        }
    }
    ensure!(found.contains(&root.join("confine/src/say.rs")), "The programs are not below {}", root.display());
    let mut named = Vec::new();
    for path in found {
        for (n, line) in fs::read_to_string(&path)?.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains("eprintln!(") || code.contains("eprint!(") {
                named.push(format!("{}:{}", path.display(), n + 1));
            }
        }
    }
    named.retain(|place| !place.contains("tests"));
    ensure!(named.is_empty(), "A full disk ends a program there; use confine::say!: {named:#?}");
    Ok(())
}
