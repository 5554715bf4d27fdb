//! Terms as text for a report.

use std::fmt::Write as _;

use super::word::Node;
use super::word::{Atom, Literal, Pool, Slice, sides, slices};
use super::{Bit, Word};

/// What is deeper is shown as dots: text has no sharing, so it could be endless.
const DEPTH: u32 = 8;

/// A part of a word: the bits `mask` of an atom that is shifted left by `shift`.
struct Term {
    atom: u32,
    /// The bit, if it is one bit repeated.
    fill: Option<u32>,
    shift: i32,
    inverted: bool,
    mask: u64,
}

impl Pool {
    pub(super) fn show(&self, word: Word, depth: u32) -> String {
        let Some((base, constant)) = self.as_sum(word) else {
            return self.show_literals(&self.bits(word), depth);
        };
        let Some(depth) = depth.checked_sub(1) else { return "...".into() };
        self.show_sum(base, constant, depth)
    }

    fn show_sum(&self, base: Word, constant: u64, depth: u32) -> String {
        let base = self.show(base, depth);
        if constant.cast_signed() < 0 {
            format!("({base} - {:#x})", constant.wrapping_neg())
        } else {
            format!("({base} + {constant:#x})")
        }
    }

    fn show_literals(&self, literals: &[Literal], depth: u32) -> String {
        let (mut terms, mut ones, mut at) = (Vec::<Term>::new(), 0, 0);
        for slice in slices(literals) {
            let mask = super::word::low_bits(slice.width()) << at;
            let (literal, fill) = match slice {
                Slice::Const { value, .. } => {
                    ones |= value << at;
                    (Literal::ZERO, None)
                }
                Slice::Part { first, .. } => (first, None),
                Slice::Fill { literal, .. } => (literal, Some(literal.index())),
            };
            if let Some(atom) = literal.atom() {
                let shift = if fill.is_some() { 0 } else { at as i32 - literal.index() as i32 };
                let inverted = literal.inverted();
                let same = |term: &&mut Term| {
                    (term.atom, term.fill, term.shift, term.inverted)
                        == (atom, fill, shift, inverted)
                };
                match terms.iter_mut().find(same) {
                    Some(term) => term.mask |= mask,
                    None => terms.push(Term { atom, fill, shift, inverted, mask }),
                }
            }
            at += slice.width();
        }
        let mut shown: Vec<_> = terms.iter().map(|term| self.show_term(term, depth)).collect();
        if ones != 0 || shown.is_empty() {
            shown.push(format!("{ones:#x}"));
        }
        match &*shown {
            [one] => one.clone(),
            _ => format!("({})", shown.join(" | ")),
        }
    }

    fn show_term(&self, term: &Term, depth: u32) -> String {
        let width = self.atoms[term.atom as usize].width;
        let (shown, inverted) = self.show_atom(term.atom, term.inverted, depth);
        let mut text = if inverted { format!("~{shown}") } else { shown };
        if let Some(bit) = term.fill {
            return format!("(fill({text}[{bit}]) & {:#x})", term.mask);
        }
        // In terms of the atom's own bits.
        let own = if term.shift < 0 { term.mask << -term.shift } else { term.mask >> term.shift };
        let (low, end) = (own.trailing_zeros(), 64 - own.leading_zeros());
        let contiguous = own.count_ones() == end - low;
        if own.count_ones() == width {
        } else if contiguous && end - low == 1 {
            let _ = write!(text, "[{low}]");
        } else if contiguous {
            let _ = write!(text, "[{}:{low}]", end - 1);
        }
        let moved = if contiguous { term.shift + low as i32 } else { term.shift };
        match moved {
            0 => {}
            1.. => text = format!("({text} << {moved})"),
            _ => text = format!("({text} >> {})", -moved),
        }
        if contiguous { text } else { format!("({text} & {:#x})", term.mask) }
    }

    /// An atom, and whether it is yet to be inverted.
    fn show_atom(&self, atom: u32, inverted: bool, depth: u32) -> (String, bool) {
        let Some(depth) = depth.checked_sub(1) else { return ("...".into(), inverted) };
        let word = |word| self.show(word, depth);
        let text = match self.atoms[atom as usize].atom {
            Atom::Variable(index) => self.variables[index as usize].name.to_string(),
            Atom::Sum(base, constant) => self.show_sum(base, constant, depth),
            Atom::Add(a, b) => format!("({} + {})", word(a), word(b)),
            Atom::Sub(a, b) => format!("({} - {})", word(a), word(b)),
            Atom::And(a, b) if inverted => {
                // The operands' upper bits are zero, not inverted.
                let width = self.atoms[atom as usize].width as usize;
                let side = |word| {
                    let bits = self.bits(word).map(Literal::invert);
                    self.show_literals(&bits[..width], depth)
                };
                return (format!("({} | {})", side(a), side(b)), false);
            }
            Atom::And(a, b) => format!("({} & {})", word(a), word(b)),
            Atom::Xor(a, b) => format!("({} ^ {})", word(a), word(b)),
            Atom::Select(c, a, b) => {
                format!("({} ? {} : {})", self.show_bit(c, depth), word(a), word(b))
            }
            Atom::Truth(bit) => return (self.show_bit(bit.negate_if(inverted), depth), false),
        };
        (text, inverted)
    }

    pub(super) fn show_bit(&self, bit: Bit, depth: u32) -> String {
        let Some(depth) = depth.checked_sub(1) else { return "...".into() };
        let negated = bit.negated();
        let pick = |plain: &'static str, other: &'static str| if negated { other } else { plain };
        match self.node(bit) {
            Node::True => pick("true", "false").into(),
            Node::Of(literal) => {
                let text = self.show_literals(&[literal], depth);
                format!("{}{text}", pick("", "!"))
            }
            Node::Eq(a, b) => {
                let (a, b) = sides(&self.bits(a), &self.bits(b));
                let (a, b) = (self.show_literals(&a, depth), self.show_literals(&b, depth));
                format!("({a} {} {b})", pick("==", "!="))
            }
            Node::Lt(a, b) => {
                format!("({} {} {})", self.show(a, depth), pick("<", ">="), self.show(b, depth))
            }
            Node::And(a, b) => {
                let side = |side: Bit| self.show_bit(side.negate_if(negated), depth);
                format!("({} {} {})", side(a), pick("&&", "||"), side(b))
            }
        }
    }

    pub(super) fn display(&self, word: Word) -> String {
        self.show(word, DEPTH)
    }

    pub(super) fn display_bit(&self, bit: Bit) -> String {
        self.show_bit(bit, DEPTH)
    }
}
