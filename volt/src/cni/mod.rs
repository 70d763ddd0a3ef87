//! `volt-cni`: the CNI plugin (the Container Network Interface's specification, 1.1.0), by which a container engine has containers on Volt's
//! networks, beside VMs. A short command like others of `volt`: it reads what the engine hands it, opens the container's network namespace, confines
//! itself, and asks `ipamd` and `netmgr`. It executes nothing, and keeps no file: what there is of an attachment is a durable port and a reservation,
//! whose workload's name follows from the names that the engine has for it. So whatever the engine or this plugin has forgotten can be found again,
//! and nothing half-written is ever in the way.
//!
//! | file | subject |
//! |---|---|
//! | `config` | the configuration and the environment: read and checked |
//! | `wishes` | what an engine asks for of one container: ports of the host, and how fast it is |
//! | `namespace` | the container's network namespace, while it may still be entered |
//! | `attachment` | what each command does at the services |
//! | `answer` | what is printed |

mod answer;
mod attachment;
pub(crate) mod config;
mod namespace;
mod wishes;

use std::{io::Read, os::fd::OwnedFd, path::Path};

use confine::Policy;
use rustix::fs::{FlockOperation, Mode};
use schema::addresses_capnp::MAX_CONFIG_BYTES;
use serde_json::Value;

pub(crate) use self::answer::VERSIONS;
use self::{
    answer::Refusal,
    attachment::Services,
    config::{Call, Command},
};
use crate::{
    commands,
    host::{
        isolated,
        lock::open_dir,
        paths::Paths,
        published::{Held, Publish},
        services::Service,
        told,
    },
    output::print,
};

/// The plugin, from its environment and standard input to its answer on standard output.
pub fn main() -> ! {
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let mut version = None;
    let outcome = run(&mut version);
    let answered = outcome.unwrap_or_else(|refusal| Some(refusal.json(version.as_deref())));
    let failed = answered.as_ref().is_some_and(|answer| answer.get("code").is_some());
    let printed = answered.map_or(Ok(()), |answer| print(&format!("{answer}\n")));
    confine::exit((failed || printed.is_err()).into())
}

/// What is to be printed, if anything is.
fn run(version: &mut Option<String>) -> Result<Option<Value>, Refusal> {
    let mut text = String::new();
    // One more than there may be.
    let most = u64::from(MAX_CONFIG_BYTES) + 1;
    let read = std::io::stdin().take(most).read_to_string(&mut text);
    read.map_err(|why| Refusal::new(answer::IO, "read the configuration on standard input", why))?;
    if text.len() as u64 == most {
        return Err(Refusal::new(
            answer::DECODE,
            "read the configuration",
            format!("it is larger than {MAX_CONFIG_BYTES} bytes"),
        ));
    }
    let call = Call::read(&text, |name| std::env::var_os(name), version)?;
    if call.command == Command::Version {
        let version = version.as_deref().unwrap_or(answer::NEWEST);
        return Ok(Some(serde_json::json!({ "cniVersion": version, "supportedVersions": VERSIONS })));
    }
    let handed = match &call.netns {
        Some(path) => Some(namespace::open(Path::new(path), call.command == Command::Check)?),
        None => None,
    };
    // By the right of whoever runs the engine, as netmgr has none to.
    let holds = call.publish.iter().filter(|_| call.command == Command::Add).map(Publish::hold);
    let held = holds.collect::<Result<Vec<_>, _>>()?;
    let paths = Paths::prepare()?;
    let policy = told::once(&paths, Policy::BestEffort);
    let lock = lock(&paths, call.command)?;
    let isolated = isolated::open(&paths, &call.network)?;
    let mut outcome = Err(Refusal::new(answer::IO, "ask Volt's services", "they were not asked"));
    let keep = lock.iter().chain(handed.iter().flat_map(|handed| [&handed.namespace, &handed.socket]));
    let keep = keep.chain(isolated.iter().flat_map(|isolated| &isolated.sockets));
    let keep: Vec<&OwnedFd> = keep.chain(held.iter().flatten().flat_map(Held::sockets)).collect();
    commands::ask(&paths, policy, &[Service::Ipamd, Service::Netmgr], &keep, async |links| {
        if let [ipamd, netmgr] = links.as_slice() {
            let services = Services { call: &call, ipamd, netmgr, isolated: isolated.as_ref(), held: &held };
            outcome = attachment::work(&services, handed.as_ref()).await;
        }
        Ok(())
    })?;
    outcome
}

/// Attaching is not done beside clearing away what nobody has: what is half attached would look so.
fn lock(paths: &Paths, command: Command) -> Result<Option<OwnedFd>, Refusal> {
    let how = match command {
        Command::Add => FlockOperation::NonBlockingLockShared,
        Command::Gc => FlockOperation::NonBlockingLockExclusive,
        _ => return Ok(None),
    };
    let folder = paths.state.join("cni");
    let made = rustix::fs::mkdir(&folder, Mode::RWXU);
    if !matches!(made, Ok(()) | Err(rustix::io::Errno::EXIST)) {
        return Err(Refusal::new(
            answer::IO,
            &format!("make {}", folder.display()),
            std::io::Error::from(made.err().unwrap_or(rustix::io::Errno::IO)),
        ));
    }
    let folder = open_dir(&folder)?;
    // As long as a command may take, for those that have it.
    for _ in 0..3000 {
        match rustix::fs::flock(&folder, how) {
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(std::time::Duration::from_millis(10)),
            Err(why) => return Err(Refusal::new(answer::IO, "take the plugin's lock", std::io::Error::from(why))),
            Ok(()) => return Ok(Some(folder)),
        }
    }
    Err(Refusal::new(answer::AGAIN, "take the plugin's lock", "another command of this plugin has held it for 30 s"))
}
