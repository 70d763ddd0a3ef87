//! What `/proc` says of processes and their threads, as the test sees it.

use std::fs;

use anyhow::{Context, Result};

/// Whether a thread runs the kernel's code only: KVM and io_uring have such workers in the process that uses them.
pub(super) fn is_kernels(pid: i32, tid: i32) -> Result<bool> {
    const PF_IO_WORKER: u32 = 0x10;
    const PF_USER_WORKER: u32 = 0x4000;
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat"))?;
    // Behind the name, which may hold anything, the flags are the seventh field.
    let fields = stat.rsplit_once(')').context("A thread without name")?.1;
    let flags: u32 = fields.split_whitespace().nth(6).context("A thread without flags")?.parse()?;
    Ok(flags & (PF_IO_WORKER | PF_USER_WORKER) != 0)
}

/// A process's descriptors, and what each is.
pub(super) fn descriptors(pid: i32) -> Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        // One that was closed meanwhile is none.
        let Ok(name) = fs::read_link(entry.path()) else { continue };
        found.push((entry.file_name().to_string_lossy().parse()?, name.display().to_string()));
    }
    found.sort();
    Ok(found)
}

/// A process, its children, theirs, and so on.
pub(super) fn descendants(pid: i32) -> Result<Vec<i32>> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        next += 1;
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|number| number.parse::<i32>().ok()));
        }
    }
    Ok(all)
}

/// The number by which `viewer` would name a process. In a pid namespace that the process is not in, it has none: there
/// it gets one that nobody has.
pub(super) fn number_in(pid: i32, viewer: i32) -> Result<i32> {
    const NOBODY: i32 = (1 << 22) - 1;
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid"));
    let (own, other) = (namespace(viewer)?, namespace(pid)?);
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("NSpid:")).context("A kernel without pid namespaces")?;
    // From the namespace of this /proc to the process's own.
    let mut numbers = line.split_whitespace().skip(1).map(str::parse);
    let number = if own == namespace(std::process::id().cast_signed())? {
        numbers.next()
    } else if own == other {
        numbers.last()
    } else {
        return Ok(NOBODY);
    };
    Ok(number.context("A process without number")??)
}
