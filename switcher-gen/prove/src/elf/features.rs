//! Linux's numbers of CPU features: a word of 32 bits and a bit in it. Words that hold a leaf of
//! CPUID keep their bits in every version; others are Linux's own, and mean something else in the
//! next one.

use std::fmt;
use std::str::FromStr;

/// A feature, by Linux's number of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Feature(pub(super) u16);

/// The features of CPUID that matter to switchers, and what Linux sets on every CPU.
const NAMES: [(u16, &str); 14] = [
    (word(1, 20), "nx"),
    (word(3, 21), "always"),
    (word(4, 17), "pcid"),
    (word(4, 26), "xsave"),
    (word(8, 16), "xenpv"),
    (word(9, 0), "fsgsbase"),
    (word(9, 7), "smep"),
    (word(9, 10), "invpcid"),
    (word(9, 20), "smap"),
    (word(16, 3), "pku"),
    (word(16, 16), "la57"),
    (word(18, 10), "md_clear"),
    (word(18, 20), "ibt"),
    (word(18, 26), "spec_ctrl"),
];

const fn word(number: u16, bit: u16) -> u16 {
    number * 32 + bit
}

impl Feature {
    /// Five-level paging.
    pub const LA57: Self = Self(word(16, 16));
    /// SMAP, with CLAC and STAC.
    pub const SMAP: Self = Self(word(9, 20));
    /// Protection keys.
    pub const PKU: Self = Self(word(16, 3));
    /// Process-context identifiers.
    pub const PCID: Self = Self(word(4, 17));
    /// Indirect branch tracking.
    pub const IBT: Self = Self(word(18, 20));
    /// RDGSBASE and the like, without which no switcher works.
    pub const FSGSBASE: Self = Self(word(9, 0));
    /// What every CPU has.
    pub const ALWAYS: Self = Self(word(3, 21));
    /// The kernel is a guest of Xen's by paravirtualisation.
    pub const XENPV: Self = Self(word(8, 16));
    /// What every 64-bit kernel of Linux's refuses to boot without, and SYSCALL, without which
    /// no switcher works: the FPU, MSRs, PAE, CMPXCHG8B, CMOV, FXSR, SSE, SSE2, long mode and NOP
    /// with an operand.
    pub const REQUIRED: [Self; 11] = [
        Self(word(0, 0)),
        Self(word(0, 5)),
        Self(word(0, 6)),
        Self(word(0, 8)),
        Self(word(0, 15)),
        Self(word(0, 24)),
        Self(word(0, 25)),
        Self(word(0, 26)),
        Self(word(1, 11)),
        Self(word(1, 29)),
        Self(word(3, 20)),
    ];

    fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(number, _)| *number == self.0).map(|(_, name)| *name)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{}*32+{}", self.0 / 32, self.0 % 32),
        }
    }
}

impl FromStr for Feature {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = NAMES.iter().find(|(_, name)| *name == text).map(|(number, _)| *number);
        let numbered = || {
            let (number, bit) = text.split_once("*32+")?;
            let (number, bit): (u16, u16) = (number.parse().ok()?, bit.parse().ok()?);
            (number < 32 && bit < 32).then(|| word(number, bit))
        };
        named.or_else(numbered).map(Self).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(_, name)| *name).collect();
            format!(
                "no feature: write one of {}, or Linux's number such as 7*32+11",
                names.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_is_a_name_or_a_number() {
        assert_eq!("la57".parse(), Ok(Feature::LA57));
        assert_eq!("16*32+16".parse(), Ok(Feature::LA57));
        assert_eq!(Feature::LA57.to_string(), "la57");
        let other: Feature = "7*32+11".parse().unwrap();
        assert_eq!(other.to_string(), "7*32+11");
        for bad in ["", "la58", "7*32+32", "40*32+1", "7*33+1"] {
            assert!(bad.parse::<Feature>().is_err(), "{bad}");
        }
    }
}
