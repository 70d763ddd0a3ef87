//! Generates Rust from `volt.request`, the Cap'n Proto compiler's own output, so that
//! building needs no `capnp` tool. `cargo xtask test` checks that it is current.

use std::{env, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=volt.request");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("Cargo sets OUT_DIR")?);
    capnpc::codegen::CodeGenerationCommand::new().output_directory(&out).run(std::fs::File::open("volt.request")?)?;
    Ok(())
}
