//! What came of the attempts, by thread.

use std::path::Path;

use anyhow::{Context, Result};

use super::{
    attempts::{self, Attempt},
    caught::{self, Caught},
    foothold::{Foothold, Held, Layers, Outcome},
    scene::{Host, Target},
};

/// What came of one attempt.
pub struct Finding {
    /// Who made it.
    pub target: Target,
    /// What it met.
    pub layers: Layers,
    /// What was tried.
    pub attempt: &'static Attempt,
    /// `Ok` is a success of the attacker's.
    pub result: Result<u64, Held>,
}

/// Takes over every thread of every program that root, or a plain `user`, has started, one after another, and has each try
/// everything against each of `layers`. Gives what came of it, and what `volt run` said of layers that this kernel lacks.
pub fn attack(programs: &Path, user: Option<u32>, layers: &[Layers]) -> Result<(Vec<Finding>, String)> {
    let mut host = Host::start(programs, user)?;
    let mut findings = Vec::new();
    for target in host.targets()? {
        let attack = |mut foothold: Foothold| {
            attack_from(&host, &target, &mut foothold, layers, &mut findings)?;
            foothold.release()
        };
        let done = Foothold::take(target.pid, target.tid).and_then(attack).and_then(|()| host.check());
        done.with_context(|| on(&host, &target))?;
    }
    for (process, words) in caught::short(host.user) {
        let caught = Caught::catch(&host, process, words)?;
        let attack = |mut foothold| attack_from(&host, &caught.target, &mut foothold, layers, &mut findings);
        let done = caught.foothold().and_then(attack).and_then(|()| host.check());
        done.with_context(|| on(&host, &caught.target))?;
    }
    let said = host.said();
    host.stop()?;
    Ok((findings, said))
}

fn on(host: &Host, target: &Target) -> String {
    format!("{target} (pid {}, thread {}); its VM said: {}", target.pid, target.tid, host.said())
}

fn attack_from(
    host: &Host,
    target: &Target,
    foothold: &mut Foothold,
    layers: &[Layers],
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let (scene, processes) = (host.scene(target)?, host.processes(target)?);
    for layers in layers.iter().copied() {
        for attempt in attempts::all() {
            host.renew()?;
            let result = foothold.attempt(layers, attempt.memory, processes, |hand| (attempt.act)(hand, &scene));
            let result = result.with_context(|| attempt.name)?;
            findings.push(Finding { target: target.clone(), layers, attempt, result });
        }
    }
    Ok(())
}

/// Has every thread itself, and not a clone of it, make a call that no thread may make. What came of it, by role.
///
/// Each time that ends its process, and with it the VM if it is of one, which is then started again.
pub fn kill(programs: &Path) -> Result<Vec<(String, Outcome)>> {
    let mut host = Host::start(programs, None)?;
    let mut roles: Vec<String> = host.targets()?.iter().map(ToString::to_string).collect();
    roles.dedup();
    let mut outcomes = Vec::new();
    for role in roles {
        let target = host.targets()?.into_iter().find(|target| target.to_string() == role);
        let target = target.with_context(|| format!("No {role} runs any more"))?;
        let outcome = Foothold::take(target.pid, target.tid).and_then(last_call).with_context(|| role.clone())?;
        outcomes.push((role.clone(), outcome));
        host.gone(target.pid).with_context(|| role.clone())?;
        host.restart().with_context(|| format!("After {role} was killed"))?;
    }
    for (process, words) in caught::short(host.user) {
        let caught = Caught::catch(&host, process, words)?;
        let outcome = caught.foothold().and_then(last_call).with_context(|| caught.target.to_string())?;
        outcomes.push((caught.target.to_string(), outcome));
    }
    host.stop()?;
    Ok(outcomes)
}

fn last_call(foothold: Foothold) -> Result<Outcome> {
    foothold.last_call(libc::SYS_io_uring_setup, &[1, 0])
}
