//! Test vectors: instructions, states to execute them from, and what must come of it.
//!
//! `hw-vectors` writes a table, the loader puts it into memory as a multiboot module, the kernel
//! executes it. A table is bytes; all numbers are little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | [`MAGIC`], whose last byte is the version |
//! | 4, then so many | the code, to be executed at [`CODE`] |
//! | 2, then so many texts | the known differences of this CPU |
//! | 2, then so many times | offset in the code (4), undefined flags (8), name (a text) |
//! | 4, then so many times | a vector |
//!
//! A text is its length (2) and UTF-8. A vector is
//!
//! | bytes | what |
//! |---|---|
//! | 2 | the index of its program |
//! | 1 | [`Platforms`] that it is for |
//! | 1 | [`Needs`] |
//! | 2 | the index of a known difference, or [`NONE`] |
//! | 8 each | the [`Registers`] before |
//! | 4, then 8 for each bit | which registers are different after, and what they are then |
//! | 1 | the exception's vector |
//! | 4 | its error code, or -1 |
//! | 2, then so many times | what has changed in the page at [`DATA`]: index of a word (2), word (8) |

use alloc::vec::Vec;
use core::fmt;

use bitflags::bitflags;
use switcher_gen::arch::{PagingMode, Vendor};

/// Opens a table. Its last byte is the version of the format.
pub const MAGIC: [u8; 8] = *b"SWVECT\0\x01";
/// Where the code of all programs is executed: in the kernel's high host range.
pub const CODE: u64 = 0xFFFF_FEFF_FFE0_0000;
/// The page that the programs use for data and stack.
pub const DATA: u64 = 0xFFFF_FEFF_FFD0_0000;
/// The size of that page in bytes.
pub const DATA_LEN: usize = 4096;
/// No known difference.
pub const NONE: u16 = u16::MAX;
/// The error code of an exception that has none.
pub const NO_ERROR: u32 = u32::MAX;

bitflags! {
    /// The kinds of CPU that a vector is for.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Platforms: u8 {
        /// Intel, 48-bit addresses.
        const INTEL_4LEVEL = 1 << 0;
        /// Intel, 57-bit addresses.
        const INTEL_LA57 = 1 << 1;
        /// AMD, 48-bit addresses.
        const AMD_4LEVEL = 1 << 2;
        /// AMD, 57-bit addresses.
        const AMD_LA57 = 1 << 3;
    }

    /// What a CPU must be, besides, for a vector to be executed.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Needs: u8 {
        /// It has SMAP, and so CLAC and STAC.
        const SMAP = 1 << 0;
        /// CR4.PCIDE is set, so that MOV to CR3 takes NOFLUSH.
        const PCID = 1 << 1;
        /// It cannot do five-level paging: one that can accepts 57-bit bases in any paging mode.
        const NO_LA57 = 1 << 2;
        /// It has protection keys, and so RDPKRU and WRPKRU.
        const PKU = 1 << 3;
    }
}

impl Platforms {
    /// The platform with this vendor and paging mode.
    #[must_use]
    pub const fn of(vendor: Vendor, paging: PagingMode) -> Self {
        match (vendor, paging) {
            (Vendor::Intel, PagingMode::FourLevel) => Self::INTEL_4LEVEL,
            (Vendor::Intel, PagingMode::FiveLevel) => Self::INTEL_LA57,
            (Vendor::Amd, PagingMode::FourLevel) => Self::AMD_4LEVEL,
            (Vendor::Amd, PagingMode::FiveLevel) => Self::AMD_LA57,
        }
    }
}

/// What the page of data holds before a program runs, in its word of this index.
#[must_use]
pub const fn filler(word: usize) -> u64 {
    (word as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// A number of registers, in the order of [`Registers::NAMES`].
const WORDS: usize = 22;

/// The registers that a program can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registers {
    /// General registers, as instructions number them.
    pub gpr: [u64; 16],
    /// The next instruction; before, the first one.
    pub rip: u64,
    /// RFLAGS, without RF.
    pub rflags: u64,
    /// The stack selector.
    pub ss: u64,
    /// The active GS base.
    pub gs_base: u64,
    /// MSR KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// FS base.
    pub fs_base: u64,
}

impl Registers {
    /// The names of the registers.
    pub const NAMES: [&str; WORDS] = [
        "rax",
        "rcx",
        "rdx",
        "rbx",
        "rsp",
        "rbp",
        "rsi",
        "rdi",
        "r8",
        "r9",
        "r10",
        "r11",
        "r12",
        "r13",
        "r14",
        "r15",
        "rip",
        "rflags",
        "ss",
        "gs_base",
        "kernel_gs_base",
        "fs_base",
    ];

    /// Their values.
    #[must_use]
    pub fn words(&self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[..16].copy_from_slice(&self.gpr);
        words[16..].copy_from_slice(&[
            self.rip,
            self.rflags,
            self.ss,
            self.gs_base,
            self.kernel_gs_base,
            self.fs_base,
        ]);
        words
    }

    fn from_words(words: [u64; WORDS]) -> Self {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&words[..16]);
        let [rip, rflags, ss, gs_base, kernel_gs_base, fs_base] =
            core::array::from_fn(|n| words[16 + n]);
        Self { gpr, rip, rflags, ss, gs_base, kernel_gs_base, fs_base }
    }
}

/// A few instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VectorProgram<'a> {
    /// Where they start, from [`CODE`].
    pub offset: u32,
    /// The flags that they leave undefined.
    pub undefined: u64,
    /// What they are, for reports.
    pub name: &'a str,
}

/// What comes of a program. Each ends with an exception, its own or that of a last UD2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VectorEnd {
    /// The registers, in the moment of the exception.
    pub registers: Registers,
    /// The exception.
    pub vector: u8,
    /// Its error code, or [`NO_ERROR`].
    pub error_code: u32,
    /// The words of the page that have changed: index and value.
    pub memory: Vec<(u16, u64)>,
}

/// One test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vector {
    /// The index of the program.
    pub program: u16,
    /// The platforms that it is for.
    pub platforms: Platforms,
    /// What it needs there.
    pub needs: Needs,
    /// The known difference on account of which it fails, or [`NONE`].
    pub known: u16,
    /// What the program starts with.
    pub before: Registers,
    /// What must come of it.
    pub after: VectorEnd,
}

/// A table that has been parsed but for its vectors.
#[derive(Debug, Clone)]
pub struct VectorTable<'a> {
    /// To be executed at [`CODE`].
    pub code: &'a [u8],
    /// The known differences of this CPU.
    pub known: Vec<&'a str>,
    /// What is executed.
    pub programs: Vec<VectorProgram<'a>>,
    /// How many vectors follow.
    pub count: u32,
    vectors: Reader<'a>,
}

/// Bytes that are no table of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no table of vectors of this version")
    }
}

impl core::error::Error for Malformed {}

impl<'a> VectorTable<'a> {
    /// Reads a table.
    ///
    /// # Errors
    /// The bytes are no table of this version.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(Malformed);
        }
        let len = reader.u32()? as usize;
        let code = reader.take(len)?;
        let known = (0..reader.u16()?).map(|_| reader.text()).collect::<Result<_, _>>()?;
        let programs = (0..reader.u16()?)
            .map(|_| {
                Ok(VectorProgram {
                    offset: reader.u32()?,
                    undefined: reader.u64()?,
                    name: reader.text()?,
                })
            })
            .collect::<Result<_, Malformed>>()?;
        let count = reader.u32()?;
        Ok(Self { code, known, programs, count, vectors: reader })
    }

    /// Its vectors.
    pub fn vectors(&self) -> impl Iterator<Item = Result<Vector, Malformed>> + use<'a> {
        let mut reader = self.vectors.clone();
        (0..self.count).map(move |_| reader.vector())
    }
}

/// Writes a table.
///
/// # Panics
/// If there is more than the format can count.
#[must_use]
pub fn write(
    code: &[u8],
    known: &[&str],
    programs: &[VectorProgram<'_>],
    vectors: &[Vector],
) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let count = |len: usize| u16::try_from(len).expect("a count of 16 bits");
    let long_count = |len: usize| u32::try_from(len).expect("a count of 32 bits");
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend(count(text.len()).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    bytes.extend(long_count(code.len()).to_le_bytes());
    bytes.extend(code);
    bytes.extend(count(known.len()).to_le_bytes());
    known.iter().for_each(|known| text(&mut bytes, known));
    bytes.extend(count(programs.len()).to_le_bytes());
    for program in programs {
        bytes.extend(program.offset.to_le_bytes());
        bytes.extend(program.undefined.to_le_bytes());
        text(&mut bytes, program.name);
    }
    bytes.extend(long_count(vectors.len()).to_le_bytes());
    for vector in vectors {
        bytes.extend(vector.program.to_le_bytes());
        bytes.extend([vector.platforms.bits(), vector.needs.bits()]);
        bytes.extend(vector.known.to_le_bytes());
        let before = vector.before.words();
        let after = vector.after.registers.words();
        before.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        let different = (0..WORDS).filter(|&n| before[n] != after[n]);
        let mask = different.clone().fold(0_u32, |mask, n| mask | 1 << n);
        bytes.extend(mask.to_le_bytes());
        different.for_each(|n| bytes.extend(after[n].to_le_bytes()));
        bytes.push(vector.after.vector);
        bytes.extend(vector.after.error_code.to_le_bytes());
        bytes.extend(count(vector.after.memory.len()).to_le_bytes());
        for (index, word) in &vector.after.memory {
            bytes.extend(index.to_le_bytes());
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes
}

/// What has not been read yet.
#[derive(Debug, Clone)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        let len = self.u16()?.into();
        core::str::from_utf8(self.take(len)?).map_err(|_| Malformed)
    }

    fn vector(&mut self) -> Result<Vector, Malformed> {
        let program = self.u16()?;
        let platforms = Platforms::from_bits(self.u8()?).ok_or(Malformed)?;
        let needs = Needs::from_bits(self.u8()?).ok_or(Malformed)?;
        let known = self.u16()?;
        let mut words = [0; WORDS];
        for word in &mut words {
            *word = self.u64()?;
        }
        let before = Registers::from_words(words);
        let mask = self.u32()?;
        for (n, word) in words.iter_mut().enumerate() {
            if mask & 1 << n != 0 {
                *word = self.u64()?;
            }
        }
        let registers = Registers::from_words(words);
        let (vector, error_code) = (self.u8()?, self.u32()?);
        let memory = (0..self.u16()?)
            .map(|_| {
                let index = self.u16()?;
                let word = self.u64()?;
                if usize::from(index) < DATA_LEN / 8 { Ok((index, word)) } else { Err(Malformed) }
            })
            .collect::<Result<_, _>>()?;
        let after = VectorEnd { registers, vector, error_code, memory };
        Ok(Vector { program, platforms, needs, known, before, after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn vector(program: u16) -> Vector {
        let before = Registers::from_words(core::array::from_fn(|n| n as u64));
        let mut registers = before;
        registers.gpr[15] = 1 << 63;
        registers.fs_base = u64::MAX;
        let memory = vec![(0, 1), (511, u64::MAX)];
        let after = VectorEnd { registers, vector: 13, error_code: 0, memory };
        let platforms = Platforms::INTEL_LA57 | Platforms::AMD_LA57;
        Vector { program, platforms, needs: Needs::PCID, known: NONE, before, after }
    }

    #[test]
    fn what_is_written_is_read() {
        let programs = [VectorProgram { offset: 7, undefined: 0x10, name: "xor(rax, rax)" }];
        let vectors = [vector(0), vector(0)];
        let bytes = write(&[0x90; 9], &["a bug"], &programs, &vectors);
        let table = VectorTable::parse(&bytes).unwrap();
        assert_eq!(
            (table.code, table.known.as_slice()),
            ([0x90; 9].as_slice(), ["a bug"].as_slice())
        );
        assert_eq!(table.programs, programs);
        assert_eq!(table.vectors().collect::<Result<Vec<_>, _>>().unwrap(), vectors);
    }

    #[test]
    fn a_table_that_was_cut_or_is_of_another_version_is_refused() {
        let bytes = write(&[], &[], &[], &[vector(0)]);
        assert!(VectorTable::parse(&bytes).unwrap().vectors().all(|vector| vector.is_ok()));
        let table = VectorTable::parse(&bytes[..bytes.len() - 1]).unwrap();
        assert!(table.vectors().any(|vector| vector == Err(Malformed)));
        assert!(VectorTable::parse(&bytes[..19]).is_err());
        let mut other = bytes;
        other[7] += 1;
        assert!(VectorTable::parse(&other).is_err());
    }
}
