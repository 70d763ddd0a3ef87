//! What the filter does to frames that come by an uplink: any interface of that name is one to it.

use super::{frames::*, *};

/// Who is in the VLAN, and not of this host.
const FAR: Ethernet = [2, 0x42, 0, 0, 0, 9];
const FAR4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 42, 0, 9);
const FAR6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9);

fn reach(uplink: bool) -> Reach<'static> {
    let (ipv4, ipv6) = (Some((GATEWAY, 24)), Some(("fd00::1".parse().unwrap(), 64)));
    Reach { network: "br0", interfaces: [Some("br0"), None], ipv4, ipv6, uplink, outward: false, closed: false }
}

fn far(kind: u16, packet: &[u8]) -> Vec<u8> {
    frame(SOMEBODY, FAR, kind, packet)
}

#[test]
fn nobody_who_comes_by_an_uplink_is_taken_for_a_guest_or_the_bridge_and_others_are_let_through() {
    in_own_network(|| {
        let bridge = Bridge::new();
        let uplink = Bridge::tap("up-br0");
        let (mut filter, own) = (filter(), sources(&["10.42.0.2", "fd00::2"]));
        let guest = || [sender("guest", mac(2), &own)].into_iter();
        let mend = |filter: &mut Filter, uplink| {
            filter.mend(guest(), [reach(uplink)].into_iter(), [].into_iter(), [].into_iter(), |_| false).unwrap();
        };
        mend(&mut filter, true);
        let of_bridge = crate::names::mac_of_bridge("br0").bytes();
        let link = crate::names::mac_of_bridge("br0").ipv6_in("fe80::".parse().unwrap());
        let (request, echo) = (udp(500, 53, &[]), icmpv6(128, &[0, 1, 0, 1]));
        let says = |target, option: &[u8]| neighbour(136, target, option);
        for (what, right) in [
            ("ARP", frame(EVERYBODY, FAR, ARP, &arp(1, FAR, FAR4, OWN4))),
            (
                "whether somebody has that address",
                frame(EVERYBODY, FAR, ARP, &arp(1, FAR, "0.0.0.0".parse().unwrap(), OWN4)),
            ),
            ("IPv4", far(IPV4, &ipv4(FAR4, OWN4, UDP, 0, &request))),
            ("of another subnet", far(IPV4, &ipv4("192.0.2.9".parse().unwrap(), OWN4, UDP, 0, &request))),
            ("DHCP server", far(IPV4, &ipv4(FAR4, OWN4, UDP, 0, &udp(67, 68, &[0; 240])))),
            ("IPv6", far(IPV6, &ipv6(FAR6, OWN6, UDP, &request))),
            ("echo", far(IPV6, &ipv6(FAR6, OWN6, ICMPV6, &echo))),
            ("advertisement", far(IPV6, &ipv6(FAR6, OWN6, ICMPV6, &says(FAR6, &holds(2, FAR))))),
            ("solicitation", far(IPV6, &ipv6(FAR6, ALL_NODES, ICMPV6, &neighbour(135, OWN6, &holds(1, FAR))))),
        ] {
            assert!(bridge.passes(&uplink, &right), "{what}");
        }
        for (what, wrong) in [
            ("a guest's MAC address", frame(SOMEBODY, OWN, IPV4, &ipv4(FAR4, OWN4, UDP, 0, &request))),
            ("the bridge's MAC address", frame(SOMEBODY, of_bridge, IPV4, &ipv4(FAR4, OWN4, UDP, 0, &request))),
            ("a guest's MAC address, of no protocol", frame(SOMEBODY, OWN, 0x88b5, &[0; 64])),
            ("a guest's address in ARP", frame(EVERYBODY, FAR, ARP, &arp(2, FAR, OWN4, FAR4))),
            ("the bridge's address in ARP", frame(EVERYBODY, FAR, ARP, &arp(1, FAR, GATEWAY, GATEWAY))),
            ("a guest's address", far(IPV4, &ipv4(OWN4, GATEWAY, UDP, 0, &request))),
            ("the same, a later fragment", far(IPV4, &ipv4(OWN4, GATEWAY, UDP, 100, &request))),
            ("the bridge's address", far(IPV4, &ipv4(GATEWAY, OWN4, UDP, 0, &request))),
            ("a guest's IPv6 address", far(IPV6, &ipv6(OWN6, FAR6, UDP, &request))),
            ("a guest's link-local address", far(IPV6, &ipv6(OWN_LINK, FAR6, UDP, &request))),
            ("the bridge's link-local address", far(IPV6, &ipv6(link, FAR6, UDP, &request))),
            ("advertises a guest's", far(IPV6, &ipv6(FAR6, ALL_NODES, ICMPV6, &says(OWN6, &holds(2, FAR))))),
            ("behind options", far(IPV6, &ipv6(FAR6, ALL_NODES, 60, &options(ICMPV6, &says(OWN6, &holds(2, FAR)))))),
            ("a tag", far(0x8100, &[&[0, 7, 8, 0][..], &ipv4(OWN4, GATEWAY, UDP, 0, &request)].concat())),
            ("SNAP", far(64, &[&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], &ipv4(OWN4, GATEWAY, UDP, 0, &request)].concat())),
            ("cut off", far(IPV4, &ipv4(FAR4, OWN4, UDP, 0, &request)[..16])),
            ("for the bridge itself", frame([1, 0x80, 0xc2, 0, 0, 0], FAR, IPV4, &ipv4(FAR4, OWN4, UDP, 0, &request))),
        ] {
            assert!(!bridge.passes(&uplink, &wrong), "{what}");
        }
        // One that comes later is not taken for either, from before its port is there; one that has gone may be anybody.
        let other = frame(SOMEBODY, OTHER, IPV4, &ipv4(OTHER4, OWN4, UDP, 0, &request));
        assert!(bridge.passes(&uplink, &other));
        let more = sources(&["10.42.0.3"]);
        filter.add(sender("more", mac(3), &more)).unwrap();
        assert!(!bridge.passes(&uplink, &other));
        filter.remove(["more"].into_iter()).unwrap();
        mend(&mut filter, true);
        assert!(bridge.passes(&uplink, &other));
        // Without an uplink, an interface of that name is nothing.
        mend(&mut filter, false);
        assert!(bridge.passes(&uplink, &far(IPV4, &ipv4(OWN4, GATEWAY, UDP, 0, &request))));
    });
}
