//! Which of the installations of Volt that share a network namespace this one is. Pure.

use std::{fmt, str::FromStr};

/// Which installation of Volt, of those that may share a network namespace; empty for one that was not told a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instance(String);

impl Instance {
    /// What an installation is called that was not told a name.
    pub const NONE: &str = "-";

    /// Whether it may have what `owner`'s mark is on: its own, and what names no owner, as that of an earlier release does.
    pub fn may_have(&self, owner: &Instance) -> bool {
        owner == self || owner.0.is_empty()
    }
}

impl FromStr for Instance {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Instance, &'static str> {
        if schema::names::is_instance(text) { Ok(Instance(text.to_owned())) } else { Err(schema::names::INSTANCE_RULE) }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { Instance::NONE } else { &self.0 })
    }
}
