//! How much a port carries. Pure; touches nothing.

use schema::network_capnp::{MAX_RATE, MIN_RATE};

use crate::error::Error;

/// Bytes in a second, each way, from the IP header on; 0 for as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// From the guest.
    pub from_guest: u64,
    /// To it.
    pub to_guest: u64,
}

impl Rate {
    /// One that a caller asks for.
    pub fn new(from_guest: u64, to_guest: u64) -> Result<Rate, Error> {
        for rate in [from_guest, to_guest] {
            if rate != 0 && !(MIN_RATE..=MAX_RATE).contains(&rate) {
                let why = format!("it must be {MIN_RATE} to {MAX_RATE} bytes a second, or 0 for no limit");
                return Err(Error::argument("rate", &rate.to_string(), &why));
            }
        }
        Ok(Rate { from_guest, to_guest })
    }

    /// The lower one, each way.
    pub fn within(self, bound: Rate) -> Rate {
        let lower = |one: u64, other: u64| if one == 0 || other == 0 { one.max(other) } else { one.min(other) };
        Rate { from_guest: lower(self.from_guest, bound.from_guest), to_guest: lower(self.to_guest, bound.to_guest) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_within_its_limits_or_none() {
        for right in [0, MIN_RATE, MAX_RATE] {
            assert_eq!(Rate::new(right, 0).unwrap(), Rate { from_guest: right, to_guest: 0 });
            assert_eq!(Rate::new(0, right).unwrap(), Rate { from_guest: 0, to_guest: right });
        }
        for wrong in [1, MIN_RATE - 1, MAX_RATE + 1, u64::MAX] {
            for refused in [Rate::new(wrong, 0), Rate::new(0, wrong)] {
                assert!(refused.unwrap_err().to_string().contains(&wrong.to_string()));
            }
        }
    }

    #[test]
    fn rate_within_another_is_the_lower_of_both_each_way() {
        let rate = |from_guest, to_guest| Rate { from_guest, to_guest };
        assert_eq!(rate(0, 0).within(rate(0, 0)), rate(0, 0));
        assert_eq!(rate(5, 0).within(rate(0, 7)), rate(5, 7));
        assert_eq!(rate(5, 9).within(rate(6, 8)), rate(5, 8));
    }
}
