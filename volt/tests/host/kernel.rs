//! Kernels of a few instructions, as ELF files.

/// What a guest is made of: it prints through the serial port, and ends through the i8042 or the ACPI registers.
pub const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64]; // mov al, 0xfe; out 0x64, al
pub const POWEROFF: &[u8] = &[0xb0, 0x34, 0x66, 0xba, 0x00, 0x06, 0xee]; // mov al, SLP_EN|S5; mov dx, 0x600; out dx, al
pub const SPIN: &[u8] = &[0xeb, 0xfe]; // jmp $

/// Where the code is loaded and entered.
const ENTRY: u64 = 0x10_0000;

/// Prints a text.
pub fn print(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|letter| [0xb0, letter, 0x66, 0xba, 0xf8, 0x03, 0xee]).collect() // mov al, letter; mov dx, 0x3f8; out dx, al
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

/// An ELF executable with one segment of `code`, which takes `memory` bytes of the guest's.
pub fn elf(code: &[u8], memory: u64) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let size = code.len() as u64;
    let mut image = Vec::new();
    image.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    image.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64
    image.extend([ENTRY, 64, 0].map(u64::to_le_bytes).concat()); // entry, program headers, no sections
    image.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    image.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]); // PT_LOAD, rwx
    image.extend([HEADERS, ENTRY, ENTRY].map(u64::to_le_bytes).concat());
    image.extend([size, size.max(memory), 1].map(u64::to_le_bytes).concat());
    image.extend_from_slice(code);
    image
}
