//! `vmm-core`: one VM's KVM core. See the library of the same name.

use vmm_core::args::Config;

fn main() {
    let result = Config::parse(std::env::args().skip(1)).and_then(vmm_core::run);
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
