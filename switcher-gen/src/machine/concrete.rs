//! Numbers: the domain of the interpreter.

use core::cell::RefCell;

use super::domain::Domain;

/// Numbers. What is undefined is zero, and the adversary writes what it is told to.
#[derive(Debug, Default)]
pub struct Concrete {
    /// What the guest's other CPUs put where the next reads look, last read first.
    adversary: RefCell<Vec<u64>>,
}

impl Concrete {
    /// Numbers, and what successive reads of memory that a guest may write are to find; further
    /// reads find zero.
    #[must_use]
    pub fn with_adversary(mut reads: Vec<u64>) -> Self {
        reads.reverse();
        Self { adversary: RefCell::new(reads) }
    }
}

impl Domain for Concrete {
    type Word = u64;
    type Bit = bool;
    type Cell = u8;

    #[inline]
    fn word(&self, value: u64) -> u64 {
        value
    }
    #[inline]
    fn bit(&self, value: bool) -> bool {
        value
    }
    #[inline]
    fn add(&self, a: u64, b: u64) -> u64 {
        a.wrapping_add(b)
    }
    #[inline]
    fn sub(&self, a: u64, b: u64) -> u64 {
        a.wrapping_sub(b)
    }
    #[inline]
    fn and(&self, a: u64, b: u64) -> u64 {
        a & b
    }
    #[inline]
    fn or(&self, a: u64, b: u64) -> u64 {
        a | b
    }
    #[inline]
    fn xor(&self, a: u64, b: u64) -> u64 {
        a ^ b
    }
    #[inline]
    fn shl(&self, a: u64, by: u32) -> u64 {
        a << by
    }
    #[inline]
    fn shr(&self, a: u64, by: u32) -> u64 {
        a >> by
    }
    #[inline]
    fn sar(&self, a: u64, by: u32) -> u64 {
        (a.cast_signed() >> by).cast_unsigned()
    }
    #[inline]
    fn select(&self, condition: bool, a: u64, b: u64) -> u64 {
        if condition { a } else { b }
    }
    #[inline]
    fn eq(&self, a: u64, b: u64) -> bool {
        a == b
    }
    #[inline]
    fn lt(&self, a: u64, b: u64) -> bool {
        a < b
    }
    #[inline]
    fn test(&self, a: u64, index: u32) -> bool {
        a >> index & 1 != 0
    }
    #[inline]
    fn not(&self, a: bool) -> bool {
        !a
    }
    #[inline]
    fn both(&self, a: bool, b: bool) -> bool {
        a & b
    }
    #[inline]
    fn either(&self, a: bool, b: bool) -> bool {
        a | b
    }
    #[inline]
    fn decide(&self, condition: bool) -> bool {
        condition
    }
    #[inline]
    fn undefined(&self, _what: &'static str) -> bool {
        false
    }
    fn adversary(&self, _offset: usize, _size: usize) -> u64 {
        self.adversary.borrow_mut().pop().unwrap_or_default()
    }
    #[inline]
    fn known(&self, a: u64) -> Option<u64> {
        Some(a)
    }
    #[inline]
    fn load(&self, cells: &[u8]) -> u64 {
        let mut bytes = [0; 8];
        bytes[..cells.len()].copy_from_slice(cells);
        u64::from_le_bytes(bytes)
    }
    #[inline]
    fn store(&self, cells: &mut [u8], value: u64) {
        cells.copy_from_slice(&value.to_le_bytes()[..cells.len()]);
    }
    fn cells(&self, bytes: &[u8]) -> Vec<u8> {
        bytes.to_vec()
    }
}
