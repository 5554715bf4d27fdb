//! The return to a guest (spec/switcher.md, "Return to the guest"): SYSRETQ or IRETQ, by the table
//! of [`ReturnMethod`](switcher_gen::ReturnMethod).

use super::{Guest, Host, Return, canonical};
use switcher_gen::{Operand, Why};
use switcher_model::Domain;

/// How a guest with these registers is returned to. Either way it ends up with all of them.
pub fn return_to_guest<D: Domain>(d: &D, host: &Host, guest: &Guest<D::Word>) -> Return {
    let needs = needs_of_sysretq(d, host, guest).map(|need| d.eq(need.given, need.own));
    let by_sysretq = needs.into_iter().fold(d.bit(true), |all, one| d.both(all, one));
    if d.decide(by_sysretq) { Return::Sysretq } else { Return::Iretq }
}

/// Something of a guest's that SYSRETQ must be able to give it.
#[derive(Clone, Copy, Debug)]
pub struct NeedOfSysretq<W> {
    /// What it would be a reason for IRETQ for.
    pub why: Why,
    /// What the guest gets by SYSRETQ.
    pub given: W,
    /// What is its own.
    pub own: W,
}

/// What SYSRETQ gives a guest, and what it should have: a return by SYSRETQ is right if all are
/// equal.
pub fn needs_of_sysretq<D: Domain>(
    d: &D,
    host: &Host,
    guest: &Guest<D::Word>,
) -> [NeedOfSysretq<D::Word>; 6] {
    Why::ALL.map(|why| {
        let [given, own] = why.given_and_own().map(|of| value(d, host, guest, of));
        NeedOfSysretq { why, given, own }
    })
}

fn value<D: Domain>(d: &D, host: &Host, guest: &Guest<D::Word>, of: Operand) -> D::Word {
    match of {
        Operand::UserCs => d.word(host.selectors.user_cs().into()),
        Operand::UserDs => d.word(host.selectors.user_ds().into()),
        Operand::Zero => d.word(0),
        Operand::Cs => guest.cs,
        Operand::Ss => guest.ss,
        Operand::Flags => guest.rflags,
        Operand::ResumeAndTrap => d.mask(guest.rflags, Operand::RESUME_AND_TRAP),
        Operand::Rip => guest.rip,
        Operand::CanonicalRip => canonical(d, host, guest.rip),
        Operand::Rcx => guest.registers.rcx,
        Operand::R11 => guest.registers.r11,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Registers, Return};
    use switcher_gen::ReturnMethod;
    use switcher_gen::arch::{PagingMode, Selectors};
    use switcher_gen::layout::{PtRegs, Revision};
    use switcher_model::Concrete;

    const ZERO: Registers<u64> = Registers {
        rax: 0,
        rbx: 0,
        rcx: 0,
        rdx: 0,
        rsi: 0,
        rdi: 0,
        rbp: 0,
        rsp: 0,
        r8: 0,
        r9: 0,
        r10: 0,
        r11: 0,
        r12: 0,
        r13: 0,
        r14: 0,
        r15: 0,
    };

    /// A host that asks by a frame, and the specification, which proofs compare code with, say the
    /// same.
    #[test]
    fn hosts_and_the_specification_choose_alike() {
        const RIPS: [u64; 4] = [0x40_0000, 1 << 47, 0xFFFF_8000_0000_0000, 1 << 57];
        const FLAGS: [u64; 4] = [0x202, 0x203, 0x302, 0x1_0202];
        let mut counts = [0_u32; 2];
        let d = Concrete::default();
        for paging in [PagingMode::FourLevel, PagingMode::FiveLevel] {
            let (selectors, revision) = (Selectors::DEFAULT, Revision::V2024);
            let host = Host { paging, selectors, revision, ibrs: false, pku: false };
            let (code, data) = (u64::from(selectors.user_cs()), u64::from(selectors.user_ds()));
            let all = |a: &[u64], b: &[u64]| -> Vec<(u64, u64)> {
                a.iter().flat_map(|a| b.iter().map(|b| (*a, *b))).collect()
            };
            for (cs, ss) in all(&[code, 0x23, 0], &[data, 0x2B | 1 << 16, 0]) {
                for (eflags, r11) in all(&FLAGS, &FLAGS) {
                    for (rip, rcx) in all(&RIPS, &RIPS) {
                        let regs = PtRegs { cs, ss, eflags, r11, rip, rcx, ..PtRegs::default() };
                        let registers = Registers { rcx, r11, ..ZERO };
                        let guest = Guest { registers, rflags: eflags, rip, cs, ss, gs_base: 0 };
                        let by = match ReturnMethod::of(&regs, selectors, paging) {
                            ReturnMethod::SysRet => Return::Sysretq,
                            ReturnMethod::IRet(_) => Return::Iretq,
                        };
                        assert_eq!(return_to_guest(&d, &host, &guest), by, "{regs:x?}");
                        counts[usize::from(by == Return::Sysretq)] += 1;
                    }
                }
            }
        }
        // With four levels two of the addresses are canonical, with five three.
        assert_eq!(counts, [2 * 9 * 16 * 16 - 10, 10]);
    }
}
