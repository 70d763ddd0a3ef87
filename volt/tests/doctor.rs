//! `volt doctor` as people and programs run it, beside what this host says of itself otherwise. It changes nothing, so these
//! tests run on the host as it is.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Output, Stdio},
};

use schema::programs::{beside_volt, programs};
use serde_json::Value;

const VOLT: &str = env!("CARGO_BIN_EXE_volt");
/// Debian's nobody: a user without rights.
const NOBODY: u32 = 65534;

/// A row of the report.
#[derive(Debug)]
struct Row {
    state: String,
    detail: String,
    remedy: Option<String>,
}

/// A report, and how the command ended.
#[derive(Debug)]
struct Report {
    verdict: String,
    rows: BTreeMap<String, Row>,
    code: Option<i32>,
}

impl Report {
    /// Runs the command, which prints a report, and checks what holds for every report.
    fn of(command: &mut Command) -> Report {
        let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8(stdout).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?} {stderr:?}"));
        assert_eq!(String::from_utf8_lossy(&stderr), "");
        let string = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned();
        let mut rows = BTreeMap::new();
        for check in json["checks"].as_array().unwrap() {
            let mut keys: Vec<_> = check.as_object().unwrap().keys().map(String::as_str).collect();
            keys.sort_unstable();
            assert_eq!(keys, ["check", "detail", "remedy", "state"]);
            let row = Row {
                state: string(&check["state"]),
                detail: string(&check["detail"]),
                remedy: check["remedy"].as_str().map(str::to_owned),
            };
            assert!(["ok", "limited", "missing"].contains(&row.state.as_str()), "{row:?}");
            assert!(!row.detail.is_empty() && !row.detail.contains('\n'), "{row:?}");
            assert_eq!(row.remedy.is_none(), row.state == "ok", "{row:?}");
            assert!(rows.insert(string(&check["check"]), row).is_none(), "{check} is there twice");
        }
        let report = Report { verdict: string(&json["verdict"]), rows, code: status.code() };
        assert_eq!(report.code, Some(if report.verdict == "missing" { 1 } else { 0 }), "{report:?}");
        assert_eq!(report.verdict == "ok", report.rows.values().all(|row| row.state == "ok"), "{report:?}");
        report
    }

    fn row(&self, name: &str) -> &Row {
        self.rows.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    fn states(&self, state: &str) -> Vec<&str> {
        self.rows.iter().filter(|(_, row)| row.state == state).map(|(name, _)| name.as_str()).collect()
    }
}

fn doctor(volt: impl AsRef<Path>) -> Command {
    let mut command = Command::new(volt.as_ref());
    command.args(["doctor", "--json"]);
    command
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Whether a command of the distribution's ends well.
fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn report_agrees_with_what_the_kernel_and_other_tools_say() {
    let report = Report::of(&mut doctor(VOLT));
    let row = |name| report.row(name);
    let is = |name, state: &str| assert_eq!(row(name).state, state, "{name}: {:?}", row(name));
    let says = |name, words: &str| assert!(row(name).detail.contains(words), "{words:?}: {:?}", row(name));

    says("kernel", &text("/proc/sys/kernel/osrelease"));
    // SAFETY: asking for the version takes a null attribute of size 0.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<()>(), 0_usize, 1_u32) };
    match abi {
        6.. => is("landlock", "ok"),
        1..6 => is("landlock", "limited"),
        _ => is("landlock", "missing"),
    }
    if abi > 0 {
        says("landlock", &format!("ABI {abi}"));
    }
    says("seccomp", &text("/proc/sys/kernel/seccomp/actions_avail"));

    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    is("kvm", if kvm { "ok" } else { "missing" });
    assert_eq!(row("kvm-speed").detail.contains("million instructions/s"), kvm);
    let tun = fs::File::options().read(true).write(true).open("/dev/net/tun").is_ok();
    assert_eq!(row("tun").state == "ok", tun, "{:?}", row("tun"));

    let mut user = Command::new("unshare");
    user.args(["--user", "true"]).stderr(Stdio::null());
    // A VM's user makes one, even where root starts the VM.
    if is_root() {
        user.uid(NOBODY).gid(NOBODY);
    }
    is("user-namespaces", if user.status().is_ok_and(|status| status.success()) { "ok" } else { "missing" });
    if is_root() {
        assert_eq!(row("namespaces").state == "ok", works("unshare", &["-mpniuCf", "true"]), "{:?}", row("namespaces"));
        let bridge = works("unshare", &["-n", "ip", "link", "add", "b0", "type", "bridge"]);
        assert_eq!(row("bridge").state == "ok", bridge || !works("ip", &["-V"]), "{:?}", row("bridge"));
        let vlan = "ip link add b0 type bridge && ip link add link b0 name b0.7 type vlan id 7";
        let vlan = works("unshare", &["-n", "sh", "-c", vlan]);
        assert_eq!(row("vlans").state == "ok", vlan || !works("ip", &["-V"]), "{:?}", row("vlans"));
        let macvtap = "ip link add b0 type bridge && ip link add link b0 type macvtap && nft 'table netdev t { chain c { \
            type filter hook egress device b0 priority 0; }; }'";
        let macvtap = works("unshare", &["-n", "sh", "-c", macvtap]);
        let tools = works("ip", &["-V"]) && works("nft", &["-v"]);
        assert_eq!(row("macvtaps").state == "ok", macvtap || !tools, "{:?}", row("macvtaps"));
    }
    let walls = ["landlock", "seccomp", "user-namespaces", "namespaces", "cgroups", "rights"];
    is("confinement", if walls.iter().all(|name| row(name).state == "ok") { "ok" } else { "limited" });
    // Whatever was made for these is gone.
    assert!(!text("/proc/self/net/dev").contains("probe:"));

    let controllers = text("/proc/self/cgroup");
    for name in ["cpu", "memory", "pids"].into_iter().filter(|name| controllers.contains(&format!(":{name}:"))) {
        assert_ne!(row("cgroups").state, "ok", "v1 has {name}: {:?}", row("cgroups"));
        says("cgroups", name);
    }

    let meminfo = text("/proc/meminfo");
    let kib = |name: &str| {
        let line = meminfo.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    says("memory", &format!("of {} MiB", kib("MemTotal:") >> 10));
    if kib("Hugepagesize:") == 2048 {
        says("huge-pages", &format!("2M: {} of {} free", kib("HugePages_Free:"), kib("HugePages_Total:")));
    }
    is("swap", if kib("SwapTotal:") == 0 { "ok" } else { "limited" });
    is("ksm", if text("/sys/kernel/mm/ksm/run") == "1" { "limited" } else { "ok" });
    is("smt", if text("/sys/devices/system/cpu/smt/active") == "1" { "limited" } else { "ok" });
    let known = fs::read_dir("/sys/devices/system/cpu/vulnerabilities").unwrap().flatten();
    let known: Vec<_> = known.map(|entry| (entry.file_name().into_string().unwrap(), text(entry.path()))).collect();
    says("mitigations", &format!("of {} closed", known.len()));
    let plain: Vec<_> = known.iter().filter(|(_, text)| text.starts_with("Vulnerable")).collect();
    plain.iter().for_each(|(name, _)| says("mitigations", name));
    assert!(plain.is_empty() || row("mitigations").state == "limited");
}

#[test]
fn table_has_every_row_with_its_state() {
    let report = Report::of(&mut doctor(VOLT));
    let out = Command::new(VOLT).arg("doctor").stdin(Stdio::null()).output().unwrap();
    assert_eq!(out.status.code(), report.code);
    let table = String::from_utf8(out.stdout).unwrap();
    for (name, row) in &report.rows {
        let mut lines = table.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>());
        assert!(lines.any(|words| words == [name, &row.state]), "{name} {row:?} is not in\n{table}");
    }
    assert!(table.lines().all(|line| line.chars().count() <= 120), "{table}");
}

#[test]
fn programs_that_are_absent_stop_vms() {
    let dir = tempfile::tempdir().unwrap();
    let alone = dir.path().join("volt");
    testkit::program::copy(VOLT, &alone);
    let report = Report::of(&mut doctor(&alone));
    assert_eq!((report.verdict.as_str(), report.row("programs").state.as_str()), ("missing", "missing"));
    for program in beside_volt() {
        assert!(report.row("programs").detail.contains(program), "{report:?}");
        fs::write(dir.path().join(program), "").unwrap();
    }
    // There, but not to be executed.
    assert_eq!(Report::of(&mut doctor(&alone)).row("programs").state, "missing");
}

#[test]
fn plain_user_learns_what_is_lacking_and_what_cannot_be_found_out() {
    if !is_root() {
        return testkit::skip!("it becomes another user and needs root");
    }
    // Where that user may reach it.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let volt = dir.path().join("volt");
    for program in programs() {
        testkit::program::copy(Path::new(VOLT).with_file_name(program), &dir.path().join(program));
    }
    let plain = |policy: &str| Report::of(doctor(&volt).args(["--confinement", policy]).uid(NOBODY).gid(NOBODY));
    let root = Report::of(&mut doctor(&volt));

    let report = plain("best-effort");
    assert!(report.row("rights").detail.starts_with("user 65534, groups 65534: lacks CAP_NET_ADMIN"), "{report:?}");
    assert_eq!(report.rows.keys().collect::<Vec<_>>(), root.rows.keys().collect::<Vec<_>>());
    // What does not depend on who asks.
    for name in ["kernel", "landlock", "seccomp", "huge-pages", "swap", "ksm", "smt", "mitigations"] {
        assert_eq!(report.row(name).detail, root.row(name).detail);
    }
    for (device, name) in [("/dev/kvm", "kvm"), ("/dev/net/tun", "tun")] {
        let opens = Command::new("sh")
            .args(["-c", "exec <>\"$0\"", device])
            .uid(NOBODY)
            .gid(NOBODY)
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success();
        let row = report.row(name);
        assert_eq!(row.state == "ok", opens, "{row:?}");
        assert!(opens || !Path::new(device).exists() || row.detail.contains("Permission denied"), "{row:?}");
    }
    let unshare = ["--user", "--net", "true"];
    let owned = Command::new("unshare").args(unshare).uid(NOBODY).gid(NOBODY).status().is_ok_and(|s| s.success());
    assert!(owned || report.row("bridge").detail.contains("cannot be found out"), "{report:?}");

    // The bounding set is a layer that this user cannot cut: it stops `strict`, and `best-effort` says so.
    assert_eq!(report.row("confinement").state, "limited");
    let strict = plain("strict");
    assert_eq!((strict.row("confinement").state.as_str(), strict.verdict.as_str()), ("missing", "missing"));
    let row = strict.row("confinement");
    assert!(row.detail.contains("bounding set") && row.remedy.as_ref().unwrap().contains("root"), "{row:?}");
}

#[test]
fn host_without_proc_sys_and_dev_gets_a_whole_report() {
    if !is_root() {
        return testkit::skip!("it makes a mount namespace and needs root");
    }
    let bare = "for dir in /proc /sys /dev; do mount -t tmpfs none $dir || exit 2; done; exec \"$0\" doctor --json";
    let report = Report::of(Command::new("unshare").args(["--mount", "sh", "-c", bare, VOLT]));
    let whole = Report::of(&mut doctor(VOLT));
    assert_eq!(report.rows.keys().collect::<Vec<_>>(), whole.rows.keys().collect::<Vec<_>>());
    assert_eq!(report.verdict, "missing");
    let missing = report.states("missing");
    for name in ["kvm", "kvm-speed", "tun", "cgroups", "programs"] {
        assert!(missing.contains(&name), "{name}: {report:?}");
    }
    for name in ["memory", "smt", "mitigations"] {
        assert_eq!(report.row(name).state, "limited", "{report:?}");
    }
    assert_eq!(report.row("landlock").state, whole.row("landlock").state);
}

#[test]
fn another_firewall_that_drops_and_frames_that_cross_it_are_named() {
    if !is_root() || !works("nft", &["--version"]) {
        return testkit::skip!("it takes root, and nft (package nftables)");
    }
    let within = |rules: &str| {
        let script = format!(
            "for rule in {rules} end; do [ \"$rule\" = end ] || nft \"$rule\" || exit 9; done; exec \"$0\" doctor --json"
        );
        Report::of(Command::new("unshare").args(["--net", "sh", "-c", &script, VOLT]))
    };
    let none = within("");
    assert_eq!(none.row("firewall").state, "ok", "{none:?}");
    assert!(none.row("forwarding").detail.starts_with("IPv4 off"), "{none:?}");
    let chain = |policy: &str| {
        format!("'add chain ip filter FORWARD {{ type filter hook forward priority 0; policy {policy}; }}'")
    };
    let ours = "'add table inet volt-vmm-x' 'add chain inet volt-vmm-x f { type filter hook forward priority 0; policy drop; }'";
    let accepts = within(&format!("'add table ip filter' {} {ours}", chain("accept")));
    assert_eq!(accepts.row("firewall").state, "ok", "{accepts:?}");
    let drops = within(&format!("'add table ip filter' {}", chain("drop")));
    let row = drops.row("firewall");
    assert!(row.state == "limited" && row.detail.contains("ip filter FORWARD"), "{row:?}");
    // The remedy works: it is one command.
    let remedy = row.remedy.as_ref().unwrap().split_once("nft ").unwrap().1.replace("NETWORK", "volt0");
    let mended = within(&format!("'add table ip filter' {} '{remedy}'", chain("drop")));
    assert_eq!(mended.row("firewall").state, "limited", "its policy is what it was: {mended:?}");

    let across = text("/proc/sys/net/bridge/bridge-nf-call-iptables") == "1";
    let here = Report::of(&mut doctor(VOLT));
    assert_eq!(here.row("bridge-netfilter").state, if across { "limited" } else { "ok" }, "{here:?}");
}
