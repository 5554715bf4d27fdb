//! Names of variants and policies as a person types them: words in any order, in upper or lower
//! case. What is printed is always the one name that certificates have.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use crate::arch::{PagingMode, Selectors, Vendor};
use crate::layout::{Placement, Revision};
use crate::mitigations::{Contradiction, Mitigations, UnknownMitigations};
use crate::variant::{Config, IllegalVariant, Policy, Variant};

/// The words of a name that stand before its mitigations, each with its meaning.
const WORDS: [(&str, Word); 12] = [
    ("intel", Word::Vendor(Vendor::Intel)),
    ("amd", Word::Vendor(Vendor::Amd)),
    ("4level", Word::Paging(PagingMode::FourLevel)),
    ("la57", Word::Paging(PagingMode::FiveLevel)),
    ("ibt", Word::Ibt),
    ("pcid", Word::Pcid),
    ("pku", Word::Pku),
    ("percpu", Word::Placement(Placement::PerCpu)),
    ("current", Word::Revision(Revision::V2026)),
    // A name that is printed has no words for the defaults.
    ("gs", Word::Placement(Placement::Gs)),
    ("v2024", Word::Revision(Revision::V2024)),
    ("v2026", Word::Revision(Revision::V2026)),
];

/// The meaning of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Vendor(Vendor),
    Paging(PagingMode),
    Ibt,
    Pcid,
    Pku,
    Placement(Placement),
    Revision(Revision),
}

/// Finds the word in the table. Returns it as it is written there, with its meaning.
fn find(typed: &str) -> Option<(&'static str, Word)> {
    WORDS.into_iter().find(|(word, _)| word.eq_ignore_ascii_case(typed))
}

/// A choice that one word of a name makes, and that a second one must not make otherwise.
struct Choice<T>(Option<(&'static str, T)>);

impl<T: Copy + PartialEq> Choice<T> {
    const NONE: Self = Self(None);

    fn make(&mut self, second: &'static str, value: T) -> Result<(), Contradiction> {
        match self.0 {
            Some((first, chosen)) if chosen != value => Err(Contradiction { first, second }),
            _ => {
                self.0 = Some((second, value));
                Ok(())
            }
        }
    }

    fn get(&self) -> Option<T> {
        self.0.map(|(_, value)| value)
    }
}

/// The text is not the name of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown policy; the policies are `percpu`, `current` and `percpu-current`, and no name for the default"
)]
pub struct UnknownPolicy;

/// Reads what [`Display`](fmt::Display) writes, in any order. `gs` and `v2024` name the defaults,
/// and `v2026` is `current`.
impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        let (mut placement, mut revision) = (Choice::NONE, Choice::NONE);
        for typed in name.split('-').filter(|_| !name.is_empty()) {
            let chosen = match find(typed) {
                Some((word, Word::Placement(value))) => placement.make(word, value),
                Some((word, Word::Revision(value))) => revision.make(word, value),
                _ => return Err(UnknownPolicy),
            };
            chosen.map_err(|_| UnknownPolicy)?;
        }
        let (placement, revision) = (placement.get(), revision.get());
        Ok(Self {
            placement: placement.unwrap_or_default(),
            revision: revision.unwrap_or_default(),
        })
    }
}

/// The text is not the name of a variant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown variant `{name}`: {reason}")]
pub struct UnknownVariant {
    /// The whole text.
    pub name: String,
    /// The reason why it is no name.
    pub reason: UnknownVariantReason,
}

/// Why a text is not the name of a variant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnknownVariantReason {
    /// A word before the mitigations is unknown.
    #[error("no name has the word `{0}`")]
    Word(String),
    /// A word is missing.
    #[error("it does not say which {0}")]
    Missing(Part),
    /// Two of the words contradict each other.
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
    /// The mitigations are unknown, or contradict each other.
    #[error(transparent)]
    Mitigations(#[from] UnknownMitigations),
    /// No CPU has the combination.
    #[error(transparent)]
    Illegal(#[from] IllegalVariant),
}

/// The parts that every name has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The CPU's vendor.
    Vendor,
    /// The paging mode.
    Paging,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vendor => "vendor (intel, amd)",
            Self::Paging => "paging mode (4level, la57)",
        })
    }
}

impl Variant {
    /// How names are made, for whoever has typed one that no variant has.
    pub const GRAMMAR: &'static str = "\
VENDOR-PAGING[-OPTION...][+MITIGATION...], the options and the mitigations in any order
  VENDOR      intel, amd
  PAGING      4level, la57
  OPTION      ibt (intel), pcid, pku, percpu, current (the PVCS of 2026)
  MITIGATION  ibrs, rsb or rsblite, verw; bhb or bhblong (intel); ibpb, untrain (amd)";

    /// The words that a name can have before its mitigations.
    pub fn words() -> impl Iterator<Item = &'static str> {
        WORDS.into_iter().map(|(word, _)| word)
    }
}

/// Reads what [`Display`](fmt::Display) writes, and the same words in another order.
///
/// ```
/// # use switcher_gen::Variant;
/// let variant: Variant = "LA57-intel-pcid-ibt+verw+rsb".parse()?;
/// assert_eq!(variant.to_string(), "intel-la57-ibt-pcid+rsb+verw");
/// # Ok::<(), switcher_gen::UnknownVariant>(())
/// ```
impl FromStr for Variant {
    type Err = UnknownVariant;

    fn from_str(name: &str) -> Result<Self, UnknownVariant> {
        read(name).map_err(|reason| UnknownVariant { name: name.into(), reason })
    }
}

fn read(name: &str) -> Result<Variant, UnknownVariantReason> {
    let (words, mitigations) = name.split_at(name.find('+').unwrap_or(name.len()));
    let (mut vendor, mut paging) = (Choice::NONE, Choice::NONE);
    let (mut placement, mut revision) = (Choice::NONE, Choice::NONE);
    let [mut ibt, mut pcid, mut pku] = [false; 3];
    for typed in words.split('-').filter(|_| !words.is_empty()) {
        let (word, says) = find(typed).ok_or_else(|| UnknownVariantReason::Word(typed.into()))?;
        match says {
            Word::Vendor(value) => vendor.make(word, value)?,
            Word::Paging(value) => paging.make(word, value)?,
            Word::Placement(value) => placement.make(word, value)?,
            Word::Revision(value) => revision.make(word, value)?,
            Word::Ibt => ibt = true,
            Word::Pcid => pcid = true,
            Word::Pku => pku = true,
        }
    }
    let policy = Policy {
        placement: placement.get().unwrap_or_default(),
        revision: revision.get().unwrap_or_default(),
    };
    let config = Config {
        vendor: vendor.get().ok_or(UnknownVariantReason::Missing(Part::Vendor))?,
        paging: paging.get().ok_or(UnknownVariantReason::Missing(Part::Paging))?,
        ibt,
        pcid,
        pku,
        policy,
        mitigations: mitigations.parse::<Mitigations>()?,
    };
    Ok(Variant::new(config, Selectors::DEFAULT)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mitigations::Mitigation;
    use alloc::format;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    #[test]
    fn the_canonical_name_of_each_variant_is_read_back() {
        for variant in Variant::all() {
            assert_eq!(variant.to_string().parse(), Ok(variant));
        }
    }

    #[test]
    fn words_are_read_in_any_order_and_with_capitals() {
        for variant in Variant::all() {
            let name = variant.to_string();
            let (words, mitigations) = name.split_at(name.find('+').unwrap_or(name.len()));
            let words: Vec<_> = words.rsplit('-').collect();
            let mitigations: Vec<_> = mitigations.rsplit('+').filter(|it| !it.is_empty()).collect();
            let mut reversed = words.join("-");
            mitigations.iter().for_each(|word| reversed += &format!("+{word}"));
            assert_eq!(reversed.parse(), Ok(variant), "{reversed}");
            assert_eq!(reversed.to_uppercase().parse(), Ok(variant), "{reversed}");
        }
        let read = |name: &str| name.parse::<Variant>().unwrap().to_string();
        assert_eq!(read("intel-4level-gs-v2024"), "intel-4level");
        assert_eq!(read("v2026-amd-la57"), "amd-la57-current");
        // A word may be repeated.
        assert_eq!(read("intel-intel-4level-pcid-pcid+rsb+rsb"), "intel-4level-pcid+rsb");
    }

    #[test]
    fn what_is_wrong_with_a_name_is_said() {
        let refuse = |name: &str| {
            let error = name.parse::<Variant>().unwrap_err();
            assert_eq!(error.name, name);
            error.reason.to_string()
        };
        assert_eq!(refuse("via-4level"), "no name has the word `via`");
        assert_eq!(refuse("intel-4level-"), "no name has the word ``");
        assert_eq!(refuse("intel-4level-rsb"), "no name has the word `rsb`");
        assert_eq!(refuse(""), "it does not say which vendor (intel, amd)");
        assert_eq!(refuse("la57+rsb"), "it does not say which vendor (intel, amd)");
        assert_eq!(refuse("amd"), "it does not say which paging mode (4level, la57)");
        let contradiction = "contradict each other: leave one";
        assert_eq!(refuse("intel-amd-la57"), format!("`intel` and `amd` {contradiction}"));
        assert_eq!(refuse("amd-la57-4level"), format!("`la57` and `4level` {contradiction}"));
        assert_eq!(
            refuse("amd-la57-v2024-current"),
            format!("`v2024` and `current` {contradiction}")
        );
        assert_eq!(refuse("amd-la57-percpu-gs"), format!("`percpu` and `gs` {contradiction}"));
        assert_eq!(refuse("amd-la57+rsb+rsblite"), format!("`rsb` and `rsblite` {contradiction}"));
        assert!(refuse("intel-4level+ibrs+magic").starts_with("unknown mitigation `magic`; "));
        assert!(refuse("intel-4level+").starts_with("unknown mitigation ``; "));
        assert!(refuse("amd-la57-ibt").starts_with("AMD CPUs have no indirect branch tracking"));
        assert!(refuse("amd-4level+bhb").starts_with("`bhb` is not for CPUs of"));
        let whole = "amd".parse::<Variant>().unwrap_err().to_string();
        assert!(whole.starts_with("unknown variant `amd`: it does not say "), "{whole}");
    }

    #[test]
    fn the_grammar_has_each_word_that_is_printed() {
        let words: Vec<_> =
            Variant::GRAMMAR.split(|it: char| !it.is_ascii_alphanumeric()).collect();
        let printed = Variant::words().filter(|word| !["gs", "v2024", "v2026"].contains(word));
        let mitigations = Mitigation::ALL.into_iter().map(Mitigation::name);
        printed.chain(mitigations).for_each(|word| assert!(words.contains(&word), "{word}"));
    }

    #[test]
    fn a_policy_is_read_back_from_its_name() {
        assert_eq!(Policy::DEFAULT.to_string(), "");
        for policy in Policy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        let both = Policy { placement: Placement::PerCpu, revision: Revision::V2026 };
        assert_eq!("current-percpu".parse(), Ok(both));
        assert_eq!("v2026-PerCpu".parse(), Ok(both));
        assert_eq!("gs-v2024".parse(), Ok(Policy::DEFAULT));
        for unknown in ["percpu-", "intel", "gs-percpu", "-"] {
            assert_eq!(unknown.parse::<Policy>(), Err(UnknownPolicy), "{unknown}");
        }
        let refused = UnknownPolicy.to_string();
        let known = Policy::ALL.into_iter().filter(|policy| *policy != Policy::DEFAULT);
        known.for_each(|policy| assert!(refused.contains(&format!("`{policy}`"))));
    }
}
