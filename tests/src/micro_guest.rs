//! Kernels of a few instructions, for guests that are to be there and no more.

/// What a guest ends with: it uses its CPU for ever.
pub const SPIN: &[u8] = &[0xeb, 0xfe]; // jmp $
/// Or it powers off.
pub const POWEROFF: &[u8] = &[0xb0, 0x34, 0x66, 0xba, 0x00, 0x06, 0xee]; // mov al, SLP_EN|S5; mov dx, 0x600; out dx, al

/// A kernel that says `text` on its console, and then does `then`.
pub fn kernel(text: &str, then: &[u8]) -> Vec<u8> {
    // mov dx, 0x3f8; then for each letter: mov al, letter; out dx, al
    let print = text.bytes().flat_map(|letter| [0xb0, letter, 0xee]);
    elf(&[0x66, 0xba, 0xf8, 0x03].into_iter().chain(print).chain(then.iter().copied()).collect::<Vec<u8>>())
}

/// An ELF file with one segment, of that code.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const ENTRY: u64 = 0x10_0000;
    const HEADERS: u64 = 64 + 56;
    let size = code.len() as u64;
    [
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".as_slice(),
        &[2, 0, 62, 0, 1, 0, 0, 0],                     // executable, x86-64
        &[ENTRY, 64, 0].map(u64::to_le_bytes).concat(), // entry, program headers, no sections
        &[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0, 7, 0, 0, 0], // PT_LOAD, rwx
        &[HEADERS, ENTRY, ENTRY, size, size, 1].map(u64::to_le_bytes).concat(),
        code,
    ]
    .concat()
}
