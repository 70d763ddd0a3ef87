//! Generates Rust from `volt.request`, the Cap'n Proto compiler's own output, so that
//! building needs no `capnp` tool. `cargo xtask test` checks that it is current.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=volt.request");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    capnpc::codegen::CodeGenerationCommand::new()
        .output_directory(&out)
        .run(std::fs::File::open("volt.request").expect("schema/volt.request is committed"))
        .expect("schema/volt.request is a code generator request");
}
