//! What Linux takes an instruction for when it looks at one: it goes by the first byte of the
//! opcode, whatever the prefixes make of it (arch/x86/kernel/alternative.c, `insn_is_nop`).

use iced_x86::{Instruction, Mnemonic};

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

/// Whether an instruction is a jump by a distance of four bytes.
pub(super) fn is_long_jump(bytes: &[u8]) -> bool {
    matches!(opcode(bytes), Some((0xE9, _)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

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
