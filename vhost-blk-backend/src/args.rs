//! The command line, and the checked configuration that it stands for. Phase 1: the disk is opened and locked here.

use std::fs::File;
use std::path::PathBuf;

use clap::Parser;
use device::{BoxError, Error, Options};

use crate::request::ID_BYTES;
use disk::Disk;

/// The most queues, each of which has its thread.
pub const MAX_QUEUES: usize = 16;

/// Serves one raw disk image to one virtual machine over vhost-user.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    #[command(flatten)]
    pub common: Options,

    /// The disk: an inherited descriptor of a raw image or a block device
    #[arg(long, value_name = "N", conflicts_with = "blk_file")]
    pub blk_fd: Option<i32>,

    /// The disk: a raw image or a block device to open
    #[arg(long, value_name = "PATH")]
    pub blk_file: Option<PathBuf>,

    /// Let the guest read only
    #[arg(long)]
    pub read_only: bool,

    /// What the guest sees as the disk's serial number: at most 20 printable ASCII characters
    #[arg(long, value_name = "ID", default_value = "")]
    pub serial: String,

    /// Queues, each served by a thread of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub queues: usize,
}

/// What the device is to be.
#[derive(Debug)]
pub struct Config {
    pub disk: Disk,
    pub serial: [u8; ID_BYTES],
    pub queues: usize,
}

impl Args {
    /// Opens and locks the disk, and checks the rest.
    pub fn config(&self) -> Result<Config, BoxError> {
        let serial = serial(&self.serial)?;
        if !(1..=MAX_QUEUES).contains(&self.queues) {
            return Err(Error::Usage(format!("--queues {} is not 1 to {MAX_QUEUES}", self.queues)).into());
        }
        let disk = match (self.blk_fd, &self.blk_file) {
            (Some(fd), None) => {
                let file = File::from(device::inherited("--blk-fd", fd, "an open disk")?);
                Disk::adopt(format!("--blk-fd {fd}"), file, self.read_only)?
            }
            (None, Some(path)) => Disk::open(path, self.read_only)?,
            _ => return Err(Error::Usage("Say which disk: either --blk-fd N or --blk-file PATH".to_owned()).into()),
        };
        Ok(Config { disk, serial, queues: self.queues })
    }
}

/// The serial number as GET_ID gives it: padded with zeros.
fn serial(text: &str) -> Result<[u8; ID_BYTES], Error> {
    let mut serial = [0; ID_BYTES];
    match serial.get_mut(..text.len()) {
        Some(start) if text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') => {
            start.copy_from_slice(text.as_bytes());
            Ok(serial)
        }
        _ => Err(Error::Usage(format!("--serial {text:?} is not up to {ID_BYTES} printable ASCII characters"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_of_twenty_bytes_is_taken_and_of_twenty_one_refused() {
        assert_eq!(serial("01234567890123456789").unwrap(), *b"01234567890123456789");
        assert!(serial("012345678901234567890").is_err());
        assert!(serial("über").is_err());
        assert_eq!(serial("").unwrap(), [0; ID_BYTES]);
    }
}
