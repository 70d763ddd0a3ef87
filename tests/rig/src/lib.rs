//! What tests drive and attack real programs with. A dev-dependency: no program is built on it. What needs none of Volt's crates is in
//! `testkit`, so that theirs can use it, too.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that fails, panics"
)]

pub mod container;
#[cfg(feature = "frontend")]
pub mod frontend;
pub mod handed;
pub mod interfaces;
#[cfg(feature = "frontend")]
pub mod messages;
pub mod service;
pub mod storm;
pub mod tcp;
pub mod udp;
