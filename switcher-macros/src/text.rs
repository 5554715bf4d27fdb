//! Turns tokens back into source text, spaced as rustfmt would: listings quote types and
//! immediates.
//!
//! `TokenStream`'s own `Display` promises no spacing and changes between compilers.

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use quote::ToTokens;

/// The text of an expression or a path.
pub(crate) fn of(tokens: impl ToTokens) -> String {
    Printer::print(tokens.into_token_stream(), false)
}

/// The text of a type, where `<` always opens a list of generic arguments.
pub(crate) fn of_type(tokens: impl ToTokens) -> String {
    Printer::print(tokens.into_token_stream(), true)
}

/// The operators of more than one character, the longest first.
const OPERATORS: [&str; 16] = [
    "..=", "<<=", ">>=", "::", "->", "=>", "..", "<<", ">>", "&&", "||", "==", "!=", "<=", ">=",
    "+=",
];

/// Words after which an operand starts, so that what follows is no call, index or binary operator.
const KEYWORDS: [&str; 13] = [
    "as", "const", "dyn", "else", "if", "impl", "in", "let", "match", "move", "mut", "return",
    "unsafe",
];

/// What the text ends with, as far as the next token's spacing depends on it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// There is nothing yet, or something that the next token sticks to: `::`, `&`, an opening
    /// bracket.
    Glue,
    /// A name, a literal or a closing bracket, after which an operand is complete.
    Operand,
    /// A keyword or a lifetime, to which nothing sticks.
    Keyword,
    /// A binary operator or a comma: a space follows, then an operand.
    Operator,
}

struct Printer {
    text: String,
    last: Last,
    is_type: bool,
    /// How many `<` of generic arguments are open.
    generics: usize,
}

impl Printer {
    fn print(tokens: TokenStream, is_type: bool) -> String {
        let mut printer = Self { text: String::new(), last: Last::Glue, is_type, generics: 0 };
        printer.tokens(tokens);
        printer.text
    }

    fn tokens(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Ident(ident) => {
                    let word = ident.to_string();
                    let is_keyword = KEYWORDS.contains(&word.as_str());
                    self.word(&word, if is_keyword { Last::Keyword } else { Last::Operand });
                }
                TokenTree::Literal(literal) => self.word(&literal.to_string(), Last::Operand),
                TokenTree::Group(group) => self.group(group.delimiter(), group.stream()),
                TokenTree::Punct(quote) if quote.as_char() == '\'' => {
                    if let Some(name) = tokens.next() {
                        self.word(&format!("'{name}"), Last::Keyword);
                    }
                }
                TokenTree::Punct(punct) => {
                    let mut operator = String::from(punct.as_char());
                    let mut spacing = punct.spacing();
                    while spacing == Spacing::Joint
                        && let Some(TokenTree::Punct(next)) = tokens.peek()
                        && self.continues(&operator, next.as_char())
                    {
                        operator.push(next.as_char());
                        spacing = next.spacing();
                        tokens.next();
                    }
                    self.operator(&operator);
                }
            }
        }
    }

    fn continues(&self, operator: &str, next: char) -> bool {
        // `>>` closes two lists of generic arguments where two are open.
        let closes = operator == ">" && self.generics > 0;
        !closes
            && OPERATORS.iter().any(|known| {
                known.strip_prefix(operator).is_some_and(|rest| rest.starts_with(next))
            })
    }

    fn word(&mut self, word: &str, becomes: Last) {
        self.space_unless(Last::Glue);
        self.text.push_str(word);
        self.last = becomes;
    }

    fn group(&mut self, delimiter: Delimiter, stream: TokenStream) {
        let (open, close) = match delimiter {
            Delimiter::Parenthesis => ("(", ")"),
            Delimiter::Bracket => ("[", "]"),
            Delimiter::Brace => ("{ ", " }"),
            // The fragment of a macro_rules macro comes wrapped in this group.
            Delimiter::None => return self.tokens(stream),
        };
        let is_call = self.last == Last::Operand && delimiter != Delimiter::Brace;
        if !is_call {
            self.space_unless(Last::Glue);
        }
        self.text.push_str(open);
        let generics = std::mem::take(&mut self.generics);
        self.last = Last::Glue;
        self.tokens(stream);
        self.generics = generics;
        self.text.push_str(close);
        self.last = Last::Operand;
    }

    fn operator(&mut self, operator: &str) {
        let after_operand = self.last == Last::Operand;
        match operator {
            "," | ";" | ":" => self.push(operator, Last::Operator),
            "::" if after_operand || self.last == Last::Glue => self.push(operator, Last::Glue),
            "." | ".." | "..=" | "?" if after_operand => {
                let last = if operator == "?" { Last::Operand } else { Last::Glue };
                self.push(operator, last);
            }
            "!" if after_operand => self.push(operator, Last::Operand),
            "<" if self.is_type || self.generics > 0 || !after_operand => {
                if !after_operand {
                    self.space_unless(Last::Glue);
                }
                self.generics += 1;
                self.push(operator, Last::Glue);
            }
            ">" if self.generics > 0 => {
                self.generics -= 1;
                self.push(operator, Last::Operand);
            }
            // `+` is never a prefix, not even after the lifetime in `'a + Copy`.
            _ if after_operand || operator == "+" => {
                self.space_unless(Last::Glue);
                self.push(operator, Last::Operator);
            }
            // A prefix: `&x`, `-x`, a leading `::`.
            _ => {
                self.space_unless(Last::Glue);
                self.push(operator, Last::Glue);
            }
        }
    }

    fn push(&mut self, operator: &str, becomes: Last) {
        self.text.push_str(operator);
        self.last = becomes;
    }

    fn space_unless(&mut self, glue: Last) {
        if self.last != glue {
            self.text.push(' ');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{of, of_type};

    fn tokens(text: &str) -> proc_macro2::TokenStream {
        text.parse().unwrap()
    }

    #[test]
    fn expressions_are_spaced_as_rustfmt_would() {
        for text in [
            "SwitchFlags::NO_DS_TO_SMOD",
            "selectors.user_pair(1, &x)?.0",
            "(A | !B) as i32",
            "-K & 7 << 2",
            "a < b && c >= d",
            "f::<A, Vec<Vec<u8>>>(x)[0]",
            "<u8 as Into<i32>>::into(x)",
            "size_of::<&'static [u8; 4]>()",
            "::core::mem::size_of::<u8>()",
            "concat!(a, \"b c\")",
            "0..=N",
            "&mut *x",
        ] {
            assert_eq!(of(tokens(text)), text);
        }
    }

    #[test]
    fn types_are_spaced_as_rustfmt_would() {
        for text in [
            "u64",
            "[u16; 2]",
            "&'a mut [T]",
            "&'a (dyn Fn(u8) + 'a + Send)",
            "Cow<'static, str>",
            "*const core::ffi::c_void",
            "Option<extern fn(u8, u16) -> Result<(), u8>>",
            "(u8, [Option<NonZero<u64>>; N + 1])",
        ] {
            assert_eq!(of_type(tokens(text)), text);
        }
    }

    #[test]
    fn odd_spacing_is_normalised() {
        assert_eq!(of(tokens("a :: b . c ( d ,e )")), "a::b.c(d, e)");
        assert_eq!(of_type(tokens("[ u8;4 ]")), "[u8; 4]");
    }
}
