//! Ends of connections that the host's connection tracking has, of those who are not led there any more, or have gone. By the socket of the rules.

use std::net::IpAddr;

use rtnetlink::packet_core::NLM_F_DUMP;

use super::{
    Filter,
    elements::lists_of,
    routed,
    table::Set,
    unsent,
    wire::{Kind, Life, Request, Said},
};
use crate::{
    ask::{self, failed, refused},
    attribute::Malformed,
    error::Error,
    netlink,
    published::HostPort,
};

const END: &str = "end connections";

impl Filter {
    /// Ends the connections that began as ones to such a port of an address that is the host's own, wherever they lead: who goes on begins another one.
    pub fn end_connections(&mut self, port: &HostPort, own: impl Fn(IpAddr) -> bool) -> Result<(), Error> {
        let family = if port.at.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
        let ours = |to: IpAddr| if port.at.ip().is_unspecified() { own(to) } else { to == port.at.ip() };
        self.end(Request::connections_to(family, port.protocol.number(), port.at.port()), family, ours)
    }

    /// Ends the connections that these have begun, each from that network. The kernel looks through all there are, so it is asked for those only of whom
    /// it has counted some; or whom it may have forgotten, with the tables that were there before.
    pub fn end_connections_of(&mut self, addresses: &[(String, IpAddr)]) -> Result<(), Error> {
        if addresses.is_empty() || !self.routes() {
            return Ok(());
        }
        let counted = addresses.iter().map(|(network, address)| {
            let element = routed::counted(network, *address);
            let one = lists_of(&self.table, Kind::GetSetElem, Set::family, vec![(&element, &Life::default())])?.pop();
            Ok(netlink::request(one.ok_or(Malformed("list of elements"))?, 0))
        });
        let counted = counted.collect::<Result<Vec<_>, Malformed>>().map_err(|why| unsent(END, why))?;
        let answers = self.socket.exchange(counted, |_| ()).map_err(|failure| failed(failure, END))?;
        for ((_, address), answer) in addresses.iter().zip(answers) {
            let forgotten = self.uncounted.remove(address);
            if forgotten || !answer.is_err_and(|refusal| refusal.errno == libc::ENOENT) {
                let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
                self.end(Request::connections_of(*address), family, |_| true)?;
            }
        }
        Ok(())
    }

    /// Ends those of some connections that are for whom is chosen.
    fn end(&mut self, which: Request, family: u8, chosen: impl Fn(IpAddr) -> bool) -> Result<(), Error> {
        /// As many as the socket holds the answers to.
        const AT_ONCE: usize = 64;
        let all = [netlink::request(which, NLM_F_DUMP)];
        let (found, answers) = ask::question(&mut self.socket, END, &all, |found: &mut Vec<Vec<u8>>, said| {
            if let Said::Connection { to, began } = said
                && chosen(to)
            {
                found.push(began);
            }
        })?;
        if let Some(Err(refusal)) = answers.into_iter().next() {
            return Err(refused(refusal, END));
        }
        for some in found.chunks(AT_ONCE) {
            let ends = some.iter().map(|began| netlink::request(Request::end_connection(family, began), 0)).collect();
            // One that has ended meanwhile is refused.
            self.socket.exchange(ends, |_| ()).map_err(|failure| failed(failure, END))?;
        }
        Ok(())
    }
}
