//! The layers of confinement that the kernel and this user's rights give, as `confine` finds them at a program's start.

use confine::{Layer, Policy};

use super::{Check, State, probe};
use crate::host::identity::Range;

/// Whether a VM's processes would start under the policy, given what was found of namespaces and cgroups.
pub fn policy(policy: Policy, namespaces: [&Check; 2], cgroups: &Check) -> Check {
    let layers = confine::missing();
    let mut missing: Vec<_> = layers.iter().map(|layer| (layer.to_string(), layer.remedy())).collect();
    if let Err(why) = Range::usable() {
        missing.push((format!("a user of the VM's own ({why})"), "see rights"));
    }
    if cgroups.state != State::Ok {
        missing.push(("a cgroup with limits".into(), "see cgroups"));
    }
    if let Some(row) = namespaces.into_iter().find(|row| row.state != State::Ok) {
        missing.push(("namespaces of the VM's own".into(), row.remedy.as_deref().unwrap_or_default()));
    }
    judge(policy, &missing)
}

fn judge(policy: Policy, missing: &[(String, &str)]) -> Check {
    if missing.is_empty() {
        return Check::ok("confinement", "strict starts: no layer is missing");
    }
    let layers = missing.iter().map(|(what, _)| what.as_str()).collect::<Vec<_>>().join(", ");
    let remedies: Vec<String> = missing.iter().map(|(what, remedy)| format!("{what}: {remedy}")).collect();
    let remedies = remedies.join("; ");
    match policy {
        Policy::Strict => {
            Check::missing("confinement", format!("strict refuses to start without {layers}"), remedies).vital()
        }
        Policy::BestEffort | Policy::BestEffortQuiet => {
            Check::limited("confinement", format!("best-effort starts without {layers}; strict would not"), remedies)
        }
    }
}

/// Landlock's ABI.
pub fn landlock() -> Check {
    let of_landlock = |layer: &Layer| layer.to_string().starts_with("Landlock");
    let missing: Vec<Layer> = confine::missing().into_iter().filter(of_landlock).collect();
    let abi = confine::landlock_abi();
    match (abi, missing.first()) {
        (..=0, _) => Check::missing("landlock", "the kernel has none, or it is not switched on", Layer::Files.remedy()),
        (_, None) => Check::ok("landlock", format!("ABI {abi}: files, truncate, network, device ioctl, scopes")),
        (_, Some(_)) => {
            let names: Vec<String> = missing.iter().map(Layer::to_string).collect();
            let newest = missing.last().map_or("", |layer| layer.remedy());
            Check::limited("landlock", format!("ABI {abi}, without {}", names.join(", ")), newest)
        }
    }
}

/// seccomp's actions.
pub fn seccomp() -> Check {
    let actions = probe::read("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_else(|e| format!("not listed: {e}"));
    if confine::missing().contains(&Layer::Seccomp) {
        return Check::missing("seccomp", "no filter whose action kills the process", Layer::Seccomp.remedy());
    }
    Check::ok("seccomp", format!("filters kill the process; actions {actions}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_layer_stops_strict_only() {
        let missing = [Layer::Scopes, Layer::BoundingSet].map(|layer| (layer.to_string(), layer.remedy()));
        assert_eq!(judge(Policy::Strict, &[]).state, State::Ok);
        let strict = judge(Policy::Strict, &missing);
        assert_eq!((strict.state, strict.vital), (State::Missing, true));
        let effort = judge(Policy::BestEffort, &missing);
        assert_eq!(effort.state, State::Limited);
        assert!(effort.detail.contains("Landlock scopes, capability bounding set"), "{effort:?}");
        assert!(effort.remedy.unwrap().contains("Linux 6.12"));
    }
}
