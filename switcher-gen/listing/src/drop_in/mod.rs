//! A switcher of ours in the place of a kernel's own: for its structs, its symbols and its build.
//!
//! Here is the code, with the places at which it refers to the kernel's per-CPU variable.
//!
//! | file | what it makes |
//! |---|---|
//! | `elf` | the code as an object: what is proved |
//! | `source` | the same code for the kernel's assembler |
//! | `gas` | one instruction in the syntax of GNU as, so that it is encoded as it was emitted |
//! | `header` | prototypes, offsets and assertions for C; the fragment of a Makefile |
//!
//! ```
//! use switcher_gen::Variant;
//! use switcher_gen::kernels::ModuleBlock;
//! use switcher_listing::drop_in::DropIn;
//!
//! let names = [("entry_IRETQ_switcher", "entry_IRETQ_switcher_rip")];
//! let drop_in = DropIn::new::<ModuleBlock>(&Variant::REFERENCE, &names)?;
//! // Where this kernel has enter_cr3.
//! assert!(drop_in.source()?.contains("%gs:cpu_tss_rw+0x98"));
//! # Ok::<(), switcher_listing::drop_in::DropInError>(())
//! ```

mod elf;
mod gas;
mod header;
mod source;

use iced_x86::{Decoder, DecoderOptions, Instruction};
use switcher_gen::Variant;
use switcher_gen::asm::{AsmError, Code, HostSymbol, Label};
use switcher_gen::emit;
use switcher_gen::layout::{BlockLayout, Layout, Placement};

use crate::record::{Item, What, record};

/// The switcher, before anybody has given it a place.
pub struct DropIn {
    variant: Variant,
    /// What the kernel calls what ours are called.
    names: Vec<(String, String)>,
    variable: &'static str,
    block: &'static Layout,
    extra: &'static Layout,
    /// Where the switcher's data lies, from the start of the variable.
    extra_at: usize,
    code: Code,
    items: Vec<Item>,
    displacements: Vec<Displacement>,
}

/// A displacement of 32 bits that is counted from the start of the per-CPU variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Displacement {
    /// The offset of its field in the code.
    at: u32,
    /// How far after the start of the variable it leads.
    offset: i32,
}

/// Why there is no such switcher.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DropInError {
    /// A kernel has one copy of its code for all CPUs.
    #[error(
        "{variant} has a copy of the code for each CPU, and a kernel has one for all: take a \
         variant without `percpu`"
    )]
    Placement {
        /// The variant.
        variant: Variant,
    },
    /// The kernel's struct lacks a field.
    #[error(
        "{layout} of this kernel has no field for {what}, which {variant} needs: take a variant \
         without it"
    )]
    NoField {
        /// The struct.
        layout: &'static str,
        /// What the field is for.
        what: &'static str,
        /// The variant.
        variant: Variant,
    },
    /// The block is no variable.
    #[error("{layout} is no per-CPU variable: GS base points to it, and no symbol is needed")]
    NoVariable {
        /// The struct.
        layout: &'static str,
    },
    /// An emitter is wrong.
    #[error(transparent)]
    Asm(#[from] AsmError),
    /// An emitter, or `asm!`, is wrong.
    #[error("the {emitted} bytes at {at:#x} were emitted as one instruction and are none")]
    NotOneInstruction {
        /// Their offset.
        at: u32,
        /// How many there are.
        emitted: usize,
    },
    /// A linker could not fill in where the variable lies.
    #[error(
        "the displacement of the instruction at {at:#x} has {bytes} bytes, and a linker needs 4"
    )]
    ShortDisplacement {
        /// The instruction's offset.
        at: u32,
        /// The size of its displacement.
        bytes: usize,
    },
    /// The object writer refuses it.
    #[error("cannot write an object: {0}")]
    Object(#[from] object::write::Error),
}

impl DropIn {
    /// The alignment of its section: a cache line, as RETs have their places in their lines.
    pub const ALIGNMENT: u64 = switcher_gen::Image::ALIGNMENT;
    /// The section that Linux has such code in.
    const SECTION: &'static str = ".entry.text";

    /// Emits `variant` for a kernel that has the block `B`. `names` are symbols of ours, and what
    /// the kernel calls them.
    ///
    /// # Errors
    /// If the kernel has no place for what the variant needs.
    pub fn new<B: BlockLayout>(
        variant: &Variant,
        names: &[(&str, &str)],
    ) -> Result<Self, DropInError> {
        if variant.placement() != Placement::Gs {
            return Err(DropInError::Placement { variant: *variant });
        }
        let layout = B::LAYOUT.name;
        let Some(variable) = B::VARIABLE else { return Err(DropInError::NoVariable { layout }) };
        let missing = [
            (variant.mitigations().ibrs, B::HOST_SPEC_CTRL.is_none(), "the host's SPEC_CTRL"),
            (variant.mitigations().ibrs, B::GUEST_SPEC_CTRL.is_none(), "the guest's SPEC_CTRL"),
            (variant.pku(), B::SMOD_PKRU.is_none(), "smod's PKRU"),
        ];
        let mut missing = missing.into_iter().filter(|(needed, missing, _)| *needed && *missing);
        if let Some((.., what)) = missing.next() {
            let layout = <B::Extra as switcher_gen::layout::AsmLayout>::LAYOUT.name;
            return Err(DropInError::NoField { layout, what, variant: *variant });
        }
        let (items, code) = record(|sink| emit::drop_in::<_, B>(sink, variant))?;
        let mut drop_in = Self {
            variant: *variant,
            names: names.iter().map(|(ours, theirs)| ((*ours).into(), (*theirs).into())).collect(),
            variable,
            block: B::LAYOUT,
            extra: <B::Extra as switcher_gen::layout::AsmLayout>::LAYOUT,
            extra_at: B::EXTRA.bytes(),
            code,
            items,
            displacements: Vec::new(),
        };
        drop_in.displacements = drop_in.find_displacements()?;
        Ok(drop_in)
    }

    /// The variant that it was emitted for.
    #[must_use]
    pub const fn variant(&self) -> &Variant {
        &self.variant
    }

    /// Where the code counts from the start of the variable: in the operands of which the emitters
    /// say that they are fields of the block.
    fn find_displacements(&self) -> Result<Vec<Displacement>, DropInError> {
        let mut found = Vec::new();
        for item in &self.items {
            let What::Instruction(notes) = &item.what else { continue };
            if !notes.operands.iter().any(|operand| *operand.layout == *self.block) {
                continue;
            }
            let (i, fields) = self.decode(item)?;
            let bytes = fields.displacement_size();
            if bytes != 4 {
                return Err(DropInError::ShortDisplacement { at: item.start, bytes });
            }
            found.push(Displacement {
                at: item.start + fields.displacement_offset() as u32,
                offset: i.memory_displacement64() as i32,
            });
        }
        Ok(found)
    }

    /// The instruction that an item is.
    fn decode(&self, item: &Item) -> Result<(Instruction, iced_x86::ConstantOffsets), DropInError> {
        let bytes = self.bytes_of(item);
        let ip = item.start.into();
        let mut decoder = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE);
        let i = decoder.decode();
        if i.is_invalid() || i.len() != bytes.len() {
            let (at, emitted) = (item.start, bytes.len());
            return Err(DropInError::NotOneInstruction { at, emitted });
        }
        Ok((i, decoder.get_constant_offsets(&i)))
    }

    fn bytes_of(&self, item: &Item) -> &[u8] {
        &self.code.bytes[item.start as usize..item.end as usize]
    }

    /// The bytes, with zeroes where a linker fills something in.
    fn unlinked(&self) -> Vec<u8> {
        let mut bytes = self.code.bytes.clone();
        let displacements = self.displacements.iter().map(|displacement| displacement.at);
        let host = self.code.relocations.iter().map(|relocation| relocation.at);
        for at in displacements.chain(host) {
            bytes[at as usize..at as usize + 4].fill(0);
        }
        bytes
    }

    /// The exported labels that the code has, by offset, each with the kernel's name for it and
    /// with how far it is to the next one or to the end.
    fn symbols(&self) -> Vec<Symbol> {
        let offset = |label: Label| self.code.labels[label as usize];
        let exported = Label::ALL.into_iter().filter(|label| label.is_exported());
        let mut symbols: Vec<_> = exported
            .filter_map(|label| {
                let (at, name) = (offset(label)?, self.name(label.name()).to_owned());
                Some(Symbol { label, name, at, size: 0 })
            })
            .collect();
        symbols.sort_by_key(|symbol| symbol.at);
        let mut end = self.code.bytes.len() as u32;
        for symbol in symbols.iter_mut().rev() {
            symbol.size = end - symbol.at;
            end = symbol.at;
        }
        symbols
    }

    /// What the kernel calls what we call `ours`.
    fn name<'a>(&'a self, ours: &'a str) -> &'a str {
        let named = self.names.iter().find(|(name, _)| name == ours);
        named.map_or(ours, |(_, theirs)| theirs)
    }

    /// What the kernel has to define, besides the variable.
    fn wanted(&self) -> Vec<HostSymbol> {
        let mut wanted: Vec<_> = self.code.relocations.iter().map(|it| it.symbol).collect();
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }
}

/// A place in the code that the kernel refers to.
struct Symbol {
    label: Label,
    name: String,
    at: u32,
    size: u32,
}

#[cfg(test)]
mod tests;
