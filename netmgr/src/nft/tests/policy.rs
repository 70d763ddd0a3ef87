//! What a policy does to real frames, beside what the model of it says.

use std::{
    cell::{Cell, RefCell},
    iter::empty,
    net::{Ipv4Addr, Ipv6Addr},
};

use proptest::{collection, prelude::*, sample::select, test_runner::TestRunner};

use super::{
    super::model::{self, Flows, World},
    frames::*,
    *,
};

pub const FAR4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
const METADATA4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const METADATA6: Ipv6Addr = schema::policy::METADATA_6;
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const SYN: u8 = 2;
const ACK: u8 = 16;
const SYN_ACK: u8 = 18;
const FIN_ACK: u8 = 17;
const RST: u8 = 4;

pub fn rules(texts: &[&str]) -> Rules {
    Rules::new(texts.iter().copied()).unwrap()
}

pub fn tcp(from: u16, to: u16, flags: u8) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 8], &[0x50, flags], &[0; 6]].concat()
}

fn echo(kind: u8, number: u16) -> Vec<u8> {
    [&[kind, 0, 0, 0][..], &number.to_be_bytes(), &[0, 1]].concat()
}

fn packet(from: IpAddr, to: IpAddr, protocol: u8, rest: &[u8]) -> (u16, Vec<u8>) {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (IPV4, ipv4(from, to, protocol, 0, rest)),
        (IpAddr::V6(from), IpAddr::V6(to)) => (IPV6, ipv6(from, to, protocol, rest)),
        _ => panic!("{from} {to}"),
    }
}

/// From the guest, and to it, of which it does not know where it is.
pub fn out(to: impl Into<IpAddr>, protocol: u8, rest: &[u8]) -> Vec<u8> {
    let to = to.into();
    let (kind, packet) = packet(if to.is_ipv4() { OWN4.into() } else { OWN6.into() }, to, protocol, rest);
    own(kind, &packet)
}

pub fn into(from: impl Into<IpAddr>, protocol: u8, rest: &[u8]) -> Vec<u8> {
    let from = from.into();
    let (kind, packet) = packet(from, if from.is_ipv4() { OWN4.into() } else { OWN6.into() }, protocol, rest);
    frame(SOMEBODY, OTHER, kind, &packet)
}

/// A guest `tap-web`, another one `tap-db`, and what is known of its flows.
pub struct Scene {
    pub bridge: Bridge,
    pub web: File,
    _db: File,
    pub filter: Filter,
    pub sources: [Sources; 2],
    flows: Flows,
    policy: Option<Rules>,
}

/// The host's addresses, as the test has them.
const OWN_OF_HOST: [IpAddr; 3] = [IpAddr::V4(GATEWAY), IpAddr::V4(Ipv4Addr::new(10, 42, 0, 255)), IpAddr::V6(GATEWAY6)];

fn addresses_of(workload: &str) -> Vec<IpAddr> {
    if workload == "vm-db" { vec![OTHER4.into(), OTHER6.into()] } else { Vec::new() }
}

impl Scene {
    pub fn new(policy: Option<&[&str]>) -> Scene {
        let bridge = Bridge::new();
        let (web, db) = (Bridge::tap("tap-web"), Bridge::tap("tap-db"));
        let sources = [sources(&["10.42.0.2", "fd00::2"]), sources(&["10.42.0.3", "fd00::3"])];
        let mut scene =
            Scene { bridge, web, _db: db, filter: filter(), sources, flows: Flows::default(), policy: None };
        scene.mend(policy);
        scene
    }

    pub fn mend(&mut self, policy: Option<&[&str]>) {
        self.policy = policy.map(rules);
        let Scene { filter, sources: [web, db], policy, .. } = self;
        let web = Sender { workload: "vm-web", policy: policy.as_ref(), ..sender("tap-web", mac(2), web) };
        let db = Sender { workload: "vm-db", ..sender("tap-db", mac(3), db) };
        filter.mend([web, db].into_iter(), empty(), empty(), OWN_OF_HOST.into_iter(), |_| false).unwrap();
    }

    /// Whether a frame of the guest's reaches the bridge's other ports, as the model says too.
    pub fn goes(&mut self, frame: &[u8]) -> bool {
        let Scene { sources: [web, _], policy, flows, .. } = self;
        let port = Sender { workload: "vm-web", policy: policy.as_ref(), ..sender("tap-web", mac(2), web) };
        let expected = model::goes(port, &World { own: &OWN_OF_HOST, workload: &addresses_of }, flows, frame);
        let passes = self.bridge.passes(&self.web, frame);
        assert_eq!(passes, expected, "{:?}: {frame:02x?}", self.policy);
        passes
    }

    /// Has a frame come to the guest.
    pub fn comes(&mut self, frame: &[u8]) {
        if self.policy.is_some() {
            model::comes(&mut self.flows, frame);
        }
        send(&self.bridge.watch, frame);
        // It is there once the bridge has done with what came next.
        let mut buffer = [0; 2048];
        while (&self.web).read(&mut buffer).is_ok() {}
    }

    fn forged(&mut self) -> u64 {
        self.filter.counts().unwrap()["tap-web"].forged.packets
    }

    pub fn counts(&mut self) -> Option<[u64; 2]> {
        let counts = self.filter.counts().unwrap().remove("tap-web")?;
        self.policy.as_ref().map(|_| [counts.allowed.packets, counts.denied.packets])
    }
}

#[test]
fn guest_reaches_what_its_policy_lists_and_nothing_else() {
    in_own_network(|| {
        let listed = ["198.51.100.0/24 tcp 443", "198.51.100.7 udp 53", "2001:db8::/32 tcp 80-90", "vm-db tcp 5432"];
        let mut scene = Scene::new(Some(&listed));
        for (what, frame, expected) in [
            ("port of a subnet", out(FAR4, TCP, &tcp(1, 443, SYN)), true),
            ("another port", out(FAR4, TCP, &tcp(1, 444, SYN)), false),
            ("another protocol", out(FAR4, UDP, &udp(1, 443, &[])), false),
            ("UDP", out(FAR4, UDP, &udp(1, 53, &[])), true),
            ("UDP to its neighbour", out(Ipv4Addr::new(198, 51, 100, 8), UDP, &udp(1, 53, &[])), false),
            ("last of a range of IPv6", out(FAR6, TCP, &tcp(1, 90, SYN)), true),
            ("behind it", out(FAR6, TCP, &tcp(1, 91, SYN)), false),
            ("workload", out(OTHER4, TCP, &tcp(1, 5432, SYN)), true),
            ("workload, of IPv6", out(OTHER6, TCP, &tcp(1, 5432, SYN)), true),
            ("another port of it", out(OTHER4, TCP, &tcp(1, 5433, SYN)), false),
            ("the host", out(GATEWAY, TCP, &tcp(1, 443, SYN)), false),
            ("echo", out(FAR4, 1, &echo(8, 1)), false),
            ("ICMP error", out(FAR4, 1, &[3, 4, 0, 0, 0, 0, 5, 0]), false),
            (
                "router alert",
                own(IPV4, &{
                    let mut packet = ipv4(OWN4, FAR4, TCP, 0, &[&[0x94, 4, 0, 0], &tcp(1, 443, SYN)[..]].concat());
                    packet[0] = 0x46;
                    packet
                }),
                false,
            ),
            (
                "multicast",
                frame(
                    [1, 0, 0x5e, 0, 0, 251],
                    OWN,
                    IPV4,
                    &ipv4(OWN4, [224, 0, 0, 251].into(), UDP, 0, &udp(5353, 5353, &[])),
                ),
                false,
            ),
            ("DHCP", frame(EVERYBODY, OWN, IPV4, &ipv4(OWN4, Ipv4Addr::BROADCAST, UDP, 0, &udp(68, 53, &[]))), false),
            ("later fragment", own(IPV4, &ipv4(OWN4, FAR4, TCP, 9, &[0; 40])), false),
            ("first fragment", own(IPV4, &ipv4(OWN4, FAR4, TCP, 0x2000, &tcp(1, 443, SYN))), true),
            ("ports that are not there", out(FAR4, TCP, &[0, 1, 1]), false),
            ("ARP", frame(EVERYBODY, OWN, 0x0806, &arp(1, OWN, OWN4, GATEWAY)), true),
            ("who has", own(IPV6, &ipv6(OWN6, ALL_NODES, ICMPV6, &neighbour(135, OTHER6, &holds(1, OWN)))), true),
            ("is it there", own(IPV6, &ipv6(OWN6, OTHER6, ICMPV6, &neighbour(135, OTHER6, &[]))), true),
            ("neighbour discovery elsewhere", own(IPV6, &ipv6(OWN6, FAR6, ICMPV6, &neighbour(135, FAR6, &[]))), false),
            ("echo of IPv6", out(OTHER6, ICMPV6, &echo(128, 1)), false),
            ("TCP behind options", out(FAR6, 60, &options(TCP, &tcp(1, 80, SYN))), true),
            ("TCP behind a routing header", out(FAR6, 43, &options(TCP, &tcp(1, 80, SYN))), false),
            ("later fragment of IPv6", out(FAR6, 44, &fragment(TCP, 9, false, &[0; 40])), false),
            ("first fragment of IPv6", out(FAR6, 44, &fragment(TCP, 0, true, &tcp(1, 80, SYN))), true),
            // As small as they can be, of which the first has the ports and nothing more.
            ("tiny fragment", own(IPV4, &ipv4(OWN4, FAR4, TCP, 0x2000, &tcp(1, 443, SYN)[..8])), true),
            ("tiny fragment to another port", own(IPV4, &ipv4(OWN4, FAR4, TCP, 0x2000, &tcp(1, 444, SYN)[..8])), false),
            ("what is behind it", own(IPV4, &ipv4(OWN4, FAR4, TCP, 1, &tcp(1, 444, SYN)[8..])), false),
            ("tiny fragment of IPv6", out(FAR6, 44, &fragment(TCP, 0, true, &tcp(1, 90, SYN)[..8])), true),
            (
                "tiny fragment of IPv6 to another port",
                out(FAR6, 44, &fragment(TCP, 0, true, &tcp(1, 91, SYN)[..8])),
                false,
            ),
            ("what is behind that", out(FAR6, 44, &fragment(TCP, 1, false, &tcp(1, 91, SYN)[8..])), false),
            (
                "tiny fragment behind options",
                out(FAR6, 60, &options(44, &fragment(TCP, 0, true, &tcp(1, 90, SYN)[..8]))),
                true,
            ),
            (
                "tiny fragment behind options to another port",
                out(FAR6, 60, &options(44, &fragment(TCP, 0, true, &tcp(1, 91, SYN)[..8]))),
                false,
            ),
        ] {
            assert_eq!(scene.goes(&frame), expected, "{what}");
        }
        // All of them but ARP and neighbour discovery on the link.
        assert_eq!(scene.counts(), Some([11, 22]));
        // Forged ones are none of the policy's.
        assert!(!scene.goes(&frame(SOMEBODY, OTHER, IPV4, &ipv4(OWN4, FAR4, TCP, 0, &tcp(1, 443, SYN)))));
        // As is what has options within a fragment, behind which the ports of the next one might be.
        assert!(!scene.goes(&out(FAR6, 44, &fragment(60, 0, true, &options(TCP, &tcp(1, 91, SYN)[..8])))));
        assert_eq!(scene.counts(), Some([11, 22]));
    });
}

#[test]
fn host_and_what_is_special_are_reached_by_rules_that_say_so_only() {
    in_own_network(|| {
        let mut scene = Scene::new(Some(&["any"]));
        let to = |address: IpAddr| out(address, TCP, &tcp(1, 80, SYN));
        let special: [IpAddr; 4] = [
            METADATA4.into(),
            METADATA6.into(),
            Ipv4Addr::new(169, 254, 1, 1).into(),
            Ipv4Addr::new(224, 0, 0, 9).into(),
        ];
        for (list, host, metadata, other) in [
            (&["any"][..], false, false, true),
            (&["any", "host tcp 80"], true, false, true),
            (&["0.0.0.0/0", "::/0", "169.254.0.0/16", "fd00:ec2::254"], false, true, true),
            (&["host"], true, false, false),
            (&["10.42.0.1", "fd00::1"], false, false, false),
            (&[], false, false, false),
        ] {
            scene.mend(Some(list));
            for address in &OWN_OF_HOST[..] {
                assert_eq!(scene.goes(&to(*address)), host, "{list:?} {address}");
            }
            for address in &special[..2] {
                assert_eq!(scene.goes(&to(*address)), metadata, "{list:?} {address}");
            }
            assert!(!scene.goes(&to(special[3])), "{list:?}");
            for address in [IpAddr::from(FAR4), FAR6.into(), OTHER4.into()] {
                assert_eq!(scene.goes(&to(address)), other, "{list:?} {address}");
            }
            let later = own(IPV4, &ipv4(OWN4, FAR4, TCP, 9, &[0; 40]));
            assert_eq!(scene.goes(&later), other, "{list:?}");
            assert!(!scene.goes(&own(IPV4, &ipv4(OWN4, GATEWAY, TCP, 9, &[0; 40]))), "{list:?}");
        }
        // Without a policy, all but where clouds give credentials.
        scene.mend(None);
        for (address, expected) in special.into_iter().zip([false, false, true, true]) {
            assert_eq!(scene.goes(&to(address)), expected, "{address}");
        }
        assert!(scene.goes(&to(GATEWAY.into())) && scene.goes(&out(FAR4, 47, &[0; 20])));
        assert_eq!(scene.counts(), None);
    });
}

#[test]
fn what_others_began_is_answered_and_nothing_that_looks_like_an_answer() {
    in_own_network(|| {
        let mut scene = Scene::new(Some(&[]));
        for far in [IpAddr::from(FAR4), FAR6.into()] {
            let (icmp, asks, replies) = if far.is_ipv4() { (1, 8, 0) } else { (ICMPV6, 128, 129) };
            let answer = |flags| out(far, TCP, &tcp(22, 4000, flags));
            assert!(!scene.goes(&answer(SYN_ACK)), "nobody has asked");
            scene.comes(&into(far, TCP, &tcp(4000, 22, ACK)));
            assert!(!scene.goes(&answer(ACK)), "that was no beginning");
            scene.comes(&into(far, TCP, &tcp(4000, 22, SYN)));
            assert!(scene.goes(&answer(SYN_ACK)));
            assert!(!scene.goes(&answer(SYN)), "it begins nothing itself");
            assert!(
                !scene.goes(&out(far, TCP, &tcp(23, 4000, ACK))) && !scene.goes(&out(far, TCP, &tcp(22, 4001, ACK)))
            );
            assert!(!scene.goes(&out(far, UDP, &udp(22, 4000, &[]))));
            scene.comes(&into(far, TCP, &tcp(4000, 22, ACK)));
            assert!(scene.goes(&answer(ACK)));
            scene.comes(&into(far, TCP, &tcp(4000, 22, FIN_ACK)));
            assert!(scene.goes(&answer(ACK)) && scene.goes(&answer(FIN_ACK)));
            // And by the guest's own end.
            scene.comes(&into(far, TCP, &tcp(4001, 22, SYN)));
            assert!(scene.goes(&out(far, TCP, &tcp(22, 4001, RST))) && scene.goes(&out(far, TCP, &tcp(22, 4001, ACK))));
            scene.comes(&into(far, UDP, &udp(5000, 53, &[])));
            assert!(scene.goes(&out(far, UDP, &udp(53, 5000, &[]))));
            assert!(!scene.goes(&out(far, UDP, &udp(53, 5001, &[]))));
            assert!(!scene.goes(&out(far, icmp, &echo(replies, 7))));
            scene.comes(&into(far, icmp, &echo(asks, 7)));
            assert!(scene.goes(&out(far, icmp, &echo(replies, 7))) && !scene.goes(&out(far, icmp, &echo(asks, 7))));
            assert!(!scene.goes(&out(far, icmp, &echo(replies, 8))));
        }
        let elements = |set: &str| run(&format!("nft list set bridge volt-vmm {set}"));
        if Command::new("nft").arg("--version").output().is_ok() {
            let begun = elements("begun4");
            assert!(begun.contains("timeout 2m") && begun.contains("timeout 1m"), "{begun}");
            assert!(elements("ended6").contains("timeout 2m"));
        }
    });
}

/// A connection lasts as long as it is used, and not only as long as it was given when it began.
#[test]
fn what_others_began_is_kept_for_as_long_again_with_each_packet() {
    in_own_network(|| {
        let mut scene = Scene::new(Some(&[]));
        let left = |scene: &mut Scene, set: Set| {
            let (_, life) = scene.filter.items(set).unwrap().pop().unwrap();
            [life.timeout, life.expiration].map(|time| u64::from_be_bytes(time.try_into().unwrap()))
        };
        for (set, first, again) in [
            (Set::Begun4, into(FAR4, UDP, &udp(5000, 53, &[])), into(FAR4, UDP, &udp(5000, 53, &[]))),
            (Set::Begun6, into(FAR6, TCP, &tcp(4000, 22, SYN)), into(FAR6, TCP, &tcp(4000, 22, SYN))),
        ] {
            scene.comes(&first);
            let [given, begun] = left(&mut scene, set);
            let mut before = begun;
            testkit::wait::eventually("some of its time is over", || {
                before = left(&mut scene, set)[1];
                before + 100 < begun
            });
            scene.comes(&again);
            let [still, now] = left(&mut scene, set);
            assert!(still == given && now > before, "{set:?}: {now} of {given} ms, and {before} before");
        }
    });
}

#[test]
fn what_is_revoked_ends_with_the_next_packet_though_the_other_side_goes_on() {
    in_own_network(|| {
        let mut scene = Scene::new(Some(&["198.51.100.0/24"]));
        let (asks, segment) = (out(FAR4, UDP, &udp(9, 53, &[])), out(FAR4, TCP, &tcp(9, 443, ACK)));
        assert!(scene.goes(&out(FAR4, TCP, &tcp(9, 443, SYN))) && scene.goes(&segment) && scene.goes(&asks));
        scene.comes(&into(FAR4, TCP, &tcp(443, 9, SYN_ACK)));
        scene.comes(&into(FAR4, UDP, &udp(53, 9, &[])));
        // One that they have begun stays.
        scene.comes(&into(FAR4, TCP, &tcp(4000, 22, SYN)));
        scene.mend(Some(&["198.51.101.0/24"]));
        assert!(!scene.goes(&segment) && !scene.goes(&asks));
        scene.comes(&into(FAR4, UDP, &udp(53, 9, &[])));
        scene.comes(&into(FAR4, TCP, &tcp(443, 9, ACK)));
        assert!(!scene.goes(&segment) && !scene.goes(&asks));
        assert!(scene.goes(&out(FAR4, TCP, &tcp(22, 4000, SYN_ACK))));
        // And is allowed again as live.
        scene.mend(Some(&["198.51.100.0/24 udp"]));
        assert!(!scene.goes(&segment) && scene.goes(&asks));
    });
}

#[test]
fn nothing_forged_passes_whatever_the_policy_is() {
    in_own_network(|| {
        let mut scene = Scene::new(None);
        let all = ["any", "host", "169.254.0.0/16", "fe80::/10", "224.0.0.0/4", "ff00::/8"];
        for policy in [None, Some(&[][..]), Some(&all[..]), Some(&["vm-db", "0.0.0.0/0"])] {
            scene.mend(policy);
            // What others have begun opens nothing either.
            scene.comes(&into(FAR4, TCP, &tcp(4000, 22, SYN)));
            scene.comes(&into(FAR6, UDP, &udp(4000, 22, &[])));
            let answers = [
                frame(SOMEBODY, OTHER, IPV4, &ipv4(OWN4, FAR4, TCP, 0, &tcp(22, 4000, SYN_ACK))),
                own(IPV4, &ipv4(OTHER4, FAR4, TCP, 0, &tcp(22, 4000, SYN_ACK))),
                own(IPV6, &ipv6(OTHER6, FAR6, UDP, &udp(22, 4000, &[]))),
            ];
            let before = scene.forged();
            let all = wrong().into_iter().chain(answers.map(|answer| ("answer of another's", answer)));
            let all: Vec<_> = all.collect();
            for (what, frame) in &all {
                assert!(!scene.goes(frame), "{what}, under {policy:?}");
            }
            // Those for the bridge itself but of spanning trees it drops before anybody.
            let mut kept = all.iter().filter(|(_, frame)| frame[..5] == [1, 0x80, 0xc2, 0, 0] && frame[5] != 0);
            assert_eq!(scene.forged() - before, (all.len() - kept.by_ref().count()) as u64, "under {policy:?}");
            assert_eq!(scene.counts(), policy.map(|_| [0, 0]), "none of it is the policy's");
        }
    });
}

#[test]
fn connections_and_counts_outlive_a_netmgr_and_whatever_has_it_put_all_there_anew() {
    in_own_network(|| {
        let mut scene = Scene::new(Some(&["198.51.100.0/24 tcp 443"]));
        scene.comes(&into(FAR4, TCP, &tcp(4000, 22, SYN)));
        scene.comes(&into(FAR6, UDP, &udp(4000, 22, &[])));
        let answers = [out(FAR4, TCP, &tcp(22, 4000, SYN_ACK)), out(FAR6, UDP, &udp(22, 4000, &[]))];
        assert!(answers.iter().all(|answer| scene.goes(answer)));
        // Has longer to go from here on than it had in all.
        scene.comes(&into(FAR4, TCP, &tcp(4000, 22, ACK)));
        assert!(!scene.goes(&out(FAR4, TCP, &tcp(1, 80, SYN))));
        assert_eq!(scene.counts(), Some([2, 1]));
        scene.filter = filter();
        let (subject, _) = scene.filter.adopt(|_| false, [].into_iter()).unwrap();
        assert_eq!(subject.policies.get("tap-web"), Some(&rules(&["198.51.100.0/24 tcp 443"])));
        scene.mend(Some(&["198.51.100.0/24 tcp 443"]));
        assert_eq!(scene.counts(), Some([2, 1]));
        assert!(answers.iter().all(|answer| scene.goes(answer)));
        assert_eq!(scene.counts(), Some([4, 1]));
    });
}

#[test]
fn workload_that_a_policy_names_is_reached_from_when_it_is_there_to_when_it_has_gone() {
    in_own_network(|| {
        let mut scene = Scene::new(Some(&["vm-later tcp"]));
        let to = Ipv4Addr::new(10, 42, 0, 77);
        let passes = |scene: &Scene| scene.bridge.passes(&scene.web, &out(to, TCP, &tcp(1, 2, SYN)));
        assert!(!passes(&scene));
        let sources = sources(&["10.42.0.77"]);
        let later = Sender { workload: "vm-later", ..sender("tap-later", mac(7), &sources) };
        scene.filter.add(later).unwrap();
        assert!(passes(&scene));
        scene.filter.remove(["tap-later"].into_iter()).unwrap();
        assert!(!passes(&scene));
        // One of another network is another one.
        scene.filter.add(Sender { network: "br1", ..later }).unwrap();
        assert!(!passes(&scene));
    });
}

#[test]
fn port_with_a_policy_that_others_have_adds_elements_of_its_own_only_and_the_last_takes_it_away() {
    in_own_network(|| {
        let mut filter = filter();
        let (sources, policy) = (sources(&["10.42.0.9"]), rules(&["any tcp 443", "host udp 53", "vm-x"]));
        let with = |interface| Sender { policy: Some(&policy), ..sender(interface, mac(9), &sources) };
        filter.add(with("tap-1")).unwrap();
        let of_policies = |filter: &Filter| -> usize {
            let policies = filter.elements.range(Owner::Policy(0)..=Owner::Policy(u32::MAX));
            policies.map(|(_, elements)| elements.len()).sum()
        };
        let (before, count) = (of_policies(&filter), filter.elements.len());
        assert_eq!(before, 4 + 3 + 3 + 1, "what it says, and ranges of IPv4, IPv6 and the host");
        filter.add(with("tap-2")).unwrap();
        assert_eq!((of_policies(&filter), filter.elements.len()), (before, count + 1));
        filter.remove(["tap-1"].into_iter()).unwrap();
        assert_eq!(of_policies(&filter), before);
        filter.remove(["tap-2"].into_iter()).unwrap();
        assert_eq!((of_policies(&filter), filter.elements.len()), (0, 0));
        assert_eq!(filter.look().unwrap().1.len(), rules::constants().count());
    });
}

#[test]
fn policies_take_so_many_ranges_and_no_more() {
    in_own_network(|| {
        let mut filter = filter();
        let sources = sources(&["10.42.0.9"]);
        // Each of 30 rules takes a range and a note, and the policy one.
        let policy = |n: usize| {
            let texts: Vec<String> = (1..=30).map(|net| format!("{}.0.0.0/8 tcp {}", net * 2, n + 1)).collect();
            Rules::new(texts.iter().map(String::as_str)).unwrap()
        };
        let most = MAX_RANGES as usize / 61;
        let policies: Vec<Rules> = (0..most).map(policy).collect();
        let names: Vec<String> = (0..=most).map(|n| format!("tap-{n}")).collect();
        let with = |at: usize, policy| Sender { policy: Some(policy), ..sender(&names[at], mac(9), &sources) };
        let all = policies.iter().enumerate().map(|(at, policy)| with(at, policy));
        filter.mend(all, empty(), empty(), empty(), |_| false).unwrap();
        let another = policy(most);
        for refused in [filter.add(with(most, &another)), filter.guard(with(most, &another))] {
            let refused = refused.unwrap_err();
            assert!(matches!(refused, Error::Full { limit, .. } if limit == MAX_RANGES as usize), "{refused}");
        }
        // One that is in force takes nothing more.
        filter.add(with(most, &policies[0])).unwrap();
    });
}

/// Rules that overlap and do not, of the addresses that frames are for.
fn any_policy() -> impl Strategy<Value = Option<Vec<String>>> {
    let target = select(
        &[
            "any",
            "host",
            "10.42.0.0/24",
            "10.42.0.3",
            "198.51.100.0/24",
            "198.51.100.7",
            "0.0.0.0/1",
            "::/0",
            "2001:db8::/32",
            "fd00::/64",
            "fd00::3",
            "vm-db",
            "vm-db@10.0.0.0/8",
            "169.254.169.254",
            "fe80::/10",
            "224.0.0.0/4",
            "128.0.0.0/1",
        ][..],
    );
    let what = select(&["", " tcp", " udp", " icmp", " tcp 80", " tcp 1-100", " udp 53", " tcp 90-200"][..]);
    let rule = (target, what).prop_map(|(target, what)| format!("{target}{what}"));
    prop::option::weighted(0.9, collection::vec(rule, 0..8))
}

/// A frame of the guest's, or (`true`) one that comes to it.
fn any_packet() -> impl Strategy<Value = (bool, Vec<u8>)> {
    let four = [FAR4, OTHER4, GATEWAY, METADATA4, Ipv4Addr::new(224, 0, 0, 9), Ipv4Addr::new(10, 42, 0, 255)];
    let six = [FAR6, OTHER6, GATEWAY6, METADATA6, ALL_NODES, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9)];
    let address =
        prop_oneof![select(four.to_vec()).prop_map(IpAddr::from), select(six.to_vec()).prop_map(IpAddr::from)];
    let port = || select(&[53_u16, 80, 95, 4000][..]);
    let flags = select(&[SYN, SYN_ACK, ACK, FIN_ACK, RST][..]);
    let segment = (port(), port(), flags).prop_map(|(from, to, flags)| (TCP, tcp(from, to, flags)));
    let datagram = (port(), port()).prop_map(|(from, to)| (UDP, udp(from, to, &[0; 8])));
    let message = (select(&[0_u8, 3, 8, 128, 129, 1, 135, 136][..]), select(&[1_u16, 2][..]));
    let message = message.prop_map(|(kind, number)| (0, echo(kind, number)));
    let other = Just((47, vec![0; 20]));
    let rest = prop_oneof![4 => segment, 3 => datagram, 2 => message, 1 => other];
    let later = prop::option::weighted(0.1, select(&[0_u16, 9][..]));
    (any::<bool>(), address, rest, later, 0..30_usize, prop::bool::weighted(0.9)).prop_map(
        |(comes, address, (protocol, mut rest), fragments, cut, whole)| {
            let protocol = match (protocol, address.is_ipv4()) {
                (0, true) => 1,
                (0, false) => ICMPV6,
                (protocol, _) => protocol,
            };
            if !whole {
                rest.truncate(cut);
            }
            let (own4, own6) = (IpAddr::from(OWN4), IpAddr::from(OWN6));
            let guest = if address.is_ipv4() { own4 } else { own6 };
            let (from, to) = if comes { (address, guest) } else { (guest, address) };
            let (kind, packet) = match (from, to, fragments) {
                (IpAddr::V4(from), IpAddr::V4(to), Some(at)) => (IPV4, ipv4(from, to, protocol, at | 0x2000, &rest)),
                (IpAddr::V6(from), IpAddr::V6(to), Some(at)) => {
                    (IPV6, ipv6(from, to, 44, &fragment(protocol, at, true, &rest)))
                }
                (from, to, _) => packet(from, to, protocol, &rest),
            };
            (comes, if comes { frame(SOMEBODY, OTHER, kind, &packet) } else { own(kind, &packet) })
        },
    )
}

#[test]
fn kernel_lets_go_what_the_model_does_of_any_packets_under_any_policies() {
    in_own_network(|| {
        let scene = RefCell::new(Scene::new(None));
        let went = Cell::new(0);
        let steps = collection::vec(any_packet(), 24);
        TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })
            .run(&(any_policy(), any_policy(), steps), |(first, then, packets)| {
                let mut scene = scene.borrow_mut();
                // What was begun before is known no more.
                scene.filter.clear().unwrap();
                scene.flows = Flows::default();
                for (policy, packets) in [(first, &packets[..16]), (then, &packets[16..])] {
                    let policy: Option<Vec<&str>> =
                        policy.as_ref().map(|policy| policy.iter().map(String::as_str).collect());
                    scene.mend(policy.as_deref());
                    for (comes, frame) in packets {
                        if *comes {
                            scene.comes(frame);
                        } else {
                            went.set(went.get() + u32::from(scene.goes(frame)));
                            // And once more, as a moment ago.
                            scene.goes(frame);
                        }
                    }
                }
                Ok(())
            })
            .unwrap();
        // It was about something.
        assert!(went.get() > 300, "{went:?}");
    });
}
