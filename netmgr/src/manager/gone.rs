//! What becomes of ports that are given up.
//!
//! A port that is given up is cut off: its interface is down and marked as given up, and is a port no more. That takes a fraction of a millisecond. Who
//! says so of a TAP is answered then; who has gone is seen to when nobody waits. The interfaces go a little later, many at a time
//! ([`State::tidy`](service::State::tidy)), so that nobody's end is in front of another's start; and those of an earlier netmgr, when the next one finds
//! them.

use std::{
    collections::BTreeSet,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Answer, Manager, PortId};
use crate::{
    error::Error,
    events::Change,
    link::Link,
    mark,
    names::{self, Kind},
    port,
    ports::{Left, Port, PortState},
    wanted::Wanted,
};

/// The most ports that are cut off at one time, for those who have gone without a word: some 10 ms on the largest bridge.
const CUTS: usize = 16;
/// The most interfaces that are taken off the host at one time. One alone takes the kernel 20 ms, as many as these hardly longer on a small bridge,
/// and on the largest 150 ms.
const BATCH: usize = 256;
/// How long nobody has asked for a port, or given one up, before that is done,
const QUIET: Duration = Duration::from_millis(20);
/// and how long it is put off by who does so all the time.
const LONGEST: Duration = Duration::from_secs(1);

/// An interface that is cut off, and on its way off the host.
pub(super) struct Gone {
    index: u32,
    pub(super) interface: String,
    is_veth: bool,
    since: Instant,
    /// Whoever closes it last takes the interface away by that, which may take a while: not before it is gone.
    _tap: Option<Arc<OwnedFd>>,
    /// Who waits for that: of a veth, whose other end is a container's, as engines have it.
    answer: Option<Answer>,
}

impl Manager {
    /// Finds what was cut off by an earlier netmgr, or could not be taken away.
    pub(super) fn find_gone(&mut self, links: &[Link]) {
        let known: BTreeSet<u32> = self.gone.iter().map(|gone| gone.index).collect();
        let marked =
            links.iter().filter(|link| mark::is_gone(&link.alias, &self.instance) && !known.contains(&link.index));
        self.gone.extend(marked.map(|link| Gone {
            index: link.index,
            interface: link.name.clone(),
            since: Instant::now(),
            _tap: None,
            is_veth: Kind::of(link) == Some(Kind::Veth),
            answer: None,
        }));
    }

    /// Gives a port up. Once it is cut off, or, of a veth, off the host, `answer` is told. One that has gone already is no error.
    pub fn release(&mut self, id: PortId, answer: Option<Answer>) {
        if let Some(isolated) = self.isolated.get_mut(&id.network.name) {
            return isolated.manager.release(id, answer);
        }
        self.active = Instant::now();
        let network = self.networks.get_mut(&id.network.name).filter(|network| network.serial == id.network.serial);
        let port = network.and_then(|network| network.ports.get(&id.workload)).filter(|port| port.is(id.serial));
        let new = port
            .and_then(|port| port.held.as_ref())
            .is_some_and(|held| held.state.send_replace(PortState::Released) != PortState::Released);
        match answer {
            // Also one that was dropped a moment ago.
            Some(answer) => {
                let before = self.gone.len();
                let outcome = self.cut_off(vec![id]);
                match self.gone.get_mut(before).filter(|gone| gone.is_veth) {
                    Some(gone) if outcome.is_ok() => gone.answer = Some(answer),
                    _ => _ = answer.send(outcome),
                }
                // Nobody has its addresses as yet.
                self.clear_after();
            }
            None if new => self.leaving.push(id),
            None => {}
        }
    }

    /// Cuts off ports of who has gone, as many as go at once, first those that `wanted` chooses; `false` if it chooses none.
    pub(super) fn cut_off_chosen(&mut self, wanted: impl Fn(&PortId, &Port) -> bool) -> bool {
        let port = |id: &PortId| {
            self.networks.get(&id.network.name)?.ports.get(&id.workload).filter(|port| port.is(id.serial))
        };
        let (mut batch, mut later): (Vec<PortId>, Vec<PortId>) = std::mem::take(&mut self.leaving)
            .into_iter()
            // One that is not there any more goes first of all.
            .partition(|leaving| port(leaving).is_none_or(|port| wanted(leaving, port)));
        if batch.is_empty() {
            self.leaving = later;
            return false;
        }
        batch.append(&mut later);
        self.leaving = batch.split_off(batch.len().min(CUTS));
        if let Err(error) = self.cut_off(batch) {
            confine::say!("netmgr: {}", error.fault("take ports off the host"));
        }
        self.clear_after();
        true
    }

    /// Cuts ports off, and forgets them. Those that cannot be are taken off the host at once; the first failure of that. What is left of them is for
    /// [`Manager::clear_after`], once who waits has an answer.
    fn cut_off(&mut self, ids: Vec<PortId>) -> Result<(), Error> {
        let Manager { rtnl, filter, instance, networks, gone, doubt, .. } = self;
        let mut ports = Vec::new();
        for id in ids {
            let Some(network) = networks.get_mut(&id.network.name) else { continue };
            if !network.ports.get(&id.workload).is_some_and(|port| port.is(id.serial)) {
                continue;
            }
            let Some(port) = network.forget(&id.workload) else { continue };
            network.events.tell(Change::Gone, &id.workload, &port.interface);
            ports.push((network.index, id, port));
        }
        let wanted = ports
            .iter()
            .map(|(bridge, id, port)| (port.index, port.wanted(&id.workload, &id.network.name, *bridge, instance)));
        let wanted: Vec<(u32, Wanted<'_>)> = wanted.collect();
        let outcomes = port::cut_off(rtnl, &wanted);
        *doubt |= outcomes.iter().any(Result::is_err);
        if let Some(filter) = filter {
            // What this leaves there, the next look takes away.
            *doubt |= filter.cut_off(wanted.iter().map(|(_, wanted)| wanted.name)).is_err();
            for (_, gone) in wanted.iter().filter(|(_, wanted)| matches!(wanted.kind, Kind::Macvtap(_))) {
                *doubt |= filter.unguard(gone.name).is_err();
            }
        }
        let since = Instant::now();
        for (_, id, Port { kind, index, interface, held, sources, published, .. }) in ports {
            let (tap, is_veth) = (held.and_then(|held| held.tap), kind == Kind::Veth);
            gone.push(Gone { index, interface, since, _tap: tap, is_veth, answer: None });
            if let Some(network) = networks.get_mut(&id.network.name) {
                network.left.push(Left { sources, published });
            }
        }
        outcomes.into_iter().collect()
    }

    /// Takes interfaces off the host that are cut off, as many as go at once; `false` if there is none.
    pub(super) fn take_away(&mut self) -> bool {
        if self.gone.is_empty() {
            return false;
        }
        let serial = self.next();
        let Manager { rtnl, filter, instance, gone, doubt, .. } = self;
        let batch: Vec<Gone> = gone.drain(..gone.len().min(BATCH)).collect();
        let indexes: Vec<u32> = batch.iter().map(|gone| gone.index).collect();
        let outcomes = port::detach(rtnl, &indexes, instance, names::group(instance, serial));
        for (gone, outcome) in batch.iter().zip(&outcomes) {
            if let Err(error) = outcome {
                let tried = format!("take the interface {} of a port that was given up off the host", gone.interface);
                confine::say!("netmgr: {}", error.fault(&tried));
                *doubt = true;
            }
        }
        if let Some(filter) = filter {
            let taken = batch.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok());
            // What this leaves there, the next look takes away.
            *doubt |= filter.remove(taken.map(|(gone, _)| gone.interface.as_str())).is_err();
        }
        for (gone, outcome) in batch.into_iter().zip(outcomes) {
            _ = gone.answer.map(|answer| answer.send(outcome));
        }
        true
    }

    /// When interfaces that are cut off are taken off the host.
    pub(super) fn take_away_at(&self) -> Option<Instant> {
        let first = self.gone.first()?;
        let quiet = self.active.max(first.since) + QUIET;
        let now = self.gone.len() >= BATCH || self.gone.iter().any(|gone| gone.answer.is_some());
        Some(if now { first.since } else { quiet.min(first.since + LONGEST) })
    }
}
