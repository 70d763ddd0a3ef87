//! A client's side of a connection: RPC and the fd lane, with a deadline on every wait.

use std::{
    cell::RefCell,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    rc::Rc,
    time::Duration,
};

use capnp::{
    capability::{Client, FromClientHook, RemotePromise, Response},
    traits::{Owned, Pipelined},
};
use capnp_rpc::rpc_twoparty_capnp::Side;
use confine::UnixSocket;
use futures::{FutureExt, channel::oneshot};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::{
    Code, Error, Fault, Limits, Peer, Token, endpoint,
    lack::passes,
    lane_socket::{Ended, LaneSocket, lane_lost},
    meter::Meter,
    retry::retry,
    rpc::RpcConnection,
};

/// How long a service may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long to wait before a full queue is tried again.
const RETRY: Duration = Duration::from_millis(10);
/// Descriptors that may wait to be passed on one connection.
const LANE_MAILBOX: usize = 64;

/// A connection to a vat. When the last clone is dropped the connection ends: capabilities that came over it break, and
/// calls that wait fail.
#[derive(Clone)]
pub struct Connection(Rc<Inner>);

struct Inner {
    bootstrap: RefCell<Option<Client>>,
    meter: Rc<Meter>,
    peer: Peer,
    lane: RefCell<Option<mpsc::Sender<Exchange>>>,
    /// Dropping it ends the connection.
    _stop: oneshot::Sender<()>,
}

impl Connection {
    /// Connects to the vat on `path` and its fd lane on `path` with `.fds` appended. Fails with `unavailable`.
    pub async fn connect(path: &Path) -> Result<Connection, Fault> {
        let rpc = dial(path, SocketType::STREAM).await?;
        let lane = dial(&schema::paths::lane(path), SocketType::SEQPACKET).await?;
        Connection::open(rpc, Some(lane))
    }

    /// Takes an inherited, connected SOCK_STREAM socket; a link without a lane.
    pub fn from_fd(rpc: OwnedFd) -> Result<Connection, Fault> {
        endpoint::take(rpc.as_fd(), UnixSocket::Stream)?;
        Connection::open(rpc, None)
    }

    /// Takes an inherited, connected SOCK_STREAM socket and its lane, a connected SOCK_SEQPACKET socket.
    pub fn from_fds(rpc: OwnedFd, lane: OwnedFd) -> Result<Connection, Fault> {
        endpoint::take(rpc.as_fd(), UnixSocket::Stream)?;
        endpoint::take(lane.as_fd(), UnixSocket::SeqPacket)?;
        Connection::open(rpc, Some(lane))
    }

    fn open(rpc: OwnedFd, lane: Option<OwnedFd>) -> Result<Connection, Fault> {
        let peer = Peer::of(&rpc)?;
        let lane = match lane {
            Some(lane) => {
                let socket =
                    LaneSocket::new(lane).map_err(|source| Error::Socket { tried: "watch a socket", source })?;
                let (exchanges, asked) = mpsc::channel(LANE_MAILBOX);
                tokio::task::spawn_local(LaneState::Open(socket).serve(asked));
                Some(exchanges)
            }
            None => None,
        };
        let mut link = RpcConnection::new(rpc, Side::Client, Limits::default(), None)?;
        let bootstrap = link.bootstrap().ok_or_else(|| gone("connect", None))?;
        let meter = link.meter().clone();
        let (stop, stopped) = oneshot::channel();
        tokio::task::spawn_local(async move {
            // Why it ended is in the meter, for those who call.
            let _ = link.drive(stopped.map(|_| ())).await;
        });
        let bootstrap = RefCell::new(Some(bootstrap));
        Ok(Connection(Rc::new(Inner { bootstrap, meter, peer, lane: RefCell::new(lane), _stop: stop })))
    }

    /// The capability that the vat offers to everyone who connects. After [`narrow`](Connection::narrow), one whose every call fails.
    pub fn bootstrap<C: FromClientHook + 'static>(&self) -> C {
        match &*self.0.bootstrap.borrow() {
            Some(bootstrap) => C::new(bootstrap.hook.add_ref()),
            None => {
                let why = "the bootstrap capability was given up";
                let fault = Fault::new(Code::PermissionDenied, "use this connection", why, "Connect again");
                capnp_rpc::new_future_client(std::future::ready(Err(fault.into())))
            }
        }
    }

    /// Gives up the bootstrap capability, for the rest of the connection's life: a vat gives it to a connection once. When the
    /// caller's own clones of it have gone as well, all that is left are the capabilities that it got by it, and whoever takes over
    /// this process gets no more than those. The lane is closed too: whoever has one of those, and is handed a descriptor, claims it before.
    pub fn narrow(&self) {
        self.0.bootstrap.take();
        self.0.lane.take();
    }

    /// Who serves, as the kernel says (SO_PEERCRED): the process that called listen, or that made the socket pair.
    pub fn peer(&self) -> Peer {
        self.0.peer
    }

    /// Waits for the answer to a call that was sent on this connection: `connection.call("import a kernel", deadline, request.send())`.
    /// Never waits past the deadline or the connection's end. When it gives up, and when it is dropped, the call is cancelled.
    pub async fn call<R>(
        &self,
        tried: &str,
        deadline: Duration,
        promise: RemotePromise<R>,
    ) -> Result<Response<R>, Fault>
    where
        R: Pipelined + Owned + 'static,
    {
        let RemotePromise { promise, pipeline } = promise;
        let answer = tokio::select! {
            biased;
            answer = promise => answer.map_err(|e| Fault::parse(&e).while_trying(tried)),
            () = self.closed() => Err(gone(tried, self.0.meter.reason())),
            () = tokio::time::sleep(deadline) => Err(late(tried, deadline)),
        };
        drop(pipeline);
        answer
    }

    /// As [`call`](Connection::call), for a call that is sent anew, ever later, while the service answers that it is `overloaded`.
    pub async fn ask<R>(
        &self,
        tried: &str,
        deadline: Duration,
        mut send: impl FnMut() -> RemotePromise<R>,
    ) -> Result<Response<R>, Fault>
    where
        R: Pipelined + Owned + 'static,
    {
        retry(deadline, async |left| self.call(tried, left, send()).await).await
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.closed().now_or_never().is_some()
    }

    /// Returns once the connection has ended.
    pub async fn closed(&self) {
        self.0.meter.closed().await;
    }

    /// Leaves a duplicate of `fd` with the service; the token goes into the call that asks for one. Fails with `exhausted`, `unavailable`.
    pub async fn deposit(&self, fd: BorrowedFd<'_>) -> Result<Token, Fault> {
        let fd = fd.try_clone_to_owned().map_err(|source| Error::Socket { tried: "duplicate a descriptor", source })?;
        self.exchange(|answer| Exchange::Deposit(fd, answer)).await
    }

    /// Takes the descriptor that the service keeps under `token`. Fails with `badToken`, `unavailable`.
    pub async fn claim(&self, token: &[u8]) -> Result<OwnedFd, Fault> {
        let token = Token::from_bytes(token)?;
        self.exchange(|answer| Exchange::Claim(token, answer)).await
    }

    async fn exchange<T>(&self, of: impl FnOnce(Answer<T>) -> Exchange) -> Result<T, Fault> {
        const ENDED: &str = "this connection's exchanges have ended";
        let (answer, answered) = oneshot::channel();
        let sent = match &*self.0.lane.borrow() {
            Some(lane) => lane.try_send(of(answer)),
            None => return Err(lane_lost("this link has none, or has closed it")),
        };
        sent.map_err(|refused| match refused {
            TrySendError::Full(_) => {
                let why = format!("{LANE_MAILBOX} of this connection wait already");
                Fault::new(Code::Overloaded, "pass a descriptor", why, "Ask again later")
            }
            TrySendError::Closed(_) => lane_lost(ENDED),
        })?;
        answered.await.map_err(|_| lane_lost(ENDED))?
    }
}

/// Waits for the answer to a call that was sent on whatever connection, but not past the deadline: for those who hold a capability and not its connection.
pub async fn call<R>(tried: &str, deadline: Duration, promise: RemotePromise<R>) -> Result<Response<R>, Fault>
where
    R: Pipelined + Owned + 'static,
{
    let RemotePromise { promise, pipeline } = promise;
    let answer = match tokio::time::timeout(deadline, promise).await {
        Ok(answer) => answer.map_err(|e| Fault::parse(&e).while_trying(tried)),
        Err(_) => Err(late(tried, deadline)),
    };
    drop(pipeline);
    answer
}

fn late(tried: &str, deadline: Duration) -> Fault {
    let why = format!("there was no answer within {} s", deadline.as_secs_f32());
    Fault::new(Code::Unavailable, tried, why, "See whether the service is alive, then ask again")
}

fn gone(tried: &str, reason: Option<capnp::Error>) -> Fault {
    match reason {
        Some(reason) if reason.kind != capnp::ErrorKind::Disconnected => Fault::parse(&reason).while_trying(tried),
        _ => Fault::new(Code::Unavailable, tried, "the connection has ended", "Connect again, then ask again"),
    }
}

/// What is asked of the lane, and where the answer goes.
enum Exchange {
    Deposit(OwnedFd, Answer<Token>),
    Claim(Token, Answer<OwnedFd>),
}

type Answer<T> = oneshot::Sender<Result<T, Fault>>;

/// The lane's client side. A task owns it, so that an exchange never stops between request and reply, even if nobody waits for it any more. It
/// ends where that panics, and all that waits, or is asked later, fails.
enum LaneState {
    Open(LaneSocket),
    Lost(&'static str),
}

impl LaneState {
    /// Does what is asked until the connection has closed its lane.
    async fn serve(mut self, mut asked: mpsc::Receiver<Exchange>) {
        while let Some(exchange) = asked.recv().await {
            // Whoever asked may have gone: a descriptor that was claimed is closed then.
            match exchange {
                Exchange::Deposit(fd, answer) => drop(answer.send(self.deposit(fd).await)),
                Exchange::Claim(token, answer) => drop(answer.send(self.claim(token).await)),
            }
        }
    }

    async fn deposit(&mut self, fd: OwnedFd) -> Result<Token, Fault> {
        let result = match self {
            LaneState::Open(socket) => socket.deposit(fd.as_fd()).await,
            LaneState::Lost(why) => return Err(lane_lost(why)),
        };
        self.settle(result)
    }

    async fn claim(&mut self, token: Token) -> Result<OwnedFd, Fault> {
        let result = match self {
            LaneState::Open(socket) => socket.claim(&token).await,
            LaneState::Lost(why) => return Err(lane_lost(why)),
        };
        self.settle(result)
    }

    fn settle<T>(&mut self, result: Result<Result<T, Fault>, Ended>) -> Result<T, Fault> {
        result.unwrap_or_else(|ended| {
            *self = LaneState::Lost(ended.why());
            Err(lane_lost(ended.why()))
        })
    }
}

/// Connects a socket, and waits for a place in the service's queue while that is full.
async fn dial(path: &Path, kind: SocketType) -> Result<OwnedFd, Fault> {
    let tried = || format!("connect to {}", path.display());
    let failed = |e: Errno| {
        let (why, remedy) = match e {
            Errno::NOENT => ("there is no such socket".to_owned(), "Start the service, or correct the path"),
            Errno::CONNREFUSED => ("nobody serves there".to_owned(), "Start the service"),
            Errno::ACCESS => ("this user may not".to_owned(), "Run as the service's user, or as root"),
            e => (std::io::Error::from(e).to_string(), "See whether it is the socket of a service of Volt"),
        };
        let code = if e == Errno::ACCESS { Code::PermissionDenied } else { Code::Unavailable };
        Fault::new(code, tried(), why, remedy)
    };
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let give_up = tokio::time::Instant::now() + CONNECT_DEADLINE;
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).map_err(failed)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(e) if (e == Errno::AGAIN || passes(e)) && tokio::time::Instant::now() < give_up => {
                tokio::time::sleep(RETRY).await;
            }
            Err(Errno::AGAIN) => return Err(late(&tried(), CONNECT_DEADLINE)),
            Err(e) => return Err(failed(e)),
        }
    }
}
