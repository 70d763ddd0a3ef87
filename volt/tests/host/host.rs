//! One installation of Volt for one test, what runs in it, and what is left of it.

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    fs,
    hash::{BuildHasher, Hasher},
    io::Read,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use testkit::namespace;
pub use testkit::wait::{PATIENCE, until};

use schema::programs::{self, LAUNCHER, OPENER, Starter, beside_volt};

use crate::kernel;

pub struct Host {
    dir: tempfile::TempDir,
    /// Names this test's network namespace, which everything that it starts is in, but for what has one of its own.
    namespace: PathBuf,
    /// The first of the users that are this test's: who has its own namespaces is one of them.
    pub user: u32,
}

/// Addresses that `volt0` hands out.
const POOL: u32 = 253;

/// Users that each test has, sixteen of them for services.
const USERS: u32 = 96;

/// The first of the next test's users: of one of a million places of the range that is for tests, or one beside it. Whoever is one of them is the test's own
/// process, and ends with it; so those of others who test on this machine at the same time must not be.
static USER: LazyLock<AtomicU32> = LazyLock::new(|| {
    let place = RandomState::new().build_hasher().finish() as u32 % (1 << 20);
    AtomicU32::new(0x7200_0000 + place * USERS)
});

impl Host {
    /// A host of the calling thread's own, or `None` after it was said why there cannot be one.
    pub fn new() -> Option<Host> {
        let programs = Path::new(env!("CARGO_BIN_EXE_volt")).parent().unwrap();
        let missing = beside_volt().find(|name| !programs.join(name).exists());
        let why = if let Some(name) = missing {
            format!("there is no {name} beside volt: cargo build --workspace --bins")
        } else if let Err(e) = fs::File::options().read(true).write(true).open("/dev/kvm") {
            format!("/dev/kvm cannot be opened: {e}")
        } else if let Err(e) = namespace::network() {
            format!("it needs a network namespace of its own: {e}")
        } else {
            let host = Host {
                dir: tempfile::tempdir().unwrap(),
                namespace: fs::read_link("/proc/thread-self/ns/net").unwrap(),
                user: USER.fetch_add(USERS, Ordering::Relaxed),
            };
            host.file("disk", &[0; 64 << 10]);
            return Some(host);
        };
        testkit::skip!("{why}");
        None
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// Has the state directory on a file system of its own, of 64 MiB. Mounts are this thread's own from now on, and of what it starts.
    pub fn small_state(&self) -> PathBuf {
        namespace::mounts().unwrap();
        use rustix::mount::{MountFlags, mount};
        use std::os::unix::fs::PermissionsExt;
        let state = self.path("state");
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
        mount("state", &state, "tmpfs", MountFlags::empty(), c"size=64m,mode=0755").unwrap();
        state
    }

    /// The path of a kernel with that code.
    pub fn kernel(&self, name: &str, code: &[&[u8]]) -> String {
        self.file(name, &kernel::elf(&code.concat(), 0))
    }

    pub fn volt(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volt"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("VOLT_RUNTIME_DIR", self.path("run")).env("VOLT_STATE_DIR", self.path("state"));
        command.env("VOLT_UID_RANGE", format!("{}-{}", self.user, self.user + USERS - 1));
        // Volt keeps ignoring what its caller ignores, and the caller of the tests may (nohup, a job of a shell's).
        let by_default = || {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
                // SAFETY: sets no handler.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
            }
            Ok(())
        };
        // SAFETY: it calls nothing but signal(2), which may be called after a fork.
        unsafe { command.pre_exec(by_default) };
        command
    }

    /// `volt run` of a VM without devices.
    pub fn plain(&self, name: &str, kernel: &str) -> Command {
        self.volt(&["run", "--name", name, "--memory", "64M", "--kernel", kernel])
    }

    /// `volt run` of a VM with a disk and a card.
    pub fn full(&self, name: &str, kernel: &str) -> Command {
        let mut command = self.plain(name, kernel);
        command.args(["--net", "volt0", "--disk"]).arg(self.path("disk"));
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, command: &mut Command) -> Ended {
        Running::start(command).end()
    }

    /// How many addresses of a network are free.
    pub fn free(&self, network: &str) -> u32 {
        let listed = self.run(&mut self.volt(&["network", "list"]));
        let row = listed.out.lines().find(|line| line.starts_with(network)).expect(&listed.err);
        row.split_whitespace().last().unwrap().parse().unwrap()
    }

    /// The processes of this test that run `program`.
    pub fn processes(&self, program: &str) -> Vec<i32> {
        self.all().into_iter().filter(|(_, name)| name == program).map(|(pid, _)| pid).collect()
    }

    /// The command line that the one VM's kernel was given.
    pub fn cmdline_of_the_core(&self) -> String {
        let arguments = std::fs::read(format!("/proc/{}/cmdline", self.processes("vmm-core")[0])).unwrap();
        let mut arguments = arguments.split(|byte| *byte == 0).skip_while(|argument| *argument != b"--cmdline");
        String::from_utf8_lossy(arguments.nth(1).unwrap()).into_owned()
    }

    /// Signals all processes of this test that run any of `programs`, of which each is there, and waits until they are gone: what a process
    /// that was signalled has is its own until then.
    pub fn end<'a>(&self, programs: impl IntoIterator<Item = &'a str>, signal: i32) {
        let of = |program: &str| {
            let pids = self.processes(program);
            assert!(!pids.is_empty(), "no {program} runs");
            pids
        };
        let pids: Vec<_> = programs.into_iter().flat_map(of).collect();
        pids.iter().for_each(|pid| kill(*pid, signal));
        until("they have ended", || match self.all().into_iter().find(|(pid, _)| pids.contains(pid)) {
            None => Ok(()),
            Some(there) => Err(format!("{there:?}")),
        });
    }

    /// Waits until all addresses of `volt0` but so many are free.
    pub fn held(&self, addresses: u32) {
        until("the addresses are free", || match self.free("volt0") {
            free if free == POOL - addresses => Ok(()),
            free => Err(free.to_string()),
        });
    }

    /// The launcher of the only VM of this test.
    pub fn launcher(&self) -> i32 {
        let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        self.processes("volt").into_iter().find(|pid| name(pid).trim() == LAUNCHER.title).unwrap()
    }

    /// All processes of this test: their numbers, and `volt keep` in place of `volt` for a keeper, and the opener's name for that of netmgr's.
    fn all(&self) -> Vec<(i32, String)> {
        let (mut found, mut parents) = (Vec::new(), BTreeMap::new());
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            // A zombie has neither.
            let (Ok(namespace), Ok(exe)) =
                (fs::read_link(entry.path().join("ns/net")), fs::read_link(entry.path().join("exe")))
            else {
                continue;
            };
            let user = uid(&entry.path());
            // The helpers that stay who started them have a folder of the test's as a root of their own.
            let folder = self.dir.path().file_name().unwrap().to_str().unwrap();
            let mounts = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
            let ours = namespace == self.namespace
                || (self.user..self.user + USERS).contains(&user)
                || mounts.contains(&format!("/{folder}/run"));
            if !ours {
                continue;
            }
            let keeper =
                fs::read(entry.path().join("cmdline")).is_ok_and(|line| line.windows(6).any(|w| w == b"\0keep\0"));
            let name = exe.file_name().unwrap().to_string_lossy().into_owned();
            found.push((pid, if keeper { format!("{name} keep") } else { name }));
            parents.insert(pid, field(&entry.path(), "PPid:"));
        }
        // Another program of that name starts nothing.
        let netmgr: Vec<i32> = found.iter().filter(|(_, name)| name == "netmgr").map(|(pid, _)| *pid).collect();
        let is_opener = |pid| netmgr.iter().any(|netmgr| u32::try_from(*netmgr) == Ok(parents[pid]));
        for (pid, name) in &mut found {
            if netmgr.contains(pid) && is_opener(pid) {
                OPENER.name.clone_into(name);
            }
        }
        found
    }

    /// Waits until nothing is left of any VM: process, TAP, socket.
    pub fn clean(&self) {
        until("nothing of a VM is left", || {
            let mut left: Vec<String> = self.all().into_iter().map(|(_, name)| name).collect();
            left.retain(|name| !outliving().chain([OPENER.name]).any(|stays| stays == name));
            let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            left.extend(table.lines().filter(|line| line.trim().starts_with("tap-")).map(str::to_owned));
            left.extend(self.sockets("run/vms"));
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
    }

    /// The files in a folder.
    pub fn sockets(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name != "vms");
        names
    }

    /// Waits until the VM of that name runs.
    pub fn runs(&self, name: &str) {
        until("the VM runs", || {
            let listed = self.run(&mut self.volt(&["list"]));
            let row = listed.out.lines().find(|line| line.split_whitespace().next() == Some(name));
            if row.is_some_and(|row| row.contains("running")) { Ok(()) } else { Err(format!("{listed:?}")) }
        });
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("services.log: {}", fs::read_to_string(self.path("state/services.log")).unwrap_or_default());
        }
        for (pid, _) in self.all() {
            kill(pid, libc::SIGKILL);
        }
    }
}

/// The programs that the launcher of a VM with a disk and a card starts.
pub fn of_vm() -> impl Iterator<Item = &'static str> {
    programs::started_by(Starter::Launcher).map(|process| process.program)
}

/// The services.
pub fn services() -> impl Iterator<Item = &'static str> {
    programs::started_by(Starter::Keeper).map(|process| process.program)
}

/// What outlives a VM: the services, and their keeper.
pub fn outliving() -> impl Iterator<Item = &'static str> {
    ["volt keep"].into_iter().chain(services())
}

/// The real user of a process. (Its folder in /proc is root's where it is not dumpable.)
pub fn uid(process: &Path) -> u32 {
    field(process, "Uid:")
}

/// What the kernel says of a process in that line first.
fn field(process: &Path, name: &str) -> u32 {
    let status = fs::read_to_string(process.join("status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(u32::MAX)
}

/// Signals a process that this test started.
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: takes no pointer.
    unsafe { libc::kill(pid, signal) };
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

impl Ended {
    pub fn ok(self) -> Ended {
        assert!(self.status.success(), "{self:?}");
        self
    }

    /// It was refused with code 1, and the message has all of `words`.
    pub fn refused(&self, words: &[&str]) {
        assert_eq!(self.status.code(), Some(1), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in {:?}", self.err);
        }
    }
}

type Shared = Arc<Mutex<Vec<u8>>>;

/// A command that runs, and what it has said so far.
pub struct Running {
    pub child: Child,
    out: (Shared, Option<std::thread::JoinHandle<()>>),
    err: (Shared, Option<std::thread::JoinHandle<()>>),
}

impl Running {
    pub fn start(command: &mut Command) -> Running {
        // Whatever becomes of the test, a group of its own keeps the signals apart.
        let mut child = command.process_group(0).spawn().unwrap();
        let (out, err) = (gather(child.stdout.take()), gather(child.stderr.take()));
        Running { child, out, err }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub fn signal(&self, signal: i32) {
        kill(self.pid(), signal);
    }

    /// What it has written to standard error.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.err.0.lock().unwrap()).into_owned()
    }

    /// Waits until it has written `text` to standard output.
    pub fn says(&self, text: &str) {
        until(text, || {
            let said = String::from_utf8_lossy(&self.out.0.lock().unwrap()).into_owned();
            if said.contains(text) { Ok(()) } else { Err(format!("{said}, and to standard error: {}", self.said())) }
        });
    }

    /// Waits until it has written `text` to standard error.
    pub fn complains(&self, text: &str) {
        until(text, || {
            let said = String::from_utf8_lossy(&self.err.0.lock().unwrap()).into_owned();
            if said.contains(text) { Ok(()) } else { Err(said) }
        });
    }

    /// Waits for its end, whoever else has its output.
    pub fn exits(&mut self) {
        until("it has ended", || self.child.try_wait().unwrap().map(drop).ok_or(String::new()));
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        let said = self.err.0.clone();
        let status = until("it has ended", || {
            let said = || String::from_utf8_lossy(&said.lock().unwrap()).into_owned();
            self.child.try_wait().unwrap().ok_or_else(said)
        });
        let text = |(shared, thread): (Shared, Option<std::thread::JoinHandle<()>>)| {
            thread.into_iter().for_each(|thread| thread.join().unwrap());
            String::from_utf8_lossy(&shared.lock().unwrap()).into_owned()
        };
        Ended { status, out: text(self.out), err: text(self.err) }
    }
}

fn gather(from: Option<impl Read + Send + 'static>) -> (Shared, Option<std::thread::JoinHandle<()>>) {
    let shared = Shared::default();
    let thread = from.map(|mut from| {
        let shared = shared.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                shared.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        })
    });
    (shared, thread)
}
