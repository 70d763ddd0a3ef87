//! Pods as Kubernetes has containerd make them: by its Container Runtime Interface, whose client here is curl, as Debian 12 has none. What is
//! said to it and heard of it are Protocol Buffers of a few fields (k8s.io/cri-api, runtime/v1), behind gRPC's five bytes.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Stdio},
};

use testrig::{container::Container, tcp::serve};

use crate::{
    cni::{beside_a_guest, nothing_is_left, ports},
    engines::{Engines, parsed},
    host::{Host, until},
    mapped::{host_seen_as, neighbour, seen_as},
};

/// A field that is a text, bytes, or a message.
fn field(number: u8, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [vec![number << 3 | 2], varint(value.len()), value.to_vec()].concat()
}

/// A field that is a number.
fn number(number: u8, value: usize) -> Vec<u8> {
    [vec![number << 3], varint(value)].concat()
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// The first field of that number in a message, of texts, bytes and messages.
fn get(mut message: &[u8], number: u8) -> Option<&[u8]> {
    let take = |message: &mut &[u8]| {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (byte, rest) = message.split_first()?;
            *message = rest;
            value |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
    };
    loop {
        let (tag, value) = (take(&mut message)?, take(&mut message)?);
        if tag & 7 == 2 {
            let (field, rest) = message.split_at_checked(value)?;
            if tag >> 3 == usize::from(number) {
                return Some(field);
            }
            message = rest;
        }
    }
}

fn text(field: Option<&[u8]>) -> String {
    String::from_utf8(field.unwrap_or_default().to_vec()).unwrap()
}

/// containerd's side of it.
struct Cri<'a>(&'a Engines<'a>);

impl Cri<'_> {
    /// What it answers, or why it did not do it.
    fn ask(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, String> {
        let headers = self.0.dir.join("headers");
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--http2-prior-knowledge", "-H", "content-type: application/grpc", "-H", "te: trailers"]);
        curl.arg("--unix-socket").arg(self.0.dir.join("sock")).arg("-D").arg(&headers);
        curl.args(["--data-binary", "@-"]).arg(format!("localhost/runtime.v1.RuntimeService/{method}"));
        let mut curl = curl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Not compressed, and how long it is.
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let framed = [&[0], &length[..], message].concat();
        curl.stdin.take().unwrap().write_all(&framed).unwrap();
        let ended = curl.wait_with_output().unwrap();
        let said = fs::read_to_string(&headers).unwrap_or_default() + &String::from_utf8_lossy(&ended.stderr);
        match ended.stdout.get(5..) {
            Some(answer) if said.contains("grpc-status: 0") => Ok(answer.to_vec()),
            _ => Err(format!("{method}: {said}")),
        }
    }

    /// The same of what must be done; the field 1 of its answer, which most have alone.
    fn call(&self, method: &str, message: &[u8]) -> Vec<u8> {
        let answer = self.ask(method, message).unwrap_or_else(|why| panic!("{why}"));
        get(&answer, 1).unwrap_or_default().to_vec()
    }

    fn pod(&self, name: &str, mappings: &[u8]) -> Vec<u8> {
        let metadata = [field(1, name), field(2, name), field(3, "test")].concat();
        let linux = field(1, format!("/{}", self.0.group));
        [
            field(1, metadata),
            field(3, self.0.dir.join("logs").as_os_str().as_encoded_bytes()),
            mappings.to_vec(),
            field(8, linux),
        ]
        .concat()
    }

    /// A pod that runs, by its configuration; its identifier and its address.
    fn run(&self, pod: &[u8]) -> (Vec<u8>, String) {
        let id = self.call("RunPodSandbox", &field(1, pod));
        let status = self.call("PodSandboxStatus", &field(1, &id));
        let address = text(get(&status, 5).and_then(|network| get(network, 1)));
        (id, address)
    }

    /// A container in that pod that waits.
    fn container(&self, (id, _): &(Vec<u8>, String), pod: &[u8]) -> Vec<u8> {
        let command = ["/bin/sleep", "600"].map(|word| field(3, word)).concat();
        let config = [field(1, field(1, "c")), field(2, field(1, IMAGE)), command].concat();
        let made = self.call("CreateContainer", &[field(1, id), field(2, config), field(3, pod)].concat());
        self.call("StartContainer", &field(1, &made));
        made
    }

    fn pings(&self, container: &[u8], whom: &str) {
        let command = ["/bin/ping", "-c", "1", "-w", "5", whom].map(|word| field(2, word)).concat();
        let answer = self.ask("ExecSync", &[field(1, container), command, number(3, 20)].concat()).unwrap();
        let said = text(get(&answer, 1)) + &text(get(&answer, 2));
        assert!(said.contains("1 packets received"), "{said}");
    }

    fn remove(&self, (id, _): &(Vec<u8>, String)) {
        // As a kubelet, which says so until it is done.
        for method in ["StopPodSandbox", "StopPodSandbox", "RemovePodSandbox", "RemovePodSandbox"] {
            self.call(method, &field(1, id));
        }
    }
}

const IMAGE: &str = "localhost/root:latest";

/// With what pods need that is not Volt's: their loopback interfaces, and one image for all that is in them.
const SETTINGS: &str = r#"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/root:latest"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"#;

/// Network namespaces that have a name.
fn namespaces() -> BTreeSet<PathBuf> {
    fs::read_dir("/run/netns").into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn pods_of_a_kubelet_and_a_guest_share_a_network_are_reached_by_ports_of_the_host_and_leave_nothing() {
    let Some(host) = Host::new() else { return };
    if Command::new("curl").arg("--version").output().is_err() {
        return testkit::skip!("curl is not installed (Debian's package curl)");
    }
    let Some(engines) = Engines::new(&host) else { return };
    let neighbour = neighbour();
    symlink(engines.programs.join("usr/lib/cni/loopback"), "/opt/cni/bin/loopback").unwrap();
    engines.import();
    let archive = host.path("image.tar").display().to_string();
    engines.podman(&format!("save --format oci-archive -o {archive} {IMAGE}"));
    let before = namespaces();
    let containerd = engines.containerd(SETTINGS);
    engines.ctr(&format!("--namespace k8s.io images import {archive}")).ok();
    let cri = Cri(&engines);
    until("its networks and its image are there", || {
        let image = cri.ask("../runtime.v1.ImageService/ImageStatus", &field(1, field(1, IMAGE)))?;
        get(&image, 1).map(drop).ok_or_else(|| "no image".to_owned())
    });
    let mapping = [number(2, 81), number(3, 8081)].concat();
    let (web, db) = (cri.pod("web", &field(5, mapping)), cri.pod("db", &[]));
    let (of_web, of_db) = (cri.run(&web), cri.run(&db));
    let containers = [cri.container(&of_web, &web), cri.container(&of_db, &db)];
    cri.pings(&containers[0], &of_db.1);
    cri.pings(&containers[1], &of_web.1);
    cri.pings(&containers[1], "10.42.0.1");
    beside_a_guest(&host, |guest| {
        cri.pings(&containers[0], "10.42.0.200");
        guest.inside.pings(parsed(&of_web.1));
    });
    let paths = namespaces().into_iter().filter(|path| !before.contains(path));
    let of_pods: Vec<Container> = paths.map(|path| Container(fs::File::open(path).unwrap().into())).collect();
    let within = of_pods.iter().find(|one| one.ip("-o addr show eth0").contains(&format!("{}/", of_web.1))).unwrap();
    within.within(|| serve(81));
    assert_eq!(seen_as(&neighbour, "192.0.2.1:8081").as_deref(), Some("192.0.2.2"));
    assert_eq!(host_seen_as("127.0.0.1:8081").as_deref(), Some("10.42.0.1"));
    drop(of_pods);
    // Over the end of all that has made them.
    drop(containerd);
    host.end(["netmgr", "ipamd"], libc::SIGKILL);
    let _containerd = engines.containerd(SETTINGS);
    cri.pings(&containers[0], &of_db.1);
    cri.remove(&of_db);
    assert_eq!(ports(&host).len(), 1);
    assert_eq!(seen_as(&neighbour, "192.0.2.1:8081").as_deref(), Some("192.0.2.2"));
    cri.remove(&of_web);
    nothing_is_left(&host);
    assert_eq!(namespaces(), before);
}
