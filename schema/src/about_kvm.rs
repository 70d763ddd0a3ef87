//! What `vmm-core --about-kvm` prints of `/dev/kvm`, and `volt doctor` reads: a fact a line, each a word and what belongs to it.

use std::{fmt, str::FromStr};

/// Asks for it, before the number of the descriptor.
pub const ARGUMENT: &str = "--about-kvm";

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// It is another file, or KVM of another API version.
    NotKvm,
    /// The first thing that it lacks and every VM needs.
    Lacks(String),
    /// Most vCPUs of a VM.
    Vcpus(u64),
    /// Instructions a second of a guest.
    Speed(u64),
    /// Why that cannot be measured.
    NoSpeed(String),
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fact::NotKvm => f.write_str("not-kvm"),
            Fact::Lacks(what) => write!(f, "lacks {what}"),
            Fact::Vcpus(most) => write!(f, "vcpus {most}"),
            Fact::Speed(rate) => write!(f, "speed {rate}"),
            Fact::NoSpeed(why) => write!(f, "no-speed {why}"),
        }
    }
}

/// A line that says none of them.
#[derive(Debug, PartialEq, Eq)]
pub struct NoFact;

impl FromStr for Fact {
    type Err = NoFact;

    fn from_str(line: &str) -> Result<Fact, NoFact> {
        let number = |text: &str| text.parse().map_err(|_| NoFact);
        match line.split_once(' ') {
            None if line == "not-kvm" => Ok(Fact::NotKvm),
            Some(("lacks", what)) => Ok(Fact::Lacks(what.to_owned())),
            Some(("vcpus", most)) => number(most).map(Fact::Vcpus),
            Some(("speed", rate)) => number(rate).map(Fact::Speed),
            Some(("no-speed", why)) => Ok(Fact::NoSpeed(why.to_owned())),
            _ => Err(NoFact),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fact_is_read_as_it_was_printed_and_nothing_else_is_one() {
        let (what, why) = (String::from("irqfd"), String::from("KVM could not run a guest: no such device"));
        for fact in [Fact::NotKvm, Fact::Lacks(what), Fact::Vcpus(0), Fact::Speed(u64::MAX), Fact::NoSpeed(why)] {
            assert_eq!(fact.to_string().parse(), Ok(fact));
        }
        for none in ["", "not-kvm ", "vcpus", "vcpus ", "vcpus -1", "speed 18446744073709551616", "Vcpus 1", " vcpus 1"]
        {
            assert_eq!(none.parse::<Fact>(), Err(NoFact), "{none}");
        }
    }
}
