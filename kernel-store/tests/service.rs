//! What a client can and cannot do with a real `kernel-store`.

mod common;

use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use common::*;
use ipc::Code;
use rustix::fs::SealFlags;
use testkit::{images::*, skip};
use testrig::service::{IDLE, inherited_sockets_are_served_until_nobody_is_connected};

#[test]
fn a_bzimage_is_imported_found_opened_sealed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let file = kernel(1);
        let kernel = client.import(&bzimage(&gzip(&file)), "mine").await.unwrap();
        let info = client.info(&kernel).await.unwrap();
        assert_eq!(
            (info.alias.as_str(), info.size, info.entry, info.pvh_entry),
            ("mine", file.len() as u64, 0x100_0000, 0x100_0040)
        );
        assert_eq!(info.load, (0x100_0000, 0x820_0000));
        assert_eq!(info.version, "6.99.0-wrapped (builder@host) #1 SMP");
        let fd = client.open(&kernel).await.unwrap();
        assert_eq!(content(&fd), file);
        let seals = rustix::fs::fcntl_get_seals(&fd).unwrap();
        assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL), "{seals:?}");
        for reference in ["mine", &info.digest, &info.digest[..8]] {
            assert_eq!(client.info(&client.get(reference).await.unwrap()).await.unwrap(), info, "{reference}");
        }
        assert_eq!(code(client.get("other").await), Some(Code::NotFound));
        assert_eq!(client.list().await, [info]);
        client.remove("mine").await.unwrap();
        assert!(client.list().await.is_empty());
        assert_eq!(code(client.get("mine").await), Some(Code::NotFound));
        assert_eq!(content(&client.open(&kernel).await.unwrap()), file, "who holds it can still open it");
        assert_eq!(content(&fd), file);
    });
}

#[test]
fn every_packing_gives_the_same_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let file = kernel_of(5, 1 << 20);
        client.import(&file, "").await.unwrap();
        let mut images =
            vec![lz4(&file), zstd(&file), bzimage(&gzip(&file)), bzimage(&with_size(lz4(&file), file.len()))];
        images.extend(TOOLS.iter().filter_map(|command| tool(command, &file)));
        for image in images {
            client.import(&image, "").await.unwrap();
        }
        assert_eq!(client.list().await.len(), 1);
    });
}

#[test]
fn a_large_image_whose_dictionary_is_as_large_as_itself_is_imported_and_then_known() {
    let dir = tempfile::tempdir().unwrap();
    let file = kernel_of(9, 20 << 20);
    let Some(image) = tool(&["xz", "--check=crc32", "--lzma2=preset=0,dict=64MiB"], &file) else {
        return;
    };
    assert!(image.len() > 4 << 20, "larger than the heap's blocks");
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let kernel = client.import(&image, "large").await.unwrap();
        for again in [&image, &file, &file] {
            let again = client.import(again, "again").await.unwrap();
            assert_eq!(client.info(&again).await.unwrap().digest, client.info(&kernel).await.unwrap().digest);
        }
        assert_eq!(content(&client.open(&kernel).await.unwrap()), file);
    });
}

#[test]
fn what_is_stored_survives_a_restart_and_a_known_image_is_not_unpacked_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = kernel_of(2, 8 << 20);
    let image = bzimage(&gzip(&file));
    let service = Service::start(dir.path());
    run(async {
        service.connect().await.import(&image, "k").await.unwrap();
    });
    drop(service);
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let kernel = client.get("k").await.unwrap();
        for _ in 0..2 {
            assert_eq!(content(&client.open(&kernel).await.unwrap()), file);
        }
        let again = client.import(&image, "k").await.unwrap();
        assert_eq!(client.info(&again).await.unwrap(), client.info(&kernel).await.unwrap());
    });
}

#[test]
fn images_that_are_none_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let file = kernel(1);
        let image = bzimage(&gzip(&file));
        for (bad, says) in [
            (&image[..image.len() - 16], "truncated"),
            (&gzip(&file)[..1000], "gzip data are truncated"),
            (&file[..file.len() - 1], "ELF file is truncated"),
            (b"hello", "nothing that is known"),
            (b"", "empty"),
        ] {
            let fault = client.import(bad, "x").await.err().unwrap();
            assert_eq!(fault.code, Code::BadImage, "{fault}");
            assert!(fault.to_string().contains(says), "{fault}");
        }
        assert_eq!(code(client.import(&image, "no spaces").await), Some(Code::InvalidArgument));
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(code(client.import_fd(reader, "").await), Some(Code::InvalidArgument));
        let mut request = client.store.import_kernel_request();
        request.get().init_image().set_bytes(&[7; 16]);
        assert_eq!(code(client.connection.call("import", DEADLINE, request.send()).await), Some(Code::BadToken));
        assert!(client.list().await.is_empty());
    });
    assert_eq!(std::fs::read_dir(dir.path().join("state/kernels")).unwrap().count(), 0);
}

#[test]
fn a_bomb_is_refused_and_the_service_goes_on() {
    let Some(bomb) = tool(&["sh", "-c", "head -c 600M /dev/zero | gzip -1"], b"") else { return };
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let fault = client.import(&bomb, "").await.err().unwrap();
        assert_eq!(fault.code, Code::BadImage);
        assert!(fault.to_string().contains("more than 536870912 bytes"), "{fault}");
        client.import(&kernel(1), "").await.unwrap();
    });
}

#[test]
fn a_kernel_that_is_damaged_on_the_disk_is_not_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async { drop(service.connect().await.import(&kernel(1), "k").await.unwrap()) });
    drop(service);
    let kernels = dir.path().join("state/kernels");
    let path = std::fs::read_dir(kernels).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let kernel = client.get("k").await.unwrap();
        let fault = client.open(&kernel).await.err().unwrap();
        assert_eq!(fault.code, Code::BadImage);
        assert!(fault.to_string().contains("damaged"), "{fault}");
        client.import(&testkit::images::kernel(1), "").await.unwrap();
        let kernel = client.get("k").await.unwrap();
        assert_eq!(content(&client.open(&kernel).await.unwrap()), testkit::images::kernel(1));
    });
}

/// Memory that takes a second or more to unpack in a debug build: long enough to be in the middle of it.
fn slow_image() -> Option<Vec<u8>> {
    tool(&["sh", "-c", "head -c 400M /dev/zero | xz -0"], b"")
}

#[test]
fn imports_that_are_cancelled_make_way_for_the_next() {
    let Some(slow) = slow_image() else { return };
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [service, other] = dirs.each_ref().map(|dir| Service::start(dir.path()));
    run(async {
        // What one whole import takes here and now, at a service of its own.
        let (client, image) = (other.connect().await, slow.clone());
        let whole = tokio::task::spawn_local(async move { client.import(&image, "").await.err().unwrap() });
        for _ in 0..5 {
            let (cancelled, image) = (service.connect().await, slow.clone());
            let importing = tokio::task::spawn_local(async move { cancelled.import(&image, "").await.err() });
            tokio::time::sleep(Duration::from_millis(50)).await;
            importing.abort();
        }
        service.connect().await.import(&kernel(1), "").await.unwrap();
        assert!(!whole.is_finished(), "five that were cancelled took as long as one");
        assert_eq!(whole.await.unwrap().code, Code::BadImage);
    });
}

#[test]
fn it_serves_inherited_sockets_and_ends_when_idle() {
    let dir = tempfile::tempdir().unwrap();
    inherited_sockets_are_served_until_nobody_is_connected(dir.path(), async |client: &Client| {
        client.import(&kernel(1), "k").await.unwrap();
        tokio::time::sleep(2 * IDLE).await;
        client.get("k").await.unwrap();
    });
}

#[test]
fn what_stands_in_the_way_of_starting_is_named_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    let second = |state: &str, socket: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kernel-store"));
        command.arg("--state-dir").arg(dir.path().join(state)).arg("--socket").arg(dir.path().join(socket));
        command
    };
    let said = refusal(second("state", "other.sock"));
    assert!(said.contains("in use by another process") && said.contains("--state-dir"), "{said}");
    for socket in ["other.sock", "other.sock.fds"] {
        assert!(!dir.path().join(socket).exists(), "it left {socket}");
    }
    assert!(refusal(second("other-state", "service.sock")).contains("service.sock"));
    drop(service);
    std::fs::write(dir.path().join("state/index"), "my notes\n".repeat(200_000)).unwrap();
    let said = refusal(Service::command(dir.path()));
    assert!(said.contains("index") && said.contains("remove it"), "{said}");
    std::fs::remove_dir_all(dir.path().join("state")).unwrap();
    std::fs::write(dir.path().join("state"), "").unwrap();
    assert!(refusal(Service::command(dir.path())).contains("--state-dir"));
}

#[test]
fn a_full_disk_fails_the_import_and_keeps_what_was_there() {
    let probe = Command::new("unshare").args(["-m", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        return skip!("no mount namespace is to be had");
    }
    let dir = tempfile::tempdir().unwrap();
    let (state, socket) = (dir.path().join("state"), Service::socket(dir.path()));
    std::fs::create_dir(&state).unwrap();
    let script = r#"mount -t tmpfs -o size=1m,mode=700 none "$1" && exec "$0" --state-dir "$1" --socket "$2""#;
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_kernel-store")]).arg(&state).arg(&socket);
    let service = Service::of(command.spawn().unwrap(), socket);
    run(async {
        let client = service.connect().await;
        client.import(&kernel_of(1, 512 << 10), "small").await.unwrap();
        let fault = client.import(&kernel_of(2, 900 << 10), "large").await.err().unwrap();
        assert_eq!(fault.code, Code::Exhausted, "{fault}");
        assert!(fault.to_string().contains("space"), "{fault}");
        assert_eq!(client.list().await.len(), 1);
        client.remove("small").await.unwrap();
        client.import(&kernel_of(2, 900 << 10), "large").await.unwrap();
    });
}

#[test]
fn the_store_keeps_to_max_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let size = kernel(1).len();
    let service = Service::start_with(dir.path(), &["--max-bytes", &(2 * size).to_string()]);
    run(async {
        let client = service.connect().await;
        client.import(&kernel(1), "").await.unwrap();
        client.import(&kernel(2), "").await.unwrap();
        assert_eq!(code(client.import(&kernel(3), "").await), Some(Code::Exhausted));
    });
}

#[test]
fn the_handed_out_file_cannot_be_changed_by_any_holder() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let kernel = client.import(&kernel(1), "").await.unwrap();
        let (one, two) = (client.open(&kernel).await.unwrap(), client.open(&kernel).await.unwrap());
        assert!(rustix::io::pwrite(one.as_fd(), b"x", 0).is_err());
        assert!(rustix::fs::ftruncate(&one, 0).is_err());
        assert_eq!(content(&two), testkit::images::kernel(1));
    });
}

#[test]
fn every_thread_is_confined() {
    let dir = tempfile::tempdir().unwrap();
    Service::start(dir.path()).is_confined(3, 0);
}

#[test]
fn a_stranger_is_refused_and_the_service_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    Service::start(dir.path()).refuses_a_stranger(async |client: Client| client.try_list().await.is_ok());
}
