//! How many bytes are changed where an entry of a patch table leads.

/// How many bytes are changed where an entry leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// At most so many: one instruction, or the longest sequence that is put there.
    Most(u64),
    /// The entry says it itself, in the byte that is so far after its start.
    Stated(u64),
    /// The entry says it in two such bytes, which count together.
    Sum(u64, u64),
    /// The entry says it in the two bytes right after the address.
    After,
}

impl Length {
    /// The length for an entry with these bytes, whose address is so wide.
    fn of_entry(self, width: u64, byte: &dyn Fn(u64) -> u64) -> u64 {
        match self {
            Self::Most(bytes) => bytes,
            Self::Stated(at) => byte(at),
            Self::Sum(one, other) => byte(one) + byte(other),
            Self::After => byte(width) | byte(width + 1) << 8,
        }
    }

    /// The greatest length that any entry can have.
    const fn most(self) -> u64 {
        match self {
            Self::Most(bytes) => bytes,
            Self::Stated(_) => 0xFF,
            Self::Sum(..) => 2 * 0xFF,
            Self::After => 0xFFFF,
        }
    }
}

/// The lengths for entries of one table. Its name can be that of several.
#[derive(Clone, Debug, Default)]
pub(super) struct Lengths {
    all: Vec<Length>,
    /// How many bytes may be changed in front of where an entry leads.
    front: u64,
}

/// How much is changed around where an entry leads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// In front of it, maybe.
    pub(super) front: u64,
    /// From there on.
    pub(super) length: u64,
}

impl Lengths {
    pub(super) fn of(all: impl IntoIterator<Item = Length>) -> Self {
        Self { all: all.into_iter().collect(), front: 0 }
    }

    /// With so many bytes in front.
    pub(super) fn with_front(self, front: u64) -> Self {
        Self { front, ..self }
    }

    /// How many bytes may be changed in front of where an entry leads.
    pub(super) const fn front(&self) -> u64 {
        self.front
    }

    /// How much is changed where an entry with these bytes leads, whose address is so wide.
    pub(super) fn of_entry(&self, width: u64, byte: impl Fn(u64) -> u64) -> Extent {
        let all = self.all.iter().map(|length| length.of_entry(width, &byte));
        Extent { front: self.front, length: all.max().unwrap_or_default().max(1) }
    }

    /// How far in front of what is changed an entry may lead.
    pub(super) fn most(&self) -> u64 {
        self.all.iter().map(|length| length.most()).max().unwrap_or_default().max(1)
    }
}
