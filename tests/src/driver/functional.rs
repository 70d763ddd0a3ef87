//! The product as a whole on the lab host's KVM: two guests with the two stock kernels at once, their disks
//! and their network, and every way a VM can end.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use schema::net::DEFAULT_NETWORK;
use volt_tests::{
    console::Console,
    leftovers::{self, Allowed},
    volt::{POOL_SIZE, Vm, Volt, finish},
};

use crate::{
    doctor, kinds,
    neighbour::Neighbour,
    published,
    report::{Report, Steps},
    walls,
};

/// A guest boots in 10 to 20 s here; two at once take their time, and the first one unpacks a kernel.
pub const BOOT: Duration = Duration::from_secs(180);
pub const ANSWER: Duration = Duration::from_secs(90);
pub const END: Duration = Duration::from_secs(30);
/// MiB of a disk in memory.
const LARGE: u32 = 300;

/// Runs every check.
pub fn run(volt: &Volt, report: &mut Report) -> Result<()> {
    report.check("volt doctor finds a real KVM, and names what the kernel lacks", {
        doctor::check(volt, &rustix::system::uname().release().to_string_lossy())
    })?;
    Steps::new(report)
        .step("services have nothing of whoever came first, a cgroup of their own and a reserve", || {
            walls::services(volt, BOOT)
        })?;
    let neighbour = Neighbour::start()?;
    two_guests(volt, &neighbour, &mut Steps::new(report))?;
    ways_to_end(volt, &neighbour, &mut Steps::new(report))?;
    let mut steps = Steps::new(report);
    steps.step("services end by themselves and leave no process, interface or socket", || {
        leftovers::none(volt, Allowed::Networks, leftovers::IDLE)
    })
}

/// The paths of one guest: its kernel and initrd are in the lab host's image, its disk is made here.
pub struct Files {
    kernel: PathBuf,
    initrd: PathBuf,
    disk: PathBuf,
}

impl Files {
    /// For a guest called `name` with the stock kernel of `series`.
    pub fn new(name: &str, series: &str) -> Result<Files> {
        let guest = Path::new("/guests").join(series);
        let disk = Path::new("/tmp").join(format!("{name}.img"));
        fs::File::create(&disk)?.set_len(16 << 20)?;
        Ok(Files { kernel: guest.join("vmlinuz"), initrd: guest.join("initrd"), disk })
    }

    /// The VM that uses them.
    pub fn vm<'a>(&'a self, name: &'a str, cpus: u32) -> Vm<'a> {
        let Files { kernel, initrd, disk } = self;
        Vm { name, kernel, initrd, disk, cpus, network: DEFAULT_NETWORK, cmdline: Some("console=ttyS0 quiet") }
    }
}

fn two_guests(volt: &Volt, neighbour: &Neighbour, steps: &mut Steps<'_>) -> Result<()> {
    let (web_files, db_files) = (Files::new("web", "6.1")?, Files::new("db", "6.12")?);
    // One from flags, the other one from a file.
    let mut published = volt.boot(&web_files.vm("web", 2));
    published.args(published::FROM_THE_START);
    let mut web = Console::start("web", published)?;
    let mut db = Console::start("db", volt.boot_from_file(&db_files.vm("db", 1), Path::new("/tmp"))?)?;

    let mut addresses = [String::new(), String::new()];
    steps.step("a guest with Debian's 6.1 kernel boots, with an address and two CPUs", || {
        addresses[0] = ready(&mut web)?;
        web.command("cpus:2", ANSWER)
    })?;
    steps.step("a guest with Debian's 6.12 kernel boots from a TOML file, with an address", || {
        addresses[1] = ready(&mut db)?;
        ensure!(addresses[0] != addresses[1], "Both guests have {}", addresses[0]);
        db.command("cpus:1", ANSWER)
    })?;
    steps.step("guests ping the gateway", || {
        web.send("ping:10.42.0.1")?;
        db.command("ping:10.42.0.1", ANSWER)?;
        web.answer("ping:10.42.0.1", ANSWER)
    })?;
    steps.step("guests ping each other", || {
        let (to_db, to_web) = (format!("ping:{}", addresses[1]), format!("ping:{}", addresses[0]));
        web.send(&to_db)?;
        db.command(&to_web, ANSWER)?;
        web.answer(&to_db, ANSWER)
    })?;
    published::check(volt, steps, neighbour, [&mut web, &mut db], &addresses[0])?;
    steps.step("volt list shows running guests", || {
        let out = volt.run(&["list"], END)?;
        let text = String::from_utf8_lossy(&out.stdout);
        let running = |name: &str| text.lines().any(|line| line.starts_with(name) && line.contains("running"));
        ensure!(running("web") && running("db"), "It shows {text:?}");
        Ok(())
    })?;
    steps.step(
        "each VM's processes have a user, namespaces, an empty root and a cgroup with limits of their own",
        || walls::check(&["web", "db"]),
    )?;
    steps.step("a guest uses all of its memory within the limits of its VM, which hold beyond that", || {
        db.command("memory", ANSWER)?;
        walls::hold("db", 200 << 20)?;
        db.command("cpus:1", ANSWER)
    })?;
    steps.step("a second VM of the same name is refused and the first one lives on", || {
        let out = finish(volt.boot(&db_files.vm("web", 1)), END)?;
        let text = String::from_utf8_lossy(&out.stderr);
        ensure!(!out.status.success(), "It ended with {}", out.status);
        ensure!(text.contains("web") && text.contains("volt stop"), "It says {text:?}");
        web.command("cpus:2", ANSWER)
    })?;
    steps.step("what guests write to their disks is there after a reboot", || {
        web.send("write:first")?;
        db.command("write:second", ANSWER)?;
        web.answer("write:first", ANSWER)?;
        web.command("read:first", ANSWER)?;
        for vm in [&mut web, &mut db] {
            vm.command("reboot", ANSWER)?;
        }
        ready(&mut web)?;
        ready(&mut db)?;
        web.send("read:first")?;
        db.command("read:second", ANSWER)?;
        web.answer("read:first", ANSWER)
    })?;
    steps.step("guests have the same address and port after a reboot and still reach each other", || {
        web.command(&format!("ping:{}", addresses[1]), ANSWER)?;
        published::check_again(neighbour, &mut web, &mut db)
    })?;
    steps.step("powering off ends volt with 0 and leaves no process, interface, lease or file", || {
        web.command("poweroff", ANSWER)?;
        db.command("poweroff", ANSWER)?;
        for vm in [&mut web, &mut db] {
            let status = vm.wait(END)?;
            ensure!(status.success(), "{} ended with {status}; {}", vm.label, vm.last());
        }
        nothing_left(volt)?;
        published::check_gone(neighbour)?;
        ensure!(volt.free_addresses()? == POOL_SIZE, "{} addresses are free", volt.free_addresses()?);
        // The disk's file has what the guest wrote: 1 MiB of "first" lines at 64 KiB.
        let disk = fs::read(&web_files.disk)?;
        ensure!(disk.get(65536..65542) == Some(b"first\n"), "The image does not hold what the guest wrote");
        Ok(())
    })
}

fn ways_to_end(volt: &Volt, neighbour: &Neighbour, steps: &mut Steps<'_>) -> Result<()> {
    let files = (Files::new("one", "6.1")?, Files::new("two", "6.12")?);
    let [mut interrupted, mut killed] = kinds::check(volt, steps, neighbour, [&files.0, &files.1])?;
    steps.step("Ctrl-C lets the guest power off and gives everything back", || {
        interrupted.signal(Signal::INT)?;
        let status = interrupted.wait(END)?;
        ensure!(status.success(), "It ended with {status}; {}", interrupted.last());
        Ok(())
    })?;
    steps.step("memory beyond a VM's limit ends that VM, says so, and ends no other", || {
        let mut greedy = Console::start("greedy", volt.boot(&files.0.vm("greedy", 1)))?;
        walls::overflow("greedy", ANSWER)?;
        ended_for_memory(&mut greedy)?;
        killed.command("cpus:2", ANSWER)
    })?;
    steps.step("a guest that fills a disk in memory lives, and memory beyond that ends its VM and no other", || {
        let large = Files::new("large", "6.1")?;
        // More than all that its limit leaves beside RAM for the processes themselves.
        fs::File::options().write(true).open(&large.disk)?.set_len(u64::from(LARGE) << 20)?;
        let mut full = Console::start("large", volt.boot(&large.vm("large", 1)))?;
        ready(&mut full)?;
        full.command("fill", BOOT)?;
        full.command("memory", ANSWER)?;
        walls::hold("large", u64::from(LARGE + 200) << 20)?;
        full.command("cpus:1", ANSWER)?;
        walls::overflow("large", ANSWER)?;
        ended_for_memory(&mut full)?;
        fs::remove_file(&large.disk)?;
        killed.command("cpus:2", ANSWER)
    })?;
    steps.step("SIGKILL of volt leaves no process, interface or file", || {
        killed.signal(Signal::KILL)?;
        killed.wait(END)?;
        nothing_left(volt)
    })?;
    steps.step("SIGKILL and Ctrl-C of volt while it starts leave nothing", || {
        for (n, milliseconds) in [20, 100, 300, 800, 1500].into_iter().enumerate() {
            for signal in [Signal::KILL, Signal::INT] {
                let mut early = Console::start("early", volt.boot(&files.0.vm("early", 1)))?;
                std::thread::sleep(Duration::from_millis(milliseconds));
                early.signal(signal)?;
                early.wait(END).with_context(|| format!("Attempt {n}, {signal:?}"))?;
                nothing_left(volt).with_context(|| format!("{signal:?} after {milliseconds} ms"))?;
            }
        }
        Ok(())
    })?;
    steps.step("addresses of killed VMs are free after the grace period", || {
        let end = std::time::Instant::now() + leftovers::IDLE;
        loop {
            let free = volt.free_addresses()?;
            if free == POOL_SIZE {
                return Ok(());
            }
            ensure!(std::time::Instant::now() < end, "{free} of {POOL_SIZE} addresses are free");
            std::thread::sleep(Duration::from_secs(2));
        }
    })
}

fn ended_for_memory(vm: &mut Console) -> Result<()> {
    let status = vm.wait(END)?;
    let said = vm.transcript.join(" ");
    let so = !status.success() && said.contains("took more memory than its cgroup may");
    ensure!(so, "It ended with {status} and said {said}");
    Ok(())
}

fn nothing_left(volt: &Volt) -> Result<()> {
    leftovers::none(volt, Allowed::Services, END)?;
    walls::none_left(Duration::from_secs(40))
}

/// Waits until a guest is up, and returns its address.
pub fn ready(vm: &mut Console) -> Result<String> {
    let (_, line) = vm.expect("lab: address ", BOOT)?;
    vm.expect("lab: ready", ANSWER)?;
    let words = line.split("lab: address ").nth(1).and_then(|rest| rest.split(' ').next());
    words.map(str::to_owned).with_context(|| format!("{}: no address in {line:?}", vm.label))
}
