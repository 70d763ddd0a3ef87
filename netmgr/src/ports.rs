//! Ports as netmgr has them: what each is, who holds it, and which of a network's have what only one can have. Pure but for what is announced.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
    ops::Deref,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use schema::{net::Mac, policy::Rules};
use tokio::sync::watch;

use crate::{
    announce::{self, Had},
    error::Error,
    instance::Instance,
    link::Link,
    names,
    nft::Sender,
    published::Published,
    rate::Rate,
    sources::Sources,
    vf::Function,
    wanted::Wanted,
};

/// A tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantId(pub u64);

/// How many ports a holder may have at one time.
pub struct Quota {
    max: u32,
    used: AtomicU32,
}

/// One port's place in a quota, until it is dropped.
pub struct Slot(Arc<Quota>);

impl Quota {
    /// Of `max` ports.
    pub fn new(max: u32) -> Arc<Quota> {
        Arc::new(Quota { max, used: AtomicU32::new(0) })
    }

    /// Takes a place.
    pub fn take(self: &Arc<Quota>) -> Result<Slot, Error> {
        let more = |used: u32| (used < self.max).then(|| used + 1);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Slot(self.clone())),
            Err(_) => Err(Error::Quota(self.max)),
        }
    }
}

impl Slot {
    /// Whether it is a place in that quota.
    pub fn is_of(&self, quota: &Arc<Quota>) -> bool {
        Arc::ptr_eq(&self.0, quota)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What has become of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// It is there.
    Attached,
    /// It was given up, by whomever.
    Released,
    /// Something else on this host has taken its interface away.
    Lost,
}

/// A port. Its interface is never given up for another one.
pub struct Port {
    /// What its interface is.
    pub kind: names::Kind,
    /// Of its interface.
    pub index: u32,
    /// Its interface's name.
    pub interface: String,
    /// The guest's address.
    pub mac: Mac,
    /// Bytes.
    pub mtu: u32,
    /// Whether it is kept from others that are: as its network is defined.
    pub isolate: bool,
    /// What the guest may send from.
    pub sources: Sources,
    /// Where the guest may send to; `None` for wherever it likes.
    pub policy: Option<Rules>,
    /// What its holder can have that be within.
    pub bound: Option<Rules>,
    /// Which ports of the host lead to the guest.
    pub published: Vec<Published>,
    /// How much it carries.
    pub rate: Rate,
    /// What its holder can have that be within.
    pub rate_bound: Rate,
    /// The alternative name by which a durable one is found.
    pub reference: Option<String>,
    /// The virtual function that it is on, if it is on one.
    pub function: Option<Function>,
    /// `None` for a port of an earlier netmgr that is not durable, which is there as long as some process has its TAP open, or its other end's
    /// network namespace is.
    pub held: Option<Held>,
}

/// What this netmgr has of a port that it made, or that is durable.
pub struct Held {
    /// Which port of its workload's it is.
    pub serial: u64,
    /// Closed once the port's interface is gone; none of a veth.
    pub tap: Option<Arc<OwnedFd>>,
    /// Whether it was said whose its addresses are, or need not be.
    pub announced: bool,
    /// What its holder sees.
    pub state: watch::Sender<PortState>,
    /// Whose it is, if a tenant's.
    pub tenant: Option<TenantId>,
    /// Its place in a quota; none of a durable one that an earlier netmgr made.
    pub slot: Option<Slot>,
}

impl Port {
    /// Whether it is on its way off the host.
    pub fn leaves(&self) -> bool {
        self.held.as_ref().is_some_and(|held| *held.state.borrow() == PortState::Released)
    }

    /// Whether it is a macvtap of an earlier netmgr, of which nobody knows whether it is used.
    pub fn is_left(&self) -> bool {
        self.held.is_none() && matches!(self.kind, names::Kind::Macvtap(_))
    }

    /// Whether it is the one of that number.
    pub fn is(&self, serial: u64) -> bool {
        self.held.as_ref().is_some_and(|held| held.serial == serial)
    }

    /// Whether it has a place in that quota.
    pub fn takes(&self, quota: &Arc<Quota>) -> bool {
        self.held.as_ref().and_then(|held| held.slot.as_ref()).is_some_and(|slot| slot.is_of(quota))
    }

    /// Whether its guest and one with the address `mac` would take each other's frames, or those for the host's end of their TAPs.
    pub fn shares(&self, mac: Mac) -> bool {
        [self.mac, self.mac.host_side()].iter().any(|taken| *taken == mac || *taken == mac.host_side())
    }

    /// What is left of it.
    pub fn left(self) -> Left {
        Left { sources: self.sources, published: self.published }
    }

    /// Says whose its addresses are, once, when its bridge forwards that: where somebody may know them as had by another one.
    pub fn announce(&mut self, link: &Link, had: &Had) {
        if let Some(held) = &mut self.held
            && let Some(tap) = &held.tap
            && (link.open || matches!(self.kind, names::Kind::Macvtap(_)) && link.up && !link.no_carrier)
            && !mem::replace(&mut held.announced, true)
            && !had.by_it_alone(self.mac, &self.sources)
        {
            announce::announce(&**tap, self.mac, &self.sources);
        }
    }

    /// As it should be.
    pub fn wanted<'a>(&'a self, workload: &'a str, network: &'a str, bridge: u32, owner: &'a Instance) -> Wanted<'a> {
        let Port { kind, interface: name, mac, mtu, isolate, sources, .. } = self;
        let (kind, mac, mtu, isolate) = (*kind, *mac, *mtu, *isolate);
        let (reference, policy, function) = (self.reference.as_deref(), self.policy.as_ref(), self.function.as_ref());
        let bridge = function.map_or(bridge, |function| function.interface);
        Wanted { kind, name, network, bridge, mtu, isolate, workload, mac, sources, reference, policy, function, owner }
    }

    /// What may come from it.
    pub fn sends<'a>(&'a self, workload: &'a str, network: &'a str) -> Sender<'a> {
        let Port { interface, mac, sources, policy, rate, .. } = self;
        Sender { interface, mac: *mac, sources, network, workload, policy: policy.as_ref(), rate: *rate }
    }

    /// Says that its interface is gone. That one of an earlier netmgr's goes is in order: the process that had its TAP open has ended; and that a veth
    /// goes, as its container does.
    pub fn lose(&self, workload: &str, network: &str) {
        if let Some(held) = &self.held {
            held.state.send_replace(PortState::Lost);
            if self.kind != names::Kind::Veth {
                let lost = self.kind.gone(&self.interface);
                confine::say!("netmgr: the port of {workload} on network {network} is lost: {lost}");
            }
        }
    }
}

/// What has been a port's: its connections by way of the host are ended before somebody else has its addresses.
pub struct Left {
    /// Which its guest had.
    pub sources: Sources,
    /// Which ports of the host led to it.
    pub published: Vec<Published>,
}

/// What only one port of a network can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Own {
    Interface(u32),
    Mac([u8; 6]),
    Address(IpAddr),
}

/// What a port has of that, which stays as it is.
fn own(index: u32, mac: Mac, sources: &Sources) -> impl Iterator<Item = Own> {
    let macs = [mac, mac.host_side()].map(|mac| Own::Mac(mac.bytes()));
    macs.into_iter().chain([Own::Interface(index)]).chain(sources.iter().map(Own::Address))
}

/// A network's ports, by workload. Which of them is in another one's way is found without a look at each.
#[derive(Default)]
pub struct Ports {
    by_workload: BTreeMap<String, Port>,
    /// Whose is what, also where, by what an earlier netmgr has left, several have it.
    whose: BTreeSet<(Own, String)>,
}

impl Deref for Ports {
    type Target = BTreeMap<String, Port>;

    fn deref(&self) -> &BTreeMap<String, Port> {
        &self.by_workload
    }
}

impl Ports {
    /// Has a workload have that port.
    pub fn insert(&mut self, workload: String, port: Port) {
        self.remove(&workload);
        self.whose.extend(own(port.index, port.mac, &port.sources).map(|own| (own, workload.clone())));
        self.by_workload.insert(workload, port);
    }

    /// Forgets the port of a workload.
    pub fn remove(&mut self, workload: &str) -> Option<Port> {
        let port = self.by_workload.remove(workload)?;
        for own in own(port.index, port.mac, &port.sources) {
            self.whose.remove(&(own, workload.to_owned()));
        }
        Some(port)
    }

    /// Forgets those that are not to be kept.
    pub fn retain(&mut self, mut kept: impl FnMut(&str, &mut Port) -> bool) {
        let mut gone = Vec::new();
        for (workload, port) in &mut self.by_workload {
            if !kept(workload, port) {
                gone.push(workload.clone());
            }
        }
        gone.iter().for_each(|workload| _ = self.remove(workload));
    }

    /// The port of a workload.
    pub fn get_mut(&mut self, workload: &str) -> Option<&mut Port> {
        self.by_workload.get_mut(workload)
    }

    /// All of them, and their workloads.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&String, &mut Port)> {
        self.by_workload.iter_mut()
    }

    /// All of them.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Port> {
        self.by_workload.values_mut()
    }

    /// Whether one of them has the interface with that index.
    pub fn has(&self, index: u32) -> bool {
        self.whose(Own::Interface(index)).next().is_some()
    }

    /// Those that have something which one of that workload would have with these addresses: each once or more often.
    pub fn in_the_way<'a>(
        &'a self,
        workload: &'a str,
        mac: Mac,
        sources: &'a Sources,
    ) -> impl Iterator<Item = (&'a String, &'a Port)> {
        // No interface has the index 0.
        let others = own(0, mac, sources).flat_map(|own| self.whose(own));
        std::iter::once(workload).chain(others).filter_map(|workload| self.by_workload.get_key_value(workload))
    }

    fn whose(&self, own: Own) -> impl Iterator<Item = &str> {
        let from = self.whose.range((own, String::new())..);
        from.take_while(move |(whose, _)| *whose == own).map(|(_, workload)| workload.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(index: u32, last: u8, addresses: &[&str]) -> Port {
        let sources = Sources::new(addresses.iter().map(|address| Ok(*address))).unwrap();
        Port {
            kind: names::Kind::Tap,
            index,
            interface: format!("tap-{last}"),
            mac: Mac::local([0, 0, 0, 0, last]),
            mtu: 1500,
            isolate: false,
            sources,
            policy: None,
            bound: None,
            published: Vec::new(),
            rate: Rate::default(),
            rate_bound: Rate::default(),
            reference: None,
            function: None,
            held: None,
        }
    }

    #[test]
    fn port_is_in_the_way_by_its_workload_either_mac_address_or_any_address_as_long_as_it_is_there() {
        let (mut ports, none) = (Ports::default(), Sources::default());
        ports.insert("vm-a".into(), port(7, 1, &["10.42.0.2", "fd00::2"]));
        ports.insert("vm-b".into(), port(8, 2, &["10.42.0.3"]));
        // What two have, of an earlier netmgr's, is both's.
        ports.insert("vm-c".into(), port(9, 3, &["10.42.0.3"]));
        let mac = Mac::local([0, 0, 0, 0, 9]);
        let found = |ports: &Ports, workload: &str, mac: Mac, sources: &Sources| -> Vec<String> {
            ports.in_the_way(workload, mac, sources).map(|(workload, _)| workload.clone()).collect()
        };
        let of = |address: &str| Sources::new([Ok(address)].into_iter()).unwrap();
        assert!(found(&ports, "vm-d", mac, &of("10.42.0.4")).is_empty());
        assert_eq!(found(&ports, "vm-a", mac, &none), ["vm-a"]);
        for mac in [Mac::local([0, 0, 0, 0, 1]), Mac::local([0, 0, 0, 0, 1]).host_side()] {
            assert!(found(&ports, "vm-d", mac, &none).contains(&"vm-a".to_owned()), "{mac}");
        }
        assert_eq!(found(&ports, "vm-d", mac, &of("fd00::2")), ["vm-a"]);
        assert_eq!(found(&ports, "vm-d", mac, &of("10.42.0.3")), ["vm-b", "vm-c"]);
        assert!(ports.has(7) && !ports.has(10));
        // Another one in its place has what is its own alone.
        ports.insert("vm-a".into(), port(10, 1, &["10.42.0.5"]));
        assert!(!ports.has(7) && ports.has(10) && found(&ports, "vm-d", mac, &of("10.42.0.2")).is_empty());
        ports.retain(|workload, _| workload != "vm-b");
        ports.remove("vm-a").unwrap();
        assert!(ports.remove("vm-a").is_none());
        assert_eq!(found(&ports, "vm-d", mac, &of("10.42.0.3")), ["vm-c"]);
        ports.remove("vm-c").unwrap();
        assert!(ports.whose.is_empty() && ports.is_empty());
    }
}
