//! A kernel store that does nothing but show what happens to its objects and calls, and ways to reach it.
#![allow(dead_code, missing_docs, reason = "each test program uses a part of it")]

pub mod raw;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    future::Future,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use capnp_rpc::new_client;
use ipc::{Clients, Code, Connection, Endpoint, Fault, Lane, Limits, Peer, Token};
use schema::kernel_store_capnp::{kernel, kernel_store};

/// Long enough for anything that should happen, on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);

/// What the store's objects and calls leave behind.
#[derive(Default)]
pub struct Probe {
    /// `Kernel` objects alive.
    pub kernels: Cell<usize>,
    /// `KernelStore` objects alive.
    pub stores: Cell<usize>,
    /// Calls of `get("hang")` that run, and the most that ever did.
    pub hanging: Cell<usize>,
    pub most_hanging: Cell<usize>,
    /// Calls of `info` that were answered.
    pub infos: Cell<usize>,
    /// Calls on `KernelStore` objects that began.
    pub store_calls: Cell<usize>,
    /// Names of the kernels that were called.
    pub called: RefCell<BTreeSet<String>>,
    /// Lets one hanging call return.
    pub release: tokio::sync::Notify,
    /// Names of the kernels that were dropped.
    pub dropped: RefCell<Vec<String>>,
}

pub fn count(cell: &Cell<usize>, by: isize) {
    cell.set(cell.get().checked_add_signed(by).unwrap());
}

/// A count that is given back when this is dropped.
pub struct Counted<F: Fn(&Probe) -> &Cell<usize>>(Rc<Probe>, F);

impl<F: Fn(&Probe) -> &Cell<usize>> Counted<F> {
    pub fn new(probe: &Rc<Probe>, which: F) -> Self {
        count(which(probe), 1);
        Counted(probe.clone(), which)
    }
}

impl<F: Fn(&Probe) -> &Cell<usize>> Drop for Counted<F> {
    fn drop(&mut self) {
        count((self.1)(&self.0), -1);
    }
}

#[derive(Clone)]
pub struct Service {
    pub probe: Rc<Probe>,
    pub lane: Lane,
}

impl Service {
    pub fn new() -> Service {
        Service { probe: Rc::default(), lane: Lane::new() }
    }

    pub fn store(&self, peer: Peer) -> capnp::capability::Client {
        count(&self.probe.stores, 1);
        new_client::<kernel_store::Client, _>(Store { service: self.clone(), peer }).client
    }

    /// The narrower capability: one kernel.
    pub fn kernel(&self, peer: Peer, name: &str) -> kernel::Client {
        Store { service: self.clone(), peer }.into_kernel(name)
    }
}

struct Store {
    service: Service,
    peer: Peer,
}

impl Drop for Store {
    fn drop(&mut self) {
        count(&self.service.probe.stores, -1);
    }
}

impl Store {
    fn into_kernel(self, name: &str) -> kernel::Client {
        count(&self.service.probe.stores, 1);
        self.kernel(name.len() as u64, name)
    }

    fn kernel(&self, size: u64, alias: &str) -> kernel::Client {
        count(&self.service.probe.kernels, 1);
        new_client(Kernel { service: self.service.clone(), peer: self.peer, size, alias: alias.to_owned() })
    }
}

impl kernel_store::Server for Store {
    async fn import_kernel(
        self: Rc<Self>,
        params: kernel_store::ImportKernelParams,
        mut results: kernel_store::ImportKernelResults,
    ) -> capnp::Result<()> {
        count(&self.service.probe.store_calls, 1);
        let params = params.get()?;
        let token = Token::read(params.get_image()?)?;
        let file = self.service.lane.redeem(token.as_bytes(), self.peer)?;
        let size = std::fs::File::from(file).metadata()?.len();
        results.get().set_kernel(self.kernel(size, params.get_alias()?.to_str()?));
        Ok(())
    }

    async fn get(
        self: Rc<Self>,
        params: kernel_store::GetParams,
        mut results: kernel_store::GetResults,
    ) -> capnp::Result<()> {
        count(&self.service.probe.store_calls, 1);
        let name = params.get()?.get_ref()?.to_string()?;
        let probe = &self.service.probe;
        match name.as_str() {
            "hang" => {
                let _hanging = Counted::new(probe, |probe| &probe.hanging);
                probe.most_hanging.set(probe.most_hanging.get().max(probe.hanging.get()));
                probe.release.notified().await;
            }
            "panic" => panic!("a test asked for this panic"),
            "absent" => {
                return Err(Fault::new(Code::NotFound, "get kernel absent", "there is none", "Import it").into());
            }
            "uid" => return Err(Fault::new(Code::Internal, "uid", self.peer.uid.to_string(), "").into()),
            _ => {}
        }
        results.get().set_kernel(self.kernel(name.len() as u64, &name[..name.len().min(64)]));
        Ok(())
    }

    /// Calls `info` of the kernel that it is given in place of its parameters.
    async fn list(self: Rc<Self>, params: kernel_store::ListParams, _: kernel_store::ListResults) -> capnp::Result<()> {
        count(&self.service.probe.store_calls, 1);
        let theirs: kernel::Client = params.hook.get()?.get_as_capability()?;
        theirs.info_request().send().promise.await?;
        Ok(())
    }
}

struct Kernel {
    service: Service,
    peer: Peer,
    size: u64,
    alias: String,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        count(&self.service.probe.kernels, -1);
        self.service.probe.dropped.borrow_mut().push(self.alias.clone());
        if self.alias == "panic-in-drop" {
            panic!("a test asked for this panic");
        }
    }
}

impl kernel::Server for Kernel {
    async fn info(self: Rc<Self>, _: kernel::InfoParams, mut results: kernel::InfoResults) -> capnp::Result<()> {
        count(&self.service.probe.infos, 1);
        self.service.probe.called.borrow_mut().insert(self.alias.clone());
        let mut info = results.get().init_info();
        info.set_size(self.size);
        info.set_alias(&self.alias[..]);
        // The larger the name, the larger the answer.
        info.set_version(&"v".repeat(usize::try_from(self.size).unwrap())[..]);
        Ok(())
    }

    async fn open(self: Rc<Self>, _: kernel::OpenParams, mut results: kernel::OpenResults) -> capnp::Result<()> {
        self.service.probe.called.borrow_mut().insert(self.alias.clone());
        let token = self.service.lane.offer(memfd(self.alias.as_bytes()), self.peer)?;
        token.write(results.get().init_image());
        Ok(())
    }
}

pub fn memfd(content: &[u8]) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&fd, content).unwrap();
    fd
}

/// Runs a test on a runtime of its own, and not for ever.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    ipc::run(async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs") }).unwrap()
}

/// Waits until `what` holds.
pub async fn eventually(what: impl Fn() -> bool) {
    let give_up = Instant::now() + SOON;
    while !what() {
        assert!(Instant::now() < give_up, "it did not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Long enough for something to have happened that should not.
pub async fn settle() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Users that a test may become by [`as_user`] and is served as; [`STRANGER`] is not.
pub const USERS: [u32; 3] = [4711, 4712, 4713];
pub const STRANGER: u32 = 4714;

pub fn clients() -> Clients {
    Clients::root_and(USERS.into_iter().chain([rustix::process::geteuid().as_raw()]))
}

/// A store on a named socket in a folder of its own.
pub struct Served {
    pub service: Service,
    pub path: PathBuf,
    pub task: tokio::task::JoinHandle<Result<(), ipc::Error>>,
    _dir: tempfile::TempDir,
}

impl Served {
    pub fn new(limits: Limits, idle: Option<ipc::Idle>) -> Served {
        Served::with(Service::new(), limits, idle)
    }

    pub fn with(service: Service, limits: Limits, idle: Option<ipc::Idle>) -> Served {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().join("store.sock");
        let endpoint = Endpoint::bind(&path, 0o666).unwrap();
        let served = service.clone();
        let serve =
            ipc::serve(endpoint, clients(), service.lane.clone(), limits, idle, move |peer| Ok(served.store(peer)));
        Served { service, path, task: tokio::task::spawn_local(serve), _dir: dir }
    }

    pub async fn connect(&self) -> (Connection, kernel_store::Client) {
        let connection = Connection::connect(&self.path).await.unwrap();
        let store = connection.bootstrap();
        (connection, store)
    }
}

/// A store behind one end of a socket pair; the other end comes back.
pub fn serve_pair(service: &Service, limits: Limits) -> (UnixStream, tokio::task::JoinHandle<Result<(), ipc::Error>>) {
    serve_pair_with(service.store(Peer::this_process()), limits)
}

/// `offered` behind one end of a socket pair; the other end comes back.
pub fn serve_pair_with(
    offered: capnp::capability::Client,
    limits: Limits,
) -> (UnixStream, tokio::task::JoinHandle<Result<(), ipc::Error>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours, tokio::task::spawn_local(ipc::serve_link(ipc::LinkSocket::new(theirs.into()).unwrap(), limits, offered)))
}

pub fn connect_pair(service: &Service, limits: Limits) -> (Connection, kernel_store::Client) {
    let (ours, _) = serve_pair(service, limits);
    let connection = Connection::from_fd(ours.into()).unwrap();
    let store = connection.bootstrap();
    (connection, store)
}

/// Sends `get`.
pub fn get(
    store: &kernel_store::Client,
    name: &str,
) -> capnp::capability::RemotePromise<kernel_store::get_results::Owned> {
    let mut request = store.get_request();
    request.get().set_ref(name);
    request.send()
}

/// Calls `get` and gives the kernel.
pub async fn get_kernel(
    connection: &Connection,
    store: &kernel_store::Client,
    name: &str,
) -> Result<kernel::Client, Fault> {
    let answer = connection.call("get a kernel", SOON, get(store, name)).await?;
    Ok(answer.get()?.get_kernel()?)
}

/// Runs `f` on a thread that is another user than root, with a runtime of its own. Where this is not root, as this user.
pub fn as_user<T: Send + 'static, F: Future<Output = T>>(
    uid: u32,
    f: impl FnOnce() -> F + Send + 'static,
) -> std::thread::JoinHandle<T> {
    testkit::user::as_user(uid, move || run(f()))
}
