//! One request of the guest (Virtio 1.2, section 5.2.6): parse it, check it, do it.
//!
//! The request's header is read once, into private memory. Data goes between the guest's memory and the disk inside the
//! kernel; its bytes are never looked at.

use std::fs::File;
use std::sync::Arc;

use device::{Chain, IoVecs};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use disk::SECTOR;

/// Bytes of a serial number.
pub const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Bytes of `virtio_blk_req` before the data: type, reserved, sector.
const HEADER: usize = 16;

/// Facts of the disk that every queue's worker has.
#[derive(Debug)]
pub struct BackingFile {
    pub file: File,
    pub sectors: u64,
    pub read_only: bool,
    pub serial: [u8; ID_BYTES],
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes of the chain's writable part that were filled, the status included; 0 where there is no room for one.
    pub written: u32,
    /// Bytes that went to or came from the disk.
    pub payload: u64,
    /// Whether the guest got VIRTIO_BLK_S_OK.
    pub ok: bool,
}

/// Why a request got no VIRTIO_BLK_S_OK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Error,
    Unsupported,
}

impl BackingFile {
    /// Does what the chain asks for, and writes its status. `write_through`: the driver knows of no flush.
    pub fn execute(self: &Arc<BackingFile>, chain: &Chain<'_>, write_through: bool) -> Outcome {
        // The last writable byte is the status; all before it is for data.
        let Some(room) = chain.writable.len().checked_sub(1) else {
            return Outcome { written: 0, payload: 0, ok: false };
        };
        let result = self.perform(chain, room, write_through);
        let status = match result {
            Ok(_) => VIRTIO_BLK_S_OK,
            Err(Refusal::Error) => VIRTIO_BLK_S_IOERR,
            Err(Refusal::Unsupported) => VIRTIO_BLK_S_UNSUPP,
        };
        chain.writable.write(room, &[status as u8]);
        Outcome {
            // A chain is at most 4 GiB long; one of exactly that length is reported a byte short.
            written: u32::try_from(chain.writable.len()).unwrap_or(u32::MAX),
            payload: result.unwrap_or(0),
            ok: result.is_ok(),
        }
    }

    /// The bytes moved.
    fn perform(&self, chain: &Chain<'_>, room: u64, write_through: bool) -> Result<u64, Refusal> {
        let mut header = [0; HEADER];
        if chain.readable.read(0, &mut header) != HEADER {
            return Err(Refusal::Error);
        }
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([a, b, c, d]);
        let sector = u64::from_le_bytes(sector);
        let data = chain.readable.len() - HEADER as u64;
        match kind {
            VIRTIO_BLK_T_IN => {
                let offset = self.offset(sector, room)?;
                let mut into = IoVecs::new();
                into.push(&chain.writable, 0, room);
                into.read_all_at(&self.file, offset).map_err(|_| Refusal::Error)?;
                Ok(room)
            }
            VIRTIO_BLK_T_OUT => {
                let offset = self.offset(sector, data)?;
                if self.read_only {
                    return Err(Refusal::Error);
                }
                let mut from = IoVecs::new();
                from.push(&chain.readable, HEADER as u64, data);
                from.write_all_at(&self.file, offset).map_err(|_| Refusal::Error)?;
                if write_through {
                    self.flush()?;
                }
                Ok(data)
            }
            VIRTIO_BLK_T_FLUSH => self.flush().map(|()| 0),
            VIRTIO_BLK_T_GET_ID => {
                let take = usize::try_from(room).map_or(ID_BYTES, |room| room.min(ID_BYTES));
                chain.writable.write(0, self.serial.get(..take).unwrap_or(&[]));
                Ok(0)
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    /// Where on the disk `len` bytes from `sector` on lie, if they are whole sectors of it.
    fn offset(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        let fits = len.is_multiple_of(SECTOR)
            && sector.checked_add(len / SECTOR).is_some_and(|end| end <= self.sectors)
            && len != 0;
        // No overflow: the disk's size in bytes is a u64.
        if fits { Ok(sector * SECTOR) } else { Err(Refusal::Error) }
    }

    fn flush(&self) -> Result<(), Refusal> {
        if self.read_only {
            return Ok(()); // nothing was written
        }
        rustix::fs::fdatasync(&self.file).map_err(|_| Refusal::Error)
    }
}
