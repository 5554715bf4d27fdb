//! `asm!`: dynasm's syntax with struct fields as memory operands.
//!
//! The macro understands just enough of each statement to rewrite it: where operands begin and
//! end, and which of them are memory. Everything else, above all which instructions exist and how
//! they are encoded, is left to `dynasm!`, to which the rewritten statements go. Between them it
//! puts calls that tell the sink what a listing wants to know of the instruction that follows.
//!
//! Three properties are worth keeping in mind when changing this file:
//! - A displacement reaches `dynasm!` only as the result of `disp8` or `disp32`, evaluated in a
//!   `const` block. There must be no second way: no raw numbers, no index registers, no dynasm
//!   type maps, no register aliases that would hide a register from [`Operand::parse`].
//! - What an instruction may be written as is decided by `Instruction::parse`, with the table in
//!   `access.rs`, and every instruction leaves by `Instruction::expand`, which puts the trap after
//!   it. A new form is a new way through both, and not around them.
//! - Each offset expression is expanded once, so that a mistake in it is reported once.

use proc_macro2::{Delimiter, Group, Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::parse::{ParseStream, Parser};
use syn::spanned::Spanned;
use syn::{
    Attribute, BinOp, Error, Expr, ExprBinary, ExprLit, ExprUnary, Lit, Meta, Result, Token, UnOp,
    parse_quote_spanned,
};

use crate::access::{self, Access};
use crate::text;

pub(crate) fn expand(input: TokenStream) -> TokenStream {
    try_expand(input).unwrap_or_else(Error::into_compile_error)
}

fn try_expand(input: TokenStream) -> Result<TokenStream> {
    let (sink, statements) = Parser::parse2(parse, input)?;
    let statements = statements.iter().map(|statement| statement.expand(&sink));
    Ok(quote! {{
        // The sink's methods are called as methods, so that any kind of reference will do.
        #[allow(unused_imports)]
        use ::switcher_gen::__private::Sink as _;
        ::switcher_gen::__private::dynasm! { #sink ; .arch x64 #(#statements)* }
    }})
}

/// The sink's name and the statements.
fn parse(input: ParseStream<'_>) -> Result<(Ident, Vec<Statement>)> {
    let sink = input.parse()?;
    let mut statements = Vec::new();
    let mut errors: Option<Error> = None;
    // Doc comments may stand before or after the `;` that introduces their statement.
    let mut comments = Comments::parse(input)?;
    while !input.is_empty() {
        input.parse::<Token![;]>()?;
        let is_rust = input.peek(Token![;]) && input.parse::<Token![;]>().is_ok();
        match parse_within(take_until_semicolon(input)?, |chunk| {
            comments.extend(Comments::parse(chunk)?);
            let body = if is_rust {
                Some(Body::Rust(take_until_comment(chunk)?))
            } else {
                Body::parse(chunk)?
            };
            let behind = Comments::parse(chunk)?;
            if !chunk.is_empty() {
                return Err(chunk.error("expected `,` and another operand, or `;`"));
            }
            Ok((body, behind))
        }) {
            Ok((Some(body), behind)) => {
                let comments = std::mem::replace(&mut comments, behind);
                statements.push(Statement { comments, body });
            }
            // This is a comment between two semicolons, or a semicolon at the end.
            Ok((None, _)) => {}
            // Parsing goes on, to report the mistakes of all statements at once.
            Err(error) => match &mut errors {
                Some(errors) => errors.combine(error),
                None => errors = Some(error),
            },
        }
    }
    match errors {
        Some(errors) => Err(errors),
        None => comments.none_left().map(|()| (sink, statements)),
    }
}

/// Runs `parser` on `tokens` such that an unexpected end is reported at their last token, where
/// `syn` itself would blame the whole macro invocation.
fn parse_within<T>(
    tokens: TokenStream,
    parser: impl FnOnce(ParseStream<'_>) -> Result<T>,
) -> Result<T> {
    let end = tokens.clone().into_iter().last().map_or_else(Span::call_site, |last| last.span());
    let mut group = Group::new(Delimiter::Brace, tokens);
    group.set_span(end);
    let braced = |input: ParseStream<'_>| {
        let content;
        syn::braced!(content in input);
        parser(&content)
    };
    braced.parse2(TokenTree::from(group).into())
}

fn take_until_semicolon(input: ParseStream<'_>) -> Result<TokenStream> {
    take_until(input, |input| input.peek(Token![;]))
}

fn take_until_comment(input: ParseStream<'_>) -> Result<TokenStream> {
    take_until(input, |input| {
        let ahead = input.fork();
        matches!(Attribute::parse_outer(&ahead), Ok(attrs) if attrs.iter().any(is_doc))
    })
}

fn take_until(
    input: ParseStream<'_>,
    end: impl Fn(ParseStream<'_>) -> bool,
) -> Result<TokenStream> {
    let mut tokens = TokenStream::new();
    while !input.is_empty() && !end(input) {
        tokens.extend([input.parse::<TokenTree>()?]);
    }
    Ok(tokens)
}

fn is_doc(attr: &Attribute) -> bool {
    attr.path().is_ident("doc")
}

/// The doc comments in front of a statement.
#[derive(Default)]
struct Comments {
    lines: Vec<String>,
    last: Option<Span>,
}

impl Comments {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut comments = Self::default();
        for attr in Attribute::parse_outer(input)? {
            let text = match &attr.meta {
                Meta::NameValue(meta) if is_doc(&attr) => match &meta.value {
                    Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
                    _ => None,
                },
                _ => None,
            };
            let Some(text) = text else {
                let message = "of attributes, asm! takes only doc comments";
                return Err(Error::new_spanned(attr, message));
            };
            // `///` makes one attribute per line, `/** */` one of many.
            let lines = text.split('\n').map(|line| line.strip_prefix(' ').unwrap_or(line));
            comments.lines.extend(lines.map(|line| line.trim_end().to_owned()));
            comments.last = Some(attr.bracket_token.span.join());
        }
        Ok(comments)
    }

    fn extend(&mut self, later: Self) {
        self.lines.extend(later.lines);
        self.last = later.last.or(self.last);
    }

    fn none_left(&self) -> Result<()> {
        match self.last {
            None => Ok(()),
            Some(span) => Err(Error::new(span, "no statement follows this comment")),
        }
    }
}

struct Statement {
    comments: Comments,
    body: Body,
}

impl Statement {
    fn expand(&self, sink: &Ident) -> TokenStream {
        let comments = self.comments.lines.iter().map(|line| quote!(;; #sink.comment(#line)));
        let body = match &self.body {
            Body::Rust(tokens) => quote!(;; #tokens),
            Body::Verbatim(tokens) => quote!(; #tokens),
            Body::Instruction(instruction) => instruction.expand(sink),
        };
        quote!(#(#comments)* #body)
    }
}

enum Body {
    /// A Rust statement, which dynasm marks with a doubled semicolon.
    Rust(TokenStream),
    /// A label or a directive.
    Verbatim(TokenStream),
    Instruction(Instruction),
}

impl Body {
    /// The statement, or `None` if there are only comments.
    fn parse(input: ParseStream<'_>) -> Result<Option<Self>> {
        if input.is_empty() {
            return Ok(None);
        }
        let is_label = input.peek(Token![->])
            || input.peek(Token![=>])
            || (input.peek(syn::Ident::peek_any) && input.peek2(Token![:]));
        if is_label {
            return take_until_comment(input).map(Self::Verbatim).map(Some);
        }
        if input.peek(Token![.]) {
            let ahead = input.fork();
            ahead.parse::<Token![.]>()?;
            let name = ahead.call(Ident::parse_any)?;
            if name == "alias" {
                let message = "asm! knows registers by their own names only";
                return Err(Error::new(name.span(), message));
            }
            if name == "arch" {
                return Err(Error::new(name.span(), "asm! assembles for x64 only"));
            }
            return take_until_comment(input).map(Self::Verbatim).map(Some);
        }
        Instruction::parse(input).map(Self::Instruction).map(Some)
    }
}

struct Instruction {
    /// Prefixes, then the mnemonic.
    words: Vec<Ident>,
    operands: Vec<Operand>,
}

impl Instruction {
    /// The words that dynasm takes for a prefix instead of a mnemonic.
    const PREFIXES: [&str; 12] =
        ["lock", "rep", "repe", "repz", "repne", "repnz", "cs", "ds", "es", "fs", "gs", "ss"];
    /// A prefix of our own: the memory operand is a field of the per-CPU block, reached in the way
    /// of the sink's placement.
    const PERCPU: &str = "percpu";

    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut words = Vec::new();
        loop {
            let Ok(word) = input.call(Ident::parse_any) else {
                return Err(input.error("expected an instruction"));
            };
            let is_prefix =
                word == Self::PERCPU || Self::PREFIXES.iter().any(|known| word == known);
            words.push(word);
            if !is_prefix {
                break;
            }
        }
        let mut operands = Vec::new();
        if !input.is_empty() && !input.peek(Token![#]) {
            operands.push(Operand::parse(input)?);
            while input.peek(Token![,]) {
                input.parse::<Token![,]>()?;
                operands.push(Operand::parse(input)?);
            }
        }
        let mut instruction = Self { words, operands };
        instruction.check_prefixes()?;
        instruction.check_percpu()?;
        instruction.check_absolute()?;
        instruction.check_segment()?;
        instruction.check_access()?;
        instruction.check_count()?;
        instruction.check_labels()?;
        instruction.check_registers()?;
        instruction.check_stack()?;
        if instruction.percpu().is_some() {
            instruction.operands.iter_mut().for_each(Operand::in_per_cpu_block);
        }
        if instruction.mnemonic() == "pop" {
            instruction.operands.iter_mut().try_for_each(Operand::after_pop)?;
        }
        Ok(instruction)
    }

    fn mnemonic(&self) -> &Ident {
        self.words.last().expect("an instruction has a mnemonic")
    }

    fn prefixes(&self) -> &[Ident] {
        &self.words[..self.words.len() - 1]
    }

    /// The `percpu` in front, if there is one.
    fn percpu(&self) -> Option<&Ident> {
        self.words.first().filter(|word| *word == Self::PERCPU)
    }

    /// Refuses prefixes that mean nothing, wherever they stand. dynasm knows where `lock` does not
    /// belong.
    fn check_prefixes(&self) -> Result<()> {
        for prefix in self.prefixes() {
            let name = prefix.to_string();
            let message = match name.as_str() {
                "cs" | "ds" | "es" | "ss" => format!(
                    "`{name}` moves no address in 64-bit mode: drop it, and if it says something \
                     else to the CPU, write it as `.bytes`"
                ),
                _ if name.starts_with("rep") => format!("`{name}` repeats {HIDDEN}"),
                _ if self.own_bytes().is_some() => {
                    format!("`{name}` means nothing in front of this instruction: drop it")
                }
                _ => continue,
            };
            return Err(Error::new(prefix.span(), message));
        }
        Ok(())
    }

    fn check_percpu(&self) -> Result<()> {
        let stray = self.words.iter().skip(1).find(|word| *word == Self::PERCPU);
        if let Some(word) = stray.or_else(|| self.percpu().filter(|_| self.words.len() != 2)) {
            return Err(Error::new(word.span(), "`percpu` is the only prefix of its instruction"));
        }
        let Some(word) = self.percpu() else { return Ok(()) };
        if self.operands.iter().any(|operand| operand.absolute().is_some()) {
            return Ok(());
        }
        let message = "`percpu` is for a field of the per-CPU block: `SIZE [PerCpu::field]`, without \
                       a register";
        Err(Error::new(word.span(), message))
    }

    /// `percpu`, `gs` or `fs`.
    fn base(&self) -> Option<&Ident> {
        let is_base = |word: &&Ident| [Self::PERCPU, "fs", "gs"].iter().any(|known| *word == known);
        self.prefixes().iter().find(is_base)
    }

    /// An address without a register is a number of bytes from where a segment starts; from zero,
    /// there is no struct.
    fn check_absolute(&self) -> Result<()> {
        match self.operands.iter().find_map(Operand::absolute) {
            Some(span) if self.base().is_none() => Err(Error::new(
                span,
                "this address has no register: say what it is counted from, by `percpu`, `gs` or \
                 `fs` in front of the instruction",
            )),
            _ => Ok(()),
        }
    }

    /// The other way round, an address is counted from one place: a register that points to a
    /// struct does so without the segment's base.
    fn check_segment(&self) -> Result<()> {
        let Some(word) = self.base() else { return Ok(()) };
        let message = if self.operands.iter().all(|operand| operand.absolute().is_none()) {
            format!(
                "`{word}` is for a field that is counted from its base: `SIZE [Struct::field]`, \
                 without a register"
            )
        } else if access::of(&self.mnemonic().to_string()) == Some(Access::Address) {
            format!(
                "this instruction computes an address without the base of a segment, so `{word}` \
                 means nothing: load the base into a register, and write \
                 `[register + Struct::field]`"
            )
        } else {
            return Ok(());
        };
        Err(Error::new(word.span(), message))
    }

    /// The instruction accesses the bytes that its memory operand says, and no others.
    fn check_access(&self) -> Result<()> {
        let mnemonic = self.mnemonic();
        let name = mnemonic.to_string();
        if access::is_hidden(&name, self.operands.len()) {
            return Err(Error::new(mnemonic.span(), format!("`{name}` is one of the {HIDDEN}")));
        }
        let Some((hint, width, span)) = self.operands.iter().find_map(Operand::memory) else {
            return Ok(());
        };
        let Some(access) = access::of(&name) else {
            let message = format!(
                "`{name}` is not known to access a field, all of it and nothing else: use a \
                 register and MOV, or enter `{name}` into switcher-macros/src/access.rs with what \
                 the manual says of it"
            );
            return Err(Error::new(mnemonic.span(), message));
        };
        let Some(hint) = hint else {
            return match access {
                Access::Address => self.check_address(),
                _ => Err(Error::new(span, NO_SIZE)),
            };
        };
        match access {
            Access::AsWritten => Ok(()),
            Access::Of(bytes) => check_width(hint, width, bytes),
            Access::Pop => check_width(hint, width, 8),
            Access::Bit => self.check_bit(),
            Access::Address => self.check_address(),
        }
    }

    /// The number of a bit in memory is one that is known, so that `check_count` can tell whether
    /// the field has it.
    fn check_bit(&self) -> Result<()> {
        match self.operands.get(1) {
            None | Some(Operand::Literal { .. }) => Ok(()),
            Some(number) => Err(Error::new_spanned(
                number.expand(true),
                "this need not be a bit of the field: in memory, the bit's number is a literal; \
                 else use a register, or TEST, OR, AND, XOR",
            )),
        }
    }

    /// A literal that counts bits is less than the bits of what it is about.
    fn check_count(&self) -> Result<()> {
        let Some(Operand::Literal { value, .. }) = access::count(&self.mnemonic().to_string())
            .and_then(|position| self.operands.get(position))
        else {
            return Ok(());
        };
        let bits = match &self.operands[0] {
            Operand::Register { name, .. } => bits_of(name),
            operand => operand.memory().map(|(_, width, _)| 8 * width),
        };
        let count = match value {
            Expr::Lit(ExprLit { lit: Lit::Int(count), .. }) => count.base10_parse::<usize>().ok(),
            _ => None,
        };
        match (bits, count) {
            (Some(bits), Some(count)) if count < bits => Ok(()),
            (None, _) => Ok(()),
            (Some(bits), _) => Err(Error::new_spanned(
                value,
                format!(
                    "the operand has {bits} bits, and this is beyond them: write a number of 0 to {}",
                    bits - 1
                ),
            )),
        }
    }

    /// All of the address is wanted.
    fn check_address(&self) -> Result<()> {
        match self.operands.first() {
            Some(Operand::Register { name, .. }) if bits_of(name) != Some(64) => {
                Err(Error::new_spanned(
                    name,
                    "this register has no room for an address: use its 64-bit name",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Where a jump leads is named, not computed, and what is no jump has no use for a distance.
    fn check_labels(&self) -> Result<()> {
        let leads = access::leads_to_label(&self.mnemonic().to_string());
        for operand in &self.operands {
            let message = match operand {
                Operand::Label(_) if !leads => {
                    "only a jump or a call takes a label like this: `lea register, [=>label]` has \
                     the address of a place in the code"
                }
                Operand::Literal { .. } | Operand::Immediate { .. } if leads => {
                    "this is neither a label nor a register: a distance in the code is not written \
                     as a number, so put a label where it leads"
                }
                Operand::Register { name, .. } if leads && bits_of(name) != Some(64) => {
                    "this register has no room for an address: use its 64-bit name"
                }
                _ => continue,
            };
            return Err(Error::new_spanned(operand.expand(true), message));
        }
        Ok(())
    }

    /// The registers that are named exist, and can be named like this.
    fn check_registers(&self) -> Result<()> {
        for operand in &self.operands {
            let Operand::Register { name, .. } = operand else { continue };
            let message = match as_ident(name).map(Ident::to_string) {
                None if is_register_of(name, &["Rs", "RC", "RD"]) => {
                    "asm! knows segment, control and debug registers by their own names only"
                }
                Some(name) if is_missing_register(&name) => {
                    "there is no such register: a CPU raises #UD, or takes another one"
                }
                _ => continue,
            };
            return Err(Error::new_spanned(name, message));
        }
        let Some(segment) = self.loads_segment() else { return Ok(()) };
        let message = if segment == "cs" {
            "CS is not loaded by MOV, which would raise #UD: use a far return or IRETQ"
        } else if self.own_bytes().is_none() {
            "dynasm encodes this as a store of the segment register: load it from a 16-bit \
             register by name"
        } else {
            return Ok(());
        };
        Err(Error::new(segment.span(), message))
    }

    /// PUSH and POP move RSP by 8.
    fn check_stack(&self) -> Result<()> {
        const MESSAGE: &str =
            "this would move RSP by 2, and no stack of 64-bit code has halves: use 64 bits";
        let mnemonic = self.mnemonic();
        if ["pushfw", "popfw"].iter().any(|known| mnemonic == known) {
            return Err(Error::new(mnemonic.span(), MESSAGE));
        }
        let [operand] = self.operands.as_slice() else { return Ok(()) };
        let is_word = match operand {
            Operand::Literal { hint, .. } | Operand::Immediate { hint, .. } => {
                hint.as_ref().is_some_and(|hint| hint == "WORD")
            }
            Operand::Register { name, .. } => bits_of(name) == Some(16),
            _ => false,
        };
        if !is_word || !["push", "pop"].iter().any(|known| mnemonic == known) {
            return Ok(());
        }
        Err(Error::new_spanned(operand.expand(true), MESSAGE))
    }

    /// The destination of a MOV, if it is a segment register.
    fn loads_segment(&self) -> Option<&Ident> {
        match self.operands.first() {
            Some(Operand::Register { name, .. }) if self.mnemonic() == "mov" => {
                as_ident(name).filter(|name| segment_number(name).is_some())
            }
            _ => None,
        }
    }

    /// The bytes of `mov sreg, r16`, which dynasm 5.1 encodes as `mov r16, sreg`.
    fn segment_load(&self) -> Option<TokenStream> {
        let segment = segment_number(self.loads_segment()?)?;
        let [_, Operand::Register { name, .. }] = self.operands.as_slice() else { return None };
        let source = as_ident(name)?;
        let source = (0_u8..).zip(WORDS).find(|(_, word)| source == word)?.0;
        let modrm = 0xC0 | segment << 3 | source;
        Some(quote!(.bytes &[0x8e, #modrm]))
    }

    /// The bytes of an instruction that dynasm 5.1 does not know, or gets wrong.
    fn own_bytes(&self) -> Option<TokenStream> {
        let mnemonic = self.mnemonic();
        if mnemonic == "retfq" {
            return Some(far_return(&self.operands));
        }
        let missing = self.operands.is_empty().then(|| missing_from_dynasm(mnemonic)).flatten();
        missing.or_else(|| self.segment_load())
    }

    /// All instructions leave the macro here, whatever they are encoded by: their line and their
    /// operands before it, and the trap after it.
    fn expand(&self, sink: &Ident) -> TokenStream {
        let line = u32::try_from(self.words[0].span().start().line).unwrap_or(u32::MAX);
        let notes = self.operands.iter().map(|operand| operand.note(sink));
        let code = self.encode(sink);
        // Straight-line speculation after it ends at once: see the crate's documentation.
        let by_label = matches!(self.operands.as_slice(), [Operand::Label(_)]);
        let trap = access::is_last(&self.mnemonic().to_string(), by_label).then(|| {
            quote! {
                ;; #sink.source(::core::file!(), #line)
                ; int3
            }
        });
        quote! {
            ;; #sink.source(::core::file!(), #line)
            #(#notes)*
            #code
            #trap
        }
    }

    /// The statements of dynasm's that encode it.
    fn encode(&self, sink: &Ident) -> TokenStream {
        let Self { words, operands } = self;
        if let Some(bytes) = self.own_bytes() {
            return quote!(; #bytes);
        }
        let mnemonic = self.mnemonic();
        let sized = !access::is_sizeless(&mnemonic.to_string());
        let plain = operands.iter().map(|operand| operand.expand(sized));
        if self.percpu().is_none() {
            return quote!(; #(#words)* #(#plain),*);
        }
        let rip = operands.iter().map(|operand| operand.expand_rip_relative(sized));
        quote! {
            ;; match #sink.placement() {
                ::switcher_gen::layout::Placement::Gs => {
                    ::switcher_gen::__private::dynasm!(#sink ; .arch x64 ; gs #mnemonic #(#plain),*)
                }
                ::switcher_gen::layout::Placement::PerCpu => {
                    ::switcher_gen::__private::dynasm!(#sink ; .arch x64 ; #mnemonic #(#rip),*)
                }
            }
        }
    }
}

/// What string instructions and their like are, and the way out.
const HIDDEN: &str = "instructions that access memory which no operand names, and for which no \
                      struct vouches: access fields by MOV, or write `.bytes`";

const NO_SIZE: &str =
    "a memory operand needs its size in front: `BYTE`, `WORD`, `DWORD` or `QWORD`";

/// The memory operand of an instruction that knows one size only is of that size.
fn check_width(hint: &Ident, width: usize, wanted: usize) -> Result<()> {
    if width == wanted {
        return Ok(());
    }
    let name = SIZES.iter().find(|(_, bytes)| *bytes == wanted).map_or("", |(name, _)| name);
    let bits = 8 * wanted;
    let message = format!("the memory operand of this instruction has {bits} bits: write `{name}`");
    Err(Error::new(hint.span(), message))
}

/// The bytes of instructions that dynasm 5.1 has no name for.
fn missing_from_dynasm(mnemonic: &Ident) -> Option<TokenStream> {
    let bytes = match mnemonic.to_string().as_str() {
        "endbr64" => quote!(&[0xf3, 0x0f, 0x1e, 0xfa]),
        // This returns to 64-bit mode: REX.W, then the opcode of dynasm's `sysret`.
        "sysretq" => quote!(&[0x48, 0x0f, 0x07]),
        // This returns to compatibility mode: dynasm's `sysret`, by a name that says so.
        "sysretl" => quote!(&[0x0f, 0x07]),
        _ => return None,
    };
    Some(quote!(.bytes #bytes))
}

/// The bytes of a far return in 64-bit mode: REX.W, then dynasm's `retf`, which pops 32-bit halves
/// without the prefix.
fn far_return(operands: &[Operand]) -> TokenStream {
    let operands = operands.iter().map(|operand| operand.expand(true));
    quote!(.bytes &[0x48] ; retf #(#operands),*)
}

/// A segment register's number, as in the reg field of a ModR/M byte.
fn segment_number(name: &Ident) -> Option<u8> {
    let numbered = (0_u8..).zip(["es", "cs", "ss", "ds", "fs", "gs"]);
    numbered.into_iter().find(|(_, segment)| name == segment).map(|(number, _)| number)
}

enum Operand {
    Memory(Memory),
    /// `[=>label]`: a place in the code, relative to RIP.
    Place {
        hint: Option<Ident>,
        label: TokenStream,
        span: Span,
    },
    /// Where a jump leads, with its marker, and the size of the distance in front.
    Label(TokenStream),
    Register {
        hint: Option<Ident>,
        name: Expr,
    },
    Literal {
        hint: Option<Ident>,
        value: Expr,
    },
    /// An expression whose value rustc finds out, with dynasm's size hint if it has one.
    Immediate {
        hint: Option<Ident>,
        value: Expr,
    },
}

impl Operand {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let hint = parse_hint(input)?;
        if let Some((label, span)) = parse_label_address(input)? {
            return Ok(Self::Place { hint, label, span });
        }
        if input.peek(syn::token::Bracket) {
            return Memory::parse(hint, input).map(Self::Memory);
        }
        if let Some(marker) = parse_label_marker(input)? {
            let target = parse_place(input)?;
            return Ok(Self::Label(quote!(#hint #marker #target)));
        }
        let value: Expr = input.parse()?;
        if input.peek(Token![=>]) {
            return Err(input.error(
                "asm! does not take dynasm's type maps: write `SIZE [register + Struct::field]`",
            ));
        }
        Ok(if is_register(&value) {
            Self::Register { hint, name: value }
        } else if is_literal(&value) {
            Self::Literal { hint, value }
        } else {
            Self::Immediate { hint, value }
        })
    }

    /// The position of an address that has no register.
    fn absolute(&self) -> Option<Span> {
        match self {
            Self::Memory(memory) if memory.is_absolute() => Some(memory.span),
            _ => None,
        }
    }

    /// The size in front of memory, as it is written and in bytes, and where the memory operand is.
    fn memory(&self) -> Option<(Option<&Ident>, usize, Span)> {
        match self {
            Self::Memory(memory) => Some((Some(&memory.hint), memory.width, memory.span)),
            Self::Place { hint, span, .. } => {
                let width = hint.as_ref().and_then(width_of).unwrap_or_default();
                Some((hint.as_ref(), width, *span))
            }
            _ => None,
        }
    }

    /// The memory operand without a register is a field of the per-CPU block.
    fn in_per_cpu_block(&mut self) {
        match self {
            Self::Memory(memory) if memory.is_absolute() => memory.of = Of::PerCpu,
            _ => {}
        }
    }

    /// The memory operand is what POP writes to.
    fn after_pop(&mut self) -> Result<()> {
        let Self::Memory(memory) = self else { return Ok(()) };
        match &memory.address {
            Address::Base(base) if base == "rsp" => Err(Error::new(
                base.span(),
                "POP adds 8 to RSP, and then looks where it points: name the field, as \
                 `[rsp + Struct::field.below_end()]`, of a struct that ends where RSP points then",
            )),
            Address::Field { base: Some(base), .. } if base == "rsp" => {
                memory.of = Of::PoppedStack;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What to tell the sink before the instruction.
    fn note(&self, sink: &Ident) -> TokenStream {
        match self {
            Self::Memory(memory) => memory.note(sink),
            Self::Immediate { value, .. } => {
                let text = text::of(value);
                quote!(;; #sink.immediate(#text))
            }
            _ => TokenStream::new(),
        }
    }

    /// As [`expand`](Self::expand), with a field of the per-CPU block relative to RIP.
    fn expand_rip_relative(&self, sized: bool) -> TokenStream {
        match self {
            Self::Memory(memory) => memory.expand_rip_relative(sized),
            _ => self.expand(sized),
        }
    }

    /// Expands the operand for dynasm; `sized` if the instruction takes size hints on memory.
    fn expand(&self, sized: bool) -> TokenStream {
        match self {
            Self::Memory(memory) => memory.expand(sized),
            Self::Place { hint, label, .. } => quote!(#hint [#label]),
            Self::Label(tokens) => tokens.clone(),
            Self::Register { hint, name: value }
            | Self::Literal { hint, value }
            | Self::Immediate { hint, value } => quote!(#hint #value),
        }
    }
}

/// `[=>label]`: a place in the code, relative to RIP. There is no displacement to be wrong about.
fn parse_label_address(input: ParseStream<'_>) -> Result<Option<(TokenStream, Span)>> {
    let ahead = input.fork();
    let is_label = ahead.peek(syn::token::Bracket) && {
        let content;
        syn::bracketed!(content in ahead);
        content.peek(Token![=>])
    };
    if !is_label {
        return Ok(None);
    }
    let content;
    let span = syn::bracketed!(content in input).span.join();
    let marker: Token![=>] = content.parse()?;
    let label = parse_place(&content)?;
    match content.is_empty() {
        true => Ok(Some((quote!(#marker #label), span))),
        false => Err(content.error(NO_DISTANCE)),
    }
}

/// Parses the name of a place in the code. What lies some bytes from a place has no name, and would
/// need a displacement that no struct vouches for.
fn parse_place(input: ParseStream<'_>) -> Result<Expr> {
    let place: Expr = input.parse()?;
    let mut name = &place;
    loop {
        name = match name {
            Expr::Field(field) => &field.base,
            // A call makes a name, too: `HostSymbol("..")`.
            Expr::Call(call) => &call.func,
            _ => break,
        };
    }
    match name {
        Expr::Path(_) => Ok(place),
        _ => Err(Error::new_spanned(&place, NO_DISTANCE)),
    }
}

const NO_DISTANCE: &str = "a place in the code is named, and nothing is added to its name";

/// Parses the marker that dynasm wants before a label that is an operand: `->`, `=>`, `>`, `<` or
/// `extern`.
fn parse_label_marker(input: ParseStream<'_>) -> Result<Option<TokenStream>> {
    let marker = if input.peek(Token![->]) {
        input.parse::<Token![->]>()?.into_token_stream()
    } else if input.peek(Token![=>]) {
        input.parse::<Token![=>]>()?.into_token_stream()
    } else if input.peek(Token![>]) || input.peek(Token![<]) || input.peek(Token![extern]) {
        input.parse::<TokenTree>()?.into()
    } else {
        return Ok(None);
    };
    Ok(Some(marker))
}

/// A memory operand: `SIZE [BYTE base + offset + offset]`.
struct Memory {
    hint: Ident,
    width: usize,
    /// The span of the brackets and what they enclose.
    span: Span,
    address: Address,
    of: Of,
}

/// What the offsets of an address are counted from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// Offsets count from where a register points, be it the start of a struct or its end.
    Register,
    /// Where RSP points once POP has added to it.
    PoppedStack,
    /// Where a segment starts, and a struct there.
    Segment,
    /// Offsets count from the start of the per-CPU block.
    PerCpu,
}

enum Address {
    /// The address is `[base]`.
    Base(Ident),
    /// The address is `[base + offset]` or `[offset]`; the offset is one Rust expression by now.
    Field { base: Option<Ident>, displacement: Displacement, offset: TokenStream },
}

enum Displacement {
    /// `[BYTE ..]`
    Disp8(Ident),
    Disp32,
}

impl Memory {
    fn parse(hint: Option<Ident>, input: ParseStream<'_>) -> Result<Self> {
        let content;
        let span = syn::bracketed!(content in input).span.join();
        let Some(hint) = hint else {
            return Err(Error::new(span, NO_SIZE));
        };
        let Some(width) = width_of(&hint) else {
            let message =
                format!("no field is a `{hint}` operand: use `BYTE`, `WORD`, `DWORD` or `QWORD`");
            return Err(Error::new(hint.span(), message));
        };
        let address = Address::parse(span, &content)?;
        let of = match address {
            Address::Field { base: None, .. } => Of::Segment,
            Address::Base(_) | Address::Field { .. } => Of::Register,
        };
        Ok(Self { hint, width, span, address, of })
    }

    fn is_absolute(&self) -> bool {
        matches!(self.of, Of::Segment | Of::PerCpu)
    }

    fn note(&self, sink: &Ident) -> TokenStream {
        let Address::Field { displacement, offset, .. } = &self.address else {
            return TokenStream::new();
        };
        // The span makes rustc blame the operand, not all of asm!, for a field of the wrong width.
        let span = Span::mixed_site().located_at(self.span);
        let function = match displacement {
            Displacement::Disp8(_) => quote_spanned!(span=> disp8),
            Displacement::Disp32 => quote_spanned!(span=> disp32),
        };
        let width = self.width;
        let (of, anchor) = match self.of {
            Of::Register | Of::PoppedStack => (quote!(_), quote!(_)),
            Of::Segment | Of::PerCpu => (quote!(_), quote!(::switcher_gen::layout::Start)),
        };
        let offset = match self.of {
            Of::PerCpu => quote_spanned!(span=> ::switcher_gen::layout::in_block(#offset)),
            Of::PoppedStack => quote_spanned!(span=> ::switcher_gen::layout::after_pop(#offset)),
            _ => offset.clone(),
        };
        quote_spanned! {span=>
            ;; let (operand, displacement) = const {
                let offset: ::switcher_gen::layout::Offset<#of, _, #anchor> = #offset;
                (
                    ::switcher_gen::layout::layout_of(offset),
                    ::switcher_gen::layout::#function::<#width, _, _, _>(offset)
                )
            }
            ;; #sink.operand(operand)
        }
    }

    fn expand_rip_relative(&self, sized: bool) -> TokenStream {
        let hint = sized.then_some(&self.hint);
        // As in `note`, where it is bound.
        let span = Span::mixed_site().located_at(self.span);
        let displacement = Ident::new("displacement", span);
        quote!(#hint [extern ::switcher_gen::asm::External::PerCpu(#displacement)])
    }

    fn expand(&self, sized: bool) -> TokenStream {
        let hint = sized.then_some(&self.hint);
        match &self.address {
            Address::Base(base) => quote!(#hint [#base]),
            Address::Field { base, displacement, .. } => {
                let byte = match displacement {
                    Displacement::Disp8(byte) => Some(byte),
                    Displacement::Disp32 => None,
                };
                let base = base.as_ref().map(|base| quote!(#base +));
                // The span is that of `note`, where the name is bound.
                let span = Span::mixed_site().located_at(self.span);
                let displacement = Ident::new("displacement", span);
                quote!(#hint [#byte #base #displacement])
            }
        }
    }
}

impl Address {
    /// Parses what the brackets (at `span`) enclose.
    fn parse(span: Span, input: ParseStream<'_>) -> Result<Self> {
        let displacement = match parse_hint(input)? {
            None => Displacement::Disp32,
            Some(hint) if hint == "BYTE" => Displacement::Disp8(hint),
            Some(hint) => {
                let message = "only `BYTE` can ask for another size of displacement";
                return Err(Error::new(hint.span(), message));
            }
        };
        let mut terms = Vec::new();
        if !input.is_empty() {
            flatten(input.parse()?, &mut terms);
        }
        if !input.is_empty() {
            return Err(input.error("expected `+` or `]`"));
        }
        let (base, offsets) = match terms.as_slice() {
            [first, offsets @ ..] if is_register(first) => (Some(base_register(first)?), offsets),
            offsets => (None, offsets),
        };
        offsets.iter().try_for_each(check_offset)?;
        let offsets: Vec<_> = offsets.iter().map(|term| in_a_constant(term.clone())).collect();
        match (base, offsets.as_slice(), displacement) {
            (Some(base), [], Displacement::Disp32) => Ok(Self::Base(base)),
            (_, [], Displacement::Disp8(byte)) => {
                Err(Error::new(byte.span(), "there is no displacement that could be a `BYTE`"))
            }
            (None, [_, ..], Displacement::Disp8(byte)) => Err(Error::new(
                byte.span(),
                "an address without a register takes 32 bits: drop the inner `BYTE`",
            )),
            (base, [first, rest @ ..], displacement) => {
                let span = Span::mixed_site().located_at(span);
                let offset = quote_spanned!(span=> #first #(.then(#rest))*);
                Ok(Self::Field { base, displacement, offset })
            }
            (None, [], Displacement::Disp32) => {
                Err(Error::new(span, "expected a register, an offset or their sum"))
            }
        }
    }
}

/// Splits a sum into its terms, whatever parentheses it has: addition of offsets is associative.
/// There is at least one term.
fn flatten(sum: Expr, terms: &mut Vec<Expr>) {
    match sum {
        Expr::Binary(ExprBinary { op: BinOp::Add(_), left, right, .. }) => {
            flatten(*left, terms);
            flatten(*right, terms);
        }
        Expr::Paren(paren) => flatten(*paren.expr, terms),
        Expr::Group(group) => flatten(*group.expr, terms),
        term => terms.push(term),
    }
}

/// Rewrites a term of a sum for use in a constant, where offsets have no `+`: what a method is
/// called on, and what `then` and `pair` are given, may be sums themselves.
fn in_a_constant(term: Expr) -> Expr {
    let Expr::MethodCall(mut call) = term else { return term };
    *call.receiver = sum_in_a_constant(*call.receiver);
    if call.method == "then" || call.method == "pair" {
        call.args = call.args.into_iter().map(sum_in_a_constant).collect();
    }
    Expr::MethodCall(call)
}

fn sum_in_a_constant(sum: Expr) -> Expr {
    let span = Span::mixed_site().located_at(sum.span());
    let mut terms = Vec::new();
    flatten(sum, &mut terms);
    let terms = terms.into_iter().map(in_a_constant);
    terms
        .reduce(|outer, inner| parse_quote_spanned!(span=> #outer.then(#inner)))
        .expect("a sum has a term")
}

fn base_register(register: &Expr) -> Result<Ident> {
    match as_ident(register) {
        Some(name) if GPRS_64.iter().any(|known| name == known) => Ok(name.clone()),
        _ => {
            let message = "only a 64-bit general-purpose register can be the base of an address";
            Err(Error::new_spanned(register, message))
        }
    }
}

/// Rejects what cannot be an `Offset`. rustc checks what could be one.
fn check_offset(term: &Expr) -> Result<()> {
    let message = if is_literal(term) {
        "displacements come from structs: describe this memory as a `#[repr(C)]` struct that \
         derives `AsmLayout`, and name the field"
    } else if is_register(term) {
        "an address is at most one register, in front, and offsets: asm! takes no index registers"
    } else if matches!(term, Expr::Path(_) | Expr::MethodCall(_) | Expr::Call(_)) {
        return Ok(());
    } else {
        "expected the offset of a field, such as `Struct::field`, or a sum of such"
    };
    Err(Error::new_spanned(term, message))
}

/// The names of dynasm's size hints, all of which it takes anywhere.
const HINTS: [&str; 10] =
    ["BYTE", "WORD", "DWORD", "FWORD", "AWORD", "QWORD", "TWORD", "OWORD", "YWORD", "ZWORD"];

/// Those that fields have, in bytes.
const SIZES: [(&str, usize); 4] = [("BYTE", 1), ("WORD", 2), ("DWORD", 4), ("QWORD", 8)];

fn width_of(hint: &Ident) -> Option<usize> {
    SIZES.iter().find(|(name, _)| hint == name).map(|(_, bytes)| *bytes)
}

fn parse_hint(input: ParseStream<'_>) -> Result<Option<Ident>> {
    match input.fork().parse::<Ident>() {
        Ok(ident) if HINTS.iter().any(|hint| ident == hint) => input.parse().map(Some),
        _ => Ok(None),
    }
}

fn is_literal(operand: &Expr) -> bool {
    match operand {
        Expr::Lit(_) => true,
        Expr::Unary(ExprUnary { op: UnOp::Neg(_), expr, .. }) => is_literal(expr),
        Expr::Group(group) => is_literal(&group.expr),
        _ => false,
    }
}

fn as_ident(operand: &Expr) -> Option<&Ident> {
    match operand {
        Expr::Path(path) if path.qself.is_none() => path.path.get_ident(),
        _ => None,
    }
}

const GPRS_64: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Those of 16 bits, in the order of their numbers.
const WORDS: [&str; 8] = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"];

/// Whether dynasm takes this for a register: by a name it knows or by number (`Rq(n)`).
fn is_register(operand: &Expr) -> bool {
    const FAMILIES: [&str; 14] =
        ["Rb", "Rh", "Rw", "Rd", "Ra", "Rq", "Rf", "Rm", "Rx", "Ry", "Rs", "RC", "RD", "RB"];
    is_register_of(operand, &FAMILIES)
        || as_ident(operand).is_some_and(|name| is_register_name(&name.to_string()))
}

/// Whether it is a register by number, of one of these families.
fn is_register_of(operand: &Expr, families: &[&str]) -> bool {
    let Expr::Call(call) = operand else { return false };
    as_ident(&call.func).is_some_and(|name| families.iter().any(|known| name == known))
}

/// How wide a general-purpose register is.
fn bits_of(register: &Expr) -> Option<usize> {
    const FAMILIES: [(&str, usize); 6] =
        [("Rb", 8), ("Rh", 8), ("Rw", 16), ("Rd", 32), ("Ra", 64), ("Rq", 64)];
    if let Some((_, bits)) =
        FAMILIES.iter().find(|(family, _)| is_register_of(register, &[*family]))
    {
        return Some(*bits);
    }
    let name = as_ident(register)?.to_string();
    if GPRS_64.contains(&name.as_str()) {
        return Some(64);
    }
    if let Some(numbered) = name.strip_prefix('r')
        && numbered.starts_with(|c: char| c.is_ascii_digit())
    {
        return Some(match numbered.chars().last() {
            Some('b') => 8,
            Some('w') => 16,
            Some('d') => 32,
            _ => 64,
        });
    }
    match name.len() {
        _ if WORDS.contains(&name.as_str()) => Some(16),
        3 if name.starts_with('e') && WORDS.contains(&&name[1..]) => Some(32),
        2 | 3 if name.ends_with(['l', 'h']) => Some(8),
        _ => None,
    }
}

/// Control and debug registers that dynasm has a name for, and CPUs have not.
fn is_missing_register(name: &str) -> bool {
    let is_numbered = |family, known: &[&str]| {
        name.strip_prefix(family).is_some_and(|number| !known.contains(&number))
    };
    is_numbered("cr", &["0", "2", "3", "4", "8"])
        || is_numbered("dr", &["0", "1", "2", "3", "6", "7"])
}

fn is_register_name(name: &str) -> bool {
    const NAMED: [&str; 28] = [
        "eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "ax", "cx", "dx", "bx", "sp", "bp",
        "si", "di", "al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil", "ah", "ch", "dh", "bh",
    ];
    const SPECIAL: [&str; 8] = ["rip", "eip", "es", "cs", "ss", "ds", "fs", "gs"];
    GPRS_64.contains(&name)
        || NAMED.contains(&name)
        || SPECIAL.contains(&name)
        || is_numbered_register(name)
}

/// Whether this is `r0` to `r15` in any width, `cr0`, `xmm0` or the like.
fn is_numbered_register(name: &str) -> bool {
    let Some(digit) = name.find(|c: char| c.is_ascii_digit()) else {
        return false;
    };
    let (family, number) = name.split_at(digit);
    let (number, count) = match family {
        "r" => (number.strip_suffix(['b', 'w', 'd']).unwrap_or(number), 16),
        "cr" | "dr" | "xmm" | "ymm" => (number, 16),
        "st" | "mm" => (number, 8),
        "bnd" => (number, 4),
        _ => return false,
    };
    (0..count).any(|known: u8| number == known.to_string())
}
