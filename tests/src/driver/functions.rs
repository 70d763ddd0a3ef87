//! Networks of virtual functions (SR-IOV), on the card that the lab host has: netmgr's own tests first, then guests that have them. On its wire is
//! another card, the neighbour.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use volt_tests::{
    console::Console,
    volt::{Vm, Volt, finish},
};

use crate::{
    functional::{ANSWER, END, Files, ready},
    report::{Report, Steps},
    suite,
};

const CLASS: &str = "/sys/class/net";
const LAN: &str = "lan0";
/// Whose namespace is the neighbour's.
const NEIGHBOUR: &str = "neighbour";

/// Runs every check.
pub fn run(volt: &Volt, report: &mut Report) -> Result<()> {
    let mut cards: Vec<String> = fs::read_dir(CLASS)?
        .flatten()
        .filter(|entry| entry.path().join("device/sriov_numvfs").exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    cards.sort();
    let [card, peer] = &cards[..] else { bail!("There are {cards:?} for a card and its neighbour") };
    // What one is called that is elsewhere may be what the next function is called.
    let [card, peer] = [(card, "card0"), (peer, "peer0")].map(|(found, name)| {
        ip(&format!("link set {found} down"))?;
        ip(&format!("link set {found} name {name}")).map(|_| name)
    });
    let (card, peer) = (card?, peer?);
    suite::run(Path::new("/tests"), &[("VOLT_TEST_CARD", &format!("{card} {peer}"))], report)?;
    guests(volt, card, peer, &mut Steps::new(report))
}

fn guests(volt: &Volt, card: &str, peer: &str, steps: &mut Steps<'_>) -> Result<()> {
    neighbour(card, peer)?;
    let doctor = |expected: &str| {
        let out = volt.run(&["doctor", "--json"], END)?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(said.contains(&format!("{card} has {expected}")), "It says {said}");
        Ok(())
    };
    steps.step("volt doctor says how many virtual functions a card may have, has, and has free", || {
        doctor("none, of 7")?;
        prepare(volt, card)?;
        doctor("2, 2 of them free")?;
        let one = first(card)?;
        ip(&format!("link set {one} up"))?;
        doctor("2, 1 of them free")?;
        ip(&format!("link set {one} down"))?;
        doctor("2, 2 of them free")
    })?;
    let before = functions(card)?;
    let files = (Files::new("one", "6.1")?, Files::new("two", "6.1")?);
    let mut one = Console::start("one", volt.boot(&Vm { network: LAN, ..files.0.vm("one", 1) }))?;
    let mut two = Console::start("two", volt.boot(&Vm { network: LAN, ..files.1.vm("two", 1) }))?;
    steps.step("guests on virtual functions ping a neighbour beyond the card", || {
        ready(&mut one)?;
        ready(&mut two)?;
        one.command("ping:10.7.0.2", ANSWER)?;
        two.command("ping:10.7.0.2", ANSWER)
    })?;
    steps.step("volt doctor and volt port list say that no virtual function is free, and who has one", || {
        doctor("2, 0 of them free")?;
        let out = volt.run(&["port", "list"], END)?;
        let ports = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(ports.contains("mvt-one") && ports.contains("mvt-two"), "It says {ports}");
        Ok(())
    })?;
    steps.step("a third guest is refused by name, with the remedy", || {
        let third = Files::new("three", "6.1")?;
        let out = finish(volt.boot(&Vm { network: LAN, ..third.vm("three", 1) }), ANSWER)?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(
            !out.status.success() && said.contains(&format!("no virtual function of {card} is free")),
            "It says {said}"
        );
        ensure!(said.contains("sriov_numvfs"), "It says {said}");
        Ok(())
    })?;
    steps.step("virtual functions are as they were once their VMs have ended or were killed", || {
        one.signal(Signal::INT)?;
        two.signal(Signal::KILL)?;
        one.wait(END)?;
        two.wait(END)?;
        let end = Instant::now() + END;
        loop {
            let after = functions(card)?;
            if after == before {
                return doctor("2, 2 of them free");
            }
            ensure!(Instant::now() < end, "They were {before} and are {after}");
            thread::sleep(Duration::from_millis(100));
        }
    })
}

/// Has the neighbour be another host than this one, at 10.7.0.2: this one answers by each interface that it has on that wire.
fn neighbour(card: &str, peer: &str) -> Result<()> {
    let end = Instant::now() + END;
    // What a test had taken elsewhere comes back a moment later.
    while !Path::new(CLASS).join(peer).exists() {
        ensure!(Instant::now() < end, "{peer} is not there");
        thread::sleep(Duration::from_millis(10));
    }
    for arguments in [
        format!("link set {card} up"),
        format!("netns add {NEIGHBOUR}"),
        format!("link set {peer} netns {NEIGHBOUR}"),
        format!("-n {NEIGHBOUR} link set {peer} up"),
        format!("-n {NEIGHBOUR} addr add 10.7.0.2/24 dev {peer}"),
    ] {
        ip(&arguments)?;
    }
    Ok(())
}

/// The interface of a card's first function.
fn first(card: &str) -> Result<String> {
    let mut found = fs::read_dir(Path::new(CLASS).join(card).join("device/virtfn0/net"))?;
    Ok(found.next().context("It has no interface")??.file_name().to_string_lossy().into_owned())
}

/// Has the card have two, and defines a network.
fn prepare(volt: &Volt, card: &str) -> Result<()> {
    fs::write(Path::new(CLASS).join(card).join("device/sriov_numvfs"), "2").context("Cannot make virtual functions")?;
    let (file, pool) = ("/tmp/lan.json", r#"{"start":"10.7.0.200","end":"10.7.0.219"}"#);
    let of_card = r#""subnet":"10.7.0.0/24","gateway":"10.7.0.254""#;
    fs::write(file, format!(r#"{{"network":"{LAN}","type":"sriov","parent":"{card}",{of_card},"pool":{pool}}}"#))?;
    let out = volt.run(&["network", "define", file], END)?;
    ensure!(out.status.success(), "It is not defined: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

fn ip(arguments: &str) -> Result<String> {
    let mut ip = Command::new("/usr/bin/ip");
    ip.args(arguments.split(' '));
    let out = finish(ip, END)?;
    ensure!(out.status.success(), "ip {arguments} failed: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// What the card says of them, but for the addresses that their own drivers choose.
fn functions(card: &str) -> Result<String> {
    let said = ip(&format!("link show dev {card}"))?;
    let lines = said.lines().filter_map(|line| line.trim().strip_prefix("vf "));
    let known =
        lines.filter_map(|line| Some(format!("{} {}\n", line.split_whitespace().next()?, line.split_once(',')?.1)));
    Ok(known.collect())
}
