//! What is at stake where an obligation is broken.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// What is at stake, the gravest first: `a < b` says that `a` is the graver one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The host's safety, or its secrets.
    Host,
    /// What a guest sees or gets. The host is safe.
    Guest,
    /// What callers, or the host's code, may rely on. Nothing is unsafe by that alone.
    Contract,
    /// How long it takes. What it does is right.
    Speed,
}

/// A name that no severity has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown severity `{0}`: name one of host, guest, contract, speed")]
pub struct UnknownSeverity(String);

impl Severity {
    /// All there are, the gravest first.
    pub const ALL: [Self; 4] = [Self::Host, Self::Guest, Self::Contract, Self::Speed];

    /// Short and stable.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Guest => "guest",
            Self::Contract => "contract",
            Self::Speed => "speed",
        }
    }

    /// What it means, in one sentence without a full stop.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Host => "The safety of the host, or its secrets, are at stake",
            Self::Guest => "A guest sees or gets something wrong; the host is safe",
            Self::Contract => {
                "The code differs from the specification in what callers or the host's code may \
                 rely on; nothing is unsafe by that alone"
            }
            Self::Speed => "What the code does is right, but takes longer than it must",
        }
    }

    /// Whether it is as grave as `other`, or graver.
    #[must_use]
    pub fn is_at_least(self, other: Self) -> bool {
        self <= other
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Severity {
    type Err = UnknownSeverity;

    fn from_str(name: &str) -> Result<Self, UnknownSeverity> {
        let found = Self::ALL.into_iter().find(|severity| severity.name() == name);
        found.ok_or_else(|| UnknownSeverity(name.into()))
    }
}
