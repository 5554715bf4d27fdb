//! Process-context identifiers: which are the guests', and when a translation may be kept.
//!
//! Under one PCID the TLB must never have translations of two roots, nor of a root as it was before
//! something was taken out of it (spec/hazards.md, row 20: XSA-292). So the host's and the guests'
//! PCIDs are different numbers, and NOFLUSH is nobody's to set: a [`Cpu`](crate::Cpu) remembers
//! which root it has last loaded under each PCID, and sets NOFLUSH for that root alone.
//!
//! An address does not say which root that is: a page that was one guest's root may be another's by
//! now (spec/hazards.md, row 53). So each root has a [`Generation`]: whoever makes a root gets a
//! new one.

use core::sync::atomic::{AtomicU64, Ordering};

use switcher_gen::arch::{Cr3, Pcid, PcidEnabled};

/// The PCIDs that only guests have on the CPUs of a switcher, an inclusive range. The host chooses
/// them, by [`Switcher::with_pcids`](crate::Switcher::with_pcids), and never loads a CR3 with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPcids {
    first: u16,
    last: u16,
}

/// The range cannot be the guests'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PCIDs {first} to {last} cannot be the guests': a range lies within 1 to 4095, in order")]
pub struct BadPcids {
    /// The first number of the range.
    pub first: u16,
    /// The last one.
    pub last: u16,
}

impl GuestPcids {
    /// 32 to 63: what guests have on a host that chooses nothing else.
    pub const DEFAULT: Self = Self { first: 32, last: 63 };
    /// For so many PCIDs a CPU remembers which root's translations it has. In a larger range, two
    /// numbers with this distance displace each other: more is flushed, and nothing is mixed.
    pub const REMEMBERED: usize = 32;

    /// The PCIDs from `first` to `last`, both included.
    ///
    /// # Errors
    /// If there is none, or PCID 0 among them: a root without a PCID is loaded under that one.
    pub const fn new(first: u16, last: u16) -> Result<Self, BadPcids> {
        if first == 0 || first > last || last > Pcid::LAST {
            return Err(BadPcids { first, last });
        }
        Ok(Self { first, last })
    }

    /// The first of them.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last of them.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether `number` is one of them.
    #[must_use]
    pub const fn has(self, number: u16) -> bool {
        self.first <= number && number <= self.last
    }

    /// One of them, for a guest's root.
    ///
    /// # Errors
    /// If the number is not one of them.
    pub const fn pcid(self, number: u16, enabled: PcidEnabled) -> Result<GuestPcid, NotAGuests> {
        if self.has(number) {
            Ok(GuestPcid { number, enabled })
        } else {
            Err(NotAGuests { number, pcids: self })
        }
    }

    /// Whether CR3 with these bits uses one of them.
    pub(crate) const fn has_cr3(self, cr3: Cr3) -> bool {
        self.has((cr3.bits() & 0xFFF) as u16)
    }
}

impl core::fmt::Display for GuestPcids {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} to {}", self.first, self.last)
    }
}

/// A PCID that only guests have: made by [`GuestPcids::pcid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPcid {
    number: u16,
    enabled: PcidEnabled,
}

/// The number is not a PCID of the guests'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PCID {number} is not a guest's: theirs are {pcids}")]
pub struct NotAGuests {
    /// The number that was asked for.
    pub number: u16,
    /// The PCIDs that are the guests'.
    pub pcids: GuestPcids,
}

impl GuestPcid {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.number
    }

    /// Where a CPU remembers what it has under this PCID.
    const fn index(self) -> usize {
        self.number as usize % GuestPcids::REMEMBERED
    }
}

/// The identity of something that a CPU keeps state for: of a root as it maps at some time, or of
/// those who share branch predictors. Each number is given once; at one in a nanosecond they last
/// for 500 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Generation(u64);

impl Generation {
    /// A number that nothing has had.
    pub(crate) fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed))
    }
}

/// A root, with what decides whether its translations may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tagged {
    /// The root without PCID and NOFLUSH.
    pub(crate) root: Cr3,
    pub(crate) pcid: Option<GuestPcid>,
    pub(crate) generation: Generation,
}

impl Tagged {
    /// The value of CR3 that flushes the PCID's translations when it is loaded, or, without a PCID,
    /// all.
    pub(crate) fn flushing(self) -> Cr3 {
        match self.pcid {
            Some(GuestPcid { number, enabled }) => match Pcid::new(number) {
                Ok(pcid) => self.root.with_pcid(pcid, enabled),
                Err(_) => self.root,
            },
            None => self.root,
        }
    }

    /// The value of CR3 that keeps the PCID's translations. A root without a PCID has no such
    /// value.
    fn keeping(self) -> Cr3 {
        match self.pcid {
            Some(GuestPcid { enabled, .. }) => self.flushing().without_flush(enabled),
            None => self.root,
        }
    }

    /// Whether `other` is another root under the same PCID, or the same one before or after
    /// something was taken out of it.
    pub(crate) fn is_in_conflict_with(self, other: Self) -> bool {
        self.pcid.is_some_and(|pcid| other.pcid.is_some_and(|it| it.number == pcid.number))
            && self.generation != other.generation
    }
}

/// The roots that were loaded last, with their PCIDs: only a root's own translations may be in a
/// CPU's TLB under its PCID if both are here. Whatever is loaded under a PCID, nothing else stays
/// in its place, so that PCIDs may share one; and a root may have several PCIDs.
#[derive(Debug)]
pub(crate) struct CleanRoots([Option<(u16, Generation)>; GuestPcids::REMEMBERED]);

impl CleanRoots {
    /// Nothing is known of any PCID.
    pub(crate) const fn unknown() -> Self {
        Self([None; GuestPcids::REMEMBERED])
    }

    /// The value that a direct switch to a root loads into CR3: it keeps translations only if they
    /// are that root's. If they are not, each switch flushes, and afterwards nobody knows whose
    /// they are, because there may have been a switch or not.
    pub(crate) fn slot(&mut self, root: Tagged) -> Cr3 {
        if self.has(root) {
            return root.keeping();
        }
        if let Some(pcid) = root.pcid {
            self.0[pcid.index()] = None;
        }
        root.flushing()
    }

    /// The value that an entry on a root loads into CR3. From then on the translations are that
    /// root's.
    pub(crate) fn enter(&mut self, root: Tagged) -> Cr3 {
        let cr3 = self.slot(root);
        if let Some(pcid) = root.pcid {
            self.0[pcid.index()] = Some((pcid.number(), root.generation));
        }
        cr3
    }

    fn has(&self, root: Tagged) -> bool {
        root.pcid.is_some_and(|pcid| self.0[pcid.index()] == Some((pcid.number(), root.generation)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;
    use switcher_gen::arch::HostState;

    const NOFLUSH: u64 = 1 << 63;

    fn enabled() -> PcidEnabled {
        let state = HostState { pcid: true, ..HostState::PLAIN };
        state.pcid_enabled().unwrap()
    }

    fn tagged(root: u64, pcid: u16) -> Tagged {
        Tagged {
            root: Cr3::new(root).unwrap(),
            pcid: Some(GuestPcids::new(1, 4095).unwrap().pcid(pcid, enabled()).unwrap()),
            generation: Generation::new(),
        }
    }

    /// Two PCIDs share a place, and one root has both: under the second one, the translations are
    /// still another root's.
    #[test]
    fn a_root_is_clean_under_the_pcid_alone_that_it_was_loaded_under() {
        let mut clean = CleanRoots::unknown();
        let (other, one) = (tagged(0x1000, 72), tagged(0x2000, 40));
        let same = Tagged { pcid: tagged(0, 72).pcid, ..one };
        assert_eq!(one.pcid.unwrap().index(), same.pcid.unwrap().index());
        clean.enter(other);
        clean.enter(one);
        assert_eq!(clean.slot(one).bits() & NOFLUSH, NOFLUSH);
        assert_eq!(clean.slot(same).bits() & NOFLUSH, 0);
        // The same within one guest, for its two modes.
        clean.enter(one);
        assert_eq!(clean.enter(same).bits() & NOFLUSH, 0);
        assert_eq!(clean.slot(one).bits() & NOFLUSH, 0);
    }

    #[test]
    fn a_new_root_on_the_page_of_a_dead_one_has_none_of_its_translations() {
        let mut clean = CleanRoots::unknown();
        let dead = tagged(0x1000, 40);
        clean.enter(dead);
        assert_eq!(clean.enter(dead).bits(), NOFLUSH | 0x1028);
        // This is another root on the same page and under the same PCID.
        let recycled = tagged(0x1000, 40);
        assert_ne!(recycled, dead);
        assert_eq!(clean.slot(recycled).bits(), 0x1028);
        assert_eq!(clean.enter(recycled).bits(), 0x1028);
        assert_eq!(clean.enter(recycled).bits(), NOFLUSH | 0x1028);
        // Nor does a root get its translations back that was taken for dead.
        assert_eq!(clean.enter(dead).bits(), 0x1028);
    }

    #[test]
    fn no_two_identities_are_equal() {
        let mut all: Vec<_> = (0..1000).map(|_| Generation::new()).collect();
        all.sort_unstable_by_key(|it| it.0);
        all.dedup();
        assert_eq!(all.len(), 1000);
    }

    #[test]
    fn a_number_is_a_guests_pcid_in_the_range_alone() {
        for (first, last) in [(32, 63), (1, 4095), (7, 7), (0x7C0, 0x7DF)] {
            let pcids = GuestPcids::new(first, last).unwrap();
            for number in 0..=4095 {
                let guests = pcids.pcid(number, enabled());
                assert_eq!(guests.is_ok(), (first..=last).contains(&number));
                let cr3 = Cr3::new(0x1000).unwrap();
                let cr3 = cr3.with_pcid(Pcid::new(number).unwrap(), enabled());
                assert_eq!(pcids.has_cr3(cr3), guests.is_ok(), "{number}");
            }
            assert!(!pcids.has(4096) && !pcids.has(u16::MAX));
        }
        let refused = NotAGuests { number: 64, pcids: GuestPcids::DEFAULT };
        assert_eq!(GuestPcids::DEFAULT.pcid(64, enabled()), Err(refused));
        assert_eq!(std::format!("{refused}"), "PCID 64 is not a guest's: theirs are 32 to 63");
        for (first, last) in [(0, 5), (6, 5), (1, 4096), (4096, 4096)] {
            assert_eq!(GuestPcids::new(first, last), Err(BadPcids { first, last }));
        }
    }

    #[test]
    fn pcids_that_share_a_place_flush_and_never_mix() {
        let mut clean = CleanRoots::unknown();
        let (a, b) = (tagged(0x1000, 40), tagged(0x2000, 40 + 32));
        clean.enter(a);
        assert_eq!(clean.enter(b).bits(), 0x2048);
        assert_eq!(clean.enter(b).bits(), NOFLUSH | 0x2048);
        assert_eq!(clean.enter(a).bits(), 0x1028);
        // Another root under the same PCID, while the place was somebody else's.
        clean.enter(b);
        assert_eq!(clean.enter(tagged(0x3000, 40)).bits(), 0x3028);
        assert_eq!(clean.enter(a).bits(), 0x1028);
    }

    #[test]
    fn translations_are_kept_only_of_the_root_that_was_entered_last() {
        let mut clean = CleanRoots::unknown();
        let (a, b) = (tagged(0x1000, 40), tagged(0x2000, 40));
        assert_eq!(clean.enter(a).bits(), 0x1028);
        assert_eq!(clean.enter(a).bits(), NOFLUSH | 0x1028);
        // This is another root under the same PCID: each switch flushes when they alternate.
        assert_eq!(clean.slot(b).bits(), 0x2028);
        assert_eq!(clean.enter(b).bits(), 0x2028);
        assert_eq!(clean.enter(a).bits(), 0x1028);
        // Under another PCID, the two do not meet.
        assert_eq!(clean.enter(tagged(0x2000, 41)).bits(), 0x2029);
        assert_eq!(clean.enter(a).bits(), NOFLUSH | 0x1028);
    }

    #[test]
    fn a_slot_that_was_never_entered_on_flushes_every_time() {
        let mut clean = CleanRoots::unknown();
        let umod = tagged(0x3000, 33);
        clean.enter(tagged(0x1000, 32));
        assert_eq!(clean.slot(umod).bits(), 0x3021);
        assert_eq!(clean.slot(umod).bits(), 0x3021);
    }

    #[test]
    fn a_slot_that_another_guest_may_have_used_is_nobodys() {
        let mut clean = CleanRoots::unknown();
        let (first, second) = (tagged(0x1000, 40), tagged(0x2000, 40));
        clean.enter(first);
        // A guest with another root under this PCID may switch to that directly, or not.
        clean.slot(second);
        assert_eq!(clean.slot(first).bits(), 0x1028);
        assert_eq!(clean.enter(first).bits(), 0x1028);
    }

    #[test]
    fn after_something_was_taken_out_the_next_load_flushes_once() {
        let mut clean = CleanRoots::unknown();
        let before = tagged(0x1000, 32);
        clean.enter(before);
        let after = Tagged { generation: Generation::new(), ..before };
        assert_eq!(clean.slot(after).bits(), 0x1020);
        assert_eq!(clean.enter(after).bits(), 0x1020);
        assert_eq!(clean.enter(after).bits(), NOFLUSH | 0x1020);
        assert_eq!(clean.enter(before).bits(), 0x1020);
    }

    #[test]
    fn without_a_pcid_nothing_is_kept() {
        let mut clean = CleanRoots::unknown();
        let plain = Tagged { pcid: None, ..tagged(0x1000, 32) };
        for _ in 0..2 {
            assert_eq!(clean.enter(plain).bits(), 0x1000);
        }
    }

    #[test]
    fn two_roots_under_one_pcid_are_in_conflict() {
        let a = tagged(0x1000, 40);
        assert!(a.is_in_conflict_with(tagged(0x2000, 40)));
        // These are two roots on one page, or one root before and after something was taken out of
        // it: neither has the other's translations.
        assert!(a.is_in_conflict_with(tagged(0x1000, 40)));
        assert!(a.is_in_conflict_with(Tagged { generation: Generation::new(), ..a }));
        assert!(!a.is_in_conflict_with(tagged(0x2000, 41)));
        assert!(!a.is_in_conflict_with(a));
        assert!(!a.is_in_conflict_with(Tagged { pcid: None, ..tagged(0x2000, 40) }));
    }
}
