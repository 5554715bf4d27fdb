//! The derive's output: a constant per field, the `AsmLayout` impl and the assertions.
//!
//! Numbers come from rustc alone (`offset_of!`, `size_of`, `align_of`); what the attributes say
//! is only ever compared with them.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::{Attribute, DeriveInput, Expr, ExprLit, Lit, Meta, Result};

use crate::ast::{Assertion, Field, Struct};
use crate::text;

/// The whole output of the derive for a struct that is accepted.
///
/// # Errors
/// If the struct is rejected.
pub(crate) fn derive(input: &DeriveInput) -> Result<TokenStream> {
    let parsed = Struct::parse(input)?;
    parsed.validate()?;
    Ok(expand(input, &parsed))
}

fn expand(input: &DeriveInput, parsed: &Struct<'_>) -> TokenStream {
    let constants = constants(input, &parsed.fields);
    let layout = layout(input, parsed.fields.iter().map(|field| entry(parsed, field)));
    let assertions = assertions(parsed);
    quote! {
        #constants
        #layout
        #assertions
    }
}

/// The inherent impl with an offset per field.
pub(crate) fn constants(input: &DeriveInput, fields: &[Field<'_>]) -> TokenStream {
    let (impl_generics, ty_generics, where_clause) = input.generics.split_for_impl();
    let ident = &input.ident;
    let constants = fields.iter().filter(|field| !field.is_padding()).map(|field| {
        let Field { ident: name, vis, ty, docs, .. } = field;
        let generated = docs.is_empty().then(|| {
            let line = format!(" Where `{}` lies in a [`{ident}`].", name.unraw());
            quote!(#[doc = #line])
        });
        // SAFETY of what is generated: the offset is the one that rustc has for the field, and the
        // type is the field's: both come from its declaration.
        quote! {
            #(#docs)*
            #generated
            #vis const #name: ::switcher_gen::layout::Offset<#ident #ty_generics, #ty> =
                unsafe {
                    ::switcher_gen::layout::Offset::__derived(
                        ::switcher_gen::__private::memoffset::offset_of!(#ident #ty_generics, #name)
                    )
                };
        }
    });
    quote! {
        // Not every field is named by some code, and constants are named exactly like the fields.
        #[automatically_derived]
        #[allow(dead_code, non_upper_case_globals)]
        impl #impl_generics #ident #ty_generics #where_clause {
            #(#constants)*
        }
    }
}

/// The `AsmLayout` impl with the given field entries.
pub(crate) fn layout(
    input: &DeriveInput,
    entries: impl Iterator<Item = TokenStream>,
) -> TokenStream {
    let (impl_generics, ty_generics, where_clause) = input.generics.split_for_impl();
    let ident = &input.ident;
    let name = ident.unraw().to_string();
    quote! {
        #[automatically_derived]
        impl #impl_generics ::switcher_gen::layout::AsmLayout
            for #ident #ty_generics #where_clause
        {
            const LAYOUT: &'static ::switcher_gen::layout::Layout =
                &::switcher_gen::layout::Layout {
                    name: #name,
                    size: ::core::mem::size_of::<Self>(),
                    align: ::core::mem::align_of::<Self>(),
                    fields: &[#(#entries),*],
                };
        }
    }
}

/// One field's entry in `LAYOUT`.
fn entry(parsed: &Struct<'_>, field: &Field<'_>) -> TokenStream {
    let (ident, ty) = (parsed.ident, field.ty);
    let field_ident = field.ident;
    let name = field_ident.unraw().to_string();
    let ty_text = text::of_type(ty);
    let doc = first_sentence(&field.docs);
    let nested = if field.nested {
        quote!(::core::option::Option::Some(<#ty as ::switcher_gen::layout::AsmLayout>::LAYOUT))
    } else {
        quote!(::core::option::Option::None)
    };
    quote! {
        ::switcher_gen::layout::Field {
            name: #name,
            offset: ::switcher_gen::__private::memoffset::offset_of!(#ident, #field_ident),
            size: ::core::mem::size_of::<#ty>(),
            ty: #ty_text,
            doc: #doc,
            nested: #nested,
        }
    }
}

/// The first sentence of a doc comment, on one line; empty if there is none.
fn first_sentence(docs: &[&Attribute]) -> String {
    let literals = docs.iter().filter_map(|attr| match &attr.meta {
        Meta::NameValue(meta) => match &meta.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
            // `#[doc = include_str!(..)]`: its text is not known yet.
            _ => None,
        },
        // `#[doc(hidden)]` and its like.
        _ => None,
    });
    let lines = literals
        .flat_map(|text| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>())
        .skip_while(String::is_empty)
        .take_while(|line| !line.is_empty());
    let paragraph = lines.collect::<Vec<_>>().join(" ");
    match paragraph.split_once(". ") {
        Some((first, _)) => format!("{first}."),
        None => paragraph,
    }
}

/// Assertions that compare what the attributes claim with what rustc has chosen.
fn assertions(parsed: &Struct<'_>) -> TokenStream {
    let ident = parsed.ident;
    let mut assertions = TokenStream::new();
    for field in &parsed.fields {
        let Some(at) = &field.at else { continue };
        let name = field.ident;
        assertions.extend(assert(
            at,
            &quote!(::switcher_gen::__private::memoffset::offset_of!(#ident, #name)),
            &format!("`{ident}.{name}` is at "),
            &format!(", not at {}", at.literal),
        ));
    }
    if let Some(size) = &parsed.size {
        assertions.extend(assert(
            size,
            &quote!(::core::mem::size_of::<#ident>()),
            &format!("`{ident}` is "),
            &format!(" bytes in size, not {}", size.literal),
        ));
    }
    if let Some(align) = &parsed.align {
        assertions.extend(assert(
            align,
            &quote!(::core::mem::align_of::<#ident>()),
            &format!("`{ident}` is aligned to "),
            &format!(", not to {}", align.literal),
        ));
    }
    assertions
}

/// Compares `actual` with what the attribute claims; the message has `actual`'s value, written like
/// the attribute's, between `before` and `after`.
fn assert(
    Assertion { key, literal, .. }: &Assertion,
    actual: &TokenStream,
    before: &str,
    after: &str,
) -> TokenStream {
    let after = format!("{after}, as #[asm({key} = {literal})] asserts");
    let radix: usize = if literal.to_string().starts_with("0x") { 16 } else { 10 };
    let panic = {
        // rustc marks the span from the macro's path to its closing parenthesis: from `at` to
        // `0x40`.
        let path = quote_spanned!(key.span()=> ::core::panic!);
        let args = quote_spanned!(literal.span()=> ("{}", MESSAGE.as_str())).into_token_stream();
        quote!(#path #args)
    };
    quote! {
        const _: () = if #actual != #literal {
            const MESSAGE: ::switcher_gen::layout::Message =
                ::switcher_gen::layout::Message::new(#before, #actual, #radix, #after);
            #panic
        };
    }
}
