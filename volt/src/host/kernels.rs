//! Handing kernel images to the kernel store.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
};

use ipc::{Connection, retry};
use schema::{
    kernel_store_capnp::{MAX_IMAGE_BYTES, kernel, kernel_store},
    limits,
};

use crate::error::Error;

/// Opens an image for the store, which reads only what it need not wait for. What lies elsewhere (on NFS, FUSE, Btrfs or overlayfs) is read here and
/// now, into memory.
///
/// # Errors
/// Where it cannot be opened or read.
pub fn open_image(path: &Path) -> io::Result<OwnedFd> {
    let file = File::open(path)?;
    // What is no regular file, the store says.
    if ipc::look_at(&file)?.1 || !file.metadata()?.is_file() {
        return Ok(file.into());
    }
    let mut memory = File::from(confine::memory_file("image")?);
    // Of one that is too large enough for the store to say so.
    io::copy(&mut file.take(MAX_IMAGE_BYTES.saturating_add(1)), &mut memory)?;
    Ok(memory.into())
}

/// Imports an image that is open.
pub async fn import(
    kernels: &Connection,
    tried: &str,
    image: BorrowedFd<'_>,
    alias: &str,
) -> Result<kernel::Client, Error> {
    let store: kernel_store::Client = kernels.bootstrap();
    // A token is good for one call, so a new one goes with each.
    let import = async |left| {
        let token = kernels.deposit(image).await?;
        let mut request = store.import_kernel_request();
        request.get().init_image().set_bytes(token.as_bytes());
        request.get().set_alias(alias);
        kernels.call(tried, left, request.send()).await
    };
    let answer = retry(limits::IMPORT, import).await.map_err(|fault| Error::from(fault).of_file(tried))?;
    Ok(answer.get()?.get_kernel()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_that_another_serves_is_handed_over_in_memory_and_others_as_they_are() {
        // Of no block device; so are files of NFS, FUSE, Btrfs and overlayfs.
        let notes = Path::new("/sys/kernel/notes");
        let mut copy = File::from(open_image(notes).unwrap());
        assert!(ipc::look_at(&copy).unwrap().1);
        let mut bytes = Vec::new();
        io::Seek::rewind(&mut copy).unwrap();
        copy.read_to_end(&mut bytes).unwrap();
        assert!(!bytes.is_empty() && bytes == std::fs::read(notes).unwrap());
        let memory = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let inode = |file: &File| ipc::look_at(file).unwrap().0.stx_ino;
        assert_eq!(inode(&open_image(memory.path()).unwrap().into()), inode(memory.as_file()));
        // No file at all, which the store says.
        open_image(Path::new("/dev/null")).unwrap();
        assert!(open_image(Path::new("/nowhere")).is_err());
    }
}
