//! Branch predictors between guests: whose training a CPU may have (spec/hazards.md, row 54).

use crate::pcid::Generation;

/// Those who may train each other's branches: one virtual machine, as a rule. An identity, which is given
/// once; nothing that is freed and made again has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Domain(Generation);

impl Domain {
    /// A new one.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "two of them are never equal")]
    pub fn new() -> Self {
        Self(Generation::new())
    }
}

/// Who sees to the barrier between guests of two domains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Barriers {
    /// [`Cpu::enter`](crate::Cpu::enter), by IBPB, where the CPU has it. It costs some thousand cycles, when
    /// another domain's guest is entered than the last one's, and makes the new one's first branches slow.
    #[default]
    Enter,
    /// The host, which has barriers of its own where it changes from one process to another, and runs
    /// guests of one domain in one process only.
    Host,
}

/// What a CPU's predictors have been trained by.
#[derive(Debug)]
pub(crate) struct Predictors {
    last: Option<Domain>,
    /// Of the last domain something may be left.
    is_trained: bool,
    barriers: u64,
}

impl Predictors {
    /// By nobody knows whom: a switcher that was installed here before may have run guests.
    pub(crate) const fn unknown() -> Self {
        Self { last: None, is_trained: true, barriers: 0 }
    }

    /// A guest of this domain is about to run. Says whether a barrier has to come first.
    pub(crate) fn enter(&mut self, domain: Domain) -> bool {
        let foreign = self.is_trained && self.last != Some(domain);
        (self.last, self.is_trained) = (Some(domain), true);
        self.count(foreign)
    }

    /// Code of the host's at CPL 3 is about to run. Says whether a barrier has to come first.
    pub(crate) fn leave(&mut self) -> bool {
        let trained = core::mem::take(&mut self.is_trained);
        self.count(trained)
    }

    const fn count(&mut self, barrier: bool) -> bool {
        self.barriers += barrier as u64;
        barrier
    }

    /// How many there have been.
    pub(crate) const fn barriers(&self) -> u64 {
        self.barriers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_stands_between_two_domains_and_between_no_others() {
        let (a, b) = (Domain::new(), Domain::new());
        let mut cpu = Predictors::unknown();
        // Somebody may have trained something.
        assert!(cpu.enter(a));
        assert!(!cpu.enter(a));
        assert!(cpu.enter(b));
        assert!(!cpu.enter(b));
        assert!(cpu.enter(a));
        assert_eq!(cpu.barriers(), 3);
    }

    #[test]
    fn the_hosts_user_mode_is_behind_a_barrier_once() {
        let (a, b) = (Domain::new(), Domain::new());
        let mut cpu = Predictors::unknown();
        assert!(cpu.leave());
        assert!(!cpu.leave());
        cpu.enter(a);
        assert!(cpu.leave());
        assert!(!cpu.leave());
        // What was there is gone: the next guest needs none.
        assert!(!cpu.enter(b));
        assert!(cpu.leave());
        assert_eq!(cpu.barriers(), 3);
    }

    #[test]
    fn a_domain_made_anew_is_another_one() {
        assert_ne!(Domain::new(), Domain::new());
    }
}
