//! Volt as `volt install` leaves it on Debian's systemd: services from their sockets, a bridge that systemd-networkd made, and guests that keep their
//! traffic whichever of them restarts.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use volt_tests::{
    console::Console,
    volt::{Volt, finish},
};

use crate::{
    functional::{ANSWER, BOOT, END, Files, ready},
    report::{Report, Steps},
};

/// The address of the bridge that systemd-networkd makes.
const GATEWAY: &str = "ping:10.42.0.1";

/// Networks beside the default one, two of them on an interface of the host's.
const OTHERS: [(&str, &str); 3] = [
    ("lab0", r#""subnet":"10.51.0.0/24""#),
    ("office0", r#""parent":"up0","vlan":100,"subnet":"10.49.0.0/24","gateway":"10.49.0.1""#),
    ("lan0", r#""type":"macvtap","parent":"up0","subnet":"10.7.0.0/24","gateway":"10.7.0.1""#),
];
/// What netmgr makes for these and a VM `web`; and how many TAPs with that.
const MADE: [&str; 4] = ["lab0", "office0", "up-office0", "mvt-web"];
const TAPS: usize = 3;
/// By this somebody has systemd-networkd manage all that nothing else is said of.
const ALL: &str = "[Match]\nName=!lo\n[Network]\nDHCP=yes\nLinkLocalAddressing=no\n";

/// Runs every check.
pub fn run(volt: &Volt, report: &mut Report) -> Result<()> {
    let mut steps = Steps::new(report);
    let steps = &mut steps;
    steps.step("systemd takes an installation, and systemd-networkd makes volt0", || {
        fs::write("/etc/systemd/network/zz-all.network", ALL)?;
        done(command("ip", "link add up0 type veth"))?;
        done(command("ip", "link set up0 up"))?;
        done(volt.command(&["install"]))?;
        systemctl("daemon-reload")?;
        systemctl("restart systemd-udevd systemd-networkd")?;
        systemctl("start volt-netmgr.socket volt-ipamd.socket volt-kernel-store.socket")?;
        let mut wait = Command::new("/lib/systemd/systemd-networkd-wait-online");
        wait.args(["--interface=volt0:no-carrier", "--timeout=60"]);
        done(wait)?;
        ensure!(inactive("volt-netmgr.service")?, "netmgr runs before anybody asked for it");
        for (name, definition) in OTHERS {
            let file = format!("/tmp/{name}.json");
            fs::write(&file, format!(r#"{{"network":"{name}",{definition}}}"#))?;
            done(volt.command(&["network", "define", &file]))?;
        }
        Ok(())
    })?;
    let index = std::fs::read_to_string("/sys/class/net/volt0/ifindex").unwrap_or_default();
    let (web_files, db_files) = (Files::new("web", "6.1")?, Files::new("db", "6.12")?);
    let mut on_all = volt.boot(&web_files.vm("web", 1));
    on_all.args(OTHERS.iter().flat_map(|&(name, _)| ["--net", name]));
    let mut web = Console::start("web", on_all)?;
    let mut addresses = [String::new(), String::new()];
    steps.step("a guest comes up on it, by services that systemd started", || {
        addresses[0] = ready(&mut web)?;
        web.command(GATEWAY, ANSWER)?;
        // Nobody needs kernel-store any more, which has ended by now, or is about to.
        for service in ["netmgr", "ipamd"] {
            ensure!(!inactive(&format!("volt-{service}.service"))?, "{service} is not systemd's");
        }
        ensure!(!Path::new("/var/lib/volt-vmm/services.log").exists(), "volt has started services of its own");
        is_of_networkd(&index)
    })?;
    steps
        .step("systemd-networkd and NetworkManager leave alone what netmgr makes, whatever it is called", left_alone)?;
    steps.step("a guest keeps its traffic while networkd, udev and every service are killed and restarted", || {
        systemctl("restart systemd-networkd systemd-udevd")?;
        web.command(GATEWAY, ANSWER)?;
        for service in ["volt-netmgr", "volt-ipamd", "systemd-networkd"] {
            systemctl(&format!("kill --signal=KILL {service}.service"))?;
            web.command(GATEWAY, ANSWER)?;
        }
        left_alone()?;
        is_of_networkd(&index)
    })?;
    let mut db = Console::start("db", volt.boot(&db_files.vm("db", 1)))?;
    steps.step("a guest that comes after that and the one before reach each other", || {
        addresses[1] = ready(&mut db)?;
        ensure!(addresses[0] != addresses[1], "Both guests have {}", addresses[0]);
        db.command(&format!("ping:{}", addresses[0]), ANSWER)?;
        web.command(&format!("ping:{}", addresses[1]), ANSWER)
    })?;
    steps.step("powering off leaves no interface, and uninstalling no unit, and volt0 is networkd's still", || {
        for vm in [&mut web, &mut db] {
            vm.command("poweroff", ANSWER)?;
            let status = vm.wait(END)?;
            ensure!(status.success(), "{} ended with {status}; {}", vm.label, vm.last());
        }
        systemctl("stop volt-netmgr.socket volt-ipamd.socket volt-kernel-store.socket volt-netmgr volt-ipamd volt-kernel-store")?;
        let links = done(command("ip", "-o link show"))?;
        ensure!(!links.contains("tap-"), "{links}");
        is_of_networkd(&index)?;
        done(volt.command(&["uninstall"]))?;
        systemctl("daemon-reload")?;
        let status = done(command("systemctl", "list-unit-files --no-legend"))?;
        ensure!(!status.contains("volt"), "{status}");
        Ok(())
    })
}

/// The bridge is the one that systemd-networkd made, which it has as it configured it, and its address is there once.
fn is_of_networkd(index: &str) -> Result<()> {
    let now = std::fs::read_to_string("/sys/class/net/volt0/ifindex").context("volt0 is gone")?;
    ensure!(now == index, "volt0 is another one");
    let status = done(command("networkctl", "status volt0 --no-pager"))?;
    ensure!(status.contains("configured"), "{status}");
    let addresses = done(command("ip", "-o -4 addr show dev volt0"))?;
    ensure!(addresses.matches("10.42.0.1/24").count() == 1, "{addresses}");
    Ok(())
}

/// Of all that netmgr has made, systemd-networkd manages volt0 alone; of the host's own, what it is told to.
fn left_alone() -> Result<()> {
    let end = Instant::now() + END;
    let wrong = loop {
        let listed = done(command("networkctl", "list --all --no-legend --no-pager"))?;
        let links: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
        let names = |link: &&Vec<&str>| link.get(1).is_some_and(|name| MADE.contains(name) || name.starts_with("tap-"));
        let made: Vec<_> = links.iter().filter(names).collect();
        let all = made.len() == MADE.len() + TAPS;
        let unmanaged = made.iter().all(|link| link.last() == Some(&"unmanaged"));
        let managed = links.iter().any(|link| link.get(1) == Some(&"up0") && link.last() == Some(&"configuring"));
        if all && unmanaged && managed {
            break None;
        }
        if Instant::now() > end {
            break Some(listed);
        }
        thread::sleep(Duration::from_millis(500));
    };
    ensure!(wrong.is_none(), "networkctl says {}", wrong.unwrap_or_default());
    for name in MADE.into_iter().filter(|name| !name.starts_with("mvt-")) {
        let known = done(command("udevadm", &format!("info --query=property --path=/sys/class/net/{name}")))?;
        ensure!(known.contains("NM_UNMANAGED=1"), "udev says of {name}: {known}");
    }
    let addresses = done(command("ip", "-o addr show dev lab0"))?;
    ensure!(addresses.lines().count() == 1 && addresses.contains("10.51.0.1/24"), "lab0 has {addresses}");
    Ok(())
}

fn inactive(unit: &str) -> Result<bool> {
    let status = command("systemctl", &format!("is-active --quiet {unit}")).status()?;
    Ok(!status.success())
}

fn systemctl(arguments: &str) -> Result<()> {
    done(command("systemctl", arguments)).map(drop)
}

fn command(program: &str, arguments: &str) -> Command {
    let mut command = Command::new(program);
    command.args(arguments.split(' '));
    command
}

/// What a command has said, which must succeed.
fn done(command: Command) -> Result<String> {
    let said = format!("{command:?}");
    let out = finish(command, BOOT)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(out.status.success(), "{said}: {}{text}", String::from_utf8_lossy(&out.stderr));
    Ok(text)
}
