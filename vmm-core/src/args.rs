//! Command-line arguments to a validated [`Config`]. Sees only argv and the state of the inherited descriptors, before
//! confinement; opens nothing.
//!
//! By hand, and not by `clap`: another program writes these arguments, and whatever parses them stays in the process that a guest
//! attacks.

use crate::error::Error;
use crate::layout;
use crate::virtio::{MAX_CONFIG, default_queue_size};
use confine::UnixSocket;
use schema::about_kvm::ARGUMENT as ABOUT_KVM;
use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::str::FromStr;

/// Largest ring (Virtio 1.2, 2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Every flag but `--device`, with its value and what it is, in the order in which [`Raw::parse`] takes them apart.
const FLAGS: [(&str, &str, &str); 9] = [
    ("--kvm-fd", "N", "/dev/kvm, open for reading and writing"),
    ("--control-fd", "N", "A connected stream socket, on which `Vm` is served (schema/vm.capnp)"),
    ("--kernel-fd", "N", "A sealed memfd with the kernel's ELF, as kernel-store gives it"),
    ("--initrd-fd", "N", "The initial RAM disk; none if absent"),
    ("--console-fd", "N", "A connected stream socket, the serial console's other end"),
    ("--memory", "BYTES", "The guest's RAM, whole pages"),
    ("--vcpus", "N", "The guest's CPUs"),
    ("--cmdline", "TEXT", "The kernel's command line; empty if absent"),
    ("--confinement", "POLICY", "Where the host lacks a layer: strict (refuse) or best-effort [default: best-effort]"),
];
const DEVICE: &str = "--device";

/// What is to be printed, and nothing else done, if that is all that the arguments (without the program's name) ask for.
#[must_use]
pub fn asks_to_print(args: &[OsString]) -> Option<String> {
    match args {
        [one] if one == "--help" || one == "-h" => Some(help()),
        [one] if one == "--version" || one == "-V" => {
            Some(concat!("vmm-core ", env!("CARGO_PKG_VERSION"), "\n").into())
        }
        _ => None,
    }
}

/// /dev/kvm, if what it gives is all that the arguments ask for.
pub fn asks_about_kvm(args: &[OsString]) -> Option<Result<OwnedFd, Error>> {
    let [flag, number] = args else { return None };
    (flag == ABOUT_KVM).then(|| {
        let fd = fd_number(ABOUT_KVM, &number.to_string_lossy())?;
        check_open(fd, ABOUT_KVM)?;
        Ok(take(fd))
    })
}

fn help() -> String {
    let mut text = String::from(
        "Runs one virtual machine on KVM, out of descriptors that it inherits. `volt run` starts it\n\nUsage: vmm-core [OPTIONS]\n\nOptions:\n",
    );
    let device = (
        DEVICE,
        "K=V,...",
        "A virtio device: virtio-id=, fd= (its vhost-user socket), and if wanted queue-size=, queues=, config=",
    );
    let about = (ABOUT_KVM, "N", "Say what that /dev/kvm gives, and end: all that is given then");
    for (name, value, what) in
        FLAGS.into_iter().chain([device, about, ("--help", "", "Print help"), ("--version", "", "Print version")])
    {
        let option = if value.is_empty() { name.to_owned() } else { format!("{name} <{value}>") };
        text.push_str(&format!("  {option:<22} {what}\n"));
    }
    text
}

/// What one VM is made of. Everything in it has been checked, apart from what only KVM can tell.
#[derive(Debug)]
pub struct Config {
    /// /dev/kvm, open for reading and writing.
    pub kvm: OwnedFd,
    /// Connected stream socket on which `Vm` is served.
    pub control: OwnedFd,
    /// Sealed memfd with the kernel's ELF.
    pub kernel: OwnedFd,
    /// Initial RAM disk.
    pub initrd: Option<OwnedFd>,
    /// Connected stream socket of the serial console.
    pub console: OwnedFd,
    /// Bytes of guest RAM, whole pages.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u16,
    /// Kernel command line.
    pub cmdline: String,
    /// Virtio devices in the order in which the guest finds them.
    pub devices: Vec<Device>,
    /// What to do about a layer of confinement that the host lacks.
    pub confinement: confine::Policy,
}

/// One virtio device whose backend is at the other end of a vhost-user socket.
#[derive(Debug)]
pub struct Device {
    /// Virtio device ID (Virtio 1.2, 5).
    pub virtio_id: u32,
    /// vhost-user socket.
    pub socket: OwnedFd,
    /// Largest ring offered to the driver.
    pub queue_size: u16,
    /// Number of queues; the backend's own number if absent.
    pub queues: Option<u16>,
    /// Configuration space; the backend's own if absent.
    pub config: Option<Vec<u8>>,
}

fn bad(argument: &str, why: impl Into<String>) -> Error {
    Error::Argument { argument: argument.into(), why: why.into() }
}

fn number<T: FromStr>(argument: &str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|_| bad(argument, format!("'{text}' is not a number in range")))
}

impl Config {
    /// Parses arguments (without the program's name) and takes the descriptors they name.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Config, Error> {
        let text = |arg: OsString| arg.into_string().map_err(|arg| bad(&arg.to_string_lossy(), "it is not UTF-8"));
        Raw::parse(args.into_iter().map(text).collect::<Result<Vec<_>, _>>()?)?.take()
    }
}

/// Arguments of which the text has been checked, and no descriptor taken.
#[derive(Debug)]
struct Raw {
    kvm: RawFd,
    control: RawFd,
    kernel: RawFd,
    initrd: Option<RawFd>,
    console: RawFd,
    memory: u64,
    vcpus: u16,
    cmdline: String,
    devices: Vec<RawDevice>,
    confinement: confine::Policy,
}

#[derive(Debug, PartialEq)]
struct RawDevice {
    virtio_id: u32,
    fd: RawFd,
    queue_size: u16,
    queues: Option<u16>,
    config: Option<Vec<u8>>,
}

impl Raw {
    fn parse(args: impl IntoIterator<Item = String>) -> Result<Raw, Error> {
        let mut values: [Option<String>; FLAGS.len()] = Default::default();
        let mut devices = Vec::new();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let (flag, value) = match arg.split_once('=') {
                Some((flag, value)) if flag.starts_with("--") => (flag.to_string(), Some(value.to_string())),
                _ => (arg, None),
            };
            let slot = FLAGS.iter().zip(&mut values).find(|((name, ..), _)| *name == flag).map(|(_, slot)| slot);
            if slot.is_none() && flag != DEVICE {
                let known = FLAGS.map(|(name, ..)| name).join(", ");
                return Err(bad(&flag, format!("it is not one of {known}, {DEVICE}; see vmm-core --help")));
            }
            let value = value.or_else(|| args.next()).ok_or_else(|| bad(&flag, "it needs a value"))?;
            let twice = match slot {
                Some(slot) => slot.replace(value).is_some(),
                None => {
                    devices.push(RawDevice::parse(&value)?);
                    false
                }
            };
            if twice {
                return Err(bad(&flag, "it may be given only once"));
            }
        }
        if devices.len() > layout::MAX_DEVICES {
            return Err(bad(DEVICE, format!("a machine has at most {} devices", layout::MAX_DEVICES)));
        }

        let [kvm, control, kernel, initrd, console, memory, vcpus, cmdline, confinement] = values;
        let need =
            |flag: &str, value: Option<String>| value.ok_or_else(|| bad(flag, "it is required; see vmm-core --help"));
        let fd = |flag: &str, value: Option<String>| fd_number(flag, &need(flag, value)?);

        let memory: u64 = number("--memory", &need("--memory", memory)?)?;
        if !(layout::RAM_MIN..=layout::RAM_MAX).contains(&memory) || !memory.is_multiple_of(layout::PAGE) {
            let (min, max) = (layout::RAM_MIN, layout::RAM_MAX);
            return Err(bad("--memory", format!("{memory} is not a multiple of 4096 bytes between {min} and {max}")));
        }
        let vcpus: u16 = number("--vcpus", &need("--vcpus", vcpus)?)?;
        if !(1..=layout::MAX_VCPUS).contains(&vcpus) {
            return Err(bad("--vcpus", format!("{vcpus} is not between 1 and {}", layout::MAX_VCPUS)));
        }
        let cmdline = cmdline.unwrap_or_default();
        if cmdline.len() >= layout::CMDLINE_SIZE {
            return Err(bad(
                "--cmdline",
                format!("it has {} bytes; the kernel reads {}", cmdline.len(), layout::CMDLINE_SIZE - 1),
            ));
        }
        if cmdline.contains('\0') {
            return Err(bad("--cmdline", "it contains a NUL byte"));
        }
        let raw = Raw {
            kvm: fd("--kvm-fd", kvm)?,
            control: fd("--control-fd", control)?,
            kernel: fd("--kernel-fd", kernel)?,
            initrd: initrd.map(|value| fd_number("--initrd-fd", &value)).transpose()?,
            console: fd("--console-fd", console)?,
            memory,
            vcpus,
            cmdline,
            devices,
            confinement: match confinement {
                None => confine::Policy::BestEffort,
                Some(text) => {
                    text.parse().map_err(|_| bad("--confinement", format!("'{text}' is not strict or best-effort")))?
                }
            },
        };
        let mut seen = HashSet::new();
        let fds = [raw.kvm, raw.control, raw.kernel, raw.console].into_iter().chain(raw.initrd);
        for fd in fds.chain(raw.devices.iter().map(|device| device.fd)) {
            if !seen.insert(fd) {
                return Err(bad("--*-fd", format!("descriptor {fd} is given twice")));
            }
        }
        Ok(raw)
    }

    fn take(self) -> Result<Config, Error> {
        // Every number is looked at before the first one is taken.
        let links = [(self.control, "--control-fd"), (self.console, "--console-fd")];
        for (fd, argument) in links.into_iter().chain(self.devices.iter().map(|d| (d.fd, DEVICE))) {
            check_stream_socket(fd, argument)?;
        }
        let files = [(self.kvm, "--kvm-fd"), (self.kernel, "--kernel-fd")];
        for (fd, argument) in files.into_iter().chain(self.initrd.map(|fd| (fd, "--initrd-fd"))) {
            check_open(fd, argument)?;
        }
        Ok(Config {
            kvm: take(self.kvm),
            control: take(self.control),
            kernel: take(self.kernel),
            initrd: self.initrd.map(take),
            console: take(self.console),
            memory: self.memory,
            vcpus: self.vcpus,
            cmdline: self.cmdline,
            devices: self
                .devices
                .into_iter()
                .map(|device| Device {
                    virtio_id: device.virtio_id,
                    socket: take(device.fd),
                    queue_size: device.queue_size,
                    queues: device.queues,
                    config: device.config,
                })
                .collect(),
            confinement: self.confinement,
        })
    }
}

impl RawDevice {
    fn parse(text: &str) -> Result<RawDevice, Error> {
        const FLAG: &str = DEVICE;
        let (mut virtio_id, mut fd, mut queue_size, mut queues, mut config) = (None, None, None, None, None);
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| bad(FLAG, format!("'{part}' is not KEY=VALUE")))?;
            let twice = match key {
                "virtio-id" => virtio_id.replace(number::<u32>(FLAG, value)?).is_some(),
                "fd" => fd.replace(fd_number(FLAG, value)?).is_some(),
                "queue-size" => queue_size.replace(number::<u16>(FLAG, value)?).is_some(),
                "queues" => queues.replace(number::<u16>(FLAG, value)?).is_some(),
                "config" => config.replace(hex(value)?).is_some(),
                _ => {
                    return Err(bad(FLAG, format!("'{key}' is not one of virtio-id, fd, queue-size, queues, config")));
                }
            };
            if twice {
                return Err(bad(FLAG, format!("'{key}' is given twice")));
            }
        }
        let virtio_id = virtio_id.ok_or_else(|| bad(FLAG, "'virtio-id' is required"))?;
        let device = RawDevice {
            virtio_id,
            fd: fd.ok_or_else(|| bad(FLAG, "'fd' is required"))?,
            queue_size: queue_size.unwrap_or_else(|| default_queue_size(virtio_id)),
            queues,
            config,
        };
        if device.virtio_id == 0 {
            return Err(bad(FLAG, "virtio-id 0 is reserved; network is 1, block is 2"));
        }
        if !device.queue_size.is_power_of_two() || !(2..=MAX_QUEUE_SIZE).contains(&device.queue_size) {
            return Err(bad(FLAG, format!("queue-size must be a power of two from 2 to {MAX_QUEUE_SIZE}")));
        }
        if device.queues == Some(0) {
            return Err(bad(FLAG, "queues must be at least 1"));
        }
        Ok(device)
    }
}

fn fd_number(argument: &str, text: &str) -> Result<RawFd, Error> {
    let fd: RawFd = number(argument, text)?;
    if fd <= 2 {
        return Err(bad(argument, format!("{fd} is not a descriptor above standard error's")));
    }
    Ok(fd)
}

fn hex(text: &str) -> Result<Vec<u8>, Error> {
    let wrong = || bad(DEVICE, "'config' must be pairs of hexadecimal digits, at most 256 of them");
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits.ok_or_else(wrong)?;
    let (pairs, []) = digits.as_chunks::<2>() else { return Err(wrong()) };
    if pairs.len() > MAX_CONFIG {
        return Err(wrong());
    }
    Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

fn check_open(fd: RawFd, argument: &str) -> Result<BorrowedFd<'static>, Error> {
    // SAFETY: the number is only asked about; if it is not open, F_GETFD says so, and the borrow is not used further.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    match rustix::io::fcntl_getfd(borrowed) {
        Ok(_) => Ok(borrowed),
        Err(_) => Err(Error::Descriptor { argument: argument.into(), fd, why: "is not open" }),
    }
}

fn check_stream_socket(fd: RawFd, argument: &str) -> Result<(), Error> {
    let socket = check_open(fd, argument)?;
    UnixSocket::Stream.check(socket).map_err(|source| Error::Socket { argument: argument.into(), fd, source })
}

/// Takes a descriptor that `check_open` found open.
fn take(fd: RawFd) -> OwnedFd {
    // SAFETY: the number was handed to this process on its command line, is open, above 2 and named only once, and nothing
    // else in the program has opened descriptors yet: nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "--kvm-fd 3 --control-fd 4 --kernel-fd 5 --console-fd 6 --memory 134217728 --vcpus 2";

    fn parse(extra: &str) -> Result<Raw, Error> {
        Raw::parse(format!("{GOOD} {extra}").split_whitespace().map(String::from))
    }

    fn with(flag: &str, value: &str) -> Result<Raw, Error> {
        let mut args: Vec<String> = GOOD.split_whitespace().map(String::from).collect();
        let place = args.iter().position(|arg| arg == flag).unwrap();
        args[place + 1] = value.into();
        Raw::parse(args)
    }

    #[test]
    fn full_set_of_arguments_is_taken_as_given() {
        let raw = parse("--initrd-fd 7 --cmdline=console=ttyS0 --confinement strict --device virtio-id=1,fd=8,queues=2,queue-size=512,config=00ffA0 --device virtio-id=2,fd=9").unwrap();
        assert_eq!((raw.kvm, raw.control, raw.kernel, raw.initrd, raw.console), (3, 4, 5, Some(7), 6));
        assert_eq!((raw.memory, raw.vcpus, raw.cmdline.as_str()), (128 << 20, 2, "console=ttyS0"));
        assert!(matches!(raw.confinement, confine::Policy::Strict));
        assert_eq!(
            raw.devices,
            [
                RawDevice { virtio_id: 1, fd: 8, queue_size: 512, queues: Some(2), config: Some(vec![0, 255, 0xa0]) },
                RawDevice { virtio_id: 2, fd: 9, queue_size: 256, queues: None, config: None },
            ]
        );
    }

    #[test]
    fn numbers_out_of_range_are_refused_on_both_sides() {
        for (flag, good, bad) in [
            ("--memory", "16777216", "16773120"),
            ("--memory", "1099511627776", "1099511631872"),
            ("--memory", "16781312", "16781313"),
            ("--vcpus", "1", "0"),
            ("--vcpus", "254", "255"),
            ("--kvm-fd", "7", "2"),
        ] {
            assert!(with(flag, good).is_ok(), "{flag} {good}");
            assert!(with(flag, bad).is_err(), "{flag} {bad}");
        }
    }

    #[test]
    fn command_line_that_the_kernel_would_cut_is_refused() {
        let longest = "x".repeat(layout::CMDLINE_SIZE - 1);
        assert!(parse(&format!("--cmdline {longest}")).is_ok());
        assert!(parse(&format!("--cmdline {longest}x")).is_err());
    }

    #[test]
    fn device_options_are_checked_on_both_sides_of_their_limits() {
        for (good, bad) in [
            ("virtio-id=1,fd=8", "virtio-id=0,fd=8"),
            ("virtio-id=1,fd=8,queue-size=32768", "virtio-id=1,fd=8,queue-size=65536"),
            ("virtio-id=1,fd=8,queue-size=2", "virtio-id=1,fd=8,queue-size=1"),
            ("virtio-id=1,fd=8,queue-size=4", "virtio-id=1,fd=8,queue-size=3"),
            ("virtio-id=1,fd=8,queues=1", "virtio-id=1,fd=8,queues=0"),
            ("virtio-id=1,fd=8,config=00", "virtio-id=1,fd=8,config=0"),
        ] {
            assert!(RawDevice::parse(good).is_ok(), "{good}");
            assert!(RawDevice::parse(bad).is_err(), "{bad}");
        }
        let config = "00".repeat(MAX_CONFIG);
        assert!(RawDevice::parse(&format!("virtio-id=1,fd=8,config={config}")).is_ok());
        assert!(RawDevice::parse(&format!("virtio-id=1,fd=8,config={config}00")).is_err());
        assert!(RawDevice::parse("virtio-id=1").is_err());
        assert!(RawDevice::parse("fd=8").is_err());
        assert!(RawDevice::parse("virtio-id=1,fd=8,fd=9").is_err());
        assert!(RawDevice::parse("virtio-id=1,fd=8,color=red").is_err());
    }

    #[test]
    fn more_devices_than_interrupts_are_refused() {
        let devices =
            |n: usize| (0..n).map(|i| format!("--device virtio-id=2,fd={} ", 10 + i)).collect::<Vec<_>>().concat();
        assert!(parse(&devices(layout::MAX_DEVICES)).is_ok());
        assert!(parse(&devices(layout::MAX_DEVICES + 1)).is_err());
    }

    #[test]
    fn missing_repeated_and_unknown_flags_are_refused() {
        assert!(Raw::parse(["--memory".to_string()]).is_err());
        assert!(parse("--vcpus 3").is_err());
        assert!(parse("--color red").is_err());
        assert!(parse("--initrd-fd 5").unwrap_err().to_string().contains("twice"));
        for flag in ["--kvm-fd", "--control-fd", "--kernel-fd", "--console-fd", "--memory", "--vcpus"] {
            let mut args: Vec<String> = GOOD.split_whitespace().map(String::from).collect();
            let place = args.iter().position(|arg| arg == flag).unwrap();
            args.drain(place..=place + 1);
            assert!(Raw::parse(args).unwrap_err().to_string().contains(flag));
        }
    }

    #[test]
    fn descriptor_that_is_closed_or_no_socket_is_named() {
        let why = parse("").unwrap().take().unwrap_err().to_string();
        assert!(why.contains("--control-fd") || why.contains("--console-fd"), "{why}");
        use std::os::fd::AsRawFd;
        let file = tempfile::tempfile().unwrap();
        assert!(check_stream_socket(file.as_raw_fd(), "--console-fd").is_err());
        assert!(check_open(9999, "--kvm-fd").is_err());
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(check_stream_socket(a.as_raw_fd(), "--console-fd").is_ok());
        let lonely = std::os::unix::net::UnixDatagram::unbound().unwrap();
        assert!(check_stream_socket(lonely.as_raw_fd(), "--console-fd").is_err());
    }
}
