//! What [`enter`](crate::Cpu::enter) exchanges around a guest: the guest gets its own values, and
//! the host gets its own back.
//!
//! Each kind is a type, which the table in `state.rs` names. All of it happens under the switcher's
//! IDT, whose entries take any GS base and restore it, so an NMI between any two of these
//! instructions does no harm.

use core::arch::asm;

use switcher_gen::arch::{Msr as MsrName, debugctl};

use crate::debug::GuestDebug;
use crate::exit::DebugCauses;
use crate::guest::{DataSelectors, Guest};
use crate::has::Has;
use crate::registers;

/// What the exchange depends on, on this CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context {
    pub(crate) has: Has,
    /// The address of the per-CPU block, which is GS base in ring 0.
    pub(crate) per_cpu: u64,
    /// Whether CR4.PKE is set.
    pub(crate) pku: bool,
    /// Whether CR4.CET is set.
    pub(crate) cet: bool,
}

/// State that the guest and the host have by turns.
pub(crate) trait Exchange {
    /// What is kept of the host's while the guest has its own.
    type Kept: core::fmt::Debug;

    /// The registers that are the guest's, or off, between `load` and `restore`: EXCHANGED.md tells
    /// whoever runs then.
    const REGISTERS: &'static str;

    /// Keeps what the host has, and loads what is the guest's.
    ///
    /// # Safety
    /// Must be called at CPL 0, with interrupts off, under the switcher's IDT, on the CPU of
    /// `context`, which tells the truth about it. `check_running` has found the guest to be fit.
    unsafe fn load(context: &Context, guest: &Guest) -> Self::Kept;

    /// Whether what neither CPL 3 nor the switcher can have changed is still as `load` has left it.
    /// If it is not, a hook or the host's call has changed it, and `restore` would not know.
    ///
    /// # Safety
    /// The contract of `load` holds; this is called between `load` and `restore`, on the same CPU.
    unsafe fn is_untouched(_: &Context, _: &Self::Kept, _: &Guest) -> bool {
        true
    }

    /// Takes back what the guest has, and loads what the host had.
    ///
    /// # Safety
    /// The contract of `load` holds; `load` has been called on this CPU, and has returned `kept`.
    unsafe fn restore(context: &Context, kept: Self::Kept, guest: &mut Guest);
}

/// PKRU: the protection keys of user pages. Neither the switcher nor what calls it accesses a user
/// page.
pub(crate) struct Pkru;

impl Exchange for Pkru {
    type Kept = Option<u32>;

    const REGISTERS: &'static str = "PKRU, where CR4.PKE is set";

    unsafe fn load(context: &Context, guest: &Guest) -> Option<u32> {
        // SAFETY: CR4.PKE is set, and nothing in ring 0 accesses user pages until `restore`.
        context.pku.then(|| unsafe { exchange_pkru(guest.pkru) })
    }

    unsafe fn restore(_: &Context, kept: Option<u32>, guest: &mut Guest) {
        if let Some(host) = kept {
            // SAFETY: CR4.PKE is set, and `host` is the value that the host had.
            guest.pkru = unsafe { exchange_pkru(host) };
        }
    }
}

/// Loads a PKRU and returns the former one. WRPKRU is slow, and mostly nothing changes.
///
/// # Safety
/// CR4.PKE must be set, and nobody may rely on access to user pages that the new PKRU denies.
unsafe fn exchange_pkru(new: u32) -> u32 {
    let old: u32;
    // SAFETY: the caller vouches for CR4.PKE; ECX is 0.
    unsafe { asm!("rdpkru", in("ecx") 0, out("eax") old, out("edx") _, options(nomem, nostack)) };
    if new != old {
        // SAFETY: the caller vouches for CR4.PKE; ECX and EDX are 0. That PKRU changes is what the
        // caller wants.
        unsafe { asm!("wrpkru", in("eax") new, in("ecx") 0, in("edx") 0, options(nostack)) };
    }
    old
}

/// The two GS bases. The active one is the per-CPU block's, where the switcher and hooks look for
/// it; the switcher makes the inactive one the active one for the guest, and the host has no use
/// for the value that it had.
pub(crate) struct GsBases;

impl Exchange for GsBases {
    type Kept = u64;

    const REGISTERS: &'static str =
        "both GS bases: GS is the per-CPU block's, and KERNEL_GS_BASE the guest's";

    unsafe fn load(context: &Context, guest: &Guest) -> u64 {
        let host = registers::gs_base();
        // SAFETY: the block's address is canonical, as the CPU's TSS lies in it. No code uses GS
        // for the host's data until `restore`.
        unsafe { registers::set_gs_base(context.per_cpu) };
        // SAFETY: the value is canonical: `set_gs_base` has checked it for the paging mode that
        // `enter` has found to be this host's, or it was read from this MSR.
        unsafe { registers::write_msr(MsrName::KernelGsBase.address(), guest.gs_base()) };
        host
    }

    unsafe fn is_untouched(context: &Context, _: &u64, _: &Guest) -> bool {
        registers::gs_base() == context.per_cpu
    }

    unsafe fn restore(_: &Context, host: u64, guest: &mut Guest) {
        // SAFETY: every CPU with long mode has the MSR; reading it changes nothing.
        guest.take_gs_base(unsafe { registers::read_msr(MsrName::KernelGsBase.address()) });
        // SAFETY: this is the value that GS base had before.
        unsafe { registers::set_gs_base(host) };
    }
}

/// The data segment registers, and FS base, which loading FS may change. Loading GS may change GS
/// base, which is set to what it was again at once.
pub(crate) struct Segments;

impl Exchange for Segments {
    type Kept = ([u16; 4], u64);

    const REGISTERS: &'static str = "DS, ES, FS and GS selectors, and FS base";

    unsafe fn load(_: &Context, guest: &Guest) -> ([u16; 4], u64) {
        let host = (registers::data_selectors(), registers::fs_base());
        let selectors = guest.selectors.as_array();
        // SAFETY: `check_running` has found that they load without a fault. Nothing in ring 0 uses
        // DS or ES in 64-bit mode, nor FS or GS before their bases are written.
        unsafe { load_selectors(host.0, selectors) };
        // SAFETY: `set_fs_base` has checked the address, or it was read from the register.
        unsafe { registers::set_fs_base(guest.fs_base()) };
        host
    }

    unsafe fn restore(_: &Context, (selectors, fs_base): Self::Kept, guest: &mut Guest) {
        let found = registers::data_selectors();
        guest.selectors = DataSelectors::from_array(found);
        guest.take_fs_base(registers::fs_base());
        // SAFETY: `check_running` has found that the host's selectors load, by the GDT and the LDT
        // that are loaded now.
        unsafe { load_selectors(found, selectors) };
        // SAFETY: this is the value that FS base had before.
        unsafe { registers::set_fs_base(fs_base) };
    }
}

/// Loads the selectors that differ from `now`. GS base stays as it is.
///
/// # Safety
/// Must be called at CPL 0: each selector loads without a fault, and nobody uses what changes.
unsafe fn load_selectors(now: [u16; 4], wanted: [u16; 4]) {
    if now == wanted {
        return;
    }
    let [ds, es, fs, gs] = wanted;
    if gs != now[3] {
        // SAFETY: the caller vouches for the selector. GS is not used between the two instructions,
        // except by NMIs and machine checks, whose entries take any GS base.
        unsafe {
            asm!(
                "mov gs, {0:x}",
                "wrgsbase {1}",
                in(reg) gs,
                in(reg) registers::gs_base(),
                options(nostack, preserves_flags),
            );
        }
    }
    // SAFETY: the caller vouches for CPL 0 and the selectors.
    unsafe {
        asm!(
            "mov ds, {0:x}",
            "mov es, {1:x}",
            "mov fs, {2:x}",
            in(reg) ds,
            in(reg) es,
            in(reg) fs,
            options(nostack, preserves_flags),
        );
    }
}

/// TSC_AUX, which RDTSCP and RDPID show, if the guest has a value of its own.
pub(crate) struct TscAux;

impl Exchange for TscAux {
    type Kept = Option<u64>;

    const REGISTERS: &'static str = "TSC_AUX, which RDPID and RDTSCP show";

    unsafe fn load(_: &Context, guest: &Guest) -> Option<u64> {
        guest.tsc_aux.map(|guest| {
            // SAFETY: the MSR exists where RDTSCP does, which `for_host` asks for.
            let host = unsafe { registers::read_msr(MsrName::TscAux.address()) };
            // SAFETY: the MSR exists, and takes any 32 bits. Hooks find their CPU by GS.
            unsafe { registers::write_msr(MsrName::TscAux.address(), guest.into()) };
            host
        })
    }

    unsafe fn is_untouched(_: &Context, kept: &Option<u64>, guest: &Guest) -> bool {
        // SAFETY: the MSR exists, as for `load`; reading it changes nothing.
        kept.is_none()
            || guest.tsc_aux.map(u64::from)
                == Some(unsafe { registers::read_msr(MsrName::TscAux.address()) })
    }

    unsafe fn restore(_: &Context, kept: Option<u64>, _: &mut Guest) {
        if let Some(host) = kept {
            // SAFETY: this is the value that the MSR had before.
            unsafe { registers::write_msr(MsrName::TscAux.address(), host) };
        }
    }
}

/// Loads a value into an MSR for as long as a guest runs, unless the MSR has it already. Returns
/// the value that it had.
///
/// # Safety
/// Must be called at CPL 0; the MSR exists and takes the value, and no code of ring 0 relies on the
/// old one meanwhile.
unsafe fn load_instead(msr: u32, guest: u64) -> u64 {
    // SAFETY: the caller vouches for CPL 0 and the MSR; reading it changes nothing.
    let host = unsafe { registers::read_msr(msr) };
    if host != guest {
        // SAFETY: the caller vouches for CPL 0, the MSR and its value.
        unsafe { registers::write_msr(msr, guest) };
    }
    host
}

/// Puts the host's value back into an MSR, unless the guest has had the same one.
///
/// # Safety
/// The contract of `load_instead` holds; `host` is what it has returned for `msr` and `guest`.
unsafe fn put_back(msr: u32, host: u64, guest: u64) {
    if host != guest {
        // SAFETY: the MSR exists, and had this value before.
        unsafe { registers::write_msr(msr, host) };
    }
}

/// Shadow stacks and branch tracking of CPL 3: they are off while a guest runs, where there could
/// be any.
pub(crate) struct UserCet;

impl UserCet {
    const fn is_here(context: &Context) -> bool {
        context.cet && context.has.user_cet
    }
}

impl Exchange for UserCet {
    type Kept = u64;

    const REGISTERS: &'static str = "U_CET";

    unsafe fn load(context: &Context, _: &Guest) -> u64 {
        if !Self::is_here(context) {
            return 0;
        }
        // SAFETY: CPUID says that the MSR exists; it has no effect in ring 0.
        unsafe { load_instead(MsrName::UCet.address(), 0) }
    }

    unsafe fn is_untouched(context: &Context, _: &u64, _: &Guest) -> bool {
        // SAFETY: the MSR exists, as for `load`; reading it changes nothing.
        !Self::is_here(context) || unsafe { registers::read_msr(MsrName::UCet.address()) } == 0
    }

    unsafe fn restore(_: &Context, kept: u64, _: &mut Guest) {
        // SAFETY: `kept` is not 0 only where the MSR exists, which had this value before.
        unsafe { put_back(MsrName::UCet.address(), kept, 0) };
    }
}

/// DEBUGCTL: debugging and tracing are off while a guest runs, except for bus locks where the host
/// wants to be told of them.
pub(crate) struct DebugCtl;

impl DebugCtl {
    /// The value that a guest runs with.
    const fn of(context: &Context, guest: &Guest) -> u64 {
        let traps = guest.trap_bus_locks && context.has.bus_lock_detection;
        if traps { debugctl::BUS_LOCK_DETECT } else { 0 }
    }
}

impl Exchange for DebugCtl {
    type Kept = (u64, u64);

    const REGISTERS: &'static str = "DEBUGCTL";

    unsafe fn load(context: &Context, guest: &Guest) -> (u64, u64) {
        let wanted = Self::of(context, guest);
        // SAFETY: every 64-bit CPU has the MSR, and takes 0; CPUID says that it has the other bit,
        // which has no effect in ring 0.
        (unsafe { load_instead(MsrName::Debugctl.address(), wanted) }, wanted)
    }

    unsafe fn is_untouched(_: &Context, (_, guest): &(u64, u64), _: &Guest) -> bool {
        // SAFETY: every 64-bit CPU has the MSR; reading it changes nothing. The bits that a #DB
        // clears (BTF and LBR) are clear already.
        unsafe { registers::read_msr(MsrName::Debugctl.address()) == *guest }
    }

    unsafe fn restore(_: &Context, (host, guest): (u64, u64), _: &mut Guest) {
        // SAFETY: every 64-bit CPU has the MSR, and it had this value before.
        unsafe { put_back(MsrName::Debugctl.address(), host, guest) };
    }
}

/// PEBS, which samples to memory: it is off while a guest runs, where the CPU has it.
pub(crate) struct Pebs;

impl Exchange for Pebs {
    type Kept = u64;

    const REGISTERS: &'static str = "IA32_PEBS_ENABLE";

    unsafe fn load(context: &Context, _: &Guest) -> u64 {
        if !context.has.pebs {
            return 0;
        }
        // SAFETY: `Has` says that the MSR exists; it takes 0, and no code of ring 0 relies on
        // samples.
        unsafe { load_instead(MsrName::PebsEnable.address(), 0) }
    }

    unsafe fn is_untouched(context: &Context, _: &u64, _: &Guest) -> bool {
        // SAFETY: the MSR exists, as for `load`; reading it changes nothing.
        !context.has.pebs || unsafe { registers::read_msr(MsrName::PebsEnable.address()) } == 0
    }

    unsafe fn restore(_: &Context, kept: u64, _: &mut Guest) {
        // SAFETY: `kept` is not 0 only where the MSR exists, which had this value before.
        unsafe { put_back(MsrName::PebsEnable.address(), kept, 0) };
    }
}

/// The guest's breakpoints, if it has any. Where AMD's CPUs have masks for the addresses of
/// breakpoints, the masks are 0 while a guest runs: with a bit that is masked, a breakpoint of the
/// guest's would also be one on addresses that nobody has checked.
pub(crate) struct Breakpoints;

impl Breakpoints {
    /// The MSRs DR0_ADDR_MASK to DR3_ADDR_MASK (AMD APM vol. 2, 13.1.1.5), where they exist.
    const fn masks(has: Has) -> &'static [u32] {
        if has.breakpoint_masks {
            &[0xC001_1027, 0xC001_1019, 0xC001_101A, 0xC001_101B]
        } else {
            &[]
        }
    }
}

/// What the host has in DR0 to DR3, and in their masks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HostsBreakpoints {
    addresses: [u64; 4],
    masks: [u64; 4],
}

impl Exchange for Breakpoints {
    type Kept = Option<HostsBreakpoints>;

    const REGISTERS: &'static str = "DR0 to DR3 and DR7, and AMD's masks of their addresses";

    unsafe fn load(context: &Context, guest: &Guest) -> Option<HostsBreakpoints> {
        guest.debug.as_ref().map(|debug| {
            let mut host = HostsBreakpoints::default();
            for (kept, msr) in host.masks.iter_mut().zip(Self::masks(context.has)) {
                // SAFETY: CPUID says that the MSR exists, and it takes 0. No breakpoint is enabled
                // to which it could matter.
                *kept = unsafe { load_instead(*msr, 0) };
            }
            // SAFETY: `check_running` has found that the host has no breakpoint armed, and DR7.GD
            // clear.
            host.addresses = unsafe { debug.arm() };
            host
        })
    }

    unsafe fn is_untouched(context: &Context, _: &Self::Kept, guest: &Guest) -> bool {
        // SAFETY: the MSR exists, as for `load`; reading it changes nothing.
        let is_zero = |msr: &u32| unsafe { registers::read_msr(*msr) } == 0;
        guest
            .debug
            .as_ref()
            .is_none_or(|debug| debug.is_armed() && Self::masks(context.has).iter().all(is_zero))
    }

    unsafe fn restore(context: &Context, kept: Option<HostsBreakpoints>, _: &mut Guest) {
        if let Some(HostsBreakpoints { addresses, masks }) = kept {
            // SAFETY: this is CPL 0; `addresses` is what `arm` has returned.
            unsafe { GuestDebug::disarm(addresses) };
            for (host, msr) in masks.into_iter().zip(Self::masks(context.has)) {
                // SAFETY: the MSR had this value before; no breakpoint is enabled any more.
                unsafe { put_back(*msr, host, 0) };
            }
        }
    }
}

/// DR6, the causes of a #DB. No cause of the host's is left in it, nor one of a #DB that the
/// switcher has ignored, and the bits that a cause clears are set. What is in it after an exit goes
/// to whoever the #DB is reported to.
pub(crate) struct Dr6;

impl Exchange for Dr6 {
    type Kept = ();

    const REGISTERS: &'static str = "DR6";

    unsafe fn load(_: &Context, _: &Guest) {
        // A MOV to a debug register waits for all earlier instructions, and mostly nothing changes.
        if registers::dr6() != DebugCauses::DR6_CLEAR {
            // SAFETY: at CPL 0, and `check_running` has found DR7.GD clear. The value has no
            // reserved bit.
            unsafe { registers::set_dr6(DebugCauses::DR6_CLEAR) };
        }
    }

    unsafe fn restore(_: &Context, (): (), _: &mut Guest) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use switcher_gen::arch::PagingMode;

    #[test]
    fn bus_locks_trap_where_the_host_wants_it_and_the_cpu_can() {
        let context = |bus_lock_detection| Context {
            has: Has { bus_lock_detection, ..Has::default() },
            per_cpu: 0,
            pku: false,
            cet: false,
        };
        let mut guest = Guest::new(PagingMode::FourLevel);
        assert_eq!(DebugCtl::of(&context(true), &guest), 0);
        guest.trap_bus_locks = true;
        assert_eq!(DebugCtl::of(&context(true), &guest), 1 << 2);
        assert_eq!(DebugCtl::of(&context(false), &guest), 0);
    }

    #[test]
    fn each_breakpoint_has_its_mask_where_the_cpu_has_masks() {
        let masks =
            |breakpoint_masks| Breakpoints::masks(Has { breakpoint_masks, ..Has::default() });
        assert_eq!(masks(true), [0xC001_1027, 0xC001_1019, 0xC001_101A, 0xC001_101B]);
        assert!(masks(false).is_empty());
    }
}
