//! Immediates: how a constant gets into an instruction.

/// Turns a 64-bit mask into the sign-extended 32-bit immediate of an instruction.
///
/// # Panics
/// At compile time, for a constant mask that no such immediate can express.
#[must_use]
pub const fn imm32(mask: u64) -> i32 {
    let imm = mask as u32 as i32;
    assert!(imm as i64 as u64 == mask, "this mask is not a sign-extended 32-bit immediate");
    imm
}

#[cfg(test)]
mod tests {
    use super::imm32;

    #[test]
    fn what_sign_extension_gives_back_is_an_immediate() {
        assert_eq!(imm32(0x202), 0x202);
        assert_eq!(imm32(!2), -3);
    }

    #[test]
    #[should_panic(expected = "not a sign-extended 32-bit immediate")]
    fn bit_31_alone_is_none() {
        let _ = imm32(1 << 31);
    }
}
