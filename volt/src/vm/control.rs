//! The VM's control socket: the `Vm` capability that other programs, `volt stop` and `volt list` use.
//!
//! It forwards to whichever core runs the VM now: a guest's reset replaces the core, and the holder of this capability
//! does not notice.

use std::{cell::RefCell, rc::Rc, time::Duration};

use schema::vm_capnp::{MAX_GRACE_MILLISECONDS, exit, vm, vm_info};
use tokio::sync::watch;

use crate::error::Error;

/// How long the core may take to answer: whoever asks waits two seconds (`volt list`), and should hear that it is the core's.
const DEADLINE: Duration = Duration::from_secs(1);

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
        let exit = end.wait_for(Option::is_some).await.map_err(|_| told(&Error::SupervisorEnded))?.clone();
        exit.ok_or_else(|| told(&Error::SupervisorEnded))
    }
}

/// As whoever called is told of it.
fn told(error: &Error) -> capnp::Error {
    error.fault().into()
}

struct Handle(Rc<Control>);

impl vm::Server for Handle {
    async fn start(self: Rc<Self>, _: vm::StartParams, _: vm::StartResults) -> Result<(), capnp::Error> {
        Err(told(&Error::StartsItself(self.0.name.clone())))
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
            let answer = tokio::time::timeout(DEADLINE, core.info_request().send().promise);
            let late = |_| told(&Error::CoreMute { name: self.0.name.clone(), limit: DEADLINE });
            let answer = answer.await.map_err(late)??;
            let core = answer.get()?.get_info()?;
            info.set_state(core.get_state()?);
            info.set_console_dropped(core.get_console_dropped());
        }
        Ok(())
    }

    async fn stop(self: Rc<Self>, params: vm::StopParams, _: vm::StopResults) -> Result<(), capnp::Error> {
        let grace = params.get()?.get_grace_milliseconds();
        if grace > MAX_GRACE_MILLISECONDS {
            return Err(told(&Error::Grace { name: self.0.name.clone(), grace }));
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

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::{Code, Fault};

    fn in_runtime<T>(test: impl AsyncFnOnce(Rc<Control>) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async { test(Control::new("web", 2, 64 << 20)).await })
    }

    async fn state(client: &vm::Client) -> vm_info::State {
        client.info_request().send().promise.await.unwrap().get().unwrap().get_info().unwrap().get_state().unwrap()
    }

    fn stop(client: &vm::Client, grace: u32) -> impl Future<Output = Result<(), Fault>> + use<> {
        let mut request = client.stop_request();
        request.get().set_grace_milliseconds(grace);
        let promise = request.send().promise;
        async { promise.await.map(drop).map_err(|e| Fault::parse(&e)) }
    }

    #[test]
    fn shortest_grace_time_that_was_asked_for_counts() {
        let control = Control::new("web", 1, 0);
        let asked = control.stop_requests();
        for (grace, counts) in [(5, 5), (9, 5), (0, 0), (3, 0)] {
            control.request_stop(Duration::from_secs(grace));
            assert_eq!(*asked.borrow(), Some(Duration::from_secs(counts)));
        }
    }

    #[test]
    fn vm_that_has_not_started_is_created_and_cannot_be_started_from_outside() {
        in_runtime(async |control| {
            let client = control.client();
            assert!(state(&client).await == vm_info::State::Created);
            let refused = client.start_request().send().promise.await.map(drop).unwrap_err();
            assert_eq!(Fault::parse(&refused).code, Code::WrongState);
        });
    }

    #[test]
    fn stop_is_passed_on_at_once_and_answered_at_the_end() {
        in_runtime(async |control| {
            let mut stopping = Box::pin(stop(&control.client(), MAX_GRACE_MILLISECONDS));
            let early = tokio::time::timeout(Duration::from_millis(20), &mut stopping).await;
            assert!(early.is_err());
            assert_eq!(*control.stop_requests().borrow(), Some(Duration::from_secs(600)));
            control.set_ended(Exit::stopped("enough"));
            stopping.await.unwrap();
            assert!(state(&control.client()).await == vm_info::State::Stopped);
        });
    }

    #[test]
    fn grace_time_beyond_ten_minutes_is_refused_and_stops_nothing() {
        in_runtime(async |control| {
            assert_eq!(
                stop(&control.client(), MAX_GRACE_MILLISECONDS + 1).await.unwrap_err().code,
                Code::InvalidArgument
            );
            assert_eq!(*control.stop_requests().borrow(), None);
        });
    }

    #[test]
    fn whoever_waits_before_or_after_the_end_is_told_why() {
        in_runtime(async |control| {
            let before = control.client().wait_request().send().promise;
            control.set_ended(Exit { reason: exit::Reason::DeviceFailed, detail: "disk 0".into() });
            let after = control.client().wait_request().send().promise;
            for answer in [before.await.unwrap(), after.await.unwrap()] {
                let exit = answer.get().unwrap().get_exit().unwrap();
                assert!(exit.get_reason().unwrap() == exit::Reason::DeviceFailed);
                assert_eq!(exit.get_detail().unwrap(), "disk 0");
            }
        });
    }
}
