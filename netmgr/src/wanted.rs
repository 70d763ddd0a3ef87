//! What a port is to be, and whether an interface is that, of whatever kind. Pure but for what is added to a batch.

use std::os::fd::OwnedFd;

use rtnetlink::{
    packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoKind, LinkAttribute, Prop},
    },
};
use schema::{net::Mac, network_capnp::MacvtapMode, policy::Rules};

use crate::{
    forwarding::Entry,
    instance::Instance,
    link::Link,
    mark,
    names::{self, Kind},
    nft::Sender,
    rate::Rate,
    rtnl::{Batch, LinkBuilder},
    sources::Sources,
    vf::Function,
};

impl Kind {
    /// What an interface is that may be a port's.
    pub fn of(link: &Link) -> Option<Kind> {
        match link.kind {
            Some(InfoKind::Tun) => Some(Kind::Tap),
            Some(InfoKind::Veth) => Some(Kind::Veth),
            Some(InfoKind::MacVtap) => mode_of(link).map(Kind::Macvtap),
            _ => None,
        }
    }
}

/// What a bridge forwards of a port's frames for 01:80:c2:00:00:00 to :0f, a bit each: all but that of a pause, which it does not let be forwarded,
/// and drops. What it forwards comes to the filter, which drops it; that of LLDP would otherwise be handed to the host past any filter.
pub const FORWARDED: u16 = 0xfffd;

/// A port to be made.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its interface's name.
    pub name: &'a str,
    /// Network, which is the bridge's name.
    pub network: &'a str,
    /// The bridge's index; of a macvtap, its parent's.
    pub bridge: u32,
    /// Bytes; the bridge's.
    pub mtu: u32,
    /// Whether it is kept from the bridge's other ports that are.
    pub isolate: bool,
    /// The workload's name.
    pub workload: &'a str,
    /// The guest's address.
    pub mac: Mac,
    /// What the guest may send from.
    pub sources: &'a Sources,
    /// The alternative name by which a durable one is found.
    pub reference: Option<&'a str>,
    /// Where to.
    pub policy: Option<&'a Rules>,
    /// The virtual function that it is on, if it is on one, whose interface is its parent then.
    pub function: Option<&'a Function>,
    /// Whose it is.
    pub owner: &'a Instance,
}

impl Wanted<'_> {
    /// What may come from it.
    pub fn sends(&self) -> Sender<'_> {
        let Wanted { name: interface, mac, sources, network, workload, policy, .. } = *self;
        // It is made before there is a rate, which its holder asks for.
        Sender { interface, mac, sources, network, workload, policy, rate: Rate::default() }
    }

    /// Its mark.
    pub fn mark(&self) -> String {
        let policed = self.policy.is_some();
        mark::port(self.workload, self.mac, self.network, self.mtu, self.owner, self.sources, policed)
    }

    /// The names to look for beside the interface's own: that which this does not hold, and a durable one's.
    pub fn alternatives(&self) -> Vec<String> {
        let Wanted { kind, network, workload, .. } = *self;
        let names = [names::first(kind, workload), names::second(kind, network, workload)];
        let full = names.into_iter().find(|port| port.name == self.name).and_then(|port| port.full);
        full.into_iter().chain(self.reference.map(str::to_owned)).collect()
    }

    /// Whether the interface is just so.
    ///
    /// That it learns nothing, and that it is sent nothing of which nobody knows where it belongs, is netmgr's: the one guest behind it has the
    /// one address that the bridge's table has for it ([`Wanted::entry`]). What is not compared is whoever's who runs the host: further names, the
    /// group, queues, filters, and what else `bridge link set` says of it as a port (isolated, locked, state, broadcasts and multicasts), which
    /// may be a limit that somebody has put on this guest, and is not netmgr's to lift.
    pub fn is(&self, link: &Link) -> bool {
        link.name == self.name
            && link.alias == self.mark()
            && (link.master, link.up, link.mtu) == (self.bridge, true, self.mtu)
            // A veth has one while its other end is up, which is the container's own.
            && !(link.no_carrier && self.kind == Kind::Tap)
            && link.mac == Some(self.mac.host_side())
            && !(link.learning || link.flood)
            && link.forwarded == FORWARDED
            && (link.isolated || !self.isolate)
            && self.alternatives().iter().all(|name| link.alternatives.contains(name))
    }

    /// What its bridge's table has for it.
    pub fn entry(&self, index: u32) -> Entry {
        Entry::of(index, self.mac)
    }

    /// Whether the interface that had this port's index when it was made is the port still: one of its kind with its mark, an earlier release's, or none.
    pub fn may_be(&self, link: &Link) -> bool {
        let (kind, mac) = match (self.kind, Kind::of(link)) {
            // In whichever mode it is now.
            (Kind::Macvtap(_), Some(kind @ Kind::Macvtap(_))) => (kind, self.mac),
            (kind, _) => (kind, self.mac.host_side()),
        };
        let marked = mark::read_port(&link.alias)
            .is_some_and(|mark| mark.workload == self.workload && self.owner.may_have(&mark.owner));
        Kind::of(link) == Some(kind) && (marked || link.alias.is_empty() && link.mac == Some(mac))
    }
}

/// What became of an attempt to make a port.
pub enum Made {
    /// The TAP, if it is one, and the interface's index. A TAP's interface goes when the last descriptor is closed.
    Port(Option<OwnedFd>, u32),
    /// An interface of that name is there.
    NameTaken,
}

/// Gives a port an alternative name.
pub fn call(batch: &mut Batch, whom: LinkBuilder, Wanted { kind, name, .. }: &Wanted<'_>, full: &str) {
    let names = LinkAttribute::PropList(vec![Prop::AltIfName(full.to_owned())]);
    batch.add(
        format!("give {kind} {name} the alternative name {full}"),
        NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND,
        RouteNetlinkMessage::NewLinkProp(whom.append_extra_attribute(names).build()),
    );
}

/// In which mode an interface is a macvtap.
fn mode_of(link: &Link) -> Option<MacvtapMode> {
    // MACVLAN_MODE_*.
    match link.mode {
        1 => Some(MacvtapMode::PrivateMode),
        2 => Some(MacvtapMode::Vepa),
        4 => Some(MacvtapMode::Bridge),
        8 => Some(MacvtapMode::Passthru),
        _ => None,
    }
}
