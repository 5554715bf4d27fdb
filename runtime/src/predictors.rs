//! Branch predictors between guests: who may have trained those of a CPU (spec/hazards.md, row 54).

use crate::pcid::Generation;

/// Those who may train each other's branches: one virtual machine, as a rule. The identity of a
/// domain is given once: nothing that is freed and made again has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Domain(Generation);

impl Domain {
    /// Makes a new domain.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "two of them are never equal")]
    pub fn new() -> Self {
        Self(Generation::new())
    }
}

/// Who sees to the barrier between guests of two domains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Barriers {
    /// [`Cpu::enter`](crate::Cpu::enter) does, by IBPB, where the CPU has it. A barrier costs some
    /// thousand cycles, when another domain's guest is entered than the last one's, or code of the
    /// host's at CPL 3 has run in between, and makes the new guest's first branches slow.
    #[default]
    Enter,
    /// The host does: it has barriers of its own where it changes from one process to another, and
    /// runs guests of one domain in one process only. Before its user mode
    /// [`Cpu::barrier_before_user_mode`](crate::Cpu::barrier_before_user_mode) is as necessary as
    /// with [`Enter`](Self::Enter).
    Host,
}

/// The guests that have run since the last barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guests {
    /// No guest has run.
    Nobodys,
    /// Guests of one domain have run.
    Of(Domain),
    /// Guests of several domains have run, or of unknown ones.
    Several,
}

/// Who has trained a CPU's predictors since the last barrier. It is kept whoever sees to the
/// barriers, so that nothing that has run meanwhile is forgotten.
#[derive(Debug)]
pub(crate) struct Predictors {
    guests: Guests,
    /// Whether code of the host's at CPL 3 has run, too.
    user_mode: bool,
    barriers: u64,
}

impl Predictors {
    /// Anybody may have trained them: a switcher that was active here before may have run
    /// guests.
    pub(crate) const fn unknown() -> Self {
        Self { guests: Guests::Several, user_mode: true, barriers: 0 }
    }

    /// Notes that a guest of this domain is about to run. Returns whether a barrier has to come
    /// first. Where barriers are the host's, none has to, and who has trained the predictors before
    /// is still known.
    pub(crate) fn enter(&mut self, domain: Domain, barriers: Barriers) -> bool {
        let foreign = self.user_mode
            || match self.guests {
                Guests::Nobodys => false,
                Guests::Of(last) => last != domain,
                Guests::Several => true,
            };
        let barrier = foreign && barriers == Barriers::Enter;
        if barrier {
            self.user_mode = false;
        }
        self.guests = match self.guests {
            Guests::Several if !barrier => Guests::Several,
            Guests::Of(last) if !barrier && last != domain => Guests::Several,
            _ => Guests::Of(domain),
        };
        self.count(barrier)
    }

    /// Notes that code of the host's at CPL 3 is about to run, and to train the predictors. Returns
    /// whether a barrier has to come first, whoever sees to those between guests.
    pub(crate) fn leave(&mut self) -> bool {
        let trained = self.guests != Guests::Nobodys;
        (self.guests, self.user_mode) = (Guests::Nobodys, true);
        self.count(trained)
    }

    const fn count(&mut self, barrier: bool) -> bool {
        self.barriers += barrier as u64;
        barrier
    }

    /// The number of barriers that there have been.
    pub(crate) const fn barriers(&self) -> u64 {
        self.barriers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTER: Barriers = Barriers::Enter;
    const HOST: Barriers = Barriers::Host;

    #[test]
    fn a_barrier_stands_between_two_domains_and_between_no_others() {
        let (a, b) = (Domain::new(), Domain::new());
        let mut cpu = Predictors::unknown();
        // Anybody may have trained the predictors before.
        assert!(cpu.enter(a, ENTER));
        assert!(!cpu.enter(a, ENTER));
        assert!(cpu.enter(b, ENTER));
        assert!(!cpu.enter(b, ENTER));
        assert!(cpu.enter(a, ENTER));
        assert_eq!(cpu.barriers(), 3);
    }

    #[test]
    fn the_hosts_user_mode_is_after_a_barrier_once_and_so_is_the_guest_after_it() {
        let (a, b) = (Domain::new(), Domain::new());
        let mut cpu = Predictors::unknown();
        assert!(cpu.leave());
        assert!(!cpu.leave());
        // What user mode has trained would steer any guest.
        assert!(cpu.enter(a, ENTER));
        assert!(!cpu.enter(a, ENTER));
        assert!(cpu.leave());
        assert!(!cpu.leave());
        assert!(cpu.enter(a, ENTER));
        assert!(cpu.leave());
        assert!(cpu.enter(b, ENTER));
        assert!(!cpu.enter(b, ENTER));
        assert!(cpu.leave());
        assert_eq!(cpu.barriers(), 7);
    }

    #[test]
    fn user_mode_is_after_a_barrier_also_where_the_host_has_those_between_guests() {
        let (a, b) = (Domain::new(), Domain::new());
        let mut cpu = Predictors::unknown();
        assert!(cpu.leave());
        for domain in [a, b, a] {
            assert!(!cpu.enter(domain, HOST));
            assert!(cpu.leave());
            assert!(!cpu.leave());
        }
    }

    #[test]
    fn what_has_run_while_barriers_were_the_hosts_is_not_forgotten() {
        let (a, b) = (Domain::new(), Domain::new());
        // Guests of other domains run in between, of which the last one is another domain or the
        // same.
        for meanwhile in [&[b][..], &[b, a], &[a, b, a]] {
            let mut cpu = Predictors::unknown();
            assert!(cpu.enter(a, ENTER));
            for domain in meanwhile {
                assert!(!cpu.enter(*domain, HOST));
            }
            assert!(cpu.enter(a, ENTER), "{meanwhile:?}");
            assert!(!cpu.enter(a, ENTER));
        }
        // No guest runs in between.
        let mut cpu = Predictors::unknown();
        assert!(cpu.enter(a, ENTER));
        assert!(!cpu.enter(a, HOST));
        assert!(!cpu.enter(a, ENTER));
        // User mode runs in between, and there is no barrier after it.
        assert!(cpu.leave());
        assert!(!cpu.enter(a, HOST));
        assert!(cpu.enter(a, ENTER));
        // As long as nobody knows who has trained the predictors, that stays so.
        let mut cpu = Predictors::unknown();
        assert!(!cpu.enter(a, HOST));
        assert!(cpu.enter(a, ENTER));
    }

    #[test]
    fn a_domain_made_anew_is_another_one() {
        assert_ne!(Domain::new(), Domain::new());
    }
}
