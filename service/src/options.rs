//! The arguments that every service has. Makes folders; opens no file.

use std::path::PathBuf;

use confine::{Policy, User};

use crate::{Error, listen::Listen};

/// What every service is told; to be flattened into its own arguments.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub(crate) listen: Listen,
    /// Become this user, with nothing in sight but what this service keeps; takes root
    #[arg(long, value_name = "UID")]
    pub(crate) user: Option<User>,
    /// What to do where the kernel lacks a layer of confinement: strict (refuse to start) or best-effort (say so)
    #[arg(long, value_name = "POLICY", default_value_t = Policy::BestEffort)]
    pub(crate) confinement: Policy,
}

impl Options {
    /// What a missing layer of confinement means.
    pub fn policy(&self) -> Policy {
        self.confinement
    }

    /// The user to become.
    pub fn user(&self) -> Option<User> {
        self.user
    }
}

/// Where a service keeps its state; to be flattened into its own arguments.
#[derive(Debug, clap::Args)]
pub struct StateDir {
    /// Directory of what this service keeps; made, for this user only, if it is not there
    #[arg(id = "state_dir", long = "state-dir", value_name = "DIR")]
    pub path: PathBuf,
}

impl StateDir {
    /// Makes the directory, or checks that nobody else can put anything there: its path without symbolic links.
    ///
    /// # Errors
    /// [`Error::StateDir`].
    pub fn take(&self, options: &Options) -> Result<PathBuf, Error> {
        ipc::private_folder_for(options.user.map(User::uid), &self.path).map_err(|error| self.failed(error))
    }

    /// An error of this directory.
    pub fn failed(&self, error: impl Into<std::io::Error>) -> Error {
        Error::StateDir(self.path.clone(), error.into())
    }
}
