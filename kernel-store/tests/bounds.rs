//! What one client's image costs another: nothing that can be seen by the order of the answers. And what many ask for at once.

mod common;

use std::fs::File;
use std::rc::Rc;

use common::*;
use futures::future::join_all;
use ipc::Code;
use testkit::images::*;

/// A kernel of so many mebibytes, most of which is zeros.
fn large(mebibytes: usize) -> Vec<u8> {
    let mut segments = segments(7, 64 << 10);
    segments[1].bytes = vec![0; mebibytes << 20];
    segments[1].memory_size = segments[1].bytes.len() as u64;
    elf(0x100_0000, &segments)
}

/// A file of half a gibibyte with as many notes headers over all of it as there may be, which says that its notes go on to its end.
fn notes_bomb(headers: usize) -> Vec<u8> {
    let mut segments = segments(7, 64 << 10);
    segments[2].bytes = vec![0; 480 << 20];
    segments.extend(std::iter::repeat_n(Segment { bytes: Vec::new(), ..segments[2].clone() }, headers - 3));
    let mut image = elf(0x100_0000, &segments);
    for header in 3..headers {
        let at = 64 + 56 * header;
        let first = image[64 + 56 * 2..64 + 56 * 3].to_vec();
        image[at..at + 56].copy_from_slice(&first);
    }
    gzip(&image)
}

#[test]
fn a_kernel_whose_notes_are_all_of_it_is_refused_with_a_reason_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        for headers in [20, 64] {
            let fault = client.import(&notes_bomb(headers), "bomb").await.err().unwrap();
            assert_eq!(fault.code, Code::BadImage, "{fault}");
            assert!(fault.why.contains("bytes of notes"), "{fault}");
        }
        assert!(client.list().await.is_empty());
    });
}

#[test]
fn cheap_questions_and_small_kernels_are_answered_while_a_large_one_is_read_back_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        client.import(&large(240), "large").await.unwrap();
        client.import(&kernel(1), "small").await.unwrap();
    });
    drop(service);
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let (large, small) = (client.get("large").await.unwrap(), client.get("small").await.unwrap());
        // Asked first, on the same connection: whoever had to wait for it would be answered after it.
        let opening = client.connection.call("open", DEADLINE, large.open_request().send());
        let mut opening = std::pin::pin!(opening);
        assert_eq!(client.list().await.len(), 2);
        client.get("small").await.unwrap();
        assert_eq!(content(&client.open(&small).await.unwrap()), kernel(1));
        client.import(&kernel(1), "").await.unwrap();
        assert!(futures::poll!(&mut opening).is_pending(), "the large kernel was read too soon to prove anything");
        opening.await.unwrap();
    });
}

#[test]
fn known_kernels_are_imported_and_opened_while_an_image_is_unpacked() {
    let Some(slow) = tool(&["sh", "-c", "head -c 400M /dev/zero | xz -0"], b"") else { return };
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async { drop(service.connect().await.import(&kernel(1), "known").await.unwrap()) });
    drop(service);
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let token = client.connection.deposit(std::os::fd::AsFd::as_fd(&memfd(&slow))).await.unwrap();
        let mut request = client.store.import_kernel_request();
        token.write(request.get().init_image());
        let importing = client.connection.call("import", DEADLINE, request.send());
        let mut importing = std::pin::pin!(importing);
        for other in [&client, &service.connect().await] {
            let known = other.import(&kernel(1), "known").await.unwrap();
            assert_eq!(content(&other.open(&known).await.unwrap()), kernel(1));
            assert_eq!(other.list().await.len(), 1);
        }
        assert!(futures::poll!(&mut importing).is_pending(), "the image was unpacked too soon to prove anything");
        let fault = importing.await.err().unwrap();
        assert!(fault.why.contains("no ELF file"), "{fault}");
    });
}

#[test]
fn fifty_imports_at_once_are_all_done_whether_of_one_file_one_content_or_each_its_own() {
    const MANY: usize = 50;
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    let images = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = images.path().join("image");
    std::fs::write(&path, bzimage(&gzip(&kernel_of(1, 4 << 20)))).unwrap();
    run(async {
        let clients: Vec<_> = join_all((0..MANY).map(|_| service.connect())).await.into_iter().map(Rc::new).collect();
        let all = async |images: Vec<std::os::fd::OwnedFd>| {
            let imports = clients
                .iter()
                .zip(images)
                .map(|(client, image)| async move { client.import_fd(image, "k").await.map(drop) });
            join_all(imports).await.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
        };
        // New, then known.
        for _ in 0..2 {
            all((0..MANY).map(|_| File::open(&path).unwrap().into()).collect()).await;
            assert_eq!(clients[0].list().await.len(), 1);
        }
        all((0..MANY).map(|_| memfd(&lz4(&kernel_of(2, 1 << 20)))).collect()).await;
        assert_eq!(clients[0].list().await.len(), 2);
        all((0..MANY).map(|n| memfd(&gzip(&kernel_of(100 + n as u8, 64 << 10)))).collect()).await;
        assert_eq!(clients[0].list().await.len(), 2 + MANY);
        // And all at once of one connection.
        let images = (0..MANY).map(|n| memfd(&kernel_of(160 + n as u8, 64 << 10)));
        let imports = images.map(|image| clients[0].import_fd(image, ""));
        for import in join_all(imports).await {
            import.unwrap();
        }
        assert_eq!(clients[0].list().await.len(), 2 + 2 * MANY);
    });
}
