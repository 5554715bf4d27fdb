//! Where the bytes of a file come from, without more of it in memory than is looked at.

use std::cell::RefCell;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use object::Endianness;
use object::read::{ReadCache, ReadRef};

/// The byte order, which [`read`](super::read()) has checked.
pub(super) const E: Endianness = Endianness::Little;

/// Where a file's bytes come from.
pub(super) trait Contents<'data>: ReadRef<'data> + 'data {
    /// Copies bytes without keeping any in memory.
    fn copy(self, offset: u64, to: &mut [u8]) -> Result<(), ()>;
}

impl<'data> Contents<'data> for &'data [u8] {
    fn copy(self, offset: u64, to: &mut [u8]) -> Result<(), ()> {
        to.copy_from_slice(self.read_bytes_at(offset, to.len() as u64)?);
        Ok(())
    }
}

/// A file of which only those parts are in memory that were read.
#[derive(Clone, Copy)]
pub(super) struct OnDisk<'data> {
    pub(super) cache: &'data ReadCache<&'data std::fs::File>,
    pub(super) file: &'data std::fs::File,
    /// Tables name places in their order: what is near the last one is at hand.
    pub(super) window: &'data RefCell<Window>,
}

/// A part of a file, in memory until another one is.
#[derive(Default)]
pub(super) struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// In bytes. Who reads more than half of it reads it alone.
    const SIZE: u64 = 1 << 16;
    const HALF: u64 = Self::SIZE / 2;

    /// The bytes at an offset, if there are so many in a file of this length.
    fn get(&mut self, of: &std::fs::File, length: u64, offset: u64, size: usize) -> Option<&[u8]> {
        let end = offset.checked_add(size as u64)?;
        if offset < self.start || self.start + (self.bytes.len() as u64) < end {
            // From the middle of the old one on, so that no place is at the end of all.
            let start = offset - offset % Self::HALF;
            let here = length.checked_sub(start)?.min(Self::SIZE);
            self.start = start;
            self.bytes.resize(here as usize, 0);
            if of.read_exact_at(&mut self.bytes, self.start).is_err() {
                self.bytes.clear();
            }
        }
        self.bytes.get((offset - self.start) as usize..)?.get(..size)
    }
}

impl<'data> ReadRef<'data> for OnDisk<'data> {
    fn len(self) -> Result<u64, ()> {
        ReadRef::len(self.cache)
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'data [u8], ()> {
        self.cache.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'data [u8], ()> {
        self.cache.read_bytes_at_until(range, delimiter)
    }
}

impl<'data> Contents<'data> for OnDisk<'data> {
    fn copy(self, offset: u64, to: &mut [u8]) -> Result<(), ()> {
        if to.len() as u64 <= Window::HALF {
            let mut window = self.window.borrow_mut();
            let bytes = window.get(self.file, ReadRef::len(self.cache)?, offset, to.len());
            to.copy_from_slice(bytes.ok_or(())?);
            return Ok(());
        }
        self.file.read_exact_at(to, offset).map_err(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::Window;
    use std::io::Write;

    /// What is near is at hand, and what is behind the end is not there, whatever was read before.
    #[test]
    fn a_window_shows_what_is_in_the_file_and_nothing_else() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let length = bytes.len() as u64;
        let mut window = Window::default();
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..2000 {
            let (offset, size) = (random.u64(..300_000), random.usize(..=Window::HALF as usize));
            let expected = bytes.get(offset as usize..).and_then(|rest| rest.get(..size));
            assert_eq!(window.get(&file, length, offset, size), expected, "{offset}, {size}");
        }
        assert_eq!(window.get(&file, length, u64::MAX, 1), None);
    }
}
