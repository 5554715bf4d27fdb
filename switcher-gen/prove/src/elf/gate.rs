//! What is said of an IDT that leads to a file's symbols: which vectors lead where.

use std::fmt;
use std::ops::RangeInclusive;

/// The gates of one vector, or of several in a row.
///
/// ```
/// use switcher_prove::elf::{Gates, Request};
///
/// let request = Request::default()
///     .with_gates(Gates::new(14..=14, "asm_exc_page_fault"))?
///     .with_gates(Gates::new(2..=2, "asm_exc_nmi").with_ist(2))?
///     .with_gates(Gates::new(32..=255, "irq_entries_start").with_stride(8))?;
/// # Ok::<(), switcher_prove::elf::GateError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gates {
    vectors: RangeInclusive<u8>,
    symbol: String,
    offset: u64,
    stride: Option<u64>,
    ist: Option<u8>,
    dpl: Option<u8>,
}

/// What is wrong with the gates that are said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// A vector has one gate.
    #[error("vector {vector} has a gate already: leave one")]
    Twice {
        /// The first vector with two.
        vector: u8,
    },
    /// The last vector comes before the first.
    #[error("vectors {first} to {last} are none: write the lower one first")]
    NoVectors {
        /// The first one.
        first: u8,
        /// The last one.
        last: u8,
    },
    /// It is not said where the entries of the others are.
    #[error(
        "vectors {first} to {last} need a stride, how many bytes each entry lies after the one \
         before it: say it (`stride=N`; 0 if all lead to one entry)"
    )]
    NoStride {
        /// The first one.
        first: u8,
        /// The last one.
        last: u8,
    },
    /// One entry has no next one.
    #[error("vector {vector} is one alone, so that a stride says nothing: leave it out")]
    Stride {
        /// The vector.
        vector: u8,
    },
    /// The IST has no such stack.
    #[error("no stack of the IST has the number {ist}: there are 1 to 7, and 0 is none")]
    Ist {
        /// The number.
        ist: u64,
    },
    /// No privilege level.
    #[error("{dpl} is no privilege level: there are 0 to 3")]
    Dpl {
        /// The number.
        dpl: u64,
    },
    /// The entry is not in code.
    #[error(
        "vector {vector} leads {}: mend the offset or the stride of `{symbol}`",
        address.map_or("beyond all addresses".into(), |address| {
            format!("to {address:#x}, where the file has no code")
        })
    )]
    NotCode {
        /// The vector.
        vector: u8,
        /// What its entry counts from.
        symbol: String,
        /// Where it would be; none if it is beyond all addresses.
        address: Option<u64>,
    },
    /// Theorems of events are about all vectors.
    #[error(
        "events are judged for all vectors, and nothing says where {} leads: give each a gate, or \
         give the code the symbols `switcher_event_stubs` and `switcher_event_stubs_end` around \
         256 entries of equal stride, which are taken where no gate is given",
        Vectors(.vectors)
    )]
    Missing {
        /// The vectors without one, in order.
        vectors: Vec<RangeInclusive<u8>>,
    },
}

impl Gates {
    /// The gates of `vectors`, the first of which leads to `symbol`, as the file calls it. If not
    /// said otherwise, they have the stacks and the privilege levels of ours.
    #[must_use]
    pub fn new(vectors: RangeInclusive<u8>, symbol: &str) -> Self {
        let symbol = symbol.to_owned();
        Self { vectors, symbol, offset: 0, stride: None, ist: None, dpl: None }
    }

    /// The first leads so many bytes after the symbol.
    #[must_use]
    pub fn with_offset(self, offset: u64) -> Self {
        Self { offset, ..self }
    }

    /// Each leads so many bytes after the one before it.
    #[must_use]
    pub fn with_stride(self, stride: u64) -> Self {
        Self { stride: Some(stride), ..self }
    }

    /// They have this stack of the IST, or with 0 none.
    #[must_use]
    pub fn with_ist(self, ist: u8) -> Self {
        Self { ist: Some(ist), ..self }
    }

    /// They have this privilege level.
    #[must_use]
    pub fn with_dpl(self, dpl: u8) -> Self {
        Self { dpl: Some(dpl), ..self }
    }

    /// Whether it can be said of an IDT.
    pub(super) fn check(&self) -> Result<(), GateError> {
        let (first, last) = (*self.vectors.start(), *self.vectors.end());
        match self.stride {
            _ if self.vectors.is_empty() => return Err(GateError::NoVectors { first, last }),
            None if first != last => return Err(GateError::NoStride { first, last }),
            Some(_) if first == last => return Err(GateError::Stride { vector: first }),
            _ => {}
        }
        if let Some(ist) = self.ist.filter(|ist| *ist > 7) {
            return Err(GateError::Ist { ist: ist.into() });
        }
        match self.dpl.filter(|dpl| *dpl > 3) {
            Some(dpl) => Err(GateError::Dpl { dpl: dpl.into() }),
            None => Ok(()),
        }
    }

    /// The vectors.
    pub(super) fn vectors(&self) -> RangeInclusive<u8> {
        self.vectors.clone()
    }

    /// What the entries count from.
    pub(super) fn symbol(&self) -> &str {
        &self.symbol
    }

    /// How far the entry of `vector` lies after the symbol; none if that is no number.
    pub(super) fn distance(&self, vector: u8) -> Option<u64> {
        let number = u64::from(vector.checked_sub(*self.vectors.start())?);
        self.stride.unwrap_or_default().checked_mul(number)?.checked_add(self.offset)
    }

    /// The stack of the IST, if it is said.
    pub(super) const fn ist(&self) -> Option<u8> {
        self.ist
    }

    /// The privilege level, if it is said.
    pub(super) const fn dpl(&self) -> Option<u8> {
        self.dpl
    }
}

impl fmt::Display for Gates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vectors, symbol, offset, stride, ist, dpl } = self;
        let place = match offset {
            0 => format!("`{symbol}`"),
            offset => format!("`{symbol}` + {offset:#x}"),
        };
        let (first, last) = (vectors.start(), vectors.end());
        match stride {
            None => write!(f, "vector {first} to {place}")?,
            Some(0) => write!(f, "vectors {first} to {last} all to {place}")?,
            Some(stride) => {
                write!(f, "vectors {first} to {last} to every {stride} bytes from {place} on")?;
            }
        }
        if let Some(ist) = ist {
            write!(f, " with IST {ist}")?;
        }
        if let Some(dpl) = dpl {
            write!(f, " with DPL {dpl}")?;
        }
        Ok(())
    }
}

/// Vectors of which one or another is meant, in words.
struct Vectors<'a>(&'a [RangeInclusive<u8>]);

impl fmt::Display for Vectors<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// So many ranges are named.
        const FEW: usize = 8;
        let more = self.0.len().saturating_sub(FEW);
        for (number, range) in self.0.iter().take(FEW).enumerate() {
            match number {
                0 => {}
                number if number + 1 == self.0.len() => f.write_str(" or ")?,
                _ => f.write_str(", ")?,
            }
            match (range.start(), range.end()) {
                (start, end) if start == end => write!(f, "vector {start}")?,
                (start, end) => write!(f, "any of vectors {start} to {end}")?,
            }
        }
        match more {
            0 => Ok(()),
            more => write!(f, " or any of {more} more ranges"),
        }
    }
}
