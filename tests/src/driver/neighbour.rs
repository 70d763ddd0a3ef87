//! Another host beside the lab host: a thread in a network namespace of its own, with two links to it. To `up0`, which networks are on, and which
//! the lab host has no address on; and to `nb0`, which the lab host has addresses on, as whoever routes has.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::mpsc::{Sender, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use volt_tests::volt::finish;

use crate::functional::{ANSWER, END};

/// The lab host's addresses on `nb0`.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 1);
/// What the neighbour has on the other end.
pub const BEYOND: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 2);
pub const BEYOND6: Ipv6Addr = Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 2);
/// Where it says by which address whoever connects has come.
pub const SERVED: u16 = 7000;

/// Its ends of the links, and what it has on them: without a tag, and in the VLAN 100.
const ITS_OWN: [&str; 16] = [
    "link set lo up",
    "link add up0 type veth",
    "link add nb0 type veth",
    "link set up0 mtu 9000",
    "link set veth0 mtu 9000",
    "link set up0 netns 1",
    "link set nb0 netns 1",
    "link add link veth0 name veth0.100 type vlan id 100",
    "addr add 10.7.0.2/24 dev veth0",
    "addr add fd07::2/64 dev veth0",
    "addr add 10.49.0.2/24 dev veth0.100",
    "addr add fd49::2/64 dev veth0.100",
    "addr add 10.8.0.2/24 dev veth1",
    "addr add fd08::2/64 dev veth1",
    "link set veth0 up",
    "link set veth0.100 up",
];
const THE_HOSTS: [&str; 4] =
    ["addr add 10.8.0.1/24 dev nb0", "addr add fd08::1/64 dev nb0", "link set up0 up", "link set nb0 up"];
/// How long nobody must be heard of.
const NEVER: Duration = Duration::from_secs(3);

type Job = Box<dyn FnOnce() + Send>;

/// The other host. It goes when this is dropped, and its links with it.
pub struct Neighbour(Sender<Job>);

impl Neighbour {
    /// Starts it.
    pub fn start() -> Result<Neighbour> {
        let (jobs, todo) = channel::<Job>();
        let (tell, told) = channel();
        thread::spawn(move || {
            let _ = tell.send(testkit::namespace::network());
            todo.iter().for_each(|job| job());
        });
        told.recv()?.context("There is no network namespace for a neighbour")?;
        let neighbour = Neighbour(jobs);
        neighbour.does(|| ITS_OWN.into_iter().chain(["link set veth1 up"]).try_for_each(ip))??;
        THE_HOSTS.into_iter().try_for_each(ip)?;
        neighbour.does(|| {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, SERVED)).context("The neighbour cannot listen")?;
            thread::spawn(move || tell_whom(&listener));
            anyhow::Ok(())
        })??;
        Ok(neighbour)
    }

    /// Has it do something.
    pub fn does<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (tell, told) = channel();
        self.0.send(Box::new(move || _ = tell.send(work()))).ok().context("The neighbour has gone")?;
        told.recv().context("What the neighbour did has failed")
    }

    /// What it hears at an address.
    pub fn hears(&self, at: impl Into<IpAddr>, port: u16) -> Result<Option<String>> {
        let at = SocketAddr::new(at.into(), port);
        self.does(move || hears(at))
    }
}

/// What who listens there says; `None` if that is not reached.
pub fn hears(at: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&at, NEVER).ok()?;
    stream.set_read_timeout(Some(ANSWER)).ok()?;
    let mut said = String::new();
    stream.read_to_string(&mut said).ok()?;
    Some(said.trim_end().to_owned())
}

/// Tells each who connects by which address that was.
pub fn tell_whom(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        let from = stream.peer_addr().map(|from| from.ip().to_canonical().to_string());
        let _ = stream.write_all(from.unwrap_or_default().as_bytes());
    }
}

/// Changes the links of whichever host this thread is on.
pub fn ip(arguments: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    ip.args(arguments.split(' '));
    let out = finish(ip, END)?;
    ensure!(out.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}
