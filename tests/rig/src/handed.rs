//! A capability that is handed to somebody who has nothing else; and that it leads nowhere but where it says.

use std::{collections::BTreeSet, os::unix::net::UnixStream, time::Duration};

use capnp::{any_pointer, capability::Client};
use ipc::{Connection, Limits};

use crate::interfaces::{count, schema};

/// What no object has: other interfaces, and methods past an interface's last.
pub fn unknown() -> impl Iterator<Item = (u64, u16)> {
    let interfaces = &schema().interfaces;
    let nobodys = [0, 1, u64::MAX, interfaces[0].id ^ 1].map(|interface| (interface, 0));
    let past = |own: u16| [own, own + 1, 255, u16::MAX];
    nobodys.into_iter().chain(interfaces.iter().flat_map(move |of| past(count(of)).map(|method| (of.id, method))))
}

/// All that an object of the interface `own` does not know: every method of every other, and what no object has.
pub fn foreign(own: u64) -> impl Iterator<Item = (u64, u16)> {
    schema().methods().filter(move |(interface, _)| *interface != own).chain(unknown())
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
    for (interface, method) in foreign(own) {
        let request = object.new_call::<any_pointer::Owned, any_pointer::Owned>(interface, method, None);
        let answer = tokio::time::timeout(Duration::from_secs(20), request.send().promise).await.expect("no answer");
        let error = answer.map(drop).expect_err("a method of a wider interface was answered");
        assert_eq!(error.kind, capnp::ErrorKind::Unimplemented, "{interface:x} {method}: {error}");
    }
}

/// Hands over each of `narrow`, one of each interface that is to be had from a `root`, and sees that it knows nothing else.
pub async fn know_only(root: u64, narrow: &[(&Client, u64)]) {
    let mut wanted = schema().reachable(root);
    wanted.remove(&root);
    let handed: BTreeSet<u64> = narrow.iter().map(|(_, own)| *own).collect();
    let left: Vec<_> = wanted.symmetric_difference(&handed).map(|id| &schema().interface(*id).name).collect();
    assert!(left.is_empty(), "What is to be had, and what is handed over, differ in {left:?}");
    for (capability, own) in narrow {
        knows_only(*own, &hand_over(capability)).await;
    }
}
