//! What a guest learns from the way that a run went.
//!
//! A value that no guest may learn must not decide what the guest can see: which of two numbers is
//! stored into the PVCS, whether, when or how often, or which of two reads of it counts (spec/hazards.md,
//! rows 34 and 35). So once a jump that might have gone either way depended on such a value, nothing may
//! be read from or stored into the PVCS any more, and what was read of it before must leave no choice.
//!
//! One question about the host's own is answered by what the guest sees anyway: whether it may switch
//! directly, and which mode it is in. It must be asked as the specification asks it.

use crate::run::origins::is_a_leak;
use switcher_gen::layout::SwitchFlags;
use switcher_model::Domain;

/// What was decided by the host's values so far.
#[derive(Debug)]
pub(crate) struct Decisions<W> {
    /// What was read of switch_flags, and how many bytes.
    flags: Vec<(W, usize)>,
    is_a_secret: bool,
}

impl<W> Default for Decisions<W> {
    fn default() -> Self {
        Self { flags: Vec::new(), is_a_secret: false }
    }
}

impl<W: Copy + PartialEq> Decisions<W> {
    /// The low `size` bytes of switch_flags were found to be `value`.
    pub(crate) fn read_flags(&mut self, value: W, size: usize) {
        self.flags.push((value, size));
    }

    /// A jump that might have gone either way has depended on `condition`, a truth value as a number.
    pub(crate) fn decided<D: Domain<Word = W>>(&mut self, d: &D, condition: W) {
        self.is_a_secret |= is_a_leak(d, condition) && !self.is_told(d, condition);
    }

    /// Whether the way here says what no guest may learn.
    pub(crate) const fn is_a_secret(&self) -> bool {
        self.is_a_secret
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
