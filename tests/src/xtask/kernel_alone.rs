//! What the kernel itself takes for a port, in bench `attach`: a TAP that is made, put on a bridge and up, and closed, by system calls alone. It is the
//! least that whoever does so takes.

use std::{
    fs::{File, OpenOptions},
    io,
    mem::size_of,
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::debian;

const BRIDGE: &str = "bare0";
const ROUNDS: usize = 400;

/// Milliseconds of each round, in order of length: until the TAP is a port, and with its end.
pub fn measure(count: usize) -> Result<[Vec<f64>; 2]> {
    let ip = |line: &str| debian::run(Command::new("ip").args(line.split(' ')));
    ip(&format!("link add {BRIDGE} type bridge mcast_snooping 0"))?;
    ip(&format!("link set {BRIDGE} up"))?;
    let bridge = index(BRIDGE)?;
    let netlink = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let others: Vec<File> =
        (0..count).map(|number| port(&netlink, &format!("bare-{number}"), bridge)).collect::<Result<_>>()?;
    let (mut made, mut both) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let begun = Instant::now();
        let tap = port(&netlink, &format!("bare-{}", count + round), bridge)?;
        made.push(begun.elapsed().as_secs_f64() * 1e3);
        drop(tap);
        both.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    drop(others);
    ip(&format!("link delete {BRIDGE}"))?;
    made.sort_by(f64::total_cmp);
    both.sort_by(f64::total_cmp);
    Ok([made, both])
}

fn index(name: &str) -> Result<u32> {
    let text = std::ffi::CString::new(name)?;
    // SAFETY: it reads one string that ends in a zero.
    match unsafe { libc::if_nametoindex(text.as_ptr()) } {
        0 => Err(io::Error::last_os_error()).with_context(|| format!("There is no {name}")),
        index => Ok(index),
    }
}

/// Makes a TAP, and has it be a port of the bridge, and up.
fn port(netlink: &OwnedFd, name: &str, bridge: u32) -> Result<File> {
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid ifreq: integers and unions of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call.
    let made = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    ensure!(made == 0, "cannot make {name}: {}", io::Error::last_os_error());
    // RTM_NEWLINK: nlmsghdr, ifinfomsg, and IFLA_MASTER.
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let body = [
        &[0; 4][..],
        &index(name)?.to_ne_bytes(),
        &up,
        &up,
        &8_u16.to_ne_bytes(),
        &libc::IFLA_MASTER.to_ne_bytes(),
        &bridge.to_ne_bytes(),
    ]
    .concat();
    let length = (size_of::<libc::nlmsghdr>() + body.len()) as u32;
    let head = [&length.to_ne_bytes()[..], &libc::RTM_NEWLINK.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]].concat();
    send(netlink, &[head, body].concat(), SendFlags::empty())?;
    let mut answer = [0; 256];
    let (length, _) = recv(netlink, &mut answer, RecvFlags::empty())?;
    // Of NLMSG_ERROR: 0, or a negative errno.
    match answer.get(..length).and_then(|answer| answer.get(16..20)) {
        Some([0, 0, 0, 0]) => Ok(tap),
        Some(&[a, b, c, d]) => Err(io::Error::from_raw_os_error(-i32::from_ne_bytes([a, b, c, d])))
            .with_context(|| format!("Cannot put {name} on a bridge")),
        _ => bail!("The kernel's answer is cut off"),
    }
}
