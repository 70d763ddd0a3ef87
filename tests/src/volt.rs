//! Volt as its users run it: the `volt` command, its directories, and the arguments of one VM.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use schema::{
    net::{DEFAULT_NETWORK, DEFAULT_POOL},
    paths::{RUNTIME_VARIABLE, STATE_VARIABLE},
};

/// Addresses that the default network hands out.
pub const POOL_SIZE: u32 = DEFAULT_POOL.1.to_bits() - DEFAULT_POOL.0.to_bits() + 1;

/// One installation of Volt: its programs and its directories.
#[derive(Clone)]
pub struct Volt {
    /// The folder with `volt` and the programs that it starts.
    pub programs: PathBuf,
    /// Where sockets are.
    pub runtime: PathBuf,
    /// Where databases and kernels are.
    pub state: PathBuf,
}

impl Volt {
    /// An installation of the programs in `programs` whose directories are below `dir`, away from any other.
    pub fn private(programs: &Path, dir: &Path) -> Volt {
        Volt { programs: programs.to_owned(), runtime: dir.join("run"), state: dir.join("state") }
    }

    /// The `volt` command.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("volt"));
        command.args(arguments).env(RUNTIME_VARIABLE, &self.runtime).env(STATE_VARIABLE, &self.state);
        command
    }

    /// Runs `volt` to its end.
    pub fn run(&self, arguments: &[&str], patience: Duration) -> Result<Output> {
        finish(self.command(arguments), patience)
    }

    /// The arguments of `volt run` that boot `vm`.
    pub fn boot(&self, vm: &Vm<'_>) -> Command {
        let mut command = self.command(&["run"]);
        command.arg("--kernel").arg(vm.kernel).arg("--initrd").arg(vm.initrd).arg("--disk").arg(vm.disk);
        command.args(["--net", vm.network, "--cpus", &vm.cpus.to_string(), "--memory", "256M", "--name", vm.name]);
        if let Some(cmdline) = vm.cmdline {
            command.args(["--cmdline", cmdline]);
        }
        command
    }

    /// The same VM, from a TOML file in `dir`.
    pub fn boot_from_file(&self, vm: &Vm<'_>, dir: &Path) -> Result<Command> {
        let file = dir.join(format!("{}.toml", vm.name));
        let Vm { name, kernel, initrd, disk, cpus, network, cmdline } = vm;
        let cmdline = cmdline.map(|text| format!("cmdline = {text:?}\n")).unwrap_or_default();
        let text = format!(
            "name = {name:?}\nkernel = {kernel:?}\ninitrd = {initrd:?}\ncpus = {cpus}\nmemory = \"256M\"\n{cmdline}\
             [[disk]]\npath = {disk:?}\n[[net]]\nnetwork = {network:?}\n"
        );
        fs::write(&file, text)?;
        let mut command = self.command(&["run", "--config"]);
        command.arg(file);
        Ok(command)
    }

    /// How many addresses of the default network are free.
    pub fn free_addresses(&self) -> Result<u32> {
        let out = self.run(&["network", "list"], Duration::from_secs(20))?;
        let text = String::from_utf8_lossy(&out.stdout);
        ensure!(out.status.success(), "volt network list: {}", String::from_utf8_lossy(&out.stderr).trim());
        let row = text.lines().find(|line| line.starts_with(DEFAULT_NETWORK));
        let free = row
            .and_then(|row| row.split_whitespace().last())
            .context("volt network list does not show the default network")?;
        free.parse().with_context(|| format!("volt network list shows {free:?} free addresses"))
    }
}

/// One VM with a disk and a network card.
pub struct Vm<'a> {
    /// Its name.
    pub name: &'a str,
    /// Kernel image.
    pub kernel: &'a Path,
    /// Initial RAM disk.
    pub initrd: &'a Path,
    /// Raw disk image.
    pub disk: &'a Path,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Whose network card it has.
    pub network: &'a str,
    /// Kernel command line, if not Volt's default.
    pub cmdline: Option<&'a str>,
}

/// Runs a command to its end, which has to come within `patience`; its output is collected.
pub fn finish(mut command: Command, patience: Duration) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("Cannot start {name}"))?;
    let end = Instant::now() + patience;
    while child.try_wait()?.is_none() {
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            bail!("{command:?} still ran after {} s", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().with_context(|| format!("Cannot read the output of {name}"))
}
