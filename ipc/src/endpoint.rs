//! A vat's two listening sockets, RPC and fd lane: bound to a path, or inherited. May make and remove files beside that path;
//! reads nothing that a peer sent.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use confine::UnixSocket;
use rustix::{
    fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, Uid},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

use crate::{Error, folder};

/// Connections that may wait to be accepted; the kernel makes later ones wait to connect.
const BACKLOG: i32 = 128;
/// Bytes that a Unix socket's path may have (sun_path less its NUL).
const LONGEST_PATH: usize = 107;

/// How long others may take to replace a dead socket in the same folder; each takes well below a millisecond.
const LOCK_DEADLINE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Two listening sockets. What `bind` made is removed when this is dropped, unless `into_fds` took the sockets out.
#[derive(Debug)]
pub struct Endpoint {
    // First, so that the files go while the sockets still answer: nobody takes them for dead and replaces them meanwhile.
    files: Vec<BoundFile>,
    rpc: OwnedFd,
    lane: OwnedFd,
}

impl Endpoint {
    /// Listens on `path` and `path` with `.fds` appended, both with access rights `mode` from the moment they are there.
    ///
    /// A socket that nobody serves any more is replaced; one that is served is [`Error::AlreadyExists`], and so is losing the
    /// race against another program that binds now. A file that is not a socket is left alone. A folder in which another user
    /// could put a file in the place of ours is refused.
    pub fn bind(path: &Path, mode: u32) -> Result<Endpoint, Error> {
        Endpoint::bind_for(None, path, mode)
    }

    /// As [`bind`](Endpoint::bind), for somebody else: from the moment they are there, the sockets belong to user `owner`. That takes root.
    pub fn bind_for(owner: Option<u32>, path: &Path, mode: u32) -> Result<Endpoint, Error> {
        let wrong = |source| Error::Bind { path: path.to_owned(), tried: "use its folder", source };
        let name = path.file_name().ok_or_else(|| wrong(io::ErrorKind::InvalidFilename.into()))?;
        let path = &folder::firm(path.parent().unwrap_or(path)).map_err(wrong)?.join(name);
        let lane_path = schema::paths::lane(path);
        if lane_path.as_os_str().len() > LONGEST_PATH {
            return Err(Error::PathTooLong { path: path.to_owned() });
        }
        // The lane first: whoever finds the RPC socket finds the lane as well.
        let (lane, lane_file) =
            listen(&lane_path, owner, mode, SocketType::SEQPACKET).map_err(|error| match error {
                Error::AlreadyExists { .. } => Error::AlreadyExists { path: path.to_owned() },
                error => error,
            })?;
        let (rpc, rpc_file) = listen(path, owner, mode, SocketType::STREAM)?;
        Ok(Endpoint { rpc, lane, files: vec![rpc_file, lane_file] })
    }

    /// Takes listening sockets that were inherited: `rpc` of type SOCK_STREAM, `lane` of type SOCK_SEQPACKET.
    pub fn from_fds(rpc: OwnedFd, lane: OwnedFd) -> Result<Endpoint, Error> {
        take(rpc.as_fd(), UnixSocket::StreamListener)?;
        take(lane.as_fd(), UnixSocket::SeqPacketListener)?;
        Ok(Endpoint { rpc, lane, files: Vec::new() })
    }

    /// The two sockets, RPC first, to hand to another process. The files stay.
    pub fn into_fds(mut self) -> (OwnedFd, OwnedFd) {
        self.files.iter_mut().for_each(BoundFile::forget);
        (self.rpc, self.lane)
    }

    /// The two sockets, RPC first, to be kept open by a program that confines itself.
    pub fn as_fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.rpc.as_fd(), self.lane.as_fd()]
    }

    pub(crate) fn into_parts(self) -> (OwnedFd, OwnedFd, Vec<BoundFile>) {
        (self.rpc, self.lane, self.files)
    }
}

/// An inherited, connected socket (SOCK_STREAM) for [`serve_link`](crate::serve_link), checked and set up. A program that
/// confines itself does that before: it takes calls which are not needed afterwards.
#[derive(Debug)]
pub struct LinkSocket(OwnedFd);

impl LinkSocket {
    /// Checks it. Fails where it is something else.
    pub fn new(socket: OwnedFd) -> Result<LinkSocket, Error> {
        take(socket.as_fd(), UnixSocket::Stream)?;
        Ok(LinkSocket(socket))
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }
}

/// Checks what an inherited socket is, and makes it close-on-exec and non-blocking.
pub(crate) fn take(fd: BorrowedFd<'_>, wanted: UnixSocket) -> Result<(), Error> {
    let wrong = |source| Error::Inherited { fd: fd.as_raw_fd(), wanted: wanted.name(), source };
    wanted.check(fd).map_err(wrong)?;
    let refused = |e: Errno| Error::Socket { tried: "set up an inherited socket", source: e.into() };
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC).map_err(refused)?;
    let flags = rustix::fs::fcntl_getfl(fd).map_err(refused)?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(refused)
}

/// A socket's file that this process made.
#[derive(Debug)]
pub(crate) struct BoundFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl BoundFile {
    fn forget(&mut self) {
        self.identity = None;
    }
}

impl Drop for BoundFile {
    fn drop(&mut self) {
        // Not if another program has replaced it. A confined process may not be able to, and leaves a socket that refuses.
        if self.identity.is_some() && identity(&self.path).ok() == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Which file a path names: device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::lstat(path)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Makes a socket that listens under a name of its own, then links it to `path`: whoever sees it there can connect.
fn listen(path: &Path, owner: Option<u32>, mode: u32, kind: SocketType) -> Result<(OwnedFd, BoundFile), Error> {
    let failed = |tried| move |e: Errno| Error::Bind { path: path.to_owned(), tried, source: e.into() };
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
            .map_err(failed("make a socket"))?;

    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let own = path.with_file_name(format!(".{}.{serial}", rustix::process::getpid().as_raw_nonzero()));
    let address = SocketAddrUnix::new(&own).map_err(failed("name a socket"))?;
    // The file gets the socket's own mode, less the umask: never more than was asked for, not even for a moment.
    let mode = Mode::from_raw_mode(mode);
    rustix::fs::fchmod(&socket, mode).map_err(failed("set a socket's mode"))?;
    rustix::net::bind(&socket, &address).map_err(failed("bind a socket"))?;
    let linked = rustix::fs::chmod(&own, mode)
        .and_then(|()| match owner {
            Some(user) => rustix::fs::chownat(CWD, &own, Some(Uid::from_raw(user)), None, AtFlags::SYMLINK_NOFOLLOW),
            None => Ok(()),
        })
        .and_then(|()| rustix::net::listen(&socket, BACKLOG))
        .map_err(failed("listen on a socket"))
        .and_then(|()| link(&own, path));
    let removed = rustix::fs::unlink(&own).map_err(failed("remove a socket's first name"));
    linked?;
    let file = BoundFile { identity: identity(path).ok(), path: path.to_owned() };
    removed?;
    Ok((socket, file))
}

/// Gives the socket `own` the name `path`, in place of a dead socket if need be.
fn link(own: &Path, path: &Path) -> Result<(), Error> {
    let failed = |tried| move |e: Errno| Error::Bind { path: path.to_owned(), tried, source: e.into() };
    match rustix::fs::link(own, path) {
        Ok(()) => return Ok(()),
        Err(Errno::EXIST) => {}
        Err(e) => return Err(failed("name the socket")(e)),
    }
    if is_dead_socket(path)? {
        // Only whoever holds the lock removes a dead socket, so that nobody removes a live one that has just taken its place.
        let _lock = Lock::take(path)?;
        if is_dead_socket(path)? {
            rustix::fs::unlink(path).map_err(failed("remove the old socket"))?;
        }
    }
    match rustix::fs::link(own, path) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(Error::AlreadyExists { path: path.to_owned() }),
        Err(e) => Err(failed("name the socket")(e)),
    }
}

/// Whether `path` is a socket that nobody serves (rather than gone by now); an error if it is anything that has to stay.
fn is_dead_socket(path: &Path) -> Result<bool, Error> {
    let failed = |tried| move |e: Errno| Error::Bind { path: path.to_owned(), tried, source: e.into() };
    match rustix::fs::lstat(path) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            Err(Error::NotASocket { path: path.to_owned() })
        }
        Ok(_) if is_served(path).map_err(failed("see whether somebody serves"))? => {
            Err(Error::AlreadyExists { path: path.to_owned() })
        }
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(failed("look at what is there")(e)),
    }
}

/// A lock file beside a socket, held while a dead one is replaced; removed when dropped.
struct Lock {
    path: PathBuf,
    _file: OwnedFd,
}

impl Lock {
    fn take(socket: &Path) -> Result<Lock, Error> {
        let failed = |e: Errno| Error::Bind { path: socket.to_owned(), tried: "lock its folder", source: e.into() };
        let path = socket.with_file_name(".lock");
        let give_up = Instant::now() + LOCK_DEADLINE;
        loop {
            let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let stat = rustix::fs::fstat(&file).map_err(failed)?;
                    // The holder before may have removed the file while this one waited for it.
                    if identity(&path).ok() == Some((stat.st_dev, stat.st_ino)) {
                        return Ok(Lock { path, _file: file });
                    }
                }
                Err(Errno::WOULDBLOCK) if Instant::now() < give_up => std::thread::sleep(LOCK_RETRY),
                Err(e) => return Err(failed(e)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = rustix::fs::unlink(&self.path);
    }
}

/// Whether somebody listens on the socket at `path`. Does not wait for them: one who is stopped, with a queue that is full, listens.
pub fn is_served(path: &Path) -> Result<bool, Errno> {
    for kind in [SocketType::STREAM, SocketType::SEQPACKET] {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let probe = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
        match rustix::net::connect(&probe, &SocketAddrUnix::new(path)?) {
            // EAGAIN: the queue of somebody who does accept is full.
            Ok(()) | Err(Errno::AGAIN) => return Ok(true),
            Err(Errno::CONNREFUSED | Errno::NOENT) => return Ok(false),
            Err(Errno::PROTOTYPE) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}
