//! Networks: of each, `ipamd` has the pool, which is the definition and outlives a reboot, and `netmgr` the bridge. Neither knows of the other,
//! and either may refuse: who can is asked before anything is changed, and what only one has done is undone. Whoever is killed halfway
//! leaves what the next definition or removal of that network brings in order.

use futures::future::try_join_all;
use ipc::{Connection, Fault};
use schema::{
    addresses_capnp::{ipam, pool, pool_info},
    host_capnp::host,
    network_capnp::network,
};

use crate::{
    error::Error,
    host::links::{CALL_DEADLINE, text},
};

/// What a bridge is made of.
pub struct Definition {
    name: String,
    gateway: String,
    prefix: u8,
    /// 0 leaves it as it is.
    mtu: u32,
}

impl Definition {
    fn of(info: pool_info::Reader<'_>) -> Result<Definition, Error> {
        Ok(Definition {
            name: text(info.get_network()?)?,
            gateway: text(info.get_gateway()?)?,
            prefix: info.get_prefix_length(),
            mtu: 0,
        })
    }
}

/// Defines a network, or changes it, by its JSON text.
pub async fn define(netmgr: &Connection, ipamd: &Connection, tried: &str, config: &str) -> Result<(), Error> {
    let send = || {
        let mut request = ipamd.bootstrap::<ipam::Client>().check_pool_request();
        request.get().set_config(config);
        request.send()
    };
    let answer = ipamd.ask(tried, CALL_DEADLINE, send).await?;
    let definition = Definition::of(answer.get()?.get_info()?)?;
    let before = current(netmgr, &definition.name).await?;
    bridge(netmgr, &definition).await?;
    let send = || {
        let mut request = ipamd.bootstrap::<ipam::Client>().define_pool_request();
        request.get().set_config(config);
        request.send()
    };
    if let Err(fault) = ipamd.ask(tried, CALL_DEADLINE, send).await {
        let undone = match before {
            Some(before) => bridge(netmgr, &before).await.map(drop),
            None => remove_bridge(netmgr, &definition.name).await,
        };
        return Err(half(fault, undone));
    }
    Ok(())
}

/// Removes a network that nobody uses.
pub async fn remove(netmgr: &Connection, ipamd: &Connection, name: &str) -> Result<(), Error> {
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
        Err(error) if error.is_unknown() && had_bridge => Ok(()),
        Err(error) if error.is_unknown() => Err(Error::NoNetwork(name.to_owned())),
        Err(Error::Service(fault)) if had_bridge => {
            let again = async {
                let pool = pool(ipamd, name).await?;
                bridge(netmgr, &definition(ipamd, &pool).await?).await.map(drop)
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

/// Makes a network's bridge, adopts it, or brings it to its definition: nothing is changed where it is as it should be.
pub async fn bridge(netmgr: &Connection, definition: &Definition) -> Result<network::Client, Error> {
    let Definition { name, gateway, prefix, mtu } = definition;
    let send = || {
        let mut request = netmgr.bootstrap::<host::Client>().define_network_request();
        let mut config = request.get().init_config();
        config.set_name(name);
        config.set_gateway(gateway);
        config.set_prefix_length(*prefix);
        config.set_mtu(*mtu);
        request.send()
    };
    let answer = netmgr.ask(&format!("make the network {name}"), CALL_DEADLINE, send).await?;
    Ok(answer.get()?.get_network()?)
}

/// How `netmgr` has a network, if it has it.
async fn current(netmgr: &Connection, name: &str) -> Result<Option<Definition>, Error> {
    let tried = format!("look at the network {name}");
    let send = || {
        let mut request = netmgr.bootstrap::<host::Client>().network_request();
        request.get().set_network(name);
        request.send()
    };
    let network = match netmgr.ask(&tried, CALL_DEADLINE, send).await.map_err(Error::Service) {
        Err(error) if error.is_unknown() => return Ok(None),
        answer => answer?.get()?.get_network()?,
    };
    let answer = netmgr.ask(&tried, CALL_DEADLINE, || network.info_request().send()).await?;
    let config = answer.get()?.get_info()?.get_config()?;
    Ok(Some(Definition {
        name: name.to_owned(),
        gateway: text(config.get_gateway()?)?,
        prefix: config.get_prefix_length(),
        mtu: config.get_mtu(),
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

/// Names of all networks with their subnets and how many addresses are free.
pub async fn list(ipamd: &Connection) -> Result<Vec<[String; 3]>, Error> {
    let answer = ipamd
        .ask("list the networks", CALL_DEADLINE, || ipamd.bootstrap::<ipam::Client>().list_request().send())
        .await?;
    let pools = answer.get()?.get_pools()?;
    try_join_all(
        pools
            .iter()
            .map(|p| async move { Ok([text(p.get_network()?)?, text(p.get_subnet()?)?, p.get_free().to_string()]) }),
    )
    .await
}
