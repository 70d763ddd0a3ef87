//! One VM's configuration: flags and TOML file merged and checked, before anything is touched.

use std::{
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use disk::SECTOR;
use ipc::{Code, Fault, chain};
use schema::{
    limits::{MAX_CMDLINE, MAX_DEVICES, MAX_MEMORY, MAX_VCPUS, MIN_MEMORY},
    names,
};
use serde::Deserialize;

use crate::{
    cli::{DEFAULT_CMDLINE, DEFAULT_MEMORY, DEFAULT_VCPUS, RunArgs},
    cmdline,
    shell::shell,
};

/// Room for the `ip=` word of one card: three addresses, a VM's name, a device, and what stands between them, in bytes.
pub const IP_WORD: usize = 128;
/// The largest configuration file, in bytes.
const MAX_FILE: u64 = 64 << 10;

/// A VM that can be run: every value is within its bounds and every file was there when it was checked.
#[derive(Debug, PartialEq, Eq)]
pub struct VmConfig {
    pub name: String,
    pub kernel: KernelRef,
    pub initrd: Option<PathBuf>,
    pub cmdline: String,
    pub disks: Vec<Disk>,
    pub nets: Vec<String>,
    pub vcpus: u16,
    /// Bytes.
    pub memory: u64,
    pub no_reboot: bool,
}

/// Which kernel to boot.
#[derive(Debug, PartialEq, Eq)]
pub enum KernelRef {
    /// An image file, which goes through the kernel store.
    File(PathBuf),
    /// An alias, a digest or a prefix of one, in the kernel store.
    Stored(String),
}

/// One disk.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Disk {
    pub path: PathBuf,
    pub read_only: bool,
}

/// The TOML file: the same keys as the flags.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    name: Option<String>,
    kernel: Option<String>,
    initrd: Option<PathBuf>,
    cmdline: Option<String>,
    cpus: Option<u16>,
    memory: Option<String>,
    #[serde(default)]
    no_reboot: bool,
    #[serde(default)]
    disk: Vec<FileDisk>,
    #[serde(default)]
    net: Vec<FileNet>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileDisk {
    path: PathBuf,
    #[serde(default)]
    read_only: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileNet {
    network: String,
}

impl VmConfig {
    /// Merges flags and file (a flag wins; any `--disk` or `--net` replaces all of the file's), and checks the result.
    pub fn new(args: &RunArgs) -> Result<VmConfig, Fault> {
        let file = match &args.config {
            Some(path) => read_file(path)?,
            None => File::default(),
        };
        let base = args.config.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
        let config = VmConfig::merged(args, file, base)?;
        config.check_files()?;
        Ok(config)
    }

    /// The same without a look at the files that it names. Paths in `file` start at `base`.
    pub fn merged(args: &RunArgs, file: File, base: &Path) -> Result<VmConfig, Fault> {
        let kernel = match (&args.kernel, file.kernel) {
            (Some(kernel), _) => kernel_ref(Path::new(""), kernel),
            (None, Some(kernel)) => kernel_ref(base, &kernel),
            (None, None) => {
                return Err(invalid(
                    "--kernel",
                    "no kernel is given",
                    "Name a bzImage, an ELF kernel, or one in the kernel store",
                ));
            }
        };
        let disks = if args.disks.is_empty() {
            file.disk.into_iter().map(|d| Disk { path: base.join(d.path), read_only: d.read_only }).collect()
        } else {
            args.disks.iter().map(|text| parse_disk(text)).collect()
        };
        let nets =
            if args.nets.is_empty() { file.net.into_iter().map(|n| n.network).collect() } else { args.nets.clone() };
        let memory = match args.memory.as_ref().or(file.memory.as_ref()) {
            Some(text) => parse_size(text)?,
            None => DEFAULT_MEMORY,
        };
        let config = VmConfig {
            name: args
                .name
                .clone()
                .or(file.name)
                .ok_or_else(|| invalid("--name", "no name is given", "Give one, such as --name web"))?,
            kernel,
            initrd: args.initrd.clone().or_else(|| file.initrd.map(|p| base.join(p))),
            cmdline: args.cmdline.clone().or(file.cmdline).unwrap_or_else(|| DEFAULT_CMDLINE.into()),
            disks,
            nets,
            vcpus: args.cpus.or(file.cpus).unwrap_or(DEFAULT_VCPUS),
            memory,
            no_reboot: args.no_reboot || file.no_reboot,
        };
        config.check_values()?;
        Ok(config)
    }

    fn check_values(&self) -> Result<(), Fault> {
        check_name(&self.name)?;
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(invalid(
                "--cpus",
                format!("{} is not between 1 and {MAX_VCPUS}", self.vcpus),
                "Choose a number in that range",
            ));
        }
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&self.memory) || !self.memory.is_multiple_of(1 << 20) {
            return Err(invalid(
                "--memory",
                format!(
                    "{} is not a whole number of MiB between {}M and {}G",
                    ipc::count(self.memory, "byte"),
                    MIN_MEMORY >> 20,
                    MAX_MEMORY >> 30
                ),
                &format!("Choose a size in that range, such as {}M", DEFAULT_MEMORY >> 20),
            ));
        }
        for (flag, count) in [("--disk", self.disks.len()), ("--net", self.nets.len())] {
            if count > MAX_DEVICES {
                return Err(invalid(flag, format!("{count} are given, {MAX_DEVICES} is the most"), "Give fewer"));
            }
        }
        let most = MAX_CMDLINE.saturating_sub(IP_WORD.saturating_mul(self.nets.len()));
        if self.cmdline.len() > most || !cmdline::is_line(&self.cmdline) {
            return Err(invalid(
                "--cmdline",
                format!("it holds a control character, or more than {most} bytes"),
                "Shorten it; words are separated by spaces",
            ));
        }
        if !cmdline::is_closed(&self.cmdline) {
            let why = "a double quote has no second one: whatever follows would be part of that word";
            return Err(invalid("--cmdline", why, "Close it, or leave it out"));
        }
        for (n, net) in self.nets.iter().enumerate() {
            if self.nets.iter().take(n).any(|other| other == net) {
                return Err(invalid("--net", format!("{net} is given twice"), "A VM has one card on a network"));
            }
        }
        Ok(())
    }

    fn check_files(&self) -> Result<(), Fault> {
        if let KernelRef::File(path) = &self.kernel {
            check_file("--kernel", path)?;
        }
        if let Some(path) = &self.initrd {
            check_file("--initrd", path)?;
        }
        for disk in &self.disks {
            check_disk(&disk.path)?;
        }
        Ok(())
    }
}

/// Whether `name` can be a VM's name: it becomes part of a socket's file name and of `vm-<name>`.
pub fn check_name(name: &str) -> Result<(), Fault> {
    if names::is_vm(name) {
        return Ok(());
    }
    Err(invalid("--name", format!("{name:?} is not a VM's name"), &format!("Use {}", names::VM_RULE)))
}

fn invalid(what: &str, why: impl Into<String>, remedy: &str) -> Fault {
    Fault::new(Code::InvalidArgument, format!("read {what}"), why, remedy)
}

fn read_file(path: &Path) -> Result<File, Fault> {
    let what = format!("the VM file {}", path.display());
    check_file("--config", path)?;
    if fs::metadata(path).is_ok_and(|m| m.len() > MAX_FILE) {
        return Err(invalid(
            &what,
            format!("it is larger than {MAX_FILE} bytes"),
            "Name a TOML file that describes a VM",
        ));
    }
    let text = fs::read_to_string(path).map_err(|e| invalid(&what, chain(&e), "Name a TOML file that you may read"))?;
    parse_file(&text).map_err(|e| invalid(&what, chain(&e).trim(), "Correct that line"))
}

/// Reads the text of a file: its form, and nothing that it names.
pub fn parse_file(text: &str) -> Result<File, toml::de::Error> {
    toml::from_str(text)
}

fn kernel_ref(base: &Path, text: &str) -> KernelRef {
    let path = base.join(text);
    if text.contains('/') || path.exists() { KernelRef::File(path) } else { KernelRef::Stored(text.into()) }
}

fn parse_disk(text: &str) -> Disk {
    match text.strip_suffix(",ro") {
        Some(path) => Disk { path: path.into(), read_only: true },
        None => Disk { path: text.into(), read_only: false },
    }
}

/// Parses `256M`: a whole number and one of the binary units K, M, G, T, of which neither clap nor TOML knows.
fn parse_size(text: &str) -> Result<u64, Fault> {
    let shift = match text.bytes().last() {
        Some(b'K') => 10,
        Some(b'M') => 20,
        Some(b'G') => 30,
        Some(b'T') => 40,
        _ => 64,
    };
    text.get(..text.len().saturating_sub(1))
        .filter(|digits| shift < 64 && digits.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|digits| digits.parse::<u64>().ok())
        .and_then(|n| n.checked_mul(1u64.checked_shl(shift)?))
        .ok_or_else(|| {
            invalid("--memory", format!("{text:?} is not a size"), "Write a whole number and a unit: 256M, 2G")
        })
}

/// Whether that is a file, before it is opened: to open a FIFO would wait for whoever writes to it.
pub fn check_file(flag: &str, path: &Path) -> Result<(), Fault> {
    let fault = |why: String| {
        Fault::new(
            Code::InvalidArgument,
            format!("open {} ({flag})", path.display()),
            why,
            "Name a file that exists and that you may read",
        )
    };
    match fs::metadata(path) {
        Err(e) => Err(fault(chain(&e))),
        Ok(meta) if !meta.is_file() => Err(fault("it is not a regular file".into())),
        Ok(_) => Ok(()),
    }
}

fn check_disk(path: &Path) -> Result<(), Fault> {
    let kind = fs::metadata(path).map(|m| m.file_type());
    if kind.is_ok_and(|t| t.is_block_device()) {
        return Ok(());
    }
    check_file("--disk", path)?;
    let size = fs::metadata(path).map(|m| m.len()).unwrap_or(0);
    if size == 0 || !size.is_multiple_of(SECTOR) {
        let whole = size.div_ceil(SECTOR).max(1).saturating_mul(SECTOR);
        return Err(Fault::new(
            Code::BadImage,
            format!("use the disk image {}", path.display()),
            format!("its size, {}, is not a positive multiple of {SECTOR}", ipc::count(size, "byte")),
            format!("A raw image is whole sectors: truncate -s {whole} {}", shell(path)),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path) -> RunArgs {
        fs::write(dir.join("kernel"), b"k").unwrap();
        RunArgs {
            name: Some("web".into()),
            kernel: Some(dir.join("kernel").display().to_string()),
            ..RunArgs::default()
        }
    }

    fn rejects(change: impl FnOnce(&mut RunArgs, &Path), mentions: &str) {
        let dir = tempfile::tempdir().unwrap();
        let mut args = args(dir.path());
        change(&mut args, dir.path());
        let text = VmConfig::new(&args).unwrap_err().to_string();
        assert!(text.contains(mentions), "{text:?} does not mention {mentions:?}");
    }

    #[test]
    fn run_with_name_and_kernel_takes_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let config = VmConfig::new(&args(dir.path())).unwrap();
        assert_eq!((config.vcpus, config.memory, config.cmdline.as_str()), (1, 256 << 20, "console=ttyS0"));
    }

    #[test]
    fn kernel_without_slash_or_file_is_a_stored_one() {
        assert_eq!(kernel_ref(Path::new(""), "debian-6.1"), KernelRef::Stored("debian-6.1".into()));
        assert_eq!(kernel_ref(Path::new(""), "./debian-6.1"), KernelRef::File("./debian-6.1".into()));
    }

    #[test]
    fn sizes_parse_with_units_and_refuse_the_rest() {
        assert_eq!(parse_size("256M").unwrap(), 256 << 20);
        assert_eq!(parse_size("3G").unwrap(), 3 << 30);
        for bad in ["", "M", "256", "256MB", "-1M", "+1M", "1.5G", "99999999999999999999G", "18446744073709551615T"] {
            parse_size(bad).unwrap_err();
        }
    }

    #[test]
    fn memory_bounds_hold_on_both_sides() {
        let dir = tempfile::tempdir().unwrap();
        for (text, good) in [("63M", false), ("64M", true), ("1024G", true), ("1025G", false), ("65537K", false)] {
            let mut args = args(dir.path());
            args.memory = Some(text.into());
            assert_eq!(VmConfig::new(&args).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn cpus_bounds_hold_on_both_sides() {
        let dir = tempfile::tempdir().unwrap();
        for (cpus, good) in [(0, false), (1, true), (64, true), (65, false)] {
            let mut args = args(dir.path());
            args.cpus = Some(cpus);
            assert_eq!(VmConfig::new(&args).is_ok(), good, "{cpus}");
        }
    }

    #[test]
    fn command_line_leaves_room_for_the_words_of_each_card() {
        let dir = tempfile::tempdir().unwrap();
        for (nets, most) in [(0, 2047), (1, 1919), (8, 1023)] {
            let mut args = args(dir.path());
            args.nets = (0..nets).map(|n| format!("volt{n}")).collect();
            args.cmdline = Some("x".repeat(most));
            VmConfig::new(&args).unwrap();
            args.cmdline = Some("x".repeat(most + 1));
            assert!(VmConfig::new(&args).unwrap_err().to_string().contains(&format!("{most} bytes")));
        }
        rejects(|a, _| a.cmdline = Some("a\nb".into()), "control character");
        rejects(|a, _| a.cmdline = Some("a=\"b c".into()), "double quote");
    }

    #[test]
    fn eight_cards_and_disks_are_taken_and_nine_or_the_same_twice_refused() {
        rejects(|a, _| a.nets = (0..9).map(|n| format!("volt{n}")).collect(), "8 is the most");
        rejects(|a, _| a.disks = vec!["/nowhere/disk".into(); 9], "8 is the most");
        rejects(|a, _| a.nets = vec!["volt0".into(), "volt1".into(), "volt0".into()], "volt0 is given twice");
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_being_opened() {
        for flag in [
            |a: &mut RunArgs, path: String| a.kernel = Some(path),
            |a: &mut RunArgs, path: String| a.initrd = Some(path.into()),
            |a: &mut RunArgs, path: String| a.disks = vec![path],
            |a: &mut RunArgs, path: String| a.config = Some(path.into()),
        ] {
            rejects(|a, _| flag(a, "/dev/null".into()), "/dev/null");
            rejects(|a, dir| flag(a, dir.display().to_string()), "not a regular file");
            rejects(
                |a, dir| {
                    let fifo = dir.join("fifo");
                    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
                    flag(a, fifo.display().to_string());
                },
                "not a regular file",
            );
        }
    }

    #[test]
    fn missing_files_are_named() {
        rejects(|a, _| a.kernel = Some("/nowhere/kernel".into()), "/nowhere/kernel");
        rejects(|a, _| a.initrd = Some("/nowhere/initrd".into()), "/nowhere/initrd");
        rejects(|a, _| a.disks = vec!["/nowhere/disk".into()], "/nowhere/disk");
        rejects(|a, _| a.config = Some("/nowhere/vm.toml".into()), "/nowhere/vm.toml");
    }

    #[test]
    fn disk_of_odd_size_is_refused_with_the_size_that_fits() {
        rejects(
            |a, dir| {
                fs::write(dir.join("odd"), vec![0u8; 513]).unwrap();
                a.disks = vec![dir.join("odd").display().to_string()];
            },
            "truncate -s 1024",
        );
        rejects(
            |a, dir| {
                fs::write(dir.join("empty"), b"").unwrap();
                a.disks = vec![dir.join("empty").display().to_string()];
            },
            "truncate -s 512",
        );
    }

    #[test]
    fn toml_file_gives_the_same_vm_as_the_flags() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("disk"), vec![0u8; 512]).unwrap();
        let mut flags = args(dir.path());
        flags.disks = vec![format!("{},ro", dir.path().join("disk").display())];
        flags.nets = vec!["volt0".into()];
        flags.memory = Some("512M".into());
        flags.cpus = Some(2);
        let toml = "name='web'\nkernel='./kernel'\ncpus=2\nmemory='512M'\n[[disk]]\npath='disk'\nread-only=true\n[[net]]\nnetwork='volt0'\n";
        fs::write(dir.path().join("vm.toml"), toml).unwrap();
        let file = RunArgs { config: Some(dir.path().join("vm.toml")), ..RunArgs::default() };
        let (a, b) = (VmConfig::new(&flags).unwrap(), VmConfig::new(&file).unwrap());
        assert_eq!((a.disks, a.nets, a.memory, a.vcpus, a.name), (b.disks, b.nets, b.memory, b.vcpus, b.name));
    }

    #[test]
    fn toml_file_with_an_unknown_key_is_refused_with_its_name() {
        rejects(
            |a, dir| {
                fs::write(dir.join("vm.toml"), "memroy='1G'").unwrap();
                a.config = Some(dir.join("vm.toml"));
            },
            "memroy",
        );
    }
}
