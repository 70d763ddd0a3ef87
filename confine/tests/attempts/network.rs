//! Landlock on TCP and on scopes: abstract sockets and signals.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream};

use libc::{EACCES, EPERM};

use crate::harness::{attempt, done, exit, is_refused, sandbox};

/// A network namespace of this process's own, with its loopback up.
fn own_network() {
    // SAFETY: takes numbers, and a request that is valid when zeroed and outlives the calls.
    unsafe {
        let user = if libc::geteuid() == 0 { 0 } else { libc::CLONE_NEWUSER };
        done(libc::unshare(libc::CLONE_NEWNET | user)).unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
        done(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request)).unwrap();
    }
}

#[test]
fn tcp_can_neither_be_bound_nor_connected() {
    attempt(|| {
        own_network();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = TcpListener::bind(any).unwrap();
        let address = listener.local_addr().unwrap();
        TcpStream::connect(address).unwrap();
        TcpListener::bind("127.0.0.1:7").unwrap();
        let confined = sandbox().keep_fd(listener.as_raw_fd()).confine().unwrap();
        is_refused(TcpStream::connect(address), EACCES);
        is_refused(TcpListener::bind("127.0.0.1:7"), EACCES);
        is_refused(TcpListener::bind(any), EACCES);
        drop(confined);
    })
    .passes();
}

#[test]
fn abstract_sockets_outside_the_sandbox_are_out_of_reach_and_open_ones_stay_usable() {
    attempt(|| {
        let name = format!("confine-test-{}", std::process::id());
        let address = UnixAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let stream = UnixStream::connect_addr(&address).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let kept = sandbox().keep_fd(listener.as_raw_fd()).keep_fd(stream.as_raw_fd()).keep_fd(accepted.as_raw_fd());
        let confined = kept.confine().unwrap();
        is_refused(UnixStream::connect_addr(&address), EPERM);
        io::Write::write_all(&mut &stream, b"x").unwrap();
        io::Read::read_exact(&mut &accepted, &mut [0]).unwrap();
        drop(confined);
    })
    .passes();
}

#[test]
fn signals_reach_this_process_and_none_outside_the_sandbox() {
    attempt(|| {
        // SAFETY: the calls take numbers; the child waits to be killed.
        unsafe {
            let other = libc::fork();
            if other == 0 {
                libc::alarm(2); // Nobody can kill it.
                libc::pause();
                exit(0);
            }
            done(libc::kill(other, 0)).unwrap();
            let confined = sandbox().confine().unwrap();
            is_refused(done(libc::kill(other, libc::SIGKILL)), EPERM);
            done(libc::kill(libc::getpid(), 0)).unwrap();
            drop(confined);
        }
    })
    .passes();
}

#[test]
fn signals_reach_what_was_started_since_the_enclosure_and_nothing_from_before_it() {
    attempt(|| {
        // SAFETY: the calls take numbers; the children wait to be killed, and use what their parent has, as there is one thread.
        unsafe {
            let sleeper = |confined: bool| {
                let child = libc::fork();
                if child == 0 {
                    let _confined = confined.then(|| sandbox().confine().unwrap());
                    libc::alarm(2); // Nobody can kill it.
                    libc::pause();
                    exit(0);
                }
                child
            };
            let before = sleeper(false);
            let enclosure = confine::enclose().unwrap();
            let (plain, confined) = (sleeper(false), sleeper(true));
            let narrow = sandbox().signals_within(&enclosure).confine().unwrap();
            is_refused(done(libc::kill(before, libc::SIGKILL)), EPERM);
            is_refused(done(libc::kill(libc::getppid(), 0)), EPERM);
            for within in [plain, confined] {
                done(libc::kill(within, libc::SIGKILL)).unwrap();
                let mut status = 0;
                assert_eq!(libc::waitpid(within, &raw mut status, 0), within);
                assert_eq!(libc::WTERMSIG(status), libc::SIGKILL);
            }
            drop(narrow);
        }
    })
    .passes();
}
