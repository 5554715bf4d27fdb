//! A question to the solver, apart from the terms of whoever asks it: two that are equal have the
//! same answer, whichever proof asks them.

use foldhash::HashMap;

use super::word::{Atom, Bits, Literal, Node, Pool, Slice, bits, sides};
use super::{Bit, Word};

/// Whether some truth values can be true together. All handles in it are its own; they are
/// numbered in the order in which the truth values name them, and variables have no names.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Question {
    asked: Vec<Bit>,
    words: Vec<Box<[Slice]>>,
    /// With their widths in bits.
    atoms: Vec<(Atom, u32)>,
    /// The first is the constant.
    nodes: Vec<Node>,
    variables: u32,
}

impl Question {
    /// Whether `conjuncts` can be true together; and which variables of `pool` the question's are.
    pub(super) fn new(pool: &Pool, conjuncts: &[Bit]) -> (Self, Vec<u32>) {
        let question = Self {
            asked: Vec::with_capacity(conjuncts.len()),
            words: Vec::new(),
            atoms: Vec::new(),
            nodes: vec![Node::True],
            variables: 0,
        };
        let mut copy = Copy {
            pool,
            question,
            words: HashMap::default(),
            atoms: HashMap::default(),
            nodes: HashMap::default(),
            variables: Vec::new(),
        };
        for &bit in conjuncts {
            let bit = copy.bit(bit);
            copy.question.asked.push(bit);
        }
        copy.question.variables = copy.variables.len() as u32;
        (copy.question, copy.variables)
    }

    /// What is to be true together.
    pub(super) fn asked(&self) -> &[Bit] {
        &self.asked
    }

    /// How many variables it has.
    pub(super) fn variables(&self) -> usize {
        self.variables as usize
    }

    /// How many terms it has, and slices in them.
    pub(super) fn size(&self) -> usize {
        let slices: usize = self.words.iter().map(|slices| slices.len()).sum();
        slices + self.words.len() + self.atoms.len() + self.nodes.len()
    }

    pub(super) fn node(&self, bit: Bit) -> Node {
        self.nodes[bit.index()]
    }

    /// An atom and its width in bits.
    pub(super) fn atom(&self, atom: u32) -> (Atom, u32) {
        self.atoms[atom as usize]
    }

    pub(super) fn bits(&self, word: Word) -> Bits {
        bits(self.slices(word))
    }

    pub(super) fn slices(&self, word: Word) -> &[Slice] {
        &self.words[word.0 as usize]
    }

    /// The sides of [`Node::Eq`].
    pub(super) fn sides(&self, a: Word, b: Word) -> (Vec<Literal>, Vec<Literal>) {
        sides(&self.bits(a), &self.bits(b))
    }
}

/// A question in the making, and which of its handles stand for those of the pool.
struct Copy<'a> {
    pool: &'a Pool,
    question: Question,
    words: HashMap<Word, Word>,
    atoms: HashMap<u32, u32>,
    nodes: HashMap<usize, u32>,
    variables: Vec<u32>,
}

impl Copy<'_> {
    fn bit(&mut self, bit: Bit) -> Bit {
        let node = match self.pool.node(bit) {
            Node::True => return Bit::TRUE.negate_if(bit.negated()),
            node => node,
        };
        let index = match self.nodes.get(&bit.index()) {
            Some(&index) => index,
            None => {
                let node = match node {
                    Node::True => Node::True,
                    Node::Of(literal) => Node::Of(self.literal(literal)),
                    Node::Eq(a, b) => Node::Eq(self.word(a), self.word(b)),
                    Node::Lt(a, b) => Node::Lt(self.word(a), self.word(b)),
                    Node::And(a, b) => Node::And(self.bit(a), self.bit(b)),
                };
                let index = self.question.nodes.len() as u32;
                self.question.nodes.push(node);
                self.nodes.insert(bit.index(), index);
                index
            }
        };
        Bit::new(index).negate_if(bit.negated())
    }

    fn word(&mut self, word: Word) -> Word {
        if let Some(&copy) = self.words.get(&word) {
            return copy;
        }
        let pool = self.pool;
        let slices = pool.slices(word).iter().map(|&slice| match slice {
            Slice::Const { .. } => slice,
            Slice::Part { width, first } => Slice::Part { width, first: self.literal(first) },
            Slice::Fill { width, literal } => Slice::Fill { width, literal: self.literal(literal) },
        });
        let slices = slices.collect();
        let copy = Word(self.question.words.len() as u32);
        self.question.words.push(slices);
        self.words.insert(word, copy);
        copy
    }

    fn literal(&mut self, literal: Literal) -> Literal {
        let Some(atom) = literal.atom() else { return literal };
        Literal::new(self.atom(atom), literal.index()).invert_if(literal.inverted())
    }

    fn atom(&mut self, atom: u32) -> u32 {
        if let Some(&copy) = self.atoms.get(&atom) {
            return copy;
        }
        let entry = &self.pool.atoms[atom as usize];
        let of = match entry.atom {
            Atom::Variable(index) => {
                self.variables.push(index);
                Atom::Variable(self.variables.len() as u32 - 1)
            }
            Atom::Sum(a, c) => Atom::Sum(self.word(a), c),
            Atom::Add(a, b) => Atom::Add(self.word(a), self.word(b)),
            Atom::Sub(a, b) => Atom::Sub(self.word(a), self.word(b)),
            Atom::And(a, b) => Atom::And(self.word(a), self.word(b)),
            Atom::Xor(a, b) => Atom::Xor(self.word(a), self.word(b)),
            Atom::Select(c, a, b) => Atom::Select(self.bit(c), self.word(a), self.word(b)),
            Atom::Truth(bit) => Atom::Truth(self.bit(bit)),
        };
        let copy = self.question.atoms.len() as u32;
        self.question.atoms.push((of, entry.width));
        self.atoms.insert(atom, copy);
        copy
    }
}
