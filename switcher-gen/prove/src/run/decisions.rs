//! What a guest learns from the way that a run went.
//!
//! A value that no guest may learn must not decide what the guest can see: which of two numbers is
//! stored into the PVCS, whether, when or how often, or which of two reads of it counts
//! (spec/hazards.md, rows 34 and 35). So once a jump that might have gone either way depended on
//! such a value, nothing may be read from or stored into the PVCS any more, and what was read of it
//! before must leave no choice.
//!
//! One question about the host's own is answered by what the guest sees anyway: whether it may
//! switch directly, and which mode it is in. It must be asked as the specification asks it, or in
//! parts: once all of them are answered, and none of what may inhibit was found set, they say what
//! the one question does. Until then they say more, and so they do where the PVCS was accessed
//! before: that the run ends there is seen.

use crate::run::origins::is_a_leak;
use switcher_gen::layout::SwitchFlags;
use switcher_model::{Domain, State as Machine, low_bytes};

/// What was decided by the host's values so far.
#[derive(Debug)]
pub(crate) struct Decisions<W> {
    /// What was read of switch_flags, and how many bytes.
    flags: Vec<(W, usize)>,
    /// And of it elsewhere than from its first byte on, with the offset.
    parts: Vec<(W, usize, usize)>,
    /// The bits that were asked for in parts, and those of them that were found clear.
    asked: u64,
    clear: u64,
    is_a_secret: bool,
}

impl<W> Default for Decisions<W> {
    fn default() -> Self {
        let (flags, parts) = (Vec::new(), Vec::new());
        Self { flags, parts, asked: 0, clear: 0, is_a_secret: false }
    }
}

impl<W: Copy + PartialEq> Decisions<W> {
    /// `size` bytes of switch_flags, from the byte `at` on, were found to be `value`.
    pub(crate) fn read_flags(&mut self, value: W, at: usize, size: usize) {
        if at == 0 {
            self.flags.push((value, size));
        }
        self.parts.push((value, at, size));
    }

    /// A jump that might have gone either way has depended on `condition`, a truth value as a
    /// number; and whether the PVCS was accessed before it.
    pub(crate) fn decided<D: Domain<Word = W>>(
        &mut self,
        d: &D,
        state: &Machine<D>,
        condition: W,
        is_shown: bool,
    ) {
        if !is_a_leak(d, condition) {
            return;
        }
        let is_told = self.is_told(d, condition);
        match self.part(d, state, condition) {
            // Which mode it is in says nothing of the others.
            Some((bits, _)) if is_told && bits & !SwitchFlags::MODE_TOGGLE.bits() == 0 => {}
            Some((bits, is_set)) if is_told || !is_shown => {
                self.asked |= if is_told { 0 } else { bits };
                // The way has been chosen already. Nobody clears a bit: what is clear was so
                // before, and what is set may have been clear until now.
                self.clear = if d.decide(is_set) { 0 } else { self.clear | bits };
            }
            _ => self.is_a_secret |= !is_told,
        }
    }

    /// Where `condition` asks whether some of the bits are set of which each may inhibit: which,
    /// and whether one is. The flags in `state` are those that the jump goes by.
    fn part<D: Domain<Word = W>>(
        &self,
        d: &D,
        state: &Machine<D>,
        condition: W,
    ) -> Option<(u64, D::Bit)> {
        // A part of it is a constant that is compared with, or a single bit.
        let [a, b, ..] = state.flags.made_of();
        let constants = [a, b].into_iter().filter_map(|word| d.known(word));
        let masks: Vec<u64> =
            constants.chain([u64::MAX]).chain((0..64).map(|bit| 1 << bit)).collect();
        self.parts.iter().find_map(|&(flags, at, size)| {
            let read = low_bytes(size);
            let mut masks = masks.iter().map(|mask| mask & read).filter(|mask| *mask != 0);
            masks.find_map(|mask| {
                // BT asks for a bit otherwise.
                let bit = mask.is_power_of_two().then(|| d.test(flags, mask.trailing_zeros()));
                let mut asked = [Some(d.any(flags, mask)), bit].into_iter().flatten();
                let is_set = asked.find(|is_set| {
                    [*is_set, d.not(*is_set)].map(|bit| d.number(bit)).contains(&condition)
                })?;
                Some((mask << (8 * at), is_set))
            })
        })
    }

    /// Whether a jump by `condition` is a part of the one question, where the way here has asked it
    /// in parts: other ways are decided by it.
    pub(crate) fn is_in_parts<D: Domain<Word = W>>(
        &self,
        d: &D,
        state: &Machine<D>,
        condition: W,
    ) -> bool {
        self.asked != 0 && self.part(d, state, condition).is_some()
    }

    /// Whether the way here says what no guest may learn.
    pub(crate) const fn is_a_secret(&self) -> bool {
        self.is_a_secret || self.asked != 0 && !is_all(self.clear)
    }

    /// Whether the guest sees the answer anyway.
    pub(crate) fn is_told<D: Domain<Word = W>>(&self, d: &D, condition: W) -> bool {
        let [smod, umod] = [SwitchFlags::SMOD, SwitchFlags::UMOD].map(|mode| mode.bits());
        let both = SwitchFlags::MODE_TOGGLE.bits();
        // What may inhibit is one answer of all bits: a part of them says which it is.
        let (modes, inhibited) = ([smod, umod, both], [!smod, !umod, !both]);
        self.flags.iter().any(|(flags, size)| {
            let is_whole = *size == 8;
            let any = modes.into_iter().chain(inhibited.into_iter().filter(|_| is_whole));
            let any = any.map(|mask| d.any(*flags, mask));
            // As numbers: what is below UMOD is SMOD alone, for it is always one of them.
            let compared = [smod, umod].into_iter().filter(|_| is_whole).flat_map(|mode| {
                let (is, below) = (d.is(*flags, mode), d.lt(*flags, d.word(mode)));
                [is, below, d.either(below, is), d.lt(d.word(mode), *flags)]
            });
            let mut told = any.chain(compared);
            told.any(|told| [told, d.not(told)].map(|told| d.number(told)).contains(&condition))
        })
    }
}

/// Whether these are all bits that may inhibit: what there is of the mode's is asked by itself.
const fn is_all(bits: u64) -> bool {
    bits | SwitchFlags::MODE_TOGGLE.bits() == u64::MAX
}
