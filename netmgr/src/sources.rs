//! The addresses that a port's guest may send from, as its holder gave them, and how a mark has them. Pure; touches nothing.

use std::{
    collections::BTreeSet,
    fmt, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use schema::{
    net::{Mac, ipv6_rule, is_of_hosts, is_of_ipv6_hosts, subnet_of_ipv6},
    network_capnp::{MAX_ADDRESS_BYTES, MAX_IPV4_ADDRESSES, MAX_IPV6_ADDRESSES},
};

use crate::{config::Config, error::Error};

/// What stands for the address of the network's IPv6 subnet that follows from the MAC address.
const DERIVED: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const TWICE: &str = "it is given twice";
/// What stands for six bits each (RFC 4648, section 5).
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// What a port's guest may send from. None of a family: nothing of that family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    ipv4: BTreeSet<Ipv4Addr>,
    ipv6: BTreeSet<Ipv6Addr>,
    /// Whether the one that follows from the MAC address is to be one of them, once that and the network are known.
    derived: bool,
}

impl Sources {
    /// Checks what a caller sent, as far as it follows from the addresses alone.
    pub fn new<'a>(given: impl Iterator<Item = Result<&'a str, Error>>) -> Result<Sources, Error> {
        let mut sources = Sources::default();
        for text in given {
            let text = text?;
            let address = text.parse().map_err(|_| "it is neither an IPv4 address nor an IPv6 one".to_owned());
            let added = match address {
                Ok(IpAddr::V6(DERIVED)) if mem::replace(&mut sources.derived, true) => Err(TWICE.into()),
                Ok(IpAddr::V6(DERIVED)) => Ok(()),
                address => address.and_then(|address| sources.add(address)),
            };
            added.map_err(|why| Error::argument("address", text, &why))?;
        }
        sources.fit()
    }

    /// What a guest with that MAC address has of them on a network.
    pub fn on(mut self, network: &Config, mac: Mac) -> Result<Sources, Error> {
        if mem::take(&mut self.derived) {
            let refused = |why: String| Error::argument("address", &DERIVED.to_string(), &why);
            let gateway = network.ipv6.ok_or_else(|| refused("the network has no IPv6 subnet".into()))?;
            let address = mac.ipv6_in(gateway.ip);
            self.add(address.into()).map_err(|why| refused(format!("it stands for {address}: {why}")))?;
        }
        let sources = self.fit()?;
        match sources.outside(network) {
            Some((address, why)) => Err(Error::argument("address", &address.to_string(), &why)),
            None => Ok(sources),
        }
    }

    /// They have room in a mark.
    fn fit(self) -> Result<Sources, Error> {
        let bytes = self.bytes();
        if bytes <= MAX_ADDRESS_BYTES.into() {
            return Ok(self);
        }
        let why = format!(
            "they take {bytes} bytes in the interface's mark, which has room for {MAX_ADDRESS_BYTES} (what those of a family begin with counts once): give fewer, or some that lie closer together"
        );
        Err(Error::argument("list of addresses", &self.to_string(), &why))
    }

    fn add(&mut self, address: IpAddr) -> Result<(), String> {
        let (new, count, most) = match address {
            IpAddr::V4(address) if !is_of_hosts(address) => {
                return Err("it must be a unicast address, and not of the loopback network".into());
            }
            IpAddr::V6(address) if !is_of_ipv6_hosts(address) => {
                return Err(format!("{}; the guest's link-local address follows from its MAC address", ipv6_rule()));
            }
            IpAddr::V4(address) => (self.ipv4.insert(address), self.ipv4.len(), MAX_IPV4_ADDRESSES),
            IpAddr::V6(address) => (self.ipv6.insert(address), self.ipv6.len(), MAX_IPV6_ADDRESSES),
        };
        match (new, count <= most.into()) {
            (false, _) => Err(TWICE.into()),
            (true, false) => Err(format!("a port has {most} addresses of a family at most")),
            (true, true) => Ok(()),
        }
    }

    /// One that guests of a network cannot have, and why. Where its bridge has no address of a family, nothing is known of the subnet.
    pub fn outside(&self, network: &Config) -> Option<(IpAddr, String)> {
        self.iter().find_map(|address| {
            let is_gateway = network.addresses().any(|gateway| gateway.ip == address);
            let subnet = match address {
                IpAddr::V4(ip) => {
                    let gateway = network.address.filter(|gateway| !gateway.subnet().has_host(ip));
                    gateway.map(|gateway| format!("{}, less its first and last", gateway.subnet()))
                }
                IpAddr::V6(ip) => {
                    let gateway = network.ipv6.filter(|gateway| subnet_of_ipv6(ip) != subnet_of_ipv6(gateway.ip));
                    gateway.map(|gateway| gateway.of_any().network().to_string())
                }
            };
            let why = is_gateway.then(|| "it is the network's gateway".to_owned());
            let why = why.or(subnet.map(|subnet| format!("a guest of this network has one of {subnet}")));
            Some((address, why?))
        })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.iter().copied().map(IpAddr::from).chain(self.ipv6.iter().copied().map(IpAddr::from))
    }

    /// One that is in both.
    pub fn shared(&self, other: &Sources) -> Option<IpAddr> {
        self.iter().find(|address| other.has(*address))
    }

    /// Whether that one is among them.
    pub fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4.contains(&address),
            IpAddr::V6(address) => self.ipv6.contains(&address),
        }
    }

    fn packed(&self) -> [Option<Packed>; 2] {
        [pack(self.ipv4.iter().map(Ipv4Addr::octets)), pack(self.ipv6.iter().map(Ipv6Addr::octets))]
    }

    fn bytes(&self) -> usize {
        self.packed().iter().flatten().map(|packed| packed.bytes.len()).sum()
    }

    /// What a mark says of them, behind a space each: for a family that there is one of, its digit, how many bytes all of them begin with, in
    /// hexadecimal, these, and the rest of each in turn, in base 64. At most [`MAX_ADDRESS_BYTES`] and so 104 bytes of text.
    pub fn words(&self) -> String {
        let words = self.packed().into_iter().zip([4, 6]).filter_map(|(packed, family)| {
            packed.map(|Packed { shared, bytes }| format!(" {family}{shared:x}{}", base64(&bytes)))
        });
        words.collect()
    }

    /// Reads what [`words`](Sources::words) gives; `None` for anything else.
    pub fn read(words: &[&str]) -> Option<Sources> {
        let mut sources = Sources::default();
        for word in words {
            let (family, rest) = word.split_at_checked(1)?;
            let (shared, rest) = rest.split_at_checked(1)?;
            let (shared, bytes) = (usize::from_str_radix(shared, 16).ok()?, from_base64(rest)?);
            let addresses: Vec<IpAddr> = match family {
                "4" => unpack::<4>(shared, &bytes)?.into_iter().map(IpAddr::from).collect(),
                "6" => unpack::<16>(shared, &bytes)?.into_iter().map(IpAddr::from).collect(),
                _ => return None,
            };
            addresses.into_iter().try_for_each(|address| sources.add(address)).ok()?;
        }
        (sources.bytes() <= MAX_ADDRESS_BYTES.into()).then_some(sources)
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.iter().map(|address| address.to_string()).collect();
        f.write_str(&all.join(", "))
    }
}

/// Addresses of one family: what they begin with, and the rest of each.
struct Packed {
    shared: usize,
    bytes: Vec<u8>,
}

fn pack<const N: usize>(addresses: impl Iterator<Item = [u8; N]>) -> Option<Packed> {
    let all: Vec<[u8; N]> = addresses.collect();
    let (first, last) = (all.first()?, all.last()?);
    // They are in order: what the first and the last begin with, all of them do.
    let shared = first.iter().zip(last).take(N - 1).take_while(|(first, last)| first == last).count();
    let rest = all.iter().flat_map(|address| address.iter().skip(shared));
    Some(Packed { shared, bytes: first.iter().take(shared).chain(rest).copied().collect() })
}

fn unpack<const N: usize>(shared: usize, bytes: &[u8]) -> Option<Vec<[u8; N]>> {
    let each = N.checked_sub(shared).filter(|each| *each > 0)?;
    let (shared, rest) = bytes.split_at_checked(shared)?;
    if rest.is_empty() || rest.len() % each != 0 {
        return None;
    }
    rest.chunks(each).map(|rest| [shared, rest].concat().try_into().ok()).collect()
}

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let three = (0..3).fold(0, |sum, at| sum << 8 | usize::from(chunk.get(at).copied().unwrap_or(0)));
        let digits = [18, 12, 6, 0].into_iter().filter_map(|shift| DIGITS.get(three >> shift & 63));
        text.extend(digits.take(chunk.len() + 1).map(|digit| char::from(*digit)));
    }
    text
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for chunk in text.as_bytes().chunks(4) {
        let mut three = 0_u32;
        for at in 0..4 {
            let digit = chunk.get(at).map_or(Some(0), |digit| DIGITS.iter().position(|known| known == digit))?;
            three = three << 6 | u32::try_from(digit).ok()?;
        }
        let [_, some @ ..] = three.to_be_bytes();
        bytes.extend(some.into_iter().take(chunk.len().checked_sub(1).filter(|some| *some > 0)?));
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::Instance;

    pub fn given(list: &[&str]) -> Result<Sources, Error> {
        Sources::new(list.iter().map(|text| Ok(*text)))
    }

    fn many(form: impl Fn(usize) -> String, count: usize) -> Vec<String> {
        (1..=count).map(form).collect()
    }

    fn of(list: &[String]) -> Result<Sources, Error> {
        Sources::new(list.iter().map(|text| Ok(text.as_str())))
    }

    #[test]
    fn an_address_of_hosts_is_taken_and_any_other_is_refused_with_the_rule() {
        for good in ["10.42.0.9", "1.0.0.1", "223.255.255.1", "2000::1", "2001:db8::7", "3fff::1", "fc00::1", "fdff::1"]
        {
            assert_eq!(given(&[good]).unwrap().to_string(), good);
        }
        for (bad, why) in [
            ("", "neither"),
            ("web", "neither"),
            ("10.42.0.9/24", "neither"),
            ("10.42.0", "neither"),
            (" 10.42.0.9", "neither"),
            ("fd00::1%eth0", "neither"),
            ("0.0.0.0", "unicast"),
            ("127.0.0.1", "loopback"),
            ("224.0.0.1", "unicast"),
            ("255.255.255.255", "unicast"),
            ("::1", "2000::/3"),
            ("::ffff:10.42.0.9", "2000::/3"),
            ("1fff::1", "2000::/3"),
            ("4000::1", "2000::/3"),
            ("fbff::1", "fc00::/7"),
            ("fe00::1", "fc00::/7"),
            ("fe80::1", "link-local"),
            ("ff02::1", "2000::/3"),
            ("fd00::", "not the first of its subnet"),
            ("2001:db8:0:1::", "not the first of its subnet"),
        ] {
            let error = given(&[bad]).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(&format!("{bad:?}")), "{error}");
        }
        for twice in [["10.42.0.9"; 2], ["fd00::1", "fd00:0::1"], ["::", "0::"]] {
            assert!(given(&twice).unwrap_err().to_string().contains("given twice"));
        }
    }

    #[test]
    fn sixteen_addresses_of_each_family_and_no_more() {
        let (four, six) = (|n| format!("10.42.0.{n}"), |n| format!("fd00::{n:x}"));
        let both = [many(four, 16), many(six, 16)].concat();
        assert_eq!(of(&both).unwrap().iter().count(), 32);
        for more in [many(four, 17), many(six, 17)] {
            assert!(of(&more).unwrap_err().to_string().contains("16 addresses of a family at most"));
        }
    }

    #[test]
    fn what_the_mark_has_room_for_is_taken_and_a_byte_more_is_not() {
        // Four that share nothing take 64 bytes, and two that share their first byte 7.
        let six = ["2001:db8::1", "fd00::1", "fc00::1", "3fff::1"].map(str::to_owned);
        let beside =
            |four: &[&str]| of(&[&six[..], &four.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>()].concat());
        let most = beside(&["10.1.0.1", "10.2.0.1"]).unwrap();
        assert_eq!(most.bytes(), 71);
        assert_eq!(beside(&["10.1.0.1", "11.2.0.1"]).unwrap().bytes(), usize::from(MAX_ADDRESS_BYTES));
        let error = beside(&["10.1.0.1", "10.2.0.1", "10.2.0.2"]).unwrap_err().to_string();
        assert!(error.contains("take 74 bytes") && error.contains("room for 72"), "{error}");
        // One more than there is room for, exactly.
        let five = ["2001:db8::1", "fd00::1", "fc00::1", "3fff::1"];
        let nine = ["10.1.1.1", "10.1.1.2", "10.1.1.3", "10.1.1.4", "10.1.1.5", "10.1.1.6"];
        assert_eq!(given(&[&five[..], &nine[..5]].concat()).unwrap().bytes(), 72);
        assert!(given(&[&five[..], &nine[..]].concat()).unwrap_err().to_string().contains("take 73 bytes"));
    }

    #[test]
    fn words_of_a_mark_read_back_and_nothing_else_does() {
        let four = many(|n| format!("10.{}.0.{n}", n * 15), 16);
        let six = many(|n| format!("fd00::{:x}", n * 4096 - 1), 16);
        let lists =
            [vec![], four[..1].to_vec(), six[..1].to_vec(), four.clone(), six.clone(), [&four[..2], &six[..]].concat()];
        for list in lists {
            let sources = of(&list).unwrap();
            let words = sources.words();
            assert!(words.len() <= 104 && words.is_empty() == list.is_empty(), "{words}");
            let read: Vec<&str> = words.split(' ').skip(1).collect();
            assert_eq!(Sources::read(&read), Some(sources), "{words}");
        }
        assert_eq!(given(&["10.42.0.9"]).unwrap().words(), " 43CioACQ");
        for foreign in [
            "",
            "4",
            "43",
            "43CioACQ=",
            "43C",
            "44CioACQ",
            "43CioA",
            "5xCioACQ",
            "43!ioACQ",
            "40fwAAAQ",
            "4fCioACQ",
            "\u{fc}3CioACQ",
        ] {
            assert_eq!(Sources::read(&[foreign]), None, "{foreign:?}");
        }
        // The same twice, and more than there may be.
        assert_eq!(Sources::read(&["43CioACQ", "43CioACQ"]), None);
        let seventeen = pack((1..=17).map(|n| [10, 42, 0, n])).unwrap();
        assert_eq!(Sources::read(&[&format!("43{}", base64(&seventeen.bytes))]), None);
    }

    fn network(gateway: &str, ipv6: &str) -> Config {
        let prefix = if gateway.is_empty() { 0 } else { 24 };
        Config::new("volt0", gateway, prefix, 1500).unwrap().with_ipv6(ipv6, &Instance::default()).unwrap()
    }

    const MAC: Mac = Mac::local([0, 0x5e, 0, 0x53, 7]);

    #[test]
    fn guest_has_an_address_of_its_network_that_is_neither_an_end_nor_the_gateway() {
        let (four, both, none) = (network("10.42.0.1", ""), network("10.42.0.1", "fd00::1/64"), network("", ""));
        for good in ["10.42.0.2", "10.42.0.254", "fd00::2", "fd00::ffff:ffff:ffff:ffff"] {
            for network in [&four, &both, &none] {
                given(&[good]).unwrap().on(network, MAC).unwrap();
            }
        }
        for (bad, why) in [
            ("10.42.0.1", "gateway"),
            ("10.42.0.0", "less its first"),
            ("10.42.0.255", "and last"),
            ("10.42.1.2", "10.42.0.0/24"),
            ("fd00::1", "gateway"),
            ("fd00:0:0:1::1", "one of fd00::/64"),
            ("2001:db8::1", "one of fd00::/64"),
        ] {
            let error = given(&["10.42.0.7", bad]).unwrap().on(&both, MAC).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(bad), "{error}");
            // Nothing is known of the subnet of a network whose bridge has no address.
            given(&[bad]).unwrap().on(&none, MAC).unwrap();
        }
    }

    #[test]
    fn address_that_is_derived_follows_from_the_mac_address_and_the_network() {
        let both = network("10.42.0.1", "fd00:1:2:3::1/64");
        let of = |list: &[&str]| given(list).unwrap().on(&both, MAC);
        assert_eq!(of(&["10.42.0.7", "::"]).unwrap().to_string(), "10.42.0.7, fd00:1:2:3:0:5eff:fe00:5307");
        let error = given(&["::"]).unwrap().on(&network("10.42.0.1", ""), MAC).unwrap_err().to_string();
        assert!(error.contains("no IPv6 subnet"), "{error}");
        let error = of(&["fd00:1:2:3:0:5eff:fe00:5307", "::"]).unwrap_err().to_string();
        assert!(error.contains("stands for fd00:1:2:3:0:5eff:fe00:5307") && error.contains("twice"), "{error}");
        // It counts, and takes room.
        let fifteen = many(|n| format!("fd00:1:2:3::{:x}", n + 1), 16);
        let list: Vec<&str> = fifteen.iter().map(String::as_str).chain(["::"]).collect();
        of(&list[1..11]).unwrap();
        assert!(of(&list).unwrap_err().to_string().contains("16 addresses of a family at most"));
        assert!(of(&list[1..]).unwrap_err().to_string().contains("room for 72"));
        // The gateway's may be the very one.
        let taken = network("10.42.0.1", "fd00::5eff:fe00:5307/64");
        assert!(given(&["::"]).unwrap().on(&taken, MAC).unwrap_err().to_string().contains("gateway"));
    }

    #[test]
    fn what_two_ports_share_is_named() {
        let one = given(&["10.42.0.2", "fd00::1"]).unwrap();
        assert_eq!(one.shared(&given(&["10.42.0.3", "fd00::1"]).unwrap()), Some("fd00::1".parse().unwrap()));
        assert_eq!(one.shared(&given(&["10.42.0.2"]).unwrap()), Some("10.42.0.2".parse().unwrap()));
        assert_eq!(one.shared(&given(&["10.42.0.3", "fd00::2"]).unwrap()), None);
        assert_eq!(one.shared(&Sources::default()), None);
    }
}
