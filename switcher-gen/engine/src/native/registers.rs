//! The registers of what a signal interrupted: read from and written to its context.

use std::ffi::c_int;

use switcher_gen::arch::RFlags;
use switcher_gen::layout::{IretFrame, PtRegs};

/// General registers by their number in an instruction.
const BY_NUMBER: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// The registers of whatever a signal interrupted.
pub(super) struct Regs<'a>(&'a mut [libc::greg_t; 23]);

impl<'a> Regs<'a> {
    pub(super) const fn new(registers: &'a mut [libc::greg_t; 23]) -> Self {
        Self(registers)
    }

    pub(super) const fn get(&self, register: c_int) -> u64 {
        self.0[register as usize].cast_unsigned()
    }

    pub(super) const fn set(&mut self, register: c_int, value: u64) {
        self.0[register as usize] = value.cast_signed();
    }

    /// The general registers in the order of their numbers.
    pub(super) fn by_number(&self) -> [u64; 16] {
        BY_NUMBER.map(|register| self.get(register))
    }

    pub(super) const fn eflags(&self) -> u64 {
        self.get(libc::REG_EFL)
    }

    pub(super) const fn rip(&self) -> u64 {
        self.get(libc::REG_RIP)
    }

    /// Goes on at `rip` with `eflags`; with TF if `step` and only then.
    pub(super) const fn go_on(&mut self, rip: u64, eflags: u64, step: bool) {
        let tf = RFlags::TF.bits();
        self.set(libc::REG_RIP, rip);
        self.set(libc::REG_EFL, if step { eflags | tf } else { eflags & !tf });
    }

    /// The exception's vector, where a signal stands for one.
    pub(super) const fn vector(&self) -> u32 {
        self.get(libc::REG_TRAPNO) as u32
    }

    /// CS and SS.
    const fn selectors(&self) -> (u64, u64) {
        let packed = self.get(libc::REG_CSGSFS);
        (packed & 0xFFFF, packed >> 48)
    }

    pub(super) const fn set_selectors(&mut self, cs: u64, ss: u64) {
        let middle = self.get(libc::REG_CSGSFS) & 0x0000_FFFF_FFFF_0000;
        self.set(libc::REG_CSGSFS, (cs & 0xFFFF) | middle | (ss & 0xFFFF) << 48);
    }

    /// As an exit frame without the tail that the CPU pushes.
    pub(super) fn general(&self) -> PtRegs {
        PtRegs {
            r15: self.get(libc::REG_R15),
            r14: self.get(libc::REG_R14),
            r13: self.get(libc::REG_R13),
            r12: self.get(libc::REG_R12),
            rbp: self.get(libc::REG_RBP),
            rbx: self.get(libc::REG_RBX),
            r11: self.get(libc::REG_R11),
            r10: self.get(libc::REG_R10),
            r9: self.get(libc::REG_R9),
            r8: self.get(libc::REG_R8),
            rax: self.get(libc::REG_RAX),
            rcx: self.get(libc::REG_RCX),
            rdx: self.get(libc::REG_RDX),
            rsi: self.get(libc::REG_RSI),
            rdi: self.get(libc::REG_RDI),
            ..PtRegs::default()
        }
    }

    /// What the CPU would push for an event here.
    pub(super) fn iret_frame(&self) -> IretFrame {
        let (cs, ss) = self.selectors();
        let (rip, eflags, rsp) = (self.rip(), self.eflags(), self.get(libc::REG_RSP));
        IretFrame { rip, cs, eflags, rsp, ss }
    }
}
