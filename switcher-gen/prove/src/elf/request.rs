//! What is asked of a file: how its symbols are called where they are not called as ours, and which
//! addresses of its data are wanted.

use std::collections::{BTreeMap, BTreeSet};

use switcher_gen::Variant;
use switcher_gen::arch::PagingMode;

use super::choice::{self, Choice, Choices};
use super::error::likeness;
use super::features::Feature;
use super::gate::{GateError, Gates};
use super::labels;
use super::wanted::Wanted;

/// What is asked of a file. Nothing, as a rule: the symbols have our names.
///
/// ```
/// use switcher_prove::elf::Request;
///
/// let request = Request::default()
///     .with_symbol("entry_IRETQ_switcher", "native_irq_return_iret")?
///     .with_data("cpu_tss_rw");
/// # Ok::<(), switcher_prove::elf::RequestError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Our names, by theirs.
    symbols: BTreeMap<String, &'static str>,
    /// Their names, for a first look at each name of a file.
    theirs: Wanted,
    /// The symbols of data of which the addresses are wanted.
    data: BTreeSet<String>,
    /// Those of data that code may reach relative to its own address.
    fixed: BTreeSet<String>,
    /// The names of both, for a first look.
    wanted: Wanted,
    /// What is known of how the kernel boots.
    choices: Choices,
    /// Labels that others than linkers go by.
    labels: BTreeSet<String>,
    /// The gates of the IDT, by the first of their vectors.
    gates: BTreeMap<u8, Gates>,
}

/// Why something cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No symbol of ours has this name.
    #[error("no symbol of ours is called `{name}`: there is `{}`", .known.join("`, `"))]
    Unknown {
        /// The name.
        name: String,
        /// All that there are, the most similar ones first.
        known: Vec<&'static str>,
    },
    /// A symbol of ours cannot be two of theirs.
    #[error("`{name}` cannot be both `{first}` and `{second}`: leave one")]
    Twice {
        /// Our name, or theirs.
        name: String,
        /// What it is already.
        first: String,
        /// What it should be as well.
        second: String,
    },
}

impl Request {
    /// The symbol `ours` is called `theirs`.
    ///
    /// # Errors
    /// If no symbol of ours has that name, or if one of the two names is taken.
    pub fn with_symbol(mut self, ours: &str, theirs: &str) -> Result<Self, RequestError> {
        let Some(ours) = labels::ours().find(|name| *name == ours) else {
            let mut known: Vec<_> = labels::ours().collect();
            known.sort_by_key(|name| std::cmp::Reverse(likeness(name, ours)));
            return Err(RequestError::Unknown { name: ours.into(), known });
        };
        let twice = |name: &str, first: &str, second: &str| {
            let [name, first, second] = [name, first, second].map(str::to_owned);
            Err(RequestError::Twice { name, first, second })
        };
        let other = self.symbols.iter().find(|(name, of)| **of == ours && *name != theirs);
        if let Some((first, _)) = other {
            return twice(ours, first, theirs);
        }
        self.theirs.add(theirs.as_bytes());
        match self.symbols.insert(theirs.into(), ours) {
            Some(first) if first != ours => twice(theirs, first, ours),
            _ => Ok(self),
        }
    }

    /// The address of this symbol of data is wanted: [`Foreign::data`](super::Foreign::data) has
    /// it, if the file does.
    #[must_use]
    pub fn with_data(mut self, symbol: &str) -> Self {
        self.wanted.add(symbol.as_bytes());
        self.data.insert(symbol.into());
        self
    }

    /// The same of data that no CPU has a copy of its own of: code may read it relative to its own
    /// address, in whatever section it is.
    #[must_use]
    pub fn with_fixed_data(mut self, symbol: &str) -> Self {
        self.wanted.add(symbol.as_bytes());
        self.fixed.insert(symbol.into());
        self
    }

    /// By this label of the code somebody decides where it runs, as handlers do by the labels of a
    /// window. It must be no other's, if the file has it.
    #[must_use]
    pub fn with_label(mut self, label: &str) -> Self {
        self.labels.insert(label.into());
        self
    }

    /// The IDT leads there. Of vectors of which nothing is said, the file must have the stubs.
    ///
    /// # Errors
    /// If that cannot be said of an IDT, or if one of the vectors has a gate already.
    pub fn with_gates(mut self, gates: Gates) -> Result<Self, GateError> {
        gates.check()?;
        let all = self.gates.values().flat_map(Gates::vectors);
        let known: BTreeSet<u8> = all.collect();
        if let Some(vector) = gates.vectors().find(|vector| known.contains(vector)) {
            return Err(GateError::Twice { vector });
        }
        self.gates.insert(*gates.vectors().start(), gates);
        Ok(self)
    }

    /// The kernel is known to boot in this way.
    #[must_use]
    pub fn with_choice(mut self, choice: Choice, is_on: bool) -> Self {
        choice::make(&mut self.choices, choice, is_on);
        self
    }

    /// What the kernel finds on every host that `variant` is for: of the features that it depends
    /// on, those that the variant says.
    #[must_use]
    pub fn on(self, variant: &Variant) -> Self {
        let known = [
            (Feature::ALWAYS, true),
            (Feature::FSGSBASE, true),
            (Feature::XENPV, false),
            (Feature::LA57, variant.paging() == PagingMode::FiveLevel),
        ];
        // A kernel that makes nothing of landing pads may run on a CPU that has them.
        let ibt = variant.ibt().then_some((Feature::IBT, true));
        let mut choices: Choices = known
            .into_iter()
            .chain(Feature::REQUIRED.map(|feature| (feature, true)))
            .chain(ibt)
            .map(|(feature, is_on)| (Choice::Feature(feature), is_on))
            .collect();
        choices.insert(Choice::ReturnThunk, variant.mitigations().untrain);
        // What was said before goes before.
        choices.extend(self.choices);
        Self { choices, ..self }
    }

    /// What is known of a choice.
    #[must_use]
    pub fn says(&self, choice: &Choice) -> Option<bool> {
        self.choices.get(choice).copied()
    }

    /// What is known of how the kernel boots.
    pub(super) const fn choices(&self) -> &Choices {
        &self.choices
    }

    /// What a symbol of theirs is called here.
    pub(super) fn ours(&self, theirs: &[u8]) -> Option<&'static str> {
        if !self.theirs.may_be(theirs) {
            return None;
        }
        self.symbols.get(std::str::from_utf8(theirs).ok()?).copied()
    }

    /// What symbols are called in the file that are called so here.
    pub(super) fn every_name<'a>(&'a self, ours: &'a [u8]) -> impl Iterator<Item = Vec<u8>> + 'a {
        let all = self.symbols.iter().filter(move |(_, name)| name.as_bytes() == ours);
        all.map(|(theirs, _)| theirs.clone().into_bytes())
    }

    /// What a symbol that is called so in the file means.
    pub(super) fn meant<'a>(&'a self, theirs: &'a str) -> &'a str {
        self.ours(theirs.as_bytes()).unwrap_or(theirs)
    }

    /// The labels that somebody goes by, as they are meant.
    pub(super) fn labels(&self) -> impl Iterator<Item = &str> {
        self.labels.iter().map(|label| self.meant(label))
    }

    /// The gates that are said, in the order of their vectors.
    pub(super) fn gates(&self) -> impl Iterator<Item = &Gates> {
        self.gates.values()
    }

    /// How a symbol of ours is called in the file.
    #[must_use]
    pub fn theirs<'a>(&'a self, ours: &'a str) -> &'a str {
        let named = self.symbols.iter().find(|(_, name)| **name == ours);
        named.map_or(ours, |(theirs, _)| theirs)
    }

    /// Whether the address of this symbol is wanted, as that of a per-CPU variable.
    pub(super) fn wants(&self, data: &str) -> bool {
        self.data.contains(data)
    }

    /// Whether a name may be that of wanted data, of either kind.
    pub(super) fn may_want(&self, data: &[u8]) -> bool {
        self.wanted.may_be(data)
    }

    /// Whether it is wanted, as that of data which code reaches relative to its own address.
    pub(super) fn wants_fixed(&self, data: &str) -> bool {
        self.fixed.contains(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_of_ours_and_has_one_of_theirs() {
        let request = Request::default().with_symbol("entry_IRETQ_switcher", "native").unwrap();
        assert_eq!(request.ours(b"native"), Some("entry_IRETQ_switcher"));
        assert_eq!(request.theirs("entry_IRETQ_switcher"), "native");
        assert_eq!(request.theirs("switcher_enter_guest"), "switcher_enter_guest");
        let again = request.clone().with_symbol("entry_IRETQ_switcher", "native");
        assert!(again.is_ok());
        let two = request.clone().with_symbol("entry_IRETQ_switcher", "other");
        assert!(matches!(two, Err(RequestError::Twice { .. })), "{two:?}");
        let two = request.with_symbol("switcher_enter_guest", "native");
        assert!(matches!(two, Err(RequestError::Twice { .. })), "{two:?}");
        let Err(RequestError::Unknown { known, .. }) =
            Request::default().with_symbol("entry_IRETQ", "x")
        else {
            panic!("it is none of ours")
        };
        assert_eq!(known[0], "entry_IRETQ_switcher");
    }
}
