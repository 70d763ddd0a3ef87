//! Who holds something narrow of a real `ipamd` has that and no more, however it asks; and who may connect.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use capnp::traits::HasTypeId;
use common::*;
use ipc::Code;
use schema::addresses_capnp::lease_info::State;
use schema::addresses_capnp::{allocator, ipam, lease, pool, reservation};
use testkit::{
    skip,
    user::{as_user, is_root},
};
use testrig::{
    handed::{hand_over, know_only},
    service::{dies_with_this_thread, inherits, state_that_others_may_write_to_or_own_is_refused},
    storm,
};

const OTHER: &str = r#"{"network":"volt1","subnet":"10.43.0.0/24"}"#;

#[test]
fn what_is_narrow_leads_to_nothing_wider() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let owner = service.connect().await;
        let pool = owner.define(CONFIG).await.unwrap();
        let allocator = owner.allocator(&pool, 1).await.unwrap();
        let lease = owner.allocate(&allocator, "vm-a").await.unwrap();
        let (reservation, _) = owner.reserve(&pool, "vm-b", "").await.unwrap();
        let narrow = [
            (&lease.client, lease::Client::TYPE_ID),
            (&allocator.client, allocator::Client::TYPE_ID),
            (&reservation.client, reservation::Client::TYPE_ID),
            (&pool.client, pool::Client::TYPE_ID),
        ];
        know_only(ipam::Client::TYPE_ID, &narrow).await;
        // Each is what it was, and does what it says, also for who got it handed.
        let holder = Client::from(hand_over(&lease.client));
        assert_eq!(holder.info(&holder.connection.bootstrap()).await.unwrap().workload, "vm-a");
        let holder = Client::from(hand_over(&allocator.client));
        assert_eq!(code(holder.allocate(&holder.connection.bootstrap(), "vm-c").await), Some(Code::Exhausted));
        assert_eq!(owner.reservation_info(&reservation).await.unwrap().workload, "vm-b");
        assert_eq!(owner.networks().await, ["volt0"]);
    });
}

#[test]
fn a_quota_is_the_same_for_all_who_hold_the_allocator_however_often_they_ask() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let owner = service.connect().await;
        let pool = owner.define(CONFIG).await.unwrap();
        let allocator = owner.allocator(&pool, 2).await.unwrap();
        let holders = [(); 3].map(|()| Client::from(hand_over(&allocator.client)));
        let ask = async |holder: &Client, workload: &str| {
            // Each asks its link for the capability anew.
            holder.allocate(&holder.connection.bootstrap::<allocator::Client>(), workload).await
        };
        let first = ask(&holders[0], "vm-0").await.unwrap();
        let second = ask(&holders[1], "vm-1").await.unwrap();
        for holder in &holders {
            assert_eq!(code(ask(holder, "vm-2").await), Some(Code::Exhausted));
        }
        // To reconnect gives nothing, and neither does dropping a lease, whose address is kept for its workload.
        let again = Client::from(hand_over(&allocator.client));
        assert_eq!(code(ask(&again, "vm-2").await), Some(Code::Exhausted));
        drop(first);
        eventually(async || owner.leases(&pool).await.iter().any(|info| info.state == State::Grace)).await;
        assert_eq!(code(ask(&again, "vm-2").await), Some(Code::Exhausted));
        holders[1].release(&second).await.unwrap();
        ask(&again, "vm-2").await.unwrap();
        assert_eq!(owner.leases(&pool).await.iter().filter(|info| info.workload.starts_with("vm-2")).count(), 1);
    });
}

#[test]
fn a_lease_that_was_released_is_nobodys_and_does_no_harm_to_the_next_on_that_address() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let owner = service.connect().await;
        // A pool of one address.
        let pool = owner.define(r#"{"network":"volt2","subnet":"10.44.0.0/30"}"#).await.unwrap();
        let allocator = owner.allocator(&pool, 10).await.unwrap();
        let old = owner.allocate(&allocator, "vm-old").await.unwrap();
        let holder = Client::from(hand_over(&old.client));
        let handed: lease::Client = holder.connection.bootstrap();
        let address = holder.info(&handed).await.unwrap().address;
        owner.release(&old).await.unwrap();
        let new = owner.allocate(&allocator, "vm-new").await.unwrap();
        assert_eq!(owner.info(&new).await.unwrap().address, address);
        for _ in 0..3 {
            assert_eq!(code(holder.info(&handed).await), Some(Code::Revoked));
            assert_eq!(code(holder.release(&handed).await), Some(Code::Revoked));
        }
        drop((handed, holder, old));
        let other = service.connect().await;
        other.networks().await;
        let info = owner.info(&new).await.unwrap();
        assert_eq!((info.address, info.state), (address, State::Held));
    });
}

#[test]
fn a_reservations_reference_is_good_at_its_own_pool_and_cannot_be_guessed() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let owner = service.connect().await;
        let pool = owner.define(CONFIG).await.unwrap();
        let other = owner.define(OTHER).await.unwrap();
        let (_reservation, secret) = owner.reserve(&pool, "vm-a", "").await.unwrap();
        assert_eq!(code(owner.restore(&other, &secret).await), Some(Code::NotFound));
        for bit in 0..256 {
            let mut guess = secret.clone();
            guess[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(code(owner.restore(&pool, &guess).await), Some(Code::NotFound), "{bit}");
        }
        // Its hash, which is what is on the disk, is not it.
        let hash = <sha2::Sha256 as sha2::Digest>::digest(&secret);
        assert_eq!(code(owner.restore(&pool, &hash).await), Some(Code::NotFound));
        let restored = owner.restore(&pool, &secret).await.unwrap();
        assert_eq!(owner.reservation_info(&restored).await.unwrap().workload, "vm-a");
    });
}

const OWN: u32 = 4720;
const OWNER: u32 = 4721;

/// Asks as another user for the networks.
fn ask_as(user: u32, socket: &Path) -> Result<Vec<String>, Code> {
    let socket = socket.to_owned();
    let asked = as_user(user, move || run(async { Client::connect(&socket).await?.try_networks().await }));
    asked.join().unwrap().map_err(|fault| fault.code)
}

/// What a fresh one lists: the network that is built in.
fn answered() -> Result<Vec<String>, Code> {
    Ok(vec!["volt0".into()])
}

fn open_to_all(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn both(socket: &Path) -> [PathBuf; 2] {
    [socket.to_owned(), schema::paths::lane(socket)]
}

#[test]
fn a_socket_that_it_makes_for_an_owner_is_that_owners_and_lets_in_nobody_else_whatever_its_mode() {
    if !is_root() {
        return skip!("becoming another user takes root");
    }
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path(), 0o755);
    let service = Service::start_with(dir.path(), &["--owner", &OWNER.to_string()]);
    for path in both(&service.socket) {
        let found = std::fs::metadata(path).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7777), (OWNER, 0o600));
    }
    assert_eq!(ask_as(OWNER, &service.socket), answered());
    assert_eq!(ask_as(OWNER + 1, &service.socket), Err(Code::PermissionDenied));
    both(&service.socket).iter().for_each(|path| open_to_all(path, 0o666));
    assert_eq!(ask_as(OWNER, &service.socket), answered());
    // Where the refusal crosses with the question, all that is seen is the connection's end.
    for stranger in [OWNER + 1, OWN, 65_534] {
        let refused = ask_as(stranger, &service.socket).unwrap_err();
        assert!(matches!(refused, Code::PermissionDenied | Code::Unavailable), "{refused:?}");
    }
    assert_eq!(ask_as(0, &service.socket), answered());
}

#[test]
fn one_that_runs_as_a_user_of_its_own_serves_root_itself_and_its_owner_only() {
    if !is_root() {
        return skip!("becoming another user takes root");
    }
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path(), 0o755);
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    open_to_all(&state, 0o700);
    chown(&state, Some(OWN), Some(OWN)).unwrap();
    let socket = Service::socket(dir.path());
    let endpoint = ipc::Endpoint::bind_for(Some(OWNER), &socket, 0o600).unwrap();
    both(&socket).iter().for_each(|path| open_to_all(path, 0o666));
    // Where that user can get at it.
    let program = dir.path().join("ipamd");
    testkit::program::copy(env!("CARGO_BIN_EXE_ipamd"), &program);
    let mut command = std::process::Command::new(program);
    command.arg("--state-dir").arg(&state).args(["--owner", &OWNER.to_string()]);
    command.uid(OWN).gid(OWN).stdin(std::process::Stdio::null());
    inherits(&mut command, endpoint);
    dies_with_this_thread(&mut command);
    let service = Service::of(command.spawn().unwrap(), socket);
    for user in [0, OWN, OWNER] {
        assert_eq!(ask_as(user, &service.socket), answered(), "{user}");
    }
    for stranger in [OWN - 1, OWNER + 1, 65_534] {
        assert!(ask_as(stranger, &service.socket).is_err(), "{stranger}");
    }
    assert_eq!(ask_as(OWNER, &service.socket), answered());
}

#[test]
fn a_state_directory_that_others_may_write_to_or_own_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    state_that_others_may_write_to_or_own_is_refused::<Client>(dir.path());
}

#[test]
fn it_survives_calls_of_anything_with_any_arguments_and_keeps_what_others_hold() {
    let dir = tempfile::tempdir().unwrap();
    let said = dir.path().join("said");
    let mut command = Service::command(dir.path());
    command.stderr(std::fs::File::create(&said).unwrap());
    let mut service = Service::of(command.spawn().unwrap(), Service::socket(dir.path()));
    run(async {
        let owner = service.connect().await;
        let pool = owner.define(OTHER).await.unwrap();
        let lease = owner.allocate(&owner.allocator(&pool, 1).await.unwrap(), "vm-mine").await.unwrap();
        let before = owner.info(&lease).await.unwrap();
        storm::storm(&service.socket, ipam::Client::TYPE_ID, 300, &[]);
        assert!(owner.networks().await.contains(&"volt0".into()), "none of it made sense");
        assert_eq!(owner.info(&lease).await.unwrap(), before);
    });
    assert_eq!(service.process.try_wait().unwrap(), None);
    let said = std::fs::read_to_string(said).unwrap();
    assert!(!said.contains("panicked"), "{said}");
}
