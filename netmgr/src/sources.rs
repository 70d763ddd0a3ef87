//! The addresses that a port's guest may send from, as its holder gave them, and how a mark has them. Pure; touches nothing.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use schema::{
    net::is_of_hosts,
    network_capnp::{MAX_ADDRESS_BYTES, MAX_IPV4_ADDRESSES, MAX_IPV6_ADDRESSES},
};

use crate::{address::Address, error::Error};

/// What stands for six bits each (RFC 4648, section 5).
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// What a port's guest may send from. None of a family: nothing of that family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    ipv4: BTreeSet<Ipv4Addr>,
    ipv6: BTreeSet<Ipv6Addr>,
}

impl Sources {
    /// Checks what a caller sent, as far as it follows from the addresses alone.
    pub fn new<'a>(given: impl Iterator<Item = Result<&'a str, Error>>) -> Result<Sources, Error> {
        let mut sources = Sources::default();
        for text in given {
            let text = text?;
            let address = text.parse().map_err(|_| "it is neither an IPv4 address nor an IPv6 one".to_owned());
            let added = address.and_then(|address| sources.add(address));
            added.map_err(|why| Error::argument("address", text, &why))?;
        }
        if sources.bytes() > MAX_ADDRESS_BYTES.into() {
            let why = format!(
                "they take {} bytes in the interface's mark, which has room for {MAX_ADDRESS_BYTES} (what those of a family begin with counts once): give fewer, or some that lie closer together",
                sources.bytes()
            );
            return Err(Error::argument("list of addresses", &sources.to_string(), &why));
        }
        Ok(sources)
    }

    fn add(&mut self, address: IpAddr) -> Result<(), String> {
        let (new, count, most) = match address {
            IpAddr::V4(address) if !is_of_hosts(address) => {
                return Err("it must be a unicast address, and not of the loopback network".into());
            }
            IpAddr::V6(address) if !is_global_or_unique_local(address) => {
                return Err(
                    "it must be a global unicast address (2000::/3) or a unique local one (fc00::/7); the guest's link-local address follows from its MAC address"
                        .into(),
                );
            }
            IpAddr::V4(address) => (self.ipv4.insert(address), self.ipv4.len(), MAX_IPV4_ADDRESSES),
            IpAddr::V6(address) => (self.ipv6.insert(address), self.ipv6.len(), MAX_IPV6_ADDRESSES),
        };
        match (new, count <= most.into()) {
            (false, _) => Err("it is given twice".into()),
            (true, false) => Err(format!("a port has {most} addresses of a family at most")),
            (true, true) => Ok(()),
        }
    }

    /// Whether guests of a network can have them whose bridge has the address `gateway`.
    pub fn check(&self, gateway: Option<Address>) -> Result<(), Error> {
        let Some(gateway) = gateway else { return Ok(()) };
        self.ipv4.iter().try_for_each(|address| {
            let refuse = |why: &str| Err(Error::argument("address", &address.to_string(), why));
            if *address == gateway.ip {
                refuse("it is the network's gateway")
            } else if !gateway.subnet().has_host(*address) {
                refuse(&format!("a guest of this network has one of {}, less its first and last", gateway.subnet()))
            } else {
                Ok(())
            }
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

/// Global unicast as far as it is given out (RFC 4291, section 2.4), or unique local (RFC 4193).
fn is_global_or_unique_local(address: Ipv6Addr) -> bool {
    let [first, ..] = address.octets();
    first & 0xe0 == 0x20 || first & 0xfe == 0xfc
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
        for good in ["10.42.0.9", "1.0.0.1", "223.255.255.1", "2000::", "2001:db8::7", "3fff::1", "fc00::1", "fdff::1"]
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
            ("::", "2000::/3"),
            ("::1", "2000::/3"),
            ("::ffff:10.42.0.9", "2000::/3"),
            ("1fff::1", "2000::/3"),
            ("4000::1", "2000::/3"),
            ("fbff::1", "fc00::/7"),
            ("fe00::1", "fc00::/7"),
            ("fe80::1", "link-local"),
            ("ff02::1", "2000::/3"),
        ] {
            let error = given(&[bad]).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(&format!("{bad:?}")), "{error}");
        }
        for twice in [["10.42.0.9"; 2], ["fd00::1", "fd00:0::1"]] {
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

    #[test]
    fn guest_has_an_address_of_its_network_that_is_neither_an_end_nor_the_gateway() {
        let gateway = Some(Address { ip: Ipv4Addr::new(10, 42, 0, 1), prefix: 24 });
        for good in ["10.42.0.2", "10.42.0.254", "fd00::1"] {
            given(&[good]).unwrap().check(gateway).unwrap();
        }
        for (bad, why) in [
            ("10.42.0.1", "gateway"),
            ("10.42.0.0", "less its first"),
            ("10.42.0.255", "and last"),
            ("10.42.1.2", "10.42.0.0/24"),
        ] {
            let error = given(&["10.42.0.7", bad]).unwrap().check(gateway).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(bad), "{error}");
            // Nothing is known of the subnet of a network whose bridge has no address.
            given(&[bad]).unwrap().check(None).unwrap();
        }
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
