//! Ports of the lab host that lead to a guest: asked for by the host itself, by a neighbour and by another guest.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use volt_tests::{console::Console, volt::Volt};

use crate::{
    functional::{ANSWER, END},
    neighbour::{HOST, Neighbour, hears, ip},
    report::Steps,
};

/// What the VM `web` is started with.
pub const FROM_THE_START: [&str; 2] = ["-p", "8080:80"];
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);

/// What has `port` of the host lead to `web` is heard by all who reach the host.
fn is_reached(neighbour: &Neighbour, db: &mut Console, port: u16) -> Result<()> {
    for own in [HOST, Ipv4Addr::LOCALHOST, GATEWAY] {
        let said = hears((own, port).into());
        ensure!(said.as_deref() == Some("web"), "The host hears {said:?} at {own}:{port}");
    }
    let said = neighbour.hears(HOST, port)?;
    ensure!(said.as_deref() == Some("web"), "A neighbour hears {said:?} at {HOST}:{port}");
    db.command(&format!("hear:{HOST} {port} web"), ANSWER)
}

fn is_closed(neighbour: &Neighbour, port: u16) -> Result<()> {
    for own in [HOST, Ipv4Addr::LOCALHOST] {
        ensure!(hears((own, port).into()).is_none(), "The host reaches {own}:{port}");
    }
    ensure!(neighbour.hears(HOST, port)?.is_none(), "A neighbour reaches {HOST}:{port}");
    is_free(port)
}

/// And anybody may have it.
fn is_free(port: u16) -> Result<()> {
    let end = Instant::now() + END;
    while let Err(why) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        ensure!(Instant::now() < end, "{port}: {why}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Of the guests `web`, which was started with [`FROM_THE_START`] and has that address, and `db`.
pub fn check(
    volt: &Volt,
    steps: &mut Steps<'_>,
    neighbour: &Neighbour,
    [web, db]: [&mut Console; 2],
    address: &str,
) -> Result<()> {
    let volt = |arguments: &[&str]| {
        let out = volt.run(arguments, ANSWER)?;
        ensure!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    };
    steps.step(
        "a port published at a guest's start is reached from the host, over loopback, by neighbour and guest",
        || {
            web.command("serve:80", ANSWER)?;
            is_reached(neighbour, db, 8080)
        },
    )?;
    steps.step("a port is published, and not any more, while the guest runs", || {
        is_closed(neighbour, 8443)?;
        volt(&["port", "publish", "volt0", "web", "8443:80"])?;
        is_reached(neighbour, db, 8443)?;
        volt(&["port", "unpublish", "volt0", "web", "8443"])?;
        is_closed(neighbour, 8443)?;
        is_reached(neighbour, db, 8080)
    })?;
    steps.step("a neighbour that routes to the guests reaches none, but by the port that is published", || {
        neighbour.does(|| ip("route add 10.42.0.0/24 via 10.8.0.1"))??;
        let guest: IpAddr = address.parse()?;
        ensure!(neighbour.hears(guest, 80)?.is_none(), "It reaches {guest}");
        // Both are there all the while.
        ensure!(hears(SocketAddr::new(guest, 80)).is_some(), "The host does not reach {guest}");
        is_reached(neighbour, db, 8080)
    })
}

/// After the guest `web` has booted again.
pub fn check_again(neighbour: &Neighbour, web: &mut Console, db: &mut Console) -> Result<()> {
    web.command("serve:80", ANSWER)?;
    is_reached(neighbour, db, 8080)
}

/// That nothing leads to a guest which has ended.
pub fn check_gone(neighbour: &Neighbour) -> Result<()> {
    is_closed(neighbour, 8080).context("The guest has ended")
}
