//! The layers of confinement that the kernel and this user's rights give, as `confine` finds them at a program's start.

use confine::{Layer, Policy};

use super::{Check, probe};

/// Whether a VM's processes would start under the policy.
pub fn policy(policy: Policy) -> Check {
    judge(policy, &confine::missing())
}

fn judge(policy: Policy, missing: &[Layer]) -> Check {
    if missing.is_empty() {
        return Check::ok("confinement", "strict starts: no layer is missing");
    }
    let join = |texts: Vec<String>| texts.join(", ");
    let layers = join(missing.iter().map(Layer::to_string).collect());
    let remedies = join(missing.iter().map(|layer| format!("{} for {layer}", layer.remedy())).collect());
    match policy {
        Policy::Strict => {
            Check::missing("confinement", format!("strict refuses to start without {layers}"), remedies).vital()
        }
        Policy::BestEffort => {
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
    use crate::doctor::State;

    #[test]
    fn missing_layer_stops_strict_only() {
        let missing = [Layer::Scopes, Layer::BoundingSet];
        assert_eq!(judge(Policy::Strict, &[]).state, State::Ok);
        let strict = judge(Policy::Strict, &missing);
        assert_eq!((strict.state, strict.vital), (State::Missing, true));
        let effort = judge(Policy::BestEffort, &missing);
        assert_eq!(effort.state, State::Limited);
        assert!(effort.detail.contains("Landlock scopes, capability bounding set"), "{effort:?}");
        assert!(effort.remedy.unwrap().contains("Linux 6.12"));
    }
}
