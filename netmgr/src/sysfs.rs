//! What netmgr reads in sysfs: which device a macvtap's is, which another process opens ([`Opener`]), and where a network card's virtual functions are
//! (SR-IOV).

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::retry_on_intr,
};
use schema::net::Mac;

use crate::{names, opener::Opener};

/// Where the kernel says of each interface's device which one it is.
pub const FOLDER: &str = "/sys/devices/virtual/net";
/// How such a file is opened; the filter knows no other way. (Rustix adds O_LARGEFILE.)
pub const OPEN: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::LARGEFILE);
/// Bytes that are read of it; the filter knows how many. A major and a minor number fit.
pub const LENGTH: usize = 24;
/// Where the kernel has a link for each PCI device.
const DEVICES: &str = "/sys/bus/pci/devices";
/// What the class of a network card begins with.
const NETWORK: &str = "0x02";
/// What a card's folder has that can have virtual functions.
const OFFSET: &str = "sriov_offset";
const STRIDE: &str = "sriov_stride";
/// The most cards.
const MOST: usize = 64;

/// The way to the devices of macvtaps.
pub struct Devices {
    folder: OwnedFd,
    opener: Opener,
    /// From which follow MAC addresses that no interface has.
    seed: String,
    count: u64,
}

impl Devices {
    /// Has what it takes to open one; `None` where the host has no sysfs.
    ///
    /// # Errors
    /// Where there are no random bytes to be had.
    pub fn new(opener: Opener) -> io::Result<Option<Devices>> {
        let folder = openat(CWD, FOLDER, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let Ok(folder) = folder else { return Ok(None) };
        let seed: [u8; 16] = ipc::random()?;
        Ok(Some(Devices { folder, opener, seed: u128::from_ne_bytes(seed).to_string(), count: 0 }))
    }

    /// The descriptors that the sandbox has to keep.
    pub fn fds(&self) -> [RawFd; 2] {
        [self.folder.as_raw_fd(), self.opener.fd()]
    }

    /// A MAC address by which an interface is known as the one that was just made, whatever others are called.
    pub fn nonce(&mut self) -> Mac {
        self.count += 1;
        let [a, b, c, d, e, ..] = names::digest(&["macvtap", &self.seed, &self.count.to_string()]);
        Mac::local([a, b, c, d, e])
    }

    /// Opens the device of an interface.
    pub fn open(&self, name: &str, index: u32) -> io::Result<OwnedFd> {
        let said = read(&self.folder, Path::new(&format!("{name}/macvtap/tap{index}/dev")))?;
        let minor = said.split_once(':').and_then(|(_, minor)| minor.parse().ok());
        self.opener.open(minor.ok_or(io::ErrorKind::InvalidData)?)
    }
}

/// The network cards that can have virtual functions: the folder of each, by its PCI address.
#[derive(Clone, Default)]
pub struct Cards(BTreeMap<String, PathBuf>);

impl Cards {
    /// Looks for them, in phase 1.
    pub fn find() -> Cards {
        let listed = fs::read_dir(DEVICES).into_iter().flatten().flatten();
        let cards = listed.filter_map(|entry| {
            let folder = fs::canonicalize(entry.path()).ok()?;
            let class = fs::read_to_string(folder.join("class")).ok()?;
            let is_one = class.starts_with(NETWORK) && folder.join(STRIDE).exists();
            is_one.then_some((entry.file_name().into_string().ok()?, folder))
        });
        Cards(cards.take(MOST).collect())
    }

    /// Their folders, for the sandbox to keep.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.0.values().map(PathBuf::as_path)
    }

    /// The PCI address of a card's function of that number.
    pub fn address(&self, card: &str, number: u32) -> Option<String> {
        let folder = self.0.get(card)?;
        let read = |file| read(CWD, &folder.join(file)).ok()?.parse().ok();
        nth(card, read(OFFSET)?, read(STRIDE)?, number)
    }
}

/// By routing identifiers (PCI Express Base Specification, "SR-IOV Capability", First VF Offset and VF Stride): a bus, five bits of a device and three of a
/// function, of the same domain as the card's.
fn nth(card: &str, offset: u32, stride: u32, number: u32) -> Option<String> {
    let (domain, rest) = card.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let hex = |text| u32::from_str_radix(text, 16).ok();
    let first = hex(bus)? << 8 | hex(device)? << 3 | hex(function)?;
    let id = stride.checked_mul(number)?.checked_add(offset)?.checked_add(first)?;
    let [0, 0, bus, rest] = id.to_be_bytes() else { return None };
    Some(format!("{domain}:{bus:02x}:{:02x}.{}", rest >> 3, rest & 7))
}

/// The few words that a file of sysfs has.
fn read(folder: impl AsFd, path: &Path) -> io::Result<String> {
    let file = retry_on_intr(|| openat(&folder, path, OPEN, Mode::empty()))?;
    let mut said = [0; LENGTH];
    let length = retry_on_intr(|| rustix::io::read(&file, &mut said[..]))?;
    Ok(String::from_utf8_lossy(said.get(..length).unwrap_or_default()).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_the_addresses_that_follow_from_their_card_s() {
        let nth = |card: &str, offset, stride, number| nth(card, offset, stride, number);
        for (card, offset, stride, number, expected) in [
            ("0000:01:00.0", 128, 2, 0, Some("0000:01:10.0")),
            ("0000:01:00.0", 128, 2, 1, Some("0000:01:10.2")),
            ("0000:01:00.1", 128, 2, 0, Some("0000:01:10.1")),
            ("0000:3b:00.0", 16, 1, 7, Some("0000:3b:02.7")),
            // On the next bus.
            ("10000:3b:1f.7", 1, 1, 0, Some("10000:3c:00.0")),
            ("0000:ff:1f.7", 0, 1, 1, None),
            ("0000:01:00.0", u32::MAX, 2, 1, None),
            ("0000:01:00.0", 0, u32::MAX, 2, None),
            ("virtio0", 1, 1, 1, None),
            ("", 1, 1, 1, None),
        ] {
            assert_eq!(nth(card, offset, stride, number).as_deref(), expected, "{card} {number}");
        }
    }
}
