//! `vhost-net-backend`: a virtio-net device (Virtio 1.2, section 5.1) over vhost-user, for one TAP interface.
//!
//! Holds the guest's memory, its TAP's descriptor, its vhost-user socket and, if given, its control link. It opens no
//! file and makes no socket.

mod args;
mod device;
mod offload;
mod receive;
mod stage;
mod tap;
mod transmit;

use clap::Parser;

fn main() {
    let args = args::Args::parse();
    if args.common.print_capabilities {
        println!(r#"{{"type":"net","features":[]}}"#);
        return;
    }
    let device = args.config().map(device::Net::new);
    ::device::run(&args.common, device);
}
