//! The VM's control socket: the `Vm` capability that other programs, `volt stop` and `volt list` use.
//!
//! It forwards to whichever core runs the VM now: a guest's reset replaces the core, and the holder of this capability
//! does not notice.

use std::{cell::RefCell, rc::Rc, time::Duration};

use ipc::{Code, Fault};
use schema::vm_capnp::{exit, vm, vm_info};
use tokio::sync::watch;

/// How long the core may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub reason: exit::Reason,
    /// For people; may be empty.
    pub detail: String,
}

impl Exit {
    /// Ended because somebody asked for it.
    pub fn stopped(detail: &str) -> Exit {
        Exit { reason: exit::Reason::Stopped, detail: detail.into() }
    }
}

/// What the supervisor and the control socket share.
pub struct Control {
    name: String,
    vcpus: u16,
    memory: u64,
    /// The core that runs now.
    core: RefCell<Option<vm::Client>>,
    end: watch::Sender<Option<Exit>>,
    stop: watch::Sender<Option<Duration>>,
}

impl Control {
    pub fn new(name: &str, vcpus: u16, memory: u64) -> Rc<Control> {
        Rc::new(Control {
            name: name.into(),
            vcpus,
            memory,
            core: RefCell::new(None),
            end: watch::Sender::new(None),
            stop: watch::Sender::new(None),
        })
    }

    /// A capability on this VM.
    pub fn client(self: &Rc<Self>) -> vm::Client {
        capnp_rpc::new_client(Handle(self.clone()))
    }

    /// Says which core runs the VM.
    pub fn set_core(&self, core: Option<vm::Client>) {
        *self.core.borrow_mut() = core;
    }

    /// Says that the VM has ended for good.
    pub fn set_ended(&self, exit: Exit) {
        self.set_core(None);
        self.end.send_replace(Some(exit));
    }

    /// Asks the supervisor to stop the VM within that time. The shortest time asked for counts.
    pub fn request_stop(&self, grace: Duration) {
        self.stop.send_modify(|now| *now = Some(now.map_or(grace, |old| old.min(grace))));
    }

    /// Whether somebody asked to stop the VM; a watch on it.
    pub fn stop_requests(&self) -> watch::Receiver<Option<Duration>> {
        self.stop.subscribe()
    }

    async fn ended(&self) -> Result<Exit, capnp::Error> {
        let mut end = self.end.subscribe();
        let exit = end.wait_for(Option::is_some).await.map_err(|_| gone())?.clone();
        exit.ok_or_else(gone)
    }
}

fn gone() -> capnp::Error {
    Fault::new(Code::Revoked, "watch the VM", "its supervisor has ended", "Run it again").into()
}

struct Handle(Rc<Control>);

impl vm::Server for Handle {
    async fn start(self: Rc<Self>, _: vm::StartParams, _: vm::StartResults) -> Result<(), capnp::Error> {
        let why = "volt run starts the VM by itself";
        Err(Fault::new(Code::WrongState, format!("start the VM {}", self.0.name), why, "Nothing needs to be done")
            .into())
    }

    async fn info(self: Rc<Self>, _: vm::InfoParams, mut results: vm::InfoResults) -> Result<(), capnp::Error> {
        let mut info = results.get().init_info();
        info.set_name(&self.0.name);
        info.set_vcpus(self.0.vcpus);
        info.set_memory(self.0.memory);
        let core = self.0.core.borrow().clone();
        if let Some(exit) = &*self.0.end.borrow() {
            info.set_state(vm_info::State::Stopped);
            set_exit(info.init_exit(), exit);
        } else if let Some(core) = core {
            let answer = tokio::time::timeout(DEADLINE, core.info_request().send().promise).await.map_err(|_| {
                capnp::Error::from(Fault::new(
                    Code::Unavailable,
                    "ask the core",
                    "it did not answer in time",
                    "Stop the VM",
                ))
            })??;
            let core = answer.get()?.get_info()?;
            info.set_state(core.get_state()?);
            info.set_console_dropped(core.get_console_dropped());
        }
        Ok(())
    }

    async fn stop(self: Rc<Self>, params: vm::StopParams, _: vm::StopResults) -> Result<(), capnp::Error> {
        let grace = params.get()?.get_grace_milliseconds();
        if grace > 600_000 {
            let why = format!("a grace of {grace} ms is more than 600000");
            return Err(Fault::new(
                Code::InvalidArgument,
                format!("stop the VM {}", self.0.name),
                why,
                "Give at most ten minutes",
            )
            .into());
        }
        self.0.request_stop(Duration::from_millis(grace.into()));
        self.0.ended().await.map(drop)
    }

    async fn wait(self: Rc<Self>, _: vm::WaitParams, mut results: vm::WaitResults) -> Result<(), capnp::Error> {
        let exit = self.0.ended().await?;
        set_exit(results.get().init_exit(), &exit);
        Ok(())
    }
}

fn set_exit(mut builder: exit::Builder<'_>, exit: &Exit) {
    builder.set_reason(exit.reason);
    builder.set_detail(&exit.detail);
}
