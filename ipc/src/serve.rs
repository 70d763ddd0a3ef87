//! Serving: accepts connections on an endpoint's two sockets, keeps to the limits on their number, and runs each one in a task
//! of its own, so that none can take another down. Hands a peer nothing but the bootstrap capability it is given for it.

use std::{
    cell::Cell,
    io,
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    time::{Duration, Instant},
};

use capnp::capability::Client;
use capnp_rpc::{rpc_capnp, rpc_twoparty_capnp::Side};
use confine::UnixSocket;
use futures::future::LocalBoxFuture;
use rustix::{io::Errno, net::SocketFlags};
use schema::fd_lane_capnp as wire;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinSet,
};

use crate::{
    Clients, Code, Endpoint, Error, Fault, Lane, Limits, LinkSocket, Peer, chain, endpoint,
    lane_socket::LaneSocket,
    metered::write_exception,
    places::{Place, Places},
    rpc::RpcConnection,
    stream::{send, watch},
};

/// How long one that is refused may take to read why: many clients ask first, and hear of a closed socket before they read.
const LINGER: Duration = Duration::from_secs(1);
/// How many of them at one time; more are left at once.
const LINGERING: usize = 64;
/// How long accepting rests when this process or the host is out of descriptors or memory.
const REST: Duration = Duration::from_millis(100);
/// How long calls may take to be answered, and their answers to be written, once a vat was asked to stop.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// When a vat to which nobody is connected ends.
pub struct Idle {
    after: Duration,
    stays: Option<Stays>,
}

/// Whether there is something to be done for which nobody is connected.
type Stays = Box<dyn Fn() -> LocalBoxFuture<'static, bool>>;

impl Idle {
    /// After so long.
    pub fn after(after: Duration) -> Idle {
        Idle { after, stays: None }
    }

    /// Only where `stays` then says that there is nothing to be done; else that is asked again as much later.
    pub fn unless<F: Future<Output = bool> + 'static>(self, stays: impl Fn() -> F + 'static) -> Idle {
        Idle { stays: Some(Box::new(move || Box::pin(stays()))), ..self }
    }
}

/// Serves `bootstrap(peer)` to each of `clients` that connects to `endpoint`, and `lane` beside it. Whoever else connects is refused on both.
///
/// With `idle`, returns once no connection has been open for as long as that says, and removes the sockets that [`Endpoint::bind`] made.
/// A peer for which `bootstrap` gives a fault (or panics) is told so and its connection ends. Dropping the future ends every
/// connection. A line on stderr says when a connection ended for any other reason than that its peer left, one a second at most.
pub async fn serve(
    endpoint: Endpoint,
    clients: Clients,
    lane: Lane,
    limits: Limits,
    idle: Option<Idle>,
    bootstrap: impl Fn(Peer) -> Result<Client, Fault> + 'static,
) -> Result<(), Error> {
    serve_until(endpoint, clients, lane, limits, idle, std::future::pending(), bootstrap).await
}

/// As [`serve`], and until `stop` is done: then a connection ends once each of its calls is answered and the answers are written,
/// and this returns once none is left; within a second, whatever peers do.
pub async fn serve_until(
    endpoint: Endpoint,
    clients: Clients,
    lane: Lane,
    limits: Limits,
    idle: Option<Idle>,
    stop: impl Future<Output = ()>,
    bootstrap: impl Fn(Peer) -> Result<Client, Fault> + 'static,
) -> Result<(), Error> {
    let (rpc, lane_listener, files) = endpoint.into_parts();
    let rpc = Listener::new(rpc, &clients, &limits)?;
    let lanes = Listener::new(lane_listener, &clients, &limits)?;
    // Declared last, dropped first: the files go while the sockets still answer.
    let files = files;
    let log = Rc::new(Log::default());
    let (stopping, _) = tokio::sync::watch::channel(false);
    let serve_rpc = rpc.accept(refuse, |socket, peer, place| {
        let (limits, log, stopped) = (limits.clone(), log.clone(), stopping.subscribe());
        let offers = Offers { lane: lane.clone(), peer };
        let offered = catch_unwind(AssertUnwindSafe(|| bootstrap(peer))).unwrap_or_else(|_| {
            Err(Fault::new(Code::Internal, "connect", "the service's entry point panicked", "Report this as a defect"))
        });
        async move {
            let _held = (place, offers);
            let ended = match offered {
                Ok(client) => serve_until_settled(socket, limits, client, stopped).await,
                Err(fault) => {
                    refuse(&socket, &fault);
                    Ok(())
                }
            };
            if let Err(e) = ended {
                log.line(&format!("Connection of user {}, process {}: {}", peer.uid, peer.pid, chain(&e)));
            }
        }
    });
    let serve_lanes = lanes.accept(
        |socket, fault| {
            // Who is no client of this vat is told nothing.
            if fault.code == Code::Exhausted {
                let _ = send(socket, &[wire::STATUS_TOO_MANY_LANES]);
            }
        },
        |socket, peer, place| {
            let lane = lane.clone();
            async move {
                let _place = place;
                if let Ok(socket) = LaneSocket::new(socket) {
                    socket.serve(lane, peer).await;
                }
            }
        },
    );
    let stop = async {
        stop.await;
        stopping.send_replace(true);
        let _late = tokio::time::timeout(LAST_ANSWERS, rpc.empty()).await;
    };
    let result = tokio::select! {
        result = serve_rpc => result,
        result = serve_lanes => result,
        never = lane.keep_clean() => match never {},
        () = rpc.idle(idle) => Ok(()),
        () = stop => Ok(()),
    };
    drop(files);
    result
}

/// Serves one inherited, connected link (SOCK_STREAM) to whoever was handed its other end; returns when the peer is gone. A connection that ended for another reason is an error.
pub async fn serve_link(rpc: LinkSocket, limits: Limits, bootstrap: Client) -> Result<(), Error> {
    serve_socket(rpc.into_fd(), limits, bootstrap).await
}

/// Serves the fd lane of one inherited link (a connected SOCK_SEQPACKET socket); returns when the peer is gone.
pub async fn serve_lane_link(socket: OwnedFd, lane: Lane) -> Result<(), Error> {
    endpoint::take(socket.as_fd(), UnixSocket::SeqPacket)?;
    let peer = Peer::of(&socket)?;
    let socket = LaneSocket::new(socket).map_err(|source| Error::Socket { tried: "watch a socket", source })?;
    tokio::select! {
        _ = socket.serve(lane.clone(), peer) => Ok(()),
        never = lane.keep_clean() => match never {},
    }
}

pub(crate) async fn serve_socket(socket: OwnedFd, limits: Limits, bootstrap: Client) -> Result<(), Error> {
    RpcConnection::new(socket, Side::Server, limits, Some(bootstrap))?.drive(std::future::pending()).await
}

/// Serves a connection to its end; or, once `stopped` says so, until it is settled.
async fn serve_until_settled(
    socket: OwnedFd,
    limits: Limits,
    bootstrap: Client,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) -> Result<(), Error> {
    let connection = RpcConnection::new(socket, Side::Server, limits, Some(bootstrap))?;
    let meter = connection.meter().clone();
    let settled = async {
        if stopped.wait_for(|stopped| *stopped).await.is_err() {
            // Nobody will say so any more.
            std::future::pending::<()>().await;
        }
        meter.settled().await;
    };
    tokio::select! {
        biased;
        ended = connection.drive(std::future::pending()) => ended,
        () = settled => Ok(()),
    }
}

/// Lines on stderr that peers can cause: one a second, so that none fills a disk.
#[derive(Default)]
struct Log {
    last: Cell<Option<Instant>>,
    skipped: Cell<u64>,
}

impl Log {
    fn line(&self, text: &str) {
        if self.last.get().is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
            self.skipped.set(self.skipped.get().saturating_add(1));
            return;
        }
        self.last.set(Some(Instant::now()));
        match self.skipped.take() {
            0 => confine::say!("{text}"),
            skipped => confine::say!("{text} (and {skipped} more such lines before)"),
        }
    }
}

/// Returns when the peer has gone.
async fn left(socket: OwnedFd) {
    let Ok(socket) = watch(socket, Interest::READABLE) else { return };
    while let Ok(mut ready) = socket.readable().await {
        if ready.ready().is_read_closed() {
            return;
        }
        ready.clear_ready();
    }
}

/// One more, while it lives.
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(count: &Rc<Cell<usize>>) -> Counted {
        count.set(count.get().saturating_add(1));
        Counted(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// What a connection was offered over the lane; withdrawn with it, however it ends.
struct Offers {
    lane: Lane,
    peer: Peer,
}

impl Drop for Offers {
    fn drop(&mut self) {
        self.lane.withdraw(self.peer);
    }
}

struct Listener {
    socket: AsyncFd<OwnedFd>,
    clients: Clients,
    places: Rc<Places>,
}

impl Listener {
    fn new(socket: OwnedFd, clients: &Clients, limits: &Limits) -> Result<Listener, Error> {
        let socket = watch(socket, Interest::READABLE)
            .map_err(|source| Error::Socket { tried: "watch a listening socket", source })?;
        Ok(Listener { socket, clients: clients.clone(), places: Places::new(limits) })
    }

    /// Spawns `connection(..)` for each connection, or refuses it. Returns when the socket fails for good.
    async fn accept<F: Future<Output = ()> + 'static>(
        &self,
        refuse: impl Fn(&OwnedFd, &Fault),
        connection: impl Fn(OwnedFd, Peer, Place) -> F,
    ) -> Result<(), Error> {
        // Dropping the set drops every connection.
        let mut tasks = JoinSet::new();
        let lingering: Rc<Cell<usize>> = Rc::default();
        loop {
            while tasks.try_join_next().is_some() {}
            let socket = self.next().await?;
            // A peer of which the kernel says nothing cannot be held to a limit.
            let Ok(peer) = Peer::of(&socket) else { continue };
            if let Err(fault) = self.clients.check(peer) {
                refuse(&socket, &fault);
                continue;
            }
            match self.places.take(peer) {
                Ok(place) => drop(tasks.spawn_local(connection(socket, peer, place))),
                Err(fault) => {
                    refuse(&socket, &fault);
                    if lingering.get() < LINGERING {
                        let count = Counted::new(&lingering);
                        tasks.spawn_local(async move {
                            let _count = count;
                            let _ = tokio::time::timeout(LINGER, left(socket)).await;
                        });
                    }
                }
            }
        }
    }

    async fn next(&self) -> Result<OwnedFd, Error> {
        let failed = |source: io::Error| Error::Socket { tried: "accept a connection", source };
        loop {
            let mut ready = self.socket.readable().await.map_err(failed)?;
            match rustix::net::accept_with(self.socket.get_ref(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => return Ok(socket),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => tokio::time::sleep(REST).await,
                Err(e) => return Err(failed(e.into())),
            }
        }
    }

    /// Returns once no connection is open.
    async fn empty(&self) {
        loop {
            let changed = self.places.changed();
            if self.places.taken() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Returns once no connection has been open for as long as `idle` says, none waits, and nothing else is to be done.
    async fn idle(&self, idle: Option<Idle>) {
        let Some(Idle { after, stays }) = idle else { return std::future::pending().await };
        loop {
            let changed = self.places.changed();
            if self.places.taken() > 0 {
                changed.await;
                continue;
            }
            let waits =
                || rustix::event::poll(&mut [self.pollfd()], Some(&rustix::event::Timespec::default())) != Ok(0);
            if tokio::time::timeout(after, changed).await.is_ok() || waits() {
                continue;
            }
            let stays = match &stays {
                Some(stays) => stays().await,
                None => false,
            };
            // Somebody may have come while that was asked.
            if !stays && self.places.taken() == 0 && !waits() {
                return;
            }
        }
    }

    fn pollfd(&self) -> rustix::event::PollFd<'_> {
        rustix::event::PollFd::new(self.socket.get_ref(), rustix::event::PollFlags::IN)
    }
}

/// Tells a peer why it is not served, in an RPC Abort message, as far as its socket takes it at once.
fn refuse(socket: &OwnedFd, fault: &Fault) {
    let mut message = capnp::message::Builder::new_default();
    write_exception(fault.clone(), message.init_root::<rpc_capnp::message::Builder<'_>>().init_abort());
    let bytes = capnp::serialize::write_message_to_words(&message);
    let _ = send(socket, &bytes);
}
