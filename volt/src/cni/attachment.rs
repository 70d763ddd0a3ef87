//! What each command does at `ipamd` and `netmgr`. Adding goes from the address to the port, and taking away from the port to the address, so that
//! no address is free while something uses it; and what an addition has begun is undone where it fails.

use std::{collections::BTreeSet, net::IpAddr, os::fd::AsFd};

use ipc::{Code, Connection, Fault, retry};
use schema::{
    addresses_capnp::{lease_info, pool, reservation},
    host_capnp::host,
    net::Mac,
    network_capnp::{IPV6_PREFIX_LENGTH, network, port, port_info},
};
use serde_json::Value;

use super::{
    answer::{self, Attached, Refusal},
    config::{Call, Command},
    namespace::Handed,
};
use crate::{
    config::Rate,
    host::{
        isolated,
        links::{CALL_DEADLINE, text},
        networks,
        published::{self, Guest, Held, Publish},
    },
};

/// Does it; what is to be printed, if anything is.
pub async fn work(services: &Services<'_>, handed: Option<&Handed>) -> Result<Option<Value>, Refusal> {
    let Services { call, ipamd, netmgr, isolated, .. } = services;
    networks::hand_over(netmgr, ipamd, *isolated).await?;
    match (call.command, &call.workload) {
        (Command::Add, Some(workload)) => {
            let attached = services.add(workload, handed).await?;
            Ok(Some(answer::result(&call.version, &attached, call.before.as_ref(), call.dns.as_ref())))
        }
        (Command::Del, Some(workload)) => services.del(workload).await.map(|()| None),
        (Command::Check, Some(workload)) => services.check(workload, handed).await.map(|()| None),
        (Command::Gc, _) => services.gc().await.map(|()| None),
        (Command::Status, _) => services.status().await.map(|()| None),
        _ => Ok(None),
    }
}

/// Who is asked, and what for.
pub struct Services<'a> {
    pub call: &'a Call,
    pub ipamd: &'a Connection,
    pub netmgr: &'a Connection,
    /// The network's namespace, if it is isolated.
    pub isolated: Option<&'a isolated::Handed>,
    /// Ports of the host that are to lead to the container.
    pub held: &'a [Vec<Held>],
}

/// Nothing where a service knows nothing of it.
fn known<T>(answer: Result<T, Fault>) -> Result<Option<T>, Refusal> {
    match answer {
        Err(fault) if matches!(fault.code, Code::NotFound | Code::Revoked) => Ok(None),
        answer => Ok(Some(answer?)),
    }
}

/// An address that is set aside: with what it is on its network.
struct Address {
    reservation: reservation::Client,
    ip: String,
    prefix: u8,
    gateway: String,
}

impl Services<'_> {
    async fn add(&self, workload: &str, handed: Option<&Handed>) -> Result<Attached, Refusal> {
        let pool = networks::pool(self.ipamd, &self.call.network).await?;
        let definition = networks::definition(self.ipamd, &pool).await?;
        // An addition of before may have come as far as that, and no further.
        let (address, is_new) = match self.reservation(&pool, workload).await? {
            Some(reservation) => (self.address(reservation).await?, false),
            None => (self.reserve(&pool, workload).await?, true),
        };
        let attached = async {
            if !self.call.address.is_empty() && self.call.address != address.ip {
                let why = format!("{} is set aside for it already, by an addition of before", address.ip);
                return Err(Refusal::new(answer::CONFLICT, "reserve an address", why).remedy("DEL it first"));
            }
            let has_ipv6 = definition.has_ipv6() && handed.is_some_and(|handed| handed.ipv6);
            let count = if self.isolated.is_some() { 0 } else { 1 + usize::from(has_ipv6) };
            let everything = || ["0.0.0.0/0", "::/0"].iter().take(count).map(|&all| all.to_owned());
            let mut attached = Attached {
                ips: vec![(format!("{}/{}", address.ip, address.prefix), address.gateway.clone())],
                routes: self.call.routes.clone().unwrap_or_else(|| everything().collect()),
                ..Attached::default()
            };
            if let Some(handed) = handed {
                let network = networks::bridge(self.netmgr, &definition, self.isolated).await?;
                // The one of IPv6 is as a guest's: it follows from the MAC address.
                let asked: Vec<&str> = [address.ip.as_str()].into_iter().chain(has_ipv6.then_some("::")).collect();
                self.attach(&network, workload, handed, &asked, &mut attached).await?;
            }
            Ok(attached)
        };
        let outcome = attached.await;
        if is_new && outcome.is_err() {
            // The error that is reported is the first one.
            let _ = self.cancel(&address.reservation).await;
        }
        outcome
    }

    async fn attach(
        &self,
        network: &network::Client,
        workload: &str,
        handed: &Handed,
        addresses: &[&str],
        attached: &mut Attached,
    ) -> Result<(), Refusal> {
        const TRIED: &str = "attach the container";
        let Services { call, netmgr, .. } = self;
        let factory = || {
            let mut request = network.port_factory_request();
            request.get().set_max_ports(1);
            request.send()
        };
        let factory = netmgr.ask(TRIED, CALL_DEADLINE, factory).await?.get()?.get_factory()?;
        let fill = |mut list: capnp::text_list::Builder<'_>, texts: &[&str]| {
            for (at, text) in (0..list.len()).zip(texts) {
                list.set(at, text);
            }
        };
        let count = |texts: &[&str]| u32::try_from(texts.len()).unwrap_or(u32::MAX);
        let routes: Vec<&str> = attached.routes.iter().map(String::as_str).collect();
        // Of a VLAN it may be another than the network's gateway.
        let router = attached.ips.first().map_or("", |(_, router)| router);
        let create = async |left| {
            // A token is good for one call, so new ones go with each.
            let namespace = netmgr.deposit(handed.namespace.as_fd()).await?;
            let socket = netmgr.deposit(handed.socket.as_fd()).await?;
            let mut request = factory.create_veth_request();
            let mut asked = request.get();
            asked.set_workload(workload);
            asked.set_inside_name(&call.interface);
            asked.set_durable(true);
            if let Some(mac) = &call.mac {
                asked.set_mac(&mac.bytes());
            }
            fill(asked.reborrow().init_addresses(count(addresses)), addresses);
            fill(asked.reborrow().init_routes(count(&routes)), &routes);
            asked.set_router(router);
            namespace.write(asked.reborrow().init_netns());
            socket.write(asked.init_netlink());
            netmgr.call(TRIED, left, request.send()).await
        };
        let port = retry(CALL_DEADLINE, create).await?.get()?.get_port()?;
        let described = async {
            let answer = netmgr.ask(TRIED, CALL_DEADLINE, || port.info_request().send()).await?;
            self.describe(answer.get()?.get_info()?, attached)?;
            self.limit(&port).await?;
            Ok(Guest::Port(&port).publish(netmgr, "publish the container's ports", self.held).await?)
        };
        let described = described.await;
        if described.is_err() {
            let _ = self.release(&port).await;
        }
        described
    }

    async fn limit(&self, port: &port::Client) -> Result<(), Refusal> {
        let rate = self.call.rate;
        if rate == Rate::default() {
            return Ok(());
        }
        let limit = || {
            let mut request = port.set_rate_request();
            let mut asked = request.get().init_rate();
            asked.set_from_guest(rate.from_guest);
            asked.set_to_guest(rate.to_guest);
            request.send()
        };
        self.netmgr.ask("set the container's rate", CALL_DEADLINE, limit).await?;
        Ok(())
    }

    fn describe(&self, info: port_info::Reader<'_>, attached: &mut Attached) -> Result<(), Refusal> {
        let mac = info.get_mac()?.try_into().ok().and_then(Mac::new);
        let mac =
            mac.ok_or_else(|| Refusal::new(answer::OTHER, "attach the container", "its port has no MAC address"))?;
        let sandbox = self.call.netns.clone().unwrap_or_default();
        attached.host = Some((text(info.get_interface_name()?)?, mac.host_side().to_string()));
        attached.inside = Some((self.call.interface.clone(), mac.to_string(), sandbox));
        attached.mtu = info.get_mtu();
        let list =
            |list: capnp::text_list::Reader<'_>| list.iter().map(|one| text(one?)).collect::<Result<Vec<_>, _>>();
        let (addresses, gateways) = (list(info.get_addresses()?)?, list(info.get_gateways()?)?);
        for address in addresses.iter().filter(|address| address.contains(':')) {
            let mut split = gateways.iter().filter_map(|gateway| gateway.split_once('/'));
            let gateway = match (split.find(|(gateway, _)| gateway.contains(':')), self.isolated) {
                (Some((gateway, _)), _) => gateway,
                (None, Some(_)) => "",
                (None, None) => {
                    return Err(Refusal::new(answer::OTHER, "attach the container", "its network has lost its IPv6"));
                }
            };
            attached.ips.push((format!("{address}/{IPV6_PREFIX_LENGTH}"), gateway.to_owned()));
        }
        Ok(())
    }

    /// Whatever there is of it, and whatever the namespace has become. That there is nothing is as good.
    async fn del(&self, workload: &str) -> Result<(), Refusal> {
        if let Some(network) = self.network().await?
            && let Some(port) = self.port(&network, workload).await?
        {
            self.release(&port).await?;
        }
        if let Some(pool) = self.pool().await?
            && let Some(reservation) = self.reservation(&pool, workload).await?
        {
            self.cancel(&reservation).await?;
        }
        Ok(())
    }

    async fn check(&self, workload: &str, handed: Option<&Handed>) -> Result<(), Refusal> {
        let differs = |why: &str| Err(Refusal::new(answer::DIFFERS, "check the attachment", why));
        let ips = self.call.before.as_ref().and_then(|before| before.get("ips")?.as_array());
        let ips: BTreeSet<IpAddr> = ips
            .into_iter()
            .flatten()
            .filter_map(|ip| ip.get("address")?.as_str()?.split('/').next()?.parse().ok())
            .collect();
        let Some(pool) = self.pool().await? else { return differs("its network is not defined") };
        let Some(reservation) = self.reservation(&pool, workload).await? else {
            return differs("no address is set aside for it");
        };
        let address = self.address(reservation).await?;
        let is_said = |own: &str| own.parse().is_ok_and(|own| ips.contains(&own));
        if !is_said(&address.ip) {
            return differs(&format!("{} is set aside for it, which the result of ADD does not have", address.ip));
        }
        let Some(handed) = handed else { return Ok(()) };
        let Some(network) = self.network().await? else { return differs("its network is not there") };
        let Some(port) = self.port(&network, workload).await? else { return differs("it has no port") };
        let tried = "look at a port";
        let answer = self.netmgr.ask(tried, CALL_DEADLINE, || port.info_request().send()).await?;
        let has = answer.get()?.get_info()?.get_addresses()?;
        if !has.iter().any(|one| one.is_ok_and(|one| one.as_bytes() == address.ip.as_bytes())) {
            return differs(&format!("its port is not that of {}", address.ip));
        }
        let interface = &self.call.interface;
        let mut addresses = Vec::new();
        for own in has {
            let own = text(own?)?;
            if !is_said(&own) {
                return differs(&format!("its port is that of {own} too, which the result of ADD does not have"));
            }
            if !handed.found.iter().any(|(name, found)| name == interface && found.to_string() == own) {
                return differs(&format!("{interface} within has no address {own}"));
            }
            addresses.extend(own.parse::<IpAddr>());
        }
        let published = self.published(&network, workload).await?;
        match self.call.publish.iter().find(|publish| !publish.is_among(&published, &addresses)) {
            Some(publish) => differs(&format!("{publish} of the host is not published for it")),
            None => Ok(()),
        }
    }

    /// What leads to a container by now.
    async fn published(&self, network: &network::Client, workload: &str) -> Result<Vec<Publish>, Refusal> {
        if self.call.publish.is_empty() {
            return Ok(Vec::new());
        }
        // Behind the last name that can be in front of it, but for those that begin as it does.
        let before = workload.get(..workload.len().saturating_sub(1)).unwrap_or_default();
        let page = || {
            let mut request = network.ports_request();
            request.get().set_after(before);
            request.send()
        };
        let answer = self.netmgr.ask("look at what is published", CALL_DEADLINE, page).await?;
        let mut page = answer.get()?.get_ports()?.iter();
        let own = page.find(|port| port.get_workload().is_ok_and(|one| one.as_bytes() == workload.as_bytes()));
        Ok(own.map_or(Ok(Vec::new()), |own| published::read(own.get_published()?))?)
    }

    /// Takes away what is of this configuration, by the workloads' names, and not valid.
    async fn gc(&self) -> Result<(), Refusal> {
        let stale = |workload: &str| workload.starts_with(&self.call.prefix) && !self.call.valid.contains(workload);
        let mut failed = None;
        if let Some(network) = self.network().await? {
            for workload in self.ports(&network).await?.iter().filter(|workload| stale(workload)) {
                if let Some(port) = self.port(&network, workload).await?
                    && let Err(refusal) = self.release(&port).await
                {
                    failed = Some(refusal);
                }
            }
        }
        // No address is free while a port may have it.
        if let Some(refusal) = failed {
            return Err(refusal);
        }
        let Some(pool) = self.pool().await? else { return Ok(()) };
        for workload in self.reserved(&pool).await?.iter().filter(|workload| stale(workload)) {
            if let Some(reservation) = self.reservation(&pool, workload).await? {
                self.cancel(&reservation).await?;
            }
        }
        Ok(())
    }

    async fn status(&self) -> Result<(), Refusal> {
        let not = |why: String| Refusal::new(answer::NOT_AVAILABLE, "see whether containers can be attached", why);
        let Some(pool) = self.pool().await? else {
            return Err(
                not(format!("there is no network {}", self.call.network)).remedy("Define it (volt network define)")
            );
        };
        let answer = self.ipamd.ask("look at the pool", CALL_DEADLINE, || pool.info_request().send()).await?;
        if answer.get()?.get_info()?.get_free() == 0 {
            return Err(not(format!("no address of {} is free", self.call.network))
                .remedy("End containers or VMs, or have GC done"));
        }
        Ok(())
    }

    async fn pool(&self) -> Result<Option<pool::Client>, Refusal> {
        match networks::pool(self.ipamd, &self.call.network).await {
            Err(crate::error::Error::Undefined(_)) => Ok(None),
            pool => Ok(Some(pool?)),
        }
    }

    async fn network(&self) -> Result<Option<network::Client>, Refusal> {
        let find = || {
            let mut request = self.netmgr.bootstrap::<host::Client>().network_request();
            request.get().set_network(&self.call.network);
            request.send()
        };
        let found = known(self.netmgr.ask("find the network", CALL_DEADLINE, find).await)?;
        Ok(found.map(|found| found.get()?.get_network()).transpose()?)
    }

    async fn port(&self, network: &network::Client, workload: &str) -> Result<Option<port::Client>, Refusal> {
        let find = || {
            let mut request = network.durable_port_request();
            request.get().set_workload(workload);
            request.send()
        };
        let found = known(self.netmgr.ask("find the container's port", CALL_DEADLINE, find).await)?;
        Ok(found.map(|found| found.get()?.get_port()).transpose()?)
    }

    async fn release(&self, port: &port::Client) -> Result<(), Refusal> {
        let release = self.netmgr.ask("release the container's port", CALL_DEADLINE, || port.release_request().send());
        known(release.await).map(drop)
    }

    async fn ports(&self, network: &network::Client) -> Result<Vec<String>, Refusal> {
        let mut all: Vec<String> = Vec::new();
        loop {
            let page = || {
                let mut request = network.ports_request();
                request.get().set_after(all.last().map_or("", String::as_str));
                request.send()
            };
            let answer = self.netmgr.ask("list the ports", CALL_DEADLINE, page).await?;
            let page = answer.get()?.get_ports()?;
            if page.is_empty() {
                return Ok(all);
            }
            for port in page {
                all.push(text(port.get_workload()?)?);
            }
        }
    }

    async fn reserve(&self, pool: &pool::Client, workload: &str) -> Result<Address, Refusal> {
        let reserve = || {
            let mut request = pool.reserve_request();
            request.get().set_workload(workload);
            request.get().set_address(&self.call.address);
            request.send()
        };
        let answer = self.ipamd.ask("reserve an address", CALL_DEADLINE, reserve).await?;
        self.address(answer.get()?.get_reservation()?).await
    }

    async fn reservation(&self, pool: &pool::Client, workload: &str) -> Result<Option<reservation::Client>, Refusal> {
        let find = || {
            let mut request = pool.reservation_request();
            request.get().set_workload(workload);
            request.send()
        };
        let found = known(self.ipamd.ask("find the container's address", CALL_DEADLINE, find).await)?;
        Ok(found.map(|found| found.get()?.get_reservation()).transpose()?)
    }

    async fn address(&self, reservation: reservation::Client) -> Result<Address, Refusal> {
        let look = || reservation.info_request().send();
        let answer = self.ipamd.ask("look at the container's address", CALL_DEADLINE, look).await?;
        let info: lease_info::Reader<'_> = answer.get()?.get_info()?;
        let (ip, prefix, gateway) = (text(info.get_address()?)?, info.get_prefix_length(), text(info.get_gateway()?)?);
        Ok(Address { reservation, ip, prefix, gateway })
    }

    async fn cancel(&self, reservation: &reservation::Client) -> Result<(), Refusal> {
        let cancel = self.ipamd.ask("give the address back", CALL_DEADLINE, || reservation.cancel_request().send());
        known(cancel.await).map(drop)
    }

    async fn reserved(&self, pool: &pool::Client) -> Result<Vec<String>, Refusal> {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let page = || {
                let mut request = pool.leases_request();
                request.get().set_after(&after);
                request.send()
            };
            let answer = self.ipamd.ask("list the addresses", CALL_DEADLINE, page).await?;
            let page = answer.get()?.get_leases()?;
            if page.is_empty() {
                return Ok(all);
            }
            for lease in page {
                after = text(lease.get_address()?)?;
                if lease.get_reserved() {
                    all.push(text(lease.get_workload()?)?);
                }
            }
        }
    }
}
