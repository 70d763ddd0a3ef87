//! What an attempt is, and all of them.

use std::fmt;

use super::{
    code, devices, files,
    foothold::{Hand, Held, Memory},
    kernel, network, processes,
    scene::Scene,
};

/// What an attempt is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Paths, and what they lead to.
    Files,
    /// Sockets of any kind.
    Network,
    /// Other processes: of the same VM, of another, of the host.
    Processes,
    /// Running code that was not there.
    Code,
    /// The kernel: its interfaces, its settings, more rights.
    Kernel,
    /// What it holds descriptors of: KVM, a TAP, a disk, the guest's memory.
    Devices,
}

impl Class {
    /// All, in the order of the table's columns.
    pub const ALL: [Class; 6] =
        [Class::Files, Class::Network, Class::Processes, Class::Code, Class::Kernel, Class::Devices];
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Files => "files",
            Class::Network => "network",
            Class::Processes => "other processes",
            Class::Code => "new code",
            Class::Kernel => "the kernel and its settings",
            Class::Devices => "KVM, TAP, disk",
        })
    }
}

/// How an attempt is made.
pub(super) type Act = fn(&mut Hand, &Scene) -> Result<u64, Held>;

/// One thing that an attacker tries.
pub struct Attempt {
    /// What it is after.
    pub class: Class,
    /// What it would do, as it stands in the table.
    pub name: &'static str,
    /// Whose memory it needs.
    pub memory: Memory,
    /// How. `Ok` is a success of the attacker's.
    pub act: Act,
}

impl Attempt {
    pub(super) const fn new(class: Class, name: &'static str, act: Act) -> Attempt {
        Attempt { class, name, memory: Memory::Copy, act }
    }

    /// One that only works from the memory that the descriptor was made with.
    pub(super) const fn within(class: Class, name: &'static str, act: Act) -> Attempt {
        Attempt { class, name, memory: Memory::Same, act }
    }
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Attempt> {
    [files::ALL, network::ALL, processes::ALL, code::ALL, kernel::ALL, devices::ALL].into_iter().flatten()
}

/// An argument of a system call, as a register holds it.
pub(super) trait Word {
    fn word(self) -> u64;
}

impl Word for u64 {
    fn word(self) -> u64 {
        self
    }
}

impl Word for usize {
    fn word(self) -> u64 {
        self as u64
    }
}

impl Word for i32 {
    fn word(self) -> u64 {
        i64::from(self).cast_unsigned()
    }
}

impl Word for u32 {
    fn word(self) -> u64 {
        self.into()
    }
}

impl Word for i64 {
    fn word(self) -> u64 {
        self.cast_unsigned()
    }
}

/// `call!(hand, SYS_openat, a, b)` makes that system call; with `; or [ERRNO, ..]`, these refusals show that the caller
/// may: see [`Hand::reach`].
macro_rules! call {
    ($hand:expr, $name:ident $(, $argument:expr)*) => { call!($hand, $name $(, $argument)*; or []) };
    ($hand:expr, $name:ident $(, $argument:expr)*; or $harmless:expr) => {
        $hand.reach(libc::$name, &[$($crate::escape::attempts::Word::word($argument)),*], &$harmless)
    };
}
pub(super) use call;
