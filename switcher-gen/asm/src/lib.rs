//! The assembler that emitted code is written into: the calls that `dynasm!` makes, without std.
//!
//! [`Sink`] is those calls plus the notes that a listing wants; emitters are generic over it, so
//! the notes cost nothing where nobody takes them. [`CodeBuffer`] is the sink of production: it
//! keeps bytes, labels, windows and relocations, allocates five times and never panics. It
//! remembers the first mistake, and [`CodeBuffer::finish`] reports it.
//!
//! This crate does not know what is assembled. The labels, the windows and the external symbols are
//! types of the user's, brought together by [`Names`]. `switcher-gen` is that user, and its module
//! `asm` has the names of a switcher. Anybody who wants to assemble something else at run time,
//! with `asm!` of `switcher-macros` or with `dynasm!`, can do it like this:
//!
//! ```
//! use dynasm::dynasm;
//! use switcher_asm::{CodeBuffer, Named, Names, Sink as _};
//!
//! /// The places in the code that have a name.
//! #[derive(Clone, Copy, Debug, PartialEq, Eq)]
//! enum Label {
//!     Entry,
//!     Done,
//! }
//!
//! impl Named for Label {
//!     const ALL: &'static [Self] = &[Self::Entry, Self::Done];
//!
//!     fn name(self) -> &'static str {
//!         match self {
//!             Self::Entry => "entry",
//!             Self::Done => "done",
//!         }
//!     }
//!
//!     fn index(self) -> usize {
//!         self as usize
//!     }
//! }
//!
//! /// Nothing is named: no window, and no symbol of the host's.
//! #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
//! enum Nothing {}
//!
//! impl Named for Nothing {
//!     const ALL: &'static [Self] = &[];
//!
//!     fn name(self) -> &'static str {
//!         match self {}
//!     }
//!
//!     fn index(self) -> usize {
//!         match self {}
//!     }
//! }
//!
//! #[derive(Clone, Copy, Debug, PartialEq, Eq)]
//! enum Mine {}
//!
//! impl Names for Mine {
//!     type Label = Label;
//!     type Window = Nothing;
//!     type Symbol = Nothing;
//!     const PER_CPU_BEFORE_CODE: usize = 0x1000;
//! }
//!
//! let mut a = CodeBuffer::<Mine>::new();
//! dynasm!(a ; .arch x64
//!     ; =>Label::Entry
//!     ; test rdi, rdi
//!     ; jz BYTE =>Label::Done
//!     ; nop
//!     ; =>Label::Done
//!     ; ret
//! );
//! let code = a.finish()?;
//! assert_eq!(code.bytes, [0x48, 0x85, 0xFF, 0x74, 1, 0x90, 0xC3]);
//! assert_eq!(code.labels[Label::Done as usize], Some(6));
//! # Ok::<(), switcher_asm::AsmError<Mine>>(())
//! ```
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Debug;

use switcher_abi::layout::{Operand, Placement};

/// The type of names that come from a fixed list.
pub trait Named: Copy + Debug + Eq + 'static {
    /// All names, in the order of their numbers.
    const ALL: &'static [Self];

    /// The name as listings and errors show it.
    fn name(self) -> &'static str;

    /// The position of the name in [`ALL`](Self::ALL).
    fn index(self) -> usize;
}

/// The names in the code that is assembled, and the names outside of it that it refers to.
pub trait Names: Copy + Debug + Eq + 'static {
    /// The names of places in the code.
    type Label: Named;
    /// The kinds of stretches of the code that are recorded: see [`Sink::open`].
    type Window: Named + Ord;
    /// The names of what lies elsewhere and is referred to by the code.
    type Symbol: Copy + Debug + Eq;
    /// How many bytes before the code the per-CPU block starts, with [`Placement::PerCpu`].
    const PER_CPU_BEFORE_CODE: usize;
}

/// What lies outside an image and is referred to relative to RIP: `dynasm!`'s `extern`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum External<S> {
    /// A symbol of the host.
    Host(S),
    /// The byte at this offset in the per-CPU block, which lies [`Names::PER_CPU_BEFORE_CODE`]
    /// bytes before the code, wherever that is. `asm!` makes this of `percpu`.
    PerCpu(i32),
}

impl<S> From<S> for External<S> {
    fn from(symbol: S) -> Self {
        Self::Host(symbol)
    }
}

/// A half-open range of offsets in the code in which a window applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowRange<W> {
    /// The window that applies.
    pub window: W,
    /// The offset of the first byte.
    pub start: u32,
    /// The offset of the byte after the last one.
    pub end: u32,
}

/// A 32-bit field that must be filled with `symbol + addend - address of the field`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation<S> {
    /// The offset of the field in the code.
    pub at: u32,
    /// The symbol that the field refers to.
    pub symbol: S,
    /// The number to add, as in `R_X86_64_PLT32`: minus the distance from the field to the end of
    /// its instruction.
    pub addend: i32,
}

/// The number of bytes in a cache line. Images start at a multiple of it.
pub const LINE: usize = 64;

/// How many bytes to insert so that the byte at `offset` comes to lie in the upper half of a line.
#[must_use]
pub const fn to_upper_half(offset: usize) -> usize {
    let half = LINE / 2;
    if offset & half == 0 { half - offset % half } else { 0 }
}

/// A [`Sink`] that only counts how many bytes are emitted. It does not align.
pub struct Length<N> {
    bytes: usize,
    placement: Placement,
    names: core::marker::PhantomData<N>,
}

impl<N> Length<N> {
    /// A sink that has counted nothing yet.
    #[must_use]
    pub const fn new(placement: Placement) -> Self {
        Self { bytes: 0, placement, names: core::marker::PhantomData }
    }

    /// How many bytes have been emitted.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<N: Names> Sink for Length<N> {
    type Names = N;

    #[inline]
    fn push(&mut self, _byte: u8) {
        self.bytes += 1;
    }
    #[inline]
    fn extend(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
    }
    fn dynamic_label(&mut self, _label: N::Label) {}
    fn dynamic_reloc(&mut self, _: N::Label, _: isize, _: u8, _: u8, _: u8) {}
    fn value_reloc(&mut self, _: impl Into<External<N::Symbol>>, _: u8, _: u8, _: u8) {}
    fn align(&mut self, _alignment: usize, _byte: u8) {
        unreachable!("how long that is depends on where it is");
    }
    fn upper_half(&mut self, distance: usize, byte: u8) {
        self.align(distance, byte);
    }
    fn place(&mut self, placement: Placement) {
        self.placement = placement;
    }
    fn placement(&self) -> Placement {
        self.placement
    }
    fn open(&mut self, _window: N::Window) {}
    fn close(&mut self, _window: N::Window) {}
}

/// The type of a sink's labels.
pub type LabelOf<S> = <<S as Sink>::Names as Names>::Label;
/// The type of a sink's windows.
pub type WindowOf<S> = <<S as Sink>::Names as Names>::Window;
/// The type of a sink's symbols.
pub type SymbolOf<S> = <<S as Sink>::Names as Names>::Symbol;

/// What emitters write to. The first group is `dynasm!`'s vocabulary, the second is ours; the notes
/// of the third are for listings, and `asm!` makes them.
pub trait Sink {
    /// The names in this code.
    type Names: Names;

    /// Appends one byte.
    fn push(&mut self, byte: u8);
    /// Appends several bytes.
    fn extend(&mut self, bytes: &[u8]);
    /// Defines `label` as the current position.
    fn dynamic_label(&mut self, label: LabelOf<Self>);
    /// The field that starts `field_offset` bytes before this point refers to `label`, relative to
    /// `ref_offset` bytes before this point. `kind` is dynasm's encoding of width and relativity.
    fn dynamic_reloc(
        &mut self,
        label: LabelOf<Self>,
        target_offset: isize,
        field_offset: u8,
        ref_offset: u8,
        kind: u8,
    );
    /// Refers to something outside the image, otherwise like
    /// [`dynamic_reloc`](Self::dynamic_reloc).
    fn value_reloc(
        &mut self,
        target: impl Into<External<SymbolOf<Self>>>,
        field_offset: u8,
        ref_offset: u8,
        kind: u8,
    );
    /// Fills up to a multiple of `alignment` with `byte`.
    fn align(&mut self, alignment: usize, byte: u8);
    /// Fills with `byte` until the byte that lies `distance` bytes ahead is in the upper half of
    /// its line of [`LINE`] bytes. The filler must not be executed.
    fn upper_half(&mut self, distance: usize, byte: u8);

    /// Appends a signed byte.
    fn push_i8(&mut self, value: i8) {
        self.push(value.cast_unsigned());
    }
    /// Appends a signed word of 16 bits.
    fn push_i16(&mut self, value: i16) {
        self.extend(&value.to_le_bytes());
    }
    /// Appends a signed dword of 32 bits.
    fn push_i32(&mut self, value: i32) {
        self.extend(&value.to_le_bytes());
    }

    /// Sets what `percpu` means from here on.
    fn place(&mut self, placement: Placement);
    /// The current meaning of `percpu`.
    fn placement(&self) -> Placement;

    /// `window` applies from here on.
    fn open(&mut self, window: WindowOf<Self>);
    /// `window` no longer applies.
    fn close(&mut self, window: WindowOf<Self>);

    /// A line that explains what follows.
    fn comment(&mut self, _text: &'static str) {}
    /// Notes the place in the source that the next instruction comes from.
    fn source(&mut self, _file: &'static str, _line: u32) {}
    /// Notes what the next instruction's memory operand is about.
    fn operand(&mut self, _operand: Operand) {}
    /// Notes how the next instruction's immediate was written.
    fn immediate(&mut self, _text: &'static str) {}
}

/// Why code could not be assembled. Each error is a bug of an emitter, which the tests of all
/// variants find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AsmError<N: Names> {
    /// The code refers to a label that it does not define.
    #[error("label `{}` is used but not defined", .0.name())]
    Undefined(N::Label),
    /// Two places have one name.
    #[error("label `{}` is defined twice", .0.name())]
    Redefined(N::Label),
    /// A short jump goes over too long a distance.
    #[error("the jump at {at:#x} to `{}` does not reach", label.name())]
    OutOfReach {
        /// The offset of the jump's field.
        at: u32,
        /// The label to which the jump should go.
        label: N::Label,
    },
    /// The code refers to a place that is some bytes from a label, and has no name of its own.
    #[error("a distance from label `{}`", .0.name())]
    BesideLabel(N::Label),
    /// A reference is not a pc-relative byte or dword.
    #[error("a reference of kind {0:#x} is not supported")]
    ReferenceKind(u8),
    /// The stubs of the event entries are not as far apart as they should be.
    #[error("256 event entries of {len} bytes in all: one does not fit where it should")]
    Stride {
        /// The number of bytes from the first stub to the end of the last one.
        len: usize,
    },
    /// A window is opened twice, or closed without having been opened.
    #[error("window `{}` is opened or closed out of turn at {at:#x}", window.name())]
    Window {
        /// The window.
        window: N::Window,
        /// The offset at which that happens.
        at: u32,
    },
}

#[derive(Clone, Copy)]
struct Fixup<L> {
    label: L,
    /// The offset of the field.
    field: u32,
    /// The number to add to `label - field`.
    addend: i32,
    short: bool,
}

/// The parts of finished code.
#[derive(Clone, Debug)]
pub struct Code<N: Names> {
    /// The instructions.
    pub bytes: Vec<u8>,
    /// The offsets of the labels, by [`Named::index`]; `None` for a label that is not defined.
    pub labels: Box<[Option<u32>]>,
    /// The ranges in which windows apply, by start.
    pub windows: Vec<WindowRange<N::Window>>,
    /// The references to the host.
    pub relocations: Vec<Relocation<N::Symbol>>,
}

/// The number of kinds of windows that there can be: no allocation is made for them.
const WINDOWS: usize = 8;

/// A [`Sink`] that keeps the code.
pub struct CodeBuffer<N: Names> {
    code: Code<N>,
    fixups: Vec<Fixup<N::Label>>,
    open: [Option<u32>; WINDOWS],
    placement: Placement,
    error: Option<AsmError<N>>,
}

impl<N: Names> CodeBuffer<N> {
    /// How many bytes there is room for at first: any switcher fits, so that one allocation serves.
    const CAPACITY: usize = 8192;

    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        const { assert!(N::Window::ALL.len() <= WINDOWS, "more windows than a buffer has room for") };
        Self {
            code: Code {
                bytes: Vec::with_capacity(Self::CAPACITY),
                labels: vec![None; N::Label::ALL.len()].into_boxed_slice(),
                windows: Vec::with_capacity(16),
                relocations: Vec::with_capacity(8),
            },
            fixups: Vec::with_capacity(384),
            open: [None; WINDOWS],
            placement: Placement::Gs,
            error: None,
        }
    }

    /// The offset of the next byte.
    #[must_use]
    pub fn offset(&self) -> u32 {
        self.code.bytes.len() as u32
    }

    /// Resolves all references and hands the code over.
    ///
    /// # Errors
    /// Returns the first thing that went wrong.
    pub fn finish(mut self) -> Result<Code<N>, AsmError<N>> {
        if let Some(error) = self.error {
            return Err(error);
        }
        for &window in N::Window::ALL {
            if let Some(at) = self.open[window.index()] {
                return Err(AsmError::Window { window, at });
            }
        }
        for fixup in &self.fixups {
            let Fixup { label, field, addend, short } = *fixup;
            let target = self.code.labels[label.index()].ok_or(AsmError::Undefined(label))?;
            let value = target.cast_signed() - field.cast_signed() + addend;
            let field = field as usize;
            if short {
                let value = i8::try_from(value)
                    .map_err(|_| AsmError::OutOfReach { at: field as u32, label })?;
                self.code.bytes[field] = value.cast_unsigned();
            } else {
                self.code.bytes[field..field + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
        // The sort is in place, because a stable sort takes 4 KiB of the stack.
        self.code.windows.sort_unstable_by_key(|w| (w.start, w.window, w.end));
        Ok(self.code)
    }

    fn fail(&mut self, error: AsmError<N>) {
        self.error.get_or_insert(error);
    }

    /// The field a relocation of `kind` is about: its offset, the addend that makes
    /// `target + addend - field` relative to the end of the instruction, and whether it is a byte.
    ///
    /// dynasm encodes the width in the low six bits (0: byte, 2: dword) and relativity in the high
    /// two (0: both ends move together, 2: relative to a fixed target).
    fn field(&mut self, field_offset: u8, ref_offset: u8, kind: u8) -> Option<(u32, i32, bool)> {
        let short = match kind & 0x3F {
            0 => true,
            2 => false,
            _ => {
                self.fail(AsmError::ReferenceKind(kind));
                return None;
            }
        };
        if kind >> 6 & 1 != 0 {
            self.fail(AsmError::ReferenceKind(kind));
            return None;
        }
        let here = self.offset();
        let field = here - u32::from(field_offset);
        let reference = here - u32::from(ref_offset);
        Some((field, field.cast_signed() - reference.cast_signed(), short))
    }
}

impl<N: Names> Default for CodeBuffer<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<N: Names> Sink for CodeBuffer<N> {
    type Names = N;

    #[inline]
    fn push(&mut self, byte: u8) {
        self.code.bytes.push(byte);
    }

    #[inline]
    fn extend(&mut self, bytes: &[u8]) {
        self.code.bytes.extend_from_slice(bytes);
    }

    fn dynamic_label(&mut self, label: N::Label) {
        let here = self.offset();
        if self.code.labels[label.index()].replace(here).is_some() {
            self.fail(AsmError::Redefined(label));
        }
    }

    fn dynamic_reloc(
        &mut self,
        label: N::Label,
        target_offset: isize,
        field_offset: u8,
        ref_offset: u8,
        kind: u8,
    ) {
        let Some((field, addend, short)) = self.field(field_offset, ref_offset, kind) else {
            return;
        };
        if target_offset != 0 {
            return self.fail(AsmError::BesideLabel(label));
        }
        self.fixups.push(Fixup { label, field, addend, short });
    }

    fn value_reloc(
        &mut self,
        target: impl Into<External<N::Symbol>>,
        field_offset: u8,
        ref_offset: u8,
        kind: u8,
    ) {
        let Some((at, addend, short)) = self.field(field_offset, ref_offset, kind) else { return };
        if short {
            return self.fail(AsmError::ReferenceKind(kind));
        }
        match target.into() {
            External::Host(symbol) => {
                self.code.relocations.push(Relocation { at, symbol, addend });
            }
            External::PerCpu(offset) => {
                let block = -(N::PER_CPU_BEFORE_CODE as i32);
                let value = block + offset - at.cast_signed() + addend;
                let field = at as usize;
                self.code.bytes[field..field + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    fn align(&mut self, alignment: usize, byte: u8) {
        let aligned = self.code.bytes.len().next_multiple_of(alignment);
        self.code.bytes.resize(aligned, byte);
    }

    fn upper_half(&mut self, distance: usize, byte: u8) {
        let here = self.code.bytes.len();
        self.code.bytes.resize(here + to_upper_half(here + distance), byte);
    }

    fn place(&mut self, placement: Placement) {
        self.placement = placement;
    }

    fn placement(&self) -> Placement {
        self.placement
    }

    fn open(&mut self, window: N::Window) {
        let at = self.offset();
        if self.open[window.index()].replace(at).is_some() {
            self.fail(AsmError::Window { window, at });
        }
    }

    fn close(&mut self, window: N::Window) {
        let end = self.offset();
        match self.open[window.index()].take() {
            Some(start) => self.code.windows.push(WindowRange { window, start, end }),
            None => self.fail(AsmError::Window { window, at: end }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dynasm::dynasm;

    /// The names in the code of these tests.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum TestNames {}

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Label {
        Iretq,
        Syscall64,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    enum Window {
        GuestRoot,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct HostSymbol(&'static str);

    impl Named for Label {
        const ALL: &'static [Self] = &[Self::Iretq, Self::Syscall64];

        fn name(self) -> &'static str {
            if self == Self::Iretq { "iretq" } else { "syscall" }
        }

        fn index(self) -> usize {
            self as usize
        }
    }

    impl Named for Window {
        const ALL: &'static [Self] = &[Self::GuestRoot];

        fn name(self) -> &'static str {
            "guest_root"
        }

        fn index(self) -> usize {
            self as usize
        }
    }

    impl Names for TestNames {
        type Label = Label;
        type Window = Window;
        type Symbol = HostSymbol;
        const PER_CPU_BEFORE_CODE: usize = 0x1000;
    }

    type CodeBuffer = super::CodeBuffer<TestNames>;
    type AsmError = super::AsmError<TestNames>;

    #[test]
    fn jumps_of_both_widths_and_directions_reach_their_labels() {
        let mut a = CodeBuffer::new();
        dynasm!(a ; .arch x64
            ; jmp BYTE =>Label::Iretq
            ; =>Label::Syscall64
            ; nop
            ; jnz =>Label::Syscall64
            ; =>Label::Iretq
            ; jmp BYTE =>Label::Syscall64
        );
        let code = a.finish().unwrap();
        assert_eq!(code.bytes, [0xEB, 7, 0x90, 0x0F, 0x85, 0xF9, 0xFF, 0xFF, 0xFF, 0xEB, 0xF7],);
        assert_eq!(code.labels[Label::Iretq as usize], Some(9));
    }

    #[test]
    fn a_byte_ahead_is_moved_to_the_upper_half_of_its_line() {
        for start in 0..2 * LINE {
            for distance in [0, 1, 31, 32, 63, 64, 100] {
                let mut a = CodeBuffer::new();
                a.extend(&[0x90; 2 * LINE][..start]);
                a.upper_half(distance, 0xCC);
                let (here, there) = (a.offset() as usize, a.offset() as usize + distance);
                assert_ne!(there & 32, 0, "{start} {distance}");
                // The filler is no longer than necessary.
                assert!(here == start || there % LINE == LINE / 2, "{start} {distance}");
            }
        }
    }

    #[test]
    fn what_goes_wrong_is_reported_not_panicked() {
        let mut a = CodeBuffer::new();
        dynasm!(a ; .arch x64 ; jmp =>Label::Iretq);
        assert_eq!(a.finish().unwrap_err(), AsmError::Undefined(Label::Iretq));

        let mut a = CodeBuffer::new();
        dynasm!(a ; .arch x64 ; =>Label::Iretq ; =>Label::Iretq);
        assert_eq!(a.finish().unwrap_err(), AsmError::Redefined(Label::Iretq));

        let mut a = CodeBuffer::new();
        dynasm!(a ; .arch x64 ; jmp BYTE =>Label::Iretq ; .bytes &[0x90; 128] ; =>Label::Iretq);
        let error = AsmError::OutOfReach { at: 1, label: Label::Iretq };
        assert_eq!(a.finish().unwrap_err(), error);

        let mut a = CodeBuffer::new();
        a.extend(&[0xE9, 0, 0, 0, 0]);
        a.dynamic_reloc(Label::Iretq, 1, 4, 0, 2);
        assert_eq!(a.finish().unwrap_err(), AsmError::BesideLabel(Label::Iretq));

        let mut a = CodeBuffer::new();
        a.close(Window::GuestRoot);
        let window = AsmError::Window { window: Window::GuestRoot, at: 0 };
        assert_eq!(a.finish().unwrap_err(), window);

        let mut a = CodeBuffer::new();
        a.open(Window::GuestRoot);
        assert_eq!(a.finish().unwrap_err(), window);
    }

    #[test]
    fn references_to_the_host_become_relocations() {
        let mut a = CodeBuffer::new();
        dynasm!(a ; .arch x64 ; nop ; call extern HostSymbol("host_nmi"));
        let code = a.finish().unwrap();
        let symbol = HostSymbol("host_nmi");
        assert_eq!(code.relocations, [Relocation { at: 2, symbol, addend: -4 }]);
        assert_eq!(code.bytes, [0x90, 0xE8, 0, 0, 0, 0]);
    }

    #[test]
    fn the_per_cpu_block_lies_a_page_in_front_of_the_code() {
        let mut a = CodeBuffer::new();
        // There is an immediate after the displacement, which is relative to the instruction's end.
        dynasm!(a ; .arch x64
            ; nop
            ; mov BYTE [extern External::<HostSymbol>::PerCpu(0xC0)], 7
            ; mov rsp, [extern External::<HostSymbol>::PerCpu(0x14)]
        );
        let end: [i32; 2] = [1 + 7, 1 + 7 + 7];
        let [store, load] = [0xC0, 0x14];
        let code = a.finish().unwrap();
        assert_eq!(code.relocations, []);
        assert_eq!(code.bytes[1..3], [0xC6, 0x05]);
        assert_eq!(code.bytes[3..7], (store - 0x1000 - end[0]).to_le_bytes());
        assert_eq!(code.bytes[11..15], (load - 0x1000 - end[1]).to_le_bytes());
    }
}
