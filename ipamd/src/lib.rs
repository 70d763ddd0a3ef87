//! `ipamd`: address pools, leases and reservations, handed out as capabilities (`schema/addresses.capnp`).
//!
//! One request passes through these parts, in this order:
//!
//! | module | what it does | what it never sees |
//! |---|---|---|
//! | [`config`] | checks the text that defines a pool | files, time, clients |
//! | [`policy`] | says which address comes next | workloads, time, files, clients |

pub mod config;
pub mod json;
pub mod names;
pub mod policy;
