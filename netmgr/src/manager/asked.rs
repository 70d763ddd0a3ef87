//! What is asked of the [`Manager`](super::Manager), and what it tells: networks and ports as their holders have them. Touches nothing.

use std::{net::Ipv4Addr, os::fd::OwnedFd, sync::Arc};

use schema::{net::Mac, policy::Rules};
use tokio::sync::watch;

use crate::{
    address::Address,
    config::Config,
    error::Error,
    link::{Count, Link},
    names::Kind,
    nft::Counts,
    ports::{Port, PortState, Quota, TenantId},
    published::Published,
    rate::Rate,
    sources::Sources,
};

/// A network at one time: a network that was removed and defined anew is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkId {
    /// Its name.
    pub name: String,
    pub(super) serial: u64,
}

/// A port at one time.
#[derive(Clone, Debug)]
pub struct PortId {
    pub(super) network: NetworkId,
    pub(super) workload: String,
    pub(super) serial: u64,
}

impl PortId {
    /// The network that it is on.
    pub fn network(&self) -> &NetworkId {
        &self.network
    }
}

/// What `PortInfo` says (schema/network.capnp).
#[derive(Clone, Debug)]
pub struct PortFacts {
    pub kind: Kind,
    pub workload: String,
    pub interface: String,
    pub index: u32,
    pub mac: Mac,
    pub network: String,
    pub mtu: u32,
    pub sources: Sources,
    /// The bridge's own addresses.
    pub gateways: Vec<Address>,
    /// How much it carries.
    pub rate: Rate,
    /// What it has carried, where that was asked for.
    pub stats: Option<Stats>,
    /// Which ports of the host lead to it.
    pub published: Vec<Published>,
    /// The virtual function that it has, if it has one.
    pub function: Option<FunctionFacts>,
}

/// What `VirtualFunctionInfo` says.
#[derive(Clone, Debug)]
pub struct FunctionFacts {
    pub parent: String,
    pub number: u32,
    pub address: String,
    pub mac: Mac,
    pub vlan: u16,
}

/// What `PortStats` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Whether it has a policy.
    pub policed: bool,
    /// What the rules have counted.
    pub counts: Counts,
    /// What came from its guest.
    pub from: Count,
    /// And what went there.
    pub to: Count,
}

impl Stats {
    pub(super) fn of(kind: Kind, policed: bool, counts: Counts, link: &Link) -> Stats {
        let (from, to) = match kind {
            Kind::Tap | Kind::Veth => (link.came, link.went),
            // What the guest sends leaves by it.
            Kind::Macvtap(_) => (link.went, link.came),
        };
        Stats { policed, counts, from, to }
    }
}

impl PortFacts {
    pub(super) fn of(port: &Port, workload: &str, network: &Config) -> PortFacts {
        PortFacts {
            kind: port.kind,
            workload: workload.to_owned(),
            interface: port.interface.clone(),
            index: port.index,
            mac: port.mac,
            network: network.name.clone(),
            mtu: port.mtu,
            sources: port.sources.clone(),
            gateways: network.addresses().collect(),
            rate: port.rate,
            stats: None,
            published: port.published.clone(),
            function: port.function.as_ref().map(|function| FunctionFacts {
                parent: network.uplink.as_ref().map(|uplink| uplink.parent.clone()).unwrap_or_default(),
                number: function.number,
                address: function.address.clone(),
                mac: port.mac,
                vlan: function.vlan,
            }),
        }
    }
}

/// What is asked for with a port.
pub struct Asked {
    pub workload: String,
    pub mac: Mac,
    pub sources: Sources,
    /// Where its guest may send to; `None` for where any of that account may.
    pub policy: Option<Rules>,
    /// A veth, in place of a TAP.
    pub veth: Option<Veth>,
}

/// The other end, as its holder asks for it, and what he handed over for that.
pub struct Veth {
    pub namespace: OwnedFd,
    pub socket: OwnedFd,
    pub name: String,
    pub routes: Vec<Address>,
    /// By way of whom those of IPv4 lead, in place of the gateway.
    pub router: Option<Ipv4Addr>,
    /// The hash of the SturdyRef of one that is to be durable.
    pub hash: Option<[u8; 32]>,
}

impl Asked {
    /// Why it cannot be had beside that port of `known`.
    pub(super) fn conflict(&self, known: &str, port: &Port, network: &str) -> Option<Error> {
        match port.held {
            Some(_) if known == self.workload => {
                Some(Error::PortExists { workload: known.to_owned(), network: network.to_owned() })
            }
            None if known == self.workload => Some(Error::PortInUse { interface: port.interface.clone() }),
            _ if port.shares(self.mac) => {
                Some(Error::MacTaken { mac: self.mac.to_string(), network: network.to_owned() })
            }
            _ => {
                let address = port.sources.shared(&self.sources)?;
                Some(Error::AddressTaken { address, workload: known.to_owned(), network: network.to_owned() })
            }
        }
    }
}

/// What the holder of a port has of it.
pub struct NewPort {
    pub id: PortId,
    pub facts: PortFacts,
    pub tap: Option<Arc<OwnedFd>>,
    pub state: watch::Receiver<PortState>,
}

/// Which durable port.
pub enum Durable {
    /// The one of that workload.
    Of(String),
    /// The one whose SturdyRef has that hash.
    By([u8; 32]),
}

/// On whose account a port is made.
#[derive(Clone)]
pub struct Account {
    pub quota: Arc<Quota>,
    pub tenant: Option<TenantId>,
    /// What the policies of its ports are within.
    pub bound: Option<Rules>,
}
