//! The setup header of a bzImage (Linux, Documentation/arch/x86/boot.rst): where the packed kernel lies. Pure.

use std::ops::Range;

use linux_loader::bootparam::{LOADED_HIGH, setup_header};

use super::{COPY_AGAIN, Error, GIVE_KERNEL, bad, field, printable, structure};

/// Where the header lies in the image, as in `boot_params`.
const HEADER: usize = 0x1f1;
/// One past its last field.
const END: usize = HEADER + size_of::<setup_header>();
/// `boot_flag` and `header`, and where they lie: what tells a boot image from other files.
const BOOT_FLAG: (usize, [u8; 2]) = (0x1fe, [0x55, 0xaa]);
const MAGIC: (usize, [u8; 4]) = (0x202, *b"HdrS");
/// The first boot protocol with `payload_offset`.
const PROTOCOL: u16 = 0x0208;
const SECTOR: usize = 512;

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
        if field(image, BOOT_FLAG.0) != Some(BOOT_FLAG.1) || field(image, MAGIC.0) != Some(MAGIC.1) {
            return Ok(None);
        }
        let Some(header) = structure::<setup_header>(image, HEADER) else {
            let why = format!("the setup header of the bzImage is truncated: {} bytes of {END}", image.len());
            return Err(bad(why, COPY_AGAIN));
        };
        let protocol = header.version;
        if protocol < PROTOCOL {
            let why = format!(
                "the bzImage has boot protocol {}.{:02}, which does not say where the packed kernel is",
                protocol >> 8,
                protocol & 0xff
            );
            return Err(bad(why, "Use a kernel of version 2.6.26 or later"));
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(bad("it is a zImage, which loads low", GIVE_KERNEL));
        }
        // 0 stands for 4, and the boot sector is one more.
        let sectors = match header.setup_sects {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let setup = (sectors + 1) * SECTOR;
        let system = (header.syssize as usize).saturating_mul(16);
        let needed = setup.saturating_add(system);
        if image.len() < needed {
            let why = format!("the bzImage is truncated: {} bytes, where its setup header says {needed}", image.len());
            return Err(bad(why, COPY_AGAIN));
        }
        let (offset, length) = (header.payload_offset as usize, header.payload_length as usize);
        let end = offset.checked_add(length).filter(|end| *end <= system && length > 0);
        let payload = end.map(|end| setup.saturating_add(offset)..setup.saturating_add(end)).ok_or_else(|| {
            let why = format!(
                "the bzImage says that the packed kernel has {length} bytes at {offset} of its {system} bytes of code"
            );
            bad(why, COPY_AGAIN)
        })?;
        Ok(Some(Setup { payload, version: version(image.get(..setup).unwrap_or_default(), header.kernel_version) }))
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
