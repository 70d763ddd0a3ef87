//! What `volt-cni` prints: results and errors, in the version that was asked for (CNI, sections "Section 5: Result Types" and "Error"). Pure.

use std::fmt::Display;

use ipc::Code;
use serde_json::{Value, json};

use crate::error::Error;

/// The versions of the specification that are answered in.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The newest of them.
pub const NEWEST: &str = "1.1.0";

// CNI, "Error": the codes of the specification, and from 100 on those of the plugin.
pub const VERSION: u32 = 1;
pub const FIELD: u32 = 2;
pub const UNKNOWN: u32 = 3;
pub const ENVIRONMENT: u32 = 4;
pub const IO: u32 = 5;
pub const DECODE: u32 = 6;
pub const CONFIG: u32 = 7;
pub const AGAIN: u32 = 11;
pub const NOT_AVAILABLE: u32 = 50;
/// There is nothing left to give.
pub const EXHAUSTED: u32 = 100;
/// Something stands in the way.
pub const CONFLICT: u32 = 101;
/// What is there is not what the result says.
pub const DIFFERS: u32 = 102;
/// Anything else.
pub const OTHER: u32 = 103;

/// Why a command was not done.
#[derive(Debug)]
pub struct Refusal {
    pub code: u32,
    msg: String,
    details: String,
}

impl Refusal {
    /// What was tried, and why it failed.
    pub fn new(code: u32, tried: &str, why: impl Display) -> Refusal {
        Refusal { code, msg: format!("{tried}: {why}"), details: String::new() }
    }

    /// The same, with what can be done about it.
    pub fn remedy(self, details: &str) -> Refusal {
        Refusal { details: details.to_owned(), ..self }
    }

    /// As it is printed.
    pub fn json(&self, version: Option<&str>) -> Value {
        let version = version.unwrap_or(NEWEST);
        json!({ "cniVersion": version, "code": self.code, "msg": self.msg, "details": self.details })
    }
}

/// Why what a configuration has by that key is not taken.
pub fn invalid(key: &str, why: &str) -> Refusal {
    Refusal::new(CONFIG, &format!("read {key}"), why)
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let fault = error.fault();
        let code = match fault.code {
            Code::InvalidArgument | Code::NotFound => CONFIG,
            Code::Unavailable | Code::Overloaded => AGAIN,
            Code::Exhausted => EXHAUSTED,
            Code::Conflict | Code::AlreadyExists => CONFLICT,
            _ => OTHER,
        };
        Refusal { code, msg: format!("{}: {}", fault.tried, fault.why), details: fault.remedy }
    }
}

impl From<ipc::Fault> for Refusal {
    fn from(fault: ipc::Fault) -> Refusal {
        Error::Service(fault).into()
    }
}

impl From<capnp::Error> for Refusal {
    fn from(error: capnp::Error) -> Refusal {
        Error::from(error).into()
    }
}

/// What was attached.
#[derive(Debug, Default)]
pub struct Attached {
    /// The host's interface and its MAC address, if one was made.
    pub host: Option<(String, String)>,
    /// The container's: name, MAC address, path of the namespace.
    pub inside: Option<(String, String, String)>,
    /// Addresses with their prefix length, and the gateway of each.
    pub ips: Vec<(String, String)>,
    pub routes: Vec<String>,
    pub mtu: u32,
}

/// A result, added to that of the plugin before in a chain, if there is one.
pub fn result(version: &str, attached: &Attached, before: Option<&Value>, dns: Option<&Value>) -> Value {
    let list = |key: &str| before.and_then(|before| before.get(key)?.as_array().cloned()).unwrap_or_default();
    let (mut interfaces, mut ips, mut routes) = (list("interfaces"), list("ips"), list("routes"));
    let has_mtu = version == "1.1.0" && attached.mtu != 0;
    let with_mtu = |mut interface: Value| {
        if has_mtu && let Some(fields) = interface.as_object_mut() {
            fields.insert("mtu".into(), attached.mtu.into());
        }
        interface
    };
    if let Some((name, mac)) = &attached.host {
        interfaces.push(with_mtu(json!({ "name": name, "mac": mac })));
    }
    let family = |text: &str| if text.contains(':') { "6" } else { "4" };
    for (address, gateway) in &attached.ips {
        let mut ip = serde_json::Map::new();
        ip.insert("address".into(), address.as_str().into());
        if !gateway.is_empty() {
            ip.insert("gateway".into(), gateway.as_str().into());
        }
        if attached.inside.is_some() {
            ip.insert("interface".into(), interfaces.len().into());
        }
        if version.starts_with("0.") {
            ip.insert("version".into(), family(address).into());
        }
        ips.push(ip.into());
    }
    if let Some((name, mac, sandbox)) = &attached.inside {
        interfaces.push(with_mtu(json!({ "name": name, "mac": mac, "sandbox": sandbox })));
    }
    for dst in &attached.routes {
        let gateway = attached.ips.iter().find(|(address, _)| family(address) == family(dst));
        routes.push(json!({ "dst": dst, "gw": gateway.map_or("", |(_, gateway)| gateway) }));
    }
    let dns = dns.or_else(|| before?.get("dns")).cloned().unwrap_or_else(|| json!({}));
    let mut result = json!({ "cniVersion": version, "ips": ips, "routes": routes, "dns": dns });
    // What only gives addresses has no interfaces.
    if !interfaces.is_empty()
        && let Some(fields) = result.as_object_mut()
    {
        fields.insert("interfaces".into(), interfaces.into());
    }
    result
}
