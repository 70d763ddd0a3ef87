//! Bench `forward`: what one guest sends another, on this machine, over ends of veths: on a network of Volt's with all of its rules, beside a bare bridge
//! in the same run. Each bridge is in a network namespace of its own, as is each guest.
//!
//! Ours are looked at as every guest is, and have a policy, which lets them send to each other; where the bare bridge is there are neither rules nor hooks
//! for any. The host's rules for IP are kept from both bridges (bridge-nf-call-*), as `volt doctor` advises. Both are measured in turn, many times, so that other work on the machine burdens both alike. Throughput is that of one connection of TCP, whose segments are as large as
//! the kernels make them; packets are UDP's, of 64 bytes, as many as arrive.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use ipc::Connection;
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    process::{Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use schema::{host_capnp::host, network_capnp::port};

use crate::{
    bench::{Row, apart, higher, row},
    debian,
};

/// Turns of each.
const ROUNDS: usize = 15;
const TURN: Duration = Duration::from_millis(400);
const DEADLINE: Duration = Duration::from_secs(30);
const PORT: u16 = 5001;
/// Larger than any segment.
const CHUNK: usize = 256 << 10;
const SMALL: usize = 64;
const BARE: &str = "a bare bridge";

/// Two guests on one bridge: their namespaces, and the addresses that they have there.
struct Pair([File; 2], [Ipv4Addr; 2]);

/// Takes the figures.
pub fn measure(netmgr: &Path) -> Result<Vec<Row>> {
    debian::install(&["iproute2"])?;
    apart("forward", |dir| all(netmgr, dir))
}

fn ip(arguments: &str) -> Result<()> {
    debian::run(Command::new("ip").args(arguments.split(' ')))
}

/// Keeps bridges of this namespace from the rules for IP. A kernel without that setting has no such way.
fn without_rules_for_ip() -> Result<()> {
    for family in ["ip", "ip6", "arp"] {
        let setting = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
        if Path::new(&setting).exists() {
            fs::write(setting, "0")?;
        }
    }
    Ok(())
}

fn all(netmgr: &Path, dir: &Path) -> Result<Vec<Row>> {
    let bare = bare()?;
    without_rules_for_ip()?;
    let socket = dir.join("netmgr");
    let mut process = Command::new(netmgr).arg("--socket").arg(&socket).stdin(Stdio::null()).spawn()?;
    let rows = ipc::run(async {
        let (ours, _ports) = ours(&socket).await?;
        compared(&ours, &bare)
    })?;
    kill_process(rustix::process::Pid::from_child(&process), Signal::TERM)?;
    process.wait()?;
    rows
}

fn guests(name: &str, addresses: [Ipv4Addr; 2]) -> Result<Pair> {
    let mut made = Vec::new();
    for at in 0..2 {
        ip(&format!("netns add {name}{at}"))?;
        made.push(File::open(format!("/run/netns/{name}{at}"))?);
    }
    let made = made.try_into().ok().context("two were made")?;
    Ok(Pair(made, addresses))
}

fn bare() -> Result<Pair> {
    let addresses = [Ipv4Addr::new(10, 43, 0, 2), Ipv4Addr::new(10, 43, 0, 3)];
    let pair = guests("bare", addresses)?;
    ip("netns add bare")?;
    within(&File::open("/run/netns/bare")?, without_rules_for_ip)?;
    ip("-n bare link add bare0 type bridge mcast_snooping 0")?;
    ip("-n bare link set bare0 up")?;
    for (at, address) in addresses.iter().enumerate() {
        ip(&format!("-n bare link add bare-{at} type veth peer name eth0 netns bare{at}"))?;
        ip(&format!("-n bare link set bare-{at} master bare0 up"))?;
        ip(&format!("-n bare{at} addr add {address}/24 dev eth0"))?;
        ip(&format!("-n bare{at} link set eth0 up"))?;
    }
    Ok(pair)
}

async fn ours(socket: &Path) -> Result<(Pair, Vec<port::Client>)> {
    let end = Instant::now() + DEADLINE;
    let connection = loop {
        match Connection::connect(socket).await {
            Ok(connection) => break connection,
            Err(fault) => ensure!(Instant::now() < end, "netmgr does not answer: {fault}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let addresses = [Ipv4Addr::new(10, 42, 0, 2), Ipv4Addr::new(10, 42, 0, 3)];
    let pair = guests("volt", addresses)?;
    let host: host::Client = connection.bootstrap();
    let mut request = host.define_network_request();
    let mut config = request.get().init_config();
    config.set_name("volt0");
    config.set_gateway("10.42.0.1");
    config.set_prefix_length(24);
    let mut rules = config.init_policy().init_allow(3);
    for (at, rule) in (0..).zip(["host udp 53", "10.99.0.0/16 tcp 443", "10.42.0.0/24"]) {
        rules.set(at, rule);
    }
    let answer = connection.call("define a network", DEADLINE, request.send()).await?;
    let mut request = answer.get()?.get_network()?.port_factory_request();
    request.get().set_max_ports(2);
    let answer = connection.call("make a factory", DEADLINE, request.send()).await?;
    let factory = answer.get()?.get_factory()?;
    let mut ports = Vec::new();
    for (at, (namespace, address)) in pair.0.iter().zip(&addresses).enumerate() {
        let netlink = within(namespace, || {
            Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
        })?;
        let netns = connection.deposit(namespace.as_fd()).await?;
        let netlink = connection.deposit(netlink.as_fd()).await?;
        let mut request = factory.create_veth_request();
        let mut asked = request.get();
        asked.set_workload(format!("container-{at}"));
        netns.write(asked.reborrow().init_netns());
        netlink.write(asked.reborrow().init_netlink());
        asked.init_addresses(1).set(0, address.to_string());
        let answer = connection.call("make a veth", DEADLINE, request.send()).await?;
        ports.push(answer.get()?.get_port()?);
    }
    Ok((pair, ports))
}

fn compared(ours: &Pair, bare: &Pair) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (what, unit, measure) in [
        ("throughput of TCP", "Mbit/s", throughput as fn(&Pair) -> Result<f64>),
        ("packets of UDP, 64 bytes", "1000/s", packets),
    ] {
        debian::say(&format!("measuring {what}"));
        // Which takes the way for the first time.
        let mut figures = [measure(ours)?, measure(bare)?].map(|_| Vec::new());
        for round in 0..ROUNDS * 2 {
            let [of_ours, of_bare] = &mut figures;
            // Who comes first is not always the same.
            if round % 4 == 0 || round % 4 == 3 { of_ours.push(measure(ours)?) } else { of_bare.push(measure(bare)?) }
        }
        let [ours, bare] = figures.map(|mut of| {
            of.sort_by(f64::total_cmp);
            of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
        });
        rows.push(higher(row(format!("guest to guest, {what}"), unit, Some(ours), Some((bare, BARE)))));
    }
    Ok(rows)
}

/// Does something in a network namespace.
fn within<T: Send>(namespace: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        thread.join().unwrap_or_else(|_| bail!("The measuring thread panicked"))
    })
}

/// Mbit/s.
fn throughput(Pair([from, to], [_, address]): &Pair) -> Result<f64> {
    let listener = within(to, || Ok(TcpListener::bind((*address, PORT))?))?;
    let mut stream = within(from, || {
        let end = Instant::now() + DEADLINE;
        loop {
            match TcpStream::connect((*address, PORT)) {
                Err(error) if Instant::now() > end => return Err(error).context("Cannot connect to the other guest"),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
                Ok(stream) => return Ok(stream),
            }
        }
    })?;
    let (mut taken, _) = listener.accept()?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut buffer, mut sum, begun) = (vec![0; CHUNK], 0, Instant::now());
            loop {
                match taken.read(&mut buffer)? {
                    0 => return anyhow::Ok(sum as f64 * 8.0 / 1e6 / begun.elapsed().as_secs_f64()),
                    length => sum += length,
                }
            }
        });
        let (chunk, begun) = (vec![0; CHUNK], Instant::now());
        while begun.elapsed() < TURN {
            stream.write_all(&chunk)?;
        }
        drop(stream);
        receiver.join().unwrap_or_else(|_| bail!("The receiving thread panicked"))
    })
}

/// A thousand of them a second.
fn packets(Pair([from, to], [_, address]): &Pair) -> Result<f64> {
    let receiver = within(to, || Ok(UdpSocket::bind((*address, PORT))?))?;
    let sender = within(from, || Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
    sender.connect((*address, PORT))?;
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let (mut buffer, mut count) = ([0; 2 * SMALL], 0_u64);
            loop {
                match receiver.recv(&mut buffer) {
                    Ok(_) => count += 1,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return anyhow::Ok(count),
                    Err(error) => return Err(error.into()),
                }
            }
        });
        let begun = Instant::now();
        while begun.elapsed() < TURN {
            sender.send(&[0; SMALL])?;
        }
        let took = begun.elapsed().as_secs_f64();
        let count = receiving.join().unwrap_or_else(|_| bail!("The receiving thread panicked"))?;
        Ok(count as f64 / 1e3 / took)
    })
}
