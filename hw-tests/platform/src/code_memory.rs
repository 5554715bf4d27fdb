//! Pages for the switcher, as `runtime` asks a host for them.

use alloc::vec::Vec;
use core::ptr::NonNull;

use switcher_runtime::{CodeMapping, Protection, Reserved};

use crate::memory::{self, Flags, Frame, HIGH_BASE, MapError, PAGE};

/// Hands out pages from an address on, in the high host range or after a per-CPU block. It must
/// live as long as the code.
#[derive(Debug)]
pub struct CodeMemory {
    start: u64,
    /// Where the memory is written, if that is another mapping of it.
    alias: Option<u64>,
    frames: Vec<Frame>,
}

impl Default for CodeMemory {
    fn default() -> Self {
        Self::at(HIGH_BASE)
    }
}

impl CodeMemory {
    /// Memory from `start` on, where nothing else is mapped.
    #[must_use]
    pub const fn at(start: u64) -> Self {
        Self { start, alias: None, frames: Vec::new() }
    }

    /// The same memory, executable from the start: it is written from `alias` on, where nothing
    /// else is mapped, as long as it is not sealed.
    #[must_use]
    pub fn written_at(self, alias: u64) -> Self {
        Self { alias: Some(alias), ..self }
    }

    /// Where code at `start` is written.
    fn written(&self, start: u64) -> u64 {
        self.alias.map_or(start, |alias| alias + (start - self.start))
    }
}

// SAFETY: `reserve` maps fresh frames at addresses where nothing else is mapped. `frames` keeps
// them, and whoever makes a `CodeMemory` keeps it for as long as its code. Guests' roots are made
// afterwards, and map the code as the host's does. `protection` reads the host's tables, and
// `protect_host` flushes the TLB of the one CPU that has run so far, or that runs this code.
unsafe impl CodeMapping for CodeMemory {
    type Error = MapError;

    fn reserve(&mut self, len: usize) -> Result<Reserved, MapError> {
        let start = self.start + self.frames.len() as u64 * PAGE;
        for page in (start..start + len as u64).step_by(PAGE as usize) {
            let frame = Frame::new()?;
            memory::map_host(self.written(page), frame.address(), Flags::WRITE)?;
            if self.alias.is_some() {
                memory::map_host(page, frame.address(), Flags::EXECUTE)?;
            }
            self.frames.push(frame);
        }
        let place = |at: u64| {
            NonNull::new(core::ptr::with_exposed_provenance_mut(at as usize))
                .ok_or(MapError::NotMapped)
        };
        Ok(Reserved { code: place(start)?, written: place(self.written(start))? })
    }

    unsafe fn seal(&mut self, reserved: Reserved, len: usize) -> Result<(), MapError> {
        let start = reserved.code.addr().get() as u64;
        for page in (start..start + len as u64).step_by(PAGE as usize) {
            if self.alias.is_some() {
                // SAFETY: all that is to be written there is.
                unsafe { memory::unmap_host(self.written(page))? };
            }
            // SAFETY: the pages were reserved for code that has been written; nothing refers to
            // them but the switcher, which only executes them from now on.
            unsafe { memory::protect_host(page, Flags::EXECUTE)? };
        }
        Ok(())
    }

    unsafe fn release(&mut self, start: NonNull<u8>, len: usize) {
        let start = start.addr().get() as u64;
        for page in (start..start + len as u64).step_by(PAGE as usize) {
            // SAFETY: the pages were reserved for code that is not to be run; nothing refers to
            // them. Unmapping fails only for a page that is not mapped, which needs none. The
            // frames stay in `frames`.
            let _ = unsafe { memory::unmap_host(page) };
        }
    }

    fn protection(&self, address: NonNull<u8>) -> Option<Protection> {
        let page = address.addr().get() as u64 & !(PAGE - 1);
        let flags = memory::host_flags(page)?;
        Some(Protection {
            writable: flags.contains(Flags::WRITE),
            executable: flags.contains(Flags::EXECUTE),
            user: flags.contains(Flags::USER),
        })
    }
}
