//! Kernels of distributions: `VOLT_TEST_KERNELS=/boot/vmlinuz-a:/boot/vmlinuz-b`.

mod common;

use common::*;
use testkit::skip;

#[test]
fn kernels_of_distributions_are_unpacked_and_opened() {
    let Some(kernels) = std::env::var_os("VOLT_TEST_KERNELS") else {
        return skip!("VOLT_TEST_KERNELS names no kernels");
    };
    let dir = tempfile::tempdir().unwrap();
    let mut service = Service::start(dir.path());
    for path in std::env::split_paths(&kernels) {
        let file = || std::fs::File::open(&path).unwrap();
        let mut info = None;
        run(async {
            let client = service.connect().await;
            let kernel = client.import_fd(file(), "k").await.unwrap();
            let again = client.import_fd(file(), "k").await.unwrap();
            client.open(&again).await.unwrap();
            let of_kernel = client.info(&kernel).await.unwrap();
            println!("{}\n  {of_kernel:#x?}", path.display());
            assert!(of_kernel.version.starts_with(|c: char| c.is_ascii_digit()));
            assert_ne!(of_kernel.pvh_entry, 0);
            info = Some(of_kernel);
        });
        drop(service);
        service = Service::start(dir.path());
        run(async {
            let client = service.connect().await;
            let kernel = client.get("k").await.unwrap();
            assert_eq!(client.info(&kernel).await.unwrap(), info.unwrap());
            let fd = client.open(&kernel).await.unwrap();
            assert_eq!(content(&fd)[..4], *b"\x7fELF");
        });
    }
}
