//! Unpacking: gzip, xz, legacy lz4 and zstd, each with its own checksums, into a buffer of bounded size, a step at a time. Pure.
//!
//! A step ends when so much has come out, and fails when too much has gone in for that: packed data may say nothing at great length (a
//! deflate block without content still has its tables built), and whoever looked at the output alone would not see it.
//!
//! The kernel's build appends the unpacked size, four bytes little-endian, to all but gzip (scripts/Makefile.lib, `size_append`).

use std::io::{self, BufRead, ErrorKind, Read};
use std::ops::Range;
use std::sync::Arc;

use super::{COPY_AGAIN, Error, GIVE_KERNEL, bad, field};

/// What comes out of a step, but for lz4, whose blocks are larger.
const STEP: usize = 256 << 10;
/// What may go into it: packed data are at most a little longer than what they hold, and decoders read ahead less than this.
const STEP_INPUT: usize = 2 * STEP;
const NOTHING_IN_IT: &str = "half a mebibyte of it holds next to nothing";
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

/// The packed bytes, of which a step gets a part.
pub struct Input {
    image: Arc<Vec<u8>>,
    at: usize,
    end: usize,
    /// What this step may still read.
    allowance: usize,
}

impl Input {
    /// A range of an image.
    pub fn new(image: Arc<Vec<u8>>, range: Range<usize>) -> Input {
        Input { at: range.start, end: range.end.min(image.len()), image, allowance: 0 }
    }

    /// What was not read yet.
    fn rest(&self) -> &[u8] {
        self.image.get(self.at..self.end).unwrap_or_default()
    }

    fn skip(&mut self, len: usize) {
        self.at = self.at.saturating_add(len).min(self.end);
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let allowance = self.allowance;
        let rest = self.rest();
        if allowance == 0 && !rest.is_empty() {
            return Err(io::Error::other(NOTHING_IN_IT));
        }
        Ok(rest.get(..allowance).unwrap_or(rest))
    }

    fn consume(&mut self, len: usize) {
        self.allowance = self.allowance.saturating_sub(len);
        self.skip(len);
    }
}

impl Read for Input {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut from = self.fill_buf()?;
        let len = from.read(into)?;
        self.consume(len);
        Ok(len)
    }
}

enum Decoder {
    Plain(Input),
    Gzip(Box<flate2::bufread::GzDecoder<Input>>),
    Xz(Box<lzma_rust2::XzReader<Input>>),
    Lz4(Input),
    Zstd(Box<ruzstd::decoding::FrameDecoder>, Input),
}

/// Packed data on their way into a buffer.
pub struct Unpacking {
    decoder: Decoder,
    format: &'static str,
    /// Whether the unpacked size may follow the packed data.
    with_size: bool,
    len: usize,
}

impl Unpacking {
    /// Looks at how the data are packed; `what` they are is for messages.
    ///
    /// # Errors
    /// If it is in no way that is known.
    pub fn new(mut input: Input, what: &'static str, with_size: bool) -> Result<Unpacking, Error> {
        input.allowance = STEP_INPUT;
        let image = input.image.clone();
        let bytes = image.get(input.at..input.end).unwrap_or_default();
        let (format, decoder) = match bytes {
            _ if bytes.starts_with(ELF) => ("ELF", Decoder::Plain(input)),
            _ if bytes.starts_with(GZIP) => ("gzip", Decoder::Gzip(Box::new(flate2::bufread::GzDecoder::new(input)))),
            _ if bytes.starts_with(XZ) => {
                // The filters of the kernel's builds (x86 BCJ) are part of the decoder.
                let memory = u32::try_from(DICTIONARY / 1024 + XZ_OVERHEAD_KIB).unwrap_or(u32::MAX);
                ("xz", Decoder::Xz(Box::new(lzma_rust2::XzReader::new_mem_limit(input, false, memory))))
            }
            _ if bytes.starts_with(LZ4_LEGACY) => {
                input.skip(LZ4_LEGACY.len());
                ("lz4", Decoder::Lz4(input))
            }
            _ if bytes.starts_with(ZSTD) => {
                let mut decoder = ruzstd::decoding::FrameDecoder::new();
                decoder.set_max_window_size(DICTIONARY as u64);
                decoder.init(&mut input).map_err(|e| cut_or_damaged("zstd", &input, 0, &e))?;
                ("zstd", Decoder::Zstd(Box::new(decoder), input))
            }
            [] => return Err(bad(format!("the {what} is empty"), GIVE_KERNEL)),
            _ => {
                let known = UNSUPPORTED.iter().find(|(magic, _)| bytes.starts_with(magic));
                let packed = known.map_or("nothing that is known".to_owned(), |(_, name)| (*name).to_owned());
                let why =
                    format!("the {what} is packed with {packed}; it has to be gzip, xz, lz4, zstd or a plain ELF file");
                return Err(bad(why, GIVE_KERNEL));
            }
        };
        Ok(Unpacking { decoder, format, with_size, len: 0 })
    }

    /// How much has come out by now.
    pub fn come(&self) -> usize {
        self.len
    }

    /// Unpacks a little more into `out`, the same each time; how many bytes it takes, once that is all.
    ///
    /// # Errors
    /// If the data are damaged, truncated or too large.
    pub fn step(&mut self, out: &mut [u8]) -> Result<Option<usize>, Error> {
        let Unpacking { decoder, format, with_size, len } = self;
        let done = match decoder {
            Decoder::Plain(input) => plain(input, out, len)?,
            Decoder::Gzip(decoder) => {
                decoder.get_mut().allowance = STEP_INPUT;
                drain(format, decoder, out, len)?
            }
            Decoder::Xz(decoder) => {
                decoder.inner_mut().allowance = STEP_INPUT;
                drain(format, decoder, out, len)?
            }
            Decoder::Lz4(input) => lz4(input, *with_size, out, len)?,
            Decoder::Zstd(decoder, input) => {
                input.allowance = STEP_INPUT;
                zstd(decoder, input, out, len)?
            }
        };
        if !done {
            return Ok(None);
        }
        let rest = match decoder {
            Decoder::Plain(input) | Decoder::Lz4(input) | Decoder::Zstd(_, input) => input.rest(),
            Decoder::Gzip(decoder) => decoder.get_ref().rest(),
            Decoder::Xz(decoder) => decoder.inner().rest(),
        };
        match rest {
            [] => Ok(Some(*len)),
            [a, b, c, d] if *with_size => {
                let said = u32::from_le_bytes([*a, *b, *c, *d]);
                if said as usize == *len {
                    return Ok(Some(*len));
                }
                Err(bad(format!("the {format} data unpack to {len} bytes, and the image says {said}"), COPY_AGAIN))
            }
            rest => Err(bad(format!("{} unexpected bytes follow the {format} data", rest.len()), COPY_AGAIN)),
        }
    }
}

fn too_large(limit: usize) -> Error {
    bad(
        format!("it unpacks to more than {limit} bytes"),
        "Use a kernel without debug information (a stripped vmlinux, or the bzImage)",
    )
}

fn truncated(format: &str, len: usize) -> Error {
    bad(format!("the {format} data are truncated: they end after {len} unpacked bytes"), COPY_AGAIN)
}

fn damaged(format: &str, len: usize, why: &dyn std::fmt::Display) -> Error {
    let why: String = why.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    bad(format!("the {format} data are damaged after {len} unpacked bytes ({why})"), COPY_AGAIN)
}

/// For a decoder whose errors do not say whether the data came to an end; where they stopped does.
fn cut_or_damaged(format: &str, input: &Input, len: usize, why: &dyn std::fmt::Display) -> Error {
    match (input.rest(), input.allowance) {
        ([], _) => truncated(format, len),
        (_, 0) => damaged(format, len, &NOTHING_IN_IT),
        _ => damaged(format, len, why),
    }
}

/// The part of `out` that a step fills.
fn room(out: &mut [u8], len: usize) -> &mut [u8] {
    let end = len.saturating_add(STEP).min(out.len());
    out.get_mut(len..end).unwrap_or_default()
}

// Each does a step, adds to `len` what came out, and says whether that was the end.

fn plain(input: &mut Input, out: &mut [u8], len: &mut usize) -> Result<bool, Error> {
    let limit = out.len();
    let (from, to) = (input.rest(), room(out, *len));
    let more = from.len().min(to.len());
    if let (Some(to), Some(from)) = (to.get_mut(..more), from.get(..more)) {
        to.copy_from_slice(from);
    }
    input.skip(more);
    *len = len.saturating_add(more);
    match (input.rest().is_empty(), more) {
        (true, _) => Ok(true),
        (false, 0) => Err(too_large(limit)),
        (false, _) => Ok(false),
    }
}

/// A step of a decoder that is read from.
fn drain(format: &str, decoder: &mut impl Read, out: &mut [u8], len: &mut usize) -> Result<bool, Error> {
    let limit = out.len();
    let mut room = room(out, *len);
    let mut probe = [0];
    let full = room.is_empty();
    if full {
        room = &mut probe;
    }
    match decoder.read(room) {
        Ok(0) => return Ok(true),
        Ok(_) if full => return Err(too_large(limit)),
        Ok(more) => *len = len.saturating_add(more),
        Err(e) if e.kind() == ErrorKind::Interrupted => {}
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Err(truncated(format, *len)),
        Err(e) => return Err(damaged(format, *len, &e)),
    }
    Ok(false)
}

/// One block.
fn lz4(input: &mut Input, with_size: bool, out: &mut [u8], len: &mut usize) -> Result<bool, Error> {
    const FORMAT: &str = "lz4";
    let rest = input.rest();
    // A block's size, the next frame of a concatenation, or the size that the build appends.
    let Some(size) = field(rest, 0) else {
        return if rest.is_empty() { Ok(true) } else { Err(truncated(FORMAT, *len)) };
    };
    if rest.len() == size.len() && with_size {
        return Ok(true);
    }
    let (_, behind) = rest.split_at(size.len());
    if size == LZ4_LEGACY {
        input.skip(size.len());
        return Ok(false);
    }
    let block = u32::from_le_bytes(size) as usize;
    // lz4's own bound for what a block of this size can need.
    if block == 0 || block > LZ4_BLOCK + LZ4_BLOCK / 255 + 16 {
        return Err(damaged(FORMAT, *len, &format_args!("a block of {block} bytes")));
    }
    let Some(packed) = behind.get(..block) else { return Err(truncated(FORMAT, *len)) };
    let limit = out.len();
    let room = out.get_mut(*len..).unwrap_or_default();
    let all = room.len() >= LZ4_BLOCK;
    let room = if all { room.get_mut(..LZ4_BLOCK).unwrap_or_default() } else { room };
    match lz4_flex::block::decompress_into(packed, room) {
        Ok(more) => *len = len.saturating_add(more),
        Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) if !all => return Err(too_large(limit)),
        Err(e) => return Err(damaged(FORMAT, *len, &e)),
    }
    input.skip(size.len().saturating_add(block));
    Ok(false)
}

fn zstd(
    decoder: &mut ruzstd::decoding::FrameDecoder,
    input: &mut Input,
    out: &mut [u8],
    len: &mut usize,
) -> Result<bool, Error> {
    const FORMAT: &str = "zstd";
    if !decoder.is_finished() {
        let step = ruzstd::decoding::BlockDecodingStrategy::UptoBytes(STEP);
        decoder.decode_blocks(&mut *input, step).map_err(|e| cut_or_damaged(FORMAT, input, *len, &e))?;
    }
    let limit = out.len();
    // As much again as may just have come, so that what the decoder keeps beyond its window does not grow.
    let end = len.saturating_add(2 * STEP).min(limit);
    match decoder.read(out.get_mut(*len..end).unwrap_or_default()) {
        Ok(more) => *len = len.saturating_add(more),
        Err(e) => return Err(damaged(FORMAT, *len, &e)),
    }
    match (decoder.can_collect(), decoder.is_finished()) {
        (0, true) => {}
        (1.., _) if *len == limit => return Err(too_large(limit)),
        _ => return Ok(false),
    }
    let (said, is) = (decoder.get_checksum_from_data(), decoder.get_calculated_checksum());
    if said.is_some() && said != is {
        return Err(damaged(FORMAT, *len, &"the checksum does not match"));
    }
    Ok(true)
}
