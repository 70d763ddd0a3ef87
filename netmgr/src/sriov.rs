//! Virtual functions of network cards (SR-IOV): one that nobody uses is taken for a guest, set to what it is to be, and given back as it was. Touches the
//! host's interfaces by [`Rtnl`]. How many there are is for who runs the host to say, and never netmgr's.
//!
//! That one is taken, for what, and what it was before, its interface says: by an alternative name, which only one can give it, and by its mark. So a later
//! netmgr gives back what an earlier one has left, however that ended.

use std::collections::BTreeSet;

use rtnetlink::{
    LinkUnspec,
    packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{
            InfoKind, LinkAttribute, LinkVfInfo, Prop, VfInfo, VfInfoMac, VfInfoRate, VfInfoSpoofCheck, VfInfoTrust,
            VfInfoVlan,
        },
    },
};
use schema::net::Mac;

use crate::{
    config::{Config, Kind},
    error::Error,
    instance::Instance,
    link::Link,
    mark,
    rate::Rate,
    rtnl::{Batch, Rtnl},
    vf::{Found, Function, Settings, Vf},
};

/// What the alternative name of one that is taken begins with.
const CLAIM: &str = "volt-vf-";

impl Function {
    /// The one that an interface says it is, if it is `owner`'s.
    pub fn of(link: &Link, owner: &Instance) -> Option<Function> {
        let (function, of) = mark::read_function(&link.alias)?;
        let (interface, address) = (link.index, link.device.clone());
        (of == *owner).then_some(Function { interface, address, ..function })
    }

    /// What its card has it be for that guest.
    fn wanted(&self, mac: Mac) -> Settings {
        let (vlan, trust) = ((self.vlan.into(), 0), Some(self.trust));
        Settings { mac: Some(mac), vlan, rates: (0, 0), spoof_check: Some(true), trust }
    }

    /// Whether it is just so, in what its card says and its interface is.
    pub fn is(&self, link: Option<&Link>, card: &[Vf], mac: Mac, mtu: u32, owner: &Instance) -> bool {
        let is_set = card.iter().any(|vf| vf.number == self.number && vf.settings.meets(&self.wanted(mac)));
        is_set
            && link.is_some_and(|link| {
                (link.up, link.all_multicast, link.no_arp) == (true, true, true)
                    && (link.mtu, link.mac) == (mtu, Some(mac))
                    && link.alias == mark::function(self, owner)
            })
    }

    /// Looks whether it is just so.
    pub fn is_right(&self, rtnl: &mut Rtnl, mac: Mac, mtu: u32, owner: &Instance) -> Result<bool, Error> {
        let (card, link) = (rtnl.functions(self.card)?, rtnl.link(LinkUnspec::new_with_index(self.interface))?);
        Ok(self.is(link.as_ref(), &card, mac, mtu, owner))
    }

    /// Makes it what it is to be for that guest: its card first, so that nothing is ever sent by what it was before.
    pub fn settle(&self, rtnl: &mut Rtnl, mac: Mac, mtu: u32, owner: &Instance) -> Result<(), Error> {
        let whom = || LinkUnspec::new_with_index(self.interface);
        let link = rtnl.run(
            Batch::default().set("mark a virtual function", whom().alias(mark::function(self, owner))).get(whom()),
        )?;
        let name = link.into_iter().next().map(|link| link.name).unwrap_or_default();
        let has = rtnl.functions(self.card)?.into_iter().find(|vf| vf.number == self.number);
        let (mut batch, has) = (Batch::default(), has.unwrap_or_default().settings);
        // What it carries is its port's to say.
        let wanted = Settings { rates: has.rates, ..self.wanted(mac) };
        wanted.set(&mut batch, self.card, self.number, &has);
        if !batch.is_empty() {
            rtnl.run(&mut batch)?;
        }
        rtnl.ipv6_off_port(&name);
        // Whatever is for everybody comes to the host as well, which would answer ARP as that guest, and be sent what is the host's: to the guest.
        let guest_s = whom().mtu(mtu).allmulticast(true).arp(false);
        batch.set(format!("set the MTU of virtual function {}", self.number), guest_s);
        // A driver may refuse whatever its card has said; the address is that one's then.
        batch.set("set a virtual function's MAC address", whom().address(mac.bytes().to_vec())).optional();
        batch.set(format!("bring virtual function {} up", self.number), whom().up());
        rtnl.run(&mut batch)?;
        if !self.is_right(rtnl, mac, mtu, owner)? {
            // Some take what their card has said when they begin anew.
            batch.set("take a virtual function down", whom().down());
            batch.set(format!("bring virtual function {} up", self.number), whom().up());
            rtnl.run(&mut batch)?;
            if !self.is_right(rtnl, mac, mtu, owner)? {
                let tried = format!("set virtual function {}", self.number);
                return Err(Error::Answer { tried, why: "it has not become what it should be".into() });
            }
        }
        Ok(())
    }

    /// Has it send no more than that, as far as its card can: in Mbit/s, and not faster than its link is. The rules know it to the byte.
    pub fn carry(&self, rtnl: &mut Rtnl, rate: Rate) -> Result<(), Error> {
        let most = rate.from_guest.saturating_mul(8).div_ceil(1_000_000).try_into().unwrap_or(u32::MAX);
        let info = VfInfo::Rate(VfInfoRate::new(self.number, 0, most));
        let list = LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![info])]);
        let whom = LinkUnspec::new_with_index(self.card).append_extra_attribute(list);
        rtnl.run(Batch::default().set("set the rate of a virtual function", whom).optional()).map(drop)
    }

    /// Gives it back as it was, once nothing is on it any more. One that is not there, or not `owner`'s, is no error.
    pub fn give_back(&self, rtnl: &mut Rtnl, owner: &Instance) -> Result<(), Error> {
        let whom = || LinkUnspec::new_with_index(self.interface);
        let Some(link) = rtnl.link(whom())?.filter(|link| Function::of(link, owner).as_ref() == Some(self)) else {
            return Ok(());
        };
        let Found { settings, mac, mtu, ipv6, arp } = &self.found;
        let (mut batch, card) = (Batch::default(), rtnl.functions(self.card)?);
        if let Some(has) = card.iter().find(|vf| vf.number == self.number) {
            settings.set(&mut batch, self.card, self.number, &has.settings);
        }
        // It takes what its card has said when it goes down.
        batch.set("take a virtual function down", whom().down());
        batch.set("set a virtual function's MTU again", whom().mtu(*mtu).allmulticast(false).arp(*arp));
        rtnl.run(&mut batch)?;
        if rtnl.link(whom())?.and_then(|link| link.mac) != Some(*mac) {
            batch.set("set a virtual function's MAC address again", whom().address(mac.bytes().to_vec())).optional();
            rtnl.run(&mut batch)?;
        }
        if *ipv6 {
            rtnl.ipv6_on_port(&link.name);
        }
        let card = rtnl.functions(self.card)?;
        let has = card.into_iter().find(|vf| vf.number == self.number).map(|vf| vf.settings);
        // Where its driver chooses the address, some cards have that as theirs.
        let own = |has: Settings| Settings { mac: has.mac.filter(|has| settings.mac.is_some() || has != mac), ..has };
        if !has.is_some_and(|has| own(has).meets(settings)) {
            let tried = format!("give virtual function {} back", self.number);
            return Err(Error::Answer { tried, why: "its card has not made it what it was".into() });
        }
        batch.set("take a mark away", whom().alias(""));
        disclaim(&mut batch, self.interface, &self.address);
        rtnl.run(&mut batch).map(drop)
    }
}

impl Settings {
    /// Adds the steps that make these of what a virtual function of that card has.
    pub fn set(&self, batch: &mut Batch, card: u32, number: u32, has: &Settings) {
        let mut step = |what: &str, info: VfInfo| {
            let list = LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![info])]);
            let whom = LinkUnspec::new_with_index(card).append_extra_attribute(list);
            batch.set(format!("set {what} of virtual function {number}"), whom);
        };
        if self.mac != has.mac {
            let address = self.mac.map(Mac::bytes).unwrap_or_default();
            step("the MAC address", VfInfo::Mac(VfInfoMac::new(number, &address)));
        }
        if self.vlan != has.vlan {
            step("the VLAN", VfInfo::Vlan(VfInfoVlan::new(number, self.vlan.0, self.vlan.1)));
        }
        if self.rates != has.rates {
            step("the rate", VfInfo::Rate(VfInfoRate::new(number, self.rates.0, self.rates.1)));
        }
        if let Some(on) = self.spoof_check.filter(|_| self.spoof_check != has.spoof_check) {
            step("the spoof check", VfInfo::SpoofCheck(VfInfoSpoofCheck::new(number, on)));
        }
        // Who knows of no trust has none.
        if let Some(on) = self.trust.filter(|on| *on != has.trust.unwrap_or_default()) {
            step("the trust", VfInfo::Trust(VfInfoTrust::new(number, on)));
        }
    }
}

/// What the alternative name of one is while it is taken.
fn claim(address: &str) -> String {
    format!("{CLAIM}{}", address.replace(':', "-"))
}

fn disclaim(batch: &mut Batch, interface: u32, address: &str) {
    let names = LinkAttribute::PropList(vec![Prop::AltIfName(claim(address))]);
    let whom = LinkUnspec::new_with_index(interface).append_extra_attribute(names);
    batch.add("take an alternative name away", 0, RouteNetlinkMessage::DelLinkProp(whom.build()));
}

/// Takes a free one of a network's card, if the network is one of such, and makes it what it is to be for that guest. On an error it is given back.
pub fn take(
    rtnl: &mut Rtnl,
    config: &Config,
    card: u32,
    mac: Mac,
    owner: &Instance,
) -> Result<Option<Function>, Error> {
    let (Kind::Sriov { trust }, Some(uplink)) = (config.kind, &config.uplink) else { return Ok(None) };
    let parent = || uplink.parent.clone();
    let missing = || Error::NoParent { parent: parent(), network: config.name.clone() };
    let Link { up, device, functions, .. } = rtnl.card(card)?.ok_or_else(missing)?;
    if functions.is_empty() {
        return Err(Error::NoFunctions(parent()));
    }
    if !up {
        return Err(Error::ParentDown(parent()));
    }
    let (links, addresses) = (rtnl.links()?, rtnl.addresses(None, true)?);
    let used: BTreeSet<u32> = addresses.into_iter().map(|address| address.index).collect();
    let known = functions.iter().map(|vf| Some((vf, rtnl.cards.address(&device, vf.number)?)));
    let known: Vec<(&Vf, String)> = known.collect::<Option<_>>().ok_or_else(|| Error::UnknownCard(parent()))?;
    for (vf, address) in known {
        let link = links.iter().find(|link| link.device == address && is_free(link, &links, &used));
        let Some((link, own)) = link.filter(|_| !vf.disabled).and_then(|link| Some((link, link.mac?))) else {
            continue;
        };
        let names = LinkAttribute::PropList(vec![Prop::AltIfName(claim(&address))]);
        let whom = LinkUnspec::new_with_index(link.index).append_extra_attribute(names);
        let whom = RouteNetlinkMessage::NewLinkProp(whom.build());
        let mut batch = Batch::default();
        batch.add("take a virtual function", NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND, whom);
        match rtnl.run(&mut batch) {
            // Another one was first.
            Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => continue,
            claimed => _ = claimed?,
        }
        let found =
            Found { settings: vf.settings.clone(), mac: own, mtu: link.mtu, ipv6: link.ipv6, arp: !link.no_arp };
        let (network, vlan) = (config.name.clone(), uplink.vlan);
        let function =
            Function { interface: link.index, address, card, number: vf.number, network, vlan, trust, found };
        let mut settled = function.settle(rtnl, mac, config.mtu, owner);
        if settled.is_ok() && vf.settings.rates != (0, 0) {
            settled = function.carry(rtnl, Rate::default());
        }
        if settled.is_err() {
            // The error that is reported is the first one. What this leaves, the next look gives back.
            let _ = function.give_back(rtnl, owner);
        }
        return settled.map(|()| Some(function));
    }
    Err(Error::NoFreeFunction { parent: parent(), count: functions.len() })
}

/// Whether nobody uses a virtual function's interface: one that is up, has a note, an address or a bridge, or on which something is, is somebody's; and so is
/// one that is in another network namespace, or has a driver that makes none of it, as of one that is passed through.
fn is_free(link: &Link, links: &[Link], used: &BTreeSet<u32>) -> bool {
    // The other end of a veth may be in another namespace, and then has an index of that.
    let is_on = |upper: &Link| upper.lower == link.index && upper.kind != Some(InfoKind::Veth);
    let is_claimed = link.alternatives.iter().any(|name| name.starts_with(CLAIM));
    let is_noted = !link.alias.is_empty() || link.master != 0 || used.contains(&link.index);
    !(link.up || is_claimed || is_noted || links.iter().any(is_on))
}

/// Gives back what is taken and has no port on it, of those that are `kept` or of another netmgr: what one has left that has ended in between, or that could
/// not be given back.
pub fn sweep(rtnl: &mut Rtnl, links: &[Link], kept: impl Fn(&Function) -> bool, owner: &Instance) -> Result<(), Error> {
    let has_port = |function: &Function| {
        links.iter().any(|link| link.lower == function.interface && mark::read_port(&link.alias).is_some())
    };
    let taken = links.iter().filter_map(|link| Function::of(link, owner));
    let left = taken.filter(|function| !kept(function) && !has_port(function));
    let outcomes: Vec<_> = left.map(|function| function.give_back(rtnl, owner)).collect();
    outcomes.into_iter().collect()
}

/// Takes away the names of those that were about to be taken when a netmgr ended.
pub fn sweep_claims(rtnl: &mut Rtnl, links: &[Link]) -> Result<(), Error> {
    let mut batch = Batch::default();
    for link in links.iter().filter(|link| link.alias.is_empty() && link.alternatives.contains(&claim(&link.device))) {
        disclaim(&mut batch, link.index, &link.device);
    }
    if batch.is_empty() { Ok(()) } else { rtnl.run(&mut batch).map(drop) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_that_anybody_uses_is_not_free() {
        let free = Link { index: 7, name: "v0".into(), mac: Mac::new([2, 0, 0, 0, 0, 1]), ..Link::default() };
        let veth = Link { index: 8, lower: 7, kind: Some(InfoKind::Veth), ..Link::default() };
        let upper = Link { kind: Some(InfoKind::MacVlan), ..veth.clone() };
        let none = BTreeSet::new();
        assert!(is_free(&free, &[free.clone(), veth], &none));
        for used in [
            Link { up: true, ..free.clone() },
            Link { master: 3, ..free.clone() },
            Link { alias: "for a guest".into(), ..free.clone() },
            Link { alternatives: vec![claim("0000:01:10.0")], ..free.clone() },
        ] {
            assert!(!is_free(&used, &[], &none), "{used:?}");
        }
        assert!(!is_free(&free, &[upper], &none));
        assert!(!is_free(&free, &[], &[7].into()));
    }

    #[test]
    fn only_what_differs_is_set_and_no_trust_is_asked_for_where_there_is_none() {
        let wanted = Settings {
            mac: Mac::new([2, 0, 0, 0, 0, 5]),
            spoof_check: Some(true),
            trust: Some(false),
            ..Settings::default()
        };
        let steps = |wanted: &Settings, has: &Settings| {
            let mut batch = Batch::default();
            wanted.set(&mut batch, 7, 0, has);
            batch.len()
        };
        let known = Settings { spoof_check: Some(false), trust: Some(true), ..Settings::default() };
        assert_eq!([steps(&wanted, &wanted), steps(&wanted, &Settings::default()), steps(&wanted, &known)], [0, 2, 3]);
        // Given back to a driver that does not say whether it checks.
        assert_eq!(steps(&Settings::default(), &wanted), 1);
        assert!(
            wanted.meets(&wanted) && !known.meets(&wanted) && wanted.meets(&Settings { trust: None, ..wanted.clone() })
        );
        assert!(wanted.meets(&Settings { rates: (0, 9), ..wanted.clone() }));
    }
}
