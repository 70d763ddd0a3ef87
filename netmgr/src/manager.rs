//! What there is on this host: networks, ports, tenants, and who may have how many. Owns the kernel's socket; runs on the worker thread.
//!
//! The kernel's state is derived, never trusted. At start the bridges with our mark become networks again. TAPs with our mark that
//! nobody in this process holds are left alone: a TAP is not persistent, so it is there because a process (a VM's network
//! backend that outlived an earlier netmgr) has it open, and it goes when that process ends. Until then it counts as a port of its network, and
//! its workload cannot have a second one. What carries no mark is never changed.

use std::{
    collections::BTreeMap,
    os::fd::{OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use rtnetlink::LinkUnspec;

use crate::{
    bridge,
    config::Config,
    error::Error,
    kernel::Kernel,
    names::{self, Mac},
    port::{self, Made, Wanted},
};

const MAX_NETWORKS: usize = 256;
const MAX_TENANTS: usize = 1024;

/// A network at one time: a network that was removed and defined anew is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkId {
    /// Its name.
    pub name: String,
    serial: u64,
}

/// A port at one time.
#[derive(Clone, Debug)]
pub struct PortId {
    network: NetworkId,
    workload: String,
    serial: u64,
}

/// A tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantId(u64);

/// How many ports a holder may have at one time.
pub struct Quota {
    max: u32,
    used: AtomicU32,
}

/// One port's place in a quota, until it is dropped.
struct Slot(Arc<Quota>);

impl Quota {
    /// Of `max` ports.
    pub fn new(max: u32) -> Arc<Quota> {
        Arc::new(Quota { max, used: AtomicU32::new(0) })
    }

    fn take(self: &Arc<Quota>) -> Result<Slot, Error> {
        let more = |used: u32| (used < self.max).then(|| used + 1);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Slot(self.clone())),
            Err(_) => Err(Error::Quota(self.max)),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What `PortInfo` says (schema/network.capnp).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortFacts {
    pub workload: String,
    pub interface: String,
    pub index: u32,
    pub mac: Mac,
    pub network: String,
    pub mtu: u32,
}

/// What the holder of a port has of it.
pub struct NewPort {
    pub id: PortId,
    pub facts: PortFacts,
    pub tap: Arc<OwnedFd>,
    /// Set when the port has been released, by whomever.
    pub released: Arc<AtomicBool>,
}

/// On whose account a port is made.
#[derive(Clone)]
pub struct Account {
    pub quota: Arc<Quota>,
    pub tenant: Option<TenantId>,
}

struct Network {
    serial: u64,
    index: u32,
    config: Config,
    ports: BTreeMap<String, Port>,
    /// Ports of an earlier netmgr that were alive when this one started: interface index, workload, guest address.
    earlier: Vec<(u32, String, Mac)>,
}

struct Port {
    serial: u64,
    index: u32,
    interface: String,
    mac: Mac,
    tap: Arc<OwnedFd>,
    released: Arc<AtomicBool>,
    tenant: Option<TenantId>,
    _slot: Slot,
}

/// All that netmgr knows.
pub struct Manager {
    kernel: Kernel,
    networks: BTreeMap<String, Network>,
    tenants: BTreeMap<u64, String>,
    serial: u64,
}

impl Manager {
    /// Takes stock of what an earlier netmgr has left.
    pub fn recover(mut kernel: Kernel) -> Result<Manager, Error> {
        let bridges = bridge::existing(&mut kernel)?;
        let mut manager = Manager { kernel, networks: BTreeMap::new(), tenants: BTreeMap::new(), serial: 0 };
        for (index, config) in bridges {
            let marked = |link: crate::link::Link| {
                names::read_port_mark(&link.alias).map(|(workload, mac)| (link.index, workload.to_owned(), mac))
            };
            let earlier = manager.kernel.links(Some(index))?.into_iter().filter_map(marked).collect();
            let network = Network { serial: manager.next(), index, ports: BTreeMap::new(), earlier, config };
            manager.networks.insert(network.config.name.clone(), network);
        }
        Ok(manager)
    }

    /// The descriptors that the sandbox has to keep.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        self.kernel.fds()
    }

    /// Defines a network, or changes one. Ports that are there keep the MTU they were made with.
    pub fn define(&mut self, config: Config) -> Result<NetworkId, Error> {
        if !self.networks.contains_key(&config.name) && self.networks.len() >= MAX_NETWORKS {
            return Err(Error::Full { what: "networks", limit: MAX_NETWORKS });
        }
        let index = bridge::define(&mut self.kernel, &config)?;
        let next = self.next();
        let name = config.name.clone();
        let network = self.networks.entry(name.clone()).or_insert_with(|| Network {
            serial: next,
            index,
            config: config.clone(),
            ports: BTreeMap::new(),
            earlier: Vec::new(),
        });
        network.config = config;
        if network.index != index {
            // Somebody had taken the bridge away; the ports are still there.
            network.index = index;
            for (workload, port) in &network.ports {
                port::reattach(&mut self.kernel, port.index, workload, port.mac, index)?;
            }
        }
        Ok(NetworkId { name, serial: network.serial })
    }

    /// The network of that name.
    pub fn network(&self, name: &str) -> Result<NetworkId, Error> {
        match self.networks.get(name) {
            Some(network) => Ok(NetworkId { name: name.to_owned(), serial: network.serial }),
            None => Err(Error::NoSuchNetwork(name.chars().take(names::INTERFACE_NAME_MAX).collect())),
        }
    }

    /// Takes a network off the host.
    pub fn remove(&mut self, name: &str) -> Result<(), Error> {
        let id = self.network(name)?;
        let network = find(&mut self.networks, &id)?;
        // Also what netmgr did not put there.
        let ports = self.kernel.links(Some(network.index))?.len().max(network.ports.len());
        if ports > 0 {
            return Err(Error::PortsAttached { name: id.name, ports });
        }
        bridge::remove(&mut self.kernel, name, network.index)?;
        self.networks.remove(name);
        Ok(())
    }

    /// A network's configuration, its bridge's index, and its ports as the kernel has them.
    pub fn info(&mut self, id: &NetworkId) -> Result<(Config, u32, Vec<PortFacts>), Error> {
        let network = find(&mut self.networks, id)?;
        let facts = |link: crate::link::Link| {
            let (workload, mac) = names::read_port_mark(&link.alias)?;
            Some(PortFacts {
                workload: workload.to_owned(),
                mac,
                index: link.index,
                mtu: link.mtu,
                network: id.name.clone(),
                interface: link.name,
            })
        };
        let ports = self.kernel.links(Some(network.index))?.into_iter().filter_map(facts).collect();
        Ok((network.config.clone(), network.index, ports))
    }

    /// Makes a tenant.
    pub fn tenant(&mut self, name: &str) -> Result<TenantId, Error> {
        if self.tenants.len() >= MAX_TENANTS {
            return Err(Error::Full { what: "tenants", limit: MAX_TENANTS });
        }
        if self.tenants.values().any(|known| known == name) {
            return Err(Error::TenantExists(name.to_owned()));
        }
        let serial = self.next();
        self.tenants.insert(serial, name.to_owned());
        Ok(TenantId(serial))
    }

    /// Ends a tenant, and takes all of its ports away.
    pub fn end_tenant(&mut self, tenant: TenantId) {
        self.tenants.remove(&tenant.0);
        for (name, network) in &mut self.networks {
            let gone: Vec<(String, Port)> =
                network.ports.extract_if(.., |_, port| port.tenant == Some(tenant)).collect();
            for (workload, port) in gone {
                report(name, &workload, take_away(&mut self.kernel, &workload, port));
            }
        }
    }

    /// Makes a port.
    pub fn attach(&mut self, id: &NetworkId, workload: &str, mac: Mac, account: &Account) -> Result<NewPort, Error> {
        if account.tenant.is_some_and(|tenant| !self.tenants.contains_key(&tenant.0)) {
            return Err(Error::Revoked("tenant"));
        }
        let network = find(&mut self.networks, id)?;
        if network.ports.contains_key(workload) {
            return Err(Error::PortExists { workload: workload.to_owned(), network: id.name.clone() });
        }
        forget_ended(&mut self.kernel, &mut network.earlier);
        if let Some((index, ..)) = network.earlier.iter().find(|(_, earlier, _)| earlier == workload) {
            let link = self.kernel.link(LinkUnspec::new_with_index(*index))?;
            return Err(Error::PortInUse {
                interface: link.map_or_else(|| names::tap(workload).name, |link| link.name),
            });
        }
        let taken = network.ports.values().map(|port| &port.mac).chain(network.earlier.iter().map(|(.., mac)| mac));
        if taken
            .flat_map(|taken| [*taken, taken.host_side()])
            .chain([Mac::of_bridge(&id.name)])
            .any(|taken| taken == mac || taken == mac.host_side())
        {
            return Err(Error::MacTaken { mac: mac.to_string(), network: id.name.clone() });
        }
        let slot = account.quota.take()?;
        let (bridge, mtu) = (network.index, network.config.mtu);
        let mut name = names::tap(workload);
        let wanted = Wanted { network: &id.name, bridge, mtu, workload, mac };
        let mut made = port::attach(&mut self.kernel, &wanted, &name)?;
        if matches!(made, Made::NameTaken) && self.has_interface(&name.name) {
            name = names::tap_on(&id.name, workload);
            made = port::attach(&mut self.kernel, &wanted, &name)?;
        }
        let (tap, index) = match made {
            Made::Port(tap, index) => (Arc::new(tap), index),
            Made::NameTaken => {
                let link = self.kernel.link(LinkUnspec::new_with_name(&name.name))?;
                let earlier = link.filter(|link| names::read_port_mark(&link.alias).is_some());
                return Err(earlier.map_or(Error::ForeignInterface { name: name.name }, |link| Error::PortInUse {
                    interface: link.name,
                }));
            }
        };
        let (serial, released) = (self.next(), Arc::default());
        let port = Port {
            serial,
            index,
            interface: name.name.clone(),
            mac,
            tap: tap.clone(),
            released: Arc::clone(&released),
            tenant: account.tenant,
            _slot: slot,
        };
        find(&mut self.networks, id)?.ports.insert(workload.to_owned(), port);
        let facts = PortFacts {
            workload: workload.to_owned(),
            interface: name.name,
            index,
            mac,
            network: id.name.clone(),
            mtu,
        };
        Ok(NewPort { id: PortId { network: id.clone(), workload: workload.to_owned(), serial }, facts, tap, released })
    }

    /// Takes a port away. One that has gone already is no error.
    pub fn release(&mut self, id: &PortId) -> Result<(), Error> {
        let Ok(network) = find(&mut self.networks, &id.network) else { return Ok(()) };
        if network.ports.get(&id.workload).is_none_or(|port| port.serial != id.serial) {
            return Ok(());
        }
        match network.ports.remove(&id.workload) {
            Some(port) => take_away(&mut self.kernel, &id.workload, port),
            None => Ok(()),
        }
    }

    /// [`release`](Self::release) for a holder that has gone and cannot be told of an error.
    pub fn release_unseen(&mut self, id: &PortId) {
        let outcome = self.release(id);
        report(&id.network.name, &id.workload, outcome);
    }

    fn has_interface(&self, name: &str) -> bool {
        self.networks.values().any(|network| network.ports.values().any(|port| port.interface == name))
    }

    fn next(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}

fn find<'a>(networks: &'a mut BTreeMap<String, Network>, id: &NetworkId) -> Result<&'a mut Network, Error> {
    networks.get_mut(&id.name).filter(|network| network.serial == id.serial).ok_or(Error::Revoked("network"))
}

/// Forgets the ports of an earlier netmgr that are no longer there.
fn forget_ended(kernel: &mut Kernel, earlier: &mut Vec<(u32, String, Mac)>) {
    earlier.retain(|(index, workload, mac)| match kernel.link(LinkUnspec::new_with_index(*index)) {
        Ok(link) => link.is_some_and(|link| link.alias == names::port_mark(workload, *mac)),
        Err(_) => true,
    });
}

/// Deletes a port's interface, then closes its TAP, which is the second way to the same end.
fn take_away(kernel: &mut Kernel, workload: &str, port: Port) -> Result<(), Error> {
    port.released.store(true, Ordering::Relaxed);
    let outcome = port::detach(kernel, port.index, workload, port.mac);
    drop(port.tap);
    outcome
}

fn report(network: &str, workload: &str, outcome: Result<(), Error>) {
    if let Err(error) = outcome {
        eprintln!("netmgr: {}", error.fault(&format!("take the port of {workload} off network {network}")));
    }
}
