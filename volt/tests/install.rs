//! `volt install`, as systemd, systemd-networkd and udev take what it writes. Writes below temporary folders; what runs does so in namespaces of
//! its own.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use schema::paths::lane;
use testkit::skip;

const VOLT: &str = env!("CARGO_BIN_EXE_volt");
const UNITS: &str = "etc/systemd/system";
const SERVICES: [&str; 3] = ["ipamd", "kernel-store", "netmgr"];
/// What systemd-analyze(1) says of the exposure of a service whose first line of defence, by its own count, is not systemd's: it begins as root.
const MOST_EXPOSED: f32 = 4.0;

fn volt(arguments: &[&str], root: &Path) -> Output {
    let mut command = Command::new(VOLT);
    command.args(arguments).arg("--root").arg(root).stdin(Stdio::null());
    command.output().unwrap()
}

fn installed() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let out = volt(&["install"], root.path());
    assert!(out.status.success(), "{out:?}");
    root
}

/// All files and links below a folder.
fn tree(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(tree(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found.sort();
    found
}

fn is_there(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].concat().iter().map(|byte| *byte as char).collect()
}

#[test]
fn what_was_installed_is_known_again_and_taken_away_and_nothing_else() {
    let root = installed();
    let files = tree(root.path());
    assert_eq!(files.len(), 3 * 2 + 3 + 6 + 1 + 1, "units, links, network files, rules, the instance: {files:?}");
    for file in files.iter().filter(|file| !file.is_symlink() && !file.ends_with("instance")) {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o7777, 0o644, "{file:?}");
    }
    let read = |path: &PathBuf| fs::read(path).unwrap_or_default();
    let before: Vec<_> = files.iter().map(read).collect();
    assert!(volt(&["install"], root.path()).status.success(), "again");
    assert_eq!((tree(root.path()), files.iter().map(read).collect::<Vec<_>>()), (files, before));

    let [own, foreign] = ["etc/systemd/network/20-lan.network", "etc/systemd/network/volt0.network"];
    let [own, foreign] = [own, foreign].map(|path| root.path().join(path));
    fs::write(&own, "[Match]\n").unwrap();
    fs::write(&foreign, "[Match]\n").unwrap();
    let link = root.path().join(UNITS).join("sockets.target.wants/volt-netmgr.socket");
    fs::remove_file(&link).unwrap();
    symlink("/dev/null", &link).unwrap();
    let out = volt(&["uninstall"], root.path());
    assert!(out.status.success() && text(&out).contains("somebody else has written it"), "{out:?}");
    let mut left = vec![own, foreign, link, root.path().join("var/lib/volt-vmm/instance")];
    left.sort();
    assert_eq!(tree(root.path()), left);
}

#[test]
fn file_of_somebody_else_s_is_named_before_anything_is_written_and_the_remedy_works() {
    let root = tempfile::tempdir().unwrap();
    let foreign = root.path().join(UNITS).join("volt-netmgr.service");
    fs::create_dir_all(foreign.parent().unwrap()).unwrap();
    fs::write(&foreign, "[Service]\nExecStart=/bin/true\n").unwrap();
    let out = volt(&["install"], root.path());
    assert_eq!(out.status.code(), Some(1));
    let said = text(&out);
    assert!(said.contains("volt-netmgr.service: somebody else has written it"), "{said}");
    assert_eq!(tree(&root.path().join("etc")), [foreign]);
    let remedy = said.rsplit_once("Move it away first: ").unwrap().1.trim().trim_end_matches('.').to_owned();
    assert!(Command::new("sh").args(["-c", &remedy]).status().unwrap().success(), "{remedy}");
    assert!(volt(&["install"], root.path()).status.success());
}

#[test]
fn link_below_the_root_leads_nowhere_else() {
    let outside = installed();
    let before = tree(outside.path());
    for (link, to) in [("etc", "etc"), ("var", "var"), ("etc/systemd/network", "etc/systemd/network")] {
        let root = tempfile::tempdir().unwrap();
        let link = root.path().join(link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(outside.path().join(to), &link).unwrap();
        for command in ["install", "uninstall"] {
            let out = volt(&[command], root.path());
            // Of what the services keep nothing is taken away.
            if (command, to) != ("uninstall", "var") {
                assert_eq!(out.status.code(), Some(1), "{command}: {out:?}");
                assert!(text(&out).contains("leads out of it; put a folder in its place"), "{out:?}");
            }
            assert_eq!(tree(outside.path()), before, "{command}");
        }
    }
    // Nor does what stands where a file is made.
    let root = tempfile::tempdir().unwrap();
    let kept = outside.path().join("kept");
    fs::write(&kept, "kept").unwrap();
    fs::create_dir_all(root.path().join(UNITS)).unwrap();
    symlink(&kept, root.path().join(UNITS).join("volt-netmgr.volt-new")).unwrap();
    assert!(volt(&["install"], root.path()).status.success());
    assert_eq!(fs::read(&kept).unwrap(), b"kept");
}

/// A unit that somebody has masked is a link to /dev/null; others may be anything.
#[test]
fn link_and_fifo_in_the_place_of_a_file_are_named_and_neither_followed_nor_waited_for() {
    for place in ["volt-netmgr.service", "sockets.target.wants/volt-ipamd.socket"] {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(UNITS).join(place);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink("/dev/zero", &path).unwrap();
        let out = volt(&["install"], root.path());
        assert!(out.status.code() == Some(1) && text(&out).contains("somebody else has written it"), "{out:?}");
        assert_eq!(tree(&root.path().join("etc")), std::slice::from_ref(&path));
    }
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(UNITS).join("volt-netmgr.service");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert_eq!(volt(&["install"], root.path()).status.code(), Some(1));
}

#[test]
fn systemd_takes_the_units_and_finds_little_exposed() {
    if !is_there("systemd-analyze") {
        return skip!("systemd-analyze (package systemd) is not there");
    }
    let root = installed();
    let units = root.path().join(UNITS);
    for unit in
        SERVICES.iter().flat_map(|service| [format!("volt-{service}.service"), format!("volt-{service}.socket")])
    {
        let out = Command::new("systemd-analyze").arg("verify").arg(units.join(&unit)).output().unwrap();
        assert!(out.status.success() && text(&out).is_empty(), "{unit}: {}", text(&out));
    }
    for service in SERVICES {
        let unit = units.join(format!("volt-{service}.service"));
        let mut command = Command::new("systemd-analyze");
        let out = command.args(["security", "--offline=true", "--no-pager"]).arg(unit).output().unwrap();
        let said = text(&out);
        let level = said.lines().find_map(|line| line.split_once("Overall exposure level for")?.1.split_once(": "));
        let level: f32 = level.unwrap().1.split(' ').next().unwrap().parse().unwrap();
        assert!(level <= MOST_EXPOSED, "{service}: {said}");
    }
}

/// What a unit says of a setting.
fn setting(unit: &str, name: &str) -> String {
    let lines = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    lines.collect::<Vec<_>>().join(" ")
}

/// With the rights that the units leave them, and told what the units tell them.
#[test]
fn services_start_as_their_units_say_and_volt_finds_them() {
    if !rustix::process::geteuid().is_root() {
        return skip!("the units are root's");
    }
    let root = installed();
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let [runtime, state] = ["run", "state"].map(|name| dir.path().join(name));
    fs::create_dir(&runtime).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(&state).unwrap();
    let run = testkit::namespace::in_own_network({
        let (runtime, state) = (runtime.clone(), state.clone());
        move || {
            let mut children = Vec::new();
            for service in SERVICES {
                let unit = fs::read_to_string(root.path().join(UNITS).join(format!("volt-{service}.service"))).unwrap();
                let keep: Vec<String> = setting(&unit, "CapabilityBoundingSet")
                    .split_whitespace()
                    .map(|capability| format!("+{}", capability.strip_prefix("CAP_").unwrap().to_lowercase()))
                    .collect();
                assert_eq!(setting(&unit, "NoNewPrivileges"), "yes");
                let line = setting(&unit, "ExecStart").replace("/var/lib/volt-vmm", state.to_str().unwrap());
                let mut spawn = confine::Spawn::new(Path::new("/usr/bin/setpriv"));
                let rpc = schema::paths::socket(&runtime, service);
                let stream = ipc::Endpoint::bind(&rpc, 0o600).unwrap().into_fds();
                assert!(lane(&rpc).exists());
                assert_eq!((spawn.fd(stream.0), spawn.fd(stream.1)), (3, 4), "as the unit numbers them");
                for word in ["--no-new-privs", "--bounding-set", &format!("-all,{}", keep.join(",")), "--"] {
                    spawn.arg(word);
                }
                for word in line.split(' ') {
                    spawn.arg(word.trim_matches('"'));
                }
                children.push(spawn.spawn().unwrap());
            }
            let file = runtime.join("n.json");
            let network = r#"{"network":"volt0","subnet":"10.42.0.0/24","gateway":"10.42.0.1","pool":{"start":"10.42.0.2","end":"10.42.0.254"}}"#;
            fs::write(&file, network).unwrap();
            for arguments in
                [&["network", "define", file.to_str().unwrap()][..], &["network", "show", "volt0"], &["kernel", "list"]]
            {
                let mut command = Command::new(VOLT);
                command.args(arguments).env("VOLT_RUNTIME_DIR", &runtime).env("VOLT_STATE_DIR", &state);
                let out = command.output().unwrap();
                assert!(out.status.success(), "{arguments:?}: {}", text(&out));
            }
            // It has started none of its own: those that it starts have their log there.
            assert!(!state.join("services.log").exists(), "{:?}", fs::read_to_string(state.join("services.log")));
            for mut child in children {
                assert!(child.try_wait().unwrap().is_none(), "it runs");
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    });
    assert!(run, "root makes a network namespace");
}

/// systemd-networkd itself makes the bridge, and udev's own code marks it.
#[test]
fn bridge_that_systemd_networkd_made_is_taken_on_and_neither_changes_it_back() {
    const NETWORKD: &str = "/lib/systemd/systemd-networkd";
    if !rustix::process::geteuid().is_root() || !Path::new(NETWORKD).exists() || !is_there("udevadm") {
        return skip!("it takes root, systemd-networkd and udevadm (packages systemd, udev)");
    }
    let root = installed();
    let script = r#"
        set -eu
        mount -t tmpfs none /run
        mount -t sysfs -o ro sys /sys
        mkdir -p /run/systemd/network /run/systemd/netif/links /run/volt /run/state
        chmod 755 /run/systemd /run/systemd/network
        chown -R systemd-network /run/systemd/netif
        chmod 700 /run/volt /run/state
        cp "$FILES"/etc/systemd/network/* /run/systemd/network
        mkdir -p /run/udev/rules.d
        cp "$FILES"/etc/udev/rules.d/* /run/udev/rules.d
        ip link set lo up
        export SYSTEMD_LOG_LEVEL=debug VOLT_RUNTIME_DIR=/run/volt VOLT_STATE_DIR=/run/state
        until_said() { for n in $(seq 600); do ! grep -q "$2" "$1" || return 0; sleep 0.1; done; cat "$1"; exit 9; }
        "$NETWORKD" >/run/first 2>&1 & networkd=$!
        until_said /run/first 'volt0: State changed: configuring -> configured'
        udevadm test-builtin net_setup_link /sys/class/net/volt0 >/run/udev.said 2>&1
        before=$(cat /sys/class/net/volt0/ifindex)
        echo '{"network":"volt0","subnet":"10.42.0.0/24","gateway":"10.42.0.1","pool":{"start":"10.42.0.2","end":"10.42.0.254"}}' >/run/n.json
        "$VOLT" network define /run/n.json
        until_said /run/first 'volt0: Hardware address is changed'
        mac=$(cat /sys/class/net/volt0/address)
        # Anybody who fights changes something; each change is told of.
        : >/run/changes
        ip monitor link address route >/run/changes 2>&1 & monitor=$!
        "$VOLT" network show volt0
        kill "$networkd"; wait "$networkd" || true
        "$NETWORKD" >/run/second 2>&1 & networkd=$!
        until_said /run/second 'volt0: State changed: configuring -> configured'
        "$VOLT" network define /run/n.json
        "$VOLT" network show volt0
        # What systemd-networkd does not manage, it does not touch.
        ip tuntap add tap-x mode tap
        until_said /run/second 'tap-x: State changed: .* -> unmanaged'
        grep -q 'tap-x.*10-volt-vmm-ports.network' /run/second
        kill "$monitor" "$networkd"
        [ "$(cat /sys/class/net/volt0/ifindex)" = "$before" ]
        [ "$(cat /sys/class/net/volt0/address)" = "$mac" ]
        [ "$(cat /sys/class/net/volt0/ifalias | cut -d' ' -f1-4)" = 'volt-vmm network volt0 10.42.0.1/24' ]
        [ "$(ip -o -4 addr show volt0 | grep -c 10.42.0.1/24)" = 1 ]
        [ "$(ip -o -6 addr show volt0 | wc -l)" = 0 ]
        ! grep -q 'something else on this host had changed it' /run/state/services.log || { cat /run/state/services.log; exit 8; }
        ! grep -iq deleted /run/changes || { cat /run/changes; exit 7; }
        # What is netmgr's udev knows, whatever it is called, and nothing else.
        echo '{"network":"up-lab","subnet":"10.51.0.0/24"}' >/run/lab.json
        ip link add up-theirs type bridge
        ip -o monitor link >/run/made & monitor=$!
        # It hears of what is done from now on.
        for n in $(seq 300); do ip link set up-theirs up alias "$n"; ! grep -q up-theirs /run/made || break; sleep 0.1; done
        "$VOLT" network define /run/lab.json
        # From the first moment on, when it has no alias.
        until_said /run/made 'up-lab:.*[,<]UP.* group default '
        kill "$monitor"
        grep -m1 'up-lab:' /run/made | grep -q ' group 1986[0-9]\{6\} '
        ip link add up-made type bridge
        ip link set up-made group 1986000000
        marks() { udevadm test --action=add "/sys/class/net/$1" 2>/dev/null | grep -cx -e VOLT_VMM=1 -e NM_UNMANAGED=1 || true; }
        [ "$(marks up-lab) $(marks up-theirs) $(marks up-made) $(marks volt0)" = '2 0 2 0' ]
    "#;
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script]);
    let out = command.env("FILES", root.path()).env("NETWORKD", NETWORKD).env("VOLT", VOLT).output().unwrap();
    assert!(out.status.success(), "{}: {}", out.status, text(&out));
}
