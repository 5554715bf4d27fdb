//! Where data lies relative to GS base that a file's code refers to, or that somebody asks for.

use std::collections::BTreeMap;

use super::code::FileCode;
use super::contents::Contents;
use super::error::ReadError;
use super::file::Of;
use super::per_cpu::Variable;

/// The addresses, relative to GS base, of the variables that the code refers to and of those that
/// are wanted, by their names.
pub(super) fn addresses<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
) -> Result<BTreeMap<String, u64>, ReadError> {
    let mut found: BTreeMap<String, u64> = code.variables.undefined().into_iter().collect();
    let mut globals = BTreeMap::new();
    for symbol in code.file.symbols() {
        let symbol = symbol?;
        if !code.file.request.may_want(symbol.name) {
            continue;
        }
        let Ok(name) = std::str::from_utf8(symbol.name) else { continue };
        let is_fixed = code.file.request.wants_fixed(name);
        if !is_fixed && !code.file.request.wants(name) {
            continue;
        }
        // An address of the code's own, which an object has, too.
        if let Some(address) = code.address(&symbol).filter(|_| is_fixed) {
            found.insert(name.to_owned(), address);
            continue;
        }
        let address = match symbol.of {
            Of::Section(section) if code.file.is_object() => {
                let start = code.variables.known(&Variable::Section(section));
                start.map(|start| start.wrapping_add(symbol.value))
            }
            Of::Section(_) | Of::Absolute => Some(symbol.value),
            Of::Undefined | Of::Common | Of::Other => None,
        };
        let Some(address) = address else { continue };
        // Other files see the global one of several.
        let is_global = !symbol.is_local();
        match globals.insert(name.to_owned(), is_global) {
            Some(true) if !is_global => {
                globals.insert(name.to_owned(), true);
                continue;
            }
            Some(before) if before == is_global && found.get(name) != Some(&address) => {
                let at = found.get(name).copied().into_iter().chain([address]).collect();
                return Err(ReadError::Ambiguous { symbol: symbol.text(), at });
            }
            _ => {}
        }
        found.insert(name.to_owned(), address);
    }
    Ok(found)
}
