//! What Linux takes an instruction for when it looks at one: it goes by the first byte of the
//! opcode, whatever the prefixes make of it (arch/x86/kernel/alternative.c, `insn_is_nop`).

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use switcher_model::Program;

/// The first two bytes from the opcode on, behind all prefixes. An instruction with one of the
/// longer prefixes has its own opcodes, and Linux does not tell them apart.
fn opcode(bytes: &[u8]) -> Option<(u8, u8)> {
    const LEGACY: [u8; 11] = [0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3];
    let mut at = bytes.iter().take_while(|byte| LEGACY.contains(byte)).count();
    at += match *bytes.get(at)? {
        // REX; VEX and REX2 of two bytes; VEX and XOP of three; EVEX of four.
        0x40..=0x4F => 1,
        0xC5 | 0xD5 => 2,
        0xC4 => 3,
        0x8F if bytes.get(at + 1).is_some_and(|next| next & 0x38 != 0) => 3,
        0x62 => 4,
        _ => 0,
    };
    Some((*bytes.get(at)?, bytes.get(at + 1).copied().unwrap_or_default()))
}

/// Whether Linux may take an instruction for a NOP although it is not known to do nothing.
pub(super) fn is_taken_for_nop(bytes: &[u8], i: &Instruction) -> bool {
    /// PAUSE, which Linux leaves as it is.
    const PAUSE: [u8; 2] = [0xF3, 0x90];
    let looks_so = matches!(opcode(bytes), Some((0x90, _) | (0x0F, 0x1F)));
    looks_so && i.mnemonic() != Mnemonic::Nop && bytes != PAUSE
}

/// Whether Linux, whose decoder knows fewer instructions and other forms of some, reads one at `at`
/// as it is executed (arch/x86/lib/insn.c). So it is with what proofs know, as assemblers write it,
/// and with what traps or does nothing. A control or debug register is moved whatever the upper two
/// bits of ModRM are, of which Linux makes the length (Intel SDM vol. 2, MOV).
pub(super) fn is_read_alike(bytes: &[u8], at: u64) -> bool {
    const REGISTERS: u8 = 0b11 << 6;
    let moves_control = matches!(opcode(bytes), Some((0x0F, 0x20..=0x23)));
    if moves_control && bytes.last().is_none_or(|modrm| modrm & REGISTERS != REGISTERS) {
        return false;
    }
    let i = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).decode();
    // UD0, which has a ModRM to CPUs and none to Linux, is not among them, nor UD1.
    let is_usual = matches!(i.mnemonic(), Mnemonic::Nop | Mnemonic::Int3 | Mnemonic::Ud2);
    is_usual || matches!(Program::new(at, bytes.to_vec()).at(at), Some(Ok(_)))
}

/// Whether an instruction is a jump by a distance of four bytes.
pub(super) fn is_long_jump(bytes: &[u8]) -> bool {
    matches!(opcode(bytes), Some((0xE9, _)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_reads_otherwise_is_known() {
        // MOV CR3 with what looks like a displacement; XOP; UD0; EXTRQ; a VEX instruction.
        for bytes in [
            &[0x0F, 0x22, 0x98][..],
            &[0x8F, 0xE8, 0x78, 0xA2, 0xC1, 0x10],
            &[0x0F, 0xFF, 0x80, 0, 0, 0, 0],
            &[0x66, 0x0F, 0x78, 0xC0, 1, 2],
            &[0xC5, 0xF8, 0x77],
        ] {
            assert!(!is_read_alike(bytes, 0x1000), "{bytes:x?}");
        }
        // MOV CR3, RAX; MOV RAX, RSP; a NOP; a jump; LFENCE; UD2; INT3.
        for bytes in [
            &[0x0F, 0x22, 0xD8][..],
            &[0x48, 0x89, 0xE0],
            &[0x66, 0x66, 0x0F, 0x1F, 0x84, 0, 0, 0, 0, 0],
            &[0xEB, 0x03],
            &[0xE9, 0, 0, 0, 0],
            &[0x0F, 0xAE, 0xE8],
            &[0x0F, 0x0B],
            &[0xCC],
        ] {
            assert!(is_read_alike(bytes, 0x1000), "{bytes:x?}");
        }
    }

    #[test]
    fn what_linux_takes_for_a_nop_is_known_by_its_opcode() {
        let is = |bytes: &[u8]| {
            let i = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
            assert!(!i.is_invalid(), "{bytes:x?}");
            is_taken_for_nop(bytes, &i)
        };
        // XCHG of R8 with and without a width; PAUSE with another prefix in front; KMOVW.
        for bytes in
            [&[0x49, 0x90][..], &[0x41, 0x90], &[0x66, 0xF3, 0x90], &[0xC5, 0xF8, 0x90, 0xC1]]
        {
            assert!(is(bytes), "{bytes:x?}");
        }
        // NOPs, PAUSE, XCHG of another opcode, and an operand that looks like one.
        for bytes in [
            &[0x90][..],
            &[0x66, 0x90],
            &[0x48, 0x90],
            &[0x0F, 0x1F, 0x00],
            &[0xF3, 0x90],
            &[0x4C, 0x87, 0xC0],
            &[0xB0, 0x90],
        ] {
            assert!(!is(bytes), "{bytes:x?}");
        }
        assert!(is_long_jump(&[0xE9, 0, 0, 0, 0]) && !is_long_jump(&[0xEB, 0]));
    }
}
