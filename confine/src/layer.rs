//! The layers of confinement that may be missing, and what their absence asks for. Pure.

use std::fmt;

/// A layer that not every kernel, or not every user, has.
///
/// The layers that every supported kernel gives to everyone (`no_new_privs`, rlimits, non-dumpable, closing of
/// fds, emptying the other four capability sets) are no part of this list: where they fail, the start fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layer {
    /// Landlock: opening, making and removing files (ABI 1).
    Files,
    /// Landlock: truncating files (ABI 3).
    Truncate,
    /// Landlock: binding and connecting TCP sockets (ABI 4).
    Network,
    /// Landlock: ioctl on devices (ABI 5).
    DeviceIoctl,
    /// Landlock: abstract Unix sockets and signals out of the sandbox (ABI 6).
    Scopes,
    /// seccomp filters that kill the process.
    Seccomp,
    /// The capability bounding set.
    BoundingSet,
    /// nf_tables in the family `bridge`. `netmgr`'s alone, who asks for it.
    PacketFilter,
}

impl Layer {
    /// What the user can do to get the layer.
    pub fn remedy(self) -> &'static str {
        match self {
            Layer::Files => "Linux 5.13 with CONFIG_SECURITY_LANDLOCK and landlock in lsm=",
            Layer::Truncate => "Linux 6.2",
            Layer::Network => "Linux 6.7",
            Layer::DeviceIoctl => "Linux 6.10",
            Layer::Scopes => "Linux 6.12",
            Layer::Seccomp => "Linux 4.14 with CONFIG_SECCOMP_FILTER",
            Layer::BoundingSet => "root, or systemd's CapabilityBoundingSet=",
            Layer::PacketFilter => {
                "nf_tables for bridges: modprobe nf_tables, or a kernel with CONFIG_NF_TABLES_BRIDGE"
            }
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layer::Files => "Landlock file access",
            Layer::Truncate => "Landlock truncate",
            Layer::Network => "Landlock network",
            Layer::DeviceIoctl => "Landlock device ioctl",
            Layer::Scopes => "Landlock scopes",
            Layer::Seccomp => "seccomp",
            Layer::BoundingSet => "capability bounding set",
            Layer::PacketFilter => "a filter of what guests send",
        })
    }
}

/// The layers with their remedies, as one line.
pub fn list(layers: &[Layer]) -> String {
    let named: Vec<String> = layers.iter().map(|layer| format!("{layer} (needs {})", layer.remedy())).collect();
    named.join(", ")
}
