//! Gets what the lab and the demo need from Debian's archive: installed packages, and stock
//! cloud kernels unpacked under `target/lab` without being installed.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::kernel_image;

/// A stock Debian kernel, unpacked.
pub struct Kernel {
    /// The series that tests and figures name it by: "6.1" or "6.12", or "full".
    pub series: &'static str,
    /// The image as Debian ships it.
    pub bzimage: PathBuf,
    /// The ELF that the image unpacks to.
    pub elf: PathBuf,
    /// `/lib/modules/<release>`, with `modules.dep`.
    modules: PathBuf,
}

/// The kernel series of Debian 12 and the package that always depends on the newest of each: of clouds, which have no drivers of network cards, and of other
/// machines.
const SERIES: [(&str, &str); 3] =
    [("6.1", "linux-image-cloud-amd64"), ("6.12", "linux-image-6.12-cloud-amd64"), ("full", "linux-image-amd64")];

impl Kernel {
    /// Fetches and unpacks the newest kernel of `series`, unless `lab` holds one already.
    pub fn fetch(lab: &Path, series: &str) -> Result<Kernel> {
        let (series, meta) = SERIES
            .into_iter()
            .find(|(name, _)| *name == series)
            .with_context(|| format!("There is no kernel series {series} in Debian 12"))?;
        let dir = lab.join("kernels").join(series);
        if !dir.join("complete").exists() {
            unpack(&dir, meta).with_context(|| format!("Cannot get Debian's {series} kernel"))?;
        }
        let release = fs::read_to_string(dir.join("complete"))?;
        Ok(Kernel {
            series,
            bzimage: dir.join("boot").join(format!("vmlinuz-{release}")),
            elf: dir.join("vmlinux"),
            modules: dir.join("lib/modules").join(&release),
        })
    }

    /// The modules with these names and all they depend on, as (file name, content), in the order in
    /// which they have to be inserted. A name that is built into this kernel has no file and is left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let dep = self.modules.join("modules.dep");
        let dep = fs::read_to_string(&dep).with_context(|| format!("Cannot read {}", dep.display()))?;
        let mut order = Vec::new();
        for name in names {
            let stem = |path: &str| {
                let file = path.rsplit('/').next().unwrap_or(path);
                file.split(".ko").next().unwrap_or(file).replace('-', "_")
            };
            let Some((path, needs)) = dep
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(path, _)| stem(path) == name.replace('-', "_"))
            else {
                continue;
            };
            // modules.dep lists what a module needs with the deepest dependency last.
            let needs = needs.split_whitespace().rev();
            order.extend(needs.chain([path]).map(str::to_owned));
        }
        let mut seen = BTreeSet::new();
        order.retain(|path| seen.insert(path.clone()));
        order.iter().map(|path| self.module(path)).collect()
    }

    fn module(&self, path: &str) -> Result<(String, Vec<u8>)> {
        let file = path.rsplit('/').next().unwrap_or(path);
        let content = fs::read(self.modules.join(path)).with_context(|| format!("Cannot read module {path}"))?;
        match file.strip_suffix(".xz") {
            Some(name) => Ok((name.to_owned(), kernel_image::unpack_xz(&content)?)),
            None => Ok((file.to_owned(), content)),
        }
    }
}

fn unpack(dir: &Path, meta: &str) -> Result<()> {
    install(&["kmod"])?;
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir)?;
    let (package, release) = match newest(meta) {
        Ok(found) => found,
        Err(_) => {
            refresh()?;
            newest(meta)?
        }
    };
    say(&format!("downloading {package}"));
    if download(dir, &package).is_err() {
        // The archive may have moved on since the lists were read.
        refresh()?;
        download(dir, &package)?;
    }
    unpack_downloaded(dir)?;
    run(Command::new("depmod").arg("-b").arg(dir).arg(&release))?;
    let bzimage = fs::read(dir.join("boot").join(format!("vmlinuz-{release}")))?;
    fs::write(dir.join("vmlinux"), kernel_image::elf(&bzimage)?)?;
    // Written last: its presence says that everything else is there.
    fs::write(dir.join("complete"), release)?;
    Ok(())
}

/// The kernel package that `meta` depends on, and the kernel release in its name.
fn newest(meta: &str) -> Result<(String, String)> {
    let shown = output(Command::new("apt-cache").args(["show", "--no-all-versions", meta]))?;
    let package = shown
        .lines()
        .filter_map(|line| line.strip_prefix("Depends:"))
        .flat_map(|depends| depends.split(','))
        .filter_map(|depend| depend.split_whitespace().next())
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("Package {meta} names no kernel"))?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    Ok((package.to_owned(), release))
}

/// Downloads a package of this machine's architecture into `dir`.
pub fn download(dir: &Path, package: &str) -> Result<()> {
    run(Command::new("apt-get")
        .args(["download", "-q", package])
        // The fetching user of apt cannot write below a private target directory.
        .args(["-o", "APT::Sandbox::User=root"])
        .current_dir(dir))
}

/// Unpacks the packages that were downloaded into `dir` there, and deletes them.
pub fn unpack_downloaded(dir: &Path) -> Result<()> {
    let files = fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    for deb in files.filter(|path| path.extension().is_some_and(|e| e == "deb")) {
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(dir))?;
        fs::remove_file(&deb)?;
    }
    Ok(())
}

/// What Debian's podman, containerd and runc take beyond what each Debian has; and the loopback interface of pods, which is a plugin.
const ENGINES: [&str; 12] = [
    "conmon",
    "containerd",
    "containernetworking-plugins",
    "golang-github-containers-common",
    "golang-github-containers-image",
    "libassuan0",
    "libdevmapper1.02.1",
    "libglib2.0-0",
    "libgpgme11",
    "libsubid4",
    "podman",
    "runc",
];

/// Debian's container engines, unpacked into `dir` and not installed: nothing of them is started, or stays on this machine.
pub fn engines(dir: &Path) -> Result<()> {
    let (complete, all) = (dir.join("complete"), ENGINES.join("\n"));
    if fs::read_to_string(&complete).is_ok_and(|there| there == all) {
        return Ok(());
    }
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir)?;
    say("downloading container engines");
    let downloaded = || ENGINES.iter().try_for_each(|package| download(dir, package));
    if downloaded().is_err() {
        refresh()?;
        downloaded()?;
    }
    unpack_downloaded(dir)?;
    // Written last: it says what else is there.
    Ok(fs::write(complete, all)?)
}

/// What the lab host under systemd has beyond what each Debian has.
const HOST: &str = "--include=dbus,iproute2,kmod,systemd,systemd-sysv,udev";

/// A root file system of Debian 12 below `dir`, as its installer makes the smallest.
pub fn root(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("root");
    if !dir.join("complete").exists() {
        install(&["debootstrap"])?;
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir)?;
        say("making a root file system of Debian");
        let options = ["--variant=minbase", HOST, "bookworm"];
        run(Command::new("debootstrap").args(options).arg(&root).arg(mirror()?))?;
        // Written last: its presence says that everything else is there.
        fs::write(dir.join("complete"), "")?;
    }
    Ok(root)
}

/// Where this machine gets Debian 12 from: what apt says. Backports are beside it on every mirror.
pub fn mirror() -> Result<String> {
    let mut list = Command::new("apt-get");
    list.args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
        "Codename: bookworm",
    ]);
    first(&output(&mut list)?)
}

fn first(listed: &str) -> Result<String> {
    let first = listed.lines().map(str::trim).find(|line| !line.is_empty());
    first.map(str::to_owned).context(
        "apt knows no mirror of Debian 12 (`apt-get indextargets` lists none). Name one in /etc/apt/sources.list, and run \
         `apt-get update`",
    )
}

/// Installs those of `packages` that are missing. Needs root only if one is.
pub fn install(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    ensure!(
        rustix::process::geteuid().is_root(),
        "Missing packages: {names}. Install them (`sudo apt-get install {names}`), or run this as root"
    );
    say(&format!("installing {names}"));
    let install = || {
        run(Command::new("apt-get")
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(["-o", "DPkg::Lock::Timeout=600"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive"))
    };
    if install().is_err() {
        refresh()?;
        install().with_context(|| format!("Cannot install {names}"))?;
    }
    Ok(())
}

fn installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

fn refresh() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "Debian's package lists are missing or old. Run `sudo apt-get update`, or run this as root"
    );
    say("reading Debian's package lists");
    run(Command::new("apt-get")
        .args(["update", "-q", "--error-on=any"])
        .args(["-o", "DPkg::Lock::Timeout=600"]))
    .context("Cannot reach Debian's archive. Connect this machine to the network, or to a mirror named in /etc/apt/sources.list")
}

/// Says on stderr what takes time.
pub fn say(what: &str) {
    eprintln!("xtask: {what}");
}

/// Runs a program quietly; its output is the error's text when it fails.
pub fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs a program and returns its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = match command.output() {
        Ok(out) => out,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            bail!("{name} is not installed; this needs Debian 12 or a system with its tools")
        }
        Err(e) => return Err(anyhow!(e).context(format!("Cannot run {name}"))),
    };
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr);
        bail!("{name} failed with {}: {}", out.status, text.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{Kernel, first};

    #[test]
    fn modules_come_once_and_after_what_they_need() {
        let dir = tempfile::tempdir().unwrap();
        // As depmod writes it: what is needed first stands last.
        let dep = "kernel/a/kvm-amd.ko: kernel/a/kvm.ko kernel/b/irqbypass.ko\nkernel/a/kvm.ko: kernel/b/irqbypass.ko\n\
                   kernel/b/irqbypass.ko:\n";
        std::fs::write(dir.path().join("modules.dep"), dep).unwrap();
        for name in ["a/kvm-amd.ko", "a/kvm.ko", "b/irqbypass.ko"] {
            let path = dir.path().join("kernel").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        let kernel = Kernel {
            series: "6.1",
            bzimage: Default::default(),
            elf: Default::default(),
            modules: dir.path().to_owned(),
        };
        let modules = kernel.modules(&["kvm_amd", "kvm", "built_in"]).unwrap();
        let names: Vec<&str> = modules.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["irqbypass.ko", "kvm.ko", "kvm-amd.ko"]);
        assert_eq!(modules[0].1, b"b/irqbypass.ko");
    }

    #[test]
    fn mirror_is_the_first_that_apt_lists_and_none_says_what_to_do() {
        assert_eq!(first("\nmirror one\nmirror two\n").unwrap(), "mirror one");
        for none in ["", "\n \n"] {
            assert!(first(none).unwrap_err().to_string().contains("/etc/apt/sources.list"));
        }
    }
}
