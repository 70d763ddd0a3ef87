//! What who has a network gives its ports: policies, rates, ports of the host that lead to them. Each is a call, by the workload's name.
#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]

pub mod kept;

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
};

use ipc::Fault;
use rustix::net;
use schema::network_capnp::{network, policy, policy_rules, published, rate};

use crate::common::{Client, DEADLINE};

/// How much a port carries, from its guest and to it.
pub type Rate = (u64, u64);

/// Writes the rules of a policy.
pub fn write_rules(rules: policy_rules::Builder<'_>, texts: &[&str]) {
    let mut list = rules.init_allow(texts.len() as u32);
    for (at, text) in (0..).zip(texts) {
        list.set(at, text);
    }
}

/// A policy that says so.
pub async fn policy(client: &Client, network: &network::Client, texts: &[&str]) -> Result<policy::Client, Fault> {
    let mut request = network.policy_request();
    write_rules(request.get().init_rules(), texts);
    Ok(client.connection.call("make a policy", DEADLINE, request.send()).await?.get()?.get_policy()?)
}

/// What that one and these rules both allow.
pub async fn narrow(client: &Client, policy: &policy::Client, texts: &[&str]) -> Result<policy::Client, Fault> {
    let mut request = policy.narrow_request();
    write_rules(request.get().init_rules(), texts);
    Ok(client.connection.call("narrow a policy", DEADLINE, request.send()).await?.get()?.get_policy()?)
}

/// What a policy says.
pub async fn said(client: &Client, policy: &policy::Client) -> Vec<String> {
    let answer = client.connection.call("read a policy", DEADLINE, policy.rules_request().send()).await.unwrap();
    let rules = answer.get().unwrap().get_rules().unwrap().get_allow().unwrap();
    rules.iter().map(|rule| rule.unwrap().to_string().unwrap()).collect()
}

/// Gives the port of a workload a policy, or takes it away.
pub async fn set_policy(
    client: &Client,
    network: &network::Client,
    workload: &str,
    policy: Option<policy::Client>,
) -> Result<(), Fault> {
    let mut request = network.set_policy_request();
    request.get().set_workload(workload);
    if let Some(policy) = policy {
        request.get().set_policy(policy);
    }
    client.connection.call("set a policy", DEADLINE, request.send()).await.map(drop)
}

/// The policy that the port of a workload has.
pub async fn policy_of(client: &Client, network: &network::Client, workload: &str) -> Option<policy::Client> {
    let mut request = network.port_policy_request();
    request.get().set_workload(workload);
    let answer = client.connection.call("look", DEADLINE, request.send()).await.unwrap();
    let answer = answer.get().unwrap();
    answer.has_policy().then(|| answer.get_policy().unwrap())
}

/// What that one says.
pub async fn had(client: &Client, network: &network::Client, workload: &str) -> Option<Vec<String>> {
    Some(said(client, &policy_of(client, network, workload).await?).await)
}

/// Writes a rate.
pub fn write_rate(mut to: rate::Builder<'_>, (from, into): Rate) {
    to.set_from_guest(from);
    to.set_to_guest(into);
}

/// Says how much the port of a workload carries at most.
pub async fn set_rate(client: &Client, network: &network::Client, workload: &str, rate: Rate) -> Result<(), Fault> {
    let mut request = network.set_rate_request();
    request.get().set_workload(workload);
    write_rate(request.get().init_rate(), rate);
    client.connection.call("set a rate", DEADLINE, request.send()).await.map(drop)
}

/// Hands sockets over, and has what they hold lead to a guest.
pub async fn publish(
    client: &Client,
    network: &network::Client,
    workload: &str,
    sockets: Vec<OwnedFd>,
    port: u16,
) -> Result<(), Fault> {
    let mut request = network.publish_request();
    request.get().set_workload(workload);
    request.get().set_guest_port(port);
    let mut tokens = request.get().init_sockets(sockets.len() as u32);
    for (at, socket) in (0..).zip(&sockets) {
        let token = client.connection.deposit(socket.as_fd()).await?;
        tokens.reborrow().get(at).set_bytes(token.as_bytes());
    }
    client.connection.call("publish", DEADLINE, request.send()).await.map(drop)
}

/// Takes back that `PROTOCOL ADDRESS:PORT` leads to a guest.
pub async fn unpublish(client: &Client, network: &network::Client, workload: &str, host: &str) -> Result<(), Fault> {
    let (protocol, at) = host.split_once(' ').unwrap();
    let at: SocketAddr = at.parse().unwrap();
    let mut request = network.unpublish_request();
    request.get().set_workload(workload);
    let mut one = request.get().init_published(1).get(0);
    one.set_protocol(if protocol == "tcp" { published::Protocol::Tcp } else { published::Protocol::Udp });
    one.set_address(at.ip().to_string());
    one.set_port(at.port());
    client.connection.call("unpublish", DEADLINE, request.send()).await.map(drop)
}

/// Waits for the port where netmgr has refused another socket of it, or was killed: that one goes a moment later.
pub fn tcp(at: &str) -> OwnedFd {
    testkit::wait::until(at, || TcpListener::bind(at).map_err(|error| error.to_string())).into()
}

/// One that is for IPv6 alone, and does not listen.
pub fn tcp6(port: u16) -> OwnedFd {
    of_ipv6(net::SocketType::STREAM, port)
}

/// The same of UDP.
pub fn udp6(port: u16) -> OwnedFd {
    of_ipv6(net::SocketType::DGRAM, port)
}

fn of_ipv6(kind: net::SocketType, port: u16) -> OwnedFd {
    let fd = net::socket_with(net::AddressFamily::INET6, kind, net::SocketFlags::CLOEXEC, None).unwrap();
    net::sockopt::set_ipv6_v6only(&fd, true).unwrap();
    let at = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    testkit::wait::until("the port", || net::bind(&fd, &at).map_err(|error| error.to_string()));
    fd
}
