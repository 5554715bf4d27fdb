//! What the derive was given: the shape it can work with, its `#[asm(..)]` attributes and their
//! values. Whether the parts fit together is [`validate`](crate::validate)'s business.

use syn::meta::ParseNestedMeta;
use syn::{
    Attribute, Data, DeriveInput, Error, Expr, ExprLit, Fields, FieldsNamed, Generics, Ident, Lit,
    LitInt, Result, Token, Type, Visibility,
};

use crate::repr::Repr;

/// A struct with named fields and a guaranteed layout.
pub(crate) struct Struct<'a> {
    pub(crate) ident: &'a Ident,
    pub(crate) generics: &'a Generics,
    pub(crate) repr: Repr,
    /// The value of `#[asm(size = N)]`.
    pub(crate) size: Option<Assertion>,
    /// The value of `#[asm(align = N)]`.
    pub(crate) align: Option<Assertion>,
    pub(crate) fields: Vec<Field<'a>>,
}

/// A field with its attributes taken apart.
pub(crate) struct Field<'a> {
    pub(crate) ident: &'a Ident,
    pub(crate) vis: &'a Visibility,
    pub(crate) ty: &'a Type,
    /// The doc comment, attribute by attribute.
    pub(crate) docs: Vec<&'a Attribute>,
    /// The value of `#[asm(at = N)]`.
    pub(crate) at: Option<Assertion>,
    /// Whether the field has `#[asm(nested)]`.
    pub(crate) nested: bool,
}

/// A pair `key = value`, to be checked against the compiler's layout.
pub(crate) struct Assertion {
    pub(crate) key: Ident,
    /// The value as written, for messages: `0x40` should not turn up as `64`.
    pub(crate) literal: LitInt,
    pub(crate) bytes: usize,
}

impl<'a> Struct<'a> {
    pub(crate) fn parse(input: &'a DeriveInput) -> Result<Self> {
        let fields = struct_fields(input)?;
        let repr = Repr::parse(input)?;
        let (mut size, mut align) = (None, None);
        for_each_key(&input.attrs, |meta| {
            if meta.path.is_ident("size") {
                Assertion::parse_into(&mut size, meta)
            } else if meta.path.is_ident("align") {
                Assertion::parse_into(&mut align, meta)
            } else {
                Err(unknown(meta, "a struct takes `size` and `align`"))
            }
        })?;
        let fields = fields.named.iter().map(Field::parse).collect::<Result<_>>()?;
        Ok(Self { ident: &input.ident, generics: &input.generics, repr, size, align, fields })
    }
}

impl<'a> Field<'a> {
    /// Takes a field without regard to its `#[asm(..)]` attributes, for the fallback expansion.
    ///
    /// Returns `None` if the field has no name.
    pub(crate) fn bare(field: &'a syn::Field) -> Option<Self> {
        Some(Self {
            ident: field.ident.as_ref()?,
            vis: &field.vis,
            ty: &field.ty,
            docs: field.attrs.iter().filter(|attr| attr.path().is_ident("doc")).collect(),
            at: None,
            nested: false,
        })
    }

    fn parse(field: &'a syn::Field) -> Result<Self> {
        let mut parsed = Self::bare(field)
            .ok_or_else(|| Error::new_spanned(field, "AsmLayout needs a name for each field"))?;
        for_each_key(&field.attrs, |meta| {
            if meta.path.is_ident("at") {
                Assertion::parse_into(&mut parsed.at, meta)
            } else if meta.path.is_ident("nested") {
                if parsed.nested {
                    return Err(repeated(meta));
                }
                parsed.nested = true;
                Ok(())
            } else {
                Err(unknown(meta, "a field takes `at` and `nested`"))
            }
        })?;
        Ok(parsed)
    }

    /// Padding is part of the layout, but code has no business to name it.
    pub(crate) fn is_padding(&self) -> bool {
        self.ident.to_string().starts_with('_')
    }
}

impl Assertion {
    fn parse_into(slot: &mut Option<Self>, meta: &ParseNestedMeta<'_>) -> Result<()> {
        if slot.is_some() {
            return Err(repeated(meta));
        }
        let key = meta.path.require_ident()?.clone();
        if !meta.input.peek(Token![=]) {
            let message = format!("`{key}` needs a number of bytes: `{key} = 0x40`");
            return Err(Error::new_spanned(key, message));
        }
        let value: Expr = meta.value()?.parse()?;
        let Expr::Lit(ExprLit { lit: Lit::Int(literal), .. }) = value else {
            let message = format!("`{key}` takes an integer literal, a number of bytes");
            return Err(Error::new_spanned(value, message));
        };
        let bytes = literal.base10_parse()?;
        *slot = Some(Self { key, literal, bytes });
        Ok(())
    }
}

fn struct_fields(input: &DeriveInput) -> Result<&FieldsNamed> {
    const ADVICE: &str = "AsmLayout describes structs with named fields";
    match &input.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(fields) => Ok(fields),
            Fields::Unnamed(fields) => Err(Error::new_spanned(
                fields,
                format!("{ADVICE}: give the fields of `{}` names", input.ident),
            )),
            Fields::Unit => Err(Error::new_spanned(
                &input.ident,
                format!("{ADVICE}: `{}` has none to describe", input.ident),
            )),
        },
        Data::Enum(data) => Err(Error::new(
            data.enum_token.span,
            format!("{ADVICE}: where a struct holds an enum, make the field an integer"),
        )),
        Data::Union(data) => Err(Error::new(
            data.union_token.span,
            format!("{ADVICE}: for each view of a union, derive it on a struct of its own"),
        )),
    }
}

/// Calls `f` for each `key` or `key = value` of all `#[asm(..)]` attributes.
fn for_each_key(
    attrs: &[Attribute],
    mut f: impl FnMut(&ParseNestedMeta<'_>) -> Result<()>,
) -> Result<()> {
    attrs
        .iter()
        .filter(|attr| attr.path().is_ident("asm"))
        .try_for_each(|attr| attr.parse_nested_meta(|meta| f(&meta)))
}

fn repeated(meta: &ParseNestedMeta<'_>) -> Error {
    let key = crate::text::of(&meta.path);
    Error::new_spanned(&meta.path, format!("`{key}` is given twice: keep one"))
}

fn unknown(meta: &ParseNestedMeta<'_>, known: &str) -> Error {
    let key = crate::text::of(&meta.path);
    Error::new_spanned(&meta.path, format!("unknown key `{key}`: {known}"))
}
