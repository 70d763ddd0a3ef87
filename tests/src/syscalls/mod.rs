//! What proves that no seccomp filter allows more than is used: see [`trace`].

mod bpf;
mod names;
pub mod trace;

pub use names::name;
