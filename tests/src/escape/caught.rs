//! Processes that answer one question and end: each is started as its user does it, under ptrace, and stands still from the
//! moment on when its last wall is up. It has read nothing from anybody by then, and can be taken over like one that stays.

use std::{fs, fs::File, io, path::Path, process::Stdio, time::Instant};

use anyhow::{Context, Result, bail};
use schema::programs::{CLIENT, KVM_PROBE, Process, UNPINNER};

use super::{
    foothold::{self, Foothold},
    limits,
    scene::{DIR, Host, PATIENCE, Target, becomes},
    terminal,
};
use crate::tracee::{self, Options, Stop, Tracee, Until};

/// Which, and a command line of `volt` that leads to it: one that reaches VMs, and one that reaches a service and has a file.
const SHORT: [(&Process, &[&str]); 3] =
    [(&CLIENT, &["list"]), (&CLIENT, &["kernel", "import", KERNEL]), (&KVM_PROBE, &["doctor"])];
/// What root alone can have done.
const BY_ROOT: [(&Process, &[&str]); 1] = [(&UNPINNER, &["network", "define", ISOLATED])];
/// Where [`Host`] has the guests' kernel, and the definition of an isolated network.
const KERNEL: &str = "/tmp/volt-tests/kernel";
const ISOLATED: &str = "/tmp/volt-tests/isolated.json";

/// Those that this user can start.
pub(super) fn short(user: Option<u32>) -> impl Iterator<Item = (&'static Process, &'static [&'static str])> {
    let by_root = BY_ROOT.into_iter().filter(move |_| user.is_none());
    SHORT.into_iter().chain(by_root)
}

/// One of them, until it is dropped. Who started it stands still as well, or will with its next system call: it waits for
/// nothing in vain.
pub(super) struct Caught {
    /// Its one thread.
    pub target: Target,
    started: Tracee,
}

impl Caught {
    /// Has the host's user run that command, which becomes or starts that process.
    pub fn catch(host: &Host, process: &Process, words: &[&str]) -> Result<Caught> {
        let isolated = r#"{"network":"iso0","type":"isolated","subnet":"10.77.0.0/24"}"#;
        fs::write(ISOLATED, isolated)?;
        let mut command = tracee::gated(&host.volt.command(words), "<&2");
        terminal::give(&mut command, Path::new(DIR).join("short.err"))?;
        command.stdout(Stdio::from(File::create(Path::new(DIR).join("short.out"))?));
        limits::unlimited(&mut command);
        becomes(&mut command, host.user);
        let options = Options { follow: true, exec: true, kill_with_tracer: true, ..Options::default() };
        let (child, started) = tracee::start(&mut command, options).context("Cannot run volt under ptrace")?;
        let pid = child.id().cast_signed();
        let target = Target { program: process.name.into(), thread: "main".into(), pid, tid: pid };
        let mut caught = Caught { target, started };
        let end = Instant::now() + PATIENCE;
        loop {
            let (tid, stop) = tracee::next(end.saturating_duration_since(Instant::now()))
                .with_context(|| format!("No {} was seen behind its walls", process.name))?;
            let tracee = Tracee::seized(tid);
            let mut signal = 0;
            match stop {
                Stop::Exited(_) | Stop::Killed(_) if tid == pid => {
                    bail!("volt {words:?} ended with {stop:?}, and no {} was seen behind its walls", process.name)
                }
                Stop::Exited(_) | Stop::Killed(_) => continue,
                Stop::Signal(number) => signal = number,
                Stop::Syscall if has_filtered_itself(&tracee)? && host.role(tid).is_ok_and(|is| is == process.name) => {
                    (caught.target.pid, caught.target.tid) = (tid, tid);
                    return Ok(caught);
                }
                _ => {}
            }
            // One that was killed meanwhile is no error.
            let _gone = tracee.run(Until::Syscall, signal);
        }
    }

    /// Takes it over.
    pub fn foothold(&self) -> Result<Foothold> {
        Foothold::hold(self.target.pid)
    }
}

impl Drop for Caught {
    fn drop(&mut self) {
        for tracee in [&Tracee::seized(self.target.pid), &self.started] {
            let _gone = foothold::kill(tracee);
        }
    }
}

/// Whether a thread comes back from the call that gave it a seccomp filter, the last of its walls (`confine`).
fn has_filtered_itself(tracee: &Tracee) -> io::Result<bool> {
    let registers = tracee.registers()?;
    let [call, filter] = [libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER.into()].map(libc::c_long::cast_unsigned);
    Ok((registers.orig_rax, registers.rdi, registers.rax) == (call, filter, 0))
}
