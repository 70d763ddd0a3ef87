//! What a client can and cannot do with a real `ipamd`.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use common::*;
use ipc::Code;
use schema::addresses_capnp::lease_info::State;
use testrig::service::{IDLE, inherited_sockets_are_served_until_nobody_is_connected};

#[test]
fn a_lease_is_allocated_looked_at_released_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let pool = client.define(CONFIG).await.unwrap();
        assert_eq!(client.free(&pool).await, 251);
        let allocator = client.allocator(&pool, 2).await.unwrap();
        let lease = client.allocate(&allocator, "vm-a").await.unwrap();
        let web = client.allocate(&allocator, "vm-web").await.unwrap();
        let held = |workload: &str, address: &str, reserved| Info {
            workload: workload.into(),
            address: address.into(),
            state: State::Held,
            reserved,
        };
        assert_eq!(client.info(&lease).await.unwrap(), held("vm-a", "10.42.0.2", false));
        assert_eq!(client.info(&web).await.unwrap(), held("vm-web", "10.42.0.10", true));
        assert_eq!(code(client.allocate(&allocator, "vm-b").await), Some(Code::Exhausted));
        client.release(&lease).await.unwrap();
        assert_eq!(code(client.info(&lease).await), Some(Code::Revoked));
        assert_eq!(code(client.release(&lease).await), Some(Code::Revoked));
        client.allocate(&allocator, "vm-b").await.unwrap();
        assert_eq!(client.networks().await, ["volt0"]);
        assert_eq!(code(client.pool("volt1").await), Some(Code::NotFound));
        for most in [0, 65_537] {
            assert_eq!(code(client.allocator(&pool, most).await), Some(Code::InvalidArgument));
        }
        client.allocator(&pool, 65_536).await.unwrap();
        let fault = client.define(&CONFIG.replace("\"gateway\"", "\"portal\"")).await.err().unwrap();
        assert_eq!(fault.code, Code::InvalidArgument);
        assert!(fault.to_string().contains("portal"), "{fault}");
    });
}

#[test]
fn a_pool_is_removed_once_nobody_uses_it_and_its_subnet_is_free_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    let named = |name: &str| CONFIG.replace("volt0", name);
    run(async {
        let client = service.connect().await;
        for name in ["all", "default"] {
            let fault = client.define(&named(name)).await.err().unwrap();
            assert_eq!(fault.code, Code::InvalidArgument, "netmgr takes no such name either");
        }
        let pool = client.define(&named("net0")).await.unwrap();
        let allocator = client.allocator(&pool, 2).await.unwrap();
        let lease = client.allocate(&allocator, "vm-a").await.unwrap();
        let other = named("net1");
        assert_eq!(code(client.define(&other).await), Some(Code::Conflict));
        assert_eq!(code(client.remove_pool("net0").await), Some(Code::WrongState));
        client.release(&lease).await.unwrap();
        assert_eq!(code(client.remove_pool("net1").await), Some(Code::NotFound));
        client.remove_pool("net0").await.unwrap();
        assert_eq!(client.networks().await, ["volt0"], "the one that is built in");
        // What came of it leads nowhere, though its addresses are another pool's now.
        client.define(&other).await.unwrap();
        assert_eq!(code(client.allocate(&allocator, "vm-a").await), Some(Code::Revoked));
        assert_eq!(code(client.allocate(&allocator, "vm-web").await), Some(Code::Revoked));
        assert_eq!(code(client.allocator(&pool, 1).await), Some(Code::Revoked));
        assert_eq!(client.networks().await, ["net1"]);
    });
}

#[test]
fn a_lease_whose_holder_goes_is_kept_for_the_same_workload_only() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let keeper = service.connect().await;
        let pool = keeper.define(CONFIG).await.unwrap();
        let allocator = keeper.allocator(&pool, 10).await.unwrap();
        let dropped = keeper.allocate(&allocator, "vm-dropped").await.unwrap();
        let other = service.connect().await;
        let others = other.allocator(&other.pool("volt0").await.unwrap(), 10).await.unwrap();
        let _gone = other.allocate(&others, "vm-gone").await.unwrap();
        // One by dropping the capability, one by the end of the connection.
        drop((dropped, other));
        eventually(async || keeper.leases(&pool).await.iter().filter(|info| info.state == State::Grace).count() == 2)
            .await;
        let elsewhere = keeper.allocate(&allocator, "vm-new").await.unwrap();
        assert_eq!(keeper.info(&elsewhere).await.unwrap().address, "10.42.0.4");
        let again = keeper.allocate(&allocator, "vm-gone").await.unwrap();
        assert_eq!(keeper.info(&again).await.unwrap().address, "10.42.0.3");
    });
}

#[test]
fn a_durable_reservation_is_found_by_its_workload_and_one_of_the_configuration_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let pool = client.define(CONFIG).await.unwrap();
        // Whose reference is lost.
        client.reserve(&pool, "container-a", "10.42.0.77").await.unwrap();
    });
    service.kill();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let pool = client.pool("volt0").await.unwrap();
        // `vm-web` has one by the configuration, which is not to be cancelled.
        for none in ["vm-web", "container-b", ""] {
            assert_eq!(code(client.reservation(&pool, none).await), Some(Code::NotFound), "{none:?}");
        }
        let reservation = client.reservation(&pool, "container-a").await.unwrap();
        assert_eq!(client.reservation_info(&reservation).await.unwrap().address, "10.42.0.77");
        let same = client.reservation(&pool, "container-a").await.unwrap();
        client.cancel(&reservation).await.unwrap();
        assert_eq!(code(client.cancel(&same).await), Some(Code::Revoked));
        assert_eq!(code(client.reservation(&pool, "container-a").await), Some(Code::NotFound));
        assert_eq!(client.free(&pool).await, 251);
    });
}

#[test]
fn a_grace_period_ends_after_thirty_seconds_without_anybody_asking() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let pool = client.define(CONFIG).await.unwrap();
        let allocator = client.allocator(&pool, 1).await.unwrap();
        let lease = client.allocate(&allocator, "vm-a").await.unwrap();
        let begun = Instant::now();
        drop(lease);
        eventually(async || client.leases(&pool).await.iter().any(|info| info.state == State::Grace)).await;
        assert_eq!(client.free(&pool).await, 250);
        let rows = || std::fs::metadata(dir.path().join("state/ipamd.sqlite-wal")).unwrap().len();
        let before = rows();
        // Its end is written, though nobody asks; and no sooner.
        eventually(async || rows() > before).await;
        assert!(begun.elapsed() >= Duration::from_secs(30));
        assert_eq!(client.free(&pool).await, 251);
        client.allocate(&allocator, "vm-b").await.unwrap();
    });
}

#[test]
fn a_reservation_survives_its_holder_and_the_service_and_only_its_hash_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let mut sturdy_ref = Vec::new();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let pool = client.define(CONFIG).await.unwrap();
        let (reservation, secret) = client.reserve(&pool, "vm-a", "10.42.0.77").await.unwrap();
        assert_eq!(secret.len(), 32);
        assert_eq!(client.reservation_info(&reservation).await.unwrap().state, State::Idle);
        sturdy_ref = secret;
    });
    drop(service);
    for entry in std::fs::read_dir(dir.path().join("state")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(32).any(|window| window == sturdy_ref), "the secret is on the disk");
    }
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let pool = client.pool("volt0").await.unwrap();
        let reservation = client.restore(&pool, &sturdy_ref).await.unwrap();
        assert_eq!(client.reservation_info(&reservation).await.unwrap().address, "10.42.0.77");
        for wrong in [&[][..], &[0; 32], &sturdy_ref[..31]] {
            assert_eq!(code(client.restore(&pool, wrong).await), Some(Code::NotFound));
        }
        client.cancel(&reservation).await.unwrap();
        assert_eq!(code(client.cancel(&reservation).await), Some(Code::Revoked));
        assert_eq!(code(client.restore(&pool, &sturdy_ref).await), Some(Code::NotFound));
    });
}

#[test]
fn an_allocation_that_is_cancelled_leaves_no_lease_held() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let pool = client.define(CONFIG).await.unwrap();
        let allocator = client.allocator(&pool, 100).await.unwrap();
        for n in 0..50 {
            let mut request = allocator.allocate_request();
            request.get().set_workload(format!("vm-{n}"));
            let asked = request.send();
            tokio::time::sleep(Duration::from_micros(n * 20)).await;
            drop(asked);
        }
        eventually(async || client.leases(&pool).await.iter().all(|info| info.state != State::Held)).await;
    });
}

#[test]
fn it_serves_inherited_sockets_and_ends_when_idle() {
    let dir = tempfile::tempdir().unwrap();
    inherited_sockets_are_served_until_nobody_is_connected(dir.path(), async |client: &Client| {
        client.define(CONFIG).await.unwrap();
        tokio::time::sleep(2 * IDLE).await;
        assert_eq!(client.networks().await, ["volt0"], "it is not idle while somebody is connected");
    });
    assert!(!dir.path().join("state/ipamd.sqlite-wal").exists(), "the database was closed in good order");
}

#[test]
fn what_stands_in_the_way_of_starting_is_named_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    let mut second = Command::new(env!("CARGO_BIN_EXE_ipamd"));
    second.arg("--state-dir").arg(dir.path().join("state")).arg("--socket").arg(dir.path().join("other.sock"));
    let said = refusal(second);
    assert!(said.contains("in use by another process") && said.contains("--state-dir"), "{said}");
    let said = refusal(Service::command(dir.path()));
    assert!(said.contains("service.sock"), "{said}");
    drop(service);

    let database = dir.path().join("state/ipamd.sqlite");
    std::fs::write(&database, "my thesis").unwrap();
    let said = refusal(Service::command(dir.path()));
    assert!(said.contains("not an ipamd database") && said.contains("move it away"), "{said}");
    assert_eq!(std::fs::read_to_string(&database).unwrap(), "my thesis");

    std::fs::remove_dir_all(dir.path().join("state")).unwrap();
    std::fs::write(dir.path().join("state"), "").unwrap();
    let said = refusal(Service::command(dir.path()));
    assert!(said.contains("state directory") && said.contains("--state-dir"), "{said}");

    let mut bare = Command::new(env!("CARGO_BIN_EXE_ipamd"));
    bare.arg("--state-dir").arg(dir.path().join("s2"));
    assert!(refusal(bare).contains("--listen-fd"));
}

#[test]
fn every_thread_is_confined() {
    let dir = tempfile::tempdir().unwrap();
    Service::start(dir.path()).is_confined(2, 0);
}

#[test]
fn a_stranger_is_refused_and_the_service_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    Service::start(dir.path()).refuses_a_stranger(async |client: Client| client.try_networks().await.is_ok());
}

#[test]
fn a_database_that_was_opened_up_to_a_group_is_served_and_its_log_is_as_open() {
    let dir = tempfile::tempdir().unwrap();
    drop(Service::start(dir.path()));
    let database = dir.path().join("state/ipamd.sqlite");
    std::fs::set_permissions(&database, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::remove_file(dir.path().join("state/ipamd.sqlite-wal")).unwrap();
    let service = Service::start(dir.path());
    run(async { drop(service.connect().await.define(CONFIG).await.unwrap()) });
    let log = std::fs::metadata(dir.path().join("state/ipamd.sqlite-wal")).unwrap();
    assert_eq!(log.permissions().mode() & 0o777, 0o640);
}

#[test]
fn a_database_that_is_a_link_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Service::start(dir.path()));
    let (state, moved) = (dir.path().join("state"), dir.path().join("moved.sqlite"));
    std::fs::rename(state.join("ipamd.sqlite"), &moved).unwrap();
    std::os::unix::fs::symlink(&moved, state.join("ipamd.sqlite")).unwrap();
    let said = refusal(Service::command(dir.path()));
    assert!(said.contains("Cannot read the database"), "{said}");
}
