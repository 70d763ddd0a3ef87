//! Cuts the five capability sets of the calling thread, by number, so that a capability newer than this code goes too.

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use crate::error::{Error, step};

/// The capabilities that the bounding set holds beside `keep`.
fn bounding_beside(keep: CapabilitySet) -> impl Iterator<Item = CapabilitySet> {
    // The kernel answers EINVAL past its last capability.
    (0..u64::BITS)
        .map(|number| CapabilitySet::from_bits_retain(1 << number))
        .map_while(|one| capability_is_in_bounding_set(one).ok().map(|held| (one, held)))
        .filter(move |(one, held)| *held && *one != keep)
        .map(|(one, _)| one)
}

fn set_of(keep: Option<caps::Capability>) -> CapabilitySet {
    keep.map_or(CapabilitySet::empty(), |one| CapabilitySet::from_bits_retain(one.bitmask()))
}

/// Whether the bounding set is as it should be, or can be made so.
pub(crate) fn bounding_can_be_cut(keep: Option<caps::Capability>) -> bool {
    bounding_beside(set_of(keep)).next().is_none()
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SETPCAP))
}

/// Empties all five sets, but for `keep` in the permitted, effective and bounding ones.
pub(crate) fn cut(keep: Option<caps::Capability>) -> Result<(), Error> {
    let remedy = "an outer sandbox may forbid it";
    let held = capabilities(None).map_err(step("read the capability sets", remedy))?;
    let kept = set_of(keep);
    if let Some(wanted) = keep.filter(|_| !held.permitted.contains(kept)) {
        return Err(Error::CapabilityNotHeld(wanted));
    }
    clear_ambient_capability_set().map_err(step("clear the ambient capabilities", remedy))?;
    if bounding_can_be_cut(keep) {
        for one in bounding_beside(kept) {
            remove_capability_from_bounding_set(one).map_err(step("cut the capability bounding set", remedy))?;
        }
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(step("drop capabilities", remedy))
}
