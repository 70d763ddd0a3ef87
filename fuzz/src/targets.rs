//! The targets by name, and libFuzzer's entry.

use std::sync::LazyLock;

type Target = fn(&[u8]);

/// Each has a folder of its name in `corpus`. Compared with those by `tests/tests/sources.rs`.
const TARGETS: &[(&str, Target)] = &[
    ("command_lines", volt::fuzzing::command_lines),
    ("fault_text", ipc::fuzzing::fault_text),
    ("interface_marks", netmgr::fuzzing::interface_marks),
    ("kernel_headers", kernel_image::fuzzing::kernel_headers),
    ("kernel_unpacking", kernel_store::fuzzing::kernel_unpacking),
    ("kvm_facts", schema::fuzzing::kvm_facts),
    ("lane_client", ipc::fuzzing::lane_client),
    ("lane_service", ipc::fuzzing::lane_service),
    ("launcher_packets", volt::fuzzing::launcher_packets),
    ("names", schema::fuzzing::names),
    ("netlink_answers", netmgr::fuzzing::netlink_answers),
    ("network_config", netmgr::fuzzing::network_config),
    ("plugin_calls", volt::fuzzing::plugin_calls),
    ("policies", schema::fuzzing::policies),
    ("pool_config", ipamd::fuzzing::pool_config),
    ("ring", device::fuzzing::ring),
    ("rpc_answers", ipc::fuzzing::rpc_answers),
    ("rpc_requests", ipc::fuzzing::rpc_requests),
    ("store_index", kernel_store::fuzzing::store_index),
    ("vhost_user_answers", vmm_core::fuzzing::vhost_user_answers),
    ("vhost_user_requests", device::fuzzing::vhost_user_requests),
    ("virtio_registers", vmm_core::fuzzing::virtio_registers),
    ("vm_files", volt::fuzzing::vm_files),
];

/// The one that the environment names. Without a name that is known, the program says which there are, and ends.
static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("VOLT_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    found.map(|(_, target)| *target).unwrap_or_else(|| {
        TARGETS.iter().for_each(|(target, _)| println!("{target}"));
        std::process::exit(2)
    })
});

libfuzzer_sys::fuzz_target!(
    init: {
        LazyLock::force(&TARGET);
    },
    |data: &[u8]| {
        TARGET(data);
    }
);
