//! What a port was given, all of it, to be compared with what it has and given again.

use std::collections::BTreeSet;

use ipc::Fault;
use schema::network_capnp::network;

use super::{Rate, had, policy, publish, set_policy, set_rate, tcp, unpublish};
use crate::common::{Client, DEADLINE};

/// What who has the network gives a port.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Given {
    /// The rules of its policy, if it has one.
    pub policy: Option<BTreeSet<String>>,
    /// How much it carries.
    pub rate: Rate,
    /// Ports of the host that lead to [`SERVICE`].
    pub published: BTreeSet<u16>,
}

/// Rules, some of which each policy has; beside [`ALWAYS`], without which nobody gets as far as their gateway, or one another.
const RULES: [&str; 4] = ["198.51.100.0/24 tcp 443", "203.0.113.7 udp 53", "any tcp 80", "vm-7 tcp 5432"];
const ALWAYS: [&str; 2] = ["10.0.0.0/8 icmp", "host icmp"];
pub const RATES: [Rate; 4] = [(0, 0), (50_000_000, 0), (0, 60_000_000), (70_000_000, 80_000_000)];
/// The guest's port that published ones lead to, and the first of those.
const SERVICE: u16 = 80;
pub const FIRST: u16 = 8000;
pub const PUBLISHED: usize = 8;

impl Given {
    /// What it comes to where the rules were taken away while there was no netmgr.
    pub fn is_left_of(&self, other: &Given) -> bool {
        let policy = self.policy == other.policy || other.policy.is_some() && self.policy == Some(BTreeSet::new());
        let rate = self.rate == other.rate || self.rate == (0, 0);
        policy && rate && self.published.is_subset(&other.published)
    }

    /// What the port of a workload has.
    pub async fn read(client: &Client, network: &network::Client, workload: &str) -> Given {
        let policy = had(client, network, workload).await.map(BTreeSet::from_iter);
        let answer = client.connection.call("list", DEADLINE, network.ports_request().send()).await.unwrap();
        let ports = answer.get().unwrap().get_ports().unwrap();
        let port = ports.iter().find(|port| port.get_workload().unwrap() == workload).expect(workload);
        let (rate, published) = (port.get_rate().unwrap(), port.get_published().unwrap());
        let published = published.iter().inspect(|one| assert_eq!(one.get_guest_port(), SERVICE));
        let rate = (rate.get_from_guest(), rate.get_to_guest());
        Given { policy, rate, published: published.map(|one| one.get_port()).collect() }
    }

    /// Has the port have it, which has `now`.
    pub async fn give(
        &self,
        now: &Given,
        client: &Client,
        network: &network::Client,
        workload: &str,
    ) -> Result<(), Fault> {
        if self.policy != now.policy {
            let texts = self.policy.as_ref().map(|texts| texts.iter().map(String::as_str).collect::<Vec<_>>());
            let made = match texts {
                Some(texts) => Some(policy(client, network, &texts).await?),
                None => None,
            };
            set_policy(client, network, workload, made).await?;
        }
        if self.rate != now.rate {
            set_rate(client, network, workload, self.rate).await?;
        }
        for gone in now.published.difference(&self.published) {
            unpublish(client, network, workload, &format!("tcp 0.0.0.0:{gone}")).await?;
        }
        for new in self.published.difference(&now.published) {
            publish(client, network, workload, vec![tcp(&format!("0.0.0.0:{new}"))], SERVICE).await?;
        }
        Ok(())
    }
}

/// A policy with those of the rules for which `says`; its rules as they are kept.
pub fn any_policy(mut says: impl FnMut() -> bool) -> BTreeSet<String> {
    let some = RULES.iter().filter(|_| says());
    ALWAYS.iter().chain(some).map(ToString::to_string).collect()
}
