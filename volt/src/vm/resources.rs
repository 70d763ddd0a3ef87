//! What a VM borrows from the services: its kernel, its addresses, its ports. Held as capabilities, given back in order.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use futures::future::{join_all, try_join};
use ipc::Connection;
use schema::{
    addresses_capnp::{lease, pool},
    kernel_store_capnp::kernel_store,
    net::Mac,
    network_capnp::{IPV6_PREFIX_LENGTH, network, port},
    policy::Rules,
};

use crate::{
    config::{Net, Rate},
    error::Error,
    host::{
        absence::Borrowed,
        isolated::Handed,
        kernels,
        links::{CALL_DEADLINE, text},
        networks,
        published::{Guest, Held},
        services::Service,
    },
    output::say,
    vm::machine::CardPart,
};

/// The kernel, as far as phase 1 takes it.
pub enum KernelSource {
    File(PathBuf, OwnedFd),
    Stored(String),
}

/// The links to the services that a VM needs.
pub struct Services {
    /// To be closed once the kernel is fetched.
    pub kernels: Connection,
    pub network: Option<Network>,
}

/// `netmgr` and `ipamd`; a VM without a card needs neither.
pub type Network = (Connection, Connection);

impl Services {
    /// From the links in the order that `run` asked for: kernel store, then, where there is a card, `netmgr` and `ipamd`.
    pub fn new(links: Vec<Connection>) -> Result<Services, Error> {
        let mut links = links.into_iter();
        let kernels = links.next().ok_or(Error::NoLink)?;
        Ok(Services { kernels, network: links.next().zip(links.next()) })
    }
}

/// Gives up the services themselves: from here on this process holds what it was given, and can ask for nothing more.
pub fn narrow((netmgr, ipamd): &Network) {
    [netmgr, ipamd].into_iter().for_each(Connection::narrow);
}

/// What a VM keeps of the services if they end.
pub fn borrowed((netmgr, ipamd): &Network, cards: &[Card]) -> Vec<Borrowed> {
    let addresses = cards.iter().filter_map(|card| card.address.as_ref()).map(|own| own.address.as_str());
    let networks = cards.iter().map(|card| card.network.as_str());
    let keeps = |link: &Connection, service, what| Borrowed { link: link.clone(), service, what };
    vec![
        keeps(netmgr, Service::Netmgr, format!("its port on {}", networks.collect::<Vec<_>>().join(", "))),
        keeps(ipamd, Service::Ipamd, addresses.collect::<Vec<_>>().join(", ")),
    ]
}

/// A port's TAP, the guest's MAC address there, the MTU, and its IPv6.
type Attached = (OwnedFd, Mac, u32, Option<Ipv6>);

/// One network card: the address and the port are ours until released. Half of one, where the other half was refused.
pub struct Card {
    pub network: String,
    pub address: Option<Address>,
    lease: Option<lease::Client>,
    port: Option<port::Client>,
    /// As long as this is there nobody else has the ports of the host that lead to it, whatever becomes of netmgr.
    published: Vec<Vec<Held>>,
    pub part: Option<CardPart>,
}

/// What a guest is told about its card.
pub struct Address {
    pub address: String,
    /// Empty on an isolated network.
    pub gateway: String,
    /// Length of the network's prefix, in bits.
    pub prefix: u8,
    /// Where the network has IPv6.
    pub ipv6: Option<Ipv6>,
}

/// What it is told of IPv6.
pub struct Ipv6 {
    pub address: String,
    /// Empty on an isolated network.
    pub gateway: String,
}

/// Fetches the sealed kernel, and closes the link: the store serves others.
pub async fn kernel(link: Connection, source: KernelSource) -> Result<OwnedFd, Error> {
    let kernel = match source {
        KernelSource::Stored(name) => {
            let get = || {
                let mut request = link.bootstrap::<kernel_store::Client>().get_request();
                request.get().set_ref(&name);
                request.send()
            };
            let answer = link.ask(&format!("get the kernel {name}"), CALL_DEADLINE, get).await?;
            answer.get()?.get_kernel()?
        }
        KernelSource::File(path, image) => {
            kernels::import(&link, &format!("import the kernel {}", path.display()), image.as_fd(), "").await?
        }
    };
    let answer = link.ask("open the kernel", CALL_DEADLINE, || kernel.open_request().send()).await?;
    Ok(link.claim(answer.get()?.get_image()?.get_bytes()?).await?)
}

/// Attaches the cards `nets`. What was taken when one fails is in `cards`, to be released.
/// What its guest sends, and to whom, is as `policy` says, or else as its network.
pub async fn cards(
    links: &Network,
    workload: &str,
    nets: &[Net],
    namespaces: &[Handed],
    policy: Option<&Rules>,
    cards: &mut Vec<Card>,
) -> Result<(), Error> {
    let (netmgr, ipamd) = links;
    for Net { network: name, rate } in nets {
        let pool = networks::pool(ipamd, name).await?;
        // The pool's configuration is the network's: whatever has become of its bridge, it is as that says before a card is put on it.
        let bridge = async {
            let definition = networks::definition(ipamd, &pool).await?;
            let handed = namespaces.iter().find(|handed| handed.name == *name);
            Ok::<_, Error>((networks::bridge(netmgr, &definition, handed).await?, definition.has_ipv6()))
        };
        let (leased, network) = futures::join!(allocate(ipamd, &pool, name, workload), bridge);
        let mut card =
            Card { network: name.clone(), address: None, lease: None, port: None, published: Vec::new(), part: None };
        let part = async {
            let (lease, address, life) = leased?;
            card.lease = Some(lease);
            let (network, has_ipv6) = network?;
            // What the guest may send from is what it has a lease of, and what follows from its MAC address.
            let sources = [address.address.as_str()].into_iter().chain(has_ipv6.then_some("::")).collect();
            let attached = attach(netmgr, &network, name, workload, sources, policy).await;
            let address = card.address.insert(address);
            let (port, (tap, mac, mtu, ipv6)) = attached?;
            address.ipv6 = ipv6;
            let port = card.port.insert(port);
            // Before anything comes by it.
            carry(netmgr, port, name, workload, *rate).await?;
            Ok::<_, Error>(CardPart { tap, life, mac, mtu })
        };
        let (part, refused) = part.await.map_or_else(|error| (None, Some(error)), |part| (Some(part), None));
        cards.push(Card { part, ..card });
        refused.map_or(Ok(()), Err)?;
    }
    Ok(())
}

/// Has ports of the host lead to the guest by its first card.
pub async fn publish((netmgr, _): &Network, vm: &str, held: Vec<Vec<Held>>, cards: &mut [Card]) -> Result<(), Error> {
    let Some(card) = cards.first_mut() else { return Ok(()) };
    let Some(port) = &card.port else { return Ok(()) };
    let tried = format!("publish ports for {vm} on {}", card.network);
    Guest::Port(port).publish(netmgr, &tried, &held).await?;
    card.published = held;
    Ok(())
}

/// Has a port carry no more than that.
async fn carry(
    netmgr: &Connection,
    port: &port::Client,
    network: &str,
    workload: &str,
    rate: Rate,
) -> Result<(), Error> {
    if rate == Rate::default() {
        return Ok(());
    }
    let set = || {
        let mut request = port.set_rate_request();
        let mut to = request.get().init_rate();
        to.set_from_guest(rate.from_guest);
        to.set_to_guest(rate.to_guest);
        request.send()
    };
    netmgr.ask(&format!("set the rate of {workload} on {network}"), CALL_DEADLINE, set).await?;
    Ok(())
}

async fn allocate(
    ipamd: &Connection,
    pool: &pool::Client,
    network: &str,
    workload: &str,
) -> Result<(lease::Client, Address, OwnedFd), Error> {
    let tried = format!("allocate an address for {workload} on {network}");
    let allocate = || {
        let mut request = pool.allocator_request();
        request.get().set_max_leases(1);
        let allocator = request.send().pipeline.get_allocator();
        let mut request = allocator.allocate_request();
        request.get().set_workload(workload);
        request.send()
    };
    let answer = ipamd.ask(&tried, CALL_DEADLINE, allocate).await?;
    let lease = answer.get()?.get_lease()?;
    let answer = ipamd.ask(&tried, CALL_DEADLINE, || lease.info_request().send()).await?;
    let info = answer.get()?.get_info()?;
    let (address, gateway) = (text(info.get_address()?)?, text(info.get_gateway()?)?);
    // As long as this process, or the card's backend, has it, the address is the VM's whatever becomes of ipamd.
    let answer = ipamd.ask(&tried, CALL_DEADLINE, || lease.life_request().send()).await?;
    let life = ipamd.claim(answer.get()?.get_life()?.get_bytes()?).await?;
    Ok((lease, Address { address, gateway, prefix: info.get_prefix_length(), ipv6: None }, life))
}

async fn attach(
    netmgr: &Connection,
    network: &network::Client,
    name: &str,
    workload: &str,
    addresses: Vec<&str>,
    policy: Option<&Rules>,
) -> Result<(port::Client, Attached), Error> {
    let tried = format!("attach {workload} to {name}");
    let create = || {
        let mut request = network.port_factory_request();
        request.get().set_max_ports(1);
        let factory = request.send().pipeline.get_factory();
        let mut request = factory.create_tap_request();
        request.get().set_workload(workload);
        let mut list = request.get().init_addresses(u32::try_from(addresses.len()).unwrap_or(0));
        for (at, address) in (0..list.len()).zip(&addresses) {
            list.set(at, address);
        }
        if let Some(policy) = policy {
            let mut made = network.policy_request();
            networks::write_rules(made.get().init_rules(), policy);
            request.get().set_policy(made.send().pipeline.get_policy());
        }
        request.get().set_hand_out(true);
        request.send()
    };
    let answer = netmgr.ask(&tried, CALL_DEADLINE, create).await?;
    let (port, tap) = (answer.get()?.get_port()?, answer.get()?.get_tap()?);
    let info = || port.info_request().send();
    let (info, tap) = try_join(netmgr.ask(&tried, CALL_DEADLINE, info), netmgr.claim(tap.get_bytes()?)).await?;
    let info = info.get()?.get_info()?;
    let mac = info.get_mac()?.try_into().ok().and_then(Mac::new);
    let mac = mac.ok_or_else(|| Error::NoMac { workload: workload.to_owned(), network: name.to_owned() })?;
    let (address, gateway) = (of_ipv6(info.get_addresses()?)?, of_ipv6(info.get_gateways()?)?);
    let gateway = gateway.as_deref().and_then(|gateway| gateway.split('/').next()).unwrap_or_default().to_owned();
    let ipv6 = address.map(|address| Ipv6 { address, gateway });
    Ok((port, (tap, mac, info.get_mtu(), ipv6)))
}

/// The first address of a list that is one of IPv6.
fn of_ipv6(list: capnp::text_list::Reader<'_>) -> Result<Option<String>, Error> {
    let all = list.iter().map(|one| text(one?)).collect::<Result<Vec<_>, Error>>()?;
    Ok(all.into_iter().find(|one| one.contains(':')))
}

/// Says so when something else on the host takes a card's port away: the guest is cut off, and is not told.
pub fn watch_ports(vm: &str, cards: &[Card]) {
    for card in cards {
        let Some(port) = &card.port else { continue };
        let lost = port.lost_request().send().promise;
        let (vm, network) = (vm.to_owned(), card.network.clone());
        tokio::task::spawn_local(async move {
            // Any other end, of the port or of netmgr, is none of a loss.
            if let Ok(answer) = lost.await
                && let Ok(why) = answer.get().and_then(|answer| Ok(answer.get_why()?.to_string()?))
            {
                say(format_args!("{vm} has lost its card on {network}: {why}. Stop it, and run it again"));
            }
        });
    }
}

/// Gives back what the VM borrowed, all at once. A service that does not answer gives it back by itself when the link ends.
pub async fn release(links: Option<&(Connection, Connection)>, cards: Vec<Card>) {
    let Some((netmgr, ipamd)) = links else { return };
    let released = cards.iter().map(|card| async move {
        let port = match &card.port {
            Some(port) if !netmgr.is_closed() => {
                netmgr.ask("release the port", CALL_DEADLINE, || port.release_request().send()).await.map(drop)
            }
            _ => Ok(()),
        };
        // Not before: whoever is given the address next may not have it on a port as long as this one does.
        let lease = match &card.lease {
            Some(lease) if !ipamd.is_closed() => {
                ipamd.ask("release the address", CALL_DEADLINE, || lease.release_request().send()).await.map(drop)
            }
            _ => Ok(()),
        };
        [port, lease].into_iter().filter_map(Result::err).for_each(say);
    });
    join_all(released).await;
}

/// The kernel's `ip=` parameter (Documentation/admin-guide/nfs/nfsroot.rst) for the n-th card. Only the first one gets a
/// default route. The device stays unnamed where there is one card: what it is called is the guest's own affair.
pub fn ip_parameter(addresses: &[&Address], n: usize, hostname: &str) -> Option<String> {
    let Address { address, gateway, prefix, .. } = addresses.get(n)?;
    let mask = u32::MAX.checked_shl(32u32.saturating_sub((*prefix).into())).unwrap_or(0);
    let gateway = if n == 0 { gateway.as_str() } else { "" };
    let device = if addresses.len() > 1 { format!("eth{n}") } else { String::new() };
    Some(format!("ip={address}::{gateway}:{}:{hostname}:{device}:off", Ipv4Addr::from(mask)))
}

/// The same of IPv6, of which the kernel itself is told nothing: its `ip=` knows none, and of a second word for the same card it would take what is in
/// the place of a device's name. So this is a word that no kernel looks at and whoever sets the guest up can: address/prefix, gateway, device.
pub fn ipv6_parameter(addresses: &[&Address], n: usize) -> Option<String> {
    let Ipv6 { address, gateway } = addresses.get(n)?.ipv6.as_ref()?;
    let gateway = if n == 0 { gateway } else { "" };
    let device = if addresses.len() > 1 { format!("eth{n}") } else { String::new() };
    Some(format!("volt.ipv6={address}/{IPV6_PREFIX_LENGTH},{gateway},{device}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(address: &str, gateway: &str, prefix: u8) -> Address {
        Address { address: address.into(), gateway: gateway.into(), prefix, ipv6: None }
    }

    fn with_ipv6(address: &str, gateway: &str) -> Address {
        let ipv6 = Some(Ipv6 { address: address.into(), gateway: gateway.into() });
        Address { ipv6, ..self::address("10.0.0.2", "10.0.0.1", 8) }
    }

    #[test]
    fn only_card_gets_the_default_route_and_no_device_name() {
        let card = address("10.42.0.7", "10.42.0.1", 24);
        let word = "ip=10.42.0.7::10.42.0.1:255.255.255.0:web::off";
        assert_eq!(ip_parameter(&[&card], 0, "web").unwrap(), word);
        assert_eq!(ip_parameter(&[&card], 1, "web"), None);
    }

    #[test]
    fn second_card_is_named_and_has_no_gateway() {
        let cards = [&address("10.0.0.2", "10.0.0.1", 8), &address("10.1.0.2", "10.1.0.1", 30)];
        assert_eq!(ip_parameter(&cards, 0, "a").unwrap(), "ip=10.0.0.2::10.0.0.1:255.0.0.0:a:eth0:off");
        assert_eq!(ip_parameter(&cards, 1, "a").unwrap(), "ip=10.1.0.2:::255.255.255.252:a:eth1:off");
    }

    #[test]
    fn prefix_of_any_length_becomes_a_mask() {
        for (prefix, mask) in [(0, "0.0.0.0"), (1, "128.0.0.0"), (32, "255.255.255.255"), (255, "255.255.255.255")] {
            let word = ip_parameter(&[&address("10.0.0.2", "", prefix)], 0, "a").unwrap();
            assert_eq!(word, format!("ip=10.0.0.2:::{mask}:a::off"), "{prefix}");
        }
    }

    #[test]
    fn longest_words_fit_the_room_that_the_command_line_leaves() {
        let longest = "255.255.255.255";
        let card = address(longest, longest, 32);
        let words = ip_parameter(&[&card, &card], 0, &"n".repeat(59)).unwrap();
        let longest = "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let card = with_ipv6(longest, longest);
        let words = format!("{words} {}", ipv6_parameter(&[&card, &card], 0).unwrap());
        assert!(words.len() < crate::config::IP_WORDS, "{words}");
    }

    #[test]
    fn ipv6_is_told_in_a_word_of_its_own_with_the_gateway_of_the_first_card() {
        let (both, four) = (with_ipv6("fd00::7", "fd00::1"), address("10.0.0.3", "10.0.0.1", 8));
        assert_eq!(ipv6_parameter(&[&both], 0).unwrap(), "volt.ipv6=fd00::7/64,fd00::1,");
        assert_eq!(ipv6_parameter(&[&both, &both], 0).unwrap(), "volt.ipv6=fd00::7/64,fd00::1,eth0");
        assert_eq!(ipv6_parameter(&[&four, &both], 1).unwrap(), "volt.ipv6=fd00::7/64,,eth1");
        assert_eq!((ipv6_parameter(&[&four, &both], 0), ipv6_parameter(&[&both], 1)), (None, None));
        // Nobody is one on an isolated network.
        let isolated = Address { gateway: String::new(), ..with_ipv6("fd00::7", "") };
        assert_eq!(ipv6_parameter(&[&isolated], 0).unwrap(), "volt.ipv6=fd00::7/64,,");
        assert_eq!(ip_parameter(&[&isolated], 0, "web").unwrap(), "ip=10.0.0.2:::255.0.0.0:web::off");
    }
}
