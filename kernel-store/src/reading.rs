//! What the unpacking thread does, in steps: a client's file on its way into memory and out of its packing. Sees no client.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use service::{Lost, Owner, State};
use sha2::Digest as _;

use crate::digest::Digest;
use crate::dropped_on::DroppedOn;
use crate::image::{self, CHUNK, COPY_AGAIN, Loading};
use crate::memfd::Draft;
use crate::store::{Store, Unpacked};

/// What the unpacking thread reads into, where nothing is kept of it.
pub struct Scratch(pub(crate) Vec<u8>);

impl Scratch {
    /// Of a step's size.
    pub fn new() -> Scratch {
        Scratch(vec![0; CHUNK])
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

impl State for Scratch {
    // It may be stuck in a read of a client's file.
    const FAREWELL: Option<Duration> = Some(Duration::ZERO);

    /// What is being unpacked has its own state.
    fn renew(&mut self) -> Result<(), Lost> {
        *self = Scratch::new();
        Ok(())
    }
}

/// An image on its way into memory and out of its packing. Holds its place, a `P`, until it is gone, which may be after its caller.
pub struct Unpack<P> {
    image: Arc<File>,
    size: usize,
    source: Digest,
    hasher: sha2::Sha256,
    bytes: Vec<u8>,
    loading: Option<Loading>,
    draft: Option<DroppedOn<Draft, Store>>,
    home: Owner<Store>,
    _place: P,
}

/// Why an image is not unpacked.
pub enum Failed {
    /// It is none that can be kept.
    Bad(image::Error),
    /// It is another one than was asked for.
    Changed,
}

impl From<image::Error> for Failed {
    fn from(error: image::Error) -> Failed {
        Failed::Bad(error)
    }
}

impl<P> Unpack<P> {
    /// To unpack the file that has this digest, into `draft`.
    pub fn new(
        image: Arc<File>,
        size: usize,
        source: Digest,
        draft: DroppedOn<Draft, Store>,
        home: Owner<Store>,
        place: P,
    ) -> Unpack<P> {
        let (hasher, bytes) = (sha2::Sha256::new(), Vec::new());
        Unpack { image, size, source, hasher, bytes, loading: None, draft: Some(draft), home, _place: place }
    }

    /// Reads or unpacks a part; the kernel once all is done. What was read nobody can change: it is hashed, and unpacked, from memory.
    ///
    /// # Errors
    /// Why it is not unpacked.
    pub fn step(&mut self) -> Result<Option<DroppedOn<Unpacked, Store>>, Failed> {
        if self.bytes.is_empty() && self.loading.is_none() {
            // The kernel gives zeroed pages as they are touched.
            self.bytes = Vec::with_capacity(self.size);
        }
        let read = self.bytes.len();
        if read < self.size && self.loading.is_none() {
            let end = read.saturating_add(CHUNK).min(self.size);
            self.bytes.resize(end, 0);
            let room = self.bytes.get_mut(read..).unwrap_or_default();
            let got = read_some(&self.image, room, read, self.size)?.len();
            self.bytes.truncate(read.saturating_add(got));
            self.hasher.update(self.bytes.get(read..).unwrap_or_default());
            return Ok(None);
        }
        let Some(loading) = &mut self.loading else {
            if Digest::from(std::mem::take(&mut self.hasher)) != self.source {
                return Err(Failed::Changed);
            }
            self.loading = Some(Loading::new(Arc::new(std::mem::take(&mut self.bytes)))?);
            return Ok(None);
        };
        let Some(loaded) = self.draft.as_mut().and_then(DroppedOn::get_mut).map(|draft| loading.step(draft)) else {
            return Ok(None);
        };
        let Some(image::Loaded { len, digest, facts }) = loaded? else { return Ok(None) };
        let draft = self.draft.take().and_then(DroppedOn::take);
        let unpacked = draft.map(|draft| Unpacked { draft, len, digest, facts, source: self.source });
        Ok(unpacked.map(|unpacked| DroppedOn::new(unpacked, self.home.clone())))
    }
}

/// Reads as much as there is room for, but not beyond `size`; at least a byte.
///
/// # Errors
/// If the file is shorter by now, or cannot be read.
pub fn read_some<'a>(image: &File, into: &'a mut [u8], at: usize, size: usize) -> Result<&'a mut [u8], image::Error> {
    let broken = |why: String| image::Error { why, remedy: COPY_AGAIN };
    let room = into.get_mut(..size.saturating_sub(at).min(CHUNK).min(into.len())).unwrap_or_default();
    loop {
        match image.read_at(room, at as u64) {
            Ok(0) => {
                return Err(broken(format!(
                    "the image is truncated: it ended at {at} of {size} bytes while it was read"
                )));
            }
            Ok(more) => return Ok(room.get_mut(..more).unwrap_or_default()),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(broken(format!("the image cannot be read at {at} of {size} bytes ({e})"))),
        }
    }
}
