//! Where the IDT leads in a file, if somebody says which of its symbols are event entries.

use std::ops::RangeInclusive;

use super::code::FileCode;
use super::contents::Contents;
use super::error::ReadError;
use super::gate::{GateError, Gates};
use super::names::{self, Names};
use crate::gate::TargetGate;
use switcher_gen::Gate;

/// All vectors there are.
const ALL: usize = 256;

/// The gates that are said of the file, in the order of their vectors.
pub(super) fn gates<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    names: &Names<'_>,
) -> Result<Vec<TargetGate>, ReadError> {
    let request = &code.file.request;
    let mut gates = Vec::new();
    for said in request.gates() {
        let Some(symbol) = names.place(request.meant(said.symbol()))? else {
            return Err(names::no_symbol(code, said.symbol())?);
        };
        for vector in said.vectors() {
            gates.push(gate(code, said, symbol, vector)?);
        }
    }
    // Where no gate is said, a stub is the entry.
    let missing = missing(&gates);
    if gates.is_empty() || missing.is_empty() || names.stubs()?.is_some() {
        return Ok(gates);
    }
    Err(GateError::Missing { vectors: missing }.into())
}

/// Whether nobody looks at the stubs of the file.
pub(super) const fn are_all(gates: &[TargetGate]) -> bool {
    gates.len() == ALL
}

fn gate<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    said: &Gates,
    symbol: u64,
    vector: u8,
) -> Result<TargetGate, ReadError> {
    let address = said.distance(vector).and_then(|distance| symbol.checked_add(distance));
    match address.filter(|address| code.area(*address).is_some()) {
        Some(address) => {
            let Gate { ist, dpl, .. } = Gate::of(0, vector);
            let (ist, dpl) = (said.ist().unwrap_or(ist), said.dpl().unwrap_or(dpl));
            Ok(TargetGate { vector, address, ist, dpl })
        }
        None => {
            let symbol = said.symbol().to_owned();
            Err(GateError::NotCode { vector, symbol, address }.into())
        }
    }
}

/// The vectors without a gate.
fn missing(gates: &[TargetGate]) -> Vec<RangeInclusive<u8>> {
    let mut missing: Vec<RangeInclusive<u8>> = Vec::new();
    for vector in 0..=u8::MAX {
        if gates.iter().any(|gate| gate.vector == vector) {
            continue;
        }
        match missing.last_mut() {
            Some(last) if last.end().checked_add(1) == Some(vector) => {
                *last = *last.start()..=vector;
            }
            _ => missing.push(vector..=vector),
        }
    }
    missing
}

/// What a proof assumes of the IDT.
pub(super) fn assumed(gates: &[&Gates]) -> Option<String> {
    /// So many are named.
    const FEW: usize = 32;
    let mut all: Vec<_> = gates.iter().take(FEW).map(ToString::to_string).collect();
    let more = gates.len().saturating_sub(FEW);
    all.extend((more > 0).then(|| format!("and {more} more")));
    (!all.is_empty()).then(|| format!("the IDT leads, as `--gate` says, {}", all.join(", ")))
}
