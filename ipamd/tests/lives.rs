//! A lease whose life somebody has outlives its connection and the service; whoever has it, and nobody else, takes the lease back.

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use common::*;
use ipc::Code;
use schema::addresses_capnp::lease_info::State;

/// Three addresses.
const SMALL: &str =
    r#"{"network":"volt0","subnet":"10.42.0.0/24","pool":{"start":"10.42.0.2","end":"10.42.0.4"},"reservations":{}}"#;
/// Descriptors that may wait for one process.
const MOST: usize = schema::fd_lane_capnp::MAX_TOKENS_PER_PROCESS as usize;
/// A grace period; and with a look.
const FULL: Duration = Duration::from_secs(30);
const GRACE: Duration = Duration::from_secs(32);

fn end(mut service: Service, signal: rustix::process::Signal) {
    service.end(signal);
}

fn states(leases: &[Info]) -> Vec<String> {
    leases.iter().map(|info| format!("{} {} {:?}", info.address, info.workload, info.state)).collect()
}

fn files(dir: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(dir.join("state")).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with("life-")).collect()
}

/// Waits until nobody has a lease's life: what another test starts at this moment has a copy of it between its fork and its exec.
fn closed(dir: &Path, life: &str) {
    let file = std::fs::File::open(dir.join("state").join(life)).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
}

#[test]
fn an_address_whose_life_somebody_has_is_given_to_nobody_however_often_the_service_ends() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    let mut life = None;
    run(async {
        let client = service.connect().await;
        let pool = client.define(SMALL).await.unwrap();
        let allocator = client.allocator(&pool, 3).await.unwrap();
        let lease = client.allocate(&allocator, "vm-a").await.unwrap();
        let _other = client.allocate(&allocator, "vm-b").await.unwrap();
        life = Some(client.life(&lease).await.unwrap());
    });
    end(service, rustix::process::Signal::KILL);
    let service = Service::start(dir.path());
    end(service, rustix::process::Signal::TERM);
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let pool = client.pool("volt0").await.unwrap();
        assert_eq!(states(&client.leases(&pool).await), ["10.42.0.2 vm-a Held", "10.42.0.3 vm-b Grace"]);
        tokio::time::sleep(GRACE).await;
        eventually(async || states(&client.leases(&pool).await) == ["10.42.0.2 vm-a Held"]).await;
        let allocator = client.allocator(&pool, 3).await.unwrap();
        for workload in ["vm-c", "vm-d"] {
            let lease = client.allocate(&allocator, workload).await.unwrap();
            assert_ne!(client.info(&lease).await.unwrap().address, "10.42.0.2");
            client.life(&lease).await.map(std::mem::forget).unwrap();
        }
        assert_eq!(code(client.allocate(&allocator, "vm-e").await), Some(Code::Exhausted));
        assert_eq!(code(client.allocate(&allocator, "vm-a").await), Some(Code::AlreadyExists));
        // The way back, and the end.
        let lease = client.resume(&pool, life.as_ref().unwrap().as_fd()).await.unwrap();
        assert_eq!(client.info(&lease).await.unwrap().workload, "vm-a");
        client.release(&lease).await.unwrap();
        let lease = client.allocate(&allocator, "vm-e").await.unwrap();
        assert_eq!(client.info(&lease).await.unwrap().address, "10.42.0.2");
        assert_eq!(code(client.resume(&pool, life.as_ref().unwrap().as_fd()).await), Some(Code::NotFound));
    });
}

#[test]
fn a_life_that_is_closed_begins_a_full_grace_period_also_where_the_service_was_down() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    let mut lives = Vec::new();
    run(async {
        let client = service.connect().await;
        let pool = client.define(SMALL).await.unwrap();
        let allocator = client.allocator(&pool, 3).await.unwrap();
        for workload in ["vm-a", "vm-b"] {
            let lease = client.allocate(&allocator, workload).await.unwrap();
            lives.push(client.life(&lease).await.unwrap());
        }
    });
    end(service, rustix::process::Signal::KILL);
    let last = lives.pop();
    let first = files(dir.path()).into_iter().find(|name| name.ends_with("-10.42.0.2")).unwrap();
    drop(lives);
    closed(dir.path(), &first);
    let begun = Instant::now();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let pool = client.pool("volt0").await.unwrap();
        assert_eq!(states(&client.leases(&pool).await), ["10.42.0.2 vm-a Grace", "10.42.0.3 vm-b Held"]);
        assert_eq!(client.free(&pool).await, 1);
        tokio::time::sleep(FULL / 2).await;
        let closed = Instant::now();
        drop(last);
        // The first one's ends, the second one's does not yet: no sooner than each may.
        eventually(async || states(&client.leases(&pool).await) == ["10.42.0.3 vm-b Grace"]).await;
        assert!(begun.elapsed() >= FULL);
        eventually(async || client.free(&pool).await == 3).await;
        assert!(closed.elapsed() >= FULL);
        assert!(files(dir.path()).is_empty(), "their files have gone as well");
    });
}

#[test]
fn a_duplicate_in_another_process_keeps_the_lease_when_the_first_holder_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let pool = client.define(SMALL).await.unwrap();
        let allocator = client.allocator(&pool, 3).await.unwrap();
        let lease = client.allocate(&allocator, "vm-a").await.unwrap();
        let life = client.life(&lease).await.unwrap();
        let mut backend = std::process::Command::new("sleep").arg("60").stdin(life).spawn().unwrap();
        // Frozen, after its supervisor was killed.
        rustix::process::kill_process(rustix::process::Pid::from_child(&backend), rustix::process::Signal::STOP)
            .unwrap();
        drop(lease);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(states(&client.leases(&pool).await), ["10.42.0.2 vm-a Held"]);
        assert_eq!(code(client.allocate(&allocator, "vm-a").await), Some(Code::AlreadyExists));
        backend.kill().unwrap();
        backend.wait().unwrap();
        let [file] = files(dir.path()).into_iter().collect::<Vec<_>>().try_into().unwrap();
        closed(dir.path(), &file);
        // At once, and its address again.
        let again = client.allocate(&allocator, "vm-a").await.unwrap();
        assert_eq!(client.info(&again).await.unwrap().address, "10.42.0.2");
        drop(again);
        eventually(async || states(&client.leases(&pool).await) == ["10.42.0.2 vm-a Grace"]).await;
    });
}

#[test]
fn a_life_that_nobody_has_claimed_keeps_nothing_once_its_connection_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let watcher = service.connect().await;
        let pool = watcher.define(SMALL).await.unwrap();
        // As a VM that is killed while it starts.
        let killed = service.connect().await;
        let its_pool = killed.pool("volt0").await.unwrap();
        let allocator = killed.allocator(&its_pool, 1).await.unwrap();
        let lease = killed.allocate(&allocator, "vm-a").await.unwrap();
        killed.connection.call("life", DEADLINE, lease.life_request().send()).await.unwrap();
        assert_eq!(states(&watcher.leases(&pool).await), ["10.42.0.2 vm-a Held"]);
        drop((lease, allocator, its_pool, killed));
        // Before its token would have expired.
        eventually(async || states(&watcher.leases(&pool).await) == ["10.42.0.2 vm-a Grace"]).await;
    });
}

#[test]
fn a_lease_is_taken_back_by_its_own_life_alone() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let pool = client.define(SMALL).await.unwrap();
        let other = client.define(r#"{"network":"other","subnet":"10.43.0.0/24"}"#).await.unwrap();
        let allocator = client.allocator(&pool, 3).await.unwrap();
        let lease = client.allocate(&allocator, "vm-a").await.unwrap();
        let before = client.life(&lease).await.unwrap();
        let life = client.life(&lease).await.unwrap();
        let [file] = files(dir.path()).into_iter().collect::<Vec<_>>().try_into().unwrap();
        let opened_anew = File::open(dir.path().join("state").join(&file)).unwrap();
        let database = File::open(dir.path().join("state/ipamd.sqlite")).unwrap();
        let wrong: [OwnedFd; 5] = [
            before,
            opened_anew.into(),
            database.into(),
            std::io::pipe().unwrap().0.into(),
            File::open(dir.path()).unwrap().into(),
        ];
        for fd in &wrong {
            assert_eq!(code(client.resume(&pool, fd.as_fd()).await), Some(Code::NotFound));
        }
        assert_eq!(code(client.resume(&other, life.as_fd()).await), Some(Code::NotFound));
        for token in [&[][..], &[0; 16], &[0; 17]] {
            assert_eq!(code(client.resume_with(&pool, token).await), Some(Code::BadToken));
        }
        // A token that was to be claimed is none to resume with.
        let answer = client.connection.call("life", DEADLINE, lease.life_request().send()).await.unwrap();
        let offered = answer.get().unwrap().get_life().unwrap().get_bytes().unwrap().to_vec();
        assert_eq!(code(client.resume_with(&pool, &offered).await), Some(Code::BadToken));
        let life = client.connection.claim(&offered).await.unwrap();
        let again = client.resume(&pool, life.as_fd()).await.unwrap();
        drop(lease);
        // It is a lease as the first one was.
        assert_eq!(client.info(&again).await.unwrap().state, State::Held);
        client.release(&again).await.unwrap();
        assert_eq!(code(client.info(&again).await), Some(Code::Revoked));
        assert_eq!(code(client.life(&again).await), Some(Code::Revoked));
        assert_eq!(code(client.resume(&pool, life.as_fd()).await), Some(Code::NotFound));
        assert!(files(dir.path()).is_empty());
    });
}

#[test]
fn a_life_is_refused_where_too_many_descriptors_wait_and_the_lease_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let pool = client.define(CONFIG).await.unwrap();
        let allocator = client.allocator(&pool, 100).await.unwrap();
        let mut leases = Vec::new();
        let mut tokens = Vec::new();
        for n in 0..=MOST {
            let lease = client.allocate(&allocator, &format!("vm-{n}")).await.unwrap();
            let answer = client.connection.call("life", DEADLINE, lease.life_request().send()).await;
            let token = answer.map(|answer| answer.get().unwrap().get_life().unwrap().get_bytes().unwrap().to_vec());
            assert_eq!(token.as_ref().err().map(|fault| fault.code), (n == MOST).then_some(Code::Overloaded), "{n}");
            tokens.extend(token);
            leases.push(lease);
        }
        client.connection.claim(&tokens[0]).await.unwrap();
        client.life(&leases[MOST]).await.unwrap();
        assert!(client.leases(&pool).await.iter().all(|info| info.reserved || info.state == State::Held));
    });
}

#[test]
fn the_file_of_a_lease_that_ended_while_its_service_was_killed_is_removed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    drop(Service::start(dir.path()));
    std::fs::write(dir.path().join("state/life-4711-10.42.0.7"), "").unwrap();
    std::fs::write(dir.path().join("state/life-preserver"), "").unwrap();
    let _service = Service::start(dir.path());
    assert_eq!(files(dir.path()), BTreeSet::from(["life-preserver".to_owned()]), "and nothing that is not its own");
}

#[test]
fn a_database_put_in_the_place_of_a_newer_one_gives_nobodys_address_to_another_and_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    // The database and its log.
    let files = ["state/ipamd.sqlite", "state/ipamd.sqlite-wal"].map(|name| dir.path().join(name));
    let service = Service::start(dir.path());
    run(async { service.connect().await.define(SMALL).await.map(drop).unwrap() });
    end(service, rustix::process::Signal::TERM);
    let backup = files.each_ref().map(|file| std::fs::read(file).unwrap());
    let service = Service::start(dir.path());
    let mut life = None;
    run(async {
        let client = service.connect().await;
        let allocator = client.allocator(&client.pool("volt0").await.unwrap(), 3).await.unwrap();
        let lease = client.allocate(&allocator, "vm-a").await.unwrap();
        assert_eq!(client.info(&lease).await.unwrap().address, "10.42.0.2");
        life = Some(client.life(&lease).await.unwrap());
    });
    end(service, rustix::process::Signal::KILL);
    files.iter().zip(backup).for_each(|(file, bytes)| std::fs::write(file, bytes).unwrap());
    let process = Service::command(dir.path()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut service = Service::of(process, Service::socket(dir.path()));
    run(async {
        let client = service.connect().await;
        let pool = client.pool("volt0").await.unwrap();
        assert_eq!(client.free(&pool).await, 2);
        let allocator = client.allocator(&pool, 3).await.unwrap();
        let leases =
            [client.allocate(&allocator, "vm-b").await.unwrap(), client.allocate(&allocator, "vm-a").await.unwrap()];
        for (lease, address) in leases.iter().zip(["10.42.0.3", "10.42.0.4"]) {
            assert_eq!(client.info(lease).await.unwrap().address, address);
        }
        assert_eq!(code(client.allocate(&allocator, "vm-c").await), Some(Code::Exhausted));
        life = None;
        eventually(async || client.free(&pool).await == 1).await;
        let lease = client.allocate(&allocator, "vm-c").await.unwrap();
        assert_eq!(client.info(&lease).await.unwrap().address, "10.42.0.2");
    });
    let mut said = service.process.stderr.take().unwrap();
    end(service, rustix::process::Signal::KILL);
    let line = std::io::read_to_string(&mut said).unwrap();
    assert!(line.contains("addresses used by processes whose leases the database does not know: 1."), "{line}");
}
