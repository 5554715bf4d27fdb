//! How long a path may be, and how much all paths of a theorem: more than any switcher has, and less than
//! anybody waits for.

use crate::bad_code::BadCode;
use crate::run::watch::Watch;
use switcher_model::Domain;

/// More instructions than any path of a switcher has; a loop whose bound is a number may have many.
const LIMIT: usize = 10_000;

/// More instructions than any theorem of a switcher has on all of its paths together: each is one
/// that is executed, from the beginning of its path on.
pub(crate) const WORK: usize = 1 << 17;

/// More jumps that no number decides than any path of a switcher has. Each of them may make two paths
/// of one, and asks the solver.
const OPEN: usize = 256;

impl<'a, D: Domain> Watch<'a, D> {
    /// Refuses a path that is longer than any of a switcher: it may have no end.
    pub(crate) fn is_bounded(&self) -> Result<(), BadCode> {
        let at = self.trace.last().copied().unwrap_or_default();
        match (self.trace.len(), self.decided) {
            (LIMIT.., _) => Err(BadCode::Loop { at, limit: LIMIT }),
            (_, OPEN..) => Err(BadCode::Open { at, limit: OPEN }),
            _ => Ok(()),
        }
    }
}
