//! The calls of a client of a real `kernel-store`.
#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use ipc::{Connection, Fault};
use schema::kernel_store_capnp::{kernel, kernel_info, kernel_store};
pub use testrig::service::{DEADLINE, code, eventually, refusal, run};

pub type Service = testrig::service::Service<Client>;

pub struct Client {
    pub connection: Connection,
    pub store: kernel_store::Client,
}

impl From<Connection> for Client {
    fn from(connection: Connection) -> Client {
        Client { store: connection.bootstrap(), connection }
    }
}

impl testrig::service::Client for Client {
    const PROGRAM: &'static str = env!("CARGO_BIN_EXE_kernel-store");
    const KEEPS: bool = true;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub digest: String,
    pub alias: String,
    pub size: u64,
    pub entry: u64,
    pub load: (u64, u64),
    pub pvh_entry: u64,
    pub version: String,
}

impl Client {
    pub async fn connect(socket: &Path) -> Result<Client, Fault> {
        Connection::connect(socket).await.map(Client::from)
    }

    pub async fn import_fd(&self, image: impl AsFd, name: &str) -> Result<kernel::Client, Fault> {
        let token = self.connection.deposit(image.as_fd()).await?;
        let mut request = self.store.import_kernel_request();
        token.write(request.get().init_image());
        request.get().set_alias(name);
        let answer = self.connection.call("import", DEADLINE, request.send()).await?;
        Ok(answer.get()?.get_kernel()?)
    }

    pub async fn import(&self, image: &[u8], name: &str) -> Result<kernel::Client, Fault> {
        self.import_fd(memfd(image), name).await
    }

    pub async fn get(&self, reference: &str) -> Result<kernel::Client, Fault> {
        let mut request = self.store.get_request();
        request.get().set_ref(reference);
        let answer = self.connection.call("get", DEADLINE, request.send()).await?;
        Ok(answer.get()?.get_kernel()?)
    }

    pub async fn remove(&self, reference: &str) -> Result<(), Fault> {
        let mut request = self.store.remove_request();
        request.get().set_ref(reference);
        self.connection.call("remove", DEADLINE, request.send()).await.map(|_| ())
    }

    pub async fn list(&self) -> Vec<Info> {
        self.try_list().await.unwrap()
    }

    pub async fn try_list(&self) -> Result<Vec<Info>, Fault> {
        let answer = self.connection.call("list", DEADLINE, self.store.list_request().send()).await?;
        Ok(answer.get()?.get_kernels()?.iter().map(read).collect())
    }

    pub async fn info(&self, kernel: &kernel::Client) -> Result<Info, Fault> {
        let answer = self.connection.call("info", DEADLINE, kernel.info_request().send()).await?;
        Ok(read(answer.get()?.get_info()?))
    }

    pub async fn open(&self, kernel: &kernel::Client) -> Result<OwnedFd, Fault> {
        let answer = self.connection.call("open", DEADLINE, kernel.open_request().send()).await?;
        self.connection.claim(answer.get()?.get_image()?.get_bytes()?).await
    }
}

fn read(info: kernel_info::Reader) -> Info {
    Info {
        digest: info.get_digest().unwrap().to_string().unwrap(),
        alias: info.get_alias().unwrap().to_string().unwrap(),
        size: info.get_size(),
        entry: info.get_entry(),
        load: (info.get_load_start(), info.get_load_end()),
        pvh_entry: info.get_pvh_entry(),
        version: info.get_version().unwrap().to_string().unwrap(),
    }
}

/// A memory file with this content, as a client may hand in.
pub fn memfd(content: &[u8]) -> OwnedFd {
    let fd = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = std::fs::File::from(fd);
    std::io::Write::write_all(&mut file, content).unwrap();
    file.into()
}

pub fn content(fd: &OwnedFd) -> Vec<u8> {
    let size = rustix::fs::fstat(fd).unwrap().st_size as usize;
    let mut bytes = vec![0; size];
    let mut len = 0;
    while len < size {
        match rustix::io::pread(fd, &mut bytes[len..], len as u64).unwrap() {
            0 => break,
            more => len += more,
        }
    }
    bytes.truncate(len);
    bytes
}
