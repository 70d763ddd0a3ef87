//! Commands for people to copy. Touches nothing.

use std::path::Path;

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
