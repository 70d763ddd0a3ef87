//! The setup header of a bzImage (Linux, Documentation/arch/x86/boot.rst): where the packed kernel lies. Pure.

use std::ops::Range;

use super::{COPY_AGAIN, Error, GIVE_KERNEL, bad, field, printable};

const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
const LOADFLAGS: usize = 0x211;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// One past the last field that is read.
const END: usize = 0x250;
const SECTOR: usize = 512;
const LOADED_HIGH: u8 = 1;

/// What the setup header says.
#[derive(Debug, PartialEq, Eq)]
pub struct Setup {
    /// Where in the image the packed kernel lies, with the size that the build appends to it.
    pub payload: Range<usize>,
    /// The release string.
    pub version: Option<String>,
}

impl Setup {
    /// Reads the setup header; `None` if this is no Linux boot image at all.
    ///
    /// # Errors
    /// If it is one, but not a whole bzImage that this program can unpack.
    pub fn find(image: &[u8]) -> Result<Option<Setup>, Error> {
        if field(image, BOOT_FLAG) != Some([0x55, 0xaa]) || field(image, HEADER) != Some(*b"HdrS") {
            return Ok(None);
        }
        if image.len() < END {
            return Err(bad(
                format!("the setup header of the bzImage is truncated: {} bytes of {END}", image.len()),
                COPY_AGAIN,
            ));
        }
        let byte = |at| field(image, at).map_or(0, |[byte]| byte);
        let word = |at| field(image, at).map_or(0, u16::from_le_bytes);
        let long = |at| field(image, at).map_or(0, u32::from_le_bytes) as usize;
        let protocol = word(VERSION);
        if protocol < 0x0208 {
            let why = format!(
                "the bzImage has boot protocol {}.{:02}, which does not say where the packed kernel is",
                protocol >> 8,
                protocol & 0xff
            );
            return Err(bad(why, "Use a kernel of version 2.6.26 or later"));
        }
        if byte(LOADFLAGS) & LOADED_HIGH == 0 {
            return Err(bad("it is a zImage, which loads low", GIVE_KERNEL));
        }
        // 0 stands for 4, and the boot sector is one more.
        let sectors = match byte(SETUP_SECTS) {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let setup = (sectors + 1) * SECTOR;
        let system = long(SYSSIZE).saturating_mul(16);
        let needed = setup.saturating_add(system);
        if image.len() < needed {
            let why = format!("the bzImage is truncated: {} bytes, where its setup header says {needed}", image.len());
            return Err(bad(why, COPY_AGAIN));
        }
        let (offset, length) = (long(PAYLOAD_OFFSET), long(PAYLOAD_LENGTH));
        let end = offset.checked_add(length).filter(|end| *end <= system && length > 0);
        let payload = end.map(|end| setup.saturating_add(offset)..setup.saturating_add(end)).ok_or_else(|| {
            let why = format!(
                "the bzImage says that the packed kernel has {length} bytes at {offset} of its {system} bytes of code"
            );
            bad(why, COPY_AGAIN)
        })?;
        Ok(Some(Setup { payload, version: version(image.get(..setup).unwrap_or_default(), word(KERNEL_VERSION)) }))
    }
}

/// The release string, which lies in the setup code, 0x200 less than where it is said to be.
fn version(setup: &[u8], pointer: u16) -> Option<String> {
    if pointer == 0 {
        return None;
    }
    let text = setup.get(usize::from(pointer).checked_add(0x200)?..)?;
    Some(printable(text)).filter(|version| !version.is_empty())
}
