//! Volt's RPC interfaces, generated from the `.capnp` files beside this crate.
//!
//! The `.capnp` files are the documentation: each interface, method and field says there
//! what holding it allows, when it is released, its errors and units. After changing one, run
//! `capnp compile -o- --no-standard-import *.capnp > volt.request` in this folder.
//!
//! Beside them is what two of Volt's programs have to agree on without asking each other: which processes there are
//! ([`programs`]), what things may be called ([`names`]), subnets, Ethernet addresses and the network that every host has
//! ([`net`]), what a policy says ([`policy`]), where things are ([`paths`]), what a VM may have ([`limits`]), and how one says what KVM gives
//! ([`about_kvm`]). What a guest kernel is has a crate of its own, as it knows an ELF file from another.
//!
//! The schemas evolve by Cap'n Proto's rules: fields and methods are added at the end,
//! never renumbered, retyped or removed.

pub mod about_kvm;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod limits;
pub mod names;
pub mod net;
pub mod paths;
pub mod policy;
pub mod programs;

macro_rules! generated {
    ($($(#[$doc:meta])* $module:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[allow(missing_docs, clippy::all, clippy::restriction)]
        pub mod $module {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($module), ".rs"));
        }
    )*};
}

generated! {
    /// `addresses.capnp`: pools, leases, reservations.
    addresses_capnp,
    /// `device.capnp`: a device backend's control link.
    device_capnp,
    /// `errors.capnp`: the codes that failed calls carry.
    errors_capnp,
    /// `fd_lane.capnp`: file descriptors beside a connection.
    fd_lane_capnp,
    /// `host.capnp`: a host and its tenants.
    host_capnp,
    /// `kernel_store.capnp`: guest kernels.
    kernel_store_capnp,
    /// `limits.capnp`: what one client may cost a service.
    limits_capnp,
    /// `network.capnp`: networks and ports.
    network_capnp,
    /// `vm.capnp`: one virtual machine.
    vm_capnp,
}
