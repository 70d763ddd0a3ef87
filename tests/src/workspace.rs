//! Asks cargo where things are, and has it build them: for `xtask`, and for tests that run other tests.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Where cargo puts things.
#[derive(Deserialize)]
pub struct Workspace {
    /// The workspace's folder.
    #[serde(rename = "workspace_root")]
    pub root: PathBuf,
    /// Where it builds.
    #[serde(rename = "target_directory")]
    pub target: PathBuf,
    packages: Vec<Package>,
}

impl Workspace {
    /// Asks `cargo metadata`.
    pub fn find() -> Result<Workspace> {
        let mut command = cargo();
        command.args(["metadata", "--format-version=1", "--no-deps", "--offline"]);
        let out = command.output().context("Cannot run cargo")?;
        ensure!(out.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).context("cargo metadata printed something else than it documents")
    }

    /// Where the lab keeps its files.
    pub fn lab(&self) -> PathBuf {
        self.target.join("lab")
    }

    /// Builds the programs as tests use them.
    pub fn debug(&self) -> Result<()> {
        let status = cargo().args(["build", "--workspace", "--bins"]).current_dir(&self.root).status();
        ensure!(status.context("Cannot run cargo")?.success(), "cargo build failed");
        Ok(())
    }

    /// Builds the release programs with these names and returns their paths.
    pub fn release<'a>(&self, programs: impl IntoIterator<Item = &'a str>) -> Result<Vec<PathBuf>> {
        let artifacts = built(&mut self.release_command(cargo(), programs), "release")?;
        Ok(artifacts.into_iter().filter_map(|artifact| artifact.executable).collect())
    }

    /// Begins to build them, in what time of the processors nothing else wants. Whoever needs them asks for them by
    /// [`Workspace::release`], which waits for this, and hears of what went wrong.
    pub fn release_when_idle<'a>(&self, programs: impl IntoIterator<Item = &'a str>) -> Result<InBackground> {
        let mut idle = Command::new("chrt");
        idle.args(["--idle", "0"]).arg(cargo().get_program());
        let mut command = self.release_command(idle, programs);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(InBackground(command.spawn().context("Cannot run chrt (util-linux)")?))
    }

    fn release_command<'a>(&self, mut cargo: Command, programs: impl IntoIterator<Item = &'a str>) -> Command {
        cargo.args(["build", "--release"]).args(programs.into_iter().flat_map(|program| ["--bin", program]));
        self.of_all(&mut cargo);
        cargo
    }

    /// Builds the test programs that `select` names, and returns how to run each: a name for people, and a command.
    pub fn tests(&self, select: &[&str]) -> Result<Vec<(String, Command)>> {
        let mut command = cargo();
        self.of_all(command.args(["test", "--no-run"]).args(select));
        let artifacts = built(&mut command, "test")?;
        let mut tell_times = None;
        let program = |artifact: Artifact| {
            let dir = artifact.manifest_path.parent()?.to_owned();
            let name = format!("{} {}", dir.file_name()?.to_string_lossy(), artifact.target.name);
            let path = artifact.executable.filter(|_| artifact.profile.test)?;
            let mut command = Command::new(&path);
            command.arg("--show-output").env("CARGO_MANIFEST_DIR", &dir).current_dir(dir);
            if *tell_times.get_or_insert_with(|| with_times(Command::new(path).arg("--list")).output().is_ok_and(done))
            {
                with_times(&mut command);
            }
            Some((name, command))
        };
        Ok(artifacts.into_iter().filter_map(program).collect())
    }

    /// The names of a crate's test programs.
    pub fn tests_of(&self, package: &str) -> impl Iterator<Item = &str> {
        let targets = self.packages.iter().filter(move |of| of.name == package).flat_map(|of| &of.targets);
        targets.filter(|target| target.kind.iter().any(|kind| kind == "test")).map(|target| target.name.as_str())
    }

    /// The programs that the members build, by crate.
    pub fn programs(&self) -> impl Iterator<Item = (&str, &str)> {
        let targets =
            self.packages.iter().flat_map(|package| package.targets.iter().map(move |target| (package, target)));
        let programs = targets.filter(|(_, target)| target.kind.iter().any(|kind| kind == "bin"));
        programs.map(|(package, target)| (package.name.as_str(), target.name.as_str()))
    }

    /// How to run the documentation's tests, of all libraries: for one alone, cargo would build what that stands on once more, with the
    /// features that it alone needs.
    pub fn doc_tests(&self) -> Command {
        let mut command = cargo();
        command.args(["test", "--doc", "--workspace", "--", "--show-output"]).current_dir(&self.root);
        command
    }

    fn of_all(&self, cargo: &mut Command) {
        cargo.args(["--workspace", "--message-format=json-render-diagnostics"]).current_dir(&self.root);
    }
}

fn built(cargo: &mut Command, what: &str) -> Result<Vec<Artifact>> {
    let out = cargo.stderr(Stdio::inherit()).output().context("Cannot run cargo")?;
    ensure!(out.status.success(), "cargo's {what} build failed; its messages are above");
    let text = String::from_utf8_lossy(&out.stdout);
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// What goes on in the background, at most as long as this is there.
pub struct InBackground(Child);

impl Drop for InBackground {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Has the harness say how long each test takes, which it can, and which no promise is made of: whether it does has to be tried. (What is
/// built is the same: nothing but the harness hears of this.)
fn with_times(program: &mut Command) -> &mut Command {
    program.args(["-Zunstable-options", "--report-time"]).env("RUSTC_BOOTSTRAP", "1")
}

fn done(out: std::process::Output) -> bool {
    out.status.success()
}

/// A member of the workspace.
#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// The one kind of cargo's messages that matters here.
#[derive(Deserialize)]
pub struct Artifact {
    /// What can be run, where that is what was built.
    pub executable: Option<PathBuf>,
    manifest_path: PathBuf,
    target: Target,
    profile: Profile,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// The cargo that runs us.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
