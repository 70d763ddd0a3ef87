//! What fuzzing tries of this crate: a function a target, which panics where a promise is broken.

use std::collections::HashSet;

use crate::config::{Ipv6, PoolConfig};

/// A pool's configuration, as a caller sends it and as the database has it: what is taken is one that the rules allow, and the text that
/// is made of it is read as the same.
pub fn pool_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let config = match (PoolConfig::parse(text), PoolConfig::read(text)) {
        (Ok(parsed), read) => {
            assert_eq!(read.as_ref(), Ok(&parsed));
            assert_eq!(PoolConfig::parse(&parsed.to_json()), Ok(parsed.clone()));
            parsed
        }
        // Only the name may be what is wrong with it.
        (Err(wrong), Ok(read)) => {
            assert_eq!(wrong.key, "network");
            read
        }
        (Err(wrong), read) => {
            assert!(!wrong.why.is_empty() && !wrong.remedy.is_empty() && wrong.value.chars().count() <= 80);
            assert_eq!(read, Err(wrong));
            return;
        }
    };
    assert_eq!(PoolConfig::read(&config.to_json()), Ok(config.clone()));
    let PoolConfig { subnet, gateway, start, end, reservations, .. } = &config;
    assert!(config.mtu.is_none_or(schema::net::is_mtu));
    if let Ipv6::Gateway(gateway) = config.ipv6 {
        assert!(schema::net::is_of_ipv6_hosts(gateway));
    }
    assert!((8..=30).contains(&subnet.prefix()) && subnet.overlaps(subnet));
    assert!([gateway, start, end].into_iter().chain(reservations.values()).all(|address| subnet.has_host(*address)));
    assert!(start <= end && !config.in_range(*gateway));
    assert!(!reservations.values().any(|address| address == gateway));
    assert_eq!(reservations.values().collect::<HashSet<_>>().len(), reservations.len());
}

#[cfg(test)]
mod tests {
    #[test]
    fn kept_pool_configurations_break_no_promise() {
        testkit::corpus::replay("pool_config", super::pool_config);
    }
}
