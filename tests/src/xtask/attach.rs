//! Bench `attach`: what a workload's port costs, from the question to a TAP in hand and back, on this machine: beside CNI's `bridge` with `host-local`,
//! and netavark, which do the same for containers, each with as many ports on its bridge, and what the kernel alone takes. In a network namespace of its own.
//!
//! Ours has an address, the rules that keep a guest to it, and a policy; the peers have an address. Ours is asked over its socket, as `volt` does; theirs are
//! programs that are started for each, as engines do. CPU is all that was used for it, on both sides of the socket, until nothing is left of it.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ipc::Connection;
use rustix::{
    process::{Signal, kill_process},
    time::{ClockId, clock_gettime},
};
use schema::{
    host_capnp::host,
    network_capnp::{MAX_PORTS, port, port_factory},
};

use crate::{
    bench::{Row, apart, row},
    debian, kernel_alone,
};

/// How many ports there are beside the one that is measured.
const COUNTS: [usize; 3] = [1, 100, 1000];
const ROUNDS: usize = 400;
/// Theirs take ten times as long.
const PEERS_ROUNDS: usize = 60;
const DEADLINE: Duration = Duration::from_secs(30);
const CNI: &str = "/usr/lib/cni";
const NETAVARK: &str = "/usr/lib/podman/netavark";
/// Of the peers' containers: what is measured is the bridge's side.
const NAMESPACE: &str = "/run/netns/volt-bench";

/// What was measured of one of them at one number of ports.
struct Figures {
    /// Attach and detach, in ms, in order of length.
    both: Vec<f64>,
    /// Of these, the attach.
    attach: Vec<f64>,
    /// And what a detach takes its caller.
    detach: Vec<f64>,
    /// Of a processor, each.
    cpu: f64,
}

impl Figures {
    fn of(mut both: Vec<f64>, mut detach: Vec<f64>, cpu: f64) -> Figures {
        let mut attach: Vec<f64> = both.iter().zip(&detach).map(|(both, detach)| both - detach).collect();
        [&mut both, &mut attach, &mut detach].into_iter().for_each(|of| of.sort_by(f64::total_cmp));
        Figures { both, attach, detach, cpu }
    }
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied().unwrap_or(f64::NAN)
}

/// Takes the figures.
pub fn measure(netmgr: &Path) -> Result<Vec<Row>> {
    debian::install(&["containernetworking-plugins", "netavark", "iproute2", "iptables"])?;
    apart("attach", |dir| all(netmgr, dir))
}

fn all(netmgr: &Path, dir: &Path) -> Result<Vec<Row>> {
    debian::run(Command::new("ip").args(["netns", "add", "volt-bench"]))?;
    let mut rows = Vec::new();
    for count in COUNTS {
        // What they know of addresses is of containers that are there no more.
        let [cni, netavark] = ["cni", "netavark"].map(|name| dir.join(format!("{name}-{count}")));
        let peers: [(&str, &dyn Peer); 2] =
            [("CNI bridge and host-local", &Cni { dir: cni }), ("netavark", &Netavark { dir: netavark })];
        debian::say(&format!("attaching beside {count} ports"));
        let ours = ours(netmgr, dir, count)?;
        let [made, alone] = kernel_alone::measure(count)?;
        for (what, ours, alone) in
            [("attach, p50", &ours.attach, &made), ("attach and detach, p50", &ours.both, &alone)]
        {
            let metric = format!("{what}, {}", beside(count));
            rows.push(row(
                metric,
                "ms",
                Some(percentile(ours, 50)),
                Some((percentile(alone, 50), "the system calls alone")),
            ));
        }
        for (name, peer) in peers {
            let theirs = theirs(peer, count).with_context(|| format!("Cannot measure {name}"))?;
            for (what, of) in [
                ("attach and detach, p50", (|f: &Figures| percentile(&f.both, 50)) as fn(&Figures) -> f64),
                ("attach and detach, p99", |f| percentile(&f.both, 99)),
                ("detach, p50", |f| percentile(&f.detach, 50)),
                ("detach, p99", |f| percentile(&f.detach, 99)),
                ("attach and detach, CPU", |f| f.cpu),
            ] {
                let metric = format!("{what}, {}", beside(count));
                rows.push(row(metric, "ms", Some(of(&ours)), Some((of(&theirs), name))));
            }
        }
    }
    Ok(rows)
}

fn beside(count: usize) -> String {
    format!("{count} other port{}", if count == 1 { "" } else { "s" })
}

/// Time of a processor that a process has used, all of its threads; in ms.
fn used(pid: u32) -> Result<f64> {
    let mut sum = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        sum += text.split(' ').next().and_then(|used| used.parse::<f64>().ok()).context("schedstat has no time")?;
    }
    Ok(sum / 1e6)
}

fn own() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

struct Client {
    connection: Connection,
    factory: port_factory::Client,
}

impl Client {
    async fn attach(&self, number: usize) -> Result<port::Client> {
        let mut request = self.factory.create_tap_request();
        request.get().set_workload(format!("vm-bench-{number}"));
        request.get().init_addresses(1).set(0, format!("10.42.{}.{}", 1 + number / 250, 1 + number % 250));
        request.get().set_hand_out(true);
        let answer = self.connection.call("make a port", DEADLINE, request.send()).await?;
        let answer = answer.get()?;
        self.connection.claim(answer.get_tap()?.get_bytes()?).await?;
        Ok(answer.get_port()?)
    }

    async fn detach(&self, port: &port::Client) -> Result<()> {
        self.connection.call("release", DEADLINE, port.release_request().send()).await?;
        Ok(())
    }
}

fn ours(netmgr: &Path, dir: &Path, count: usize) -> Result<Figures> {
    let socket = dir.join("netmgr");
    let mut process = Command::new(netmgr).arg("--socket").arg(&socket).stdin(Stdio::null()).spawn()?;
    let figures = ipc::run(async {
        let end = Instant::now() + DEADLINE;
        let connection = loop {
            match Connection::connect(&socket).await {
                Ok(connection) => break connection,
                Err(fault) => ensure!(Instant::now() < end, "netmgr does not answer: {fault}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let host: host::Client = connection.bootstrap();
        let mut request = host.define_network_request();
        let mut config = request.get().init_config();
        config.set_name("volt0");
        config.set_gateway("10.42.0.1");
        config.set_prefix_length(16);
        let mut rules = config.init_policy().init_allow(3);
        for (at, rule) in (0..).zip(["host udp 53", "10.99.0.0/16 tcp 443", "10.42.0.0/16"]) {
            rules.set(at, rule);
        }
        let answer = connection.call("define a network", DEADLINE, request.send()).await?;
        let mut request = answer.get()?.get_network()?.port_factory_request();
        request.get().set_max_ports(MAX_PORTS);
        let answer = connection.call("make a factory", DEADLINE, request.send()).await?;
        let client = Client { factory: answer.get()?.get_factory()?, connection };
        let mut others = Vec::new();
        for number in 0..count {
            others.push(client.attach(number).await?);
        }
        // What follows a change has settled.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (mut both, mut detaches) = (Vec::new(), Vec::new());
        let used_before = used(process.id())? + own();
        for round in 0..ROUNDS {
            let begun = Instant::now();
            let port = client.attach(count + round).await?;
            let detaching = Instant::now();
            client.detach(&port).await?;
            both.push(milliseconds(begun));
            detaches.push(milliseconds(detaching));
        }
        let links = || fs::read_dir("/proc/thread-self/net/dev_snmp6").map_or(0, Iterator::count);
        // With lo and the bridge.
        while links() > count + 2 {
            ensure!(Instant::now() < end + DEADLINE, "ports stay");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let cpu = (used(process.id())? + own() - used_before) / ROUNDS as f64;
        Ok(Figures::of(both, detaches, cpu))
    })?;
    kill_process(rustix::process::Pid::from_child(&process), Signal::TERM)?;
    process.wait()?;
    debian::run(Command::new("ip").args(["link", "delete", "volt0"]))?;
    figures
}

/// One that does the same by programs.
trait Peer {
    /// What attaches container `number`, and what it is told.
    fn attach(&self, number: usize) -> Result<(Command, String)>;
    /// What detaches it.
    fn detach(&self, number: usize) -> Result<(Command, String)>;
    /// Its bridge.
    fn bridge(&self) -> &'static str;
}

struct Cni {
    dir: PathBuf,
}

impl Cni {
    fn command(&self, what: &str, number: usize) -> (Command, String) {
        let mut command = Command::new(format!("{CNI}/bridge"));
        command.env("CNI_COMMAND", what).env("CNI_CONTAINERID", format!("bench-{number}")).env("CNI_NETNS", NAMESPACE);
        command.env("CNI_IFNAME", format!("eth{number}")).env("CNI_PATH", CNI);
        let config = serde_json::json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": { "type": "host-local", "dataDir": self.dir, "ranges": [[{ "subnet": "10.43.0.0/16" }]] },
        });
        (command, config.to_string())
    }
}

impl Peer for Cni {
    fn attach(&self, number: usize) -> Result<(Command, String)> {
        Ok(self.command("ADD", number))
    }

    fn detach(&self, number: usize) -> Result<(Command, String)> {
        Ok(self.command("DEL", number))
    }

    fn bridge(&self) -> &'static str {
        "cni0"
    }
}

struct Netavark {
    dir: PathBuf,
}

impl Netavark {
    fn command(&self, what: &str, number: usize) -> Result<(Command, String)> {
        let id = "0123456789abcdef".repeat(4);
        let config = serde_json::json!({
            "container_id": format!("{number:016x}{}", id.get(16..).unwrap_or_default()),
            "container_name": format!("bench-{number}"),
            "networks": { "bench": {
                "static_ips": [format!("10.44.{}.{}", 1 + number / 250, 1 + number % 250)],
                "interface_name": format!("eth{number}"),
            } },
            "network_info": { "bench": {
                "name": "bench", "id": id, "driver": "bridge", "network_interface": "podman9",
                "subnets": [{ "subnet": "10.44.0.0/16", "gateway": "10.44.0.1" }],
                "ipv6_enabled": false, "internal": true, "dns_enabled": false,
                "ipam_options": { "driver": "host-local" },
            } },
        });
        fs::create_dir_all(&self.dir)?;
        let mut command = Command::new(NETAVARK);
        command.arg("--config").arg(&self.dir).arg(what).arg(NAMESPACE);
        Ok((command, config.to_string()))
    }
}

impl Peer for Netavark {
    fn attach(&self, number: usize) -> Result<(Command, String)> {
        self.command("setup", number)
    }

    fn detach(&self, number: usize) -> Result<(Command, String)> {
        self.command("teardown", number)
    }

    fn bridge(&self) -> &'static str {
        "podman9"
    }
}

fn run((mut command, told): (Command, String)) -> Result<()> {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("Cannot run {}", command.get_program().display()))?;
    child.stdin.take().context("no standard input")?.write_all(told.as_bytes())?;
    let out = child.wait_with_output()?;
    let said = || [out.stdout.clone(), out.stderr.clone()].concat();
    ensure!(out.status.success(), "{} failed: {}", command.get_program().display(), String::from_utf8_lossy(&said()));
    Ok(())
}

/// Time of a processor that ended children have used; in ms.
fn children() -> f64 {
    // SAFETY: all-zero bytes are a valid rusage, and getrusage writes one that lives through the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    [usage.ru_utime, usage.ru_stime].iter().map(|time| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3).sum()
}

fn theirs(peer: &dyn Peer, count: usize) -> Result<Figures> {
    for number in 0..count {
        run(peer.attach(number)?)?;
    }
    let (mut both, mut detaches) = (Vec::new(), Vec::new());
    let used_before = children();
    for number in count..count + PEERS_ROUNDS.min(1023 - count) {
        let begun = Instant::now();
        run(peer.attach(number)?)?;
        let detaching = Instant::now();
        run(peer.detach(number)?)?;
        both.push(milliseconds(begun));
        detaches.push(milliseconds(detaching));
    }
    let cpu = (children() - used_before) / both.len() as f64;
    for line in ["netns delete volt-bench", "netns add volt-bench", &format!("link delete {}", peer.bridge())] {
        debian::run(Command::new("ip").args(line.split(' ')))?;
    }
    Ok(Figures::of(both, detaches, cpu))
}
