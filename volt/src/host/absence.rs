//! Says, in a line each, when a service that the VM borrows from has ended, and when somebody serves in its place: the VM keeps
//! what it has (`resources.rs`), and who runs it should know.
//!
//! Hears of the one from its link, and of the other from the names that appear in the runtime directory: a watch that is set up
//! in the wide phase, tells names and nothing else, and takes no more of the narrow one than a read.

use std::{
    convert::Infallible,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use futures::future::select_all;
use ipc::Connection;
use rustix::fs::inotify;
use tokio::io::Interest;

use crate::{error::Error, host::services::Service, output::say};

/// The names that appear in the runtime directory.
pub struct Names(OwnedFd);

/// A link to a service, and what the VM keeps when that has ended.
pub struct Borrowed {
    pub link: Connection,
    pub service: Service,
    /// As it stands in a sentence: "10.42.0.2".
    pub what: String,
}

impl AsFd for Names {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Names {
    /// Bytes of each read, for a filter: two events, and more than one with a name of a service's socket.
    pub const READ: usize = 128;

    /// Begins to watch.
    pub fn watch(runtime: &Path) -> Result<Names, Error> {
        let failed = |e: rustix::io::Errno| Error::NoWatch { dir: runtime.to_owned(), source: e.into() };
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).map_err(failed)?;
        // A socket gets its name once it listens, by a link.
        let appear = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&watch, runtime, appear).map_err(failed)?;
        Ok(Names(watch))
    }

    /// Says of each of `borrowed`, for the VM of that name, when its link has ended and when it is served again.
    pub async fn report(self, vm: &str, mut borrowed: Vec<Borrowed>) -> Infallible {
        let names = ipc::watch(self.0, Interest::READABLE).ok();
        let mut absent: Vec<Service> = Vec::new();
        loop {
            let mut events = [0; Names::READ];
            let appeared = async {
                let read = async {
                    let names = names.as_ref()?;
                    names.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut events)?)).await.ok()
                };
                match read.await {
                    Some(size) => size,
                    // Not to be read (a name too long, say): there is nothing more to be said.
                    None => std::future::pending().await,
                }
            };
            let ends = borrowed.iter().map(|one| Box::pin(one.link.closed()));
            let ended =
                async { if borrowed.is_empty() { std::future::pending().await } else { select_all(ends).await.1 } };
            // An end before a name: what has appeared is there in place of what has ended.
            let (ended, size) = tokio::select! {
                biased;
                ended = ended => (Some(ended), 0),
                size = appeared => (None, size),
            };
            if let Some(place) = ended {
                let one = borrowed.swap_remove(place);
                say(format_args!("{} has ended; {vm} keeps {}", one.service.name(), one.what));
                absent.push(one.service);
            }
            for name in names_of(events.get(..size).unwrap_or_default()) {
                absent.retain(|service| {
                    let again =
                        std::str::from_utf8(name).ok().and_then(schema::paths::of_socket) == Some(service.name());
                    if again {
                        say(format_args!("{} is served again", service.name()));
                    }
                    !again
                });
            }
        }
    }
}

/// The names in a read of events (inotify(7)): each is a header of four numbers, the last of which is how long a name follows.
/// By hand, as rustix's reader takes it on trust that events are whole, and reads again by itself, beside the runtime.
fn names_of(mut events: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (header, rest) = events.split_first_chunk::<16>()?;
        let length = header.last_chunk::<4>().map(|length| u32::from_ne_bytes(*length))?;
        let (name, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        events = rest;
        name.split(|byte| *byte == 0).next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_appear_are_read_and_what_is_cut_short_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let watch = Names::watch(dir.path()).unwrap();
        std::fs::write(dir.path().join("first"), "").unwrap();
        std::fs::write(dir.path().join(".1"), "").unwrap();
        std::fs::hard_link(dir.path().join(".1"), dir.path().join("ipamd.sock")).unwrap();
        let mut events = [0; Names::READ];
        let size = rustix::io::read(&watch, &mut events).unwrap();
        let names: Vec<_> = names_of(&events[..size]).collect();
        assert_eq!(names, [&b"first"[..], b".1", b"ipamd.sock"]);
        for cut in 0..size {
            assert!(names_of(&events[..cut]).count() < 3, "{cut}");
        }
        let mut endless = events;
        endless[12..16].fill(255);
        assert_eq!(names_of(&endless).count(), 0);
    }
}
