//! A VM's control socket, and the folders that the sockets are in: who may use them, and what for.

use std::{
    ffi::OsStr,
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{MetadataExt, PermissionsExt, chown},
        },
    },
    path::{Path, PathBuf},
};

use capnp::traits::HasTypeId;
use capnp_rpc::rpc_capnp::{message as rpc, message_target};
use ipc::{Code, Connection};
use rustix::net::SocketAddrUnix;
use schema::{addresses_capnp::ipam, vm_capnp::vm};
use testrig::{handed, storm::storm};

use crate::{
    host::{Host, PATIENCE, Running, until},
    kernel::{POWEROFF, SPIN},
};

const STRANGER: u32 = 4722;

fn set(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Asks a VM about itself as another user.
fn ask_as(user: u32, socket: &Path) -> Result<String, Code> {
    let socket = socket.to_owned();
    let asked = testkit::user::as_user(user, move || {
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
    let Some(host) = Host::new() else {
        return;
    };
    let running = Running::start(&mut host.plain("web", &host.kernel("spin", &[SPIN])));
    host.runs("web");
    let socket = host.path("run/vms/web.sock");
    let sockets = [socket.clone(), schema::paths::lane(&socket)];
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
    let Some(host) = Host::new() else { return };
    let spin = host.kernel("spin", &[SPIN]);
    let vms = ["web", "other"].map(|name| Running::start(&mut host.plain(name, &spin)));
    ["web", "other"].iter().for_each(|name| host.runs(name));
    ipc::run(async {
        let connection = Connection::connect(&host.path("run/vms/web.sock")).await.unwrap();
        handed::knows_only(vm::Client::TYPE_ID, &connection).await;
        let vm: vm::Client = connection.bootstrap();
        handed::knows_only(vm::Client::TYPE_ID, &handed::hand_over(&vm.client)).await;
        // It has nothing to hand out over its lane either, and takes nothing.
        assert_eq!(connection.claim(&[7; 16]).await.unwrap_err().code, Code::BadToken);
        let null = fs::File::open("/dev/null").unwrap();
        assert_eq!(connection.deposit(null.as_fd()).await.unwrap_err().code, Code::Overloaded);
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
fn vm_survives_calls_of_anything_with_any_arguments() {
    let Some(host) = Host::new() else { return };
    let running = Running::start(&mut host.plain("web", &host.kernel("spin", &[SPIN])));
    host.runs("web");
    let socket = host.path("run/vms/web.sock");
    storm(&socket, vm::Client::TYPE_ID, 50, &["stop"]);
    host.runs("web");
    assert_eq!(ask_as(rustix::process::geteuid().as_raw(), &socket).unwrap(), "web");
    assert!(!running.said().contains("panicked"), "{}", running.said());
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    running.end().ok();
    host.clean();
}

/// Duplicates of the RPC sockets that processes of `volt` have connected to services. (A service's socket knows itself by the
/// name that it had before it listened, so which of the three it leads to is not to be seen.)
fn stolen(host: &Host) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    for pid in host.processes("volt") {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let Ok(process) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { continue };
        for number in 3..256 {
            let copy = rustix::process::pidfd_getfd(&process, number, rustix::process::PidfdGetfdFlags::empty());
            let Ok(fd) = copy else { continue };
            let peer =
                rustix::net::getpeername(&fd).ok().flatten().and_then(|peer| SocketAddrUnix::try_from(peer).ok());
            let is_service = peer.and_then(|peer| {
                let path = PathBuf::from(OsStr::from_bytes(peer.path_bytes()?));
                Some(path.parent() == Some(&host.path("run")))
            });
            if is_service == Some(true) && rustix::net::sockopt::socket_type(&fd) == Ok(rustix::net::SocketType::STREAM)
            {
                found.push(fd);
            }
        }
    }
    found
}

/// Asks `ipamd` on a connection for a pool called `name`: as the answer to each early question, as each low export, and after asking for the
/// bootstrap capability (again).
fn define_pool_by_any_means(socket: &OwnedFd, name: &str) {
    let send = |fill: &dyn Fn(rpc::Builder<'_>)| {
        let mut message = capnp::message::Builder::new_default();
        fill(message.init_root());
        let _ = rustix::io::write(socket, &capnp::serialize::write_message_to_words(&message));
    };
    let define = |question: u32, target: &dyn Fn(message_target::Builder<'_>)| {
        send(&|message| {
            let mut call = message.init_call();
            call.set_question_id(question);
            call.set_interface_id(ipam::Client::TYPE_ID);
            call.set_method_id(0);
            target(call.reborrow().init_target());
            let config = format!(r#"{{"network":"{name}","subnet":"10.{}.0.0/24"}}"#, 100 + name.len());
            let params = call.init_params().init_content();
            params.init_as::<ipam::define_pool_params::Builder<'_>>().set_config(&config);
        });
    };
    for id in 0..16 {
        define(5000 + id, &|target| target.init_promised_answer().set_question_id(id));
    }
    send(&|message| message.init_bootstrap().set_question_id(6000));
    define(6001, &|target| target.init_promised_answer().set_question_id(6000));
    define(6002, &|mut target| target.set_imported_cap(0));
}

#[test]
fn who_takes_the_supervisor_of_a_running_vm_over_has_no_service_to_ask() {
    let Some(host) = Host::new() else { return };
    let vm = Running::start(&mut host.full("web", &host.kernel("spin", &[SPIN])));
    host.runs("web");
    let socket = host.path("run/ipamd.sock");
    let connections = stolen(&host);
    assert_eq!(
        connections.len(),
        2,
        "of a VM with a card, to netmgr and ipamd: kernel-store's is closed with the kernel in hand"
    );
    connections.iter().for_each(|connection| define_pool_by_any_means(connection, "stolen"));
    // The same words on a connection that is new.
    let own = OwnedFd::from(std::os::unix::net::UnixStream::connect(&socket).unwrap());
    define_pool_by_any_means(&own, "asked");
    let listed = || host.run(&mut host.volt(&["network", "list"])).ok().out;
    until("the pool that was asked for is there", || if listed().contains("asked") { Ok(()) } else { Err(listed()) });
    assert!(!listed().contains("stolen"), "{}", listed());
    vm.signal(libc::SIGKILL);
    assert!(!vm.end().status.success());
    host.clean();
}

#[test]
fn directories_that_others_own_may_write_to_or_may_move_are_refused() {
    let Some(host) = Host::new() else { return };
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
