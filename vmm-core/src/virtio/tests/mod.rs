//! Tests of the virtio transport: its registers alone, both ends of vhost-user against scripted and foreign
//! backends, and attacks. None needs KVM: the eventfds are registered to a driver written here.

mod allocations;
mod attacks;
mod bench;
mod config;
mod confined;
mod foreign;
mod handshake;
mod interop;
mod peer;
mod registers;
mod strict_backend;
