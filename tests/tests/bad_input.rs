//! Bad input to `volt`: it ends with a code that is not 0, names the thing and the remedy, and leaves nothing behind.
//! Each test runs the real programs in namespaces of its own, with a `/dev/kvm` that nothing may get as far as using.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use volt_tests::{
    leftovers::{self, Allowed},
    namespaces,
    volt::{Volt, finish},
};

/// A debug build unpacks and hashes slowly.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host of the test's own: Volt's programs, good files, and device nodes that are not the real ones.
struct Host {
    dir: PathBuf,
    volt: Volt,
}

impl Host {
    /// Made inside the test's namespaces, on a file system that vanishes with them.
    fn new() -> Result<Host> {
        let dir = PathBuf::from("/tmp/volt-tests");
        namespaces::prepare(&dir)?;
        // Tests are in <profile>/deps, the programs in <profile>. Seen through a mount, they are there for every user.
        let deps = std::env::current_exe()?;
        let built = deps.ancestors().nth(2).context("The test is not where cargo puts tests")?;
        ensure!(built.join("volt").exists(), "There is no {}/volt: run cargo build --workspace", built.display());
        let programs = dir.join("bin");
        fs::create_dir(&programs)?;
        sh(&format!("mount --bind {} {}", built.display(), programs.display()))?;
        sh(&format!(
            "cd {} && mkdir -p dev/net && touch dev/null dev/zero dev/urandom dev/net/tun && \
             for node in null zero urandom net/tun; do mount --bind /dev/$node dev/$node; done && \
             mknod -m 0600 dev/kvm c 1 3 && mount --rbind dev /dev",
            dir.display()
        ))?;
        let host = Host { volt: Volt::private(&programs, &dir), dir };
        host.file("kernel", b"some bytes")?;
        host.file("initrd", b"some bytes")?;
        host.file("disk", &[0; 4096])?;
        Ok(host)
    }

    fn file(&self, name: &str, content: &[u8]) -> Result<String> {
        let path = self.dir.join(name);
        fs::write(&path, content)?;
        Ok(path.display().to_string())
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// `volt run` with good arguments, but for `flag`, which gets `value`.
    fn run_with(&self, flag: &str, value: &str) -> Command {
        let mut values = [
            ("--name", "web".to_owned()),
            ("--net", "volt0".to_owned()),
            ("--kernel", self.path("kernel")),
            ("--initrd", self.path("initrd")),
            ("--disk", self.path("disk")),
        ];
        if let Some(slot) = values.iter_mut().find(|(name, _)| *name == flag) {
            slot.1 = value.to_owned();
        }
        let mut command = self.volt.command(&["run"]);
        for (name, value) in values {
            command.args([name, &value]);
        }
        command
    }

    /// Runs `command`, which has to be refused with all of `words`, and looks at what it leaves.
    fn refuses(&self, command: Command, words: &[&str]) -> Result<()> {
        let shown = format!("{command:?}");
        let out = finish(command, PATIENCE)?;
        let text = String::from_utf8_lossy(&out.stderr);
        println!("{shown}\n  -> {}: {}", out.status, text.trim());
        ensure!(out.status.code().is_some_and(|code| code != 0), "It ended with {}", out.status);
        ensure!(!text.contains("panicked"), "It panicked");
        for word in words {
            ensure!(text.contains(word), "{word:?} is not in {text:?}");
        }
        leftovers::none(&self.volt, Allowed::Services, PATIENCE)?;
        let interfaces = fs::read_to_string("/proc/thread-self/net/dev")?;
        let more = interfaces.lines().skip(2).filter(|line| !line.trim_start().starts_with("lo:"));
        // A network that was made on the way is durable, and carries Volt's mark; a port is not.
        let more: Vec<_> = more.filter(|line| !line.trim_start().starts_with("volt0:")).collect();
        ensure!(more.is_empty(), "Interfaces are left: {more:?}");
        Ok(())
    }
}

fn sh(script: &str) -> Result<()> {
    let status = Command::new("sh").args(["-c", script]).status()?;
    ensure!(status.success(), "{script} failed");
    Ok(())
}

#[test]
fn run_with_a_missing_file_names_it() -> Result<()> {
    namespaces::test("run_with_a_missing_file_names_it", || {
        let host = Host::new()?;
        for flag in ["--kernel", "--initrd", "--disk"] {
            host.refuses(host.run_with(flag, "/nowhere/at-all"), &["/nowhere/at-all", flag, "No such file"])?;
        }
        host.refuses(host.volt.command(&["run", "--config", "/nowhere/vm.toml"]), &["/nowhere/vm.toml"])
    })
}

#[test]
fn run_with_a_disk_of_odd_size_says_which_size_fits() -> Result<()> {
    namespaces::test("run_with_a_disk_of_odd_size_says_which_size_fits", || {
        let host = Host::new()?;
        for (size, fits) in [(0, "512"), (1, "512"), (513, "1024"), (4095, "4096")] {
            let odd = host.file("odd", &vec![0; size])?;
            host.refuses(host.run_with("--disk", &odd), &[&odd, &format!("truncate -s {fits}")])?;
        }
        Ok(())
    })
}

#[test]
fn run_with_a_malformed_argument_names_it_and_the_range() -> Result<()> {
    namespaces::test("run_with_a_malformed_argument_names_it_and_the_range", || {
        let host = Host::new()?;
        host.refuses(host.run_with("--name", "no/slash"), &["no/slash", "a-z"])?;
        host.refuses(host.run_with("--net", "unknown0"), &["unknown0", "volt network define"])?;
        for (flag, value, remedy) in [("--cpus", "0", "1 and"), ("--memory", "12", "256M"), ("--memory", "1M", "256M")]
        {
            let mut command = host.run_with("", "");
            command.args([flag, value]);
            host.refuses(command, &[flag, remedy])?;
        }
        let file = host.file("vm.toml", b"name = \"web\"\nmemroy = \"1G\"\n")?;
        host.refuses(host.volt.command(&["run", "--config", &file]), &[&file, "memroy"])
    })
}

#[test]
fn run_with_a_truncated_kernel_names_it_and_leaves_no_service_once_idle() -> Result<()> {
    namespaces::test("run_with_a_truncated_kernel_names_it_and_leaves_no_service_once_idle", || {
        let host = Host::new()?;
        // A bzImage whose header says that the payload is longer than the file.
        let mut bzimage = vec![0u8; 8192];
        bzimage[0x1f1] = 4;
        bzimage[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        bzimage[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        bzimage[0x211] = 1; // loads high
        bzimage[0x248..0x24c].copy_from_slice(&64u32.to_le_bytes());
        bzimage[0x24c..0x250].copy_from_slice(&14_000_000u32.to_le_bytes());
        let bzimage = host.file("vmlinuz", &bzimage)?;
        // An ELF executable whose segments are behind the end of the file.
        let elf = fs::read(std::env::current_exe()?)?;
        let elf = host.file("vmlinux", elf.get(..4096).context("The test's own file is short")?)?;
        let empty = host.file("empty", b"")?;
        for kernel in [bzimage, elf, empty, host.path("kernel")] {
            host.refuses(host.run_with("--kernel", &kernel), &[&kernel, "badImage"])?;
            host.refuses(host.volt.command(&["kernel", "import", &kernel]), &[&kernel, "badImage"])?;
        }
        ensure!(host.volt.free_addresses().map_or(true, |free| free == volt_tests::volt::POOL_SIZE), "A lease is left");
        leftovers::none(&host.volt, Allowed::Networks, leftovers::IDLE)
    })
}

#[test]
fn network_define_names_the_key_that_is_wrong() -> Result<()> {
    namespaces::test("network_define_names_the_key_that_is_wrong", || {
        let host = Host::new()?;
        let cases = [
            (r#"{"network":"volt9","subnet":"10.42.0.0/33"}"#, ["10.42.0.0/33", "subnet"]),
            (r#"{"network":"volt9","subnet":"ten"}"#, ["ten", "subnet"]),
            (
                r#"{"network":"volt9","subnet":"10.9.0.0/24","pool":{"start":"10.8.0.2","end":"10.8.0.9"}}"#,
                ["10.8.0.2", "pool"],
            ),
            (
                r#"{"network":"volt9","subnet":"10.9.0.0/24","pool":{"start":"10.9.0.9","end":"10.9.0.2"}}"#,
                ["10.9.0.9", "pool"],
            ),
            (r#"{"network":"volt9","subnet":"10.9.0.0/24","gateway":"10.8.0.1"}"#, ["10.8.0.1", "gateway"]),
            (r#"{"network":"volt9","subnet":"10.9.0.0/24","reservations":{"vm-a":"10.8.0.3"}}"#, ["10.8.0.3", "vm-a"]),
            (r#"{"network":"volt9","subnet":"10.9.0.0/24","sbnet":"10.9.0.0/24"}"#, ["sbnet", "invalidArgument"]),
            ("not JSON", ["invalidArgument", "net.json"]),
        ];
        for (text, words) in cases {
            let file = host.file("net.json", text.as_bytes())?;
            host.refuses(host.volt.command(&["network", "define", &file]), &words)?;
        }
        host.refuses(host.volt.command(&["network", "define", "/nowhere.json"]), &["/nowhere.json"])
    })
}

#[test]
fn run_without_kvm_says_how_to_get_it() -> Result<()> {
    namespaces::test("run_without_kvm_says_how_to_get_it", || {
        let host = Host::new()?;
        fs::remove_file("/dev/kvm")?;
        host.refuses(host.run_with("", ""), &["/dev/kvm", "kvm_intel or kvm_amd"])
    })
}

#[test]
fn run_without_rights_says_which_and_how_to_get_them() -> Result<()> {
    namespaces::test("run_without_rights_says_which_and_how_to_get_them", || {
        let host = Host::new()?;
        for dir in [&host.volt.runtime, &host.volt.state] {
            fs::create_dir(dir)?;
            std::os::unix::fs::chown(dir, Some(65534), Some(65534))?;
        }
        std::os::unix::fs::chown(host.dir.join("disk"), Some(65534), Some(65534))?;
        host.refuses(as_nobody(&host.run_with("", "")), &["/dev/kvm", "root"])?;
        fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(0o666))?;
        host.refuses(as_nobody(&host.run_with("", "")), &["CAP_NET_ADMIN", "root"])?;
        // Somebody else's directories: nothing of theirs is used.
        let mut foreign = host.run_with("", "");
        foreign.env("VOLT_RUNTIME_DIR", &host.volt.runtime);
        host.refuses(foreign, &[&host.volt.runtime.display().to_string(), "VOLT_RUNTIME_DIR"])
    })
}

/// The same command, as a user with no rights at all.
fn as_nobody(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", "--"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        wrapped.env(name, value.unwrap_or_default());
    }
    wrapped.current_dir(Path::new("/"));
    wrapped
}
