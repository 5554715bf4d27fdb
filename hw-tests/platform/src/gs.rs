//! The two GS bases. The `x86_64` crate's types for them know addresses of 48 bits only.

use switcher_gen::arch::Msr as Name;
use x86_64::registers::model_specific::Msr;

fn read(name: Name) -> u64 {
    // SAFETY: this is one of the two MSRs of GS bases, which every CPU with long mode has.
    unsafe { Msr::new(name.address()).read() }
}

fn write(name: Name, base: u64) {
    // SAFETY: the MSR exists; whoever calls this passes a canonical address, and GS is used only
    // for what lies there.
    unsafe { Msr::new(name.address()).write(base) }
}

/// The active GS base.
#[must_use]
pub fn base() -> u64 {
    read(Name::GsBase)
}

/// Changes the active GS base.
///
/// # Safety
/// The base is canonical. Until it is the address of this CPU's block again, no code asks on which
/// CPU it runs.
pub unsafe fn set_base(base: u64) {
    set_active(base);
}

/// The inactive GS base, which SWAPGS exchanges with the active one.
#[must_use]
pub fn inactive() -> u64 {
    read(Name::KernelGsBase)
}

/// Changes the inactive GS base, which must be canonical.
pub fn set_inactive(base: u64) {
    write(Name::KernelGsBase, base);
}

/// Changes the active GS base on a CPU that is being set up.
pub(crate) fn set_active(base: u64) {
    write(Name::GsBase, base);
}
