//! `VirtualFunction` of schema/network.capnp: which one a port has.

use capnp::capability::Rc;
use schema::network_capnp::virtual_function;
use tokio::sync::watch;

use super::while_trying;
use crate::{
    error::Error,
    manager::{FunctionFacts, PortFacts},
    ports::PortState,
};

/// That of one port, which it does not keep.
pub struct Function {
    /// What is said of that.
    pub facts: PortFacts,
    /// Whether the port has it still.
    pub state: watch::Receiver<PortState>,
}

impl virtual_function::Server for Function {
    async fn info(
        self: Rc<Self>,
        _: virtual_function::InfoParams,
        mut results: virtual_function::InfoResults,
    ) -> Result<(), capnp::Error> {
        let PortFacts { workload, network, function, .. } = &self.facts;
        let failed = while_trying(format!("look at the virtual function of {workload} on network {network}"));
        if *self.state.borrow() != PortState::Attached || self.state.has_changed().is_err() {
            return Err(failed(Error::Revoked("virtual function")));
        }
        let function = function.as_ref().ok_or(Error::NotFunction).map_err(failed)?;
        let FunctionFacts { parent, number, address, mac, vlan } = function;
        let mut info = results.get().init_info();
        info.set_parent(parent);
        info.set_number(*number);
        info.set_address(address);
        info.set_mac(&mac.bytes());
        info.set_vlan(*vlan);
        Ok(())
    }
}
