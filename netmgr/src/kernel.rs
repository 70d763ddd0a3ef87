//! The kernel's network configuration: what is there, and steps to change it whose failures say what was tried.
//! Touches the rtnetlink socket, and through [`ipv6`] one setting of bridges of ours.

use std::{io, os::fd::RawFd};

use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_core::NLM_F_DUMP,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressMessage,
        link::{LinkAttribute, LinkExtentMask},
        route::{RouteAttribute, RouteHeader, RouteMessage},
    },
};

use crate::{
    config::Address,
    error::Error,
    ipv6::{self, Switch},
    link::{Link, Route, Said, Through},
    netlink::{self, DEADLINE, Failure, Refusal, Request, Socket},
};

/// How often a list that was interrupted by a change is asked for before that is an error.
const DUMPS: usize = 32;

/// An interface, and what is asked of it or to be changed.
pub type Whom = LinkMessageBuilder<LinkUnspec>;

/// IPv4 addresses, each with the index of its interface.
pub type Addresses = Vec<(u32, Address)>;

/// The kernel, by way of one socket, and one setting that has none.
pub struct Kernel {
    socket: Socket,
    ipv6: Switch,
}

/// Steps that go to the kernel as one datagram: it takes them one after the other before it returns, even if the process is
/// killed meanwhile. It goes on after a step that failed, so each has to be harmless where an earlier one failed.
#[derive(Default)]
pub struct Steps {
    requests: Vec<Request>,
    tried: Vec<(String, bool)>,
}

impl Steps {
    /// Adds a request with `NLM_F_*` flags. `tried` completes "the kernel refused to ...".
    pub fn add(&mut self, tried: impl Into<String>, flags: u16, message: RouteNetlinkMessage) -> &mut Steps {
        self.requests.push(netlink::request(message, flags));
        self.tried.push((tried.into(), true));
        self
    }

    /// Adds a change to an interface.
    pub fn set(&mut self, tried: impl Into<String>, whom: Whom) -> &mut Steps {
        self.add(tried, 0, RouteNetlinkMessage::SetLink(whom.build()))
    }

    /// Adds a question for an interface.
    pub fn get(&mut self, whom: Whom) -> &mut Steps {
        self.add("look at an interface", 0, RouteNetlinkMessage::GetLink(brief(whom).build()))
    }

    /// Lets the step that was added last fail without consequence.
    pub fn or_not(&mut self) -> &mut Steps {
        if let Some((_, needed)) = self.tried.last_mut() {
            *needed = false;
        }
        self
    }
}

/// Asks for no statistics.
fn brief(whom: Whom) -> Whom {
    whom.append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
}

impl Kernel {
    /// Opens what there is to open, in phase 1.
    pub fn open() -> Result<Kernel, Error> {
        let refused =
            |source| Error::Kernel { tried: "open an rtnetlink socket".into(), source, detail: String::new() };
        Ok(Kernel { socket: Socket::open().map_err(refused)?, ipv6: Switch::open() })
    }

    /// The descriptors that the sandbox has to keep.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        std::iter::once(self.socket.fd()).chain(self.ipv6.fd())
    }

    /// Switches the host's IPv6 off on a bridge of ours. Where that fails, the network works, and says so.
    pub fn ipv6_off(&self, bridge: &str) {
        if let Err(error) = self.ipv6.off(bridge) {
            confine::say!(
                "netmgr: IPv6 of the host stays on on bridge {bridge} ({error}). Let netmgr write to {}.",
                ipv6::FOLDER
            );
        }
    }

    /// Takes all steps, and gives the interfaces that the kernel describes; the first failure of a needed one is the error.
    pub fn run(&mut self, steps: &mut Steps) -> Result<Vec<Link>, Error> {
        let Steps { requests, tried } = std::mem::take(steps);
        let mut links = Vec::new();
        let each = |said| {
            if let Said::Link(link) = said {
                links.push(*link);
            }
        };
        let first = tried.first().map_or("", |(tried, _)| tried);
        let answers = self.socket.exchange(requests, each).map_err(|failure| failed(failure, first))?;
        answers.into_iter().zip(tried).try_for_each(|(answer, (tried, needed))| match answer {
            Err(refusal) if needed => Err(refused(refusal, &tried)),
            _ => Ok(()),
        })?;
        Ok(links)
    }

    /// The interface, if there is one. A name finds alternative names as well.
    pub fn link(&mut self, whom: Whom) -> Result<Option<Link>, Error> {
        match self.run(Steps::default().get(whom)) {
            Ok(mut links) => links.pop().ok_or(odd("look at an interface")).map(Some),
            Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The interface with that index, and the addresses on it: one exchange. A look that a change comes between finds no interface.
    pub fn look(&mut self, index: u32) -> Result<(Option<Link>, Addresses), Error> {
        const TRIED: &str = "look at an interface and its addresses";
        let of_it = brief(LinkUnspec::new_with_index(index)).build();
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.index = index;
        let requests = vec![
            netlink::request(RouteNetlinkMessage::GetLink(of_it), 0),
            netlink::request(RouteNetlinkMessage::GetAddress(message), NLM_F_DUMP),
        ];
        let (mut found, mut addresses) = (None, Vec::new());
        let each = |said| match said {
            Said::Link(link) => found = Some(*link),
            Said::Address(of, address) => addresses.push((of, address)),
            _ => {}
        };
        let answers = self.socket.exchange(requests, each).map_err(|failure| failed(failure, TRIED))?;
        for answer in answers {
            match answer {
                Err(refusal) if matches!(refusal.errno, libc::ENODEV | netlink::INTERRUPTED) => found = None,
                Err(refusal) => return Err(refused(refusal, TRIED)),
                Ok(()) => {}
            }
        }
        Ok((found, addresses))
    }

    /// All interfaces.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let all = RouteNetlinkMessage::GetLink(brief(Whom::new()).build());
        self.dump("list the interfaces", &all, |said| match said {
            Said::Link(link) => Some(*link),
            _ => None,
        })
    }

    /// All IPv4 addresses.
    pub fn addresses(&mut self) -> Result<Addresses, Error> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        self.dump("list the addresses", &RouteNetlinkMessage::GetAddress(message), |said| match said {
            Said::Address(index, address) => Some((index, address)),
            _ => None,
        })
    }

    /// Those routes of the main table that hold `subnet` ([`Route::holds`]).
    fn routes_that_hold(&mut self, subnet: Address) -> Result<Vec<Route>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.attributes.push(RouteAttribute::Table(RouteHeader::RT_TABLE_MAIN.into()));
        let routes = self.dump("list the routes", &RouteNetlinkMessage::GetRoute(message), |said| match said {
            Said::Route(route) => Some(route).filter(|route| route.holds(subnet)),
            _ => None,
        });
        match routes {
            // A namespace in which no route has ever been has no main table.
            Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
            routes => routes,
        }
    }

    /// A list of which nothing is missing: one that the kernel says was interrupted by a change is asked for again.
    fn dump<T>(
        &mut self,
        tried: &str,
        message: &RouteNetlinkMessage,
        pick: impl Fn(Said) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMPS {
            let mut found = Vec::new();
            let request = netlink::request(message.clone(), NLM_F_DUMP);
            let answers = self.socket.exchange(vec![request], |said| found.extend(pick(said)));
            match answers.map_err(|failure| failed(failure, tried))?.pop() {
                Some(Ok(())) => return Ok(found),
                Some(Err(refusal)) if refusal.errno == netlink::INTERRUPTED => {}
                Some(Err(refusal)) => return Err(refused(refusal, tried)),
                None => return Err(odd(tried)),
            }
        }
        Err(Error::Answer { tried: tried.to_owned(), why: "what there is changed each time while it was listed" })
    }

    /// What, other than the interface with index `except`, uses addresses of a subnet: an address whose subnet overlaps it, or
    /// a route in the main table ([`Route::holds`]).
    pub fn holder(&mut self, subnet: Address, except: Option<u32>) -> Result<Option<(Address, String)>, Error> {
        let address = self
            .addresses()?
            .into_iter()
            .find(|(index, address)| Some(*index) != except && address.prefix != 0 && address.overlaps(subnet));
        let (held, what, through) = match address {
            Some((index, held)) => (held, "an address", Through::Interface(index)),
            None => {
                let except = except.map(Through::Interface);
                let route = self.routes_that_hold(subnet)?.into_iter().find(|route| Some(route.through) != except);
                let Some(route) = route else { return Ok(None) };
                (route.to, "a route", route.through)
            }
        };
        Ok(Some((
            held,
            match through {
                Through::Interface(index) => {
                    let link = self.link(LinkUnspec::new_with_index(index))?;
                    let name = link.map_or_else(|| format!("with index {index}"), |link| link.name);
                    format!("{what} of interface {name}")
                }
                Through::Several => format!("{what} through several interfaces"),
                Through::Nothing => format!("{what} to nowhere (blackhole, unreachable or prohibit)"),
            },
        )))
    }

    /// Deletes an interface for which `ours` holds and sees to it that it is gone; leaves any other one alone.
    pub fn delete(&mut self, index: u32, ours: impl Fn(&Link) -> bool) -> Result<(), Error> {
        if !self.link(LinkUnspec::new_with_index(index))?.as_ref().is_some_and(&ours) {
            return Ok(());
        }
        let message = RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(index).build());
        match self.run(Steps::default().add("delete an interface", 0, message)) {
            Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {}
            other => _ = other?,
        }
        if self.link(LinkUnspec::new_with_index(index))?.as_ref().is_some_and(ours) {
            return Err(Error::Answer { tried: "delete an interface".into(), why: "it is still there" });
        }
        Ok(())
    }
}

/// An answer that lacks what it must have.
pub fn odd(tried: &str) -> Error {
    Error::Answer { tried: tried.to_owned(), why: "it lacks a field" }
}

fn refused(refusal: Refusal, tried: &str) -> Error {
    if refusal.errno == libc::EPERM {
        return Error::NoRight(tried.to_owned());
    }
    let detail =
        if refusal.text.is_empty() { String::new() } else { format!(" ({})", refusal.text.trim_end_matches('.')) };
    Error::Kernel { tried: tried.to_owned(), source: io::Error::from_raw_os_error(refusal.errno), detail }
}

fn failed(failure: Failure, tried: &str) -> Error {
    match failure {
        Failure::Io(source) => Error::Kernel { tried: tried.to_owned(), source, detail: String::new() },
        Failure::Deadline => Error::Deadline { seconds: DEADLINE.as_secs() },
        Failure::Malformed(why) => Error::Answer { tried: tried.to_owned(), why },
    }
}
