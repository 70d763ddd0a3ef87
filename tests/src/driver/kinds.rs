//! Guests on networks of every kind but the default: two, with a card on each of three. What is beyond the lab host is a neighbour.

use std::{
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener},
    thread,
};

use anyhow::{Context, Result, ensure};
use volt_tests::{
    console::Console,
    volt::{Vm, Volt},
};

use crate::{
    functional::{ANSWER, END, Files, ready},
    neighbour::{BEYOND, BEYOND6, HOST, HOST6, Neighbour, SERVED, hears, ip, tell_whom},
    report::Steps,
};

/// Networks: `one` is on the first, `two` on the second, and both are on the other two. Where guests may send to on the first, a policy says.
const DEFINITIONS: [(&str, &str); 4] = [
    (
        "lan0",
        r#""type":"macvtap","parent":"up0","mtu":1500,"subnet":"10.7.0.0/24","gateway":"10.7.0.254","subnet6":"fd07::/64",
           "pool":{"start":"10.7.0.200","end":"10.7.0.219"},"policy":{"allow":["10.7.0.2 icmp","fd07::2 icmp"]}"#,
    ),
    ("out0", r#""type":"host-only","subnet":"10.51.0.0/24","ipv6":true"#),
    ("sealed0", r#""type":"isolated","subnet":"10.50.0.0/24","ipv6":true"#),
    (
        "office0",
        r#""parent":"up0","vlan":100,"mtu":9000,"subnet":"10.49.0.0/24","gateway":"10.49.0.1","subnet6":"fd49::/64",
           "pool":{"start":"10.49.0.200","end":"10.49.0.219"}"#,
    ),
];
/// Their cards on networks that both are on.
const SEALED: &str = "eth1";
const OFFICE: &str = "eth2";
/// A port of the host's that leads to `two`; and one of the host's own.
const PUBLISHED: u16 = 8088;
const HOSTS_OWN: u16 = 9000;

/// A VM whose first card is on that network, with one more on each that both guests are on.
fn start(volt: &Volt, vm: &Vm<'_>, more: &[&str]) -> Result<Console> {
    let mut command = volt.boot(vm);
    command.args(["--net", "sealed0", "--net", "office0"]).args(more);
    Console::start(vm.name, command)
}

/// Which address a guest has said that a card of its has: of IPv4 ("address") or of IPv6 ("ipv6").
fn of_card(vm: &Console, family: &str, card: &str) -> Result<IpAddr> {
    let said = vm.transcript.iter().filter(|line| line.trim_end().ends_with(&format!(" on {card}")));
    let address = said.filter_map(|line| line.split(&format!("lab: {family} ")).nth(1)?.split(' ').next()).next();
    let address = address.with_context(|| format!("{} has said no {family} of {card}", vm.label))?;
    address.parse().with_context(|| format!("{} has {address}", vm.label))
}

fn both_of(vm: &Console, card: &str) -> Result<[IpAddr; 2]> {
    Ok([of_card(vm, "address", card)?, of_card(vm, "ipv6", card)?])
}

/// Makes every check of the two, which it starts one after the other, and leaves running.
pub fn check(
    volt: &Volt,
    steps: &mut Steps<'_>,
    neighbour: &Neighbour,
    [one_files, two_files]: [&Files; 2],
) -> Result<[Console; 2]> {
    for (name, definition) in DEFINITIONS {
        let file = format!("/tmp/{name}.json");
        fs::write(&file, format!(r#"{{"network":"{name}",{definition}}}"#))?;
        let out = volt.run(&["network", "define", &file], END)?;
        ensure!(out.status.success(), "{name} is not defined: {}", String::from_utf8_lossy(&out.stderr));
    }
    let mut one = start(volt, &Vm { network: "lan0", ..one_files.vm("one", 1) }, &[])?;
    steps.step(
        "a guest on a macvtap pings a neighbour beyond the parent, in both families, as its policy lets it",
        || {
            ready(&mut one)?;
            one.command("ping:10.7.0.2", ANSWER)?;
            one.command("ping:fd07::2", ANSWER)?;
            one.command(&format!("hear:10.7.0.2 {SERVED}"), ANSWER)
        },
    )?;
    let publish = format!("{PUBLISHED}:80");
    let mut two = start(volt, &Vm { network: "out0", ..two_files.vm("two", 2) }, &["-p", &publish])?;
    steps.step(
        "a guest of a host-only network reaches what is beyond the host, under its address of either family",
        || {
            ready(&mut two)?;
            two.command(&format!("hear:{BEYOND} {SERVED} {HOST}"), ANSWER)?;
            two.command(&format!("hear:{BEYOND6} {SERVED} {HOST6}"), ANSWER)
        },
    )?;
    steps.step(
        "it reaches no service of the host's, and is reached by a published port alone, whoever routes to it",
        || host_only(neighbour, &mut two),
    )?;
    steps.step("guests of an isolated network reach one another, and nobody else does either way", || {
        isolated(neighbour, &mut one, &mut two)
    })?;
    steps.step("guests of a VLAN, their host and a neighbour there exchange frames of 9000 bytes", || {
        for address in both_of(&two, OFFICE)? {
            one.command(&format!("jumbo:{address}"), ANSWER)?;
        }
        for there in ["10.49.0.1", "fd49::1", "10.49.0.2", "fd49::2"] {
            two.command(&format!("jumbo:{there}"), ANSWER)?;
        }
        Ok(())
    })?;
    Ok([one, two])
}

fn host_only(neighbour: &Neighbour, two: &mut Console) -> Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, HOSTS_OWN)).context("The host cannot listen")?;
    thread::spawn(move || tell_whom(&listener));
    two.command("serve:80", ANSWER)?;
    two.command("ping:10.51.0.1", ANSWER)?;
    for (host, beyond) in [(IpAddr::from(HOST), IpAddr::from(BEYOND)), (HOST6.into(), BEYOND6.into())] {
        let said = neighbour.hears(host, HOSTS_OWN)?;
        ensure!(said == Some(beyond.to_string()), "The neighbour hears {said:?} at {host}");
        two.command(&format!("hear:{host} {HOSTS_OWN}"), ANSWER)?;
        let said = neighbour.hears(host, PUBLISHED)?;
        ensure!(said.as_deref() == Some("two"), "The neighbour hears {said:?} at {host}:{PUBLISHED}");
    }
    two.command(&format!("hear:10.51.0.1 {HOSTS_OWN}"), ANSWER)?;
    for (guest, host) in both_of(two, "eth0")?.into_iter().zip([IpAddr::from(HOST), HOST6.into()]) {
        is_out_of_reach(neighbour, guest, host)?;
        // It is there all the while.
        ensure!(hears(SocketAddr::new(guest, 80)).as_deref() == Some("two"), "The host does not reach {guest}");
    }
    Ok(())
}

fn isolated(neighbour: &Neighbour, one: &mut Console, two: &mut Console) -> Result<()> {
    for (guest, host) in both_of(two, SEALED)?.into_iter().zip([IpAddr::from(HOST), HOST6.into()]) {
        one.command(&format!("ping:{guest}"), ANSWER)?;
        one.command(&format!("hear:{guest} 80 two"), ANSWER)?;
        is_out_of_reach(neighbour, guest, host)?;
        ensure!(hears(SocketAddr::new(guest, 80)).is_none(), "The host reaches {guest}");
        one.command(&format!("silent:{SEALED} {host}"), ANSWER)?;
    }
    // Which a bridge of the host's would have.
    one.command(&format!("silent:{SEALED} 10.50.0.1"), ANSWER)
}

/// Has the neighbour route to a guest by that address of the host's, and try.
fn is_out_of_reach(neighbour: &Neighbour, guest: IpAddr, host: IpAddr) -> Result<()> {
    let family = if guest.is_ipv6() { "-6" } else { "-4" };
    neighbour.does(move || ip(&format!("{family} route add {guest} via {host}")))??;
    ensure!(neighbour.hears(guest, 80)?.is_none(), "The neighbour reaches {guest}");
    Ok(())
}
