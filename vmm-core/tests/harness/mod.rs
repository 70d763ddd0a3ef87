//! Starts the real `vmm-core` as its supervisor would: with descriptors and nothing else.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ipc::{Connection, Fault};
use rustix::fs::MemfdFlags;
use schema::vm_capnp::{exit, vm, vm_info};

/// How long any one step may take; /dev/kvm may be slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a VM is made of.
pub struct Spec<'a> {
    pub kernel: &'a [u8],
    pub initrd: Option<File>,
    pub cmdline: &'a str,
    pub memory: u64,
    pub vcpus: u16,
    /// More arguments, such as a device's.
    pub devices: Vec<(String, OwnedFd)>,
}

/// A running `vmm-core`.
pub struct Core {
    pub child: confine::Child,
    pub connection: Connection,
    pub vm: vm::Client,
    pub console: UnixStream,
}

pub fn sealed(image: &[u8]) -> OwnedFd {
    let fd = rustix::fs::memfd_create("kernel", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let file = File::from(fd);
    file.write_all_at(image, 0).unwrap();
    rustix::fs::fcntl_add_seals(&file, kernel_image::SEALS).unwrap();
    file.into()
}

impl Core {
    /// Must run within `ipc::run`.
    pub fn spawn(program: &Path, spec: Spec<'_>) -> Core {
        Core::spawn_with(program, sealed(spec.kernel), spec)
    }

    pub fn spawn_with(program: &Path, kernel: OwnedFd, spec: Spec<'_>) -> Core {
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let (control, their_control) = UnixStream::pair().unwrap();
        let (console, their_console) = UnixStream::pair().unwrap();
        let mut spawn = confine::Spawn::new(program);
        let fds = [
            ("--kvm-fd", OwnedFd::from(kvm)),
            ("--control-fd", their_control.into()),
            ("--console-fd", their_console.into()),
            ("--kernel-fd", kernel),
        ];
        for (flag, fd) in fds.into_iter().chain(spec.initrd.map(|file| ("--initrd-fd", file.into()))) {
            let number = spawn.fd(fd);
            spawn.args([flag.to_string(), number.to_string()]);
        }
        for (options, fd) in spec.devices {
            let number = spawn.fd(fd);
            spawn.args(["--device".to_string(), format!("fd={number},{options}")]);
        }
        spawn.args(["--memory".to_string(), spec.memory.to_string()]);
        spawn.args(["--vcpus".to_string(), spec.vcpus.to_string()]);
        spawn.args(["--cmdline", spec.cmdline]);
        spawn.die_with_parent();
        let child = spawn.spawn().unwrap();
        let connection = Connection::from_fd(control.into()).unwrap();
        let vm = connection.bootstrap();
        Core { child, connection, vm, console }
    }

    pub async fn start(&self) -> Result<(), Fault> {
        self.connection.call("start", PATIENCE, self.vm.start_request().send()).await.map(drop)
    }

    pub async fn stop(&self, milliseconds: u32) -> Result<(), Fault> {
        let mut request = self.vm.stop_request();
        request.get().set_grace_milliseconds(milliseconds);
        self.connection.call("stop", PATIENCE, request.send()).await.map(drop)
    }

    pub async fn wait(&self) -> Result<(exit::Reason, String), Fault> {
        let answer = self.connection.call("wait", PATIENCE, self.vm.wait_request().send()).await?;
        let exit = answer.get().unwrap().get_exit().unwrap();
        Ok((exit.get_reason().unwrap(), exit.get_detail().unwrap().to_string().unwrap()))
    }

    /// State, and bytes of console output dropped.
    pub async fn info(&self) -> Result<(vm_info::State, u64), Fault> {
        let answer = self.connection.call("info", PATIENCE, self.vm.info_request().send()).await?;
        let info = answer.get().unwrap().get_info().unwrap();
        Ok((info.get_state().unwrap(), info.get_console_dropped()))
    }

    /// Whether the process has ended within the time, and how.
    pub fn ended(&mut self, within: Duration) -> Option<std::process::ExitStatus> {
        readable(self.child.pidfd(), within).then(|| self.child.wait().unwrap())
    }
}

/// Whether a descriptor gets readable within the time.
pub fn readable(fd: impl AsFd, within: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let within = Timespec { tv_sec: within.as_secs() as i64, tv_nsec: within.subsec_nanos().into() };
    poll(&mut fds, Some(&within)).unwrap() > 0
}
