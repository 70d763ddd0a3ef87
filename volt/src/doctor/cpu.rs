//! The CPU's weaknesses: what guests could learn of each other through it, and whether the kernel stands in the way.

use std::fs;

use super::{Check, probe};

const VULNERABILITIES: &str = "/sys/devices/system/cpu/vulnerabilities";

/// Two threads on one core see more of each other than processes should.
pub fn threads() -> Check {
    let control = probe::read("/sys/devices/system/cpu/smt/control");
    let active = probe::number("/sys/devices/system/cpu/smt/active") == Some(1);
    match control {
        Ok(control) if active => Check::limited(
            "smt",
            format!("on ({control})"),
            "boot with nosmt=force, where tenants do not trust each other",
        ),
        Ok(control) => Check::ok("smt", format!("off ({control})")),
        Err(e) => Check::limited("smt", format!("cannot be found out: {e}"), "mount /sys"),
    }
}

/// What the kernel says of each known vulnerability.
pub fn mitigations() -> Check {
    // Some tens of files; a host cannot have thousands.
    let entries = fs::read_dir(VULNERABILITIES).into_iter().flatten().take(256);
    // What cannot be read is not closed.
    let unread = |e: &std::io::Error| format!("Unknown: cannot be read, {e}");
    let mut found: Vec<(String, String)> = entries
        .map(|entry| match entry {
            Ok(entry) => {
                let text = probe::read(&entry.path().to_string_lossy()).unwrap_or_else(|e| unread(&e));
                (entry.file_name().to_string_lossy().into_owned(), text)
            }
            Err(e) => (VULNERABILITIES.into(), unread(&e)),
        })
        .collect();
    found.sort_unstable();
    judge(&processor(&probe::read("/proc/cpuinfo").unwrap_or_default()), &found)
}

/// The first CPU's name and microcode.
fn processor(table: &str) -> String {
    let field = |name: &str| {
        let line = table.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
        line.map_or("unknown", str::trim)
    };
    format!("{}, microcode {}", field("model name"), field("microcode"))
}

fn judge(processor: &str, found: &[(String, String)]) -> Check {
    if found.is_empty() {
        let detail = format!("{processor}: cannot be found out, {VULNERABILITIES} is not there");
        return Check::limited("mitigations", detail, "mount /sys; Linux 4.15");
    }
    let open: Vec<String> =
        found.iter().filter(|(_, text)| is_open(text)).map(|(name, text)| format!("{name}: {text}")).collect();
    let detail = format!("{processor}: {} of {} closed", found.len() - open.len(), found.len());
    if open.is_empty() {
        return Check::ok("mitigations", detail);
    }
    let remedy = "newest kernel and microcode; boot without mitigations=off, or with mitigations=auto,nosmt; see the kernel's admin-guide/hw-vuln";
    Check::limited("mitigations", format!("{detail}; {}", open.join("; ")), remedy)
}

/// Whether it can be exploited, in part at least ("Mitigation: Clear CPU buffers; SMT vulnerable"), or nobody knows.
fn is_open(text: &str) -> bool {
    text.starts_with("Unknown") || text.to_ascii_lowercase().contains("vulnerable")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn vulnerability_is_open_unless_wholly_mitigated() {
        for closed in ["Not affected", "Mitigation: Retpolines; STIBP: disabled", "KVM: Mitigation: VMX disabled"] {
            assert!(!is_open(closed), "{closed}");
        }
        let smt = "Mitigation: Clear CPU buffers; SMT vulnerable";
        for open in
            ["Vulnerable", "Vulnerable: Safe RET, no microcode", smt, "KVM: Vulnerable", "Unknown: No mitigations"]
        {
            assert!(is_open(open), "{open}");
        }
    }

    #[test]
    fn open_ones_are_named_and_counted() {
        let found = [("mds", "Vulnerable"), ("l1tf", "Not affected")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        let check = judge("CPU", &found);
        assert_eq!((check.state, check.detail.as_str()), (State::Limited, "CPU: 1 of 2 closed; mds: Vulnerable"));
        assert_eq!(judge("CPU", &found[1..]).state, State::Ok);
        assert_eq!(judge("CPU", &[]).state, State::Limited);
    }

    #[test]
    fn processor_is_named_by_the_first_cpu_s_lines() {
        let table = "model\t\t: 1\nmodel name\t: A CPU @ 3 GHz\nmicrocode\t: 0x1\n\nmodel name\t: other";
        assert_eq!(processor(table), "A CPU @ 3 GHz, microcode 0x1");
        assert_eq!(processor(""), "unknown, microcode unknown");
    }
}
