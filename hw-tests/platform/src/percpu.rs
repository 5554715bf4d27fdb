//! What each CPU has for itself: the per-CPU block, the GDT and the stacks.
//!
//! There is room for code after the block. It is a hole in the host's root until pages are mapped
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

/// A page-aligned static that the CPU or the switcher writes without the compiler's knowledge.
#[repr(C, align(4096))]
struct Shared<T>(UnsafeCell<T>);

// SAFETY: the contents are accessed only through raw pointers, whose users say why they may.
unsafe impl<T> Sync for Shared<T> {}

/// The size of the stacks that events switch to. Below each is a page that memory/ unmaps.
const STACK_SIZE: usize = 32 * 1024;

/// Room for the code of one CPU. A switcher of any variant takes less than half of it.
const CODE_SIZE: usize = 4 * 4096;

/// The pages of one CPU.
#[repr(C, align(4096))]
struct Area {
    block: Shared<MaybeUninit<PerCpu>>,
    /// This reserves only addresses: no page of the image is mapped there.
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

/// A CPU's area, at the addresses that the CPU itself uses.
fn area(cpu: usize) -> *mut Area {
    let half = if cpu.is_multiple_of(2) { Half::Upper } else { Half::Lower };
    let image = (&raw const AREAS[cpu]).expose_provenance() as u64;
    core::ptr::with_exposed_provenance_mut(high::of(image, half) as usize)
}

/// The place of a field in a CPU's area.
macro_rules! place {
    ($cpu:expr, $($field:tt)+) => {{
        let area = area($cpu);
        // SAFETY: the area is a static, which is mapped at this address; the place of a field is
        // within it.
        unsafe { &raw mut (*area).$($field)+ }
    }};
}

/// What assembly stores directly after a call of the switcher, at a fixed distance from the block:
/// it can rely on no register but GS base.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Scratch {
    /// RSP before the call of the switcher.
    pub stack_before: u64,
    /// RSP after the call.
    pub stack_after: u64,
    /// All scratch registers but RAX after the call, ORed.
    pub scratch_after: u64,
    /// RFLAGS after the call.
    pub flags_after: u64,
    /// SS after the call.
    pub stack_segment_after: u64,
    /// The bits of the callee-saved registers that the call has changed, ORed.
    pub callee_saved_changed: u64,
    /// `TssExtra.switch_flags` after the call.
    pub switch_flags: u64,
    /// `TssExtra.host_rsp` after the call.
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
    /// The distance of the `Scratch` from GS base, in bytes.
    pub const OFFSET: usize = core::mem::offset_of!(Area, scratch);
}

/// The stacks that events switch to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// sp0: every event from CPL 3 whose vector has no IST stack.
    Sp0,
    /// The stack of #DF, IST 1: the switcher's gates want it and the next three at these numbers.
    DoubleFault,
    /// The stack of NMIs, IST 2.
    Nmi,
    /// The stack of #DB, IST 3.
    Debug,
    /// The stack of #MC, IST 4.
    MachineCheck,
    /// The stack of the handler of a fatal event, whatever RSP was.
    Fatal,
}

impl Stack {
    const COUNT: usize = 6;
    /// All stacks.
    pub const ALL: [Self; Self::COUNT] =
        [Self::Sp0, Self::DoubleFault, Self::Nmi, Self::Debug, Self::MachineCheck, Self::Fatal];

    /// The page below a CPU's stack, to be left unmapped.
    #[must_use]
    pub fn guard(self, cpu: usize) -> u64 {
        place!(cpu, stacks[self as usize]).addr() as u64
    }

    /// The address after the stack's last byte, which the TSS holds. It is a multiple of 16, so the
    /// CPU's own alignment of RSP leaves no gap, and an event's frame ends exactly here. On the
    /// stacks of the IST, an [`IstTop`] of the switcher's lies above.
    #[must_use]
    pub fn top(self, cpu: usize) -> u64 {
        let above = if self.ist() == 0 { 0 } else { size_of::<IstTop>() };
        self.guard(cpu) + (STACK_SIZE - above) as u64
    }

    /// The number by which a gate names the stack: 1 to 7, or 0 if it is not in the IST.
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

/// A CPU's per-CPU block. It is written before anything runs on that CPU, with a TSS and zeroes.
#[must_use]
pub fn block(cpu: usize) -> *mut PerCpu {
    place!(cpu, block).cast()
}

/// The place for code of one CPU, [`PerCpu::BEFORE_CODE`] bytes after its block.
#[must_use]
pub fn code(cpu: usize) -> Region {
    let start = place!(cpu, code).addr() as u64;
    Region::new(start, start + CODE_SIZE as u64)
}

/// The place for code of one CPU, at the image's own addresses, near the image's code.
#[must_use]
pub fn code_near_image(cpu: usize) -> Region {
    let start = (&raw const AREAS[cpu].code).addr() as u64;
    Region::new(start, start + CODE_SIZE as u64)
}

/// The number of the CPU on which this runs.
#[must_use]
pub fn this() -> usize {
    let block = gs::base();
    let found = (0..MAX_CPUS).find(|cpu| self::block(*cpu).addr() as u64 == block);
    found.unwrap_or_else(|| {
        exit::fatal(format_args!("GS base is {block:#x}, which is no CPU's block"))
    })
}

/// The content of this CPU's [`Scratch`].
#[must_use]
pub fn scratch() -> Scratch {
    let place = place!(this(), scratch).cast::<Scratch>();
    // SAFETY: only assembly on this CPU writes there, and it is not running.
    unsafe { place.read() }
}

/// Stores what the switcher has left in this CPU's block, before the runtime clears it.
pub fn note_block() {
    let cpu = this();
    // SAFETY: the switcher has returned, so it does not use this CPU's block, and the runtime
    // waits.
    let extra = unsafe { block(cpu).read() }.tss_extra;
    let scratch = Scratch {
        switch_flags: extra.switch_flags.bits(),
        host_rsp: extra.host_rsp,
        ..self::scratch()
    };
    let place = place!(cpu, scratch).cast::<Scratch>();
    // SAFETY: the place is within a static, and only this CPU uses it.
    unsafe { place.write(scratch) }
}

/// Places a fresh GDT for a CPU: in the last one, the TSS may be marked as busy.
///
/// # Safety
/// The CPU has loaded no GDT from here since its reset.
pub(crate) unsafe fn place_gdt(
    cpu: usize,
    gdt: GlobalDescriptorTable<16>,
) -> &'static GlobalDescriptorTable<16> {
    let place = place!(cpu, gdt).cast::<MaybeUninit<GlobalDescriptorTable<16>>>();
    // SAFETY: the place is within a static, and the caller says that nobody uses what was there.
    // From now on only the hardware writes there: the accessed and busy bits.
    unsafe { (*place).write(gdt) }
}

/// A CPU's TSS, inside its block.
pub(crate) fn tss(cpu: usize) -> *const TaskStateSegment {
    // SAFETY: the block is a static; the place of one of its fields is within it.
    unsafe { &raw const (*block(cpu)).tss }.cast()
}

/// Fills in a block: sp0 and the IST stacks, and zeroes in the switcher's part.
///
/// # Safety
/// Nobody uses the block: its CPU has loaded no TSS since its reset.
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
