//! Kernels of distributions: `VOLT_TEST_KERNELS=/boot/vmlinuz-a:/boot/vmlinuz-b`. Says what each costs.

mod common;

use std::time::Instant;

use common::*;

#[test]
fn kernels_of_distributions_are_unpacked_and_opened() {
    let Some(kernels) = std::env::var_os("VOLT_TEST_KERNELS") else {
        eprintln!("skipped: VOLT_TEST_KERNELS names no kernels");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut service = Service::start(dir.path());
    for path in std::env::split_paths(&kernels) {
        let file = || std::fs::File::open(&path).unwrap();
        run(async {
            let client = service.connect().await;
            let begun = Instant::now();
            let kernel = client.import_fd(file(), "k").await.unwrap();
            let import = begun.elapsed();
            let begun = Instant::now();
            let again = client.import_fd(file(), "k").await.unwrap();
            let known = begun.elapsed();
            let begun = Instant::now();
            client.open(&again).await.unwrap();
            let warm = begun.elapsed();
            let info = client.info(&kernel).await.unwrap();
            println!("{}\n  {info:#x?}\n  import {import:?}, import again {known:?}, open {warm:?}", path.display());
            assert!(info.version.starts_with(|c: char| c.is_ascii_digit()));
            assert_ne!(info.pvh_entry, 0);
        });
        drop(service);
        service = Service::start(dir.path());
        run(async {
            let client = service.connect().await;
            let kernel = client.get("k").await.unwrap();
            let begun = Instant::now();
            let fd = client.open(&kernel).await.unwrap();
            println!("  open after a restart {:?}, {} bytes", begun.elapsed(), content(&fd).len());
        });
    }
}
