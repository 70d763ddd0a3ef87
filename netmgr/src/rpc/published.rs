//! What a call says of ports of the host that are published, and what it is answered.

use std::{net::SocketAddr, os::fd::OwnedFd};

use capnp::struct_list;
use schema::{
    fd_lane_capnp::fd_token,
    network_capnp::{MAX_SOCKETS, published},
};

use super::{Context, text};
use crate::{
    error::Error,
    manager::Whose,
    published::{HostPort, Protocol, Published},
};

/// Publishes what the sockets are bound to that wait on the lane, for a port of ours.
pub async fn publish(
    context: &Context,
    port: Whose,
    tokens: struct_list::Reader<'_, fd_token::Owned>,
    first: u16,
    failed: impl Fn(Error) -> capnp::Error,
) -> Result<Vec<Published>, capnp::Error> {
    if tokens.is_empty() || tokens.len() > MAX_SOCKETS.into() {
        let why = format!("there must be 1 to {MAX_SOCKETS}");
        return Err(failed(Error::argument("number of sockets", &tokens.len().to_string(), &why)));
    }
    let redeem = |token: fd_token::Reader<'_>| Ok(context.lane.redeem(token.get_bytes()?, context.peer)?);
    let sockets = tokens.iter().map(redeem).collect::<Result<Vec<OwnedFd>, capnp::Error>>()?;
    let network = port.network().clone();
    context.on(&network, move |manager, _| manager.publish(&port, sockets, first)).await.map_err(failed)
}

/// Takes back that these are.
pub async fn unpublish(
    context: &Context,
    port: Whose,
    hosts: struct_list::Reader<'_, published::Owned>,
    failed: impl Fn(Error) -> capnp::Error,
) -> Result<(), capnp::Error> {
    let hosts = hosts.iter().map(read).collect::<Result<Vec<_>, _>>().map_err(&failed)?;
    let network = port.network().clone();
    context.on(&network, move |manager, _| manager.unpublish(&port, &hosts)).await.map_err(failed)
}

fn read(published: published::Reader<'_>) -> Result<HostPort, Error> {
    let address = text("address", published.get_address())?;
    let ip = address.parse().map_err(|_| Error::argument("address", address, "it is none of IPv4 or IPv6"))?;
    let protocol = match published.get_protocol() {
        Ok(published::Protocol::Tcp) => Protocol::Tcp,
        Ok(published::Protocol::Udp) => Protocol::Udp,
        Err(unknown) => return Err(Error::argument("protocol", &unknown.to_string(), "there is none of that number")),
    };
    Ok(HostPort { protocol, at: SocketAddr::new(ip, published.get_port()) })
}

/// What is published, as an answer has it.
pub fn write(mut to: struct_list::Builder<'_, published::Owned>, all: &[Published]) {
    for (at, Published { host, guest, .. }) in (0..to.len()).zip(all) {
        let mut one = to.reborrow().get(at);
        one.set_protocol(match host.protocol {
            Protocol::Tcp => published::Protocol::Tcp,
            Protocol::Udp => published::Protocol::Udp,
        });
        one.set_address(host.at.ip().to_string());
        one.set_port(host.at.port());
        one.set_guest_port(guest.port());
    }
}
