//! Numbers: the domain of the interpreter.

use std::cell::RefCell;
use std::collections::HashMap;

use super::domain::{Domain, Origin};

/// Numbers. What is undefined, and what a hostile guest writes, is zero unless it is told.
#[derive(Debug, Default)]
pub struct Concrete {
    /// Values of unknowns that come up on the way, by name.
    told: HashMap<String, u64>,
    /// How many of each kind have come up.
    count: RefCell<HashMap<String, u32>>,
    /// How far from where a program has it the code lies.
    slide: u64,
}

impl Concrete {
    /// Numbers, and the values of unknowns that come up on the way: a counterexample's.
    pub fn told(values: impl IntoIterator<Item = (String, u64)>) -> Self {
        let told: HashMap<_, _> = values.into_iter().collect();
        let slide = told.get(SLIDE).copied().unwrap_or_default();
        Self { told, count: RefCell::default(), slide }
    }

    /// The next unknown of this kind, of so many bits.
    fn next(&self, kind: impl FnOnce() -> String, bits: usize) -> u64 {
        if self.told.is_empty() {
            return 0;
        }
        let kind = kind();
        let mut count = self.count.borrow_mut();
        let number = count.entry(kind.clone()).or_default();
        // Terms call it so if there was one of the same name and another width before.
        let value = self.told.get(&format!("{kind}#{number}/{bits}"));
        let value = value.or_else(|| self.told.get(&format!("{kind}#{number}")));
        *number += 1;
        value.copied().unwrap_or_default()
    }
}

/// The unknown distance between code and where a program has it.
pub const SLIDE: &str = "code.slide";

impl Domain for Concrete {
    type Word = u64;
    type Bit = bool;
    type Cell = u8;

    #[inline]
    fn word(&self, value: u64) -> u64 {
        value
    }
    #[inline]
    fn code(&self, address: u64) -> u64 {
        address.wrapping_add(self.slide)
    }
    #[inline]
    fn code_at(&self, address: u64) -> Option<u64> {
        Some(address.wrapping_sub(self.slide))
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
    fn undefined(&self, what: &'static str, _of: &[u64]) -> bool {
        self.next(|| undefined_name(what), 1) & 1 != 0
    }
    fn adversary(&self, offset: usize, size: usize) -> u64 {
        self.next(|| adversary_name(offset), 8 * size)
    }
    fn anew(&self, what: &'static str, size: usize) -> u64 {
        self.next(|| what.to_owned(), 8 * size)
    }
    fn any_of(&self, what: &'static str, size: usize, _from: &[Origin]) -> u64 {
        self.next(|| what.to_owned(), 8 * size)
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

/// What unknowns of this kind are called, before they are numbered.
pub(super) fn undefined_name(what: &str) -> String {
    format!("undefined {what}")
}

/// What unknowns of this kind are called, before they are numbered.
pub(super) fn adversary_name(offset: usize) -> String {
    format!("pvcs[{offset:#x}]")
}
