//! Where things are: the programs, the runtime directory with its sockets, the state directory.

use std::{
    env,
    path::{self, Path, PathBuf},
};

use ipc::{Code, Fault};

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
    pub fn prepare() -> Result<Paths, Fault> {
        let mut paths = Paths::find()?;
        paths.runtime = make_private(&paths.runtime, "VOLT_RUNTIME_DIR")?;
        make_private(&paths.vms(), "VOLT_RUNTIME_DIR")?;
        paths.state = make_private(&paths.state, "VOLT_STATE_DIR")?;
        Ok(paths)
    }

    fn find() -> Result<Paths, Fault> {
        let root = rustix::process::geteuid().is_root();
        let var = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let none = |name: &str| {
            Fault::new(
                Code::Unavailable,
                "find Volt's directories",
                format!("{name} is not set"),
                "Set VOLT_RUNTIME_DIR and VOLT_STATE_DIR, or run as root",
            )
        };
        let runtime = match var("VOLT_RUNTIME_DIR") {
            Some(dir) => dir,
            None if root => "/run/volt-vmm".into(),
            None => var("XDG_RUNTIME_DIR").ok_or_else(|| none("XDG_RUNTIME_DIR"))?.join("volt-vmm"),
        };
        let state = match (var("VOLT_STATE_DIR"), var("XDG_STATE_HOME")) {
            (Some(dir), _) => dir,
            _ if root => "/var/lib/volt-vmm".into(),
            (_, Some(home)) => home.join("volt-vmm"),
            _ => var("HOME").ok_or_else(|| none("HOME"))?.join(".local/state/volt-vmm"),
        };
        // Absolute, for the services, which do not stay in the folder that they were started from.
        let absolute = |dir: PathBuf| {
            let tried = format!("use the directory {}", dir.display());
            let remedy = "Name an absolute path";
            path::absolute(dir).map_err(|e| Fault::new(Code::Unavailable, tried, e.to_string(), remedy))
        };
        Paths::given(absolute(runtime)?, absolute(state)?)
    }

    /// The directories that another `volt` has found and made.
    pub fn given(runtime: PathBuf, state: PathBuf) -> Result<Paths, Fault> {
        let fault =
            || Fault::new(Code::Unavailable, "find Volt's programs", "/proc/self/exe cannot be read", "Mount /proc");
        let exe = env::current_exe().map_err(|_| fault())?;
        let programs = exe.parent().ok_or_else(fault)?.to_path_buf();
        Ok(Paths { runtime, state, programs })
    }

    /// Socket of a system service.
    pub fn service(&self, name: &str) -> PathBuf {
        self.runtime.join(format!("{name}.sock"))
    }

    /// Folder of the control sockets of running VMs.
    pub fn vms(&self) -> PathBuf {
        self.runtime.join("vms")
    }

    /// Control socket of a VM.
    pub fn vm(&self, name: &str) -> PathBuf {
        self.vms().join(format!("{name}.sock"))
    }

    /// What the services say.
    pub fn log(&self) -> PathBuf {
        self.state.join("services.log")
    }

    /// One of Volt's programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }
}

/// Makes `dir` for this user alone, or checks that no other user can write to it or move it: whoever could, could put
/// sockets of their own in the place of ours. Gives its path without symbolic links.
fn make_private(dir: &Path, variable: &str) -> Result<PathBuf, Fault> {
    ipc::private_folder(dir).map_err(|e| {
        let remedy = format!("Make it a directory of mode 0700 that you own, or name another one in {variable}");
        Fault::new(Code::PermissionDenied, format!("use the directory {}", dir.display()), e.to_string(), remedy)
    })
}
