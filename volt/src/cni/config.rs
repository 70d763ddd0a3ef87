//! What an engine hands a plugin: a configuration in JSON, and variables of the environment (CNI, sections 1 and 2). Pure. Anything that would be
//! done differently from what it says is refused by its name, and nothing of it is ever used as a path but the namespace's.

use std::{collections::BTreeSet, ffi::OsString};

use schema::{names, net::Mac};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    answer::{self, NEWEST, Refusal, VERSIONS, invalid},
    wishes,
};
use crate::{config::Rate, host::published::Publish};

/// This plugin, as a configuration names it.
pub const PLUGIN: &str = "volt-cni";
/// The network of a configuration that says none.
const NETWORK: &str = "volt0";

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    fn read(text: &str) -> Option<Command> {
        Some(match text {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            "CHECK" => Command::Check,
            "GC" => Command::Gc,
            "STATUS" => Command::Status,
            "VERSION" => Command::Version,
            _ => return None,
        })
    }
}

/// A command, with all that it takes.
#[derive(Debug)]
pub struct Call {
    pub command: Command,
    /// To be answered in.
    pub version: String,
    /// The network of Volt's.
    pub network: String,
    /// What the workloads of this configuration's attachments begin with.
    pub prefix: String,
    /// The workload of this attachment; of the commands that are about one.
    pub workload: Option<String>,
    /// Name of the interface within.
    pub interface: String,
    /// Path of the namespace.
    pub netns: Option<String>,
    /// Whether an interface is wanted, and not only an address.
    pub attaches: bool,
    /// Subnets that the container reaches by way of the gateway; everything, where nothing is said.
    pub routes: Option<Vec<String>>,
    /// An address that is asked for; empty for none.
    pub address: String,
    /// A MAC address that is asked for.
    pub mac: Option<Mac>,
    /// Ports of the host that are to lead there.
    pub publish: Vec<Publish>,
    /// What it is to carry at most.
    pub rate: Rate,
    /// Workloads that are valid, of `GC`.
    pub valid: BTreeSet<String>,
    /// The result of the plugin before, or of this one.
    pub before: Option<Value>,
    pub dns: Option<Value>,
}

/// Keys of the specification's own; what the plugin does not look at of them changes nothing.
const SPECIFIED: [&str; 14] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
    "capabilities",
    "runtimeConfig",
    "args",
    "prevResult",
    "dns",
    "cni.dev/valid-attachments",
    "cni.dev/attachments",
];
/// And of this plugin's.
const OWN: [&str; 2] = ["network", "routes"];

impl Call {
    /// Reads and checks it; notes the version in which it is to be answered as soon as that is known.
    pub fn read(
        text: &str,
        variable: impl Fn(&str) -> Option<OsString>,
        noted: &mut Option<String>,
    ) -> Result<Call, Refusal> {
        let environment = |name: &str| -> Result<Option<String>, Refusal> {
            let text = variable(name).map(OsString::into_string).transpose();
            let text =
                text.map_err(|_| Refusal::new(answer::ENVIRONMENT, &format!("read {name}"), "it is not UTF-8"))?;
            Ok(text.filter(|text| !text.is_empty()))
        };
        let said = environment("CNI_COMMAND")?.unwrap_or_default();
        let command = Command::read(&said).ok_or_else(|| {
            let why = format!("{said:?} is none of ADD, DEL, CHECK, GC, STATUS and VERSION");
            Refusal::new(answer::ENVIRONMENT, "read CNI_COMMAND", why)
        })?;
        let decoded: Value = serde_json::from_str(text)
            .map_err(|why| Refusal::new(answer::DECODE, "read the configuration on standard input", why))?;
        let Value::Object(config) = decoded else {
            return Err(Refusal::new(answer::DECODE, "read the configuration", "it is not a JSON object"));
        };
        let version = version(&config, command)?;
        *noted = Some(version.clone());
        let mut call = Call {
            command,
            version,
            network: NETWORK.into(),
            prefix: String::new(),
            workload: None,
            interface: String::new(),
            netns: None,
            attaches: true,
            routes: None,
            address: String::new(),
            mac: None,
            publish: Vec::new(),
            rate: Rate::default(),
            valid: BTreeSet::new(),
            before: config.get("prevResult").filter(|before| !before.is_null()).cloned(),
            dns: config.get("dns").cloned(),
        };
        if command == Command::Version {
            return Ok(call);
        }
        let name = required(&config, "name")?;
        if !is_name(name) {
            return Err(invalid(
                "name",
                "it must begin with a letter or digit, and go on with these, '_', '.' and '-'",
            ));
        }
        call.prefix = format!("cni-{}-", hash(&[name], 10));
        call.read_own(&config)?;
        if command == Command::Gc {
            call.valid = attachments(&config, name)?;
            return Ok(call);
        }
        if command == Command::Status {
            return Ok(call);
        }
        let needed = |name: &str| {
            let missing = || Refusal::new(answer::ENVIRONMENT, &format!("read {name}"), "it is not set");
            environment(name)?.ok_or_else(missing)
        };
        let (id, interface) = (needed("CNI_CONTAINERID")?, needed("CNI_IFNAME")?);
        check_attachment(&id, &interface)
            .map_err(|(what, why)| Refusal::new(answer::ENVIRONMENT, &format!("read CNI_{what}"), why))?;
        call.workload = Some(workload(name, &id, &interface));
        call.interface = interface;
        // Of no use to a removal: it may be empty, gone, or something else's by now.
        if call.attaches && matches!(command, Command::Add | Command::Check) {
            call.netns = Some(needed("CNI_NETNS")?);
        }
        if command != Command::Del {
            call.read_wishes(&config, environment("CNI_ARGS")?.as_deref().unwrap_or_default())?;
        }
        if command == Command::Check && call.before.is_none() {
            return Err(invalid("prevResult", "CHECK takes the result of ADD, and it is not there"));
        }
        Ok(call)
    }

    /// What is this plugin's: all of the configuration, or, where another plugin makes the interface, its `ipam`.
    fn read_own(&mut self, config: &Map<String, Value>) -> Result<(), Refusal> {
        let kind = required(config, "type")?;
        check_type("type", kind)?;
        let ipam = config.get("ipam").filter(|ipam| !ipam.is_null());
        let ipam = match ipam {
            None => None,
            Some(Value::Object(ipam)) => Some(ipam),
            Some(_) => return Err(invalid("ipam", "it is not an object")),
        };
        let of_ipam = ipam.map(|ipam| required(ipam, "type")).transpose()?;
        if let Some(of_ipam) = of_ipam {
            check_type("ipam.type", of_ipam)?;
        }
        let (own, which): (&Map<String, Value>, &str) = match (of_ipam, ipam) {
            (Some(PLUGIN), Some(ipam)) if kind != PLUGIN => (ipam, "ipam."),
            (Some(PLUGIN) | None, _) => (config, ""),
            (Some(other), _) => {
                let why = format!("{other:?}: this plugin's addresses are ipamd's, and it starts no other plugin");
                return Err(invalid("ipam.type", &why));
            }
        };
        self.attaches = which.is_empty();
        for key in own.keys() {
            let specified =
                if self.attaches { SPECIFIED.contains(&key.as_str()) || key == "ipam" } else { key == "type" };
            if !specified && !OWN.contains(&key.as_str()) {
                let why = "this plugin does not know it, and does nothing that it might say";
                return Err(Refusal::new(answer::FIELD, &format!("read {which}{key}"), why)
                    .remedy("Leave it out, or give it to another plugin of the chain"));
            }
        }
        if self.attaches
            && let Some(ipam) = ipam
            && let Some(key) = ipam.keys().find(|key| *key != "type")
        {
            return Err(invalid(&format!("ipam.{key}"), "this plugin has what it knows beside ipam, and not within"));
        }
        if let Some(network) = own.get("network") {
            let network = network.as_str().filter(|network| names::is_network(network));
            self.network = network.ok_or_else(|| invalid("network", names::NETWORK_RULE))?.to_owned();
        }
        let read = |route: &Value| {
            let fields = route.as_object().filter(|fields| fields.len() == 1);
            let dst = fields.and_then(|fields| fields.get("dst")?.as_str());
            let rule = "a route is {\"dst\": SUBNET}, and leads by way of the network's gateway";
            dst.map(str::to_owned).ok_or_else(|| invalid("routes", rule))
        };
        self.routes = match own.get("routes") {
            None => None,
            Some(Value::Array(routes)) => Some(routes.iter().map(read).collect::<Result<_, _>>()?),
            Some(_) => return Err(invalid("routes", "it is not a list")),
        };
        Ok(())
    }

    /// What somebody asks for, by `runtimeConfig`, or, of addresses, by `CNI_ARGS`.
    fn read_wishes(&mut self, config: &Map<String, Value>, arguments: &str) -> Result<(), Refusal> {
        let own = if self.attaches { config.get("runtimeConfig").and_then(Value::as_object) } else { None };
        for (key, value) in own.into_iter().flatten() {
            match (key.as_str(), value) {
                ("ips", Value::Array(ips)) => match ips.as_slice() {
                    [] => {}
                    [Value::String(ip)] => self.address = ip.split('/').next().unwrap_or_default().to_owned(),
                    _ => return Err(invalid("runtimeConfig.ips", "a container has one address on a network")),
                },
                ("mac", Value::String(mac)) => self.ask_mac(mac).map_err(|why| invalid("runtimeConfig.mac", why))?,
                ("portMappings", mappings) => self.publish = wishes::mappings(mappings)?,
                ("bandwidth", bandwidth) => self.rate = wishes::bandwidth(bandwidth)?,
                _ => {
                    let why = "this plugin does not do that";
                    return Err(Refusal::new(answer::FIELD, &format!("read runtimeConfig.{key}"), why));
                }
            }
        }
        let pairs: Vec<(&str, &str)> = arguments
            .split(';')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .collect();
        let lax = pairs.iter().any(|(key, value)| *key == "IgnoreUnknown" && matches!(*value, "1" | "true"));
        for (key, value) in pairs {
            match key {
                "IgnoreUnknown" => {}
                "IP" => self.address = value.split('/').next().unwrap_or_default().to_owned(),
                "MAC" => {
                    self.ask_mac(value).map_err(|why| Refusal::new(answer::ENVIRONMENT, "read MAC of CNI_ARGS", why))?
                }
                _ if lax => {}
                _ => {
                    let why = "this plugin does not know it, and IgnoreUnknown is not set";
                    return Err(Refusal::new(answer::ENVIRONMENT, &format!("read {key} of CNI_ARGS"), why));
                }
            }
        }
        Ok(())
    }

    fn ask_mac(&mut self, text: &str) -> Result<(), &'static str> {
        self.mac = Some(text.parse().map_err(|_| schema::net::MAC_RULE)?);
        Ok(())
    }
}

/// The version that is to be answered in. Where something is to be taken away, one that says nothing of it is as good as any.
fn version(config: &Map<String, Value>, command: Command) -> Result<String, Refusal> {
    let said = match config.get("cniVersion") {
        Some(Value::String(version)) => version.as_str(),
        None if matches!(command, Command::Del | Command::Version) => NEWEST,
        None => "",
        Some(_) => return Err(invalid("cniVersion", "it is not a text")),
    };
    if VERSIONS.contains(&said) {
        return Ok(said.to_owned());
    }
    if command == Command::Version {
        return Ok(NEWEST.to_owned());
    }
    let why = if said.is_empty() { "it is not there".to_owned() } else { format!("{said:?} is none of these") };
    Err(Refusal::new(answer::VERSION, "read cniVersion", why).remedy(&format!("Use one of {}", VERSIONS.join(", "))))
}

fn required<'a>(config: &'a Map<String, Value>, key: &str) -> Result<&'a str, Refusal> {
    let text = config.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    text.ok_or_else(|| invalid(key, "it is not there, or no text"))
}

/// Which an engine looks for among its plugins by that name (CVE-2021-20206). Nothing here does; it is refused all the same.
fn check_type(key: &str, name: &str) -> Result<(), Refusal> {
    let bare = !name.contains(['/', '\\', '\0']) && !matches!(name, "." | "..") && !name.chars().any(char::is_control);
    if bare { Ok(()) } else { Err(invalid(key, "it must be the bare name of a plugin's file")) }
}

/// CNI, section 1: names of networks and of containers.
fn is_name(text: &str) -> bool {
    text.len() <= 255
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn check_attachment(id: &str, interface: &str) -> Result<(), (&'static str, &'static str)> {
    if !is_name(id) {
        return Err(("CONTAINERID", "it must begin with a letter or digit, and go on with these, '_', '.' and '-'"));
    }
    if names::is_network(interface) { Ok(()) } else { Err(("IFNAME", names::NETWORK_RULE)) }
}

/// The workload of an attachment: the same for the same names of its configuration, container and interface, and no other's. For people, the
/// beginning of the container's is in it.
fn workload(name: &str, id: &str, interface: &str) -> String {
    let shown: String = id.chars().take(12).filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit()).collect();
    let hash = hash(&[name, id, interface], 24);
    format!("cni-{}-{shown}-{hash}", self::hash(&[name], 10))
}

fn hash(parts: &[&str], digits: usize) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    hex.chars().take(digits).collect()
}

/// Those that `GC` is to leave. Without the list nothing is known, and nothing is done; an empty one says that there are none.
fn attachments(config: &Map<String, Value>, name: &str) -> Result<BTreeSet<String>, Refusal> {
    const KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];
    let mut valid = BTreeSet::new();
    let mut lists = KEYS.iter().filter_map(|key| Some((key, config.get(*key)?))).peekable();
    if lists.peek().is_none() {
        return Err(invalid(
            KEYS[0],
            "it is not there: which attachments are valid is not known, and none was removed",
        ));
    }
    for (key, list) in lists {
        let list = list.as_array().ok_or_else(|| invalid(key, "it is not a list"))?;
        for one in list {
            let field = |field: &str| one.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
            let (Some(id), Some(interface)) = (field("containerID"), field("ifname")) else {
                return Err(invalid(key, "an attachment lacks its containerID or its ifname"));
            };
            check_attachment(id, interface).map_err(|(what, why)| invalid(key, &format!("{what}: {why}")))?;
            valid.insert(workload(name, id, interface));
        }
    }
    Ok(valid)
}

#[cfg(test)]
mod tests;
