//! Takes the names of the kernel's cases, and what is said of them, from the kernel's own tables.
//!
//! The tables are ordinary Rust, `&[HostCase { name: ..., ..., run: ... }, ...]`, which the kernel
//! compiles. Each entry is copied here without its function.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use quote::{ToTokens, quote};
use syn::{Expr, ExprStruct, File, Item, Member};

/// The field that stays with the kernel.
const FUNCTION: &str = "run";

fn main() {
    let kernel = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../kernel/src");
    let cases = kernel.join("cases");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", cases.display());

    let self_tests = table(&kernel.join("selftest.rs"), "TESTS");
    let mut host_cases = Vec::new();
    // The order is that of the list of tables: `&[other_cpus::CASES, roots::CASES, ...]`.
    for path in constant(&parse(&cases.join("mod.rs")), "TABLES") {
        let Expr::Path(path) = path else { panic!("TABLES has an entry that names no table") };
        let names: Vec<_> = path.path.segments.iter().map(|part| part.ident.to_string()).collect();
        let [file, table_name] = &names[..] else { panic!("{names:?} is no file and its table") };
        host_cases.extend(table(&cases.join(format!("{file}.rs")), table_name));
    }
    assert!(!self_tests.is_empty() && !host_cases.is_empty(), "the kernel's tables are empty");

    let lists = quote! {
        /// The self tests, in the order in which the kernel runs them.
        pub const SELFTESTS: &[SelfTest] = &[#(#self_tests),*];
        /// The host cases, in the order in which the kernel runs them.
        pub const HOST_CASES: &[HostCase] = &[#(#host_cases),*];
    };
    let output = PathBuf::from(variable("OUT_DIR")).join("cases.rs");
    fs::write(output, lists.to_string()).expect("OUT_DIR can be written to");
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|why| panic!("{name}: {why}"))
}

fn parse(path: &Path) -> File {
    println!("cargo::rerun-if-changed={}", path.display());
    let source = fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    syn::parse_file(&source).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// The elements of a constant that is a reference to an array.
fn constant(file: &File, name: &str) -> Vec<Expr> {
    let value = file.items.iter().find_map(|item| match item {
        Item::Const(item) if item.ident == name => Some(&*item.expr),
        _ => None,
    });
    match value {
        Some(Expr::Reference(reference)) => match &*reference.expr {
            Expr::Array(array) => array.elems.iter().cloned().collect(),
            _ => panic!("{name} is no reference to an array"),
        },
        _ => panic!("there is no table {name}, or it is no reference"),
    }
}

/// The entries of a file's table, without their functions.
fn table(path: &Path, name: &str) -> Vec<ExprStruct> {
    let entries = constant(&parse(path), name);
    let entry = |expression| match expression {
        Expr::Struct(mut entry) => {
            let fields = entry.fields.into_iter().filter(|field| match &field.member {
                Member::Named(field) => field != FUNCTION,
                Member::Unnamed(_) => true,
            });
            entry.fields = fields.collect();
            entry
        }
        other => panic!("{}: {} is no entry", path.display(), other.to_token_stream()),
    };
    entries.into_iter().map(entry).collect()
}
