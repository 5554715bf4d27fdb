//! 32-bit code of a guest that was entered by SYSRET.

use alloc::format;

use hw_cases::{Expected, World, place};
use switcher_runtime::Mode;
use switcher_runtime::switcher_gen::arch::{RFlags, Vendor};

use crate::bench::{Ended, HostCase};
use crate::programs::{PROBE, SYSCALL};
use crate::setup::{check, setup};
use crate::world::{BareMetal, STACK32};

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/a_push_works_in_32_bit_code_after_sysret",
    shown: "SS has the attributes of a flat stack after SYSRET.",
    rows: &[18],
    cpus: 1,
    needs: &[],
    run: |bench| push_in_32_bits(bench.world()?),
}];

/// After an exit by an event, which on AMD leaves a null SS in ring 0, the guest is entered by SYSRET
/// and goes to 32-bit code, whose pushes need SS's attributes (spec/hazards.md, row 18).
fn push_in_32_bits(world: &mut BareMetal<'_>) -> Ended {
    /// MOV DWORD [RSP], TEXT32; MOV WORD [RSP+4], user32_cs; JMP FAR DWORD [RSP].
    const TO_32_BITS: &[u8] =
        &[0xC7, 0x04, 0x24, 0, 0, 0, 0xC0, 0x66, 0xC7, 0x44, 0x24, 0x04, 0x23, 0, 0xFF, 0x2C, 0x24];
    /// A page fault's error code.
    const USER_WRITE: u32 = 6;
    /// PUSH EAX; UD2.
    const PUSH: &[u8] = &[0x50, 0x0F, 0x0B];
    let platform = world.platform();
    let cs = u64::from(platform.selectors.user32_cs());
    if cs != u64::from(TO_32_BITS[12]) || place::TEXT32 != 0xC000_0000 {
        return Err("the guest's program is for other places".into());
    }
    let mut rng = fastrand::Rng::with_seed(18);
    let mut entered = 0;
    for round in 0..20 {
        for by_eretu in [false, true] {
            // The exit by an event.
            let first = setup(world, &mut rng, Mode::Umod, PROBE);
            check(world, &first, &Expected::unchanged(&first, Expected::UD))?;
            // The entry, straight to umod or to smod, whose ERETU returns by SYSRET as well.
            let flags = RFlags::GUEST_FIXED.bits();
            let mut setup = setup(world, &mut rng, Mode::Umod, TO_32_BITS)
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
            expected.regs.cs = cs;
            expected.regs.rip = place::TEXT32 + 1;
            expected.regs.rsp = STACK32 + 0x800 - 4;
            let outcome = world.run(&setup).map_err(|why| format!("{why:?}"))?;
            // Bochs, 3.0 too, keeps SS's attributes as AMD's SYSRET does, on Intel's models too. Nothing
            // reloads SS there, and the one that an event leaves has stacks of 16 bits.
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
