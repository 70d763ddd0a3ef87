//! The short commands: list and stop VMs, define networks, keep kernels. Each opens what it needs, confines itself, then asks.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use confine::{Policy, Sandbox};
use futures::{FutureExt, future::join_all};
use ipc::{Code, Connection, chain};
use schema::{
    addresses_capnp::MAX_CONFIG_BYTES,
    kernel_store_capnp::{kernel_info, kernel_store},
    names,
    paths::of_socket,
    programs::CLIENT,
    vm_capnp::{vm, vm_info},
};

use crate::{
    cli::{Command, KernelCommand, NetworkCommand, PolicyArgs, PortCommand, PublishArgs, RateArgs, StopArgs},
    config::{Rate, check_file, check_name, check_published, rules},
    error::Error,
    filters,
    host::{
        isolated::{self, Handed},
        keeper, kernels,
        links::{self, CALL_DEADLINE, Dialled, has_ended, runtime},
        networks,
        paths::Paths,
        published::{Guest, Held, Publish},
        services::{self, Service},
        told, unpinner,
    },
    output::{print, print_rows, printable, say},
};

const STATS: [&str; 10] =
    ["NETWORK", "WORKLOAD", "SENT", "RECEIVED", "ALLOWED", "DENIED", "FORGED", "RATE", "OVER SENT", "OVER RECEIVED"];

/// How long the end of a VM may take beyond the guest's grace: stopped and frozen processes have their time, and services.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// How long a VM has to say how it is: a list is of now.
const LIST_DEADLINE: Duration = Duration::from_secs(2);
/// The state of one that does not, and the code that a list with such a VM ends with (`cli.rs` documents both).
const UNREACHABLE: &str = "unreachable";
const NOT_ALL_ANSWERED: i32 = 3;

/// What a network takes.
const NETWORK: [Service; 2] = [Service::Ipamd, Service::Netmgr];

/// Runs one of them.
pub fn main(policy: Policy, command: &Command) -> Result<i32, Error> {
    let paths = Paths::prepare()?;
    let policy = told::once(&paths, policy);
    match command {
        Command::List => list(&paths, policy),
        Command::Stop(args) => stop(&paths, policy, args),
        Command::Network(NetworkCommand::Define { file }) => define_network(&paths, policy, file),
        Command::Network(NetworkCommand::Remove { name }) => remove_network(&paths, policy, name),
        Command::Network(NetworkCommand::List) => ask(&paths, policy, &[Service::Ipamd], &[], async |links| {
            print_rows(&["NETWORK", "TYPE", "SUBNET", "FREE"], &networks::list(first(&links)?).await?)
        }),
        Command::Network(NetworkCommand::Show { name }) => {
            let handed = isolated::open(&paths, name)?;
            ask(&paths, policy, &NETWORK, &sockets(handed.as_ref()), async |links| {
                let [ipamd, netmgr] = links.as_slice() else { return Err(Error::NoLink) };
                let row = networks::show(netmgr, ipamd, name, handed.as_ref()).await?;
                print_rows(
                    &["NETWORK", "TYPE", "SUBNET", "GATEWAY", "GATEWAY6", "POOL", "FREE", "MTU", "PORTS"],
                    &[row],
                )
            })
        }
        Command::Network(NetworkCommand::Export { name }) => {
            ask(&paths, policy, &[Service::Ipamd], &[], async |links| {
                print(&format!("{}\n", networks::export(first(&links)?, name).await?))
            })
        }
        Command::Port(PortCommand::List) => ask_netmgr(&paths, policy, isolated::all(&paths)?, &[], async |netmgr| {
            let rows = networks::ports(netmgr).await?;
            let rows: Vec<_> = rows.into_iter().map(|row| row.who).collect();
            print_rows(&["NETWORK", "WORKLOAD", "INTERFACE", "MAC", "ADDRESSES", "PUBLISHED"], &rows)
        }),
        Command::Port(PortCommand::Stats) => ask_netmgr(&paths, policy, isolated::all(&paths)?, &[], async |netmgr| {
            let rows = networks::ports(netmgr).await?;
            let counted = |networks::PortRow { who: [network, workload, ..], counts: [a, b, c, d, e, f, g, h] }| {
                [network, workload, a, b, c, d, e, f, g, h]
            };
            print_rows(&STATS, &rows.into_iter().map(counted).collect::<Vec<_>>())
        }),
        Command::Port(PortCommand::Policy(args)) => port_policy(&paths, policy, args),
        Command::Port(PortCommand::Rate(args)) => port_rate(&paths, policy, args),
        Command::Port(PortCommand::Publish(args)) => publish(&paths, policy, args),
        Command::Port(PortCommand::Unpublish(args)) => unpublish(&paths, policy, args),
        Command::Kernel(command) => kernel(&paths, policy, command),
        Command::Run(_) | Command::Keep(_) | Command::Doctor(_) | Command::Install(_) | Command::Uninstall(_) => Ok(0),
    }
}

fn list(paths: &Paths, policy: Policy) -> Result<i32, Error> {
    let dir = paths.vms();
    let failed = |source| Error::OwnUnreadable { path: paths.vms(), source };
    let (mut asked, mut rows, mut dialled) = (Vec::new(), Vec::new(), Vec::new());
    let end = Instant::now() + LIST_DEADLINE;
    for entry in fs::read_dir(&dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str().and_then(of_socket) else { continue };
        if check_name(name).is_err() {
            continue;
        }
        match Dialled::dial_until(&paths.vm(name), end) {
            Ok(vm) => {
                dialled.push(vm);
                asked.push(name.to_owned());
            }
            Err(e) if has_ended(&e) => {}
            Err(e) => rows.push(unreachable(name, &chain(&e))),
        }
    }
    confined(policy, dialled, &[], async |links| {
        let answers = links.iter().zip(&asked).map(async |(link, name)| {
            let request = link.bootstrap::<vm::Client>().info_request();
            let answer = link.call("ask a VM about itself", LIST_DEADLINE, request.send()).await;
            match answer.and_then(|answer| Ok(vm_row(answer.get()?.get_info()?)?)) {
                Ok(row) => Some(row),
                // It has ended meanwhile.
                Err(fault) if fault.code == Code::Unavailable && link.closed().now_or_never().is_some() => None,
                Err(fault) => Some(unreachable(name, &fault.to_string())),
            }
        });
        rows.extend(join_all(answers).await.into_iter().flatten());
        rows.sort();
        print_rows(&["NAME", "STATE", "CPUS", "MEMORY"], &rows)?;
        Ok(if rows.iter().any(|[_, state, ..]| state == UNREACHABLE) { NOT_ALL_ANSWERED } else { 0 })
    })
}

/// A VM that is there and does not say how it is.
fn unreachable(name: &str, why: &str) -> [String; 4] {
    say(format_args!("{name} is unreachable: {why}"));
    [name.into(), UNREACHABLE.into(), "-".into(), "-".into()]
}

fn vm_row(info: vm_info::Reader<'_>) -> Result<[String; 4], capnp::Error> {
    let state = match info.get_state()? {
        vm_info::State::Created => "starting",
        vm_info::State::Running => "running",
        vm_info::State::Stopped => "stopped",
    };
    Ok([text(info.get_name()?)?, state.into(), info.get_vcpus().to_string(), format!("{}M", info.get_memory() >> 20)])
}

fn stop(paths: &Paths, policy: Policy, args: &StopArgs) -> Result<i32, Error> {
    check_name(&args.name)?;
    let path = paths.vm(&args.name);
    let vm = Dialled::dial_until(&path, Instant::now() + CALL_DEADLINE).map_err(|e| {
        let (name, socket) = (args.name.clone(), path.clone());
        if has_ended(&e) { Error::NoVm { name, socket } } else { Error::VmUnreachable { name, socket, source: e } }
    })?;
    let grace = Duration::from_secs(args.grace.into());
    confined(policy, vec![vm], &[], async |links| {
        let link = first(&links)?;
        let mut request = link.bootstrap::<vm::Client>().stop_request();
        request.get().set_grace_milliseconds(u32::try_from(grace.as_millis()).unwrap_or(u32::MAX));
        let deadline = grace.saturating_add(STOP_DEADLINE);
        link.call(&format!("stop the VM {}", args.name), deadline, request.send()).await?;
        Ok(0)
    })
}

/// That of an isolated network is done in a process of its own: this one reads what others say, and can neither mount nor unmount ([`unpinner`]). What is left
/// where one of both is killed halfway is a namespace with nothing in it, which the next definition uses, and a removal takes away.
fn define_network(paths: &Paths, policy: Policy, file: &Path) -> Result<i32, Error> {
    let tried = format!("define the network in {}", file.display());
    let unread = |source| Error::NetworkFileUnread { path: file.to_owned(), source };
    check_file("the network's configuration", file)?;
    let size = fs::metadata(file).map_err(unread)?.len();
    if size > MAX_CONFIG_BYTES.into() {
        return Err(Error::NetworkFileTooLarge { path: file.to_owned(), size });
    }
    let config = fs::read_to_string(file).map_err(unread)?;
    let definition = isolated::Definition::read(&config);
    let network = definition.network();
    let lock = match network.filter(|_| definition.is_isolated()) {
        None => None,
        Some(name) => {
            let lock = isolated::lock(paths)?;
            let is_new = isolated::note(paths, name)?;
            unpinner::apart(paths, name, policy, &lock, |defined| is_new && !defined)?;
            Some(lock)
        }
    };
    let handed = network.map_or(Ok(None), |name| isolated::open(paths, name))?;
    ask(paths, policy, &NETWORK, &kept(handed.as_ref(), lock.as_ref()), async |links| {
        let [ipamd, netmgr] = links.as_slice() else { return Err(Error::NoLink) };
        let defined = networks::define(netmgr, ipamd, &tried, &config, handed.as_ref()).await;
        defined.map_err(|error| error.of_file(&tried))
    })
}

/// As a definition. Which kind the network is, is asked when nobody else can be about to define an isolated one of that name.
fn remove_network(paths: &Paths, policy: Policy, name: &str) -> Result<i32, Error> {
    let lock = isolated::lock(paths)?;
    if isolated::is(paths, name) {
        unpinner::apart(paths, name, policy, &lock, |removed| removed)?;
    }
    let handed = isolated::open(paths, name)?;
    ask(paths, policy, &NETWORK, &kept(handed.as_ref(), Some(&lock)), async |links| {
        let [ipamd, netmgr] = links.as_slice() else { return Err(Error::NoLink) };
        networks::remove(netmgr, ipamd, name, handed.as_ref()).await
    })
}

/// Those, and what keeps others out.
fn kept<'a>(handed: Option<&'a Handed>, lock: Option<&'a OwnedFd>) -> Vec<&'a OwnedFd> {
    sockets(handed).into_iter().chain(lock).collect()
}

/// What is handed over, for the narrow phase.
fn sockets<'a>(handed: impl IntoIterator<Item = &'a Handed>) -> Vec<&'a OwnedFd> {
    handed.into_iter().flat_map(|handed| &handed.sockets).collect()
}

/// Asks `netmgr`, which is to know of these isolated networks, and of all others that have ports.
fn ask_netmgr(
    paths: &Paths,
    policy: Policy,
    handed: impl IntoIterator<Item = Handed>,
    keep: &[&OwnedFd],
    work: impl AsyncFnOnce(&Connection) -> Result<(), Error>,
) -> Result<i32, Error> {
    let handed: Vec<Handed> = handed.into_iter().collect();
    let keep = [sockets(&handed), keep.to_vec()].concat();
    ask(paths, policy, &NETWORK, &keep, async |links| {
        let [ipamd, netmgr] = links.as_slice() else { return Err(Error::NoLink) };
        for one in &handed {
            networks::hand_over(netmgr, ipamd, Some(one)).await?;
        }
        networks::make_again(netmgr, ipamd).await?;
        work(netmgr).await
    })
}

/// Asks of the port that a workload has, and, where none of that name has one, a VM.
async fn of_port<T>(name: &str, ask: impl AsyncFn(&str) -> Result<T, Error>) -> Result<T, Error> {
    match ask(name).await {
        Err(error) if error.is_unknown() && names::is_vm(name) => match ask(&names::workload_of_vm(name)).await {
            Err(of_vm) if of_vm.is_unknown() => Err(error),
            of_vm => of_vm,
        },
        of_workload => of_workload,
    }
}

fn port_policy(paths: &Paths, policy: Policy, args: &PolicyArgs) -> Result<i32, Error> {
    let PolicyArgs { network, workload, allow, deny_all, remove } = args;
    let rules = rules("--allow", allow.iter().map(String::as_str))?;
    let changes = *deny_all || *remove || !allow.is_empty();
    ask_netmgr(paths, policy, isolated::open(paths, network)?, &[], async |netmgr| {
        if changes {
            let rules = (!remove).then_some(&rules);
            return of_port(workload, async |workload| networks::set_policy(netmgr, network, workload, rules).await)
                .await;
        }
        match of_port(workload, async |workload| networks::policy(netmgr, network, workload).await).await? {
            Some(rules) => rules.iter().try_for_each(|rule| print(&format!("{}\n", printable(rule)))),
            None => {
                say(format_args!("{workload} has no policy on {network}: it may send to wherever it likes"));
                Ok(())
            }
        }
    })
}

fn port_rate(paths: &Paths, policy: Policy, args: &RateArgs) -> Result<i32, Error> {
    let RateArgs { network, workload, from_guest, to_guest, remove: _ } = args;
    let rate = Rate::read(from_guest.as_deref(), to_guest.as_deref())?;
    ask_netmgr(paths, policy, isolated::open(paths, network)?, &[], async |netmgr| {
        of_port(workload, async |workload| networks::set_rate(netmgr, network, workload, rate).await).await
    })
}

fn publish(paths: &Paths, policy: Policy, args: &PublishArgs) -> Result<i32, Error> {
    let PublishArgs { network, workload, publish } = args;
    let publish = publish.iter().map(|text| text.parse()).collect::<Result<Vec<Publish>, _>>()?;
    check_published(&publish)?;
    let held = publish.iter().map(Publish::hold).collect::<Result<Vec<_>, _>>()?;
    let sockets: Vec<_> = held.iter().flatten().flat_map(Held::sockets).collect();
    ask_netmgr(paths, policy, isolated::open(paths, network)?, &sockets, async |netmgr| {
        let tried = format!("publish ports for {workload} on {network}");
        let network = networks::there(netmgr, network, &tried).await?;
        of_port(workload, async |workload| Ok(Guest::Of(&network, workload).publish(netmgr, &tried, &held).await?))
            .await
    })
}

fn unpublish(paths: &Paths, policy: Policy, args: &PublishArgs) -> Result<i32, Error> {
    let PublishArgs { network, workload, publish } = args;
    let publish = publish.iter().map(|text| Publish::of_host(text)).collect::<Result<Vec<_>, _>>()?;
    ask_netmgr(paths, policy, isolated::open(paths, network)?, &[], async |netmgr| {
        let tried = format!("take back ports that are published for {workload} on {network}");
        let network = networks::there(netmgr, network, &tried).await?;
        for one in &publish {
            of_port(workload, async |workload| {
                Ok(Guest::Of(&network, workload).take_back(netmgr, &tried, one).await?)
            })
            .await?;
        }
        Ok(())
    })
}

fn kernel(paths: &Paths, policy: Policy, command: &KernelCommand) -> Result<i32, Error> {
    let wanted = &[Service::KernelStore];
    match command {
        KernelCommand::Import { file, name } => {
            let tried = format!("import the kernel {}", file.display());
            check_file("the kernel's image", file)?;
            let image =
                kernels::open_image(file).map_err(|source| Error::KernelUnread { path: file.clone(), source })?;
            ask(paths, policy, wanted, &[&image], async |links| {
                let link = first(&links)?;
                let kernel = kernels::import(link, &tried, image.as_fd(), name).await?;
                let answer = link.ask(&tried, CALL_DEADLINE, || kernel.info_request().send()).await?;
                print(&format!("{}\n", kernel_row(answer.get()?.get_info()?)?.join("  ")))
            })
        }
        KernelCommand::List => ask(paths, policy, wanted, &[], async |links| {
            let link = first(&links)?;
            let list = || link.bootstrap::<kernel_store::Client>().list_request().send();
            let answer = link.ask("list the kernels", CALL_DEADLINE, list).await?;
            let rows = answer.get()?.get_kernels()?.iter().map(kernel_row).collect::<Result<Vec<_>, _>>()?;
            print_rows(&["DIGEST", "ALIAS", "MIB", "VERSION"], &rows)
        }),
        KernelCommand::Remove { kernel } => ask(paths, policy, wanted, &[], async |links| {
            let link = first(&links)?;
            let remove = || {
                let mut request = link.bootstrap::<kernel_store::Client>().remove_request();
                request.get().set_ref(kernel);
                request.send()
            };
            link.ask(&format!("remove the kernel {kernel}"), CALL_DEADLINE, remove).await?;
            Ok(())
        }),
    }
}

fn kernel_row(info: kernel_info::Reader<'_>) -> Result<[String; 4], capnp::Error> {
    let digest: String = text(info.get_digest()?)?.chars().take(16).collect();
    let version = text(info.get_version()?)?.split(' ').next().unwrap_or_default().to_owned();
    Ok([digest, text(info.get_alias()?)?, (info.get_size() >> 20).to_string(), version])
}

/// A service's text as a terminal may see it.
fn text(reader: capnp::text::Reader<'_>) -> Result<String, capnp::Error> {
    Ok(printable(reader.to_str()?))
}

/// Finds or starts the services, confines this process, and asks them.
pub fn ask(
    paths: &Paths,
    policy: Policy,
    wanted: &[Service],
    keep: &[&OwnedFd],
    work: impl AsyncFnOnce(Vec<Connection>) -> Result<(), Error>,
) -> Result<i32, Error> {
    let dialled = services::ensure(paths, wanted, |missing| keeper::start(paths, policy, missing))?;
    confined(policy, dialled, keep, work).map(|()| 0).map_err(|error| error.with_log(paths.log()))
}

fn confined<T>(
    policy: Policy,
    dialled: Vec<Dialled>,
    keep: &[&OwnedFd],
    work: impl AsyncFnOnce(Vec<Connection>) -> Result<T, Error>,
) -> Result<T, Error> {
    let unconfined = |source| Error::Unconfined { what: "this command", source };
    let mut sandbox = Sandbox::new(CLIENT.title, policy);
    for fd in links::fds_of(&dialled).chain(keep.iter().map(|fd| fd.as_raw_fd())) {
        sandbox = sandbox.keep_fd(fd);
    }
    let confined = sandbox.confine().map_err(unconfined)?;
    let runtime = runtime()?;
    let _narrow = confined.enter(&filters::client()).map_err(unconfined)?;
    runtime.run(async { work(links::talk(dialled)?).await })
}

fn first(links: &[Connection]) -> Result<&Connection, Error> {
    links.first().ok_or(Error::NoLink)
}
