//! Clients that are not Rust: what the schemas say of limits holds for them, from both sides, at a real `ipamd`; and the example in C++.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use schema::{
    paths::{RUNTIME, socket},
    programs::IPAMD,
};
use volt_tests::{namespaces, python, volt::finish};

/// A debug build on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(300);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_owned()
}

/// A service that ends with this.
struct Ipamd {
    process: Child,
    socket: PathBuf,
    _state: tempfile::TempDir,
}

impl Ipamd {
    fn start() -> Result<Ipamd> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("ipamd.sock");
        Ipamd::on(socket, dir)
    }

    fn on(socket: PathBuf, dir: tempfile::TempDir) -> Result<Ipamd> {
        let program = Path::new(env!("CARGO_BIN_EXE_xtask")).with_file_name(IPAMD.program);
        ensure!(program.exists(), "There is no {}: run cargo build --workspace", program.display());
        let mut command = Command::new(program);
        command.arg("--state-dir").arg(dir.path().join("state")).arg("--socket").arg(&socket).stdin(Stdio::null());
        let service = Ipamd { process: command.spawn()?, socket, _state: dir };
        let begun = Instant::now();
        while UnixStream::connect(&service.socket).is_err() {
            ensure!(begun.elapsed() < PATIENCE, "ipamd does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(service)
    }
}

impl Drop for Ipamd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a C++ program takes, or why it cannot be made on this machine.
fn missing_for_cpp() -> Option<String> {
    let there = |program: &str| Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success());
    let tools = ["capnp", "g++"].into_iter().find(|program| !there(program)).map(|tool| format!("there is no {tool}"));
    let header = Path::new("/usr/include/capnp/rpc-twoparty.h");
    tools.or_else(|| (!header.exists()).then(|| format!("there is no {} (Debian's libcapnp-dev)", header.display())))
}

/// Compiles a C++ file as docs/RPC.md says, in a folder of its own.
fn compile(source: &Path, program: &str) -> Result<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients").join(program);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let script = "capnp compile -oc++:\"$0\" --src-prefix=\"$1/schema\" \"$1\"/schema/*.capnp &&
        g++ -std=c++17 -I\"$0\" -o \"$0/program\" \"$2\" \"$0\"/*.c++ -lcapnp-rpc -lcapnp -lkj-async -lkj";
    let mut command = Command::new("sh");
    command.args(["-euc", script]).arg(&dir).arg(root()).arg(source);
    done(finish(command, PATIENCE)?).context("It does not compile")?;
    Ok(dir.join("program"))
}

/// What a program printed, if it ended well.
fn done(out: std::process::Output) -> Result<String> {
    let said = String::from_utf8_lossy(&out.stderr);
    let printed = String::from_utf8(out.stdout)?;
    ensure!(out.status.success(), "It ended with {}: {said}\nafter it had printed:\n{printed}", out.status);
    Ok(printed)
}

#[test]
fn limits_of_the_schemas_hold_for_a_client_in_cpp() -> Result<()> {
    if let Some(why) = missing_for_cpp() {
        testkit::skip!("{why}");
        return Ok(());
    }
    let program = compile(&root().join("tests/clients/limits.cc"), "limits")?;
    let service = Ipamd::start()?;
    let mut command = Command::new(program);
    command.arg(&service.socket);
    let printed = done(finish(command, PATIENCE)?)?;
    let held: Vec<_> = printed.lines().collect();
    let all = ["8000 pairs", "bootstrap once", "leases", "capabilities", "calls", "messages", "connections"];
    ensure!(held == all, "What holds is {held:?}");
    Ok(())
}

#[test]
fn limits_of_the_schemas_hold_for_a_client_in_python() -> Result<()> {
    let python = match python::with_pycapnp(&root())? {
        Ok(python) => python,
        Err(why) => {
            testkit::skip!("{why}");
            return Ok(());
        }
    };
    let service = Ipamd::start()?;
    let mut command = Command::new(python);
    command.arg(root().join("tests/clients/limits.py")).arg(root().join("schema")).arg(&service.socket);
    let printed = done(finish(command, PATIENCE)?)?;
    let held: Vec<_> = printed.lines().collect();
    let all = ["leases", "3200 pairs", "bootstrap once", "capabilities", "connections"];
    ensure!(held == all, "What holds is {held:?}");
    Ok(())
}

#[test]
fn example_in_cpp_leases_an_address_of_the_network_that_is_built_in() -> Result<()> {
    const NAME: &str = "example_in_cpp_leases_an_address_of_the_network_that_is_built_in";
    if let Some(why) = missing_for_cpp() {
        testkit::skip!("{why}");
        return Ok(());
    }
    namespaces::test(NAME, || {
        let program = compile(&root().join("examples/lease.cc"), "lease")?;
        let folder = Path::new(RUNTIME);
        namespaces::prepare(folder)?;
        let _service = Ipamd::on(socket(folder, IPAMD.name), tempfile::tempdir()?)?;
        let printed = done(finish(Command::new(program), PATIENCE)?)?;
        ensure!(printed == "10.42.0.2\n", "It printed {printed:?}");
        Ok(())
    })
}
