//! What came of the attempts.

use std::{path::Path, time::Instant};

use anyhow::{Context, Result};

use super::{
    attempts::{self, Attempt},
    foothold::{Foothold, Held, Layers},
    scene::{Host, Target},
};

/// What came of one attempt.
pub struct Finding {
    pub target: Target,
    pub layers: Layers,
    pub attempt: &'static Attempt,
    pub result: Result<u64, Held>,
}

/// Takes over every thread of every program, one after another, and has each try everything.
pub fn attack(programs: &Path) -> Result<Vec<Finding>> {
    let mut host = Host::start(programs)?;
    let mut findings = Vec::new();
    for target in host.targets()? {
        let begin = Instant::now();
        let on = || format!("{} {} (pid {}, tid {})", target.program, target.thread, target.pid, target.tid);
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
        println!("{} in {} ms", on(), begin.elapsed().as_millis());
    }
    host.stop()?;
    Ok(findings)
}
