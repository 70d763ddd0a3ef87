//! Which layers of confinement this kernel and user can give, and what to do about the rest.
//!
//! Asks the kernel only; changes nothing.

use std::fmt;
use std::str::FromStr;

use crate::capabilities;
use crate::error::Error;
use crate::layer::Layer;

/// What happens where a layer cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Refuse to start, naming each missing layer and its remedy.
    Strict,
    /// Start, and name the missing layers in one line on stderr.
    BestEffort,
    /// Start. Whoever started this, of the same host and user, has named the missing layers already.
    BestEffortQuiet,
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(name: &str) -> Result<Policy, Error> {
        match name {
            "strict" => Ok(Policy::Strict),
            "best-effort" => Ok(Policy::BestEffort),
            "best-effort-quiet" => Ok(Policy::BestEffortQuiet),
            _ => Err(Error::UnknownPolicy(name.chars().take(64).collect())),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Policy::Strict => "strict",
            Policy::BestEffort => "best-effort",
            Policy::BestEffortQuiet => "best-effort-quiet",
        })
    }
}

/// The layers that a process like this one, keeping no capability, could not have on this kernel.
pub fn missing() -> Vec<Layer> {
    missing_when_keeping(None)
}

pub(crate) fn missing_when_keeping(keep: Option<caps::Capability>) -> Vec<Layer> {
    missing_of(landlock_abi(), seccomp_kills(), capabilities::bounding_can_be_cut(keep))
}

fn missing_of(landlock_abi: i64, seccomp: bool, bounding: bool) -> Vec<Layer> {
    // ABI 6 is what the product relies on; what later ones add (UDP, named Unix sockets) is taken where the
    // kernel has it, and is unreachable by seccomp where it has not, so its absence is no gap.
    let landlock =
        [(1, Layer::Files), (3, Layer::Truncate), (4, Layer::Network), (5, Layer::DeviceIoctl), (6, Layer::Scopes)];
    let mut missing: Vec<Layer> =
        landlock.into_iter().filter(|(abi, _)| landlock_abi < *abi).map(|(_, layer)| layer).collect();
    if !seccomp {
        missing.push(Layer::Seccomp);
    }
    if !bounding {
        missing.push(Layer::BoundingSet);
    }
    missing
}

/// The newest Landlock ABI that the kernel offers; 0 or less where it offers none.
pub fn landlock_abi() -> i64 {
    const VERSION: libc::c_uint = 1 << 0; // LANDLOCK_CREATE_RULESET_VERSION
    // SAFETY: asking for the version takes a null attribute of size 0; the kernel reads and writes no memory.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION) }
}

/// Whether the kernel has filters whose action kills the whole process.
pub(crate) fn seccomp_kills() -> bool {
    let action: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the kernel reads the four bytes at `action`, which lives through the call.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    answer == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_landlock_abi_lacks_exactly_what_later_ones_brought() {
        use Layer::*;
        let all = [Files, Truncate, Network, DeviceIoctl, Scopes];
        let lacks = |abi| missing_of(abi, true, true);
        assert_eq!(lacks(-38), all);
        assert_eq!(lacks(0), all);
        assert_eq!(lacks(1), all[1..]);
        assert_eq!(lacks(2), all[1..]);
        assert_eq!(lacks(3), all[2..]);
        assert_eq!(lacks(4), all[3..]);
        assert_eq!(lacks(5), all[4..]);
        assert_eq!(lacks(6), []);
        assert_eq!(lacks(10), []);
    }

    #[test]
    fn missing_seccomp_and_bounding_set_are_named_with_their_remedies() {
        let missing = missing_of(7, false, false);
        assert_eq!(missing, [Layer::Seccomp, Layer::BoundingSet]);
        let line = crate::layer::list(&missing);
        assert!(!line.contains('\n'));
        assert!(line.contains("seccomp (needs Linux 4.14"), "{line}");
        assert!(line.contains("CapabilityBoundingSet="), "{line}");
    }

    #[test]
    fn policy_names_round_trip_and_others_are_refused() {
        for policy in [Policy::Strict, Policy::BestEffort, Policy::BestEffortQuiet] {
            assert_eq!(policy.to_string().parse::<Policy>().ok(), Some(policy));
        }
        let refused = "besteffort".parse::<Policy>();
        assert!(matches!(refused, Err(Error::UnknownPolicy(name)) if name == "besteffort"));
    }
}
