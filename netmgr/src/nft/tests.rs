//! The filter on the kernel's own nf_tables: what it is, beside what nft(8) says of it; how it is kept; and what it does to real frames.

mod again;
mod frames;
mod kept;
mod outside;
mod policy;
mod rates;

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Command, Output},
};

use super::*;
use crate::{tap, wanted};

/// Runs a test in a network namespace of its own.
fn in_own_network(test: impl FnOnce() + Send + 'static) {
    if !testkit::namespace::in_own_network(test) {
        testkit::skip!("making a network namespace takes root");
    }
}

fn output(command: &str) -> Output {
    let mut words = command.split_whitespace();
    Command::new(words.next().unwrap()).args(words).output().unwrap()
}

/// Runs a command, which must succeed; gives its output.
fn run(command: &str) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn mac(last: u8) -> Mac {
    Mac::new([2, 0x42, 0, 0, 0, last]).unwrap()
}

fn sources(list: &[&str]) -> Sources {
    Sources::new(list.iter().map(|text| Ok(*text))).unwrap()
}

/// One of `br0`, without a policy.
fn sender<'a>(interface: &'a str, mac: Mac, sources: &'a Sources) -> Sender<'a> {
    Sender { interface, mac, sources, network: "br0", workload: interface, policy: None, rate: Rate::default() }
}

fn filter() -> Filter {
    Filter::open(&Instance::default()).unwrap()
}

/// A bridge `br0` of the host's, 10.42.0.1/24, with a TAP `watch` that sees what is flooded.
struct Bridge {
    watch: File,
}

impl Bridge {
    fn new() -> Bridge {
        run("ip link add br0 type bridge mcast_snooping 0 forward_delay 0");
        run("ip link set br0 up");
        // What the host's iptables would do to frames is not what is tried.
        for table in ["ip", "ip6", "arp"] {
            let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{table}tables"), "0");
        }
        run("ip addr add 10.42.0.1/24 dev br0");
        Bridge { watch: Bridge::tap("watch") }
    }

    fn tap(name: &str) -> File {
        let tap: OwnedFd = tap::make(name).unwrap();
        run(&format!("ip link set {name} addrgenmode none master br0 up"));
        tap.into()
    }

    /// Whether a frame that is sent into a TAP comes out of the bridge: a TAP hands it through before it takes the next one.
    fn passes(&self, from: &File, frame: &[u8]) -> bool {
        send(from, frame);
        let mut buffer = [0; 2048];
        let mut came = false;
        while let Ok(length) = (&self.watch).read(&mut buffer) {
            came |= buffer[VNET..length] == *frame;
        }
        came
    }
}

/// Bytes of the header before each frame.
const VNET: usize = 12;

fn send(mut tap: &File, frame: &[u8]) {
    let sent = tap.write(&[&[0; VNET], frame].concat()).unwrap();
    assert_eq!(sent, VNET + frame.len());
}
