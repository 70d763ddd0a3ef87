//! Takes apart the kernel images that Debian ships, for QEMU's sake: it gets the same unpacked
//! ELF as Volt. Input comes from Debian's signed archive; Volt's own unpacker is `kernel-store`.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};

/// The ELF inside a bzImage (Linux boot protocol 2.08 and later: fields `payload_offset` and `payload_length`).
pub fn elf(bzimage: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| -> Result<usize> {
        let bytes = bzimage.get(at..at + 4).context("The image is too short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let setup_sectors = usize::from(*bzimage.get(0x1f1).context("The image is too short")?);
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let payload = bzimage.get(start..start + word(0x24c)?).context("The payload lies outside of the image")?;
    // The last four bytes are the unpacked size, whatever the format.
    let (payload, size) = payload.split_last_chunk::<4>().context("The payload is too short")?;
    let size = u32::from_le_bytes(*size) as usize;
    let elf = match payload {
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => unpack_lz4_legacy(blocks, size)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut elf = Vec::with_capacity(size);
            ruzstd::decoding::StreamingDecoder::new(payload)?.read_to_end(&mut elf)?;
            elf
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => unpack_xz(payload)?,
        _ => bail!("The payload is packed in a way that is not known here"),
    };
    ensure!(elf.len() == size && elf.starts_with(b"\x7fELF"), "The payload is not an ELF image of {size} bytes");
    Ok(elf)
}

/// Unpacks an xz stream.
pub fn unpack_xz(packed: &[u8]) -> Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    lzma_rust2::XzReader::new(packed, true).read_to_end(&mut unpacked)?;
    Ok(unpacked)
}

/// LZ4's legacy frame: blocks of at most 8 MiB, each behind its packed size.
fn unpack_lz4_legacy(mut blocks: &[u8], size: usize) -> Result<Vec<u8>> {
    let mut unpacked = Vec::with_capacity(size);
    while let Some((length, rest)) = blocks.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let block = rest.get(..length).context("A block is cut short")?;
        unpacked.extend(lz4_flex::block::decompress(block, 8 << 20)?);
        blocks = rest.get(length..).unwrap_or(&[]);
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage of one setup sector and this payload, whose last four bytes say that it unpacks to `size` bytes.
    fn bzimage(packed: &[u8], size: usize) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x24c..0x250].copy_from_slice(&(packed.len() as u32 + 4).to_le_bytes());
        image.extend(packed);
        image.extend((size as u32).to_le_bytes());
        image
    }

    fn lz4(blocks: &[&[u8]]) -> Vec<u8> {
        let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
        for block in blocks {
            let block = lz4_flex::block::compress(block);
            packed.extend((block.len() as u32).to_le_bytes());
            packed.extend(block);
        }
        packed
    }

    #[test]
    fn lz4_payload_of_several_blocks_unpacks() {
        let image = bzimage(&lz4(&[b"\x7fELF one ", b"two"]), 12);
        assert_eq!(elf(&image).unwrap(), b"\x7fELF one two");
    }

    #[test]
    fn image_that_is_cut_short_or_no_elf_is_refused() {
        let packed = lz4(&[b"\x7fELF one"]);
        let whole = bzimage(&packed, 8);
        assert!(elf(&whole).is_ok());
        for length in [0, 0x1f2, 0x24e, whole.len() - 1] {
            assert!(elf(&whole[..length]).is_err(), "{length}");
        }
        assert!(elf(&bzimage(&packed, 9)).is_err());
        assert!(elf(&bzimage(&lz4(&[b"no ELF"]), 6)).is_err());
        assert!(elf(&bzimage(b"plain text", 10)).is_err());
    }
}
