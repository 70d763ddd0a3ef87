//! The service is killed at any instant: what was acknowledged is whole, and what was not leaves nothing.

mod common;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use common::*;
use testkit::images::*;

#[test]
fn what_was_acknowledged_survives_being_killed_in_the_middle_of_imports() {
    let dir = tempfile::tempdir().unwrap();
    let mut service = Service::start(dir.path());
    let mut total = 0;
    for round in 0..6u8 {
        let mut acknowledged = BTreeMap::new();
        run(async {
            let socket = service.socket.clone();
            let count = Rc::new(Cell::new(0));
            let counted = count.clone();
            let work = tokio::task::spawn_local(async move {
                let mut done = BTreeMap::new();
                let Ok(client) = Client::connect(&socket).await else { return done };
                for n in 0..40 {
                    let seed = round * 40 + n;
                    let file = kernel_of(seed, 200 << 10);
                    let image = if n % 2 == 0 { bzimage(&with_size(lz4(&file), file.len())) } else { file };
                    let name = format!("k-{seed}");
                    let Ok(kernel) = client.import(&image, &name).await else { break };
                    let Ok(info) = client.info(&kernel).await else { break };
                    done.insert(seed, info.digest);
                    counted.set(done.len());
                }
                done
            });
            // In the midst of it, wherever that is.
            eventually(async || count.get() > usize::from(2 + 3 * round)).await;
            tokio::time::sleep(Duration::from_millis(11 * u64::from(round))).await;
            service.kill();
            acknowledged = work.await.unwrap();
        });
        total += acknowledged.len();
        drop(std::mem::replace(&mut service, Service::start(dir.path())));
        run(async {
            let client = service.connect().await;
            let listed = client.list().await;
            for (seed, digest) in &acknowledged {
                let kernel = client.get(&format!("k-{seed}")).await.unwrap();
                assert_eq!(&client.info(&kernel).await.unwrap().digest, digest);
                assert_eq!(content(&client.open(&kernel).await.unwrap()), kernel_of(*seed, 200 << 10));
            }
            // Whatever is listed, acknowledged or not, is whole; and there is no file beside.
            for info in &listed {
                let kernel = client.get(&info.digest).await.unwrap();
                client.open(&kernel).await.unwrap();
            }
            assert_eq!(std::fs::read_dir(dir.path().join("state/kernels")).unwrap().count(), listed.len());
            for info in &listed {
                client.remove(&info.digest).await.unwrap();
            }
        });
    }
    assert!(total > 10, "only {total} imports: the test proves little");
}
