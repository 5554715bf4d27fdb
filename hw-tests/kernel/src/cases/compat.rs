//! 32-bit code of a guest that is entered by SYSRET.

use alloc::format;

use hw_cases::{CaseHost, Expected, place};
use switcher_gen::asm::Program;
use switcher_gen::program;
use switcher_macros::asm;
use switcher_runtime::Mode;
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::{RFlags, Vendor};
use switcher_runtime::switcher_gen::layout::AsmLayout;

use crate::bench::{Ended, HostCase};
use crate::case_host::{BareMetal, STACK32};
use crate::programs::{PROBE, SYSCALL};
use crate::setup::{check, setup};

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/a_push_works_in_32_bit_code_after_sysret",
    shown: "SS has the attributes of a flat stack after SYSRET.",
    rows: &[Hazard::SysretSs],
    cpus: 1,
    needs: &[],
    run: |bench| push_in_32_bits(bench.host()?),
}];

/// The operand that a far jump reads from memory.
#[derive(AsmLayout)]
#[repr(C)]
struct FarPointer {
    offset: u32,
    selector: u16,
    _reserved: u16,
}

/// After an exit by an event, which on AMD leaves a null SS in ring 0, the guest is entered by
/// SYSRET and goes to 32-bit code, whose pushes need SS's attributes (spec/hazards.md, row 18).
fn push_in_32_bits(host: &mut BareMetal<'_>) -> Ended {
    /// The error code of the page fault: a write from CPL 3.
    const USER_WRITE: u32 = 6;
    /// The program is PUSH EAX; UD2 in 32-bit mode.
    const PUSH: &[u8] = program!(; push rax ; ud2);
    let platform = host.platform();
    let cs = platform.selectors.user32_cs();
    let mut to_32_bits = Program::new();
    asm!(to_32_bits
        ; mov DWORD [rsp], place::TEXT32 as i32
        ; mov WORD [BYTE rsp + FarPointer::selector], cs.cast_signed()
        // This is JMP FAR DWORD [RSP], which dynasm has in 32-bit mode only.
        ; .bytes &[0xFF, 0x2C, 0x24]
    );
    let mut rng = fastrand::Rng::with_seed(18);
    let mut entered = 0;
    for round in 0..20 {
        for by_eretu in [false, true] {
            // This run ends with an exit by an event.
            let first = setup(host, &mut rng, Mode::Umod, PROBE);
            check(host, &first, &Expected::unchanged(&first, Expected::UD))?;
            // This run is entered in umod, or in smod, whose ERETU returns by SYSRET as well.
            let flags = RFlags::GUEST_FIXED.bits();
            let mut setup = setup(host, &mut rng, Mode::Umod, to_32_bits.bytes())
                .with(Mode::Umod, place::TEXT32, PUSH)
                .with(Mode::Smod, place::ERETU, SYSCALL);
            let regs = &mut setup.regs;
            // Registers beyond 32 bits are not defined in 32-bit mode.
            for register in [
                &mut regs.rax,
                &mut regs.rbx,
                &mut regs.rdx,
                &mut regs.rsi,
                &mut regs.rdi,
                &mut regs.rbp,
            ] {
                *register &= u64::from(u32::MAX);
            }
            (regs.rcx, regs.r11, regs.eflags) = (regs.rip, flags, flags);
            regs.rsp = STACK32 + 0x800;
            let pvcs = &mut setup.pvcs;
            (pvcs.user_cs, pvcs.user_ss) =
                (platform.selectors.user_cs(), platform.selectors.user_ds());
            (pvcs.rip, pvcs.rcx, pvcs.rsp) = (place::UMOD_CODE, place::UMOD_CODE, STACK32 + 0x800);
            (pvcs.r11, pvcs.eflags) = (flags, flags as u32);
            if by_eretu {
                setup.mode = Mode::Smod;
                setup.regs.rip = place::ERETU;
                setup.regs.rcx = place::ERETU;
            }
            let mut expected = match by_eretu {
                true => Expected::to_umod(&setup, &platform),
                false => Expected::unchanged(&setup, Expected::UD),
            };
            expected.regs.cs = cs.into();
            expected.regs.rip = place::TEXT32 + 1;
            expected.regs.rsp = STACK32 + 0x800 - 4;
            let outcome = host.run(&setup).map_err(|why| format!("{why:?}"))?;
            // Bochs, 3.0 too, keeps SS's attributes as AMD's SYSRET does, on Intel's models too.
            // Nothing reloads SS there, and the SS that an event leaves has stacks of 16 bits.
            let in_16_bits = Expected::page_fault(USER_WRITE, (STACK32 + 0x800 - 4) & 0xFFFF);
            if platform.vendor == Vendor::Intel && outcome.exit == in_16_bits {
                expected.exit = in_16_bits;
                expected.regs.rip = place::TEXT32;
                expected.regs.rsp = STACK32 + 0x800;
            }
            expected
                .compare(&setup, &outcome)
                .map_err(|why| format!("round {round}, by ERETU: {by_eretu}: {why}"))?;
            entered += 2;
        }
    }
    Ok(entered)
}
