//! The kernel's network configuration: what is there, and steps to change it whose failures say what was tried.
//! Touches the rtnetlink socket, and through [`ipv6`] one setting of bridges of ours.

use std::{io, os::fd::RawFd};

use crate::{
    config::Address,
    error::Error,
    ipv6::{self, Switch},
    link::{Link, Route, read_address},
    netlink::{Attributes, Batch, DEADLINE, Failure, Refusal, Socket},
};

/// The kernel, by way of one socket, and one setting that has none.
pub struct Kernel {
    socket: Socket,
    ipv6: Switch,
}

/// Whom a request is about.
#[derive(Clone, Copy)]
pub enum Whom<'a> {
    /// The interface with that index.
    Index(u32),
    /// The interface of that name.
    Name(&'a str),
}

/// Steps that go to the kernel as one datagram: it takes them one after the other before it returns, even if the process is
/// killed meanwhile. It goes on after a step that failed, so each has to be harmless where an earlier one failed.
#[derive(Default)]
pub struct Steps {
    batch: Batch,
    tried: Vec<(String, bool)>,
}

impl Steps {
    /// Adds a request. `tried` completes "the kernel refused to ...".
    pub fn add(
        &mut self,
        tried: impl Into<String>,
        kind: u16,
        flags: i32,
        header: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Steps {
        self.batch.add(kind, flags, header, fill);
        self.tried.push((tried.into(), true));
        self
    }

    /// Adds a change to an interface (`RTM_SETLINK`); `flags` are `IFF_*` to switch on.
    pub fn set(
        &mut self,
        tried: impl Into<String>,
        whom: Whom<'_>,
        flags: i32,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Steps {
        self.add(tried, libc::RTM_SETLINK, 0, &header(whom, flags), |attributes| {
            whom.fill(attributes);
            fill(attributes);
        })
    }

    /// Adds a question for an interface; its answer is the body of a `RTM_NEWLINK`.
    pub fn get(&mut self, whom: Whom<'_>) -> &mut Steps {
        self.add("look at an interface", libc::RTM_GETLINK, 0, &header(whom, 0), |attributes| {
            whom.fill(attributes);
            attributes.u32(libc::IFLA_EXT_MASK, libc::RTEXT_FILTER_SKIP_STATS as u32);
        })
    }

    /// Lets the step that was added last fail without consequence.
    pub fn or_not(&mut self) -> &mut Steps {
        if let Some((_, needed)) = self.tried.last_mut() {
            *needed = false;
        }
        self
    }
}

impl Whom<'_> {
    /// The attribute that names an interface; an index is in the header.
    pub fn fill(self, attributes: &mut Attributes<'_>) {
        if let Whom::Name(name) = self {
            attributes.text(libc::IFLA_IFNAME, name);
        }
    }
}

/// `struct ifinfomsg`: family and type unspecified, index, flags and the mask of those to change.
pub fn header(whom: Whom<'_>, flags: i32) -> [u8; 16] {
    let index = if let Whom::Index(index) = whom { index } else { 0 };
    let mut header = [0; 16];
    for (to, from) in
        header.iter_mut().skip(4).zip([index, flags as u32, flags as u32].iter().flat_map(|field| field.to_ne_bytes()))
    {
        *to = from;
    }
    header
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
            eprintln!(
                "netmgr: IPv6 of the host stays on on bridge {bridge} ({error}). Let netmgr write to {}.",
                ipv6::FOLDER
            );
        }
    }

    /// Takes all steps, and gives their answers; the first failure of a needed one is the error.
    pub fn run(&mut self, steps: &mut Steps) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let Steps { batch, tried } = std::mem::take(steps);
        let answers = self
            .socket
            .exchange(batch)
            .map_err(|failure| failed(failure, tried.first().map_or("", |(tried, _)| tried)))?;
        answers
            .into_iter()
            .zip(tried)
            .map(|(answer, (tried, needed))| match answer {
                Ok(message) => Ok(message),
                Err(_) if !needed => Ok(None),
                Err(refusal) => Err(refused(refusal, &tried)),
            })
            .collect()
    }

    /// The interface, if there is one. A name finds alternative names as well.
    pub fn link(&mut self, whom: Whom<'_>) -> Result<Option<Link>, Error> {
        match self.run(Steps::default().get(whom)) {
            Ok(answers) => answers
                .into_iter()
                .flatten()
                .next()
                .map(|body| Link::read(&body).ok_or(odd("look at an interface")))
                .transpose(),
            Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All interfaces, or those that are ports of the bridge with that index.
    pub fn links(&mut self, of: Option<u32>) -> Result<Vec<Link>, Error> {
        let mut links = Vec::new();
        let fill = |attributes: &mut Attributes<'_>| {
            attributes.u32(libc::IFLA_EXT_MASK, libc::RTEXT_FILTER_SKIP_STATS as u32);
            if let Some(bridge) = of {
                attributes.u32(libc::IFLA_MASTER, bridge);
            }
        };
        self.dump("list the interfaces", libc::RTM_GETLINK, &[0; 16], fill, |body| {
            links.extend(Link::read(body).filter(|link| of.is_none_or(|bridge| link.master == bridge)));
        })?;
        Ok(links)
    }

    /// All IPv4 addresses, each with the index of its interface.
    pub fn addresses(&mut self) -> Result<Vec<(u32, Address)>, Error> {
        let mut found = Vec::new();
        self.dump(
            "list the addresses",
            libc::RTM_GETADDR,
            &[libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0],
            |_| (),
            |body| found.extend(read_address(body)),
        )?;
        Ok(found)
    }

    /// Who, other than the interface with index `except`, uses addresses of a subnet: by an address whose subnet overlaps it, or
    /// by a route in the main table ([`Route::holds`]).
    pub fn holder(&mut self, subnet: Address, except: Option<u32>) -> Result<Option<(Address, String)>, Error> {
        let mut found = self
            .addresses()?
            .into_iter()
            .find(|(index, address)| Some(*index) != except && address.prefix != 0 && address.overlaps(subnet));
        if found.is_none() {
            let mut header = [0; 12];
            header[0] = libc::AF_INET as u8;
            let table = |attributes: &mut Attributes<'_>| {
                attributes.u32(libc::RTA_TABLE, u32::from(libc::RT_TABLE_MAIN));
            };
            let outcome = self.dump("list the routes", libc::RTM_GETROUTE, &header, table, |body| {
                let route = Route::read(body).filter(|route| Some(route.through) != except && route.holds(subnet));
                found = found.or(route.map(|route| (route.through, route.to)));
            });
            match outcome {
                // A namespace in which no route has ever been has no main table.
                Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
        let Some((index, held)) = found else { return Ok(None) };
        let holder = if index == 0 { None } else { self.link(Whom::Index(index))? };
        Ok(Some((held, holder.map_or_else(|| "a route".to_owned(), |link| format!("interface {}", link.name)))))
    }

    /// Deletes an interface for which `ours` holds and sees to it that it is gone; leaves any other one alone.
    pub fn delete(&mut self, index: u32, ours: impl Fn(&Link) -> bool) -> Result<(), Error> {
        if !self.link(Whom::Index(index))?.as_ref().is_some_and(&ours) {
            return Ok(());
        }
        match self.run(Steps::default().add(
            "delete an interface",
            libc::RTM_DELLINK,
            0,
            &header(Whom::Index(index), 0),
            |_| (),
        )) {
            Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {}
            other => _ = other?,
        }
        if self.link(Whom::Index(index))?.as_ref().is_some_and(ours) {
            return Err(Error::Answer { tried: "delete an interface".into(), why: "it is still there" });
        }
        Ok(())
    }

    fn dump(
        &mut self,
        tried: &str,
        kind: u16,
        header: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
        each: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        self.socket
            .dump(kind, header, fill, each)
            .map_err(|failure| failed(failure, tried))?
            .map_err(|refusal| refused(refusal, tried))
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
