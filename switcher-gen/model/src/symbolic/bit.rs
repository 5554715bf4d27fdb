//! Truth values in normal form.

use std::collections::HashSet;

use super::lists::List;
use super::word::{Atom, Bits, Literal, Node, Pool, Slice, union};
use super::{Bit, Word};

impl Pool {
    pub(super) fn node(&self, bit: Bit) -> Node {
        // The constant is known without a table.
        self.nodes.get(bit.index()).map_or(Node::True, |entry| entry.0)
    }

    /// The list of what a truth value depends on; none if it is a constant.
    pub(super) fn bit_support(&self, bit: Bit) -> Option<List> {
        self.nodes.get(bit.index()).map(|entry| entry.1)
    }

    /// The variables that a truth value depends on, sorted.
    pub(super) fn variables_of_bit(&self, bit: Bit) -> &[u32] {
        self.bit_support(bit).map_or(&[], |list| self.supports.get(list))
    }

    fn intern_node(&mut self, node: Node) -> Bit {
        if self.nodes.is_empty() {
            let nothing = self.supports.intern(&[]);
            self.nodes.push((Node::True, nothing));
        }
        if let Some(&id) = self.node_ids.get(&node) {
            return Bit::new(id);
        }
        let lists = match node {
            Node::True => return Bit::TRUE,
            Node::Of(literal) => {
                literal.atom().map(|atom| self.atoms[atom as usize].support).into_iter().collect()
            }
            Node::Eq(a, b) | Node::Lt(a, b) => {
                self.supports_of(a).chain(self.supports_of(b)).collect()
            }
            Node::And(a, b) => [a, b].into_iter().filter_map(|bit| self.bit_support(bit)).collect(),
        };
        let support = union(&mut self.supports, lists);
        let id = self.nodes.len() as u32;
        // A handle has 31 bits for the node; memory runs out long before.
        assert!(id < 1 << 31, "too many terms");
        self.nodes.push((node, support));
        self.node_ids.insert(node, id);
        Bit::new(id)
    }

    /// A literal as a truth value.
    pub(super) fn truth(&mut self, literal: Literal) -> Bit {
        let plain = match literal.atom() {
            None => return Bit::from_bool(literal == Literal::ONE),
            Some(atom) => match self.atoms[atom as usize].atom {
                Atom::Truth(bit) => bit,
                _ => self.intern_node(Node::Of(literal.plain())),
            },
        };
        plain.negate_if(literal.inverted())
    }

    pub(super) fn test(&mut self, word: Word, index: u32) -> Bit {
        self.truth(self.bit_of(word, index))
    }

    pub(super) fn both(&mut self, a: Bit, b: Bit) -> Bit {
        let (a, b) = (a.min(b), a.max(b));
        if a == Bit::FALSE || b == Bit::FALSE || a == b.negate() {
            return Bit::FALSE;
        }
        if a == Bit::TRUE || a == b {
            return b;
        }
        // What one says of a part of the other.
        for (one, other) in [(a, b), (b, a)] {
            let Node::And(p, q) = self.node(other) else { continue };
            for (part, rest) in [(p, q), (q, p)] {
                if part == one && other.negated() {
                    return self.both(one, rest.negate());
                } else if part == one {
                    return other;
                } else if part == one.negate() {
                    return if other.negated() { one } else { Bit::FALSE };
                }
            }
        }
        self.intern_node(Node::And(a, b))
    }

    /// Whether words are equal. Sums are moved to one side; then the pairs of bits that are to be
    /// equal are sorted, so that neither side, order nor position matter: `x & 0xFF00 == 0x1200` is
    /// `x >> 8 & 0xFF == 0x12`.
    pub(super) fn eq(&mut self, a: Word, b: Word) -> Bit {
        let (a, b) = self.balance(a, b);
        for (one, other) in [(a, b), (b, a)] {
            if let (Some(Atom::Sub(p, q)), Some(value)) = (self.as_atom(one), self.known(other)) {
                let q = self.offset(q, value);
                return self.eq(p, q);
            }
        }
        self.equal_bits(&self.bits(a), &self.bits(b))
    }

    /// Words that are equal if and only if `a` and `b` are, one of them without an added constant.
    fn balance(&mut self, a: Word, b: Word) -> (Word, Word) {
        if ![a, b].into_iter().any(|word| self.as_sum(word).is_some()) {
            return (a, b);
        }
        let ((p, c), (q, d)) = (self.decompose(a), self.decompose(b));
        let zero = self.constant(0);
        if p == q {
            (self.constant(c), self.constant(d))
        } else if p == zero || q != zero && p < q {
            (self.offset(p, c.wrapping_sub(d)), q)
        } else {
            (p, self.offset(q, d.wrapping_sub(c)))
        }
    }

    fn equal_bits(&mut self, left: &Bits, right: &Bits) -> Bit {
        let mut todo: Vec<_> = left.iter().copied().zip(right.iter().copied()).collect();
        let mut pairs = Vec::new();
        let mut expanded = HashSet::new();
        while let Some((a, b)) = todo.pop() {
            if a == b {
                continue;
            }
            if a == b.invert() {
                return Bit::FALSE;
            }
            // Ordered, and the first not inverted: a constant is first, and zero.
            let (a, b) = (a.min(b), a.max(b));
            let (a, b) = (a.plain(), b.invert_if(a.inverted()));
            let atom = b.atom().filter(|_| a == Literal::ZERO);
            let i = b.index();
            match atom.map(|atom| self.atoms[atom as usize].atom) {
                Some(Atom::Xor(..) | Atom::And(..)) if expanded.contains(&b) => {}
                Some(Atom::Xor(p, q)) => {
                    expanded.insert(b);
                    todo.push((self.bit_of(p, i), self.bit_of(q, i).invert_if(b.inverted())));
                }
                Some(Atom::And(p, q)) if b.inverted() => {
                    expanded.insert(b);
                    todo.extend([p, q].map(|operand| (Literal::ONE, self.bit_of(operand, i))));
                }
                _ => pairs.push((a, b)),
            }
        }
        pairs.sort_unstable();
        pairs.dedup();
        if pairs.windows(2).any(|two| two[0].0 == two[1].0 && two[0].1 == two[1].1.invert()) {
            return Bit::FALSE;
        }
        match *pairs {
            [] => Bit::TRUE,
            [(Literal::ZERO, literal)] => self.truth(literal.invert()),
            // Operands of 64 bits may expand to more pairs than a word has bits.
            _ => pairs.chunks(64).fold(Bit::TRUE, |all, pairs| {
                let side = |side: &dyn Fn(usize) -> Option<Literal>| -> Bits {
                    std::array::from_fn(|i| side(i).unwrap_or(Literal::ZERO))
                };
                let a = self.intern(&side(&|i| Some(pairs.get(i)?.0)));
                let b = self.intern(&side(&|i| Some(pairs.get(i)?.1)));
                let equal = self.intern_node(Node::Eq(a, b));
                self.both(all, equal)
            }),
        }
    }

    pub(super) fn lt(&mut self, a: Word, b: Word) -> Bit {
        // High bits in common do not matter.
        let (mut left, mut right) = (self.bits(a), self.bits(b));
        let common = left.iter().zip(&right).rev().take_while(|(a, b)| a == b).count();
        left[64 - common..].fill(Literal::ZERO);
        right[64 - common..].fill(Literal::ZERO);
        let (a, b) = (self.intern(&left), self.intern(&right));

        let ((least_a, most_a), (least_b, most_b)) = (self.range(a), self.range(b));
        if most_a < least_b {
            return Bit::TRUE;
        }
        if least_a >= most_b {
            return Bit::FALSE;
        }
        let zero = self.constant(0);
        match (self.known(a), self.known(b)) {
            (_, Some(b)) if b.is_power_of_two() => {
                let high = self.shr(a, b.trailing_zeros(), false);
                self.eq(high, zero)
            }
            // `a` is less than the most that `b` can be, so it is not all ones.
            (Some(a), _) if (a + 1).is_power_of_two() => {
                let high = self.shr(b, a.trailing_ones(), false);
                self.eq(high, zero).negate()
            }
            _ => self.intern_node(Node::Lt(a, b)),
        }
    }

    /// Bounds of a word.
    fn range(&self, word: Word) -> (u64, u64) {
        let (mut least, mut most, mut at) = (0, 0, 0);
        for &slice in self.slices(word) {
            match slice {
                Slice::Const { value, .. } => {
                    least |= value << at;
                    most |= value << at;
                }
                Slice::Part { .. } | Slice::Fill { .. } => {
                    most |= super::word::low_bits(slice.width()) << at;
                }
            }
            at += slice.width();
        }
        (least, most)
    }
}
