//! What each program says to a person who asks it what it is, or mistypes. They are run as they are, and open nothing before that.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    process::{Command, Output},
};

use schema::programs::programs;

fn ask(program: &str, argument: &[u8]) -> Option<Output> {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join(program);
    if !path.exists() {
        testkit::skip!("{program} was not built: cargo build --workspace --bins");
        return None;
    }
    Some(Command::new(path).arg(OsStr::from_bytes(argument)).output().unwrap())
}

#[test]
fn each_program_says_what_it_is_and_takes() {
    for program in programs() {
        for flag in ["--help", "-h"] {
            let Some(out) = ask(program, flag.as_bytes()) else { continue };
            let text = String::from_utf8(out.stdout).unwrap();
            assert!(out.status.success() && out.stderr.is_empty(), "{program} {flag}: {text}");
            let (what, rest) = text.split_once('\n').unwrap();
            assert!(what.len() > 20 && what.starts_with(|c: char| c.is_uppercase()), "{program}: {what}");
            assert!(rest.contains(&format!("Usage: {program} [OPTIONS]")), "{program}: {rest}");
            assert!(rest.contains("  --confinement <POLICY>"), "{program}: {rest}");
            assert!(rest.contains("--version"), "{program}: {rest}");
        }
        let Some(out) = ask(program, b"--version") else { continue };
        let version = format!("{program} {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!((out.status.success(), String::from_utf8(out.stdout).unwrap()), (true, version));
    }
}

#[test]
fn each_program_refuses_what_it_does_not_know_by_name_and_says_where_to_look() {
    for program in programs() {
        for (wrong, named) in
            [(&b"--nonsense"[..], "--nonsense"), (b"--nonsense=1", "--nonsense"), (b"nonsense", "nonsense")]
        {
            let Some(out) = ask(program, wrong) else { continue };
            let text = String::from_utf8(out.stderr).unwrap();
            assert!(matches!(out.status.code(), Some(1 | 2)) && out.stdout.is_empty(), "{program}: {:?}", out.status);
            assert!(text.contains(named) && text.contains("--help"), "{program}: {text}");
        }
        // No text at all.
        let Some(out) = ask(program, b"--memory=\xff") else { continue };
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(matches!(out.status.code(), Some(1 | 2)) && !text.contains("panicked"), "{program}: {text}");
    }
}
