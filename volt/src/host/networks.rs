//! Networks: of each, `ipamd` has the pool, which is the definition and outlives a reboot, and `netmgr` the bridge. Neither knows of the other,
//! and either may refuse: who can is asked before anything is changed, and what only one has done is undone. Whoever is killed halfway
//! leaves what the next definition or removal of that network brings in order.

use std::os::fd::AsFd;

use capnp::capability::Response;
use futures::future::{join_all, try_join_all};
use ipc::{Code, Connection, Fault, retry};
use schema::{
    addresses_capnp::{ipam, pool, pool_info},
    host_capnp::host,
    net::{Mac, subnet_of_ipv6},
    network_capnp::{IPV6_PREFIX_LENGTH, MacvtapMode, NetworkKind, network, policy, policy_rules, port_info},
    policy::{Rule, Rules},
};

use crate::{
    config::Rate,
    error::Error,
    host::{
        isolated::Handed,
        links::{CALL_DEADLINE, text},
        published::{self, Publish},
    },
};

/// What a bridge is made of.
pub struct Definition {
    name: String,
    gateway: String,
    prefix: u8,
    /// 0 leaves it as it is.
    mtu: u32,
    /// As `NetworkConfig` has it.
    ipv6: String,
    kind: NetworkKind,
    nat: bool,
    /// None without an interface, and of that none without a number.
    parent: String,
    vlan: u16,
    isolate: bool,
    mode: MacvtapMode,
    trust: bool,
    /// What ports have that are made without one of their own.
    policy: Option<Vec<String>>,
}

/// Rules as a call carries them.
pub fn write_rules(to: policy_rules::Builder<'_>, rules: &Rules) {
    write_texts(to, &rules.iter().map(Rule::to_string).collect::<Vec<_>>());
}

fn write_texts(to: policy_rules::Builder<'_>, rules: &[String]) {
    let mut list = to.init_allow(u32::try_from(rules.len()).unwrap_or(0));
    for (at, rule) in (0..list.len()).zip(rules) {
        list.set(at, rule);
    }
}

fn read_rules(from: policy_rules::Reader<'_>) -> Result<Vec<String>, Error> {
    from.get_allow()?.iter().map(|rule| text(rule?)).collect()
}

impl Definition {
    /// Whether it has IPv6 beside.
    pub fn has_ipv6(&self) -> bool {
        !self.ipv6.is_empty()
    }

    fn of(info: pool_info::Reader<'_>) -> Result<Definition, Error> {
        Ok(Definition {
            name: text(info.get_network()?)?,
            gateway: text(info.get_gateway()?)?,
            prefix: info.get_prefix_length(),
            mtu: info.get_mtu(),
            ipv6: text(info.get_ipv6()?)?,
            kind: info.get_kind().map_err(capnp::Error::from)?,
            nat: info.get_nat(),
            parent: text(info.get_parent()?)?,
            vlan: info.get_vlan(),
            isolate: info.get_isolate(),
            mode: info.get_mode().map_err(capnp::Error::from)?,
            trust: info.get_trust(),
            policy: info.has_policy().then(|| read_rules(info.get_policy()?)).transpose()?,
        })
    }
}

/// Defines a network, or changes it, by its JSON text; an isolated one in the namespace that is handed over.
pub async fn define(
    netmgr: &Connection,
    ipamd: &Connection,
    tried: &str,
    config: &str,
    handed: Option<&Handed>,
) -> Result<(), Error> {
    let send = || {
        let mut request = ipamd.bootstrap::<ipam::Client>().check_pool_request();
        request.get().set_config(config);
        request.send()
    };
    let answer = ipamd.ask(tried, CALL_DEADLINE, send).await?;
    let definition = Definition::of(answer.get()?.get_info()?)?;
    if definition.kind != NetworkKind::Isolated {
        // Else a netmgr that was started again would not know that there is one of that name.
        hand_over(netmgr, ipamd, handed).await?;
    }
    let before = current(netmgr, &definition.name).await?;
    bridge(netmgr, &definition, handed).await?;
    let send = || {
        let mut request = ipamd.bootstrap::<ipam::Client>().define_pool_request();
        request.get().set_config(config);
        request.send()
    };
    if let Err(fault) = ipamd.ask(tried, CALL_DEADLINE, send).await {
        let undone = match before {
            Some(before) => bridge(netmgr, &before, handed).await.map(drop),
            None => remove_bridge(netmgr, &definition.name).await,
        };
        return Err(half(fault, undone));
    }
    Ok(())
}

/// Removes a network that nobody uses.
pub async fn remove(netmgr: &Connection, ipamd: &Connection, name: &str, handed: Option<&Handed>) -> Result<(), Error> {
    // Else the ports that are there would not be in the way.
    hand_over(netmgr, ipamd, handed).await?;
    let had_bridge = match remove_bridge(netmgr, name).await {
        Err(error) if !error.is_unknown() => return Err(error),
        removed => removed.is_ok(),
    };
    let tried = format!("remove the network {name}");
    let send = || {
        let mut request = ipamd.bootstrap::<ipam::Client>().remove_pool_request();
        request.get().set_network(name);
        request.send()
    };
    match ipamd.ask(&tried, CALL_DEADLINE, send).await.map_err(Error::Service) {
        Err(error) if error.is_unknown() && (had_bridge || handed.is_some()) => Ok(()),
        Err(error) if error.is_unknown() => Err(Error::NoNetwork(name.to_owned())),
        Err(Error::Service(fault)) if had_bridge => {
            let again = async {
                let pool = pool(ipamd, name).await?;
                bridge(netmgr, &definition(ipamd, &pool).await?, handed).await.map(drop)
            };
            Err(half(fault, again.await))
        }
        removed => removed.map(drop),
    }
}

/// Why something failed, and that it could not be undone, if so.
fn half(fault: Fault, undone: Result<(), Error>) -> Error {
    match undone {
        Ok(()) => fault.into(),
        Err(undone) => Error::NotUndone { fault: Box::new(fault), undone: Box::new(undone), log: None },
    }
}

/// The pool of a network that is defined.
pub async fn pool(ipamd: &Connection, name: &str) -> Result<pool::Client, Error> {
    let send = || {
        let mut request = ipamd.bootstrap::<ipam::Client>().pool_request();
        request.get().set_network(name);
        request.send()
    };
    match ipamd.ask(&format!("find the pool of network {name}"), CALL_DEADLINE, send).await.map_err(Error::Service) {
        Err(error) if error.is_unknown() => Err(Error::Undefined(name.to_owned())),
        answer => Ok(answer?.get()?.get_pool()?),
    }
}

/// The definition in a pool.
pub async fn definition(ipamd: &Connection, pool: &pool::Client) -> Result<Definition, Error> {
    let answer = ipamd.ask("read the network's pool", CALL_DEADLINE, || pool.info_request().send()).await?;
    Definition::of(answer.get()?.get_info()?)
}

/// Has a `netmgr` that finds ports of networks, and not these, as somebody has deleted a bridge while there was none, have them again.
pub async fn make_again(netmgr: &Connection, ipamd: &Connection) -> Result<(), Error> {
    let answer = listed(netmgr).await?;
    for name in answer.get()?.get_lost()? {
        match pool(ipamd, &text(name?)?).await {
            // It is not defined any more.
            Err(Error::Undefined(_)) => {}
            pool => _ = bridge(netmgr, &definition(ipamd, &pool?).await?, None).await?,
        }
    }
    Ok(())
}

async fn listed(netmgr: &Connection) -> Result<Response<host::networks_results::Owned>, Error> {
    let send = || netmgr.bootstrap::<host::Client>().networks_request().send();
    Ok(netmgr.ask("list the networks", CALL_DEADLINE, send).await?)
}

/// Has a `netmgr` that was started again know of an isolated network that is defined.
pub async fn hand_over(netmgr: &Connection, ipamd: &Connection, handed: Option<&Handed>) -> Result<(), Error> {
    let Some(Handed { name, .. }) = handed else { return Ok(()) };
    if network(netmgr, name, &format!("find the network {name}")).await?.is_some() {
        return Ok(());
    }
    match pool(ipamd, name).await {
        // It was noted, and never came to be defined.
        Err(Error::Undefined(_)) => Ok(()),
        pool => bridge(netmgr, &definition(ipamd, &pool?).await?, handed).await.map(drop),
    }
}

/// Makes a network's bridge, adopts it, or brings it to its definition: nothing is changed where it is as it should be.
pub async fn bridge(
    netmgr: &Connection,
    definition: &Definition,
    handed: Option<&Handed>,
) -> Result<network::Client, Error> {
    let Definition { name, gateway, prefix, mtu, ipv6, kind, nat, parent, vlan, isolate, mode, trust, policy } =
        definition;
    let tried = format!("make the network {name}");
    let own = handed.filter(|handed| handed.name == *name);
    let within = match (kind, own) {
        (NetworkKind::Isolated, None) => return Err(Error::NoNamespace(name.clone())),
        (NetworkKind::Isolated, Some(handed)) => &handed.sockets[..],
        _ => &[],
    };
    let define = async |left| {
        // A token is good for one call, so new ones go with each.
        let sockets = try_join_all(within.iter().map(|socket| netmgr.deposit(socket.as_fd()))).await?;
        let mut request = netmgr.bootstrap::<host::Client>().define_network_request();
        if let [rtnetlink, nfnetlink, link_changes, rule_changes] = &sockets[..] {
            let mut namespace = request.get().init_within();
            rtnetlink.write(namespace.reborrow().init_rtnetlink());
            nfnetlink.write(namespace.reborrow().init_nfnetlink());
            link_changes.write(namespace.reborrow().init_link_changes());
            rule_changes.write(namespace.init_rule_changes());
        }
        let mut config = request.get().init_config();
        config.set_name(name);
        config.set_gateway(gateway);
        config.set_prefix_length(*prefix);
        config.set_mtu(*mtu);
        config.set_ipv6(ipv6);
        config.set_kind(*kind);
        config.set_nat(*nat);
        config.set_parent(parent);
        config.set_vlan(*vlan);
        config.set_isolate(*isolate);
        config.set_mode(*mode);
        config.set_trust(*trust);
        if let Some(policy) = policy {
            write_texts(config.init_policy(), policy);
        }
        netmgr.call(&tried, left, request.send()).await
    };
    let answer = retry(CALL_DEADLINE, define).await?;
    Ok(answer.get()?.get_network()?)
}

/// A network as `netmgr` has it, if it has it.
async fn network(netmgr: &Connection, name: &str, tried: &str) -> Result<Option<network::Client>, Error> {
    let send = || {
        let mut request = netmgr.bootstrap::<host::Client>().network_request();
        request.get().set_network(name);
        request.send()
    };
    match netmgr.ask(tried, CALL_DEADLINE, send).await.map_err(Error::Service) {
        Err(error) if error.is_unknown() => Ok(None),
        answer => Ok(Some(answer?.get()?.get_network()?)),
    }
}

/// What `netmgr` says of a network, if it has it.
async fn info(netmgr: &Connection, name: &str) -> Result<Option<Response<network::info_results::Owned>>, Error> {
    let tried = format!("look at the network {name}");
    let Some(network) = network(netmgr, name, &tried).await? else { return Ok(None) };
    Ok(Some(netmgr.ask(&tried, CALL_DEADLINE, || network.info_request().send()).await?))
}

/// How `netmgr` has a network, if it has it.
async fn current(netmgr: &Connection, name: &str) -> Result<Option<Definition>, Error> {
    let Some(answer) = info(netmgr, name).await? else { return Ok(None) };
    let config = answer.get()?.get_info()?.get_config()?;
    Ok(Some(Definition {
        name: name.to_owned(),
        gateway: text(config.get_gateway()?)?,
        prefix: config.get_prefix_length(),
        mtu: config.get_mtu(),
        ipv6: text(config.get_ipv6()?)?,
        kind: config.get_kind().map_err(capnp::Error::from)?,
        nat: config.get_nat(),
        parent: text(config.get_parent()?)?,
        vlan: config.get_vlan(),
        isolate: config.get_isolate(),
        mode: config.get_mode().map_err(capnp::Error::from)?,
        trust: config.get_trust(),
        policy: config.has_policy().then(|| read_rules(config.get_policy()?)).transpose()?,
    }))
}

async fn remove_bridge(netmgr: &Connection, name: &str) -> Result<(), Error> {
    let send = || {
        let mut request = netmgr.bootstrap::<host::Client>().remove_network_request();
        request.get().set_network(name);
        request.send()
    };
    netmgr.ask(&format!("remove the network {name}"), CALL_DEADLINE, send).await?;
    Ok(())
}

/// A network that is defined, or built in, as JSON text that [`define`] takes.
pub async fn export(ipamd: &Connection, name: &str) -> Result<String, Error> {
    of_list(ipamd, name, |pool| text(pool.get_config()?)).await
}

/// What there is to say of a network: name, kind, subnet, gateway, IPv6 gateway, pool, free addresses, MTU, ports. Nothing is made for that: a bridge
/// that is not there has no MTU, nor an IPv6 subnet that follows from its name, unless its definition says one.
pub async fn show(
    netmgr: &Connection,
    ipamd: &Connection,
    name: &str,
    handed: Option<&Handed>,
) -> Result<[String; 9], Error> {
    hand_over(netmgr, ipamd, handed).await?;
    make_again(netmgr, ipamd).await?;
    let (of_pool, is_isolated, kind, ipv6, mtu) = of_list(ipamd, name, |pool| {
        let range = format!("{}-{}", text(pool.get_range_start()?)?, text(pool.get_range_end()?)?);
        let of_pool = [text(pool.get_subnet()?)?, text(pool.get_gateway()?)?, range, pool.get_free().to_string()];
        let is_isolated = pool.get_kind() == Ok(NetworkKind::Isolated);
        Ok((of_pool, is_isolated, kind(pool)?, text(pool.get_ipv6()?)?, pool.get_mtu()))
    })
    .await?;
    let (ipv6, mtu, ports) = match info(netmgr, name).await? {
        None => (ipv6, mtu, 0),
        Some(answer) => {
            let info = answer.get()?.get_info()?;
            (text(info.get_config()?.get_ipv6()?)?, info.get_config()?.get_mtu(), info.get_ports()?.len())
        }
    };
    let none = || "-".to_owned();
    let mtu = if mtu == 0 { none() } else { mtu.to_string() };
    let [mut subnet, mut gateway, range, free] = of_pool;
    let mut ipv6 = if ipv6.is_empty() { none() } else { ipv6 };
    // Nobody has them: the second says which subnet there is.
    if is_isolated {
        let address = ipv6.split('/').next().and_then(|address| address.parse().ok());
        if let Some(subnet6) = address.map(subnet_of_ipv6) {
            subnet = format!("{subnet},{subnet6}/{IPV6_PREFIX_LENGTH}");
        }
        (gateway, ipv6) = (none(), none());
    }
    Ok([name.to_owned(), kind, subnet, gateway, ipv6, range, free, mtu, ports.to_string()])
}

/// What `read` takes of a network's pool, without defining that.
async fn of_list<T>(
    ipamd: &Connection,
    name: &str,
    read: impl FnOnce(pool_info::Reader<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    let tried = format!("look at the network {name}");
    let answer = ipamd.ask(&tried, CALL_DEADLINE, || ipamd.bootstrap::<ipam::Client>().list_request().send()).await?;
    let found = answer
        .get()?
        .get_pools()?
        .iter()
        .find(|pool| pool.get_network().is_ok_and(|network| network.as_bytes() == name.as_bytes()));
    read(found.ok_or_else(|| Error::NoNetwork(name.to_owned()))?)
}

/// What the port of a workload may send, and to whom: its rules, a line each; `None` for one without a policy.
pub async fn policy(netmgr: &Connection, name: &str, workload: &str) -> Result<Option<Vec<String>>, Error> {
    let tried = format!("look at the policy of {workload} on {name}");
    let network = there(netmgr, name, &tried).await?;
    let look = || {
        let mut request = network.port_policy_request();
        request.get().set_workload(workload);
        request.send()
    };
    let answer = netmgr.ask(&tried, CALL_DEADLINE, look).await?;
    let answer = answer.get()?;
    if !answer.has_policy() {
        return Ok(None);
    }
    let policy: policy::Client = answer.get_policy()?;
    let answer = netmgr.ask(&tried, CALL_DEADLINE, || policy.rules_request().send()).await?;
    read_rules(answer.get()?.get_rules()?).map(Some)
}

/// Has the port of a workload have these rules from the next packet on, or none.
pub async fn set_policy(netmgr: &Connection, name: &str, workload: &str, rules: Option<&Rules>) -> Result<(), Error> {
    let tried = format!("set the policy of {workload} on {name}");
    let network = there(netmgr, name, &tried).await?;
    let set = || {
        let mut request = network.set_policy_request();
        request.get().set_workload(workload);
        if let Some(rules) = rules {
            let mut made = network.policy_request();
            write_rules(made.get().init_rules(), rules);
            request.get().set_policy(made.send().pipeline.get_policy());
        }
        request.send()
    };
    netmgr.ask(&tried, CALL_DEADLINE, set).await?;
    Ok(())
}

/// Has the port of a workload carry no more than that from the next packet on.
pub async fn set_rate(netmgr: &Connection, name: &str, workload: &str, rate: Rate) -> Result<(), Error> {
    let tried = format!("set the rate of {workload} on {name}");
    let network = there(netmgr, name, &tried).await?;
    let set = || {
        let mut request = network.set_rate_request();
        request.get().set_workload(workload);
        let mut asked = request.get().init_rate();
        asked.set_from_guest(rate.from_guest);
        asked.set_to_guest(rate.to_guest);
        request.send()
    };
    netmgr.ask(&tried, CALL_DEADLINE, set).await?;
    Ok(())
}

/// A network that `netmgr` has.
pub async fn there(netmgr: &Connection, name: &str, tried: &str) -> Result<network::Client, Error> {
    network(netmgr, name, tried).await?.ok_or_else(|| Error::NoNetwork(name.to_owned()))
}

/// What is told of a port.
#[derive(Clone)]
pub struct PortRow {
    /// Network, workload, interface, MAC address, addresses, ports of the host that lead there.
    pub who: [String; 6],
    /// Packets and bytes that it has sent, and received; that its policy has allowed, and denied, where it has one; what was forged; its rates; and what
    /// was beyond these, sent and received.
    pub counts: [String; 8],
}

/// All ports of all networks of this host.
pub async fn ports(netmgr: &Connection) -> Result<Vec<PortRow>, Error> {
    const TRIED: &str = "list the ports";
    let answer = listed(netmgr).await?;
    let names = answer.get()?.get_networks()?;
    let listed = names.iter().map(|name| async move {
        let name = text(name?)?;
        match network(netmgr, &name, TRIED).await? {
            // It was removed meanwhile.
            None => Ok(Vec::new()),
            Some(network) => ports_of(netmgr, &name, &network, TRIED).await,
        }
    });
    Ok(join_all(listed).await.into_iter().collect::<Result<Vec<_>, Error>>()?.concat())
}

async fn ports_of(
    netmgr: &Connection,
    name: &str,
    network: &network::Client,
    tried: &str,
) -> Result<Vec<PortRow>, Error> {
    let mut rows: Vec<PortRow> = Vec::new();
    loop {
        let after = rows.last().map_or("", |PortRow { who: [_, workload, ..], .. }| workload).to_owned();
        let page = || {
            let mut request = network.ports_request();
            request.get().set_after(&after);
            request.send()
        };
        let answer = match netmgr.ask(tried, CALL_DEADLINE, page).await {
            Err(fault) if fault.code == Code::Revoked => return Ok(rows),
            answer => answer?,
        };
        let page = answer.get()?.get_ports()?;
        if page.is_empty() {
            return Ok(rows);
        }
        for port in page {
            rows.push(port_row(name, port)?);
        }
    }
}

fn port_row(network: &str, port: port_info::Reader<'_>) -> Result<PortRow, Error> {
    let mac = port.get_mac()?.try_into().ok().and_then(Mac::new).map_or_else(|| "-".into(), |mac| mac.to_string());
    let addresses = port.get_addresses()?.iter().map(|address| text(address?)).collect::<Result<Vec<_>, _>>()?;
    let addresses = if addresses.is_empty() { "-".to_owned() } else { addresses.join(", ") };
    let published = published::read(port.get_published()?)?.iter().map(Publish::to_string).collect::<Vec<_>>();
    let published = if published.is_empty() { "-".to_owned() } else { published.join(", ") };
    let (stats, rate) = (port.get_stats()?, port.get_rate()?);
    let count = |packets: u64, bytes: u64| format!("{packets}/{bytes}");
    let policed = |packets, bytes| if stats.get_policed() { count(packets, bytes) } else { "-".into() };
    let rate = [rate.get_from_guest(), rate.get_to_guest()].map(|rate| match rate {
        0 => "-".to_owned(),
        rate => format!("{}kbit", rate * 8 / 1000),
    });
    let (workload, interface) = (text(port.get_workload()?)?, text(port.get_interface_name()?)?);
    let counts = [
        count(stats.get_from_packets(), stats.get_from_bytes()),
        count(stats.get_to_packets(), stats.get_to_bytes()),
        policed(stats.get_allowed_packets(), stats.get_allowed_bytes()),
        policed(stats.get_denied_packets(), stats.get_denied_bytes()),
        count(stats.get_forged_packets(), stats.get_forged_bytes()),
        rate.join("/"),
        count(stats.get_over_from_packets(), stats.get_over_from_bytes()),
        count(stats.get_over_to_packets(), stats.get_over_to_bytes()),
    ];
    Ok(PortRow { who: [network.to_owned(), workload, interface, mac, addresses, published], counts })
}

/// What kind of network a pool is of, in a word and what it has of its own.
fn kind(pool: pool_info::Reader<'_>) -> Result<String, Error> {
    let isolate = if pool.get_isolate() { ",isolate" } else { "" };
    let kind = match (pool.get_kind().map_err(capnp::Error::from)?, pool.get_nat(), pool.get_vlan()) {
        (NetworkKind::HostOnly, ..) => "host-only".to_owned(),
        (NetworkKind::Macvtap, ..) => "macvtap".to_owned(),
        (NetworkKind::Sriov, _, 0) => format!("sriov,parent={}", text(pool.get_parent()?)?),
        (NetworkKind::Sriov, _, vlan) => format!("sriov,vlan={}/{vlan}", text(pool.get_parent()?)?),
        (NetworkKind::Isolated, ..) => "isolated".to_owned(),
        (NetworkKind::Bridged, true, _) => "bridged,nat".to_owned(),
        (NetworkKind::Bridged, false, 0) => "bridged".to_owned(),
        (NetworkKind::Bridged, false, vlan) => format!("bridged,vlan={}/{vlan}", text(pool.get_parent()?)?),
    };
    Ok(kind + isolate)
}

/// The networks that are defined, and the built-in one: name, type, subnet, free addresses.
pub async fn list(ipamd: &Connection) -> Result<Vec<[String; 4]>, Error> {
    let answer = ipamd
        .ask("list the networks", CALL_DEADLINE, || ipamd.bootstrap::<ipam::Client>().list_request().send())
        .await?;
    let row = |pool: pool_info::Reader<'_>| {
        Ok([text(pool.get_network()?)?, kind(pool)?, text(pool.get_subnet()?)?, pool.get_free().to_string()])
    };
    answer.get()?.get_pools()?.iter().map(row).collect()
}
