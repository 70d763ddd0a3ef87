//! What a VM may leave behind on a host: nothing. Looks at processes, interfaces and sockets of the
//! namespaces that it runs in; changes nothing.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use schema::{
    limits::IDLE_EXIT,
    programs::{self, KEEPER, Starter},
};

use crate::volt::Volt;

/// What is allowed to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// The services, which serve all VMs and end by themselves half a minute after the last one.
    Services,
    /// Nothing at all but networks that were made, which are durable.
    Networks,
}

/// How long the services stay after their last connection, and time for the host to notice.
pub const IDLE: Duration = Duration::from_secs(IDLE_EXIT.as_secs() + 15);

/// Waits until nothing is left but what is `allowed`; at the end of `patience`, an error that names what is.
pub fn none(volt: &Volt, allowed: Allowed, patience: Duration) -> Result<()> {
    let end = Instant::now() + patience;
    loop {
        let mut found = processes(volt, allowed);
        found.extend(interfaces());
        found.extend(files(&volt.runtime.join("vms")));
        if allowed == Allowed::Networks {
            found.extend(files(&volt.runtime).into_iter().filter(|path| !path.ends_with("/vms")));
        }
        if found.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("Left behind after {} s: {}", patience.as_secs(), found.join(", "));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The processes that run one of Volt's programs, zombies aside.
fn processes(volt: &Volt, allowed: Allowed) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc") else { return vec!["/proc, which cannot be read".into()] };
    let process = |dir: &Path| {
        // A kernel thread or a zombie has no executable.
        let exe = fs::read_link(dir.join("exe")).ok()?;
        let name = exe.strip_prefix(&volt.programs).ok()?.to_string_lossy().into_owned();
        let arguments = fs::read(dir.join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        let service = programs::started_by(Starter::Keeper).any(|service| service.program == name)
            || (name == KEEPER.program && arguments.contains(" keep "));
        let wrong =
            if service { allowed != Allowed::Services } else { programs::programs().any(|program| program == name) };
        wrong.then(|| format!("process {} ({})", dir.display(), arguments.trim()))
    };
    entries.flatten().filter_map(|entry| process(&entry.path())).collect()
}

/// TAPs and macvtaps of VMs.
fn interfaces() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim())
        .filter(|name| ["tap-", "mvt-"].iter().any(|port| name.starts_with(port)))
        .map(|name| format!("interface {name}"))
        .collect()
}

fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| format!("file {}", entry.path().display())).collect()
}
