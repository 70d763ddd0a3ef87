//! `vmm-core`: one VM's KVM core. See the library of the same name.

use std::error::Error as _;

use vmm_core::args::Config;

fn main() {
    let result = Config::parse(std::env::args().skip(1)).and_then(vmm_core::run);
    let code = match result {
        Ok(()) => 0,
        Err(error) => {
            let mut line = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                line.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            eprintln!("vmm-core: {line}");
            1
        }
    };
    // Not by returning: vCPU threads wait for the process's end with the machine in their hands.
    confine::exit(code)
}
