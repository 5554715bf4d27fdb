//! The memory of a machine: code pages, written first and executed afterwards, never both, and
//! data pages that hold one value each. Every mapping stands between two inaccessible pages, so
//! that an access past its end is a fault and not a surprise.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{self, NonNull};
use std::rc::Rc;

use switcher_gen::arch::PagingMode;
use switcher_gen::layout::{Mode, PerCpu, PtRegs, Pvcs, PvcsV2026};

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;

/// The paging mode this CPU is in, as its kernel shows it: only with five levels does it give
/// memory above the lower half of a 48-bit address space, to those who ask for it.
pub(super) fn paging_mode() -> io::Result<PagingMode> {
    const BEYOND_FOUR_LEVELS: usize = 1 << 52;
    let found = Mapping::near(BEYOND_FOUR_LEVELS, PAGE, 0)?;
    let within = PagingMode::FourLevel.is_canonical(found.address());
    Ok(if within { PagingMode::FourLevel } else { PagingMode::FiveLevel })
}

/// INT3: what code pages hold where nothing was loaded.
const FILLER: u8 = 0xCC;

/// Whole pages, with an inaccessible page on either side.
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// At least `len` bytes, zero, readable and writable.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        Self::near(0, len, 0)
    }

    /// As [`new`](Self::new), at `address` and nowhere else.
    pub(super) fn at(address: u64, len: usize) -> io::Result<Self> {
        let guarded = (address as usize).saturating_sub(PAGE);
        let mapping = Self::near(guarded, len, libc::MAP_FIXED_NOREPLACE)?;
        // A kernel before 4.17 treats the address as no more than a hint.
        if mapping.address() == address {
            Ok(mapping)
        } else {
            Err(io::ErrorKind::AddrInUse.into())
        }
    }

    /// As [`new`](Self::new), with the inaccessible page before it at `hint` or wherever else the
    /// kernel likes. `flags` may keep it from that.
    fn near(hint: usize, len: usize, flags: libc::c_int) -> io::Result<Self> {
        let len = len.next_multiple_of(PAGE);
        // SAFETY: a private anonymous mapping at an address of the kernel's choice (the hint is no
        // more than that without MAP_FIXED, and MAP_FIXED_NOREPLACE fails instead) replaces nothing
        // that exists.
        let guarded = unsafe {
            libc::mmap(
                ptr::without_provenance_mut(hint),
                len + 2 * PAGE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
                -1,
                0,
            )
        };
        if guarded == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = guarded.cast::<u8>().wrapping_add(PAGE);
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self { base, len };
        mapping.protect(0, libc::PROT_READ | libc::PROT_WRITE)?;
        Ok(mapping)
    }

    /// Where the first byte lies.
    pub(super) fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// How many bytes there are: whole pages.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Puts `file`'s pages where its own were.
    fn share(&self, file: &File, protection: libc::c_int) -> io::Result<()> {
        // SAFETY: MAP_FIXED replaces pages of exactly this mapping, into which nobody has a
        // reference: it has just been made, and `ModesPage` makes none but for the length of a
        // copy.
        let shared = unsafe {
            libc::mmap(
                self.base.as_ptr().cast(),
                self.len,
                protection,
                libc::MAP_SHARED | libc::MAP_FIXED,
                file.as_raw_fd(),
                0,
            )
        };
        if shared == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Changes the rights of the pages from `start` on, a multiple of their size within the
    /// mapping.
    fn protect(&self, start: usize, protection: libc::c_int) -> io::Result<()> {
        assert!(start.is_multiple_of(PAGE) && start <= self.len);
        let pages = self.base.as_ptr().wrapping_add(start);
        // SAFETY: the range is exactly the rest of this mapping; Rust holds no reference into it,
        // because `CodePages` and `Data` make theirs for the length of a call that does not get
        // here.
        let failed = unsafe { libc::mprotect(pages.cast(), self.len - start, protection) };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let guarded = self.base.as_ptr().wrapping_sub(PAGE);
        // SAFETY: `new` mapped exactly this range and nobody else knows of it; code in it is not
        // running, because a machine's `run` borrows the machine until its guest has exited.
        unsafe { libc::munmap(guarded.cast(), self.len + 2 * PAGE) };
    }
}

/// Pages of code: executable and readable, except while [`load`](Self::load) writes to them.
pub(super) struct CodePages {
    mapping: Rc<Mapping>,
    /// The offset in the mapping where the code begins. In front of it lies data.
    start: usize,
}

impl CodePages {
    /// Pages that hold `bytes`, and INT3 after them.
    pub(super) fn new(bytes: &[u8]) -> io::Result<Self> {
        Self::behind(0, bytes)
    }

    /// Pages that hold `bytes`, after a page of data, which holds a `T`.
    pub(super) fn with_data_in_front<T: Plain>(bytes: &[u8]) -> io::Result<(Self, Data<T>)> {
        const { assert!(size_of::<T>() <= PAGE) };
        let code = Self::behind(PAGE, bytes)?;
        let mapping = Rc::clone(&code.mapping);
        Ok((code, Data { mapping, offset: 0, value: PhantomData }))
    }

    fn behind(start: usize, bytes: &[u8]) -> io::Result<Self> {
        let mapping = Mapping::new(start + bytes.len().max(1))?;
        let mut code = Self { mapping: Rc::new(mapping), start };
        code.write(|content| {
            content.fill(FILLER);
            content[..bytes.len()].copy_from_slice(bytes);
        })?;
        Ok(code)
    }

    fn len(&self) -> usize {
        self.mapping.len - self.start
    }

    fn pages(&self) -> *mut u8 {
        self.mapping.base.as_ptr().wrapping_add(self.start)
    }

    /// Puts `bytes` at `offset`. False if they do not fit there.
    pub(super) fn load(&mut self, offset: usize, bytes: &[u8]) -> io::Result<bool> {
        let Some(end) = offset.checked_add(bytes.len()).filter(|end| *end <= self.len()) else {
            return Ok(false);
        };
        self.write(|content| content[offset..end].copy_from_slice(bytes))?;
        Ok(true)
    }

    fn write(&mut self, change: impl FnOnce(&mut [u8])) -> io::Result<()> {
        self.mapping.protect(self.start, libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: the pages are ours, readable, writable and initialised (anonymous memory is
        // zero). `&mut self` makes this the only reference: whoever shares the mapping has the page
        // in front of them.
        change(unsafe { std::slice::from_raw_parts_mut(self.pages(), self.len()) });
        self.mapping.protect(self.start, libc::PROT_READ | libc::PROT_EXEC)
    }

    /// Where the first byte lies.
    pub(super) fn address(&self) -> u64 {
        self.pages() as u64
    }

    /// Whether `address` lies in these pages.
    pub(super) fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(self.address()) < self.len() as u64
    }

    /// What is loaded from `address` to the end of the pages; nothing for an address elsewhere.
    pub(super) fn at(&self, address: u64) -> &[u8] {
        // SAFETY: the pages are ours, initialised and readable under either protection; they
        // change through `&mut self` only, since guests cannot write to executable pages.
        let content = unsafe { std::slice::from_raw_parts(self.pages(), self.len()) };
        let offset = address.wrapping_sub(self.address());
        usize::try_from(offset).ok().and_then(|offset| content.get(offset..)).unwrap_or_default()
    }
}

/// One page of code for both modes of a guest, at an address of the caller's choice. Which mode's
/// it is follows the root, as under a host: [`show`](Self::show) writes it, through a second
/// mapping.
pub(super) struct ModesPage {
    code: Mapping,
    alias: Mapping,
    contents: [Vec<u8>; 2],
    shown: Mode,
}

impl ModesPage {
    /// A page that holds INT3 in both modes.
    pub(super) fn new(address: u64) -> io::Result<Self> {
        // SAFETY: a name that ends with a zero, and no flags; the result is checked.
        let file = unsafe { libc::memfd_create(c"switcher-guest".as_ptr(), 0) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, and nobody else's.
        let file = unsafe { File::from_raw_fd(file) };
        file.set_len(PAGE as u64)?;
        let code = Mapping::at(address, PAGE)?;
        code.share(&file, libc::PROT_READ | libc::PROT_EXEC)?;
        let alias = Mapping::new(PAGE)?;
        alias.share(&file, libc::PROT_READ | libc::PROT_WRITE)?;
        let contents = [vec![FILLER; PAGE], vec![FILLER; PAGE]];
        Ok(Self { code, alias, contents, shown: Mode::Smod })
    }

    /// Puts the content for `mode` there. For the signal handler too: makes no system call.
    pub(super) fn show(&mut self, mode: Mode) {
        self.shown = mode;
        let content = &self.contents[mode as usize];
        // SAFETY: the alias is writable and as long as every content, a page; no reference into it
        // or into the code exists. A CPU executes what was written through another address after it
        // has serialised, as the return from the signal does.
        unsafe { ptr::copy_nonoverlapping(content.as_ptr(), self.alias.base.as_ptr(), PAGE) };
    }
}

/// The code of a guest's two modes.
pub(super) enum GuestCode {
    /// In pages of their own.
    Apart {
        /// smod's.
        smod: CodePages,
        /// umod's.
        umod: CodePages,
    },
    /// Both modes have their code at the same address.
    OnePage(ModesPage),
}

impl GuestCode {
    /// Where `mode` has its code.
    pub(super) fn address(&self, mode: Mode) -> u64 {
        match (self, mode) {
            (Self::Apart { smod, .. }, Mode::Smod) => smod.address(),
            (Self::Apart { umod, .. }, Mode::Umod) => umod.address(),
            (Self::OnePage(shared), _) => shared.code.address(),
        }
    }

    /// Puts `bytes` at `offset` in the code of `mode`. False if they do not fit there.
    pub(super) fn load(&mut self, mode: Mode, offset: usize, bytes: &[u8]) -> io::Result<bool> {
        match (self, mode) {
            (Self::Apart { smod, .. }, Mode::Smod) => smod.load(offset, bytes),
            (Self::Apart { umod, .. }, Mode::Umod) => umod.load(offset, bytes),
            (Self::OnePage(shared), _) => {
                let content = &mut shared.contents[mode as usize];
                let Some(to) =
                    offset.checked_add(bytes.len()).and_then(|end| content.get_mut(offset..end))
                else {
                    return Ok(false);
                };
                to.copy_from_slice(bytes);
                Ok(true)
            }
        }
    }

    /// Shows the code of `mode`, whose root has been loaded.
    pub(super) fn show(&mut self, mode: Mode) {
        if let Self::OnePage(shared) = self {
            shared.show(mode);
        }
    }

    /// What the CPU finds from `address` to the end of the page; nothing for an address elsewhere.
    pub(super) fn at(&self, address: u64) -> &[u8] {
        match self {
            Self::Apart { smod, .. } if smod.contains(address) => smod.at(address),
            Self::Apart { umod, .. } => umod.at(address),
            Self::OnePage(shared) => {
                let offset = usize::try_from(address.wrapping_sub(shared.code.address()));
                let content = &shared.contents[shared.shown as usize];
                offset.ok().and_then(|offset| content.get(offset..)).unwrap_or_default()
            }
        }
    }
}

/// Types of which every bit pattern is a value, so that emitted code may leave any in memory.
///
/// # Safety
/// The type must be a `repr(C)` struct of integers, or of structs that are.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: `repr(C)`; integers, `Split64`s of integers, and transparent wrappers of u64.
unsafe impl Plain for PerCpu {}
// SAFETY: `repr(C)`, all fields are integers.
unsafe impl Plain for Pvcs {}
// SAFETY: `repr(C)`, all fields are integers.
unsafe impl Plain for PvcsV2026 {}
// SAFETY: `repr(C)`, all fields are integers but one pair of integers.
unsafe impl Plain for PtRegs {}

/// A value in pages of its own that emitted code reads and writes.
pub(super) struct Data<T> {
    mapping: Rc<Mapping>,
    offset: usize,
    value: PhantomData<T>,
}

impl<T: Plain> Data<T> {
    /// A value at the start of its pages.
    pub(super) fn new() -> io::Result<Self> {
        let mapping = Rc::new(Mapping::new(size_of::<T>())?);
        Ok(Self { mapping, offset: 0, value: PhantomData })
    }

    /// A value at the end of a stack of at least `len` bytes.
    pub(super) fn ending_stack(len: usize) -> io::Result<Self> {
        const { assert!(PAGE.is_multiple_of(align_of::<T>())) };
        const { assert!(size_of::<T>().is_multiple_of(align_of::<T>())) };
        let mapping = Rc::new(Mapping::new(len.max(size_of::<T>()))?);
        let offset = mapping.len() - size_of::<T>();
        Ok(Self { mapping, offset, value: PhantomData })
    }

    /// Where the value lies.
    pub(super) fn address(&self) -> u64 {
        self.pointer() as u64
    }

    /// Whether `address` lies in the value's pages, or right after them as a stack's end does.
    pub(super) fn has_stack_pointer(&self, address: u64) -> bool {
        address.wrapping_sub(self.mapping.address()) <= self.mapping.len() as u64
    }

    /// The value as emitted code left it.
    pub(super) fn read(&self) -> T {
        // SAFETY: `pointer` is valid and aligned, see there; every bit pattern is a `T`. Volatile,
        // because emitted code writes it behind the compiler's back, on this same thread.
        unsafe { self.pointer().read_volatile() }
    }

    /// Replaces the value.
    pub(super) fn write(&self, value: T) {
        // SAFETY: as for `read`; the pages are writable, and nobody holds a reference into them.
        unsafe { self.pointer().write_volatile(value) }
    }

    /// The same memory, as another type that fits there.
    pub(super) fn viewed_as<U: Plain>(&self) -> Data<U> {
        const { assert!(size_of::<U>() <= size_of::<T>() && align_of::<U>() <= align_of::<T>()) };
        Data { mapping: Rc::clone(&self.mapping), offset: self.offset, value: PhantomData }
    }

    /// Valid for reads and writes of a `T` and aligned: all constructors put a whole `T` at a
    /// multiple of its alignment into pages that stay mapped as long as `self` lives.
    fn pointer(&self) -> *mut T {
        self.mapping.base.as_ptr().wrapping_add(self.offset).cast()
    }
}
