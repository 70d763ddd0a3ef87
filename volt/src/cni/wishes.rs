//! What an engine asks for of one container by the capabilities `portMappings` and `bandwidth` (CNI's conventions, "Dynamic Plugin specific fields"), in
//! the form of the plugins that others have for it, `portmap` and `bandwidth`. Pure. What would be done differently is refused by its name.

use std::{collections::BTreeMap, net::IpAddr};

use schema::network_capnp::{MAX_RATE, MIN_RATE, published::Protocol};
use serde_json::Value;

use super::answer::{Refusal, invalid};
use crate::{
    config::{Rate, check_published},
    host::published::Publish,
};

const MAPPINGS: &str = "runtimeConfig.portMappings";
const BANDWIDTH: &str = "runtimeConfig.bandwidth";

/// Ports of the host that are to lead to a container.
pub fn mappings(value: &Value) -> Result<Vec<Publish>, Refusal> {
    let list = match value {
        Value::Null => &[],
        Value::Array(list) => list.as_slice(),
        _ => return Err(invalid(MAPPINGS, "it is not a list")),
    };
    let publish = Publish::together(list.iter().map(mapping).collect::<Result<Vec<_>, _>>()?);
    check_published(&publish).map_err(|why| invalid(MAPPINGS, &why.to_string()))?;
    Ok(publish)
}

fn mapping(value: &Value) -> Result<Publish, Refusal> {
    let fields = fields(MAPPINGS, value, &["hostPort", "containerPort", "protocol", "hostIP"])?;
    let refused = |key: &str, why: &str| invalid(&format!("{MAPPINGS}.{key}"), why);
    let port = |key: &str| {
        let port = fields.get(key).and_then(|port| port.as_u64()).and_then(|port| u16::try_from(port).ok());
        port.filter(|port| *port != 0).ok_or_else(|| refused(key, "it must be there, and be a number from 1 to 65535"))
    };
    let text = |key: &str| match fields.get(key) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(refused(key, "it is not a text")),
    };
    let protocol = match text("protocol")?.to_ascii_lowercase().as_str() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => return Err(refused("protocol", &format!("{other:?} cannot be published: it must be tcp or udp"))),
    };
    let address: Option<IpAddr> = match text("hostIP")? {
        "" => None,
        text => match text.parse() {
            Ok(address) => Some(address),
            Err(_) => return Err(refused("hostIP", &format!("{text:?} is no address of IPv4 or IPv6"))),
        },
    };
    Ok(Publish::new(protocol, address, port("hostPort")?, port("containerPort")?))
}

/// What a container may be sent, and send.
pub fn bandwidth(value: &Value) -> Result<Rate, Refusal> {
    if value.is_null() {
        return Ok(Rate::default());
    }
    let fields = fields(BANDWIDTH, value, &["ingressRate", "ingressBurst", "egressRate", "egressBurst"])?;
    // Bits a second; and how many of them may come at once, which is netmgr's to say, and the same for all.
    let number = |key: &str| match fields.get(key) {
        None | Some(Value::Null) => Ok(0),
        Some(number) => {
            let why = "it is no whole number of bits, 0 or more";
            number.as_u64().ok_or_else(|| invalid(&format!("{BANDWIDTH}.{key}"), why))
        }
    };
    let rate = |key: &str| {
        let bits = number(key)?;
        if bits != 0 && !(MIN_RATE..=MAX_RATE).contains(&(bits / 8)) {
            let why = format!("{bits} bits a second are not between {} and {}", MIN_RATE * 8, MAX_RATE * 8);
            return Err(invalid(&format!("{BANDWIDTH}.{key}"), &why));
        }
        Ok(bits / 8)
    };
    for key in ["ingressBurst", "egressBurst"] {
        number(key)?;
    }
    Ok(Rate { from_guest: rate("egressRate")?, to_guest: rate("ingressRate")? })
}

/// The fields of an object, which has no others, each once. Of their names, upper and lower case are the same: some engines write `HostPort`.
fn fields<'a>(
    of: &str,
    value: &'a Value,
    known: &[&'static str],
) -> Result<BTreeMap<&'static str, &'a Value>, Refusal> {
    let object = value.as_object().ok_or_else(|| invalid(of, "it is not an object, or has what is none in it"))?;
    let mut fields = BTreeMap::new();
    for (key, value) in object {
        let refused = |why: &str| invalid(&format!("{of}.{key}"), why);
        let name = known.iter().find(|name| name.eq_ignore_ascii_case(key));
        let name = *name.ok_or_else(|| refused("this plugin does not know it"))?;
        if fields.insert(name, value).is_some() {
            return Err(refused("it is there twice"));
        }
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mappings_are_read_as_engines_write_them_and_together_where_they_follow_one_another() {
        let read = |value: Value| mappings(&value).unwrap().iter().map(Publish::to_string).collect::<Vec<_>>();
        assert_eq!(read(Value::Null), [""; 0]);
        assert_eq!(read(json!([])), [""; 0]);
        let one = |host: u16, guest: u16| json!({ "hostPort": host, "containerPort": guest, "protocol": "tcp" });
        assert_eq!(read(json!([one(8080, 80)])), ["8080:80"]);
        assert_eq!(read(json!([one(8080, 80), one(8081, 81), one(8082, 90)])), ["8080-8081:80-81", "8082:90"]);
        let of = |protocol: &str, ip: Value| json!({ "hostPort": 53, "containerPort": 5353, "protocol": protocol, "hostIP": ip });
        assert_eq!(
            read(json!([of("UDP", json!("")), of("tcp", json!("127.0.0.1"))])),
            ["53:5353/udp", "127.0.0.1:53:5353"]
        );
        let by_containerd = json!({ "HostPort": 80, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": "" });
        assert_eq!(read(json!([by_containerd])), ["80:8080"]);
        let twice = json!([{ "HostPort": 80, "hostPort": 81, "containerPort": 80 }]);
        let refused = mappings(&twice).unwrap_err().json(None);
        assert!(refused["msg"].as_str().unwrap().contains("twice"), "{refused}");
        assert_eq!(read(json!([of("", json!("::")), of("", json!("0.0.0.0"))])), ["[::]:53:5353", "0.0.0.0:53:5353"]);
        let most: Vec<Value> = (1..=256).map(|port| one(port, port)).collect();
        assert_eq!(read(json!(most)), ["1-256:1-256"]);
    }

    #[test]
    fn bandwidth_is_bits_a_second_both_ways_and_as_much_as_there_is_where_nothing_is_said() {
        let read =
            |value: Value| bandwidth(&value).map(|Rate { from_guest, to_guest }| (from_guest, to_guest)).unwrap();
        assert_eq!(
            read(json!({ "ingressRate": 8000, "ingressBurst": 1, "egressRate": 80_000_000_000_u64 })),
            (10_000_000_000, 1000)
        );
        for none in [Value::Null, json!({}), json!({ "ingressRate": 0, "egressBurst": u32::MAX })] {
            assert_eq!(read(none), (0, 0));
        }
        for (wrong, key) in [
            (json!([]), "bandwidth"),
            (json!({ "ingressRate": -1 }), "ingressRate"),
            (json!({ "ingressRate": 7999 }), "between 8000 and 80000000000"),
            (json!({ "egressRate": 80_000_000_008_u64 }), "egressRate"),
            (json!({ "egressBurst": "1M" }), "egressBurst"),
            (json!({ "latency": 1 }), "latency"),
            (json!({ "IngressRate": 8000, "ingressRate": 8000 }), "twice"),
        ] {
            let refused = bandwidth(&wrong).unwrap_err().json(None);
            assert!(refused["code"] == 7 && refused["msg"].as_str().unwrap().contains(key), "{refused}");
        }
    }
}
