//! A router that says what it is (RFC 4861, section 4.2): what `radvd` sends, and what anybody can send who is root in a guest.

use std::net::Ipv6Addr;

use crate::common::*;

/// Sends a router advertisement, for half an hour, of a subnet of 64 bits by an interface of this thread's network namespace, as its link-local address
/// can; whether it has one as yet.
pub fn advertise(by: &str, subnet: &str) -> bool {
    let link = interface(by).unwrap();
    let mut infos = link["addr_info"].as_array().unwrap().iter();
    let Some(own) = infos.find(|info| info["scope"] == "link" && info.get("tentative").is_none()) else { return false };
    let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0]);
    message.extend(subnet.parse::<Ipv6Addr>().unwrap().octets());
    let index = u32::try_from(link["ifindex"].as_u64().unwrap()).unwrap();
    let at = |address: &str| {
        // SAFETY: all-zero bytes are a valid sockaddr_in6.
        let mut at: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
        at.sin6_family = libc::AF_INET6 as u16;
        at.sin6_addr.s6_addr = address.parse::<Ipv6Addr>().unwrap().octets();
        at.sin6_scope_id = index;
        at
    };
    let (from, to) = (at(&text(own, "local")), at("ff02::1"));
    // SAFETY: the option is one int and the addresses are one sockaddr_in6 each, all of which outlive the calls.
    unsafe {
        let (socket, hops) = (libc::socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6), 255_i32);
        let option = libc::IPV6_MULTICAST_HOPS;
        assert_eq!(libc::setsockopt(socket, libc::IPPROTO_IPV6, option, (&raw const hops).cast(), 4), 0);
        let length = size_of_val(&to) as u32;
        assert_eq!(libc::bind(socket, (&raw const from).cast(), length), 0, "{}", std::io::Error::last_os_error());
        let sent = libc::sendto(socket, message.as_ptr().cast(), message.len(), 0, (&raw const to).cast(), length);
        assert_eq!(sent, message.len() as isize, "{}", std::io::Error::last_os_error());
        libc::close(socket);
    }
    true
}
