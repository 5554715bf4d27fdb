//! Rust structs as typed assembler operands.
//!
//! Assembly reaches into structs by number: `mov rsp, gs:[4]`. If the number and the struct drift
//! apart, nothing complains until a guest runs on the wrong stack. The two macros of this crate
//! leave no number to write:
//!
//! - [`#[derive(AsmLayout)]`](macro@AsmLayout) gives a `#[repr(C)]` struct a constant per field,
//!   an `Offset<Struct, FieldType>`, and asserts the numbers a specification demands.
//! - [`asm!`] is [dynasm](https://docs.rs/dynasm) whose memory operands are such offsets, and only
//!   such: a 64-bit access to a 32-bit field does not compile, neither does `[rsp + 8]`.
//!
//! ```
//! use switcher_gen::asm::Sink;
//! use switcher_macros::{AsmLayout, asm};
//!
//! /// What the hardware reads on a change of privilege.
//! #[repr(C)]
//! #[derive(AsmLayout)]
//! pub struct Stacks {
//!     /// Which of the stacks is in use.
//!     pub current: u32,
//!     _reserved: u32,
//!     /// The stack of ring 0.
//!     #[asm(at = 8)]
//!     pub sp0: u64,
//! }
//!
//! /// One CPU's data, to which GS points.
//! #[repr(C)]
//! #[derive(AsmLayout)]
//! pub struct PerCpu {
//!     /// Which CPU this is.
//!     pub id: u64,
//!     /// Where the stacks are.
//!     #[asm(nested)]
//!     pub stacks: Stacks,
//! }
//!
//! fn emit(code: &mut impl Sink) {
//!     asm!(code
//!         /// From here on there is a stack.
//!         ; gs mov rsp, QWORD [PerCpu::stacks + Stacks::sp0]
//!         ; push rcx
//!     );
//! }
//!
//! assert_eq!((PerCpu::stacks + Stacks::sp0).bytes(), 16);
//! ```
//!
//! The expansions name `::switcher_gen` for everything they use, so this crate is useful only
//! together with `switcher-gen`, which re-exports both macros.
//!
//! # Reading the source
//!
//! The derive parses (`ast.rs`, `repr.rs`), validates (`validate.rs`), then expands (`expand.rs`).
//! A rejected struct goes to `fallback.rs`, which keeps one mistake from causing a second message.
//! `asm!` is in `asm.rs`, and what it believes of mnemonics in `access.rs`; `text.rs` turns tokens
//! back into readable text for both.
//!
//! `tests/expand` shows what comes out (`BLESS=1 cargo test -p switcher-macros` rewrites it),
//! `tests/ui` what is rejected and with which words (`TRYBUILD=overwrite` rewrites those).

extern crate proc_macro;

mod access;
mod asm;
mod ast;
mod expand;
mod fallback;
mod repr;
mod text;
mod validate;

#[cfg(test)]
mod expand_tests;

use proc_macro::TokenStream;

/// Gives a struct a constant with the offset of each field, and a `Layout` for listings.
///
/// It is for `#[repr(C)]` structs with named fields and without generics, whose alignment may be
/// raised by `align(N)`.
///
/// # What it generates
///
/// - For each field a constant of the field's name, visibility and documentation: its
///   `Offset<Self, FieldType>`. Fields whose names start with `_` are padding and get none.
/// - An impl of `switcher_gen::layout::AsmLayout`, whose `LAYOUT` lists all fields, padding
///   included.
///
/// # Attributes
///
/// | on a field | |
/// |---|---|
/// | `#[asm(at = 0x40)]` | asserts the field's offset |
/// | `#[asm(nested)]` | the field is a struct that derives `AsmLayout` too, and `LAYOUT` says so |
///
/// | on the struct | |
/// |---|---|
/// | `#[asm(size = 0x80)]` | asserts the struct's size |
/// | `#[asm(align = 64)]` | asserts the struct's alignment |
///
/// All values are integer literals, in bytes. Assertions are checked by rustc against the layout
/// it chose and never influence it.
///
/// ```
/// use switcher_macros::AsmLayout;
/// use switcher_gen::layout::AsmLayout as _;
///
/// /// A far pointer.
/// #[repr(C)]
/// #[derive(AsmLayout)]
/// #[asm(size = 16)]
/// struct FarPointer {
///     /// The address.
///     offset: u64,
///     /// The segment.
///     #[asm(at = 8)]
///     selector: u16,
///     _reserved: [u16; 3],
/// }
///
/// assert_eq!(FarPointer::selector.bytes(), 8);
/// assert_eq!(FarPointer::LAYOUT.fields[1].doc, "The segment.");
/// assert_eq!(FarPointer::LAYOUT.fields[2].ty, "[u16; 3]");
/// ```
///
/// A wrong assertion does not compile:
///
/// ```compile_fail,E0080
/// # use switcher_macros::AsmLayout;
/// #[repr(C)]
/// #[derive(AsmLayout)]
/// struct FarPointer {
///     offset: u32,
///     #[asm(at = 8)] // it is at 4
///     selector: u16,
/// }
/// ```
#[proc_macro_derive(AsmLayout, attributes(asm))]
pub fn derive_asm_layout(input: TokenStream) -> TokenStream {
    let input = syn::parse_macro_input!(input as syn::DeriveInput);
    derive(&input).into()
}

/// Emits x86-64 code whose memory operands are fields of structs.
///
/// `asm!(sink ; statement ; statement ..)` takes the name of a variable, something with the
/// methods that `dynasm!` calls and that implements `switcher_gen::asm::Sink`, and statements in
/// [dynasm's x64 syntax](https://censoredusername.github.io/dynasm-rs/language/langref_x64.html):
/// instructions, labels, directives and, after a doubled semicolon, Rust. What differs:
///
/// # Memory operands
///
/// ```text
/// SIZE [ register ]
/// SIZE [ register + offset + offset .. ]        32-bit displacement
/// SIZE [ BYTE register + offset + offset .. ]   8-bit displacement
/// SIZE [ offset + offset .. ]                   with `percpu`, `gs` or `fs` in front
/// SIZE [ =>label ]                              a place in the code, named by a path
/// ```
///
/// `SIZE` is `BYTE`, `WORD`, `DWORD` or `QWORD`, and only LEA of a label is without. The register
/// is a 64-bit general-purpose one. An offset is a constant expression of type `Offset`, usually a
/// field (`Tss::sp0`), perhaps with one of `Offset`'s methods
/// (`Pvcs::user_cs.pair(Pvcs::user_ss)`), whose receiver may be a sum in parentheses
/// (`(Frame::iret + Iret::cs).below_end()`). Each offset starts in the struct in which the previous
/// one ends, and the last one's field must be as wide as `SIZE` says. Whether an 8-bit displacement
/// reaches is found out when the code around it is built, `cargo check` being blind to constants in
/// generic functions.
///
/// What is accessed is the field, all of it and nothing else. So `asm!` takes memory operands only
/// of mnemonics of which it knows that (`switcher-macros/src/access.rs`): the usual ones of
/// general-purpose registers. Of a bit in memory the number is a literal; what POP writes by RSP
/// is counted from where RSP points after it (`Struct::field.below_end()`); and string
/// instructions, XLAT and the like, which no operand shows to access memory, are refused.
///
/// # Prefixes
///
/// `gs` and `fs` are for an address without a register, and for nothing else: no base of a segment
/// is added to what a register points to, and LEA adds none at all. `lock` goes where a CPU takes
/// it. The other segments' prefixes and those of string instructions are refused.
///
/// # The per-CPU block
///
/// `percpu` in front of an instruction says that its memory operand, which has no register, is a
/// field of the per-CPU block: of a struct with `switcher_gen::layout::BlockLayout`. How that is
/// reached is the sink's to say (`Sink::placement`): with a GS prefix, or relative to RIP.
///
/// # More mnemonics
///
/// `asm!` also takes `endbr64`, `sysretq` and `sysretl`, which dynasm lacks.
///
/// # Traps
///
/// After RET, IRET, SYSRET, SYSEXIT, a far JMP and JMP through a register or memory, `asm!` writes
/// an INT3: nothing is executed there, but CPUs go on there before they know where the instruction
/// leads (CVE-2021-26341, straight-line speculation). So no emitter can forget it, except where it
/// writes bytes by a directive or in Rust. A jump or call leads to a label, a register or a field,
/// and never so many bytes on.
///
/// # Notes for the listing
///
/// In front of each instruction, `asm!` calls the sink's
///
/// - `comment`, for each line of a doc comment on the statement (labels and directives may have
///   one too);
/// - `source`, with the file and line the instruction was written in;
/// - `operand`, with what `switcher_gen::layout::layout_of` says of a memory operand's offset;
/// - `immediate`, with the text of an operand that is neither a register, a literal nor a label.
///
/// ```
/// use switcher_gen::asm::Sink;
/// use switcher_macros::{AsmLayout, asm};
///
/// /// What IRETQ pops.
/// #[repr(C)]
/// #[derive(AsmLayout)]
/// struct Frame {
///     /// The instruction to return to.
///     rip: u64,
///     /// Its code segment.
///     cs: u64,
///     /// RFLAGS from there on.
///     rflags: u64,
/// }
///
/// const INTERRUPTS: i32 = 1 << 9;
///
/// fn emit(code: &mut impl Sink) {
///     asm!(code
///         ; endbr64
///         /// Nothing may interrupt what follows.
///         ; and QWORD [BYTE rsp + Frame::rflags], !INTERRUPTS
///         ; mov rcx, QWORD [rsp]
///         ; iretq
///     );
/// }
/// ```
///
/// A field of another width, or a number in a field's place, does not compile:
///
/// ```compile_fail
/// # use switcher_gen::asm::Sink;
/// # use switcher_macros::{AsmLayout, asm};
/// # #[repr(C)]
/// # #[derive(AsmLayout)]
/// # struct Frame { rip: u64 }
/// # fn emit(code: &mut impl Sink) {
/// asm!(code ; mov ecx, DWORD [rsp + Frame::rip]);
/// # }
/// ```
/// ```compile_fail
/// # use switcher_gen::asm::Sink;
/// # use switcher_macros::asm;
/// # fn emit(code: &mut impl Sink) {
/// asm!(code ; mov rcx, QWORD [rsp + 8]);
/// # }
/// ```
#[proc_macro]
pub fn asm(input: TokenStream) -> TokenStream {
    asm::expand(input.into()).into()
}

/// The output for a struct: its constants, or the reason why it is rejected with what keeps that
/// one mistake from causing more.
fn derive(input: &syn::DeriveInput) -> proc_macro2::TokenStream {
    expand::derive(input).unwrap_or_else(|error| fallback::derive(input, &error))
}
