//! What a network card says of its virtual functions (SR-IOV): the attributes IFLA_VF_* of its physical function's interface (linux/if_link.h). And what
//! is known of one that is taken. Pure; touches nothing.

use rtnetlink::packet_core::parse_mac;
use schema::net::Mac;

use crate::attribute::{Malformed, attributes, number};

// What the libc crate lacks of linux/if_link.h.
const IFLA_VF_INFO: u16 = 1;
const IFLA_VF_MAC: u16 = 1;
const IFLA_VF_VLAN: u16 = 2;
const IFLA_VF_SPOOFCHK: u16 = 4;
const IFLA_VF_LINK_STATE: u16 = 5;
const IFLA_VF_RATE: u16 = 6;
const IFLA_VF_TRUST: u16 = 9;
const IFLA_VF_LINK_STATE_DISABLE: u32 = 2;
/// What stands for a setting that the driver does not have.
const UNKNOWN: u32 = u32::MAX;

/// A virtual function, as its card describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vf {
    /// Which one, from 0 on.
    pub number: u32,
    /// Whether it is kept from carrying anything.
    pub disabled: bool,
    /// What it is set to.
    pub settings: Settings,
}

/// What a virtual function is set to by its card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Its address; `None` for the one that its own driver chooses.
    pub mac: Option<Mac>,
    /// The VLAN that it is of, 0 for none, and the priority of its frames there.
    pub vlan: (u32, u32),
    /// The least and the most that it sends, in Mbit/s; 0 for no limit.
    pub rates: (u32, u32),
    /// Whether it is kept to its own addresses; `None` where the driver does not say.
    pub spoof_check: Option<bool>,
    /// Whether it may have what is others'; `None` where the driver does not say.
    pub trust: Option<bool>,
}

/// A virtual function that is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// The index of its own interface.
    pub interface: u32,
    /// Its PCI address.
    pub address: String,
    /// The index of its card's interface.
    pub card: u32,
    /// Which one of that card's it is.
    pub number: u32,
    /// The network that it is taken for.
    pub network: String,
    /// The VLAN that it is set to; 0 for none.
    pub vlan: u16,
    /// Whether it is trusted.
    pub trust: bool,
    /// What it was before.
    pub found: Found,
}

/// What a virtual function was that nobody used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// By its card.
    pub settings: Settings,
    /// The address that its own driver had.
    pub mac: Mac,
    /// Bytes.
    pub mtu: u32,
    /// Whether the host's IPv6 was on on it.
    pub ipv6: bool,
    /// Whether the host answered ARP there.
    pub arp: bool,
}

/// Reads what is in IFLA_VFINFO_LIST.
pub fn read(list: &[u8]) -> Result<Vec<Vf>, Malformed> {
    let listed = attributes(list).map(|one| {
        let one = one?;
        if one.kind() == IFLA_VF_INFO { Vf::read(one.value()).map(Some) } else { Ok(None) }
    });
    listed.filter_map(Result::transpose).collect()
}

impl Vf {
    fn read(info: &[u8]) -> Result<Vf, Malformed> {
        const WHAT: &str = "virtual function";
        let mut vf = Vf::default();
        for one in attributes(info) {
            let one = one?;
            let value = one.value();
            // Each begins with which one it is of.
            let at = |at: usize| number(value.get(4 * at..4 * at + 4).unwrap_or_default(), WHAT);
            let switch = || at(1).map(|setting| (setting != UNKNOWN).then_some(setting != 0));
            let Settings { mac, vlan, rates, spoof_check, trust } = &mut vf.settings;
            match one.kind() {
                IFLA_VF_MAC => {
                    let address = value.get(4..10).and_then(|bytes| parse_mac(bytes).ok()).ok_or(Malformed(WHAT))?;
                    (vf.number, *mac) = (at(0)?, Mac::new(address));
                }
                IFLA_VF_VLAN => *vlan = (at(1)?, at(2)?),
                IFLA_VF_RATE => *rates = (at(1)?, at(2)?),
                IFLA_VF_SPOOFCHK => *spoof_check = switch()?,
                IFLA_VF_TRUST => *trust = switch()?,
                IFLA_VF_LINK_STATE => vf.disabled = at(1)? == IFLA_VF_LINK_STATE_DISABLE,
                _ => {}
            }
        }
        Ok(vf)
    }
}

impl Settings {
    /// Whether it is as safe as that: all but what it may send.
    pub fn meets(&self, wanted: &Settings) -> bool {
        (self.mac, self.vlan) == (wanted.mac, wanted.vlan)
            && (self.spoof_check == wanted.spoof_check || wanted.spoof_check.is_none())
            && self.trust.unwrap_or_default() == wanted.trust.unwrap_or_default()
    }

    /// In words, as a mark has them.
    pub fn words(&self) -> String {
        let mac = self.mac.map_or_else(|| "-".into(), |mac| mac.to_string());
        let switch = |on: Option<bool>| on.map_or("-", |on| if on { "on" } else { "off" });
        let ((vlan, qos), (least, most)) = (self.vlan, self.rates);
        format!("{mac} {vlan} {qos} {least} {most} {} {}", switch(self.spoof_check), switch(self.trust))
    }

    /// Reads these words.
    pub fn read(words: &[&str; 7]) -> Option<Settings> {
        let [mac, vlan, qos, least, most, spoof_check, trust] = words;
        let switch = |word: &str| match word {
            "-" => Some(None),
            "on" => Some(Some(true)),
            "off" => Some(Some(false)),
            _ => None,
        };
        let mac = if *mac == "-" { None } else { Some(mac.parse().ok()?) };
        let (vlan, rates) = ((vlan.parse().ok()?, qos.parse().ok()?), (least.parse().ok()?, most.parse().ok()?));
        Some(Settings { mac, vlan, rates, spoof_check: switch(spoof_check)?, trust: switch(trust)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::attribute;

    fn words(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
    }

    fn info(attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
        attribute(
            IFLA_VF_INFO,
            &attributes.iter().flat_map(|(kind, value)| attribute(*kind, value)).collect::<Vec<_>>(),
        )
    }

    fn mac(number: u32, address: [u8; 6]) -> (u16, Vec<u8>) {
        (IFLA_VF_MAC, [&number.to_ne_bytes()[..], &address, &[0; 26]].concat())
    }

    #[test]
    fn functions_are_read_field_by_field_and_what_a_driver_does_not_have_is_none() {
        let first = info(&[
            mac(0, [2, 0, 0, 0, 0, 5]),
            (IFLA_VF_VLAN, words(&[0, 7, 3])),
            (IFLA_VF_SPOOFCHK, words(&[0, 1])),
            (IFLA_VF_LINK_STATE, words(&[0, IFLA_VF_LINK_STATE_DISABLE])),
            (IFLA_VF_RATE, words(&[0, 5, 100])),
            (IFLA_VF_TRUST, words(&[0, 0])),
            (99, vec![1]),
        ]);
        let second = info(&[
            mac(9, [0; 6]),
            (IFLA_VF_SPOOFCHK, words(&[9, UNKNOWN])),
            (IFLA_VF_LINK_STATE, words(&[9, 1])),
            (IFLA_VF_TRUST, words(&[9, UNKNOWN])),
        ]);
        let settings = Settings {
            mac: Mac::new([2, 0, 0, 0, 0, 5]),
            vlan: (7, 3),
            rates: (5, 100),
            spoof_check: Some(true),
            trust: Some(false),
        };
        let expected = [
            Vf { number: 0, disabled: true, settings },
            Vf { number: 9, disabled: false, settings: Settings::default() },
        ];
        assert_eq!(read(&[first, attribute(7, &[1]), second].concat()).unwrap(), expected);
        for bad in [
            (IFLA_VF_MAC, vec![0; 9]),
            (IFLA_VF_VLAN, words(&[0, 7])),
            (IFLA_VF_SPOOFCHK, words(&[0])),
            (IFLA_VF_RATE, words(&[0, 1])),
            (IFLA_VF_TRUST, vec![0; 7]),
            (IFLA_VF_LINK_STATE, vec![]),
        ] {
            assert!(read(&info(&[bad])).is_err());
        }
    }

    #[test]
    fn settings_read_back_from_their_words_and_no_others_do() {
        for settings in [
            Settings::default(),
            Settings {
                mac: Mac::new([2, 0, 0, 0, 0, 5]),
                vlan: (4094, 7),
                rates: (u32::MAX, u32::MAX),
                spoof_check: Some(false),
                trust: Some(true),
            },
        ] {
            let words = settings.words();
            let words: Vec<&str> = words.split(' ').collect();
            assert_eq!(Settings::read(&words.try_into().unwrap()), Some(settings));
        }
        for bad in ["x 0 0 0 0 - -", "- -1 0 0 0 - -", "- 0 0 0 0 yes -", "- 0 0 0 0 - 1"] {
            let words: Vec<&str> = bad.split(' ').collect();
            assert_eq!(Settings::read(&words.try_into().unwrap()), None, "{bad}");
        }
    }
}
