//! A capability that is handed to somebody who has nothing else; and that it leads nowhere but where it says.

use std::{os::unix::net::UnixStream, time::Duration};

use capnp::{any_pointer, capability::Client, traits::HasTypeId};
use ipc::{Connection, Limits};
use schema::{
    addresses_capnp::{allocator, ipam, lease, pool, reservation},
    device_capnp::device_backend,
    host_capnp::{host, tenant},
    kernel_store_capnp::{kernel, kernel_store},
    network_capnp::{network, port, port_factory},
    vm_capnp::vm,
};

/// Every interface there is, and how many methods it has.
pub const INTERFACES: [(u64, u16); 14] = [
    (host::Client::TYPE_ID, 4),
    (tenant::Client::TYPE_ID, 1),
    (network::Client::TYPE_ID, 2),
    (port_factory::Client::TYPE_ID, 1),
    (port::Client::TYPE_ID, 4),
    (ipam::Client::TYPE_ID, 5),
    (pool::Client::TYPE_ID, 6),
    (allocator::Client::TYPE_ID, 1),
    (lease::Client::TYPE_ID, 3),
    (reservation::Client::TYPE_ID, 2),
    (kernel_store::Client::TYPE_ID, 4),
    (kernel::Client::TYPE_ID, 2),
    (device_backend::Client::TYPE_ID, 1),
    (vm::Client::TYPE_ID, 4),
];

/// What none of the above has: other interfaces, and methods past the last.
pub fn unknown() -> impl Iterator<Item = (u64, u16)> {
    let interfaces = [0, 1, u64::MAX, vm::Client::TYPE_ID ^ 1].map(|interface| (interface, 0));
    interfaces
        .into_iter()
        .chain(INTERFACES.iter().flat_map(|(id, own)| [*own, own + 1, 255, u16::MAX].map(|m| (*id, m))))
}

/// Hands `capability` over on a link of its own: the other end, with nothing but this. Calls pass on to wherever it lives.
pub fn hand_over(capability: &Client) -> Connection {
    let (ours, theirs) = UnixStream::pair().unwrap();
    tokio::task::spawn_local(ipc::serve_link(
        ipc::LinkSocket::new(theirs.into()).unwrap(),
        Limits::default(),
        capability.clone(),
    ));
    Connection::from_fd(ours.into()).unwrap()
}

/// Calls every method of every interface but `own` on what was handed over: the object knows none of them.
pub async fn knows_only(own: u64, connection: &Connection) {
    let object = Client::new(connection.bootstrap());
    let known = INTERFACES.iter().flat_map(|(id, methods)| (0..*methods).map(|method| (*id, method)));
    for (interface, method) in known.filter(|(id, _)| *id != own).chain(unknown()) {
        let request = object.new_call::<any_pointer::Owned, any_pointer::Owned>(interface, method, None);
        let answer = tokio::time::timeout(Duration::from_secs(20), request.send().promise).await.expect("no answer");
        let error = answer.map(drop).expect_err("a method of a wider interface was answered");
        assert_eq!(error.kind, capnp::ErrorKind::Unimplemented, "{interface:x} {method}: {error}");
    }
}
