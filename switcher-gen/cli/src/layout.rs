//! Where somebody else's kernel has the fields of its structs, and what it calls those that the
//! specification does not know.

use switcher_gen::layout::Tss;
use switcher_offsets::{Found, Struct};
use switcher_prove::{
    Counterexample, ExtraField, KnownField, LayoutError, Places, Profile, PvcsField, Setting,
};

/// Why a layout cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WrongLayout {
    #[error(transparent)]
    Fields(#[from] LayoutError),
    /// The CPU decides about the TSS.
    #[error("`{field}` of the TSS lies at {at:#x}, and CPUs have it at {own:#x}")]
    Tss { field: &'static str, at: u64, own: usize },
}

/// Refuses a TSS that no CPU has.
fn check_tss(tss: &Struct) -> Result<(), WrongLayout> {
    let known = [
        ("sp0", Tss::sp0.bytes()),
        ("sp1", Tss::sp1.bytes()),
        ("sp2", Tss::sp2.bytes()),
        ("ist", Tss::ist1.bytes()),
    ];
    for (field, own) in known {
        let there = tss.fields.iter().find(|of_theirs| of_theirs.name == field);
        if let Some(at) = there.map(|there| there.at).filter(|at| *at != own as u64) {
            return Err(WrongLayout::Tss { field, at, own });
        }
    }
    Ok(())
}

/// What is known of structs that are not ours.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    extra: Option<Places<ExtraField>>,
    pvcs: Option<Places<PvcsField>>,
    /// Where the TSS begins in the variable that holds it, and where the switcher's data does.
    pub(crate) tss_at: Option<i64>,
    pub(crate) extra_at: Option<i64>,
    /// What proofs call a word that they know nothing of, and what the kernel calls it.
    names: Vec<(String, String)>,
}

impl Layout {
    /// What a profile says, and what was found in files, which goes before it.
    pub(crate) fn new(profile: &Profile, found: Option<&Found>) -> Result<Self, WrongLayout> {
        let mut layout = Self::default();
        let of_profile = profile.extra.iter().map(|(name, at)| (*name, *at, None));
        layout.take_extra(None, of_profile.collect())?;
        if let Some(found) = found {
            if let Some(tss) = &found.tss {
                check_tss(tss)?;
            }
            let place = |at: Option<u64>| at.and_then(|at| i64::try_from(at).ok());
            if let Some(extra) = &found.tss_extra {
                layout.take_extra(extra.size, fields(extra))?;
                layout.extra_at = place(found.tss_extra_at);
                layout.tss_at = place(found.tss_at);
            }
            if let Some(pvcs) = &found.pvcs {
                let all = fields(pvcs);
                layout.pvcs = Some(Places::new(pvcs.size, all.iter().copied())?);
                layout.name::<PvcsField>("pvcs", &all);
            }
        }
        Ok(layout)
    }

    fn take_extra(
        &mut self,
        size: Option<u64>,
        all: Vec<(&str, u64, Option<u64>)>,
    ) -> Result<(), LayoutError> {
        if all.is_empty() {
            return Ok(());
        }
        self.extra = Some(Places::new(size, all.iter().copied())?);
        self.names.clear();
        self.name::<ExtraField>("tss_extra", &all);
        Ok(())
    }

    /// Remembers what the other fields are called.
    fn name<F: KnownField>(&mut self, of: &str, all: &[(&str, u64, Option<u64>)]) {
        let is_known = |name: &str| F::ALL.iter().any(|field| field.name() == name);
        let others = all.iter().filter(|(name, ..)| !is_known(name));
        // Of a whole and its first part, the longer name says more.
        let mut named: Vec<_> =
            others.map(|(name, at, _)| (format!("{of}+{at:#x}"), name)).collect();
        named.sort_by_key(|(place, name)| (place.clone(), std::cmp::Reverse(name.len())));
        named.dedup_by(|(second, _), (first, _)| first == second);
        self.names.extend(named.into_iter().map(|(at, name)| (at, format!("{of}.{name}"))));
    }

    /// The setting of code with these structs.
    pub(crate) fn apply(&self, setting: Setting) -> Result<Setting, LayoutError> {
        let setting = self.extra.map_or(Ok(setting), |extra| setting.with_extra(extra))?;
        self.pvcs.map_or(Ok(setting), |pvcs| setting.with_pvcs(pvcs))
    }

    /// A counterexample in the kernel's names.
    pub(crate) fn named(&self, mut found: Counterexample) -> Counterexample {
        for (place, name) in &self.names {
            for (of, _) in &mut found.state {
                if of.strip_prefix("entry.").unwrap_or(of) == place {
                    *of = of.replace(place.as_str(), name);
                }
            }
            if let Some((required, is)) = &mut found.terms {
                for term in [required, is] {
                    *term = renamed(term, place, name);
                }
            }
        }
        found
    }
}

/// A term in which a place has a name: not where it is the beginning of another place.
fn renamed(term: &str, place: &str, name: &str) -> String {
    let mut text = String::with_capacity(term.len());
    let mut rest = term;
    while let Some(at) = rest.find(place) {
        let (before, after) = rest.split_at(at);
        let after = &after[place.len()..];
        let is_whole = !after.starts_with(|c: char| c.is_ascii_hexdigit());
        text += before;
        text += if is_whole { name } else { place };
        rest = after;
    }
    text + rest
}

/// The fields of a struct as places are made of them.
fn fields(of: &Struct) -> Vec<(&str, u64, Option<u64>)> {
    of.fields.iter().map(|field| (field.name.as_str(), field.at, field.size)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_where_it_is_the_whole_of_one() {
        let term = "(tss_extra+0x10 + tss_extra+0x100)";
        assert_eq!(
            renamed(term, "tss_extra+0x10", "tss_extra.a"),
            "(tss_extra.a + tss_extra+0x100)"
        );
    }

    #[test]
    fn what_was_found_goes_before_the_profile() {
        let module = Profile::named("linux-pvm-module-2026").unwrap();
        let of_profile = Layout::new(module, None).unwrap();
        let host = ("tss_extra+0x10".to_owned(), "tss_extra.host_gs_base".to_owned());
        assert!(of_profile.names.contains(&host), "{:?}", of_profile.names);
        let toml = "[tss_extra]\nat = 0x100\n[tss_extra.fields]\nhost_cr3 = 8\nmine = 0x10\n";
        let found = switcher_offsets::read(toml.as_bytes()).unwrap();
        let layout = Layout::new(module, Some(&found)).unwrap();
        assert_eq!(layout.extra_at, Some(0x100));
        let mine = ("tss_extra+0x10".to_owned(), "tss_extra.mine".to_owned());
        assert_eq!(layout.names, [mine]);
        assert_eq!(layout.extra.unwrap().at(ExtraField::HostCr3), Some(8));
    }
}
