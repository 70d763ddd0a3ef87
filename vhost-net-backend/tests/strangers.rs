//! A frontend that no one here wrote: DPDK's virtio-user, with guest memory that is not sealed.

mod wire;

use std::io::Write;
use std::process::{Command, Stdio};
use testrig::frontend::*;
use wire::*;

const TESTPMD: &str = "dpdk-testpmd";

#[test]
fn dpdk_sends_frames_and_gets_some() {
    if Command::new(TESTPMD).arg("--help").output().is_err() {
        return testkit::skip!("{TESTPMD} is not installed (Debian: dpdk-dev and librte-net-virtio23)");
    }
    let wire = Wire::new(false);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("net.sock");
    let tap = wire.tap.try_clone().unwrap();
    let args = ["--tap-fd={}", "--mac", MAC, "--socket-path", socket.to_str().unwrap()];
    let mut backend = start(PROGRAM, &args, vec![tap]);
    backend.listens(&socket);
    // Swaps the addresses of whatever comes and sends it back, until a line comes.
    let mut testpmd = Command::new(TESTPMD)
        .args(["-l", "0-1", "--no-huge", "-m", "256", "--no-pci", "--no-telemetry"])
        .args(["--file-prefix", &format!("volt{}", std::process::id())])
        .arg(format!("--vdev=net_virtio_user0,path={},queues=1,mac={MAC}", socket.display()))
        .args(["--", "--forward-mode=macswap", "--total-num-mbufs=2048", "--auto-start"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ours = frame(200, 3);
    let mut swapped = ours.clone();
    let (to, from) = swapped.split_at_mut(6);
    to.swap_with_slice(&mut from[..6]);
    let mut bytes = [0; 2048];
    until("a frame comes back", || {
        let _not_up_yet = rustix::net::send(&wire.socket, &ours, rustix::net::SendFlags::empty());
        std::thread::sleep(std::time::Duration::from_millis(20));
        while let Ok((len, _)) = rustix::net::recv(&wire.socket, &mut bytes[..], rustix::net::RecvFlags::DONTWAIT) {
            if bytes[..len] == swapped {
                return Ok(());
            }
        }
        Err("others do".into())
    });
    testpmd.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(testpmd.wait().unwrap().success());
    let (status, said) = backend.end();
    assert_eq!((status.code(), &said[..]), (Some(0), ""));
}
