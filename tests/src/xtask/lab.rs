//! The lab host: a machine that QEMU emulates in software, AMD-V included, so that its stock kernel
//! offers a real `/dev/kvm` whatever this machine has. One boot runs one scenario of `lab-driver` and
//! reports over the host's second serial port, a line at a time:
//!
//! ```text
//! up                      the driver has started
//! ok NAME                 a check that held
//! not ok NAME: WHY        a check that did not
//! skipped: NAME: WHY      a check that was not made
//! figure NAME VALUE       a measured number
//! say TEXT                for whoever watches
//! end                     the scenario is over; without it, it is not
//! ```

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{debian::Kernel, emulator::Emulator};

/// How long the lab host may take to boot, up to the driver's first line. It takes 5 to 15 s.
const UP: Duration = Duration::from_secs(120);

/// The lab host did not get as far as its driver; or it did, and then said nothing for so long.
#[derive(Debug)]
enum StoodStill {
    NeverUp,
    Silent(Duration),
}

impl std::fmt::Display for StoodStill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StoodStill::NeverUp => write!(f, "The lab host did not boot within {} s", UP.as_secs()),
            StoodStill::Silent(silence) => write!(f, "The lab host said nothing for {} s", silence.as_secs()),
        }
    }
}

impl std::error::Error for StoodStill {}

/// Two network cards with virtual functions (SR-IOV), on one wire.
const CARDS: [&str; 12] = [
    "-device",
    "pcie-root-port,id=port1,slot=1",
    "-netdev",
    "hubport,id=end1,hubid=0",
    "-device",
    "igb,bus=port1,netdev=end1,mac=52:54:00:00:00:01",
    "-device",
    "pcie-root-port,id=port2,slot=2",
    "-netdev",
    "hubport,id=end2,hubid=0",
    "-device",
    "igb,bus=port2,netdev=end2,mac=52:54:00:00:00:02",
];

/// How the lab host's time passes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// As on any machine.
    Wall,
    /// One nanosecond an instruction: the same figure on any machine, however noisy.
    Instructions,
}

/// A line of the results port.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// The driver has started.
    Up,
    /// A check held.
    Ok(String),
    /// A check failed: name and reason.
    NotOk(String, String),
    /// A check was not made: name and reason.
    Skipped(String, String),
    /// A measured number.
    Figure(String, f64),
    /// Text for whoever watches.
    Say(String),
    /// The scenario is over.
    End,
}

impl Event {
    fn parse(line: &str) -> Option<Event> {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        let reasoned = |text: &str| {
            let (name, why) = text.split_once(": ").unwrap_or((text, "no reason given"));
            (name.to_owned(), why.to_owned())
        };
        Some(match kind {
            "ok" => Event::Ok(rest.to_owned()),
            "not" => {
                let (name, why) = reasoned(rest.strip_prefix("ok ")?);
                Event::NotOk(name, why)
            }
            "skipped:" => {
                let (name, why) = reasoned(rest);
                Event::Skipped(name, why)
            }
            "figure" => {
                let (name, value) = rest.rsplit_once(' ')?;
                Event::Figure(name.to_owned(), value.parse().ok()?)
            }
            "say" => Event::Say(rest.to_owned()),
            "up" => Event::Up,
            "end" => Event::End,
            _ => return None,
        })
    }
}

/// One boot of the lab host.
pub struct Lab<'a> {
    /// What it runs in.
    pub emulator: &'a Emulator,
    /// Kernel of the lab host.
    pub kernel: &'a Kernel,
    /// Its initramfs.
    pub image: Vec<u8>,
    /// What `lab-driver` is to do.
    pub scenario: &'a str,
    /// Whether it has [`CARDS`].
    pub cards: bool,
    /// How time passes in it.
    pub clock: Clock,
    /// Wall time after which it is ended.
    pub deadline: Duration,
    /// After how long without a word it stands still, where that can be told from work. It is then started once more, from the beginning.
    pub silence: Option<Duration>,
}

impl Lab<'_> {
    /// Boots the lab host and hands every result to `report`. Files of the run, the console's log among them,
    /// are kept in `dir`.
    pub fn run(&self, dir: &Path, report: &mut dyn FnMut(Event)) -> Result<()> {
        fs::create_dir_all(dir)?;
        let console = dir.join("console.log");
        let mut outcome = self.boot(dir, &console, report);
        if let Some(why) = outcome.as_ref().err().and_then(|error| error.downcast_ref::<StoodStill>()) {
            // Seen once in some dozen boots: the emulated machine stands still, also before anything of ours runs.
            eprintln!("xtask: {why}; starting it once more");
            outcome = self.boot(dir, &console, report);
        }
        let _ = fs::remove_file(dir.join("initrd"));
        outcome.with_context(|| {
            let log = fs::read(&console).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(60)..).unwrap_or(&[]).join("\n    ");
            format!("The lab's console ended with:\n    {tail}\nAll of it is in {}", console.display())
        })
    }

    fn boot(&self, dir: &Path, console: &Path, report: &mut dyn FnMut(Event)) -> Result<()> {
        let initrd = dir.join("initrd");
        fs::write(&initrd, &self.image)?;
        let mut qemu = Machine::start(self.arguments(&initrd, console))?;
        let start = Instant::now();
        let mut up = false;
        let (sender, lines) = channel();
        let results = qemu.0.stdout.take().context("QEMU was started with a pipe")?;
        thread::spawn(move || {
            for line in BufReader::new(results).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        loop {
            let deadline = if up { self.deadline } else { UP };
            let left = deadline.saturating_sub(start.elapsed());
            let silence = self.silence.filter(|silence| up && *silence < left);
            match lines.recv_timeout(silence.unwrap_or(left)) {
                Ok(line) => match Event::parse(line.trim_end()) {
                    Some(Event::Up) => {
                        up = true;
                        report(Event::Up);
                    }
                    Some(Event::End) => break,
                    Some(event) => report(event),
                    None => bail!("The lab's driver wrote {line:?}, which means nothing"),
                },
                Err(RecvTimeoutError::Timeout) if !up => return Err(StoodStill::NeverUp.into()),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(silence) = silence {
                        return Err(StoodStill::Silent(silence).into());
                    }
                    bail!("Scenario {} did not end within {} s and was ended", self.scenario, self.deadline.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("The lab host stopped before scenario {} was over", self.scenario)
                }
            }
        }
        Ok(())
    }

    fn arguments(&self, initrd: &Path, console: &Path) -> Command {
        let append = format!(
            "console=ttyS0 panic=-1 reboot=t mitigations=off random.trust_cpu=on quiet lab.scenario={}",
            self.scenario
        );
        let mut qemu = self.emulator.command();
        match self.clock {
            // Without those features kernels copy eight bytes at a time, not one, and QEMU takes the same time for either.
            Clock::Wall => qemu.args(["-accel", "tcg", "-cpu", "max,-erms,-fsrm"]),
            Clock::Instructions => qemu.args(["-accel", "tcg", "-icount", "shift=0,sleep=off", "-cpu", "max"]),
        };
        // One CPU: with two, guests and the host itself stood still or crashed in one boot of ten to a hundred, be it QEMU 7.2 or
        // 10.0, and be it Volt or QEMU's own microvm that ran the guests.
        qemu.args(CARDS.into_iter().filter(|_| self.cards));
        qemu.args(["-M", "q35", "-smp", "1", "-m", "3072"])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&self.kernel.bzimage)
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", &append])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"]);
        qemu
    }
}

/// A QEMU process that ends when this is dropped, or when this process does.
struct Machine(Child);

impl Machine {
    fn start(mut command: Command) -> Result<Machine> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let die_with_parent = || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            Ok(())
        };
        // SAFETY: between fork and exec only async-signal-safe functions may run; this is one system call.
        unsafe { command.pre_exec(die_with_parent) };
        Ok(Machine(command.spawn().context("Cannot start QEMU")?))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::Event;

    #[test]
    fn results_port_lines_are_understood_or_refused() {
        let ok = |s: &str| s.to_owned();
        assert_eq!(Event::parse("ok two guests ping"), Some(Event::Ok(ok("two guests ping"))));
        assert_eq!(Event::parse("not ok a: b: c"), Some(Event::NotOk(ok("a"), ok("b: c"))));
        assert_eq!(Event::parse("skipped: a: b"), Some(Event::Skipped(ok("a"), ok("b"))));
        assert_eq!(Event::parse("figure boot volt 1.5"), Some(Event::Figure(ok("boot volt"), 1.5)));
        assert_eq!(Event::parse("end"), Some(Event::End));
        assert_eq!(Event::parse("figure boot"), None);
        assert_eq!(Event::parse("not fine"), None);
        assert_eq!(Event::parse("Kernel panic"), None);
    }
}
