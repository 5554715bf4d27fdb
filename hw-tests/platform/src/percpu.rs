//! What each CPU has for itself: the per-CPU block, the GDT, the stacks.
//!
//! After the block there is room for code. It is a hole in the host's root until pages are mapped
//! there. A switcher with placement `percpu` always lies there.
//!
//! GS base is the block's address while the host runs; the hardware's TSS is its first part. The
//! layout is the switcher's: [`switcher_gen::layout::PerCpu`]. Under five-level paging, all of it
//! is reached at addresses above 47 bits, in the upper half for even CPUs and in the lower for odd
//! ones ([`crate::high`]). Everything here that a guest's root has to map is on pages of its own,
//! so that such a root shows nothing else of the host.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

pub use switcher_gen::layout::PerCpu;
use switcher_gen::layout::{IstTop, Tss};
use x86_64::structures::gdt::GlobalDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

use crate::boot::MAX_CPUS;
use crate::high::{self, Half};
use crate::regions::Region;
use crate::{exit, gs};

// segments.rs hands the TSS to the x86_64 crate as that crate's type.
const _: () = assert!(size_of::<TaskStateSegment>() == size_of::<Tss>());

/// A page-aligned static that the CPU or the switcher writes behind the compiler's back.
#[repr(C, align(4096))]
struct Shared<T>(UnsafeCell<T>);

// SAFETY: the contents are reached through raw pointers alone, whose users say why they may.
unsafe impl<T> Sync for Shared<T> {}

/// The stack an event switches to, above a page that is unmapped once memory/ has run.
const STACK_SIZE: usize = 32 * 1024;

/// Room for the code of one CPU. A switcher of any variant takes less than half of it.
const CODE_SIZE: usize = 4 * 4096;

/// Pages of one CPU's.
#[repr(C, align(4096))]
struct Area {
    block: Shared<MaybeUninit<PerCpu>>,
    /// Addresses alone: no page of the image's is mapped there.
    code: Shared<MaybeUninit<[u8; CODE_SIZE]>>,
    scratch: Shared<Scratch>,
    gdt: Shared<MaybeUninit<GlobalDescriptorTable<16>>>,
    stacks: [Shared<[u8; STACK_SIZE]>; Stack::COUNT],
}

static AREAS: [Area; MAX_CPUS] = [const {
    Area {
        block: Shared(UnsafeCell::new(MaybeUninit::zeroed())),
        code: Shared(UnsafeCell::new(MaybeUninit::zeroed())),
        scratch: Shared(UnsafeCell::new(Scratch::ZERO)),
        gdt: Shared(UnsafeCell::new(MaybeUninit::zeroed())),
        stacks: [const { Shared(UnsafeCell::new([0; STACK_SIZE])) }; Stack::COUNT],
    }
}; MAX_CPUS];

const _: () = assert!(core::mem::offset_of!(Area, code) as u64 == PerCpu::BEFORE_CODE);

/// A CPU's area, where its own addresses are.
fn area(cpu: usize) -> *mut Area {
    let half = if cpu.is_multiple_of(2) { Half::Upper } else { Half::Lower };
    let image = (&raw const AREAS[cpu]).expose_provenance() as u64;
    core::ptr::with_exposed_provenance_mut(high::of(image, half) as usize)
}

/// A place in a CPU's area.
macro_rules! place {
    ($cpu:expr, $($field:tt)+) => {{
        let area = area($cpu);
        // SAFETY: the area is a static, mapped there as well; the place of a field is within it.
        unsafe { &raw mut (*area).$($field)+ }
    }};
}

/// What the host finds directly after a call of the switcher, at a fixed distance from the block:
/// the code that looks has no register to rely on but GS base.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Scratch {
    /// RSP before the call.
    pub stack_before: u64,
    /// RSP after it.
    pub stack_after: u64,
    /// All scratch registers but RAX, ORed.
    pub scratch_after: u64,
    /// RFLAGS.
    pub flags_after: u64,
    /// SS.
    pub stack_segment_after: u64,
    /// Bits of the callee-saved registers that have changed, ORed.
    pub callee_saved_changed: u64,
    /// `TssExtra.switch_flags`.
    pub switch_flags: u64,
    /// `TssExtra.host_rsp`.
    pub host_rsp: u64,
}

impl Scratch {
    const ZERO: Self = Self {
        stack_before: 0,
        stack_after: 0,
        scratch_after: 0,
        flags_after: 0,
        stack_segment_after: 0,
        callee_saved_changed: 0,
        switch_flags: 0,
        host_rsp: 0,
    };
    /// Where it is, from GS base.
    pub const OFFSET: usize = core::mem::offset_of!(Area, scratch);
}

/// The stacks that events switch to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// sp0: every event from CPL3 whose vector has no IST stack.
    Sp0,
    /// IST 1, as the switcher's gates have it, like the next three.
    DoubleFault,
    /// IST 2.
    Nmi,
    /// IST 3.
    Debug,
    /// IST 4.
    MachineCheck,
    /// Where the handler of a fatal event runs, whatever RSP was.
    Fatal,
}

impl Stack {
    const COUNT: usize = 6;
    /// All stacks.
    pub const ALL: [Self; Self::COUNT] =
        [Self::Sp0, Self::DoubleFault, Self::Nmi, Self::Debug, Self::MachineCheck, Self::Fatal];

    /// The page below a CPU's, to be left unmapped.
    #[must_use]
    pub fn guard(self, cpu: usize) -> u64 {
        place!(cpu, stacks[self as usize]).addr() as u64
    }

    /// The address after its last byte: what the TSS holds. A multiple of 16, so the CPU's own
    /// alignment of RSP leaves no gap, and an event's frame ends exactly here. On the stacks of the
    /// IST there is an [`IstTop`] of the switcher's above it.
    #[must_use]
    pub fn top(self, cpu: usize) -> u64 {
        let above = if self.ist() == 0 { 0 } else { size_of::<IstTop>() };
        self.guard(cpu) + (STACK_SIZE - above) as u64
    }

    /// The number that a gate has for it: 1 to 7, or 0 for no IST stack.
    pub(crate) const fn ist(self) -> u8 {
        match self {
            Self::DoubleFault => 1,
            Self::Nmi => 2,
            Self::Debug => 3,
            Self::MachineCheck => 4,
            Self::Sp0 | Self::Fatal => 0,
        }
    }
}

/// A CPU's per-CPU block. It is written once before anything runs there, with a TSS and zeroes.
#[must_use]
pub fn block(cpu: usize) -> *mut PerCpu {
    place!(cpu, block).cast()
}

/// Where code of a CPU's own goes, [`PerCpu::BEFORE_CODE`] bytes after its block.
#[must_use]
pub fn code(cpu: usize) -> Region {
    let start = place!(cpu, code).addr() as u64;
    Region::new(start, start + CODE_SIZE as u64)
}

/// The place for code of a CPU, by the image's own addresses, near the image's code.
#[must_use]
pub fn code_near_image(cpu: usize) -> Region {
    let start = (&raw const AREAS[cpu].code).addr() as u64;
    Region::new(start, start + CODE_SIZE as u64)
}

/// The number of the CPU that this runs on.
#[must_use]
pub fn this() -> usize {
    let block = gs::base();
    let found = (0..MAX_CPUS).find(|cpu| self::block(*cpu).addr() as u64 == block);
    found.unwrap_or_else(|| exit::fatal(format_args!("GS base is no CPU's block: {block:#x}")))
}

/// What [`Scratch`] says on this CPU.
#[must_use]
pub fn scratch() -> Scratch {
    let place = place!(this(), scratch).cast::<Scratch>();
    // SAFETY: assembly of this CPU's alone writes there, and it is not running.
    unsafe { place.read() }
}

/// Writes down what the switcher has left in this CPU's block, before the runtime clears it.
pub fn note_block() {
    let cpu = this();
    // SAFETY: the switcher has let go of this CPU's block, and the runtime waits.
    let extra = unsafe { block(cpu).read() }.tss_extra;
    let scratch = Scratch {
        switch_flags: extra.switch_flags.bits(),
        host_rsp: extra.host_rsp,
        ..self::scratch()
    };
    let place = place!(cpu, scratch).cast::<Scratch>();
    // SAFETY: the place is a static's, and this CPU's alone.
    unsafe { place.write(scratch) }
}

/// Places a CPU's GDT, new: in the last one, the TSS may be marked as busy.
///
/// # Safety
/// The CPU has loaded no GDT from here since its reset.
pub(crate) unsafe fn place_gdt(
    cpu: usize,
    gdt: GlobalDescriptorTable<16>,
) -> &'static GlobalDescriptorTable<16> {
    let place = place!(cpu, gdt).cast::<MaybeUninit<GlobalDescriptorTable<16>>>();
    // SAFETY: the place is a static's; the caller says that nobody uses what was there. From now on
    // only the hardware writes there: the accessed and busy bits.
    unsafe { (*place).write(gdt) }
}

/// A CPU's TSS, inside the block.
pub(crate) fn tss(cpu: usize) -> *const TaskStateSegment {
    // SAFETY: the block is a static; the place of one of its fields is within it.
    unsafe { &raw const (*block(cpu)).tss }.cast()
}

/// Fills in a block: sp0 and the IST stacks, and zeroes in the switcher's part.
///
/// # Safety
/// The block is in nobody's use: its CPU has loaded no TSS since its reset.
pub(crate) unsafe fn init(cpu: usize) {
    let mut new = PerCpu::default();
    new.tss.sp0 = Stack::Sp0.top(cpu).into();
    new.tss.ist1 = Stack::DoubleFault.top(cpu).into();
    new.tss.ist2 = Stack::Nmi.top(cpu).into();
    new.tss.ist3 = Stack::Debug.top(cpu).into();
    new.tss.ist4 = Stack::MachineCheck.top(cpu).into();
    // SAFETY: the block is a static of this type, and the caller says that nobody else uses it.
    unsafe { block(cpu).write(new) }
}
