//! Data of the host's that somebody's code uses besides the switcher's own: per-CPU variables, such
//! as the depth of calls that Linux counts, and data that nobody changes, such as a selector for
//! VERW. Where it lies, how large it is and what it holds is said by whoever has the code judged,
//! and a verdict lists it.

use std::fmt;

use switcher_gen::arch::PagingMode;

/// Data of the host's that code may read, and maybe write.
///
/// ```
/// use switcher_prove::{DataAt, HostData};
///
/// let depth = HostData::new("pcpu_hot+0x10", DataAt::PerCpu(0x1_7010), 8)?.written()?;
/// let selector = HostData::new("x86_verw_sel", DataAt::Fixed(0xFFFF_FFFF_8100_0000), 2)?
///     .holding(0x18)?
///     .mapped();
/// # Ok::<(), switcher_prove::WrongData>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostData {
    /// What it is called in reports.
    pub(crate) name: String,
    pub(crate) at: DataAt,
    /// Its size in bytes.
    pub(crate) size: u8,
    /// What it holds, if that is known.
    pub(crate) value: Option<u64>,
    pub(crate) access: DataAccess,
}

/// Where data of the host's lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataAt {
    /// Each CPU has its own, so far from GS base.
    PerCpu(i64),
    /// There is one, at this address, which code has relative to its own.
    Fixed(u64),
}

/// What code may do with data of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DataAccess {
    /// Read it on the host's root.
    Read,
    /// Read it on every root.
    ReadMapped,
    /// Read and write it on the host's root.
    Write,
}

/// Data that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongData {
    /// No instruction of a switcher has so large an operand.
    #[error("`{name}` has {size} bytes: data of the host's has 1 to {most}", most = HostData::MOST_BYTES)]
    Size {
        /// What it is called.
        name: String,
        /// Its size.
        size: u64,
    },
    /// The number has more bits than the data.
    #[error("`{name}` cannot hold {value:#x}: it has {size} bytes, and 8 at most have a value")]
    Value {
        /// What it is called.
        name: String,
        /// The number.
        value: u64,
        /// Its size.
        size: u8,
    },
    /// What the code writes holds what it has written, or what others have.
    #[error("`{name}` cannot be written and hold {value:#x} all the same: leave one of the two")]
    Written {
        /// What it is called.
        name: String,
        /// What it is said to hold.
        value: u64,
    },
    /// No data lies there.
    #[error(
        "`{name}` cannot lie at {address:#x}: that is no address with this paging mode, or further \
         from GS base than an operand reaches"
    )]
    Place {
        /// What it is called.
        name: String,
        /// Where it was said to lie.
        address: u64,
    },
    /// More than are told apart.
    #[error("{count} pieces of the host's data are named, and {most} are the most", most = HostData::MOST)]
    TooMany {
        /// How many there are.
        count: usize,
    },
}

impl HostData {
    /// How many pieces of data there may be.
    pub const MOST: usize = 8;
    /// How large one may be.
    pub const MOST_BYTES: u8 = 64;

    /// Data of so many bytes, of which nothing is known, and which the code may read on the host's
    /// root.
    ///
    /// # Errors
    /// If no data has that size.
    pub fn new(name: &str, at: DataAt, size: u64) -> Result<Self, WrongData> {
        let name = name.to_owned();
        match u8::try_from(size) {
            Ok(bytes @ 1..=Self::MOST_BYTES) => {
                Ok(Self { name, at, size: bytes, value: None, access: DataAccess::Read })
            }
            _ => Err(WrongData::Size { name, size }),
        }
    }

    /// The same, which holds this number.
    ///
    /// # Errors
    /// If it is too small for that.
    pub fn holding(self, value: u64) -> Result<Self, WrongData> {
        let fits = match self.size {
            size @ 1..8 => value >> (8 * size) == 0,
            8 => true,
            _ => false,
        };
        match fits {
            true => Ok(Self { value: Some(value), ..self }),
            false => Err(WrongData::Value { name: self.name, value, size: self.size }),
        }
    }

    /// The same, which is mapped on every root.
    #[must_use]
    pub fn mapped(self) -> Self {
        Self { access: DataAccess::ReadMapped, ..self }
    }

    /// The same, which the code may write as well, in each of its routines and event entries: no
    /// load finds anything in particular.
    ///
    /// # Errors
    /// If it is said to hold a number.
    pub fn written(self) -> Result<Self, WrongData> {
        match self.value {
            Some(value) => Err(WrongData::Written { name: self.name, value }),
            None => Ok(Self { access: DataAccess::Write, ..self }),
        }
    }

    /// Whether data can lie there.
    pub(crate) fn is_possible(&self, paging: PagingMode) -> Result<(), WrongData> {
        let size = i64::from(self.size);
        let (address, is_possible) = match self.at {
            // An operand's distance has 32 bits.
            DataAt::PerCpu(at) => {
                let end = at.checked_add(size - 1);
                let reaches = |at| i32::try_from(at).is_ok();
                (at.cast_unsigned(), reaches(at) && end.is_some_and(reaches))
            }
            DataAt::Fixed(at) => {
                let end = at.checked_add(size.cast_unsigned() - 1);
                let is_canonical = |at| paging.is_canonical(at);
                (at, is_canonical(at) && end.is_some_and(is_canonical))
            }
        };
        match is_possible {
            true => Ok(()),
            false => Err(WrongData::Place { name: self.name.clone(), address }),
        }
    }
}

impl fmt::Display for HostData {
    /// What is assumed of it, as a sentence without its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, at, size, value, access } = self;
        let bytes = if *size == 1 { "byte" } else { "bytes" };
        match at {
            DataAt::PerCpu(at) => {
                let sign = if *at < 0 { '-' } else { '+' };
                let at = at.unsigned_abs();
                write!(f, "each CPU has `{name}`, {size} {bytes} at GS{sign}{at:#x}")?;
            }
            DataAt::Fixed(at) => write!(f, "`{name}`, {size} {bytes}, lies at {at:#x}")?,
        }
        f.write_str(", apart from the switcher's own memory")?;
        f.write_str(match access {
            DataAccess::Read => ", mapped on the host's root",
            DataAccess::ReadMapped => ", mapped on every root",
            DataAccess::Write => {
                return f.write_str(
                    ", mapped on the host's root, for the code to write as it likes: what that does \
                     to the kernel is not judged",
                );
            }
        })?;
        match value {
            Some(value) => write!(f, ", and holds {value:#x}")?,
            None => f.write_str(", and holds what no guest may learn")?,
        }
        f.write_str("; nobody changes it while the code runs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_has_a_size_and_a_value_that_fits() {
        let of = |size| HostData::new("x", DataAt::PerCpu(-8), size);
        for size in [0, 65, 256, u64::MAX] {
            assert!(matches!(of(size), Err(WrongData::Size { .. })), "{size}");
        }
        assert!(of(64).is_ok());
        assert!(of(2).unwrap().holding(0xFFFF).is_ok());
        assert!(of(8).unwrap().holding(u64::MAX).is_ok());
        for (size, value) in [(1, 0x100), (2, 0x1_0000), (4, 1 << 32), (16, 0)] {
            let wrong = of(size).unwrap().holding(value);
            assert!(matches!(wrong, Err(WrongData::Value { .. })), "{size}");
        }
    }

    #[test]
    fn data_lies_where_data_can() {
        let is_possible =
            |at, size, paging| HostData::new("x", at, size).unwrap().is_possible(paging).is_ok();
        let four = |at, size| is_possible(at, size, PagingMode::FourLevel);
        assert!(four(DataAt::Fixed(0xFFFF_8000_0000_0000), 8));
        assert!(four(DataAt::PerCpu(i64::from(i32::MAX) - 7), 8));
        for (at, size) in [
            (DataAt::Fixed(0x8000_0000_1000), 1),
            (DataAt::Fixed(0x7FFF_FFFF_FFFF), 2),
            (DataAt::Fixed(u64::MAX), 2),
            (DataAt::PerCpu(i64::MAX), 2),
            (DataAt::PerCpu(i64::from(i32::MAX)), 2),
            (DataAt::PerCpu(i64::from(i32::MIN) - 1), 1),
        ] {
            assert!(!four(at, size), "{at:?}");
        }
        assert!(is_possible(DataAt::Fixed(0x8000_0000_1000), 1, PagingMode::FiveLevel));
    }

    #[test]
    fn what_is_assumed_of_data_is_said() {
        let of = |at| HostData::new("x", at, 8).unwrap();
        let text = of(DataAt::PerCpu(-8)).written().unwrap().to_string();
        assert!(text.starts_with("each CPU has `x`, 8 bytes at GS-0x8"), "{text}");
        assert!(text.contains("for the code to write"), "{text}");
        let both = of(DataAt::PerCpu(-8)).holding(1).unwrap().written();
        assert!(matches!(both, Err(WrongData::Written { .. })), "{both:?}");
        let text = of(DataAt::Fixed(0x10)).holding(7).unwrap().mapped().to_string();
        assert!(text.starts_with("`x`, 8 bytes, lies at 0x10, apart"), "{text}");
        assert!(text.contains("mapped on every root, and holds 0x7"), "{text}");
    }
}
