//! `vmm-core`: one VM's KVM core. See the library of the same name.

use std::ffi::OsString;
use std::io::Write;

use vmm_core::args::{Config, asks_about_kvm, asks_to_print};

fn main() {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(text) = asks_to_print(&args) {
        let written = std::io::stdout().write_all(text.as_bytes());
        confine::exit(i32::from(written.is_err()));
    }
    let result = match asks_about_kvm(&args) {
        Some(kvm) => kvm.and_then(vmm_core::host::about),
        None => Config::parse(args).and_then(vmm_core::run),
    };
    let code = match result {
        Ok(()) => 0,
        Err(error) => {
            confine::say!("vmm-core: {}", ipc::chain(&error));
            1
        }
    };
    // Not by returning: vCPU threads wait for the process's end with the machine in their hands.
    confine::exit(code)
}
