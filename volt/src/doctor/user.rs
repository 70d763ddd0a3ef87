//! This user's rights and limits.

use rustix::{
    process::{Resource, getegid, geteuid, getgroups, getrlimit},
    thread::{CapabilitySet, capabilities},
};

use schema::limits::CORE_FILES;

use super::Check;
use crate::host::identity::Range;

/// Who this is: root, or somebody who gets no network and no users for the VMs.
pub fn rights() -> Check {
    let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let mut groups: Vec<u32> = getgroups().unwrap_or_default().into_iter().map(|group| group.as_raw()).collect();
    groups.push(getegid().as_raw());
    groups.sort_unstable();
    groups.dedup();
    let groups: Vec<String> = groups.iter().take(32).map(u32::to_string).collect();
    judge(&format!("user {}, groups {}", geteuid().as_raw(), groups.join(" ")), held, Range::usable().err())
}

/// `unusable`: why there are no users for VMs.
fn judge(who: &str, held: CapabilitySet, unusable: Option<&str>) -> Check {
    let needed = [
        ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN, "networks"),
        ("CAP_SETPCAP", CapabilitySet::SETPCAP, "the capability bounding set"),
    ];
    let lacks = needed.iter().filter(|(_, capability, _)| !held.contains(*capability));
    let mut list: Vec<String> = lacks.map(|(name, _, what)| format!("{name} ({what})")).collect();
    list.extend(unusable.map(|why| format!("a user of its own for each VM ({why})")));
    if list.is_empty() {
        let names = needed.map(|(name, ..)| name).join(", ");
        return Check::ok("rights", format!("{who}: holds {names}, and each VM can have a user of its own"));
    }
    let remedy = "run as root, or have root run the netmgr service; a VM without --net needs neither";
    Check::limited("rights", format!("{who}: lacks {}", list.join(", ")), remedy)
}

/// The limits that a VM's processes start from; they only lower them.
pub fn limits() -> Check {
    let hard = |resource| getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let text = |limit: u64| if limit == u64::MAX { "unlimited".into() } else { limit.to_string() };
    let files = hard(Resource::Nofile);
    let detail = format!("open files {}, processes {}", text(files), text(hard(Resource::Nproc)));
    if files < CORE_FILES {
        return Check::limited(
            "limits",
            detail,
            format!("a hard limit of {CORE_FILES} open files, for VMs with many devices"),
        );
    }
    Check::ok("limits", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn capability_that_is_lacking_is_named_with_its_use() {
        assert_eq!(judge("user 0", CapabilitySet::all(), None).state, State::Ok);
        let plain = judge("user 1000", CapabilitySet::all() - CapabilitySet::NET_ADMIN, None);
        assert_eq!(plain.state, State::Limited);
        assert_eq!(plain.detail, "user 1000: lacks CAP_NET_ADMIN (networks)");
        let inside = judge("user 0", CapabilitySet::all(), Some("elsewhere"));
        assert_eq!(inside.detail, "user 0: lacks a user of its own for each VM (elsewhere)");
    }
}
