//! Where the fields of the switcher's data and of the PVCS lie: as in our structs, or as the
//! structs of somebody else's kernel have them.
//!
//! The specification knows a few fields of each by name. Whatever else such a struct holds is the
//! host's or the guest's own: bytes of which nothing is known, and which nobody may change.

use std::hash::Hash;
use std::marker::PhantomData;

use switcher_gen::layout::{self, AsmLayout, Layout, PvcsLayout, Revision, TssExtra};

/// A field that the specification knows.
pub trait KnownField: Copy + Eq + Hash + std::fmt::Debug + 'static {
    /// The struct, in reports.
    const STRUCT: &'static str;
    /// The largest size of such a struct, in bytes.
    const MOST: u64;
    /// All of them, by their numbers.
    const ALL: &'static [Self];

    /// Its name in C.
    fn name(self) -> &'static str;

    /// Its size in bytes.
    fn size(self) -> usize;

    /// Its place in [`ALL`](Self::ALL).
    fn number(self) -> usize;
}

/// Defines an enumeration of the fields of a struct: each by its name in C, and its size.
macro_rules! known_fields {
    (
        $(#[$doc:meta])* $enumeration:ident, $in_reports:literal, $most:expr;
        $($field:ident $name:ident $size:literal)*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "the names are those of the ABI's page")]
        pub enum $enumeration { $($field),* }

        impl KnownField for $enumeration {
            const STRUCT: &'static str = $in_reports;
            const MOST: u64 = $most;
            const ALL: &'static [Self] = &[$(Self::$field),*];

            fn name(self) -> &'static str {
                match self { $(Self::$field => stringify!($name)),* }
            }

            fn size(self) -> usize {
                match self { $(Self::$field => $size),* }
            }

            fn number(self) -> usize {
                self as usize
            }
        }
    };
}

known_fields! {
    /// A field of the switcher's per-CPU data (spec/abi.md, "The per-CPU block").
    ExtraField, "the switcher's data", 4096;
    HostCr3 host_cr3 8
    HostRsp host_rsp 8
    EnterCr3 enter_cr3 8
    SwitchFlags switch_flags 8
    SmodCr3 smod_cr3 8
    UmodCr3 umod_cr3 8
    Pvcs pvcs 8
    RetuRip retu_rip 8
    SmodEntry smod_entry 8
    SmodGsbase smod_gsbase 8
    SmodRsp smod_rsp 8
    HostSpecCtrl host_spec_ctrl 4
    GuestSpecCtrl guest_spec_ctrl 4
    SmodPkru smod_pkru 4
    PkuOn pku_on 4
}

known_fields! {
    /// A field of the PVCS (spec/abi.md, "PVCS").
    PvcsField, "the PVCS", 4096;
    UserCs user_cs 2
    UserSs user_ss 2
    UserGsbase user_gsbase 8
    Eflags eflags 4
    Pkru pkru 4
    Rip rip 8
    Rsp rsp 8
    Rcx rcx 8
    R11 r11 8
}

/// More than any struct has known fields.
const FIELDS: usize = 15;

/// Where the known fields of a struct lie, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Places<F> {
    size: u32,
    at: [Option<u32>; FIELDS],
    of: PhantomData<F>,
}

/// Why a struct is not one that a switcher can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A field is missing that the variant needs.
    #[error("{of} has no field `{field}`, which {why}: say where it lies")]
    Missing {
        /// The struct.
        of: &'static str,
        /// The field.
        field: &'static str,
        /// Who needs it.
        why: &'static str,
    },
    /// A field has another size.
    #[error("`{field}` of {of} has {size} bytes, and the specification's has {expected}")]
    Size {
        /// The struct.
        of: &'static str,
        /// The field.
        field: &'static str,
        /// Its size.
        size: u64,
        /// What it should be.
        expected: usize,
    },
    /// Two fields share bytes.
    #[error("`{first}` and `{second}` of {of} overlap")]
    Overlap {
        /// The struct.
        of: &'static str,
        /// The field.
        first: &'static str,
        /// The field that it overlaps.
        second: &'static str,
    },
    /// A field is not within the struct.
    #[error("`{field}` of {of} lies at {at:#x}, and the struct has {size:#x} bytes")]
    Outside {
        /// The struct.
        of: &'static str,
        /// The field.
        field: &'static str,
        /// Where it lies.
        at: u64,
        /// The size of the struct.
        size: u64,
    },
    /// No struct of this kind has so many bytes.
    #[error("{of} has {size:#x} bytes, and {most:#x} are the most")]
    TooLarge {
        /// The struct.
        of: &'static str,
        /// Its size.
        size: u64,
        /// What it may have.
        most: u64,
    },
}

impl<F: KnownField> Places<F> {
    /// The places of known fields in a struct of `size` bytes, or of as many as its last field
    /// needs: of each its name, where it lies and how many bytes it has, if that is known. Other
    /// names count for the size alone.
    ///
    /// # Errors
    /// If fields overlap, lie outside, or have other sizes than those of the specification.
    pub fn new<'a>(
        size: Option<u64>,
        fields: impl IntoIterator<Item = (&'a str, u64, Option<u64>)>,
    ) -> Result<Self, LayoutError> {
        let of = F::STRUCT;
        let (mut at, mut end) = ([None; FIELDS], 0_u64);
        for (name, place, bytes) in fields {
            let known = F::ALL.iter().find(|field| field.name() == name);
            let own = bytes.unwrap_or_else(|| known.map_or(1, |field| field.size() as u64));
            end = end.max(place.saturating_add(own));
            let Some(field) = known else { continue };
            if own != field.size() as u64 {
                let (field, expected) = (field.name(), field.size());
                return Err(LayoutError::Size { of, field, size: own, expected });
            }
            let within = size.unwrap_or(F::MOST).min(F::MOST);
            if place.saturating_add(own) > within {
                let (field, size) = (field.name(), within);
                return Err(LayoutError::Outside { of, field, at: place, size });
            }
            at[field.number()] = Some(place as u32);
        }
        let size = size.unwrap_or_else(|| end.next_multiple_of(8));
        if size > F::MOST {
            return Err(LayoutError::TooLarge { of, size, most: F::MOST });
        }
        let places = Self { size: size as u32, at, of: PhantomData };
        for (number, first) in F::ALL.iter().enumerate() {
            for second in &F::ALL[number + 1..] {
                let Some((a, b)) = places.at(*first).zip(places.at(*second)) else { continue };
                if a < b + second.size() as i64 && b < a + first.size() as i64 {
                    let (first, second) = (first.name(), second.name());
                    return Err(LayoutError::Overlap { of, first, second });
                }
            }
        }
        Ok(places)
    }

    /// As in one of our structs.
    fn of_layout(layout: &Layout) -> Self {
        let mut at = [None; FIELDS];
        for field in F::ALL {
            let own = layout.fields.iter().find(|own| own.name == field.name());
            at[field.number()] = own.map(|own| own.offset as u32);
        }
        Self { size: layout.size as u32, at, of: PhantomData }
    }

    /// The size of the struct in bytes.
    #[must_use]
    pub const fn size(&self) -> i64 {
        self.size as i64
    }

    /// Where a field lies, in bytes from the start; `None` if there is none.
    #[must_use]
    pub fn at(&self, field: F) -> Option<i64> {
        self.at[field.number()].map(i64::from)
    }

    /// Refuses a struct without a field, if it `is_needed`.
    fn need(&self, field: F, is_needed: bool, why: &'static str) -> Result<(), LayoutError> {
        let (of, name) = (F::STRUCT, field.name());
        match self.at(field) {
            None if is_needed => Err(LayoutError::Missing { of, field: name, why }),
            _ => Ok(()),
        }
    }
}

impl Places<ExtraField> {
    /// Those of our own struct.
    #[must_use]
    pub fn ours() -> Self {
        Self::of_layout(TssExtra::LAYOUT)
    }

    /// Refuses a struct without what a variant needs.
    pub(crate) fn check(
        &self,
        revision: Revision,
        ibrs: bool,
        pku: bool,
    ) -> Result<(), LayoutError> {
        for field in ExtraField::ALL {
            let (is_needed, why) = match field {
                ExtraField::HostSpecCtrl | ExtraField::GuestSpecCtrl => {
                    (ibrs, "the variant's IBRS needs")
                }
                ExtraField::SmodRsp => (revision == Revision::V2024, "the revision of 2024 needs"),
                ExtraField::SmodPkru => (pku, "the variant's protection keys need"),
                // Where it is missing, every guest has protection keys.
                ExtraField::PkuOn => (false, "no switcher needs"),
                _ => (true, "every switcher needs"),
            };
            self.need(*field, is_needed, why)?;
        }
        Ok(())
    }
}

impl Places<PvcsField> {
    /// Those of our own struct of a revision.
    #[must_use]
    pub fn ours(revision: Revision) -> Self {
        fn of<P: PvcsLayout>() -> Places<PvcsField> {
            let places = Places::of_layout(P::LAYOUT);
            // V2026 has no RSP.
            assert_eq!(places.at(PvcsField::Rsp).is_some(), P::RSP.is_some());
            places
        }
        match revision {
            Revision::V2024 => of::<layout::Pvcs>(),
            Revision::V2026 => of::<layout::PvcsV2026>(),
        }
    }

    /// Refuses a struct without what a variant needs.
    pub(crate) fn check(&self, revision: Revision, pku: bool) -> Result<(), LayoutError> {
        for field in PvcsField::ALL {
            let (is_needed, why) = match field {
                PvcsField::Pkru => (pku, "the variant's protection keys need"),
                PvcsField::Rsp => (revision == Revision::V2024, "the revision of 2024 needs"),
                _ => (true, "every switcher needs"),
            };
            self.need(*field, is_needed, why)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST_CR3: (&str, u64, Option<u64>) = ("host_cr3", 8, Some(8));

    fn read(
        size: Option<u64>,
        fields: &[(&str, u64, Option<u64>)],
    ) -> Result<Places<ExtraField>, LayoutError> {
        Places::new(size, fields.iter().copied())
    }

    #[test]
    fn known_fields_are_found_and_others_count_for_the_size() {
        let places = read(None, &[HOST_CR3, ("host_gs_base", 0x10, Some(8))]).unwrap();
        assert_eq!(places.at(ExtraField::HostCr3), Some(8));
        assert_eq!(places.at(ExtraField::HostRsp), None);
        assert_eq!(places.size(), 0x18);
        assert_eq!(read(Some(0x40), &[HOST_CR3]).unwrap().size(), 0x40);
        let header = read(None, &[("smod_pkru", 0x7C, None)]).unwrap();
        assert_eq!((header.at(ExtraField::SmodPkru), header.size()), (Some(0x7C), 0x80));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_name() {
        let size = read(None, &[("switch_flags", 0, Some(4))]);
        assert!(matches!(size, Err(LayoutError::Size { field: "switch_flags", .. })), "{size:?}");
        let overlap = read(None, &[HOST_CR3, ("host_rsp", 12, None)]);
        assert!(matches!(overlap, Err(LayoutError::Overlap { .. })), "{overlap:?}");
        let outside = read(Some(8), &[HOST_CR3]);
        assert!(matches!(outside, Err(LayoutError::Outside { at: 8, size: 8, .. })), "{outside:?}");
        let far = read(None, &[("host_cr3", u64::MAX, None)]);
        assert!(matches!(far, Err(LayoutError::Outside { .. })), "{far:?}");
        let large = read(Some(1 << 20), &[]);
        assert!(matches!(large, Err(LayoutError::TooLarge { .. })), "{large:?}");
        let missing = read(None, &[HOST_CR3]).unwrap().check(Revision::V2024, false, false);
        assert!(matches!(missing, Err(LayoutError::Missing { field: "host_rsp", .. })));
    }

    #[test]
    fn our_own_structs_have_all_of_them() {
        let extra = Places::<ExtraField>::ours();
        assert_eq!(extra.check(Revision::V2024, true, true), Ok(()));
        for revision in [Revision::V2024, Revision::V2026] {
            assert_eq!(Places::<PvcsField>::ours(revision).check(revision, true), Ok(()));
        }
        let sizes = TssExtra::LAYOUT.fields.iter().filter(|field| !field.name.starts_with('_'));
        for own in sizes {
            let field = ExtraField::ALL.iter().find(|field| field.name() == own.name).unwrap();
            assert_eq!(field.size(), own.size, "{}", own.name);
        }
    }
}
