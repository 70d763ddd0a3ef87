//! Attempts to do what confinement forbids, and what it leaves, each in a throw-away process.
//!
//! Whatever is expected to be refused afterwards is done successfully first, in the same process, so that no refusal
//! can come from something else.

mod base;
mod capabilities;
mod fds;
mod filters;
mod harness;
mod limits;
mod network;
mod paths;
mod policy;
mod process;
mod reset;
mod spawn;
mod walls;
