//! Who holds something narrow of a real `kernel-store` has that and no more, however it asks; and who may connect.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use capnp::traits::HasTypeId;
use common::*;
use ipc::Code;
use schema::kernel_store_capnp::{kernel, kernel_store};
use testkit::{
    images::*,
    skip,
    user::{as_user, is_root},
};
use testrig::{
    handed::{hand_over, know_only},
    service::state_that_others_may_write_to_or_own_is_refused,
    storm,
};

#[test]
fn a_kernel_leads_to_no_other_kernel_and_not_to_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let owner = service.connect().await;
        let mine = owner.import(&kernel(1), "mine").await.unwrap();
        owner.import(&kernel(2), "theirs").await.unwrap();
        know_only(kernel_store::Client::TYPE_ID, &[(&mine.client, kernel::Client::TYPE_ID)]).await;
        let holder = Client::from(hand_over(&mine.client));
        assert_eq!(holder.info(&holder.connection.bootstrap()).await.unwrap().alias, "mine");
        assert_eq!(owner.list().await.len(), 2);
        // What is removed from the store stays with who holds it, and is not to be had again.
        owner.remove("mine").await.unwrap();
        assert_eq!(holder.info(&holder.connection.bootstrap()).await.unwrap().alias, "mine");
        assert_eq!(code(owner.get("mine").await), Some(Code::NotFound));
        assert_eq!(content(&owner.open(&mine).await.unwrap()), kernel(1));
    });
}

#[test]
fn a_kernels_token_is_good_once_only_to_read_it_and_its_neighbours_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let owner = service.connect().await;
        let mine = owner.import(&kernel(1), "mine").await.unwrap();
        let answer = owner.connection.call("open", DEADLINE, mine.open_request().send()).await.unwrap();
        let token = answer.get().unwrap().get_image().unwrap().get_bytes().unwrap().to_vec();
        let other = service.connect().await;
        let import = async |token: &[u8]| {
            let mut request = other.store.import_kernel_request();
            request.get().init_image().set_bytes(token);
            request.get().set_alias("stolen");
            code(other.connection.call("import", DEADLINE, request.send()).await)
        };
        assert_eq!(import(&token).await, Some(Code::BadToken));
        for bit in 0..128 {
            let mut guess = token.clone();
            guess[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(code(other.connection.claim(&guess).await), Some(Code::BadToken));
            assert_eq!(import(&guess).await, Some(Code::BadToken));
        }
        owner.connection.claim(&token).await.unwrap();
        assert_eq!(code(other.connection.claim(&token).await), Some(Code::BadToken));
        // What one client left for an import is not another's to take over the lane; and is imported once.
        let deposited = owner.connection.deposit(std::os::fd::AsFd::as_fd(&memfd(&kernel(2)))).await.unwrap();
        assert_eq!(code(other.connection.claim(deposited.as_bytes()).await), Some(Code::BadToken));
        assert_eq!(import(deposited.as_bytes()).await, None);
        assert_eq!(import(deposited.as_bytes()).await, Some(Code::BadToken));
    });
}

#[test]
fn an_owner_is_served_beside_root_and_its_neighbours_are_not() {
    const OWNER: u32 = 4721;
    if !is_root() {
        return skip!("becoming another user takes root");
    }
    let dir = tempfile::tempdir().unwrap();
    let set = |path: &Path, mode: u32| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    set(dir.path(), 0o755);
    let service = Service::start_with(dir.path(), &["--owner", &OWNER.to_string()]);
    let ask = |user: u32| {
        let socket = service.socket.clone();
        code(as_user(user, move || run(async { Client::connect(&socket).await?.try_list().await })).join().unwrap())
    };
    assert_eq!((ask(OWNER), ask(OWNER + 1)), (None, Some(Code::PermissionDenied)));
    for path in [service.socket.clone(), schema::paths::lane(&service.socket)] {
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7777), (OWNER, 0o600));
        set(&path, 0o666);
    }
    for stranger in [OWNER - 1, OWNER + 1, 65_534] {
        assert!(ask(stranger).is_some(), "{stranger}");
    }
    assert_eq!((ask(OWNER), ask(0)), (None, None));
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
        let mine = owner.import(&kernel(1), "mine").await.unwrap();
        storm::storm(&service.socket, kernel_store::Client::TYPE_ID, 300, &[]);
        assert_eq!(content(&owner.open(&mine).await.unwrap()), kernel(1));
        assert_eq!(owner.list().await.len(), 1);
    });
    assert_eq!(service.process.try_wait().unwrap(), None);
    let said = std::fs::read_to_string(said).unwrap();
    assert!(!said.contains("panicked"), "{said}");
}
