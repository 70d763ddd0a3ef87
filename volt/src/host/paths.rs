//! Where things are: the programs, the runtime directory with its sockets, the state directory.

use std::{
    env, fs,
    io::{self, Write},
    path::{self, Path, PathBuf},
};

use schema::{
    names::{INSTANCE_MAX, is_instance},
    paths::{FOLDER, INSTANCE, LOG, RUNTIME, RUNTIME_VARIABLE, STATE, STATE_VARIABLE, VMS, socket},
};

use crate::error::Error;

/// The directories of one Volt installation, as this user sees it.
#[derive(Debug, Clone)]
pub struct Paths {
    /// Sockets: `/run/volt-vmm`, or below the user's runtime directory.
    pub runtime: PathBuf,
    /// What survives a reboot: `/var/lib/volt-vmm`, or below the user's state directory.
    pub state: PathBuf,
    /// The folder that holds Volt's programs, `volt` among them.
    pub programs: PathBuf,
}

impl Paths {
    /// Finds the directories and makes the runtime and the state directory where they are absent (mode 0700).
    pub fn prepare() -> Result<Paths, Error> {
        let mut paths = Paths::find()?;
        paths.runtime = make_private(&paths.runtime, RUNTIME_VARIABLE)?;
        make_private(&paths.vms(), RUNTIME_VARIABLE)?;
        paths.state = make_private(&paths.state, STATE_VARIABLE)?;
        Ok(paths)
    }

    fn find() -> Result<Paths, Error> {
        let root = rustix::process::geteuid().is_root();
        let var = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let runtime = match var(RUNTIME_VARIABLE) {
            Some(dir) => dir,
            None if root => RUNTIME.into(),
            None => var("XDG_RUNTIME_DIR").ok_or(Error::NoDirectory("XDG_RUNTIME_DIR"))?.join(FOLDER),
        };
        let state = match (var(STATE_VARIABLE), var("XDG_STATE_HOME")) {
            (Some(dir), _) => dir,
            _ if root => STATE.into(),
            (_, Some(home)) => home.join(FOLDER),
            _ => var("HOME").ok_or(Error::NoDirectory("HOME"))?.join(".local/state").join(FOLDER),
        };
        // Absolute, for the services, which do not stay in the folder that they were started from.
        let absolute = |dir: PathBuf| path::absolute(&dir).map_err(|source| Error::NotAbsolute { dir, source });
        Paths::given(absolute(runtime)?, absolute(state)?)
    }

    /// The directories that another `volt` has found and made.
    pub fn given(runtime: PathBuf, state: PathBuf) -> Result<Paths, Error> {
        let exe = env::current_exe().map_err(Error::NoPrograms)?;
        let folder = exe.parent().ok_or(io::ErrorKind::NotADirectory.into());
        let programs = folder.map_err(Error::NoPrograms)?.to_path_buf();
        Ok(Paths { runtime, state, programs })
    }

    /// Socket of a system service.
    pub fn service(&self, name: &str) -> PathBuf {
        socket(&self.runtime, name)
    }

    /// Folder of the control sockets of running VMs.
    pub fn vms(&self) -> PathBuf {
        self.runtime.join(VMS)
    }

    /// Control socket of a VM.
    pub fn vm(&self, name: &str) -> PathBuf {
        socket(&self.vms(), name)
    }

    /// What tells this installation's bridges from those of another one on the same network: random, made once, and kept with the state.
    pub fn instance(&self) -> Result<String, Error> {
        let path = self.state.join(INSTANCE);
        let id = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.make_instance(&path).map_err(|source| Error::Unwritable { path: path.clone(), source })?;
                fs::read_to_string(&path)
            }
            read => read,
        };
        let id = id.map_err(|source| Error::OwnUnreadable { path: path.clone(), source })?;
        if id.len() == INSTANCE_MAX && is_instance(&id) && id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(id);
        }
        Err(Error::InstanceDamaged(path))
    }

    /// Makes the file whole or not at all, and keeps one that another process has made meanwhile.
    fn make_instance(&self, path: &Path) -> io::Result<()> {
        let random: [u8; INSTANCE_MAX / 2] = ipc::random()?;
        let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let new = self.state.join(format!("{INSTANCE}.{}", std::process::id()));
        let made = fs::File::create(&new).and_then(|mut file| {
            file.write_all(id.as_bytes())?;
            file.sync_all()?;
            match fs::hard_link(&new, path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            }
        });
        let removed = fs::remove_file(&new);
        made.and(removed)
    }

    /// What the services say.
    pub fn log(&self) -> PathBuf {
        self.state.join(LOG)
    }

    /// One of Volt's programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }
}

/// Makes `dir` for this user alone, or checks that no other user can write to it or move it: whoever could, could put
/// sockets of their own in the place of ours. Gives its path without symbolic links.
fn make_private(dir: &Path, variable: &'static str) -> Result<PathBuf, Error> {
    ipc::private_folder(dir).map_err(|source| Error::NotPrivate { dir: dir.to_owned(), variable, source })
}
