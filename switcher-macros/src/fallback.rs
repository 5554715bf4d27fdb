//! What the derive yields for a rejected struct: the error, and enough of the usual output that
//! users of the struct do not fail as well. One mistake, one message.
//!
//! The constants still get their offsets from rustc instead of a dummy value, lest an assertion
//! elsewhere fails over a number that only the rejection made wrong.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Data, DeriveInput, Error, Fields, FieldsNamed};

use crate::ast::Field;
use crate::expand;

pub(crate) fn derive(input: &DeriveInput, error: &Error) -> TokenStream {
    let error = error.to_compile_error();
    let fields: Vec<_> = named_fields(input)
        .into_iter()
        .flat_map(|all| &all.named)
        .filter_map(Field::bare)
        .collect();
    let constants = expand::constants(input, &fields);
    let layout = expand::layout(input, std::iter::empty());
    quote! {
        #error
        #constants
        #layout
    }
}

fn named_fields(input: &DeriveInput) -> Option<&FieldsNamed> {
    match &input.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(fields) => Some(fields),
            Fields::Unnamed(_) | Fields::Unit => None,
        },
        Data::Union(data) => Some(&data.fields),
        Data::Enum(_) => None,
    }
}
