//! Breakpoints and DEBUGCTL of the host's, which must not affect a guest.

use alloc::format;
use alloc::string::String;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use hw_cases::{Expected, place};
use hw_platform::memory::{HIGH_BASE, PAGE};
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::{Msr as MsrName, RFlags, debugctl, dr7};
use switcher_runtime::switcher_gen::layout::PtRegs;
use switcher_runtime::{DebugCauses, Mode, State};
use x86_64::registers::model_specific::Msr;

use crate::bench::{Ended, HostCase};
use crate::case_host::{BareMetal, checked_call};
use crate::programs::{JUMP, PROBE};
use crate::refusal::{by_enter, expect, guest, runs};
use crate::registers::{addresses, dr7, set_addresses};
use crate::setup::setup;

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/breakpoints_and_debugctl_of_the_hosts_are_no_guests",
    shown: "A breakpoint of the host's is refused, and its DEBUGCTL and debug registers are exchanged.",
    rows: &[Hazard::DebugControl],
    cpus: 1,
    needs: &[],
    run: |bench| debugging(bench.host()?),
}];

/// The values of DR7 and DEBUGCTL that a call of the switcher finds.
static DR7: AtomicU64 = AtomicU64::new(0);
static DEBUGCTL: AtomicU64 = AtomicU64::new(0);

/// MSR DEBUGCTL.
fn debugctl_msr() -> Msr {
    Msr::new(MsrName::Debugctl.address())
}

/// Notes with which values the guest is about to run.
///
/// # Safety
/// The contract of `checked_call` must hold.
unsafe fn noting_call(entry: u64) -> *mut PtRegs {
    DR7.store(dr7(), Ordering::Relaxed);
    // SAFETY: every 64-bit CPU has the MSR; reading it changes nothing.
    DEBUGCTL.store(unsafe { debugctl_msr().read() }, Ordering::Relaxed);
    // SAFETY: the caller vouches for the contract of `checked_call`.
    unsafe { checked_call(entry) }
}

/// Breakpoints and DEBUGCTL of the host's: the former are refused, the latter is not the guest's.
fn debugging(host: &mut BareMetal<'_>) -> Ended {
    const BTF_AND_LBR: u64 = debugctl::BTF | debugctl::LBR;
    // No page is mapped at this address.
    let nowhere = HIGH_BASE + 300 * PAGE;
    for live in [dr7::L0, dr7::L0 << 1, dr7::L0 << 7] {
        // SAFETY: nothing accesses that address.
        unsafe {
            asm!("mov dr0, {0}", "mov dr3, {0}", "mov dr7, {1}", in(reg) nowhere, in(reg) dr7::DISABLED | live);
        }
        let said = by_enter(host);
        // SAFETY: no breakpoint is enabled by these values.
        unsafe {
            asm!("mov dr7, {1}", "mov dr0, {0}", "mov dr3, {0}", in(reg) 0_u64, in(reg) dr7::DISABLED);
        }
        expect("a breakpoint of the host's", said, State::DebugRegisters)?;
    }

    what_the_host_has_left(host)?;

    // SAFETY: every 64-bit CPU has the MSR; these bits have no effect without TF.
    unsafe { debugctl_msr().write(BTF_AND_LBR) };
    // SAFETY: every 64-bit CPU has the MSR. An emulator may have none of its bits.
    let of_the_host = unsafe { debugctl_msr().read() };
    let mut rng = fastrand::Rng::with_seed(57);
    let mut setup = setup(host, &mut rng, Mode::Umod, &[JUMP, PROBE].concat());
    setup.regs.eflags = RFlags::GUEST_FIXED.bits() | RFlags::TF.bits();
    // A jump under TF traps with and without BTF; BTF would hide the trap of the NOP.
    // SAFETY: `noting_call` does what `checked_call` does.
    let outcome = unsafe { host.run_by(&setup, noting_call) };
    // SAFETY: every 64-bit CPU has the MSR; reading it changes nothing.
    let after = unsafe { debugctl_msr().read() };
    // SAFETY: every 64-bit CPU has the MSR, and takes 0.
    unsafe { debugctl_msr().write(0) };
    let outcome = outcome.map_err(|why| format!("{why:?}"))?;
    let seen = DEBUGCTL.load(Ordering::Relaxed);
    if outcome.exit != Expected::SINGLE_STEP || seen != 0 || after != of_the_host {
        return Err(format!(
            "{:?}; DEBUGCTL was {seen:#x} for the guest and {after:#x} afterwards, not {of_the_host:#x}",
            outcome.exit
        ));
    }
    if DR7.load(Ordering::Relaxed) & dr7::ARMED != 0 || dr7() & dr7::ARMED != 0 {
        return Err("a breakpoint was enabled that nobody has set".into());
    }
    runs(host)?;
    Ok(4)
}

/// DR0 to DR3 have addresses of the host's, disabled, and DR6 has causes of the host's, among them
/// those that a clear bit reports. A guest's #DB reports only its own causes, whether the guest has
/// breakpoints or not, and the host has its addresses afterwards.
fn what_the_host_has_left(host: &mut BareMetal<'_>) -> Result<(), String> {
    /// The causes are: an access to a debug register, a task switch, and four matches. The bits
    /// that the hardware keeps set are clear.
    const STALE: u64 = 1 << 15 | 1 << 13 | 0b1111;
    let mine = [place::UMOD_CODE, place::UMOD_CODE + 2, HIGH_BASE, 8];
    let no_debug = host.debug().clone();
    for debug in [None, Some(no_debug)] {
        let mut stepped = guest(host, JUMP);
        stepped.regs.eflags |= RFlags::TF.bits();
        let has = debug.is_some();
        stepped.debug = debug;
        set_addresses(mine, STALE);
        let ended = host.cpu_mut().enter(&mut stepped);
        let left = addresses();
        set_addresses([0; 4], DebugCauses::DR6_CLEAR);
        match ended {
            Ok(exit) if exit == Expected::SINGLE_STEP && left == mine => {}
            other => {
                return Err(format!(
                    "with breakpoints: {has}; {other:?}, {left:x?}, not {mine:x?}"
                ));
            }
        }
    }
    Ok(())
}
