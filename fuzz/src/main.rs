//! One program for all fuzz targets, on libFuzzer, which calls it; `cargo xtask soak fuzz` builds and runs it. A target is a function
//! of the crate whose bytes it is about (`src/fuzzing.rs` there), which panics where a promise is broken. What was found worth keeping
//! is below `corpus`, a folder a target, and is replayed by that crate's unit tests.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod targets;

#[cfg(not(fuzzing))]
fn main() {
    println!("fuzz: built without coverage; run cargo xtask soak fuzz");
    std::process::exit(2)
}
