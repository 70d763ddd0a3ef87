//! Attributes of netlink messages, as values. Pure; touches nothing.
//!
//! Headers, attributes and values are read by the `rtnetlink` crate, and whole messages are not: its parsers give up a message
//! for one attribute that they do not understand (a newer kernel's, a name that is not UTF-8), and not all of them are free of
//! panics (`InfoBareUdp` in netlink-packet-route 0.34). So only what netmgr looks at is read, and the rest may be what it likes.
//! What netmgr looks at has to be whole: a message that is cut off, or an attribute whose length or value cannot be, is
//! [`Malformed`], and never read as if it said nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::{
    packet_core::{Emitable, NlaBuffer, NlasIterator, parse_u8, parse_u32},
    packet_route::AddressFamily,
};

/// A message that does not say what it should: which part of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a malformed {0}")]
pub struct Malformed(pub &'static str);

/// The attributes behind a header.
pub fn behind<'a>(
    body: &'a [u8],
    header: &impl Emitable,
) -> impl Iterator<Item = Result<NlaBuffer<&'a [u8]>, Malformed>> {
    attributes(body.get(header.buffer_len()..).unwrap_or_default())
}

/// Attributes; the last is an error where a length lies.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<NlaBuffer<&[u8]>, Malformed>> {
    NlasIterator::new(bytes).map(|one| one.map_err(|_| Malformed("attribute, whose length cannot be")))
}

/// An address of IPv6, or, for any other family, of IPv4; `what` says which.
pub fn ip(family: AddressFamily, value: &[u8], what: &'static str) -> Result<IpAddr, Malformed> {
    let ip = match family {
        AddressFamily::Inet6 => <[u8; 16]>::try_from(value).map(|ip| Ipv6Addr::from(ip).into()),
        _ => <[u8; 4]>::try_from(value).map(|ip| Ipv4Addr::from(ip).into()),
    };
    ip.map_err(|_| Malformed(what))
}

/// A number; `what` says which.
pub fn number(value: &[u8], what: &'static str) -> Result<u32, Malformed> {
    parse_u32(value).map_err(|_| Malformed(what))
}

/// Whether something is on; `what` says what.
pub fn switch(value: &[u8], what: &'static str) -> Result<bool, Malformed> {
    parse_u8(value).map(|value| value != 0).map_err(|_| Malformed(what))
}

/// A text. Names and aliases are bytes to the kernel: one that is not UTF-8 is somebody's all the same, is not empty, and is none of ours.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

/// One attribute, padded.
#[cfg(test)]
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
