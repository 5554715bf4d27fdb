//! Golden expansions: `tests/expand/NAME.rs` must expand to `tests/expand/NAME.expanded.rs`.
//!
//! They show reviewers what the macros generate, and that it changes when the macros do. This is a
//! unit test because a proc-macro crate exports only its macros. `BLESS=1` accepts what differs.

use std::collections::BTreeSet;
use std::path::Path;
use std::{env, fs};

use proc_macro2::{TokenStream, TokenTree};
use quote::{format_ident, quote};
use syn::{Attribute, Block, Expr, ExprBlock, Item, Stmt};

use crate::{asm, text};

const INPUT: &str = ".rs";
const GOLDEN: &str = ".expanded.rs";

#[test]
fn expansions_are_as_reviewed() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/expand");
    let bless = env::var_os("BLESS").is_some();
    let (goldens, inputs): (BTreeSet<_>, BTreeSet<_>) = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| file_name(&entry.unwrap().path()))
        .partition(|name| name.ends_with(GOLDEN));
    assert!(!inputs.is_empty(), "there is nothing to expand in {}", directory.display());

    let mut complaints = Vec::new();
    let mut expected = BTreeSet::new();
    for input in &inputs {
        let golden = format!("{}{GOLDEN}", input.strip_suffix(INPUT).unwrap());
        let actual = expand_file(&directory.join(input));
        let path = directory.join(&golden);
        if bless {
            fs::write(&path, actual).unwrap();
        } else {
            match fs::read_to_string(&path) {
                Ok(reviewed) if reviewed == actual => {}
                Ok(_) => {
                    complaints.push(format!("{golden} is stale; the expansion now is\n{actual}"))
                }
                Err(error) => complaints.push(format!("{golden} cannot be read: {error}")),
            }
        }
        expected.insert(golden);
    }
    for orphan in goldens.difference(&expected) {
        if bless {
            fs::remove_file(directory.join(orphan)).unwrap();
        } else {
            complaints.push(format!("{orphan} has no input"));
        }
    }
    assert!(
        complaints.is_empty(),
        "{}\n\nBLESS=1 cargo test -p switcher-macros accepts this",
        complaints.join("\n\n")
    );
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Replaces items that derive `AsmLayout` by what the derive adds to them, and `asm!` statements
/// of functions by their expansion.
fn expand_file(path: &Path) -> String {
    let source = fs::read_to_string(path).unwrap();
    let file = syn::parse_file(&source).unwrap();
    let mut bodies = Vec::new();
    let items = file.items.into_iter().map(|item| match item {
        Item::Fn(mut function) => {
            for stmt in &mut function.block.stmts {
                *stmt = expand_asm(stmt, &mut bodies);
            }
            quote!(#function)
        }
        Item::Struct(item) => derive(&item.attrs, quote!(#item)),
        Item::Enum(item) => derive(&item.attrs, quote!(#item)),
        Item::Union(item) => derive(&item.attrs, quote!(#item)),
        other => panic!("{} is of no use in {}", quote!(#other), path.display()),
    });
    let expansion = prettyplease::unparse(&syn::parse2(quote!(#(#items)*)).unwrap());
    bodies.iter().fold(expansion, |text, (placeholder, body)| text.replace(placeholder, body))
}

fn derive(attrs: &[Attribute], item: TokenStream) -> TokenStream {
    assert!(attrs.iter().any(|attr| attr.path().is_ident("derive")), "{item} derives nothing");
    crate::derive(&syn::parse2(item).unwrap())
}

/// Expands an `asm!` statement. The contents of the `dynasm!` are not Rust, and prettyplease would
/// print them without any layout, so they go to `bodies`, a statement per line, and leave a
/// placeholder.
fn expand_asm(stmt: &Stmt, bodies: &mut Vec<(String, String)>) -> Stmt {
    let Stmt::Macro(asm) = stmt else { panic!("{} is not an asm! statement", quote!(#stmt)) };
    assert!(asm.mac.path.is_ident("asm"), "only asm! can be expanded");
    let mut block: Block = syn::parse2(asm::expand(asm.mac.tokens.clone())).unwrap();
    let Some(Stmt::Macro(dynasm)) = block.stmts.last_mut() else {
        panic!("{} does not end in a dynasm!", quote!(#block))
    };
    let body: Vec<TokenTree> = dynasm.mac.tokens.clone().into_iter().collect();
    let statements: Vec<_> = body
        .split(|token| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ';'))
        .map(|statement| text::of(statement.iter().cloned().collect::<TokenStream>()))
        .collect();
    let placeholder = format!("STATEMENTS_{}", bodies.len());
    let ident = format_ident!("{placeholder}");
    dynasm.mac.tokens = quote!(#ident);
    let body = statements.join("\n            ; ").replace("; \n            ; ", ";; ");
    bodies.push((placeholder, body));
    Stmt::Expr(Expr::Block(ExprBlock { attrs: Vec::new(), label: None, block }), None)
}
