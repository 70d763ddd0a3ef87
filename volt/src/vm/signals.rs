//! What a person asks a supervisor for: by signals, and by keys behind the escape key.

use std::{
    os::fd::{FromRawFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    error::Error,
    vm::{console::KeyCommand, control::Control, terminal::Terminal},
};

/// How long the guest may take to power off after the first Ctrl-C or SIGTERM.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Takes the signals that end a program as something to read, from here on and in every thread; but for those that
/// whoever started us wants ignored (`nohup`). Those that stop a job for using its terminal in the background do not.
pub fn block_signals() -> Result<OwnedFd, Error> {
    // SAFETY: the sets are initialised by sigemptyset or from one that is, a zeroed sigaction is a valid one, and all
    // outlive the calls that read or fill them.
    let fd = unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
            let mut action = std::mem::zeroed::<libc::sigaction>();
            libc::sigaction(signal, std::ptr::null(), &raw mut action);
            if action.sa_sigaction != libc::SIG_IGN {
                libc::sigaddset(&raw mut set, signal);
            }
        }
        // Continues the process all the same.
        libc::sigaddset(&raw mut set, libc::SIGCONT);
        let mut blocked = set;
        libc::sigaddset(&raw mut blocked, libc::SIGTTIN);
        libc::sigaddset(&raw mut blocked, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, std::ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(Error::NoDescriptor { tried: "watch for signals", source: std::io::Error::last_os_error() });
    }
    // SAFETY: signalfd has just made it, and nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Turns Ctrl-C and the like into requests to stop: the first one lets the guest power off, the second one does not wait. On a
/// terminal Ctrl-C is the guest's, and keys behind the escape key ask for the same.
pub fn obey(
    signals: OwnedFd,
    commands: Option<OwnedFd>,
    terminal: Option<Rc<Terminal>>,
    control: &Rc<Control>,
) -> Result<(), Error> {
    let watch = |fd| {
        ipc::watch(fd, Interest::READABLE)
            .map_err(|source| Error::NoDescriptor { tried: "watch for signals and keys", source })
    };
    let (signals, of_signals) = (watch(signals)?, control.clone());
    tokio::task::spawn_local(async move {
        let mut graces = [STOP_GRACE].into_iter().chain(std::iter::repeat(Duration::ZERO));
        while let Some(info) = read(&signals).await {
            let signal = info.first_chunk().map(|number| i32::from_ne_bytes(*number));
            match (signal, &terminal) {
                (Some(libc::SIGCONT), Some(terminal)) => terminal.resume(),
                (Some(libc::SIGCONT), None) => {}
                _ => of_signals.request_stop(graces.next().unwrap_or_default()),
            }
        }
    });
    if let Some(commands) = commands {
        let (commands, control) = (watch(commands)?, control.clone());
        tokio::task::spawn_local(async move {
            while let Some(keys) = read(&commands).await {
                for command in keys.into_iter().filter_map(KeyCommand::of) {
                    control.request_stop(if command == KeyCommand::Kill { Duration::ZERO } else { STOP_GRACE });
                }
            }
        });
    }
    Ok(())
}

/// The next that is there; `None` where nothing comes any more. Every read of this process has one length.
async fn read(fd: &AsyncFd<OwnedFd>) -> Option<Vec<u8>> {
    let mut buffer = [0u8; size_of::<libc::signalfd_siginfo>()];
    loop {
        match fd.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut buffer)?)).await {
            Ok(0) => return None,
            Ok(count) => return buffer.get(..count).map(<[u8]>::to_vec),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}
