//! A pool's configuration: the JSON text that `definePool` takes, checked in full. Pure: it reads the text and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr};

use schema::names;
use schema::net::{
    MACVTAP_MODES, Subnet, ipv6_rule, is_mtu, is_of_hosts, is_of_ipv6_hosts, is_prefix, is_vlan, mtu_rule, prefix_rule,
    subnet_of_ipv6, vlan_rule,
};
use schema::network_capnp::{IPV6_PREFIX_LENGTH, MacvtapMode};
use schema::policy::{Rule, Rules};

use crate::json::Json;

/// The longest configuration text that is accepted, in bytes.
pub const MAX_CONFIG_BYTES: usize = schema::addresses_capnp::MAX_CONFIG_BYTES as usize;

/// The keys of a network, and of its pool. `docs/network.schema.json` is for who writes one.
const KEYS: [&str; 18] = [
    "network",
    "type",
    "subnet",
    "gateway",
    "router",
    "ipv6",
    "subnet6",
    "gateway6",
    "mtu",
    "pool",
    "reservations",
    "nat",
    "policy",
    "parent",
    "vlan",
    "isolate",
    "mode",
    "trust",
];
const POOL_KEYS: [&str; 2] = ["start", "end"];
const POLICY_KEYS: [&str; 2] = ["default", "allow"];

/// The kinds of networks that there are, the first one where none is said.
const KINDS: [&str; 5] = [BRIDGED, HOST_ONLY, MACVTAP, SRIOV, ISOLATED];
const BRIDGED: &str = "bridged";
const HOST_ONLY: &str = "host-only";
const MACVTAP: &str = "macvtap";
const SRIOV: &str = "sriov";
const ISOLATED: &str = "isolated";

/// A checked configuration: the gateway and the range are host addresses of the subnet, so are the reservations, and those are unique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// Name of the network, 1 to 15 bytes.
    pub network: String,
    /// Its subnet.
    pub subnet: Subnet,
    /// The bridge's own address, or, of macvtap, the router's, never handed out; of an isolated network, where there is none, its subnet's first.
    pub gateway: Ipv4Addr,
    /// Who else is the router there, of a VLAN; never handed out either.
    pub router: Option<Ipv4Addr>,
    /// Its IPv6.
    pub ipv6: Ipv6,
    /// Bytes that a frame of it holds; `None` for what its bridge has, which is 1500 where it is new.
    pub mtu: Option<u32>,
    /// First address of the range that is handed out without a reservation.
    pub start: Ipv4Addr,
    /// Last address of that range, included.
    pub end: Ipv4Addr,
    /// Addresses set aside, by workload.
    pub reservations: BTreeMap<String, Ipv4Addr>,
    /// Where guests may send to whose ports are made without a policy of their own; `None` for wherever they like.
    pub policy: Option<Rules>,
    /// What its guests reach beside one another.
    pub reach: Reach,
    /// What it is on of the host's interfaces, if it is on one.
    pub uplink: Option<Uplink>,
    /// Whether its guests are kept from one another.
    pub isolate: bool,
}

/// An interface of the host's, or a VLAN of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// That interface's name.
    pub parent: String,
    /// The VLAN's number; 0 where it is the interface itself, as of a network of macvtaps, or of virtual functions of none.
    pub vlan: u16,
}

/// What the guests of a network reach beside one another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reach {
    /// The host: `"type":"bridged"`.
    #[default]
    Host,
    /// The host, and what is beyond it: the same with `"nat":true`.
    All,
    /// What is beyond the host: `"type":"host-only"`.
    Outside,
    /// What an interface of the host's is on, in that mode: `"type":"macvtap"`.
    Macvtap(MacvtapMode),
    /// The same, each by a virtual function of that interface's: `"type":"sriov"`.
    Sriov {
        /// Whether these are trusted.
        trust: bool,
    },
    /// Nothing: `"type":"isolated"`.
    Nothing,
}

impl Reach {
    /// Whether guests are past the host, on the network that an interface of its is on.
    fn is_past_host(self) -> bool {
        matches!(self, Reach::Macvtap(_) | Reach::Sriov { .. })
    }
}

/// What a network has of IPv6. Nothing of it is handed out here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6 {
    /// Nothing.
    None,
    /// A subnet that follows from the installation and the network's name.
    Auto,
    /// The subnet that the router's address is in.
    Gateway(Ipv6Addr),
}

impl Ipv6 {
    /// As `NetworkConfig.ipv6` has it.
    pub fn text(self) -> String {
        match self {
            Ipv6::None => String::new(),
            Ipv6::Auto => "auto".into(),
            Ipv6::Gateway(address) => format!("{address}/{IPV6_PREFIX_LENGTH}"),
        }
    }

    /// The subnet that both of them say.
    pub fn shared(self, other: Ipv6) -> Option<String> {
        let (Ipv6::Gateway(one), Ipv6::Gateway(other)) = (self, other) else { return None };
        let subnet = subnet_of_ipv6(one);
        (subnet == subnet_of_ipv6(other)).then(|| format!("{subnet}/{IPV6_PREFIX_LENGTH}"))
    }

    fn keys(self, with_gateway: bool) -> String {
        match self {
            Ipv6::None => String::new(),
            Ipv6::Auto => "\"ipv6\":true,".into(),
            Ipv6::Gateway(address) => {
                let gateway = if with_gateway { format!("\"gateway6\":\"{address}\",") } else { String::new() };
                format!("\"subnet6\":\"{}/{IPV6_PREFIX_LENGTH}\",{gateway}", subnet_of_ipv6(address))
            }
        }
    }
}

/// Why a configuration was refused: the key, what it holds, why that will not do, and what would.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: {why}. {remedy}")]
pub struct ConfigError {
    /// Path of the key in the text, such as `pool.start`; `the text` for the whole.
    pub key: String,
    /// What it holds, shortened.
    pub value: String,
    /// Why it was refused.
    pub why: String,
    /// What to write instead.
    pub remedy: String,
}

fn error(
    key: impl Into<String>,
    value: impl ToString,
    why: impl Into<String>,
    remedy: impl Into<String>,
) -> ConfigError {
    let mut value = value.to_string();
    if value.chars().count() > 80 {
        value = value.chars().take(77).chain("...".chars()).collect();
    }
    ConfigError { key: key.into(), value, why: why.into(), remedy: remedy.into() }
}

impl PoolConfig {
    /// Parses and checks a configuration text.
    ///
    /// # Errors
    /// The first thing that is wrong with it, in the order type, mode, trust, parent, VLAN, subnet, gateway, IPv6, MTU, range, reservations, name.
    pub fn parse(text: &str) -> Result<PoolConfig, ConfigError> {
        let config = PoolConfig::read(text)?;
        if names::is_network(&config.network) {
            return Ok(config);
        }
        let name = format!("{:?}", config.network);
        Err(error("network", name, names::NETWORK_RULE, "Name the bridge, such as \"volt0\""))
    }

    /// As [`PoolConfig::parse`], and takes any name: a pool that was defined when the rule was a wider one has to be found, to be removed.
    ///
    /// # Errors
    /// As [`PoolConfig::parse`].
    pub fn read(text: &str) -> Result<PoolConfig, ConfigError> {
        if text.len() > MAX_CONFIG_BYTES {
            return Err(error(
                "the text",
                format_args!("{} bytes", text.len()),
                format!("it is longer than {MAX_CONFIG_BYTES} bytes"),
                "Keep fewer reservations in it, and make the others with reserve",
            ));
        }
        let tree: Json = serde_json::from_str(text).map_err(|e| {
            error(
                "the text",
                format_args!("{text:?}"),
                format!("it is not acceptable JSON: {e}"),
                "Mend it at that line and column",
            )
        })?;
        let [
            network,
            kind,
            subnet,
            gateway,
            router,
            ipv6,
            subnet6,
            gateway6,
            mtu,
            pool,
            reservations,
            nat,
            policy,
            parent,
            vlan,
            isolate,
            mode,
            trust,
        ] = fields("", &tree, KEYS)?;

        let name = required("network", network)?;
        let reach = parse_reach(kind, nat)?;
        let reach = parse_trust(parse_mode(reach, mode)?, trust)?;
        if reach == Reach::Nothing {
            for (key, given) in [("gateway", gateway), ("gateway6", gateway6)] {
                if given.is_some() {
                    let why = "there is nobody on an isolated network but its guests";
                    return Err(error(key, "present", why, "Leave it out"));
                }
            }
        }
        let uplink = parse_uplink(parent, vlan, reach)?;
        let isolate = isolate.map_or(Ok(false), |isolate| boolean("isolate", isolate))?;
        if isolate && matches!(reach, Reach::Macvtap(_)) {
            let why = "guests of macvtaps are kept from one another by their mode";
            return Err(error("isolate", "true", why, "Leave it out, and write \"mode\":\"private\""));
        }
        if isolate && matches!(reach, Reach::Sriov { .. }) {
            let why = "which virtual functions reach one another is for their card to say";
            return Err(error("isolate", "true", why, "Leave it out"));
        }
        let subnet = parse_subnet(required("subnet", subnet)?)?;
        let gateway = match gateway {
            Some(value) => host("gateway", value, &subnet)?,
            None => Ipv4Addr::from(subnet.network().to_bits().saturating_add(1)),
        };
        // Of virtual functions the gateway is the router, in a VLAN too.
        let bridged = uplink.as_ref().filter(|_| !reach.is_past_host());
        let router = router.map(|value| parse_router(value, &subnet, gateway, bridged)).transpose()?;
        let ipv6 = parse_ipv6(ipv6, subnet6, gateway6)?;
        if ipv6 == Ipv6::Auto && reach.is_past_host() {
            let why = "it is on a network that somebody else has numbered";
            return Err(error("ipv6", "true", why, "Name its subnet: \"subnet6\", and its router there: \"gateway6\""));
        }
        let mtu = mtu.map(parse_mtu).transpose()?;
        let [start, end] = match pool {
            Some(pool) => {
                let [start, end] = fields("pool.", pool, POOL_KEYS)?;
                [
                    host("pool.start", present("pool.start", start)?, &subnet)?,
                    host("pool.end", present("pool.end", end)?, &subnet)?,
                ]
            }
            None => {
                let start = Ipv4Addr::from(gateway.to_bits().saturating_add(1));
                if start >= subnet.broadcast() {
                    return Err(error(
                        "pool",
                        "absent",
                        format!("nothing lies between the gateway {gateway} and the broadcast address of {subnet}"),
                        "Say which addresses to hand out, as {\"start\": ..., \"end\": ...}",
                    ));
                }
                [start, Ipv4Addr::from(subnet.broadcast().to_bits().saturating_sub(1))]
            }
        };
        if start > end {
            return Err(error("pool.start", start, format!("it lies behind pool.end, {end}"), "Swap the two"));
        }
        let reservations = match reservations {
            Some(value) => parse_reservations(value, &subnet, gateway, router)?,
            None => BTreeMap::new(),
        };
        let policy = policy.map(parse_policy).transpose()?;
        Ok(PoolConfig {
            network: name.to_owned(),
            subnet,
            gateway,
            router,
            ipv6,
            mtu,
            start,
            end,
            reservations,
            reach,
            policy,
            uplink,
            isolate,
        })
    }

    /// The text that makes this pool again: every key present but those whose absence says the same, reservations by workload.
    pub fn to_json(&self) -> String {
        let reservations: Vec<String> =
            self.reservations.iter().map(|(workload, address)| format!("\"{workload}\":\"{address}\"")).collect();
        // All but the name, which may be of a time with a wider rule, was checked to need no escape.
        let network = serde_json::Value::from(self.network.as_str());
        let gateway = (self.reach != Reach::Nothing).then_some(self.gateway);
        format!(
            "{{\"network\":{},{}{}{}\"subnet\":\"{}\",{}{}{}{}\"pool\":{{\"start\":\"{}\",\"end\":\"{}\"}},\"reservations\":{{{}}}{}}}",
            network,
            match self.reach {
                Reach::Host => "",
                Reach::All => "\"nat\":true,",
                Reach::Outside => "\"type\":\"host-only\",",
                Reach::Macvtap(_) => "\"type\":\"macvtap\",",
                Reach::Sriov { trust: false } => "\"type\":\"sriov\",",
                Reach::Sriov { trust: true } => "\"type\":\"sriov\",\"trust\":true,",
                Reach::Nothing => "\"type\":\"isolated\",",
            },
            self.uplink.as_ref().map_or_else(String::new, |Uplink { parent, vlan }| match self.reach {
                Reach::Macvtap(mode) => {
                    let modes = MACVTAP_MODES.into_iter();
                    let mode = modes.filter(|(_, known)| *known == mode).map(|(name, _)| name).collect::<String>();
                    format!("\"parent\":\"{parent}\",\"mode\":\"{mode}\",")
                }
                _ if *vlan == 0 => format!("\"parent\":\"{parent}\","),
                _ => format!("\"parent\":\"{parent}\",\"vlan\":{vlan},"),
            }),
            if self.isolate { "\"isolate\":true," } else { "" },
            self.subnet,
            gateway.map_or_else(String::new, |gateway| format!("\"gateway\":\"{gateway}\",")),
            self.router.map_or_else(String::new, |router| format!("\"router\":\"{router}\",")),
            self.ipv6.keys(gateway.is_some()),
            self.mtu.map_or_else(String::new, |mtu| format!("\"mtu\":{mtu},")),
            self.start,
            self.end,
            reservations.join(","),
            self.policy.as_ref().map_or_else(String::new, |policy| {
                // Nor does a rule.
                let rules: Vec<String> = policy.iter().map(Rule::to_string).map(|rule| format!("\"{rule}\"")).collect();
                format!(",\"policy\":{{\"allow\":[{}]}}", rules.join(","))
            })
        )
    }

    /// Who leads its guests elsewhere, if anybody does.
    pub fn router(&self) -> Option<Ipv4Addr> {
        (self.reach != Reach::Nothing).then_some(self.router.unwrap_or(self.gateway))
    }

    /// Whether an address is none of a guest's: the bridge's own, or a router's.
    pub fn is_taken(&self, address: Ipv4Addr) -> bool {
        address == self.gateway || self.router == Some(address)
    }

    /// Whether an address may be handed out without a reservation.
    pub fn in_range(&self, address: Ipv4Addr) -> bool {
        self.start <= address && address <= self.end && !self.is_taken(address)
    }
}

/// The members of an object, in the order of `known`; any other key is an error.
fn fields<'a, const N: usize>(
    path: &str,
    value: &'a Json,
    known: [&str; N],
) -> Result<[Option<&'a Json>; N], ConfigError> {
    let at = if path.is_empty() { "the text" } else { path.trim_end_matches('.') };
    let Json::Object(entries) = value else {
        return Err(error(
            at,
            value.kind(),
            "an object is needed here",
            format!("Write {{\"{}\": ...}}", known.join("\": ..., \"")),
        ));
    };
    let mut found = [None; N];
    for (key, value) in entries {
        let slot = known.iter().zip(found.iter_mut()).find_map(|(name, slot)| (name == key).then_some(slot));
        match slot {
            Some(slot) => *slot = Some(value),
            None => {
                return Err(error(
                    format!("{path}{key}"),
                    value.kind(),
                    "there is no such key",
                    format!("Known keys are {}; remove this one", known.join(", ")),
                ));
            }
        }
    }
    Ok(found)
}

fn present<'a>(key: &str, value: Option<&'a Json>) -> Result<&'a Json, ConfigError> {
    value.ok_or_else(|| {
        error(key, "absent", "the key is required", format!("Add \"{}\"", key.rsplit('.').next().unwrap_or(key)))
    })
}

fn required<'a>(key: &str, value: Option<&'a Json>) -> Result<&'a str, ConfigError> {
    text(key, present(key, value)?)
}

fn text<'a>(key: &str, value: &'a Json) -> Result<&'a str, ConfigError> {
    match value {
        Json::Text(text) => Ok(text),
        other => Err(error(key, other.kind(), "a string is needed here", "Put it in double quotes")),
    }
}

fn boolean(key: &str, value: &Json) -> Result<bool, ConfigError> {
    match value {
        Json::Boolean(value) => Ok(*value),
        other => Err(error(key, other.kind(), "true or false is needed here", "Write it, or leave it out")),
    }
}

fn parse_reach(kind: Option<&Json>, nat: Option<&Json>) -> Result<Reach, ConfigError> {
    let kind = kind.map_or(Ok(BRIDGED), |kind| text("type", kind))?;
    if !KINDS.contains(&kind) {
        let remedy = format!("Write \"{}\", or leave it out, which is \"{BRIDGED}\"", KINDS.join("\" or \""));
        return Err(error("type", format_args!("{kind:?}"), "there is no such kind of network", remedy));
    }
    let nat = nat.map(|nat| boolean("nat", nat)).transpose()?;
    match (kind, nat) {
        (HOST_ONLY, Some(false)) => {
            let why = "the guests of a host-only network have nothing but what is beyond the host";
            Err(error("nat", "false", why, "Leave it out"))
        }
        (HOST_ONLY, _) => Ok(Reach::Outside),
        (MACVTAP | SRIOV, Some(true)) => {
            let why = "the guests of a network of macvtaps or of virtual functions do not go by way of the host";
            Err(error("nat", "true", why, "Leave it out"))
        }
        // The one where none is said, which is read next.
        (MACVTAP, _) => Ok(Reach::Macvtap(MacvtapMode::Bridge)),
        // Not, unless that is said, which is read next too.
        (SRIOV, _) => Ok(Reach::Sriov { trust: false }),
        (ISOLATED, Some(true)) => {
            let why = "the guests of an isolated network reach one another, and nothing else";
            Err(error("nat", "true", why, "Leave it out"))
        }
        (ISOLATED, _) => Ok(Reach::Nothing),
        (_, Some(true)) => Ok(Reach::All),
        _ => Ok(Reach::Host),
    }
}

/// In which mode a network of macvtaps is.
fn parse_mode(reach: Reach, mode: Option<&Json>) -> Result<Reach, ConfigError> {
    let Some(mode) = mode else { return Ok(reach) };
    if !matches!(reach, Reach::Macvtap(_)) {
        let why = "only a network of type \"macvtap\" has it";
        return Err(error("mode", mode.kind(), why, "Leave it out, or write \"type\":\"macvtap\""));
    }
    let name = text("mode", mode)?;
    let (_, mode) = MACVTAP_MODES.into_iter().find(|(known, _)| *known == name).ok_or_else(|| {
        let known = MACVTAP_MODES.map(|(known, _)| known).join("\", \"");
        let remedy = format!("Write one of \"{known}\", or leave it out, which is \"bridge\"");
        error("mode", format_args!("{name:?}"), "there is no such mode", remedy)
    })?;
    Ok(Reach::Macvtap(mode))
}

/// Whether the virtual functions of a network are trusted.
fn parse_trust(reach: Reach, trust: Option<&Json>) -> Result<Reach, ConfigError> {
    let Some(trust) = trust else { return Ok(reach) };
    match reach {
        Reach::Sriov { .. } => Ok(Reach::Sriov { trust: boolean("trust", trust)? }),
        _ => {
            let why = "only a network of type \"sriov\" has it";
            Err(error("trust", trust.kind(), why, "Leave it out, or write \"type\":\"sriov\""))
        }
    }
}

fn parse_uplink(parent: Option<&Json>, vlan: Option<&Json>, reach: Reach) -> Result<Option<Uplink>, ConfigError> {
    const REMEDY: &str = "Write \"parent\":\"eth0\",\"vlan\":100, or leave both out";
    let is_macvtap = matches!(reach, Reach::Macvtap(_));
    let (parent, vlan) = match (parent, vlan) {
        (parent, None) if reach.is_past_host() => (required("parent", parent)?, None),
        (None, None) => return Ok(None),
        (None, Some(_)) => {
            return Err(error("parent", "absent", "a VLAN is one of an interface of the host's", REMEDY));
        }
        (Some(_), None) => {
            return Err(error("vlan", "absent", "the parent itself is put on no bridge: it carries a VLAN", REMEDY));
        }
        (Some(parent), vlan) => (text("parent", parent)?, vlan),
    };
    if !names::is_network(parent) {
        let remedy = if reach.is_past_host() { "Name an interface of the host's, such as \"eth0\"" } else { REMEDY };
        return Err(error("parent", format_args!("{parent:?}"), names::NETWORK_RULE, remedy));
    }
    let Some(vlan) = vlan else { return Ok(Some(Uplink { parent: parent.to_owned(), vlan: 0 })) };
    let (found, number) = match vlan {
        Json::Number(number) => (number.to_string(), u16::try_from(*number).ok()),
        other => (other.kind().to_owned(), None),
    };
    let vlan = number.filter(|vlan| is_vlan(*vlan)).ok_or_else(|| error("vlan", found, vlan_rule(), REMEDY))?;
    if is_macvtap {
        let why = "a network of macvtaps is on its parent itself";
        return Err(error("vlan", vlan, why, "Leave it out, or name as its parent an interface that is that VLAN"));
    }
    if reach == Reach::Nothing {
        let why = "the guests of an isolated network reach one another, and nothing else";
        return Err(error("vlan", vlan, why, "Leave it out, and \"parent\""));
    }
    if !matches!(reach, Reach::Host | Reach::Sriov { .. }) {
        let why = "guests of a VLAN reach the outside by way of that";
        return Err(error("vlan", vlan, why, "Leave it out, or define the network as bridged, without NAT"));
    }
    Ok(Some(Uplink { parent: parent.to_owned(), vlan }))
}

fn parse_mtu(value: &Json) -> Result<u32, ConfigError> {
    let (found, number) = match value {
        Json::Number(number) => (number.to_string(), u32::try_from(*number).ok()),
        other => (other.kind().to_owned(), None),
    };
    let remedy = "Write a number, such as 1500, or leave it out";
    number.filter(|mtu| is_mtu(*mtu)).ok_or_else(|| error("mtu", found, mtu_rule(), remedy))
}

fn parse_policy(value: &Json) -> Result<Rules, ConfigError> {
    const REMEDY: &str = "Write rules such as \"10.0.0.0/8 tcp 443\", \"vm-db tcp 5432\", \"host udp 53\" or \"any\"";
    let [default, allow] = fields("policy.", value, POLICY_KEYS)?;
    let others = match default.map(|default| text("policy.default", default)).transpose()? {
        None | Some("deny") => None,
        Some("allow") => Some("any"),
        Some(other) => {
            let remedy = "Write \"deny\", or \"allow\"; or leave it out, which is \"deny\"";
            return Err(error("policy.default", format_args!("{other:?}"), "it is neither allow nor deny", remedy));
        }
    };
    let rules = match allow {
        None => Vec::new(),
        Some(Json::List(list)) => list.iter().map(|rule| text("policy.allow", rule)).collect::<Result<_, _>>()?,
        Some(other) => return Err(error("policy.allow", other.kind(), "a list is needed here", REMEDY)),
    };
    let rules = Rules::new(rules.into_iter().chain(others));
    rules.map_err(|(rule, why)| error("policy.allow", format_args!("{rule:?}"), why, REMEDY))
}

fn parse_subnet(value: &str) -> Result<Subnet, ConfigError> {
    const REMEDY: &str = "Write an IPv4 network such as \"10.42.0.0/24\"";
    let bad = |why: &str, remedy: &str| error("subnet", format_args!("{value:?}"), why, remedy);
    let (address, prefix) = value.split_once('/').ok_or_else(|| bad("it has no prefix length", REMEDY))?;
    let address: Ipv4Addr =
        address.parse().map_err(|_| bad("the part before the slash is not an IPv4 address", REMEDY))?;
    if prefix.is_empty()
        || prefix.len() > 2
        || !prefix.bytes().all(|b| b.is_ascii_digit())
        || (prefix.len() > 1 && prefix.starts_with('0'))
    {
        return Err(bad("the part behind the slash is not a prefix length", REMEDY));
    }
    let prefix: u8 = prefix.parse().map_err(|_| bad("the part behind the slash is not a prefix length", REMEDY))?;
    if !is_prefix(prefix) {
        return Err(bad(&prefix_rule(), "Choose a larger or smaller subnet"));
    }
    let subnet = Subnet::of(address, prefix);
    if subnet.network() != address {
        return Err(bad(
            "the address has bits set behind the prefix",
            &format!("Write \"{subnet}\" if that network is meant"),
        ));
    }
    if !is_of_hosts(address) {
        return Err(bad(
            "hosts cannot have such addresses (this host, loopback, multicast or reserved)",
            "Choose a private network (RFC 1918)",
        ));
    }
    Ok(subnet)
}

/// IPv6 is on if its key says so, or if there is a subnet.
fn parse_ipv6(on: Option<&Json>, subnet: Option<&Json>, gateway: Option<&Json>) -> Result<Ipv6, ConfigError> {
    let on = match on {
        None => None,
        Some(Json::Boolean(on)) => Some(*on),
        Some(other) => {
            return Err(error("ipv6", other.kind(), "true or false is needed here", "Write true, without quotes"));
        }
    };
    let subnet = match (subnet, gateway, on) {
        (Some(_), _, Some(false)) => {
            return Err(error("subnet6", "present", "\"ipv6\" is false", "Leave one of the two out"));
        }
        (Some(subnet), ..) => parse_subnet6(text("subnet6", subnet)?)?,
        (None, Some(_), _) => {
            return Err(error("gateway6", "present", "there is no subnet6 that it would be in", "Add \"subnet6\""));
        }
        (None, None, Some(true)) => return Ok(Ipv6::Auto),
        (None, None, _) => return Ok(Ipv6::None),
    };
    let Some(gateway) = gateway else { return Ok(Ipv6::Gateway(Ipv6Addr::from_bits(subnet.to_bits() | 1))) };
    let value = text("gateway6", gateway)?;
    let bad = |why: String| {
        let remedy = format!("Write an address of {subnet}/{IPV6_PREFIX_LENGTH} but its first");
        error("gateway6", format_args!("{value:?}"), why, remedy)
    };
    let gateway: Ipv6Addr = value.parse().map_err(|_| bad("it is not an IPv6 address".into()))?;
    if subnet_of_ipv6(gateway) != subnet {
        return Err(bad(format!("it lies outside {subnet}/{IPV6_PREFIX_LENGTH}")));
    }
    if is_of_ipv6_hosts(gateway) { Ok(Ipv6::Gateway(gateway)) } else { Err(bad(ipv6_rule())) }
}

fn parse_subnet6(value: &str) -> Result<Ipv6Addr, ConfigError> {
    let bad = |why: &str, remedy: &str| error("subnet6", format_args!("{value:?}"), why, remedy);
    const REMEDY: &str = "Write an IPv6 network such as \"fd12:3456:789a:1::/64\"";
    let (address, prefix) = value.split_once('/').ok_or_else(|| bad("it has no prefix length", REMEDY))?;
    let address: Ipv6Addr =
        address.parse().map_err(|_| bad("the part before the slash is not an IPv6 address", REMEDY))?;
    if prefix != IPV6_PREFIX_LENGTH.to_string() {
        return Err(bad(
            &format!("the prefix length must be {IPV6_PREFIX_LENGTH}, behind which a guest's own part has its place"),
            REMEDY,
        ));
    }
    let subnet = subnet_of_ipv6(address);
    if subnet != address {
        let meant = format!("Write \"{subnet}/{IPV6_PREFIX_LENGTH}\" if that network is meant");
        return Err(bad("the address has bits set behind the prefix", &meant));
    }
    if is_of_ipv6_hosts(Ipv6Addr::from_bits(subnet.to_bits() | 1)) {
        return Ok(subnet);
    }
    Err(bad("hosts cannot have such addresses", "Choose one in fd00::/8 (RFC 4193), or one that is yours in 2000::/3"))
}

fn host(key: &str, value: &Json, subnet: &Subnet) -> Result<Ipv4Addr, ConfigError> {
    let value = text(key, value)?;
    let bad = |why: String| error(key, format_args!("{value:?}"), why, format!("Write a host address of {subnet}"));
    let address: Ipv4Addr = value.parse().map_err(|_| bad("it is not an IPv4 address".into()))?;
    if address == subnet.network() {
        return Err(bad(format!("it is the network address of {subnet}")));
    }
    if address == subnet.broadcast() {
        return Err(bad(format!("it is the broadcast address of {subnet}")));
    }
    if !subnet.has_host(address) {
        return Err(bad(format!("it lies outside {subnet}")));
    }
    Ok(address)
}

/// Who is the router of a VLAN, in place of the host.
fn parse_router(
    value: &Json,
    subnet: &Subnet,
    gateway: Ipv4Addr,
    uplink: Option<&Uplink>,
) -> Result<Ipv4Addr, ConfigError> {
    let router = host("router", value, subnet)?;
    if uplink.is_none_or(|uplink| uplink.vlan == 0) {
        let why = "nobody but the gateway is a router of a network that is no VLAN";
        return Err(error("router", router, why, "Leave it out, or write \"parent\":\"eth0\",\"vlan\":100"));
    }
    if router == gateway {
        let why = "it is the gateway, which is the host's own address there";
        return Err(error("router", router, why, "Leave it out, or give the host another address as \"gateway\""));
    }
    Ok(router)
}

fn parse_reservations(
    value: &Json,
    subnet: &Subnet,
    gateway: Ipv4Addr,
    router: Option<Ipv4Addr>,
) -> Result<BTreeMap<String, Ipv4Addr>, ConfigError> {
    let Json::Object(entries) = value else {
        return Err(error(
            "reservations",
            value.kind(),
            "an object is needed here",
            "Write {\"vm-web\": \"10.42.0.10\"}, with addresses of the subnet",
        ));
    };
    let mut reservations = BTreeMap::new();
    let mut owners = HashMap::new();
    for (workload, value) in entries {
        let key = format!("reservations.{workload}");
        if !names::is_workload(workload) {
            return Err(error(
                "reservations",
                format_args!("{workload:?}"),
                names::WORKLOAD_RULE,
                "Name a workload, such as \"vm-web\"",
            ));
        }
        let address = host(&key, value, subnet)?;
        if address == gateway {
            return Err(error(key, address, "it is the gateway's address", "Reserve another one"));
        }
        if Some(address) == router {
            return Err(error(key, address, "it is the router's address", "Reserve another one"));
        }
        if let Some(owner) = owners.insert(address, workload) {
            return Err(error(
                key,
                address,
                format!("it is reserved for {owner} as well"),
                "Give each workload an address of its own",
            ));
        }
        reservations.insert(workload.clone(), address);
    }
    Ok(reservations)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
