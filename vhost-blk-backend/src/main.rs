//! `vhost-blk-backend`: a virtio-blk device (Virtio 1.2, section 5.2) over vhost-user, for one raw disk image.
//!
//! Holds the guest's memory, its disk's descriptor, its vhost-user socket and, if given, its control link. It opens no
//! file once it is confined.

mod args;
mod device;
mod request;

use clap::Parser;

fn main() {
    let args = args::Args::parse();
    if args.common.print_capabilities {
        println!(r#"{{"type":"block","features":["read-only","blk-file"]}}"#);
        return;
    }
    let device = args.config().map(device::Block::new);
    ::device::run(&args.common, device);
}
