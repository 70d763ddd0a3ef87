//! What takes two things at one time that no client can bring about at will.

use super::*;
use crate::{ports::Quota, rtnl::Batch, sources::Sources};

/// Runs a test with a manager of a network namespace of its own, another socket of it, and a quota for any number of ports.
fn with_manager(test: impl FnOnce(&mut Manager, &mut Rtnl, &Account) + Send + 'static) {
    if !testkit::user::is_root() {
        return testkit::skip!("making a network namespace takes root");
    }
    let ran = testkit::namespace::in_own_network(|| {
        let mut manager = Manager::recover(Rtnl::open().unwrap(), None, Instance::default()).unwrap();
        let account = Account { quota: Quota::new(u32::MAX), tenant: None, bound: None };
        test(&mut manager, &mut Rtnl::open().unwrap(), &account);
    });
    assert!(ran);
}

fn define(manager: &mut Manager, name: &str, gateway: &str) -> NetworkId {
    manager.define(Config::new(name, gateway, 24, 0).unwrap(), "", None, None).unwrap().0
}

fn attach(manager: &mut Manager, network: &NetworkId, account: &Account) -> NewPort {
    let asked = Asked {
        workload: "vm-web".into(),
        mac: names::mac_of_guest(&network.name, "vm-web"),
        sources: Sources::default(),
        policy: None,
        veth: None,
    };
    manager.attach(network, asked, account).unwrap()
}

/// Nothing is tidied between two requests that wait together.
#[test]
fn who_asks_anew_at_once_is_not_refused_for_what_was_given_up() {
    with_manager(|manager, _, account| {
        let network = define(manager, "volt0", "10.42.0.1");
        for _ in 0..3 {
            let port = attach(manager, &network, account);
            assert_eq!(port.facts.interface, "tap-web");
            manager.release(port.id.clone(), None);
        }
    });
}

#[test]
fn bridge_that_goes_between_the_look_and_the_change_is_made_again_with_its_ports() {
    with_manager(|manager, rtnl, account| {
        let id = define(manager, "volt0", "10.42.0.1");
        let port = attach(manager, &id, account);
        let whom = || LinkUnspec::new_with_index(port.facts.index);
        rtnl.run(Batch::default().set("take it down", whom().down())).unwrap();
        let seen = manager.rtnl.snapshot(false).unwrap();
        let bridge = |rtnl: &mut Rtnl| rtnl.link(LinkUnspec::new_with_name("volt0")).unwrap().unwrap().index;
        let before = bridge(rtnl);
        rtnl.delete(before, |_| true).unwrap();
        manager.mend_with(&seen);
        let link = rtnl.link(whom()).unwrap().unwrap();
        assert!(link.up && link.master == bridge(rtnl) && link.master != before, "{link:?}");
    });
}
