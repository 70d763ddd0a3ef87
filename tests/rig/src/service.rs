//! A service's program under test: started in a folder of the test's, asked, ended, and what every one of them does alike.

use std::{
    fs::{self, Permissions},
    marker::PhantomData,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{PermissionsExt, chown},
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use capnp::any_pointer;
use ipc::{Code, Connection, Endpoint, Fault};
use testkit::{
    user::{as_user, is_root},
    wait::{PATIENCE, until},
};

/// For every call: far longer than any should take of a debug build, on a machine with other work.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// What speaks to a service in its tests: one end of a connection.
pub trait Client: From<Connection> {
    /// The service's program.
    const PROGRAM: &'static str;
    /// Whether it keeps something, in a folder of its own.
    const KEEPS: bool;
}

/// A service that runs. It is killed, as in a crash, when this is dropped or the thread ends that started it.
pub struct Service<C> {
    /// Its process.
    pub process: Child,
    /// Where it is reached.
    pub socket: PathBuf,
    client: PhantomData<C>,
}

impl<C: Client> Service<C> {
    /// Where a service that was started in `dir` is reached.
    pub fn socket(dir: &Path) -> PathBuf {
        dir.join("service.sock")
    }

    /// The command that starts it in `dir`: what it keeps is below `dir/state`.
    pub fn command(dir: &Path) -> Command {
        let mut command = Command::new(C::PROGRAM);
        if C::KEEPS {
            command.arg("--state-dir").arg(dir.join("state"));
        }
        command.arg("--socket").arg(Service::<C>::socket(dir)).stdin(Stdio::null());
        dies_with_this_thread(&mut command);
        command
    }

    /// Starts it, and waits until it answers.
    pub fn start(dir: &Path) -> Service<C> {
        Service::start_with(dir, &[])
    }

    /// With more arguments.
    pub fn start_with(dir: &Path, more: &[&str]) -> Service<C> {
        Service::of(Service::<C>::command(dir).args(more).spawn().unwrap(), Service::<C>::socket(dir))
    }

    /// One that was started: waits until it answers, as its sockets are there before it has read what it keeps.
    pub fn of(mut process: Child, socket: PathBuf) -> Service<C> {
        until("it answers", || {
            assert_eq!(process.try_wait().unwrap(), None, "{} has ended", C::PROGRAM);
            ipc::run(async {
                let connection = Connection::connect(&socket).await.map_err(|fault| fault.to_string())?;
                let bootstrap: capnp::capability::Client = connection.bootstrap();
                let ask = bootstrap.new_call::<any_pointer::Owned, any_pointer::Owned>(0, 0, None);
                match connection.call("ask", DEADLINE, ask.send()).await {
                    Err(fault) if fault.code == Code::Unavailable => Err(fault.to_string()),
                    // Mostly, that it has no such method.
                    _ => Ok(()),
                }
            })
            .unwrap()
        });
        Service { process, socket, client: PhantomData }
    }

    /// Connects to it.
    pub async fn connect(&self) -> C {
        Connection::connect(&self.socket).await.unwrap().into()
    }

    /// Ends it by a signal, and waits until it has.
    pub fn end(&mut self, signal: rustix::process::Signal) -> ExitStatus {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.process), signal).unwrap();
        self.process.wait().unwrap()
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) -> ExitStatus {
        self.end(rustix::process::Signal::KILL)
    }

    /// Sees that it has so many threads, and that each has its filter, may gain nothing, and has these capabilities and no others.
    pub fn is_confined(&self, threads: usize, capabilities: u64) {
        let tasks: Vec<_> = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap().collect();
        assert_eq!(tasks.len(), threads);
        for task in tasks {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap();
            assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1", "2"));
            for (set, has) in [("CapInh:", 0), ("CapPrm:", capabilities), ("CapEff:", capabilities), ("CapAmb:", 0)] {
                assert_eq!(field(set), format!("{has:016x}"), "{set}");
            }
        }
    }
}

impl<C: Client> Service<C> {
    /// Sees that somebody who is neither root nor its own user is refused, whatever the sockets' mode, and that it lives on. `asks` says
    /// whether a client was answered.
    pub fn refuses_a_stranger(&self, asks: impl AsyncFn(C) -> bool + Copy + Send + 'static) {
        if !is_root() {
            return testkit::skip!("becoming another user takes root");
        }
        for path in [self.socket.parent().unwrap(), &self.socket, &schema::paths::lane(&self.socket)] {
            fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
        }
        let socket = self.socket.clone();
        let stranger = as_user(65_534, move || {
            for _ in 0..3 {
                run(async {
                    if let Ok(connection) = Connection::connect(&socket).await {
                        assert!(!asks(connection.into()).await);
                    }
                });
            }
        });
        stranger.join().unwrap();
        run(async { assert!(asks(self.connect().await).await) });
    }
}

impl<C> Drop for Service<C> {
    fn drop(&mut self) {
        if let Ok(Some(status)) = self.process.try_wait()
            && status.signal() != Some(libc::SIGKILL)
        {
            eprintln!("the service had ended by itself: {status}");
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Has what the command starts killed when the calling thread ends, however that does.
pub fn dies_with_this_thread(command: &mut Command) {
    // SAFETY: prctl is a system call that touches nothing but the child, which has not run its program yet.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// Has the command's service inherit its sockets. They are closed here with the command.
pub fn inherits(command: &mut Command, endpoint: Endpoint) {
    let (rpc, lane) = endpoint.into_fds();
    for (flag, fd) in [("--listen-fd", &rpc), ("--lane-fd", &lane)] {
        command.args([flag, &fd.as_raw_fd().to_string()]);
    }
    let fds: [OwnedFd; 2] = [rpc, lane];
    // SAFETY: fcntl is async-signal-safe, and the closure does nothing else.
    unsafe {
        command.pre_exec(move || match fds.iter().all(|fd| libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) >= 0) {
            true => Ok(()),
            false => Err(std::io::Error::last_os_error()),
        });
    }
}

/// How long such a service stays when nobody is connected.
pub const IDLE: Duration = Duration::from_secs(1);

/// A service on sockets that it inherits is there as long as somebody is connected, and ends with 0 some time after that. What `stays` does is
/// to take longer than [`IDLE`].
pub fn inherited_sockets_are_served_until_nobody_is_connected<C: Client>(dir: &Path, stays: impl AsyncFnOnce(&C)) {
    let socket = Service::<C>::socket(dir);
    let mut command = Command::new(C::PROGRAM);
    if C::KEEPS {
        command.arg("--state-dir").arg(dir.join("state"));
    }
    command.args(["--idle-exit", &IDLE.as_secs().to_string()]).stdin(Stdio::null());
    inherits(&mut command, Endpoint::bind(&socket, 0o600).unwrap());
    dies_with_this_thread(&mut command);
    let mut process = command.spawn().unwrap();
    run(async {
        let client = C::from(Connection::connect(&socket).await.unwrap());
        stays(&client).await;
        assert_eq!(process.try_wait().unwrap(), None);
    });
    let status = until("it ends", || process.try_wait().unwrap().ok_or("it runs".into()));
    assert!(status.success(), "{status}");
}

/// A service does not start on a state directory that others may write to, or own, and does on one that is in order.
pub fn state_that_others_may_write_to_or_own_is_refused<C: Client>(dir: &Path) {
    let state = dir.join("state");
    fs::create_dir(&state).unwrap();
    let set = |mode: u32| fs::set_permissions(&state, Permissions::from_mode(mode)).unwrap();
    set(0o777);
    let said = refusal(Service::<C>::command(dir));
    assert!(said.contains("others may write") && said.contains("--state-dir"), "{said}");
    assert_eq!(fs::read_dir(dir).unwrap().count(), 1, "nothing was made, above all no socket");
    set(0o755);
    if is_root() {
        chown(&state, Some(4721), None).unwrap();
        let said = refusal(Service::<C>::command(dir));
        assert!(said.contains("belongs to user 4721"), "{said}");
        chown(&state, Some(0), None).unwrap();
    }
    drop(Service::<C>::start(dir));
}

/// Starts a service that is expected to refuse to, and gives what it says.
pub fn refusal(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stderr).unwrap()
}

/// With which code a call failed, if it did.
pub fn code<T>(result: Result<T, Fault>) -> Option<Code> {
    result.err().map(|fault| fault.code)
}

/// Runs what a test does with connections.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    ipc::run(test).unwrap()
}

/// Waits until something is so, while connections work.
pub async fn eventually(mut so: impl AsyncFnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !so().await {
        assert!(Instant::now() < limit, "it is not so in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
