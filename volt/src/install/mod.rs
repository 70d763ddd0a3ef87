//! `volt install` and `volt uninstall`: the services as units of systemd's. Writes below a root that the user names, `/` if none; each file
//! is there whole or not at all, and one that somebody else has written is left alone. Runs `systemctl`, where the root is `/` and systemd runs.

mod files;

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use confine::Policy;
use schema::paths::STATE;

use self::files::{File, Installation, MANAGER, MARK, files, links, unit};
use crate::{
    cli::InstallArgs,
    error::Error,
    host::{identity::Range, paths::Paths, services::Service},
    output::{print, say},
};

/// By which systemd says that it runs (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// Writes what there is to write, and has systemd listen.
pub fn install(policy: Policy, args: &InstallArgs) -> Result<i32, Error> {
    let root = &args.root;
    let here = root == Path::new("/");
    let paths = Paths::given(schema::paths::RUNTIME.into(), beneath(root, Path::new(STATE)))?;
    if here {
        // Two of one installation would change each other's rules.
        if let Some(served) = Service::ALL.into_iter().find(|one| is_embedded(&paths, *one)) {
            return Err(Error::Embedded { service: served.name() });
        }
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(root).map_err(unwritten(root))?;
    stays_within(root, &paths.state)?;
    fs::DirBuilder::new().recursive(true).mode(0o755).create(root.join("var/lib")).map_err(unwritten(root))?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&paths.state).map_err(unwritten(&paths.state))?;
    let instance = paths.instance()?;
    let programs = match &args.programs {
        Some(folder) => folder.clone(),
        None => paths.programs.clone(),
    };
    let installation = Installation { programs: &programs, state: Path::new(STATE), instance: &instance, policy };
    let range = Range::find()?;
    let manages = root.join(MANAGER).is_dir();
    let mut wanted = files(&installation, |service| range.service(service));
    wanted.retain(|file| manages || !file.path.starts_with(MANAGER));
    // All of them are looked at before one is written.
    for file in &wanted {
        let path = beneath(root, &file.path);
        stays_within(root, &path)?;
        if !is_ours(&path)?.unwrap_or(true) {
            return Err(Error::ForeignFile(path));
        }
    }
    for (link, to) in links() {
        let link = beneath(root, &link);
        stays_within(root, &link)?;
        if fs::symlink_metadata(&link).is_ok() && fs::read_link(&link).ok() != Some(to) {
            return Err(Error::ForeignFile(link));
        }
    }
    for file in &wanted {
        write(root, file)?;
    }
    for (link, to) in links() {
        let link = beneath(root, &link);
        make_folder(&link)?;
        match symlink(to, &link) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(unwritten(&link))?,
        }
    }
    if here && is_booted() {
        systemctl(&["daemon-reload"])?;
        let sockets = sockets();
        systemctl(&[&["start"][..], &sockets.iter().map(String::as_str).collect::<Vec<_>>()].concat())?;
    }
    print(&format!("{}: {} files\n", if here { "installed" } else { "written" }, wanted.len()))?;
    Ok(0)
}

/// Takes away what `install` has written, and nothing else: what the services keep stays.
pub fn uninstall(args: &InstallArgs) -> Result<i32, Error> {
    let root = &args.root;
    let installation =
        Installation { programs: Path::new("/"), state: Path::new(STATE), instance: "", policy: Policy::Strict };
    let stop = root == Path::new("/") && is_booted();
    if stop {
        let units = sockets().into_iter().chain(Service::ALL.map(|service| format!("{}.service", unit(service))));
        let units: Vec<String> = units.collect();
        // One that is not there is stopped.
        if let Err(error) = systemctl(&[&["stop"][..], &units.iter().map(String::as_str).collect::<Vec<_>>()].concat())
        {
            say(error.fault());
        }
    }
    let mut gone = 0;
    for (link, to) in links() {
        let link = beneath(root, &link);
        stays_within(root, &link)?;
        if fs::read_link(&link).is_ok_and(|leads| leads == to) {
            fs::remove_file(&link).map_err(unwritten(&link))?;
        }
    }
    for file in files(&installation, |_| None) {
        let path = beneath(root, &file.path);
        stays_within(root, &path)?;
        match is_ours(&path)? {
            Some(true) => {
                fs::remove_file(&path).map_err(unwritten(&path))?;
                gone += 1;
            }
            Some(false) => say(Error::ForeignFile(path).fault()),
            None => {}
        }
    }
    if stop {
        systemctl(&["daemon-reload"])?;
    }
    print(&format!("removed: {gone} files\n"))?;
    Ok(0)
}

fn sockets() -> Vec<String> {
    Service::ALL.map(|service| format!("{}.socket", unit(service))).to_vec()
}

/// Whether a service is there that systemd has not started.
fn is_embedded(paths: &Paths, service: Service) -> bool {
    let by_systemd = Path::new("/").join(files::UNITS).join(format!("{}.socket", unit(service))).exists();
    !by_systemd && ipc::is_served(&paths.service(service.name())).unwrap_or(false)
}

fn is_booted() -> bool {
    Path::new(BOOTED).is_dir()
}

/// A path below the root.
fn beneath(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// That the folder which a path is in, or is to be in, is below the root: a link in somebody's image may lead to this host's own files.
fn stays_within(root: &Path, path: &Path) -> Result<(), Error> {
    let Ok(root) = fs::canonicalize(root) else { return Ok(()) };
    let folder = path.ancestors().skip(1).find_map(|folder| fs::canonicalize(folder).ok());
    if folder.is_some_and(|folder| folder.starts_with(root)) {
        return Ok(());
    }
    let why = "a link below the root leads out of it; put a folder in its place";
    Err(Error::Unwritable { path: path.to_owned(), source: io::Error::other(why) })
}

/// Whether there is a file that `install` has made; `None` if there is none.
fn is_ours(path: &Path) -> Result<Option<bool>, Error> {
    // Not what a link leads to, and no more than the mark; nor is anybody waited for, whatever it is.
    let opened = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let mut begin = Vec::new();
    match opened.and_then(|file| file.take(MARK.len() as u64).read_to_end(&mut begin)) {
        Ok(_) => Ok(Some(begin == MARK.as_bytes())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) => Ok(Some(false)),
        Err(source) => Err(Error::OwnUnreadable { path: path.to_owned(), source }),
    }
}

fn make_folder(of: &Path) -> Result<(), Error> {
    let Some(folder) = of.parent() else { return Ok(()) };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(unwritten(folder))
}

/// Whole or not at all.
fn write(root: &Path, file: &File) -> Result<(), Error> {
    let path = beneath(root, &file.path);
    make_folder(&path)?;
    let new = path.with_extension("volt-new");
    // One that was left, which may be a link.
    _ = fs::remove_file(&new);
    let written = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new).and_then(|mut to| {
        // Whatever the umask is.
        to.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        to.write_all(file.text.as_bytes())?;
        to.sync_all()?;
        fs::rename(&new, &path)
    });
    written.map_err(|source| {
        _ = fs::remove_file(&new);
        Error::Unwritable { path, source }
    })
}

fn unwritten(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Unwritable { path: path.to_owned(), source }
}

/// Has systemd do something, and hears of it where it does not.
fn systemctl(words: &[&str]) -> Result<(), Error> {
    let command = || format!("systemctl {}", words.join(" "));
    let output = Command::new("systemctl").args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|source| Error::Systemctl { command: command(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(Error::Systemctl { command: command(), source: io::Error::other(said) })
}
