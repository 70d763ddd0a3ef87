//! What fuzzing tries of this crate: a function a target, which panics where a promise is broken.

use std::sync::Arc;

use crate::digest::Digest;
use crate::image::{Error, Loaded, Loading, MAX_VERSION};
use crate::index::{Index, TITLE};

/// Room that a kernel may get here, in bytes: the first byte of an input chooses one.
const ROOMS: [usize; 4] = [4 << 10, 64 << 10, 300 << 10, 1 << 20];

/// An image in any packing, unpacked in little room: it ends after a bounded number of steps, and what comes of it is an ELF file that the
/// store takes again as it is.
pub fn kernel_unpacking(data: &[u8]) {
    let Some((room, image)) = data.split_first() else { return };
    let mut room = vec![0; ROOMS[usize::from(*room) % ROOMS.len()]];
    let Ok(Loaded { len, digest, facts }) = load(image, &mut room) else { return };
    room.truncate(len);
    assert_eq!(digest, Digest::of(&room));
    assert!(facts.load_start <= facts.entry && facts.entry < facts.load_end);
    assert!(facts.pvh_entry == 0 || facts.load_start <= facts.pvh_entry && facts.pvh_entry < facts.load_end);
    assert!(facts.version.len() <= MAX_VERSION && facts.version.bytes().all(|b| (b' '..=b'~').contains(&b)));
    let kernel = std::mem::replace(&mut room, vec![0; len]);
    let again = load(&kernel, &mut room).expect("it is whole");
    assert_eq!((again.len, again.digest, again.facts.entry), (len, digest, facts.entry));
}

fn load(image: &[u8], room: &mut [u8]) -> Result<Loaded, Error> {
    // A step takes a byte of the image, fills a part of the room, or looks for the release string in it.
    let most = image.len() + room.len() / 1024 + 64;
    let mut load = || {
        let mut loading = Loading::new(Arc::new(image.to_vec()))?;
        for _ in 0..most {
            if let Some(loaded) = loading.step(room)? {
                return Ok(loaded);
            }
        }
        panic!("it does not end within {most} steps")
    };
    let loaded = load();
    if let Err(Error { why, remedy }) = &loaded {
        assert!(!why.is_empty() && !remedy.is_empty() && !why.chars().any(char::is_control), "{why}");
    }
    loaded
}

/// The store's index: what is read is written as a text that is read as the same; and with its own digest behind it, any text.
pub fn store_index(data: &[u8]) {
    let Ok(lines) = std::str::from_utf8(data) else { return };
    let body = format!("{TITLE}\n{lines}\n");
    let sealed = format!("{body}end {}\n", Digest::of(body.as_bytes()));
    for text in [lines, &sealed] {
        let Ok(index) = Index::from_text(text) else { continue };
        assert_eq!(Index::from_text(&index.to_text()).as_ref(), Ok(&index));
        assert!(index.names.values().all(|digest| index.get(digest).is_some()));
        for entry in &index.entries {
            assert_eq!(index.resolve(&entry.digest.to_string()).map(|found| found.digest), Ok(entry.digest));
        }
    }
}

#[cfg(test)]
mod tests {
    use testkit::corpus::replay;

    #[test]
    fn kept_images_break_no_promise() {
        replay("kernel_unpacking", super::kernel_unpacking);
    }

    #[test]
    fn kept_texts_of_the_index_break_no_promise() {
        replay("store_index", super::store_index);
    }
}
