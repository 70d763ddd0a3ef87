//! What a policy says: where a guest may send to, as text and as what it means. Said once: `ipamd` takes it in a network's definition, `volt` in a VM's,
//! and `netmgr` enforces it. (The text's form: `PolicyRules` in network.capnp.) Pure.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::{
    names::{self, WORKLOAD_RULE},
    network_capnp::MAX_RULES,
};

/// What a policy allows: all that one of its rules does.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rules(BTreeSet<Rule>);

/// One thing that is allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Whom to send to.
    pub to: Target,
    /// What.
    pub what: What,
}

/// Whom a guest may send to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Every address, but for the host's own and what [`SPECIAL`] has.
    Any,
    /// The host's own addresses.
    Host,
    /// A subnet's addresses, but for the host's own.
    Subnet(Net),
    /// The addresses of a workload on the same network.
    Workload {
        /// Its name.
        name: String,
        /// Those that are in here.
        within: Option<Net>,
    },
}

/// What may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct What {
    /// `None` for any.
    pub protocol: Option<Protocol>,
    /// The first and the last port; of a protocol without ports all of them.
    pub ports: (u16, u16),
}

/// A transport protocol that rules may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 792, and RFC 4443 of IPv6.
    Icmp,
}

/// An address with the length of a prefix, of either family; nothing of the address is behind the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Net {
    address: IpAddr,
    prefix: u8,
}

/// What no subnet holds that reaches beyond it, nor [`Target::Any`]: link-local addresses (RFC 3927 and RFC 4291), at which clouds have what they tell their
/// machines, credentials too; where one of them has that otherwise; and multicast, which the host may hear as well.
const SPECIAL: [Net; 5] = [
    Net { address: IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), prefix: 16 },
    Net { address: IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), prefix: 4 },
    Net { address: IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), prefix: 10 },
    Net { address: IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), prefix: 8 },
    Net { address: IpAddr::V6(METADATA_6), prefix: 128 },
];
/// Where clouds tell their machines what these are, and give them credentials.
pub const METADATA_4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The same of IPv6.
pub const METADATA_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Whether that is one that only a rule allows which says so ([`SPECIAL`]).
pub fn is_special(address: IpAddr) -> bool {
    SPECIAL.iter().any(|special| special.has(address))
}

impl Rules {
    /// Reads them; the rule that is wrong, and why.
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Rules, (String, String)> {
        let rules: Result<Vec<Rule>, _> =
            texts.into_iter().map(|text| text.parse().map_err(|why| (cut(text), why))).collect();
        let rules = rules?;
        let count = rules.len();
        if count > MAX_RULES.into() {
            let last = rules.last().map(Rule::to_string).unwrap_or_default();
            return Err((last, format!("there are {count} rules, and a policy has {MAX_RULES} at most")));
        }
        Ok(Rules::of(rules))
    }

    /// Those that allow everything, to be narrowed.
    pub fn everything() -> Rules {
        let special = SPECIAL.into_iter().map(Target::Subnet);
        Rules::of([Target::Any, Target::Host].into_iter().chain(special).map(|to| Rule { to, what: What::ANY }))
    }

    fn of(rules: impl IntoIterator<Item = Rule>) -> Rules {
        let all: BTreeSet<Rule> = rules.into_iter().collect();
        let needed = |rule: &&Rule| !all.iter().any(|other| other != *rule && other.covers(rule));
        Rules(all.iter().filter(needed).cloned().collect())
    }

    /// What both of them allow; why it is not to be had.
    pub fn narrowed(&self, other: &Rules) -> Result<Rules, String> {
        let both = self.0.iter().flat_map(|one| other.0.iter().filter_map(|two| one.and(two)));
        let rules = Rules::of(both);
        if rules.0.len() > MAX_RULES.into() {
            return Err(format!("what both allow takes {} rules, and a policy has {MAX_RULES} at most", rules.0.len()));
        }
        Ok(rules)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }

    /// The workloads that they name.
    pub fn workloads(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|rule| match &rule.to {
            Target::Workload { name, .. } => Some(name.as_str()),
            _ => None,
        })
    }
}

impl Rule {
    /// What both allow.
    fn and(&self, other: &Rule) -> Option<Rule> {
        Some(Rule { to: self.to.and(&other.to)?, what: self.what.and(other.what)? })
    }

    /// Whether it allows all that the other one does.
    fn covers(&self, other: &Rule) -> bool {
        self.and(other).as_ref() == Some(other)
    }
}

impl Target {
    fn and(&self, other: &Target) -> Option<Target> {
        let of_workload = |name: &String, within: Option<Net>| Target::Workload { name: name.clone(), within };
        match (self, other) {
            (Target::Any, Target::Any) => Some(Target::Any),
            (Target::Host, Target::Host) => Some(Target::Host),
            (Target::Host, _) | (_, Target::Host) => None,
            (Target::Any, Target::Subnet(net)) | (Target::Subnet(net), Target::Any) => {
                net.special().is_none().then_some(Target::Subnet(*net))
            }
            (Target::Subnet(one), Target::Subnet(other)) => one.and(*other).map(Target::Subnet),
            // No workload has an address that is special ([`Rule::ranges`] leaves them out).
            (Target::Any, workload @ Target::Workload { .. }) | (workload @ Target::Workload { .. }, Target::Any) => {
                Some(workload.clone())
            }
            (Target::Subnet(net), Target::Workload { name, within })
            | (Target::Workload { name, within }, Target::Subnet(net)) => match within {
                Some(within) => within.and(*net).map(|within| of_workload(name, Some(within))),
                None => Some(of_workload(name, Some(*net))),
            },
            (Target::Workload { name, within }, Target::Workload { name: of, within: also }) if name == of => {
                match (within, also) {
                    (Some(one), Some(other)) => one.and(*other).map(|within| of_workload(name, Some(within))),
                    (within, also) => Some(of_workload(name, within.or(*also))),
                }
            }
            (Target::Workload { .. }, Target::Workload { .. }) => None,
        }
    }

    /// The addresses that it is, from the first to the last of each range, less the host's own; `of` tells those of a workload.
    pub fn ranges(&self, of: impl Fn(&str) -> Vec<IpAddr>) -> Vec<(IpAddr, IpAddr)> {
        match self {
            Target::Host => Vec::new(),
            Target::Any => Net::EVERYTHING.iter().flat_map(|net| net.ranges()).collect(),
            Target::Subnet(net) => net.ranges(),
            Target::Workload { name, within } => of(name)
                .into_iter()
                .filter(|address| within.is_none_or(|net| net.has(*address)) && !is_special(*address))
                .map(|address| (address, address))
                .collect(),
        }
    }
}

impl What {
    /// Anything.
    pub const ANY: What = What { protocol: None, ports: (0, u16::MAX) };

    fn and(self, other: What) -> Option<What> {
        let protocol = match (self.protocol, other.protocol) {
            (Some(one), Some(other)) if one != other => return None,
            (one, other) => one.or(other),
        };
        let ports = (self.ports.0.max(other.ports.0), self.ports.1.min(other.ports.1));
        (ports.0 <= ports.1).then_some(What { protocol, ports })
    }
}

impl Net {
    const EVERYTHING: [Net; 2] = [
        Net { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), prefix: 0 },
        Net { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), prefix: 0 },
    ];

    fn bits(address: IpAddr) -> u8 {
        if address.is_ipv4() { 32 } else { 128 }
    }

    /// An address as the last bits of a number.
    fn number(address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(address) => address.to_bits().into(),
            IpAddr::V6(address) => address.to_bits(),
        }
    }

    fn last(self) -> IpAddr {
        let host = u32::from(Net::bits(self.address) - self.prefix);
        let rest = u128::MAX.checked_shl(host).map_or(u128::MAX, |mask| !mask);
        same_family(self.address, Net::number(self.address) | rest)
    }

    /// Whether that address is in it.
    pub fn has(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && (self.address..=self.last()).contains(&address)
    }

    fn holds(self, other: Net) -> bool {
        self.prefix <= other.prefix && self.has(other.address)
    }

    /// Which special addresses it is among.
    fn special(self) -> Option<Net> {
        SPECIAL.into_iter().find(|special| special.holds(self))
    }

    fn and(self, other: Net) -> Option<Net> {
        if self.special() != other.special() {
            return None;
        }
        [(self, other), (other, self)].into_iter().find_map(|(one, other)| one.holds(other).then_some(other))
    }

    fn ranges(self) -> Vec<(IpAddr, IpAddr)> {
        let mut ranges = vec![(self.address, self.last())];
        if self.special().is_some() {
            return ranges;
        }
        for special in SPECIAL.into_iter().filter(|special| self.holds(*special)) {
            let without = |(first, last): (IpAddr, IpAddr)| {
                let (from, to) = (special.address, special.last());
                if !(first..=last).contains(&from) {
                    return vec![(first, last)];
                }
                let before = (first < from).then(|| (first, same_family(from, Net::number(from).wrapping_sub(1))));
                let behind = (to < last).then(|| (same_family(to, Net::number(to).wrapping_add(1)), last));
                before.into_iter().chain(behind).collect()
            };
            ranges = ranges.into_iter().flat_map(without).collect();
        }
        ranges
    }
}

/// An address of the same family as that one.
fn same_family(address: IpAddr, bits: u128) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::from_bits(bits as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Rule, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (to, protocol, ports) = match words[..] {
            [to] => (to, "any", None),
            [to, protocol] => (to, protocol, None),
            [to, protocol, ports] => (to, protocol, Some(ports)),
            _ => return Err("it must be TARGET [PROTOCOL [PORTS]], such as \"10.0.0.0/8 tcp 443\"".into()),
        };
        let protocol = match protocol {
            "any" => None,
            "tcp" => Some(Protocol::Tcp),
            "udp" => Some(Protocol::Udp),
            "icmp" => Some(Protocol::Icmp),
            _ => return Err(format!("{:?} is no protocol of rules: tcp, udp, icmp or any", cut(protocol))),
        };
        let ports = match (ports, protocol) {
            (None, _) => What::ANY.ports,
            (Some(ports), Some(Protocol::Tcp | Protocol::Udp)) => port_range(ports)?,
            (Some(_), _) => return Err("only tcp and udp have ports".into()),
        };
        Ok(Rule { to: to.parse()?, what: What { protocol, ports } })
    }
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse().ok().filter(|port| *port != 0 && !text.starts_with('+'));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        _ => Err(format!("{:?} are no ports: 1 to 65535, one as 443 or some as 8000-8080", cut(text))),
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let (name, within) = match text.split_once('@') {
            Some((name, within)) => (name, Some(within)),
            None => (text, None),
        };
        match name {
            "any" | "host" if within.is_some() => Err(format!("only a workload can be within a subnet, {name} cannot")),
            "any" => Ok(Target::Any),
            "host" => Ok(Target::Host),
            name if within.is_none() && name.contains(['.', ':', '/']) => name.parse().map(Target::Subnet),
            name if names::is_workload(name) => {
                Ok(Target::Workload { name: name.to_owned(), within: within.map(str::parse).transpose()? })
            }
            name => Err(format!(
                "{:?} is neither an address or a subnet, nor any, nor host, nor a workload's name ({WORKLOAD_RULE})",
                cut(name)
            )),
        }
    }
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Net, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let no = || format!("{:?} is no address or subnet, such as 10.0.0.1, 10.0.0.0/8 or fd00::/8", cut(text));
        let address: IpAddr = address.parse().map_err(|_| no())?;
        let bits = Net::bits(address);
        let prefix = match prefix {
            Some(prefix) if prefix.bytes().all(|digit| digit.is_ascii_digit()) => {
                prefix.parse().ok().filter(|prefix| *prefix <= bits).ok_or_else(no)?
            }
            Some(_) => return Err(no()),
            None => bits,
        };
        let mask = u128::MAX.checked_shl(u32::from(bits - prefix)).unwrap_or(0);
        let start = same_family(address, Net::number(address) & mask);
        if start != address {
            return Err(format!("{:?} has bits behind its prefix: is {start}/{prefix} meant?", cut(text)));
        }
        Ok(Net { address, prefix })
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Net { address, prefix } = self;
        if *prefix == Net::bits(*address) { write!(f, "{address}") } else { write!(f, "{address}/{prefix}") }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Any => f.write_str("any"),
            Target::Host => f.write_str("host"),
            Target::Subnet(net) => net.fmt(f),
            Target::Workload { name, within: None } => f.write_str(name),
            Target::Workload { name, within: Some(net) } => write!(f, "{name}@{net}"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to.fmt(f)?;
        match self.what.protocol {
            None => return Ok(()),
            Some(Protocol::Tcp) => f.write_str(" tcp")?,
            Some(Protocol::Udp) => f.write_str(" udp")?,
            Some(Protocol::Icmp) => f.write_str(" icmp")?,
        }
        match self.what.ports {
            (0, u16::MAX) => Ok(()),
            (first, last) if first == last => write!(f, " {first}"),
            (first, last) => write!(f, " {first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Rules {
        Rules::new(texts.iter().copied()).unwrap()
    }

    fn texts(rules: &Rules) -> Vec<String> {
        rules.iter().map(Rule::to_string).collect()
    }

    #[test]
    fn rule_is_said_again_as_it_was_and_fits_a_comment_of_nft() {
        let longest = format!("{}@1111:2222:3333:4444:5555:6666:7777:8000/117 tcp 10000-20000", "x".repeat(63));
        for text in
            ["any", "host udp 53", "10.0.0.0/8 tcp 443", "fd00::1 icmp", "vm-db tcp 1-65534", "db@10.0.0.1", &longest]
        {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
            assert!(text.len() <= 127);
        }
        for (text, short) in [(" any  any ", "any"), ("10.0.0.1/32 udp 7-7", "10.0.0.1 udp 7"), ("::/0 any", "::/0")] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), short);
        }
        // Port 0 is nobody's, and all of them is as none.
        assert_eq!("any tcp 1-65535".parse::<Rule>().unwrap().to_string(), "any tcp 1-65535");
    }

    #[test]
    fn what_is_no_rule_is_refused_with_the_word_that_is_wrong() {
        for (text, word) in [
            ("", "TARGET"),
            ("any tcp 1 2", "TARGET"),
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("10.0.0.0/33", "10.0.0.0/33"),
            ("10.0.0.0/+8", "10.0.0.0/+8"),
            ("10.0.0/8", "10.0.0/8"),
            ("fd00::/129", "fd00::/129"),
            ("any sctp", "sctp"),
            ("any icmp 8", "ports"),
            ("any any 8", "ports"),
            ("any tcp 0", "\"0\""),
            ("any tcp +7", "+7"),
            ("any tcp 65536", "65536"),
            ("any tcp 9-8", "9-8"),
            ("any tcp 9-", "9-"),
            ("host@10.0.0.0/8", "host"),
            ("any@10.0.0.0/8", "any"),
            ("VM", "VM"),
            ("vm_a", "vm_a"),
            ("vm-a@vm-b", "vm-b"),
        ] {
            let why = text.parse::<Rule>().unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
        let most = vec!["any"; MAX_RULES.into()];
        assert_eq!(texts(&rules(&most)), ["any"]);
        assert!(Rules::new([most, vec!["any"]].concat()).unwrap_err().1.contains("32"));
    }

    #[test]
    fn narrowed_is_what_both_allow_and_nothing_else() {
        for (one, other, both) in [
            (&["any"][..], &["10.0.0.0/8 tcp 443", "vm-db"][..], &["10.0.0.0/8 tcp 443", "vm-db"][..]),
            (&["any"], &["host", "169.254.169.254", "fe80::/10", "224.0.0.251 udp 5353"], &[]),
            (&["0.0.0.0/0"], &["169.254.0.0/16", "::/0"], &[]),
            (&["169.254.0.0/16 tcp"], &["169.254.169.254", "0.0.0.0/0"], &["169.254.169.254 tcp"]),
            (&["10.0.0.0/8 tcp 1-100"], &["10.1.0.0/16 tcp 50-200", "11.0.0.0/8"], &["10.1.0.0/16 tcp 50-100"]),
            (&["10.0.0.0/8 tcp 1-100"], &["10.0.0.0/8 tcp 101-200", "10.0.0.0/8 udp"], &[]),
            (&["vm-a", "vm-b"], &["vm-b tcp", "vm-c"], &["vm-b tcp"]),
            (&["vm-a"], &["10.0.0.0/8"], &["vm-a@10.0.0.0/8"]),
            (&["vm-a@10.0.0.0/8"], &["10.1.0.0/16", "vm-a@11.0.0.0/8"], &["vm-a@10.1.0.0/16"]),
            (&["host tcp", "any"], &["host", "10.0.0.0/8"], &["host tcp", "10.0.0.0/8"]),
            (&["any tcp"], &[], &[]),
        ] {
            let (one, other, both) = (rules(one), rules(other), rules(both));
            assert_eq!(one.narrowed(&other).unwrap(), both, "{one:?} {other:?}");
            assert_eq!(other.narrowed(&one).unwrap(), both, "{one:?} {other:?}");
            assert_eq!(both.narrowed(&one).unwrap(), both);
            assert_eq!(one.narrowed(&Rules::everything()).unwrap(), one);
        }
        let many = |protocol: &str| -> Vec<String> { (1..7).map(|n| format!("{n}.0.0.0/8 {protocol}")).collect() };
        let ports: Vec<String> = (1..7).map(|n| format!("any tcp {}", n * 2)).collect();
        let many = Rules::new(many("tcp").iter().map(String::as_str)).unwrap();
        let refused = many.narrowed(&Rules::new(ports.iter().map(String::as_str)).unwrap()).unwrap_err();
        assert!(refused.contains("36 rules"), "{refused}");
    }

    #[test]
    fn rule_that_others_say_as_well_is_left_out() {
        let said = texts(&rules(&["10.0.0.0/8", "10.1.0.0/16 tcp 443", "10.0.0.0/8 udp", "vm-a@10.0.0.0/8", "vm-a"]));
        assert_eq!(said, ["10.0.0.0/8", "vm-a"]);
    }

    #[test]
    fn subnet_leaves_out_what_is_special_unless_it_is_within() {
        let ranges = |text: &str| -> Vec<String> {
            let to: Target = text.parse().unwrap();
            let of = |_: &str| ["10.0.0.7", "169.254.0.7", "fd00::7"].map(|ip| ip.parse().unwrap()).to_vec();
            to.ranges(of).iter().map(|(first, last)| format!("{first} {last}")).collect()
        };
        let four = ["0.0.0.0 169.253.255.255", "169.255.0.0 223.255.255.255", "240.0.0.0 255.255.255.255"];
        assert_eq!(ranges("0.0.0.0/0"), four);
        assert_eq!(ranges("any")[..3], four);
        assert_eq!(
            ranges("::/0"),
            [
                ":: fd00:ec2::253",
                "fd00:ec2::255 fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                "fec0:: feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
            ]
        );
        assert_eq!(ranges("169.254.0.0/16"), ["169.254.0.0 169.254.255.255"]);
        assert_eq!(ranges("169.254.169.254"), ["169.254.169.254 169.254.169.254"]);
        assert_eq!(ranges("168.0.0.0/7"), ["168.0.0.0 169.253.255.255", "169.255.0.0 169.255.255.255"]);
        assert_eq!(ranges("fe00::/7"), ["fe00:: fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ranges("::/0")[2].as_str()]);
        assert_eq!(ranges("vm-a"), ["10.0.0.7 10.0.0.7", "fd00::7 fd00::7"]);
        assert_eq!(ranges("vm-a@10.0.0.0/8"), ["10.0.0.7 10.0.0.7"]);
        assert_eq!(ranges("host"), [""; 0]);
    }
}
