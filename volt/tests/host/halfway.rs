//! A network is defined, and removed, by two services one after the other. Here the second step fails, or somebody is killed between the two.
//!
//! The place between is found from outside: `volt` reaches `ipamd` through a relay, which keeps back what it has to say from the moment at
//! which `netmgr` has done its part.

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::unix::fs::symlink,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ipc::Connection;
use schema::addresses_capnp::ipam;

use crate::{
    host::{Host, PATIENCE, Running, until},
    networks::{LAB, addresses, define, exists, is_listed, remove},
};

/// How often a thread looks whether it may go on.
const MOMENT: Duration = Duration::from_millis(5);

/// What the threads of a relay share.
#[derive(Default)]
struct Gate {
    /// Something is kept back.
    held: AtomicBool,
    /// Nothing is, any more.
    open: AtomicBool,
    /// What was kept back goes nowhere.
    lost: AtomicBool,
    /// The relay is done.
    over: AtomicBool,
}

/// Stands between `volt` and `ipamd`.
struct Relay {
    gate: Arc<Gate>,
    socket: PathBuf,
    real: PathBuf,
    listens: Option<JoinHandle<()>>,
}

impl Relay {
    /// Keeps back the first message from `volt` that `is_second_step` is true of, and all that follow it.
    fn new(host: &Host, is_second_step: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> Relay {
        let (socket, real) = (host.path("run/ipamd.sock"), host.path("run/ipamd.real"));
        fs::rename(&socket, &real).unwrap();
        // The lane is the same by either name.
        let lane = |socket: &Path| schema::paths::lane(socket);
        let _ = symlink(lane(&socket), lane(&real));
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (gate, is_second_step) = (Arc::new(Gate::default()), Arc::new(is_second_step));
        let listens = thread::spawn({
            let (gate, real) = (gate.clone(), real.clone());
            move || {
                while !gate.over.load(Ordering::Relaxed) {
                    let Ok((from, _)) = listener.accept() else {
                        thread::sleep(MOMENT);
                        continue;
                    };
                    from.set_nonblocking(false).unwrap();
                    // It may have been killed.
                    let Ok(to) = UnixStream::connect(&real) else { continue };
                    let (answers, asker) = (to.try_clone().unwrap(), from.try_clone().unwrap());
                    thread::spawn(move || copy(answers, asker, |_| true));
                    let (gate, is_second_step) = (gate.clone(), is_second_step.clone());
                    let wait = move |message: &[u8]| {
                        if !gate.open.load(Ordering::Relaxed) && is_second_step(message) {
                            gate.held.store(true, Ordering::Relaxed);
                            while !gate.open.load(Ordering::Relaxed) {
                                thread::sleep(MOMENT);
                            }
                            return !gate.lost.load(Ordering::Relaxed);
                        }
                        true
                    };
                    thread::spawn(move || copy(from, to, wait));
                }
            }
        });
        Relay { gate, socket, real, listens: Some(listens) }
    }

    /// Waits until the first step is done, and the second one is not.
    fn holds(&self) {
        until("volt has begun the second step", || match self.gate.held.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("it has not".into()),
        });
    }

    /// As if it had never been sent.
    fn lose(&self) {
        self.gate.lost.store(true, Ordering::Relaxed);
        self.go();
    }

    /// Lets all pass.
    fn go(&self) {
        self.gate.open.store(true, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    /// Whoever comes next reaches `ipamd` itself.
    fn drop(&mut self) {
        self.go();
        self.gate.over.store(true, Ordering::Relaxed);
        let _ = self.listens.take().map(JoinHandle::join);
        let _ = fs::rename(&self.real, &self.socket);
    }
}

fn copy(mut from: UnixStream, mut to: UnixStream, mut may: impl FnMut(&[u8]) -> bool) {
    let mut buffer = [0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if !may(&buffer[..length]) || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn says(message: &[u8], text: &str) -> bool {
    message.windows(text.len()).any(|window| window == text.as_bytes())
}

/// `volt network define` of this, halfway.
fn defines(host: &Host, json: &str) -> Running {
    Running::start(&mut host.volt(&["network", "define", &host.file("network.json", json.as_bytes())]))
}

/// Has `ipamd` define a pool, past the relay: what another `volt` may do at the same time.
fn take_subnet(relay: &Relay, json: &str) {
    let define = async {
        let link = Connection::connect(&relay.real).await.unwrap();
        let mut request = link.bootstrap::<ipam::Client>().define_pool_request();
        request.get().set_config(json);
        link.call("define a pool", PATIENCE, request.send()).await.unwrap();
    };
    ipc::run(define).unwrap();
}

/// A host on which both services run.
fn host() -> Option<Host> {
    let host = Host::new()?;
    define(&host, LAB).ok();
    remove(&host, "lab0").ok();
    Some(host)
}

/// Somebody who wants the subnet under another name gets it.
fn is_free(host: &Host) {
    define(host, &LAB.replace("lab0", "lab1")).ok();
    assert_eq!(addresses("lab1"), "10.9.0.1/24");
    remove(host, "lab1").ok();
    assert!(!exists("lab0") && !exists("lab1") && !is_listed(host, "lab0"));
}

#[test]
fn pool_that_is_refused_after_the_bridge_was_made_leaves_the_bridge_as_it_was() {
    let Some(host) = host() else { return };
    let other = LAB.replace("lab0", "lab9");
    // A network that is new.
    let relay = Relay::new(&host, |message| says(message, "10.9.0.0/24") && addresses("lab0") == "10.9.0.1/24");
    let volt = defines(&host, LAB);
    relay.holds();
    assert_eq!(addresses("lab0"), "10.9.0.1/24");
    take_subnet(&relay, &other);
    relay.go();
    let ended = volt.end();
    ended.refused(&["network.json", "10.9.0.0/24", "lab9"]);
    assert!(!ended.err.contains("undone"), "{}", ended.err);
    drop(relay);
    assert!(!exists("lab0") && !is_listed(&host, "lab0"));
    remove(&host, "lab9").ok();
    is_free(&host);

    // One that is there, and is changed.
    define(&host, LAB).ok();
    let relay = Relay::new(&host, |message| says(message, "10.8.0.0/24") && addresses("lab0") == "10.8.0.1/24");
    let volt = defines(&host, &LAB.replace("10.9.0", "10.8.0"));
    relay.holds();
    take_subnet(&relay, &other.replace("10.9.0", "10.8.0"));
    relay.go();
    let ended = volt.end();
    ended.refused(&["network.json", "10.8.0.0/24", "lab9"]);
    assert!(!ended.err.contains("undone"), "{}", ended.err);
    drop(relay);
    assert_eq!(addresses("lab0"), "10.9.0.1/24");
    remove(&host, "lab9").ok();
    remove(&host, "lab0").ok();
    is_free(&host);

    // One that cannot be undone, as netmgr has ended: both are said, and the remedy works.
    let relay = Relay::new(&host, |message| says(message, "10.9.0.0/24") && addresses("lab0") == "10.9.0.1/24");
    let volt = defines(&host, LAB);
    relay.holds();
    take_subnet(&relay, &other);
    host.end(["netmgr"], libc::SIGKILL);
    relay.go();
    volt.end().refused(&["network.json", "lab9", "is not undone", "remove the network lab0"]);
    drop(relay);
    assert!(exists("lab0") && !is_listed(&host, "lab0"));
    remove(&host, "lab9").ok();
    remove(&host, "lab0").ok();
    is_free(&host);
}

/// Whoever is killed between the steps of a definition, the same command or a removal succeeds then, and nothing blocks the subnet.
#[test]
fn kill_between_the_steps_of_a_definition_is_mended_by_the_next_one_or_by_a_removal() {
    let Some(host) = host() else {
        return;
    };
    for again in [true, false] {
        for victim in ["volt", "ipamd", "netmgr"] {
            let relay = Relay::new(&host, |message| says(message, "10.9.0.0/24") && addresses("lab0") == "10.9.0.1/24");
            let mut volt = defines(&host, LAB);
            relay.holds();
            assert!(exists("lab0"));
            if victim == "volt" {
                volt.signal(libc::SIGKILL);
                volt.exits();
                relay.lose();
            } else {
                host.end([victim], libc::SIGKILL);
                relay.go();
            }
            let ended = volt.end();
            drop(relay);
            match victim {
                // It never learns that it was defined by half; netmgr's part is there.
                "volt" => assert!(exists("lab0") && !is_listed(&host, "lab0")),
                // The bridge has gone again.
                "ipamd" => {
                    ended.refused(&["network.json"]);
                    assert!(!ended.err.contains("undone"), "{}", ended.err);
                    assert!(!exists("lab0") && !is_listed(&host, "lab0"));
                }
                // Its part was done.
                _ => {
                    ended.ok();
                    assert!(exists("lab0") && is_listed(&host, "lab0"));
                }
            }
            if again {
                define(&host, LAB).ok();
                assert_eq!(addresses("lab0"), "10.9.0.1/24", "{victim}");
                remove(&host, "lab0").ok();
            } else if victim == "ipamd" {
                remove(&host, "lab0").refused(&["notFound", "lab0"]);
            } else {
                remove(&host, "lab0").ok();
            }
            is_free(&host);
        }
    }
    // Before the first step: nothing is there of it.
    let relay = Relay::new(&host, |message| says(message, "10.9.0.0/24"));
    let volt = defines(&host, LAB);
    relay.holds();
    host.end(["netmgr"], libc::SIGKILL);
    relay.go();
    volt.end().refused(&["network.json"]);
    drop(relay);
    assert!(!exists("lab0") && !is_listed(&host, "lab0"));
    is_free(&host);
}

/// Whoever is killed between the steps of a removal, a removal or a definition succeeds then, and nothing blocks the subnet.
#[test]
fn kill_between_the_steps_of_a_removal_is_mended_by_the_next_one_or_by_a_definition() {
    let Some(host) = host() else {
        return;
    };
    for again in [true, false] {
        for victim in ["volt", "ipamd", "netmgr"] {
            define(&host, LAB).ok();
            let relay = Relay::new(&host, |message| says(message, "lab0") && !exists("lab0"));
            let mut volt = Running::start(&mut host.volt(&["network", "remove", "lab0"]));
            relay.holds();
            assert!(!exists("lab0"));
            if victim == "volt" {
                volt.signal(libc::SIGKILL);
                volt.exits();
                relay.lose();
            } else {
                host.end([victim], libc::SIGKILL);
                relay.go();
            }
            let ended = volt.end();
            drop(relay);
            match victim {
                "volt" => assert!(is_listed(&host, "lab0")),
                // It cannot be asked what the bridge was like.
                "ipamd" => {
                    ended.refused(&["lab0", "is not undone"]);
                    assert!(is_listed(&host, "lab0"));
                }
                _ => {
                    ended.ok();
                    assert!(!is_listed(&host, "lab0"));
                }
            }
            match (again, victim) {
                (true, "netmgr") => remove(&host, "lab0").refused(&["notFound", "lab0"]),
                (true, _) => _ = remove(&host, "lab0").ok(),
                (false, _) => {
                    define(&host, LAB).ok();
                    assert_eq!(addresses("lab0"), "10.9.0.1/24", "{victim}");
                    remove(&host, "lab0").ok();
                }
            }
            is_free(&host);
        }
    }
}
