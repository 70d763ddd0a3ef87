//! A port, as who has attached it holds it: `Port` of schema/network.capnp.

use std::os::fd::OwnedFd;

use capnp::capability::Rc;
use capnp_rpc::new_client;
use ipc::Token;
use schema::network_capnp::port;
use service::Owner;

use super::{
    Context,
    answers::{read_rate, write_addresses, write_port, write_stats},
    functions::Function,
    published::{self, publish, unpublish},
    while_trying,
};
use crate::{
    error::Error,
    manager::{Manager, NetworkId, NewPort, PortFacts, Whose},
    ports::PortState,
};

/// Releases its port when it is dropped, unless that stays.
pub struct HeldPort {
    pub port: NewPort,
    pub manager: Owner<Manager>,
    pub stays: bool,
}

impl Drop for HeldPort {
    fn drop(&mut self) {
        if !self.stays && *self.port.state.borrow() == PortState::Attached {
            let id = self.port.id.clone();
            self.manager.tell(move |manager| manager.release(id, None));
        }
    }
}

/// `Port`, of who has attached it.
pub struct Port {
    pub context: Context,
    pub held: HeldPort,
}

impl Port {
    /// The error of a call on a port that has been released, or lost.
    fn check(&self) -> Result<(), capnp::Error> {
        let PortFacts { kind, interface, .. } = &self.held.port.facts;
        match *self.held.port.state.borrow() {
            PortState::Attached => Ok(()),
            PortState::Released => Err(self.failed("use")(Error::Revoked("port"))),
            PortState::Lost => Err(self.failed("use")(kind.gone(interface))),
        }
    }

    fn network(&self) -> &NetworkId {
        self.held.port.id.network()
    }

    /// Leaves a duplicate of its TAP on the lane.
    pub fn offer(&self) -> Result<Token, capnp::Error> {
        let copy = |source| Error::Kernel { tried: "copy a descriptor".into(), source, detail: String::new() };
        let tap = self.held.port.tap.as_ref().ok_or(Error::NoTap).map_err(self.failed("hand out"))?;
        let tap: OwnedFd = tap.try_clone().map_err(|error| self.failed("hand out")(copy(error)))?;
        Ok(self.context.lane.offer(tap, self.context.peer)?)
    }

    fn failed(&self, tried: &str) -> impl Fn(Error) -> capnp::Error {
        let PortFacts { workload, network, .. } = &self.held.port.facts;
        while_trying(format!("{tried} the port of {workload} on network {network}"))
    }
}

impl port::Server for Port {
    async fn info(self: Rc<Self>, _: port::InfoParams, mut results: port::InfoResults) -> Result<(), capnp::Error> {
        self.check()?;
        let mut info = results.get().init_info();
        write_port(info.reborrow(), &self.held.port.facts);
        write_addresses(info, &self.held.port.facts);
        Ok(())
    }

    async fn tap(self: Rc<Self>, _: port::TapParams, mut results: port::TapResults) -> Result<(), capnp::Error> {
        self.check()?;
        // What is handed out is there: an interface that somebody has just deleted leaves a TAP that leads nowhere.
        let id = self.held.port.id.clone();
        let confirm = move |manager: &mut Manager, _: &NetworkId| manager.confirm(&id);
        self.context.on(self.network(), confirm).await.map_err(self.failed("hand out"))?;
        self.offer()?.write(results.get().init_tap());
        Ok(())
    }

    async fn set_policy(
        self: Rc<Self>,
        params: port::SetPolicyParams,
        _: port::SetPolicyResults,
    ) -> Result<(), capnp::Error> {
        self.check()?;
        let (failed, params, id) = (self.failed("set the policy of"), params.get()?, self.held.port.id.clone());
        let policy = self.context.given(params.has_policy(), params.get_policy()).await.map_err(&failed)?;
        self.context.on(self.network(), move |manager, _| manager.set_policy(&id, policy)).await.map_err(failed)
    }

    async fn policy(
        self: Rc<Self>,
        _: port::PolicyParams,
        mut results: port::PolicyResults,
    ) -> Result<(), capnp::Error> {
        self.check()?;
        let (failed, id) = (self.failed("look at the policy of"), self.held.port.id.clone());
        let policy = self.context.on(self.network(), move |manager, _| manager.policy_of_port(&id)).await;
        let policy = policy.map_err(failed)?;
        if let Some(policy) = policy {
            results.get().set_policy(self.context.policy(policy));
        }
        Ok(())
    }

    async fn stats(self: Rc<Self>, _: port::StatsParams, mut results: port::StatsResults) -> Result<(), capnp::Error> {
        self.check()?;
        let (failed, id) = (self.failed("look at what goes through"), self.held.port.id.clone());
        let stats = self.context.on(self.network(), move |manager, _| manager.stats(&id)).await.map_err(failed)?;
        write_stats(results.get().init_stats(), &stats);
        Ok(())
    }

    async fn publish(
        self: Rc<Self>,
        params: port::PublishParams,
        mut results: port::PublishResults,
    ) -> Result<(), capnp::Error> {
        self.check()?;
        let (failed, params) = (self.failed("publish ports for"), params.get()?);
        let port = Whose::Held(self.held.port.id.clone());
        let published = publish(&self.context, port, params.get_sockets()?, params.get_guest_port(), failed).await?;
        published::write(results.get().init_published(published.len() as u32), &published);
        Ok(())
    }

    async fn unpublish(
        self: Rc<Self>,
        params: port::UnpublishParams,
        _: port::UnpublishResults,
    ) -> Result<(), capnp::Error> {
        self.check()?;
        let (failed, port) = (self.failed("take back what is published for"), Whose::Held(self.held.port.id.clone()));
        unpublish(&self.context, port, params.get()?.get_published()?, failed).await
    }

    async fn set_rate(
        self: Rc<Self>,
        params: port::SetRateParams,
        _: port::SetRateResults,
    ) -> Result<(), capnp::Error> {
        self.check()?;
        let (failed, id) = (self.failed("set the rate of"), self.held.port.id.clone());
        let rate = read_rate(params.get()?.get_rate()).map_err(&failed)?;
        self.context.on(self.network(), move |manager, _| manager.set_rate(&id, rate)).await.map_err(failed)
    }

    async fn virtual_function(
        self: Rc<Self>,
        _: port::VirtualFunctionParams,
        mut results: port::VirtualFunctionResults,
    ) -> Result<(), capnp::Error> {
        self.check()?;
        let NewPort { facts, state, .. } = &self.held.port;
        let function = Function { facts: facts.clone(), state: state.clone() };
        results.get().set_virtual_function(new_client(function));
        Ok(())
    }

    async fn release(self: Rc<Self>, _: port::ReleaseParams, _: port::ReleaseResults) -> Result<(), capnp::Error> {
        self.check()?;
        let id = self.held.port.id.clone();
        let release = self.context.manager.ask_later(move |manager, answer| manager.release(id, Some(answer)));
        release.await.map_err(self.failed("release"))
    }

    async fn lost(self: Rc<Self>, _: port::LostParams, mut results: port::LostResults) -> Result<(), capnp::Error> {
        let PortFacts { kind, interface, .. } = &self.held.port.facts;
        let (mut state, gone) = (self.held.port.state.clone(), kind.gone(interface));
        let revoked = self.failed("watch")(Error::Revoked("port"));
        // A call that waits does not keep a port whose holder has dropped it.
        drop(self);
        match state.wait_for(|state| *state != PortState::Attached).await.as_deref() {
            Ok(PortState::Lost) => {
                results.get().set_why(gone.to_string());
                Ok(())
            }
            _ => Err(revoked),
        }
    }
}
