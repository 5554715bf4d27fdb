//! What a register holds: the values that the semantics in `step` computes with.
//!
//! A [`Domain`] is either [`Concrete`](super::Concrete) (numbers: an interpreter) or
//! [`Symbolic`](super::symbolic::Symbolic) (terms over the unknowns of a state: proofs).
//! Instruction semantics and specifications are written once, against this trait.
//!
//! A word has 64 bits. Narrower operands are words whose upper bits are zero.

use core::fmt::Debug;

/// Where an unknown comes from. This decides who may learn it and who has chosen it. A value that
/// is computed from several unknowns comes from all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The guest has chosen it, or knows it: its registers, its flags, its bases.
    Guest,
    /// The guest's RSP: chosen by it, and not yet or no longer a stack.
    GuestStackPointer,
    /// What a read of memory finds that the guest writes at any moment.
    Shared,
    /// The host's, handed to the guest by the ABI: where its kernel begins, its kernel's stack.
    Published,
    /// The host's: no guest may learn it.
    Host,
    /// What lies in the host's memory, or in a register, from before: the host's, a former guest's,
    /// or what host code that is not looked at has left.
    Stale,
    /// The value of a register when an event interrupted ring 0. It may have belonged to anybody.
    Interrupted,
    /// The value of RSP or of a GS base when an event interrupted ring 0. No code may tell by it
    /// who was interrupted.
    InterruptedBase,
    /// A value that the manuals leave undefined. The values that a CPU may compute it from are kept
    /// with it: see [`Domain::undefined`].
    Cpu,
    /// The code itself: it stands for several constants of the code that are not told apart. See
    /// [`Domain::forgotten`].
    Code,
    /// Where the code lies.
    Place,
    /// What only an execution finds that does not take place, at an address that nobody answers
    /// for: it may be anything that is mapped, and a guest may have put it there.
    Found,
    /// The host's address of memory that the guest writes: no guest may learn it, and whoever loads
    /// from there has what the guest likes.
    GuestMemory,
    /// The host's address of memory of its own in which values of a guest's lie, too: a stack with
    /// frames, the per-CPU block. Whoever loads from there may have what the guest likes.
    MixedMemory,
    /// The host's address of its own stack.
    HostStack,
}

impl Origin {
    /// All, by number.
    pub const ALL: [Self; 15] = [
        Self::Guest,
        Self::GuestStackPointer,
        Self::Shared,
        Self::Published,
        Self::Host,
        Self::Stale,
        Self::Interrupted,
        Self::InterruptedBase,
        Self::Cpu,
        Self::Code,
        Self::Place,
        Self::Found,
        Self::GuestMemory,
        Self::MixedMemory,
        Self::HostStack,
    ];

    /// Whether it may arrive at CPL 3, or lie in memory that CPL 3 can read.
    #[must_use]
    pub const fn may_reach_a_guest(self) -> bool {
        match self {
            Self::Guest
            | Self::GuestStackPointer
            | Self::Shared
            | Self::Published
            | Self::Cpu
            | Self::Code => true,
            Self::Host
            | Self::Stale
            | Self::Interrupted
            | Self::InterruptedBase
            | Self::Place
            | Self::GuestMemory
            | Self::MixedMemory
            | Self::HostStack
            | Self::Found => false,
        }
    }

    /// Whether a guest may have chosen it.
    #[must_use]
    pub const fn is_a_guests_choice(self) -> bool {
        match self {
            Self::Guest
            | Self::GuestStackPointer
            | Self::Shared
            | Self::Published
            | Self::Stale
            | Self::Interrupted
            | Self::InterruptedBase
            | Self::Found => true,
            Self::Host
            | Self::Cpu
            | Self::Code
            | Self::Place
            | Self::GuestMemory
            | Self::MixedMemory
            | Self::HostStack => false,
        }
    }

    /// Whether it is the host's own, or may be.
    #[must_use]
    pub const fn is_the_hosts(self) -> bool {
        match self {
            Self::Host
            | Self::Stale
            | Self::Place
            | Self::GuestMemory
            | Self::MixedMemory
            | Self::HostStack
            | Self::Found => true,
            Self::Guest
            | Self::GuestStackPointer
            | Self::Shared
            | Self::Published
            | Self::Interrupted
            | Self::InterruptedBase
            | Self::Cpu
            | Self::Code => false,
        }
    }

    /// Whether it says nothing about who was interrupted, so that no decision may rest on it
    /// (spec/hazards.md, row 10).
    #[must_use]
    pub const fn is_no_ground_for_a_decision(self) -> bool {
        match self {
            Self::GuestStackPointer | Self::InterruptedBase => true,
            Self::Guest
            | Self::Shared
            | Self::Published
            | Self::Host
            | Self::Stale
            | Self::Interrupted
            | Self::Cpu
            | Self::Code
            | Self::Place
            | Self::GuestMemory
            | Self::MixedMemory
            | Self::HostStack
            | Self::Found => false,
        }
    }
}

/// A kind of value, and what can be done with it.
pub trait Domain {
    /// 64 bits.
    type Word: Copy + Debug + PartialEq;
    /// A truth value.
    type Bit: Copy + Debug + PartialEq;
    /// One byte in memory.
    type Cell: Copy + Debug + PartialEq;

    /// A constant.
    fn word(&self, value: u64) -> Self::Word;
    /// A constant.
    fn bit(&self, value: bool) -> Self::Bit;

    /// `a + b`, modulo 2^64.
    fn add(&self, a: Self::Word, b: Self::Word) -> Self::Word;
    /// `a - b`, modulo 2^64.
    fn sub(&self, a: Self::Word, b: Self::Word) -> Self::Word;
    /// Bitwise and.
    fn and(&self, a: Self::Word, b: Self::Word) -> Self::Word;
    /// Bitwise or.
    fn or(&self, a: Self::Word, b: Self::Word) -> Self::Word;
    /// Bitwise exclusive or.
    fn xor(&self, a: Self::Word, b: Self::Word) -> Self::Word;
    /// `a << by`, `by < 64`.
    fn shl(&self, a: Self::Word, by: u32) -> Self::Word;
    /// Unsigned `a >> by`, `by < 64`.
    fn shr(&self, a: Self::Word, by: u32) -> Self::Word;
    /// Signed `a >> by`, `by < 64`.
    fn sar(&self, a: Self::Word, by: u32) -> Self::Word;
    /// `if condition { a } else { b }`, without deciding.
    fn select(&self, condition: Self::Bit, a: Self::Word, b: Self::Word) -> Self::Word;

    /// Whether two words are equal.
    fn eq(&self, a: Self::Word, b: Self::Word) -> Self::Bit;
    /// Unsigned `a < b`.
    fn lt(&self, a: Self::Word, b: Self::Word) -> Self::Bit;
    /// Bit `index` of `a`, `index < 64`.
    fn test(&self, a: Self::Word, index: u32) -> Self::Bit;
    /// Negation.
    fn not(&self, a: Self::Bit) -> Self::Bit;
    /// Conjunction.
    fn both(&self, a: Self::Bit, b: Self::Bit) -> Self::Bit;
    /// Disjunction.
    fn either(&self, a: Self::Bit, b: Self::Bit) -> Self::Bit;

    /// Decides a condition. A concrete domain knows the answer. A symbolic one goes each way that
    /// is possible, one run after the other, and assumes the answer in what follows.
    fn decide(&self, condition: Self::Bit) -> bool;
    /// Whether the last [`decide`](Self::decide) could have gone either way on this path. In a
    /// concrete domain it never could.
    fn was_open(&self) -> bool {
        false
    }
    /// Any value, for one that the manuals leave undefined. `what` names it. A CPU computes it from
    /// the values `of`, and whoever learns it may learn of those, so it comes from wherever they
    /// come from.
    fn undefined(&self, what: &'static str, of: &[Self::Word]) -> Self::Bit;
    /// What a read of `size` bytes at `offset` of memory that a guest may write at any moment
    /// finds, if it is to be anything at all.
    fn adversary(&self, offset: usize, size: usize) -> Self::Word;
    /// Any value of `size` bytes, for memory that other code of ring 0 has changed in between.
    /// `what` names it.
    fn anew(&self, what: &'static str, size: usize) -> Self::Word;
    /// `size` bytes of which no more is known than that they come from these. `what` names them.
    fn any_of(&self, what: &'static str, size: usize, from: &[Origin]) -> Self::Word;

    /// Any word. Only this is known of it: it comes from wherever these words come from. Numbers
    /// leave bounds as well, which [`span`](Self::span) tells; no goal is shown by them.
    fn forgotten(&self, of: &[Self::Word]) -> Self::Word {
        of.first().copied().unwrap_or(self.word(0))
    }
    /// The least and the greatest number that `a` may be, if what was [forgotten](Self::forgotten)
    /// in it is one of the numbers that it was made of, or lies between them.
    fn span(&self, a: Self::Word) -> Option<(i64, i64)> {
        self.known(a).map(|number| (number.cast_signed(), number.cast_signed()))
    }
    /// Where `a` is one of several words by conditions, all of them, up to a number of them.
    fn alternatives(&self, a: Self::Word) -> Vec<Self::Word> {
        vec![a]
    }

    /// Whether what `a` is depends on an unknown of such an origin. A number depends on nothing.
    fn mentions(&self, a: Self::Word, is_one: impl Fn(Origin) -> bool) -> bool {
        let _ = (a, is_one);
        false
    }

    /// Whether what `a` is and what `b` is depend on one unknown.
    fn shares(&self, a: Self::Word, b: Self::Word) -> bool {
        let _ = (a, b);
        false
    }

    /// The address of the code's byte that a [`Program`](super::Program) has at `address`. Code
    /// runs wherever it is loaded, so in proofs that is `address` and an unknown distance: what is
    /// right at one place only is not proved.
    fn code(&self, address: u64) -> Self::Word {
        self.word(address)
    }
    /// Where a program has the code at this address: the inverse of [`code`](Self::code). `None` if
    /// it is not certain to be an address of the code's, or at a known distance from it.
    fn code_at(&self, address: Self::Word) -> Option<u64> {
        self.known(address)
    }

    /// Where `a` is one of several words by conditions, the one that it is: as
    /// [`decide`](Self::decide) goes each way, so does this.
    fn settle(&self, a: Self::Word) -> Self::Word {
        a
    }
    /// The conditions by which [`settle`](Self::settle) would say which word `a` is.
    fn settled_by(&self, a: Self::Word) -> Vec<Self::Bit> {
        let _ = a;
        Vec::new()
    }
    /// Whether `a` depends on where the code lies, so that it may be an address of its own.
    fn is_of_code(&self, a: Self::Word) -> bool {
        let _ = a;
        false
    }

    /// The word's number, if it can have only one.
    fn known(&self, a: Self::Word) -> Option<u64>;
    /// `a - b`, if it can have only one value.
    fn distance(&self, a: Self::Word, b: Self::Word) -> Option<i64> {
        self.known(self.sub(a, b)).map(u64::cast_signed)
    }

    /// The little-endian word in up to 8 cells.
    fn load(&self, cells: &[Self::Cell]) -> Self::Word;
    /// The low bytes of `value`, as many as there are cells.
    fn store(&self, cells: &mut [Self::Cell], value: Self::Word);

    /// Cells with these contents.
    fn cells(&self, bytes: &[u8]) -> Vec<Self::Cell>;

    // The functions from here on are made of those above.

    /// The bit as the number 0 or 1.
    fn number(&self, a: Self::Bit) -> Self::Word {
        self.select(a, self.word(1), self.word(0))
    }
    /// Whether two bits differ.
    fn differ(&self, a: Self::Bit, b: Self::Bit) -> Self::Bit {
        self.either(self.both(a, self.not(b)), self.both(self.not(a), b))
    }
    /// Whether `a` is the constant `value`.
    fn is(&self, a: Self::Word, value: u64) -> Self::Bit {
        self.eq(a, self.word(value))
    }
    /// `a + constant`, modulo 2^64.
    fn plus(&self, a: Self::Word, constant: i64) -> Self::Word {
        self.add(a, self.word(constant.cast_unsigned()))
    }
    /// The bits of `a` that `mask` has.
    fn mask(&self, a: Self::Word, mask: u64) -> Self::Word {
        self.and(a, self.word(mask))
    }
    /// Whether `a` has a bit of `mask`.
    fn any(&self, a: Self::Word, mask: u64) -> Self::Bit {
        self.not(self.is(self.mask(a, mask), 0))
    }
    /// The low `size` bytes of `a`, `size` being 1, 2, 4 or 8.
    fn truncate(&self, a: Self::Word, size: usize) -> Self::Word {
        self.mask(a, low_bytes(size))
    }
    /// The low `size` bytes of `a`, the sign repeated in the others.
    fn sign_extend(&self, a: Self::Word, size: usize) -> Self::Word {
        let by = 64 - 8 * size as u32;
        self.sar(self.shl(a, by), by)
    }
}

/// The mask of the low `size` bytes, `size` being 1, 2, 4 or 8.
#[must_use]
pub const fn low_bytes(size: usize) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (8 * size)) - 1 }
}
