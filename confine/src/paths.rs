//! Landlock: the few paths that stay reachable, and the denial of all other paths, of network and of scopes.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
    make_bitflags,
};

use rustix::fs::{self, FileType, Mode, OFlags};

use crate::error::Error;

/// The newest ABI that this code was written for; on older kernels the crate takes what they have.
const NEWEST: ABI = ABI::V10;

/// What remains allowed on a path.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    DirRw,
    DirRemove,
    DirRo,
    DirExec,
    FileRw,
    Devices,
}

impl Access {
    fn rights(self) -> BitFlags<AccessFs> {
        match self {
            Access::DirRw => make_bitflags!(AccessFs::{
                ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | RemoveFile | RemoveDir | Refer
            }),
            Access::DirRemove => make_bitflags!(AccessFs::{ReadDir | RemoveFile | RemoveDir}),
            Access::DirRo => make_bitflags!(AccessFs::{ReadFile | ReadDir}),
            Access::DirExec => make_bitflags!(AccessFs::{ReadFile | Execute}),
            Access::FileRw => make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate | IoctlDev}),
            Access::Devices => make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev}),
        }
    }
}

/// The paths, opened while that is still possible.
pub(crate) struct Paths(Vec<PathBeneath<OwnedFd>>);

impl Paths {
    pub(crate) fn open(paths: &[(PathBuf, Access)], programs: Vec<OwnedFd>) -> Result<Paths, Error> {
        let open = |(path, access): &(PathBuf, Access)| {
            let failed = |errno: rustix::io::Errno| Error::Path { path: path.clone(), source: errno.into() };
            let fd = fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
            let kind = FileType::from_raw_mode(fs::fstat(&fd).map_err(failed)?.st_mode);
            let wanted = if matches!(access, Access::FileRw) { "file" } else { "directory" };
            if (kind == FileType::Directory) != (wanted == "directory") {
                return Err(Error::PathKind { path: path.clone(), wanted });
            }
            Ok(PathBeneath::new(fd, access.rights()))
        };
        let programs = programs.into_iter().map(|fd| Ok(PathBeneath::new(fd, Access::DirExec.rights())));
        paths.iter().map(open).chain(programs).collect::<Result<_, _>>().map(Paths)
    }

    /// Denies all but these paths to this process for good, and signals to others, where they are not `enclosed` already.
    pub(crate) fn restrict(self, enclosed: bool) -> Result<(), Error> {
        let signals = if enclosed { Scope::Signal.into() } else { BitFlags::EMPTY };
        let rules = self.0.into_iter().map(Ok::<_, landlock::RulesetError>);
        Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST) & !signals)?
            .create()?
            .add_rules(rules)?
            .restrict_self()?;
        Ok(())
    }
}

/// That the calling process, and what it starts from now on, can signal one another and nobody else ([`enclose`]).
#[derive(Debug)]
pub struct Enclosure(());

/// Keeps signals among the calling process and those that it starts from now on, for whoever confines itself later and is
/// to end them ([`Sandbox::signals_within`](crate::Sandbox::signals_within)): [`Sandbox::confine`](crate::Sandbox::confine)
/// alone lets a process signal none that was there before. Takes away the means to gain rights by an exec as well.
///
/// # Errors
///
/// Where the kernel has this and refuses it.
pub fn enclose() -> Result<Enclosure, Error> {
    Ruleset::default().scope(Scope::Signal)?.create()?.restrict_self()?;
    Ok(Enclosure(()))
}
