//! What the README and the pages of `docs/` show and name is so: their blocks run as they stand ([`volt_tests::docs`]),
//! and the files, headings and commands are there.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{
        fs::{OpenOptionsExt, symlink},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use schema::paths::{RUNTIME_VARIABLE, STATE_VARIABLE, USERS_LOCK};
use testkit::guest;
use volt_tests::{
    docs::{self, Block, Mark, Step},
    namespaces, python,
    volt::finish,
};

/// The hosts that the pages' blocks run on, a test each.
const HOSTS: [&str; 4] = ["backend", "network", "rpc", "vm"];
/// A debug build on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(60);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_owned()
}

/// Every page: its path below the workspace's folder, and what is in it.
fn pages() -> Result<Vec<(PathBuf, String)>> {
    let root = root();
    let mut paths = Vec::new();
    for folder in [root.clone(), root.join("docs"), root.join("examples")] {
        let files = fs::read_dir(&folder).with_context(|| format!("Cannot list {}", folder.display()))?;
        paths.extend(files.filter_map(|file| Some(file.ok()?.path())));
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    paths.into_iter().map(|path| Ok((path.strip_prefix(&root)?.to_owned(), fs::read_to_string(&path)?))).collect()
}

/// Every block, with its place for messages.
fn blocks() -> Result<Vec<(String, Block)>> {
    let mut all = Vec::new();
    for (path, page) in pages()? {
        let blocks = docs::blocks(&page).with_context(|| path.display().to_string())?;
        all.extend(blocks.into_iter().map(|block| (format!("{}:{}", path.display(), block.line), block)));
    }
    Ok(all)
}

#[test]
fn every_block_is_run_or_compared_by_something() -> Result<()> {
    let usage = Command::new(env!("CARGO_BIN_EXE_xtask")).output()?.stderr;
    let usage = String::from_utf8(usage)?;
    let known: BTreeSet<&str> = usage.split(|letter: char| !letter.is_alphanumeric() && letter != '-').collect();
    let blocks = blocks()?;
    for (at, block) in &blocks {
        match &block.mark {
            Mark::Host(name, _) => ensure!(HOSTS.contains(&name.as_str()), "{at}: no test runs the host {name}"),
            Mark::File(path) => {
                let file = fs::read_to_string(root().join(path)).with_context(|| format!("{at}: {path}"))?;
                ensure!(file == block.text, "{at}: {path} holds something else");
            }
            Mark::Xtask => {
                for line in block.text.lines() {
                    let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
                    let is_xtask = words.next() == Some("cargo") && words.next() == Some("xtask");
                    ensure!(is_xtask, "{at}: {line:?} is no command of cargo xtask");
                    let unknown = words.find(|word| !known.contains(word));
                    ensure!(unknown.is_none(), "{at}: cargo xtask does not speak of {unknown:?}");
                }
            }
            Mark::Venv | Mark::Shown => {}
        }
    }
    for host in HOSTS {
        let on_it = |(_, block): &&(String, Block)| matches!(&block.mark, Mark::Host(name, Step::Run | Step::Serve(_)) if name == host);
        ensure!(blocks.iter().any(|block| on_it(&block)), "No page runs anything on the host {host}");
    }
    Ok(())
}

#[test]
fn first_vm_runs_from_its_command_line_and_from_its_file() -> Result<()> {
    const NAME: &str = "first_vm_runs_from_its_command_line_and_from_its_file";
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        testkit::skip!("/dev/kvm cannot be opened: {error}");
        return Ok(());
    }
    namespaces::test(NAME, || run_on("vm"))
}

#[test]
fn python_client_leases_an_address_of_the_network_that_is_built_in() -> Result<()> {
    const NAME: &str = "python_client_leases_an_address_of_the_network_that_is_built_in";
    if !namespaces::inside()
        && let Err(why) = python::with_pycapnp(&root())?
    {
        testkit::skip!("{why}");
        return Ok(());
    }
    namespaces::test(NAME, || run_on("rpc"))
}

#[test]
fn network_is_defined_and_listed() -> Result<()> {
    namespaces::test("network_is_defined_and_listed", || run_on("network"))
}

#[test]
fn backend_listens_on_the_socket_that_it_is_given() -> Result<()> {
    namespaces::test("backend_listens_on_the_socket_that_it_is_given", || run_on("backend"))
}

/// Inside its namespaces: does what the blocks of this host say, on one that nothing has run on.
fn run_on(host: &str) -> Result<()> {
    let dir = prepare_folder(host)?;
    prepare_host(&dir)?;
    let mut printed = None;
    for (at, block) in blocks()? {
        let Mark::Host(name, step) = block.mark else { continue };
        if name != host {
            continue;
        }
        println!("{at}:\n{}", block.text);
        match step {
            Step::Write(path) => fs::write(dir.join(path), block.text)?,
            Step::Run => printed = Some(run(&dir, &block.text).with_context(|| at)?),
            Step::Expect => {
                let printed = printed.take().with_context(|| format!("{at}: nothing was run before it"))?;
                ensure!(printed == block.text, "{at}: what was printed is\n{printed}");
            }
            Step::Serve(socket) => serve(&dir, &block.text, &socket).with_context(|| at)?,
        }
    }
    Ok(())
}

/// The folder that blocks run in: this repository's as far as they name it, and the files of a guest.
fn prepare_folder(host: &str) -> Result<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("docs").join(host);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    for ours in ["schema", "examples", "target"] {
        symlink(root().join(ours), dir.join(ours))?;
    }
    fs::write(dir.join("vmlinuz"), guest::elf(&[&guest::print("up\n")[..], guest::POWEROFF].concat(), 0))?;
    fs::write(dir.join("initrd"), "some bytes")?;
    fs::File::create(dir.join("disk.img"))?.set_len(1 << 20)?;
    Ok(dir)
}

/// The directories of an installation, where no variable says otherwise, and the programs.
fn prepare_host(dir: &Path) -> Result<()> {
    // Which users have a VM is this machine's affair: a VM of the test's takes none that another has.
    let open = || fs::File::options().write(true).create(true).truncate(false).mode(0o600).open(USERS_LOCK);
    let kept = dir.join("users.lock");
    open()?;
    fs::File::create(&kept)?;
    bind(Path::new(USERS_LOCK), &kept)?;
    namespaces::prepare(Path::new("/run"))?;
    namespaces::prepare(Path::new("/var/lib"))?;
    open()?;
    bind(&kept, Path::new(USERS_LOCK))?;
    // Tests are in <profile>/deps, the programs in <profile>. Seen through a mount, they are there for every user.
    let test = std::env::current_exe()?;
    let built = test.ancestors().nth(2).context("The test is not where cargo puts tests")?;
    ensure!(built.join("volt").exists(), "There is no {}/volt: run cargo build --workspace", built.display());
    fs::create_dir("/run/programs")?;
    bind(built, Path::new("/run/programs"))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("mount").arg("--bind").args([from, to]).status().context("Cannot run mount")?;
    ensure!(status.success(), "{} cannot be mounted on {}", from.display(), to.display());
    Ok(())
}

fn shell(dir: &Path, script: &str) -> Result<Command> {
    let path = std::env::var("PATH").context("PATH is not set")?;
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(dir).env("PATH", format!("/run/programs:{path}"));
    // What somebody else's environment says is not what a newcomer's does.
    command.env_remove(RUNTIME_VARIABLE).env_remove(STATE_VARIABLE).env_remove("XDG_STATE_HOME");
    Ok(command)
}

/// Runs commands to their end, and gives what they printed.
fn run(dir: &Path, script: &str) -> Result<String> {
    let out = finish(shell(dir, script)?, PATIENCE)?;
    let said = String::from_utf8_lossy(&out.stderr);
    let printed = String::from_utf8(out.stdout)?;
    println!("{printed}{said}");
    ensure!(out.status.success(), "It ended with {}: {said}", out.status);
    Ok(printed)
}

/// Starts a program, connects to its socket as a frontend does, and goes again.
fn serve(dir: &Path, script: &str, socket: &str) -> Result<()> {
    let mut child = shell(dir, script)?.spawn()?;
    let end = Instant::now() + PATIENCE;
    let mut met = false;
    let outcome = loop {
        if let Some(status) = child.try_wait()? {
            break ensure_served(met, status);
        }
        if Instant::now() > end {
            break Err(anyhow::anyhow!("It still runs; its socket was {}", if met { "met" } else { "never there" }));
        }
        met = met || UnixStream::connect(dir.join(socket)).is_ok();
        thread::sleep(Duration::from_millis(10));
    };
    let _ = child.kill();
    let _ = child.wait();
    outcome
}

fn ensure_served(met: bool, status: std::process::ExitStatus) -> Result<()> {
    ensure!(met, "It ended with {status} before its socket was there");
    ensure!(status.success(), "It ended with {status} when its frontend went");
    Ok(())
}

/// What stands between backticks outside of blocks.
fn code_spans(page: &str) -> Vec<String> {
    let mut text = String::new();
    let mut in_block = false;
    for line in page.lines() {
        if line.starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            text.extend([line.trim(), " "]);
        }
    }
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn files_that_a_page_names_are_there() -> Result<()> {
    let ours: BTreeSet<String> = fs::read_dir(root())?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name != "target")
        .collect();
    for (page, text) in pages()? {
        for span in code_spans(&text) {
            if span.split_once('/').is_some_and(|(first, _)| ours.contains(first)) && !span.contains(['*', ' ']) {
                ensure!(root().join(&span).exists(), "{}: there is no {span}", page.display());
            }
        }
    }
    Ok(())
}

#[test]
fn links_lead_to_pages_and_headings_that_are_there() -> Result<()> {
    let pages = pages()?;
    for (path, text) in &pages {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let to = if file.is_empty() { path.clone() } else { path.with_file_name(file) };
            let found = pages.iter().find(|(page, _)| *page == to);
            let Some((_, page)) = found else { bail!("{}: {link} leads to no page", path.display()) };
            let there = heading.is_empty() || page.lines().any(|line| anchor(line) == heading);
            ensure!(there, "{}: {link} leads to no heading", path.display());
        }
    }
    Ok(())
}

/// What a heading is linked by.
fn anchor(line: &str) -> String {
    let Some((_, title)) = line.split_once("# ") else { return String::new() };
    let letters = title.to_lowercase().replace(' ', "-");
    letters.chars().filter(|letter| letter.is_alphanumeric() || *letter == '-').collect()
}

#[test]
fn commands_of_volt_that_a_page_names_are_there_with_their_flags() -> Result<()> {
    let volt = Path::new(env!("CARGO_BIN_EXE_xtask")).with_file_name("volt");
    ensure!(volt.exists(), "There is no {}: run cargo build --workspace", volt.display());
    for (page, text) in pages()? {
        for span in code_spans(&text).iter().filter(|span| span.starts_with("volt ")) {
            let words: Vec<&str> = span.split_whitespace().skip(1).collect();
            let is_name = |word: &&&str| word.chars().all(|letter| letter.is_ascii_lowercase());
            let commands: Vec<&str> = words.iter().take_while(is_name).copied().collect();
            let out = Command::new(&volt).args(&commands).arg("--help").output()?;
            ensure!(out.status.success(), "{}: there is no command {span}", page.display());
            let help = String::from_utf8(out.stdout)?;
            for word in words.iter().map(|word| word.trim_matches(['[', ']'])).filter(|word| word.starts_with("--")) {
                let flag = word.split('=').next().unwrap_or_default();
                ensure!(help.contains(flag), "{}: {span}: there is no {flag}", page.display());
            }
        }
    }
    Ok(())
}

#[test]
fn readme_is_a_newcomer_s_page_and_tables_fit_a_screen() -> Result<()> {
    for (page, text) in pages()? {
        if page == Path::new("README.md") {
            ensure!(text.lines().count() <= 150, "The README has {} lines: 150 are enough", text.lines().count());
        }
        let long = text.lines().find(|line| line.starts_with('|') && line.chars().count() > 120);
        ensure!(long.is_none(), "{}: a row of a table is longer than 120 characters: {long:?}", page.display());
    }
    Ok(())
}
