//! Takes the figures. Times are from just before the fork that starts the VMM, in milliseconds of CLOCK_MONOTONIC:
//! to the moment the first line of the guest's `/init` came out of the VMM's standard output, and to the
//! first entry into the guest, as the kernel's own tracepoint `kvm:kvm_entry` has it.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use schema::{
    net::DEFAULT_NETWORK,
    programs::{self, Starter},
};
use volt_tests::{
    console::Console,
    leftovers::{self, Allowed},
    volt::{Vm, Volt},
};

use crate::{
    peers::{self, Guest},
    report::Report,
};

const PATIENCE: Duration = Duration::from_secs(120);
const TRACING: &str = "/sys/kernel/tracing";
const KERNEL: &str = "/guests/6.1/vmlinux";
const INITRD: &str = "/guests/6.1/initrd";
const DISK: &str = "/tmp/disk.img";
const PEER_DISK: &str = "/tmp/peer.img";
const PEER_TAP: &str = "peer0";
/// What the VMs of `boot` do; those of `footprint` stay.
const CMDLINE: &str = "console=ttyS0 quiet reboot=t panic=-1";
/// Bytes of guest RAM of every VM here, in KiB.
const RAM: u64 = 256 << 10;

/// Figures `NAME.init` and `NAME.entry` for Volt (services up, kernel from a file, services cold) and for each peer.
pub fn boot(volt: &Volt, report: &mut Report) -> Result<()> {
    make_disks()?;
    import(volt)?;
    let cmdline = format!("{CMDLINE} lab.do=poweroff");
    let vm = |kernel| ours(kernel, &cmdline);
    let stored = vm("stock");
    // What is measured is not the first of its kind: files are in memory, the network is there.
    let warm = timed(volt.boot(&stored))?;
    report.figure("volt.init", timed(volt.boot(&stored))?.init)?;
    report.figure("volt.entry", entry(volt.boot(&stored))?)?;
    report.figure("volt-file.init", timed(volt.boot(&vm(KERNEL)))?.init)?;
    report.figure("volt-file.entry", entry(volt.boot(&vm(KERNEL)))?)?;

    peers::make_tap(PEER_TAP)?;
    let guest = peer(&warm.cmdline);
    for (name, command) in [("qemu", Some(peers::microvm(&guest))), ("firecracker", peers::firecracker(&guest)?)] {
        let Some(command) = command else { continue };
        let again = || copy(&command);
        timed(again())?;
        let boot = timed(again())?;
        ensure!(boot.cmdline == warm.cmdline, "{name} changed the command line to {:?}", boot.cmdline);
        report.figure(&format!("{name}.init"), boot.init)?;
        report.figure(&format!("{name}.entry"), entry(again())?)?;
    }

    let idle = || leftovers::none(volt, Allowed::Networks, leftovers::IDLE);
    idle()?;
    report.figure("volt-cold.init", timed(volt.boot(&stored))?.init)?;
    idle()?;
    report.figure("volt-cold.entry", entry(volt.boot(&stored))?)
}

/// Figures `volt.PROCESS`, `service.PROCESS` and those of the peers: KiB of PSS less guest RAM, while a VM idles.
pub fn footprint(volt: &Volt, report: &mut Report) -> Result<()> {
    make_disks()?;
    import(volt)?;
    let mut vm = Console::start("volt", volt.boot(&ours("stock", CMDLINE)))?;
    let cmdline = settled(&mut vm)?;
    let mut guests = 0;
    for (pid, program, arguments) in processes(volt)? {
        let memory = Memory::of(pid)?;
        guests += u64::from(memory.guest > 0);
        let name = match program.as_str() {
            "volt" if pid == vm.pid() => "volt.supervisor".into(),
            "volt" if arguments.contains(" keep ") => "service.keeper".into(),
            // Its helpers are of the same program, and have names of their own.
            "volt" => {
                let name = std::fs::read_to_string(format!("/proc/{pid}/comm"))?;
                format!("volt.{}", name.trim().trim_start_matches("volt-"))
            }
            _ if programs::started_by(Starter::Keeper).any(|service| service.program == program) => {
                format!("service.{program}")
            }
            _ => format!("volt.{program}"),
        };
        report.figure(&name, memory.own())?;
    }
    ensure!(guests == 3, "{guests} processes map the guest's RAM; the core and two backends should");

    peers::make_tap(PEER_TAP)?;
    let guest = peer(&cmdline);
    for (name, command) in [("qemu", Some(peers::microvm(&guest))), ("firecracker", peers::firecracker(&guest)?)] {
        let Some(command) = command else { continue };
        let mut vm = Console::start(name, command)?;
        settled(&mut vm)?;
        let memory = Memory::of(vm.pid())?;
        ensure!(memory.guest > 0, "{name} maps no guest RAM that can be told from the rest");
        report.figure(name, memory.own())?;
    }
    Ok(())
}

fn make_disks() -> Result<()> {
    for disk in [DISK, PEER_DISK] {
        fs::File::create(disk)?.set_len(16 << 20)?;
    }
    Ok(())
}

fn import(volt: &Volt) -> Result<()> {
    let out = volt.run(&["kernel", "import", KERNEL, "--name", "stock"], PATIENCE)?;
    ensure!(out.status.success(), "volt kernel import: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}

fn ours<'a>(kernel: &'a str, cmdline: &'a str) -> Vm<'a> {
    let [kernel, initrd, disk] = [kernel, INITRD, DISK].map(Path::new);
    Vm { name: "web", kernel, initrd, disk, cpus: 1, network: DEFAULT_NETWORK, cmdline: Some(cmdline) }
}

fn peer(cmdline: &str) -> Guest<'_> {
    let [kernel, initrd, disk] = [KERNEL, INITRD, PEER_DISK].map(Path::new);
    Guest { kernel, initrd, cmdline, disk, tap: PEER_TAP }
}

fn copy(command: &Command) -> Command {
    let mut again = Command::new(command.get_program());
    again.args(command.get_args());
    again
}

/// One measured boot.
struct Boot {
    /// Milliseconds to the first line of `/init`.
    init: f64,
    /// The command line that the guest found.
    cmdline: String,
}

/// Boots to `/init` and on to the guest's own end.
fn timed(command: Command) -> Result<Boot> {
    let mut vm = Console::start("vm", command)?;
    let (when, _) = vm.expect("lab: init", PATIENCE)?;
    let cmdline = cmdline(&mut vm)?;
    let status = vm.wait(PATIENCE)?;
    ensure!(status.success(), "The VMM ended with {status}; {}", vm.last());
    Ok(Boot { init: milliseconds(when.saturating_sub(vm.started)), cmdline })
}

/// Milliseconds to the first entry into the guest. A boot of its own: the tracer's cost at each entry stays out of
/// the other figure, and here nothing of it comes before the first one.
fn entry(command: Command) -> Result<f64> {
    let set = |file: &str, value: &str| {
        fs::write(Path::new(TRACING).join(file), value).with_context(|| format!("Cannot set {file} of the tracer"))
    };
    set("trace_clock", "mono")?;
    set("options/overwrite", "0")?;
    set("buffer_size_kb", "64")?;
    set("trace", "")?;
    set("events/kvm/kvm_entry/enable", "1")?;
    set("tracing_on", "1")?;
    let mut vm = Console::start("traced", command)?;
    vm.expect("lab: init", PATIENCE)?;
    set("tracing_on", "0")?;
    set("events/kvm/kvm_entry/enable", "0")?;
    vm.wait(PATIENCE)?;
    // "  vcpu0-123  [000] d....  12.345678: kvm_entry: vcpu 0, rip 0x..."
    let trace = fs::read_to_string(Path::new(TRACING).join("trace"))?;
    let first = trace.lines().find_map(|line| line.split_once(": kvm_entry:")).context("No entry was traced")?;
    let seconds: f64 = first.0.split_whitespace().last().context("The trace has no time")?.parse()?;
    Ok((seconds - vm.started.as_secs_f64()) * 1e3)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn cmdline(vm: &mut Console) -> Result<String> {
    let (_, line) = vm.expect("lab: cmdline ", PATIENCE)?;
    Ok(line.split("lab: cmdline ").nth(1).unwrap_or_default().to_owned())
}

/// Waits until a guest is up and idle; returns its command line.
fn settled(vm: &mut Console) -> Result<String> {
    let cmdline = cmdline(vm)?;
    vm.expect("lab: ready", PATIENCE)?;
    std::thread::sleep(Duration::from_secs(3));
    Ok(cmdline)
}

/// (pid, program, arguments) of Volt's processes.
fn processes(volt: &Volt) -> Result<Vec<(u32, String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(exe) = fs::read_link(entry.path().join("exe")) else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(program) = exe.strip_prefix(&volt.programs) else { continue };
        let program = program.to_string_lossy().into_owned();
        if !["busybox", "lab-driver"].contains(&program.as_str()) {
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push((pid, program, String::from_utf8_lossy(&arguments).replace('\0', " ")));
        }
    }
    Ok(found)
}

/// A process's share of memory, in KiB.
struct Memory {
    pss: u64,
    guest: u64,
}

impl Memory {
    /// Reads smaps_rollup for the sum, smaps for the mapping of guest RAM, which is told by its size.
    fn of(pid: u32) -> Result<Memory> {
        let read = |file: &str| {
            fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("Cannot read {file} of {pid}"))
        };
        let kib =
            |line: &str, key: &str| -> Option<u64> { line.strip_prefix(key)?.split_whitespace().next()?.parse().ok() };
        let pss =
            read("smaps_rollup")?.lines().find_map(|line| kib(line, "Pss:")).context("smaps_rollup has no Pss")?;
        let (mut guest, mut is_ram) = (0, false);
        for line in read("smaps")?.lines() {
            if let Some(size) = kib(line, "Size:") {
                is_ram = size == RAM;
            } else if let (true, Some(pss)) = (is_ram, kib(line, "Pss:")) {
                guest += pss;
            }
        }
        Ok(Memory { pss, guest })
    }

    fn own(&self) -> f64 {
        self.pss.saturating_sub(self.guest) as f64
    }
}
