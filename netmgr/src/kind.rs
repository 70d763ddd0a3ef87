//! Kinds of networks. Pure; touches nothing.

use std::fmt;

use schema::network_capnp::MacvtapMode;

/// What the guests of a network reach beside one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// The host.
    #[default]
    Bridged,
    /// The host, and, under its address, what is beyond it.
    Nat,
    /// What is beyond the host, and no service of its own.
    HostOnly,
    /// The network of an interface of the host's, past the host.
    Macvtap(MacvtapMode),
    /// The same, each by a virtual function of that interface's.
    Sriov {
        /// Whether these are trusted.
        trust: bool,
    },
    /// Nothing.
    Isolated,
}

/// As a network's JSON has it in `"type"`.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Bridged | Kind::Nat => "bridged",
            Kind::HostOnly => "host-only",
            Kind::Macvtap(_) => "macvtap",
            Kind::Sriov { .. } => "sriov",
            Kind::Isolated => "isolated",
        })
    }
}

impl Kind {
    /// Whether they reach what is beyond the host.
    pub fn leads_outward(self) -> bool {
        matches!(self, Kind::Nat | Kind::HostOnly)
    }
}
