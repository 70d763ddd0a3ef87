//! How long the calls in the boot path of every VM take, round trip over RPC included. Prints; judges nothing, as machines differ.

mod common;

use std::time::{Duration, Instant};

use common::*;

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    println!(
        "{what:<28} min {:>9.1?}  p50 {:>9.1?}  max {:>9.1?}",
        times[0],
        times[times.len() / 2],
        times[times.len() - 1]
    );
}

#[test]
fn prints_how_long_a_port_takes() {
    in_own_network(|| {
        let start = Instant::now();
        let netmgr = Netmgr::start();
        block_on(async {
            let client = Client::new(&netmgr).await;
            let _ = client.network("volt0").await;
            println!("{:<28} {:?}", "start, to the first answer", start.elapsed());
            let start = Instant::now();
            let network = client.define_default().await;
            println!("{:<28} {:?}", "defineNetwork, first", start.elapsed());
            let start = Instant::now();
            client.define_default().await;
            println!("{:<28} {:?}", "defineNetwork, again", start.elapsed());
            let factory = client.factory(&network, 1024).await.unwrap();
            let (mut make, mut fd, mut release) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..50 {
                let start = Instant::now();
                let port = client.tap(&factory, "vm-web").await.unwrap();
                make.push(start.elapsed());
                let start = Instant::now();
                let _tap = client.fd(&port).await.unwrap();
                fd.push(start.elapsed());
                let start = Instant::now();
                client.release(&port).await.unwrap();
                release.push(start.elapsed());
            }
            print("createTap", make);
            print("tap + claim", fd);
            print("release", release);
        });
    });
}

/// Another client's port, while 600 of one that has just ended go.
#[test]
fn prints_how_long_a_port_takes_while_600_of_another_holder_go() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        block_on(async {
            let client = Client::new(&netmgr).await;
            let other = Client::new(&netmgr).await;
            let network = other.define_default().await;
            let factory = other.factory(&network, 64).await.unwrap();
            let many = client.network("volt0").await.unwrap();
            let many = client.factory(&many, 600).await.unwrap();
            let mut ports = Vec::new();
            for n in 0..600 {
                ports.push(client.tap(&many, &format!("vm-{n}")).await.unwrap());
            }
            drop((ports, many, client));
            let (start, mut make) = (Instant::now(), Vec::new());
            let mut left = Vec::new();
            while interfaces().len() > 1 + left.len() {
                let start = Instant::now();
                left.push(other.tap(&factory, &format!("vm-other-{}", left.len())).await.unwrap());
                make.push(start.elapsed());
            }
            println!("{:<28} {:?}", "600 ports are gone after", start.elapsed());
            print("createTap meanwhile", make);
        });
    });
}
