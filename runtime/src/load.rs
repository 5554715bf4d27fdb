//! From a variant to code that can be executed: assemble, link with the host's hooks, write, seal.

use alloc::boxed::Box;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use switcher_gen::arch::NonCanonical;
use switcher_gen::asm::{AsmError, HostSymbol, Label, Window};
use switcher_gen::{Fingerprint, Image, LinkError, LinkedImage, Variant, certificate};

use crate::hooks::{Hooks, Thunks};
use crate::idt::Idt;
use crate::pcid::GuestPcids;
use crate::refused::Refused;

/// How a page is mapped, as the host's page tables have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Stores succeed.
    pub writable: bool,
    /// Instruction fetches succeed.
    pub executable: bool,
    /// CPL 3 may access it.
    pub user: bool,
}

/// Memory that a host has reserved for code: where the code will be executed, and where it is
/// written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The address of the code.
    pub code: NonNull<u8>,
    /// Where the same memory is written: there, too, or at another mapping of it.
    pub written: NonNull<u8>,
}

impl Reserved {
    /// Memory that is writable first, and executable once it is sealed.
    #[must_use]
    pub const fn in_place(start: NonNull<u8>) -> Self {
        Self { code: start, written: start }
    }

    /// Memory that is executable, and not writable, from the start: it is written at `alias`, which
    /// is no longer mapped, or not writable, once it is sealed. It is for hosts that let nobody
    /// make memory executable, but have room in what is.
    #[must_use]
    pub const fn with_alias(code: NonNull<u8>, alias: NonNull<u8>) -> Self {
        Self { code, written: alias }
    }

    fn has_alias(self) -> bool {
        self.code != self.written
    }
}

/// Memory for code, as the host gives it.
///
/// # Safety
/// [`reserve`](Self::reserve) must return memory that is valid for reads of `len` bytes where the
/// code is, and for reads and writes of as many where it is written, and which is the same memory;
/// that nothing else uses for as long as the switcher lives, and that is (or, before any guest root
/// is entered, will be) mapped at the same address in the host's and every guest's root.
/// [`protection`](Self::protection) must tell what the page tables in use really say, TLBs
/// included.
pub unsafe trait CodeMapping {
    /// Why memory cannot be had.
    type Error: fmt::Display + fmt::Debug;

    /// Reserves `len` bytes on pages of their own, for the supervisor only. Where they are written,
    /// they are writable and not executable; see [`Reserved`].
    ///
    /// # Errors
    /// If the host has no memory to give.
    fn reserve(&mut self, len: usize) -> Result<Reserved, Self::Error>;

    /// Makes the reserved pages executable and no longer writable, in every root and TLB. What they
    /// were written by, if that is another mapping, is gone or no longer writable then.
    ///
    /// # Errors
    /// If the host cannot change the protection.
    ///
    /// # Safety
    /// [`reserve`](Self::reserve) of this very value has returned `reserved` for `len`, and the
    /// memory has not been released since; nothing writes there any more.
    unsafe fn seal(&mut self, reserved: Reserved, len: usize) -> Result<(), Self::Error>;

    /// Takes the reserved pages at `code` back, sealed or not: they are unmapped, or at least not
    /// executable, or filled with traps. What they were written by is gone, too.
    ///
    /// # Safety
    /// [`reserve`](Self::reserve) of this very value has returned `code` for `len`, and the memory
    /// has not been released since; nothing refers to what is there, and no CPU executes it, now or
    /// later.
    unsafe fn release(&mut self, code: NonNull<u8>, len: usize);

    /// How the page with `address` is mapped; `None` if it is not mapped.
    fn protection(&self, address: NonNull<u8>) -> Option<Protection>;
}

/// Why a switcher could not be loaded. Its memory has been released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError<M: fmt::Display + fmt::Debug> {
    /// The assembler has failed: an emitter is wrong.
    #[error("the switcher does not assemble: {0}")]
    Assemble(#[from] AsmError),
    /// No proof of this code is on record.
    #[error(
        "no proof is on record for the image {fingerprint}: the variants of `switcher variants`, \
         with default selectors, are proved; to run another one, say so with \
         `Switcher::assemble_unproved`"
    )]
    NotProved {
        /// The fingerprint of the image.
        fingerprint: Fingerprint,
    },
    /// The code cannot run where the host put it.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The switcher's IDT does not lie at a canonical address: LIDT would fault.
    #[error("the memory that the allocator gave for the switcher's IDT cannot be used: {0}")]
    Idt(NonCanonical),
    /// The host cannot provide memory, or cannot seal it; this is its own error.
    #[error("the host cannot map the switcher: {0}")]
    Mapping(M),
    /// A page is not mapped although the host has reserved it.
    #[error("the page at {address:#x}, reserved for the switcher, is not mapped")]
    NotMapped {
        /// The page's address.
        address: usize,
    },
    /// A page is writable and executable at once: code could be changed while it can run.
    #[error("the page at {address:#x} is writable and executable at once")]
    WritableAndExecutable {
        /// The page's address.
        address: usize,
    },
    /// A page is accessible at CPL 3: a guest could reach it.
    #[error("the page at {address:#x} is accessible at CPL 3")]
    UserAccessible {
        /// The page's address.
        address: usize,
    },
    /// A page is not writable before sealing, or not executable after it.
    #[error("the page at {address:#x} is not {expected}")]
    WrongProtection {
        /// The page's address.
        address: usize,
        /// `writable` while code is written, `executable` afterwards.
        expected: &'static str,
    },
    /// Code that is sealed can still be written at the other mapping of its memory.
    #[error("the page at {address:#x} is writable, and maps code that is sealed")]
    WritableAlias {
        /// The page's address, in the other mapping.
        address: usize,
    },
    /// What was written is not where the code is: the two are not the same memory.
    #[error(
        "the code at {code:#x} is not what was written at {written:#x}: the two do not map the same \
         memory"
    )]
    OtherMemory {
        /// The address of the code.
        code: usize,
        /// Where it was written.
        written: usize,
    },
}

/// A switcher in memory, sealed, ready to be [used](Self::prepare) by any CPU of this host.
#[derive(Debug)]
pub struct Switcher {
    linked: LinkedImage,
    idt: Box<Idt>,
    /// How many bytes of the host's memory are reserved for the switcher.
    reserved: usize,
    /// The PCIDs of the guests that it runs.
    pub(crate) pcids: GuestPcids,
    /// The number of CPUs that are prepared for the switcher.
    pub(crate) prepared: AtomicUsize,
}

/// The switcher cannot be unloaded, because CPUs still use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cpus} CPUs are still prepared for the switcher: release them first")]
pub struct StillPrepared {
    /// The number of these CPUs.
    pub cpus: usize,
}

impl Switcher {
    /// Assembles `variant` and places it into memory of the host's.
    ///
    /// The variant should be [`Variant::for_host`]'s, under any policy; [`prepare`](Self::prepare)
    /// refuses CPUs that need another one. With
    /// [`Placement::PerCpu`](switcher_gen::layout::Placement::PerCpu) a switcher is for one CPU:
    /// the memory must lie [`BEFORE_CODE`](switcher_gen::layout::PerCpu::BEFORE_CODE) bytes after
    /// the start of that CPU's block, which `prepare` checks.
    ///
    /// `hooks` are the functions of the host that the event entries call.
    ///
    /// # Errors
    /// If these bytes are not in the table of what is proved ([`certificate`]), or if the host's
    /// memory cannot be had, is writable and executable at once, is accessible to guests, or lies
    /// where the switcher cannot run.
    pub fn assemble<M: CodeMapping>(
        variant: &Variant,
        hooks: &Hooks,
        memory: &mut M,
    ) -> Result<Self, LoadError<M::Error>> {
        let image = Image::new(variant)?;
        if !certificate::is_proved(&image) {
            return Err(LoadError::NotProved { fingerprint: image.fingerprint() });
        }
        Self::load(image, hooks, memory)
    }

    /// Does what [`assemble`](Self::assemble) does, whether these bytes are proved or not: for
    /// selectors other than the default ones, and for emitters that are being worked on. `switcher
    /// prove` proves what `switcher emit` emits.
    ///
    /// # Errors
    /// As for [`assemble`](Self::assemble), except that a missing proof is no error.
    pub fn assemble_unproved<M: CodeMapping>(
        variant: &Variant,
        hooks: &Hooks,
        memory: &mut M,
    ) -> Result<Self, LoadError<M::Error>> {
        Self::load(Image::new(variant)?, hooks, memory)
    }

    fn load<M: CodeMapping>(
        image: Image,
        hooks: &Hooks,
        memory: &mut M,
    ) -> Result<Self, LoadError<M::Error>> {
        let reserved = image.bytes().len() + Thunks::LEN;
        let place = memory.reserve(reserved).map_err(LoadError::Mapping)?;
        match write_and_seal(&image, hooks, memory, place) {
            Ok(linked) => match Idt::new(&linked) {
                Ok(idt) => Ok(Self {
                    linked,
                    idt,
                    reserved,
                    pcids: GuestPcids::DEFAULT,
                    prepared: AtomicUsize::new(0),
                }),
                Err(why) => {
                    // SAFETY: `reserve` of this value has just returned this memory, and no CPU has
                    // been told of it; the image that was linked is dropped with this call.
                    unsafe { memory.release(place.code, reserved) };
                    Err(LoadError::Idt(why))
                }
            },
            Err(why) => {
                // SAFETY: `reserve` of this value has just returned this memory; no CPU has been
                // told of it.
                unsafe { memory.release(place.code, reserved) };
                Err(why)
            }
        }
    }

    /// This switcher, for guests whose roots have these PCIDs, instead of 32 to 63: for a host that
    /// uses those itself.
    #[must_use]
    pub fn with_pcids(self, pcids: GuestPcids) -> Self {
        Self { pcids, ..self }
    }

    /// The PCIDs that only guests have on CPUs that are prepared, with CR4.PCIDE.
    #[must_use]
    pub const fn pcids(&self) -> GuestPcids {
        self.pcids
    }

    /// Releases the memory of the code.
    ///
    /// # Errors
    /// If a CPU is still prepared: a [`Prepared`](crate::Prepared) was dropped and not
    /// [released](crate::Prepared::release). The error holds the switcher itself, and says why.
    ///
    /// # Safety
    /// `memory` is what the switcher was [loaded](Self::assemble) into. Another value, even of the
    /// same type, would be told to take back memory that it has never given, or has given to
    /// somebody else.
    #[expect(clippy::result_large_err, reason = "as in `release`: a box would be allocated")]
    pub unsafe fn unload<M: CodeMapping>(
        self,
        memory: &mut M,
    ) -> Result<(), Refused<Self, StillPrepared>> {
        match self.prepared.load(Ordering::Acquire) {
            0 => {
                let base = core::ptr::with_exposed_provenance_mut(self.base() as usize);
                if let Some(start) = NonNull::new(base) {
                    // SAFETY: the caller says that this memory was reserved by `memory`. The
                    // switcher is used by no CPU, so none executes it, and `self` ends here.
                    unsafe { memory.release(start, self.reserved) };
                }
                Ok(())
            }
            cpus => Err(Refused::new(self, StillPrepared { cpus })),
        }
    }

    /// The number of CPUs that are prepared for the switcher.
    #[must_use]
    pub fn prepared(&self) -> usize {
        self.prepared.load(Ordering::Acquire)
    }

    /// The image, linked for the address at which it runs.
    #[must_use]
    pub const fn linked(&self) -> &LinkedImage {
        &self.linked
    }

    /// The image that was assembled.
    #[must_use]
    pub const fn image(&self) -> &Image {
        self.linked.image()
    }

    /// The variant that was assembled.
    #[must_use]
    pub const fn variant(&self) -> &Variant {
        self.linked.variant()
    }

    /// The address of the first byte of the code.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.linked.base().get()
    }

    /// The address of an exported label.
    #[must_use]
    pub fn address(&self, label: Label) -> u64 {
        self.linked.address(label)
    }

    /// The interrupt descriptor table that [`Cpu::enter`](crate::Cpu::enter) loads.
    pub(crate) const fn idt(&self) -> &Idt {
        &self.idt
    }

    /// Whether `window` applies at `rip`: for a host's hooks, about what was interrupted. The event
    /// entries do not need this: they restore whatever they have found.
    ///
    /// In [`Window::GuestRoot`] a guest's root was loaded. In [`Window::UnsafeStack`] RSP was the
    /// guest's: what an unwinder or a profiler finds there is not to be believed.
    ///
    /// ```
    /// # use switcher_runtime::Switcher;
    /// # use switcher_runtime::switcher_gen::asm::Window;
    /// # use switcher_runtime::switcher_gen::layout::PtRegs;
    /// /// From where a profiler that samples by NMI may unwind the stack.
    /// fn stack(switcher: &Switcher, interrupted: &PtRegs) -> Option<u64> {
    ///     let unsafe_stack = switcher.is_in(Window::UnsafeStack, interrupted.rip);
    ///     (!unsafe_stack).then_some(interrupted.rsp)
    /// }
    /// ```
    #[must_use]
    pub fn is_in(&self, window: Window, rip: u64) -> bool {
        self.linked.is_in(window, rip)
    }
}

/// Writes the image, and after it the thunks to the hooks, to memory that is writable, and makes it
/// executable.
fn write_and_seal<M: CodeMapping>(
    image: &Image,
    hooks: &Hooks,
    memory: &mut M,
    place: Reserved,
) -> Result<LinkedImage, LoadError<M::Error>> {
    let code = image.bytes().len();
    let len = code + Thunks::LEN;
    check(memory, place.written, len, "writable", |p| p.writable)?;
    if place.has_alias() {
        check(memory, place.code, len, "executable", |p| p.executable)?;
    }
    let base = place.code.as_ptr() as u64;
    let thunks = Thunks::new(hooks, base + code as u64);
    let untrained = image.variant().mitigations().untrain;
    // What nobody handles is fatal.
    let unhandled = hooks.exception.is_none().then(|| image.offset(Label::Unhandled));
    let linked = image.link(base, |symbol| match (symbol, unhandled) {
        (HostSymbol::EXCEPTION, Some(offset)) => base.checked_add(offset.into()),
        _ => thunks.target(symbol, base, untrained),
    })?;
    let written = place.written;
    // SAFETY: `reserve` gave memory that is valid for writes of `len` bytes, `code` among them, and
    // that nothing else uses; `linked` is a buffer of its own, so the two do not overlap.
    unsafe { written.copy_from_nonoverlapping(NonNull::from(linked.bytes()).cast(), code) };
    // SAFETY: `code` is less than `len`, for which the memory is valid.
    let thunks_start = unsafe { written.byte_add(code) };
    // SAFETY: as for the code, nothing else uses the memory; the two lengths add up to `len`.
    unsafe {
        thunks_start.copy_from_nonoverlapping(NonNull::from(thunks.bytes()).cast(), Thunks::LEN)
    };
    // SAFETY: `reserve` has just returned this memory for `len`; all that is to be written is, and
    // nothing writes there any more.
    unsafe { memory.seal(place, len) }.map_err(LoadError::Mapping)?;
    check(memory, place.code, len, "executable", |p| p.executable)?;
    if place.has_alias() {
        for page in pages(written, len) {
            if memory.protection(page).is_some_and(|protection| protection.writable) {
                return Err(LoadError::WritableAlias { address: page.addr().get() });
            }
        }
        let is_there = |at: usize, bytes: &[u8]| {
            bytes.iter().enumerate().all(|(index, byte)| {
                // SAFETY: the memory of the code has `len` bytes, of which this is one.
                let place = unsafe { place.code.byte_add(at + index) };
                // SAFETY: it is valid for reads. It was written by another address, which the
                // compiler cannot know.
                unsafe { place.read_volatile() == *byte }
            })
        };
        if !is_there(0, linked.bytes()) || !is_there(code, thunks.bytes()) {
            let [code, written] = [place.code, written].map(|at| at.addr().get());
            return Err(LoadError::OtherMemory { code, written });
        }
    }
    Ok(linked)
}

/// An address on each page of a range: the first byte, and the starts of the others.
fn pages(start: NonNull<u8>, len: usize) -> impl Iterator<Item = NonNull<u8>> {
    const PAGE: usize = 4096;
    let first = start.addr().get();
    let starts = (first & !(PAGE - 1)..first + len).step_by(PAGE);
    // The address is within the reserved range, hence not null, and has that range's provenance.
    starts.map(move |page| {
        let address = core::num::NonZero::new(page.max(first));
        start.map_addr(|_| address.unwrap_or(start.addr()))
    })
}

/// Checks that no page of the code is writable and executable at once, or accessible to a guest,
/// and that each is `wanted`.
fn check<M: CodeMapping>(
    memory: &M,
    start: NonNull<u8>,
    len: usize,
    expected: &'static str,
    wanted: fn(&Protection) -> bool,
) -> Result<(), LoadError<M::Error>> {
    for page in pages(start, len) {
        let address = page.addr().get();
        let protection = memory.protection(page).ok_or(LoadError::NotMapped { address })?;
        if protection.writable && protection.executable {
            return Err(LoadError::WritableAndExecutable { address });
        }
        if protection.user {
            return Err(LoadError::UserAccessible { address });
        }
        if !wanted(&protection) {
            return Err(LoadError::WrongProtection { address, expected });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::{Layout, alloc, dealloc};
    use std::string::ToString;

    /// Memory that claims whatever protection a test wants. Nothing in it is executed.
    struct Claims {
        before: Protection,
        after: Protection,
        sealed: bool,
        released: bool,
        memory: NonNull<u8>,
    }

    const LAYOUT: Layout = match Layout::from_size_align(8192, 4096) {
        Ok(layout) => layout,
        Err(_) => panic!("two pages are a layout"),
    };

    impl Claims {
        fn new(before: Protection, after: Protection) -> Self {
            // SAFETY: the layout's size is not zero.
            let memory = NonNull::new(unsafe { alloc(LAYOUT) }).unwrap();
            Self { before, after, sealed: false, released: false, memory }
        }
    }

    impl Drop for Claims {
        fn drop(&mut self) {
            // SAFETY: allocated in `new` with this layout, and freed only here.
            unsafe { dealloc(self.memory.as_ptr(), LAYOUT) };
        }
    }

    // SAFETY: the memory is two pages of the test's own; nothing here is ever entered or executed.
    unsafe impl CodeMapping for Claims {
        type Error = &'static str;

        fn reserve(&mut self, len: usize) -> Result<Reserved, &'static str> {
            match len <= LAYOUT.size() {
                true => Ok(Reserved::in_place(self.memory)),
                false => Err("out of memory"),
            }
        }

        unsafe fn seal(&mut self, _: Reserved, _: usize) -> Result<(), &'static str> {
            self.sealed = true;
            Ok(())
        }

        unsafe fn release(&mut self, _: NonNull<u8>, _: usize) {
            self.released = true;
        }

        fn protection(&self, _: NonNull<u8>) -> Option<Protection> {
            Some(if self.sealed { self.after } else { self.before })
        }
    }

    const RW: Protection = Protection { writable: true, executable: false, user: false };
    const RX: Protection = Protection { writable: false, executable: true, user: false };
    const RWX: Protection = Protection { writable: true, executable: true, user: false };

    fn load(before: Protection, after: Protection) -> Result<Switcher, LoadError<&'static str>> {
        let mut memory = Claims::new(before, after);
        let result = Switcher::assemble(&Variant::REFERENCE, &Hooks::FOR_TESTS, &mut memory);
        assert_eq!(memory.released, result.is_err());
        result
    }

    #[test]
    fn writable_then_executable_is_loaded() {
        let mut memory = Claims::new(RW, RX);
        let switcher =
            Switcher::assemble(&Variant::REFERENCE, &Hooks::FOR_TESTS, &mut memory).unwrap();
        let bytes = switcher.linked().bytes();
        // SAFETY: `assemble` wrote that many bytes to the memory `reserve` gave.
        let written = unsafe { core::slice::from_raw_parts(memory.memory.as_ptr(), bytes.len()) };
        assert_eq!(written, bytes);
        assert!(switcher.is_in(Window::GuestRoot, switcher.address(Label::Iretq)));
        // Each call of a hook leads to the hook, directly or through the thunk after the code.
        for relocation in switcher.image().relocations() {
            let at = relocation.at as usize;
            let field = i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let mut target = (switcher.base() + at as u64 + 4).wrapping_add_signed(field.into());
            let offset = target.wrapping_sub(switcher.base()) as usize;
            if (bytes.len()..bytes.len() + Thunks::LEN).contains(&offset) {
                let thunk = memory.memory.as_ptr().wrapping_byte_add(offset).cast::<[u8; 64]>();
                // SAFETY: `assemble` has written the thunks to the memory of the test's own, after
                // the code.
                let thunk = unsafe { thunk.read() };
                target = Thunks::leads_to(&thunk).unwrap();
            }
            assert_eq!(Some(target), Hooks::FOR_TESTS.address(relocation.symbol));
        }
    }

    #[test]
    fn without_a_handler_an_exception_is_fatal() {
        let mut memory = Claims::new(RW, RX);
        let hooks = Hooks { exception: None, ..Hooks::FOR_TESTS };
        let switcher = Switcher::assemble(&Variant::REFERENCE, &hooks, &mut memory).unwrap();
        let mut relocations = switcher.image().relocations().iter();
        let jump = relocations.find(|it| it.symbol == HostSymbol::EXCEPTION).unwrap();
        let at = jump.at as usize;
        let field = switcher.linked().bytes()[at..at + 4].try_into().unwrap();
        let next = switcher.base() + at as u64 + 4;
        let target = next.wrapping_add_signed(i32::from_le_bytes(field).into());
        assert_eq!(target, switcher.address(Label::Unhandled));
    }

    #[test]
    fn a_switcher_is_unloaded_unless_a_cpu_uses_it() {
        let mut memory = Claims::new(RW, RX);
        let switcher =
            Switcher::assemble(&Variant::REFERENCE, &Hooks::FOR_TESTS, &mut memory).unwrap();
        switcher.prepared.store(2, Ordering::Relaxed);
        // SAFETY: the switcher was loaded into this memory.
        let (switcher, why) = unsafe { switcher.unload(&mut memory) }.unwrap_err().into_parts();
        assert_eq!(why, StillPrepared { cpus: 2 });
        assert!(!memory.released);
        switcher.prepared.store(0, Ordering::Relaxed);
        // SAFETY: the switcher was loaded into this memory.
        assert!(unsafe { switcher.unload(&mut memory) }.is_ok());
        assert!(memory.released);
    }

    #[test]
    fn what_nobody_has_proved_is_refused_unless_the_host_insists() {
        let own = switcher_gen::arch::Selectors::new(0x10, 0x33).unwrap();
        let variant = Variant::new(Variant::REFERENCE.config(), own).unwrap();
        let mut memory = Claims::new(RW, RX);
        let refused = Switcher::assemble(&variant, &Hooks::FOR_TESTS, &mut memory).unwrap_err();
        assert!(matches!(refused, LoadError::NotProved { .. }), "{refused}");
        assert!(!memory.sealed);
        assert!(Switcher::assemble_unproved(&variant, &Hooks::FOR_TESTS, &mut memory).is_ok());
    }

    #[test]
    fn writable_and_executable_is_refused_before_and_after() {
        let refused = load(RWX, RX).unwrap_err();
        assert!(matches!(refused, LoadError::WritableAndExecutable { .. }), "{refused}");
        let refused = load(RW, RWX).unwrap_err();
        assert!(matches!(refused, LoadError::WritableAndExecutable { .. }), "{refused}");
    }

    #[test]
    fn what_a_guest_could_reach_is_refused() {
        let refused = load(RW, Protection { user: true, ..RX }).unwrap_err();
        assert!(matches!(refused, LoadError::UserAccessible { .. }), "{refused}");
    }

    /// Memory that is written by another address; or by that of other memory.
    struct Aliased {
        code: Claims,
        /// What is said of the alias before it is sealed, and afterwards.
        alias: [Option<Protection>; 2],
        other: Claims,
    }

    impl Aliased {
        /// The address of the alias. Nobody but the test knows that it is the same memory.
        fn written(&self) -> NonNull<u8> {
            self.other.memory
        }
    }

    // SAFETY: both are memory of the test's own; nothing here is ever entered or executed.
    unsafe impl CodeMapping for Aliased {
        type Error = &'static str;

        fn reserve(&mut self, _: usize) -> Result<Reserved, &'static str> {
            Ok(Reserved::with_alias(self.code.memory, self.written()))
        }

        unsafe fn seal(&mut self, _: Reserved, len: usize) -> Result<(), &'static str> {
            self.code.sealed = true;
            if self.code.before == RX {
                // SAFETY: both are as long as a layout, and are two.
                unsafe { self.code.memory.copy_from_nonoverlapping(self.written(), len) };
            }
            Ok(())
        }

        unsafe fn release(&mut self, at: NonNull<u8>, _: usize) {
            assert_eq!(at, self.code.memory);
            self.code.released = true;
        }

        fn protection(&self, at: NonNull<u8>) -> Option<Protection> {
            let range = self.written().addr().get()..self.written().addr().get() + LAYOUT.size();
            match range.contains(&at.addr().get()) {
                true => self.alias[usize::from(self.code.sealed)],
                false => self.code.protection(at),
            }
        }
    }

    #[test]
    fn code_is_executable_from_the_start_and_written_by_an_alias() {
        const READ_ONLY: Protection = Protection { writable: false, ..RW };
        let load = |code: Protection, alias: [Option<Protection>; 2]| {
            let (code, other) = (Claims::new(code, RX), Claims::new(RW, RW));
            let mut memory = Aliased { code, alias, other };
            let result = Switcher::assemble(&Variant::REFERENCE, &Hooks::FOR_TESTS, &mut memory);
            assert_eq!(memory.code.released, result.is_err());
            let base = memory.code.memory.as_ptr() as u64;
            result.map(|switcher| assert_eq!(switcher.base(), base)).map_err(|why| why.to_string())
        };
        for after in [None, Some(READ_ONLY)] {
            assert_eq!(load(RX, [Some(RW), after]), Ok(()));
        }
        for (code, alias, refusal) in [
            (RX, [Some(RW), Some(RW)], "is writable, and maps code that is sealed"),
            (RX, [Some(READ_ONLY), None], "is not writable"),
            (RX, [None, None], "is not mapped"),
            (RX, [Some(RWX), None], "is writable and executable at once"),
            (RWX, [Some(RW), None], "is writable and executable at once"),
            (READ_ONLY, [Some(RW), None], "is not executable"),
            (Protection { user: true, ..RX }, [Some(RW), None], "is accessible at CPL 3"),
        ] {
            let said = load(code, alias).unwrap_err();
            assert!(said.contains(refusal), "{refusal}: {said}");
        }
    }

    #[test]
    fn memory_that_is_not_what_was_written_is_refused() {
        // This one does not copy what was written.
        struct Apart(Aliased);
        // SAFETY: as for `Aliased`.
        unsafe impl CodeMapping for Apart {
            type Error = &'static str;

            fn reserve(&mut self, len: usize) -> Result<Reserved, &'static str> {
                self.0.reserve(len)
            }

            unsafe fn seal(&mut self, _: Reserved, _: usize) -> Result<(), &'static str> {
                self.0.code.sealed = true;
                // SAFETY: the memory is the test's own.
                unsafe { self.0.code.memory.write_bytes(0xCC, LAYOUT.size()) };
                Ok(())
            }

            unsafe fn release(&mut self, at: NonNull<u8>, len: usize) {
                // SAFETY: the caller vouches for the same.
                unsafe { self.0.release(at, len) }
            }

            fn protection(&self, at: NonNull<u8>) -> Option<Protection> {
                self.0.protection(at)
            }
        }
        let (code, other) = (Claims::new(RX, RX), Claims::new(RW, RW));
        let mut memory = Apart(Aliased { code, alias: [Some(RW), None], other });
        let result = Switcher::assemble(&Variant::REFERENCE, &Hooks::FOR_TESTS, &mut memory);
        assert!(matches!(result, Err(LoadError::OtherMemory { .. })), "{result:?}");
        assert!(memory.0.code.released);
    }

    #[test]
    fn memory_that_did_not_become_executable_is_refused() {
        let refused = load(RW, Protection { executable: false, ..RX }).unwrap_err().to_string();
        assert!(refused.ends_with("is not executable"), "{refused}");
    }
}
