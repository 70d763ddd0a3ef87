//! Unpacking: gzip, xz, legacy lz4 and zstd, each with its own checksums, into a buffer of bounded size. Pure.
//!
//! The kernel's build appends the unpacked size, four bytes little-endian, to all but gzip (scripts/Makefile.lib, `size_append`).

use std::io::{ErrorKind, Read};

use super::{COPY_AGAIN, Error, GIVE_KERNEL, MAX_OUTPUT, Watch, bad, field};

/// Work between two looks at the clock.
const CHUNK: usize = 1 << 20;
/// Legacy lz4 frames: every block unpacks to this at most (lz4_Frame_format.md, "Legacy frame").
const LZ4_BLOCK: usize = 8 << 20;
/// Dictionaries of the kernel's builds have 128 MiB at most.
const DICTIONARY: usize = 128 << 20;
/// What a decoder may need beside its dictionary, in KiB.
const XZ_OVERHEAD_KIB: usize = 4096;

const GZIP: &[u8] = &[0x1f, 0x8b];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const LZ4_LEGACY: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const ELF: &[u8] = b"\x7fELF";
const UNSUPPORTED: [(&[u8], &str); 4] = [
    (b"BZh", "bzip2"),
    (&[0x5d, 0, 0], "lzma"),
    (&[0x89, b'L', b'Z', b'O'], "lzo"),
    (&[0x04, 0x22, 0x4d, 0x18], "lz4 in the new frame format"),
];

/// What is to be unpacked.
pub struct Payload<'a> {
    /// The packed bytes.
    pub bytes: &'a [u8],
    /// What they are, for messages.
    pub what: &'static str,
    /// Whether the unpacked size may follow the compressed data.
    pub with_size: bool,
}

/// Unpacks into `out`: how many bytes it takes.
///
/// # Errors
/// [`Error::Bad`] if the data are damaged, truncated, too large or packed with something else; [`Error::Cancelled`]; [`Error::Late`].
pub fn unpack(payload: &Payload, out: &mut [u8], watch: &Watch) -> Result<usize, Error> {
    let Payload { bytes, what, .. } = payload;
    watch.check()?;
    let (format, len, rest) = match bytes {
        _ if bytes.starts_with(ELF) => {
            let whole = out.get_mut(..bytes.len()).ok_or_else(|| too_large(out_limit(bytes.len())))?;
            whole.copy_from_slice(bytes);
            return Ok(bytes.len());
        }
        _ if bytes.starts_with(GZIP) => gzip(bytes, out, watch)?,
        _ if bytes.starts_with(XZ) => xz(bytes, out, watch)?,
        _ if bytes.starts_with(LZ4_LEGACY) => lz4(bytes, payload.with_size, out, watch)?,
        _ if bytes.starts_with(ZSTD) => zstd(bytes, out, watch)?,
        [] => return Err(bad(format!("the {what} is empty"), GIVE_KERNEL)),
        _ => {
            let known = UNSUPPORTED.iter().find(|(magic, _)| bytes.starts_with(magic));
            let packed = known.map_or("nothing that is known".to_owned(), |(_, name)| (*name).to_owned());
            let why =
                format!("the {what} is packed with {packed}; it has to be gzip, xz, lz4, zstd or a plain ELF file");
            return Err(bad(why, GIVE_KERNEL));
        }
    };
    match rest {
        [] => Ok(len),
        [a, b, c, d] if payload.with_size => {
            let said = u32::from_le_bytes([*a, *b, *c, *d]);
            if said as usize == len {
                return Ok(len);
            }
            Err(bad(format!("the {format} data unpack to {len} bytes, and the image says {said}"), COPY_AGAIN))
        }
        rest => Err(bad(format!("{} unexpected bytes follow the {format} data", rest.len()), COPY_AGAIN)),
    }
}

/// The format, how much was unpacked, and what follows the packed data.
type Unpacked<'a> = Result<(&'static str, usize, &'a [u8]), Error>;

fn out_limit(limit: usize) -> usize {
    limit.min(MAX_OUTPUT)
}

fn too_large(limit: usize) -> Error {
    bad(
        format!("it unpacks to more than {limit} bytes"),
        "Use a kernel without debug information (a stripped vmlinux, or the bzImage)",
    )
}

/// Reads a decoder to its end.
fn drain(format: &'static str, decoder: &mut impl Read, out: &mut [u8], watch: &Watch) -> Result<usize, Error> {
    let mut len = 0usize;
    loop {
        watch.check()?;
        let end = len.saturating_add(CHUNK).min(out.len());
        let mut probe = [0];
        let room = out.get_mut(len..end).filter(|room| !room.is_empty());
        let full = room.is_none();
        match decoder.read(room.unwrap_or(&mut probe)) {
            Ok(0) => return Ok(len),
            Ok(_) if full => return Err(too_large(out.len())),
            Ok(more) => len = len.saturating_add(more),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Err(truncated(format, len)),
            Err(e) => return Err(damaged(format, len, &e)),
        }
    }
}

fn truncated(format: &str, len: usize) -> Error {
    bad(format!("the {format} data are truncated: they end after {len} unpacked bytes"), COPY_AGAIN)
}

fn damaged(format: &str, len: usize, why: &dyn std::fmt::Display) -> Error {
    let why: String = why.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    bad(format!("the {format} data are damaged after {len} unpacked bytes ({why})"), COPY_AGAIN)
}

fn gzip<'a>(bytes: &'a [u8], out: &mut [u8], watch: &Watch) -> Unpacked<'a> {
    let mut decoder = flate2::bufread::GzDecoder::new(bytes);
    let len = drain("gzip", &mut decoder, out, watch)?;
    Ok(("gzip", len, decoder.into_inner()))
}

fn xz<'a>(bytes: &'a [u8], out: &mut [u8], watch: &Watch) -> Unpacked<'a> {
    // The filters of the kernel's builds (x86 BCJ) are part of the decoder.
    let memory = u32::try_from(DICTIONARY / 1024 + XZ_OVERHEAD_KIB).unwrap_or(u32::MAX);
    let mut decoder = lzma_rust2::XzReader::new_mem_limit(bytes, false, memory);
    let len = drain("xz", &mut decoder, out, watch)?;
    Ok(("xz", len, decoder.into_inner()))
}

fn lz4<'a>(bytes: &'a [u8], with_size: bool, out: &mut [u8], watch: &Watch) -> Unpacked<'a> {
    const FORMAT: &str = "lz4";
    let mut rest = bytes.get(LZ4_LEGACY.len()..).unwrap_or_default();
    let mut len = 0usize;
    loop {
        watch.check()?;
        // A block's size, the next frame of a concatenation, or the size that the build appends.
        let Some(size) = field(rest, 0) else {
            return if rest.is_empty() { Ok((FORMAT, len, rest)) } else { Err(truncated(FORMAT, len)) };
        };
        if rest.len() == size.len() && with_size {
            return Ok((FORMAT, len, rest));
        }
        let (_, behind) = rest.split_at(size.len());
        if size == LZ4_LEGACY {
            rest = behind;
            continue;
        }
        let size = u32::from_le_bytes(size) as usize;
        // lz4's own bound for what a block of this size can need.
        if size == 0 || size > LZ4_BLOCK + LZ4_BLOCK / 255 + 16 {
            return Err(damaged(FORMAT, len, &format_args!("a block of {size} bytes")));
        }
        let Some((block, behind)) = behind.split_at_checked(size) else { return Err(truncated(FORMAT, len)) };
        let limit = out.len();
        let room = out.get_mut(len..).unwrap_or_default();
        let all = room.len() >= LZ4_BLOCK;
        let room = if all { room.get_mut(..LZ4_BLOCK).unwrap_or_default() } else { room };
        match lz4_flex::block::decompress_into(block, room) {
            Ok(more) => len = len.saturating_add(more),
            Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) if !all => return Err(too_large(limit)),
            Err(e) => return Err(damaged(FORMAT, len, &e)),
        }
        rest = behind;
    }
}

fn zstd<'a>(bytes: &'a [u8], out: &mut [u8], watch: &Watch) -> Unpacked<'a> {
    const FORMAT: &str = "zstd";
    let mut rest = bytes;
    let mut decoder = ruzstd::decoding::FrameDecoder::new();
    decoder.set_max_window_size(DICTIONARY as u64);
    // The decoder's errors do not say whether the data came to an end, but where they stopped does.
    let failed = |rest: &[u8], len, e: &dyn std::fmt::Display| {
        if rest.is_empty() { truncated(FORMAT, len) } else { damaged(FORMAT, len, e) }
    };
    decoder.init(&mut rest).map_err(|e| failed(rest, 0, &e))?;
    let mut len = 0usize;
    loop {
        watch.check()?;
        let step = ruzstd::decoding::BlockDecodingStrategy::UptoBytes(CHUNK);
        let done = decoder.decode_blocks(&mut rest, step).map_err(|e| failed(rest, len, &e))?;
        loop {
            let room = out.get_mut(len..).unwrap_or_default();
            match decoder.read(room) {
                Ok(0) if decoder.can_collect() > 0 => return Err(too_large(out.len())),
                Ok(0) => break,
                Ok(more) => len = len.saturating_add(more),
                Err(e) => return Err(damaged(FORMAT, len, &e)),
            }
        }
        if done {
            break;
        }
    }
    let (said, is) = (decoder.get_checksum_from_data(), decoder.get_calculated_checksum());
    if said.is_some() && said != is {
        return Err(damaged(FORMAT, len, &"the checksum does not match"));
    }
    Ok((FORMAT, len, rest))
}
