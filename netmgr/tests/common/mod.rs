//! What the tests of the real program share: a network namespace for each, the program in it, calls over RPC, and
//! what `ip` says of the kernel's state. Touches nothing outside the namespace but a temporary folder.
#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]

use std::{
    ops::{Deref, DerefMut},
    os::fd::{AsFd, OwnedFd},
    process::Command,
    time::Duration,
};

use ipc::{Connection, Fault};
use schema::{
    host_capnp::{host, tenant},
    network_capnp::{network, network_info, port, port_factory, port_info},
};
use serde_json::Value;
use testkit::{namespace, skip, wait::PATIENCE};

pub use testkit::wait::eventually;
pub use testrig::container::{Container, ip, tap};
pub use testrig::service::{DEADLINE, code, refusal, run};

/// Runs a test in a network namespace of its own, which goes with the thread and the programs that the test starts; without root, says so.
pub fn in_own_network(test: impl FnOnce() + Send + 'static) {
    let run = namespace::in_own_network(|| {
        ip("link set lo up");
        test();
    });
    if !run {
        skip!("making a network namespace takes root");
    }
}

/// Runs a test in a network namespace of its own, if there is nft(8) to look at its rules with; says so if not.
pub fn with_nft(test: impl FnOnce() + Send + 'static) {
    if Command::new("nft").arg("--version").output().is_ok_and(|output| output.status.success()) {
        in_own_network(test);
    } else {
        skip!("nft is not installed (Debian's package nftables)");
    }
}

/// Runs a command of nft's, which must succeed; gives its output.
pub fn nft(command: &str) -> String {
    let output = Command::new("nft").arg(command).output().unwrap();
    assert!(output.status.success(), "nft {command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What `ip -j -d addr show dev NAME` says; `None` if there is no such interface.
pub fn interface(name: &str) -> Option<Value> {
    let output = Command::new("ip").args(["-j", "-d", "addr", "show", "dev", name]).output().unwrap();
    let list: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    list.get(0).cloned()
}

/// The names of all interfaces but `lo`.
pub fn interfaces() -> Vec<String> {
    let list: Value = serde_json::from_str(&ip("-j link show")).unwrap();
    list.as_array().unwrap().iter().map(|link| text(link, "ifname")).filter(|name| name != "lo").collect()
}

/// A field's text; empty if it is not there.
pub fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

/// The IPv4 addresses in what [`interface`] gave, as address/prefix.
pub fn ipv4(interface: &Value) -> Vec<String> {
    addresses(interface).into_iter().filter(|address| !address.contains(':')).collect()
}

/// All addresses in what [`interface`] gave, as address/prefix.
pub fn addresses(interface: &Value) -> Vec<String> {
    let infos = interface["addr_info"].as_array().unwrap();
    infos.iter().map(|info| format!("{}/{}", text(info, "local"), info["prefixlen"])).collect()
}

/// Whether an interface has the flag.
pub fn has_flag(interface: &Value, flag: &str) -> bool {
    interface["flags"].as_array().unwrap().iter().any(|known| known == flag)
}

/// Waits until `done`, but not for long, while connections work.
pub async fn settle(what: &str, done: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !done() {
        assert!(tokio::time::Instant::now() < end, "still not so: {what}; interfaces: {:?}", interfaces());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How many frames have come from the guest of a TAP.
pub fn came_from(tap: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let row = table.lines().find_map(|line| line.trim().strip_prefix(tap)?.strip_prefix(':')).unwrap();
    row.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Waits until the bridge forwards what comes from a port: the kernel has it so a moment after the port is up, on a busy machine later.
pub async fn forwards(name: &str) {
    let state = |port: Value| text(&port["linkinfo"]["info_slave_data"], "state");
    settle(&format!("{name} forwards"), || interface(name).map(state).is_some_and(|state| state == "forwarding")).await;
}

/// Closes a TAP that no netmgr holds, and waits until it is gone: what other tests start at this moment has a copy of the descriptor
/// between its fork and its exec.
pub async fn close(tap: std::os::fd::OwnedFd, index: u32) {
    drop(tap);
    let there = || interfaces().iter().filter_map(|name| interface(name)).any(|found| found["ifindex"] == index);
    settle("the TAP is gone", || !there()).await;
}

/// The MAC address of a guest that [`sends`].
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// An address beyond the host.
pub const FAR: [u8; 4] = [198, 51, 100, 7];

/// Has the guest of `vm-web` send a datagram to that port of the address; the kernel has looked at it when this returns.
pub fn sends(tap: &OwnedFd, to: [u8; 4], port: u16) {
    sends_with(tap, MAC, to, port, 0);
}

/// The same from that MAC address, with so many bytes in it.
pub fn sends_with(tap: &OwnedFd, from: [u8; 6], to: [u8; 4], port: u16, bytes: u16) {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 42, 0, 9];
    packet[2..4].copy_from_slice(&(28 + bytes).to_be_bytes());
    packet.extend(to);
    let sum: u32 = packet.chunks_exact(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    packet[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    packet.extend([[0x10, 0], port.to_be_bytes(), (8 + bytes).to_be_bytes(), [0, 0]].concat());
    packet.resize(packet.len() + usize::from(bytes), 0);
    let frame = [&[0; 12][..], &[2, 0, 0, 0, 0, 0xee], &from, &[8, 0], &packet].concat();
    assert_eq!(rustix::io::write(tap, &frame), Ok(frame.len()));
}

/// The elements of a set, as nft(8) lists them.
pub fn elements(set: &str) -> Vec<serde_json::Value> {
    let output = std::process::Command::new("nft").args(["-j", "list", "ruleset"]).output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let sets = listed["nftables"].as_array().unwrap().iter().flat_map(|one| [&one["set"], &one["map"]]);
    let found = sets.into_iter().find(|one| one["table"] == "volt-vmm" && one["name"] == set);
    found.and_then(|set| set["elem"].as_array().cloned()).unwrap_or_default()
}

/// The program under test, in the calling thread's network namespace, and its folder.
pub struct Netmgr(Service, tempfile::TempDir);

pub type Service = testrig::service::Service<Client>;

impl Deref for Netmgr {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.0
    }
}

impl DerefMut for Netmgr {
    fn deref_mut(&mut self) -> &mut Service {
        &mut self.0
    }
}

impl Netmgr {
    /// Starts it with a socket in a folder of its own, and waits until it answers.
    pub fn start() -> Netmgr {
        Netmgr::start_with(|_| ())
    }

    /// [`start`](Self::start), with something changed about the command.
    pub fn start_with(change: impl FnOnce(&mut Command)) -> Netmgr {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Service::command(dir.path());
        change(&mut command);
        Netmgr(Service::of(command.spawn().unwrap(), Service::socket(dir.path())), dir)
    }
}

/// A holder's end of one connection.
pub struct Client {
    pub connection: Connection,
    pub host: host::Client,
}

impl From<Connection> for Client {
    fn from(connection: Connection) -> Client {
        Client { host: connection.bootstrap(), connection }
    }
}

impl testrig::service::Client for Client {
    const PROGRAM: &'static str = env!("CARGO_BIN_EXE_netmgr");
    const KEEPS: bool = false;
}

impl Client {
    pub async fn define(&self, name: &str, gateway: &str, prefix: u8, mtu: u32) -> Result<network::Client, Fault> {
        self.define_both(name, gateway, prefix, mtu, "").await
    }

    /// A network with IPv6 beside.
    pub async fn define_both(
        &self,
        name: &str,
        gateway: &str,
        prefix: u8,
        mtu: u32,
        ipv6: &str,
    ) -> Result<network::Client, Fault> {
        let mut request = self.host.define_network_request();
        let mut config = request.get().init_config();
        config.set_name(name);
        config.set_gateway(gateway);
        config.set_prefix_length(prefix);
        config.set_mtu(mtu);
        config.set_ipv6(ipv6);
        let answer = self.connection.call("define a network", DEADLINE, request.send()).await?;
        Ok(answer.get()?.get_network()?)
    }

    /// `volt0`, 10.42.0.1/24.
    pub async fn define_default(&self) -> network::Client {
        self.define("volt0", "10.42.0.1", 24, 0).await.unwrap()
    }

    pub async fn network(&self, name: &str) -> Result<network::Client, Fault> {
        let mut request = self.host.network_request();
        request.get().set_network(name);
        Ok(self.connection.call("find a network", DEADLINE, request.send()).await?.get()?.get_network()?)
    }

    pub async fn remove(&self, name: &str) -> Result<(), Fault> {
        let mut request = self.host.remove_network_request();
        request.get().set_network(name);
        self.connection.call("remove a network", DEADLINE, request.send()).await.map(|_| ())
    }

    pub async fn info(&self, network: &network::Client) -> Result<Info, Fault> {
        let answer = self.connection.call("look", DEADLINE, network.info_request().send()).await?;
        Ok(Info::read(answer.get()?.get_info()?))
    }

    /// The ports behind that of `after`.
    pub async fn ports(&self, network: &network::Client, after: &str) -> Result<Vec<Port>, Fault> {
        let mut request = network.ports_request();
        request.get().set_after(after);
        let answer = self.connection.call("list the ports", DEADLINE, request.send()).await?;
        Ok(answer.get()?.get_ports()?.iter().map(Port::read).collect())
    }

    pub async fn networks(&self) -> Result<Vec<String>, Fault> {
        let answer = self.connection.call("list the networks", DEADLINE, self.host.networks_request().send()).await?;
        Ok(answer.get()?.get_networks()?.iter().map(|name| name.unwrap().to_string().unwrap()).collect())
    }

    pub async fn factory(&self, network: &network::Client, max: u32) -> Result<port_factory::Client, Fault> {
        let mut request = network.port_factory_request();
        request.get().set_max_ports(max);
        Ok(self.connection.call("make a factory", DEADLINE, request.send()).await?.get()?.get_factory()?)
    }

    pub async fn tenant(&self, name: &str, ports: u32) -> Result<tenant::Client, Fault> {
        let mut request = self.host.tenant_request();
        request.get().set_tenant(name);
        request.get().init_quota().set_ports(ports);
        Ok(self.connection.call("make a tenant", DEADLINE, request.send()).await?.get()?.get_tenant()?)
    }

    pub async fn tenant_factory(&self, tenant: &tenant::Client, network: &str) -> Result<port_factory::Client, Fault> {
        let mut request = tenant.port_factory_request();
        request.get().set_network(network);
        Ok(self.connection.call("make a factory", DEADLINE, request.send()).await?.get()?.get_factory()?)
    }

    pub async fn tap(&self, factory: &port_factory::Client, workload: &str) -> Result<port::Client, Fault> {
        self.tap_with(factory, workload, &[]).await
    }

    pub async fn tap_with(
        &self,
        factory: &port_factory::Client,
        workload: &str,
        mac: &[u8],
    ) -> Result<port::Client, Fault> {
        self.tap_from(factory, workload, mac, &[]).await
    }

    /// A port whose guest may send from these addresses.
    pub async fn tap_from(
        &self,
        factory: &port_factory::Client,
        workload: &str,
        mac: &[u8],
        addresses: &[&str],
    ) -> Result<port::Client, Fault> {
        let mut request = factory.create_tap_request();
        request.get().set_workload(workload);
        request.get().set_mac(mac);
        let mut list = request.get().init_addresses(addresses.len() as u32);
        for (at, address) in (0..).zip(addresses) {
            list.set(at, address);
        }
        Ok(self.connection.call("make a port", DEADLINE, request.send()).await?.get()?.get_port()?)
    }

    /// A veth's port; what is not said here is as the schema has it.
    pub async fn veth(
        &self,
        factory: &port_factory::Client,
        workload: &str,
        container: &Container,
        change: impl FnOnce(port_factory::create_veth_params::Builder<'_>),
    ) -> Result<(port::Client, Vec<u8>), Fault> {
        self.veth_by(factory, workload, &container.0, &container.socket(), change).await
    }

    /// The same, by any two descriptors.
    pub async fn veth_by(
        &self,
        factory: &port_factory::Client,
        workload: &str,
        netns: impl AsFd,
        netlink: impl AsFd,
        change: impl FnOnce(port_factory::create_veth_params::Builder<'_>),
    ) -> Result<(port::Client, Vec<u8>), Fault> {
        let netns = self.connection.deposit(netns.as_fd()).await?;
        let netlink = self.connection.deposit(netlink.as_fd()).await?;
        let mut request = factory.create_veth_request();
        let mut asked = request.get();
        asked.set_workload(workload);
        netns.write(asked.reborrow().init_netns());
        netlink.write(asked.reborrow().init_netlink());
        change(asked);
        let answer = self.connection.call("make a veth", DEADLINE, request.send()).await?;
        Ok((answer.get()?.get_port()?, answer.get()?.get_sturdy_ref()?.to_vec()))
    }

    pub async fn restore(&self, network: &network::Client, sturdy_ref: &[u8]) -> Result<port::Client, Fault> {
        let mut request = network.restore_request();
        request.get().set_sturdy_ref(sturdy_ref);
        Ok(self.connection.call("restore a port", DEADLINE, request.send()).await?.get()?.get_port()?)
    }

    pub async fn durable(&self, network: &network::Client, workload: &str) -> Result<port::Client, Fault> {
        let mut request = network.durable_port_request();
        request.get().set_workload(workload);
        Ok(self.connection.call("find a port", DEADLINE, request.send()).await?.get()?.get_port()?)
    }

    pub async fn port(&self, port: &port::Client) -> Result<Port, Fault> {
        let answer = self.connection.call("look", DEADLINE, port.info_request().send()).await?;
        Ok(Port::read(answer.get()?.get_info()?))
    }

    pub async fn fd(&self, port: &port::Client) -> Result<std::os::fd::OwnedFd, Fault> {
        let answer = self.connection.call("get the TAP", DEADLINE, port.tap_request().send()).await?;
        let token = ipc::Token::read(answer.get()?.get_tap()?)?;
        self.connection.claim(token.as_bytes()).await
    }

    /// Why the port was lost, once it is.
    pub async fn lost(&self, port: &port::Client) -> Result<String, Fault> {
        let answer = self.connection.call("watch a port", DEADLINE, port.lost_request().send()).await?;
        Ok(answer.get()?.get_why()?.to_string().map_err(capnp::Error::from)?)
    }

    pub async fn release(&self, port: &port::Client) -> Result<(), Fault> {
        self.connection.call("release", DEADLINE, port.release_request().send()).await.map(|_| ())
    }
}

/// `NetworkInfo`.
#[derive(Debug)]
pub struct Info {
    pub name: String,
    pub gateway: String,
    pub prefix: u8,
    pub mtu: u32,
    pub ipv6: String,
    pub index: u32,
    pub ports: Vec<Port>,
}

impl Info {
    fn read(info: network_info::Reader<'_>) -> Info {
        let config = info.get_config().unwrap();
        Info {
            name: config.get_name().unwrap().to_string().unwrap(),
            gateway: config.get_gateway().unwrap().to_string().unwrap(),
            prefix: config.get_prefix_length(),
            mtu: config.get_mtu(),
            ipv6: config.get_ipv6().unwrap().to_string().unwrap(),
            index: info.get_index(),
            ports: info.get_ports().unwrap().iter().map(Port::read).collect(),
        }
    }
}

/// `PortInfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub workload: String,
    pub interface: String,
    pub index: u32,
    pub mac: Vec<u8>,
    pub network: String,
    pub mtu: u32,
    pub addresses: Vec<String>,
    pub gateways: Vec<String>,
}

impl Port {
    /// It, as `Network.info` lists it.
    pub fn brief(&self) -> Port {
        Port { addresses: Vec::new(), gateways: Vec::new(), ..self.clone() }
    }

    fn read(info: port_info::Reader<'_>) -> Port {
        let texts = |list: capnp::text_list::Reader<'_>| {
            list.iter().map(|text| text.unwrap().to_string().unwrap()).collect::<Vec<_>>()
        };
        Port {
            workload: info.get_workload().unwrap().to_string().unwrap(),
            interface: info.get_interface_name().unwrap().to_string().unwrap(),
            index: info.get_index(),
            mac: info.get_mac().unwrap().to_vec(),
            network: info.get_network().unwrap().to_string().unwrap(),
            mtu: info.get_mtu(),
            addresses: texts(info.get_addresses().unwrap()),
            gateways: texts(info.get_gateways().unwrap()),
        }
    }
}
