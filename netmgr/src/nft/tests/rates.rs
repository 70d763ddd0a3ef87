//! What a rate does to real frames, each way.

use std::{net::Ipv4Addr, time::Instant};

use super::{
    super::rates::{BURST, Limit},
    frames::*,
    *,
};

const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// The least that there is, so that little is more than it.
const RATE: u64 = schema::network_capnp::MIN_RATE;
/// Of a packet.
const BYTES: u64 = 1400;
const SENT: u64 = 200;

fn datagram(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    ipv4(from, to, UDP, 0, &udp(9, 9, &[0; BYTES as usize - 28]))
}

/// How many of several frames go from one to another.
fn pass(from: &File, to: &File, frame: &[u8]) -> u64 {
    let mut buffer = [0; 2048];
    while (&*to).read(&mut buffer).is_ok() {}
    let mut passed = 0;
    for _ in 0..SENT {
        send(from, frame);
        while let Ok(length) = (&*to).read(&mut buffer) {
            passed += u64::from(buffer[VNET..length] == *frame);
        }
    }
    passed
}

/// What a rate lets through within that time, at least and at most.
fn share(since: Instant) -> std::ops::RangeInclusive<u64> {
    let bucket = RATE + BURST;
    bucket / BYTES..=(bucket + RATE * (since.elapsed().as_secs() + 1)) / BYTES
}

#[test]
fn what_is_beyond_a_rate_is_dropped_and_counted_each_way_and_everything_else_goes() {
    in_own_network(|| {
        let bridge = Bridge::new();
        let (web, mut filter, sources) = (Bridge::tap("tap-web"), filter(), sources(&["10.42.0.2"]));
        let sender = sender("tap-web", mac(2), &sources);
        let out = own(IPV4, &datagram(OWN4, FAR));
        let into = frame(SOMEBODY, OTHER, IPV4, &datagram(FAR, OWN4));
        // Rates, and whether it is as much as they let through that comes, from the guest and to it.
        for (from_guest, to_guest) in [(0, 0), (RATE, 0), (0, RATE), (RATE, RATE), (u32::MAX.into(), u32::MAX.into())] {
            filter.remove(["tap-web"].into_iter()).unwrap();
            let since = Instant::now();
            filter.add(Sender { rate: Rate { from_guest, to_guest }, ..sender }).unwrap();
            let came = [pass(&web, &bridge.watch, &out), pass(&bridge.watch, &web, &into)];
            for (came, rate) in came.iter().zip([from_guest, to_guest]) {
                let expected = if rate == RATE { share(since) } else { SENT..=SENT };
                assert!(expected.contains(came), "{came} of {expected:?} at {rate}");
            }
            let counts = filter.counts().unwrap()["tap-web"];
            let counted = |came: u64| Count { packets: SENT - came, bytes: (SENT - came) * BYTES };
            assert_eq!((counts.over_from, counts.over_to), (counted(came[0]), counted(came[1])));
            assert_eq!(counts.forged, Count::default());
        }
    });
}

#[test]
fn what_is_forged_is_within_a_rate_as_well_and_counted_once() {
    in_own_network(|| {
        let bridge = Bridge::new();
        let (web, mut filter, sources) = (Bridge::tap("tap-web"), filter(), sources(&["10.42.0.2"]));
        let rate = Rate { from_guest: RATE, to_guest: 0 };
        filter.add(Sender { rate, ..sender("tap-web", mac(2), &sources) }).unwrap();
        let forged = own(IPV4, &datagram(OTHER4, FAR));
        assert_eq!(pass(&web, &bridge.watch, &forged), 0);
        let Counts { forged, over_from, .. } = filter.counts().unwrap()["tap-web"];
        assert!(forged.packets >= (RATE + BURST) / BYTES && over_from.packets > 0);
        assert_eq!(forged.packets + over_from.packets, SENT);
    });
}

#[test]
fn rate_is_read_again_as_it_was_put_there_and_one_that_somebody_has_changed_is_put_back() {
    in_own_network(|| {
        let sources = sources(&["10.42.0.2"]);
        for rate in [RATE, 7_654_321, schema::network_capnp::MAX_RATE] {
            let rate = Rate { from_guest: rate, to_guest: RATE };
            let port = Sender { rate, ..sender("tap-web", mac(2), &sources) };
            let mut first = filter();
            first.add(port).unwrap();
            let mend = |filter: &mut Filter| {
                let none = || std::iter::empty();
                filter.mend([port].into_iter(), std::iter::empty(), std::iter::empty(), none(), |_| false).unwrap()
            };
            assert!(!mend(&mut first));
            let mut next = filter();
            let (left, _) = next.adopt(|_| false, [].into_iter()).unwrap();
            assert_eq!(left.rates.get("tap-web"), Some(&rate));
            assert!(!mend(&mut next));
            if Command::new("nft").arg("--version").output().is_ok() {
                run("nft delete element bridge volt-vmm rates_from { tap-web }");
                run(
                    "nft add element bridge volt-vmm rates_from { tap-web limit rate over 9 mbytes/second burst 5 bytes }",
                );
                assert!(mend(&mut next));
                assert_eq!(filter().adopt(|_| false, [].into_iter()).unwrap().0.rates.get("tap-web"), Some(&rate));
            }
        }
    });
}

#[test]
fn limit_that_is_cut_off_or_none_is_read_as_none() {
    let mut whole = Attributes::default();
    whole.nested(1, |one| Limit::of(RATE).write(one));
    let whole = &whole.finish().unwrap()[4..];
    assert_eq!(Limit::read(whole), Some(Limit::of(RATE)));
    for end in 0..whole.len() {
        assert_eq!(Limit::read(&whole[..end]), None, "{end}");
    }
    let mut counter = Attributes::default();
    counter.text(1, "counter").nested(2, |_| ());
    assert_eq!(Limit::read(&counter.finish().unwrap()), None);
}
