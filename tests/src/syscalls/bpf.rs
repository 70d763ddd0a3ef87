//! What a seccomp filter lets through, found by walking through the program that the kernel was given (seccomp(2), the
//! kernel's Documentation/networking/filter.rst): a number that some path allows is allowed with some arguments.
//!
//! The architecture and the number are known on each walk, arguments are not, so that both ways of what asks for them
//! are walked. Anything that a filter has no need for is an error rather than a guess.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};

/// AUDIT_ARCH_X86_64.
const ARCH: u32 = 0xc000_003e;
/// The last number that is looked at (x86-64's are below 600 for years to come), and the bit that marks the x32 ABI's.
pub const LAST_NUMBER: u32 = 1023;
const X32: u32 = 0x4000_0000;

/// `struct sock_filter`.
#[derive(Clone, Copy)]
pub struct Instruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

impl Instruction {
    /// Bytes of one.
    pub const SIZE: usize = 8;

    /// Reads a program's.
    pub fn read_all(bytes: &[u8]) -> Vec<Instruction> {
        let (instructions, _) = bytes.as_chunks::<{ Instruction::SIZE }>();
        let read = |[a, b, jt, jf, c, d, e, f]: &[u8; Instruction::SIZE]| Instruction {
            code: u16::from_ne_bytes([*a, *b]),
            jt: *jt,
            jf: *jf,
            k: u32::from_ne_bytes([*c, *d, *e, *f]),
        };
        instructions.iter().map(read).collect()
    }
}

/// The numbers of x86-64's system calls that `program` allows with some arguments.
pub fn allowed(program: &[Instruction]) -> Result<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for number in (0..=LAST_NUMBER).flat_map(|number| [number, number | X32]) {
        let is_let_through = |action| action == libc::SECCOMP_RET_ALLOW;
        let mut walk = Walk { program, number, arguments: None, is_let_through, seen: BTreeSet::new() };
        if walk.allows(0, None)? {
            numbers.insert(number);
        }
    }
    Ok(numbers)
}

/// Whether `program` allows this very call.
pub fn allows(program: &[Instruction], number: u32, arguments: [u64; 6]) -> Result<bool> {
    let is_let_through = |action| action == libc::SECCOMP_RET_ALLOW;
    Walk { program, number, arguments: Some(arguments), is_let_through, seen: BTreeSet::new() }.allows(0, None)
}

/// Whether `program` lets the caller of this very call go on: allows it, or answers with an error in the kernel's stead.
pub fn survives(program: &[Instruction], number: u32, arguments: [u64; 6]) -> Result<bool> {
    let is_let_through = |action: u32| {
        let action = action & libc::SECCOMP_RET_ACTION_FULL;
        action == libc::SECCOMP_RET_ALLOW || action == libc::SECCOMP_RET_ERRNO
    };
    Walk { program, number, arguments: Some(arguments), is_let_through, seen: BTreeSet::new() }.allows(0, None)
}

struct Walk<'a> {
    program: &'a [Instruction],
    number: u32,
    arguments: Option<[u64; 6]>,
    /// By what the program returns.
    is_let_through: fn(u32) -> bool,
    /// Places that were walked from, with what was in the accumulator.
    seen: BTreeSet<(usize, Option<u32>)>,
}

impl Walk<'_> {
    /// Whether a way from `at` allows, with `value`, if it is known, in the accumulator. Jumps go forwards only.
    fn allows(&mut self, mut at: usize, mut value: Option<u32>) -> Result<bool> {
        loop {
            if !self.seen.insert((at, value)) {
                return Ok(false);
            }
            let Instruction { code, jt, jf, k } = *self.program.get(at).context("a jump past the program's end")?;
            at += 1;
            let operand = k;
            match code {
                0x20 => value = self.load(operand),                 // ld [k]
                0x00 => value = Some(operand),                      // ld #k
                0x54 => value = value.map(|value| value & operand), // and #k
                0x05 => at += usize::try_from(operand)?,            // ja
                0x06 => return Ok((self.is_let_through)(operand)),  // ret #k
                0x15 | 0x25 | 0x35 | 0x45 => {
                    let holds = |value: u32| match code {
                        0x15 => value == operand,
                        0x25 => value > operand,
                        0x35 => value >= operand,
                        _ => value & operand != 0,
                    };
                    let (yes, no) = (at + usize::from(jt), at + usize::from(jf));
                    match value.map(holds) {
                        Some(true) => at = yes,
                        Some(false) => at = no,
                        None if self.allows(yes, value)? => return Ok(true),
                        None => at = no,
                    }
                }
                _ => bail!("instruction {code:#x} is none that seccomp filters of ours have"),
            }
        }
    }

    /// A word of `struct seccomp_data`.
    fn load(&self, offset: u32) -> Option<u32> {
        match offset {
            0 => Some(self.number),
            4 => Some(ARCH),
            _ => {
                let place = usize::try_from(offset).ok()?.checked_sub(16)?;
                let argument = self.arguments?.get(place / 8).copied()?;
                Some(if place % 8 == 0 { argument as u32 } else { (argument >> 32) as u32 })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(instructions: &[(u16, u8, u8, u32)]) -> Vec<Instruction> {
        instructions.iter().map(|&(code, jt, jf, k)| Instruction { code, jt, jf, k }).collect()
    }

    const ALLOW: (u16, u8, u8, u32) = (0x06, 0, 0, libc::SECCOMP_RET_ALLOW);
    const KILL: (u16, u8, u8, u32) = (0x06, 0, 0, libc::SECCOMP_RET_KILL_PROCESS);

    #[test]
    fn a_number_counts_if_some_arguments_let_it_through() {
        // 3 always, 5 where the first argument's low bit is set.
        let filter = program(&[
            (0x20, 0, 0, 4),
            (0x15, 0, 8, ARCH),
            (0x20, 0, 0, 0),
            (0x15, 5, 0, 3),
            (0x15, 0, 5, 5),
            (0x20, 0, 0, 16),
            (0x54, 0, 0, 1),
            (0x15, 1, 2, 1),
            KILL,
            ALLOW,
            KILL,
        ]);
        assert_eq!(allowed(&filter).unwrap(), BTreeSet::from([3, 5]));
        let first = |argument| [argument, 0, 0, 0, 0, 0];
        assert!(allows(&filter, 5, first(7)).unwrap() && allows(&filter, 3, first(0)).unwrap());
        assert!(!allows(&filter, 5, first(1 << 32)).unwrap() && !allows(&filter, 4, first(1)).unwrap());
    }

    #[test]
    fn numbers_of_the_x32_abi_are_seen() {
        let filter = program(&[(0x20, 0, 0, 0), (0x45, 0, 1, X32), ALLOW, KILL]);
        let numbers = allowed(&filter).unwrap();
        assert!(numbers.len() == LAST_NUMBER as usize + 1 && numbers.iter().all(|number| number & X32 != 0));
    }

    #[test]
    fn a_program_that_is_not_understood_is_an_error() {
        assert!(allowed(&program(&[(0x20, 0, 0, 0)])).is_err());
        assert!(allowed(&program(&[(0x15, 9, 9, 0)])).is_err());
        assert!(allowed(&program(&[(0x80, 0, 0, 0), ALLOW])).is_err());
    }

    #[test]
    fn other_actions_than_allow_do_not_count() {
        assert!(allowed(&program(&[(0x06, 0, 0, libc::SECCOMP_RET_LOG)])).unwrap().is_empty());
        let error = program(&[(0x06, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32)]);
        assert!(allowed(&error).unwrap().is_empty() && survives(&error, 0, [0; 6]).unwrap());
    }
}
