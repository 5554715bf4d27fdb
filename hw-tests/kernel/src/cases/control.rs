//! Control bits with which no guest may run.

use alloc::format;
use alloc::string::String;
use core::arch::{asm, global_asm};

use hw_platform::memory::{self, Frame};
use hw_platform::segments;
use raw_cpuid::native_cpuid::cpuid_count;
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::{cr0, cr4, vector};
use switcher_runtime::{DescriptorTablePointer, Guest, State, StateError};

use crate::bench::{Ended, HostCase};
use crate::case_host::BareMetal;
use crate::programs::PROBE;
use crate::refusal::{by_enter, by_prepare, expect, guest, refused, runs};
use crate::registers::{cr0, cr4};

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/control_bits_that_no_guest_may_run_with_are_refused",
    shown: "No guest is entered with control bits that ring 0 would fault under, or that give it more than it may have.",
    rows: &[Hazard::FpuControl],
    cpus: 1,
    needs: &[],
    run: |bench| control_bits(bench.host()?),
}];

global_asm!(
    r#"
    .text
    // The handler of #NM and #UD in this kernel's own code, which is compiled with vector
    // registers: it gives the FPU to that code, as hosts do that switch it lazily, and resumes it.
    .global hw_kernel_take_fpu
hw_kernel_take_fpu:
    push    rax
    mov     rax, cr0
    and     eax, {own}
    mov     cr0, rax
    pop     rax
    iretq
"#,
    own = const !(cr0::EM | cr0::TS) as u32,
);

unsafe extern "C" {
    static hw_kernel_take_fpu: u8;
}

/// Runs `then` under a copy of the kernel's IDT whose handlers of #UD and #NM enable the FPU.
fn with_lazy_fpu<T>(then: impl FnOnce() -> T) -> Result<T, String> {
    /// The stack of #DB, which does not occur: code of this kernel's has a red zone, so the handler
    /// must not use its stack.
    const IST: u64 = 3 << 32;
    let own = DescriptorTablePointer::idtr();
    let mut page = Frame::new().map_err(|why| format!("an IDT: {why}"))?;
    let handler = (&raw const hw_kernel_take_fpu).addr() as u64;
    for vector in 0..=u8::MAX {
        let entry = core::ptr::with_exposed_provenance::<[u64; 2]>(
            own.base() as usize + 16 * usize::from(vector),
        );
        // SAFETY: the entry is in the IDT that is loaded, a static with 256 gates.
        let mut gate = unsafe { entry.read_volatile() };
        if matches!(vector, vector::UD | vector::NM) {
            let attributes = gate[0] & 0x0000_FF00_FFFF_0000;
            gate[0] = attributes | IST | handler & 0xFFFF | (handler >> 16 & 0xFFFF) << 48;
            gate[1] = handler >> 32;
        }
        page.write(16 * usize::from(vector), &gate[0].to_le_bytes());
        page.write(16 * usize::from(vector) + 8, &gate[1].to_le_bytes());
    }
    let copy = DescriptorTablePointer::new(page.address(), 4095, memory::paging());
    // SAFETY: the table is the kernel's own except for two gates, whose handler changes only what
    // it says.
    unsafe { copy.map_err(|why| format!("{why}"))?.load_idt() };
    let done = then();
    // SAFETY: this is the kernel's own IDT.
    unsafe { own.load_idt() };
    Ok(done)
}

/// Control bits under which ring 0 would fault with a guest's state loaded, or a guest could do
/// what it must not.
fn control_bits(host: &mut BareMetal<'_>) -> Ended {
    const NE_AND_WP: [(&str, u64); 2] = [("NE", cr0::NE), ("WP", cr0::WP)];
    let mut guest = guest(host, PROBE);
    for (what, bit) in [("CR0.TS", cr0::TS), ("CR0.EM", cr0::EM)] {
        let said = with_lazy_fpu(|| refused_with_cr0(host, &mut guest, cr0() | bit))?;
        expect(what, said, State::Cr0)?;
    }
    for (what, bit) in NE_AND_WP {
        let own = cr0();
        // Where CR4.CET is set, the CPU itself does not take a CR0 without WP (Intel SDM vol. 3,
        // 2.5).
        if what == "WP" && cr4() & cr4::CET != 0 {
            continue;
        }
        // SAFETY: no FPU error is pending, and nothing writes to a page that is read-only.
        unsafe { asm!("mov cr0, {}", in(reg) own & !bit, options(nostack, preserves_flags)) };
        let (prepare, enter) = (by_prepare(host), by_enter(host));
        // SAFETY: this is the value that CR0 had before.
        unsafe { asm!("mov cr0, {}", in(reg) own, options(nostack, preserves_flags)) };
        expect(what, prepare, State::Cr0)?;
        expect(what, enter, State::Cr0)?;
    }
    // The bits are Key Locker, and masking of the upper half's addresses, where the CPU has them.
    let (leaf, more) = (cpuid_count(7, 0), cpuid_count(7, 1));
    let exists = |word: u32, bit: u32| word >> bit & 1 != 0;
    let mut forbidden =
        alloc::vec![("CR4.PVI", cr4::PVI, State::Cr4User), ("CR4.PCE", cr4::PCE, State::Cr4User)];
    if exists(leaf.ecx, 23) {
        forbidden.push(("CR4.KL", cr4::KL, State::Cr4User));
    }
    if leaf.eax >= 1 && exists(more.eax, 26) {
        forbidden.push(("CR4.LAM_SUP", cr4::LAM_SUP, State::Cr4Paging));
    }
    for (what, bit, state) in forbidden {
        let own = cr4();
        // SAFETY: the bits affect only CPL 3, or addresses that nothing here uses.
        unsafe { asm!("mov cr4, {}", in(reg) own | bit, options(nostack, preserves_flags)) };
        let said = by_enter(host);
        // SAFETY: this is the value that CR4 had before.
        unsafe { asm!("mov cr4, {}", in(reg) own, options(nostack, preserves_flags)) };
        expect(what, said, state)?;
    }
    // The bits that the host had when the CPU was prepared must be the same when a guest is
    // entered.
    for (bit, state) in [
        (cr4::SMEP, State::Cr4Paging),
        (cr4::SMAP, State::Cr4Paging),
        (cr4::UMIP, State::DescriptorRegisters),
    ] {
        let own = cr4();
        if own & bit == 0 {
            continue;
        }
        // SAFETY: the bit is SMEP, SMAP or UMIP, and the kernel runs without it as well.
        unsafe { asm!("mov cr4, {}", in(reg) own & !bit, options(nostack, preserves_flags)) };
        let said = by_enter(host);
        // SAFETY: this is the value that CR4 had before.
        unsafe { asm!("mov cr4, {}", in(reg) own, options(nostack, preserves_flags)) };
        expect("CR4 without a bit", said, state)?;
    }
    // A stack selector may be one of another privilege level: a host that builds frames itself may
    // make this mistake.
    for ss in [0, u64::from(segments::KERNEL_DS)] {
        guest.regs.ss = ss;
        expect("SS", refused(host, &mut guest), State::GeneralRegisters)?;
    }
    runs(host)?;
    Ok(1)
}

/// Calls `enter` under another CR0, and returns its objection. `enter` judges the value that it
/// finds.
#[inline(never)]
fn refused_with_cr0(
    host: &mut BareMetal<'_>,
    guest: &mut Guest,
    value: u64,
) -> Result<StateError, String> {
    let own = cr0();
    // SAFETY: the value differs in TS or EM, and `with_lazy_fpu` handles the faults.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) };
    let said = refused(host, guest);
    // SAFETY: this is the value that CR0 had before.
    unsafe { asm!("mov cr0, {}", in(reg) own, options(nostack, preserves_flags)) };
    said
}
