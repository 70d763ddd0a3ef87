//! `volt run`: one VM in the foreground, from its configuration to its last byte of console.
//!
//! Phase 1 opens what the user named, takes a user and a cgroup for the VM, finds, or starts, the services, and forks the janitor
//! and the launcher; it reads nothing from anybody. Phase 2 is the supervisor proper: it talks to the services and the VM's
//! processes, as the VM's user, without a path, a capability or the means to start anything.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use confine::{Confined, Enclosure, Limit, MemoryWatch, Policy, Root, Sandbox};
use ipc::{Clients, Connection, Endpoint, Lane, Limits, chain};
use schema::{names::workload_of_vm, programs::SUPERVISOR, vm_capnp::exit::Reason};
use tokio::sync::oneshot;

use crate::{
    cmdline,
    config::VmConfig,
    error::Error,
    host::{
        absence::Names,
        keeper,
        links::{self, Dialled, runtime},
        lock::take_lock,
        paths::Paths,
        published::Held,
        services::{self, Service},
        sockets::{self, Own},
        told,
    },
    output::say,
    vm::{
        cell::{self, Cell},
        console::{self, Console},
        control::{Control, Exit},
        filters,
        janitor::{Janitor, Watch},
        launcher::{Forked, Launcher, Role},
        limits,
        machine::{Machine, Parts},
        opened::{self, Opened},
        resources::{self, Card, KernelSource, Network, Services},
        signals::{block_signals, obey},
    },
};

/// How long the core may take to answer `stop`, beyond the grace it is given.
const STOP_MARGIN: Duration = Duration::from_secs(5);

const AT_START: &str = "it was stopped while it started";

/// Whom the supervisor listens to.
struct Inputs {
    endpoint: Endpoint,
    /// Who may use it.
    clients: Clients,
    services: Vec<Dialled>,
    names: Names,
    signals: OwnedFd,
    console: Console,
    launcher: Forked,
    watch: Watch,
    memory: Option<MemoryWatch>,
}

/// Runs one VM until it ends.
pub fn run(policy: Policy, config: &VmConfig) -> Result<i32, Error> {
    limits::check(config)?;
    let paths = Paths::prepare()?;
    let policy = told::once(&paths, policy);
    // Of all that may be in the way of a second VM of one name, the name is said; it is claimed below.
    if matches!(ipc::is_served(&paths.vm(&config.name)), Ok(true)) {
        return Err(Error::NameTaken(config.name.clone()));
    }
    let opened = opened::open(&paths, config)?;
    // From here on there is something to clear away: no signal but SIGKILL ends this process, or the janitor, halfway.
    let signals = block_signals()?;
    cell::sweep();
    let mut cell = Cell::claim(config, opened.disks.iter().fold(0, |sum, disk| disk.memory.saturating_add(sum)))?;
    let (endpoint, watch) = claim(&paths, &config.name, &mut cell, policy)?;
    let memory = cell.cgroup.as_ref().and_then(|cgroup| cgroup.watch_memory().ok());
    let wanted: &[Service] = if config.nets.is_empty() { &[Service::KernelStore] } else { &Service::ALL };
    let services = services::ensure(&paths, wanted, |missing| keeper::start(&paths, policy, missing))?;
    // The VM's processes are to be killed, and nobody else: the services and the janitor are there already.
    let enclosure = confine::enclose().map_err(unconfined)?;
    let role = Role { paths: &paths, policy, user: cell.user, cgroup: cell.cgroup.as_ref(), processes: cell.processes };
    let launcher = Forked::start(&role)?;

    let names = Names::watch(&paths.runtime)?;

    watch.ready(&paths)?;
    let [rpc, lane] = endpoint.as_fds();
    let mut others = vec![rpc, lane, watch.as_fd(), signals.as_fd(), names.as_fd()];
    others.extend(launcher.as_fds());
    others.extend(memory.as_ref().map(AsFd::as_fd));
    // Whoever starts the VM may stop it, and not who its processes run as.
    let clients = Clients::root_and([rustix::process::geteuid().as_raw()]);
    let confined = confine(policy, &enclosure, &opened, &services, &cell, &others)?;
    let console = Console::start(&confined, &config.name)?;
    let runtime = runtime()?;
    let _narrow = confined.enter(&filters::supervisor()).map_err(unconfined)?;
    let inputs = Inputs { endpoint, clients, services, names, signals, console, launcher, watch, memory };
    runtime.run(supervise(&paths, policy, config, opened, inputs))
}

/// Claims the VM's name: its control socket exists as long as this process.
fn claim(paths: &Paths, name: &str, cell: &mut Cell, policy: Policy) -> Result<(Endpoint, Watch), Error> {
    let path = paths.vm(name);
    let lock = take_lock(&paths.vms())?;
    sockets::sweep(&paths.vms());
    let janitor = Janitor::start(paths, name, lock, cell, policy)?;
    cell.build(name, policy)?;
    let endpoint = Endpoint::bind(&path, 0o600).map_err(|e| match e {
        ipc::Error::AlreadyExists { .. } => Error::NameTaken(name.to_owned()),
        source => Error::Unbound { path: path.clone(), source },
    })?;
    let watch = janitor.watch(paths, &Own::both(&path))?;
    // From here on removing the sockets is the janitor's: this process will not be able to.
    let (rpc, lane) = endpoint.into_fds();
    Ok((Endpoint::from_fds(rpc, lane).map_err(Error::SocketLost)?, watch))
}

fn confine(
    policy: Policy,
    enclosure: &Enclosure,
    opened: &Opened,
    services: &[Dialled],
    cell: &Cell,
    others: &[BorrowedFd<'_>],
) -> Result<Confined, Error> {
    let mut sandbox = Sandbox::new(SUPERVISOR.title, policy)
        .signals_within(enclosure)
        // The guest's console may go to a file.
        .limit(Limit::FileSize, console::longest_file())
        .keep_fd(opened.kvm.as_raw_fd());
    // In no user namespace of its own: there it could not tell root from other peers. So namespaces take root.
    if let Some(user) = cell.user {
        (sandbox, _) = sandbox.user(user).root(&Root::empty(), true).map_err(unconfined)?;
    }
    // Nobody else gets the VM's user as long as this process, or the janitor, has it.
    if let Some(claim) = &cell.claim {
        sandbox = sandbox.keep_fd(claim.as_raw_fd());
    }
    let disks = opened.disks.iter().flat_map(|disk| disk.guards.iter().chain([&disk.fd]));
    for fd in disks.chain(&opened.initrd) {
        sandbox = sandbox.keep_fd(fd.as_raw_fd());
    }
    if let KernelSource::File(_, fd) = &opened.kernel {
        sandbox = sandbox.keep_fd(fd.as_raw_fd());
    }
    for socket in opened.published.iter().flatten().flat_map(Held::sockets) {
        sandbox = sandbox.keep_fd(socket.as_raw_fd());
    }
    for socket in opened.namespaces.iter().flat_map(|handed| &handed.sockets) {
        sandbox = sandbox.keep_fd(socket.as_raw_fd());
    }
    for fd in others.iter().map(AsRawFd::as_raw_fd).chain(links::fds_of(services)) {
        sandbox = sandbox.keep_fd(fd);
    }
    sandbox.confine().map_err(unconfined)
}

fn unconfined(source: confine::Error) -> Error {
    Error::Unconfined { what: "the supervisor", source }
}

async fn supervise(
    paths: &Paths,
    policy: Policy,
    config: &VmConfig,
    opened: Opened,
    inputs: Inputs,
) -> Result<i32, Error> {
    let Inputs { endpoint, clients, services, names, signals, mut console, launcher, watch, memory } = inputs;
    let control = Control::new(&config.name, config.vcpus, config.memory);
    let launcher = launcher.connect()?;
    obey(signals, console.commands(), console.terminal.clone(), &control)?;
    let Services { kernels, network } = Services::new(links::talk(services)?)?;
    let bootstrap = control.clone();
    // Nothing that a VM is asked for takes a descriptor.
    let lane = Lane::with_limits(Duration::ZERO, 0);
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let bootstrap = move |_| Ok(bootstrap.client().client);
    let limits = Limits::default().within(1024);
    let serving = tokio::task::spawn_local(ipc::serve_until(endpoint, clients, lane, limits, None, stopped, bootstrap));

    let (mut cards, mut left) = (Vec::new(), false);
    let prepared = prepare(policy, config, opened, kernels, network.as_ref(), &mut cards);
    let result = match unless_stopped(&control, prepared).await {
        Ok(Some(parts)) => {
            let borrowed = network.as_ref().map(|network| resources::borrowed(network, &cards)).unwrap_or_default();
            tokio::select! {
                exit = boot_and_watch(&launcher, &parts, config.no_reboot, &control, &console, &mut left) => exit,
                never = names.report(&config.name, borrowed) => match never {},
            }
        }
        Ok(None) => Ok(Exit::stopped("it was stopped before it started")),
        Err(error) => Err(error.with_log(paths.log())),
    };
    let internal = |detail| Exit { reason: Reason::InternalError, detail };
    let result = match result {
        Ok(exit) if is_orderly(&exit) => Ok(exit),
        // Of all the processes that saw it, none is left to say so.
        _ if memory.is_some_and(|memory| memory.was_passed()) => {
            Ok(internal("the kernel ended its processes, as they took more memory than its cgroup may".into()))
        }
        result => result,
    };
    // Before what it may still have is another's.
    if !launcher.end().await {
        say(format_args!(
            "the launcher of {} is still there, frozen or in the kernel; it ends when it can",
            config.name
        ));
        left = true;
    }
    // An address is given back at once, unless a process of the VM still has its life, and its port: with the last of them.
    if !left {
        resources::release(network.as_ref(), cards).await;
    }
    console.finish();
    // Whoever hears of the end over the control socket may use the name again.
    watch.clear();
    control.set_ended(result.as_ref().map_or_else(|error| internal(error.fault().to_string()), Exit::clone));
    // They hear of it before the connections go.
    drop(stop);
    let _served = serving.await;
    let exit = result?;
    if !is_orderly(&exit) {
        return Err(Error::Failed { name: config.name.clone(), detail: exit.detail });
    }
    Ok(0)
}

/// Whether the guest, or somebody who may, wanted that end.
fn is_orderly(exit: &Exit) -> bool {
    matches!(exit.reason, Reason::Poweroff | Reason::Reset | Reason::Stopped)
}

/// `None` when a stop was asked for first: what was under way is dropped, and with it what it had made.
async fn unless_stopped<T>(
    control: &Control,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<Option<T>, Error> {
    let mut stop = control.stop_requests();
    tokio::select! {
        biased;
        _ = stop.wait_for(Option::is_some) => Ok(None),
        result = work => result.map(Some),
    }
}

/// Does that, unless somebody asks for the VM's end, and the time is over that the guest was given for that.
async fn unless_overdue<T>(
    control: &Control,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<Option<T>, Error> {
    let mut stop = control.stop_requests();
    let overdue = async {
        let mut grace = Duration::MAX;
        loop {
            if let Some(asked) = *stop.borrow_and_update() {
                grace = asked;
            }
            // Who asks again has it begin again, as the core does.
            tokio::select! {
                () = tokio::time::sleep(grace) => break,
                changed = stop.changed() => if changed.is_err() { std::future::pending::<()>().await },
            }
        }
    };
    tokio::select! {
        biased;
        result = work => result.map(Some),
        () = overdue => Ok(None),
    }
}

/// Borrows what the VM needs from the services: kernel, addresses and ports at once.
async fn prepare(
    policy: Policy,
    config: &VmConfig,
    opened: Opened,
    kernels: Connection,
    network: Option<&Network>,
    cards: &mut Vec<Card>,
) -> Result<Parts, Error> {
    let workload = workload_of_vm(&config.name);
    let attach = async {
        match network {
            Some(links) => {
                let policy = config.policy.as_ref();
                resources::cards(links, &workload, &config.nets, &opened.namespaces, policy, cards).await?;
                resources::publish(links, &config.name, opened.published, cards).await
            }
            None => Ok(()),
        }
    };
    let (kernel, attached) = futures::join!(resources::kernel(kernels, opened.kernel), attach);
    // Before anything runs that a guest could take over.
    network.into_iter().for_each(resources::narrow);
    attached?;
    resources::watch_ports(&config.name, cards);
    let addresses: Vec<_> = cards.iter().filter_map(|card| card.address.as_ref()).collect();
    for (own, card) in addresses.iter().zip(cards.iter()) {
        let ipv6 = own.ipv6.as_ref().map_or_else(String::new, |ipv6| format!(" and {}", ipv6.address));
        say(format_args!("{} has {}{ipv6} on {}", config.name, own.address, card.network));
    }
    for one in &config.publish {
        say(format_args!("{} is reached by this host's {one}", config.name));
    }
    // Two of them would contradict each other, and the last one counts.
    let own = !addresses.is_empty() && cmdline::has_address(&config.cmdline);
    if own {
        say(format_args!("{} is not told so: its command line has an ip= of its own", config.name));
    }
    let told = if own { 0 } else { addresses.len() };
    let words = (0..told)
        .flat_map(|n| [resources::ip_parameter(&addresses, n, &config.name), resources::ipv6_parameter(&addresses, n)]);
    let words: Vec<_> = words.flatten().collect();
    let cmdline = cmdline::with(&config.cmdline, &words);
    Ok(Parts {
        name: config.name.clone(),
        policy,
        vcpus: config.vcpus,
        memory: config.memory,
        cmdline,
        kvm: opened.kvm,
        kernel: kernel?,
        initrd: opened.initrd,
        disks: opened.disks,
        cards: cards.iter_mut().filter_map(|card| card.part.take()).collect(),
    })
}

async fn boot_and_watch(
    launcher: &Launcher,
    parts: &Parts,
    no_reboot: bool,
    control: &Rc<Control>,
    console: &Console,
    left: &mut bool,
) -> Result<Exit, Error> {
    loop {
        let launch = async { Machine::launch(launcher, parts, console.core_end()?).await };
        let Some(machine) = unless_stopped(control, launch).await? else {
            return Ok(Exit::stopped(AT_START));
        };
        // Its guest may run already: it has its time, which `watch` gives it.
        let Some(()) = unless_overdue(control, machine.start(&parts.name)).await? else {
            return Ok(Exit::stopped(AT_START));
        };
        control.set_core(Some(machine.vm.clone()));
        let exit = watch(&machine, control).await;
        control.set_core(None);
        let there = machine.end().await;
        if !there.is_empty() {
            let there = there.join(", ");
            say(format_args!("{there} is still there, frozen or in the kernel; it ends when it can"));
            *left = true;
            return Ok(exit);
        }
        if exit.reason != Reason::Reset || no_reboot || control.stop_requests().borrow().is_some() {
            return Ok(exit);
        }
    }
}

/// Waits for the end of this boot: the guest's own, one that somebody asked for, or that of a process that died.
async fn watch(machine: &Machine<'_>, control: &Control) -> Exit {
    let mut ended = Box::pin(machine.vm.wait_request().send().promise);
    let mut stop = control.stop_requests();
    // Also what was asked for while it started.
    if stop.borrow().is_some() {
        stop.mark_changed();
    }
    let overdue = tokio::time::sleep(Duration::MAX);
    tokio::pin!(overdue);
    let answer = loop {
        tokio::select! {
            // The core says how it ended, then goes: where both have come, what it said counts.
            biased;
            answer = &mut ended => break answer,
            () = machine.link_closed() => break Err(capnp::Error::disconnected("the core's link ended".into())),
            () = &mut overdue => {
                machine.kill_core();
                return Exit::stopped("its core did not answer, and was killed");
            }
            _ = stop.changed() => {
                let grace = (*stop.borrow_and_update()).unwrap_or_default();
                let mut request = machine.vm.stop_request();
                request.get().set_grace_milliseconds(u32::try_from(grace.as_millis()).unwrap_or(u32::MAX));
                // The call's own end does not matter: that of the VM shows in `wait`.
                tokio::task::spawn_local(request.send().promise);
                overdue.as_mut().reset(tokio::time::Instant::now() + grace + STOP_MARGIN);
            }
        }
    };
    let exit = answer.and_then(|answer| {
        let exit = answer.get()?.get_exit()?;
        Ok(Exit { reason: exit.get_reason()?, detail: exit.get_detail()?.to_string()? })
    });
    let mut exit = exit.unwrap_or_else(|e| Exit { reason: Reason::InternalError, detail: chain(&e) });
    if matches!(exit.reason, Reason::DeviceFailed | Reason::InternalError)
        && let Some(ended) = machine.first_ended().await
    {
        exit.detail = format!("{}; {ended}", exit.detail);
    }
    exit
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn in_runtime<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(test)
    }

    /// A guest that runs before it is known that it does is not ended without its time.
    #[test]
    fn start_is_waited_for_as_long_as_who_wants_the_vm_stopped_gives_its_guest() {
        let long = Duration::from_secs(600);
        in_runtime(async {
            let control = Control::new("web", 1, 0);
            assert!(unless_overdue(&control, ready(Ok(()))).await.unwrap().is_some());
            control.request_stop(long);
            let started = async {
                tokio::task::yield_now().await;
                Ok(())
            };
            assert!(unless_overdue(&control, started).await.unwrap().is_some());
            // Who asks a second time gives it less.
            let again = async {
                tokio::task::yield_now().await;
                control.request_stop(Duration::ZERO);
                pending().await
            };
            assert!(unless_overdue::<()>(&control, again).await.unwrap().is_none());
            assert!(unless_overdue::<()>(&control, pending()).await.unwrap().is_none());
        });
    }
}
