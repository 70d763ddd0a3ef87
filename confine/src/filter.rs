//! A seccomp allow list for one role of thread, and its installation in the calling thread.
//!
//! Whatever is not listed kills the whole process (and the kernel logs which syscall it was). A syscall of a foreign
//! architecture, x32 included, matches nothing and kills too.

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::error::Error;

/// A system call's number: one of `libc::SYS_*`.
pub type Syscall = libc::c_long;

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// Conditions on a syscall's arguments that must all hold.
///
/// Argument indices run from 0 to 5. The kernel compares register values: a pointer is an address, what it points at
/// cannot be looked at.
#[derive(Clone, Debug)]
pub struct Rule(Vec<(u8, SeccompCmpArgLen, SeccompCmpOp, u64)>);

impl Rule {
    /// The argument's low 32 bits equal `value`: for what the kernel takes as an `int` (fds, ioctl requests, flags),
    /// whose upper half it ignores.
    pub fn eq(index: u8, value: u32) -> Rule {
        Rule(vec![(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.into())])
    }

    /// All 64 bits of the argument equal `value`.
    pub fn eq64(index: u8, value: u64) -> Rule {
        Rule(vec![(index, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value)])
    }

    /// The bits of the argument that `mask` selects equal `value`.
    pub fn masked_eq(index: u8, mask: u64, value: u64) -> Rule {
        Rule(vec![(index, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value)])
    }

    /// The argument, as an unsigned 64-bit number, is at most `value`.
    pub fn le(index: u8, value: u64) -> Rule {
        Rule(vec![(index, SeccompCmpArgLen::Qword, SeccompCmpOp::Le, value)])
    }

    /// The argument's low 32 bits are one of `values`: for what the kernel takes as an `int`.
    pub fn any(index: u8, values: &[u32]) -> Vec<Rule> {
        values.iter().map(|value| Rule::eq(index, *value)).collect()
    }

    /// Both this rule and `other` hold.
    pub fn and(mut self, other: Rule) -> Rule {
        self.0.extend(other.0);
        self
    }

    fn compile(&self) -> Result<SeccompRule, seccompiler::BackendError> {
        let conditions =
            self.0.iter().map(|(index, len, op, value)| SeccompCondition::new(*index, len.clone(), op.clone(), *value));
        SeccompRule::new(conditions.collect::<Result<_, _>>()?)
    }
}

/// A seccomp allow list for one role of thread. Empty at first; the default action kills the process.
#[derive(Clone, Debug)]
pub struct Filter {
    role: &'static str,
    /// `None`: whatever its arguments. `Some`: where one of the rules holds.
    allowed: BTreeMap<Syscall, Option<Vec<Rule>>>,
    absent: BTreeSet<Syscall>,
}

/// Compiled filters, to be installed in that order: of what they answer the kernel takes the strictest.
pub(crate) type Programs = Vec<BpfProgram>;

impl Filter {
    /// An empty list for the role, whose name appears in errors.
    pub fn new(role: &'static str) -> Filter {
        Filter { role, allowed: BTreeMap::new(), absent: BTreeSet::new() }
    }

    /// Adds syscalls that are allowed whatever their arguments.
    pub fn allow(mut self, syscalls: &[Syscall]) -> Filter {
        self.allowed.extend(syscalls.iter().map(|syscall| (*syscall, None)));
        self
    }

    /// Adds a syscall that is allowed where one of `rules` holds, beside what was allowed of it before.
    pub fn allow_if(mut self, syscall: Syscall, rules: Vec<Rule>) -> Filter {
        match self.allowed.entry(syscall).or_insert_with(|| Some(Vec::new())) {
            None => {}
            Some(known) => known.extend(rules),
        }
        self
    }

    /// Has syscalls answered as by a kernel that does not know them (ENOSYS): for those that a C library tries before
    /// others that do as well, and whose arguments no filter can look at.
    pub fn absent(mut self, syscalls: &[Syscall]) -> Filter {
        self.absent.extend(syscalls);
        self
    }

    /// Adds all that `other` allows, and has answered as absent.
    pub fn with(mut self, other: &Filter) -> Filter {
        self.absent.extend(&other.absent);
        for (syscall, rules) in &other.allowed {
            self = match rules {
                None => self.allow(&[*syscall]),
                Some(rules) => self.allow_if(*syscall, rules.clone()),
            };
        }
        self
    }

    /// The role it is for.
    pub fn role(&self) -> &'static str {
        self.role
    }

    /// The distinct syscalls that are allowed, with some arguments at least.
    pub fn syscalls(&self) -> impl Iterator<Item = Syscall> + '_ {
        self.allowed.keys().copied()
    }

    /// The programs for the kernel.
    pub(crate) fn compile(&self) -> Result<Programs, Error> {
        let failed = |source| Error::Filter { role: self.role, source };
        let mut allowed = BTreeMap::new();
        for (syscall, rules) in &self.allowed {
            let rules = match rules {
                None => Vec::new(),
                // No rule holds never: to the compiler an empty list would mean "always".
                Some(rules) if rules.is_empty() => continue,
                Some(rules) => rules.iter().map(Rule::compile).collect::<Result<_, _>>().map_err(failed)?,
            };
            allowed.insert(*syscall, rules);
        }
        let program = |rules, otherwise, matching| {
            SeccompFilter::new(rules, otherwise, matching, ARCH).and_then(BpfProgram::try_from).map_err(failed)
        };
        let mut programs = Vec::new();
        if !self.absent.is_empty() {
            let absent: BTreeMap<_, _> = self.absent.iter().map(|syscall| (*syscall, Vec::new())).collect();
            allowed.extend(absent.clone());
            let answer = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
            programs.push(program(absent, SeccompAction::Allow, answer)?);
        }
        programs.push(program(allowed, SeccompAction::KillProcess, SeccompAction::Allow)?);
        Ok(programs)
    }

    /// Puts compiled filters on the calling thread.
    pub(crate) fn install(role: &'static str, programs: &Programs) -> Result<(), Error> {
        programs
            .iter()
            .try_for_each(|program| seccompiler::apply_filter(program))
            .map_err(|source| Error::Install { role, source })
    }
}
