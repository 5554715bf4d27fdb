//! What a parsed struct must satisfy beyond its syntax, as far as it can be told before rustc has
//! laid it out. The rest becomes constant assertions in the expansion.

use std::collections::HashMap;

use syn::{Error, Result};

use crate::ast::{Field, Struct};
use crate::repr::Repr;

impl Struct<'_> {
    pub(crate) fn validate(&self) -> Result<()> {
        self.is_concrete()?;
        self.alignment_is_possible()?;
        self.claims_are_distinct()
    }

    /// A layout is one set of numbers, but a generic struct has as many layouts as instances.
    fn is_concrete(&self) -> Result<()> {
        if self.generics.params.is_empty() {
            return Ok(());
        }
        Err(Error::new_spanned(
            self.generics,
            format!(
                "AsmLayout takes no generic structs, for each instance has a layout of its own: \
                 make `{}` concrete",
                self.ident
            ),
        ))
    }

    /// `repr(align(N))` is a lower bound, so an assertion of less can never hold.
    fn alignment_is_possible(&self) -> Result<()> {
        match (&self.align, &self.repr) {
            (Some(asserted), Repr::CAligned(repr)) if asserted.bytes < *repr => {
                Err(Error::new_spanned(
                    &asserted.literal,
                    format!(
                        "`{}` cannot be aligned to {}: its repr asks for {repr}",
                        self.ident, asserted.literal
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    /// The compiler's layout would refute one of two equal claims anyway, but this error says which
    /// two collide.
    fn claims_are_distinct(&self) -> Result<()> {
        let mut claimed: HashMap<usize, &Field<'_>> = HashMap::new();
        for field in &self.fields {
            let Some(at) = &field.at else { continue };
            if let Some(first) = claimed.insert(at.bytes, field) {
                return Err(Error::new_spanned(
                    &at.literal,
                    format!(
                        "`{}` cannot be at {}: `{}` already claims it",
                        field.ident, at.literal, first.ident
                    ),
                ));
            }
        }
        Ok(())
    }
}
