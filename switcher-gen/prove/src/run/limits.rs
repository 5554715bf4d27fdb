//! How long a path may be, and how much all paths of a theorem: more than any switcher has, and
//! less than anybody waits for.

use crate::bad_code::BadCode;
use crate::run::watch::Watch;
use crate::target::Target;
use switcher_model::Domain;

/// More instructions than any theorem of a switcher has on all of its paths together: each is one
/// that is executed, from the beginning of its path on.
const WORK: usize = 1 << 17;
/// How many paths a theorem may have that are as long as a path may be.
const LONG_PATHS: usize = 12;

/// More jumps that no number decides than any path of a switcher has. Each of them may make two
/// paths of one, and asks the solver.
const OPEN: usize = 64;

/// More instructions than all paths of a theorem about `target` have together.
pub(crate) fn work(target: &Target) -> usize {
    WORK.max(target.limit.saturating_mul(LONG_PATHS))
}

impl<'a, D: Domain> Watch<'a, D> {
    /// Refuses a path that is longer than any of a switcher: it may have no end.
    pub(crate) fn is_bounded(&self) -> Result<(), BadCode> {
        let at = self.trace.last().copied().unwrap_or_default();
        let limit = self.entry.target.limit;
        match (self.trace.len(), self.decided) {
            (length, _) if length >= limit => Err(BadCode::Loop { at, limit }),
            (_, OPEN..) => Err(BadCode::Open { at, limit: OPEN }),
            _ => Ok(()),
        }
    }
}
