//! Containers of engines that nobody here wrote, Debian's podman and containerd (whose pods are in `cri`), on Volt's networks by the list that the
//! documents show.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::mount::{MountFlags, mount};
use testrig::{container::Container, tcp::serve};

use crate::{
    cni::{Engine, beside_a_guest, nothing_is_left, ports},
    host::{Ended, Host, kill, until},
    mapped::{host_seen_as, neighbour, seen_as},
};

/// Names the folder with the engines' programs, as `cargo xtask test` has unpacked them.
const ENGINES: &str = "VOLT_TEST_ENGINES";
/// Folders of the host's that engines write to, beyond those that they can be told: their own, for a test.
const WRITTEN: [&str; 4] = ["/etc", "/opt", "/run", "/var"];
/// What is below the root of a control group's hierarchy, on a host of any kind.
const GROUPS: &str = "/sys/fs/cgroup";
const PLUGIN: &str = env!("CARGO_BIN_EXE_volt-cni");

/// The engines of one test. What they write and mount is gone with it.
pub struct Engines<'a> {
    pub host: &'a Host,
    pub programs: PathBuf,
    /// Where what they keep is.
    pub dir: PathBuf,
    /// Their containers' control group.
    pub group: String,
}

impl Engines<'_> {
    /// Or `None` after it was said why there are none.
    pub fn new(host: &Host) -> Option<Engines<'_>> {
        let Some(programs) = std::env::var_os(ENGINES).map(PathBuf::from) else {
            testkit::skip!(
                "{ENGINES} names no folder with Debian's podman and containerd, as cargo xtask test unpacks them"
            );
            return None;
        };
        testkit::namespace::mounts().unwrap();
        // By this name the host finds what runs in it.
        let engines =
            Engines { host, programs, dir: host.path("run-engines"), group: format!("volt-test-{}", host.user) };
        let upper = engines.dir.join("upper");
        fs::create_dir_all(&upper).unwrap();
        mount("upper", &upper, "tmpfs", MountFlags::empty(), None).unwrap();
        for folder in WRITTEN {
            let [changes, work] = ["changes", "work"].map(|name| upper.join(&folder[1..]).join(name));
            fs::create_dir_all(&changes).unwrap();
            fs::create_dir_all(&work).unwrap();
            let options = format!("lowerdir={folder},upperdir={},workdir={}", changes.display(), work.display());
            let options = std::ffi::CString::new(options).unwrap();
            mount("overlay", folder, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
        }
        fs::create_dir_all("/opt/cni/bin").unwrap();
        symlink(PLUGIN, "/opt/cni/bin/volt-cni").unwrap();
        fs::create_dir_all("/etc/cni/net.d").unwrap();
        fs::write("/etc/cni/net.d/10-volt.conflist", include_str!("../../../examples/volt.conflist")).unwrap();
        fs::create_dir_all("/etc/containers").unwrap();
        fs::copy(engines.programs.join("etc/containers/policy.json"), "/etc/containers/policy.json").unwrap();
        let usr = engines.programs.join("usr").display().to_string();
        let settings = format!(
            r#"[network]
network_backend = "cni"
[engine]
enable_port_reservation = false
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
conmon_path = ["{usr}/bin/conmon"]
helper_binaries_dir = ["{usr}/lib/podman"]
[engine.runtimes]
runc = ["{usr}/bin/runc"]
"#
        );
        fs::write("/etc/containers/containers.conf", settings).unwrap();
        let bin = engines.root().join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for applet in ["ping", "sleep"] {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        testrig::container::ip("link set lo up");
        Some(engines)
    }

    /// A root file system for containers.
    fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    fn command(&self, program: &str) -> Command {
        let usr = self.programs.join("usr");
        let mut command = Command::new(usr.join("bin").join(program));
        let of_volt = self.host.volt(&[]);
        command.envs(of_volt.get_envs().map(|(name, value)| (name, value.unwrap())));
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", usr.join("bin").display())).env("HOME", "/nonexistent");
        command.env("LD_LIBRARY_PATH", usr.join("lib/x86_64-linux-gnu")).env_remove("XDG_RUNTIME_DIR");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn podman(&self, arguments: &str) -> Ended {
        self.try_podman(arguments).ok()
    }

    fn try_podman(&self, arguments: &str) -> Ended {
        let mut command = self.command("podman");
        for (option, folder) in [("--root", "storage"), ("--runroot", "state"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(self.dir.join(folder));
        }
        command.args(["--storage-driver", "vfs"]).args(arguments.split_whitespace());
        self.host.run(&mut command)
    }

    /// Has podman know the root file system as an image.
    pub fn import(&self) {
        let archive = self.host.path("root.tar").display().to_string();
        let mut tar = Command::new("tar");
        tar.args(["-cf", &archive, "-C"]).arg(self.root()).arg(".").stderr(Stdio::piped());
        self.host.run(&mut tar).ok();
        // Pods have what it runs of itself.
        self.podman(&format!("import --change CMD=[\"/bin/sleep\",\"600\"] {archive} localhost/root"));
    }

    /// Starts a container of podman's, which waits.
    fn run(&self, name: &str) {
        self.try_run(name, "").ok();
    }

    fn try_run(&self, name: &str, options: &str) -> Ended {
        let Engines { group, .. } = self;
        // As many as this machine may let runc have.
        let limits = "--ulimit nofile=1024:1024 --ulimit nproc=1024:1024";
        let what = format!("--name {name} localhost/root /bin/sleep 600");
        self.try_podman(&format!("run -d --network volt --cgroup-parent /{group} {limits} {options} {what}"))
    }

    pub fn ctr(&self, arguments: &str) -> Ended {
        let mut command = self.command("ctr");
        command.arg("--address").arg(self.dir.join("sock")).args(arguments.split_whitespace());
        self.host.run(&mut command)
    }

    /// Starts containerd, with these settings beside its folders and its socket.
    pub fn containerd(&self, settings: &str) -> Ends {
        let dir = self.dir.display();
        let folders = format!(
            "version = 2\nroot = \"{dir}/containerd\"\nstate = \"{dir}/state\"\n{settings}\n[grpc]\naddress = \"{dir}/sock\"\n"
        );
        let settings = self.host.file("containerd.toml", folders.as_bytes());
        let log = fs::File::options().create(true).append(true).open(self.host.path("containerd.log")).unwrap();
        let mut containerd = self.command("containerd");
        let containerd =
            Ends(containerd.args(["--config", &settings]).stdout(Stdio::null()).stderr(log).spawn().unwrap());
        until("containerd answers", || match self.ctr("version") {
            ended if ended.status.success() => Ok(()),
            ended => Err(ended.err),
        });
        containerd
    }

    fn address(&self, name: &str) -> String {
        let format = "{{.NetworkSettings.Networks.volt.IPAddress}}";
        self.podman(&format!("inspect --format {format} {name}")).out.trim().to_owned()
    }
}

impl Drop for Engines<'_> {
    fn drop(&mut self) {
        // Engines leave the groups that they were told to put theirs in.
        let hierarchies = fs::read_dir(GROUPS).into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain([GROUPS.into()]) {
            remove_groups(&hierarchy.join(&self.group));
        }
    }
}

fn remove_groups(group: &Path) {
    for below in fs::read_dir(group).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&below.path());
        }
    }
    let _ = fs::remove_dir(group);
}

pub fn parsed(address: &str) -> [u8; 4] {
    address.parse::<std::net::Ipv4Addr>().unwrap().octets()
}

#[test]
fn containers_of_podman_and_a_guest_share_a_network_over_a_crash_and_leave_nothing() {
    let Some(host) = Host::new() else { return };
    let Some(engines) = Engines::new(&host) else { return };
    engines.import();
    engines.run("a");
    engines.run("b");
    let pings = |name: &str, whom: &str| _ = engines.podman(&format!("exec {name} /bin/ping -c 1 -w 5 {whom}"));
    let (a, b) = (engines.address("a"), engines.address("b"));
    pings("a", &b);
    pings("b", "10.42.0.1");
    beside_a_guest(&host, |guest| {
        pings("a", "10.42.0.200");
        guest.inside.pings(parsed(&a));
    });
    // The services' end is not the containers'.
    host.end(["netmgr", "ipamd"], libc::SIGKILL);
    pings("b", &a);
    engines.podman("rm --force --time 0 b");
    assert_eq!(ports(&host).len(), 1, "the one that was removed has left nothing");
    // Nor is there anything left of one whose engine has died with it.
    let pid = engines.podman("inspect --format {{.State.ConmonPid}}:{{.State.Pid}} a").out;
    let ended: Vec<i32> = pid.trim().split(':').map(|pid| pid.parse().unwrap()).collect();
    ended.iter().for_each(|pid| kill(*pid, libc::SIGKILL));
    until("they have ended", || match ended.iter().find(|pid| Path::new(&format!("/proc/{pid}/exe")).exists()) {
        None => Ok(()),
        Some(pid) => Err(pid.to_string()),
    });
    until("podman has removed what it finds dead", || match engines.try_podman("rm --force --time 0 a") {
        ended if ended.status.success() => Ok(()),
        ended => Err(ended.err),
    });
    nothing_is_left(&host);
}

#[test]
fn ports_that_podman_publishes_are_reached_from_everywhere_over_a_crash_and_go_with_the_container() {
    let Some(host) = Host::new() else { return };
    let Some(engines) = Engines::new(&host) else { return };
    engines.import();
    let neighbour = neighbour();
    engines.try_run("a", "-p 8080-8081:80-81 -p 127.0.0.1:5353:53/udp").ok();
    let pid = engines.podman("inspect --format {{.State.Pid}} a").out;
    let within = Container(fs::File::open(format!("/proc/{}/ns/net", pid.trim())).unwrap().into());
    within.within(|| serve(81));
    let is_reached = || {
        assert_eq!(seen_as(&neighbour, "192.0.2.1:8081").as_deref(), Some("192.0.2.2"));
        assert_eq!(host_seen_as("127.0.0.1:8081").as_deref(), Some("10.42.0.1"));
        assert!(host_seen_as("192.0.2.1:8081").is_some());
    };
    is_reached();
    let listed = host.run(&mut host.volt(&["port", "list"])).ok().out;
    assert!(listed.contains("0.0.0.0:8080-8081:80-81") && listed.contains("127.0.0.1:5353:53/udp"), "{listed}");
    // What another one wants too, is refused by its name, and podman has nothing of that.
    let refused = engines.try_run("b", "-p 8081:81");
    assert!(!refused.status.success() && refused.err.contains("0.0.0.0:8081"), "{refused:?}");
    engines.podman("rm --force --time 0 b");
    assert_eq!(ports(&host).len(), 1);
    host.end(["netmgr", "ipamd"], libc::SIGKILL);
    is_reached();
    host.held(1);
    is_reached();
    drop(within);
    engines.podman("rm --force --time 0 a");
    nothing_is_left(&host);
    until("the port is free", || TcpListener::bind("0.0.0.0:8081").map(drop).map_err(|error| error.to_string()));
}

#[test]
fn containers_of_containerd_share_a_network_and_leave_nothing() {
    let Some(host) = Host::new() else { return };
    let Some(engines) = Engines::new(&host) else { return };
    let root = engines.root();
    let _containerd = engines.containerd("disabled_plugins = [\"io.containerd.grpc.v1.cri\"]");
    let run = |options: &str, what: &str| {
        engines.ctr(&format!("run --cni --cgroup= {options} --rootfs {} {what}", root.display())).ok()
    };
    run("-d", "a /bin/sleep 600");
    let listed = host.run(&mut host.volt(&["port", "list"])).ok().out;
    let [.., a, _published] = listed.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{listed}") };
    run("--rm", &format!("b /bin/ping -c 1 -w 5 {a}"));
    beside_a_guest(&host, |guest| {
        guest.inside.pings(parsed(a));
        run("--rm", "c /bin/ping -c 1 -w 5 10.42.0.200");
    });
    assert_eq!(ports(&host).len(), 1, "those that ended have left nothing");
    engines.ctr("task delete --force a").ok();
    engines.ctr("container delete a").ok();
    // Of what it does not wait for, ctr never asks for the network's end: the port is gone with the namespace, and the address by GC.
    until("the port is gone", || if ports(&host).is_empty() { Ok(()) } else { Err(format!("{:?}", ports(&host))) });
    host.held(1);
    let config = serde_json::json!({ "cniVersion": "1.1.0", "name": "volt", "type": "volt-cni" });
    Engine { host: &host, config }.gc(&[]);
    nothing_is_left(&host);
}

/// A process that ends with a test.
pub struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
