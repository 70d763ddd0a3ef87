//! What a fuzz target makes of its input where that is more than one text: values one after the other.

/// An input, read from its beginning as if zeros followed it for ever.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    /// Whether only the zeros are left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `len` bytes, as far as there are any.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The next `N` bytes, and zeros for those that are not there.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// The next two.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// The next four.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// The next eight.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

#[cfg(test)]
mod tests {
    use super::Input;

    #[test]
    fn values_follow_one_another_and_zeros_follow_them() {
        let mut input = Input::new(&[1, 2, 3, 4, 5, 6]);
        assert_eq!((input.byte(), input.u16(), input.take(1)), (1, 0x0302, &[4][..]));
        assert!(!input.is_empty());
        assert_eq!(input.u32(), 0x0605);
        assert!(input.is_empty() && input.take(9).is_empty());
        assert_eq!((input.byte(), input.u64()), (0, 0));
    }
}
