//! What the tests of several crates share. A dev-dependency: no program is built on it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails, panics"
)]

pub mod attempt;
pub mod calls;
pub mod corpus;
pub mod elf;
pub mod guest;
#[cfg(feature = "images")]
pub mod images;
pub mod input;
pub mod namespace;
pub mod program;
pub mod skip;
pub mod user;
pub mod wait;
