//! What decides which bytes run, and is not in the file: features of the CPU, and switches of the
//! kernel.

use std::collections::BTreeMap;
use std::fmt;

use super::features::Feature;

/// Something that is one way or the other once the kernel has booted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Choice {
    /// Whether the CPU has a feature.
    Feature(Feature),
    /// Whether returns go through a thunk.
    ReturnThunk,
    /// Whether the static branch at this place jumps.
    Branch(String),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Feature(feature) => feature.fmt(f),
            Self::ReturnThunk => f.write_str("return-thunk"),
            Self::Branch(at) => write!(f, "branch@{at}"),
        }
    }
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "return-thunk" {
            return Ok(Self::ReturnThunk);
        }
        match text.strip_prefix("branch@") {
            Some(at) => Ok(Self::Branch(at.into())),
            None => text.parse().map(Self::Feature),
        }
    }
}

/// What is decided.
pub type Choices = BTreeMap<Choice, bool>;

/// Choices as text: `la57=off, smap=on`.
#[must_use]
pub fn text(choices: &Choices) -> String {
    let all = choices
        .iter()
        .map(|(choice, is_on)| format!("{choice}={}", if *is_on { "on" } else { "off" }));
    all.collect::<Vec<_>>().join(", ")
}
