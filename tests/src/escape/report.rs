//! What came of the attempts, by thread.

use std::path::Path;

use anyhow::{Context, Result};

use super::{
    attempts::{self, Attempt},
    foothold::{Foothold, Held, Layers},
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

/// Takes over every thread of every program, one after another, and has each try everything.
pub fn attack(programs: &Path) -> Result<Vec<Finding>> {
    let mut host = Host::start(programs)?;
    let mut findings = Vec::new();
    for target in host.targets()? {
        let on = || format!("{target} (pid {}, thread {})", target.pid, target.tid);
        let (scene, processes) = (host.scene(&target).with_context(on)?, host.processes(&target).with_context(on)?);
        let mut foothold = Foothold::take(target.pid, target.tid).with_context(on)?;
        for layers in [Layers::All, Layers::WithoutSeccomp] {
            for attempt in attempts::all() {
                host.renew()?;
                let result = foothold.attempt(layers, attempt.memory, processes, |hand| (attempt.act)(hand, &scene));
                let result = result.with_context(|| format!("{}: {}", on(), attempt.name))?;
                findings.push(Finding { target: target.clone(), layers, attempt, result });
            }
        }
        foothold.release().with_context(on)?;
        host.check().with_context(on)?;
    }
    host.stop()?;
    Ok(findings)
}
