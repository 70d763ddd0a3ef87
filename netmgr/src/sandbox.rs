//! What netmgr may still do once it is narrow, beside what the main thread of any service may. Found with strace, then cut to what the tests show is needed.

use std::{os::fd::RawFd, path::Path};

use confine::{Capability, Error, Filter, Limit, Root, Rule, Sandbox, User, base};

use crate::{announce, handed, ipv4, ipv6, macvtap, opener, published, sysfs, tap};

/// What netmgr keeps beside what every service does: these descriptors, `CAP_NET_ADMIN`, /dev/net/tun, what sysfs has of macvtaps and of these cards, and the
/// interfaces' IPv4 and IPv6 settings if they are there; as `user`, and with no other file in sight, if there is one to become.
pub fn keep<'a>(
    sandbox: Sandbox,
    user: Option<User>,
    fds: &[RawFd],
    cards: impl Iterator<Item = &'a Path>,
) -> Result<Sandbox, Error> {
    let sandbox = sandbox.keep_capability(Capability::CAP_NET_ADMIN).limit(Limit::AddressSpace, 1 << 30);
    let mut sandbox = fds.iter().fold(sandbox, |sandbox, fd| sandbox.keep_fd(*fd));
    let tun = Path::new(tap::DEVICE);
    let has_tun = tun.exists();
    let mut root = Root::empty();
    if has_tun {
        sandbox = sandbox.allow_file_rw(tun);
        // A node of its own: the host's may be for root only.
        root = root.device(tap::DEVICE, tap::NUMBER.0, tap::NUMBER.1);
    } else {
        confine::say!(
            "netmgr: {} is not there: no port can be made. Load the driver (modprobe tun) and start netmgr again.",
            tap::DEVICE
        );
    }
    let devices = Path::new(sysfs::FOLDER);
    for folder in cards.chain(devices.exists().then_some(devices)) {
        sandbox = sandbox.allow_dir_ro(folder);
        root = root.folder(folder, &folder.to_string_lossy());
    }
    for folder in [ipv4::FOLDER, ipv6::FOLDER] {
        let settings = Path::new(folder);
        if settings.exists() {
            sandbox = sandbox.allow_dir_rw(settings);
            root = root.folder(settings, folder);
        }
    }
    if let Some(user) = user {
        (sandbox, _) = sandbox.user(user).root(&root, false)?;
    }
    Ok(sandbox)
}

/// The thread that talks to the kernel: its netlink sockets and those that it is handed, /dev/net/tun with two requests to it, and settings of
/// interfaces (by Landlock, no other file opens).
pub fn rtnl() -> Filter {
    let requests = tap::REQUESTS.into_iter().chain(macvtap::REQUESTS).map(|request| request as u32);
    let requests = requests.chain([handed::SIOCGSKNS]);
    let requests = requests.map(|request| Rule::eq(1, request));
    let what_it_is = [(libc::SOL_SOCKET, libc::SO_DOMAIN), (libc::SOL_SOCKET, libc::SO_PROTOCOL)];
    let options = what_it_is.into_iter().chain(published::OPTIONS);
    let options = options.map(|(level, option)| Rule::eq(1, level as u32).and(Rule::eq(2, option as u32)));
    Filter::new("rtnl")
        .with(&base::thread())
        .with(&base::heap())
        .with(&base::timed_wait()) // until what was put off is due
        .with(&base::close()) // a TAP that goes
        .with(&base::signal()) // to wake the RPC thread
        .allow(&[
            libc::SYS_sendto,      // requests to rtnetlink
            libc::SYS_recvfrom,    // and its answers
            libc::SYS_getsockname, // what a socket is bound to that a port of the host is published by
        ])
        // Settings; and what is said of a new port's addresses, to its TAP.
        .allow_if(
            libc::SYS_write,
            [ipv6::LENGTH].into_iter().chain(announce::LENGTHS).map(|length| Rule::eq64(2, length as u64)).collect(),
        )
        .allow_if(
            libc::SYS_openat,
            [tap::OPEN, ipv6::OPEN, sysfs::OPEN].map(|flags| Rule::eq(2, flags.bits())).to_vec(),
        )
        // Which device is a macvtap's, and then that, from who opens it.
        .allow_if(libc::SYS_read, vec![Rule::eq64(2, sysfs::LENGTH as u64)])
        .allow_if(libc::SYS_recvmsg, vec![Rule::eq(2, opener::RECEIVE.bits())])
        .allow_if(libc::SYS_ioctl, requests.collect())
        // What is handed over, as far as it is looked at before it is used.
        .allow_if(libc::SYS_getsockopt, options.collect())
        .allow_if(libc::SYS_statx, vec![Rule::eq(2, handed::LOOK.bits())])
        .allow(&[libc::SYS_getpeername])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_filters_together_have_at_most_45_syscalls() {
        let all = service::filter().with(&rtnl()).syscalls().count();
        assert!(all <= 45, "{all}");
    }

    #[test]
    fn the_rtnl_thread_cannot_make_a_socket_or_start_a_program() {
        for forbidden in testkit::calls::NEVER_OF_A_SERVICE {
            assert!(!rtnl().syscalls().any(|syscall| syscall == forbidden), "{forbidden}");
        }
    }
}
