//! Random operands, the same on every run.

use switcher_engine::fuzz::scenario::Random;
use switcher_gen::layout::PtRegs;

/// Interesting numbers more often than others.
pub fn operand(random: &mut Random) -> u64 {
    const NASTY: [u64; 16] = [
        0,
        1,
        2,
        0x7F,
        0x80,
        0xFF,
        0x7FFF,
        0x8000,
        0xFFFF,
        0x7FFF_FFFF,
        0x8000_0000,
        0xFFFF_FFFF,
        1 << 32,
        u64::MAX >> 1,
        1 << 63,
        u64::MAX,
    ];
    match random.below(3) {
        0 => NASTY[random.below(16) as usize],
        1 => NASTY[random.below(16) as usize].wrapping_add(random.below(5)).wrapping_sub(2),
        _ => random.next(),
    }
}

/// Operands in all registers, with what forms take for pointers and an index into a page at `data`.
#[must_use]
pub fn operands(random: &mut Random, data: u64) -> PtRegs {
    let mut any = || operand(random);
    PtRegs {
        rax: any(),
        rcx: any(),
        rdx: any(),
        rbx: any(),
        rbp: any(),
        r8: any(),
        r9: any(),
        r10: any(),
        r11: any(),
        r12: any(),
        r13: any(),
        r14: any(),
        r15: any(),
        // A pointer, an index, a stack.
        rdi: data + 0x100,
        rsi: random.below(16) * 8,
        rsp: data + 0x800,
        ..random.registers()
    }
}
