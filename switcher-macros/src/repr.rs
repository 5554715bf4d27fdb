//! The struct's representation, parsed into a type that has only those on whose offsets code can
//! rely.
//!
//! `repr(C)` is what makes the order and the padding of fields a promise of the language instead
//! of a habit of the compiler. `packed` is refused although its offsets are just as certain:
//! emitted code would access fields that Rust may not even borrow.

use syn::spanned::Spanned;
use syn::{Attribute, DeriveInput, Error, LitInt, Meta, Result, Token};

/// A representation with a guaranteed layout.
pub(crate) enum Repr {
    /// The struct is `repr(C)`.
    C,
    /// The struct is `repr(C, align(N))`, where N is the largest if there are several, as in rustc.
    CAligned(usize),
}

impl Repr {
    /// Reads all `#[repr(..)]` attributes of a struct.
    pub(crate) fn parse(input: &DeriveInput) -> Result<Self> {
        let mut is_c = false;
        let mut align: Option<usize> = None;
        for hint in input.attrs.iter().filter(|attr| attr.path().is_ident("repr")) {
            for meta in hints(hint)? {
                if meta.path().is_ident("C") {
                    is_c = true;
                } else if meta.path().is_ident("align") {
                    align = align.max(Some(alignment(&meta)?));
                } else if meta.path().is_ident("packed") {
                    return Err(Error::new_spanned(
                        meta,
                        "AsmLayout takes no packed structs: remove `packed` and write the \
                         padding out as fields named `_reserved..`",
                    ));
                } else {
                    return Err(Error::new(
                        meta.span(),
                        "AsmLayout knows only `repr(C)` and `repr(C, align(N))`",
                    ));
                }
            }
        }
        match (is_c, align) {
            (false, _) => Err(Error::new(
                input.ident.span(),
                format!(
                    "the fields of `{}` have no guaranteed offsets: add `#[repr(C)]`",
                    input.ident
                ),
            )),
            (true, None) => Ok(Self::C),
            (true, Some(align)) => Ok(Self::CAligned(align)),
        }
    }
}

/// The comma-separated contents of one `#[repr(..)]`.
fn hints(attr: &Attribute) -> Result<impl Iterator<Item = Meta> + use<>> {
    let hints = syn::punctuated::Punctuated::<Meta, Token![,]>::parse_terminated;
    Ok(attr.parse_args_with(hints)?.into_iter())
}

/// The N of `align(N)`.
fn alignment(meta: &Meta) -> Result<usize> {
    meta.require_list()?.parse_args::<LitInt>()?.base10_parse()
}
