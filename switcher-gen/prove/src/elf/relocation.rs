//! Relocations: which bytes each kind changes, and with what.

use std::ops::Range;

use object::elf::{
    R_X86_64_8, R_X86_64_16, R_X86_64_32, R_X86_64_32S, R_X86_64_64, R_X86_64_DTPMOD64,
    R_X86_64_DTPOFF32, R_X86_64_DTPOFF64, R_X86_64_GLOB_DAT, R_X86_64_GOT32, R_X86_64_GOT64,
    R_X86_64_GOTOFF64, R_X86_64_GOTPC32, R_X86_64_GOTPC32_TLSDESC, R_X86_64_GOTPC64,
    R_X86_64_GOTPCREL, R_X86_64_GOTPCREL64, R_X86_64_GOTPCRELX, R_X86_64_GOTPLT64,
    R_X86_64_GOTTPOFF, R_X86_64_IRELATIVE, R_X86_64_JUMP_SLOT, R_X86_64_NONE, R_X86_64_PC8,
    R_X86_64_PC16, R_X86_64_PC32, R_X86_64_PC64, R_X86_64_PLT32, R_X86_64_PLTOFF64,
    R_X86_64_RELATIVE, R_X86_64_RELATIVE64, R_X86_64_REX_GOTPCRELX, R_X86_64_SIZE32,
    R_X86_64_SIZE64, R_X86_64_TLSDESC, R_X86_64_TLSDESC_CALL, R_X86_64_TLSGD, R_X86_64_TLSLD,
    R_X86_64_TPOFF32, R_X86_64_TPOFF64, RelocationType,
};

/// A relocation of an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relocation {
    /// Bytes from the start of the section.
    pub(super) offset: u64,
    pub(super) kind: RelocationType,
    /// Number of the symbol, or 0.
    pub(super) symbol: usize,
    /// The addend, unless it is in the code.
    pub(super) addend: Option<i64>,
}

impl Relocation {
    /// Whether what it stores is a distance.
    pub(super) fn is_relative(&self) -> bool {
        Form::of(self.kind).is_some_and(|form| form.relative)
    }

    /// The bytes that change, from the start of the section.
    pub(super) fn range(&self) -> Range<u64> {
        let (before, width) = span(self.kind);
        self.offset.saturating_sub(before)..self.offset.saturating_add(width)
    }
}

/// How far away from its place a relocation of an unknown kind may change something. No known kind
/// changes anything so far away.
pub(super) const FAR: u64 = 64;

/// How many bytes in front of its place, and from there on, a relocation changes that a linker or a
/// loader applies. Some let a linker rewrite the instruction that they are in, or several.
pub(super) fn span(kind: RelocationType) -> (u64, u64) {
    if let Some(form) = Form::of(kind) {
        return (0, form.width as u64);
    }
    match kind {
        R_X86_64_NONE => (0, 0),
        R_X86_64_8 => (0, 1),
        R_X86_64_16 | R_X86_64_TLSDESC_CALL => (0, 2),
        R_X86_64_GOT32 | R_X86_64_GOTPCREL | R_X86_64_DTPOFF32 | R_X86_64_TPOFF32
        | R_X86_64_GOTPC32 | R_X86_64_SIZE32 => (0, 4),
        R_X86_64_GLOB_DAT | R_X86_64_JUMP_SLOT | R_X86_64_RELATIVE | R_X86_64_DTPMOD64
        | R_X86_64_DTPOFF64 | R_X86_64_TPOFF64 | R_X86_64_GOTOFF64 | R_X86_64_GOT64
        | R_X86_64_GOTPCREL64 | R_X86_64_GOTPC64 | R_X86_64_GOTPLT64 | R_X86_64_PLTOFF64
        | R_X86_64_SIZE64 | R_X86_64_IRELATIVE | R_X86_64_RELATIVE64 => (0, 8),
        // A pointer to a function, and its argument.
        R_X86_64_TLSDESC => (0, 16),
        R_X86_64_GOTPCRELX => (2, 4),
        R_X86_64_REX_GOTPCRELX | R_X86_64_GOTTPOFF | R_X86_64_GOTPC32_TLSDESC => (3, 4),
        // LEA and the call of __tls_get_addr after it.
        R_X86_64_TLSGD | R_X86_64_TLSLD => (4, 12),
        _ => (FAR, FAR),
    }
}

/// What a relocation stores: the System V psABI's table, as far as it is about direct references.
pub(super) struct Form {
    /// Bytes of the field.
    pub(super) width: usize,
    /// Whether the address of the field is subtracted.
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
