//! A real `kernel-store` in a temporary directory, and the calls of a client.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ipc::{Code, Connection, Fault};
use schema::kernel_store_capnp::{kernel, kernel_info, kernel_store};

pub const DEADLINE: Duration = Duration::from_secs(90);

/// A service that is killed, as a crash would, when this is dropped.
pub struct Service {
    pub process: Child,
    pub socket: PathBuf,
}

impl Service {
    pub fn start(dir: &Path) -> Service {
        Service::start_with(dir, &[])
    }

    pub fn start_with(dir: &Path, more: &[&str]) -> Service {
        Service::of(command(dir).args(more).spawn().unwrap(), dir.join("ks.sock"))
    }

    /// Waits until a process that was started answers: its sockets are there before its store is open.
    pub fn of(process: Child, socket: PathBuf) -> Service {
        let begun = Instant::now();
        run(async {
            loop {
                let answer = async { Client::connect(&socket).await?.try_list().await };
                if answer.await.is_ok() {
                    break;
                }
                assert!(begun.elapsed() < DEADLINE, "kernel-store does not answer");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Service { process, socket }
    }

    pub async fn connect(&self) -> Client {
        Client::connect(&self.socket).await.unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Ok(Some(status)) = self.process.try_wait()
            && status.signal() != Some(libc::SIGKILL)
        {
            eprintln!("kernel-store had ended by itself: {status}");
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn command(dir: &Path) -> Command {
    // Another build of the program, to measure it.
    let program = std::env::var_os("VOLT_TEST_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_kernel-store").into());
    let mut command = Command::new(program);
    command.arg("--state-dir").arg(dir.join("state")).arg("--socket").arg(dir.join("ks.sock"));
    command.stdin(Stdio::null());
    command
}

/// Starts a service that is expected to refuse, and gives what it says.
pub fn refusal(mut command: Command) -> String {
    let output = command.stdout(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

pub struct Client {
    pub connection: Connection,
    pub store: kernel_store::Client,
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
        let connection = Connection::connect(socket).await?;
        Ok(Client { store: connection.bootstrap(), connection })
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

pub fn code<T>(result: Result<T, Fault>) -> Option<Code> {
    result.err().map(|fault| fault.code)
}

pub fn run(test: impl Future<Output = ()>) {
    ipc::run(test).unwrap();
}
