//! The table of Volt's processes, said once: what `volt` starts and looks for, what `volt doctor` counts, whom the escape suite
//! takes over, which threads the proof of system calls has to see, and the tables of `docs/` come from here. A program that the
//! workspace builds and that is not here fails `tests/tests/programs.rs`, and so does a page that says something else.
//!
//! Whoever adds a process adds a row, and then what those tests ask for.

/// The program whose processes are several: the command, and what it forks or starts of itself.
pub const VOLT: &str = "volt";
/// Other programs of the same crate, each of which is a [`CLIENT`]: a short command, which goes by the environment in place of its arguments.
pub const CLIENTS: [&str; 1] = ["volt-cni"];
/// How many of the users that a host gives to Volt are those of services, from the first on ([`User::Service`]).
pub const SERVICE_USERS: u32 = 16;

/// One kind of process.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// What it is called.
    pub name: &'static str,
    /// Its program: the name of the file, of the crate and of the crate's folder.
    pub program: &'static str,
    /// What its main thread calls itself, of which the kernel shows 15 bytes (`/proc/PID/comm`).
    pub title: &'static str,
    /// Where a program's processes share a title: with which of its commands it is this one.
    pub commands: &'static [&'static str],
    /// Who starts it.
    pub started_by: Starter,
    /// Who it runs as, if root has started it all.
    pub user: User,
    /// What it does.
    pub work: &'static str,
    /// What it holds once it is confined.
    pub holds: &'static str,
    /// What it never has.
    pub never: &'static str,
    /// What is lost with it, were it taken over, whatever its walls.
    pub loss: &'static str,
    /// The Linux capabilities that it keeps.
    pub capabilities: &'static [&'static str],
    /// Its threads, each with a seccomp filter of its own, the first one's first; without the number that some end with.
    pub threads: &'static [&'static str],
}

/// Who starts a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Starter {
    /// Whoever types `volt`.
    Person,
    /// The supervisor, before it is one.
    Supervisor,
    /// The first command that finds a service missing.
    Command,
    /// A VM's launcher.
    Launcher,
    /// The keeper, or a service manager.
    Keeper,
    /// netmgr, before it is confined.
    Netmgr,
    /// `volt doctor`.
    Doctor,
}

impl Starter {
    /// As it stands in a table.
    pub const fn text(self) -> &'static str {
        match self {
            Starter::Person => "you",
            Starter::Supervisor => "supervisor",
            Starter::Command => "supervisor, client",
            Starter::Launcher => "launcher",
            Starter::Keeper => "keeper",
            Starter::Netmgr => "`netmgr`",
            Starter::Doctor => "`volt doctor`",
        }
    }
}

/// Who a process runs as, if root has started it all; otherwise each is whoever did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum User {
    /// Whoever started it.
    Starter,
    /// Its VM's: no other VM has that user.
    Vm,
    /// A user of its own: which one of the [`SERVICE_USERS`].
    Service(u32),
}

impl User {
    /// As it stands in a table.
    pub const fn text(self) -> &'static str {
        match self {
            User::Starter => "whoever started it",
            User::Vm => "its VM's user",
            User::Service(_) => "a user of its own",
        }
    }
}

/// The supervisor of one VM.
pub const SUPERVISOR: Process = Process {
    name: "supervisor",
    program: VOLT,
    title: VOLT,
    commands: &["run"],
    started_by: Starter::Person,
    user: User::Vm,
    work: "wires the processes of one VM, and sees it to its end",
    holds: "the VM's own port and lease; descriptors of disks, kernel, TAPs; a watch of sockets' names",
    never: "guest memory, any path, the means to start a program",
    loss: "its VM's disks, TAPs, console, leases and ports",
    capabilities: &[],
    threads: &["main", "console-in", "console-out"],
};

/// What starts the programs of one VM.
pub const LAUNCHER: Process = Process {
    name: "launcher",
    program: VOLT,
    title: "volt-launcher",
    commands: &[],
    started_by: Starter::Supervisor,
    user: User::Vm,
    work: "starts and reaps the VM's programs",
    holds: "the VM's programs, to execute them in namespaces of their own",
    never: "any other file, RPC, guest memory",
    loss: "the VM's programs, which it starts",
    capabilities: &[],
    threads: &["main"],
};

/// What clears away after one VM.
pub const JANITOR: Process = Process {
    name: "janitor",
    program: VOLT,
    title: "volt-janitor",
    commands: &[],
    started_by: Starter::Supervisor,
    user: User::Starter,
    work: "clears away the VM's socket and cgroup, however `volt run` ends",
    holds: "the folder of the VMs' sockets, to remove its VM's, and that of their cgroups",
    never: "anything a guest or a peer wrote",
    loss: "its VM's socket, to remove it",
    capabilities: &[],
    threads: &["main"],
};

/// What clears away after the services.
pub const KEEPER: Process = Process {
    name: "keeper",
    program: VOLT,
    title: "volt-keep",
    commands: &[],
    started_by: Starter::Command,
    user: User::Starter,
    work: "starts the services, and removes their sockets once they have ended",
    holds: "the folder of the services' sockets, to remove theirs",
    never: "anything a guest or a peer wrote",
    loss: "the services' sockets, to remove them",
    capabilities: &[],
    threads: &["main"],
};

/// What lets the namespace of an isolated network go, behind the command that defines or removes it.
pub const UNPINNER: Process = Process {
    name: "unpinner",
    program: VOLT,
    title: "volt-unpinner",
    commands: &[],
    started_by: Starter::Person,
    user: User::Starter,
    work: "waits for a command about an isolated network, and lets its namespace go",
    holds: "the folder of those namespaces, to remove one, and the lock of that",
    never: "anything a guest or a peer wrote",
    loss: "the namespaces of isolated networks, to let them go",
    capabilities: &[],
    threads: &["main"],
};

/// A short command.
pub const CLIENT: Process = Process {
    name: "client",
    program: VOLT,
    title: VOLT,
    commands: &["kernel", "list", "network", "stop"],
    started_by: Starter::Person,
    user: User::Starter,
    work: "a short command, such as `volt list`: asks, prints what it heard, and ends",
    holds: "its connections to services or VMs, the file that it was given",
    never: "guest memory, the means to start a program",
    loss: "what whoever typed it may ask the services and VMs for",
    capabilities: &[],
    threads: &["main"],
};

/// The core of one VM.
pub const VMM_CORE: Process = Process {
    name: "vmm-core",
    program: "vmm-core",
    title: "vmm-core",
    commands: &[],
    started_by: Starter::Launcher,
    user: User::Vm,
    work: "vCPUs, ACPI, serial line, i8042, the registers of virtio-mmio",
    holds: "KVM, guest RAM, the kernel, one socket a device, the console, its control link",
    never: "a path, a Linux capability, a virtqueue parser",
    loss: "its guest's memory and console",
    capabilities: &[],
    threads: &["main", "console", "vcpu", "virtio"],
};

/// The backend of one network card.
pub const NET_BACKEND: Process = Process {
    name: "vhost-net-backend",
    program: "vhost-net-backend",
    title: "vhost-net-backend",
    commands: &[],
    started_by: Starter::Launcher,
    user: User::Vm,
    work: "the virtqueues of one network card",
    holds: "guest RAM, one TAP, the life of its lease, its vhost-user socket, its control link",
    never: "anything else",
    loss: "its guest's memory, the frames of its TAP",
    capabilities: &[],
    threads: &["main", "control", "worker"],
};

/// The backend of one disk.
pub const BLK_BACKEND: Process = Process {
    name: "vhost-blk-backend",
    program: "vhost-blk-backend",
    title: "vhost-blk-backend",
    commands: &[],
    started_by: Starter::Launcher,
    user: User::Vm,
    work: "the virtqueues of one disk",
    holds: "guest RAM, one disk image, its vhost-user socket, its control link",
    never: "opening any file",
    loss: "its guest's memory, the content of its disk",
    capabilities: &[],
    threads: &["main", "control", "worker"],
};

/// The service of networks.
pub const NETMGR: Process = Process {
    name: "netmgr",
    program: "netmgr",
    title: "netmgr",
    commands: &[],
    started_by: Starter::Keeper,
    user: User::Service(1),
    work: "bridges, TAPs, veths, ports, and the rules of what comes from a port",
    holds: "`CAP_NET_ADMIN`, five netlink sockets, `/dev/net/tun`, the host's settings of interfaces, and forwarding",
    never: "root's user, guest memory, other files, a frame that somebody has sent",
    loss: "the host's interfaces, addresses, routes and packet filters",
    capabilities: &["CAP_NET_ADMIN"],
    threads: &["main", "rtnl"],
};

/// What opens the devices of macvtaps.
pub const OPENER: Process = Process {
    name: "macvtap-opener",
    program: "netmgr",
    title: "macvtap-opener",
    commands: &[],
    started_by: Starter::Netmgr,
    user: User::Service(1),
    work: "opens macvtaps' devices, by their numbers",
    holds: "its socket to `netmgr`, device nodes of macvtaps",
    never: "any Linux capability, any network, any other file",
    loss: "the host's macvtaps, and the frames on them",
    capabilities: &[],
    threads: &["main"],
};

/// The service of addresses.
pub const IPAMD: Process = Process {
    name: "ipamd",
    program: "ipamd",
    title: "ipamd",
    commands: &[],
    started_by: Starter::Keeper,
    user: User::Service(2),
    work: "pools and leases of addresses, in SQLite",
    holds: "the folder of its database",
    never: "any Linux capability, any network",
    loss: "its database, hence every address",
    capabilities: &[],
    threads: &["main", "database"],
};

/// The service of guest kernels.
pub const KERNEL_STORE: Process = Process {
    name: "kernel-store",
    program: "kernel-store",
    title: "kernel-store",
    commands: &[],
    started_by: Starter::Keeper,
    user: User::Service(0),
    work: "unpacks and checks guest kernels, and keeps them by their digest",
    holds: "the folder of its kernels",
    never: "any Linux capability, any network",
    loss: "its directory, hence every kernel",
    capabilities: &[],
    threads: &["main", "disk", "unpack"],
};

/// What looks at KVM before there is any VM.
pub const KVM_PROBE: Process = Process {
    name: "kvm-probe",
    program: "vmm-core",
    title: "kvm-probe",
    commands: &[],
    started_by: Starter::Doctor,
    user: User::Starter,
    work: "says what KVM gives and how fast a guest of five bytes runs, and ends",
    holds: "KVM, its guest of five bytes, the pipe on which it answers",
    never: "anything a guest or a peer wrote, a path",
    loss: "KVM",
    capabilities: &[],
    threads: &["main"],
};

/// All of them, in the order of the documents.
pub const ALL: [&Process; 14] = [
    &SUPERVISOR,
    &LAUNCHER,
    &JANITOR,
    &VMM_CORE,
    &NET_BACKEND,
    &BLK_BACKEND,
    &NETMGR,
    &OPENER,
    &IPAMD,
    &KERNEL_STORE,
    &KEEPER,
    &UNPINNER,
    &CLIENT,
    &KVM_PROBE,
];

/// Those that `starter` starts.
pub fn started_by(starter: Starter) -> impl Iterator<Item = &'static Process> {
    ALL.into_iter().filter(move |process| process.started_by == starter)
}

/// The names of the programs, once each: the files that are built and installed, `volt` first.
pub fn programs() -> impl Iterator<Item = &'static str> {
    [VOLT].into_iter().chain(beside_volt())
}

/// Those that `volt` looks for in its own folder.
pub fn beside_volt() -> impl Iterator<Item = &'static str> {
    // A program of several processes is called as one of them, but for `volt`.
    ALL.into_iter().filter(|process| process.name == process.program).map(|process| process.program)
}

/// Which process it is that runs `program`, calls itself `title` and was given `command` as its first word.
pub fn find(program: &str, title: &str, command: &str) -> Option<&'static Process> {
    let of_program = || ALL.into_iter().filter(|process| process.program == program);
    let alone = of_program().count() == 1;
    let is_it = |process: &Process| {
        process.title == title && (process.commands.is_empty() || process.commands.contains(&command))
    };
    of_program().find(|process| alone || is_it(process))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_is_found_by_what_it_calls_itself_and_no_two_are_alike() {
        for process in ALL {
            let alone = ALL.into_iter().filter(|other| other.program == process.program).count() == 1;
            assert!(process.title.len() <= 15 || alone, "{} is cut by the kernel", process.title);
            let command = process.commands.first().copied().unwrap_or("run");
            assert_eq!(find(process.program, process.title, command), Some(process));
            assert_eq!(ALL.into_iter().filter(|other| other.name == process.name).count(), 1, "{}", process.name);
            assert_eq!(process.threads.first(), Some(&"main"), "{}", process.name);
        }
        assert_eq!(find(VOLT, VOLT, "doctor"), None);
        assert_eq!(find("vmm-core", "3", ""), None);
        assert_eq!(find("other", VOLT, "run"), None);
    }

    #[test]
    fn programs_are_listed_once_each() {
        let mut all: Vec<_> = programs().collect();
        assert_eq!((all.len(), all[0]), (7, VOLT));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 7);
    }

    #[test]
    fn every_service_has_a_user_that_no_other_has() {
        let users: Vec<_> = started_by(Starter::Keeper).map(|service| service.user).collect();
        for (place, user) in users.iter().enumerate() {
            let User::Service(number) = user else { panic!("{user:?} is no user of a service's own") };
            assert!(*number < SERVICE_USERS && !users[..place].contains(user), "{user:?}");
        }
    }
}
