//! The kernels that were opened last, which stay in memory. Sees no client and no content.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::digest::Digest;
use crate::memfd::SealedMemfd;

/// Kernels that are kept in memory after they were opened.
const CACHE_KERNELS: usize = 2;
/// Bytes of them together.
const CACHE_BYTES: u64 = 256 << 20;

/// The kernels that were opened last, the latest in front.
#[derive(Default)]
pub struct Cache(VecDeque<(Digest, Arc<SealedMemfd>)>);

impl Cache {
    /// The kernel with this digest, which is the latest now.
    pub fn get(&mut self, digest: &Digest) -> Option<Arc<SealedMemfd>> {
        let at = self.0.iter().position(|(known, _)| known == digest)?;
        let found = self.0.remove(at)?;
        let sealed = found.1.clone();
        self.0.push_front(found);
        Some(sealed)
    }

    /// Keeps a kernel, and as many of the others as there is room for.
    pub fn put(&mut self, digest: Digest, sealed: Arc<SealedMemfd>) {
        self.drop(&digest);
        self.0.push_front((digest, sealed));
        while self.0.len() > CACHE_KERNELS || self.0.iter().map(|(_, sealed)| sealed.size()).sum::<u64>() > CACHE_BYTES
        {
            self.0.pop_back();
        }
    }

    /// Forgets a kernel.
    pub fn drop(&mut self, digest: &Digest) {
        self.0.retain(|(known, _)| known != digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memfd::Draft;

    #[test]
    fn the_cache_keeps_so_many_kernels_and_bytes_and_no_more() {
        let sealed = |len: u64| Arc::new(Draft::new(len as usize).unwrap().seal(len).unwrap());
        let digest = |n: u8| Digest::of(&[n]);
        let mut cache = Cache::default();
        for n in 0..3 {
            cache.put(digest(n), sealed(1));
        }
        assert!(cache.get(&digest(0)).is_none() && cache.get(&digest(1)).is_some());
        // 1 was used last, so 2 goes.
        cache.put(digest(3), sealed(1));
        assert!(cache.get(&digest(2)).is_none() && cache.get(&digest(1)).is_some());
        cache.put(digest(4), sealed(CACHE_BYTES - 1));
        assert!(cache.get(&digest(1)).is_some() && cache.get(&digest(4)).is_some());
        cache.put(digest(5), sealed(2));
        assert!(cache.get(&digest(4)).is_some() || cache.get(&digest(5)).is_some());
        assert_eq!(cache.0.len(), 1);
        cache.put(digest(6), sealed(CACHE_BYTES + 1));
        assert_eq!(cache.0.len(), 0);
    }
}
