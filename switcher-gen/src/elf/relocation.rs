//! Relocations: which bytes each kind changes, and with what.

use object::elf::{
    R_X86_64_32, R_X86_64_32S, R_X86_64_64, R_X86_64_PC8, R_X86_64_PC16, R_X86_64_PC32,
    R_X86_64_PC64, R_X86_64_PLT32, RelocationType,
};

/// A relocation of an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relocation {
    /// Bytes from the start of the section.
    pub(super) offset: u64,
    pub(super) kind: RelocationType,
    /// Number of the symbol, or 0.
    pub(super) symbol: usize,
    /// Unless it is in the code.
    pub(super) addend: Option<i64>,
}

impl Relocation {
    /// Whether what it stores is a distance.
    pub(super) fn is_relative(&self) -> bool {
        Form::of(self.kind).is_some_and(|form| form.relative)
    }

    /// As many bytes as it changes; of a kind that is not known, as many as any can.
    fn width(&self) -> u64 {
        Form::of(self.kind).map_or(8, |form| form.width as u64)
    }

    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.width())
    }
}

/// What a relocation stores: the System V psABI's table, as far as it is about direct references.
pub(super) struct Form {
    /// Bytes of the field.
    pub(super) width: usize,
    /// Minus the address of the field.
    pub(super) relative: bool,
    /// Whether the CPU extends the field by its sign.
    pub(super) signed: bool,
}

impl Form {
    pub(super) fn of(kind: RelocationType) -> Option<Self> {
        let (width, relative, signed) = match kind {
            R_X86_64_64 => (8, false, false),
            R_X86_64_32 => (4, false, false),
            R_X86_64_32S => (4, false, true),
            R_X86_64_PC64 => (8, true, true),
            // A call through the PLT of a function that is here goes to the function.
            R_X86_64_PC32 | R_X86_64_PLT32 => (4, true, true),
            R_X86_64_PC16 => (2, true, true),
            R_X86_64_PC8 => (1, true, true),
            _ => return None,
        };
        Some(Self { width, relative, signed })
    }

    pub(super) const fn bits(&self) -> usize {
        self.width * 8
    }

    /// Whether the CPU gets `value` back from the field.
    pub(super) const fn holds(&self, value: u64) -> bool {
        let unused = u64::BITS as usize - self.bits();
        let shifted = value << unused;
        let read =
            if self.signed { (shifted.cast_signed() >> unused) as u64 } else { shifted >> unused };
        read == value
    }
}
