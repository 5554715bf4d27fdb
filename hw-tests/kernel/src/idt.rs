//! The switcher's IDT with some gates changed, and a breakpoint in the switcher whose #DB goes
//! through one of them.

use alloc::format;
use alloc::string::String;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use hw_platform::exit;
use hw_platform::memory::{self, Flags, Frame, MapError};
use switcher_runtime::switcher_gen::GateDescriptor;
use switcher_runtime::switcher_gen::arch::dr7;
use switcher_runtime::switcher_gen::layout::PtRegs;
use switcher_runtime::{DebugCauses, DescriptorTablePointer};

use crate::case_host::{BareMetal, checked_call};

/// The address of the breakpoint.
static BREAKPOINT: AtomicU64 = AtomicU64::new(0);
/// The address of the IDT under which the switcher is called.
static IDT: AtomicU64 = AtomicU64::new(0);

/// The switcher's IDT with some gates changed, on a page that guests' roots map.
pub(crate) struct IdtCopy {
    page: Frame,
}

impl IdtCopy {
    /// Makes the copy that [`load`](Self::load) loads.
    pub(crate) fn new(
        host: &mut BareMetal<'_>,
        change: impl FnOnce(&mut [GateDescriptor; 256]),
    ) -> Result<Self, String> {
        let mut gates = host.cpu().switcher().linked().idt();
        change(&mut gates);
        let mut copy = Self { page: Frame::new().map_err(|why| format!("an IDT: {why}"))? };
        for (vector, gate) in (0..).zip(&gates) {
            copy.set(vector, gate);
        }
        host.map_in_both(copy.page.address(), Some(Flags::empty())).map_err(mapping)?;
        IDT.store(copy.page.address(), Ordering::Relaxed);
        Ok(copy)
    }

    fn set(&mut self, vector: u8, gate: &GateDescriptor) {
        let at = size_of::<GateDescriptor>() * usize::from(vector);
        self.page.write(at, &gate.low.to_le_bytes());
        self.page.write(at + 8, &gate.high.to_le_bytes());
    }

    /// The place of a gate in the current copy.
    fn place(vector: u8) -> *mut GateDescriptor {
        let at = size_of::<GateDescriptor>() * usize::from(vector);
        core::ptr::with_exposed_provenance_mut(IDT.load(Ordering::Relaxed) as usize + at)
    }

    /// Reads a gate of the current copy.
    ///
    /// # Safety
    /// There is a copy.
    pub(crate) unsafe fn gate(vector: u8) -> GateDescriptor {
        // SAFETY: the copy's page is in the identity map, and nothing has a reference into it.
        unsafe { Self::place(vector).read_volatile() }
    }

    /// Changes a gate of the current copy.
    ///
    /// # Safety
    /// There is a copy, and `gate` leads to an entry for `vector`.
    pub(crate) unsafe fn set_gate(vector: u8, gate: GateDescriptor) {
        // SAFETY: the copy's page is in the identity map, and nothing has a reference into it; the
        // CPU reads the gate when an event comes.
        unsafe { Self::place(vector).write_volatile(gate) }
    }

    /// Loads the copy. The runtime loads the host's IDT again when the call has returned.
    ///
    /// # Safety
    /// There is a copy, and this is called within the call that `enter_with` makes.
    pub(crate) unsafe fn load() {
        let base = IDT.load(Ordering::Relaxed);
        let Ok(pointer) = DescriptorTablePointer::new(base, 4095, memory::paging()) else {
            exit::fatal(format_args!("a copy of the IDT is at {base:#x}, which is not canonical"))
        };
        // SAFETY: this is the switcher's own table, which the runtime has loaded for this call,
        // except for some gates, whose makers vouch for them.
        unsafe { pointer.load_idt() }
    }

    /// Gives the page back.
    pub(crate) fn free(self, host: &mut BareMetal<'_>) -> Result<(), String> {
        host.map_in_both(self.page.address(), None).map_err(mapping)
    }
}

pub(crate) fn mapping(why: MapError) -> String {
    format!("a page in both roots: {why}")
}

/// Sets the address of the next breakpoint.
pub(crate) fn aim_breakpoint(at: u64) {
    BREAKPOINT.store(at, Ordering::Relaxed);
}

/// Enables the breakpoint at its address, or disables it, and clears what DR6 reports of the last
/// one.
pub(crate) fn set_breakpoint(enabled: bool) {
    /// The bits for breakpoint 0, on execution.
    const ENABLED: u64 = dr7::DISABLED | dr7::L0;
    // DR0 is 0 again afterwards: a guest without breakpoints has 0 there, as the runtime's debug
    // builds check.
    let (at, control) = match enabled {
        true => (BREAKPOINT.load(Ordering::Relaxed), ENABLED),
        false => (0, dr7::DISABLED),
    };
    // SAFETY: the breakpoint is in the switcher, which resumes after what happens there.
    unsafe {
        asm!(
            "mov dr0, {at}",
            "mov dr6, {clear}",
            "mov dr7, {control}",
            at = in(reg) at,
            clear = in(reg) DebugCauses::DR6_CLEAR,
            control = in(reg) control,
        );
    }
}

/// Calls the switcher under the copy of the IDT, for `enter_with`.
///
/// # Safety
/// The contract of `checked_call` must hold, and there is an [`IdtCopy`].
pub(crate) unsafe fn call_under_copy(entry: u64) -> *mut PtRegs {
    // SAFETY: the caller says that there is a copy.
    unsafe { IdtCopy::load() };
    // SAFETY: the caller vouches for the contract of `checked_call`.
    unsafe { checked_call(entry) }
}
