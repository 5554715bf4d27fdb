//! What emitted code is written into: the calls that `dynasm!` makes, without std.
//!
//! [`Sink`] is those calls plus the notes a listing wants; the emitters are generic over it, so the
//! notes cost nothing where nobody takes them. [`CodeBuffer`] is the sink of production: bytes,
//! labels, windows and relocations. It allocates five times and never panics; what goes wrong on
//! the way is kept and reported by [`CodeBuffer::finish`].

mod program;

pub use program::Program;

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::layout::{Operand, PerCpu, Placement};

/// Every place in a switcher that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Label {
    /// The host's call into the guest.
    EnterGuest,
    /// The choice between SYSRETQ and IRETQ.
    ReturnToGuest,
    /// Only IRETQ can load these registers, to the usual selectors.
    ReturnByIretq,
    /// The IRET frame is complete.
    ReturnFrameComplete,
    /// The one IRETQ to a guest; a fault there is the guest's.
    Iretq,
    /// RIP is no address; RCX is to be restored.
    ReturnNotCanonical,
    /// RCX or R11 is not what SYSRETQ would have to leave there.
    ReturnOtherRegisters,
    /// Only IRETQ can load these selectors.
    ReturnOtherSelectors,
    /// LSTAR.
    Syscall64,
    /// RSP is the host's from here on.
    Syscall64SafeStack,
    /// Loads the guest's RSP and returns by SYSRETQ.
    Sysretq,
    /// The SYSRETQ there.
    SysretqUnsafeStack,
    /// PKRU is smod's.
    ToSmodPkru,
    /// Not a direct switch to smod; perhaps ERETU.
    NotToSmod,
    /// PKRU is umod's.
    ToUmodPkru,
    /// umod's flags can be loaded by IRETQ alone, or only once they are sanitised.
    ToUmodOtherFlags,
    /// umod's RIP is not in the lower half.
    ToUmodUpperHalf,
    /// Only IRETQ can take umod to its RIP.
    ToUmodOtherRip,
    /// Everything is umod's but RSP.
    ToUmodSysretq,
    /// ERETU that the host must do: RCX is to be restored.
    ExitEretu,
    /// SYSCALL exit.
    ExitSyscall,
    /// The common exit; host event handlers jump here too.
    ReturnFromGuest,
    /// Two entries of the return stack buffer are made harmless.
    RsbFill,
    /// The first of the two is made: behind its return address is a trap.
    RsbFilledOnce,
    /// Both are.
    RsbFilledTwice,
    /// One round of branches, called once more by each.
    BhbRound,
    /// The branches of a round.
    BhbBranches,
    /// One of them.
    BhbBranch,
    /// Its target.
    BhbTarget,
    /// The history is overwritten.
    BhbCleared,
    /// Where the host's return thunk and untraining lead if the host has none.
    NoThunk,
    /// CSTAR.
    SyscallCompat,
    /// An event without an error code.
    Event,
    /// An event with an error code.
    EventError,
    /// An event of a guest, on the sp0 stack.
    EventFromGuest,
    /// The same with the host's GS.
    EventOnSp0,
    /// An event that has interrupted ring 0.
    EventRing0,
    /// One that should not have.
    EventUnexpected,
    /// The first byte of what runs only while NMIs are not blocked: the routines, and events on the
    /// sp0 stack. See `emit/event_return.rs`.
    Routines,
    /// Behind the last.
    RoutinesEnd,
    /// #DB.
    EventDb,
    /// An event of a guest, on a stack of the IST.
    EventIstFromGuest,
    /// #DB in ring 0.
    EventDbRing0,
    /// #DB or #MC in ring 0 is over: RSP points to its IRET frame, every other register is restored.
    ResumeRing0,
    /// It returns on the interrupted stack.
    ResumeOnStack,
    /// NMI.
    EventNmi,
    /// #MC.
    EventMc,
    /// Either, in ring 0.
    Interruption,
    /// The root is the host's.
    InterruptionHook,
    /// [`RsbFill`](Self::RsbFill) before a hook.
    HookRsbFill,
    /// [`RsbFilledOnce`](Self::RsbFilledOnce) before a hook.
    HookRsbFilledOnce,
    /// [`RsbFilledTwice`](Self::RsbFilledTwice) before a hook.
    HookRsbFilledTwice,
    /// [`BhbRound`](Self::BhbRound) before a hook.
    HookBhbRound,
    /// [`BhbBranches`](Self::BhbBranches) before a hook.
    HookBhbBranches,
    /// [`BhbBranch`](Self::BhbBranch) before a hook.
    HookBhbBranch,
    /// [`BhbTarget`](Self::BhbTarget) before a hook.
    HookBhbTarget,
    /// [`BhbCleared`](Self::BhbCleared) before a hook.
    HookBhbCleared,
    /// The hook is that of #MC.
    McHook,
    /// The hook has returned.
    InterruptionOver,
    /// #DF.
    EventDf,
    /// What cannot be gone on from, on a stack of its own.
    EventFatal,
    /// The same, RAX being the host's GS base.
    Fatal,
    /// The root is the host's.
    FatalHook,
    /// Where hooks lead that the host does not have.
    NoHook,
    /// The first of the 256 event entries: see [`Image::gate`](crate::Image::gate).
    EventStubs,
    /// Behind the last of them.
    EventStubsEnd,
}

impl Label {
    /// All labels, in the order of their declaration.
    pub const ALL: [Self; 66] = [
        Self::EnterGuest,
        Self::ReturnToGuest,
        Self::ReturnByIretq,
        Self::ReturnFrameComplete,
        Self::Iretq,
        Self::ReturnNotCanonical,
        Self::ReturnOtherRegisters,
        Self::ReturnOtherSelectors,
        Self::Syscall64,
        Self::Syscall64SafeStack,
        Self::Sysretq,
        Self::SysretqUnsafeStack,
        Self::ToSmodPkru,
        Self::NotToSmod,
        Self::ToUmodPkru,
        Self::ToUmodOtherFlags,
        Self::ToUmodUpperHalf,
        Self::ToUmodOtherRip,
        Self::ToUmodSysretq,
        Self::ExitEretu,
        Self::ExitSyscall,
        Self::ReturnFromGuest,
        Self::RsbFill,
        Self::RsbFilledOnce,
        Self::RsbFilledTwice,
        Self::BhbRound,
        Self::BhbBranches,
        Self::BhbBranch,
        Self::BhbTarget,
        Self::BhbCleared,
        Self::NoThunk,
        Self::SyscallCompat,
        Self::Event,
        Self::EventError,
        Self::EventFromGuest,
        Self::EventOnSp0,
        Self::EventRing0,
        Self::EventUnexpected,
        Self::Routines,
        Self::RoutinesEnd,
        Self::EventDb,
        Self::EventIstFromGuest,
        Self::EventDbRing0,
        Self::ResumeRing0,
        Self::ResumeOnStack,
        Self::EventNmi,
        Self::EventMc,
        Self::Interruption,
        Self::InterruptionHook,
        Self::HookRsbFill,
        Self::HookRsbFilledOnce,
        Self::HookRsbFilledTwice,
        Self::HookBhbRound,
        Self::HookBhbBranches,
        Self::HookBhbBranch,
        Self::HookBhbTarget,
        Self::HookBhbCleared,
        Self::McHook,
        Self::InterruptionOver,
        Self::EventDf,
        Self::EventFatal,
        Self::Fatal,
        Self::FatalHook,
        Self::NoHook,
        Self::EventStubs,
        Self::EventStubsEnd,
    ];

    /// The symbol as hosts and listings know it; local labels start with `.L`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EnterGuest => "switcher_enter_guest",
            Self::ReturnToGuest => ".Lreturn_to_guest",
            Self::ReturnByIretq => ".Lreturn_by_iretq",
            Self::ReturnFrameComplete => ".Lreturn_frame_complete",
            Self::Iretq => "entry_IRETQ_switcher",
            Self::ReturnNotCanonical => ".Lreturn_not_canonical",
            Self::ReturnOtherRegisters => ".Lreturn_other_registers",
            Self::ReturnOtherSelectors => ".Lreturn_other_selectors",
            Self::Syscall64 => "entry_SYSCALL_64_switcher",
            Self::Syscall64SafeStack => "entry_SYSCALL_64_switcher_safe_stack",
            Self::Sysretq => ".Lsysretq",
            Self::SysretqUnsafeStack => "entry_SYSRETQ_switcher_unsafe_stack",
            Self::ToSmodPkru => ".Lto_smod_pkru",
            Self::NotToSmod => ".Lnot_to_smod",
            Self::ToUmodPkru => ".Lto_umod_pkru",
            Self::ToUmodOtherFlags => ".Lto_umod_other_flags",
            Self::ToUmodUpperHalf => ".Lto_umod_upper_half",
            Self::ToUmodOtherRip => ".Lto_umod_other_rip",
            Self::ToUmodSysretq => ".Lto_umod_sysretq",
            Self::ExitEretu => ".Lexit_eretu",
            Self::ExitSyscall => ".Lexit_syscall",
            Self::ReturnFromGuest => "switcher_return_from_guest",
            Self::RsbFill => ".Lrsb_fill",
            Self::RsbFilledOnce => ".Lrsb_filled_once",
            Self::RsbFilledTwice => ".Lrsb_filled_twice",
            Self::BhbRound => ".Lbhb_round",
            Self::BhbBranches => ".Lbhb_branches",
            Self::BhbBranch => ".Lbhb_branch",
            Self::BhbTarget => ".Lbhb_target",
            Self::BhbCleared => ".Lbhb_cleared",
            Self::NoThunk => ".Lno_thunk",
            Self::SyscallCompat => "entry_SYSCALL_compat_switcher",
            Self::Event => "switcher_event",
            Self::EventError => ".Levent_error",
            Self::EventFromGuest => ".Levent_from_guest",
            Self::EventOnSp0 => ".Levent_on_sp0",
            Self::EventRing0 => ".Levent_ring_0",
            Self::EventUnexpected => ".Levent_unexpected",
            Self::Routines => "switcher_routines",
            Self::RoutinesEnd => "switcher_routines_end",
            Self::EventDb => ".Levent_db",
            Self::EventIstFromGuest => ".Levent_ist_from_guest",
            Self::EventDbRing0 => ".Levent_db_ring_0",
            Self::ResumeRing0 => ".Lresume_ring_0",
            Self::ResumeOnStack => ".Lresume_on_stack",
            Self::EventNmi => ".Levent_nmi",
            Self::EventMc => ".Levent_mc",
            Self::Interruption => ".Linterruption",
            Self::InterruptionHook => ".Linterruption_hook",
            Self::HookRsbFill => ".Lhook_rsb_fill",
            Self::HookRsbFilledOnce => ".Lhook_rsb_filled_once",
            Self::HookRsbFilledTwice => ".Lhook_rsb_filled_twice",
            Self::HookBhbRound => ".Lhook_bhb_round",
            Self::HookBhbBranches => ".Lhook_bhb_branches",
            Self::HookBhbBranch => ".Lhook_bhb_branch",
            Self::HookBhbTarget => ".Lhook_bhb_target",
            Self::HookBhbCleared => ".Lhook_bhb_cleared",
            Self::McHook => ".Lmc_hook",
            Self::InterruptionOver => ".Linterruption_over",
            Self::EventDf => ".Levent_df",
            Self::EventFatal => ".Levent_fatal",
            Self::Fatal => ".Lfatal",
            Self::FatalHook => ".Lfatal_hook",
            Self::NoHook => ".Lno_hook",
            Self::EventStubs => "switcher_event_stubs",
            Self::EventStubsEnd => "switcher_event_stubs_end",
        }
    }

    /// Whether the host may refer to it.
    #[must_use]
    pub fn is_exported(self) -> bool {
        !self.name().starts_with(".L")
    }
}

/// A symbol of the host that emitted code jumps to or calls, always by rel32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostSymbol(pub &'static str);

/// The hooks: what event entries call for the host, by the System V ABI:
/// `extern "C" fn(*mut PtRegs)`, with interrupts off, the host's GS base, the host's root if a guest
/// was being run, and a stack of the IST that ends 16 bytes above the `PtRegs`. RDI is that pointer; no
/// other general register, nor a flag, holds anything of what was interrupted. Those that return have
/// the variant's mitigations before and behind them, and the host's SPEC_CTRL if that is switched.
impl HostSymbol {
    /// An NMI has interrupted ring 0: the switcher or the host. What was interrupted goes on
    /// afterwards, with its registers as they are then in the `PtRegs`. The hook may not execute
    /// IRET, as a fault's handler does: that would let in a second NMI, onto the same stack. The
    /// registers that ring 0 does not use, such as XMM, are a guest's.
    pub const NMI: Self = Self("switcher_host_nmi");
    /// The same for a machine check. NMIs may be blocked, and what was interrupted then goes on without
    /// an IRET: its RIP stays within the switcher's routines, or outside of them, and RF is clear there.
    pub const MACHINE_CHECK: Self = Self("switcher_host_machine_check");
    /// Something has happened in ring 0 that cannot happen. Must not return.
    pub const FATAL: Self = Self("switcher_host_fatal");
    /// All of them.
    pub const HOOKS: [Self; 3] = [Self::NMI, Self::MACHINE_CHECK, Self::FATAL];

    /// The host's untraining of returns: called before the first RET of an exit, and before a hook,
    /// on the root and with the GS base that the hooks have, on the host's stack or one of the IST,
    /// with DF and AC of whatever was interrupted. May change RAX, RCX, RDX, the arithmetic flags
    /// and up to 128 bytes below RSP; its own return is safe. An NMI may interrupt it and call it
    /// again, and a machine check or a #DB, which return below RSP: see
    /// [`FarFrame`](crate::layout::FarFrame). It executes no IRET and causes no fault.
    pub const UNTRAIN: Self = Self("switcher_host_untrain_returns");
    /// Jumped to instead of a RET: the host's return thunk, which does the same, and may write
    /// below RSP.
    pub const RETURN_THUNK: Self = Self("switcher_host_return_thunk");
    /// Both, which only images with [`untrain`](crate::Mitigations::untrain) refer to. No indirect
    /// jump may lead there.
    pub const RETURNS: [Self; 2] = [Self::UNTRAIN, Self::RETURN_THUNK];
}

/// What lies outside an image and is referred to relative to RIP: `dynasm!`'s `extern`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum External {
    /// A symbol of the host.
    Host(HostSymbol),
    /// So many bytes into the per-CPU block, which lies [`PerCpu::BEFORE_CODE`] bytes in front of the
    /// image, wherever that is: what `asm!` makes of `percpu`.
    PerCpu(i32),
}

impl From<HostSymbol> for External {
    fn from(symbol: HostSymbol) -> Self {
        Self::Host(symbol)
    }
}

/// What the host's own NMI and #MC code must know of an address in the switcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Window {
    /// RSP is not yet or no longer the host's.
    UnsafeStack,
    /// A guest's root is loaded although CPL is 0.
    GuestRoot,
}

impl Window {
    /// Both kinds.
    pub const ALL: [Self; 2] = [Self::UnsafeStack, Self::GuestRoot];

    /// As spec/switcher.md calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnsafeStack => "unsafe_stack",
            Self::GuestRoot => "guest_root",
        }
    }
}

/// A half-open range of offsets in which a [`Window`] applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowRange {
    /// What applies.
    pub window: Window,
    /// The first byte.
    pub start: u32,
    /// The byte after the last.
    pub end: u32,
}

/// A 32-bit field that must be filled with `symbol + addend - address of the field`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// Offset of the field.
    pub at: u32,
    /// What it refers to.
    pub symbol: HostSymbol,
    /// As in `R_X86_64_PLT32`: minus the distance from the field to the end of its instruction.
    pub addend: i32,
}

/// The bytes of a cache line. Images start at a multiple of it.
pub const LINE: usize = 64;

/// How many bytes further on the byte at `offset` would be in the upper half of a line.
#[must_use]
pub const fn to_upper_half(offset: usize) -> usize {
    let half = LINE / 2;
    if offset & half == 0 { half - offset % half } else { 0 }
}

/// A [`Sink`] that only counts: how long is what is to come? It does not align.
pub(crate) struct Length {
    bytes: usize,
    placement: Placement,
}

impl Length {
    /// Nothing yet.
    pub(crate) const fn new(placement: Placement) -> Self {
        Self { bytes: 0, placement }
    }

    /// How many bytes there were.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Sink for Length {
    #[inline]
    fn push(&mut self, _byte: u8) {
        self.bytes += 1;
    }
    #[inline]
    fn extend(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
    }
    fn dynamic_label(&mut self, _label: Label) {}
    fn dynamic_reloc(&mut self, _: Label, _: isize, _: u8, _: u8, _: u8) {}
    fn value_reloc(&mut self, _: impl Into<External>, _: u8, _: u8, _: u8) {}
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
    fn open(&mut self, _window: Window) {}
    fn close(&mut self, _window: Window) {}
}

/// What emitters write to. The first group is `dynasm!`'s vocabulary, the second is ours; the notes
/// of the third are for listings, and `asm!` makes them.
pub trait Sink {
    /// One byte.
    fn push(&mut self, byte: u8);
    /// Many bytes.
    fn extend(&mut self, bytes: &[u8]);
    /// `label` is here.
    fn dynamic_label(&mut self, label: Label);
    /// The field that starts `field_offset` bytes before this point refers to `label`, relative to
    /// `ref_offset` bytes before this point. `kind` is dynasm's encoding of width and relativity.
    fn dynamic_reloc(
        &mut self,
        label: Label,
        target_offset: isize,
        field_offset: u8,
        ref_offset: u8,
        kind: u8,
    );
    /// As [`dynamic_reloc`](Self::dynamic_reloc), to something outside the image.
    fn value_reloc(
        &mut self,
        target: impl Into<External>,
        field_offset: u8,
        ref_offset: u8,
        kind: u8,
    );
    /// Fills up to a multiple of `alignment` with `byte`.
    fn align(&mut self, alignment: usize, byte: u8);
    /// Fills with `byte` until the byte that lies `distance` bytes ahead is in the upper half of its
    /// line of [`LINE`] bytes. What is filled must be nothing that is executed.
    fn upper_half(&mut self, distance: usize, byte: u8);

    /// A signed byte.
    fn push_i8(&mut self, value: i8) {
        self.push(value.cast_unsigned());
    }
    /// A signed word.
    fn push_i16(&mut self, value: i16) {
        self.extend(&value.to_le_bytes());
    }
    /// A signed dword.
    fn push_i32(&mut self, value: i32) {
        self.extend(&value.to_le_bytes());
    }

    /// From here on `percpu` means this.
    fn place(&mut self, placement: Placement);
    /// What `percpu` means.
    fn placement(&self) -> Placement;

    /// `window` applies from here on.
    fn open(&mut self, window: Window);
    /// `window` no longer applies.
    fn close(&mut self, window: Window);

    /// A line that explains what follows.
    fn comment(&mut self, _text: &'static str) {}
    /// The next instruction was written there.
    fn source(&mut self, _file: &'static str, _line: u32) {}
    /// The next instruction's memory operand is about this.
    fn operand(&mut self, _operand: Operand) {}
    /// The next instruction's immediate was written so.
    fn immediate(&mut self, _text: &'static str) {}
}

/// Why code could not be assembled. Each is a bug of an emitter, found by the tests of all variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AsmError {
    /// A jump to nowhere.
    #[error("label `{}` is used but not defined", .0.name())]
    Undefined(Label),
    /// Two places of one name.
    #[error("label `{}` is defined twice", .0.name())]
    Redefined(Label),
    /// A short jump over too long a distance.
    #[error("the jump at {at:#x} to `{}` does not reach", label.name())]
    OutOfReach {
        /// Offset of the jump's field.
        at: u32,
        /// Where it should go.
        label: Label,
    },
    /// Not a pc-relative byte or dword.
    #[error("a reference of kind {0:#x} is not supported")]
    ReferenceKind(u8),
    /// The stubs of the event entries are not as far apart as they should be.
    #[error("256 event entries of {len} bytes in all: one does not fit where it should")]
    Stride {
        /// From the first to the end of the last.
        len: usize,
    },
    /// Opened twice or closed without having been opened.
    #[error("window `{}` is opened or closed out of turn at {at:#x}", window.name())]
    Window {
        /// Which.
        window: Window,
        /// Where.
        at: u32,
    },
}

#[derive(Clone, Copy)]
struct Fixup {
    label: Label,
    /// Offset of the field.
    field: u32,
    /// What is added to `label - field`.
    addend: i32,
    short: bool,
}

/// The parts of finished code: what an [`Image`](crate::Image) is made of.
#[derive(Clone, Debug)]
pub struct Code {
    /// The instructions.
    pub bytes: Vec<u8>,
    /// Where the labels are, by [`Label`] as index.
    pub labels: Box<[Option<u32>; Label::ALL.len()]>,
    /// Where which window applies, by start.
    pub windows: Vec<WindowRange>,
    /// What refers to the host.
    pub relocations: Vec<Relocation>,
}

/// A [`Sink`] that keeps the code.
pub struct CodeBuffer {
    code: Code,
    fixups: Vec<Fixup>,
    open: [Option<u32>; Window::ALL.len()],
    placement: Placement,
    error: Option<AsmError>,
}

impl CodeBuffer {
    /// Room for any switcher there is, so that one allocation serves.
    const CAPACITY: usize = 8192;

    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self {
            code: Code {
                bytes: Vec::with_capacity(Self::CAPACITY),
                labels: Box::new([None; Label::ALL.len()]),
                windows: Vec::with_capacity(16),
                relocations: Vec::with_capacity(8),
            },
            fixups: Vec::with_capacity(384),
            open: [None; Window::ALL.len()],
            placement: Placement::Gs,
            error: None,
        }
    }

    /// Where the next byte goes.
    #[must_use]
    pub fn offset(&self) -> u32 {
        self.code.bytes.len() as u32
    }

    /// Resolves all references and hands the code over.
    ///
    /// # Errors
    /// The first thing that went wrong.
    pub fn finish(mut self) -> Result<Code, AsmError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        for window in Window::ALL {
            if let Some(at) = self.open[window as usize] {
                return Err(AsmError::Window { window, at });
            }
        }
        for fixup in &self.fixups {
            let Fixup { label, field, addend, short } = *fixup;
            let target = self.code.labels[label as usize].ok_or(AsmError::Undefined(label))?;
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
        // In place: a stable sort takes 4 KiB of the stack.
        self.code.windows.sort_unstable_by_key(|w| (w.start, w.window, w.end));
        Ok(self.code)
    }

    fn fail(&mut self, error: AsmError) {
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

impl Default for CodeBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl Sink for CodeBuffer {
    #[inline]
    fn push(&mut self, byte: u8) {
        self.code.bytes.push(byte);
    }

    #[inline]
    fn extend(&mut self, bytes: &[u8]) {
        self.code.bytes.extend_from_slice(bytes);
    }

    fn dynamic_label(&mut self, label: Label) {
        let here = self.offset();
        if self.code.labels[label as usize].replace(here).is_some() {
            self.fail(AsmError::Redefined(label));
        }
    }

    fn dynamic_reloc(
        &mut self,
        label: Label,
        target_offset: isize,
        field_offset: u8,
        ref_offset: u8,
        kind: u8,
    ) {
        if let Some((field, addend, short)) = self.field(field_offset, ref_offset, kind) {
            self.fixups.push(Fixup { label, field, addend: addend + target_offset as i32, short });
        }
    }

    fn value_reloc(
        &mut self,
        target: impl Into<External>,
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
                let block = -(PerCpu::BEFORE_CODE as i32);
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

    fn open(&mut self, window: Window) {
        let at = self.offset();
        if self.open[window as usize].replace(at).is_some() {
            self.fail(AsmError::Window { window, at });
        }
    }

    fn close(&mut self, window: Window) {
        let end = self.offset();
        match self.open[window as usize].take() {
            Some(start) => self.code.windows.push(WindowRange { window, start, end }),
            None => self.fail(AsmError::Window { window, at: end }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::__private::dynasm;

    #[test]
    fn a_labels_number_is_its_place_among_all() {
        for (place, label) in Label::ALL.into_iter().enumerate() {
            assert_eq!(label as usize, place, "{}", label.name());
        }
        for (place, window) in Window::ALL.into_iter().enumerate() {
            assert_eq!(window as usize, place, "{}", window.name());
        }
    }

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
                // By no more than it takes.
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
        // With an immediate behind the displacement, which is relative to the instruction's end.
        dynasm!(a ; .arch x64
            ; nop
            ; mov BYTE [extern External::PerCpu(0xC0)], 7
            ; mov rsp, [extern External::PerCpu(0x14)]
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
