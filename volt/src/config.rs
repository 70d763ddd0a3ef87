//! One VM's configuration: flags and TOML file merged and checked, before anything is touched.

use std::{
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use disk::SECTOR;
use schema::{
    limits::{MAX_CMDLINE, MAX_DEVICES, MAX_MEMORY, MAX_VCPUS, MIN_MEMORY},
    names,
    network_capnp::{MAX_PUBLISHED, MAX_RATE, MIN_RATE},
    policy::Rules,
};
use serde::Deserialize;

use crate::{
    cli::{DEFAULT_CMDLINE, DEFAULT_MEMORY, DEFAULT_VCPUS, RunArgs},
    cmdline,
    error::{ArgumentError, Error},
    host::published::Publish,
};

/// Room for the words of one card, in bytes: `ip=` (three addresses, a VM's name, a device, and what stands between them), and the same of IPv6
/// (two addresses, a device).
pub const IP_WORDS: usize = 224;
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
    pub nets: Vec<Net>,
    /// Ports of the host that lead to the guest by its first card.
    pub publish: Vec<Publish>,
    pub vcpus: u16,
    /// Bytes.
    pub memory: u64,
    pub no_reboot: bool,
    /// Where the guest may send to; `None` for what the networks say.
    pub policy: Option<Rules>,
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

/// One card.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Net {
    pub network: String,
    pub rate: Rate,
}

/// Bytes a second that a card carries; 0 for as much as there is.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
pub struct Rate {
    pub from_guest: u64,
    pub to_guest: u64,
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
    policy: Option<FilePolicy>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePolicy {
    #[serde(default)]
    default: Others,
    #[serde(default)]
    allow: Vec<String>,
}

/// What becomes of what no rule allows.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Others {
    #[default]
    Deny,
    Allow,
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
    #[serde(default)]
    publish: Vec<String>,
    rate: Option<FileRate>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileRate {
    from_guest: Option<String>,
    to_guest: Option<String>,
}

impl VmConfig {
    /// Merges flags and file (a flag wins; any `--disk` or `--net` replaces all of the file's), and checks the result.
    pub fn new(args: &RunArgs) -> Result<VmConfig, Error> {
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
    pub fn merged(args: &RunArgs, file: File, base: &Path) -> Result<VmConfig, Error> {
        let kernel = match (&args.kernel, file.kernel) {
            (Some(kernel), _) => kernel_ref(Path::new(""), kernel),
            (None, Some(kernel)) => kernel_ref(base, &kernel),
            (None, None) => return Err(ArgumentError::NoKernel.into()),
        };
        let disks = if args.disks.is_empty() {
            file.disk.into_iter().map(|d| Disk { path: base.join(d.path), read_only: d.read_only }).collect()
        } else {
            args.disks.iter().map(|text| parse_disk(text)).collect()
        };
        let file_net = if args.nets.is_empty() { file.net } else { Vec::new() };
        if let Some(card) = file_net.iter().skip(1).find(|card| !card.publish.is_empty()) {
            return Err(ArgumentError::NotTheFirst(card.network.clone()).into());
        }
        let of_file = file_net.first().map_or(&[][..], |card| &card.publish);
        let publish = if args.publish.is_empty() { of_file } else { &args.publish };
        let publish = publish.iter().map(|text| text.parse()).collect::<Result<Vec<Publish>, _>>()?;
        let nets = if args.nets.is_empty() {
            file_net.into_iter().map(Net::read).collect::<Result<_, _>>()?
        } else {
            args.nets.iter().map(|network| Net { network: network.clone(), rate: Rate::default() }).collect()
        };
        let memory = match args.memory.as_ref().or(file.memory.as_ref()) {
            Some(text) => parse_size(text)?,
            None => DEFAULT_MEMORY,
        };
        let config = VmConfig {
            name: args.name.clone().or(file.name).ok_or(ArgumentError::NoName)?,
            kernel,
            initrd: args.initrd.clone().or_else(|| file.initrd.map(|p| base.join(p))),
            cmdline: args.cmdline.clone().or(file.cmdline).unwrap_or_else(|| DEFAULT_CMDLINE.into()),
            disks,
            nets,
            publish,
            vcpus: args.cpus.or(file.cpus).unwrap_or(DEFAULT_VCPUS),
            memory,
            no_reboot: args.no_reboot || file.no_reboot,
            policy: file
                .policy
                .map(|FilePolicy { default, allow }| {
                    let others = matches!(default, Others::Allow).then_some("any");
                    rules("[policy]", allow.iter().map(String::as_str).chain(others))
                })
                .transpose()?,
        };
        config.check_values()?;
        Ok(config)
    }

    fn check_values(&self) -> Result<(), Error> {
        check_name(&self.name)?;
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(ArgumentError::Cpus(self.vcpus).into());
        }
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&self.memory) || !self.memory.is_multiple_of(1 << 20) {
            return Err(ArgumentError::Memory { bytes: self.memory, such_as: DEFAULT_MEMORY }.into());
        }
        for (flag, count) in [("--disk", self.disks.len()), ("--net", self.nets.len())] {
            if count > MAX_DEVICES {
                return Err(ArgumentError::TooMany { flag, count }.into());
            }
        }
        let most = MAX_CMDLINE.saturating_sub(IP_WORDS.saturating_mul(self.nets.len()));
        if self.cmdline.len() > most || !cmdline::is_line(&self.cmdline) {
            return Err(ArgumentError::Cmdline { most }.into());
        }
        if !cmdline::is_closed(&self.cmdline) {
            return Err(ArgumentError::OpenQuote.into());
        }
        check_published(&self.publish)?;
        if self.nets.is_empty() && !self.publish.is_empty() {
            return Err(ArgumentError::NoCard.into());
        }
        for (n, net) in self.nets.iter().enumerate() {
            if self.nets.iter().take(n).any(|other| other.network == net.network) {
                return Err(ArgumentError::Twice(net.network.clone()).into());
            }
        }
        Ok(())
    }

    fn check_files(&self) -> Result<(), Error> {
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

impl Net {
    fn read(FileNet { network, rate, .. }: FileNet) -> Result<Net, ArgumentError> {
        let rate = match rate {
            Some(FileRate { from_guest, to_guest }) => Rate::read(from_guest.as_deref(), to_guest.as_deref())?,
            None => Rate::default(),
        };
        Ok(Net { network, rate })
    }
}

impl Rate {
    /// As its two ways are written; one that is not has no limit.
    pub fn read(from_guest: Option<&str>, to_guest: Option<&str>) -> Result<Rate, ArgumentError> {
        let way = |text: Option<&str>| text.map_or(Ok(0), parse_rate);
        Ok(Rate { from_guest: way(from_guest)?, to_guest: way(to_guest)? })
    }
}

/// Parses `100Mbit`, of a second: a whole number and one of the units of links' speeds, which are decimal; gives bytes.
fn parse_rate(text: &str) -> Result<u64, ArgumentError> {
    let units = [("kbit", 1000), ("Mbit", 1_000_000), ("Gbit", 1_000_000_000_u64)];
    let bits = units.iter().find_map(|(unit, bits)| {
        let digits = text.strip_suffix(unit).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
        digits.parse::<u64>().ok()?.checked_mul(*bits)
    });
    let bytes = bits.map(|bits| bits / 8).filter(|bytes| (MIN_RATE..=MAX_RATE).contains(bytes));
    bytes.ok_or_else(|| ArgumentError::Rate(text.to_owned()))
}

/// The rules of a policy, as `flag` gives them.
pub fn rules<'a>(flag: &'static str, texts: impl IntoIterator<Item = &'a str>) -> Result<Rules, ArgumentError> {
    Rules::new(texts).map_err(|(rule, why)| ArgumentError::Rule { flag, rule, why })
}

/// Whether ports of the host can lead to one guest.
pub fn check_published(all: &[Publish]) -> Result<(), ArgumentError> {
    let count = all.iter().map(Publish::count).sum();
    if count > MAX_PUBLISHED as usize {
        return Err(ArgumentError::TooManyPublished { count });
    }
    let twice = all.iter().enumerate().find(|(n, one)| all.iter().take(*n).any(|other| other.overlaps(one)));
    twice.map_or(Ok(()), |(_, one)| Err(ArgumentError::PublishedTwice(one.to_string())))
}

/// Whether `name` can be a VM's name: it becomes part of a socket's file name and of `vm-<name>`.
pub fn check_name(name: &str) -> Result<(), Error> {
    if names::is_vm(name) { Ok(()) } else { Err(ArgumentError::Name(name.to_owned()).into()) }
}

fn read_file(path: &Path) -> Result<File, Error> {
    check_file("--config", path)?;
    let path = || path.to_owned();
    if fs::metadata(path()).is_ok_and(|m| m.len() > MAX_FILE) {
        return Err(Error::VmFileTooLarge { path: path(), most: MAX_FILE });
    }
    let text = fs::read_to_string(path()).map_err(|source| Error::VmFileUnread { path: path(), source })?;
    parse_file(&text).map_err(|source| Error::VmFileMalformed { path: path(), source })
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
fn parse_size(text: &str) -> Result<u64, ArgumentError> {
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
        .ok_or_else(|| ArgumentError::Size(text.to_owned()))
}

/// Whether that is a file, before it is opened: to open a FIFO would wait for whoever writes to it.
pub fn check_file(flag: &'static str, path: &Path) -> Result<(), Error> {
    match fs::metadata(path) {
        Err(source) => Err(Error::NoFile { flag, path: path.to_owned(), source }),
        Ok(meta) if !meta.is_file() => Err(Error::NotRegular { flag, path: path.to_owned() }),
        Ok(_) => Ok(()),
    }
}

fn check_disk(path: &Path) -> Result<(), Error> {
    let kind = fs::metadata(path).map(|m| m.file_type());
    if kind.is_ok_and(|t| t.is_block_device()) {
        return Ok(());
    }
    check_file("--disk", path)?;
    let size = fs::metadata(path).map(|m| m.len()).unwrap_or(0);
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(Error::DiskSize { path: path.to_owned(), size });
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

    fn refused(change: impl FnOnce(&mut RunArgs, &Path)) -> Error {
        let dir = tempfile::tempdir().unwrap();
        let mut args = args(dir.path());
        change(&mut args, dir.path());
        VmConfig::new(&args).unwrap_err()
    }

    /// Refused for that flag, and nothing else.
    fn wrong(change: impl FnOnce(&mut RunArgs, &Path)) -> ArgumentError {
        match refused(change) {
            Error::Argument(argument) => argument,
            other => panic!("{other:?}"),
        }
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
            assert_eq!(parse_size(bad), Err(ArgumentError::Size(bad.into())));
        }
    }

    #[test]
    fn memory_bounds_hold_on_both_sides() {
        let dir = tempfile::tempdir().unwrap();
        for (text, good) in [("63M", false), ("64M", true), ("1024G", true), ("1025G", false), ("65537K", false)] {
            let mut args = args(dir.path());
            args.memory = Some(text.into());
            match VmConfig::new(&args) {
                Ok(_) => assert!(good, "{text}"),
                Err(Error::Argument(ArgumentError::Memory { bytes, .. })) => {
                    assert_eq!((bytes, good), (parse_size(text).unwrap(), false));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn cpus_bounds_hold_on_both_sides() {
        let dir = tempfile::tempdir().unwrap();
        for (cpus, good) in [(0, false), (1, true), (64, true), (65, false)] {
            let mut args = args(dir.path());
            args.cpus = Some(cpus);
            match VmConfig::new(&args) {
                Ok(_) => assert!(good, "{cpus}"),
                Err(Error::Argument(ArgumentError::Cpus(given))) => assert_eq!((given, good), (cpus, false)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn command_line_leaves_room_for_the_words_of_each_card() {
        let dir = tempfile::tempdir().unwrap();
        for (nets, most) in [(0, 2047), (1, 1823), (8, 255)] {
            let mut args = args(dir.path());
            args.nets = (0..nets).map(|n| format!("volt{n}")).collect();
            args.cmdline = Some("x".repeat(most));
            VmConfig::new(&args).unwrap();
            args.cmdline = Some("x".repeat(most + 1));
            assert!(matches!(
                VmConfig::new(&args),
                Err(Error::Argument(ArgumentError::Cmdline { most: told })) if told == most
            ));
        }
        assert_eq!(wrong(|a, _| a.cmdline = Some("a\nb".into())), ArgumentError::Cmdline { most: MAX_CMDLINE });
        assert_eq!(wrong(|a, _| a.cmdline = Some("a=\"b c".into())), ArgumentError::OpenQuote);
    }

    #[test]
    fn eight_cards_and_disks_are_taken_and_nine_or_the_same_twice_refused() {
        let too_many = |flag| ArgumentError::TooMany { flag, count: 9 };
        assert_eq!(wrong(|a, _| a.nets = (0..9).map(|n| format!("volt{n}")).collect()), too_many("--net"));
        assert_eq!(wrong(|a, _| a.disks = vec!["/nowhere/disk".into(); 9]), too_many("--disk"));
        let twice = ["volt0", "volt1", "volt0"].map(String::from);
        assert_eq!(wrong(|a, _| a.nets = twice.into()), ArgumentError::Twice("volt0".into()));
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_being_opened() {
        let names = |change: &dyn Fn(&mut RunArgs, &Path), given: &'static str, file: &str| {
            let Error::NotRegular { flag, path } = refused(change) else { panic!("{given} {file}") };
            assert_eq!((flag, path.ends_with(file)), (given, true), "{}", path.display());
        };
        for (flag, give) in FILES {
            names(&|a, _| give(a, Path::new("/dev/null")), flag, "/dev/null");
            names(&|a, dir| give(a, dir), flag, "");
            let fifo = |a: &mut RunArgs, dir: &Path| {
                let fifo = dir.join("fifo");
                rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
                give(a, &fifo);
            };
            names(&fifo, flag, "fifo");
        }
    }

    type Give = fn(&mut RunArgs, &Path);
    /// Each flag that takes a file.
    const FILES: [(&str, Give); 4] = [
        ("--kernel", |a, path| a.kernel = Some(path.display().to_string())),
        ("--initrd", |a, path| a.initrd = Some(path.into())),
        ("--disk", |a, path| a.disks = vec![path.display().to_string()]),
        ("--config", |a, path| a.config = Some(path.into())),
    ];

    #[test]
    fn missing_files_are_named() {
        for (given, give) in FILES {
            let error = refused(|a, _| give(a, Path::new("/nowhere/file")));
            assert!(matches!(
                &error,
                Error::NoFile { flag, path, source }
                    if *flag == given && path == Path::new("/nowhere/file") && source.kind() == std::io::ErrorKind::NotFound
            ));
            let line =
                format!("invalidArgument: open /nowhere/file ({given}): No such file or directory (os error 2). ");
            assert!(error.fault().to_string().starts_with(&line));
        }
    }

    #[test]
    fn disk_of_odd_size_is_refused_with_the_size_that_fits() {
        for (has, fits) in [(0, 512), (1, 512), (513, 1024)] {
            let error = refused(|a, dir| {
                fs::write(dir.join("odd"), vec![0u8; has]).unwrap();
                a.disks = vec![dir.join("odd").display().to_string()];
            });
            assert!(error.remedy().contains(&format!("truncate -s {fits} /")), "{error:?}");
            assert!(matches!(error, Error::DiskSize { size, .. } if size == has as u64));
        }
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
        let error = refused(|a, dir| {
            fs::write(dir.join("vm.toml"), "memroy='1G'").unwrap();
            a.config = Some(dir.join("vm.toml"));
        });
        assert!(matches!(error, Error::VmFileMalformed { .. }));
        assert!(error.fault().why.contains("memroy"), "{error:?}");
    }

    #[test]
    fn rate_of_a_card_is_in_units_of_links_within_its_limits_and_a_wrong_one_is_named() {
        let with = |rate: &str| {
            let text = format!("name='web'\nkernel='./k'\n[[net]]\nnetwork='volt0'\nrate={{{rate}}}");
            let merged = VmConfig::merged(&RunArgs::default(), parse_file(&text).unwrap(), Path::new("/nowhere"));
            merged.map(|config| config.nets[0].rate)
        };
        for (text, from_guest, to_guest) in [
            ("", 0, 0),
            ("from-guest='8kbit'", MIN_RATE, 0),
            ("to-guest='80Gbit', from-guest='100Mbit'", 12_500_000, MAX_RATE),
        ] {
            assert_eq!(with(text).unwrap(), Rate { from_guest, to_guest }, "{text}");
        }
        for wrong in ["7kbit", "81Gbit", "10M", "-1Mbit", "Mbit", "1.5Gbit", "99999999999999999999kbit", ""] {
            for way in ["from-guest", "to-guest"] {
                let error = with(&format!("{way}={wrong:?}")).unwrap_err().fault().to_string();
                assert!(error.contains(&format!("{wrong:?}")) && error.contains("100Mbit"), "{error}");
            }
        }
        let unknown = "name='web'\nkernel='./k'\n[[net]]\nnetwork='volt0'\nrate={up='1Mbit'}";
        assert!(parse_file(unknown).unwrap_err().to_string().contains("from-guest"));
    }

    #[test]
    fn policy_of_a_file_is_its_rules_and_a_wrong_one_is_named() {
        let with = |text: &str| {
            let file = parse_file(&format!("name='web'\nkernel='./k'\n{text}")).unwrap();
            VmConfig::merged(&RunArgs::default(), file, Path::new("/nowhere")).map(|config| config.policy)
        };
        let rules = |texts: &[&str]| Rules::new(texts.iter().copied()).unwrap();
        assert_eq!(with("").unwrap(), None);
        assert_eq!(with("[policy]").unwrap(), Some(rules(&[])));
        assert_eq!(with("[policy]\nallow=['any tcp 443', 'vm-db']").unwrap(), Some(rules(&["any tcp 443", "vm-db"])));
        assert_eq!(with("[policy]\ndefault='allow'\nallow=['host']").unwrap(), Some(rules(&["any", "host"])));
        let error = with("[policy]\nallow=['any tcp 0']").unwrap_err().fault().to_string();
        assert!(error.contains("[policy]") && error.contains("any tcp 0") && error.contains("1 to 65535"), "{error}");
        for wrong in ["[policy]\ndeny=[]", "[policy]\ndefault='drop'", "policy=7"] {
            parse_file(wrong).unwrap_err();
        }
    }

    #[test]
    fn ports_are_published_by_the_file_s_first_card_or_by_flags_in_its_place() {
        let with = |text: &str, flags: &[&str], nets: &[&str]| {
            let file = parse_file(&format!("name='web'\nkernel='./k'\n{text}")).unwrap();
            let owned = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
            let args = RunArgs { publish: owned(flags), nets: owned(nets), ..RunArgs::default() };
            let config = VmConfig::merged(&args, file, Path::new("/nowhere"))?;
            Ok::<_, Error>(config.publish.iter().map(Publish::to_string).collect::<Vec<_>>())
        };
        let file = "[[net]]\nnetwork='volt0'\npublish=['8080:80','127.0.0.1:53:53/udp']\n[[net]]\nnetwork='volt1'\n";
        assert_eq!(with(file, &[], &[]).unwrap(), ["8080:80", "127.0.0.1:53:53/udp"]);
        assert_eq!(with(file, &["1:2"], &[]).unwrap(), ["1:2"]);
        assert_eq!(with(file, &[], &["volt2"]).unwrap(), Vec::<String>::new());
        assert_eq!(with("", &["1:2"], &["volt2"]).unwrap(), ["1:2"]);
        let refused = |text: &str, flags: &[&str], nets: &[&str]| match with(text, flags, nets).unwrap_err() {
            Error::Argument(argument) => argument,
            other => panic!("{other:?}"),
        };
        let second = "[[net]]\nnetwork='volt0'\n[[net]]\nnetwork='volt1'\npublish=['1:1']\n";
        assert_eq!(refused(second, &[], &[]), ArgumentError::NotTheFirst("volt1".into()));
        assert_eq!(refused("", &["1:1"], &[]), ArgumentError::NoCard);
        assert_eq!(
            refused("", &["80:1", "10.0.0.1:80:2"], &["a"]),
            ArgumentError::PublishedTwice("10.0.0.1:80:2".into())
        );
        assert!(matches!(refused("", &["80"], &["a"]), ArgumentError::Publish { .. }));
        // As many as there may be, and one more.
        with("", &["1-256:1-256"], &["a"]).unwrap();
        assert_eq!(refused("", &["1-256:1-256", "257:1"], &["a"]), ArgumentError::TooManyPublished { count: 257 });
    }

    #[test]
    fn toml_file_of_64_kib_is_read_and_a_larger_one_refused() {
        for (size, large) in [(MAX_FILE, false), (MAX_FILE + 1, true)] {
            let error = refused(|a, dir| {
                fs::write(dir.join("vm.toml"), "#".repeat(usize::try_from(size).unwrap())).unwrap();
                (a.name, a.config) = (None, Some(dir.join("vm.toml")));
            });
            match error {
                Error::VmFileTooLarge { most, .. } => assert!(large && most == MAX_FILE),
                other => assert!(!large && matches!(other, Error::Argument(ArgumentError::NoName)), "{other:?}"),
            }
        }
    }
}
