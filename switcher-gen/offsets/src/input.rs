//! Where bytes come from: memory, or a file of which only those parts are read that are needed.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use crate::OffsetsError;

/// Bytes that can be read anywhere.
pub(crate) trait Input {
    /// How many there are.
    fn size(&self) -> u64;

    /// Fills `to` with the bytes from `at` on, all of which must be there.
    fn read_at(&self, at: u64, to: &mut [u8]) -> Result<(), OffsetsError>;

    /// A copy of `size` bytes from `at` on. No memory is asked for before it is known that they are
    /// there.
    fn bytes(&self, at: u64, size: u64) -> Result<Vec<u8>, OffsetsError> {
        let end = at.checked_add(size).filter(|end| *end <= self.size());
        let size = end.and_then(|_| usize::try_from(size).ok());
        let mut bytes = vec![0; size.ok_or(OffsetsError::Truncated { at })?];
        self.read_at(at, &mut bytes)?;
        Ok(bytes)
    }
}

impl Input for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, at: u64, to: &mut [u8]) -> Result<(), OffsetsError> {
        let start = usize::try_from(at).ok();
        let there = start.and_then(|start| self.get(start..)?.get(..to.len()));
        to.copy_from_slice(there.ok_or(OffsetsError::Truncated { at })?);
        Ok(())
    }
}

/// A file.
pub(crate) struct OnDisk<'f> {
    file: &'f File,
    size: u64,
}

impl<'f> OnDisk<'f> {
    /// Only files are read anywhere: pipes and folders are not.
    pub(crate) fn new(file: &'f File) -> Result<Self, OffsetsError> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(OffsetsError::NoFile);
        }
        Ok(Self { file, size: metadata.len() })
    }
}

impl Input for OnDisk<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, at: u64, to: &mut [u8]) -> Result<(), OffsetsError> {
        self.file.read_exact_at(to, at).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => OffsetsError::Truncated { at },
            _ => error.into(),
        })
    }
}

/// An input that is read from a position on, as the crate `object` wants it.
pub(crate) struct Positioned<'i> {
    pub(crate) input: &'i dyn Input,
    pub(crate) at: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = self.input.size().saturating_sub(self.at);
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(to.len());
        self.input.read_at(self.at, &mut to[..size]).map_err(io::Error::other)?;
        self.at += size as u64;
        Ok(size)
    }
}

impl Seek for Positioned<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.input.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
