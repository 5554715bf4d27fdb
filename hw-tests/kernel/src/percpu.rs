//! The per-CPU block and the stacks that its TSS names.
//!
//! GS base is the block's address while the host runs; the hardware's TSS is its first part. The
//! layout is the switcher's: [`switcher_gen::layout::PerCpu`].

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

pub use switcher_gen::layout::PerCpu;
use switcher_gen::layout::Tss;
use x86_64::structures::tss::TaskStateSegment;

// segments.rs hands the TSS to the x86_64 crate as that crate's type.
const _: () = assert!(size_of::<TaskStateSegment>() == size_of::<Tss>());

/// A page-aligned static that the CPU or the switcher writes behind the compiler's back.
#[repr(C, align(4096))]
struct Shared<T>(UnsafeCell<T>);

// SAFETY: one CPU; the contents are reached through raw pointers alone, whose users say why they
// may.
unsafe impl<T> Sync for Shared<T> {}

/// The stack an event switches to, above a page that is unmapped once memory/ has run.
const STACK_SIZE: usize = 32 * 1024;

static BLOCK: Shared<MaybeUninit<PerCpu>> = Shared(UnsafeCell::new(MaybeUninit::zeroed()));
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
    pub const ALL: [Self; Self::COUNT] =
        [Self::Sp0, Self::Nmi, Self::Debug, Self::DoubleFault, Self::MachineCheck, Self::Fatal];

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

    /// The number that a gate has for it: 1 to 7, or 0 for no IST stack.
    pub(crate) const fn ist(self) -> u8 {
        match self {
            Self::Nmi => 1,
            Self::Debug => 2,
            Self::DoubleFault => 3,
            Self::MachineCheck => 4,
            Self::Sp0 | Self::Fatal => 0,
        }
    }
}

/// The per-CPU block. It is written once before `main` runs, with a TSS and zeroes.
#[must_use]
pub fn block() -> *mut PerCpu {
    BLOCK.0.get().cast()
}

/// The hardware's TSS, inside the block.
pub(crate) fn tss() -> *const TaskStateSegment {
    // SAFETY: the block is a static; the place of one of its fields is within it.
    unsafe { &raw const (*block()).tss }.cast()
}

/// Fills in the block: sp0 and the IST stacks, and zeroes in the switcher's part.
///
/// # Safety
/// The block is in nobody's use yet: the TSS is not loaded.
pub(crate) unsafe fn init() {
    let mut new = PerCpu::default();
    new.tss.sp0 = Stack::Sp0.top().into();
    new.tss.ist1 = Stack::Nmi.top().into();
    new.tss.ist2 = Stack::Debug.top().into();
    new.tss.ist3 = Stack::DoubleFault.top().into();
    new.tss.ist4 = Stack::MachineCheck.top().into();
    // SAFETY: the block is a static of this type, and the caller says that nobody else uses it.
    unsafe { block().write(new) }
}
