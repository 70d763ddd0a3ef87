//! A VM's control socket, and the folders that the sockets are in: who may use them, and what for.

#[path = "../../../ipc/tests/common/handed.rs"]
mod handed;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use capnp::traits::HasTypeId;
use ipc::{Code, Connection};
use schema::vm_capnp::vm;

use crate::{
    host::{Host, PATIENCE, Running},
    kernel::{POWEROFF, SPIN},
};

const STRANGER: u32 = 4722;

fn set(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Asks a VM about itself as another user, in a thread of its own.
fn ask_as(user: u32, socket: &Path) -> Result<String, Code> {
    let socket = socket.to_owned();
    let asked = std::thread::spawn(move || {
        // Of this thread alone: the kernel's credentials are a thread's.
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(user)).unwrap();
        ipc::run(async {
            let connection = Connection::connect(&socket).await?;
            let request = connection.bootstrap::<vm::Client>().info_request();
            let answer = connection.call("ask a VM", PATIENCE, request.send()).await?;
            Ok::<_, ipc::Fault>(answer.get()?.get_info()?.get_name()?.to_string().unwrap())
        })
        .unwrap()
    });
    asked.join().unwrap().map_err(|fault| fault.code)
}

#[test]
fn vm_answers_whoever_started_it_and_nobody_else_whatever_the_sockets_mode() {
    let Some(host) = Host::new("vm_answers_whoever_started_it_and_nobody_else_whatever_the_sockets_mode") else {
        return;
    };
    let running = Running::start(&mut host.plain("web", &host.kernel("spin", &[SPIN])));
    host.runs("web");
    let socket = host.path("run/vms/web.sock");
    let sockets = [socket.clone(), ipc::lane_path(&socket)];
    let own = rustix::process::geteuid().as_raw();
    for path in &sockets {
        let found = fs::metadata(path).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7777), (own, 0o600));
    }
    let folders: Vec<PathBuf> = ["run", "run/vms"].iter().map(|name| host.path(name)).collect();
    for folder in &folders {
        assert_eq!(fs::metadata(folder).unwrap().mode() & 0o7777, 0o700);
    }
    assert_eq!(ask_as(STRANGER, &socket), Err(Code::PermissionDenied));
    // Neither the folders nor the modes: the check that is behind them.
    folders.iter().map(PathBuf::as_path).chain([host.path("").as_path()]).for_each(|folder| set(folder, 0o755));
    assert_eq!(ask_as(STRANGER, &socket), Err(Code::PermissionDenied));
    sockets.iter().for_each(|path| set(path, 0o666));
    for stranger in [STRANGER, 65_534] {
        // A refusal that crosses with the question is seen as the connection's end.
        let refused = ask_as(stranger, &socket).unwrap_err();
        assert!(matches!(refused, Code::PermissionDenied | Code::Unavailable), "{refused:?}");
    }
    assert_eq!(ask_as(own, &socket).unwrap(), "web");
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    running.end().ok();
    host.clean();
}

#[test]
fn control_socket_leads_to_one_vm_and_to_no_service() {
    let Some(host) = Host::new("control_socket_leads_to_one_vm_and_to_no_service") else { return };
    let spin = host.kernel("spin", &[SPIN]);
    let vms = ["web", "other"].map(|name| Running::start(&mut host.plain(name, &spin)));
    ["web", "other"].iter().for_each(|name| host.runs(name));
    ipc::run(async {
        let connection = Connection::connect(&host.path("run/vms/web.sock")).await.unwrap();
        handed::knows_only(vm::Client::TYPE_ID, &connection).await;
        let vm: vm::Client = connection.bootstrap();
        handed::knows_only(vm::Client::TYPE_ID, &handed::hand_over(&vm.client)).await;
        // It has nothing to hand out over its lane either.
        assert_eq!(connection.claim(&[7; 16]).await.unwrap_err().code, Code::BadToken);
        let answer = connection.call("ask a VM", PATIENCE, vm.info_request().send()).await.unwrap();
        assert_eq!(answer.get().unwrap().get_info().unwrap().get_name().unwrap(), "web");
    })
    .unwrap();
    host.runs("other");
    for (name, vm) in ["web", "other"].iter().zip(vms) {
        host.run(&mut host.volt(&["stop", name, "--grace", "0"])).ok();
        vm.end().ok();
    }
    host.clean();
}

#[test]
fn directories_that_others_own_may_write_to_or_may_move_are_refused() {
    let Some(host) = Host::new("directories_that_others_own_may_write_to_or_may_move_are_refused") else { return };
    let kernel = host.kernel("off", &[POWEROFF, SPIN]);
    for variable in ["VOLT_RUNTIME_DIR", "VOLT_STATE_DIR"] {
        let (above, dir) = (host.path(variable), host.path(variable).join("dir"));
        let attempt = || host.run(host.plain("web", &kernel).env(variable, &dir));
        attempt().ok();
        for (path, mode, fine) in [
            (&dir, 0o777, false),
            (&dir, 0o1777, false),
            (&dir, 0o755, true),
            (&above, 0o777, false),
            (&above, 0o1777, true),
            (&above, 0o755, true),
        ] {
            set(path, mode);
            if fine {
                attempt().ok();
            } else {
                attempt().refused(&["others may write", variable]);
            }
        }
        for path in [&dir, &above] {
            chown(path, Some(STRANGER), None).unwrap();
            attempt().refused(&["belongs to user 4722", variable]);
            chown(path, Some(0), None).unwrap();
        }
        // A link of a stranger's to a folder that is fine.
        let link = host.path("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        host.run(host.plain("web", &kernel).env(variable, &link)).refused(&["not a directory", variable]);
        fs::remove_file(link).unwrap();
        attempt().ok();
    }
    host.clean();
}
