//! A file system that is full: what is new is refused, what gives something back succeeds, over restarts as well. Each on file systems of
//! the test's own, in a mount namespace that goes with it.

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::*;
use ipc::Code;
use schema::addresses_capnp::lease_info::State;

const WIDE: &str = r#"{"network":"wide","subnet":"10.0.0.0/8"}"#;

/// A small file system, below `dir/disk` for those in its namespace.
struct Disk {
    keeper: Child,
    dir: PathBuf,
}

impl Disk {
    /// `None`, and a line that says so, where it cannot be had.
    fn make(kind: &str, dir: &Path) -> Option<Disk> {
        let script = match kind {
            "tmpfs" => r#"mount -t tmpfs -o size=16m,mode=700 none "$1/disk""#,
            _ => r#"truncate -s 24m "$1/image" && mkfs.ext4 -q -m 0 "$1/image" && mount -o loop "$1/image" "$1/disk""#,
        };
        std::fs::create_dir(dir.join("disk")).unwrap();
        let script = format!("{script} && echo mounted && exec sleep 600");
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &script, "sh"]).arg(dir).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut keeper = command.spawn().unwrap();
        let mut said = String::new();
        let _ = BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut said);
        let disk = Disk { keeper, dir: dir.into() };
        if said != "mounted\n" {
            testkit::skip!("{kind} cannot be mounted in a namespace of its own here (it takes root)");
            return None;
        }
        Some(disk)
    }

    fn start(&self) -> Service {
        let socket = Service::socket(&self.dir);
        let mut command = Command::new("nsenter");
        command.args(["-m", "-t", &self.keeper.id().to_string(), "--", env!("CARGO_BIN_EXE_ipamd")]);
        command.arg("--state-dir").arg(self.dir.join("disk/state")).arg("--socket").arg(&socket);
        Service::of(command.stdin(Stdio::null()).spawn().unwrap(), socket)
    }

    fn path(&self, name: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.keeper.id()));
        root.join(self.dir.strip_prefix("/").unwrap()).join("disk").join(name)
    }

    /// Takes what is left, to the last byte.
    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.path("filler")).unwrap();
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![0xa5; size]).is_ok() {}
            let _ = file.sync_all();
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

fn gives_back_on(kind: &str) {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::make(kind, dir.path()) else { return };
    let service = disk.start();
    let mut life = None;
    run(async {
        let client = service.connect().await;
        let pool = client.define(WIDE).await.unwrap();
        client.define(r#"{"network":"spare","subnet":"192.168.0.0/24"}"#).await.unwrap();
        let allocator = client.allocator(&pool, 65_536).await.unwrap();
        let mut leases = Vec::new();
        for n in 0..200 {
            leases.push(client.allocate(&allocator, &format!("vm-{n}")).await.unwrap());
        }
        let (reservation, _) = client.reserve(&pool, "vm-reserved", "").await.unwrap();
        life = Some(client.life(&leases[0]).await.unwrap());

        disk.fill();
        // Some may fit in what the log has.
        let fault = loop {
            match client.allocate(&allocator, &format!("vm-{}", leases.len())).await {
                Ok(lease) => leases.push(lease),
                Err(fault) => break fault,
            }
            assert!(leases.len() < 2000, "the disk is never full");
        };
        assert_eq!(fault.code, Code::Exhausted);
        assert!(fault.to_string().contains("file system"), "{fault}");
        assert_eq!(code(client.reserve(&pool, "vm-new", "").await), Some(Code::Exhausted));
        assert_eq!(client.leases(&pool).await.len(), leases.len() + 1, "what was acknowledged is there");
        // However many, and whoever takes the space that one of them leaves.
        for (n, lease) in leases.drain(1..101).enumerate() {
            client.release(&lease).await.unwrap_or_else(|fault| panic!("release {n}: {fault}"));
            if n % 10 == 0 {
                disk.fill();
            }
        }
        client.cancel(&reservation).await.unwrap();
        client.remove_pool("spare").await.unwrap();
        let left = leases.len();
        drop(leases);
        let in_grace =
            async |client: &Client| client.leases(&pool).await.iter().filter(|info| info.state == State::Grace).count();
        eventually(async || in_grace(&client).await == left - 1).await;
        assert_eq!(client.leases(&pool).await.len(), left);
    });
    drop(service);
    disk.fill();
    // It starts there as well, and grace periods end.
    let service = disk.start();
    run(async {
        let client = service.connect().await;
        let pool = client.pool("wide").await.unwrap();
        let lease = client.resume(&pool, life.as_ref().unwrap().as_fd()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(32)).await;
        eventually(async || client.leases(&pool).await.len() == 1).await;
        client.release(&lease).await.unwrap();
        assert_eq!(client.free(&pool).await, (1 << 24) - 3);

        let allocator = client.allocator(&pool, 10).await.unwrap();
        disk.fill();
        assert_eq!(code(client.allocate(&allocator, "vm-new").await), Some(Code::Exhausted));
        disk.make_room();
        eventually(async || client.allocate(&allocator, "vm-new").await.is_ok()).await;
    });
}

#[test]
fn what_gives_something_back_succeeds_on_a_full_tmpfs() {
    gives_back_on("tmpfs");
}

#[test]
fn what_gives_something_back_succeeds_on_a_full_ext4() {
    gives_back_on("ext4");
}

#[test]
fn where_there_is_no_space_for_the_reserve_nothing_new_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::make("tmpfs", dir.path()) else { return };
    let service = disk.start();
    let keep = |bytes: u64| File::create(disk.path("other")).unwrap().set_len(bytes).unwrap();
    run(async {
        let client = service.connect().await;
        // 16 MiB, of which another has all but 8 MiB and what the database takes, or a little more.
        std::fs::write(disk.path("other"), vec![1; 8 << 20]).unwrap();
        assert_eq!(code(client.define(WIDE).await), Some(Code::Exhausted));
        // What it had taken of the reserve it keeps for that, and what is free now would do for a pool, and not for its end.
        keep((8 << 20) - (512 << 10));
        assert_eq!(code(client.define(WIDE).await), Some(Code::Exhausted));
        keep(7 << 20);
        eventually(async || client.define(WIDE).await.is_ok()).await;
    });
}
