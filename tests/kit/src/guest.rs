//! Guests of a few instructions, as kernels in ELF files: they print through the serial port, and end through the i8042 or the ACPI
//! registers, or not at all.

use crate::elf::{LOAD, Segment};

/// Resets the machine.
pub const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64]; // mov al, 0xfe; out 0x64, al
/// Powers it off.
pub const POWEROFF: &[u8] = &[0xb0, 0x34, 0x66, 0xba, 0x00, 0x06, 0xee]; // mov al, SLP_EN|S5; mov dx, 0x600; out dx, al
/// Uses the CPU for ever.
pub const SPIN: &[u8] = &[0xeb, 0xfe]; // jmp $
/// Prints the letter in AL.
pub const OUT_AL: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xee]; // mov dx, 0x3f8; out dx, al

/// Where the code is loaded and entered.
const ENTRY: u64 = 0x10_0000;

/// Prints a text.
pub fn print(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|letter| [&[0xb0, letter], OUT_AL].concat()).collect() // mov al, letter
}

/// Prints for ever.
pub fn flood() -> Vec<u8> {
    [print("x"), vec![0xeb, 0xf7]].concat() // jmp to the start
}

/// Echoes one letter that was typed; powers off if it is a full stop.
pub fn echo() -> Vec<u8> {
    // mov dx, 0x3fd; wait: in al, dx; test al, 1; jz wait; mov dx, 0x3f8; in al, dx; out dx, al; cmp al, '.'; jne +11
    let read =
        [0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0x3c, b'.', 0x75];
    [&read[..], &[9], POWEROFF, SPIN].concat()
}

/// A kernel of that code, which takes at least `memory` bytes of the guest's.
pub fn elf(code: &[u8], memory: u64) -> Vec<u8> {
    let memory_size = memory.max(code.len() as u64);
    // To be read, written and executed.
    let segment = Segment { kind: LOAD, flags: 7, address: ENTRY, memory_size, bytes: code.to_vec() };
    crate::elf::elf(ENTRY, &[segment])
}
