//! What there is to attack, and by which names an attacker would: two VMs, the services, a little of the host.

use std::{
    fmt, fs,
    net::{TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
            net::{SocketAddr, UnixListener},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, FileType, Mode};
use schema::{
    net::DEFAULT_NETWORK,
    paths,
    programs::{self, BLK_BACKEND, IPAMD, JANITOR, KEEPER, KERNEL_STORE, NETMGR, VMM_CORE},
};

use testkit::guest;

use super::{
    foothold::Held,
    limits,
    proc::{descendants, descriptors, is_kernels, number_in},
    terminal,
};
use crate::{
    namespaces,
    volt::{Volt, finish},
};

/// How long anything may take: a debug build on a machine with other work.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
const DISK: u64 = 64 << 10;
/// Where all its files are.
pub(super) const DIR: &str = "/tmp/volt-tests";

/// The names of what is there.
#[derive(Clone)]
pub struct World {
    /// A directory that all may write.
    pub dir: String,
    /// A file in it that all may read and write.
    pub public: String,
    /// A file that is there before each attempt.
    pub victim: String,
    /// A path that nothing is at before each attempt.
    pub new: String,
    /// A directory to mount on.
    pub mount: String,
    /// A file among the VMs' control sockets that is there before each attempt.
    pub vm_victim: String,
    /// The neighbour's disk.
    pub disk: String,
    /// The disk of the VM that is taken over.
    pub own_disk: String,
    /// ipamd's database.
    pub database: String,
    /// kernel-store's directory.
    pub kernels: String,
    /// One of Volt's programs.
    pub program: String,
    /// netmgr's socket.
    pub netmgr: String,
    /// ipamd's socket.
    pub ipamd: String,
    /// kernel-store's socket.
    pub kernel_store: String,
    /// The neighbour's control socket.
    pub vm: String,
    /// A port on which the host listens.
    pub tcp: u16,
    /// A port on which the host takes datagrams.
    pub udp: u16,
    /// A socket of the host's that is open to all.
    pub listener: String,
    /// The name of an abstract socket of the host's.
    pub hidden: String,
    /// The host's network namespace.
    pub network: String,
    /// The host's mount namespace.
    pub mounts: String,
    /// Which of the neighbour's files below `/proc/PID` is its guest's memory.
    pub memory: String,
    /// A segment of System V shared memory.
    pub shared: i32,
}

/// What an attempt knows of the process that makes it.
pub struct Scene {
    /// Everything else, by the paths at which that process sees it, if it does.
    pub world: World,
    /// Its descriptors beyond the three standard ones, and what they are.
    pub fds: Vec<(i32, String)>,
    /// The number by which it names itself.
    pub own: i32,
    /// That of another process of the VM.
    pub sibling: i32,
    /// That of the neighbour's core.
    pub neighbour: i32,
    /// That of a process of the host's.
    pub stranger: i32,
}

impl Scene {
    /// The first of its descriptors that is `what`.
    pub fn fd(&self, what: &str) -> Result<i32, Held> {
        self.fds.iter().find(|(_, name)| name.starts_with(what)).map(|(fd, _)| *fd).ok_or(Held::Absent)
    }
}

/// A thread to be taken over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Its program, or which of a program's parts it is.
    pub program: String,
    /// The thread's name; `main` for the first.
    pub thread: String,
    /// Its process's number.
    pub pid: i32,
    /// Its own.
    pub tid: i32,
}

/// Its role: the program, and the thread without the number that some have.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.program, self.thread.trim_end_matches(|digit: char| digit.is_ascii_digit()))
    }
}

/// Two VMs with all that runs for them, and what else is there. Ends with its namespaces.
pub struct Host {
    /// What is there.
    pub world: World,
    pub(super) volt: Volt,
    /// The plain user that runs it all; nobody but root, if absent.
    pub(super) user: Option<u32>,
    web: Child,
    neighbour: Child,
    _sockets: (TcpListener, UdpSocket, UnixListener, UnixListener),
}

impl Host {
    /// Starts it all, as root or as a plain `user`, in namespaces that the caller has made for it.
    pub fn start(programs: &Path, user: Option<u32>) -> Result<Host> {
        let dir = PathBuf::from(DIR);
        namespaces::prepare(&dir)?;
        let at = |name: &str| dir.join(name).display().to_string();
        let volt = Volt::private(programs, &dir);
        fs::write(dir.join("kernel"), guest::elf(&[&guest::print("up!")[..], guest::SPIN].concat(), 0))?;
        for name in ["web.img", "other.img", "all/public"] {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().context("A path without parent")?)?;
            fs::File::create(&path)?.set_len(DISK)?;
        }
        for (name, mode) in [("all/public", 0o666), ("all", 0o777), ("web.img", 0o600), ("other.img", 0o600)] {
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode))?;
        }
        fs::create_dir_all(dir.join("all/mount"))?;
        if let Some(user) = user {
            for folder in [&volt.runtime, &volt.state] {
                fs::create_dir(folder)?;
            }
            for path in [&volt.runtime, &volt.state, &dir.join("web.img"), &dir.join("other.img")] {
                chown(path, Some(user), Some(user))?;
            }
            open_kvm(&dir.join("kvm"))?;
        }
        // The first one starts the services as well.
        let (web, neighbour) = (run(&volt, user, "web")?, run(&volt, user, "other")?);

        let (tcp, udp) = (TcpListener::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
        let hidden = "volt-escape";
        let abstracted = UnixListener::bind_addr(&SocketAddr::from_abstract_name(hidden)?)?;
        let listener = UnixListener::bind(at("all/stream"))?;
        fs::set_permissions(dir.join("all/stream"), fs::Permissions::from_mode(0o666))?;
        let own = std::process::id();
        let socket = |name: &str| paths::socket(&volt.runtime, name).display().to_string();
        let vm_socket = |name: &str| paths::socket(&volt.runtime.join(paths::VMS), name).display().to_string();
        let world = World {
            dir: at("all"),
            public: at("all/public"),
            victim: at("all/victim"),
            new: at("all/new"),
            mount: at("all/mount"),
            vm_victim: vm_socket("victim"),
            disk: at("other.img"),
            own_disk: at("web.img"),
            // A plain user's VMs have no network, and need no addresses.
            database: user.map_or_else(|| first_file(&volt.state.join(IPAMD.name)), |_| Ok(at("state/ipamd/none")))?,
            kernels: volt.state.join(KERNEL_STORE.name).display().to_string(),
            program: programs.join(NETMGR.program).display().to_string(),
            netmgr: socket(NETMGR.name),
            ipamd: socket(IPAMD.name),
            kernel_store: socket(KERNEL_STORE.name),
            vm: vm_socket("other"),
            tcp: tcp.local_addr()?.port(),
            udp: udp.local_addr()?.port(),
            listener: at("all/stream"),
            hidden: hidden.into(),
            network: format!("/proc/{own}/ns/net"),
            mounts: format!("/proc/{own}/ns/mnt"),
            memory: String::new(),
            shared: shared_memory()?,
        };
        let mut host = Host { world, volt, user, web, neighbour, _sockets: (tcp, udp, abstracted, listener) };
        let core = host.neighbour_core()?;
        let memory = descriptors(core)?.into_iter().find(|(_, name)| name.starts_with("/memfd:"));
        host.world.memory = format!("fd/{}", memory.context("The neighbour's core has no memory")?.0);
        Ok(host)
    }

    /// Every thread of every process that runs for the first VM, and of the services, in a fixed order.
    pub fn targets(&self) -> Result<Vec<Target>> {
        let foreign = self.of_neighbour()?;
        let mut targets = Vec::new();
        for pid in self.programs()? {
            if foreign.contains(&pid) {
                continue;
            }
            let program = self.role(pid)?;
            for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
                let tid: i32 = entry?.file_name().to_string_lossy().parse()?;
                if is_kernels(pid, tid)? {
                    continue;
                }
                let name = fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm"))?;
                let thread = if tid == pid { "main" } else { name.trim() };
                targets.push(Target { program: program.clone(), thread: thread.to_owned(), pid, tid });
            }
        }
        targets.sort();
        Ok(targets)
    }

    /// How many processes its user may have, as a target's own program sets it.
    pub fn processes(&self, target: &Target) -> Result<u64> {
        // The neighbour's counterpart was left alone. Of services and short commands there is none.
        for pid in self.of_neighbour()? {
            if self.program(pid).is_some() && self.role(pid)? == target.program {
                return limits::processes(pid);
            }
        }
        Ok(0)
    }

    /// What a target knows.
    pub fn scene(&self, target: &Target) -> Result<Scene> {
        let named = |pid: i32| number_in(pid, target.pid).with_context(|| format!("{pid} has ended"));
        let all = descendants(self.web.id().cast_signed())?;
        let parts = [VMM_CORE.program, BLK_BACKEND.program];
        let is_part = |pid: &i32| self.program(*pid).is_some_and(|program| parts.contains(&program.as_str()));
        let sibling = all.into_iter().filter(|pid| *pid != target.pid).find(is_part);
        Ok(Scene {
            world: self.seen_by(target),
            fds: descriptors(target.pid)?.into_iter().filter(|(fd, _)| *fd > 2).collect(),
            own: named(target.pid)?,
            sibling: named(sibling.context("A process without sibling")?)?,
            neighbour: named(self.neighbour_core()?)?,
            stranger: named(std::process::id().cast_signed())?,
        })
    }

    /// Puts back what an attempt may have taken, and takes what it may have left.
    pub fn renew(&self) -> Result<()> {
        let world = &self.world;
        for path in [&world.new, &world.victim] {
            let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
        }
        for path in [&world.victim, &world.vm_victim] {
            fs::File::create(path)?.set_permissions(fs::Permissions::from_mode(0o666))?;
        }
        Ok(())
    }

    /// Whether both VMs run.
    pub fn check(&mut self) -> Result<()> {
        for (name, child) in [("web", &mut self.web), ("other", &mut self.neighbour)] {
            if let Some(status) = child.try_wait()? {
                bail!("The VM {name} ended with {status}");
            }
        }
        Ok(())
    }

    /// What `volt run` of the first VM has said.
    pub fn said(&self) -> String {
        fs::read_to_string(format!("{DIR}/web.err")).unwrap_or_default()
    }

    /// Waits until a process runs no more.
    pub fn gone(&self, pid: i32) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        // A zombie has no program.
        while fs::read_link(format!("/proc/{pid}/exe")).is_ok() {
            ensure!(Instant::now() < end, "{pid} still runs");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Starts the first VM again, whatever of it is left, and the services that have ended.
    pub fn restart(&mut self) -> Result<()> {
        let _gone_already = self.stop_vm("web")?;
        ended(&mut self.web)?;
        self.web = run(&self.volt, self.user, "web")?;
        Ok(())
    }

    /// Ends both VMs in the way that a user does: they still can be.
    pub fn stop(mut self) -> Result<()> {
        for name in ["web", "other"] {
            let out = self.stop_vm(name)?;
            ensure!(out.status.success(), "volt stop {name}: {}", String::from_utf8_lossy(&out.stderr));
        }
        ended(&mut self.web)?;
        ended(&mut self.neighbour)
    }

    fn stop_vm(&self, name: &str) -> Result<Output> {
        let mut command = self.volt.command(&["stop", name, "--grace", "0"]);
        becomes(&mut command, self.user);
        finish(command, PATIENCE)
    }

    /// The paths at which a target sees what is there, if it does: the helpers have roots of their own, of these folders.
    fn seen_by(&self, target: &Target) -> World {
        let mut world = self.world.clone();
        let (folder, at) = match target.program.as_str() {
            name if name == KEEPER.name => (self.volt.runtime.clone(), "/"),
            name if name == JANITOR.name => (self.volt.runtime.join(paths::VMS), "/vms"),
            _ => return world,
        };
        let World { netmgr, ipamd, kernel_store, vm, vm_victim, .. } = &mut world;
        for path in [netmgr, ipamd, kernel_store, vm, vm_victim] {
            if let Ok(rest) = Path::new(path.as_str()).strip_prefix(&folder) {
                *path = Path::new(at).join(rest).display().to_string();
            }
        }
        world
    }

    /// The processes of the second VM. Its janitor is nobody's child, and has the words that `volt run` was called with.
    fn of_neighbour(&self) -> Result<Vec<i32>> {
        let mut all = descendants(self.neighbour.id().cast_signed())?;
        for pid in self.programs()? {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if words.split(|byte| *byte == 0).any(|word| word == b"other") {
                all.push(pid);
            }
        }
        Ok(all)
    }

    fn neighbour_core(&self) -> Result<i32> {
        let all = descendants(self.neighbour.id().cast_signed())?;
        all.into_iter()
            .find(|pid| self.program(*pid).as_deref() == Some(VMM_CORE.program))
            .context("No neighbour's core runs")
    }

    /// The processes of Volt's programs.
    fn programs(&self) -> Result<Vec<i32>> {
        let numbers = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(numbers.filter(|pid| self.program(*pid).is_some()).collect())
    }

    /// Which of Volt's programs a process runs.
    fn program(&self, pid: i32) -> Option<String> {
        let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        let here = path.parent() == Some(&self.volt.programs);
        path.file_name().filter(|_| here)?.to_str().map(str::to_owned)
    }

    /// Which process of the table's it is.
    pub(super) fn role(&self, pid: i32) -> Result<String> {
        let program = self.program(pid).context("A process has ended")?;
        let title = fs::read_to_string(format!("/proc/{pid}/comm"))?;
        let words = fs::read(format!("/proc/{pid}/cmdline"))?;
        let command = words.split(|byte| *byte == 0).nth(1).unwrap_or_default();
        let process = programs::find(&program, title.trim(), &String::from_utf8_lossy(command));
        Ok(process.with_context(|| format!("{program} runs as {title:?}, which no table has"))?.name.into())
    }
}

/// Lets all use KVM: its node at `path` takes the place of the one that there is, in this mount namespace.
fn open_kvm(path: &Path) -> Result<()> {
    let kvm = Path::new("/dev/kvm");
    let found = fs::metadata(kvm)?;
    ensure!(found.file_type().is_char_device(), "/dev/kvm is no device");
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, mode, found.rdev()).context("Cannot make a node")?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    rustix::mount::mount_bind(path, kvm).context("Cannot mount a node")
}

/// Starts a VM with a disk and, by root, a card, and waits until its guest runs.
fn run(volt: &Volt, user: Option<u32>, name: &str) -> Result<Child> {
    let dir = Path::new(DIR);
    let mut command = volt.command(&["run", "--name", name, "--memory", "64M", "--kernel"]);
    command.arg(dir.join("kernel")).arg("--disk").arg(dir.join(format!("{name}.img")));
    if user.is_none() {
        command.args(["--net", DEFAULT_NETWORK]);
    }
    command.stdout(fs::File::create(dir.join(format!("{name}.out")))?);
    terminal::give(&mut command, dir.join(format!("{name}.err")))?;
    if name == "web" {
        limits::unlimited(&mut command);
    }
    becomes(&mut command, user);
    let mut child = command.spawn().context("Cannot run volt")?;
    // With it go the last of our own descriptors of the terminal.
    drop(command);
    let end = Instant::now() + PATIENCE;
    loop {
        let said = fs::read_to_string(dir.join(format!("{name}.out")))?;
        if said.contains("up!") {
            return Ok(child);
        }
        let ended = child.try_wait()?;
        let why = || fs::read_to_string(dir.join(format!("{name}.err"))).unwrap_or_default();
        ensure!(ended.is_none() && Instant::now() < end, "The VM {name} does not run: {ended:?} {}", why());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Has a command run as that user, if there is one.
pub(super) fn becomes(command: &mut Command, user: Option<u32>) {
    let Some(user) = user else { return };
    let change = move || {
        // SAFETY: no groups are read, as their number is 0; the others take numbers.
        let done = unsafe {
            libc::setgroups(0, std::ptr::null()) == 0
                && libc::setresgid(user, user, user) == 0
                && libc::setresuid(user, user, user) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec only async-signal-safe functions may run; these are three system calls.
    unsafe { command.pre_exec(change) };
}

/// Waits for the end of a child.
fn ended(child: &mut Child) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(None) => {}
            // The tracer may have seen its end first.
            Err(error) if error.raw_os_error() != Some(libc::ECHILD) => return Err(error.into()),
            _ => return Ok(()),
        }
        ensure!(Instant::now() < end, "A VM did not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn first_file(dir: &Path) -> Result<String> {
    let mut files: Vec<_> = fs::read_dir(dir)?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    Ok(files.first().with_context(|| format!("{} is empty", dir.display()))?.display().to_string())
}

/// A segment of shared memory for all; it goes with its namespace.
fn shared_memory() -> Result<i32> {
    let out = Command::new("ipcmk").args(["--shmem", "4096", "--mode", "0666"]).output().context("Cannot run ipcmk")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let number = text.split_whitespace().last().context("ipcmk says nothing")?;
    number.parse().with_context(|| format!("ipcmk says {text:?}"))
}
