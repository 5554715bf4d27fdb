//! Where data lies relative to GS base, as an argument says it: a number, or a symbol and how far
//! after it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::emit::number;

/// Where data lies relative to GS base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DataPlace {
    /// At this number.
    Number(i64),
    /// So many bytes after a symbol.
    Symbol(String, i64),
}

/// The file has no such symbol.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoSymbol {
    name: String,
    known: Vec<String>,
}

impl fmt::Display for NoSymbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, known } = self;
        write!(f, "the code refers to no data called `{name}` through GS")?;
        match known.as_slice() {
            [] => write!(f, ", and to no other: give a number"),
            known => write!(f, ": it refers to `{}`", known.join("`, `")),
        }
    }
}

impl DataPlace {
    /// The symbol.
    pub(crate) fn symbol(&self) -> Option<&str> {
        match self {
            Self::Number(_) => None,
            Self::Symbol(name, _) => Some(name),
        }
    }

    /// The number, if `data` are the addresses of symbols.
    pub(crate) fn resolve(&self, data: &BTreeMap<String, u64>) -> Result<i64, NoSymbol> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Symbol(name, offset) => match data.get(name) {
                Some(address) => Ok(address.wrapping_add_signed(*offset).cast_signed()),
                None => Err(NoSymbol { name: name.clone(), known: data.keys().cloned().collect() }),
            },
        }
    }
}

impl FromStr for DataPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "not a place relative to GS base: a number, such as 0x80, -0x40 or an address of 64 \
             bits, or a symbol, such as cpu_tss_rw+0x80"
                .to_owned()
        };
        let signed = |text: &str| {
            let (digits, is_negative) = match text.strip_prefix('-') {
                Some(digits) => (digits, true),
                None => (text, false),
            };
            let size = number(digits)?;
            match is_negative {
                // Half of the addresses are negative as they are.
                false => Some(size.cast_signed()),
                true => i64::try_from(size).ok().map(|size| -size),
            }
        };
        if !text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '.') {
            return signed(text).map(Self::Number).ok_or_else(wrong);
        }
        match text.split_once('+') {
            Some((name, offset)) => {
                let offset = number(offset).and_then(|size| i64::try_from(size).ok());
                Ok(Self::Symbol(name.to_owned(), offset.ok_or_else(wrong)?))
            }
            None => Ok(Self::Symbol(text.to_owned(), 0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_number_or_after_a_symbol() {
        let number = |text: &str| match text.parse() {
            Ok(DataPlace::Number(number)) => Some(number),
            _ => None,
        };
        assert_eq!(number("0x80"), Some(0x80));
        assert_eq!(number("-0x8000_0000"), Some(i32::MIN.into()));
        assert_eq!(number("4096"), Some(4096));
        assert_eq!(number("0xffffffff83006000"), Some(-0x7CFF_A000));
        let symbol = |name: &str, offset| Ok(DataPlace::Symbol(name.to_owned(), offset));
        assert_eq!("cpu_tss_rw".parse(), symbol("cpu_tss_rw", 0));
        assert_eq!("cpu_tss_rw+0x80".parse(), symbol("cpu_tss_rw", 0x80));
        for bad in ["", "-", "--1", "80h", "0x1_0000_0000_0000_0000", "cpu_tss_rw+", "a+-1", "+8"] {
            assert!(bad.parse::<DataPlace>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_symbol_that_is_not_there_is_answered_with_those_that_are() {
        let data = BTreeMap::from([("cpu_tss_rw".to_owned(), 0xFFFF_FFFF_E000_1000)]);
        let place: DataPlace = "cpu_tss_rw+0x80".parse().unwrap();
        assert_eq!(place.resolve(&data), Ok(-0x1FFF_EF80));
        let error = "cpu_tss".parse::<DataPlace>().unwrap().resolve(&data).unwrap_err().to_string();
        assert!(error.contains("`cpu_tss`") && error.contains("`cpu_tss_rw`"), "{error}");
    }
}
