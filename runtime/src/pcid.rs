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

/// A PCID that only guests have: 32 to 63. The lower numbers are the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPcid {
    number: u16,
    enabled: PcidEnabled,
}

/// The number is not a PCID of the guests'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PCID {0} is not a guest's: theirs are 32 to 63")]
pub struct NotAGuests(pub u16);

impl GuestPcid {
    /// The first PCID of the guests'.
    pub const FIRST: u16 = 32;
    /// How many PCIDs the guests have.
    pub const COUNT: usize = 32;

    /// # Errors
    /// If the number is not one of the guests'.
    pub const fn new(number: u16, enabled: PcidEnabled) -> Result<Self, NotAGuests> {
        if number >= Self::FIRST && number < Self::FIRST + Self::COUNT as u16 {
            Ok(Self { number, enabled })
        } else {
            Err(NotAGuests(number))
        }
    }

    /// Whether CR3 with these bits uses a PCID of the host's.
    pub(crate) const fn is_hosts(cr3: Cr3) -> bool {
        cr3.bits() & 0xFFF < Self::FIRST as u64
    }

    const fn index(self) -> usize {
        (self.number - Self::FIRST) as usize
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

/// For each of the guests' PCIDs, the root that was loaded last: only its translations may be in a
/// CPU's TLB under that PCID.
#[derive(Debug)]
pub(crate) struct CleanRoots([Option<Generation>; GuestPcid::COUNT]);

impl CleanRoots {
    /// Nothing is known of any PCID.
    pub(crate) const fn unknown() -> Self {
        Self([None; GuestPcid::COUNT])
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
            self.0[pcid.index()] = Some(root.generation);
        }
        cr3
    }

    fn has(&self, root: Tagged) -> bool {
        root.pcid.is_some_and(|pcid| self.0[pcid.index()] == Some(root.generation))
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
            pcid: Some(GuestPcid::new(pcid, enabled()).unwrap()),
            generation: Generation::new(),
        }
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
    fn no_pcid_is_the_hosts_and_a_guests() {
        for number in 0..=4095 {
            let guests = GuestPcid::new(number, enabled()).is_ok();
            let hosts = GuestPcid::is_hosts(
                Cr3::new(0x1000).unwrap().with_pcid(Pcid::new(number).unwrap(), enabled()),
            );
            assert!(!(guests && hosts), "{number}");
            assert_eq!(guests, (32..64).contains(&number));
        }
        assert_eq!(GuestPcid::new(64, enabled()), Err(NotAGuests(64)));
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
