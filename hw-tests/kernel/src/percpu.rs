//! The per-CPU block and the stacks that its TSS names.
//!
//! This is the one place that knows what the block looks like. GS base is its address while the
//! host runs; the hardware's TSS is its first part.

use core::cell::UnsafeCell;

use x86_64::VirtAddr;
use x86_64::structures::tss::TaskStateSegment;

/// The layout the switcher's code assumes: spec/abi.md, "The per-CPU block".
#[derive(Debug)]
#[repr(C, align(64))]
pub struct PerCpu {
    /// The hardware's task state segment.
    pub tss: [u8; 104],
    _pad: [u8; 24],
    /// The switcher's own fields.
    pub tss_extra: [u8; 0x80],
}

// The hardware TSS is written as the x86_64 crate's type: same size, no alignment of its own.
const _: () = assert!(size_of::<TaskStateSegment>() == 104);
const _: () = assert!(core::mem::offset_of!(PerCpu, tss_extra) == 0x80);

/// A page-aligned static that the CPU or the switcher writes behind the compiler's back.
#[repr(C, align(4096))]
struct Shared<T>(UnsafeCell<T>);

// SAFETY: one CPU; the contents are reached through raw pointers alone, whose users say why they
// may.
unsafe impl<T> Sync for Shared<T> {}

/// The stack an event switches to, above a page that is unmapped once memory/ has run.
const STACK_SIZE: usize = 32 * 1024;

static BLOCK: Shared<PerCpu> = Shared(UnsafeCell::new(PerCpu {
    tss: [0; 104],
    _pad: [0; 24],
    tss_extra: [0; 0x80],
}));
static STACKS: [Shared<[u8; STACK_SIZE]>; Stack::COUNT] =
    [const { Shared(UnsafeCell::new([0; STACK_SIZE])) }; Stack::COUNT];

/// The stacks that events switch to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// sp0: every event from CPL3 whose vector has no IST stack.
    Sp0,
    /// IST 1.
    Nmi,
    /// IST 2.
    Debug,
    /// IST 3.
    DoubleFault,
    /// IST 4.
    MachineCheck,
    /// Where the handler of a fatal event runs, whatever RSP was.
    Fatal,
}

impl Stack {
    const COUNT: usize = 6;
    /// All of them.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Sp0,
        Self::Nmi,
        Self::Debug,
        Self::DoubleFault,
        Self::MachineCheck,
        Self::Fatal,
    ];

    /// The page below it, to be left unmapped.
    #[must_use]
    pub fn guard(self) -> u64 {
        STACKS[self as usize].0.get().addr() as u64
    }

    /// The address after its last byte: what the TSS holds. A multiple of 16, so the CPU's own
    /// alignment of RSP leaves no gap, and an event's frame ends exactly here.
    #[must_use]
    pub fn top(self) -> u64 {
        self.guard() + STACK_SIZE as u64
    }

    /// Its index in the TSS's table of IST stacks, counting from 0.
    pub(crate) const fn ist(self) -> Option<u16> {
        match self {
            Self::Nmi => Some(0),
            Self::Debug => Some(1),
            Self::DoubleFault => Some(2),
            Self::MachineCheck => Some(3),
            Self::Sp0 | Self::Fatal => None,
        }
    }
}

/// The per-CPU block.
#[must_use]
pub fn block() -> *mut PerCpu {
    BLOCK.0.get()
}

/// The hardware's TSS, inside the block.
pub(crate) fn tss() -> *mut TaskStateSegment {
    block().cast()
}

/// Fills in the hardware's TSS: sp0 and the IST stacks.
///
/// # Safety
/// The block is in nobody's use yet: the TSS is not loaded.
pub(crate) unsafe fn init() {
    let mut state = TaskStateSegment::new();
    state.privilege_stack_table[0] = VirtAddr::new(Stack::Sp0.top());
    for stack in Stack::ALL {
        if let Some(index) = stack.ist() {
            state.interrupt_stack_table[usize::from(index)] = VirtAddr::new(stack.top());
        }
    }
    // SAFETY: the block is a static that holds 104 bytes for the TSS, and the caller says that
    // nobody else uses it.
    unsafe { tss().write(state) }
}
