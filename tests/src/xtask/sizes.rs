//! Bench `size`, and a check of the lab tier: the release programs are small, and need no other file to run.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use schema::programs::VMM_CORE;

use crate::bench::{Row, row};

/// Most bytes of the core: what a guest meets first should be small enough to be read.
const CORE: u64 = 3_000_000;

/// Their sizes; the core's beside what it may be.
pub fn rows(programs: &[PathBuf]) -> Result<Vec<Row>> {
    let of = |program: &PathBuf| -> Result<Row> {
        let name = name(program);
        let goal = (name == VMM_CORE.program).then_some((CORE as f64 / 1e3, "goal"));
        Ok(row(name, "kB", Some(fs::metadata(program)?.len() as f64 / 1e3), goal))
    };
    programs.iter().map(of).collect()
}

/// Whether they are as they should be.
pub fn check(programs: &[PathBuf]) -> Result<()> {
    for program in programs {
        let (name, image) = (name(program), fs::read(program)?);
        let dynamic = needs_interpreter(&image).with_context(|| format!("{name} is no 64-bit ELF file"))?;
        ensure!(!dynamic, "{name} needs a dynamic linker");
        ensure!(
            name != VMM_CORE.program || image.len() as u64 <= CORE,
            "{name} has {} bytes, more than {CORE}",
            image.len()
        );
    }
    Ok(())
}

fn name(program: &Path) -> String {
    program.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether a little-endian 64-bit ELF file has a PT_INTERP program header.
fn needs_interpreter(image: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let bytes = |at: usize, count: usize| image.get(at..at.checked_add(count)?);
    let half = |at| Some(usize::from(u16::from_le_bytes(bytes(at, 2)?.try_into().ok()?)));
    bytes(0, 6).filter(|start| start == b"\x7fELF\x02\x01")?;
    let table = usize::try_from(u64::from_le_bytes(bytes(32, 8)?.try_into().ok()?)).ok()?;
    let (size, count) = (half(54)?, half(56)?);
    let kinds = (0..count).map(|index| {
        let at = table.checked_add(index.checked_mul(size)?)?;
        Some(u32::from_le_bytes(bytes(at, 4)?.try_into().ok()?))
    });
    Some(kinds.collect::<Option<Vec<_>>>()?.contains(&PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_program_is_told_from_a_static_one() {
        // This test is static, as all programs here are; the system's shell is not.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(needs_interpreter(&own), Some(false));
        assert_eq!(needs_interpreter(&fs::read("/bin/sh").unwrap()), Some(true));
        assert_eq!(needs_interpreter(&own[..60]), None);
        assert_eq!(needs_interpreter(b"#!/bin/sh"), None);
    }
}
