//! What is wrong with a flag, or with the same key of a VM's file.

use std::borrow::Cow;

use ipc::count;
use schema::{
    limits::{MAX_DEVICES, MAX_MEMORY, MAX_VCPUS, MIN_MEMORY},
    names,
    network_capnp::MAX_PUBLISHED,
};

/// Why a VM's configuration cannot be one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// There is no kernel that every host has.
    #[error("no kernel is given")]
    NoKernel,
    /// A VM is stopped by its name.
    #[error("no name is given")]
    NoName,
    /// It becomes part of a socket's file name and of `vm-<name>`.
    #[error("{0:?} is not a VM's name")]
    Name(String),
    /// Too few or too many.
    #[error("{0} is not between 1 and {MAX_VCPUS}")]
    Cpus(u16),
    /// Text that is no size.
    #[error("{0:?} is not a size")]
    Size(String),
    /// A size that no guest can have; and one that it can.
    #[error("{} is not a whole number of MiB between {}M and {}G", count(*bytes, "byte"), MIN_MEMORY >> 20, MAX_MEMORY >> 30)]
    Memory { bytes: u64, such_as: u64 },
    /// More disks or cards than there are places.
    #[error("{count} are given, {MAX_DEVICES} is the most")]
    TooMany { flag: &'static str, count: usize },
    /// No line, or no room for it beside the words for the cards.
    #[error("it holds a control character, or more than {most} bytes")]
    Cmdline { most: usize },
    /// What is added would be part of it.
    #[error("a double quote has no second one: whatever follows would be part of that word")]
    OpenQuote,
    /// Text that is no rule of a policy.
    #[error("the rule {rule:?}: {why}")]
    Rule { flag: &'static str, rule: String, why: String },
    /// Text that is no port to publish.
    #[error("{text:?}: {why}")]
    Publish { text: String, why: &'static str },
    /// The same port of the host for two.
    #[error("{0} is, in part or as a whole, given twice")]
    PublishedTwice(String),
    /// More ports of the host than a guest may have.
    #[error("{count} ports are given, {MAX_PUBLISHED} is the most")]
    TooManyPublished { count: usize },
    /// Ports that would lead to a card that answers do not leave by.
    #[error("{0} is not the first card, by which the guest answers others")]
    NotTheFirst(String),
    /// Ports that would lead to no card.
    #[error("a VM without a card has no ports that could be published")]
    NoCard,
    /// Text that is no rate of a card.
    #[error("{0:?} is not a rate between 8kbit and 80Gbit")]
    Rate(String),
    /// One card on a network.
    #[error("{0} is given twice")]
    Twice(String),
}

impl ArgumentError {
    /// What it is given with.
    pub fn flag(&self) -> &'static str {
        match self {
            ArgumentError::NoKernel => "--kernel",
            ArgumentError::NoName | ArgumentError::Name(_) => "--name",
            ArgumentError::Cpus(_) => "--cpus",
            ArgumentError::Size(_) | ArgumentError::Memory { .. } => "--memory",
            ArgumentError::TooMany { flag, .. } | ArgumentError::Rule { flag, .. } => flag,
            ArgumentError::Cmdline { .. } | ArgumentError::OpenQuote => "--cmdline",
            ArgumentError::Publish { .. }
            | ArgumentError::PublishedTwice(_)
            | ArgumentError::TooManyPublished { .. }
            | ArgumentError::NotTheFirst(_)
            | ArgumentError::NoCard => "--publish",
            ArgumentError::Rate(_) => "rate",
            ArgumentError::Twice(_) => "--net",
        }
    }

    /// What would be right.
    pub fn remedy(&self) -> Cow<'static, str> {
        match self {
            ArgumentError::NoKernel => "Name a bzImage, an ELF kernel, or one in the kernel store".into(),
            ArgumentError::NoName => "Give one, such as --name web".into(),
            ArgumentError::Name(_) => format!("Use {}", names::VM_RULE).into(),
            ArgumentError::Cpus(_) => "Choose a number in that range".into(),
            ArgumentError::Size(_) => "Write a whole number and a unit: 256M, 2G".into(),
            ArgumentError::Memory { such_as, .. } => {
                format!("Choose a size in that range, such as {}M", such_as >> 20).into()
            }
            ArgumentError::TooMany { .. } => "Give fewer".into(),
            ArgumentError::Cmdline { .. } => "Shorten it; words are separated by spaces".into(),
            ArgumentError::OpenQuote => "Close it, or leave it out".into(),
            ArgumentError::Rule { .. } => {
                "Write rules such as \"10.0.0.0/8 tcp 443\", \"vm-db tcp 5432\", \"host udp 53\" or \"any\"".into()
            }
            ArgumentError::Publish { .. } => {
                "Write such as 8080:80, 127.0.0.1:5353:53/udp or [::]:7000-7010:7000-7010".into()
            }
            ArgumentError::PublishedTwice(_) => "Give each port of the host once".into(),
            ArgumentError::TooManyPublished { .. } => "Give fewer".into(),
            ArgumentError::NotTheFirst(_) => "Publish on the first card, or put this one first".into(),
            ArgumentError::NoCard => "Give it one: --net volt0".into(),
            ArgumentError::Rate(_) => "Write a whole number and a unit: 500kbit, 100Mbit, 10Gbit".into(),
            ArgumentError::Twice(_) => "A VM has one card on a network".into(),
        }
    }
}
