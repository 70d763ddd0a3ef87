//! Which address comes next: the free addresses of one pool as a set of intervals. It knows nothing of workloads, time, files or wire
//! formats. Every operation takes O(log n) steps in the number of intervals, however large the pool.

use std::collections::BTreeMap;
use std::ops::Bound;

/// The addresses of one pool that nobody has. Disjoint, non-adjacent, closed intervals.
///
/// Addresses are handed out next-fit: the first free one behind the last that was handed out, then from the start again. An address
/// that was given back thus rests as long as possible, and neighbours' ARP entries for it get time to expire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FreeSet {
    intervals: BTreeMap<u32, u32>,
    count: u64,
    cursor: u32,
}

impl FreeSet {
    /// All of `start..=end`; nothing if `start > end`.
    pub fn new(start: u32, end: u32) -> FreeSet {
        let mut set = FreeSet::default();
        if start <= end {
            set.intervals.insert(start, end);
            set.count = u64::from(end - start) + 1;
        }
        set
    }

    /// How many addresses are free.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether this address is free.
    pub fn contains(&self, address: u32) -> bool {
        self.interval_of(address).is_some()
    }

    /// Where the search for the next address to hand out begins.
    pub fn cursor(&self) -> u32 {
        self.cursor
    }

    /// Has that search begin somewhere else.
    pub fn search_from(&mut self, address: u32) {
        self.cursor = address;
    }

    /// The address to hand out next. It stays free until [`FreeSet::take`].
    pub fn next(&self) -> Option<u32> {
        if self.contains(self.cursor) {
            return Some(self.cursor);
        }
        let behind = self.intervals.range((Bound::Excluded(self.cursor), Bound::Unbounded)).next();
        behind.or_else(|| self.intervals.first_key_value()).map(|(start, _)| *start)
    }

    /// Removes an address that was chosen with [`FreeSet::next`], and moves on behind it.
    pub fn hand_out(&mut self, address: u32) -> bool {
        self.cursor = address.wrapping_add(1);
        self.take(address)
    }

    /// Removes one address. False if it was not free.
    pub fn take(&mut self, address: u32) -> bool {
        let Some((start, end)) = self.interval_of(address) else { return false };
        self.intervals.remove(&start);
        if start < address {
            self.intervals.insert(start, address - 1);
        }
        if address < end {
            self.intervals.insert(address + 1, end);
        }
        self.count -= 1;
        true
    }

    /// Puts one address back. False if it was free already.
    pub fn give(&mut self, address: u32) -> bool {
        if self.contains(address) {
            return false;
        }
        let (mut start, mut end) = (address, address);
        if let Some((below, _)) = address.checked_sub(1).and_then(|below| self.interval_of(below)) {
            start = below;
        }
        if let Some(above) = address.checked_add(1)
            && let Some(last) = self.intervals.remove(&above)
        {
            end = last;
        }
        self.intervals.insert(start, end);
        self.count += 1;
        true
    }

    fn interval_of(&self, address: u32) -> Option<(u32, u32)> {
        let (start, end) = self.intervals.range(..=address).next_back()?;
        (address <= *end).then_some((*start, *end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn any_history_matches_a_plain_set(start in 0u32..20, len in 0u32..40, steps in prop::collection::vec((0u8..3, 0u32..70), 0..200)) {
            let mut set = FreeSet::new(start, start + len);
            let mut model: BTreeSet<u32> = (start..=start + len).collect();
            for (kind, address) in steps {
                match kind {
                    0 => prop_assert_eq!(set.take(address), model.remove(&address)),
                    1 => prop_assert_eq!(set.give(address), model.insert(address)),
                    _ => {
                        let next = set.next();
                        prop_assert_eq!(next.is_some(), !model.is_empty());
                        if let Some(next) = next {
                            prop_assert!(set.hand_out(next));
                            prop_assert!(model.remove(&next));
                        }
                    }
                }
                prop_assert_eq!(set.count(), model.len() as u64);
                let flat: Vec<u32> = set.intervals.iter().flat_map(|(s, e)| *s..=*e).collect();
                prop_assert_eq!(flat, model.iter().copied().collect::<Vec<_>>());
                let pairs: Vec<_> = set.intervals.iter().collect();
                prop_assert!(pairs.windows(2).all(|w| w[0].1 + 1 < *w[1].0), "intervals touch: {:?}", pairs);
            }
        }
    }

    #[test]
    fn an_address_given_back_is_the_last_to_be_handed_out_again() {
        let mut set = FreeSet::new(2, 5);
        let mut order = Vec::new();
        for _ in 0..6 {
            let next = set.next().unwrap();
            set.hand_out(next);
            set.give(next);
            order.push(next);
        }
        assert_eq!(order, [2, 3, 4, 5, 2, 3]);
    }

    #[test]
    fn the_ends_of_the_address_space_do_not_overflow() {
        let mut set = FreeSet::new(0, u32::MAX);
        assert_eq!(set.count(), 1 << 32);
        assert!(set.hand_out(u32::MAX) && set.take(0));
        assert_eq!(set.next(), Some(1));
        assert!(set.give(u32::MAX) && set.give(0));
        assert_eq!(set, FreeSet { cursor: 0, ..FreeSet::new(0, u32::MAX) });
        assert_eq!(FreeSet::new(2, 1).next(), None);
    }

    #[test]
    fn a_pool_of_sixteen_million_in_pieces_is_drawn_from_without_looking_at_each_piece() {
        let mut set = FreeSet::new(0x0a00_0001, 0x0aff_fffe);
        // Every second address is gone: the worst fragmentation.
        for address in (0x0a00_0001..0x0a04_0000).step_by(2) {
            set.take(address);
        }
        // A hundred thousand times a hundred thousand looks are more than a test may take.
        for _ in 0..100_000 {
            let next = set.next().unwrap();
            assert!(set.hand_out(next));
        }
    }
}
