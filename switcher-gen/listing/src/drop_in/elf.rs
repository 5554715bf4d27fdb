//! The switcher as an object, with the symbols and the references that a kernel's own would have.

use std::collections::BTreeMap;

use object::elf::{R_X86_64_32S, R_X86_64_PLT32};
use object::write::{Object, Relocation, Symbol, SymbolId, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolFlags, SymbolKind,
    SymbolScope,
};

use super::{DropIn, DropInError};

impl DropIn {
    /// The code as a relocatable ELF64 object.
    ///
    /// # Errors
    /// Only if the object writer refuses what is described here.
    pub fn object(&self) -> Result<Vec<u8>, DropInError> {
        let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        let name = Self::SECTION.as_bytes().to_vec();
        let text = object.add_section(Vec::new(), name, SectionKind::Text);
        object.append_section_data(text, &self.unlinked(), Self::ALIGNMENT);
        for symbol in self.symbols() {
            object.add_symbol(Symbol {
                name: symbol.name.into_bytes(),
                value: symbol.at.into(),
                size: symbol.size.into(),
                // As Linux has its entries: no function by the rules of C.
                kind: SymbolKind::Label,
                scope: SymbolScope::Dynamic,
                weak: false,
                section: SymbolSection::Section(text),
                flags: SymbolFlags::None,
            });
        }
        let mut undefined = BTreeMap::<String, SymbolId>::new();
        let variable = |displacement: &super::Displacement| {
            (displacement.at, self.variable, i64::from(displacement.offset), R_X86_64_32S)
        };
        let host = |relocation: &switcher_gen::asm::Relocation| {
            let name = self.name(relocation.symbol.0);
            (relocation.at, name, i64::from(relocation.addend), R_X86_64_PLT32)
        };
        let variables = self.displacements.iter().map(variable);
        for (at, name, addend, r_type) in variables.chain(self.code.relocations.iter().map(host)) {
            let symbol = *undefined.entry(name.to_owned()).or_insert_with_key(|name| {
                object.add_symbol(Symbol {
                    name: name.clone().into_bytes(),
                    value: 0,
                    size: 0,
                    kind: SymbolKind::Unknown,
                    scope: SymbolScope::Unknown,
                    weak: false,
                    section: SymbolSection::Undefined,
                    flags: SymbolFlags::None,
                })
            });
            let flags = RelocationFlags::Elf { r_type };
            object.add_relocation(text, Relocation { offset: at.into(), symbol, addend, flags })?;
        }
        object.add_section(Vec::new(), b".note.GNU-stack".to_vec(), SectionKind::Other);
        Ok(object.write()?)
    }
}
