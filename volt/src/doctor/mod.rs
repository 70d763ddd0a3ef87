//! `volt doctor`: what this host gives for running VMs and for confining them, and what to do about the rest.
//!
//! Every row is a probe: it asks the kernel for the very thing, where need be in a throw-away child. Reads are bounded and
//! waits have deadlines. Nothing of the host is changed, beyond that the kernel may load a module of its own, as it would
//! at a VM's start. As a plain user it says what cannot be found out.

mod cgroups;
mod confinement;
mod cpu;
mod firewall;
mod host;
mod kvm;
mod memory;
mod namespaces;
mod netlink;
mod network;
mod probe;
mod sriov;
mod user;

use std::io;

use comfy_table::{ContentArrangement, Table, presets};
use confine::Policy;
use serde::Serialize;

use crate::{cli::DoctorArgs, error::Error, output::print};

/// Columns where standard output is no terminal.
const WIDTH: u16 = 120;

/// How a thing is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As Volt wants it.
    Ok,
    /// There, but not all of it, or not as it should be.
    Limited,
    /// Not there.
    Missing,
}

/// One row.
#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    state: State,
    detail: String,
    /// What to do, unless all is well.
    remedy: Option<String>,
    /// Whether no VM runs while it is missing.
    #[serde(skip)]
    vital: bool,
}

impl Check {
    fn ok(check: &'static str, detail: impl Into<String>) -> Check {
        Check { check, state: State::Ok, detail: detail.into(), remedy: None, vital: false }
    }

    fn limited(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { state: State::Limited, remedy: Some(remedy.into()), ..Check::ok(check, detail) }
    }

    fn missing(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { state: State::Missing, remedy: Some(remedy.into()), ..Check::ok(check, detail) }
    }

    /// Without it, no VM runs.
    fn vital(self) -> Check {
        Check { vital: true, ..self }
    }
}

/// All rows, and what follows from them.
#[derive(Debug, Serialize)]
struct Report {
    /// `ok`: all is as it should be. `limited`: a VM runs. `missing`: none does.
    verdict: State,
    checks: Vec<Check>,
}

impl Report {
    fn of(checks: Vec<Check>) -> Report {
        let any = |state| checks.iter().any(|check| check.state == state);
        let verdict = if checks.iter().any(|check| check.vital && check.state == State::Missing) {
            State::Missing
        } else if any(State::Missing) || any(State::Limited) {
            State::Limited
        } else {
            State::Ok
        };
        Report { verdict, checks }
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        let terminal = rustix::termios::tcgetwinsize(io::stdout()).map(|size| size.ws_col);
        table.set_width(terminal.ok().filter(|columns| *columns > 0).unwrap_or(WIDTH));
        table.set_header(["CHECK", "STATE", "DETAIL", "REMEDY"]);
        for Check { check, state, detail, remedy, .. } in &self.checks {
            let state = match state {
                State::Ok => "ok",
                State::Limited => "limited",
                State::Missing => "missing",
            };
            table.add_row([check, state, detail, remedy.as_deref().unwrap_or_default()]);
        }
        table
    }

    fn conclusion(&self) -> String {
        let blocking: Vec<&str> =
            self.checks.iter().filter(|c| c.vital && c.state == State::Missing).map(|c| c.check).collect();
        match self.verdict {
            State::Ok => "VMs run here, as they should.".into(),
            State::Limited => "VMs run here, with the limits above.".into(),
            State::Missing => format!("No VM runs here until this is mended: {}.", blocking.join(", ")),
        }
    }
}

/// Looks at the host and says what was found. Success if a VM would run, under that policy.
pub fn main(policy: Policy, args: &DoctorArgs) -> Result<i32, Error> {
    let report = Report::of(examine(policy));
    let text = if args.json {
        serde_json::to_string_pretty(&report).map_err(Error::Json)?
    } else {
        format!("{}\n\n{}", report.table().trim_fmt(), report.conclusion())
    };
    print(&format!("{text}\n"))?;
    Ok(if report.verdict == State::Missing { 1 } else { 0 })
}

/// All rows. There is one thread, as children are made.
fn examine(policy: Policy) -> Vec<Check> {
    let users = namespaces::users();
    let owned = users.state == State::Ok;
    let others = namespaces::others(owned);
    let network = [
        network::nftables(owned),
        network::tun(),
        network::bridge(owned),
        network::vlans(owned),
        network::macvtaps(owned),
        sriov::functions(),
    ];
    let groups = cgroups::check();
    let policy = confinement::policy(policy, [&users, &others], &groups);
    let [kvm, speed] = kvm::checks();
    let mut checks = vec![host::kernel(), kvm, speed, host::programs(), user::rights(), user::limits()];
    checks.extend([policy, confinement::landlock(), confinement::seccomp(), users, others, groups]);
    checks.extend(network);
    checks.extend([firewall::forwarding(), firewall::others(), firewall::across()]);
    checks.extend([memory::available(), memory::huge_pages(), memory::swap(), memory::same_page_merging()]);
    checks.extend([cpu::threads(), cpu::mitigations()]);
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_vital_thing_that_is_missing_stops_vms() {
        let verdict = |checks| Report::of(checks).verdict;
        let missing = || Check::missing("a", "", "");
        assert_eq!(verdict(vec![Check::ok("a", "").vital()]), State::Ok);
        assert_eq!(verdict(vec![Check::ok("a", "").vital(), missing()]), State::Limited);
        assert_eq!(verdict(vec![Check::ok("a", ""), Check::limited("b", "", "").vital()]), State::Limited);
        let stopped = Report::of(vec![Check::ok("a", ""), missing(), Check::missing("kvm", "", "").vital()]);
        assert_eq!(stopped.verdict, State::Missing);
        assert!(stopped.conclusion().ends_with("mended: kvm."), "{}", stopped.conclusion());
    }

    #[test]
    fn every_row_that_is_not_ok_has_a_remedy_in_table_and_json() {
        let report = Report::of(vec![Check::ok("first", "fine"), Check::missing("second", "absent", "get one")]);
        let table = report.table().trim_fmt();
        let row = |name| table.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap().to_owned();
        assert!(row("first").ends_with("fine"), "{table}");
        assert!(row("second").contains("missing") && row("second").ends_with("get one"), "{table}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["verdict"], "limited");
        assert_eq!(
            json["checks"][1],
            serde_json::json!({"check": "second", "state": "missing", "detail": "absent", "remedy": "get one"})
        );
        assert!(json["checks"][0]["remedy"].is_null());
    }
}
