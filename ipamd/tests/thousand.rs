//! A thousand VMs' worth of holders at one `ipamd`: a process each, as their supervisors are, with a lease and its life.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use common::*;
use schema::addresses_capnp::lease_info::State;

const HOLDERS: usize = 1000;
/// So many begin at one time: what the queue of connections that wait holds, and then some.
const AT_ONCE: usize = 200;
/// Tells a holder where its service is. Without it there is nothing to hold.
const SOCKET: &str = "VOLT_TEST_SOCKET";
const HOLDS: &str = "holds";

/// What each of the thousand processes runs: this program, which has a lease until its standard input ends.
#[test]
fn holder() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    run(async {
        let client = Client::connect(socket.as_ref()).await.unwrap();
        let pool = client.pool("big").await.unwrap();
        let allocator = client.allocator(&pool, 1).await.unwrap();
        let lease = client.allocate(&allocator, &format!("vm-{}", std::process::id())).await.unwrap();
        let _life = client.life(&lease).await.unwrap();
        drop((allocator, pool));
        client.connection.narrow();
        println!("{HOLDS}");
        std::io::stdout().flush().unwrap();
        std::io::stdin().lines().for_each(drop);
        assert_eq!(client.info(&lease).await.unwrap().state, State::Held);
    });
}

fn start(socket: &std::path::Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "holder", "--nocapture", "--test-threads=1"]).env(SOCKET, socket);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_thousand_holders_of_a_process_each_are_served_and_so_is_the_next_client() {
    if std::env::var_os(SOCKET).is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        client.define(r#"{"network":"big","subnet":"10.64.0.0/16"}"#).await.unwrap();
    });
    let mut holders: Vec<Child> = Vec::new();
    while holders.len() < HOLDERS {
        let mut begun: Vec<Child> = (0..AT_ONCE).map(|_| start(&service.socket)).collect();
        for holder in &mut begun {
            let mut lines = BufReader::new(holder.stdout.as_mut().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap().ends_with(HOLDS)), "a holder has ended");
        }
        holders.append(&mut begun);
    }
    run(async {
        let client = service.connect().await;
        let pool = client.pool("big").await.unwrap();
        let free = client.free(&pool).await;
        let allocator = client.allocator(&pool, 1).await.unwrap();
        let lease = client.allocate(&allocator, "vm-next").await.unwrap();
        assert_eq!(client.free(&pool).await, free - 1);
        client.release(&lease).await.unwrap();
        assert_eq!(free, (1 << 16) - 3 - HOLDERS as u64, "network, gateway and broadcast are nobody's");
    });
    // Each is still the holder of its own, and ends well.
    holders.iter_mut().for_each(|holder| drop(holder.stdin.take()));
    for mut holder in holders {
        assert!(holder.wait().unwrap().success());
    }
}
