//! The capabilities of schema/host.capnp and schema/network.capnp: what a call says is checked here, what it wants is done by the rtnl thread.
//! Touches the fd lane. Must never make a system call about the network.

mod answers;
mod functions;
mod held;
mod policies;
mod published;
mod watcher;

use std::{cell::RefCell, sync::Arc};

use capnp::{capability::Rc, text_list};
use capnp_rpc::{CapabilityServerSet, new_client};
use ipc::{Lane, Peer};
use schema::{
    fd_lane_capnp::fd_token,
    host_capnp::{host, namespace, tenant},
    network_capnp::{MAX_PORTS, NetworkKind, network, network_config, network_info, policy, port, port_factory},
    policy::Rules,
};
use service::Owner;
use sha2::{Digest, Sha256};

use self::{
    answers::{read_rate, write_addresses, write_config, write_port, write_rate, write_stats},
    held::{HeldPort, Port},
    policies::{Policy, rules, write_rules},
    published::{publish, unpublish},
    watcher::Watcher,
};
use crate::{
    config::{Config, Kind},
    error::Error,
    handed::Sockets,
    manager::{Account, Asked, Durable, Manager, NetworkId, Veth, Whose},
    names,
    ports::{Quota, TenantId},
    sources::Sources,
    veth,
};

/// Bytes of a SturdyRef.
const REF_BYTES: usize = 32;

/// What every object of one connection has.
#[derive(Clone)]
pub struct Context {
    manager: Owner<Manager>,
    lane: Lane,
    peer: Peer,
    /// Those of this connection: what is none of them is somebody's own invention.
    policies: Rc<RefCell<CapabilityServerSet<Policy, policy::Client>>>,
}

/// `Host`: the bootstrap capability, for the host's owner.
pub struct Host(Context);

impl Host {
    /// What a client gets on connecting.
    pub fn bootstrap(manager: &Owner<Manager>, lane: &Lane, peer: Peer) -> capnp::capability::Client {
        let host: host::Client =
            new_client(Host(Context { manager: manager.of(peer), lane: lane.clone(), peer, policies: Rc::default() }));
        host.client
    }
}

impl Context {
    /// Has something done where a network is.
    async fn on<T: Send + 'static>(
        &self,
        network: &NetworkId,
        work: impl FnOnce(&mut Manager, &NetworkId) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let id = network.clone();
        self.manager.ask(move |manager| manager.on(&id, |manager| work(manager, &id))).await
    }

    fn sockets(&self, namespace: namespace::Reader<'_>) -> Result<Sockets, capnp::Error> {
        let redeem =
            |token: fd_token::Reader<'_>| Ok::<_, capnp::Error>(self.lane.redeem(token.get_bytes()?, self.peer)?);
        Ok(Sockets {
            rtnetlink: redeem(namespace.get_rtnetlink()?)?,
            nfnetlink: redeem(namespace.get_nfnetlink()?)?,
            link_changes: redeem(namespace.get_link_changes()?)?,
            rule_changes: redeem(namespace.get_rule_changes()?)?,
        })
    }
}

/// A text that a caller sent. One that is not UTF-8 is no name of anything.
fn text<'a>(what: &'static str, text: Result<capnp::text::Reader<'a>, capnp::Error>) -> Result<&'a str, Error> {
    text.ok().and_then(|text| text.to_str().ok()).ok_or_else(|| Error::argument(what, "", "it is not UTF-8 text"))
}

/// Completes an error with what the call was for.
fn while_trying(tried: String) -> impl Fn(Error) -> capnp::Error {
    move |error| error.fault(&tried).into()
}

impl host::Server for Host {
    async fn define_network(
        self: Rc<Self>,
        params: host::DefineNetworkParams,
        mut results: host::DefineNetworkResults,
    ) -> Result<(), capnp::Error> {
        let config = params.get()?.get_config()?;
        let (name, gateway) = (text("network name", config.get_name()), text("gateway", config.get_gateway()));
        let failed = while_trying(format!("define network {}", quote(&name)));
        let (name, gateway) = (name.map_err(&failed)?, gateway.map_err(&failed)?);
        let ipv6 = text("IPv6 address", config.get_ipv6()).map_err(&failed)?.to_owned();
        let kind = kind_of(config).map_err(&failed)?;
        let (parent, vlan) = (text("parent", config.get_parent()).map_err(&failed)?, config.get_vlan());
        let config = Config::new(name, gateway, config.get_prefix_length(), config.get_mtu());
        let config = config.and_then(|config| config.of_kind(kind)?.on(parent, vlan)).map_err(&failed)?;
        let given = params.get()?.get_config()?;
        let config = config.isolated(given.get_isolate());
        let policy = if given.has_policy() { Some(rules(given.get_policy()?).map_err(&failed)?) } else { None };
        let given = params.get()?;
        let apart = kind == Kind::Isolated && given.has_within();
        let sockets = if apart { Some(self.0.sockets(given.get_within()?)?) } else { None };
        let define = move |manager: &mut Manager| manager.define(config, &ipv6, policy, sockets);
        let (id, monitor) = self.0.manager.ask(define).await.map_err(failed)?;
        if let Some(monitor) = monitor {
            let (manager, id) = (self.0.manager.clone(), id.clone());
            let look = async move |changes| {
                let id = id.clone();
                manager.ask(move |manager| manager.look_within(&id, &changes)).await
            };
            // It ends with the network. Where the sockets fail, this one is looked at whenever somebody asks for something there, and no other is worse off.
            tokio::task::spawn_local(async move { monitor.watch(look).await });
        }
        results.get().set_network(new_client(Network { context: self.0.clone(), id }));
        Ok(())
    }

    async fn network(
        self: Rc<Self>,
        params: host::NetworkParams,
        mut results: host::NetworkResults,
    ) -> Result<(), capnp::Error> {
        let id = network_id(&self.0, text("network name", params.get()?.get_network())).await?;
        results.get().set_network(new_client(Network { context: self.0.clone(), id }));
        Ok(())
    }

    async fn tenant(
        self: Rc<Self>,
        params: host::TenantParams,
        mut results: host::TenantResults,
    ) -> Result<(), capnp::Error> {
        let name = text("tenant name", params.get()?.get_tenant());
        let failed = while_trying(format!("make tenant {}", quote(&name)));
        let name =
            name.and_then(|name| names::check_label("tenant name", name).map(|()| name.to_owned())).map_err(&failed)?;
        let quota = Quota::new(params.get()?.get_quota()?.get_ports());
        let owner = self.0.manager.clone();
        // Made on the rtnl thread, so that a caller who goes meanwhile leaves no tenant.
        let held = self
            .0
            .manager
            .ask(move |manager| manager.tenant(&name).map(|id| HeldTenant { id, manager: owner }))
            .await
            .map_err(failed)?;
        results.get().set_tenant(new_client(Tenant { context: self.0.clone(), quota, held }));
        Ok(())
    }

    async fn remove_network(
        self: Rc<Self>,
        params: host::RemoveNetworkParams,
        _: host::RemoveNetworkResults,
    ) -> Result<(), capnp::Error> {
        let name = text("network name", params.get()?.get_network());
        let failed = while_trying(format!("remove network {}", quote(&name)));
        let name = name.map_err(&failed)?.to_owned();
        self.0.manager.ask(move |manager| manager.remove(&name)).await.map_err(failed)
    }

    async fn networks(
        self: Rc<Self>,
        _: host::NetworksParams,
        mut results: host::NetworksResults,
    ) -> Result<(), capnp::Error> {
        let failed = while_trying("list the networks".into());
        let asked = self.0.manager.ask(|manager| Ok((manager.names(), manager.lost()?)));
        let (names, lost) = asked.await.map_err(failed)?;
        fill(results.get().init_networks(names.len() as u32), &names);
        fill(results.get().init_lost(lost.len() as u32), &lost);
        Ok(())
    }
}

fn fill(mut list: capnp::text_list::Builder<'_>, texts: &[String]) {
    for (at, text) in (0..list.len()).zip(texts) {
        list.set(at, text);
    }
}

fn kind_of(config: network_config::Reader<'_>) -> Result<Kind, Error> {
    if config.get_trust() && !matches!(config.get_kind(), Ok(NetworkKind::Sriov)) {
        return Err(Error::argument("trust", "true", "it is of virtual functions alone; leave it out"));
    }
    match (config.get_kind(), config.get_nat()) {
        (Ok(NetworkKind::Bridged), nat) => Ok(if nat { Kind::Nat } else { Kind::Bridged }),
        (Ok(NetworkKind::HostOnly), _) => Ok(Kind::HostOnly),
        (Ok(NetworkKind::Macvtap), false) => match config.get_mode() {
            Ok(mode) => Ok(Kind::Macvtap(mode)),
            Err(unknown) => Err(Error::argument("mode", &unknown.to_string(), "there is none of that number")),
        },
        (Ok(NetworkKind::Macvtap), true) => {
            Err(Error::argument("nat", "true", "guests of macvtaps do not go by way of the host; leave it out"))
        }
        (Ok(NetworkKind::Sriov), false) => Ok(Kind::Sriov { trust: config.get_trust() }),
        (Ok(NetworkKind::Sriov), true) => {
            let why = "guests on virtual functions do not go by way of the host; leave it out";
            Err(Error::argument("nat", "true", why))
        }
        (Ok(NetworkKind::Isolated), false) => Ok(Kind::Isolated),
        (Ok(NetworkKind::Isolated), true) => {
            Err(Error::argument("nat", "true", "guests of an isolated network reach nobody else; leave it out"))
        }
        (Err(unknown), _) => Err(Error::argument("kind", &unknown.to_string(), "there is none of that number")),
    }
}

fn quote(name: &Result<&str, Error>) -> String {
    name.as_ref().map_or_else(|_| "?".into(), |name| name.chars().take(64).collect())
}

async fn network_id(context: &Context, name: Result<&str, Error>) -> Result<NetworkId, capnp::Error> {
    let failed = while_trying(format!("find network {}", quote(&name)));
    let name = name.map_err(&failed)?.to_owned();
    context.manager.ask(move |manager| manager.network(&name)).await.map_err(failed)
}

/// Ends its tenant when it is dropped.
struct HeldTenant {
    id: TenantId,
    manager: Owner<Manager>,
}

impl Drop for HeldTenant {
    fn drop(&mut self) {
        let id = self.id;
        self.manager.tell(move |manager| manager.end_tenant(id));
    }
}

struct Tenant {
    context: Context,
    quota: Arc<Quota>,
    held: HeldTenant,
}

impl tenant::Server for Tenant {
    async fn port_factory(
        self: Rc<Self>,
        params: tenant::PortFactoryParams,
        mut results: tenant::PortFactoryResults,
    ) -> Result<(), capnp::Error> {
        let network = network_id(&self.context, text("network name", params.get()?.get_network())).await?;
        let account = Account { quota: self.quota.clone(), tenant: Some(self.held.id), bound: None };
        results.get().set_factory(new_client(Factory { context: self.context.clone(), network, account }));
        Ok(())
    }
}

struct Network {
    context: Context,
    id: NetworkId,
}

impl network::Server for Network {
    async fn info(
        self: Rc<Self>,
        _: network::InfoParams,
        mut results: network::InfoResults,
    ) -> Result<(), capnp::Error> {
        let failed = while_trying(format!("look at network {}", self.id.name));
        let (config, policy, index, ports) = self.context.on(&self.id, Manager::info).await.map_err(failed)?;
        let mut info: network_info::Builder<'_> = results.get().init_info();
        write_config(info.reborrow().init_config(), &config);
        if let Some(policy) = policy {
            write_rules(info.reborrow().get_config()?.init_policy(), &policy);
        }
        info.set_index(index);
        let mut list = info.init_ports(ports.len().min(MAX_PORTS as usize) as u32);
        for (at, facts) in (0..list.len()).zip(&ports) {
            write_port(list.reborrow().get(at), facts);
        }
        Ok(())
    }

    async fn ports(
        self: Rc<Self>,
        params: network::PortsParams,
        mut results: network::PortsResults,
    ) -> Result<(), capnp::Error> {
        let failed = while_trying(format!("list the ports of network {}", self.id.name));
        let after = text("workload name", params.get()?.get_after()).map_err(&failed)?.to_owned();
        let ports = self.context.on(&self.id, move |manager, id| manager.ports(id, &after)).await.map_err(failed)?;
        let mut list = results.get().init_ports(u32::try_from(ports.len()).unwrap_or(0));
        for (at, facts) in (0..list.len()).zip(&ports) {
            write_port(list.reborrow().get(at), facts);
            write_addresses(list.reborrow().get(at), facts);
            write_rate(list.reborrow().get(at).init_rate(), facts.rate);
            if let Some(stats) = &facts.stats {
                write_stats(list.reborrow().get(at).init_stats(), stats);
            }
            let count = u32::try_from(facts.published.len()).unwrap_or(0);
            published::write(list.reborrow().get(at).init_published(count), &facts.published);
        }
        Ok(())
    }

    async fn policy(
        self: Rc<Self>,
        params: network::PolicyParams,
        mut results: network::PolicyResults,
    ) -> Result<(), capnp::Error> {
        let failed = while_trying(format!("make a policy for network {}", self.id.name));
        let rules = rules(params.get()?.get_rules()?).map_err(failed)?;
        results.get().set_policy(self.context.policy(rules));
        Ok(())
    }

    async fn set_policy(
        self: Rc<Self>,
        params: network::SetPolicyParams,
        _: network::SetPolicyResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let workload = text("workload name", params.get_workload());
        let failed = while_trying(format!("set the policy of {} on network {}", quote(&workload), self.id.name));
        let workload = workload.map_err(&failed)?.to_owned();
        let policy = self.context.given(params.has_policy(), params.get_policy()).await.map_err(&failed)?;
        let set = move |manager: &mut Manager, id: &NetworkId| manager.set_policy_of(id, &workload, policy);
        self.context.on(&self.id, set).await.map_err(failed)
    }

    async fn port_policy(
        self: Rc<Self>,
        params: network::PortPolicyParams,
        mut results: network::PortPolicyResults,
    ) -> Result<(), capnp::Error> {
        let workload = text("workload name", params.get()?.get_workload());
        let failed = while_trying(format!("look at the policy of {} on network {}", quote(&workload), self.id.name));
        let workload = workload.map_err(&failed)?.to_owned();
        let look = move |manager: &mut Manager, id: &NetworkId| manager.policy_of(id, &workload);
        let policy = self.context.on(&self.id, look).await.map_err(failed)?;
        if let Some(policy) = policy {
            results.get().set_policy(self.context.policy(policy));
        }
        Ok(())
    }

    async fn set_rate(
        self: Rc<Self>,
        params: network::SetRateParams,
        _: network::SetRateResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let workload = text("workload name", params.get_workload());
        let failed = while_trying(format!("set the rate of {} on network {}", quote(&workload), self.id.name));
        let workload = workload.map_err(&failed)?.to_owned();
        let rate = read_rate(params.get_rate()).map_err(&failed)?;
        let set = move |manager: &mut Manager, id: &NetworkId| manager.set_rate_of(id, &workload, rate);
        self.context.on(&self.id, set).await.map_err(failed)
    }

    async fn watch(
        self: Rc<Self>,
        _: network::WatchParams,
        mut results: network::WatchResults,
    ) -> Result<(), capnp::Error> {
        let failed = while_trying(format!("watch network {}", self.id.name));
        let watching = self.context.on(&self.id, Manager::watch).await.map_err(failed)?;
        results.get().set_watcher(new_client(Watcher::new(&self.id.name, watching)));
        Ok(())
    }

    async fn restore(
        self: Rc<Self>,
        params: network::RestoreParams,
        mut results: network::RestoreResults,
    ) -> Result<(), capnp::Error> {
        let sturdy_ref = params.get()?.get_sturdy_ref()?;
        let which = if sturdy_ref.len() == REF_BYTES { Some(Durable::By(hash(sturdy_ref))) } else { None };
        results.get().set_port(self.durable("restore a port", which).await?);
        Ok(())
    }

    async fn durable_port(
        self: Rc<Self>,
        params: network::DurablePortParams,
        mut results: network::DurablePortResults,
    ) -> Result<(), capnp::Error> {
        let workload = text("workload name", params.get()?.get_workload());
        let tried = format!("find the port of {}", quote(&workload));
        let workload = workload.and_then(|name| names::check_label("workload name", name).map(|()| name.to_owned()));
        let workload = workload.map_err(while_trying(format!("{tried} on network {}", self.id.name)))?;
        results.get().set_port(self.durable(&tried, Some(Durable::Of(workload))).await?);
        Ok(())
    }

    async fn publish(
        self: Rc<Self>,
        params: network::PublishParams,
        mut results: network::PublishResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let workload = text("workload name", params.get_workload());
        let failed = while_trying(format!("publish ports for {} on network {}", quote(&workload), self.id.name));
        let port = Whose::Of(self.id.clone(), workload.map_err(&failed)?.to_owned());
        let published = publish(&self.context, port, params.get_sockets()?, params.get_guest_port(), failed).await?;
        published::write(results.get().init_published(published.len() as u32), &published);
        Ok(())
    }

    async fn unpublish(
        self: Rc<Self>,
        params: network::UnpublishParams,
        _: network::UnpublishResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let workload = text("workload name", params.get_workload());
        let tried = format!("take back what is published for {} on network {}", quote(&workload), self.id.name);
        let failed = while_trying(tried);
        let port = Whose::Of(self.id.clone(), workload.map_err(&failed)?.to_owned());
        unpublish(&self.context, port, params.get_published()?, failed).await
    }

    async fn port_factory(
        self: Rc<Self>,
        params: network::PortFactoryParams,
        mut results: network::PortFactoryResults,
    ) -> Result<(), capnp::Error> {
        let max = params.get()?.get_max_ports();
        if !(1..=MAX_PORTS).contains(&max) {
            let rule = format!("it must be 1 to {MAX_PORTS}");
            let error = Error::argument("number of ports", &max.to_string(), &rule);
            return Err(error.fault(&format!("make a port factory on network {}", self.id.name)).into());
        }
        let failed = while_trying(format!("make a port factory on network {}", self.id.name));
        let params = params.get()?;
        let bound = self.context.given(params.has_policy(), params.get_policy()).await.map_err(failed)?;
        let account = Account { quota: Quota::new(max), tenant: None, bound };
        results.get().set_factory(new_client(Factory {
            context: self.context.clone(),
            network: self.id.clone(),
            account,
        }));
        Ok(())
    }
}

impl Network {
    async fn durable(&self, tried: &str, which: Option<Durable>) -> Result<port::Client, capnp::Error> {
        let owner = self.context.manager.clone();
        let failed = while_trying(format!("{tried} on network {}", self.id.name));
        let which = which.ok_or_else(|| Error::NotDurable(self.id.name.clone())).map_err(&failed)?;
        let held = self.context.on(&self.id, move |manager, id| {
            manager.durable(id, which).map(|port| HeldPort { port, manager: owner, stays: true })
        });
        Ok(new_client(Port { context: self.context.clone(), held: held.await.map_err(failed)? }))
    }
}

struct Factory {
    context: Context,
    network: NetworkId,
    account: Account,
}

impl port_factory::Server for Factory {
    async fn create_tap(
        self: Rc<Self>,
        params: port_factory::CreateTapParams,
        mut results: port_factory::CreateTapResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let workload = text("workload name", params.get_workload());
        let failed = self.failed(&workload);
        let policy = self.context.given(params.has_policy(), params.get_policy()).await.map_err(&failed)?;
        let asked = self.asked(workload, params.get_mac()?, params.get_addresses()?, policy, None).map_err(&failed)?;
        let hand_out = params.get_hand_out();
        let held = self.attach(asked).await.map_err(failed)?;
        let port = Port { context: self.context.clone(), held };
        let mut results = results.get();
        if hand_out {
            // As it has just been seen to be.
            port.offer()?.write(results.reborrow().init_tap());
        }
        results.set_port(new_client(port));
        Ok(())
    }

    async fn create_veth(
        self: Rc<Self>,
        params: port_factory::CreateVethParams,
        mut results: port_factory::CreateVethResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let workload = text("workload name", params.get_workload());
        let failed = self.failed(&workload);
        let redeem = |token: fd_token::Reader<'_>| self.context.lane.redeem(token.get_bytes()?, self.context.peer);
        let (namespace, socket) = (redeem(params.get_netns()?)?, redeem(params.get_netlink()?)?);
        let sturdy_ref = if params.get_durable() { Some(random().map_err(&failed)?) } else { None };
        let routes = params.get_routes()?;
        let inside = || {
            let name = text("name of the interface within", params.get_inside_name())?;
            names::check_inside(name)?;
            let routes = veth::routes(routes.iter().map(|route| text("route", route)))?;
            let hash = sturdy_ref.as_ref().map(|sturdy_ref| hash(sturdy_ref));
            let router = text("router", params.get_router())?;
            let no_address = |_| Error::argument("router", router, "it is no IPv4 address");
            let router = if router.is_empty() { None } else { Some(router.parse().map_err(no_address)?) };
            Ok(Veth { namespace, socket, name: name.to_owned(), routes, router, hash })
        };
        let veth = inside().map_err(&failed)?;
        let policy = self.context.given(params.has_policy(), params.get_policy()).await.map_err(&failed)?;
        let asked =
            self.asked(workload, params.get_mac()?, params.get_addresses()?, policy, Some(veth)).map_err(&failed)?;
        let mut held = self.attach(asked).await.map_err(failed)?;
        // Not before: if the caller has gone, nobody will ever have the reference.
        held.stays = sturdy_ref.is_some();
        let mut results = results.get();
        results.set_sturdy_ref(sturdy_ref.as_ref().map_or(&[], <[u8; REF_BYTES]>::as_slice));
        results.set_port(new_client(Port { context: self.context.clone(), held }));
        Ok(())
    }

    async fn policy(
        self: Rc<Self>,
        _: port_factory::PolicyParams,
        mut results: port_factory::PolicyResults,
    ) -> Result<(), capnp::Error> {
        let account = self.account.clone();
        let failed = while_trying(format!("look at the policy of ports on network {}", self.network.name));
        let look = move |manager: &mut Manager, id: &NetworkId| manager.policy(id, &account);
        let policy = self.context.on(&self.network, look).await.map_err(failed)?;
        results.get().set_policy(self.context.policy(policy.unwrap_or_else(Rules::everything)));
        Ok(())
    }
}

impl Factory {
    fn failed(&self, workload: &Result<&str, Error>) -> impl Fn(Error) -> capnp::Error + use<> {
        while_trying(format!("make a port for {} on network {}", quote(workload), self.network.name))
    }

    fn asked(
        &self,
        workload: Result<&str, Error>,
        mac: &[u8],
        addresses: text_list::Reader<'_>,
        policy: Option<Rules>,
        veth: Option<Veth>,
    ) -> Result<Asked, Error> {
        let workload = workload?.to_owned();
        names::check_label("workload name", &workload)?;
        let mac = names::mac_asked(mac, &self.network.name, &workload)?;
        let sources = Sources::new(addresses.iter().map(|address| text("address", address)))?;
        Ok(Asked { workload, mac, sources, policy, veth })
    }

    async fn attach(&self, asked: Asked) -> Result<HeldPort, Error> {
        let (network, account, owner) = (self.network.clone(), self.account.clone(), self.context.manager.clone());
        // Made on the rtnl thread, so that a caller who goes meanwhile leaves no port.
        let held = self.context.manager.ask(move |manager| {
            manager.attach(&network, asked, &account).map(|port| HeldPort { port, manager: owner, stays: false })
        });
        held.await
    }
}

fn hash(sturdy_ref: &[u8]) -> [u8; 32] {
    Sha256::digest(sturdy_ref).into()
}

fn random() -> Result<[u8; REF_BYTES], Error> {
    let refused = |source| Error::Kernel { tried: "give random bytes".into(), source, detail: String::new() };
    ipc::random().map_err(refused)
}
